//! What happens to heads on their way: filters in the documented order ([`weft_core::filter`]), hop-by-hop headers,
//! `X-Forwarded-*`. `Via` and `Server` are not added; `Host` stays as the client sent it.

use super::{conn::Conn, exchange::Exchange, route};
use crate::{dial::Dial, error::Reason};
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version,
    header::{self, CONNECTION, FORWARDED, HOST, LOCATION, ORIGIN, TE, TRANSFER_ENCODING, UPGRADE},
    request::Parts,
    uri::{Authority, PathAndQuery, Scheme, Uri},
};
use http_body::Body;
use weft_core::{
    config::{FilterChain, HttpRule},
    filter,
    model::{HeaderModifier, Redirect},
};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
/// Belongs to an upgrade to `h2c` (RFC 7540 §3.2.1), which is never passed on.
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Whether the client asks for another protocol (RFC 9110 §7.8) that we pass on. Asking for HTTP itself is not: behind
/// the 101, HTTP/2 would run past routes, filters and logs. A server may ignore it (§7.8), and RFC 9113 §3.1 has dropped
/// `h2c`, so such a request is plain HTTP/1.1.
pub(crate) fn wants_upgrade(parts: &Parts) -> bool {
    parts.version == Version::HTTP_11
        && parts.headers.contains_key(UPGRADE)
        && parts.headers.get_all(CONNECTION).iter().any(|v| has_token(v, "upgrade"))
        && !upgrades_to_http(&parts.headers)
}

/// Whether `Upgrade` names any version of HTTP, alone or among others, whatever its case: whoever offers several lets
/// the upstream choose.
pub(crate) fn upgrades_to_http(headers: &HeaderMap) -> bool {
    let tokens = headers.get_all(UPGRADE).iter().flat_map(|v| v.as_bytes().split(|b| *b == b','));
    // As bytes: one octet that is not ASCII must not hide the tokens next to it.
    tokens.map(<[u8]>::trim_ascii).any(|token| {
        let name = token.split(|b| *b == b'/' || b.is_ascii_whitespace()).next().unwrap_or_default();
        [&b"h2c"[..], b"h2", b"h3", b"http"].iter().any(|http| name.eq_ignore_ascii_case(http))
    })
}

/// Brings a request as received into the shape that filters and backends expect: one authority, no headers that
/// belong to the client's connection.
pub(crate) fn normalize(parts: &mut Parts, keep_upgrade: bool) {
    if parts.version != Version::HTTP_2
        && let Some(authority) = parts.uri.authority()
        && let Ok(host) = HeaderValue::from_str(host_and_port(authority))
    {
        // An absolute target overrules `Host` (RFC 9112 §3.2.2).
        parts.headers.insert(HOST, host);
    }
    let upgrade = parts.headers.get(UPGRADE).filter(|_| keep_upgrade).cloned();
    let trailers = parts.headers.get_all(TE).iter().any(|v| has_token(v, "trailers"));
    strip_hop_by_hop(&mut parts.headers);
    if let Some(protocol) = upgrade {
        parts.headers.insert(UPGRADE, protocol);
        parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    if trailers {
        // The only value that HTTP/2 knows, and gRPC insists on it.
        parts.headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Removes what belongs to one connection (RFC 9110 §7.6.1), also what `Connection` names.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            // As bytes: one octet that is not ASCII must not hide the names next to it.
            .flat_map(|v| v.as_bytes().split(|b| *b == b','))
            .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
            // These frame or address the message: nobody may have them removed (request smuggling, host confusion).
            .filter(|name| ![HOST, header::CONTENT_LENGTH, TRANSFER_ENCODING].contains(name))
            .collect();
        headers.remove(CONNECTION);
        for name in named {
            headers.remove(name);
        }
    }
    if headers.contains_key(TRANSFER_ENCODING) {
        // It says how long the message is; a length beside it is an attempt at smuggling (RFC 9112 §6.3).
        headers.remove(header::CONTENT_LENGTH);
    }
    for name in [KEEP_ALIVE, HTTP2_SETTINGS, PROXY_CONNECTION, TE, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
}

fn has_token(value: &HeaderValue, token: &str) -> bool {
    value.to_str().is_ok_and(|v| v.split(',').any(|t| t.trim().eq_ignore_ascii_case(token)))
}

/// `user@` is not for the backend's eyes.
fn host_and_port(authority: &Authority) -> &str {
    authority.as_str().rsplit_once('@').map_or(authority.as_str(), |(_, host)| host)
}

/// What a rule does before any backend is chosen.
pub(crate) enum Before {
    /// Go on to a backend.
    Forward,
    /// Answered here.
    Answer(Response<()>),
    /// The target cannot be rewritten.
    Fail(Reason),
}

/// Applies a rule's filters to the request.
pub(crate) fn before<D: Dial>(
    rule: &HttpRule,
    prefix: Option<&str>,
    exchange: &mut Exchange<D>,
    parts: &mut Parts,
) -> Before {
    if let Some(cors) = &rule.filters.cors {
        if let Some(preflight) = filter::cors::preflight(cors, parts) {
            return Before::Answer(preflight);
        }
        exchange.origin = parts.headers.get(ORIGIN).cloned();
    }
    if let weft_core::config::Action::Redirect(redirect) = &rule.action {
        return Before::Answer(redirected(redirect, prefix, &exchange.conn, parts));
    }
    edit(&rule.filters, prefix, parts)
}

/// Applies the request filters of a rule or backendRef.
pub(crate) fn edit(filters: &FilterChain, prefix: Option<&str>, parts: &mut Parts) -> Before {
    if let Some(modifier) = &filters.request_headers {
        filter::headers::apply(modifier, &mut parts.headers);
    }
    if let Some(rewrite) = &filters.rewrite
        && filter::rewrite::apply(rewrite, prefix, parts).is_err()
    {
        return Before::Fail(Reason::BadRequest);
    }
    Before::Forward
}

fn redirected<D: Dial>(
    redirect: &Redirect,
    prefix: Option<&str>,
    conn: &Conn<D>,
    parts: &Parts,
) -> Response<()> {
    let input = filter::RedirectInput {
        scheme: if conn.is_https() { "https" } else { "http" },
        authority: route::authority(parts).unwrap_or_default(),
        path_and_query: parts.uri.path_and_query().map_or("/", PathAndQuery::as_str),
        matched_prefix: prefix,
        listener_port: conn.port(),
    };
    let (status, location) = filter::redirect(redirect, &input);
    let mut response = Response::new(());
    *response.status_mut() = status;
    response.headers_mut().insert(LOCATION, location);
    response
}

/// Applies the filters of the way back: the backendRef's, the rule's, CORS.
pub(crate) fn after<D: Dial>(exchange: &Exchange<D>, headers: &mut HeaderMap) {
    let apply = |modifier: &Option<std::sync::Arc<HeaderModifier>>, headers: &mut HeaderMap| {
        if let Some(modifier) = modifier {
            filter::headers::apply(modifier, headers);
        }
    };
    apply(&exchange.backend_response, headers);
    let Some(rule) = &exchange.rule else { return };
    apply(&rule.filters.response_headers, headers);
    if let Some(cors) = &rule.filters.cors {
        filter::cors::respond(cors, exchange.origin.as_ref(), headers);
    }
}

/// Tells a Gateway's backend who asked: `X-Forwarded-For` is appended to, `-Proto` and `-Host` are set, since a client
/// could claim anything; `Forwarded` (RFC 7239) is appended to where it is used. In the mesh nothing is touched.
pub(crate) fn forwarded<D: Dial>(conn: &Conn<D>, parts: &mut Parts) {
    let Some(client) = &conn.forwarded_for else { return };
    let scheme = if conn.is_https() { "https" } else { "http" };
    let host = route::authority(parts).and_then(|h| HeaderValue::from_str(h).ok());
    let headers = &mut parts.headers;
    append(headers, X_FORWARDED_FOR, client);
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme));
    if headers.contains_key(FORWARDED) {
        let ip = conn.peer.ip().to_canonical();
        let node = if ip.is_ipv6() { format!("\"[{ip}]\"") } else { ip.to_string() };
        if let Ok(element) = HeaderValue::try_from(format!("for={node};proto={scheme}")) {
            append(headers, FORWARDED, &element);
        }
    }
    if let Some(host) = host {
        headers.insert(X_FORWARDED_HOST, host);
    }
}

/// One field line, because many applications read only the first.
fn append(headers: &mut HeaderMap, name: HeaderName, element: &HeaderValue) {
    let mut list = Vec::new();
    for value in headers.get_all(&name) {
        list.extend_from_slice(value.as_bytes());
        list.extend_from_slice(b", ");
    }
    let value = if list.is_empty() {
        element.clone()
    } else {
        list.extend_from_slice(element.as_bytes());
        HeaderValue::from_bytes(&list).unwrap_or_else(|_| element.clone())
    };
    headers.insert(name, value);
}

/// Shapes a request for an HTTP/1.1 upstream: `Host` header, target in origin form.
pub(crate) fn for_h1(parts: &mut Parts, fallback_host: impl FnOnce() -> Option<HeaderValue>) {
    if let Some(authority) = parts.uri.authority() {
        // From `:authority`; a rewrite has changed both.
        if let Ok(host) = HeaderValue::from_str(host_and_port(authority)) {
            parts.headers.insert(HOST, host);
        }
        parts.uri = origin_form(&parts.uri);
    } else if !parts.headers.contains_key(HOST)
        && let Some(host) = fallback_host()
    {
        // HTTP/1.0 may leave it out; what we speak may not.
        parts.headers.insert(HOST, host);
    }
    if parts.version == Version::HTTP_2 {
        join_cookies(&mut parts.headers);
    }
    parts.version = Version::HTTP_11;
}

/// Says how long a body is whose end nobody knows yet, whatever the method (RFC 9112 §6.3): hyper takes it that GET and HEAD
/// have none, and would send none.
pub(crate) fn frame_h1<B: Body>(request: &mut Request<B>) {
    let body = request.body();
    if body.is_end_stream()
        || body.size_hint().exact().is_some()
        || request.headers().contains_key(header::CONTENT_LENGTH)
    {
        return;
    }
    request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
}

/// Shapes a request for an HTTP/2 upstream: `:scheme`, `:authority`, no `Host`.
pub(crate) fn for_h2(parts: &mut Parts, tls: bool) {
    let authority = match parts.uri.authority() {
        Some(authority) => Authority::try_from(host_and_port(authority)).ok(),
        None => parts.headers.get(HOST).and_then(|h| Authority::try_from(h.as_bytes()).ok()),
    };
    parts.headers.remove(HOST);
    // Of a try over HTTP/1.1.
    parts.headers.remove(TRANSFER_ENCODING);
    let mut uri = http::uri::Parts::default();
    uri.path_and_query = parts.uri.path_and_query().cloned().or(Some(PathAndQuery::from_static("/")));
    if authority.is_some() {
        uri.scheme = Some(if tls { Scheme::HTTPS } else { Scheme::HTTP });
        uri.authority = authority;
    }
    if let Ok(uri) = Uri::from_parts(uri) {
        parts.uri = uri;
    }
    parts.version = Version::HTTP_2;
}

fn origin_form(uri: &Uri) -> Uri {
    let target = uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    let mut parts = http::uri::Parts::default();
    parts.path_and_query = Some(target);
    Uri::from_parts(parts).unwrap_or_default()
}

/// HTTP/2 splits `cookie`; before HTTP/1.1 the pieces are one field again (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut all = headers.get_all(header::COOKIE).iter();
    if all.next().is_none() || all.next().is_none() {
        return;
    }
    let joined = headers
        .get_all(header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect::<Vec<_>>()
        .join(&b"; "[..]);
    if let Ok(value) = HeaderValue::from_bytes(&joined) {
        headers.insert(header::COOKIE, value);
    }
}

/// Shapes an upstream's answer for the client.
pub(crate) fn answer(status: StatusCode, headers: &mut HeaderMap) {
    if status == StatusCode::SWITCHING_PROTOCOLS {
        let protocol = headers.get(UPGRADE).cloned();
        strip_hop_by_hop(headers);
        if let Some(protocol) = protocol {
            headers.insert(UPGRADE, protocol);
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        }
        return;
    }
    strip_hop_by_hop(headers);
}
