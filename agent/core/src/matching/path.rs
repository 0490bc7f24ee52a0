//! Index of the paths of one hostname.

use super::{
    Entry, RequestHead, condition,
    grpc::{self, GrpcIndex},
    precedence::{PathRank, path_rank},
    trie::Trie,
    words::WordMap,
};
use crate::model::{PathMatch, Str};

/// A run of entries in the table, sorted by precedence.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Leaf {
    start: usize,
    end: usize,
}

impl Leaf {
    pub(super) fn new(start: usize, len: usize) -> Self {
        Self { start, end: start + len }
    }

    /// Adds the run that follows.
    pub(super) fn extend(&mut self, next: Self) {
        if self.start == self.end {
            self.start = next.start;
        }
        self.end = next.end;
    }

    /// The first entry that holds.
    fn find<'e, P>(self, entries: &'e [Entry<P>], head: &RequestHead<'_>) -> Option<&'e Entry<P>> {
        entries[self.start..self.end]
            .iter()
            .find(|e| pattern_holds(e.matcher.path.as_ref(), head.path) && condition::holds(&e.matcher, head))
    }
}

/// Up to `N` runs, best first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leaves<const N: usize>(pub(super) [Option<Leaf>; N]);

impl<const N: usize> Default for Leaves<N> {
    fn default() -> Self {
        Self([None; N])
    }
}

/// Entries of one hostname by path.
#[derive(Clone, Debug, Default)]
pub(super) struct PathIndex {
    grpc: Option<Box<GrpcIndex>>,
    exact: WordMap<Str, Leaf>,
    /// By segments, without `/` itself.
    prefix: Trie<Leaf>,
    regex: Leaf,
    any: Leaf,
}

impl PathIndex {
    /// Indexes the entries of one hostname, which start at `start` in the table and are sorted by precedence.
    pub(super) fn build<P>(entries: &[Entry<P>], mut start: usize) -> Self {
        let mut index = Self::default();
        for run in entries.chunk_by(|a, b| rank(a) == rank(b)) {
            let leaf = Leaf::new(start, run.len());
            start += run.len();
            match rank(&run[0]) {
                PathRank::Grpc(service, method) => {
                    index.grpc.get_or_insert_default().insert(service, method, leaf);
                }
                PathRank::Exact(path) => {
                    index.exact.insert(path.into(), leaf);
                }
                PathRank::Prefix(_, prefix) => {
                    // The schema demands a leading slash; a prefix without one covers no path.
                    if let Some(segments) = prefix.strip_prefix('/') {
                        index.prefix.insert(segments.split('/'), leaf);
                    }
                }
                PathRank::Regex(_) => index.regex.extend(leaf),
                PathRank::Any => index.any.extend(leaf),
            }
        }
        index
    }

    /// The best entry for a request.
    pub(super) fn select<'e, P>(
        &self,
        entries: &'e [Entry<P>],
        head: &RequestHead<'_>,
    ) -> Option<&'e Entry<P>> {
        let find = |leaf: &Leaf| leaf.find(entries, head);
        self.grpc
            .as_ref()
            .and_then(|g| g.leaves(head.path).0.iter().flatten().find_map(find))
            .or_else(|| {
                #[cfg(test)]
                super::words::steps::add();
                self.exact.get(head.path).and_then(find)
            })
            .or_else(|| {
                let segments = head.path.strip_prefix('/').into_iter().flat_map(|p| p.split('/'));
                self.prefix.along(segments).find_map(find)
            })
            .or_else(|| find(&self.regex))
            .or_else(|| find(&self.any))
    }
}

fn rank<P>(entry: &Entry<P>) -> PathRank<'_> {
    path_rank(entry.matcher.path.as_ref())
}

/// What the index could not decide.
fn pattern_holds(matcher: Option<&PathMatch>, path: &str) -> bool {
    match matcher {
        Some(PathMatch::Regex(pattern)) => pattern.is_match(path.as_bytes()),
        Some(matcher @ PathMatch::GrpcRegex { .. }) => grpc::holds(matcher, path),
        _ => true,
    }
}
