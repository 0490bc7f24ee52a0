//! `CORS` (GEP-1767).
//!
//! The filter is the authority for its rule: what the backend says in `Access-Control-*` is replaced, and an origin
//! that does not match gets none of these headers. `Access-Control-Allow-Origin` always echoes the request's origin,
//! also for `*`: one code path, and never `*` beside credentials. `Vary: Origin` is sent in every case, so that no cache
//! hands one origin's answer to another.

use crate::model::{Cors, Str};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode,
    header::{
        ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
        ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
        ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, CONTENT_LENGTH, ORIGIN, VARY,
    },
    request::Parts,
};

/// The answer to a preflight; `None` when the request is none (then it goes on, and [`respond`] edits its answer).
///
/// A preflight is `OPTIONS` with `Origin` and `Access-Control-Request-Method` (Fetch standard): a plain `OPTIONS` is the
/// backend's. The status is always 200; a refused origin shows by the absence of headers, and the browser refuses.
#[must_use]
pub fn preflight(cors: &Cors, request: &Parts) -> Option<Response<()>> {
    let origin = request.headers.get(ORIGIN)?;
    let method = request.headers.get(ACCESS_CONTROL_REQUEST_METHOD)?;
    if request.method != Method::OPTIONS {
        return None;
    }
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    headers.insert(
        VARY,
        HeaderValue::from_static("Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
    );
    if !allows(cors, origin) {
        return Some(response);
    }
    share(cors, origin, headers);
    put(headers, ACCESS_CONTROL_ALLOW_METHODS, list_or_echo(&cors.allow_methods, Some(method)));
    let asked = request.headers.get(ACCESS_CONTROL_REQUEST_HEADERS);
    put(headers, ACCESS_CONTROL_ALLOW_HEADERS, list_or_echo(&cors.allow_headers, asked));
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from(cors.max_age));
    Some(response)
}

/// Edits a backend's answer. `origin` is the request's `Origin`, kept from before forwarding.
pub fn respond(cors: &Cors, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
    vary(headers);
    let Some(origin) = origin else { return };
    for name in [
        ACCESS_CONTROL_ALLOW_CREDENTIALS,
        ACCESS_CONTROL_ALLOW_HEADERS,
        ACCESS_CONTROL_ALLOW_METHODS,
        ACCESS_CONTROL_ALLOW_ORIGIN,
        ACCESS_CONTROL_EXPOSE_HEADERS,
        ACCESS_CONTROL_MAX_AGE,
    ] {
        headers.remove(name);
    }
    if allows(cors, origin) {
        share(cors, origin, headers);
    }
}

/// Whether `allowOrigins` covers an `Origin`. An empty list covers none.
#[must_use]
pub fn allows(cors: &Cors, origin: &HeaderValue) -> bool {
    let Ok(origin) = origin.to_str() else { return false };
    cors.allow_origins.iter().any(|allowed| covers(allowed, origin))
}

/// Headers that preflight and answer have in common.
fn share(cors: &Cors, origin: &HeaderValue, headers: &mut HeaderMap) {
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    if cors.allow_credentials {
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    // With credentials a browser takes `*` for a header of that name, and the API forbids to send it.
    let wildcard = cors.expose_headers.iter().any(|h| &**h == "*");
    if !(wildcard && cors.allow_credentials) {
        put(headers, ACCESS_CONTROL_EXPOSE_HEADERS, joined(&cors.expose_headers));
    }
}

fn covers(allowed: &str, origin: &str) -> bool {
    if allowed == "*" {
        return true;
    }
    let (Some(allowed), Some(origin)) = (Origin::parse(allowed), Origin::parse(origin)) else { return false };
    allowed.port == origin.port
        && allowed.scheme.eq_ignore_ascii_case(origin.scheme)
        && match allowed.host.strip_prefix('*') {
            // `*` alone, or `*.example.com`, which covers any number of labels but at least one.
            Some(suffix) => origin.host.len().checked_sub(suffix.len()).is_some_and(|at| {
                at > 0 && origin.host.is_char_boundary(at) && origin.host[at..].eq_ignore_ascii_case(suffix)
            }),
            None => allowed.host.eq_ignore_ascii_case(origin.host),
        }
}

struct Origin<'a> {
    scheme: &'a str,
    host: &'a str,
    /// Filled in from the scheme: `https://a` and `https://a:443` are one origin.
    port: u16,
}

impl<'a> Origin<'a> {
    /// `null` and other opaque origins are none.
    fn parse(s: &'a str) -> Option<Self> {
        let (scheme, rest) = s.split_once("://")?;
        let default = match scheme {
            s if s.eq_ignore_ascii_case("http") => 80,
            s if s.eq_ignore_ascii_case("https") => 443,
            _ => return None,
        };
        let (host, port) = crate::matching::split_port(rest);
        let port = if host.len() == rest.len() { default } else { port? };
        Some(Self { scheme, host, port })
    }
}

/// The list as configured; for `*` what the browser asked for (so it also works with credentials).
fn list_or_echo(list: &[Str], asked: Option<&HeaderValue>) -> Option<HeaderValue> {
    if list.iter().any(|v| &**v == "*") { asked.cloned() } else { joined(list) }
}

fn joined(list: &[Str]) -> Option<HeaderValue> {
    if list.is_empty() { None } else { HeaderValue::try_from(list.join(", ")).ok() }
}

fn put(headers: &mut HeaderMap, name: HeaderName, value: Option<HeaderValue>) {
    if let Some(value) = value {
        headers.insert(name, value);
    }
}

/// Adds `Vary: Origin` unless it is there.
fn vary(headers: &mut HeaderMap) {
    let there =
        headers.get_all(VARY).iter().filter_map(|v| v.to_str().ok()).any(|v| {
            v.split(',').map(str::trim).any(|name| name == "*" || name.eq_ignore_ascii_case("origin"))
        });
    if !there {
        headers.append(VARY, HeaderValue::from_static("Origin"));
    }
}
