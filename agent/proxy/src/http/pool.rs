//! Kept upstream connections of one share on one worker. Keyed by endpoint and TLS; the source is the pool's owner,
//! because the source address of a connection is the client pod's.
//!
//! HTTP/1.1 connections are lent to one exchange and come back at the end of its answer (last in, first out, so that
//! spare ones grow old and are closed). HTTP/2 connections are shared, up to the peer's stream limit.

use super::{body::RequestBody, respond, upgrade::Handoff};
use crate::{
    dial::UpstreamInfo,
    error::{ProxyError, Reason, Retryable},
    share::Share,
};
use hyper::client::conn::{http1, http2};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::{Rc, Weak},
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};
use weft_core::{config::Endpoint, hash::FxBuild};

/// How long a connection may lie unused. Shorter than the usual server's own limit (nginx 75 s, Node 5 s is below any
/// useful value and is what the stale-connection retry is for).
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Unused connections kept to one endpoint.
const IDLE_PER_ENDPOINT_MAX: usize = 256;
/// Unused connections kept by one share on one worker.
const IDLE_MAX_TOTAL: usize = 4096;
/// Streams that we put on one HTTP/2 connection even if the peer allows more: one connection is one core there.
const STREAMS_MAX: usize = 100;
/// How long an HTTP/2 connection outside any tunnel may owe every answer before new requests go onto another one. Its peer
/// may be slow, which costs one more connection, or gone, which nothing else would say: see [`super::connect::http2`].
const SILENT_MAX: Duration = Duration::from_secs(5);

/// Requests that one HTTP/2 connection carries at most: half of the stream ids that there are (RFC 9113 §5.1.1).
const LIFE_MAX: u64 = 1 << 29;
/// No server is taken to want a new connection more often than after so many requests.
const LIFE_MIN: u64 = 16;

/// What a kept connection is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    addr: SocketAddr,
    /// A connection from before its pod joined the mesh is plaintext, and must not be used after.
    enrolled: bool,
    /// Which TLS settings ([`super::backend_tls`]); 0 is none.
    tls: u32,
}

impl Key {
    /// The key for an endpoint under TLS settings.
    pub(crate) fn new(endpoint: &Endpoint, tls: u32) -> Self {
        let enrolled = endpoint.workload.as_ref().is_some_and(|w| w.enrolled);
        Self { addr: endpoint.addr, enrolled, tls }
    }
}

/// An HTTP/1.1 connection.
pub(crate) struct H1Conn<Io> {
    /// Sends requests to the connection's task.
    pub(crate) sender: http1::SendRequest<RequestBody>,
    /// Who is there.
    pub(crate) info: UpstreamInfo,
    /// Where its bytes go after an upgrade.
    pub(crate) handoff: Rc<Handoff<Io>>,
    /// Whether an exchange used it before.
    pub(crate) reused: bool,
}

/// An HTTP/2 connection.
pub(crate) struct H2Conn {
    /// Sends requests to the connection's task.
    pub(crate) sender: http2::SendRequest<RequestBody>,
    /// Who is there.
    pub(crate) info: UpstreamInfo,
    /// How many streams the peer allows now; kept up to date by the connection's task.
    pub(crate) streams_allowed: Rc<Cell<usize>>,
    streams: Cell<usize>,
    /// Streams that have been opened, but for those that the peer has not looked at.
    served: Cell<u64>,
    /// Whether the peer has said of any that it did not look at it.
    cut_short: Cell<bool>,
    life: Rc<Life>,
    used: Cell<Instant>,
    /// Since when requests have been sent without an answer to any of them. A tunnel looks for signs of life by itself:
    /// always `None` there.
    unanswered: Cell<Option<Instant>>,
}

impl H2Conn {
    /// A connection without streams.
    pub(crate) fn new(
        sender: http2::SendRequest<RequestBody>,
        info: UpstreamInfo,
        streams_allowed: Rc<Cell<usize>>,
        life: Rc<Life>,
    ) -> Rc<Self> {
        Rc::new(Self {
            sender,
            info,
            streams_allowed,
            streams: Cell::new(0),
            served: Cell::new(0),
            cut_short: Cell::new(false),
            life,
            used: Cell::new(Instant::now()),
            unanswered: Cell::default(),
        })
    }

    /// A request here has been answered, or refused: somebody is there.
    pub(crate) fn answered(&self) {
        self.unanswered.set(None);
    }

    /// A request was not looked at: the connection is at its end, or its peer too busy.
    pub(crate) fn refused(&self, unsent: bool) {
        self.served.set(self.served.get().saturating_sub(1));
        if !unsent {
            self.cut_short.set(true);
        }
    }

    /// Near its end: a server that takes so many requests on a connection would refuse the next.
    fn is_spent(&self) -> bool {
        self.served.get() >= self.life.streams()
    }

    fn is_over(&self) -> bool {
        self.is_spent() && self.streams.get() == 0
    }

    fn is_silent(&self) -> bool {
        self.unanswered.get().is_some_and(|since| since.elapsed() > SILENT_MAX)
    }

    fn has_room(&self) -> bool {
        self.streams.get() < self.streams_allowed.get().clamp(1, STREAMS_MAX) && !self.is_spent()
    }

    fn is_idle_since(&self, before: Instant) -> bool {
        self.streams.get() == 0 && self.used.get() < before
    }
}

impl Drop for H2Conn {
    fn drop(&mut self) {
        if self.cut_short.get() {
            self.life.ended_after(self.served.get());
        }
    }
}

/// How many requests a server takes on one HTTP/2 connection, learned from those that it has cut short: nginx ends each after
/// `keepalive_requests`. A server that is stopped does so too, at any number; what two connections in a row have in common
/// is a setting.
#[derive(Debug, Default)]
pub(crate) struct Life {
    last: Cell<Option<u64>>,
    settled: Cell<Option<u64>>,
}

impl Life {
    fn ended_after(&self, streams: u64) {
        let again = self.last.replace(Some(streams)) == Some(streams);
        if again && streams >= LIFE_MIN {
            self.settled.set(Some(streams));
        }
    }

    fn streams(&self) -> u64 {
        self.settled.get().unwrap_or(LIFE_MAX)
    }
}

/// The right to one stream of an HTTP/2 connection, counted until dropped.
pub(crate) struct Stream(pub(crate) Rc<H2Conn>);

impl Stream {
    fn open(conn: &Rc<H2Conn>) -> Self {
        conn.streams.set(conn.streams.get() + 1);
        conn.served.set(conn.served.get() + 1);
        if conn.info.tunnel.is_none() && conn.unanswered.get().is_none() {
            conn.unanswered.set(Some(Instant::now()));
        }
        Self(Rc::clone(conn))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
        self.0.used.set(Instant::now());
    }
}

/// The kept connections.
pub(crate) struct Pool<Io> {
    h1: RefCell<HashMap<Key, Vec<Idle<Io>>, FxBuild>>,
    h2: RefCell<HashMap<Key, Shared, FxBuild>>,
    idle: Cell<usize>,
    sweeping: Cell<bool>,
}

struct Idle<Io> {
    conn: H1Conn<Io>,
    since: Instant,
}

/// HTTP/2 connections to one endpoint.
#[derive(Default)]
struct Shared {
    conns: Vec<Rc<H2Conn>>,
    /// A connection that is being made, for all who wait for it.
    dialing: Option<Rc<Dialing>>,
    life: Rc<Life>,
}

/// A connection in the making.
#[derive(Default)]
pub(crate) struct Dialing {
    done: Cell<bool>,
    failed: RefCell<Option<(Reason, String)>>,
    waiting: Cell<usize>,
    changed: Notify,
}

/// How to get an HTTP/2 stream.
pub(crate) enum H2Turn {
    /// Here it is.
    Stream(Stream),
    /// Wait for this one, then ask again.
    Wait(Rc<Dialing>),
    /// Make a connection, then [`Pool::add_h2`].
    Dial(DialTurn),
}

/// The duty to make a connection; whoever waits for it is told when this is dropped, and asks again.
pub(crate) struct DialTurn(Rc<Dialing>);

impl DialTurn {
    /// It failed: for all who wait too, so that they do not each try one after the other.
    pub(crate) fn fail(self, error: &ProxyError) {
        *self.0.failed.borrow_mut() = Some((error.reason, error.detail.clone()));
    }
}

impl Drop for DialTurn {
    fn drop(&mut self) {
        self.0.done.set(true);
        self.0.changed.notify_waiters();
    }
}

impl Dialing {
    /// Until the connection is made, or given up.
    pub(crate) async fn done(&self) -> Result<(), ProxyError> {
        let changed = self.changed.notified();
        if !self.done.get() {
            changed.await;
        }
        match &*self.failed.borrow() {
            Some((reason, detail)) => {
                Err(ProxyError { retry: Retryable::Yes, ..respond::error(*reason, detail.clone()) })
            }
            None => Ok(()),
        }
    }
}

impl<Io: 'static> Pool<Io> {
    /// An empty pool.
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self {
            h1: RefCell::default(),
            h2: RefCell::default(),
            idle: Cell::new(0),
            sweeping: Cell::new(false),
        })
    }

    /// An HTTP/1.1 connection to the endpoint that nobody uses, and that has not been closed as far as is known.
    pub(crate) fn take_h1(&self, key: &Key, endpoint: &Endpoint) -> Option<H1Conn<Io>> {
        let mut h1 = self.h1.borrow_mut();
        let idle = h1.get_mut(key)?;
        while let Some(Idle { mut conn, .. }) = idle.pop() {
            self.idle.set(self.idle.get() - 1);
            if conn.sender.is_ready() && fits(&conn.info, endpoint) {
                conn.reused = true;
                return Some(conn);
            }
        }
        None
    }

    /// Keeps a connection whose exchange is over.
    pub(crate) fn put_h1(self: &Rc<Self>, share: &Rc<Share>, key: Key, mut conn: H1Conn<Io>) {
        if conn.sender.is_ready() {
            self.keep_h1(share, key, conn);
        } else if !conn.sender.is_closed() {
            // The answer is complete but the connection's task has not seen that yet, or the request is still being
            // sent after an early answer.
            let (pool, on) = (Rc::clone(self), Rc::clone(share));
            share.spawn(async move {
                let ready = tokio::time::timeout(Duration::from_secs(5), conn.sender.ready()).await;
                if matches!(ready, Ok(Ok(()))) {
                    pool.keep_h1(&on, key, conn);
                }
            });
        }
    }

    fn keep_h1(self: &Rc<Self>, share: &Rc<Share>, key: Key, conn: H1Conn<Io>) {
        if conn.info.is_retired() {
            // Closed here and now, so that the peer's agent need not wait for it to the end of its drain.
            return;
        }
        let mut h1 = self.h1.borrow_mut();
        let idle = h1.entry(key).or_default();
        if idle.len() < IDLE_PER_ENDPOINT_MAX && self.idle.get() < IDLE_MAX_TOTAL {
            idle.push(Idle { conn, since: Instant::now() });
            self.idle.set(self.idle.get() + 1);
            self.start_sweeping(share);
        }
    }

    /// A stream of an HTTP/2 connection to the endpoint, or whose turn it is to make one.
    pub(crate) fn h2(&self, key: &Key, endpoint: &Endpoint) -> H2Turn {
        let mut h2 = self.h2.borrow_mut();
        let shared = h2.entry(*key).or_default();
        shared.conns.retain(|c| !c.sender.is_closed() && fits(&c.info, endpoint) && !c.is_over());
        let fit = shared.conns.iter().filter(|c| c.has_room() && !c.is_silent());
        if let Some(conn) = fit.max_by_key(|c| c.streams.get()) {
            return H2Turn::Stream(Stream::open(conn));
        }
        if let Some(dialing) = shared.dialing.as_ref().filter(|d| !d.done.get())
            && dialing.waiting.get() < STREAMS_MAX
        {
            dialing.waiting.set(dialing.waiting.get() + 1);
            return H2Turn::Wait(Rc::clone(dialing));
        }
        let dialing = Rc::new(Dialing::default());
        shared.dialing = Some(Rc::clone(&dialing));
        H2Turn::Dial(DialTurn(dialing))
    }

    /// How long connections to an endpoint live.
    pub(crate) fn life(&self, key: &Key) -> Rc<Life> {
        Rc::clone(&self.h2.borrow_mut().entry(*key).or_default().life)
    }

    /// Adds a new connection and opens its first stream.
    pub(crate) fn add_h2(self: &Rc<Self>, share: &Rc<Share>, key: Key, conn: &Rc<H2Conn>) -> Stream {
        self.h2.borrow_mut().entry(key).or_default().conns.push(Rc::clone(conn));
        self.start_sweeping(share);
        Stream::open(conn)
    }

    /// Closes what nobody needs any more: at a drain, or when the source leaves.
    pub(crate) fn clear(&self) {
        self.h1.borrow_mut().clear();
        self.h2.borrow_mut().clear();
        self.idle.set(0);
    }

    /// Unused HTTP/1.1 connections.
    #[cfg(test)]
    pub(crate) fn idle(&self) -> usize {
        self.idle.get()
    }

    fn start_sweeping(self: &Rc<Self>, share: &Rc<Share>) {
        if self.sweeping.replace(true) {
            return;
        }
        let pool = Rc::downgrade(self);
        share.spawn(sweep(pool));
    }

    /// Drops what is old or closed. True while anything is left.
    fn sweep(&self, before: Instant) -> bool {
        let mut h1 = self.h1.borrow_mut();
        h1.retain(|_, idle| {
            idle.retain(|i| i.since >= before && !i.conn.sender.is_closed() && !i.conn.info.is_retired());
            !idle.is_empty()
        });
        self.idle.set(h1.values().map(Vec::len).sum());
        let mut h2 = self.h2.borrow_mut();
        h2.retain(|_, shared| {
            shared
                .conns
                .retain(|c| !c.sender.is_closed() && !c.info.is_retired() && !c.is_idle_since(before));
            !shared.conns.is_empty() || shared.dialing.as_ref().is_some_and(|d| !d.done.get())
        });
        !h1.is_empty() || !h2.is_empty()
    }
}

async fn sweep<Io: 'static>(pool: Weak<Pool<Io>>) {
    loop {
        tokio::time::sleep(IDLE_MAX / 6).await;
        let Some(pool) = pool.upgrade() else { return };
        let before = Instant::now().checked_sub(IDLE_MAX);
        if !before.is_none_or(|before| pool.sweep(before)) {
            pool.sweeping.set(false);
            return;
        }
    }
}

/// Whether a kept connection may take another request. An address may have passed to another pod since it was made,
/// and its tunnel may be about to end.
fn fits(info: &UpstreamInfo, endpoint: &Endpoint) -> bool {
    let same_identity = match (&info.identity, &endpoint.workload) {
        (Some(id), Some(workload)) => **id == workload.identity,
        (Some(_), None) => false,
        (None, _) => true,
    };
    same_identity && !info.is_retired()
}
