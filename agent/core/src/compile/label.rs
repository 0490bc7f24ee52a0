//! Text of a match: low-cardinality for telemetry, complete for finding equal matches.

use crate::model::{Match, PathMatch, Pattern, Str, ValueMatch};
use std::fmt::Write;

/// `http.route` of a match, e.g. `/cart/*`: never the path of a request.
pub(super) fn route_label(matcher: &Match) -> Str {
    let any = || "*".to_owned();
    let pattern = |p: &Option<Pattern>| p.as_ref().map_or_else(any, |p| p.as_str().to_owned());
    let text = |p: &Option<Str>| p.as_ref().map_or_else(any, ToString::to_string);
    match &matcher.path {
        None => "/*".into(),
        Some(PathMatch::Exact(path)) => path.clone(),
        Some(PathMatch::Prefix(path)) => format!("{}/*", path.trim_end_matches('/')).into(),
        Some(PathMatch::Regex(pattern)) => pattern.as_str().into(),
        Some(PathMatch::Grpc { service, method }) => format!("/{}/{}", text(service), text(method)).into(),
        Some(PathMatch::GrpcRegex { service, method }) => {
            format!("/{}/{}", pattern(service), pattern(method)).into()
        }
    }
}

/// Equal texts for matches that the same requests satisfy with the same precedence; header and query matches in any
/// order, and of equal names only the first counts (HTTPHeaderMatch.name).
pub(super) fn match_key(matcher: &Match) -> Str {
    let mut out = match &matcher.path {
        None => "prefix /".to_owned(),
        Some(PathMatch::Exact(path)) => format!("exact {path}"),
        Some(PathMatch::Prefix(path)) => {
            let trimmed = path.trim_end_matches('/');
            format!("prefix {}", if trimmed.is_empty() { "/" } else { trimmed })
        }
        Some(PathMatch::Regex(pattern)) => format!("regex {}", pattern.as_str()),
        Some(PathMatch::Grpc { service, method }) => format!("grpc {service:?} {method:?}"),
        Some(PathMatch::GrpcRegex { service, method }) => {
            let text = |p: &Option<Pattern>| p.as_ref().map(|p| p.as_str().to_owned());
            format!("grpc regex {:?} {:?}", text(service), text(method))
        }
    };
    if let Some(method) = &matcher.method {
        let _ = write!(out, " method {method}");
    }
    let headers = matcher.headers.iter().map(|h| (h.name.as_str(), value(&h.value, |v| format!("{v:?}"))));
    let query = matcher.query.iter().map(|q| (&*q.name, value(&q.value, ToString::to_string)));
    for (what, mut pairs) in [("header", headers.collect::<Vec<_>>()), ("query", query.collect())] {
        // Stable: of equal names the first stays first.
        pairs.sort_by(|a, b| a.0.cmp(b.0));
        pairs.dedup_by(|later, first| later.0 == first.0);
        for (name, value) in pairs {
            let _ = write!(out, " {what} {name:?} {value}");
        }
    }
    out.into()
}

fn value<T>(value: &ValueMatch<T>, text: impl Fn(&T) -> String) -> String {
    match value {
        ValueMatch::Exact(v) => format!("= {:?}", text(v)),
        ValueMatch::Regex(p) => format!("~ {:?}", p.as_str()),
    }
}
