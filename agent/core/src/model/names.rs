//! Names and references.

use std::{cmp::Ordering, fmt, sync::Arc};

/// A shared, immutable string: names are copied into many tables.
pub type Str = Arc<str>;

/// The kinds that Weft reads, in the order in which status is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Kind {
    GatewayClass,
    Gateway,
    ListenerSet,
    HttpRoute,
    GrpcRoute,
    TlsRoute,
    TcpRoute,
    UdpRoute,
    ReferenceGrant,
    BackendTlsPolicy,
    Service,
    EndpointSlice,
    Namespace,
    Pod,
    Secret,
    ConfigMap,
}

impl Kind {
    /// The kind as written in YAML, e.g. `HTTPRoute`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::GatewayClass => "GatewayClass",
            Self::Gateway => "Gateway",
            Self::ListenerSet => "ListenerSet",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TlsRoute => "TLSRoute",
            Self::TcpRoute => "TCPRoute",
            Self::UdpRoute => "UDPRoute",
            Self::ReferenceGrant => "ReferenceGrant",
            Self::BackendTlsPolicy => "BackendTLSPolicy",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
            Self::Secret => "Secret",
            Self::ConfigMap => "ConfigMap",
        }
    }

    /// The API group: `gateway.networking.k8s.io`, `discovery.k8s.io`, or "" for core kinds.
    #[must_use]
    pub const fn group(self) -> &'static str {
        match self {
            Self::Service | Self::Namespace | Self::Pod | Self::Secret | Self::ConfigMap => "",
            Self::EndpointSlice => "discovery.k8s.io",
            _ => GATEWAY_GROUP,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `gateway.networking.k8s.io`.
pub const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";
/// Our controller's name (GatewayClass `spec.controllerName`).
pub const CONTROLLER_NAME: &str = "weft.dev/gateway-controller";

/// `namespace/name`. Ordered as the specification breaks ties: alphabetically by the text `{namespace}/{name}`, so
/// `a-b/x` comes before `a/x` (`-` sorts before `/`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObjectKey {
    /// Namespace; empty for cluster-scoped kinds.
    pub namespace: Str,
    /// Name.
    pub name: Str,
}

impl ObjectKey {
    /// A key from its two parts.
    #[must_use]
    pub fn new(namespace: impl Into<Str>, name: impl Into<Str>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl Ord for ObjectKey {
    fn cmp(&self, other: &Self) -> Ordering {
        if self.namespace == other.namespace {
            return self.name.cmp(&other.name);
        }
        // Namespaces differ and hold no `/`, so the first byte that differs is in them or is this `/`.
        self.namespace.bytes().chain([b'/']).cmp(other.namespace.bytes().chain([b'/']))
    }
}

impl PartialOrd for ObjectKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// Kind and key: names one object of the world.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectRef {
    /// Kind.
    pub kind: Kind,
    /// Namespace and name.
    pub key: ObjectKey,
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.key)
    }
}

/// A group and kind that a user wrote and that may be none of ours.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupKind {
    /// API group; "" is the core group.
    pub group: Str,
    /// Kind as written.
    pub kind: Str,
}

impl GroupKind {
    /// Whether this names `kind`. The group `core` is taken for "" as blog posts write it.
    #[must_use]
    pub fn is(&self, kind: Kind) -> bool {
        &*self.kind == kind.as_str()
            && (&*self.group == kind.group() || (kind.group().is_empty() && &*self.group == "core"))
    }
}

impl From<Kind> for GroupKind {
    fn from(kind: Kind) -> Self {
        Self { group: kind.group().into(), kind: kind.as_str().into() }
    }
}

impl fmt::Display for GroupKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() {
            f.write_str(&self.kind)
        } else {
            write!(f, "{}/{}", self.group, self.kind)
        }
    }
}

/// The name of what is made for a Gateway (Service, ServiceAccount, prefix of the EndpointSlices), and the service account
/// of its identity: `<gateway>-weft`. A Gateway's name may be a subdomain of 253 characters and start with a digit, a
/// Service's may not (RFC 1035 label, 63 characters): then what is lost is made up for by a hash of the whole name.
#[must_use]
pub fn gateway_object_name(gateway: &str) -> String {
    /// 63 less the longest suffix: `-` and hash, `-weft`.
    const ROOM: usize = 63 - 9 - 5;
    let label = gateway.starts_with(|c: char| c.is_ascii_lowercase()) && !gateway.contains('.');
    if label && gateway.len() <= 63 - 5 {
        return format!("{gateway}-weft");
    }
    let hash = format!("{:08x}", (fnv1a(gateway.as_bytes()) >> 32));
    let plain: String = gateway.chars().map(|c| if c == '.' { '-' } else { c }).collect();
    let prefix = if gateway.starts_with(|c: char| c.is_ascii_lowercase()) { "" } else { "g-" };
    let kept: String = plain.chars().take(ROOM - prefix.len()).collect();
    format!("{prefix}{}-{hash}-weft", kept.trim_end_matches('-'))
}

/// FNV-1a, 64 bits: a hash that stays the same across versions and machines, for names and numbers that are kept in the
/// cluster.
#[must_use]
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_names_are_labels_of_services() {
        let long = "a".repeat(253);
        let names = [
            "web",
            "a.b",
            "a-b",
            "1st",
            "1.st",
            &"a".repeat(58),
            &"a".repeat(59),
            &long,
            &format!("{}.", &long[1..]),
        ];
        let made: Vec<_> = names.iter().map(|n| gateway_object_name(n)).collect();
        assert_eq!(made[0], "web-weft");
        for name in &made {
            assert!(name.len() <= 63 && name.starts_with(|c: char| c.is_ascii_lowercase()), "{name}");
            assert!(
                name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
                "{name}"
            );
        }
        let distinct: std::collections::BTreeSet<_> = made.iter().collect();
        assert_eq!(distinct.len(), made.len(), "{made:?}");
    }
}
