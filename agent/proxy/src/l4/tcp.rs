//! Opaque connections to a backend or an endpoint: pick, connect (elsewhere if that fails), copy, record.

use super::{
    copy::{self, Copied, End},
    pipe::Pipe,
};
use crate::{
    dial::{Dialer, Upstream, UpstreamIo, impatiently},
    error::{Blame, ProxyError, Reason, Retryable},
    loads::Choice,
    telemetry::{ConnectionRecord, Direction},
    worker::Worker,
    workload::LocalWorkload,
};
use bytes::Bytes;
use http::HeaderMap;
use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Instant};
use weft_core::{
    balance::Fault,
    config::{Backend, Endpoint, L4Rule},
    model::{ObjectKey, SpiffeId, Workload},
    timing::retry::UNREACHED_TRIES,
};

/// Where an opaque connection goes.
#[derive(Clone, Debug)]
pub enum L4Target {
    /// A TCPRoute's or TLSRoute's rule: one of its backends by weight.
    Rule(Arc<L4Rule>),
    /// A Service port without routes.
    Backend(Arc<Backend>),
    /// A pod's own address, or one outside the mesh.
    Endpoint(Box<Endpoint>),
}

/// A downstream connection that is copied, not understood.
pub struct L4Conn<D> {
    /// The worker.
    pub worker: Rc<Worker>,
    /// On whose behalf the upstream is called, and who pays.
    pub local: Rc<LocalWorkload>,
    /// The client's bytes.
    pub downstream: D,
    /// What is said of it at its end.
    pub ended: Ended,
}

/// Serves an opaque connection until it ends. `early` was read from the client before. A client that cannot be
/// served sees a reset.
pub async fn serve<D: Pipe>(mut conn: L4Conn<D>, target: L4Target, early: Bytes) {
    // Boxed: the state of connecting is not held while bytes are copied.
    let connecting = Box::pin(connect(&conn.worker, &conn.local, target, &mut conn.ended));
    match connecting.await {
        Ok(upstream) => relay(conn, upstream, early).await,
        Err(error) => refuse(conn, &error),
    }
}

/// Copies between a client and an upstream that stands, and records the end.
pub async fn relay<D: Pipe>(mut conn: L4Conn<D>, upstream: Upstream<UpstreamIo>, early: Bytes) {
    conn.ended.endpoint = Some(upstream.info.addr);
    conn.ended.destination_identity = upstream.info.identity;
    let copied = copy::bidirectional(conn.downstream, upstream.io, early, conn.local.share.copying()).await;
    conn.ended.copied(&copied);
    conn.ended.record(&conn.worker);
}

/// Resets the client: it must not believe that anybody is there.
pub fn refuse<D: Pipe>(mut conn: L4Conn<D>, error: &ProxyError) {
    conn.downstream.abort();
    conn.ended.fail(error);
    conn.ended.record(&conn.worker);
}

/// Connects to where `target` leads; on another endpoint if one cannot be reached.
///
/// # Errors
/// Why nobody can be reached, of the last try.
pub async fn connect(
    worker: &Rc<Worker>,
    local: &Rc<LocalWorkload>,
    target: L4Target,
    ended: &mut Ended,
) -> Result<Upstream<UpstreamIo>, ProxyError> {
    let dialer = Dialer::new(worker.clone());
    let backend = match target {
        L4Target::Endpoint(endpoint) => {
            ended.note(&endpoint);
            return dialer.dial_with(local, &endpoint, true, &HeaderMap::new()).await;
        }
        L4Target::Backend(backend) => backend,
        L4Target::Rule(rule) => {
            ended.rule = Some(rule.clone());
            backend_of(&rule, worker.draw())?
        }
    };
    ended.backend = Some(backend.clone());
    let bulk = ended.protocol != SNIFFED;
    let config = worker.shared.config.load_full();
    let endpoints = config.endpoints.get(&backend.key).filter(|e| !e.ready.is_empty());
    let nobody = || ProxyError::no_endpoint(&config, &backend.key);
    let endpoints = endpoints.ok_or_else(nobody)?;
    let mut tried = Vec::new();
    loop {
        let choice = Choice {
            backend: &backend,
            set: endpoints,
            share: &local.source.share,
            client: ended.peer.ip(),
            tried: tried.as_slice(),
        };
        let chosen = worker.loads.choose(&choice, Instant::now(), worker.draw());
        let (index, in_flight) = chosen.ok_or_else(nobody)?;
        let endpoint = &endpoints.ready[index];
        ended.note(endpoint);
        // Nothing has been sent yet, so each try is safe.
        let may_retry = tried.len() + 1 < endpoints.ready.len().min(UNREACHED_TRIES as usize);
        let has_other = || may_retry && worker.loads.has_other(&choice, endpoint.addr, Instant::now());
        let headers = HeaderMap::new();
        let dialing = dialer.dial_with(local, endpoint, bulk, &headers);
        match impatiently(endpoint.addr, dialing, has_other).await {
            Ok(upstream) => {
                in_flight.connected(Instant::now());
                return Ok(upstream);
            }
            Err(error) => {
                in_flight.blamed(&error, Fault::Unreached, Instant::now());
                if error.retry != Retryable::Yes || !may_retry {
                    return Err(error);
                }
                tracing::debug!(%error, "another endpoint is tried");
                tried.push(endpoint.addr);
            }
        }
    }
}

/// What is recorded as the protocol before the first bytes have told.
pub(crate) const SNIFFED: &str = "unknown";

/// The rule's backend for one connection, by weight.
pub(crate) fn backend_of(rule: &L4Rule, draw: u64) -> Result<Arc<Backend>, ProxyError> {
    let invalid = |reason, detail: &str| ProxyError {
        reason,
        blame: Blame::Config,
        retry: Retryable::No,
        detail: format!("{} {}: {detail}", rule.id.kind.kind(), rule.id.route),
    };
    match rule.backends.as_ref().map(|backends| backends.pick(draw)) {
        None => Err(invalid(Reason::NoEndpoint, "no backend takes connections")),
        Some(Err(why)) => Err(invalid(Reason::Invalid(*why), "the backend that was picked cannot be served")),
        Some(Ok(backend)) => Ok(backend.clone()),
    }
}

/// What is said of a connection at its end.
#[derive(Debug)]
pub struct Ended {
    /// Where it was taken up.
    pub direction: Direction,
    /// `tcp`, `tls`, `hbone`; of a probe `http`, `https`, `grpc`.
    pub protocol: &'static str,
    /// The client.
    pub peer: SocketAddr,
    /// When it was accepted.
    pub begin: Instant,
    /// The Service or Gateway.
    pub parent: Option<ObjectKey>,
    /// The pod that connected.
    pub source: Option<Arc<Workload>>,
    /// Who connected, verified.
    pub source_identity: Option<Rc<SpiffeId>>,
    /// The rule.
    pub rule: Option<Arc<L4Rule>>,
    /// The backend.
    pub backend: Option<Arc<Backend>>,
    /// Where it went.
    pub endpoint: Option<SocketAddr>,
    /// The pod there.
    pub destination: Option<Arc<Workload>>,
    /// Who is there, verified.
    pub destination_identity: Option<Rc<SpiffeId>>,
    /// Why we ended or refused it.
    pub reason: Option<Reason>,
    /// The same for people, where the reason alone leaves them to guess: what was denied, why a probe failed.
    pub detail: Option<String>,
    /// Bytes from the client.
    pub received: u64,
    /// Bytes to the client.
    pub sent: u64,
}

impl Ended {
    /// Of a connection that was accepted at `begin`.
    #[must_use]
    pub const fn new(direction: Direction, protocol: &'static str, peer: SocketAddr, begin: Instant) -> Self {
        Self {
            direction,
            protocol,
            peer,
            begin,
            parent: None,
            source: None,
            source_identity: None,
            rule: None,
            backend: None,
            endpoint: None,
            destination: None,
            destination_identity: None,
            reason: None,
            detail: None,
            received: 0,
            sent: 0,
        }
    }

    /// It goes to this endpoint.
    pub fn note(&mut self, endpoint: &Endpoint) {
        self.endpoint = Some(endpoint.addr);
        self.destination = endpoint.workload.clone();
    }

    /// It could not be served.
    pub fn fail(&mut self, error: &ProxyError) {
        tracing::debug!(peer = %self.peer, direction = self.direction.as_str(), %error, "a connection was refused");
        self.reason = Some(error.reason);
        self.detail = (error.reason == Reason::Denied).then(|| error.detail.clone());
    }

    /// It was copied.
    pub fn copied(&mut self, copied: &Copied) {
        self.received = copied.received;
        self.sent = copied.sent;
        self.reason = match &copied.end {
            End::Clean => None,
            End::Downstream(_) => Some(Reason::ClientGone),
            End::Upstream(_) => Some(Reason::UpstreamReset),
            End::Quiet | End::Expired => Some(Reason::Draining),
            End::Revoked => Some(Reason::Denied),
        };
    }

    /// Counts and logs it. Once.
    pub fn record(&self, worker: &Worker) {
        worker.telemetry.connection(&ConnectionRecord {
            parent: self.parent.as_ref(),
            source: self.source.as_ref(),
            source_identity: self.source_identity.as_deref(),
            rule: self.rule.as_ref().map(|r| &r.id),
            backend: self.backend.as_ref().map(|b| &b.key),
            endpoint: self.endpoint,
            destination: self.destination.as_ref(),
            destination_identity: self.destination_identity.as_deref(),
            reason: self.reason,
            detail: self.detail.as_deref(),
            received_bytes: self.received,
            sent_bytes: self.sent,
            duration: self.begin.elapsed(),
            ..ConnectionRecord::new(self.direction, self.protocol, self.peer)
        });
    }
}
