//! Whether a request's head can be read in one way only.

use super::is_authority;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Version,
    header::{
        AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, COOKIE, HOST,
        SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING,
    },
    request::Parts,
    uri::{PathAndQuery, Scheme},
};

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The target has none of the forms that its method may have (RFC 9112 §3.2, RFC 9113 §8.3.1).
    #[error("the request's target is malformed")]
    Target,
    /// `Host` or `:authority` is no host and port, or `Host` is there more than once, or not at all (RFC 9112 §3.2).
    #[error("the request's Host is malformed")]
    Authority,
    /// The target's authority and `Host` differ (RFC 9113 §8.3.1).
    #[error("the request's target and its Host name two hosts")]
    TwoAuthorities,
    /// The body is coded for its way in a manner that nobody here knows (RFC 9112 §6.1): answer 501.
    #[error("the request has a transfer coding other than chunked")]
    Coding,
    /// Its length is said in a way that others may read differently (RFC 9112 §6.3, RFC 9110 §8.6).
    #[error("the request's length is ambiguous")]
    Length,
    /// A field's name is no token (RFC 9110 §5.1).
    #[error("the name of one of the request's header fields is malformed")]
    FieldName,
}

/// Checks what decides where a message ends and what is asked for: without that, it cannot be passed on to anybody.
///
/// CONNECT is not looked at: it has a target of its own.
///
/// # Errors
/// [`Refusal`].
pub fn check(parts: &Parts) -> Result<(), Refusal> {
    if !has_target(parts) {
        return Err(Refusal::Target);
    }
    if parts.version == Version::HTTP_2 && !parts.headers.keys().all(is_token) {
        return Err(Refusal::FieldName);
    }
    length(parts)
}

/// Whether a name is a token (RFC 9110 §5.6.2). Of all that is none the `http` crate lets `"` pass, in HTTP/2 alone.
fn is_token(name: &HeaderName) -> bool {
    !name.as_str().as_bytes().contains(&b'"')
}

/// Removes fields of a message that came by HTTP/2 whose names HTTP/1.1 could not carry.
pub fn keep_tokens(fields: &mut HeaderMap) {
    if fields.keys().all(is_token) {
        return;
    }
    let wrong: Vec<HeaderName> = fields.keys().filter(|name| !is_token(name)).cloned().collect();
    for name in &wrong {
        fields.remove(name);
    }
}

/// Whether the target has one of the forms of RFC 9112 §3.2: origin, absolute, or `*` of OPTIONS.
fn has_target(parts: &Parts) -> bool {
    let uri = &parts.uri;
    let of_http = uri.scheme().is_none_or(|s| *s == Scheme::HTTP || *s == Scheme::HTTPS);
    if !of_http || (uri.scheme().is_none() && uri.authority().is_some()) {
        return false;
    }
    // A fragment is cut off when the target is parsed, so a path that is only a fragment is there, and empty.
    let is_empty = |p: &PathAndQuery| match p.as_str() {
        "/" => *p != PathAndQuery::from_static("/"),
        text => text.starts_with('?'),
    };
    let path_is_empty = uri.path_and_query().is_none_or(is_empty);
    match uri.path().as_bytes().first() {
        // `http://a` stands for `http://a/`, but there is no such thing in HTTP/2.
        _ if path_is_empty => uri.scheme().is_some() && parts.version < Version::HTTP_2,
        Some(b'/') => true,
        Some(b'*') => uri.path() == "*" && parts.method == Method::OPTIONS && uri.query().is_none(),
        _ => false,
    }
}

fn length(parts: &Parts) -> Result<(), Refusal> {
    let mut codings = parts.headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => {}
        (Some(only), None) if only.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") => {}
        (Some(_), _) => {
            let all = parts.headers.get_all(TRANSFER_ENCODING).iter();
            let mut all = all.flat_map(|v| v.as_bytes().split(|b| *b == b',')).map(<[u8]>::trim_ascii);
            // Chunked twice is no coding that we lack, but a lie.
            let known = all.all(|coding| coding.is_empty() || coding.eq_ignore_ascii_case(b"chunked"));
            return Err(if known { Refusal::Length } else { Refusal::Coding });
        }
    }
    let mut lengths = parts.headers.get_all(CONTENT_LENGTH).iter();
    match (lengths.next(), lengths.next()) {
        (None, _) => Ok(()),
        (Some(only), None) if is_canonical(only.as_bytes()) => Ok(()),
        (Some(_), _) => Err(Refusal::Length),
    }
}

/// A number as one would write it: digits only, no zero in front.
pub(super) fn is_canonical(length: &[u8]) -> bool {
    matches!(length, [b'0'] | [b'1'..=b'9', ..])
        && length.len() <= 19
        && length.iter().all(u8::is_ascii_digit)
}

/// Checks that there is exactly one authority, and that it is one (RFC 9112 §3.2, RFC 9113 §8.3.1). HTTP/1.0 may leave it
/// out, and so may HTTP/2, though nobody does.
///
/// # Errors
/// [`Refusal::Authority`], [`Refusal::TwoAuthorities`].
pub fn check_authority(parts: &Parts) -> Result<(), Refusal> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let (host, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(Refusal::Authority);
    }
    let target = parts.uri.authority().map(|a| a.as_str().as_bytes());
    let host = host.map(HeaderValue::as_bytes);
    match (target, host) {
        (None, None) if parts.version == Version::HTTP_11 => Err(Refusal::Authority),
        (None, None) => Ok(()),
        (Some(target), Some(host)) => {
            let port: &[u8] =
                if parts.uri.scheme().is_some_and(|s| *s == Scheme::HTTPS) { b":443" } else { b":80" };
            let without = |a: &'_ [u8]| a.strip_suffix(port).unwrap_or(a).len();
            let same = target[..without(target)].eq_ignore_ascii_case(&host[..without(host)]);
            if !is_authority(target) {
                Err(Refusal::Authority)
            } else if same {
                Ok(())
            } else {
                Err(Refusal::TwoAuthorities)
            }
        }
        (Some(only), None) | (None, Some(only)) if is_authority(only) => Ok(()),
        _ => Err(Refusal::Authority),
    }
}

/// Fields that no trailer may have, because they frame, address or authorize a message, or say how to read it (RFC 9110 §6.5.1).
const NEVER_TRAILERS: [HeaderName; 11] = [
    AUTHORIZATION,
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    CONTENT_RANGE,
    CONTENT_TYPE,
    COOKIE,
    HOST,
    SET_COOKIE,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
];

/// Removes from a request's trailers what no trailer may have.
pub fn trailers(fields: &mut HeaderMap) {
    for name in &NEVER_TRAILERS {
        fields.remove(name);
    }
}
