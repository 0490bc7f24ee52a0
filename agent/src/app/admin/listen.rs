//! Listening for readers of pages. A connection is good for one request, whose head comes soon or not at all; until it is
//! known that its caller may read the page, it is a stranger, and strangers make room for each other.

use super::{Door, Pages};
use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustls::ServerConfig;
use socket2::{Domain, Socket, Type};
use std::{
    convert::Infallible,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use weft_certs::anonymous_server;
use weft_control::Stranger;

/// Connections at once on the Unix socket, whose callers are in this pod, and readers at once who are let read.
const CONNECTIONS_MAX: usize = 64;
/// For TLS, and after that for the request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(2);
/// For a whole connection: the question to the API server, and a slow reader's page.
const LIFE_MAX: Duration = Duration::from_secs(20);
/// The most that is read of a head before it is complete, in bytes.
const HEAD_MAX: usize = 32 << 10;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;
/// Between two tries of an address that another agent still has.
const BIND_PAUSE: Duration = Duration::from_millis(250);

/// Listens at an address. `[::]` means both families, whatever the node makes of it by itself (`net.ipv6.bindv6only`), and IPv4
/// alone where the kernel has nothing else: who asks an agent has its pod's first address, which is of either.
///
/// # Errors
/// When the address cannot be bound.
pub(super) fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let every = addr.is_ipv6() && addr.ip().is_unspecified();
    match open(addr) {
        Err(error) if every && error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            open(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), addr.port()))
        }
        done => done,
    }
}

fn open(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(!addr.ip().is_unspecified())?;
    }
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Binds an address and serves its pages on it until `stop`.
///
/// # Errors
/// When the address cannot be bound, or no key can be made.
pub(in crate::app) async fn serve(
    (door, addr): (Door, SocketAddr),
    pages: Arc<Pages>,
    stop: CancellationToken,
) -> Result<()> {
    let entrance = Entrance::new(door, pages, stop.clone())?;
    let listener = listen(addr).with_context(|| format!("cannot listen on {addr}"))?;
    tokio::spawn(stop.run_until_cancelled_owned(entrance.accept(listener)));
    Ok(())
}

/// Serves an address as soon as it is free, and says once that it is not: while one agent replaces another, both are on the
/// node's network, and the old one gives its addresses up when it begins to drain.
///
/// # Errors
/// When no key can be made.
pub(in crate::app) fn serve_when_free(
    (door, addr): (Door, SocketAddr),
    pages: Arc<Pages>,
    stop: CancellationToken,
) -> Result<()> {
    let entrance = Entrance::new(door, pages, stop.clone())?;
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        let mut said = false;
        let listener = loop {
            match listen(addr) {
                Ok(listener) => break listener,
                Err(error) if !std::mem::replace(&mut said, true) => {
                    tracing::info!("{addr}: {error}; waiting until it is free");
                }
                Err(_) => {}
            }
            tokio::time::sleep(BIND_PAUSE).await;
        };
        entrance.accept(listener).await;
    }));
    Ok(())
}

/// Serves every page on a Unix socket, which is this process's alone: probes and `weft admin` ask there.
///
/// # Errors
/// When the socket cannot be made.
pub(in crate::app) fn serve_socket(path: &Path, pages: Arc<Pages>, stop: CancellationToken) -> Result<()> {
    let _ = std::fs::remove_file(path); // of a container that ran here before
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(permit) = room.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let place = Mutex::new(Place::Known { _permit: permit });
                    let caller = Caller { door: Door::Admin, from: None, room: room.clone(), place };
                    let conversation = converse(stream, Arc::new(caller), pages.clone());
                    tokio::spawn(stop.clone().run_until_cancelled_owned(conversation));
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    }));
    Ok(())
}

/// What is behind an address.
pub(super) struct Entrance {
    door: Door,
    tls: Option<TlsAcceptor>,
    pages: Arc<Pages>,
    /// For readers who may read what they ask for.
    room: Arc<Semaphore>,
    stop: CancellationToken,
}

/// Who has a connection.
struct Caller {
    door: Door,
    /// None: from this pod.
    from: Option<IpAddr>,
    /// For those who may read what they ask for.
    room: Arc<Semaphore>,
    place: Mutex<Place>,
}

/// Held for its drop.
enum Place {
    Stranger { _place: Stranger },
    Known { _permit: OwnedSemaphorePermit },
}

impl Entrance {
    pub(super) fn new(door: Door, pages: Arc<Pages>, stop: CancellationToken) -> Result<Self> {
        // One key for the life of the process: who reads metrics verifies no certificate, and brings a token of its own.
        let tls = (door == Door::Network).then(|| anonymous_server(&[b"http/1.1"])).transpose()?;
        let tls = tls.map(|config: ServerConfig| TlsAcceptor::from(Arc::new(config)));
        Ok(Self { door, tls, pages, room: Arc::new(Semaphore::new(CONNECTIONS_MAX)), stop })
    }

    pub(super) async fn accept(self, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => self.receive(stream, peer.ip().to_canonical()),
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await, // out of descriptors: let some go
            }
        }
    }

    fn receive(&self, stream: TcpStream, from: IpAddr) {
        let stranger = self.pages.strangers.enter(from);
        let displaced = stranger.when_displaced().cancelled_owned();
        let caller = Caller {
            door: self.door,
            from: Some(from),
            room: self.room.clone(),
            place: Mutex::new(Place::Stranger { _place: stranger }),
        };
        let conversation = answer_at((stream, self.tls.clone()), caller, self.pages.clone());
        tokio::spawn(self.stop.clone().run_until_cancelled_owned(until(conversation, displaced)));
    }
}

/// Lets a stranger go when somebody else has its place.
async fn until(conversation: impl Future<Output = ()>, displaced: WaitForCancellationFutureOwned) {
    tokio::select! {
        () = conversation => {}
        () = displaced => {}
    }
}

async fn answer_at((stream, tls): (TcpStream, Option<TlsAcceptor>), caller: Caller, pages: Arc<Pages>) {
    let caller = Arc::new(caller);
    match tls {
        None => converse(stream, caller, pages).await,
        Some(tls) => {
            if let Ok(Ok(stream)) = timeout(HEAD_TIMEOUT, tls.accept(stream)).await {
                converse(stream, caller, pages).await;
            }
        }
    }
}

async fn converse<S>(stream: S, caller: Arc<Caller>, pages: Arc<Pages>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let (pages, caller) = (pages.clone(), caller.clone());
        async move { Ok::<_, Infallible>(caller.answer(&pages, &request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .keep_alive(false)
        .max_buf_size(HEAD_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let _ = timeout(LIFE_MAX, connection).await; // the client's trouble
}

impl Caller {
    async fn answer(&self, pages: &Pages, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if let Some(from) = self.from
            && let Err(refusal) = self.let_in(pages, request, from).await
        {
            return refusal;
        }
        pages.answer(self.door, request)
    }

    /// Whether it may have what it asks for; from then on it is no stranger.
    async fn let_in(
        &self,
        pages: &Pages,
        request: &Request<Incoming>,
        from: IpAddr,
    ) -> Result<(), Response<Full<Bytes>>> {
        let path = request.uri().path();
        if !self.door.shows(path) || self.door.tells_anybody(path) {
            return Ok(()); // a few bytes, which a stranger may have
        }
        if self.door == Door::Network {
            pages.admit(request, from).await?;
        }
        let busy = |_| super::text(StatusCode::SERVICE_UNAVAILABLE, "too many read pages now\n");
        let permit = self.room.clone().try_acquire_owned().map_err(busy)?;
        *self.place.lock() = Place::Known { _permit: permit };
        Ok(())
    }
}
