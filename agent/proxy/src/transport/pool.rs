//! Which tunnel a new stream takes: kept per (endpoint, identity) for each workload on each worker.
//!
//! Not shared between workloads of one identity, because the server's pod sees the client pod's address. The key names the
//! port too where tunnels go to the application's own port: see [`super::way`].

use super::{
    connect,
    metered::Metered,
    tls,
    tunnel::{OpenError, State, StreamGuard, Tunnel, broken, refused},
    way::{Way, either, way},
};
use crate::{
    error::{Blame, ProxyError, Reason, Retryable},
    nodes::Node,
    telemetry::{Counter, TunnelSide},
    transport::stream::TunnelStream,
    worker::Worker,
    workload::LocalWorkload,
};
use http::HeaderMap;
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::{Duration, Instant},
};
use tokio::{net::TcpStream, sync::Notify};
use weft_core::model::{SpiffeId, Workload};

/// Streams of one tunnel.
pub const STREAMS_MAX: usize = 100;
/// Tunnels of one key that are opened to spread load (h2 keeps one lock a connection and writes one frame at a time).
pub const TUNNELS_SPREAD: usize = 4;
/// Tunnels of one key in all: more than [`TUNNELS_SPREAD`] only when each of those is full.
pub const TUNNELS_MAX: usize = 64;
/// Tunnels without streams to other ports of one pod, beside one that is opened.
const PORTS_IDLE_MAX: usize = 32;
/// Tunnels that may die under a stream that is being opened before we give up.
const ATTEMPTS: usize = 3;
/// How much longer than a TCP connect the answer to a CONNECT may take.
const ANSWER_SLACK: Duration = Duration::from_secs(1);

/// A workload's tunnels on one worker.
#[derive(Debug, Default)]
pub struct Tunnels {
    entries: RefCell<HashMap<TunnelKey, Rc<Entry>>>,
}

/// What may share a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TunnelKey {
    /// The endpoint's address.
    pub ip: IpAddr,
    /// Who must answer there.
    pub identity: SpiffeId,
    /// To which port.
    pub way: Way,
}

#[derive(Debug, Default)]
struct Entry {
    tunnels: RefCell<Vec<Rc<Tunnel>>>,
    /// A handshake is under way.
    opening: Cell<bool>,
    /// How the last one ended, if it failed.
    failure: RefCell<Option<ProxyError>>,
    /// A handshake ended, or a stream or tunnel did.
    changed: Notify,
}

/// A stream wanted by somebody.
#[derive(Clone, Copy, Debug)]
pub struct Want<'a> {
    /// On whose behalf.
    pub local: &'a Rc<LocalWorkload>,
    /// The pod behind the endpoint.
    pub workload: &'a Workload,
    /// Where to.
    pub to: SocketAddr,
    /// May carry much: gets a tunnel of its own when there is one to have.
    pub bulk: bool,
    /// `traceparent`, `baggage`, `forwarded`.
    pub headers: &'a HeaderMap,
}

/// What [`pick`] sees of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Open streams.
    pub streams: usize,
    /// Of these, bulk ones.
    pub bulk: usize,
}

/// What a new stream does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// Goes onto this tunnel.
    Use(usize),
    /// Opens a tunnel.
    Open,
    /// Waits for the handshake that is under way.
    Wait,
    /// There are too many.
    Full,
}

/// Decides. Small streams avoid tunnels with a bulk stream, bulk streams want an empty one, and what is there is
/// used rather than waited for.
#[must_use]
pub fn pick(tunnels: &[View], bulk: bool, opening: bool) -> Pick {
    let free = || tunnels.iter().enumerate().filter(|(_, t)| t.streams < STREAMS_MAX);
    // A bulk stream counts for more than any number of small ones; a bulk stream avoids those too.
    let best = free().min_by_key(|(_, t)| (t.bulk, t.streams));
    let good = |t: &View| if bulk { t.streams == 0 } else { t.bulk == 0 };
    match best {
        Some((index, view)) if good(view) || tunnels.len() >= TUNNELS_SPREAD || opening => Pick::Use(index),
        None if opening => Pick::Wait,
        None if tunnels.len() >= TUNNELS_MAX => Pick::Full,
        _ => Pick::Open,
    }
}

impl Tunnels {
    /// Opens a stream to `want.to` on a kept or a new tunnel. The caller sets the deadline.
    ///
    /// # Errors
    /// Why there is no tunnel, or why the peer's agent refused the stream.
    pub async fn stream(
        &self,
        worker: &Rc<Worker>,
        want: Want<'_>,
    ) -> Result<(TunnelStream, Rc<Tunnel>), ProxyError> {
        let patience = Duration::from_millis(worker.shared.limits.connect_timeout_ms) + ANSWER_SLACK;
        let mut last = String::new();
        for _ in 0..ATTEMPTS {
            let (guard, tunnel) = self.reserve(worker, want).await?;
            match tokio::time::timeout(patience, guard.open(want.to, want.headers)).await {
                Ok(Ok(stream)) => return Ok((stream, tunnel)),
                Ok(Err(OpenError::Silent)) => last = "the tunnel is silent".to_owned(),
                Ok(Err(OpenError::Refused(status))) => return Err(refused(status, want.to)),
                // No byte of the application was sent: always safe on another tunnel.
                Ok(Err(OpenError::Gone(error))) => last = error.to_string(),
                Err(_) => {
                    // The peer's agent gives up on its application before that, and says so: this tunnel is dead,
                    // long before its PING tells.
                    tunnel.retire();
                    last = format!("no answer to CONNECT within {patience:?}");
                }
            }
        }
        Err(ProxyError {
            reason: Reason::UpstreamReset,
            blame: Blame::Upstream,
            retry: Retryable::Yes,
            detail: format!("tunnels to {} end before use: {last}", want.to),
        })
    }

    async fn reserve(
        &self,
        worker: &Rc<Worker>,
        want: Want<'_>,
    ) -> Result<(StreamGuard, Rc<Tunnel>), ProxyError> {
        let key = self.key(worker, want);
        let mut failed = None;
        let mut waited = false;
        loop {
            let entry = self.entries.borrow_mut().entry(key.clone()).or_default().clone();
            entry.tunnels.borrow_mut().retain(|t| t.state() == State::Open);
            // Those that are silent are kept for what they carry, and for when they answer again.
            let answering: Vec<_> =
                entry.tunnels.borrow().iter().filter(|t| !t.is_suspect()).cloned().collect();
            let views: Vec<View> =
                answering.iter().map(|t| View { streams: t.streams(), bulk: t.bulk() }).collect();
            if let Some(error) = failed.as_ref().filter(|_| views.is_empty()) {
                return Err(ProxyError::clone(error));
            }
            // After one failure to open another, what is there must do.
            let crowded = entry.opening.get() || failed.is_some();
            match pick(&views, want.bulk, crowded) {
                Pick::Use(index) => {
                    worker.telemetry.count(if waited {
                        Counter::PoolMissTunnel
                    } else {
                        Counter::PoolHitTunnel
                    });
                    let tunnel = answering[index].clone();
                    return Ok((tunnel.reserve(want.bulk), tunnel));
                }
                Pick::Full => return Err(full(want.to)),
                Pick::Open => {
                    self.make_room(&key);
                    entry.opening.set(true);
                    entry.failure.take();
                    let node = want.workload.node.as_ref().map(|node| worker.loads.node(node));
                    let opener = open(worker.clone(), want.local.clone(), key.clone(), entry.clone(), node);
                    // A task of its own: the one who asked first may give up, the others still wait.
                    want.local.share.spawn(opener);
                }
                Pick::Wait => {}
            }
            waited = true;
            entry.changed.notified().await;
            failed = entry.failure.borrow().clone();
        }
    }

    fn key(&self, worker: &Worker, want: Want<'_>) -> TunnelKey {
        let way = match way(&worker.shared.config.load(), &want.local.source, want.workload, want.to) {
            Way::Application(_) if worker.detours.has(want.to, Instant::now()) => Way::Hbone,
            way => way,
        };
        TunnelKey { ip: want.to.ip(), identity: want.workload.identity.clone(), way }
    }

    /// Somebody who calls every port of a pod must not keep a tunnel for each.
    fn make_room(&self, key: &TunnelKey) {
        if key.way == Way::Hbone {
            return;
        }
        let entries = self.entries.borrow();
        let beside = entries.iter().filter(|(other, _)| other.ip == key.ip && other.way != key.way);
        let tunnels = beside.flat_map(|(_, entry)| entry.tunnels.borrow().clone());
        let idle: Vec<Rc<Tunnel>> = tunnels.filter(|tunnel| tunnel.streams() == 0).collect();
        if idle.len() >= PORTS_IDLE_MAX {
            idle.iter().for_each(|tunnel| tunnel.retire());
        }
    }

    /// Retires all: none takes another stream.
    pub fn retire(&self) {
        for entry in self.entries.take().into_values() {
            entry.tunnels.borrow().iter().for_each(|t| t.retire());
        }
    }

    /// Open tunnels.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.borrow().values().map(|e| e.tunnels.borrow().len()).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Drops what has ended; an entry without tunnels goes too.
    fn prune(&self, key: &TunnelKey) {
        let mut entries = self.entries.borrow_mut();
        if let Some(entry) = entries.get(key) {
            entry.tunnels.borrow_mut().retain(|t| t.state() == State::Open);
            entry.changed.notify_waiters();
            if entry.tunnels.borrow().is_empty() && !entry.opening.get() {
                entries.remove(key);
            }
        }
    }
}

/// A tunnel takes no new streams from this long before one of its certificates ends: the other end refuses them then.
const BEFORE_END: Duration = Duration::from_secs(5);

/// Opens a tunnel for `entry` and drives it until it ends.
async fn open(
    worker: Rc<Worker>,
    local: Rc<LocalWorkload>,
    key: TunnelKey,
    entry: Rc<Entry>,
    node: Option<Rc<Node>>,
) {
    /// Tells the waiters even when the task is dropped half way.
    struct Opening<'a>(&'a Entry);
    impl Drop for Opening<'_> {
        fn drop(&mut self) {
            self.0.opening.set(false);
            self.0.changed.notify_waiters();
        }
    }
    let opening = Opening(&entry);
    let limits = &worker.shared.limits;
    let deadline = Duration::from_millis(limits.connect_timeout_ms + limits.handshake_timeout_ms);
    let establishing = tokio::time::timeout(deadline, establish(&worker, &local, &key, node));
    match establishing.await.unwrap_or_else(|_| Err(slow(&key, deadline))) {
        Ok((tunnel, driver)) => {
            worker.telemetry.count(Counter::HandshakeTunnelClientOk);
            let _open = worker.telemetry.tunnel_opened(TunnelSide::Client);
            entry.tunnels.borrow_mut().push(tunnel.clone());
            drop(opening);
            let share = &local.share;
            // One that a request of the drain's linger asked for: retired at once, it would be opened again and again.
            let late = share.drain().is_draining();
            tokio::pin!(driver);
            tokio::select! {
                () = &mut driver => {}
                () = share.drain().draining(), if !late => {
                    tunnel.retire();
                    local.tunnels.prune(&key);
                    driver.await;
                }
            }
        }
        Err(error) => {
            worker.telemetry.count(Counter::HandshakeTunnelClientFailed);
            if key.way == Way::Hbone {
                worker.detours.forget(key.ip);
            }
            *entry.failure.borrow_mut() = Some(error);
            drop(opening);
        }
    }
    local.tunnels.prune(&key);
}

async fn establish(
    worker: &Rc<Worker>,
    local: &Rc<LocalWorkload>,
    key: &TunnelKey,
    node: Option<Rc<Node>>,
) -> Result<(Rc<Tunnel>, impl Future<Output = ()> + 'static), ProxyError> {
    let to = |way: Way| match way {
        Way::Application(port) => SocketAddr::new(key.ip, port),
        Way::Hbone => SocketAddr::new(key.ip, worker.shared.hbone_port),
    };
    let (share, source) = (&local.share, &local.source);
    let from = source.bind_ip(key.ip.is_ipv6());
    let tcp = |way| connect::tcp_unless_reset(&*source.sockets, from, to(way), &worker.shared.limits);
    let shake = async |way: Way, tcp: Option<TcpStream>| {
        let tcp = tcp.ok_or_else(|| broken(to(way), &io::Error::from(io::ErrorKind::ConnectionReset)))?;
        let permit = share.handshake().await;
        let expected = tls::Expected { identity: &key.identity, ip: key.ip, alpn: way.alpn() };
        permit.during(tls::connect(worker, source, expected, tcp)).await
    };
    // Before the turn: endpoints that do not answer at all must not keep the pod from the others. Where the application's
    // port is refused or a NetworkPolicy drops it, 15008 is not tried: that would be a way around the policy.
    let first = tcp(key.way).await?;
    let ((tls, bond), came) = match key.way {
        Way::Hbone => (shake(Way::Hbone, first).await?, Way::Hbone),
        Way::Application(_) => {
            let again = async || shake(key.way, tcp(key.way).await?).await;
            let detour = async || shake(Way::Hbone, tcp(Way::Hbone).await?).await;
            let (tls, detoured) = either(shake(key.way, first), again, detour).await?;
            (tls, if detoured { Way::Hbone } else { key.way })
        }
    };
    if came != key.way {
        worker.detours.note(to(key.way), Instant::now());
        tracing::debug!(to = %to(key.way), "its agent takes tunnels on 15008 only");
    }
    let identity = Rc::new(key.identity.clone());
    let over = async move { bond.ended(BEFORE_END).await };
    Tunnel::establish(Metered(tls), identity, node, over).await.map_err(|error| broken(to(came), &error))
}

fn slow(key: &TunnelKey, deadline: Duration) -> ProxyError {
    ProxyError {
        reason: Reason::ConnectTimeout,
        blame: Blame::Upstream,
        retry: Retryable::Yes,
        detail: format!("no tunnel to {} within {deadline:?}", key.ip),
    }
}

fn full(to: SocketAddr) -> ProxyError {
    ProxyError {
        reason: Reason::Limit,
        blame: Blame::Agent,
        retry: Retryable::Yes,
        detail: format!("{TUNNELS_MAX} tunnels with {STREAMS_MAX} streams each to {to} are all in use"),
    }
}

#[cfg(test)]
mod tests;
