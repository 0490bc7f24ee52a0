//! `HTTPPathModifier`, for redirects and rewrites alike.

use crate::model::PathModifier;
use std::fmt::Write;

/// A path after a modifier. Always starts with exactly one `/`: `//x` would be read as an authority.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NewPath {
    /// Path, without query.
    pub(super) path: String,
    /// What a replacement has after its `?`.
    pub(super) query: Option<String>,
    /// What a replacement has after its `#`: for `Location` only.
    pub(super) fragment: Option<String>,
}

/// Applies `modifier` to `path`. `matched` is the prefix that selected the rule; without one (an Exact or Regex match,
/// for which the route is not accepted) `ReplacePrefixMatch` leaves the path as it is.
pub(super) fn modify(modifier: &PathModifier, matched: Option<&str>, path: &str) -> NewPath {
    let (value, rest) = match modifier {
        PathModifier::ReplaceFullPath(value) => (&**value, ""),
        PathModifier::ReplacePrefixMatch(value) => match matched.and_then(|m| after_prefix(m, path)) {
            Some(rest) => (&**value, rest),
            None => ("", path),
        },
    };
    let (value, fragment) = split(value, '#');
    let (mut value, query) = split(value, '?');
    if matches!(modifier, PathModifier::ReplacePrefixMatch(_)) {
        // "When specified, a trailing `/` is ignored": `/xyz/` and `/xyz` are one replacement, `/` and "" are another.
        value = value.trim_end_matches('/');
    }
    let mut new = encoded(value);
    new.push_str(rest);
    NewPath {
        path: format!("/{}", new.trim_start_matches('/')),
        query: query.map(encoded),
        fragment: fragment.map(encoded),
    }
}

/// What follows `prefix` in `path`: empty, or with a leading `/`.
fn after_prefix<'a>(prefix: &str, path: &'a str) -> Option<&'a str> {
    let rest = path.strip_prefix(prefix.trim_end_matches('/'))?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

fn split(s: &str, at: char) -> (&str, Option<&str>) {
    s.split_once(at).map_or((s, None), |(a, b)| (a, Some(b)))
}

/// Percent-encodes what no URI may hold: the CRD puts no pattern on replacement values, and a line feed in one must not
/// end the `Location` header. A backslash too: browsers read `/\evil.example` as `//evil.example`.
pub(super) fn encoded(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    for byte in s.bytes() {
        if byte.is_ascii_graphic() && !b"\"#<>\\`{}".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}"); // writing to a String cannot fail
        }
    }
    out
}
