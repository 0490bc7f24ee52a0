//! The border between HTTP (and L4) and the transport: "connect me to this endpoint on behalf of this source".

use crate::{
    error::{Blame, ProxyError, Reason, Retryable},
    transport::{
        connect,
        pool::Want,
        stream::TunnelStream,
        tunnel::{State, Tunnel},
    },
    worker::Worker,
    workload::LocalWorkload,
};
use http::HeaderMap;
use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use weft_core::{
    config::Endpoint,
    model::{SpiffeId, Workload},
};

/// An established way to an endpoint: plain TCP, TLS to the backend, or a stream of an HBONE tunnel.
#[derive(Debug)]
pub struct Upstream<S> {
    /// Bytes.
    pub io: S,
    /// What is known about it.
    pub info: UpstreamInfo,
}

/// What is known about an upstream connection.
#[derive(Clone, Debug)]
pub struct UpstreamInfo {
    /// The endpoint.
    pub addr: SocketAddr,
    /// Who answered, verified; `None` for plaintext.
    pub identity: Option<Rc<SpiffeId>>,
    /// The tunnel that carries it.
    pub(crate) tunnel: Option<Rc<Tunnel>>,
}

impl UpstreamInfo {
    /// Of a connection outside the mesh.
    #[must_use]
    pub const fn plain(addr: SocketAddr) -> Self {
        Self { addr, identity: None, tunnel: None }
    }

    /// Whether its tunnel takes nothing new: the peer's agent is being replaced, and gives this connection until its
    /// drain's deadline; or the peer gives no sign of life. A kept connection must not be used for another request then.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.tunnel.as_ref().is_some_and(|tunnel| tunnel.state() == State::Retired || tunnel.is_suspect())
    }
}

/// How long a connection may take before another endpoint is tried, if there is one that is well.
const TRY_PATIENCE: Duration = Duration::from_secs(1);

/// Connects to `to`, but not for longer than [`TRY_PATIENCE`] when `has_other` endpoint to try. Without another, an
/// endpoint that is slow is better than none: the full time applies.
pub(crate) async fn impatiently<T>(
    to: SocketAddr,
    connecting: impl Future<Output = Result<T, ProxyError>>,
    has_other: impl FnOnce() -> bool,
) -> Result<T, ProxyError> {
    let mut connecting = std::pin::pin!(connecting);
    match tokio::time::timeout(TRY_PATIENCE, &mut connecting).await {
        Ok(connected) => connected,
        Err(_) if has_other() => Err(slow(to, TRY_PATIENCE)),
        Err(_) => connecting.await,
    }
}

/// Opens connections to endpoints on behalf of a workload. HBONE for enrolled endpoints (never plaintext to them), else
/// plain TCP from the workload's own address.
pub trait Dial: 'static {
    /// What it gives.
    type Io: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static;

    /// Connects within the deadline of [`crate::context::Limits`]. `bulk` asks for a tunnel of its own (opaque
    /// streams that may carry much).
    fn dial(
        &self,
        local: &Rc<LocalWorkload<Self::Io>>,
        endpoint: &Endpoint,
        bulk: bool,
    ) -> impl Future<Output = Result<Upstream<Self::Io>, ProxyError>>;
}

/// The one implementation: the workload's tunnels and sockets.
#[derive(Clone, Debug)]
pub struct Dialer {
    worker: Rc<Worker>,
}

impl Dialer {
    /// Dials on this worker.
    #[must_use]
    pub const fn new(worker: Rc<Worker>) -> Self {
        Self { worker }
    }

    /// As [`Dial::dial`], with headers for the CONNECT (`traceparent`, `baggage`, `forwarded`).
    ///
    /// # Errors
    /// Why there is no connection; `retry` says whether another endpoint may do.
    pub async fn dial_with(
        &self,
        local: &Rc<LocalWorkload>,
        endpoint: &Endpoint,
        bulk: bool,
        headers: &HeaderMap,
    ) -> Result<Upstream<UpstreamIo>, ProxyError> {
        let limits = &self.worker.shared.limits;
        let to = endpoint.addr;
        let Some(workload) = endpoint.workload.as_deref().filter(|w| w.enrolled) else {
            let source = &local.source;
            let io = connect::tcp(&*source.sockets, source.bind_ip(to.is_ipv6()), to, limits).await?;
            // Fails only on a socket that is already gone.
            let _ = connect::keep_alive(&io);
            return Ok(Upstream { io: UpstreamIo::Tcp(io), info: UpstreamInfo::plain(to) });
        };
        let want = Want { local, workload, to, bulk, headers };
        let deadline = Duration::from_millis(limits.connect_timeout_ms + limits.handshake_timeout_ms);
        let stream = tokio::time::timeout(deadline, local.tunnels.stream(&self.worker, want));
        let opened = stream.await.map_err(|_| slow(to, deadline))?;
        let (io, tunnel) = opened.map_err(|error| in_pod(error, workload))?;
        let info = UpstreamInfo { addr: to, identity: Some(tunnel.identity.clone()), tunnel: Some(tunnel) };
        Ok(Upstream { io: UpstreamIo::Tunnel(io), info })
    }
}

impl Dial for Dialer {
    type Io = UpstreamIo;

    async fn dial(
        &self,
        local: &Rc<LocalWorkload>,
        endpoint: &Endpoint,
        bulk: bool,
    ) -> Result<Upstream<UpstreamIo>, ProxyError> {
        self.dial_with(local, endpoint, bulk, &HeaderMap::new()).await
    }
}

/// A port on which nothing listens is refused by the pod itself: who reads the log wants to know which pod that is.
fn in_pod(mut error: ProxyError, workload: &Workload) -> ProxyError {
    if matches!(error.reason, Reason::ConnectFailed | Reason::ConnectTimeout) {
        error.detail = format!("{} (pod {})", error.detail, workload.pod);
    }
    error
}

fn slow(to: SocketAddr, deadline: Duration) -> ProxyError {
    ProxyError {
        reason: Reason::ConnectTimeout,
        blame: Blame::Upstream,
        retry: Retryable::Yes,
        detail: format!("no connection to {to} within {deadline:?}"),
    }
}

/// A connection to an endpoint.
#[derive(Debug)]
pub enum UpstreamIo {
    /// Outside the mesh.
    Tcp(TcpStream),
    /// Inside.
    Tunnel(TunnelStream),
}

impl UpstreamIo {
    /// Waits until something has come in, without taking it; false at the end.
    pub(crate) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        match self {
            Self::Tcp(io) => {
                let mut byte = [0];
                io.poll_peek(cx, &mut ReadBuf::new(&mut byte)).map(|peeked| peeked.is_ok_and(|n| n > 0))
            }
            Self::Tunnel(io) => io.poll_readable(cx),
        }
    }
}

impl AsyncRead for UpstreamIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_read(cx, buf),
            Self::Tunnel(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for UpstreamIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_write(cx, buf),
            Self::Tunnel(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Self::Tunnel(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_flush(cx),
            Self::Tunnel(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_shutdown(cx),
            Self::Tunnel(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
