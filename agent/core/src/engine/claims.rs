//! Values that several objects may claim for one key, of which the first by rank counts.

use std::{collections::HashMap, hash::Hash};

/// Claims by key. Of equal worlds the same claim wins, whatever the order in which they came.
#[derive(Debug)]
pub(super) struct Claims<K, R, V> {
    claims: HashMap<K, Vec<(R, V)>>,
}

impl<K, R, V> Default for Claims<K, R, V> {
    fn default() -> Self {
        Self { claims: HashMap::new() }
    }
}

impl<K: Hash + Eq, R: Ord, V> Claims<K, R, V> {
    /// Adds or replaces the claim of this rank.
    pub(super) fn put(&mut self, key: K, rank: R, value: V) {
        let claims = self.claims.entry(key).or_default();
        match claims.binary_search_by(|(r, _)| r.cmp(&rank)) {
            Ok(at) => claims[at].1 = value,
            Err(at) => claims.insert(at, (rank, value)),
        }
    }

    /// Takes the claim of this rank back.
    pub(super) fn withdraw(&mut self, key: &K, rank: &R) {
        if let Some(claims) = self.claims.get_mut(key) {
            claims.retain(|(r, _)| r != rank);
            if claims.is_empty() {
                self.claims.remove(key);
            }
        }
    }

    /// The claim that counts.
    pub(super) fn first(&self, key: &K) -> Option<&V> {
        Some(&self.claims.get(key)?.first()?.1)
    }

    /// All claims, the first by rank first.
    pub(super) fn of(&self, key: &K) -> &[(R, V)] {
        self.claims.get(key).map_or(&[], Vec::as_slice)
    }
}
