//! Upgrades (WebSocket and others): both sides answer 101, then bytes are copied until both directions have ended.

use super::{conn::Upgraded, io::Prefixed};
use crate::{dial::Dial, error::Reason};
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header, request::Parts};
use hyper::{ext::Protocol, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use std::{cell::RefCell, io};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::oneshot,
};

/// Hands an upstream connection's bytes to whoever upgraded it, when HTTP is over there. hyper's own upgrades would
/// need `Send` streams in a box; ours live on one thread.
#[derive(Debug)]
pub(crate) struct Handoff<Io>(RefCell<Option<oneshot::Sender<(Io, Bytes)>>>);

impl<Io> Default for Handoff<Io> {
    fn default() -> Self {
        Self(RefCell::new(None))
    }
}

impl<Io> Handoff<Io> {
    /// Asks for the bytes.
    pub(crate) fn ask(&self) -> oneshot::Receiver<(Io, Bytes)> {
        let (give, take) = oneshot::channel();
        *self.0.borrow_mut() = Some(give);
        take
    }

    /// Gives them, if somebody asked.
    pub(crate) fn give(&self, parts: impl FnOnce() -> (Io, Bytes)) {
        if let Some(asked) = self.0.borrow_mut().take() {
            // Whoever asked may be gone; then the connection closes here.
            let _ = asked.send(parts());
        }
    }
}

/// An extended CONNECT for a WebSocket (RFC 8441) becomes the GET that HTTP/1.1 upgrades with. Gives where the client's
/// bytes will be.
pub(crate) fn extended_connect(parts: &mut Parts, draw: impl Fn() -> u64) -> Option<OnUpgrade> {
    let websocket = parts.extensions.get::<Protocol>().is_some_and(|p| p.as_str() == "websocket");
    if parts.method != Method::CONNECT || !websocket {
        return None;
    }
    let client = parts.extensions.remove::<OnUpgrade>()?;
    parts.method = Method::GET;
    parts.headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    // The upstream wants a key to hash. It proves nothing here: both ends of this leg are known to speak HTTP.
    let key = key([draw(), draw()]);
    parts.headers.insert(header::SEC_WEBSOCKET_KEY, key);
    Some(client)
}

/// 16 bytes in base64 (RFC 4648 §4).
fn key(random: [u64; 2]) -> HeaderValue {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = u128::from(random[0]) << 64 | u128::from(random[1]);
    // 128 bits are 21 digits and two bits; these begin the 22nd, and two marks fill the last group.
    let mut text: Vec<u8> = (0..21).map(|i| ALPHABET[(bits >> (122 - 6 * i)) as usize & 63]).collect();
    text.push(ALPHABET[(bits as usize & 3) << 4]);
    text.extend_from_slice(b"==");
    HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("AAAAAAAAAAAAAAAAAAAAAA=="))
}

/// Answers an extended CONNECT whose upstream has switched protocols, and copies from then on.
pub(crate) fn accept_connect<D: Dial>(
    client: OnUpgrade,
    upgraded: Upgraded<D>,
    head: &mut http::response::Parts,
) {
    head.status = StatusCode::OK;
    for name in [header::CONNECTION, header::UPGRADE, header::SEC_WEBSOCKET_ACCEPT] {
        head.headers.remove(name);
    }
    let share = upgraded.exchange.conn.share.clone();
    share.spawn(async move {
        // Fails when the client goes away before our answer; dropping the exchange says so.
        if let Ok(io) = client.await {
            relay(TokioIo::new(io), upgraded).await;
        }
    });
}

/// Copies between an upgraded client and its upstream, and ends the exchange.
pub(crate) async fn relay<D: Dial>(client: impl AsyncRead + AsyncWrite + Unpin, upgraded: Upgraded<D>) {
    let Upgraded { upstream, mut exchange } = upgraded;
    let Ok((io, early)) = upstream.await else {
        exchange.broke(Reason::UpstreamReset);
        return;
    };
    let drain = exchange.conn.share.drain().clone();
    let mut client = client;
    let mut upstream = Prefixed::new(early, io);
    let copied = tokio::select! {
        copied = copy(&mut client, &mut upstream) => copied,
        () = drain.expired() => {
            exchange.broke(Reason::Draining);
            return;
        }
    };
    match copied {
        Ok((_, sent)) => {
            exchange.response_bytes = sent;
            exchange.complete();
        }
        Err(_) => exchange.broke(Reason::UpstreamReset),
    }
}

/// The copy routine of both directions: (client to upstream, upstream to client) bytes.
async fn copy(
    client: &mut (impl AsyncRead + AsyncWrite + Unpin),
    upstream: &mut (impl AsyncRead + AsyncWrite + Unpin),
) -> io::Result<(u64, u64)> {
    let copied = tokio::io::copy_bidirectional_with_sizes(client, upstream, 16 * 1024, 16 * 1024).await;
    // Half-closed sides were shut down by the copy; what is left after an error is closed by the drop.
    let _ = client.shutdown().await;
    copied
}
