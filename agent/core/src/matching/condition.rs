//! What a match asks for beside host and path: method, headers, query.

use super::RequestHead;
use crate::model::{HeaderMatch, Match, Pattern, QueryMatch, ValueMatch};
use http::{
    HeaderName,
    header::{COOKIE, HOST},
};
use std::borrow::Cow;

/// Leaves out header and query matches whose name was there before: "only the first entry MUST be considered".
pub(super) fn keep_first_names(matcher: &mut Match) {
    let mut names = Vec::new();
    matcher.headers.retain(|h| is_new(&mut names, &h.name));
    let mut names = Vec::new();
    matcher.query.retain(|q| is_new(&mut names, &q.name));
}

fn is_new<N: Clone + PartialEq>(seen: &mut Vec<N>, name: &N) -> bool {
    let new = !seen.contains(name);
    if new {
        seen.push(name.clone());
    }
    new
}

/// Whether method, headers and query are as asked.
pub(super) fn holds(matcher: &Match, head: &RequestHead<'_>) -> bool {
    #[cfg(test)]
    super::words::steps::add();
    matcher.method.as_ref().is_none_or(|m| m == head.method)
        && matcher.headers.iter().all(|h| header(h, head))
        && matcher.query.iter().all(|q| query(q, head.query.unwrap_or_default()))
}

fn header(wanted: &HeaderMatch, head: &RequestHead<'_>) -> bool {
    if wanted.name == HOST {
        let authority = head.authority.map(str::as_bytes);
        return authority.is_some_and(|a| match &wanted.value {
            ValueMatch::Exact(value) => value.as_bytes().eq_ignore_ascii_case(a),
            ValueMatch::Regex(pattern) => pattern.is_match(a),
        });
    }
    let mut lines = head.headers.get_all(&wanted.name).iter().map(http::HeaderValue::as_bytes);
    match (&wanted.value, lines.next(), lines.next()) {
        (ValueMatch::Regex(pattern), ..) if pattern.is_broken() => true,
        (_, None, _) => false,
        (ValueMatch::Exact(value), Some(only), None) => value.as_bytes() == only,
        (ValueMatch::Regex(pattern), Some(only), None) => pattern.is_match(only),
        (ValueMatch::Exact(value), Some(first), Some(second)) => {
            let rest = [first, second].into_iter().chain(lines);
            is_joined(value.as_bytes(), rest, separator(&wanted.name))
        }
        (ValueMatch::Regex(pattern), Some(first), Some(second)) => {
            let all: Vec<&[u8]> = [first, second].into_iter().chain(lines).collect();
            pattern.is_match(&all.join(separator(&wanted.name)))
        }
    }
}

/// What joins the lines of one field.
fn separator(name: &HeaderName) -> &'static [u8] {
    if *name == COOKIE { b"; " } else { b"," }
}

/// Whether `value` is the lines joined by `separator`.
fn is_joined<'a>(mut value: &[u8], lines: impl Iterator<Item = &'a [u8]>, separator: &[u8]) -> bool {
    for (index, line) in lines.enumerate() {
        let rest = if index == 0 { Some(value) } else { value.strip_prefix(separator) };
        match rest.and_then(|r| r.strip_prefix(line)) {
            Some(rest) => value = rest,
            None => return false,
        }
    }
    value.is_empty()
}

fn query(wanted: &QueryMatch, query: &str) -> bool {
    if matches!(&wanted.value, ValueMatch::Regex(pattern) if pattern.is_broken()) {
        return true;
    }
    let value = query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .find(|(name, _)| decoded(name).eq(wanted.name.bytes()));
    let Some((_, value)) = value else { return false };
    match &wanted.value {
        ValueMatch::Exact(wanted) => decoded(value).eq(wanted.bytes()),
        ValueMatch::Regex(pattern) => matches_decoded(pattern, value),
    }
}

fn matches_decoded(pattern: &Pattern, value: &str) -> bool {
    let value = if value.contains(['%', '+']) {
        Cow::Owned(decoded(value).collect::<Vec<u8>>())
    } else {
        Cow::Borrowed(value.as_bytes())
    };
    pattern.is_match(&value)
}

/// `application/x-www-form-urlencoded`, decoded on the fly. A `%` without two hexadecimal digits stands for itself.
fn decoded(text: &str) -> impl Iterator<Item = u8> {
    let hex = |b: &u8| char::from(*b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let mut rest = text.as_bytes();
    std::iter::from_fn(move || {
        let (byte, tail) = match rest {
            [] => return None,
            [b'+', tail @ ..] => (b' ', tail),
            [b'%', high, low, tail @ ..] => match (hex(high), hex(low)) {
                (Some(high), Some(low)) => (high << 4 | low, tail),
                _ => (b'%', &rest[1..]),
            },
            [byte, tail @ ..] => (*byte, tail),
        };
        rest = tail;
        Some(byte)
    })
}
