//! A data plane's HTTP path in one thread: a listener in front, scripted upstreams behind, a Config built by hand.

use crate::{
    context::{Limits, Peer, ShareKey, Shared, Sockets, Source},
    dial::{Dial, Upstream, UpstreamInfo},
    drain::Drain,
    error::{ProxyError, Reason, Retryable},
    http::{Entrance, GatewayEntrance, HttpConn, HttpVersion, HttpWorker, respond, serve},
    loads::Loads,
    share::{Share, ShareLimits, scheduler::Scheduler},
    telemetry::{Telemetry, TelemetryConfig},
    workload::LocalWorkload,
};
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    io,
    net::SocketAddr,
    os::fd::{BorrowedFd, OwnedFd},
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::LocalOptions,
};
use weft_core::{
    balance::Weighted,
    config::{
        Action, AppProtocol, Backend, BackendKey, Config, Endpoint, EndpointSet, FailReason, FilterChain,
        Frontend, GatewayConfig, HttpBackend, HttpListener, HttpRule, MeshRoutes, PortConfig, Reach, RuleId,
        Transport,
    },
    matching::{Entry, HostMap, Order, RouteTable},
    model::{Hostname, Match, MtlsMode, ObjectKey, PathMatch, RouteKind, SpiffeId, Timeouts, Workload},
};

/// The Service's address in every test.
pub(crate) const FRONTEND: ([u8; 4], u16) = ([10, 0, 0, 1], 80);
pub(crate) const GATEWAY_PORT: u16 = 8080;

/// Runs a test on a runtime like a worker's. Nothing here takes long: a test that hangs fails.
pub(crate) fn run(test: impl Future<Output = ()> + 'static) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    runtime.unwrap().block_on(async {
        tokio::time::timeout(Duration::from_secs(30), test).await.expect("the test hangs");
    });
}

/// Plain TCP to endpoints, counted.
#[derive(Default)]
pub(crate) struct Plain {
    pub(crate) dials: Rc<Cell<u32>>,
    /// Takes no connection and refuses none.
    pub(crate) hangs: Hangs,
}

impl Dial for Plain {
    type Io = TcpStream;

    async fn dial(
        &self,
        _: &Rc<LocalWorkload<Self::Io>>,
        endpoint: &Endpoint,
        _: bool,
    ) -> Result<Upstream<TcpStream>, ProxyError> {
        self.dials.set(self.dials.get() + 1);
        if self.hangs.get() == Some(endpoint.addr) {
            std::future::pending::<()>().await;
        }
        let io = TcpStream::connect(endpoint.addr).await.map_err(|e| ProxyError {
            retry: Retryable::Yes,
            ..respond::error(Reason::ConnectFailed, e.to_string())
        })?;
        Ok(Upstream { io, info: UpstreamInfo::plain(endpoint.addr) })
    }
}

#[derive(Debug)]
struct NoSockets;

impl Sockets for NoSockets {
    fn tcp(&self, _: bool) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn original_dst(&self, _: BorrowedFd<'_>) -> io::Result<SocketAddr> {
        Err(io::ErrorKind::NotFound.into())
    }
}

/// An address whose connections never come to stand.
type Hangs = Rc<Cell<Option<SocketAddr>>>;

/// The HTTP path with a listener in front.
pub(crate) struct Bed<D: Dial = Plain> {
    pub(crate) shared: Arc<Shared>,
    pub(crate) http: Rc<HttpWorker<D>>,
    pub(crate) share: Rc<Share>,
    pub(crate) local: Rc<LocalWorkload<D::Io>>,
    pub(crate) dials: Rc<Cell<u32>>,
    pub(crate) hangs: Hangs,
}

impl Bed {
    pub(crate) fn new(config: Config) -> Rc<Self> {
        Self::with(Limits::default(), config)
    }

    pub(crate) fn with(limits: Limits, config: Config) -> Rc<Self> {
        let plain = Plain::default();
        let (dials, hangs) = (Rc::clone(&plain.dials), Rc::clone(&plain.hangs));
        Self::around(limits, config, (plain, dials, hangs))
    }
}

impl<D: Dial> Bed<D> {
    /// With upstreams of the test's own making, and a count of how often they are dialled.
    pub(crate) fn around(
        limits: Limits,
        config: Config,
        (dial, dials, hangs): (D, Rc<Cell<u32>>, Hangs),
    ) -> Rc<Self> {
        let telemetry = Telemetry::detached(TelemetryConfig {
            access_log: crate::telemetry::AccessLogConfig {
                output: crate::telemetry::AccessLogOutput::Off,
                ..Default::default()
            },
            ..TelemetryConfig::default()
        });
        let shared = Arc::new(Shared::new(limits, telemetry.unwrap()));
        shared.config.store(Arc::new(config));
        let key = ShareKey::Pod(ObjectKey::new("client", "curl"));
        let share = Share::start(
            &Scheduler::start(Arc::default()),
            key,
            ShareLimits::from(&limits),
            Drain::new(),
            Arc::default(),
        );
        let http = {
            let telemetry = shared.telemetry.worker();
            let loads = Loads::new(telemetry.clone(), shared.sticky.clone(), None);
            HttpWorker::new(Arc::clone(&shared), dial, telemetry, loads, 42)
        };
        let local = LocalWorkload::new(source(), share.clone());
        Rc::new(Self { shared, http, share, local, dials, hangs })
    }

    /// Another pod on the same worker.
    pub(crate) fn neighbour(&self) -> Rc<Self> {
        let key = ShareKey::Pod(ObjectKey::new("neighbour", "curl"));
        let limits = ShareLimits::from(&Limits::default());
        let share =
            Share::start(&Scheduler::start(Arc::default()), key, limits, Drain::new(), Arc::default());
        Rc::new(Self {
            shared: self.shared.clone(),
            http: self.http.clone(),
            local: LocalWorkload::new(source(), share.clone()),
            share,
            dials: self.dials.clone(),
            hangs: self.hangs.clone(),
        })
    }

    /// Listens as 15001 would, for connections to [`FRONTEND`].
    pub(crate) async fn mesh(self: &Rc<Self>) -> SocketAddr {
        self.listen(Entrance::Mesh { frontend: FRONTEND.into() }, None).await
    }

    /// Listens as a Gateway's HTTP port.
    pub(crate) async fn gateway(self: &Rc<Self>) -> SocketAddr {
        self.listen(at_gateway(), None).await
    }

    /// Serves one connection.
    pub(crate) fn serve<S>(&self, io: S, peer: SocketAddr, entrance: Entrance, version: Option<HttpVersion>)
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static,
    {
        let conn = HttpConn {
            http: Rc::clone(&self.http),
            local: Rc::clone(&self.local),
            peer: Peer { ip: peer.ip(), port: peer.port() },
            entrance,
        };
        self.share.spawn(serve(io, version, conn));
    }

    pub(crate) async fn listen(
        self: &Rc<Self>,
        entrance: Entrance,
        version: Option<HttpVersion>,
    ) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let bed = Rc::clone(self);
        tokio::task::spawn_local(async move {
            while let Ok((io, peer)) = listener.accept().await {
                bed.serve(io, peer, entrance.clone(), version);
            }
        });
        addr
    }

    pub(crate) fn swap(&self, config: Config) {
        self.shared.config.store(Arc::new(config));
    }

    /// The metrics, as scraped.
    pub(crate) fn metrics(&self) -> String {
        self.shared.telemetry.render_metrics(false)
    }
}

fn source() -> Source {
    let pod = ObjectKey::new("client", "curl");
    let workload = Arc::new(Workload {
        identity: SpiffeId::new("cluster.local", "client", "default"),
        pod: pod.clone(),
        ips: Vec::new(),
        node: None,
        enrolled: true,
        labelled: true,
        tunnel: weft_core::model::TunnelPort::default(),
        mode: MtlsMode::Permissive,
        app: "curl".into(),
        probes: Arc::default(),
    });
    Source { share: ShareKey::Pod(pod), workload, identity: None, sockets: Arc::new(NoSockets) }
}

pub(crate) fn at_gateway() -> Entrance {
    let gateway = ObjectKey::new("infra", "edge");
    Entrance::Gateway(GatewayEntrance { gateway, port: GATEWAY_PORT, tls: None })
}

/// Matches and what they lead to.
pub(crate) type Routes = Vec<(Match, HttpRule)>;

/// Builds a Config.
#[derive(Default)]
pub(crate) struct World(pub(crate) Config);

pub(crate) fn backend(name: &str, protocol: AppProtocol) -> Backend {
    let key = BackendKey {
        service: ObjectKey::new("shop", name),
        port: 80,
        transport: Transport::Tcp,
        reach: Reach::default(),
    };
    Backend { key, protocol, tls: None, client_ip_affinity: None }
}

impl World {
    /// A Service with these endpoints.
    pub(crate) fn service(&mut self, backend: Backend, endpoints: &[SocketAddr]) -> Arc<Backend> {
        let ready =
            endpoints.iter().map(|addr| Endpoint { addr: *addr, workload: None, zone: None }).collect();
        self.0.endpoints.insert(backend.key.clone(), Arc::new(EndpointSet { ready }));
        Arc::new(backend)
    }

    /// [`FRONTEND`], in front of `default`, with these producer routes.
    pub(crate) fn frontend(mut self, default: &Arc<Backend>, routes: Option<Routes>) -> Config {
        let frontend = Frontend {
            service: default.key.service.clone(),
            port: 80,
            external: None,
            protocol: default.protocol,
            producer: routes.map(|routes| MeshRoutes::Http(table(routes))),
            consumers: Default::default(),
            default: Arc::clone(default),
        };
        self.0.frontends.insert(FRONTEND.into(), Arc::new(frontend));
        self.0
    }

    /// A Gateway with one HTTP port and a listener for each hostname.
    pub(crate) fn gateway(self, listeners: Vec<(Option<&str>, Routes)>) -> Config {
        let hosts = listeners.into_iter().map(|(host, routes)| {
            let hostname = host.map(|h| Hostname::parse(h).unwrap());
            let listener =
                HttpListener { name: "http".into(), hostname: hostname.clone(), table: table(routes) };
            (hostname, Arc::new(listener))
        });
        let port = PortConfig::Http(HostMap::build(hosts));
        self.gateway_port(GATEWAY_PORT, port)
    }

    pub(crate) fn gateway_port(mut self, port: u16, config: PortConfig) -> Config {
        let key = ObjectKey::new("infra", "edge");
        let gateway = GatewayConfig {
            key: key.clone(),
            identity: SpiffeId::new("cluster.local", "infra", "edge-weft"),
            addresses: vec![[127, 0, 0, 1].into()],
            parameters: Default::default(),
            targets: Default::default(),
            ports: [((port, Transport::Tcp), config)].into(),
            backend_client_certificate: None,
        };
        self.0.gateways = Arc::new([(key, Arc::new(gateway))].into());
        self.0
    }
}

pub(crate) fn table(routes: Routes) -> Arc<RouteTable<Arc<HttpRule>>> {
    let entry = |(i, (matcher, policy)): (usize, (Match, HttpRule))| Entry {
        hostname: None,
        matcher,
        order: Order { created: 0, route: policy.id.route.clone(), rule: i as u16, matched: 0 },
        policy: Arc::new(policy),
    };
    Arc::new(RouteTable::build(routes.into_iter().enumerate().map(entry).collect()))
}

pub(crate) fn prefix(path: &str) -> Match {
    Match { path: Some(PathMatch::Prefix(path.into())), ..Match::default() }
}

pub(crate) fn rule(action: Action) -> HttpRule {
    HttpRule {
        id: RuleId { kind: RouteKind::Http, route: ObjectKey::new("shop", "route"), index: 0, name: None },
        label: "/".into(),
        filters: FilterChain::default(),
        action,
        timeouts: Timeouts::default(),
        retry: None,
        session: None,
    }
}

pub(crate) fn to(backend: &Arc<Backend>) -> Action {
    split(vec![(1, Ok(Arc::clone(backend)))])
}

pub(crate) fn split(targets: Vec<(u32, Result<Arc<Backend>, FailReason>)>) -> Action {
    let target = |(weight, target)| (weight, HttpBackend { target, filters: FilterChain::default() });
    Action::Forward(Weighted::build(targets.into_iter().map(target)).unwrap())
}

/// What an upstream saw.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) uri: String,
    pub(crate) version: http::Version,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|v| v.to_str().unwrap())
    }
}

pub(crate) type Reply = Response<UnsyncBoxBody<Bytes, io::Error>>;
type Handler = Rc<dyn Fn(Seen, u32) -> LocalBoxFuture<'static, Reply>>;

/// A scripted upstream; reads each request whole, then answers.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) addr: SocketAddr,
    pub(crate) seen: Rc<RefCell<Vec<Seen>>>,
    pub(crate) connections: Rc<Cell<u32>>,
}

#[derive(Clone)]
pub(crate) struct LocalExec;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExec {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(async move {
            task.await;
        });
    }
}

pub(crate) fn text(code: u16, body: &'static str) -> Reply {
    let body =
        Full::new(Bytes::from_static(body.as_bytes())).map_err(|e: Infallible| match e {}).boxed_unsync();
    Response::builder().status(code).body(body).unwrap()
}

impl App {
    /// Answers 200 with its name.
    pub(crate) async fn named(name: &'static str) -> Self {
        Self::start(move |_, _| Box::pin(async move { text(200, name) })).await
    }

    /// `handler` gets the request and its number, from 1.
    pub(crate) async fn start(
        handler: impl Fn(Seen, u32) -> LocalBoxFuture<'static, Reply> + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let app =
            Self { addr: listener.local_addr().unwrap(), seen: Rc::default(), connections: Rc::default() };
        let (of, handler): (Self, Handler) = (app.clone(), Rc::new(handler));
        tokio::task::spawn_local(async move {
            while let Ok((io, _)) = listener.accept().await {
                of.connections.set(of.connections.get() + 1);
                tokio::task::spawn_local(of.clone().serve(io, Rc::clone(&handler)));
            }
        });
        app
    }

    async fn serve(self, io: TcpStream, handler: Handler) {
        let mut first = [0; 3];
        if io.peek(&mut first).await.is_err() {
            return;
        }
        let service = service_fn(move |request: Request<Incoming>| {
            let (app, handler) = (self.clone(), Rc::clone(&handler));
            async move {
                let (parts, body) = request.into_parts();
                let collected = body.collect().await?;
                let seen = Seen {
                    method: parts.method.to_string(),
                    uri: parts.uri.to_string(),
                    version: parts.version,
                    headers: parts.headers,
                    trailers: collected.trailers().cloned(),
                    body: collected.to_bytes(),
                };
                app.seen.borrow_mut().push(seen.clone());
                let number = app.seen.borrow().len() as u32;
                Ok::<_, hyper::Error>(handler(seen, number).await)
            }
        });
        // An error is the test's own doing.
        let _ = if &first == b"PRI" {
            hyper::server::conn::http2::Builder::new(LocalExec)
                .serve_connection(TokioIo::new(io), service)
                .await
        } else {
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(io), service).await
        };
    }

    pub(crate) fn last(&self) -> Seen {
        self.seen.borrow().last().cloned().expect("the upstream was asked")
    }

    pub(crate) fn count(&self) -> usize {
        self.seen.borrow().len()
    }
}

/// An address where nobody listens: bound and never listening, so that no other test's socket comes to stand there.
pub(crate) async fn nobody() -> SocketAddr {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = socket.local_addr().unwrap();
    std::mem::forget(socket);
    addr
}

/// Sends bytes, ends the request side by `Connection: close` in them, and reads the answer to its end.
pub(crate) async fn raw(addr: SocketAddr, request: &str) -> String {
    let mut io = TcpStream::connect(addr).await.unwrap();
    io.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A reset after the answer is an end as well.
    let _ = io.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

pub(crate) async fn get(addr: SocketAddr, path: &str) -> (u16, String) {
    let answer = raw(addr, &format!("GET {path} HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n")).await;
    parse(&answer)
}

/// Status and body (with chunk marks, if any).
pub(crate) fn parse(answer: &str) -> (u16, String) {
    let code = answer.get(9..12).and_then(|c| c.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map(|(_, b)| b.to_owned()).unwrap_or_default();
    (code, body)
}

pub(crate) type Body2 = UnsyncBoxBody<Bytes, io::Error>;

/// An HTTP/2 client with prior knowledge.
pub(crate) async fn h2_client(addr: SocketAddr) -> hyper::client::conn::http2::SendRequest<Body2> {
    h2_over(TcpStream::connect(addr).await.unwrap()).await
}

/// The same over any stream.
pub(crate) async fn h2_over<S>(io: S) -> hyper::client::conn::http2::SendRequest<Body2>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static,
{
    let (sender, conn) = hyper::client::conn::http2::handshake(LocalExec, TokioIo::new(io)).await.unwrap();
    tokio::task::spawn_local(async move {
        let _ = conn.await;
    });
    sender
}

/// An HTTP/1.1 client on one connection.
pub(crate) async fn h1_client(addr: SocketAddr) -> hyper::client::conn::http1::SendRequest<Body2> {
    h1_over(TcpStream::connect(addr).await.unwrap()).await
}

/// The same over any stream.
pub(crate) async fn h1_over<S>(io: S) -> hyper::client::conn::http1::SendRequest<Body2>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static,
{
    let (sender, conn) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await.unwrap();
    tokio::task::spawn_local(async move {
        let _ = conn.await;
    });
    sender
}

pub(crate) fn body(text: &'static str) -> Body2 {
    Full::new(Bytes::from_static(text.as_bytes())).map_err(|e: Infallible| match e {}).boxed_unsync()
}
