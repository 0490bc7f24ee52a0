//! What the data plane reads: compiled, immutable, shared. Made only by `crate::compile`.
//!
//! A request takes one `Arc<Config>` and holds no lock on it. Gateway and mesh differ only in the key that finds
//! a table: (gateway, port, host) or (ClusterIP, port, client namespace). An edit clones one shard and the tables
//! it touches; everything else is shared with the Config before.

use crate::{
    balance::Weighted,
    expiry::ListenerCertificate,
    matching::{HostMap, RouteTable},
    model::{
        CaBundle, Cors, GatewayParameters, HeaderModifier, Hostname, KeyPair, ObjectKey, Redirect, Retry,
        RouteKind, SessionPersistence, SpiffeId, Str, SubjectAltName, Timeouts, TlsSettings, UrlRewrite,
        Workload,
    },
    shards::Shards,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

/// The whole of what an agent serves.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Counts up by one with every change; the applied watermark.
    pub version: u64,
    /// Gateways of our classes, by `namespace/name`.
    pub gateways: Arc<BTreeMap<ObjectKey, Arc<GatewayConfig>>>,
    /// Frontends of the mesh by (ClusterIP or external address, port). A pod's IP never counts here: traffic sent
    /// straight to a pod is only protected, never routed.
    pub frontends: Shards<SocketAddr, Arc<Frontend>>,
    /// Pods of the whole cluster by IP.
    pub workloads: Shards<IpAddr, Arc<Workload>>,
    /// Endpoints by backend. Apart from the tables, so that a pod that comes or goes recompiles no route.
    pub endpoints: Shards<BackendKey, Arc<EndpointSet>>,
    /// Networks that pods have their addresses from. An address of theirs that is not among [`Self::workloads`] is a pod
    /// that is not known yet, not a stranger outside the cluster.
    pub pod_cidrs: Arc<[ipnet::IpNet]>,
    /// Nodes' own addresses within [`Self::pod_cidrs`], where pods share the nodes' network.
    pub nodes_among_pods: Arc<BTreeSet<IpAddr>>,
    /// Addresses that several pods claim, none of which has proved it.
    pub disputed: Shards<IpAddr, ()>,
    /// Addresses of nodes: Gateways call from there.
    pub nodes: Shards<IpAddr, ()>,
    /// The node whose clients this is for.
    pub node: Option<Str>,
}

impl Config {
    /// Whether an address must be a pod's, known or not: from the pods' networks, or in dispute. The first address of each
    /// network is the node's own on it, where the network plugin makes a bridge.
    #[must_use]
    pub fn is_pods(&self, ip: IpAddr) -> bool {
        let holds = |cidr: &ipnet::IpNet| cidr.contains(&ip) && cidr.hosts().next() != Some(ip);
        self.disputed.get(&ip).is_some()
            || (self.pod_cidrs.iter().any(holds) && !self.nodes_among_pods.contains(&ip))
    }

    /// Why nobody can be sent to this backend: it has no endpoint that could be used from here.
    #[must_use]
    pub fn no_endpoint(&self, backend: &BackendKey) -> String {
        let BackendKey { service, port, reach, .. } = backend;
        match (reach.local, &self.node) {
            (false, _) => format!("{service} port {port} has no ready endpoint"),
            (true, node) => {
                let node = node.as_deref().unwrap_or("(unknown)");
                format!(
                    "{service} port {port} has internalTrafficPolicy: Local and no ready endpoint on node {node}"
                )
            }
        }
    }
}

/// One Gateway.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// `namespace/name`.
    pub key: ObjectKey,
    /// The identity that it shows to enrolled pods: `/ns/<namespace>/sa/<name>-weft`.
    pub identity: SpiffeId,
    /// What to bind: addresses × ports.
    pub addresses: Vec<IpAddr>,
    /// Settings of its class and its own (`parametersRef`).
    pub parameters: Arc<GatewayParameters>,
    /// From a listener's port to the port that is bound in its stead; the same when absent.
    pub targets: BTreeMap<(u16, Transport), u16>,
    /// Ports with at least one programmed listener.
    pub ports: BTreeMap<(u16, Transport), PortConfig>,
    /// Client certificate shown to backends over TLS (`spec.tls.backend.clientCertificateRef`).
    pub backend_client_certificate: Option<Arc<KeyPair>>,
}

/// TCP or UDP: two port spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Transport {
    Tcp,
    Udp,
}

/// All listeners of a Gateway that share one port.
#[derive(Clone, Debug)]
pub enum PortConfig {
    /// HTTP listeners by host; a request belongs to the most specific listener only (listener isolation).
    Http(HostMap<Arc<HttpListener>>),
    /// HTTPS and TLS listeners by SNI.
    Tls(HostMap<Arc<TlsListener>>),
    /// One TCP listener; none when no route is attached.
    Tcp(Option<Arc<L4Rule>>),
    /// One UDP listener; none when no route is attached.
    Udp(Option<Arc<L4Rule>>),
}

/// An HTTP listener, or the HTTP side of an HTTPS listener.
#[derive(Clone, Debug)]
pub struct HttpListener {
    /// Listener name (with the ListenerSet's key in front if it comes from one), for telemetry.
    pub name: Str,
    /// Its hostname.
    pub hostname: Option<Hostname>,
    /// Rules of every attached HTTPRoute and GRPCRoute.
    pub table: Arc<RouteTable<Arc<HttpRule>>>,
}

/// A listener on a port where TLS is spoken.
#[derive(Clone, Debug)]
pub enum TlsListener {
    /// `protocol: HTTPS`.
    Https {
        /// Certificates and client validation.
        tls: Arc<TlsTermination>,
        /// Routing after the handshake.
        http: Arc<HttpListener>,
    },
    /// `protocol: TLS, mode: Terminate`: bytes after the handshake go to the TLSRoute or TCPRoute of the SNI.
    Terminate {
        /// Certificates and client validation.
        tls: Arc<TlsTermination>,
        /// Routes by SNI.
        routes: HostMap<Arc<L4Rule>>,
    },
    /// `protocol: TLS, mode: Passthrough`.
    Passthrough {
        /// Routes by SNI.
        routes: HostMap<Arc<L4Rule>>,
    },
}

/// How a listener terminates TLS. Equal values are the same `Arc`, so that the TLS library's config is built once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsTermination {
    /// Certificates; the one whose names cover the SNI is shown, else the first.
    pub certificates: Vec<ListenerCertificate>,
    /// Client certificates, if asked for (GEP-91).
    pub client_ca: Option<ClientValidation>,
    /// ALPN protocols: `h2`, `http/1.1` for HTTPS; none for TLS.
    pub alpn: Vec<Str>,
    /// `options`.
    pub settings: TlsSettings,
}

/// Client certificate validation on a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientValidation {
    /// Trusted CAs.
    pub roots: CaBundle,
    /// `AllowInsecureFallback`: ask, but let everybody in.
    pub optional: bool,
}

/// One mesh frontend: a Service port at one of the Service's addresses.
#[derive(Clone, Debug)]
pub struct Frontend {
    /// The Service.
    pub service: ObjectKey,
    /// The Service's port.
    pub port: u16,
    /// The address is one of `externalIPs` or a load balancer's; `None`: it is a ClusterIP.
    pub external: Option<External>,
    /// What is declared to be spoken here.
    pub protocol: AppProtocol,
    /// Routes in the Service's namespace: for every client without routes of its own.
    pub producer: Option<MeshRoutes>,
    /// Routes in a client's namespace (GAMMA consumer routes): they replace the producer's, never merge with them.
    pub consumers: BTreeMap<Str, MeshRoutes>,
    /// Where traffic goes without any route.
    pub default: Arc<Backend>,
}

/// A Service's address that clients outside the cluster use too. It is the Service's own word that the address is its:
/// where a pod is known to have it, the pod counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct External {
    /// Clients that may use it (`loadBalancerSourceRanges`); empty: all.
    pub source_ranges: Vec<ipnet::IpNet>,
}

impl External {
    /// Whether a client with one of these addresses may use it.
    #[must_use]
    pub fn admits(&self, client: &[IpAddr]) -> bool {
        self.source_ranges.is_empty()
            || client.iter().any(|ip| self.source_ranges.iter().any(|range| range.contains(ip)))
    }
}

impl Frontend {
    /// The routes that a client of `namespace` sees.
    #[must_use]
    pub fn routes_for(&self, namespace: &str) -> Option<&MeshRoutes> {
        self.consumers.get(namespace).or(self.producer.as_ref())
    }
}

/// Routes of one kind: on a Service port GRPCRoute > HTTPRoute > TLSRoute > TCPRoute (GEP-1294).
#[derive(Clone, Debug)]
pub enum MeshRoutes {
    /// HTTPRoutes or GRPCRoutes. Present but none matches: 404.
    Http(Arc<RouteTable<Arc<HttpRule>>>),
    /// TLSRoutes by SNI.
    Tls(HostMap<Arc<L4Rule>>),
    /// The oldest TCPRoute.
    Tcp(Arc<L4Rule>),
}

/// What a port declares with `appProtocol` (or the attached routes imply).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AppProtocol {
    /// `http`: HTTP/1.1 or h2c as the client speaks it.
    Http,
    /// `kubernetes.io/h2c`, `http2`, `h2c`: HTTP/2 with prior knowledge.
    H2c,
    /// `grpc`, `grpc-web`: HTTP/2 too.
    Grpc,
    /// `kubernetes.io/ws` and `wss`: HTTP/1.1 with upgrades.
    WebSocket,
    /// `https`, `tls`: opaque bytes.
    Tls,
    /// `tcp`, and names of server-first or other opaque protocols (`mysql`, `postgresql`, `redis`, `smtp`, …).
    Opaque,
    /// Not declared: sniffed, with the upstream connected at once.
    #[default]
    Unknown,
}

/// Names one rule of one route, for telemetry and status.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RuleId {
    /// Kind of route.
    pub kind: RouteKind,
    /// `namespace/name`.
    pub route: ObjectKey,
    /// Index in `spec.rules`.
    pub index: u16,
    /// `name` of the rule.
    pub name: Option<Str>,
}

/// A compiled HTTP or gRPC rule.
#[derive(Clone, Debug)]
pub struct HttpRule {
    /// Which rule.
    pub id: RuleId,
    /// `http.route` for telemetry: low-cardinality text of the match that leads here, e.g. `/cart/*`.
    pub label: Str,
    /// Filters of the rule, in order of effect.
    pub filters: FilterChain,
    /// What happens with a matching request.
    pub action: Action,
    /// Timeouts.
    pub timeouts: Timeouts,
    /// Retries.
    pub retry: Option<Arc<Retry>>,
    /// Session persistence.
    pub session: Option<Arc<SessionPersistence>>,
}

/// What happens with a matching request after its filters.
#[derive(Clone, Debug)]
pub enum Action {
    /// Answered by a redirect filter.
    Redirect(Box<Redirect>),
    /// Forward to one of the backends. The sum of weights is not zero.
    Forward(Weighted<HttpBackend>),
    /// Cannot be served: no backend, all weights zero, an unresolved filter… Answers 500 (gRPC: UNAVAILABLE).
    Fail(FailReason),
}

/// Why a rule or a backend's share cannot be served. The text is a stable, low-cardinality label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailReason {
    /// The rule has no backendRefs (or all have weight 0) and no redirect.
    NoBackend,
    /// A backendRef names a Service that does not exist.
    BackendNotFound,
    /// A backendRef names a port that the Service does not have, or none.
    BackendPortNotFound,
    /// A backendRef leads into another namespace, and no ReferenceGrant there permits it.
    BackendNotPermitted,
    /// TLS to the backend is asked for by a policy or certificate that cannot be used: never in clear then.
    BackendTls,
    /// A backendRef cannot be resolved otherwise: an unknown kind, a protocol that the route cannot speak.
    InvalidBackend,
    /// A filter that is not there or not supported: fails closed.
    InvalidFilter,
    /// A field whose value cannot be served, such as a bad regular expression.
    InvalidRule,
}

impl FailReason {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::NoBackend,
        Self::BackendNotFound,
        Self::BackendPortNotFound,
        Self::BackendNotPermitted,
        Self::BackendTls,
        Self::InvalidBackend,
        Self::InvalidFilter,
        Self::InvalidRule,
    ];

    /// The label in logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoBackend => "no_backend",
            Self::BackendNotFound => "backend_not_found",
            Self::BackendPortNotFound => "backend_port_not_found",
            Self::BackendNotPermitted => "backend_not_permitted",
            Self::BackendTls => "backend_tls",
            Self::InvalidBackend => "invalid_backend",
            Self::InvalidFilter => "invalid_filter",
            Self::InvalidRule => "invalid_rule",
        }
    }
}

/// Filters of a rule or backend, sorted by when they act.
#[derive(Clone, Debug, Default)]
pub struct FilterChain {
    /// CORS, first: a preflight is answered without a backend.
    pub cors: Option<Arc<Cors>>,
    /// `RequestHeaderModifier`.
    pub request_headers: Option<Arc<HeaderModifier>>,
    /// `URLRewrite`.
    pub rewrite: Option<Arc<UrlRewrite>>,
    /// `RequestMirror`, any number.
    pub mirrors: Vec<Arc<MirrorTarget>>,
    /// `ResponseHeaderModifier`.
    pub response_headers: Option<Arc<HeaderModifier>>,
}

/// Where a mirror sends copies.
#[derive(Clone, Debug)]
pub struct MirrorTarget {
    /// Backend; a mirror that cannot be resolved is left out (its route says `ResolvedRefs=False`).
    pub backend: Arc<Backend>,
    /// Mirrored share is `numerator / denominator`.
    pub numerator: u32,
    /// See `numerator`; not 0.
    pub denominator: u32,
}

/// One weighted backend of an HTTP rule.
#[derive(Clone, Debug)]
pub struct HttpBackend {
    /// Where to, or why not (answers 500 for exactly this share).
    pub target: Result<Arc<Backend>, FailReason>,
    /// Filters of this backendRef (no CORS, no redirect), after those of the rule.
    pub filters: FilterChain,
}

/// A TCPRoute, TLSRoute or UDPRoute rule.
#[derive(Clone, Debug)]
pub struct L4Rule {
    /// Which rule.
    pub id: RuleId,
    /// Backends by weight; `None` when nothing can take the connection (it is then refused).
    pub backends: Option<Weighted<Result<Arc<Backend>, FailReason>>>,
}

/// A Service port as something to send to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Key into [`Config::endpoints`].
    pub key: BackendKey,
    /// What it speaks.
    pub protocol: AppProtocol,
    /// TLS from the gateway or client's agent to the backend (BackendTLSPolicy).
    pub tls: Option<Arc<BackendTls>>,
    /// `sessionAffinity: ClientIP` of the Service: how long a client that is silent keeps its endpoint.
    pub client_ip_affinity: Option<Duration>,
}

/// A Service, one of its ports, and which of the endpoints there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendKey {
    /// The Service.
    pub service: ObjectKey,
    /// The Service's port (not the endpoint's).
    pub port: u16,
    /// TCP or UDP: a Service may have the same number twice (DNS).
    pub transport: Transport,
    /// Which endpoints.
    pub reach: Reach,
}

/// Which endpoints of a Service port are meant: those of which node, of which address family. The default is all nodes'
/// (as far as hints and conditions let them be used), of the Service's first family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reach {
    /// Those of the client's node only: `internalTrafficPolicy: Local`.
    pub local: bool,
    /// Those of the family that is not the Service's first: what the second ClusterIP of a dual-stack Service leads to.
    pub second_family: bool,
}

/// TLS to a backend.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BackendTls {
    /// SNI, and the name to verify unless SANs are given.
    pub hostname: Hostname,
    /// Trusted roots; `None` means the system's. An invalid policy compiles to a backend that fails.
    pub roots: Option<CaBundle>,
    /// Accepted names instead of the hostname.
    pub subject_alt_names: Vec<SubjectAltName>,
    /// `options`.
    pub settings: TlsSettings,
}

/// Endpoints of one Service port that clients of this node use, in a stable order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSet {
    /// Ready ones, fewer where hints say so (or, when there is none, those still serving while they terminate).
    pub ready: Vec<Endpoint>,
}

/// One address to send to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Address and port.
    pub addr: SocketAddr,
    /// The pod behind it, if it is one of the cluster: says whether HBONE is spoken and who must answer.
    pub workload: Option<Arc<Workload>>,
    /// `zone` of the endpoint.
    pub zone: Option<Str>,
}
