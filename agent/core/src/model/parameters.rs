//! `WeftGatewayConfig`: how a Gateway gets its addresses, and how it treats its clients.

use super::{Labels, Meta, Str};
use crate::message::PathRules;
use ipnet::IpNet;
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::OnceLock,
    time::Duration,
};

/// A `WeftGatewayConfig` of `weft.dev`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayConfig {
    /// Metadata.
    pub meta: Meta,
    /// Its `spec`, or what is wrong with it, field by field.
    pub settings: Result<GatewaySettings, Str>,
}

/// The fields as written: `None` where nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatewaySettings {
    /// `addressMode`.
    pub mode: Option<AddressMode>,
    /// `addressPool`: its `cidrs` and `ranges`, in the order in which addresses are given away.
    pub pool: Option<Vec<IpRange>>,
    /// `externalTrafficPolicy`.
    pub traffic_policy: Option<TrafficPolicy>,
    /// `loadBalancerClass`.
    pub load_balancer_class: Option<Str>,
    /// `sourceRanges`.
    pub source_ranges: Option<Vec<IpNet>>,
    /// `nodeSelector`.
    pub node_selector: Option<Labels>,
    /// `paths`.
    pub paths: Option<PathRules>,
    /// `streamIdleTimeout`.
    pub stream_idle: Option<Duration>,
    /// `udpSessionTimeout`.
    pub udp_session: Option<Duration>,
    /// `clients`.
    pub clients: Option<ClientRules>,
}

/// What a `config.yaml` says, or what is wrong with it.
pub type ReadSettings = Result<GatewaySettings, Str>;

/// The `config.yaml` of a ConfigMap. Anybody may write one into any namespace, so its text is read when a GatewayClass or
/// Gateway names the ConfigMap, and never before.
#[derive(Clone)]
pub struct WrittenSettings {
    /// `None` when it came already read.
    text: Option<Str>,
    read: fn(&str) -> ReadSettings,
    settings: OnceLock<ReadSettings>,
}

impl WrittenSettings {
    /// A text, and what will read it. `read` must give the same for the same text.
    #[must_use]
    pub fn text(text: Str, read: fn(&str) -> ReadSettings) -> Self {
        Self { text: Some(text), read, settings: OnceLock::new() }
    }

    /// The settings. The first call reads the text.
    pub fn settings(&self) -> &ReadSettings {
        let read = || (self.read)(self.text.as_deref().unwrap_or_default());
        self.settings.get_or_init(read)
    }

    /// Whether the text has been read.
    #[must_use]
    pub fn is_read(&self) -> bool {
        self.settings.get().is_some()
    }
}

impl From<ReadSettings> for WrittenSettings {
    fn from(settings: ReadSettings) -> Self {
        let unread = |_: &str| Err("it has no text".into());
        Self { text: None, read: unread, settings: OnceLock::from(settings) }
    }
}

impl PartialEq for WrittenSettings {
    fn eq(&self, other: &Self) -> bool {
        match (&self.text, &other.text) {
            (Some(a), Some(b)) => a == b,
            (None, None) => self.settings() == other.settings(),
            _ => false,
        }
    }
}

impl Eq for WrittenSettings {}

impl fmt::Debug for WrittenSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WrittenSettings")
            .field("text", &self.text)
            .field("settings", &self.settings.get())
            .finish()
    }
}

/// What is in effect for one Gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayParameters {
    /// Where addresses come from.
    pub mode: AddressMode,
    /// Addresses to give away; empty unless the mode is AddressPool.
    pub pool: Vec<IpRange>,
    /// Of the Service of type LoadBalancer.
    pub traffic_policy: TrafficPolicy,
    /// Of the Service of type LoadBalancer.
    pub load_balancer_class: Option<Str>,
    /// Clients that are let in, by address; empty lets everybody in.
    pub source_ranges: Vec<IpNet>,
    /// Labels that a node must have to serve.
    pub node_selector: Labels,
    /// Ways to write a path that servers read differently.
    pub paths: PathRules,
    /// How long a stream of a client may carry nothing, in either direction; `None` for ever.
    pub stream_idle: Option<Duration>,
    /// How long a UDP session that was answered may carry nothing.
    pub udp_session: Duration,
    /// Who a client is, and what of its word counts.
    pub clients: ClientRules,
}

impl Default for GatewayParameters {
    fn default() -> Self {
        Self {
            mode: AddressMode::default(),
            pool: Vec::new(),
            traffic_policy: TrafficPolicy::default(),
            load_balancer_class: None,
            source_ranges: Vec::new(),
            node_selector: Labels::default(),
            paths: PathRules::default(),
            stream_idle: Some(STREAM_IDLE),
            udp_session: UDP_SESSION,
            clients: ClientRules::default(),
        }
    }
}

/// `streamIdleTimeout` where nothing is said.
pub const STREAM_IDLE: Duration = Duration::from_secs(300);
/// `udpSessionTimeout` where nothing is said (RFC 4787 REQ-5).
pub const UDP_SESSION: Duration = Duration::from_secs(120);

/// `clients` of a `WeftGatewayConfig`: what stands between clients and a Gateway, and what is believed of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientRules {
    /// `proxyProtocol`.
    pub proxy_protocol: ProxyProtocol,
    /// `trustedProxies`: whose `Forwarded`, `X-Forwarded-*` and PROXY headers are believed.
    pub trusted: Vec<IpNet>,
    /// `traceContext: Trust`: the client's `traceparent` decides whether a request is sampled.
    pub trust_trace: bool,
}

impl ClientRules {
    /// Whether what this peer says of whom it speaks for is believed.
    #[must_use]
    pub fn trusts(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.trusted.iter().any(|net| net.contains(&peer))
    }

    /// The client of a trusted proxy's request, by the lines of its `X-Forwarded-For`: the last address in there that is no
    /// trusted proxy's. `None`: the list says nothing that could be believed.
    #[must_use]
    pub fn client_of<'a>(&self, lines: impl DoubleEndedIterator<Item = &'a str>) -> Option<IpAddr> {
        let mut nearest_first = lines.rev().flat_map(|line| line.rsplit(',')).map(str::trim);
        let untrusted = |text: &'a str| match text.parse::<IpAddr>() {
            Ok(ip) if self.trusts(ip) => None,
            // What is no address is the word of nobody whom we trust, and hides all that is before it.
            parsed => Some(parsed.ok()),
        };
        nearest_first.find_map(untrusted).flatten()
    }
}

/// Whether connections begin with a header of the PROXY protocol (versions 1 and 2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// They do not.
    #[default]
    Off,
    /// Those of trusted proxies must; others are ended.
    Required,
}

impl ProxyProtocol {
    /// As written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "Off",
            Self::Required => "Required",
        }
    }

    /// From what is written.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Off, Self::Required].into_iter().find(|m| m.as_str() == text)
    }
}

impl GatewayParameters {
    /// The class's settings overlaid by the Gateway's, field by field; or what they lack together.
    pub fn new(class: Option<&GatewaySettings>, gateway: Option<&GatewaySettings>) -> Result<Self, String> {
        fn pick<T: Clone>(
            layers: [Option<&GatewaySettings>; 2],
            field: impl Fn(&GatewaySettings) -> &Option<T>,
        ) -> Option<T> {
            layers.into_iter().flatten().find_map(|s| field(s).clone())
        }
        let layers = [gateway, class];
        let mode = pick(layers, |s| &s.mode).unwrap_or_default();
        let pool = pick(layers, |s| &s.pool).unwrap_or_default();
        if mode == AddressMode::AddressPool && pool.is_empty() {
            return Err("addressMode is AddressPool, but no addressPool is given".to_owned());
        }
        let clients = pick(layers, |s| &s.clients).unwrap_or_default();
        if clients.proxy_protocol == ProxyProtocol::Required && clients.trusted.is_empty() {
            return Err(
                "clients.proxyProtocol is Required, but no clients.trustedProxies are given".to_owned()
            );
        }
        Ok(Self {
            mode,
            pool,
            traffic_policy: pick(layers, |s| &s.traffic_policy).unwrap_or_default(),
            load_balancer_class: pick(layers, |s| &s.load_balancer_class),
            source_ranges: pick(layers, |s| &s.source_ranges).unwrap_or_default(),
            node_selector: pick(layers, |s| &s.node_selector).unwrap_or_default(),
            paths: pick(layers, |s| &s.paths).unwrap_or_default(),
            stream_idle: Some(pick(layers, |s| &s.stream_idle).unwrap_or(STREAM_IDLE))
                .filter(|d| !d.is_zero()),
            udp_session: pick(layers, |s| &s.udp_session).unwrap_or(UDP_SESSION),
            clients,
        })
    }
}

/// `addressMode`: where a Gateway's addresses come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AddressMode {
    /// A cloud, MetalLB or kube-vip gives the Service its address.
    #[default]
    LoadBalancer,
    /// The controller gives one from a pool; one node holds it.
    AddressPool,
    /// The nodes' own addresses, on the listeners' very ports.
    HostPort,
}

impl AddressMode {
    /// As written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LoadBalancer => "LoadBalancer",
            Self::AddressPool => "AddressPool",
            Self::HostPort => "HostPort",
        }
    }

    /// From what is written.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::LoadBalancer, Self::AddressPool, Self::HostPort].into_iter().find(|m| m.as_str() == text)
    }
}

/// `externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TrafficPolicy {
    /// Only nodes that serve get traffic, and see the client's address.
    #[default]
    Local,
    /// Any node takes it and passes it on.
    Cluster,
}

/// Addresses from the first to the last, both included, of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IpRange {
    first: IpAddr,
    last: IpAddr,
}

impl IpRange {
    /// `None` for two families, or a last before the first.
    #[must_use]
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        (first.is_ipv4() == last.is_ipv4() && first <= last).then_some(Self { first, last })
    }

    /// The hosts of a network: without its IPv4 network and broadcast addresses.
    #[must_use]
    pub fn of(net: IpNet) -> Self {
        let (first, last) = (net.network(), net.broadcast());
        match (first, last) {
            (IpAddr::V4(a), IpAddr::V4(b)) if net.prefix_len() < 31 => {
                let (a, b) = (u32::from(a) + 1, u32::from(b) - 1);
                Self { first: Ipv4Addr::from(a).into(), last: Ipv4Addr::from(b).into() }
            }
            _ => Self { first, last },
        }
    }

    /// The first address.
    #[must_use]
    pub const fn first(&self) -> IpAddr {
        self.first
    }

    /// The last address.
    #[must_use]
    pub const fn last(&self) -> IpAddr {
        self.last
    }

    /// Whether the address is one of them.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        // `IpAddr` sorts every IPv4 address before every IPv6 address, so the family needs no look.
        (self.first..=self.last).contains(&ip)
    }
}

/// The address after this one; `None` after the family's last.
#[must_use]
pub fn next_address(ip: IpAddr) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).checked_add(1).map(|n| Ipv4Addr::from(n).into()),
        IpAddr::V6(ip) => u128::from(ip).checked_add(1).map(|n| Ipv6Addr::from(n).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_networks() {
        for (net, first, last) in [
            ("10.0.0.0/24", "10.0.0.1", "10.0.0.254"),
            ("10.0.0.4/31", "10.0.0.4", "10.0.0.5"),
            ("10.0.0.7/32", "10.0.0.7", "10.0.0.7"),
            ("fd00::/126", "fd00::", "fd00::3"),
        ] {
            let range = IpRange::of(net.parse().expect("a network"));
            assert_eq!(
                (range.first().to_string(), range.last().to_string()),
                (first.into(), last.into()),
                "{net}"
            );
            assert!(range.contains(range.first()) && range.contains(range.last()), "{net}");
            assert!(!range.contains("::".parse().expect("an address")), "{net}");
        }
    }

    #[test]
    fn the_client_is_the_last_address_that_is_no_proxys() {
        let trusted = ["192.0.2.0/24", "fd00::/8"].map(|net| net.parse().expect("a network")).to_vec();
        let rules = ClientRules { trusted, ..ClientRules::default() };
        for (lines, wanted) in [
            (&["198.51.100.1"][..], Some("198.51.100.1")),
            (&["10.9.9.9, 198.51.100.1, 192.0.2.7"], Some("198.51.100.1")),
            (&["10.9.9.9", "198.51.100.1, fd00::1"], Some("198.51.100.1")),
            (&["198.51.100.1, unknown, 192.0.2.7"], None),
            (&["192.0.2.7"], None),
            (&[""], None),
        ] {
            let found = rules.client_of(lines.iter().copied()).map(|ip| ip.to_string());
            assert_eq!(found.as_deref(), wanted, "{lines:?}");
        }
    }

    #[test]
    fn a_gateway_overlays_its_class() {
        let class = GatewaySettings {
            mode: Some(AddressMode::HostPort),
            traffic_policy: Some(TrafficPolicy::Cluster),
            ..GatewaySettings::default()
        };
        let gateway = GatewaySettings { mode: Some(AddressMode::LoadBalancer), ..GatewaySettings::default() };
        let both = GatewayParameters::new(Some(&class), Some(&gateway)).expect("complete");
        assert_eq!((both.mode, both.traffic_policy), (AddressMode::LoadBalancer, TrafficPolicy::Cluster));
        let no_pool = GatewaySettings { mode: Some(AddressMode::AddressPool), ..GatewaySettings::default() };
        assert!(GatewayParameters::new(Some(&class), Some(&no_pool)).is_err());
        assert_eq!(GatewayParameters::new(None, None), Ok(GatewayParameters::default()));
    }
}
