//! From `Host` or `:authority` to what hostnames are compared with.

use std::borrow::Cow;

/// The host of an authority: without port and trailing dot, lower case. Allocates only if it has capitals.
///
/// The port never counts for matching (RFC 9110 §7.2 puts it there, the Gateway API ignores it), and `example.com.` is
/// the same name as `example.com`. An IPv6 literal keeps its brackets, so that it never looks like a name.
#[must_use]
pub fn host_of(authority: &str) -> Cow<'_, str> {
    let (host, _) = split_port(authority);
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

/// Host and port of an authority; the host keeps its case. A port that is no number is cut off and is none.
#[must_use]
pub fn split_port(authority: &str) -> (&str, Option<u16>) {
    let authority = authority.rsplit_once('@').map_or(authority, |(_, a)| a);
    let end =
        if authority.starts_with('[') { authority.find(']').map_or(authority.len(), |i| i + 1) } else { 0 };
    match authority[end..].find(':') {
        Some(at) => (&authority[..end + at], authority[end + at + 1..].parse().ok()),
        None => (authority, None),
    }
}
