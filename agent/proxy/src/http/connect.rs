//! New upstream connections: dial, TLS of the backend's own, HTTP handshake, and the task that drives it.

use super::{
    backend_tls::BackendTlsClient,
    body::RequestBody,
    conn::Conn,
    io::MaybeTls,
    pool::{H1Conn, H2Conn, Life},
    respond::error,
    upgrade::Handoff,
};
use crate::{
    dial::{Dial, Upstream, UpstreamInfo},
    error::{ProxyError, Reason, Retryable},
};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{cell::Cell, future::poll_fn, pin::Pin, rc::Rc, time::Duration};
use weft_core::config::Endpoint;

/// Receive window of one stream: what a client that does not read may hold here.
const STREAM_WINDOW: u32 = 1 << 20;
/// Receive window of a connection: several streams' worth, so that one that nobody reads does not stop the others.
const CONNECTION_WINDOW: u32 = 8 << 20;
/// Unsent bytes of one stream.
const SEND_BUFFER: usize = 256 * 1024;

/// What a new connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

type ConnIo<D> = MaybeTls<<D as Dial>::Io>;

/// Opens an HTTP/1.1 connection to the endpoint.
pub(crate) async fn http1<D: Dial>(
    conn: &Conn<D>,
    endpoint: &Endpoint,
    tls: Option<&BackendTlsClient>,
) -> Result<H1Conn<ConnIo<D>>, ProxyError> {
    let Upstream { io, info } = dial(conn, endpoint, tls, Protocol::Http1).await?;
    let limits = &conn.http.shared.limits;
    let handshake = http1::Builder::new()
        .max_headers(limits.headers_max)
        .max_header_size(limits.head_bytes_max)
        .handshake(TokioIo::new(io))
        .await;
    let (sender, mut task) = handshake.map_err(|e| failed(&info, &e))?;
    let handoff = Rc::new(Handoff::default());
    let after = Rc::clone(&handoff);
    conn.share.spawn(async move {
        // An error reaches the exchange that it hits, if there is one.
        let ended = poll_fn(|cx| Pin::new(&mut task).poll(cx)).await;
        if ended.is_ok() {
            after.give(|| {
                let parts = task.into_parts();
                (parts.io.into_inner(), parts.read_buf)
            });
        }
    });
    Ok(H1Conn { sender, info, handoff, reused: false })
}

/// Opens an HTTP/2 connection to the endpoint.
pub(crate) async fn http2<D: Dial>(
    conn: &Conn<D>,
    endpoint: &Endpoint,
    tls: Option<&BackendTlsClient>,
    life: Rc<Life>,
) -> Result<Rc<H2Conn>, ProxyError> {
    let Upstream { io, info } = dial(conn, endpoint, tls, Protocol::Http2).await?;
    let limits = &conn.http.shared.limits;
    // No PING: gRPC's servers end a connection that asks more often than every five minutes (ENHANCE_YOUR_CALM,
    // `too_many_pings`). Whether the other end lives is its tunnel's matter, or TCP's where there is none; until TCP gives
    // up, which takes it a quarter of an hour, the pool gives no new requests to one that answers none.
    let handshake = http2::Builder::new(conn.share.executor())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(u32::try_from(limits.head_bytes_max).unwrap_or(u32::MAX))
        .handshake::<_, RequestBody>(TokioIo::new(io))
        .await;
    let (sender, mut task) = handshake.map_err(|e| failed(&info, &e))?;
    let allowed = Rc::new(Cell::new(task.current_max_send_streams()));
    let told = Rc::clone(&allowed);
    conn.share.spawn(poll_fn(move |cx| {
        let ended = Pin::new(&mut task).poll(cx).map(drop);
        if ended.is_pending() {
            told.set(task.current_max_send_streams());
        }
        ended
    }));
    Ok(H2Conn::new(sender, info, allowed, life))
}

async fn dial<D: Dial>(
    conn: &Conn<D>,
    endpoint: &Endpoint,
    tls: Option<&BackendTlsClient>,
    protocol: Protocol,
) -> Result<Upstream<ConnIo<D>>, ProxyError> {
    let Upstream { io, info } = conn.http.dial.dial(&conn.local, endpoint, false).await?;
    let io = match tls {
        None => MaybeTls::Plain(io),
        Some(tls) => {
            let limit = Duration::from_millis(conn.http.shared.limits.handshake_timeout_ms);
            let handshake = tls.connect(io, protocol);
            match tokio::time::timeout(limit, handshake).await {
                Ok(Ok(io)) => MaybeTls::Tls(Box::new(io)),
                Ok(Err(e)) => {
                    return Err(unreached(Reason::PeerIdentity, format!("TLS to {}: {e}", info.addr)));
                }
                Err(_) => {
                    return Err(unreached(
                        Reason::ConnectTimeout,
                        format!("TLS to {}: no answer", info.addr),
                    ));
                }
            }
        }
    };
    Ok(Upstream { io, info })
}

fn failed(info: &UpstreamInfo, e: &hyper::Error) -> ProxyError {
    unreached(Reason::UpstreamProtocol, format!("HTTP handshake with {}: {e}", info.addr))
}

/// No request was sent.
fn unreached(reason: Reason, detail: String) -> ProxyError {
    ProxyError { retry: Retryable::Yes, ..error(reason, detail) }
}
