//! Small servers for the demo and the tests: HTTP (1.1, h2c, HTTPS, upgrades), gRPC's health service and streams as gRPC has
//! them, TCP echo, and a server that speaks first.

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::stream::unfold;
use http_body_util::{BodyExt as _, Either, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response, StatusCode,
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{
    collections::BTreeMap,
    fs::File,
    io::Write as _,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    pin::pin,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Header by which `weft call --number` tells its requests apart.
pub(crate) const NUMBER: &str = "x-call";

/// What to serve.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct EchoArgs {
    /// Name that every answer carries, e.g. `cart-v1`.
    #[arg(long, default_value = "echo")]
    pub name: String,
    /// Port for HTTP/1.1 and h2c.
    #[arg(long)]
    pub http: Option<u16>,
    /// Port for HTTPS, with a certificate of its own making
    #[arg(long)]
    pub https: Option<u16>,
    /// Port that sends back what it reads.
    #[arg(long)]
    pub tcp: Option<u16>,
    /// Port that greets first, like SMTP, and then echoes lines.
    #[arg(long)]
    pub banner: Option<u16>,
    /// `http://ADDRESS[:PORT]/path` to ask before each answer (but to `/healthz`), as an application does that depends on
    /// another; the headers of its caller's trace go along, and what came back is `upstream` in the answer
    #[arg(long, value_name = "URL")]
    pub forward: Option<http::Uri>,
    /// Begin to listen so many seconds after the start, as an application does that has to warm up
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub listen_after: u64,
    /// Take so many milliseconds for each answer to an HTTP request
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 0)]
    pub answer_after: u64,
    /// What SIGTERM does; without it nothing, as process 1 of a container
    #[arg(long, value_enum)]
    pub on_term: Option<OnTerm>,
    /// Append `taken NUMBER` to this file for each request of `weft call --number` as soon as its head was read
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
}

/// How a server ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum OnTerm {
    /// It takes no more, answers what it has taken, closes its connections, and ends.
    Finish,
    /// At once, whatever it has taken.
    Exit,
}

/// Serves until killed, or as `--on-term` says.
///
/// # Errors
/// When a port cannot be bound, or the log not be written.
pub async fn run(args: EchoArgs) -> Result<()> {
    let Some(on_term) = args.on_term else {
        return serve_on(Ipv6Addr::UNSPECIFIED.into(), args).await;
    };
    let mut term = signal(SignalKind::terminate())?;
    let ending = CancellationToken::new();
    let mut serving = pin!(serve_until(Ipv6Addr::UNSPECIFIED.into(), args, ending.clone()));
    tokio::select! {
        result = &mut serving => return result,
        _ = term.recv() => {}
    }
    match on_term {
        OnTerm::Finish => {
            ending.cancel();
            serving.await
        }
        OnTerm::Exit => Ok(()),
    }
}

pub(crate) async fn serve_on(ip: IpAddr, args: EchoArgs) -> Result<()> {
    serve_until(ip, args, CancellationToken::new()).await
}

/// Serves until it is to end, and then until the last connection has.
pub(crate) async fn serve_until(ip: IpAddr, args: EchoArgs, ending: CancellationToken) -> Result<()> {
    let warm = tokio::time::sleep(Duration::from_secs(args.listen_after));
    if ending.run_until_cancelled(warm).await.is_none() {
        return Ok(());
    }
    let bind = |port| bind(SocketAddr::new(ip, port));
    let log = args.log.as_ref().map(|path| {
        let file = File::options().append(true).create(true).open(path);
        file.with_context(|| path.display().to_string()).map(Arc::new)
    });
    let server = Server {
        name: args.name.into(),
        forward: args.forward.map(Arc::new),
        delay: Duration::from_millis(args.answer_after),
        log: log.transpose()?,
        ending,
        connections: TaskTracker::new(),
    };
    let mut listeners = tokio::task::JoinSet::new();
    if let Some(port) = args.http {
        let (listener, http) = (bind(port).await?, server.clone());
        listeners.spawn(server.clone().accept(listener, move |stream, peer| http.clone().http(stream, peer)));
    }
    if let Some(port) = args.https {
        let (listener, https, tls) = (bind(port).await?, server.clone(), own_certificate()?);
        listeners.spawn(server.clone().accept(listener, move |stream, peer| {
            let (https, tls) = (https.clone(), tls.clone());
            async move {
                // A client that does not like the certificate is its own business.
                if let Ok(stream) = tls.accept(stream).await {
                    https.http(stream, peer).await;
                }
            }
        }));
    }
    if let Some(port) = args.tcp {
        listeners.spawn(server.clone().accept(bind(port).await?, |stream, _| tcp(stream)));
    }
    if let Some(port) = args.banner {
        let (listener, name) = (bind(port).await?, server.name.clone());
        listeners.spawn(server.clone().accept(listener, move |stream, _| banner(stream, name.clone())));
    }
    while listeners.join_next().await.is_some() {}
    server.connections.close();
    server.connections.wait().await;
    Ok(())
}

/// What every connection needs.
#[derive(Clone)]
struct Server {
    name: Arc<str>,
    forward: Option<Arc<http::Uri>>,
    /// How long an answer takes.
    delay: Duration,
    log: Option<Arc<File>>,
    /// Cancelled when no more is to be taken.
    ending: CancellationToken,
    connections: TaskTracker,
}

async fn bind(addr: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(addr).await.with_context(|| format!("cannot listen on {addr}"))
}

impl Server {
    async fn accept<F: Future<Output = ()> + Send + 'static>(
        self,
        listener: TcpListener,
        serve: impl Fn(TcpStream, SocketAddr) -> F + Send + 'static,
    ) {
        while let Some(accepted) = self.ending.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok((stream, peer)) => {
                    let _ = stream.set_nodelay(true);
                    self.connections.spawn(serve(stream, peer));
                }
                Err(error) => {
                    eprintln!("accept: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn http<S>(self, stream: S, peer: SocketAddr)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let ending = self.ending.clone();
        let service = service_fn(move |request| self.clone().answer(request, peer));
        let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
        let mut serving = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
        if ending.run_until_cancelled(serving.as_mut()).await.is_none() {
            serving.as_mut().graceful_shutdown();
            let _ = serving.await;
        }
    }

    /// `/status/503` answers that code; gRPC's health service says that all is well, and any other gets back what it sends, as
    /// it sends it; everything else is described in JSON.
    async fn answer(
        self,
        request: Request<Incoming>,
        peer: SocketAddr,
    ) -> Result<Response<Body>, hyper::Error> {
        let (head, body) = request.into_parts();
        self.taken(&head);
        let kind = head.headers.get("content-type").map_or(&b""[..], http::HeaderValue::as_bytes);
        if kind.starts_with(b"application/grpc") {
            let is_health = head.uri.path() == "/grpc.health.v1.Health/Check";
            return Ok(if is_health { healthy() } else { mirrored(body) });
        }
        let mut received = 0_usize;
        let mut body = body;
        while let Some(frame) = body.frame().await {
            received += frame?.data_ref().map_or(0, Bytes::len);
        }
        let headers: BTreeMap<&str, String> = head
            .headers
            .iter()
            .map(|(k, v)| (k.as_str(), String::from_utf8_lossy(v.as_bytes()).into_owned()))
            .collect();
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        // How another is doing is no reason to restart this one.
        let depends = head.uri.path() != "/healthz";
        let upstream = match &self.forward {
            Some(url) if depends => {
                Some(ask(url, &head.headers).await.unwrap_or_else(|e| Upstream::failed(&e)))
            }
            _ => None,
        };
        let text = serde_json::json!({
            "upstream": upstream.as_ref().map(|u| &u.body),
            "service": &*self.name,
            "peer": peer.ip().to_canonical().to_string(),
            "method": head.method.as_str(),
            "uri": head.uri.to_string(),
            "version": format!("{:?}", head.version),
            "headers": headers,
            "bytes": received,
        });
        let code = head.uri.path().strip_prefix("/status/").and_then(|c| c.parse::<StatusCode>().ok());
        let mut response = Response::new(Either::Left(Full::new(Bytes::from(text.to_string() + "\n"))));
        *response.status_mut() = code.or(upstream.map(|u| u.code)).unwrap_or(StatusCode::OK);
        response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
        if let Ok(value) = http::HeaderValue::from_str(&self.name) {
            response.headers_mut().insert("x-service", value);
        }
        Ok(response)
    }

    /// Notes a numbered request. (Written at once: what the kernel has survives the process.)
    fn taken(&self, head: &http::request::Parts) {
        let (Some(mut log), Some(number)) = (self.log.as_deref(), head.headers.get(NUMBER)) else { return };
        let line = [b"taken ", number.as_bytes(), b"\n"].concat();
        if let Err(error) = log.write_all(&line) {
            eprintln!("log: {error}");
        }
    }
}

/// A description, or the caller's own messages.
type Body = Either<Full<Bytes>, UnsyncBoxBody<Bytes, hyper::Error>>;

/// What a kubelet's HTTPS probe asks of a certificate is that there is one.
fn own_certificate() -> Result<TlsAcceptor> {
    let made = rcgen::generate_simple_self_signed(["echo.test".to_owned()])?;
    let key = rustls_pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = rustls::ServerConfig::builder_with_provider(weft_certs::crypto_provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// `HealthCheckResponse{status: SERVING}`, whatever service it is asked about.
fn healthy() -> Response<Body> {
    const SERVING: &[u8] = &[0, 0, 0, 0, 2, 8, 1];
    let frames = [Frame::data(Bytes::from_static(SERVING)), Frame::trailers(grpc_ok())].map(Ok);
    grpc(StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync())
}

fn grpc_ok() -> http::HeaderMap {
    [(http::HeaderName::from_static("grpc-status"), http::HeaderValue::from_static("0"))]
        .into_iter()
        .collect()
}

fn grpc(body: UnsyncBoxBody<Bytes, hyper::Error>) -> Response<Body> {
    let mut response = Response::new(Either::Right(body));
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/grpc"));
    response
}

/// Every message back at once, and gRPC status 0 when the caller has sent its last.
fn mirrored(body: Incoming) -> Response<Body> {
    let frames = unfold(Some(body), |body| async move {
        let mut body = body?;
        loop {
            match body.frame().await {
                Some(Ok(frame)) if frame.is_data() => return Some((Ok(frame), Some(body))),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Some((Err(error), None)),
                None => return Some((Ok(Frame::trailers(grpc_ok())), None)),
            }
        }
    });
    grpc(StreamBody::new(frames).boxed_unsync())
}

/// What the server asked for answered.
struct Upstream {
    code: StatusCode,
    body: String,
}

impl Upstream {
    fn failed(error: &anyhow::Error) -> Self {
        Self { code: StatusCode::BAD_GATEWAY, body: format!("{error:#}") }
    }
}

/// What an application passes on, so that its caller's trace spans what it calls.
const TRACE_HEADERS: [&str; 3] = ["traceparent", "tracestate", "baggage"];

async fn ask(url: &http::Uri, caller: &http::HeaderMap) -> Result<Upstream> {
    let authority = url.authority().context("the URL needs an address")?;
    let mut request = Request::get(url.path_and_query().map_or("/", |p| p.as_str()))
        .header("host", authority.as_str())
        .header("user-agent", "weft-echo");
    for name in TRACE_HEADERS {
        for value in caller.get_all(name) {
            request = request.header(name, value);
        }
    }
    let request = request.body(http_body_util::Empty::new())?;
    let exchange = async {
        let mut connection = crate::call::connect(crate::call::target(url)?).await?;
        let response = connection.send_request(request).await?;
        let code = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        anyhow::Ok(Upstream { code, body: String::from_utf8_lossy(&body).into_owned() })
    };
    tokio::time::timeout(Duration::from_secs(30), exchange).await.context("no answer in 30 s")?
}

async fn tcp(mut stream: TcpStream) {
    let (mut read, mut write) = stream.split();
    let _ = tokio::io::copy(&mut read, &mut write).await;
    let _ = write.shutdown().await;
}

async fn banner(mut stream: TcpStream, name: Arc<str>) {
    if stream.write_all(format!("220 {name} ready\r\n").as_bytes()).await.is_err() {
        return;
    }
    let mut buffer = vec![0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
        let answer = if buffer[..n].starts_with(b"QUIT") { "221 bye\r\n" } else { "250 ok\r\n" };
        if stream.write_all(answer.as_bytes()).await.is_err() || answer.starts_with("221") {
            return;
        }
    }
}
