//! A gRPC health check (`grpc.health.v1.Health/Check`) of a kubelet: one call a connection, read before the application
//! is called, and made anew.

use super::{Asked, FIRST_WORDS, Probing, denied};
use crate::{
    error::{Blame, ProxyError, Reason, Retryable},
    http::Prefixed,
};
use bytes::{BufMut, Bytes, BytesMut};
use h2::{
    RecvStream,
    client::SendRequest,
    server::{Connection, SendResponse},
};
use http::{HeaderMap, Method, Request, Response, header};
use std::{future::pending, net::SocketAddr, time::Duration};
use tokio::{net::TcpStream, time::timeout};
use weft_core::model::ProbeAsk;

/// The one method.
const CHECK: &str = "/grpc.health.v1.Health/Check";
/// A request holds a name.
const REQUEST_MAX: usize = 4096;
/// An answer holds a number.
const ANSWER_MAX: usize = 64 * 1024;
/// `timeoutSeconds` of a probe is a matter of seconds. This only ends what nobody waits for any more.
const CALL_MAX: Duration = Duration::from_secs(600);
/// Headers of the call that the application sees.
const PASSED: [&str; 3] = ["user-agent", "grpc-timeout", "grpc-accept-encoding"];

/// Serves one call. `early` begins with HTTP/2's preface.
pub(super) async fn serve(
    probing: &Probing<'_>,
    downstream: &mut TcpStream,
    early: Bytes,
) -> Result<(), ProxyError> {
    let (to, asks, connect) = (probing.to, probing.asks, probing.application());
    let io = Prefixed::new(early, downstream);
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(1).max_header_list_size(8192);
    let greeting = timeout(FIRST_WORDS, builder.handshake::<_, Bytes>(io));
    let mut server =
        greeting.await.map_err(|_| gone("no HTTP/2 in time"))?.map_err(|e| gone(&e.to_string()))?;
    let first = timeout(FIRST_WORDS, server.accept());
    let Some(first) = first.await.map_err(|_| gone("no call in time"))? else { return Ok(()) };
    let (request, respond) = first.map_err(|e| gone(&e.to_string()))?;
    let call = Box::pin(async move {
        let call = read(request, asks, to).await?;
        forward(connect.await?, call, respond).await
    });
    let done = tokio::select! {
        done = timeout(CALL_MAX, call) => done.unwrap_or_else(|_| Err(gone("no answer in time"))),
        more = second(&mut server) => Err(more),
    };
    done?;
    server.graceful_shutdown();
    // What was answered is still on its way.
    let _ = timeout(FIRST_WORDS, std::future::poll_fn(|cx| server.poll_closed(cx))).await;
    Ok(())
}

/// Keeps the connection going; ends when its client wants more than one call, or is gone.
async fn second<T>(server: &mut Connection<T, Bytes>) -> ProxyError
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    match server.accept().await {
        Some(Ok(_)) => denied("a second call on the connection of a gRPC probe"),
        Some(Err(error)) => gone(&error.to_string()),
        None => gone("the connection has ended"),
    }
}

/// What the application is asked.
struct Call {
    to: SocketAddr,
    message: Bytes,
    headers: HeaderMap,
}

/// A call that is declared, with what of its headers goes on.
async fn read(request: Request<RecvStream>, asks: &[Asked], to: SocketAddr) -> Result<Call, ProxyError> {
    let (parts, mut body) = request.into_parts();
    let kind = parts.headers.get(header::CONTENT_TYPE).map(http::HeaderValue::as_bytes);
    if parts.method != Method::POST || parts.uri.path_and_query().is_none_or(|p| p.as_str() != CHECK) {
        let path = parts.uri.path().chars().take(200).collect::<String>();
        return Err(denied(format!("undeclared path {path}")));
    }
    if !matches!(kind, Some(b"application/grpc" | b"application/grpc+proto")) {
        return Err(denied("a health check that is not gRPC"));
    }
    let mut message = BytesMut::new();
    let reading = async {
        while let Some(data) = body.data().await {
            let data = data.map_err(|e| gone(&e.to_string()))?;
            let _ = body.flow_control().release_capacity(data.len()); // bounded just below
            message.put(data);
            if message.len() > REQUEST_MAX {
                return Err(denied("a health check that is too long"));
            }
        }
        Ok(())
    };
    timeout(FIRST_WORDS, reading).await.map_err(|_| gone("no message in time"))??;
    let Some(asked) = service(&message) else { return Err(denied("not a message of a health check")) };
    let declared = asks.iter().any(|a| matches!(&a.ask, ProbeAsk::Grpc { service } if **service == *asked));
    if !declared {
        return Err(denied(format!(
            "undeclared service \"{}\"",
            asked.chars().take(200).collect::<String>()
        )));
    }
    let mut headers = HeaderMap::new();
    for name in PASSED {
        if let Some(value) = parts.headers.get(name) {
            headers.insert(name, value.clone());
        }
    }
    Ok(Call { to, message: message.freeze(), headers })
}

/// The service of one uncompressed message `HealthCheckRequest { string service = 1; }`, which has nothing else.
pub(super) fn service(message: &[u8]) -> Option<&str> {
    let [0, a, b, c, d, body @ ..] = message else { return None };
    if usize::try_from(u32::from_be_bytes([*a, *b, *c, *d])) != Ok(body.len()) {
        return None;
    }
    let (length, name) = match body {
        [] => return Some(""),
        [0x0a, length @ 0..=0x7f, name @ ..] => (usize::from(*length), name),
        [0x0a, low @ 0x80..=0xff, high @ 1..=0x7f, name @ ..] => {
            (usize::from(low & 0x7f) | usize::from(*high) << 7, name)
        }
        _ => return None,
    };
    if length == name.len() { std::str::from_utf8(name).ok() } else { None }
}

/// Makes the call to the application, and passes its answer on.
async fn forward(
    application: TcpStream,
    call: Call,
    mut respond: SendResponse<Bytes>,
) -> Result<(), ProxyError> {
    let (sender, connection) = h2::client::handshake(application).await.map_err(|e| upstream(&e))?;
    let call = make(sender, call, &mut respond);
    // A connection must be driven for as long as it is used.
    let driven = async {
        match connection.await {
            Err(error) => upstream(&error),
            // Ended in order: the call is told by its streams.
            Ok(()) => pending().await,
        }
    };
    let done = tokio::select! {
        done = call => done,
        error = driven => Err(error),
    };
    if done.is_err() {
        respond.send_reset(h2::Reason::INTERNAL_ERROR);
    }
    done
}

async fn make(
    sender: SendRequest<Bytes>,
    call: Call,
    respond: &mut SendResponse<Bytes>,
) -> Result<(), ProxyError> {
    let mut sender = sender.ready().await.map_err(|e| upstream(&e))?;
    let request = Request::builder().method(Method::POST).uri(format!("http://{}{CHECK}", call.to));
    let mut request = request.body(()).map_err(|e| denied(e.to_string()))?;
    *request.headers_mut() = call.headers;
    request.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
    request.headers_mut().insert(header::TE, http::HeaderValue::from_static("trailers"));
    let (answer, mut body) = sender.send_request(request, false).map_err(|e| upstream(&e))?;
    body.send_data(call.message, true).map_err(|e| upstream(&e))?;
    let (parts, mut answer) = answer.await.map_err(|e| upstream(&e))?.into_parts();
    let mut passed = Response::new(());
    *passed.status_mut() = parts.status;
    *passed.headers_mut() = parts.headers;
    let ended = answer.is_end_stream();
    let mut stream = respond.send_response(passed, ended).map_err(|e| gone(&e.to_string()))?;
    if ended {
        return Ok(());
    }
    let mut total = 0;
    while let Some(data) = answer.data().await {
        let data = data.map_err(|e| upstream(&e))?;
        let _ = answer.flow_control().release_capacity(data.len()); // bounded just below
        total += data.len();
        if total > ANSWER_MAX {
            return Err(upstream("an answer that is too long"));
        }
        stream.send_data(data, false).map_err(|e| gone(&e.to_string()))?;
    }
    let trailers = answer.trailers().await.map_err(|e| upstream(&e))?.unwrap_or_default();
    stream.send_trailers(trailers).map_err(|e| gone(&e.to_string()))
}

fn gone(detail: &str) -> ProxyError {
    ProxyError {
        reason: Reason::ClientGone,
        blame: Blame::Downstream,
        retry: Retryable::No,
        detail: detail.to_owned(),
    }
}

fn upstream(error: impl std::fmt::Display) -> ProxyError {
    ProxyError {
        reason: Reason::UpstreamReset,
        blame: Blame::Upstream,
        retry: Retryable::No,
        detail: error.to_string(),
    }
}
