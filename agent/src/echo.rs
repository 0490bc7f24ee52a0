//! Small servers for the demo and the tests: HTTP (1.1, h2c, upgrades), streams as gRPC has them, TCP echo, and a server
//! that speaks first.

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
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// What to serve.
#[derive(Clone, Debug, clap::Args)]
pub struct EchoArgs {
    /// Name that every answer carries, e.g. `cart-v1`.
    #[arg(long, default_value = "echo")]
    pub name: String,
    /// Port for HTTP/1.1 and h2c.
    #[arg(long)]
    pub http: Option<u16>,
    /// Port that sends back what it reads.
    #[arg(long)]
    pub tcp: Option<u16>,
    /// Port that greets first, like SMTP, and then echoes lines.
    #[arg(long)]
    pub banner: Option<u16>,
    /// `http://ADDRESS[:PORT]/path` to ask before each answer, as an application does that depends on another; the
    /// headers of its caller's trace go along, and what came back is `upstream` in the answer
    #[arg(long, value_name = "URL")]
    pub forward: Option<http::Uri>,
}

/// Serves until killed.
///
/// # Errors
/// When a port cannot be bound.
pub async fn run(args: EchoArgs) -> Result<()> {
    serve_on(Ipv6Addr::UNSPECIFIED.into(), args).await
}

pub(crate) async fn serve_on(ip: IpAddr, args: EchoArgs) -> Result<()> {
    let bind = |port| bind(SocketAddr::new(ip, port));
    let name: Arc<str> = args.name.into();
    let forward = args.forward.map(Arc::new);
    let mut tasks = tokio::task::JoinSet::new();
    if let Some(port) = args.http {
        let (listener, name) = (bind(port).await?, name.clone());
        tasks.spawn(accept(listener, move |stream, peer| http(stream, peer, name.clone(), forward.clone())));
    }
    if let Some(port) = args.tcp {
        tasks.spawn(accept(bind(port).await?, |stream, _| tcp(stream)));
    }
    if let Some(port) = args.banner {
        let listener = bind(port).await?;
        tasks.spawn(accept(listener, move |stream, _| banner(stream, name.clone())));
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

async fn bind(addr: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(addr).await.with_context(|| format!("cannot listen on {addr}"))
}

async fn accept<F: Future<Output = ()> + Send + 'static>(
    listener: TcpListener,
    serve: impl Fn(TcpStream, SocketAddr) -> F + Send + 'static,
) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let _ = stream.set_nodelay(true);
                tokio::spawn(serve(stream, peer));
            }
            Err(error) => {
                eprintln!("accept: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn http(stream: TcpStream, peer: SocketAddr, name: Arc<str>, forward: Option<Arc<http::Uri>>) {
    let service = service_fn(move |request| answer(request, peer, name.clone(), forward.clone()));
    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
}

/// A description, or the caller's own messages.
type Body = Either<Full<Bytes>, UnsyncBoxBody<Bytes, hyper::Error>>;

/// `/status/503` answers that code; gRPC gets back what it sends, as it sends it; everything else is described in JSON.
async fn answer(
    request: Request<Incoming>,
    peer: SocketAddr,
    name: Arc<str>,
    forward: Option<Arc<http::Uri>>,
) -> Result<Response<Body>, hyper::Error> {
    let (head, body) = request.into_parts();
    let kind = head.headers.get("content-type").map_or(&b""[..], http::HeaderValue::as_bytes);
    if kind.starts_with(b"application/grpc") {
        return Ok(mirrored(body));
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
    let upstream = match forward {
        Some(url) => Some(ask(&url, &head.headers).await.unwrap_or_else(|e| Upstream::failed(&e))),
        None => None,
    };
    let text = serde_json::json!({
        "upstream": upstream.as_ref().map(|u| &u.body),
        "service": &*name,
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
    if let Ok(value) = http::HeaderValue::from_str(&name) {
        response.headers_mut().insert("x-service", value);
    }
    Ok(response)
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
                None => {
                    let status =
                        [(http::HeaderName::from_static("grpc-status"), http::HeaderValue::from_static("0"))];
                    return Some((Ok(Frame::trailers(status.into_iter().collect())), None));
                }
            }
        }
    });
    let mut response = Response::new(Either::Right(StreamBody::new(frames).boxed_unsync()));
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/grpc"));
    response
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
