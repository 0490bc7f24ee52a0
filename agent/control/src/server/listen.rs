//! Accepting: TCP, then TLS within a deadline, both bounded, in all and by address.

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
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use weft_certs::HandshakeFailure;

use super::Shared;

/// The pause after a failed accept: out of descriptors, say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections that have their TLS and wait to be served.
const QUEUE: usize = 64;

/// A connection, and its place among those that we allow.
pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
    _place: OwnedSemaphorePermit,
    _of_address: Place,
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
        let limits = shared.config.limits;
        let acceptor = TlsAcceptor::from(tls);
        let places = Arc::new(Semaphore::new(limits.connections));
        let addresses = Addresses::default();
        let mut handshakes = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = shared.stop.cancelled() => break,
                Some(_) = handshakes.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let place = places.clone().try_acquire_owned().ok();
            let of_address = addresses.take(peer.ip().to_canonical(), limits.connections_per_address);
            let (Some(_place), Some(_of_address)) = (place, of_address) else {
                shared.counters.count("dropped_too_many_connections");
                continue;
            };
            let (acceptor, ready, shared) = (acceptor.clone(), ready.clone(), shared.clone());
            handshakes.spawn(async move {
                match handshake(&acceptor, stream, limits.step).await {
                    // An error: the server has stopped.
                    Ok(stream) => drop(ready.send(Ok(Connection { stream, _place, _of_address })).await),
                    Err(reason) => {
                        shared.counters.count("dropped_handshake");
                        tracing::debug!(%peer, %reason, "handshake failed");
                    }
                }
            });
        }
    });
    ReceiverStream::new(connections)
}

async fn handshake(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
    within: Duration,
) -> Result<TlsStream<TcpStream>, String> {
    // Small messages must not wait for each other; a failure only makes them slower.
    let _ = stream.set_nodelay(true);
    match timeout(within, acceptor.accept(stream)).await {
        Ok(done) => done.map_err(|error| HandshakeFailure::from_io(&error).to_string()),
        Err(_) => Err("it took too long".to_owned()),
    }
}

/// Connections by address.
#[derive(Clone, Default)]
struct Addresses(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One connection of an address; given back on drop.
struct Place(Addresses, IpAddr);

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
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
