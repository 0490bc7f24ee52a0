//! Serving one downstream connection, HTTP/1.1 or HTTP/2, until it ends or is drained.

use super::{
    conn::{Conn, Entrance, HttpConn},
    forward::handle,
    io::{Client, Prefixed, Watched},
    streams::Streams,
    upgrade,
};
use crate::{context::Limits, dial::Dial, drain::Drain};
use bytes::{Bytes, BytesMut};
use futures_util::task::AtomicWaker;
use http::{HeaderValue, StatusCode, header::CONNECTION};
use hyper::{
    Request,
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    time::{Sleep, sleep, timeout},
};

/// What HTTP/2 with prior knowledge begins with (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A client's connection may lie idle this long.
const IDLE_MAX: Duration = Duration::from_secs(600);
/// A client that has ended its side and takes no byte of its answer is waited for this long: as long as the kernel keeps the
/// state of a socket that nobody holds any more (`tcp_fin_timeout`). To TCP, a client that reads on and one that has given
/// up are the same, and a server that answers nothing must not gather the requests of all who have given up.
const HALF_CLOSED_MAX: Duration = Duration::from_secs(60);
/// How long a client that floods us has for an orderly end.
const FLOOD_MAX: Duration = Duration::from_secs(1);
/// Receive window of one stream: what an upstream that does not read may hold here.
const STREAM_WINDOW: u32 = 1 << 20;
/// Receive window of a connection: several streams' worth, so that one that nobody reads does not stop the others.
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Unsent bytes of one stream.
const SEND_BUFFER: usize = 256 * 1024;
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams that a client may reset before we took them (CVE-2023-44487), and that we may reset for its faults.
const RESETS_MAX: usize = 50;

/// A version of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpVersion {
    /// HTTP/1.0 and 1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// Serves a connection to its end. `version` is what ALPN or a detector found; without it the first bytes decide.
///
/// Returns when the connection has ended, by itself or because its share was drained. Run it in the connection's share.
pub async fn serve<D: Dial, S>(mut io: S, version: Option<HttpVersion>, conn: HttpConn<D>)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let _open = conn.http.telemetry.connection_opened(Conn::direction_of(&conn));
    let conn = Conn::new(conn);
    let limit = Duration::from_millis(conn.http.shared.limits.handshake_timeout_ms);
    match version {
        Some(HttpVersion::Http1) => serve_http1(io, conn).await,
        // Captured, its first bytes have been seen. At a Gateway ALPN has promised them.
        Some(HttpVersion::Http2) if conn.edge.is_none() => serve_http2(io, conn).await,
        version => {
            let drain = conn.share.drain().clone();
            // A pod may open connections that it will need later, and would not notice a server that waits. Gateways are
            // open to anybody.
            let silence = if matches!(conn.entrance, Entrance::Mesh { .. }) { IDLE_MAX } else { limit };
            let first = tokio::select! {
                first = first_bytes(&mut io, silence, limit) => first,
                // Nothing was asked yet, but it may be on its way.
                () = drain.lingered() => return,
            };
            match first {
                Ok((HttpVersion::Http1, _)) if version.is_some() => {}
                Ok((HttpVersion::Http1, read)) => serve_http1(Prefixed::new(read, io), conn).await,
                Ok((HttpVersion::Http2, read)) => serve_http2(Prefixed::new(read, io), conn).await,
                // Closed or silent before the first request: there is nobody to tell.
                Err(_) => {}
            }
        }
    }
}

/// Reads until it is clear which version is spoken: the first bytes may take `silence`, the rest `limit`.
async fn first_bytes<S: AsyncRead + Unpin>(
    io: &mut S,
    silence: Duration,
    limit: Duration,
) -> io::Result<(HttpVersion, Bytes)> {
    let mut read = BytesMut::with_capacity(1024);
    timeout(silence, read_more(io, &mut read)).await??;
    let rest = async {
        loop {
            let n = read.len().min(PREFACE.len());
            if read[..n] != PREFACE[..n] {
                return Ok((HttpVersion::Http1, read.freeze()));
            }
            if n == PREFACE.len() {
                return Ok((HttpVersion::Http2, read.freeze()));
            }
            read_more(io, &mut read).await?;
        }
    };
    timeout(limit, rest).await?
}

async fn read_more<S: AsyncRead + Unpin>(io: &mut S, read: &mut BytesMut) -> io::Result<()> {
    match io.read_buf(read).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

async fn serve_http1<D: Dial, S>(io: S, conn: Rc<Conn<D>>)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let service = {
        let conn = Rc::clone(&conn);
        service_fn(move |request: Request<Incoming>| {
            let conn = Rc::clone(&conn);
            async move {
                let mut response = handle(Rc::clone(&conn), request).await;
                // As early as the client can be told. hyper closes the connection after an answer that says so.
                if conn.closing.get() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response)
            }
        })
    };
    let limits = &conn.http.shared.limits;
    let (io, watch) = Watched::new(io, Rc::clone(&conn.reads), Rc::clone(&conn.writes));
    let mut http = http1::Builder::new()
        // Who sends a request and then FIN is answered (RFC 9112 §9.6).
        .half_close(true)
        .max_headers(limits.headers_max)
        .max_header_size(limits.head_bytes_max)
        // The watchdog looks after slow heads: hyper's timer costs an allocation for each request.
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(io), service);
    let mut ending = Ending::new(&conn, true);
    let ended = poll_fn(|cx| {
        if let Poll::Ready(ended) = Pin::new(&mut http).poll(cx) {
            return Poll::Ready(ended.is_ok());
        }
        // Only once the whole request is there: before that hyper reads, and what was read ahead would reach it in crumbs.
        let has_all = conn.upload.borrow().as_ref().is_none_or(|upload| upload.is_complete(cx));
        if conn.active.get() > 0 && has_all {
            match watch.look(cx) {
                Client::There => {}
                Client::HalfClosed => conn.half_closed.set(true),
                Client::Gone => return Poll::Ready(false),
            }
        }
        match ending.poll(&conn, cx) {
            Poll::Ready(End::Soon) => {
                Pin::new(&mut http).graceful_shutdown();
                // It may have been idle: then it is over now.
                Pin::new(&mut http).poll(cx).map(|ended| ended.is_ok())
            }
            Poll::Ready(End::Now) => Poll::Ready(false),
            Poll::Pending => Poll::Pending,
        }
    })
    .await;
    let upgraded = conn.upgraded.borrow_mut().take();
    if let (Some(upgraded), true) = (upgraded, ended) {
        let read = http.into_parts().read_buf;
        if let Some((ahead, io)) = watch.into_parts() {
            upgrade::relay(Prefixed::new(read, Prefixed::new(ahead, io)), upgraded).await;
        }
    }
}

async fn serve_http2<D: Dial, S>(io: S, conn: Rc<Conn<D>>)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let service = {
        let conn = Rc::clone(&conn);
        service_fn(move |request: Request<Incoming>| {
            let conn = Rc::clone(&conn);
            async move { Ok::<_, Infallible>(handle(conn, request).await) }
        })
    };
    let limits: &Limits = &conn.http.shared.limits;
    let http = http2::Builder::new(Streams::new(&conn))
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(limits.streams_max)
        .max_header_list_size(u32::try_from(limits.head_bytes_max).unwrap_or(u32::MAX))
        .max_send_buf_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(RESETS_MAX)
        .max_local_error_reset_streams(RESETS_MAX)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        // WebSockets over HTTP/2 (RFC 8441).
        .enable_connect_protocol()
        .serve_connection(TokioIo::new(io), service);
    let mut http = pin!(http);
    let mut ending = Ending::new(&conn, false);
    poll_fn(|cx| {
        if http.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if conn.flooded.get() {
            ending.flooded();
        }
        match ending.poll(&conn, cx) {
            Poll::Ready(End::Soon) => {
                http.as_mut().graceful_shutdown();
                http.as_mut().poll(cx).map(drop)
            }
            Poll::Ready(End::Now) => Poll::Ready(()),
            Poll::Pending => Poll::Pending,
        }
    })
    .await;
}

/// How a connection must end.
enum End {
    /// At the next boundary of a message.
    Soon,
    /// Wherever it stands.
    Now,
}

/// Wakes the connection's task, and remembers that its [`Ending`] wants to be looked at. Without it, each packet would
/// poll a timer and a cancellation, both behind locks.
struct Nudge {
    due: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Nudge {
    fn wake(self: Arc<Self>) {
        self.due.store(true, Ordering::Release);
        self.task.wake();
    }
}

/// How far the drain of a connection has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nobody drains it.
    Serving,
    /// HTTP/1.1: one more request is waited for.
    Lingering,
    /// Its client floods us.
    Flooded,
    /// Ends at the next boundary of a message.
    Ending,
    /// Ends at the next boundary of a message, if that comes soon.
    EndingFlood,
    /// Ended.
    Over,
}

/// Ends a connection that is drained, lies idle, or sends a request's head too slowly.
struct Ending {
    nudge: Arc<Nudge>,
    stage: Stage,
    /// Leads to the next stage.
    next: Pin<Box<dyn Future<Output = ()>>>,
    watchdog: Pin<Box<Sleep>>,
    tick: Duration,
    idle: Duration,
    begun: u64,
    /// HTTP/1: slow heads are looked for, because nobody else does, and a drain waits for one more request.
    http1: bool,
    /// At the last tick, a head was due or had begun.
    partial: bool,
    /// How long a client that has ended its side has taken nothing, and its writes at the last tick.
    deaf: (Duration, u64),
    /// How long nothing was read or written under HTTP/1.1 although an answer is due, and the sum of both at the last tick.
    quiet: Duration,
    moved: u64,
}

impl Ending {
    fn new<D: Dial>(conn: &Conn<D>, http1: bool) -> Self {
        let tick = Duration::from_millis(conn.http.shared.limits.handshake_timeout_ms);
        Self {
            nudge: Arc::new(Nudge { due: AtomicBool::new(true), task: AtomicWaker::new() }),
            stage: Stage::Serving,
            next: Box::pin(after(Stage::Serving, conn.share.drain().clone())),
            watchdog: Box::pin(sleep(tick)),
            tick,
            idle: Duration::ZERO,
            begun: 0,
            http1,
            partial: false,
            deaf: (Duration::ZERO, 0),
            quiet: Duration::ZERO,
            moved: 0,
        }
    }

    /// The connection must end soon: its client floods us. A client that does not take part in an orderly end has a second.
    fn flooded(&mut self) {
        if self.stage == Stage::Serving {
            self.stage = Stage::Flooded;
            self.next = Box::pin(std::future::ready(()));
            self.nudge.due.store(true, Ordering::Release);
        }
    }

    /// Each end is told once.
    fn poll<D: Dial>(&mut self, conn: &Conn<D>, cx: &mut Context<'_>) -> Poll<End> {
        self.nudge.task.register(cx.waker());
        if !self.nudge.due.swap(false, Ordering::Acquire) {
            return Poll::Pending;
        }
        let waker = Waker::from(Arc::clone(&self.nudge));
        self.look(conn, &mut Context::from_waker(&waker))
    }

    fn look<D: Dial>(&mut self, conn: &Conn<D>, cx: &mut Context<'_>) -> Poll<End> {
        if let Some(end) = self.drain(conn, cx) {
            return Poll::Ready(end);
        }
        while self.watchdog.as_mut().poll(cx).is_ready() {
            self.watchdog.as_mut().reset(tokio::time::Instant::now() + self.tick);
            if let Some(end) = self.tick(conn) {
                return Poll::Ready(end);
            }
        }
        Poll::Pending
    }

    /// Follows the drain, and registers for its next step.
    fn drain<D: Dial>(&mut self, conn: &Conn<D>, cx: &mut Context<'_>) -> Option<End> {
        let mut end = None;
        while self.stage != Stage::Over && self.next.as_mut().poll(cx).is_ready() {
            self.stage = match self.stage {
                Stage::Serving if self.http1 => {
                    conn.closing.set(true);
                    Stage::Lingering
                }
                Stage::Serving | Stage::Lingering => {
                    end = Some(End::Soon);
                    Stage::Ending
                }
                Stage::Flooded => {
                    end = Some(End::Soon);
                    Stage::EndingFlood
                }
                Stage::Ending | Stage::EndingFlood | Stage::Over => {
                    end = Some(End::Now);
                    Stage::Over
                }
            };
            self.next = Box::pin(after(self.stage, conn.share.drain().clone()));
        }
        end
    }

    /// What the watchdog finds. A head has one to two ticks' time.
    fn tick<D: Dial>(&mut self, conn: &Conn<D>) -> Option<End> {
        let begun = conn.begun.get();
        let busy = conn.active.get() > 0 || begun != self.begun;
        self.begun = begun;
        if busy {
            (self.idle, self.partial) = (Duration::ZERO, false);
            return (self.is_deaf(conn) || self.is_quiet(conn)).then_some(End::Now);
        }
        self.idle += self.tick;
        let partial = self.http1 && (begun == 0 || conn.reads.get() > conn.reads_done.get());
        if partial && self.partial {
            return Some(End::Now);
        }
        self.partial = partial;
        (self.idle >= IDLE_MAX).then_some(End::Soon)
    }

    /// At a Gateway: ends the streams of HTTP/2 that carry nothing; whether that is so of an HTTP/1.1 connection's exchange.
    fn is_quiet<D: Dial>(&mut self, conn: &Conn<D>) -> bool {
        let Some(limit) = conn.edge.as_ref().and_then(|edge| edge.stream_idle) else { return false };
        if !self.http1 {
            conn.streams.end_quiet(self.tick, limit);
            return false;
        }
        let moved = conn.reads.get() + conn.writes.get();
        self.quiet = if moved == self.moved { self.quiet + self.tick } else { Duration::ZERO };
        self.moved = moved;
        self.quiet >= limit
    }

    /// Whether the client has ended its side, and has taken nothing for too long.
    fn is_deaf<D: Dial>(&mut self, conn: &Conn<D>) -> bool {
        let writes = conn.writes.get();
        let (silent, before) = self.deaf;
        let silent =
            if conn.half_closed.get() && writes == before { silent + self.tick } else { Duration::ZERO };
        self.deaf = (silent, writes);
        silent >= HALF_CLOSED_MAX
    }
}

/// Waits for the step of the drain that ends `stage`.
async fn after(stage: Stage, drain: Drain) {
    match stage {
        Stage::Serving => drain.draining().await,
        Stage::Lingering => drain.lingered().await,
        Stage::EndingFlood => sleep(FLOOD_MAX).await,
        Stage::Flooded | Stage::Ending | Stage::Over => drain.expired().await,
    }
}
