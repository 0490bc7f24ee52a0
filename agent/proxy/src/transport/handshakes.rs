//! TLS handshakes of tunnels, on a thread of their own.
//!
//! A handshake's cryptography (two signatures, ECDH and ML-KEM) is one step of 100 to 400 µs that nothing can
//! interrupt: a flood of them would make every other pod's request wait for one, several times. So they run on a thread
//! with a high niceness, which the kernel takes off its CPU as soon as a worker has something to do. On that thread
//! tenants have shares again: who floods waits behind those who do not. How many a tenant may have under way is bounded
//! by its shares on the workers.
//!
//! The socket moves there and back, with the TLS state between; two wake-ups and four `epoll_ctl`, against a saving of
//! everybody's time.

use super::{connect, metered::Metered};
use crate::{
    context::ShareKey,
    drain::Drain,
    share::{Kind, Share, ShareLimits, scheduler::Scheduler},
};
use std::{
    cell::RefCell,
    collections::HashMap,
    future::poll_fn,
    io::{self, IoSlice},
    pin::{Pin, pin},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    runtime::LocalOptions,
    sync::{mpsc, oneshot},
};
use tokio_rustls::{client, server};
use tokio_util::sync::CancellationToken;

/// Handshakes that may wait for the thread. More are done where they came up.
const WAITING_MAX: usize = 1024;
/// A worker that wakes up takes the CPU from the thread at once: between equals it waits for the end of a time slice, 2 to
/// 3 ms (tests/bench/PROFILE.md). And beside a worker that is always busy a quarter of the CPU is left: a flood of bytes
/// must not stop new tunnels, as `SCHED_IDLE` would.
const NICENESS: i32 = 5;

/// Steps with cryptography in them take longer than this. To give the CPU away costs a turn, so the others do not.
const LONG_STEP: Duration = Duration::from_micros(50);

type Job = Box<dyn FnOnce(&Helper) + Send>;

/// The way to the thread.
#[derive(Debug)]
pub(crate) struct Handshakes {
    jobs: mpsc::Sender<Job>,
    inline: AtomicU64,
}

/// What runs on the thread.
struct Helper {
    scheduler: Rc<Scheduler>,
    /// Of tenants that have a handshake under way.
    shares: RefCell<HashMap<ShareKey, Rc<Share>>>,
}

impl Handshakes {
    /// Starts the thread. It ends with `stop`.
    ///
    /// # Errors
    /// When the kernel gives no thread or no epoll instance.
    pub(crate) fn start(stop: CancellationToken) -> io::Result<(Self, JoinHandle<()>)> {
        let (jobs, queue) = mpsc::channel(WAITING_MAX);
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        // Made here so that a failure is the caller's; a local runtime can only be built on its own thread.
        let (ready, started) = std::sync::mpsc::channel();
        let body = move || match runtime.enable_all().build_local(LocalOptions::default()) {
            Ok(runtime) => {
                // Nobody listens only if the starter is gone too, here and below.
                let _ = ready.send(Ok(()));
                runtime.block_on(serve(queue, stop));
            }
            Err(error) => {
                let _ = ready.send(Err(error));
            }
        };
        let thread = std::thread::Builder::new().name("weft-handshakes".to_owned()).spawn(body)?;
        started.recv().map_err(io::Error::other)??;
        Ok((Self { jobs, inline: AtomicU64::new(0) }, thread))
    }

    /// Handshakes that were done on a worker because too many were waiting.
    #[must_use]
    pub(crate) fn inline(&self) -> u64 {
        self.inline.load(Ordering::Relaxed)
    }

    /// Does a tenant's handshake over there, and brings the connection back. Dropped, it ends the handshake.
    ///
    /// # Errors
    /// The handshake's, or what the kernel says about the socket.
    pub(crate) async fn run<T, F>(
        &self,
        tenant: ShareKey,
        io: TcpStream,
        handshake: impl FnOnce(Metered<Socket>) -> F + Send + 'static,
    ) -> io::Result<T>
    where
        T: Moves,
        F: Future<Output = io::Result<T>>,
    {
        let Ok(place) = self.jobs.try_reserve() else {
            self.inline.fetch_add(1, Ordering::Relaxed);
            return handshake(Metered(Socket::Here(io))).await;
        };
        let (mut answer, answered) = oneshot::channel();
        let mut socket = Socket::Here(io);
        socket.leave()?;
        place.send(Box::new(move |helper| {
            helper.spawn(tenant, async move {
                let done: io::Result<T> = {
                    let mut work = pin!(async {
                        socket.arrive()?;
                        let mut done = handshake(Metered(socket)).await?;
                        done.socket().leave()?;
                        Ok(done)
                    });
                    tokio::select! {
                        done = &mut work => done,
                        // Its deadline has passed, or its pod is gone.
                        () = answer.closed() => return,
                    }
                };
                // Fails only if nobody waits any more.
                let _ = answer.send(done);
            });
        }));
        let mut done: T =
            answered.await.map_err(|_| io::Error::other("the handshake's thread has ended"))??;
        done.socket().arrive()?;
        Ok(done)
    }
}

async fn serve(mut queue: mpsc::Receiver<Job>, stop: CancellationToken) {
    // Of this thread only, on Linux. Without the right to do so handshakes are as urgent as everything else.
    if let Err(error) = rustix::process::nice(NICENESS) {
        tracing::debug!(%error, "the handshakes' thread keeps its niceness");
    }
    let helper = Helper { scheduler: Scheduler::start(Arc::default()), shares: RefCell::default() };
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            job = queue.recv() => match job {
                Some(job) => job(&helper),
                None => break,
            },
        }
    }
    for share in helper.shares.take().into_values() {
        share.close();
    }
}

/// Gives the CPU away after each long step. Niceness does that only for a worker that wakes up: one that was ready already
/// (its pod's program had taken the CPU from it) waited for the end of this thread's time slice, 2 ms, while packets for
/// it came in.
async fn yielding(work: impl Future<Output = ()>) {
    let mut work = pin!(work);
    poll_fn(|cx| {
        let start = Instant::now();
        let done = work.as_mut().poll(cx);
        if start.elapsed() >= LONG_STEP {
            std::thread::yield_now();
        }
        done
    })
    .await;
}

impl Helper {
    fn spawn(&self, tenant: ShareKey, work: impl Future<Output = ()> + 'static) {
        let mut shares = self.shares.borrow_mut();
        // Those that have no handshake under way any more.
        shares.retain(|key, share| *key == tenant || share.connections() > 0);
        // The bound on handshakes is the worker's.
        let limits = ShareLimits { connections_max: usize::MAX, handshakes_max: 1, buffered_max: 0 };
        let share = shares
            .entry(tenant.clone())
            .or_insert_with(|| Share::start(&self.scheduler, tenant, limits, Drain::new(), Arc::default()));
        let guard = share.admit(Kind::In);
        share.spawn(async move {
            yielding(work).await;
            drop(guard);
        });
    }
}

/// A TCP connection that can move to another thread's runtime.
#[derive(Debug)]
pub enum Socket {
    /// Registered with this thread's runtime.
    Here(TcpStream),
    /// On its way.
    Moving(std::net::TcpStream),
    /// Lost on its way.
    Gone,
}

impl Socket {
    /// As [`connect::reset_on_close`].
    pub(crate) fn reset_on_close(&self) {
        if let Self::Here(io) = self {
            connect::reset_on_close(io);
        }
    }

    fn leave(&mut self) -> io::Result<()> {
        *self = match std::mem::replace(self, Self::Gone) {
            Self::Here(io) => Self::Moving(io.into_std()?),
            other => other,
        };
        Ok(())
    }

    fn arrive(&mut self) -> io::Result<()> {
        *self = match std::mem::replace(self, Self::Gone) {
            Self::Moving(io) => Self::Here(TcpStream::from_std(io)?),
            other => other,
        };
        Ok(())
    }

    fn here(self: Pin<&mut Self>) -> io::Result<Pin<&mut TcpStream>> {
        match self.get_mut() {
            Self::Here(io) => Ok(Pin::new(io)),
            Self::Moving(_) | Self::Gone => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.here()?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.here()?.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.here()?.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.here()?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.here()?.poll_shutdown(cx)
    }
}

/// A connection over a [`Socket`].
pub trait Moves: Send + 'static {
    /// What must be moved.
    fn socket(&mut self) -> &mut Socket;
}

impl Moves for client::TlsStream<Metered<Socket>> {
    fn socket(&mut self) -> &mut Socket {
        &mut self.get_mut().0.0
    }
}

impl Moves for server::TlsStream<Metered<Socket>> {
    fn socket(&mut self) -> &mut Socket {
        &mut self.get_mut().0.0
    }
}

#[cfg(test)]
mod tests;
