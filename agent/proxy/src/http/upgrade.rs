//! Upgrades (WebSocket and others): both sides answer 101, then bytes are copied until both directions have ended.

use super::{conn::Upgraded, io::Prefixed};
use crate::{dial::Dial, error::Reason};
use bytes::Bytes;
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
