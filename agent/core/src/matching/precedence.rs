//! The specification's precedence as an order of entries: the better one is the lesser.

use super::Entry;
use crate::model::{Hostname, PathMatch, Pattern, Str};
use std::cmp::{Ordering, Reverse};

/// Orders entries. Total: equal only for one match of one rule on one hostname.
pub(super) fn compare<P>(a: &Entry<P>, b: &Entry<P>) -> Ordering {
    hosts(a.hostname.as_ref(), b.hostname.as_ref())
        .then_with(|| path_rank(a.matcher.path.as_ref()).cmp(&path_rank(b.matcher.path.as_ref())))
        .then_with(|| a.matcher.method.is_none().cmp(&b.matcher.method.is_none()))
        .then_with(|| b.matcher.headers.len().cmp(&a.matcher.headers.len()))
        .then_with(|| b.matcher.query.len().cmp(&a.matcher.query.len()))
        .then_with(|| a.order.cmp(&b.order))
}

/// Orders hostnames: exact, then the longest wildcard, then none. Two of equal specificity never cover one host, so
/// their names only keep entries of one host together.
pub(super) fn hosts(a: Option<&Hostname>, b: Option<&Hostname>) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) => a.cmp_specificity(b).then_with(|| a.cmp(b)),
        (a, b) => a.is_none().cmp(&b.is_none()),
    }
}

/// Orders path matches; the variants are in the order of precedence. Texts of exact values and prefixes come after
/// their lengths: two of equal length never match one path, so they only keep entries of one path together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PathRank<'a> {
    /// gRPC: the service first, then the method.
    Grpc(Part<'a>, Part<'a>),
    /// Exact.
    Exact(&'a str),
    /// Prefix, without a trailing slash, not empty.
    Prefix(Reverse<usize>, &'a str),
    /// Pattern, by the length of its text.
    Regex(Reverse<usize>),
    /// The prefix `/`, or no condition.
    Any,
}

/// A gRPC service or method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part<'a> {
    /// Exact.
    Exact(Reverse<usize>, &'a str),
    /// Pattern, by the length of its text.
    Regex(Reverse<usize>),
    /// No condition.
    Any,
}

/// The rank of a path match.
pub(super) fn path_rank(path: Option<&PathMatch>) -> PathRank<'_> {
    match path {
        None => PathRank::Any,
        Some(PathMatch::Exact(path)) => PathRank::Exact(path),
        Some(PathMatch::Prefix(prefix)) => match prefix.trim_end_matches('/') {
            "" => PathRank::Any,
            prefix => PathRank::Prefix(Reverse(prefix.len()), prefix),
        },
        Some(PathMatch::Regex(pattern)) => PathRank::Regex(Reverse(pattern.as_str().len())),
        Some(PathMatch::Grpc { service, method }) => grpc(exact(service.as_ref()), exact(method.as_ref())),
        Some(PathMatch::GrpcRegex { service, method }) => {
            grpc(regex(service.as_ref()), regex(method.as_ref()))
        }
    }
}

fn grpc<'a>(service: Part<'a>, method: Part<'a>) -> PathRank<'a> {
    if (service, method) == (Part::Any, Part::Any) { PathRank::Any } else { PathRank::Grpc(service, method) }
}

/// An empty text is no condition. A leading dot (the schema allows it) marks a name as fully qualified.
fn exact(text: Option<&Str>) -> Part<'_> {
    let text = text.map_or("", |t| t.strip_prefix('.').unwrap_or(t));
    if text.is_empty() { Part::Any } else { Part::Exact(Reverse(text.len()), text) }
}

fn regex(pattern: Option<&Pattern>) -> Part<'_> {
    match pattern.map_or("", Pattern::as_str) {
        "" => Part::Any,
        text => Part::Regex(Reverse(text.len())),
    }
}
