//! Plain counters of one worker: an array of atomics that only that worker writes, summed on scrape.

use super::record::Direction;
use crate::share::timing::Timing;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// What is counted without labels that vary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Counter {
    ConnectionsOpenedGateway,
    ConnectionsOpenedMesh,
    ConnectionsOpenedInbound,
    ConnectionsClosedGateway,
    ConnectionsClosedMesh,
    ConnectionsClosedInbound,
    RequestsStartedGateway,
    RequestsStartedMesh,
    RequestsStartedInbound,
    RequestsEndedGateway,
    RequestsEndedMesh,
    RequestsEndedInbound,
    /// TLS of a Gateway's listener.
    HandshakeListenerOk,
    HandshakeListenerFailed,
    /// TLS of a tunnel that we opened.
    HandshakeTunnelClientOk,
    HandshakeTunnelClientFailed,
    /// TLS of a tunnel that we accepted.
    HandshakeTunnelServerOk,
    HandshakeTunnelServerFailed,
    /// TLS to a backend (BackendTLSPolicy).
    HandshakeBackendOk,
    HandshakeBackendFailed,
    TunnelsOpenedClient,
    TunnelsOpenedServer,
    TunnelsClosedClient,
    TunnelsClosedServer,
    /// A CONNECT stream on a kept tunnel.
    PoolHitTunnel,
    PoolMissTunnel,
    /// A request on a kept upstream HTTP connection.
    PoolHitHttp,
    PoolMissHttp,
    /// Plaintext refused by a strict pod.
    DeniedPlaintext,
    /// A tunnel or CONNECT refused: identity, destination, policy.
    DeniedTunnel,
    SniffHttp1,
    SniffHttp2,
    SniffTls,
    /// Bytes of no known protocol.
    SniffOpaque,
    /// The client said nothing in time: taken for server-first.
    SniffSilent,
    Retries,
    Mirrors,
    /// A mirror copy that was not sent: limit, failure.
    MirrorsDropped,
    /// An endpoint was ejected, or ejected again after its probing request.
    Ejections,
    /// A node was suspected because its tunnels went silent.
    Suspicions,
    /// A connection or handshake refused by a share's limit.
    LimitRefused,
}

/// How a counter is shown: family without `_total`, labels.
pub(super) struct Shown {
    pub(super) counter: Counter,
    pub(super) family: &'static str,
    pub(super) labels: &'static [(&'static str, &'static str)],
}

const fn shown(
    counter: Counter,
    family: &'static str,
    labels: &'static [(&'static str, &'static str)],
) -> Shown {
    Shown { counter, family, labels }
}

const OPENED: &str = "weft_connections_opened";
const CLOSED: &str = "weft_connections_closed";
const STARTED: &str = "weft_requests_started";
const HANDSHAKES: &str = "weft_tls_handshakes";
const POOL: &str = "weft_pool_lookups";
const DENIED: &str = "weft_denied";
const SNIFFED: &str = "weft_protocol_detections";

/// Every counter in the order of its discriminant; equal families stand together.
pub(super) const SHOWN: [Shown; COUNT] = {
    use Counter as C;
    [
        shown(C::ConnectionsOpenedGateway, OPENED, &[("direction", "gateway")]),
        shown(C::ConnectionsOpenedMesh, OPENED, &[("direction", "mesh")]),
        shown(C::ConnectionsOpenedInbound, OPENED, &[("direction", "inbound")]),
        shown(C::ConnectionsClosedGateway, CLOSED, &[("direction", "gateway")]),
        shown(C::ConnectionsClosedMesh, CLOSED, &[("direction", "mesh")]),
        shown(C::ConnectionsClosedInbound, CLOSED, &[("direction", "inbound")]),
        shown(C::RequestsStartedGateway, STARTED, &[("direction", "gateway")]),
        shown(C::RequestsStartedMesh, STARTED, &[("direction", "mesh")]),
        shown(C::RequestsStartedInbound, STARTED, &[("direction", "inbound")]),
        shown(C::RequestsEndedGateway, "weft_requests_ended", &[("direction", "gateway")]),
        shown(C::RequestsEndedMesh, "weft_requests_ended", &[("direction", "mesh")]),
        shown(C::RequestsEndedInbound, "weft_requests_ended", &[("direction", "inbound")]),
        shown(C::HandshakeListenerOk, HANDSHAKES, &[("side", "listener"), ("result", "ok")]),
        shown(C::HandshakeListenerFailed, HANDSHAKES, &[("side", "listener"), ("result", "failed")]),
        shown(C::HandshakeTunnelClientOk, HANDSHAKES, &[("side", "tunnel_client"), ("result", "ok")]),
        shown(C::HandshakeTunnelClientFailed, HANDSHAKES, &[("side", "tunnel_client"), ("result", "failed")]),
        shown(C::HandshakeTunnelServerOk, HANDSHAKES, &[("side", "tunnel_server"), ("result", "ok")]),
        shown(C::HandshakeTunnelServerFailed, HANDSHAKES, &[("side", "tunnel_server"), ("result", "failed")]),
        shown(C::HandshakeBackendOk, HANDSHAKES, &[("side", "backend"), ("result", "ok")]),
        shown(C::HandshakeBackendFailed, HANDSHAKES, &[("side", "backend"), ("result", "failed")]),
        shown(C::TunnelsOpenedClient, "weft_tunnels_opened", &[("side", "client")]),
        shown(C::TunnelsOpenedServer, "weft_tunnels_opened", &[("side", "server")]),
        shown(C::TunnelsClosedClient, "weft_tunnels_closed", &[("side", "client")]),
        shown(C::TunnelsClosedServer, "weft_tunnels_closed", &[("side", "server")]),
        shown(C::PoolHitTunnel, POOL, &[("pool", "tunnel"), ("result", "hit")]),
        shown(C::PoolMissTunnel, POOL, &[("pool", "tunnel"), ("result", "miss")]),
        shown(C::PoolHitHttp, POOL, &[("pool", "http"), ("result", "hit")]),
        shown(C::PoolMissHttp, POOL, &[("pool", "http"), ("result", "miss")]),
        shown(C::DeniedPlaintext, DENIED, &[("what", "plaintext")]),
        shown(C::DeniedTunnel, DENIED, &[("what", "tunnel")]),
        shown(C::SniffHttp1, SNIFFED, &[("protocol", "http1")]),
        shown(C::SniffHttp2, SNIFFED, &[("protocol", "http2")]),
        shown(C::SniffTls, SNIFFED, &[("protocol", "tls")]),
        shown(C::SniffOpaque, SNIFFED, &[("protocol", "opaque")]),
        shown(C::SniffSilent, SNIFFED, &[("protocol", "silent")]),
        shown(C::Retries, "weft_retries", &[]),
        shown(C::Mirrors, "weft_mirrors", &[]),
        shown(C::MirrorsDropped, "weft_mirrors_dropped", &[]),
        shown(C::Ejections, "weft_ejections", &[]),
        shown(C::Suspicions, "weft_node_suspicions", &[]),
        shown(C::LimitRefused, "weft_limit_refused", &[]),
    ]
};

/// How many counters there are.
pub(super) const COUNT: usize = Counter::LimitRefused as usize + 1;

/// A gauge made of two counters: name, help, opened, closed, label.
pub(super) type Gauge = (&'static str, &'static str, Counter, Counter, (&'static str, &'static str));

/// Every gauge; equal names stand together.
pub(super) const GAUGES: [Gauge; 8] = {
    use Counter as C;
    let connections = ("weft_connections_active", "Open downstream connections.");
    let requests = ("weft_requests_active", "Requests under way.");
    let tunnels = ("weft_tunnels_active", "Open HBONE tunnels.");
    let (gateway, mesh, inbound) =
        (("direction", "gateway"), ("direction", "mesh"), ("direction", "inbound"));
    [
        (connections.0, connections.1, C::ConnectionsOpenedGateway, C::ConnectionsClosedGateway, gateway),
        (connections.0, connections.1, C::ConnectionsOpenedMesh, C::ConnectionsClosedMesh, mesh),
        (connections.0, connections.1, C::ConnectionsOpenedInbound, C::ConnectionsClosedInbound, inbound),
        (requests.0, requests.1, C::RequestsStartedGateway, C::RequestsEndedGateway, gateway),
        (requests.0, requests.1, C::RequestsStartedMesh, C::RequestsEndedMesh, mesh),
        (requests.0, requests.1, C::RequestsStartedInbound, C::RequestsEndedInbound, inbound),
        (tunnels.0, tunnels.1, C::TunnelsOpenedClient, C::TunnelsClosedClient, ("side", "client")),
        (tunnels.0, tunnels.1, C::TunnelsOpenedServer, C::TunnelsClosedServer, ("side", "server")),
    ]
};

/// One line of `HELP` for each family.
pub(super) fn help(family: &str) -> &'static str {
    match family {
        OPENED => "Downstream connections accepted.",
        CLOSED => "Downstream connections ended.",
        STARTED => "Requests whose head arrived.",
        "weft_requests_ended" => "Requests that are over, answered or not.",
        HANDSHAKES => "TLS handshakes.",
        "weft_tunnels_opened" => "HBONE tunnels set up.",
        "weft_tunnels_closed" => "HBONE tunnels ended.",
        POOL => "Lookups of a kept tunnel or upstream connection.",
        DENIED => "Connections refused for plaintext to a strict pod, identity or policy.",
        SNIFFED => "Protocols found by looking at the first bytes.",
        "weft_retries" => "Tries after the first.",
        "weft_mirrors" => "Mirrored requests.",
        "weft_mirrors_dropped" => "Mirror copies that were not sent.",
        "weft_ejections" => "Endpoints ejected for failures, on each worker.",
        "weft_node_suspicions" => "Nodes that went silent, on each worker that found out.",
        _ => "Connections and handshakes refused by a share's limit.",
    }
}

/// The counters of one worker.
#[derive(Debug)]
pub(super) struct Counters {
    cells: [AtomicU64; COUNT],
    /// How long its shares wait for their turns.
    pub(super) timing: Arc<Timing>,
}

impl Default for Counters {
    fn default() -> Self {
        Self { cells: [const { AtomicU64::new(0) }; COUNT], timing: Arc::default() }
    }
}

impl Counters {
    /// Adds. Only the owning worker may call this: a load and a store, no locked instruction.
    pub(super) fn add(&self, counter: Counter, n: u64) {
        add(&self.cells[counter as usize], n);
    }

    /// The value, from any thread.
    pub(super) fn get(&self, counter: Counter) -> u64 {
        self.cells[counter as usize].load(Relaxed)
    }
}

/// Adds to a cell that only this thread writes.
pub(super) fn add(cell: &AtomicU64, n: u64) {
    cell.store(cell.load(Relaxed).wrapping_add(n), Relaxed);
}

/// The counters of a direction's start and end.
pub(super) const fn connections(direction: Direction) -> (Counter, Counter) {
    match direction {
        Direction::Gateway => (Counter::ConnectionsOpenedGateway, Counter::ConnectionsClosedGateway),
        Direction::Mesh => (Counter::ConnectionsOpenedMesh, Counter::ConnectionsClosedMesh),
        Direction::Inbound => (Counter::ConnectionsOpenedInbound, Counter::ConnectionsClosedInbound),
    }
}

/// See [`connections`].
pub(super) const fn requests(direction: Direction) -> (Counter, Counter) {
    match direction {
        Direction::Gateway => (Counter::RequestsStartedGateway, Counter::RequestsEndedGateway),
        Direction::Mesh => (Counter::RequestsStartedMesh, Counter::RequestsEndedMesh),
        Direction::Inbound => (Counter::RequestsStartedInbound, Counter::RequestsEndedInbound),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_is_shown_at_its_place() {
        for (index, shown) in SHOWN.iter().enumerate() {
            assert_eq!(shown.counter as usize, index, "{:?}", shown.counter);
        }
    }

    #[test]
    fn equal_families_stand_together_and_differ_in_labels() {
        let mut seen: Vec<&str> = Vec::new();
        for pair in SHOWN.windows(2) {
            if pair[0].family == pair[1].family {
                assert_ne!(pair[0].labels, pair[1].labels);
            } else {
                assert!(!seen.contains(&pair[1].family));
                seen.push(pair[0].family);
            }
        }
    }
}
