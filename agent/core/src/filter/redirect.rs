//! `RequestRedirect`.

use super::path::{encoded, modify};
use crate::{matching::split_port, model::Redirect};
use http::{HeaderValue, StatusCode};

/// The request, as far as a redirect looks at it.
#[derive(Clone, Copy, Debug)]
pub struct RedirectInput<'a> {
    /// `http` or `https`, as the listener speaks it.
    pub scheme: &'a str,
    /// `Host` or `:authority` as received, port and all; empty when there is none. Its port is not used: the API
    /// takes the listener's.
    pub authority: &'a str,
    /// Path and query as received.
    pub path_and_query: &'a str,
    /// The path prefix that selected the rule ([`crate::matching::Selected::prefix`]).
    pub matched_prefix: Option<&'a str>,
    /// Port of the listener; on a Service parent, the Service's port.
    pub listener_port: u16,
}

/// The status and the `Location` of a redirect.
///
/// Without any host (HTTP/1.0) `Location` is just the path, which RFC 9110 §10.2.2 allows.
#[must_use]
pub fn redirect(filter: &Redirect, input: &RedirectInput<'_>) -> (StatusCode, HeaderValue) {
    let (path, query) =
        input.path_and_query.split_once('?').map_or((input.path_and_query, None), |(p, q)| (p, Some(q)));
    let mut location = origin(filter, input);
    match &filter.path {
        None if location.is_empty() => {
            // `//evil.example/` as a Location of its own would be an open redirect.
            location.push('/');
            location.push_str(&encoded(path.trim_start_matches('/')));
            push(&mut location, '?', query);
        }
        None => {
            location.push_str(&encoded(path));
            push(&mut location, '?', query);
        }
        Some(modifier) => {
            let new = modify(modifier, input.matched_prefix, path);
            location.push_str(&new.path);
            push(&mut location, '?', new.query.as_deref());
            push(&mut location, if new.query.is_some() { '&' } else { '?' }, query);
            push(&mut location, '#', new.fragment.as_deref());
        }
    }
    // Everything is visible ASCII by now; if it were not, the root is a harmless place to go.
    let location = HeaderValue::try_from(location).unwrap_or(HeaderValue::from_static("/"));
    (filter.status, location)
}

/// `scheme://host[:port]`, or nothing when no host is known.
fn origin(filter: &Redirect, input: &RedirectInput<'_>) -> String {
    let host = filter.hostname.as_ref().map_or_else(|| split_port(input.authority).0, |h| h.as_str());
    if host.is_empty() {
        return String::new();
    }
    let scheme = filter.scheme.as_deref().unwrap_or(input.scheme);
    let well_known = match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    };
    // HTTPRequestRedirectFilter.port: explicit > the well-known port of an explicit scheme > the listener's; and the
    // well-known one is left out, also when the scheme is the request's own.
    let port = filter.port.or(filter.scheme.as_ref().and(well_known)).unwrap_or(input.listener_port);
    let host = encoded(host);
    if Some(port) == well_known { format!("{scheme}://{host}") } else { format!("{scheme}://{host}:{port}") }
}

fn push(out: &mut String, mark: char, part: Option<&str>) {
    if let Some(part) = part {
        out.push(mark);
        out.push_str(&encoded(part));
    }
}
