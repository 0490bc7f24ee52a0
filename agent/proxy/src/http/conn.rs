//! One downstream connection, as its requests see it.

use super::{
    HttpPool, HttpWorker,
    body::Upload,
    exchange::Exchange,
    filters::{X_FORWARDED_FOR, X_FORWARDED_PORT, X_FORWARDED_PROTO},
    io::MaybeTls,
    streams,
};
use crate::{
    context::{Peer, Source},
    dial::Dial,
    share::Share,
    telemetry::Direction,
    workload::LocalWorkload,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;
use weft_core::{
    budget,
    model::{GatewayParameters, ObjectKey, Str},
    timing::Resets,
};

/// How a connection came in: what finds its route table.
#[derive(Clone, Debug)]
pub enum Entrance {
    /// Captured from a pod on its way to a Service.
    Mesh {
        /// ClusterIP and port.
        frontend: SocketAddr,
    },
    /// Accepted by a Gateway.
    Gateway(GatewayEntrance),
}

/// A connection to a Gateway's HTTP or HTTPS port.
#[derive(Clone, Debug)]
pub struct GatewayEntrance {
    /// The Gateway.
    pub gateway: ObjectKey,
    /// The listener's port.
    pub port: u16,
    /// What TLS said; `None` on an HTTP port.
    pub tls: Option<DownstreamTls>,
}

/// What is known of a client's TLS connection.
#[derive(Clone, Debug)]
pub struct DownstreamTls {
    /// Server name, lower case.
    pub sni: Option<Str>,
}

/// A downstream connection that speaks HTTP.
pub struct HttpConn<D: Dial> {
    /// The worker's HTTP state.
    pub http: Rc<HttpWorker<D>>,
    /// On whose behalf requests go out, and who pays.
    pub local: Rc<LocalWorkload<D::Io>>,
    /// The client.
    pub peer: Peer,
    /// How it came in.
    pub entrance: Entrance,
}

/// Where an upgraded exchange goes on.
pub(crate) struct Upgraded<D: Dial> {
    /// Gives the upstream's bytes when HTTP is over there.
    pub(crate) upstream: oneshot::Receiver<(MaybeTls<D::Io>, Bytes)>,
    /// Is finished when both sides have ended.
    pub(crate) exchange: Box<Exchange<D>>,
}

/// [`HttpConn`] with what is worked out once.
pub(crate) struct Conn<D: Dial> {
    pub(crate) http: Rc<HttpWorker<D>>,
    pub(crate) share: Rc<Share>,
    pub(crate) source: Rc<Source>,
    pub(crate) local: Rc<LocalWorkload<D::Io>>,
    pub(crate) peer: SocketAddr,
    pub(crate) entrance: Entrance,
    pub(crate) pool: Rc<HttpPool<D::Io>>,
    /// What the Gateway believes of its clients; `None` in the mesh.
    pub(crate) edge: Option<Arc<GatewayParameters>>,
    /// The client is a proxy whose `X-Forwarded-*` are believed.
    pub(crate) trusted: bool,
    /// `X-Forwarded-For` of this client; only at Gateways.
    pub(crate) forwarded_for: Option<HeaderValue>,
    /// Being drained, or the client's framing is lost: an HTTP/1.1 answer tells the client that it is the last.
    pub(crate) closing: Cell<bool>,
    /// Exchanges under way.
    pub(crate) active: Cell<u32>,
    /// The body of the last request, which HTTP/1.1 reads until it is complete.
    pub(crate) upload: RefCell<Option<Rc<Upload>>>,
    /// Exchanges begun.
    pub(crate) begun: Cell<u64>,
    /// Reads from the client, as far as they are counted.
    pub(crate) reads: Rc<Cell<u64>>,
    /// Writes to the client under HTTP/1.1.
    pub(crate) writes: Rc<Cell<u64>>,
    /// An HTTP/1.1 client has ended its side while an answer is due.
    pub(crate) half_closed: Cell<bool>,
    /// [`Self::reads`] when the last exchange ended: more than that is the beginning of another head.
    pub(crate) reads_done: Cell<u64>,
    /// The streams of a Gateway's HTTP/2 client.
    pub(crate) streams: streams::All,
    /// How the streams of an HTTP/2 client have ended.
    pub(crate) resets: Cell<Resets>,
    /// Most of them were reset at once: the connection must end.
    pub(crate) flooded: Cell<bool>,
    /// Set by an exchange whose answer was 101, for the connection's task.
    pub(crate) upgraded: RefCell<Option<Upgraded<D>>>,
}

impl<D: Dial> Conn<D> {
    pub(crate) fn new(conn: HttpConn<D>) -> Rc<Self> {
        let forwarded_for = match conn.entrance {
            Entrance::Gateway(_) => HeaderValue::try_from(conn.peer.ip.to_canonical().to_string()).ok(),
            Entrance::Mesh { .. } => None,
        };
        let edge = match &conn.entrance {
            Entrance::Gateway(entrance) => {
                let config = conn.http.shared.config.load();
                Some(
                    config
                        .gateways
                        .get(&entrance.gateway)
                        .map_or_else(Arc::default, |g| g.parameters.clone()),
                )
            }
            Entrance::Mesh { .. } => None,
        };
        Rc::new(Self {
            trusted: edge.as_ref().is_some_and(|edge| edge.clients.trusts(conn.peer.ip)),
            edge,
            pool: conn.local.pool.clone(),
            http: conn.http,
            share: conn.local.share.clone(),
            source: conn.local.source.clone(),
            local: conn.local,
            peer: SocketAddr::new(conn.peer.ip, conn.peer.port),
            entrance: conn.entrance,
            forwarded_for,
            closing: Cell::new(false),
            active: Cell::new(0),
            upload: RefCell::default(),
            begun: Cell::new(0),
            reads: Rc::default(),
            writes: Rc::default(),
            half_closed: Cell::new(false),
            reads_done: Cell::new(0),
            streams: streams::All::default(),
            resets: Cell::default(),
            flooded: Cell::new(false),
            upgraded: RefCell::default(),
        })
    }

    /// A stream of an HTTP/2 client has ended.
    pub(crate) fn stream_ended(&self, lived: Duration, reset: bool) {
        let mut resets = self.resets.get();
        let flood = resets.ended(lived, reset);
        self.resets.set(resets);
        if flood && !self.flooded.replace(true) {
            let by = self.share.key().into();
            self.http.shared.budgets.reached(&budget::STREAM_RESETS, by, Instant::now());
        }
    }

    pub(crate) const fn direction_of(conn: &HttpConn<D>) -> Direction {
        direction(&conn.entrance)
    }

    pub(crate) const fn direction(&self) -> Direction {
        direction(&self.entrance)
    }

    /// Whether the client came over TLS that we ended.
    pub(crate) const fn is_https(&self) -> bool {
        matches!(&self.entrance, Entrance::Gateway(GatewayEntrance { tls: Some(_), .. }))
    }

    /// Whether the client's client came over TLS, by what can be believed of it.
    pub(crate) fn forwarded_https(&self, headers: &HeaderMap) -> bool {
        let said = || headers.get(X_FORWARDED_PROTO).map(HeaderValue::as_bytes);
        match self.trusted.then(said).flatten() {
            Some(proto) => proto.eq_ignore_ascii_case(b"https"),
            None => self.is_https(),
        }
    }

    /// Whether a request is recorded is decided here, whatever its client says of its trace.
    pub(crate) fn decides_traces(&self) -> bool {
        self.edge.as_ref().is_some_and(|edge| !edge.clients.trust_trace)
    }

    /// Who asks: the client itself, or whom it names if it is a trusted proxy.
    pub(crate) fn client(&self, headers: &HeaderMap) -> SocketAddr {
        let Some(edge) = self.edge.as_ref().filter(|_| self.trusted) else { return self.peer };
        let lines: Vec<&str> =
            headers.get_all(X_FORWARDED_FOR).iter().map(|line| line.to_str().unwrap_or_default()).collect();
        // A port is not said there.
        edge.clients.client_of(lines.into_iter()).map_or(self.peer, |ip| SocketAddr::new(ip, 0))
    }

    /// Port for redirects: the listener's, or the Service's; behind a trusted proxy, which has a port of its own, what that says.
    pub(crate) fn port(&self, headers: &HeaderMap) -> u16 {
        if self.trusted && headers.contains_key(X_FORWARDED_PROTO) {
            let said = headers.get(X_FORWARDED_PORT).and_then(|port| port.to_str().ok()?.parse().ok());
            return said.unwrap_or(if self.forwarded_https(headers) { 443 } else { 80 });
        }
        match &self.entrance {
            Entrance::Mesh { frontend } => frontend.port(),
            Entrance::Gateway(gateway) => gateway.port,
        }
    }
}

const fn direction(entrance: &Entrance) -> Direction {
    match entrance {
        Entrance::Mesh { .. } => Direction::Mesh,
        Entrance::Gateway(_) => Direction::Gateway,
    }
}
