//! The five route kinds to one [`Route`].

use super::{Cx, filter, gateway, meta};
use crate::{api, duration, path};
use http::{HeaderName, HeaderValue, Method};
use std::{fmt::Display, time::Duration};
use weft_core::model::{
    BackendObjectRef, BackendRef, HeaderMatch, Hostname, InvalidField, Kind, Match, ParentRef, PathMatch,
    Pattern, Program, QueryMatch, Retry, Route, RouteKind, Rule, SessionPersistence, Str, Timeouts,
    ValueMatch,
};

pub(super) fn route(kind: Kind, cx: &mut Cx<'_>) -> Option<Route> {
    match kind {
        Kind::HttpRoute => of::<api::HttpMatch>(RouteKind::Http, cx),
        Kind::GrpcRoute => of::<api::GrpcMatch>(RouteKind::Grpc, cx),
        Kind::TlsRoute => of::<api::NoMatch>(RouteKind::Tls, cx),
        Kind::TcpRoute => of::<api::NoMatch>(RouteKind::Tcp, cx),
        _ => of::<api::NoMatch>(RouteKind::Udp, cx),
    }
}

/// What differs between kinds: matches.
trait Matches: serde::de::DeserializeOwned {
    fn read(self, at: &str, invalid: &mut Invalid) -> Option<Match>;
    /// What no `matches` means.
    fn none() -> Vec<Match>;
}

/// Fields of one rule that an API server accepts and Weft cannot serve.
#[derive(Default)]
pub(super) struct Invalid(Vec<InvalidField>);

impl Invalid {
    pub(super) fn push(&mut self, path: &str, message: impl Display) {
        self.0.push(InvalidField { path: path.into(), message: message.to_string().into() });
    }

    /// The value, or `None` and a note.
    pub(super) fn ok<T, E: Display>(&mut self, path: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|e| self.push(path, e)).ok()
    }
}

fn of<M: Matches>(kind: RouteKind, cx: &mut Cx<'_>) -> Option<Route> {
    let meta = meta::of_gateway_kind(kind.kind(), cx)?;
    let spec: api::RouteSpec<M> = cx.spec()?;
    let mut hostnames = Vec::new();
    for (i, h) in spec.hostnames.iter().enumerate() {
        // The CRD's pattern lets "1.2.3.4" pass, its text does not ("IPs are not allowed"). Dropping the name alone
        // could open the route to all hosts, so the object goes.
        hostnames.push(cx.accept(&path::index("spec.hostnames", i), Hostname::parse(h))?);
    }
    let mut rules = Vec::new();
    for (i, r) in spec.rules.into_iter().enumerate() {
        let rule = rule(r, &path::index("spec.rules", i));
        for field in &rule.invalid {
            let remedy = "correct it; until then this rule answers 500 where the rest of a match holds";
            cx.report.unserved(&field.path, &*field.message, remedy);
        }
        rules.push(rule);
    }
    let route = Route {
        meta,
        kind,
        parents: spec.parent_refs.into_iter().map(parent).collect(),
        hostnames,
        rules,
        use_default_gateways: spec.use_default_gateways.map(Str::from),
    };
    // In a cluster it is said in conditions, and nothing is compiled for routes whose parents are others'.
    if !cx.source.admitted {
        for (at, pattern) in route.patterns() {
            if let Err(why) = Program::new(pattern.as_str()) {
                let remedy = "correct it; until then requests that meet the rest of this match get 500";
                cx.report.unserved(&at.field(), why, remedy);
            }
        }
    }
    Some(route)
}

fn parent(p: api::ParentRef) -> ParentRef {
    ParentRef {
        kind: gateway::group_kind(p.group, p.kind),
        namespace: p.namespace.map(Str::from),
        name: p.name.into(),
        section_name: p.section_name.filter(|s| !s.is_empty()).map(Str::from),
        port: p.port,
    }
}

fn rule<M: Matches>(r: api::Rule<M>, at: &str) -> Rule {
    let mut invalid = Invalid::default();
    let matches_at = path::key(at, "matches");
    let matches = if r.matches.is_empty() {
        M::none()
    } else {
        let one = |(i, m): (usize, M)| m.read(&path::index(&matches_at, i), &mut invalid);
        r.matches.into_iter().enumerate().filter_map(one).collect()
    };
    let filters = filter::filters(r.filters, &path::key(at, "filters"), &mut invalid);
    let backends_at = path::key(at, "backendRefs");
    let backends = r
        .backend_refs
        .into_iter()
        .enumerate()
        .map(|(i, b)| backend(b, &path::index(&backends_at, i), &mut invalid))
        .collect();
    let timeouts = r.timeouts.map_or_else(Timeouts::default, |t| Timeouts {
        // GEP-2257: zero means no timeout.
        request: time(t.request).filter(|d| !d.is_zero()),
        backend_request: time(t.backend_request).filter(|d| !d.is_zero()),
    });
    let session = r.session_persistence.map(session);
    Rule {
        name: r.name.map(Str::from),
        matches,
        filters,
        backends,
        timeouts,
        retry: r.retry.map(retry),
        session,
        invalid: invalid.0,
    }
}

fn backend(b: api::BackendRef, at: &str, invalid: &mut Invalid) -> BackendRef {
    let filters = filter::filters(b.filters, &path::key(at, "filters"), invalid);
    BackendRef { object: backend_object(b.object), weight: b.weight, filters }
}

pub(super) fn backend_object(b: api::BackendObject) -> BackendObjectRef {
    BackendObjectRef {
        kind: gateway::group_kind(b.group, b.kind),
        name: b.name.into(),
        namespace: b.namespace.map(Str::from),
        port: b.port,
    }
}

/// A duration that the schema has checked.
fn time(text: Option<String>) -> Option<Duration> {
    duration::parse(&text?)
}

fn retry(r: api::Retry) -> Retry {
    // GEP-1731: how often to retry is up to the implementation when it is left out.
    Retry { codes: r.codes, attempts: r.attempts.unwrap_or(1), backoff: time(r.backoff) }
}

fn session(s: api::SessionPersistence) -> SessionPersistence {
    SessionPersistence {
        name: s.session_name.filter(|n| !n.is_empty()).map(Str::from),
        header: s.kind == "Header",
        absolute_timeout: time(s.absolute_timeout),
        // v1.6.1 has no idleTimeout any more.
        idle_timeout: None,
        permanent: s.cookie_config.is_some_and(|c| c.lifetime_type == "Permanent"),
    }
}

impl Matches for api::HttpMatch {
    fn read(self, at: &str, invalid: &mut Invalid) -> Option<Match> {
        let path = self.path.map(|p| http_path(p, &path::key(at, "path"), invalid));
        let method = |m: String| invalid.ok(&path::key(at, "method"), Method::from_bytes(m.as_bytes()));
        let method = self.method.and_then(method);
        let headers = headers(self.headers, &path::key(at, "headers"), invalid);
        let mut query = Vec::new();
        for (i, q) in self.query_params.into_iter().enumerate() {
            let at = format!("{at}.queryParams[{i}]");
            let value = value_match(&q.kind, q.value, &at, invalid, |v| Ok::<_, String>(Str::from(v)));
            query.push(QueryMatch { name: q.name.into(), value });
        }
        Some(Match { path, method, headers, query })
    }

    /// The CRD fills in PathPrefix `/`; the same for an explicit empty list.
    fn none() -> Vec<Match> {
        vec![Match { path: Some(PathMatch::Prefix("/".into())), ..Match::default() }]
    }
}

impl Matches for api::GrpcMatch {
    fn read(self, at: &str, invalid: &mut Invalid) -> Option<Match> {
        let path = self.method.map(|m| grpc_method(m, &path::key(at, "method"), invalid));
        let headers = headers(self.headers, &path::key(at, "headers"), invalid);
        Some(Match { path, headers, ..Match::default() })
    }

    fn none() -> Vec<Match> {
        vec![Match::default()]
    }
}

impl Matches for api::NoMatch {
    fn read(self, _: &str, _: &mut Invalid) -> Option<Match> {
        None
    }

    fn none() -> Vec<Match> {
        Vec::new()
    }
}

// A criterion that cannot be read is taken as met (`Pattern::broken`): its rule answers 500, and a request that meets the
// rest of the match must not find a wider rule instead.

fn http_path(p: api::PathMatch, at: &str, invalid: &mut Invalid) -> PathMatch {
    match p.kind.as_str() {
        "Exact" => PathMatch::Exact(p.value.into()),
        "PathPrefix" => PathMatch::Prefix(p.value.into()),
        "RegularExpression" => PathMatch::Regex(Pattern::unread(p.value.into())),
        other => {
            unknown_type(other, at, invalid);
            PathMatch::Regex(Pattern::broken(p.value.into()))
        }
    }
}

fn grpc_method(m: api::MethodMatch, at: &str, invalid: &mut Invalid) -> PathMatch {
    let some = |s: Option<String>| s.filter(|s| !s.is_empty()).map(Str::from);
    let (service, method) = (some(m.service), some(m.method));
    match m.kind.as_str() {
        // Both empty matches every call, which is what no method match at all means.
        "Exact" => PathMatch::Grpc { service, method },
        "RegularExpression" => PathMatch::GrpcRegex {
            service: service.map(Pattern::unread),
            method: method.map(Pattern::unread),
        },
        other => {
            unknown_type(other, at, invalid);
            PathMatch::GrpcRegex {
                service: service.map(Pattern::broken),
                method: method.map(Pattern::broken),
            }
        }
    }
}

fn headers(headers: Vec<api::NamedMatch>, at: &str, invalid: &mut Invalid) -> Vec<HeaderMatch> {
    let mut out: Vec<HeaderMatch> = Vec::new();
    for (i, h) in headers.into_iter().enumerate() {
        let at = path::index(at, i);
        let value = value_match(&h.kind, h.value, &at, invalid, HeaderValue::from_str);
        let name = invalid.ok(&path::key(&at, "name"), HeaderName::from_bytes(h.name.as_bytes()));
        out.extend(name.map(|name| HeaderMatch { name, value }));
    }
    out
}

fn value_match<T, E: Display>(
    kind: &str,
    value: String,
    at: &str,
    invalid: &mut Invalid,
    exact: impl FnOnce(&str) -> Result<T, E>,
) -> ValueMatch<T> {
    let known = match kind {
        "Exact" => invalid.ok(&path::key(at, "value"), exact(&value)).map(ValueMatch::Exact),
        "RegularExpression" => return ValueMatch::Regex(Pattern::unread(value.into())),
        other => {
            unknown_type(other, at, invalid);
            None
        }
    };
    known.unwrap_or_else(|| ValueMatch::Regex(Pattern::broken(value.into())))
}

fn unknown_type(kind: &str, at: &str, invalid: &mut Invalid) {
    invalid.push(
        &path::key(at, "type"),
        format!("\"{kind}\" is a type of match that this version does not know"),
    );
}
