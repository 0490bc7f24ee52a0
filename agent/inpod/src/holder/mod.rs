//! `weft holder`: owns network namespaces and listening sockets, and lets kubelets past capture while there is no agent
//! ([`away`]). Nothing else.
//!
//! It is tiny, single-threaded and does not change between versions unless it must, so that agents can crash
//! and be replaced: connection attempts wait in the accept queues of sockets that live here. A new holder
//! takes everything from the running one through `handoff.sock`; the queues never close.

mod away;
mod client;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod protocol;
mod table;

pub use client::HolderError;
pub(crate) use client::{HolderEvent, HolderLink, Posted, Request};
pub use protocol::{GroupKey, PodRecord, Transport};
pub(crate) use table::{HeldItem as Held, HeldPod};

use crate::sys::raise_open_files_limit;
use crate::wire::{Frame, WireError, read_frame, send_message};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        socket::{getsockopt, sockopt::PeerCredentials},
    },
};
use protocol::{Answer, Ask, Handoff, VERSION, handoff_path, socket_path};
use std::{
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use table::{HeldItem, Table};

/// A peer that stops in the middle of a message is cut off: the holder serves one at a time.
const PEER_PATIENCE: Duration = Duration::from_secs(5);
/// How long a running holder may refuse to hand over before the new one gives up. It must not start empty beside it: agents
/// would go to the new one, and what waits in the old one's accept queues would be lost when that ends.
const HANDOVER_PATIENCE: Duration = Duration::from_secs(20);
const HANDOVER_PAUSE: Duration = Duration::from_millis(500);
/// Connections at once: an agent, its successor, and some room.
const MAX_PEERS: usize = 8;

/// Where a holder works and when it ends.
#[derive(Debug)]
pub struct HolderConfig {
    /// Directory of the sockets, e.g. `/run/weft`; made if missing.
    pub run_dir: PathBuf,
    /// The holder ends when this becomes readable or closes. Without it, it ends with the process or when a
    /// new holder has taken over.
    pub stop: Option<OwnedFd>,
}

/// A holder that cannot work. An agent that misbehaves is never the reason.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The sockets cannot be made.
    #[error("{path}: {source}")]
    Socket {
        /// Which.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// Signals cannot be received.
    #[error("signals: {0}")]
    Signals(io::Error),
    /// The system refused to wait.
    #[error("poll: {0}")]
    Poll(io::Error),
    /// A holder runs and keeps what it has. It goes on serving; this one is to be started again later, by whoever started it.
    #[error("the running holder does not hand over: {0}")]
    NotHandedOver(HolderError),
}

/// Why a holder ended its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// A new holder has everything.
    HandedOver,
    /// `stop` said so. Everything is closed, unless an agent has duplicates.
    Stopped,
}

/// The whole of `weft holder`: serves until SIGTERM or SIGINT. Then it goes on while an agent is connected: a pod's containers
/// are told to end together, and that agent serves until its successor does, whose holder comes to this one for the sockets.
/// After a handover it sleeps until it is told to end: if it ended, its container would be restarted and take everything back.
/// Call it before any thread is started.
///
/// # Errors
/// As [`run`], or when signals cannot be received.
pub fn run_process(run_dir: PathBuf) -> Result<Ended, RunError> {
    // Received as a descriptor: process 1 of a container ignores signals that it does not ask for.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    let received = signals
        .thread_block()
        .and_then(|()| SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC))
        .map_err(|e| RunError::Signals(e.into()))?;
    let stop = received.as_fd().try_clone_to_owned().map_err(RunError::Signals)?;
    let ended = run_until(HolderConfig { run_dir, stop: Some(stop) }, Told::WhenAlone)?;
    if ended == Ended::HandedOver {
        received.read_signal().map_err(|e| RunError::Signals(e.into()))?;
    }
    Ok(ended)
}

/// Serves until a new holder has taken over, or `stop` says so. Blocking; run it on a thread of its own.
///
/// # Errors
/// Only when the sockets in `run_dir` cannot be made, or `poll` fails.
pub fn run(config: HolderConfig) -> Result<Ended, RunError> {
    run_until(config, Told::AtOnce)
}

/// When a holder that is told to end does so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    AtOnce,
    /// When no agent is connected.
    WhenAlone,
}

fn run_until(config: HolderConfig, told: Told) -> Result<Ended, RunError> {
    raise_open_files_limit();
    make_run_dir(&config.run_dir)?;
    let until = Instant::now() + HANDOVER_PATIENCE;
    let (table, old) = match take_over_until(&config.run_dir, config.stop.as_ref(), until)? {
        Predecessor::Gave(table, old) => (table, Some(old)),
        Predecessor::None => (Table::default(), None),
        Predecessor::Stopped => return Ok(Ended::Stopped),
    };
    let mut holder = Holder {
        table,
        agents: bind(&socket_path(&config.run_dir))?,
        successors: bind(&handoff_path(&config.run_dir))?,
        peers: Vec::new(),
        stop: config.stop,
        told,
        stopping: false,
        agent_left: false,
    };
    // Only now that agents find us may the old one go.
    if let Some(old) = old
        && let Err(error) = send_message(old.as_fd(), &Handoff::Taken, &[])
    {
        tracing::warn!(%error, "the old holder does not know that it may end");
    }
    tracing::info!(items = holder.table.len(), dir = %config.run_dir.display(), "holding");
    loop {
        if let Some(ended) = holder.turn()? {
            return Ok(ended);
        }
    }
}

struct Holder {
    table: Table,
    agents: UnixListener,
    successors: UnixListener,
    peers: Vec<Peer>,
    /// None once it was heard.
    stop: Option<OwnedFd>,
    told: Told,
    stopping: bool,
    /// The node had an agent and has none: not before one has come, or with every handover all pods would be opened.
    agent_left: bool,
}

/// A connection from an agent. It is the active one once it has said Hello.
struct Peer {
    stream: UnixStream,
    /// When the agent started, once it said so.
    started: Option<u64>,
}

impl Holder {
    /// Waits for something to happen and deals with it.
    fn turn(&mut self) -> Result<Option<Ended>, RunError> {
        let ready = self.wait()?;
        if ready.stop {
            if self.told == Told::AtOnce {
                return Ok(Some(Ended::Stopped));
            }
            tracing::info!("told to end: holding while an agent is there and no other holder");
            self.stop = None;
            self.stopping = true;
        }
        // From the back: removing one does not move those still to be looked at.
        for index in ready.peers.into_iter().rev() {
            self.serve(index);
        }
        if ready.agent {
            self.welcome();
        }
        if ready.successor && self.hand_over() {
            return Ok(Some(Ended::HandedOver));
        }
        if self.agent_left {
            away::open_one(&mut self.table);
        }
        let is_over = self.stopping && !self.has_agent() && !self.must_open();
        Ok(is_over.then_some(Ended::Stopped))
    }

    fn must_open(&self) -> bool {
        self.agent_left && away::any_due(&self.table)
    }

    fn has_agent(&self) -> bool {
        self.peers.iter().any(|peer| peer.started.is_some())
    }

    fn wait(&self) -> Result<Ready, RunError> {
        let fixed = [self.agents.as_fd(), self.successors.as_fd()];
        let peers = self.peers.iter().map(|p| p.stream.as_fd());
        let stop = self.stop.iter().map(AsFd::as_fd);
        let mut fds: Vec<PollFd<'_>> =
            fixed.into_iter().chain(peers).chain(stop).map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let timeout = if self.must_open() { PollTimeout::ZERO } else { PollTimeout::NONE };
        loop {
            match poll(&mut fds, timeout) {
                Ok(_) => break,
                Err(nix::Error::EINTR) => {}
                Err(e) => return Err(RunError::Poll(e.into())),
            }
        }
        let hit: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
        let count = self.peers.len();
        Ok(Ready {
            agent: hit[0],
            successor: hit[1],
            peers: (0..count).filter(|i| hit[2 + i]).collect(),
            stop: hit.get(2 + count).copied().unwrap_or(false),
        })
    }

    fn welcome(&mut self) {
        let Some(stream) = accept_root(&self.agents) else { return };
        if self.peers.len() >= MAX_PEERS {
            tracing::warn!("too many connections: refusing one");
            return;
        }
        self.peers.push(Peer { stream, started: None });
    }

    fn serve(&mut self, index: usize) {
        let served = match read_frame(self.peers[index].stream.as_fd()) {
            Ok(Some(frame)) => self.answer(index, frame),
            Ok(None) => Err(WireError::Io(io::ErrorKind::ConnectionAborted.into())),
            Err(e) => Err(e),
        };
        if let Err(error) = served {
            tracing::info!(%error, "an agent is gone");
            let was_active = self.peers.remove(index).started.is_some();
            self.agent_left |= was_active && !self.has_agent();
        }
    }

    fn answer(&mut self, index: usize, mut frame: Frame) -> Result<(), WireError> {
        let ask = frame.message()?;
        if let Ask::Hello { version, started } = ask {
            return self.hello(index, version, started);
        }
        let peer = &self.peers[index];
        if peer.started.is_none() {
            return send_message(peer.stream.as_fd(), &Answer::Superseded, &[]);
        }
        let table = &mut self.table;
        let reply = match ask {
            Ask::Hello { .. } => Err("said Hello already".to_owned()),
            Ask::Adopt(item) => {
                let held = HeldItem::new(item, std::mem::take(&mut frame.fds))?;
                table.adopt(held).map(|()| (Answer::Ok, Vec::new()))
            }
            Ask::OpenPod { container_id } => table.open_pod(&container_id),
            Ask::SetCaptured { container_id, captured } => table.set_captured(&container_id, captured),
            Ask::ClosePod { container_id } => Ok(table.close_pod(&container_id)),
            Ask::RemovePod { container_id } => Ok(table.remove_pod(&container_id)),
            Ask::ListenGroup { key, members } => table.listen_group(&key, members),
            Ask::CloseGroup { key } => Ok(table.close_group(&key)),
        };
        let (answer, fds) = reply.unwrap_or_else(|reason| (Answer::Failed { reason }, Vec::new()));
        send_message(peer.stream.as_fd(), &answer, &fds)
    }

    /// The newest agent is the active one. Those before it are told, so that two never fight over us.
    fn hello(&mut self, index: usize, version: u32, started: u64) -> Result<(), WireError> {
        let stream = self.peers[index].stream.as_fd();
        if version != VERSION {
            let reason = format!("holder speaks version {VERSION}, agent version {version}");
            return send_message(stream, &Answer::Failed { reason }, &[]);
        }
        if self.peers.iter().any(|p| p.started.is_some_and(|other| other > started)) {
            return send_message(stream, &Answer::Superseded, &[]);
        }
        self.table.send_all(stream)?;
        for (other, peer) in self.peers.iter_mut().enumerate() {
            if other != index && peer.started.take().is_some() {
                // It may be dead already: then its connection ends by itself.
                let _ = send_message(peer.stream.as_fd(), &Answer::Superseded, &[]);
            }
        }
        self.peers[index].started = Some(started);
        self.agent_left = false;
        Ok(())
    }

    /// Gives everything to a new holder. True when it said that it has it: then this one may end.
    fn hand_over(&self) -> bool {
        let Some(stream) = accept_root(&self.successors) else { return false };
        match give(&self.table, stream.as_fd()) {
            Ok(()) => {
                tracing::info!(items = self.table.len(), "handed over");
                true
            }
            Err(error) => {
                tracing::warn!(%error, "handing over failed: still holding");
                false
            }
        }
    }
}

struct Ready {
    agent: bool,
    successor: bool,
    peers: Vec<usize>,
    stop: bool,
}

fn give(table: &Table, successor: BorrowedFd<'_>) -> Result<(), WireError> {
    let wrong = |what: &str| WireError::Io(io::Error::new(io::ErrorKind::InvalidData, what.to_owned()));
    match next_message(successor)? {
        Handoff::Take { version: VERSION } => {}
        Handoff::Take { version } => {
            let reason = format!("this holder speaks version {VERSION}, not {version}");
            send_message(successor, &Answer::Failed { reason: reason.clone() }, &[])?;
            return Err(wrong(&reason));
        }
        Handoff::Taken => return Err(wrong("the new holder said Taken before Take")),
    }
    table.send_all(successor)?;
    match next_message(successor)? {
        Handoff::Taken => Ok(()),
        Handoff::Take { .. } => Err(wrong("the new holder said Take twice")),
    }
}

fn next_message(peer: BorrowedFd<'_>) -> Result<Handoff, WireError> {
    let frame = read_frame(peer)?.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
    Ok(frame.message()?)
}

/// What became of asking the holder that runs.
enum Predecessor {
    /// Everything it had, and the connection on which to tell it that it may end.
    Gave(Table, UnixStream),
    /// No holder runs.
    None,
    /// It is over before it began.
    Stopped,
}

/// Asks until the running holder gives what it has, or there is none any more.
fn take_over_until(run_dir: &Path, stop: Option<&OwnedFd>, until: Instant) -> Result<Predecessor, RunError> {
    loop {
        let error = match take_over(run_dir) {
            Ok(Some((table, old))) => return Ok(Predecessor::Gave(table, old)),
            Ok(None) => return Ok(Predecessor::None),
            Err(error) => error,
        };
        if Instant::now() >= until {
            return Err(RunError::NotHandedOver(error));
        }
        tracing::warn!(%error, "the running holder does not hand over: asking again");
        if stopped_within(stop, HANDOVER_PAUSE)? {
            return Ok(Predecessor::Stopped);
        }
    }
}

fn stopped_within(stop: Option<&OwnedFd>, pause: Duration) -> Result<bool, RunError> {
    let mut fds: Vec<PollFd<'_>> =
        stop.into_iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)).collect();
    let timeout = PollTimeout::try_from(pause).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, timeout) {
        Ok(hit) => Ok(hit > 0),
        Err(nix::Error::EINTR) => Ok(false), // asked again a little early
        Err(e) => Err(RunError::Poll(e.into())),
    }
}

/// Everything from the holder that runs now, and the connection on which to tell it that it may end.
/// `None`: no holder runs.
fn take_over(run_dir: &Path) -> Result<Option<(Table, UnixStream)>, HolderError> {
    let old = match UnixStream::connect(handoff_path(run_dir)) {
        Ok(stream) => stream,
        // No socket, or one that a dead holder left behind.
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(e) => return Err(WireError::from(e).into()),
    };
    set_patience(&old).map_err(WireError::from)?;
    send_message(old.as_fd(), &Handoff::Take { version: VERSION }, &[])?;
    let mut table = Table::default();
    for item in client::read_items(old.as_fd())? {
        table.adopt(item).map_err(HolderError::Failed)?;
    }
    Ok(Some((table, old)))
}

/// Binds under another name and renames, so that there is always a socket at `path`.
pub(crate) fn bind(path: &Path) -> Result<UnixListener, RunError> {
    let failed = |source| RunError::Socket { path: path.display().to_string(), source };
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    let listener = UnixListener::bind(&temporary).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    fs::rename(&temporary, path).map_err(failed)?;
    Ok(listener)
}

/// 0711: names inside can be reached by those who know them, the sockets check who calls.
pub(crate) fn make_run_dir(run_dir: &Path) -> Result<(), RunError> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(run_dir)
        .map_err(|source| RunError::Socket { path: run_dir.display().to_string(), source })
}

/// Whether the peer is root: nobody else may have a pod's sockets.
pub(crate) fn is_root(stream: &impl AsFd) -> bool {
    getsockopt(stream, PeerCredentials).is_ok_and(|peer| peer.uid() == 0)
}

fn accept_root(listener: &UnixListener) -> Option<UnixStream> {
    let (stream, _) = listener.accept().ok()?; // it may have gone again
    if !is_root(&stream) {
        tracing::warn!("refusing a connection from a user other than root");
        return None;
    }
    stream.set_nonblocking(false).and_then(|()| set_patience(&stream)).ok()?;
    Some(stream)
}

fn set_patience(stream: &UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PEER_PATIENCE))?;
    stream.set_write_timeout(Some(PEER_PATIENCE))
}

#[cfg(test)]
mod tests;
