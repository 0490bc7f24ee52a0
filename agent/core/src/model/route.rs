//! One route model for HTTPRoute, GRPCRoute, TLSRoute, TCPRoute and UDPRoute.

use super::{Filter, GroupKind, Hostname, Kind, Meta, ObjectKey, Pattern, Str};
use http::{HeaderName, HeaderValue, Method};
use std::time::Duration;

/// Which of the five kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum RouteKind {
    Http,
    Grpc,
    Tls,
    Tcp,
    Udp,
}

impl RouteKind {
    /// All five, in the order of precedence on one Service port (GEP-1294): gRPC > HTTP > TLS > TCP; UDP is apart.
    pub const ALL: [Self; 5] = [Self::Grpc, Self::Http, Self::Tls, Self::Tcp, Self::Udp];

    /// The object kind.
    #[must_use]
    pub const fn kind(self) -> Kind {
        match self {
            Self::Http => Kind::HttpRoute,
            Self::Grpc => Kind::GrpcRoute,
            Self::Tls => Kind::TlsRoute,
            Self::Tcp => Kind::TcpRoute,
            Self::Udp => Kind::UdpRoute,
        }
    }
}

/// A route of any kind. Fields that a kind does not have are empty.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Metadata.
    pub meta: Meta,
    /// Which kind.
    pub kind: RouteKind,
    /// `spec.parentRefs`, in order.
    pub parents: Vec<ParentRef>,
    /// `spec.hostnames` (HTTP, gRPC) or SNI names (TLS).
    pub hostnames: Vec<Hostname>,
    /// `spec.rules`.
    pub rules: Vec<Rule>,
    /// `spec.useDefaultGateways` (GEP-3793, experimental).
    pub use_default_gateways: Option<Str>,
}

impl Route {
    /// Kind and key.
    #[must_use]
    pub fn id(&self) -> (RouteKind, ObjectKey) {
        (self.kind, self.meta.key.clone())
    }
}

/// Where a pattern stands in its route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatternAt {
    /// Index of the rule.
    pub rule: usize,
    matched: usize,
    part: &'static str,
    index: Option<usize>,
}

impl PatternAt {
    /// The field, e.g. `spec.rules[0].matches[1].headers[2].value`.
    #[must_use]
    pub fn field(&self) -> String {
        let Self { rule, matched, part, index } = self;
        let at = format!("spec.rules[{rule}].matches[{matched}].{part}");
        index.map_or_else(|| at.clone(), |i| format!("{at}[{i}].value"))
    }
}

impl Route {
    /// Every regular expression that its matches are written with.
    pub fn patterns(&self) -> impl Iterator<Item = (PatternAt, &Pattern)> {
        self.rules.iter().enumerate().flat_map(|(rule, r)| {
            let matches = r.matches.iter().enumerate();
            matches.flat_map(move |(matched, m)| {
                let at = move |(part, index, pattern)| (PatternAt { rule, matched, part, index }, pattern);
                m.patterns().map(at)
            })
        })
    }
}

impl Match {
    /// Its regular expressions: the part, the index in a list, and the pattern. Without those that are known to be broken.
    fn patterns(&self) -> impl Iterator<Item = (&'static str, Option<usize>, &Pattern)> {
        let [first, second] = match &self.path {
            Some(PathMatch::Regex(pattern)) => [Some(("path.value", None, pattern)), None],
            Some(PathMatch::GrpcRegex { service, method }) => [
                service.as_ref().map(|p| ("method.service", None, p)),
                method.as_ref().map(|p| ("method.method", None, p)),
            ],
            _ => [None, None],
        };
        let headers = self.headers.iter().enumerate().filter_map(|(i, h)| match &h.value {
            ValueMatch::Regex(pattern) => Some(("headers", Some(i), pattern)),
            ValueMatch::Exact(_) => None,
        });
        let query = self.query.iter().enumerate().filter_map(|(i, q)| match &q.value {
            ValueMatch::Regex(pattern) => Some(("queryParams", Some(i), pattern)),
            ValueMatch::Exact(_) => None,
        });
        let all = [first, second].into_iter().flatten().chain(headers).chain(query);
        all.filter(|(_, _, pattern)| pattern.is_unread())
    }

    /// The match with each pattern as `f` gives it.
    #[must_use]
    pub fn map_patterns(&self, f: &impl Fn(&Pattern) -> Pattern) -> Self {
        let mut out = self.clone();
        match &mut out.path {
            Some(PathMatch::Regex(pattern)) => *pattern = f(pattern),
            Some(PathMatch::GrpcRegex { service, method }) => {
                for pattern in service.iter_mut().chain(method) {
                    *pattern = f(pattern);
                }
            }
            _ => {}
        }
        for header in &mut out.headers {
            if let ValueMatch::Regex(pattern) = &mut header.value {
                *pattern = f(pattern);
            }
        }
        for query in &mut out.query {
            if let ValueMatch::Regex(pattern) = &mut query.value {
                *pattern = f(pattern);
            }
        }
        out
    }
}

/// `ParentReference`. Kept as written, because status must repeat it exactly.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ParentRef {
    /// Group and kind, defaulted to Gateway.
    pub kind: GroupKind,
    /// `namespace` as written.
    pub namespace: Option<Str>,
    /// `name`.
    pub name: Str,
    /// `sectionName`.
    pub section_name: Option<Str>,
    /// `port`.
    pub port: Option<u16>,
}

/// One rule.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    /// `name` (GEP-995).
    pub name: Option<Str>,
    /// `matches`, never empty for HTTP (the default is PathPrefix `/`) and gRPC (default: everything).
    pub matches: Vec<Match>,
    /// `filters`.
    pub filters: Vec<Filter>,
    /// `backendRefs`.
    pub backends: Vec<BackendRef>,
    /// `timeouts` (GEP-1742).
    pub timeouts: Timeouts,
    /// `retry` (GEP-1731, experimental).
    pub retry: Option<Retry>,
    /// `sessionPersistence` (GEP-1619, experimental).
    pub session: Option<SessionPersistence>,
    /// What is wrong with this rule and could not be kept (an unknown enum value): the rule is not served, answers 500
    /// where it would match, and the route says `Accepted=False/UnsupportedValue` or `PartiallyInvalid`. A match keeps
    /// its other criteria, so that its requests find no wider rule. Patterns are judged by resolution.
    pub invalid: Vec<InvalidField>,
}

/// A field whose value cannot be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidField {
    /// Path, e.g. `spec.rules[0].matches[1].path.value`.
    pub path: Str,
    /// What is wrong and what to do.
    pub message: Str,
}

/// One match: everything in it must hold. Empty matches everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Match {
    /// Path (HTTP) or gRPC method.
    pub path: Option<PathMatch>,
    /// Method (HTTP).
    pub method: Option<Method>,
    /// Headers; the first of equal names counts.
    pub headers: Vec<HeaderMatch>,
    /// Query parameters; the first of equal names counts.
    pub query: Vec<QueryMatch>,
}

/// `HTTPPathMatch` and `GRPCMethodMatch` in one.
#[derive(Clone, Debug, PartialEq)]
pub enum PathMatch {
    /// Exact path.
    Exact(Str),
    /// Segment-wise prefix; a trailing slash does not count.
    Prefix(Str),
    /// The whole path.
    Regex(Pattern),
    /// gRPC service and/or method, both exact. At least one is there.
    Grpc {
        /// Fully qualified service.
        service: Option<Str>,
        /// Method.
        method: Option<Str>,
    },
    /// gRPC service and/or method as patterns.
    GrpcRegex {
        /// Pattern of the service.
        service: Option<Pattern>,
        /// Pattern of the method.
        method: Option<Pattern>,
    },
}

/// A `HeaderMatch`.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderMatch {
    /// Name.
    pub name: HeaderName,
    /// Value.
    pub value: ValueMatch<HeaderValue>,
}

/// A `QueryParamMatch`; names are case-sensitive.
#[derive(Clone, Debug, PartialEq)]
pub struct QueryMatch {
    /// Name, decoded.
    pub name: Str,
    /// Value, decoded.
    pub value: ValueMatch<Str>,
}

/// Exact or pattern.
#[derive(Clone, Debug, PartialEq)]
pub enum ValueMatch<T> {
    /// Exact.
    Exact(T),
    /// The whole value.
    Regex(Pattern),
}

/// `BackendObjectReference`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BackendObjectRef {
    /// Group and kind, defaulted to core `Service`.
    pub kind: GroupKind,
    /// Name.
    pub name: Str,
    /// Namespace; the route's when left out.
    pub namespace: Option<Str>,
    /// Port; required for Services.
    pub port: Option<u16>,
}

/// A weighted backend with its own filters.
#[derive(Clone, Debug, PartialEq)]
pub struct BackendRef {
    /// What.
    pub object: BackendObjectRef,
    /// `weight`, 1 by default, 0–1,000,000.
    pub weight: u32,
    /// `filters` of this backendRef.
    pub filters: Vec<Filter>,
}

/// `HTTPRouteTimeouts`; a duration of zero has been turned into none ("no timeout", GEP-2257).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// `request`: the whole exchange, tries included.
    pub request: Option<Duration>,
    /// `backendRequest`: one try.
    pub backend_request: Option<Duration>,
}

/// `HTTPRouteRetry` (GEP-1731).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// `codes`: 400–599.
    pub codes: Vec<u16>,
    /// `attempts`: retries beyond the first try; 1 when left out.
    pub attempts: u32,
    /// `backoff`: least time between tries.
    pub backoff: Option<Duration>,
}

/// `SessionPersistence` (GEP-1619).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionPersistence {
    /// `sessionName`.
    pub name: Option<Str>,
    /// `type: Header` instead of `Cookie`.
    pub header: bool,
    /// `absoluteTimeout`.
    pub absolute_timeout: Option<Duration>,
    /// `idleTimeout`.
    pub idle_timeout: Option<Duration>,
    /// `cookieConfig.lifetimeType: Permanent`.
    pub permanent: bool,
}
