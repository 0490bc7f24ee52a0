//! Host (or SNI) to value, most specific first.

use super::{trie::Trie, words::WordMap};
use crate::model::{Hostname, Str};

/// Values by hostname. `None` as a hostname covers every host, and a request without one.
#[derive(Clone, Debug)]
pub struct HostMap<T> {
    /// Most specific first; the maps hold indexes into it.
    entries: Vec<(Option<Hostname>, T)>,
    exact: WordMap<Str, usize>,
    /// Wildcards, by labels from the right.
    wildcard: Trie<usize>,
    any: Option<usize>,
}

impl<T> Default for HostMap<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), exact: WordMap::default(), wildcard: Trie::default(), any: None }
    }
}

impl<T> HostMap<T> {
    /// Builds; of equal hostnames the first wins.
    #[must_use]
    pub fn build(entries: impl IntoIterator<Item = (Option<Hostname>, T)>) -> Self {
        let mut map = Self { entries: entries.into_iter().collect(), ..Self::default() };
        map.entries.sort_by(|(a, _), (b, _)| super::precedence::hosts(a.as_ref(), b.as_ref()));
        map.entries.dedup_by(|(later, _), (earlier, _)| later == earlier);
        for (index, (hostname, _)) in map.entries.iter().enumerate() {
            match hostname.as_ref().map(|h| (h, h.wildcard_suffix())) {
                None => map.any = Some(index),
                Some((h, None)) => {
                    map.exact.insert(h.as_str().into(), index);
                }
                Some((_, Some(suffix))) => map.wildcard.insert(suffix[1..].rsplit('.'), index),
            }
        }
        map
    }

    /// The value of the most specific hostname that covers `host` (as [`super::host_of`] gives it).
    #[must_use]
    pub fn get(&self, host: Option<&str>) -> Option<&T> {
        self.candidates(host).next()
    }

    /// The values of all hostnames that cover `host`, most specific first.
    pub fn candidates(&self, host: Option<&str>) -> impl Iterator<Item = &T> {
        let exact = host.and_then(|h| {
            #[cfg(test)]
            super::words::steps::add();
            self.exact.get(h)
        });
        let wildcard = host.into_iter().flat_map(|h| self.wildcard.along(labels_under(h)));
        exact.into_iter().chain(wildcard).chain(self.any.as_ref()).map(|index| &self.entries[*index].1)
    }

    /// All, most specific first.
    pub fn iter(&self) -> impl Iterator<Item = (Option<&Hostname>, &T)> {
        self.entries.iter().map(|(h, v)| (h.as_ref(), v))
    }
}

/// The labels of a host from the right, as far as something is left for the wildcard to stand for.
fn labels_under(host: &str) -> impl Iterator<Item = &str> {
    let mut end = host.len();
    std::iter::from_fn(move || {
        let dot = host[..end].rfind('.').filter(|dot| *dot > 0)?;
        let label = &host[dot + 1..end];
        end = dot;
        Some(label)
    })
}
