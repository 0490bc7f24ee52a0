//! A persistent map: cloning is cheap, an edit copies one shard of [`SHARDS`].

use crate::hash::FxBuild;
use std::{
    borrow::Borrow,
    collections::HashMap,
    fmt,
    hash::{BuildHasher, Hash},
    sync::Arc,
};

/// 256 shards: at 200,000 entries an edit copies about 800.
const SHARDS: usize = 256;

/// Deterministic, because a shard's index must not change between two maps that share shards.
type Build = FxBuild;

/// Map of shared shards.
#[derive(Clone)]
pub struct Shards<K, V> {
    shards: Arc<Vec<Arc<HashMap<K, V, Build>>>>,
    len: usize,
}

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        Self { shards: Arc::new((0..SHARDS).map(|_| Arc::new(HashMap::default())).collect()), len: 0 }
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Shards<K, V> {
    fn index<Q: Hash + ?Sized>(key: &Q) -> usize {
        // The upper bits: the lower ones place the entry inside the shard.
        (Build::default().hash_one(key) >> 56) as usize % SHARDS
    }

    /// Reads.
    #[must_use]
    pub fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.shards[Self::index(key)].get(key)
    }

    /// Inserts or replaces; gives what was there.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let index = Self::index(&key);
        let old = Arc::make_mut(&mut Arc::make_mut(&mut self.shards)[index]).insert(key, value);
        self.len += usize::from(old.is_none());
        old
    }

    /// Removes; gives what was there.
    pub fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let index = Self::index(key);
        if !self.shards[index].contains_key(key) {
            return None;
        }
        let old = Arc::make_mut(&mut Arc::make_mut(&mut self.shards)[index]).remove(key);
        self.len -= usize::from(old.is_some());
        old
    }

    /// Entries in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.shards.iter().flat_map(|s| s.iter())
    }

    /// Number of entries.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Shards<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.shards.iter().flat_map(|s| s.iter())).finish()
    }
}
