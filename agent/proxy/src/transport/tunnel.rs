//! The client side of an HBONE tunnel: one HTTP/2 connection on which CONNECT streams are opened.

use super::{
    CONNECTION_WINDOW, DATA_FRAME_BUDGET, FRAME_SIZE, SEND_BUFFER, STREAM_WINDOW,
    pulse::{Heard, Pulse, Wait, watch},
    stream::TunnelStream,
};
use crate::{
    error::{Blame, ProxyError, Reason, Retryable},
    nodes::Node,
};
use bytes::Bytes;
use h2::{Ping, PingPong, client::SendRequest};
use http::{HeaderMap, Method, Request, StatusCode, Uri, Version};
use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};
use weft_core::{model::SpiffeId, timing::Silence};

/// A tunnel that we accepted is asked for a sign of life this often…
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// …and given up when none comes for this long.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// A tunnel without streams is closed after this time.
const IDLE_RELEASE: Duration = Duration::from_secs(300);

/// Where a tunnel stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Takes new streams.
    Open,
    /// Takes no new streams; those it has go on.
    Retired,
}

/// An established tunnel.
#[derive(Debug)]
pub struct Tunnel {
    /// `None` once retired: the last handle's drop lets the connection end when its streams have.
    request: RefCell<Option<SendRequest<Bytes>>>,
    /// Who answered, verified.
    pub identity: Rc<SpiffeId>,
    streams: Cell<usize>,
    bulk: Cell<usize>,
    idle_since: Cell<Instant>,
    pulse: Rc<Pulse>,
}

/// Counts a stream of a tunnel while it lives.
#[derive(Debug)]
pub struct StreamGuard {
    tunnel: Rc<Tunnel>,
    bulk: bool,
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        let tunnel = &self.tunnel;
        tunnel.streams.set(tunnel.streams.get() - 1);
        tunnel.bulk.set(tunnel.bulk.get() - usize::from(self.bulk));
        if tunnel.streams.get() == 0 {
            tunnel.idle_since.set(Instant::now());
        }
    }
}

/// Why a stream could not be opened.
#[derive(Debug)]
pub enum OpenError {
    /// The tunnel is ending; nothing reached the application, another tunnel may be used.
    Gone(h2::Error),
    /// The peer gave no sign of life; nothing reached the application that it could not do without.
    Silent,
    /// The peer's agent answered with this instead of 200.
    Refused(StatusCode),
}

impl Tunnel {
    /// Speaks HTTP/2 on a verified connection. Gives the tunnel and the future that drives it, which the caller
    /// must run until it ends. `node` is told whether its tunnels answer. With `over` it takes no new streams; those it has
    /// go on.
    ///
    /// # Errors
    /// When the connection fails or the peer does not speak HTTP/2.
    pub(crate) async fn establish<IO>(
        io: IO,
        identity: Rc<SpiffeId>,
        node: Option<Rc<Node>>,
        over: impl Future<Output = ()> + 'static,
    ) -> Result<(Rc<Self>, impl Future<Output = ()> + 'static), h2::Error>
    where
        IO: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let pulse = Rc::<Pulse>::default();
        let (request, mut connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_SIZE)
            .max_header_list_size(16 * 1024)
            .max_send_buffer_size(SEND_BUFFER)
            .data_frame_budget(DATA_FRAME_BUDGET)
            .enable_push(false)
            .handshake(Heard::new(io, pulse.clone()))
            .await?;
        let ping = connection.ping_pong();
        let tunnel = Rc::new(Self {
            request: RefCell::new(Some(request)),
            identity,
            streams: Cell::new(0),
            bulk: Cell::new(0),
            idle_since: Cell::new(Instant::now()),
            pulse,
        });
        if let Some(node) = &node {
            node.add(&tunnel);
        }
        let kept = tunnel.clone();
        let driver = async move {
            let end = tokio::select! {
                // What has come in is read before its absence is judged.
                biased;
                end = connection => end.err().map(|error| error.to_string()),
                () = keep_alive(ping, &kept, node.as_deref(), over) => Some("no answer to PING".to_owned()),
            };
            kept.retire();
            if let Some(error) = end {
                tracing::debug!(peer = %kept.identity, error, "a tunnel ended");
            }
        };
        Ok((tunnel, driver))
    }

    /// Whether new streams may be opened. Notices a GOAWAY that has come in meanwhile.
    #[must_use]
    pub fn state(&self) -> State {
        let mut request = self.request.borrow_mut();
        let mut cx = Context::from_waker(Waker::noop());
        match request.as_mut().map(|r| r.poll_ready(&mut cx)) {
            Some(Poll::Ready(Ok(())) | Poll::Pending) => State::Open,
            Some(Poll::Ready(Err(_))) => {
                *request = None;
                State::Retired
            }
            None => State::Retired,
        }
    }

    /// Takes no new streams from now on.
    pub fn retire(&self) {
        self.request.borrow_mut().take();
    }

    /// Whether the other end gives no sign of life, so that nothing new should be sent there.
    #[must_use]
    pub fn is_suspect(&self) -> bool {
        self.pulse.silence() >= Silence::Suspect
    }

    /// Ends when nobody should go on waiting for an answer from the other end. While it lives, somebody does.
    pub(crate) fn lost(&self) -> Wait {
        self.pulse.wait(Silence::Lost)
    }

    /// Waits until the other end is not suspected any more; false after a second.
    #[cfg(test)]
    pub(crate) async fn pulse_settles(&self) -> bool {
        for _ in 0..100 {
            if !self.is_suspect() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }

    /// Asks the other end for a sign of life.
    pub(crate) fn ask(&self) {
        self.pulse.ask();
    }

    /// Open streams.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.streams.get()
    }

    /// Open streams that may carry much.
    #[must_use]
    pub fn bulk(&self) -> usize {
        self.bulk.get()
    }

    /// Counts a stream that is about to be opened.
    #[must_use]
    pub fn reserve(self: &Rc<Self>, bulk: bool) -> StreamGuard {
        self.streams.set(self.streams.get() + 1);
        self.bulk.set(self.bulk.get() + usize::from(bulk));
        StreamGuard { tunnel: self.clone(), bulk }
    }
}

impl StreamGuard {
    /// Asks for a connection to `to` and waits until it stands.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(self, to: SocketAddr, headers: &HeaderMap) -> Result<TunnelStream, OpenError> {
        let request = self.tunnel.request.borrow().clone();
        let Some(request) = request else {
            return Err(OpenError::Gone(h2::Reason::REFUSED_STREAM.into()));
        };
        // A tunnel that is full of streams nobody answers never gets ready.
        let mut request = tokio::select! {
            biased;
            request = request.ready() => request.map_err(OpenError::Gone)?,
            () = self.tunnel.pulse.wait(Silence::Suspect) => return Err(OpenError::Silent),
        };
        let (answer, send) =
            request.send_request(connect_request(to, headers), false).map_err(OpenError::Gone)?;
        // A tunnel that lives while its handle is held would never end.
        drop(request);
        let answer = tokio::select! {
            biased;
            answer = answer => answer.map_err(OpenError::Gone)?,
            () = self.tunnel.pulse.wait(Silence::Suspect) => return Err(OpenError::Silent),
        };
        let (head, recv) = answer.into_parts();
        if head.status != StatusCode::OK {
            return Err(OpenError::Refused(head.status));
        }
        Ok(TunnelStream::new(send, recv, Some(self)))
    }
}

fn connect_request(to: SocketAddr, headers: &HeaderMap) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = Uri::builder()
        .authority(to.to_string())
        .build()
        .unwrap_or_else(|_| unreachable!("an address and port are an authority"));
    *request.headers_mut() = headers.clone();
    request
}

/// What a peer agent's answer means.
#[must_use]
pub fn refused(status: StatusCode, to: SocketAddr) -> ProxyError {
    let (reason, retry) = match status.as_u16() {
        // By policy: every endpoint of the workload would say so.
        401 | 403 => (Reason::Denied, Retryable::No),
        // The application was not reached, or the pod has gone and its address belongs to another.
        _ => (Reason::TunnelRefused, Retryable::Yes),
    };
    let detail = format!("the agent of {to} answered CONNECT with {}", status.as_u16());
    ProxyError { reason, blame: Blame::Upstream, retry, detail }
}

/// A tunnel that broke before it carried anything.
pub(crate) fn broken(peer: SocketAddr, error: &dyn std::error::Error) -> ProxyError {
    ProxyError {
        reason: Reason::PeerIdentity,
        blame: Blame::Upstream,
        retry: Retryable::Yes,
        detail: format!("HTTP/2 with the agent of {peer}: {error}"),
    }
}

/// Returns when the peer no longer answers. Retires a tunnel that is not used, or whose certificates are `over`.
async fn keep_alive(
    ping: Option<PingPong>,
    tunnel: &Tunnel,
    node: Option<&Node>,
    over: impl Future<Output = ()>,
) {
    let retire_idle = async {
        loop {
            tokio::time::sleep(PING_INTERVAL).await;
            if tunnel.streams.get() == 0 && tunnel.idle_since.get().elapsed() > IDLE_RELEASE {
                tunnel.retire();
            }
        }
    };
    let retire_over = async {
        over.await;
        tunnel.retire();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = watch(ping, &tunnel.pulse, node) => {}
        () = retire_idle => {}
        () = retire_over => {}
    }
}

/// Asks for signs of life; returns when none comes any more.
pub(crate) async fn peer_lost(ping: Option<PingPong>) {
    let Some(mut ping) = ping else {
        return std::future::pending().await;
    };
    loop {
        tokio::time::sleep(PING_INTERVAL).await;
        match tokio::time::timeout(PING_TIMEOUT, ping.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}
