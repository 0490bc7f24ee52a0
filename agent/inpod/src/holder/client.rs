//! The agent's side of the holder: a thread that keeps a connection and answers requests one by one.

use super::{
    protocol::{Answer, Ask, GroupKey, VERSION, socket_path},
    table::{HeldItem, HeldPod},
};
use crate::{
    socket::Listeners,
    wire::{Frame, WireError, read_frame, send_message},
};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};
use std::{
    collections::VecDeque,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, oneshot};

const PATIENCE: Duration = Duration::from_secs(10);
const FIRST_RETRY: Duration = Duration::from_millis(20);
const LAST_RETRY: Duration = Duration::from_millis(500);
/// How long a request waits for a holder that is away: a handover takes less, so callers do not notice it.
const GRACE: Duration = Duration::from_secs(2);
/// Requests that may wait: each pod has at most one in work.
const QUEUE: usize = 1024;

/// The holder did not do what was asked. Retry all but `Superseded`.
#[derive(Debug, thiserror::Error)]
pub enum HolderError {
    /// No connection at the moment: it is being tried again.
    #[error("the holder is not there")]
    Away,
    /// Too many requests wait.
    #[error("too many requests wait for the holder")]
    Busy,
    /// A newer agent has taken over.
    #[error("a newer agent has taken over")]
    Superseded,
    /// The holder's own words.
    #[error("holder: {0}")]
    Failed(String),
    /// The conversation broke; the connection is made anew.
    #[error("holder: {0}")]
    Wire(#[from] WireError),
}

/// What the connection goes through.
#[derive(Debug)]
pub(crate) enum HolderEvent {
    /// Connected; this is all that the holder holds.
    Connected(Vec<HeldItem>),
    /// Lost; it is being tried again.
    Lost,
    /// A newer agent has taken over: the thread has ended.
    Superseded,
}

/// What can be asked.
#[derive(Debug)]
pub(crate) enum Request {
    /// Remember a pod, with its listeners if it has some that the holder may have lost.
    Adopt(HeldPod),
    /// Give a group back to a holder that lost it.
    AdoptGroup(GroupKey, Vec<OwnedFd>),
    Open(String),
    SetCaptured(String, bool),
    Close(String),
    Remove(String),
    ListenGroup(GroupKey, usize),
    CloseGroup(GroupKey),
}

type Reply = oneshot::Sender<Result<Vec<OwnedFd>, HolderError>>;

#[derive(Debug)]
struct Queued {
    request: Request,
    reply: Reply,
    since: Instant,
}

/// A handle to the thread; the thread ends when all handles are gone.
#[derive(Clone, Debug)]
pub(crate) struct HolderLink {
    queue: SyncSender<Queued>,
    wake: Arc<WakeOnDrop>,
}

#[derive(Debug)]
struct WakeOnDrop(Arc<EventFd>);

impl Drop for WakeOnDrop {
    fn drop(&mut self) {
        let _ = self.0.write(1); // the thread then finds its queue closed
    }
}

impl HolderLink {
    /// Starts the thread. `started` orders agents: the holder listens to the newest.
    pub(crate) fn start(
        run_dir: PathBuf,
        started: u64,
        events: mpsc::Sender<HolderEvent>,
    ) -> io::Result<Self> {
        let (queue, requests) = sync_channel(QUEUE);
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let waiting = VecDeque::new();
        let link = Link { run_dir, started, requests, waiting, wake: wake.clone(), events };
        thread::Builder::new().name("weft-holder-link".into()).spawn(move || link.serve())?;
        Ok(Self { queue, wake: Arc::new(WakeOnDrop(wake)) })
    }

    /// Asks the holder to open a pod's listeners.
    pub(crate) async fn open(&self, id: &str) -> Result<Listeners, HolderError> {
        let fds = self.ask(Request::Open(id.to_owned())).await?;
        let found = fds.len();
        let fds: [OwnedFd; 3] = fds.try_into().map_err(|_| WireError::Descriptors { wanted: 3, found })?;
        Ok(Listeners::from_fds(fds))
    }

    /// Asks anything else; the answer's descriptors come back.
    pub(crate) async fn ask(&self, request: Request) -> Result<Vec<OwnedFd>, HolderError> {
        self.post(request).answer().await
    }

    /// Queues a request now, in order with those before it. The answer need not be waited for.
    pub(crate) fn post(&self, request: Request) -> Posted {
        let (reply, answer) = oneshot::channel();
        let queued = self.queue.try_send(Queued { request, reply, since: Instant::now() });
        let _ = self.wake.0.write(1); // full means that it is awake already
        Posted(queued.map(|()| answer).map_err(|e| match e {
            TrySendError::Full(_) => HolderError::Busy,
            TrySendError::Disconnected(_) => HolderError::Superseded,
        }))
    }
}

/// A request that was queued, or why not.
#[derive(Debug)]
pub(crate) struct Posted(Result<oneshot::Receiver<Result<Vec<OwnedFd>, HolderError>>, HolderError>);

impl Posted {
    pub(crate) async fn answer(self) -> Result<Vec<OwnedFd>, HolderError> {
        self.0?.await.unwrap_or(Err(HolderError::Away))
    }
}

/// Reads a snapshot: the count, then the items.
pub(super) fn read_items(holder: BorrowedFd<'_>) -> Result<Vec<HeldItem>, HolderError> {
    let count = match next(holder)?.message().map_err(WireError::from)? {
        Answer::Snapshot { items } => items,
        Answer::Superseded => return Err(HolderError::Superseded),
        Answer::Failed { reason } => return Err(HolderError::Failed(reason)),
        Answer::Ok => return Err(HolderError::Failed("sent no snapshot".into())),
    };
    (0..count).map(|_| Ok(HeldItem::from_frame(next(holder)?)?)).collect()
}

struct Link {
    run_dir: PathBuf,
    started: u64,
    requests: Receiver<Queued>,
    /// Taken from `requests` while the holder was away, oldest first; at most [`QUEUE`].
    waiting: VecDeque<Queued>,
    wake: Arc<EventFd>,
    events: mpsc::Sender<HolderEvent>,
}

/// Why the thread ends.
struct Ended;

impl Link {
    fn serve(mut self) {
        let mut retry = FIRST_RETRY;
        loop {
            match greet(&self.run_dir, self.started) {
                Ok((stream, items)) => {
                    retry = FIRST_RETRY;
                    if self.tell(HolderEvent::Connected(items)).is_err() {
                        return;
                    }
                    let Some(event) = self.connected(&stream) else { return };
                    let last = matches!(event, HolderEvent::Superseded);
                    if self.tell(event).is_err() || last {
                        return;
                    }
                }
                Err(HolderError::Superseded) => {
                    let _ = self.tell(HolderEvent::Superseded);
                    return;
                }
                Err(error) => tracing::debug!(%error, "holder not reached"),
            }
            if self.pause(retry).is_err() {
                return;
            }
            retry = (retry * 2).min(LAST_RETRY);
        }
    }

    fn tell(&self, event: HolderEvent) -> Result<(), Ended> {
        self.events.blocking_send(event).map_err(|_| Ended)
    }

    /// Answers requests until the connection ends. `None`: nobody asks any more.
    fn connected(&mut self, stream: &UnixStream) -> Option<HolderEvent> {
        loop {
            while let Some(queued) = self.next_request()? {
                let answer = exchange(stream, &queued.request);
                let event = match &answer {
                    Err(HolderError::Wire(_)) => Some(HolderEvent::Lost),
                    Err(HolderError::Superseded) => Some(HolderEvent::Superseded),
                    _ => None,
                };
                let _ = queued.reply.send(answer); // a caller that gave up needs no answer
                if event.is_some() {
                    return event;
                }
            }
            let mut fds = [stream.as_fd(), self.wake.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(_) => return Some(HolderEvent::Lost),
            }
            if fds[0].any().unwrap_or(true) {
                return Some(ending(stream));
            }
            let _ = self.wake.read();
        }
    }

    /// `Some(None)`: nothing is asked now. `None`: nobody asks any more.
    fn next_request(&mut self) -> Option<Option<Queued>> {
        if let Some(queued) = self.waiting.pop_front() {
            return Some(Some(queued));
        }
        match self.requests.try_recv() {
            Ok(queued) => Some(Some(queued)),
            Err(TryRecvError::Empty) => Some(None),
            Err(TryRecvError::Disconnected) => None,
        }
    }

    /// Waits before the next try to connect. Requests wait too, but none longer than [`GRACE`].
    fn pause(&mut self, wait: Duration) -> Result<(), Ended> {
        let until = Instant::now() + wait;
        loop {
            match self.requests.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(queued) => self.waiting.push_back(queued),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return Err(Ended),
            }
            if self.waiting.len() > QUEUE {
                self.refuse_oldest();
            }
        }
        while self.waiting.front().is_some_and(|queued| queued.since.elapsed() >= GRACE) {
            self.refuse_oldest();
        }
        Ok(())
    }

    fn refuse_oldest(&mut self) {
        if let Some(queued) = self.waiting.pop_front() {
            let _ = queued.reply.send(Err(HolderError::Away)); // a caller that gave up needs no answer
        }
    }
}

fn greet(run_dir: &Path, started: u64) -> Result<(UnixStream, Vec<HeldItem>), HolderError> {
    let io = |e: io::Error| HolderError::Wire(e.into());
    let stream = UnixStream::connect(socket_path(run_dir)).map_err(io)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(io)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(io)?;
    send_message(stream.as_fd(), &Ask::Hello { version: VERSION, started }, &[])?;
    let items = read_items(stream.as_fd())?;
    Ok((stream, items))
}

/// The holder speaks unasked only to say that it is over.
fn ending(stream: &UnixStream) -> HolderEvent {
    match read_frame(stream.as_fd()).ok().flatten().map(|frame| frame.message::<Answer>()) {
        Some(Ok(Answer::Superseded)) => HolderEvent::Superseded,
        _ => HolderEvent::Lost,
    }
}

fn exchange(stream: &UnixStream, request: &Request) -> Result<Vec<OwnedFd>, HolderError> {
    let (ask, fds) = message(request);
    send_message(stream.as_fd(), &ask, &fds)?;
    let frame = next(stream.as_fd())?;
    match frame.message::<Answer>().map_err(WireError::from)? {
        Answer::Ok => Ok(frame.fds),
        Answer::Failed { reason } => Err(HolderError::Failed(reason)),
        Answer::Superseded => Err(HolderError::Superseded),
        Answer::Snapshot { .. } => Err(HolderError::Failed("answered with a snapshot".into())),
    }
}

fn message(request: &Request) -> (Ask, Vec<BorrowedFd<'_>>) {
    let id = |id: &String| id.clone();
    let ask = match request {
        Request::Adopt(pod) => {
            let (item, fds) = pod.to_item();
            return (Ask::Adopt(item), fds);
        }
        Request::AdoptGroup(key, sockets) => {
            let item = super::protocol::Item::Group { key: key.clone(), members: sockets.len() };
            return (Ask::Adopt(item), sockets.iter().map(AsFd::as_fd).collect());
        }
        Request::Open(pod) => Ask::OpenPod { container_id: id(pod) },
        Request::SetCaptured(pod, captured) => {
            Ask::SetCaptured { container_id: id(pod), captured: *captured }
        }
        Request::Close(pod) => Ask::ClosePod { container_id: id(pod) },
        Request::Remove(pod) => Ask::RemovePod { container_id: id(pod) },
        Request::ListenGroup(key, members) => Ask::ListenGroup { key: key.clone(), members: *members },
        Request::CloseGroup(key) => Ask::CloseGroup { key: key.clone() },
    };
    (ask, Vec::new())
}

fn next(holder: BorrowedFd<'_>) -> Result<Frame, WireError> {
    Ok(read_frame(holder)?.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?)
}
