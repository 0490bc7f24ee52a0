//! A route table.

use super::{
    condition::keep_first_names,
    host::HostMap,
    path::PathIndex,
    precedence::{PathRank, compare, path_rank},
};
use crate::{
    message::{PathRules, normal_path},
    model::{Hostname, Match, ObjectKey, PathMatch},
};
use http::{HeaderMap, Method};
use std::{borrow::Cow, collections::HashMap};

/// What matching looks at.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    /// Host as [`super::host_of`] gives it: lower case, no port.
    pub host: Option<&'a str>,
    /// Method.
    pub method: &'a Method,
    /// `Host` or `:authority`, as received: what a match on the header `Host` is compared with.
    pub authority: Option<&'a str>,
    /// Path as [`crate::message::normal_path`] writes it, where [`RouteTable::reads_paths`].
    pub path: &'a str,
    /// Query without `?`.
    pub query: Option<&'a str>,
    /// Headers.
    pub headers: &'a HeaderMap,
}

/// Breaks ties: oldest route, then `namespace/name`, then order of rules, then of matches.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Order {
    /// `creationTimestamp`, Unix seconds.
    pub created: i64,
    /// `namespace/name`.
    pub route: ObjectKey,
    /// Index of the rule.
    pub rule: u16,
    /// Index of the match in the rule.
    pub matched: u16,
}

/// One (hostname, match) of one rule.
#[derive(Clone, Debug)]
pub struct Entry<P> {
    /// Effective hostname: route ∩ listener; none covers all.
    pub hostname: Option<Hostname>,
    /// Conditions.
    pub matcher: Match,
    /// Tie break.
    pub order: Order,
    /// What it leads to.
    pub policy: P,
}

/// Rules of one listener or Service port, sorted by precedence and indexed by host and path.
///
/// A lookup costs the labels of the host and the segments of the path, not the number of rules; only rules of one
/// host and one path are asked one after the other, and so are the path patterns of one host.
#[derive(Clone, Debug)]
pub struct RouteTable<P> {
    /// In the order of precedence. Those of one hostname stand together, and in there those of one path.
    entries: Vec<Entry<P>>,
    index: HostMap<PathIndex>,
    reads_paths: bool,
}

/// What was selected.
#[derive(Clone, Copy, Debug)]
pub struct Selected<'a, P> {
    /// The winning entry.
    pub entry: &'a Entry<P>,
}

/// An entry that no request can reach, because another asks for the same and takes precedence.
#[derive(Clone, Copy, Debug)]
pub struct Shadowed<'a, P> {
    /// The unreachable one.
    pub entry: &'a Entry<P>,
    /// The one that gets its requests.
    pub by: &'a Entry<P>,
}

impl<'a, P> Selected<'a, P> {
    /// The path prefix that matched, without a trailing slash (`/` is empty): what `ReplacePrefixMatch` replaces.
    /// `None` when the winner has no prefix match.
    #[must_use]
    pub fn prefix(&self) -> Option<&'a str> {
        match &self.entry.matcher.path {
            Some(PathMatch::Prefix(prefix)) => Some(prefix.trim_end_matches('/')),
            Some(_) => None,
            // HTTP's default is the prefix `/`.
            None => Some(""),
        }
    }
}

impl<P> Default for RouteTable<P> {
    fn default() -> Self {
        Self { entries: Vec::new(), index: HostMap::default(), reads_paths: false }
    }
}

impl<P> RouteTable<P> {
    /// Builds the table. Any order of entries gives the same table, given that no two have both hostname and
    /// [`Order`] in common.
    #[must_use]
    pub fn build(mut entries: Vec<Entry<P>>) -> Self {
        for entry in &mut entries {
            keep_first_names(&mut entry.matcher);
            write_normally(&mut entry.matcher);
        }
        entries.sort_by(compare);
        let mut start = 0;
        let hosts = entries.chunk_by(|a, b| a.hostname == b.hostname).map(|of_host| {
            let index = PathIndex::build(of_host, start);
            start += of_host.len();
            (of_host[0].hostname.clone(), index)
        });
        let index = HostMap::build(hosts);
        let reads_paths = entries.iter().any(|e| path_rank(e.matcher.path.as_ref()) != PathRank::Any);
        Self { entries, index, reads_paths }
    }

    /// Whether any rule asks for a path other than `/`. Without one a request's target is nobody's matter.
    #[must_use]
    pub const fn reads_paths(&self) -> bool {
        self.reads_paths
    }

    /// The rule for a request, if any.
    #[must_use]
    pub fn select(&self, head: &RequestHead<'_>) -> Option<Selected<'_, P>> {
        self.index
            .candidates(head.host)
            .find_map(|paths| paths.select(&self.entries, head))
            .map(|entry| Selected { entry })
    }

    /// Entries in the order of precedence, for `weft routes`.
    pub fn iter(&self) -> impl Iterator<Item = &Entry<P>> {
        self.entries.iter()
    }

    /// Entries that can never be selected: same hostname, path, method, headers and query as one before. Not
    /// found is what only the meaning of patterns would tell.
    #[must_use]
    pub fn shadowed(&self) -> Vec<Shadowed<'_, P>> {
        let mut first = HashMap::new();
        let mut shadowed = Vec::new();
        for entry in &self.entries {
            let by = *first.entry(meaning(entry)).or_insert(entry);
            if !std::ptr::eq(by, entry) {
                shadowed.push(Shadowed { entry, by });
            }
        }
        shadowed
    }
}

/// Brings the path of a rule into the form that those of requests have.
fn write_normally(matcher: &mut Match) {
    if let Some(PathMatch::Exact(path) | PathMatch::Prefix(path)) = &mut matcher.path
        && let Ok(Cow::Owned(normal)) = normal_path(path, &PathRules::default())
    {
        *path = normal.into();
    }
}

/// A text that is the same for entries that select the same requests.
fn meaning<P>(entry: &Entry<P>) -> String {
    let Match { path, method, headers, query } = &entry.matcher;
    let pattern = match path {
        Some(path @ (PathMatch::Regex(_) | PathMatch::GrpcRegex { .. })) => Some(path),
        _ => None,
    };
    let mut headers: Vec<_> = headers.iter().map(|h| format!("{h:?}")).collect();
    headers.sort();
    let mut query: Vec<_> = query.iter().map(|q| format!("{q:?}")).collect();
    query.sort();
    let path = path_rank(path.as_ref());
    format!("{:?} {path:?} {pattern:?} {method:?} {headers:?} {query:?}", entry.hostname)
}
