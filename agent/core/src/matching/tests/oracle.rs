//! The specification's precedence as one naive sorted list. Shares no code with the index and does everything the
//! plain way, allocating as it likes.

use crate::{
    matching::{Entry, RequestHead},
    model::{HeaderMatch, PathMatch, Pattern, QueryMatch, Str, ValueMatch},
};
use std::cmp::Reverse;

/// The best of the entries that match.
pub(super) fn select<'e, P: 'e>(
    entries: impl Iterator<Item = &'e Entry<P>>,
    head: &RequestHead<'_>,
) -> Option<&'e Entry<P>> {
    entries.filter(|e| matches(e, head)).min_by_key(|e| key(e))
}

fn matches<P>(entry: &Entry<P>, head: &RequestHead<'_>) -> bool {
    let host = match (&entry.hostname, head.host) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(hostname), Some(host)) => hostname.matches(host),
    };
    let m = &entry.matcher;
    host && m.path.as_ref().is_none_or(|p| path(p, head.path))
        && m.method.as_ref().is_none_or(|m| m == head.method)
        && headers(entry).iter().all(|h| header(h, head))
        && query(entry).iter().all(|q| parameter(q, head.query.unwrap_or("")))
}

fn path(wanted: &PathMatch, path: &str) -> bool {
    let grpc: Vec<&str> = path.split('/').collect();
    let grpc = match grpc[..] {
        ["", service, method] if !service.is_empty() && !method.is_empty() => Some((service, method)),
        _ => None,
    };
    match wanted {
        PathMatch::Exact(p) => **p == *path,
        PathMatch::Prefix(p) => {
            let prefix = p.trim_end_matches('/');
            prefix.is_empty() || path == prefix || path.starts_with(&format!("{prefix}/"))
        }
        PathMatch::Regex(p) => p.is_match(path.as_bytes()),
        PathMatch::Grpc { service, method } => {
            let ok = |want: &Option<Str>, is: &str| want.as_ref().is_none_or(|w| **w == *is);
            grpc.is_some_and(|(s, m)| ok(service, s) && ok(method, m))
        }
        PathMatch::GrpcRegex { service, method } => {
            let ok =
                |want: &Option<Pattern>, is: &str| want.as_ref().is_none_or(|w| w.is_match(is.as_bytes()));
            grpc.is_some_and(|(s, m)| ok(service, s) && ok(method, m))
        }
    }
}

fn headers<P>(entry: &Entry<P>) -> Vec<&HeaderMatch> {
    let all = &entry.matcher.headers;
    all.iter()
        .enumerate()
        .filter(|(i, h)| all[..*i].iter().all(|b| b.name != h.name))
        .map(|(_, h)| h)
        .collect()
}

fn query<P>(entry: &Entry<P>) -> Vec<&QueryMatch> {
    let all = &entry.matcher.query;
    all.iter()
        .enumerate()
        .filter(|(i, q)| all[..*i].iter().all(|b| b.name != q.name))
        .map(|(_, q)| q)
        .collect()
}

fn header(wanted: &HeaderMatch, head: &RequestHead<'_>) -> bool {
    let lines: Vec<&str> = head.headers.get_all(&wanted.name).iter().map(|v| v.to_str().unwrap()).collect();
    let joined = lines.join(if wanted.name == "cookie" { "; " } else { "," });
    !lines.is_empty()
        && match &wanted.value {
            ValueMatch::Exact(value) => value.to_str().unwrap() == joined,
            ValueMatch::Regex(pattern) => pattern.is_match(joined.as_bytes()),
        }
}

fn parameter(wanted: &QueryMatch, query: &str) -> bool {
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if decode(name) == wanted.name.as_bytes() {
            return match &wanted.value {
                ValueMatch::Exact(v) => v.as_bytes() == decode(value),
                ValueMatch::Regex(p) => p.is_match(&decode(value)),
            };
        }
    }
    false
}

fn decode(text: &str) -> Vec<u8> {
    let text = text.replace('+', " ");
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let hex = text.get(at + 1..at + 3).filter(|h| h.bytes().all(|b| b.is_ascii_hexdigit()));
        match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(byte) if bytes[at] == b'%' => {
                out.push(byte);
                at += 3;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    out
}

/// Place in the sorted list; the least is the best. One column per sentence of the specification.
type Key = (
    (u8, Reverse<usize>),
    (u8, [Reverse<usize>; 4]),
    bool,
    Reverse<usize>,
    Reverse<usize>,
    (i64, String, u16, u16),
);

pub(super) fn key<P>(entry: &Entry<P>) -> Key {
    let host = match &entry.hostname {
        None => (2, Reverse(0)),
        Some(h) => (u8::from(h.as_str().starts_with('*')), Reverse(h.as_str().len())),
    };
    let o = &entry.order;
    let order = (o.created, format!("{}/{}", o.route.namespace, o.route.name), o.rule, o.matched);
    let m = &entry.matcher;
    (
        host,
        path_key(m.path.as_ref()),
        m.method.is_none(),
        Reverse(headers(entry).len()),
        Reverse(query(entry).len()),
        order,
    )
}

fn path_key(path: Option<&PathMatch>) -> (u8, [Reverse<usize>; 4]) {
    let len = |s: &Option<Str>| s.as_ref().map_or(0, |s| s.len());
    let pattern = |s: &Option<Pattern>| s.as_ref().map_or(0, |s| s.as_str().len());
    let columns = |class, a, b, c, d| (class, [a, b, c, d].map(Reverse));
    match path {
        // Service before method, exact before pattern.
        Some(PathMatch::Grpc { service, method }) => columns(0, len(service), 0, len(method), 0),
        Some(PathMatch::GrpcRegex { service, method }) => columns(0, 0, pattern(service), 0, pattern(method)),
        Some(PathMatch::Exact(_)) => columns(1, 0, 0, 0, 0),
        Some(PathMatch::Prefix(p)) if !p.trim_end_matches('/').is_empty() => {
            columns(2, p.trim_end_matches('/').len(), 0, 0, 0)
        }
        Some(PathMatch::Regex(p)) => columns(3, p.as_str().len(), 0, 0, 0),
        Some(PathMatch::Prefix(_)) | None => columns(4, 0, 0, 0, 0),
    }
}
