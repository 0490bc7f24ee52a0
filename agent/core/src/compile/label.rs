//! Text of a match for telemetry.

use crate::model::{Match, PathMatch, Pattern, Str};

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
