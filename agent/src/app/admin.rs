//! Pages for people and probes: metrics, health, status, certificates. Small, on the control runtime.

use super::{
    metrics,
    node::NodePage,
    report,
    world::{Seen, generations},
};
use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use serde_json::json;
use socket2::{Domain, Socket, Type};
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::sync::CancellationToken;
use weft_proxy::telemetry::Telemetry;

/// Connections at once on each address; more wait in the accept queue.
const CONNECTIONS_MAX: usize = 64;
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;
/// Between two tries of an address that another agent still has.
const BIND_PAUSE: Duration = Duration::from_millis(250);

/// What the pages show.
pub(super) struct Pages {
    /// Counters.
    pub(super) telemetry: Arc<Telemetry>,
    /// Status and problems.
    pub(super) seen: Arc<Mutex<Seen>>,
    /// Certificates; none for a Gateway alone.
    pub(super) identities: Option<weft_certs::IdentityStore>,
    /// Whether the first full configuration is served and pods that were captured are served again.
    pub(super) ready: AtomicBool,
    /// The node, in a cluster; once it is served.
    pub(super) node: OnceLock<Arc<NodePage>>,
    /// Metrics beside the data plane's.
    pub(super) more: OnceLock<metrics::More>,
}

/// Whom an address is for: what anybody on the network may ask of the node is less than what its operator sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Door {
    /// Every page.
    Admin,
    /// `/metrics`.
    Metrics,
    /// `/healthz`, `/readyz`, `/leaving`.
    Health,
}

impl Door {
    fn shows(self, path: &str) -> bool {
        match self {
            Self::Admin => true,
            Self::Metrics => path == "/metrics",
            Self::Health => matches!(path, "/healthz" | "/readyz" | "/leaving"),
        }
    }
}

/// Listens at an address. `[::]` means both families, whatever the node makes of it by itself (`net.ipv6.bindv6only`), and IPv4
/// alone where the kernel has nothing else: who asks an agent has its pod's first address, which is of either.
///
/// # Errors
/// When the address cannot be bound.
fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
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
/// When the address cannot be bound.
pub(super) async fn serve(
    (door, addr): (Door, SocketAddr),
    pages: Arc<Pages>,
    stop: CancellationToken,
) -> Result<()> {
    let listener = listen(addr).with_context(|| format!("cannot listen on {addr}"))?;
    tokio::spawn(stop.clone().run_until_cancelled_owned(accept((door, listener), pages, stop)));
    Ok(())
}

/// Serves an address as soon as it is free, and says once that it is not: while one agent replaces another, both are on the
/// node's network, and the old one gives its addresses up when it begins to drain.
pub(super) fn serve_when_free((door, addr): (Door, SocketAddr), pages: Arc<Pages>, stop: CancellationToken) {
    tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
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
        accept((door, listener), pages, stop).await;
    }));
}

/// Serves every page on a Unix socket, which is this process's alone: probes and `weft admin` ask there.
///
/// # Errors
/// When the socket cannot be made.
pub(super) fn serve_socket(path: &Path, pages: Arc<Pages>, stop: CancellationToken) -> Result<()> {
    let _ = std::fs::remove_file(path); // of a container that ran here before
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(permit) = room.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => converse((Door::Admin, stream), pages.clone(), stop.clone(), permit),
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    }));
    Ok(())
}

async fn accept((door, listener): (Door, TcpListener), pages: Arc<Pages>, stop: CancellationToken) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => converse((door, stream), pages.clone(), stop.clone(), permit),
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await, // out of descriptors: let some go
        }
    }
}

fn converse<S>(
    (door, stream): (Door, S),
    pages: Arc<Pages>,
    stop: CancellationToken,
    permit: OwnedSemaphorePermit,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let pages = pages.clone();
        async move { Ok::<_, std::convert::Infallible>(pages.answer(door, &request)) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        let _ = connection.await; // the client's trouble
        drop(permit);
    }));
}

impl Pages {
    fn answer(&self, door: Door, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        match request.uri().path() {
            path if !door.shows(path) => text(StatusCode::NOT_FOUND, "no such page\n"),
            "/metrics" => self.metrics(request),
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/readyz" if self.ready.load(Ordering::Acquire) => text(StatusCode::OK, "ok\n"),
            "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "the first configuration is not served yet\n"),
            "/status" => self.status(),
            "/certificates" => page(json!(self.identities.as_ref().map(weft_certs::IdentityStore::infos))),
            "/node" | "/leaving" => match self.node.get() {
                Some(node) if request.uri().path() == "/leaving" => page(json!(node.leaving())),
                Some(node) => page(json!(node.report())),
                None => text(StatusCode::SERVICE_UNAVAILABLE, "no node of a cluster is served here (yet)\n"),
            },
            "/" => {
                text(StatusCode::OK, "/status  /node  /leaving  /certificates  /metrics  /healthz  /readyz\n")
            }
            _ => text(StatusCode::NOT_FOUND, "no such page; / lists them\n"),
        }
    }

    fn metrics(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let accept = request.headers().get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let kind = weft_proxy::telemetry::negotiate(accept);
        let mut body = self.telemetry.render_metrics(kind.is_openmetrics());
        if let Some(more) = self.more.get() {
            metrics::append(&mut body, kind.is_openmetrics(), more);
        }
        let mut response = Response::new(Full::new(Bytes::from(body)));
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind.as_str()));
        response
    }

    fn status(&self) -> Response<Full<Bytes>> {
        // Not rendered under the lock: who takes changes in waits for it.
        let seen = self.seen.lock().clone();
        let generations = generations(&seen.world.snapshot);
        let objects: Vec<_> = seen
            .statuses
            .iter()
            .map(|(object, status)| {
                let mut value = report::json(object, status);
                value["generation"] = json!(generations.get(object));
                value
            })
            .collect();
        let problems: Vec<String> = seen.world.problems.iter().map(ToString::to_string).collect();
        page(json!({"configVersion": seen.config.version, "objects": objects, "problems": problems}))
    }
}

fn page(value: serde_json::Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string() + "\n")));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser as _;
    use std::net::{IpAddr, Ipv6Addr};

    /// Of 127.0.0.1 and ::1, where one is let in that dials the port of a listener at this address.
    async fn check(ip: IpAddr, expected: [bool; 2]) {
        let listener = listen(SocketAddr::new(ip, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let dial = async |to: IpAddr| tokio::net::TcpStream::connect((to, port)).await.is_ok();
        let found = [dial(Ipv4Addr::LOCALHOST.into()).await, dial(Ipv6Addr::LOCALHOST.into()).await];
        assert_eq!(found, expected, "{ip}");
    }

    /// Where a node's first address is of IPv6 the chart's pre-delete hook asks at that one, and no agent listened there: `helm
    /// uninstall` failed.
    #[tokio::test]
    async fn an_agent_answers_at_addresses_of_either_family() {
        let Command::Agent(args) = Cli::try_parse_from(["weft", "agent", "--node=n1"]).unwrap().command
        else {
            panic!("not an agent");
        };
        check(args.health.ip(), [true, true]).await;
        check(args.metrics.ip(), [true, true]).await;
        // What is to be for one alone stays so.
        check(args.admin.ip(), [true, false]).await;
        check(Ipv4Addr::UNSPECIFIED.into(), [true, false]).await;
        check(Ipv6Addr::LOCALHOST.into(), [false, true]).await;
    }

    #[test]
    fn status_and_certificates_are_for_the_operator_only() {
        let check = |door: Door, pages: &[&str]| {
            let all =
                ["/", "/metrics", "/healthz", "/readyz", "/leaving", "/status", "/node", "/certificates"];
            let shown: Vec<_> = all.into_iter().filter(|page| door.shows(page)).collect();
            assert_eq!(shown, pages, "{door:?}");
        };
        check(
            Door::Admin,
            &["/", "/metrics", "/healthz", "/readyz", "/leaving", "/status", "/node", "/certificates"],
        );
        check(Door::Metrics, &["/metrics"]);
        check(Door::Health, &["/healthz", "/readyz", "/leaving"]);
    }
}
