//! What every connection can reach: process-wide, per worker, and per source of traffic.

use crate::{
    budgets::Budgets,
    inbound::probe::redirects::Redirects,
    kubelet::{Kubelet, NoKubelet},
    plaintext::PlaintextCallers,
    share::{descriptors::Descriptors, memory::Memory},
    sticky::StickyClients,
    telemetry::Telemetry,
};
use arc_swap::ArcSwap;
use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{BorrowedFd, OwnedFd},
    sync::Arc,
};
use weft_core::{
    budget::TRAFFIC_MEMORY,
    config::Config,
    model::{ObjectKey, Workload},
};

/// Process-wide state, shared by all workers.
#[derive(Debug)]
pub struct Shared {
    /// What is served now. A request loads it once.
    pub config: ArcSwap<Config>,
    /// Limits.
    pub limits: Limits,
    /// Where the peers' agents listen for HBONE; 15008 but in tests, where two agents share an address.
    pub hbone_port: u16,
    /// Metrics, traces, access log of the process.
    pub telemetry: Arc<Telemetry>,
    /// Who speaks to permissive pods in clear.
    pub plaintext: PlaintextCallers,
    /// What the connections of all workloads hold together.
    pub memory: Arc<Memory>,
    /// The file descriptors that Gateways may have.
    pub descriptors: Arc<Descriptors>,
    /// Which workloads have reached which of their budgets.
    pub budgets: Budgets,
    /// Knows the kubelet of this node, whose probes strict pods let in.
    pub kubelet: Arc<dyn Kubelet>,
    /// Where applications have sent its probes on to.
    pub(crate) redirects: Redirects,
    /// Endpoints of clients whose Service asks for affinity.
    pub(crate) sticky: Arc<StickyClients>,
}

/// The port of HBONE: inbound mutual TLS, on the pod's own address.
pub const HBONE_PORT: u16 = 15008;
/// The port of captured outbound connections.
pub const OUTBOUND_PORT: u16 = 15001;
/// The port of captured inbound plaintext connections.
pub const INBOUND_PORT: u16 = 15006;

impl Shared {
    /// State that serves an empty Config, on a node without a kubelet.
    #[must_use]
    pub fn new(limits: Limits, telemetry: Arc<Telemetry>) -> Self {
        Self {
            config: ArcSwap::default(),
            limits,
            hbone_port: HBONE_PORT,
            telemetry,
            plaintext: PlaintextCallers::default(),
            budgets: Budgets::default(),
            memory: Arc::new(Memory::new(limits.traffic_bytes)),
            descriptors: Arc::new(Descriptors::of_process()),
            kubelet: Arc::new(NoKubelet),
            redirects: Redirects::default(),
            sticky: Arc::default(),
        }
    }
}

/// Bounds that keep one tenant from starving another. Counted per share and worker unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open downstream connections: those that a workload makes and those that are made to it are counted apart.
    pub connections_max: usize,
    /// TLS handshakes under way.
    pub handshakes_max: usize,
    /// Bytes that copied connections have read and not yet written; beyond it they read in small pieces.
    pub buffered_max: usize,
    /// Bytes of one request's or response's head.
    pub head_bytes_max: usize,
    /// Headers in one head.
    pub headers_max: usize,
    /// HTTP/2 streams of one connection.
    pub streams_max: u32,
    /// Bytes that the connections of all workloads may hold together, over all workers.
    pub traffic_bytes: u64,
    /// Time for a client to send a request head, for a handshake, for a tunnel's set-up, in milliseconds.
    pub handshake_timeout_ms: u64,
    /// Time for a TCP connect to an endpoint, in milliseconds.
    pub connect_timeout_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 16_384,
            handshakes_max: 32,
            buffered_max: 64 * 1024 * 1024,
            head_bytes_max: 64 * 1024,
            headers_max: 128,
            streams_max: 256,
            traffic_bytes: TRAFFIC_MEMORY.bound,
            handshake_timeout_ms: 10_000,
            connect_timeout_ms: 5_000,
        }
    }
}

/// Makes client sockets in the right network namespace: a pod's, or the host's for a Gateway. Implemented by the
/// binary over `weft-inpod`, and by tests.
pub trait Sockets: Send + Sync + std::fmt::Debug {
    /// A non-blocking TCP socket of the family with TCP_NODELAY, marked as the agent's own, allowed to bind to a foreign
    /// address.
    ///
    /// # Errors
    /// When the kernel gives no socket (limits), or the pod's namespace is gone.
    fn tcp(&self, ipv6: bool) -> io::Result<OwnedFd>;

    /// Where a captured connection was going.
    ///
    /// # Errors
    /// When that cannot be known: the connection was made to the listener itself.
    fn original_dst(&self, socket: BorrowedFd<'_>) -> io::Result<SocketAddr>;
}

/// On whose behalf connections are opened and work is charged: a pod of this node, or a Gateway.
#[derive(Clone, Debug)]
pub struct Source {
    /// Which share pays.
    pub share: ShareKey,
    /// Who it is. For a Gateway a workload is made up: its key, its identity, enrolled.
    pub workload: Arc<Workload>,
    /// Keys and TLS configs. `None` only in tests and for a run without mesh: enrolled endpoints cannot be reached then.
    pub identity: Option<weft_certs::IdentityHandle>,
    /// Its sockets.
    pub sockets: Arc<dyn Sockets>,
}

impl Source {
    /// The address that its connections come from: the pod's own of that family. `None` for a Gateway, whose
    /// connections leave from wherever the kernel says.
    #[must_use]
    pub fn bind_ip(&self, ipv6: bool) -> Option<IpAddr> {
        match self.share {
            ShareKey::Pod(_) => self.workload.ips.iter().copied().find(|ip| ip.is_ipv6() == ipv6),
            ShareKey::Gateway(_) => None,
        }
    }
}

/// Names a share.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ShareKey {
    /// A pod's traffic.
    Pod(ObjectKey),
    /// A Gateway's traffic.
    Gateway(ObjectKey),
}

/// The other end of a downstream connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Address as seen (a client of a Gateway, a captured pod).
    pub ip: IpAddr,
    /// Port.
    pub port: u16,
}
