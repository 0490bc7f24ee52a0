//! Accepting: TCP, then TLS within a deadline. Who comes is a stranger and bounded as such, until a call shows a good token;
//! connections of the known are bounded apart, in all and by address.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use parking_lot::Mutex;
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::transport::server::Connected;
use weft_certs::HandshakeFailure;

use super::{Shared, standing::Standing};
use crate::door::Stranger;

/// The pause after a failed accept: out of descriptors, say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections that have their TLS and wait to be served.
const QUEUE: usize = 64;

/// A connection, which ends when its standing says so.
pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
    standing: Arc<Standing>,
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// Accepts until stopped.
pub(super) fn accept(
    helpers: &mut JoinSet<()>,
    shared: Arc<Shared>,
    listener: TcpListener,
    tls: Arc<ServerConfig>,
) -> ReceiverStream<io::Result<Connection>> {
    let (ready, connections) = mpsc::channel(QUEUE);
    helpers.spawn(async move {
        let acceptor = TlsAcceptor::from(tls);
        let mut strangers = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = shared.stop.cancelled() => break,
                Some(_) = strangers.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let stranger = shared.door.enter(peer.ip().to_canonical());
                    strangers.spawn(receive(
                        shared.clone(),
                        acceptor.clone(),
                        (stream, stranger),
                        ready.clone(),
                    ));
                }
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
    ReceiverStream::new(connections)
}

/// Sees a stranger through: the handshake, then until it is known or has to go.
async fn receive(
    shared: Arc<Shared>,
    acceptor: TlsAcceptor,
    (stream, stranger): (TcpStream, Stranger),
    ready: mpsc::Sender<io::Result<Connection>>,
) {
    let limits = shared.config.limits;
    let arrived = Instant::now();
    let made = tokio::select! {
        made = handshake(&acceptor, stream, arrived + limits.step) => made,
        () = stranger.displaced() => {
            shared.counters.count("dropped_displaced");
            return;
        }
    };
    let stream = match made {
        Ok(stream) => stream,
        Err(reason) => {
            shared.counters.count("dropped_handshake");
            tracing::debug!(peer = %stranger.address(), %reason, "handshake failed");
            return;
        }
    };
    let displaced = stranger.when_displaced();
    let standing = Standing::of(stranger);
    let closing = Box::pin(standing.closing());
    // An error: the server has stopped.
    let _ = ready.send(Ok(Connection { stream, standing: standing.clone(), closing })).await;
    if let Some(why) = standing.watch(displaced, arrived + limits.stranger).await {
        shared.counters.count(why);
    }
}

async fn handshake(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
    until: Instant,
) -> Result<TlsStream<TcpStream>, String> {
    // Small messages must not wait for each other; a failure only makes them slower.
    let _ = stream.set_nodelay(true);
    match timeout_at(until, acceptor.accept(stream)).await {
        Ok(done) => done.map_err(|error| HandshakeFailure::from_io(&error).to_string()),
        Err(_) => Err("it took too long".to_owned()),
    }
}

/// Connections of those who are known.
pub(super) struct Places {
    all: Arc<Semaphore>,
    addresses: Addresses,
    per_address: usize,
}

/// Connections by address.
#[derive(Clone, Default)]
struct Addresses(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One connection of an address; given back on drop.
pub(super) struct Place(Addresses, IpAddr);

impl Places {
    pub(super) fn new(all: usize, per_address: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), addresses: Addresses::default(), per_address }
    }

    /// One of all, and one of this address.
    pub(super) fn take(&self, address: IpAddr) -> Option<(OwnedSemaphorePermit, Place)> {
        let place = self.all.clone().try_acquire_owned().ok()?;
        Some((place, self.addresses.take(address, self.per_address)?))
    }
}

impl Addresses {
    fn take(&self, address: IpAddr, bound: usize) -> Option<Place> {
        let mut all = self.0.lock();
        let count = all.entry(address).or_default();
        if *count >= bound {
            return None;
        }
        *count += 1;
        Some(Place(self.clone(), address))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.0.0.lock();
        if let Some(count) = all.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.1);
            }
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Arc<Standing>;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.standing.clone()
    }
}

impl Connection {
    /// The stream, as long as the connection is not to end.
    fn stream(self: Pin<&mut Self>, cx: &mut Context<'_>) -> io::Result<Pin<&mut TlsStream<TcpStream>>> {
        let this = self.get_mut();
        if this.closing.as_mut().poll(cx).is_ready() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(Pin::new(&mut this.stream))
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.stream(cx)?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.stream(cx)?.poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream(cx)?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
