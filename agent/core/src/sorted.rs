//! A persistent sorted map: cloning is cheap, an edit copies one chunk, and what two maps share need not be compared.

use std::{
    borrow::Borrow,
    cmp::Ordering,
    fmt,
    ops::{Bound, Index, RangeBounds},
    sync::Arc,
};

/// A chunk that grows beyond this is halved; two that fit into half of it become one. At 100,000 entries an edit copies about
/// 100 entries and 1,000 pointers to chunks.
const CHUNK: usize = 128;

type Chunk<K, V> = Arc<Vec<(K, V)>>;

/// Map of shared chunks, none of them empty, in ascending order of keys.
pub struct Sorted<K, V> {
    chunks: Arc<Vec<Chunk<K, V>>>,
    len: usize,
}

impl<K, V> Sorted<K, V> {
    /// Entries, ascending.
    #[must_use]
    pub fn iter(&self) -> Iter<'_, K, V> {
        Iter { chunks: self.chunks.iter(), entries: [].iter() }
    }

    /// Keys, ascending.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// Values in the order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
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

    /// Whether both are one map of which nothing was edited since. Equal maps need not be.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.chunks, &other.chunks)
    }
}

impl<K: Ord, V> Sorted<K, V> {
    /// The chunk where a key is, or would be.
    fn chunk_of<Q: Ord + ?Sized>(&self, key: &Q) -> usize
    where
        K: Borrow<Q>,
    {
        let after =
            self.chunks.partition_point(|c| c.first().is_some_and(|(first, _)| first.borrow() <= key));
        after.saturating_sub(1)
    }

    /// Reads.
    #[must_use]
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let chunk = self.chunks.get(self.chunk_of(key))?;
        let at = chunk.binary_search_by(|(k, _)| k.borrow().cmp(key)).ok()?;
        Some(&chunk[at].1)
    }

    /// Whether there is an entry.
    #[must_use]
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }

    /// The entries of a range of keys, ascending.
    pub fn range(&self, range: impl RangeBounds<K>) -> impl Iterator<Item = (&K, &V)> {
        let before = |key: &K| match range.start_bound() {
            Bound::Included(start) => key < start,
            Bound::Excluded(start) => key <= start,
            Bound::Unbounded => false,
        };
        let after = self.chunks.partition_point(|c| c.first().is_some_and(|(first, _)| before(first)));
        let mut chunks = self.chunks[after.saturating_sub(1)..].iter();
        let entries = chunks.next().map_or(&[][..], |c| &c[c.partition_point(|(key, _)| before(key))..]);
        let all = Iter { chunks, entries: entries.iter() };
        all.take_while(move |(key, _)| match range.end_bound() {
            Bound::Included(end) => *key <= end,
            Bound::Excluded(end) => *key < end,
            Bound::Unbounded => true,
        })
    }
}

impl<K: Ord + Clone, V: Clone> Sorted<K, V> {
    /// Inserts or replaces; gives what was there.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let at = self.chunk_of(&key);
        let chunks = Arc::make_mut(&mut self.chunks);
        let Some(chunk) = chunks.get_mut(at) else {
            chunks.push(Arc::new(vec![(key, value)]));
            self.len = 1;
            return None;
        };
        let chunk = Arc::make_mut(chunk);
        match chunk.binary_search_by(|(k, _)| k.cmp(&key)) {
            Ok(index) => Some(std::mem::replace(&mut chunk[index].1, value)),
            Err(index) => {
                chunk.insert(index, (key, value));
                self.len += 1;
                if chunk.len() > CHUNK {
                    let upper = chunk.split_off(CHUNK / 2);
                    chunks.insert(at + 1, Arc::new(upper));
                }
                None
            }
        }
    }

    /// Removes; gives what was there.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let at = self.chunk_of(key);
        // Looked up first: nothing is copied for what is not there.
        let index = self.chunks.get(at)?.binary_search_by(|(k, _)| k.borrow().cmp(key)).ok()?;
        let chunks = Arc::make_mut(&mut self.chunks);
        let (_, value) = Arc::make_mut(&mut chunks[at]).remove(index);
        self.len -= 1;
        merge(chunks, at);
        Some(value)
    }

    /// Removes everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Joins a chunk that has shrunk with a neighbour if both are small; takes it away when it is empty.
fn merge<K: Clone, V: Clone>(chunks: &mut Vec<Chunk<K, V>>, at: usize) {
    if chunks[at].is_empty() {
        chunks.remove(at);
        return;
    }
    for first in [at.saturating_sub(1), at] {
        let Some(second) = chunks.get(first + 1) else { continue };
        if chunks[first].len() + second.len() <= CHUNK / 2 {
            let second = chunks.remove(first + 1);
            Arc::make_mut(&mut chunks[first]).extend(second.iter().cloned());
            return;
        }
    }
}

impl<K: Ord, V> Sorted<K, V> {
    /// Calls for each key whose entries are not the same by `same`, ascending, with what was in `self` and what is in `new`.
    /// Costs what the two do not share.
    pub fn differences(
        &self,
        new: &Self,
        same: impl Fn(&V, &V) -> bool,
        mut differs: impl FnMut(&K, Option<&V>, Option<&V>),
    ) {
        if self.is(new) {
            return;
        }
        let (mut old, mut new) = (Cursor::new(&self.chunks), Cursor::new(&new.chunks));
        loop {
            while old.skip_shared(&mut new) {}
            match (old.entry(), new.entry()) {
                (None, None) => return,
                (Some((key, was)), None) => {
                    differs(key, Some(was), None);
                    old.step();
                }
                (None, Some((key, is))) => {
                    differs(key, None, Some(is));
                    new.step();
                }
                (Some((a, was)), Some((b, is))) => match a.cmp(b) {
                    Ordering::Less => {
                        differs(a, Some(was), None);
                        old.step();
                    }
                    Ordering::Greater => {
                        differs(b, None, Some(is));
                        new.step();
                    }
                    Ordering::Equal => {
                        if !same(was, is) {
                            differs(a, Some(was), Some(is));
                        }
                        old.step();
                        new.step();
                    }
                },
            }
        }
    }
}

/// A place in a map.
struct Cursor<'a, K, V> {
    chunks: &'a [Chunk<K, V>],
    index: usize,
}

impl<'a, K, V> Cursor<'a, K, V> {
    fn new(chunks: &'a [Chunk<K, V>]) -> Self {
        Self { chunks, index: 0 }
    }

    fn entry(&self) -> Option<&'a (K, V)> {
        self.chunks.first()?.get(self.index)
    }

    fn step(&mut self) {
        self.index += 1;
        if self.chunks.first().is_some_and(|c| c.len() <= self.index) {
            self.chunks = &self.chunks[1..];
            self.index = 0;
        }
    }

    /// Both stand at the beginning of one chunk: both pass it.
    fn skip_shared(&mut self, other: &mut Self) -> bool {
        let shared = match (self.chunks.first(), other.chunks.first()) {
            (Some(mine), Some(theirs)) => self.index == 0 && other.index == 0 && Arc::ptr_eq(mine, theirs),
            _ => false,
        };
        if shared {
            (self.chunks, other.chunks) = (&self.chunks[1..], &other.chunks[1..]);
        }
        shared
    }
}

/// See [`Sorted::iter`].
pub struct Iter<'a, K, V> {
    chunks: std::slice::Iter<'a, Chunk<K, V>>,
    entries: std::slice::Iter<'a, (K, V)>,
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.entries.next() {
                return Some((key, value));
            }
            self.entries = self.chunks.next()?.iter();
        }
    }
}

impl<'a, K, V> IntoIterator for &'a Sorted<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<K, V> Clone for Sorted<K, V> {
    fn clone(&self) -> Self {
        Self { chunks: self.chunks.clone(), len: self.len }
    }
}

impl<K, V> Default for Sorted<K, V> {
    fn default() -> Self {
        Self { chunks: Arc::default(), len: 0 }
    }
}

impl<K: Ord, V: PartialEq> PartialEq for Sorted<K, V> {
    fn eq(&self, other: &Self) -> bool {
        let mut equal = self.len == other.len;
        if equal {
            // Walks to the end also when the first entry differs: that is no more than what is not shared.
            self.differences(other, V::eq, |_, _, _| equal = false);
        }
        equal
    }
}

impl<K: Ord, V: Eq> Eq for Sorted<K, V> {}

impl<K: Ord + Borrow<Q>, Q: Ord + ?Sized, V> Index<&Q> for Sorted<K, V> {
    type Output = V;

    /// # Panics
    /// Without such an entry.
    fn index(&self, key: &Q) -> &V {
        self.get(key).expect("the caller knows that there is such an entry")
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Sorted<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self).finish()
    }
}

impl<K: Ord, V> FromIterator<(K, V)> for Sorted<K, V> {
    /// Of several entries with one key the last counts.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let sorted: std::collections::BTreeMap<K, V> = entries.into_iter().collect();
        let len = sorted.len();
        let mut chunks = Vec::with_capacity(len.div_ceil(CHUNK / 2));
        let mut entries = sorted.into_iter().peekable();
        while entries.peek().is_some() {
            chunks.push(Arc::new(entries.by_ref().take(CHUNK / 2).collect()));
        }
        Self { chunks: Arc::new(chunks), len }
    }
}

impl<K: Ord + Clone, V: Clone> Extend<(K, V)> for Sorted<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

impl<K: Ord, V, const N: usize> From<[(K, V); N]> for Sorted<K, V> {
    fn from(entries: [(K, V); N]) -> Self {
        entries.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Differences as a model would tell them.
    fn expected(old: &BTreeMap<u16, u8>, new: &BTreeMap<u16, u8>) -> Vec<(u16, Option<u8>, Option<u8>)> {
        let keys: std::collections::BTreeSet<_> = old.keys().chain(new.keys()).copied().collect();
        let both = keys.into_iter().map(|k| (k, old.get(&k).copied(), new.get(&k).copied()));
        both.filter(|(_, was, is)| was != is).collect()
    }

    fn found(old: &Sorted<u16, u8>, new: &Sorted<u16, u8>) -> Vec<(u16, Option<u8>, Option<u8>)> {
        let mut out = Vec::new();
        old.differences(new, u8::eq, |k, was, is| out.push((*k, was.copied(), is.copied())));
        out
    }

    fn check(map: &Sorted<u16, u8>, model: &BTreeMap<u16, u8>) {
        assert_eq!(map.len(), model.len());
        assert!(map.iter().eq(model.iter()));
        assert!(map.chunks.iter().all(|c| !c.is_empty() && c.len() <= CHUNK));
    }

    proptest! {
        /// Whatever is done, it is the map of the standard library; what was cloned before stays as it was.
        #[test]
        fn like_a_btree_map(
            start in proptest::collection::btree_map(0u16..2_000, 0u8..4, 0..1_000),
            edits in proptest::collection::vec((0u16..2_000, proptest::option::of(0u8..4)), 0..600),
            bounds in (0u16..2_000, 0u16..2_000),
        ) {
            let before: Sorted<u16, u8> = start.clone().into_iter().collect();
            let (mut map, mut model) = (before.clone(), start.clone());
            for (key, value) in edits {
                match value {
                    Some(value) => prop_assert_eq!(map.insert(key, value), model.insert(key, value)),
                    None => prop_assert_eq!(map.remove(&key), model.remove(&key)),
                }
                prop_assert_eq!(map.get(&key), model.get(&key));
            }
            check(&map, &model);
            check(&before, &start);
            prop_assert_eq!(found(&before, &map), expected(&start, &model));
            prop_assert_eq!(before == map, start == model);
            let (low, high) = (bounds.0.min(bounds.1), bounds.0.max(bounds.1));
            prop_assert!(map.range(low..high).eq(model.range(low..high)));
            prop_assert!(map.range(low..=high).eq(model.range(low..=high)));
            prop_assert!(map.range((Bound::Excluded(low), Bound::Unbounded)).eq(model.range(low + 1..)));
        }
    }

    #[test]
    fn a_removal_of_nearly_all_leaves_few_chunks() {
        let mut map: Sorted<u16, u8> = (0..10_000).map(|k| (k, 0)).collect();
        for key in (0..10_000).filter(|k| k % 100 != 0) {
            map.remove(&key);
        }
        check(&map, &(0..10_000).step_by(100).map(|k| (k, 0)).collect());
        assert!(map.chunks.len() <= 4, "{} chunks for 100 entries", map.chunks.len());
    }

    /// An edit of one entry leaves all other chunks shared, so that a difference is found by looking at one.
    #[test]
    fn an_edit_copies_one_chunk() {
        let before: Sorted<u32, u8> = (0..100_000).map(|k| (k, 0)).collect();
        let mut map = before.clone();
        map.insert(50_000, 1);
        map.insert(100_000, 1);
        map.remove(&7);
        let kept = map.chunks.iter().filter(|c| before.chunks.iter().any(|b| Arc::ptr_eq(b, c))).count();
        assert!(kept + 3 >= map.chunks.len(), "{kept} of {} chunks are shared", map.chunks.len());
        let looked = std::cell::Cell::new(0);
        let same = |a: &u8, b: &u8| {
            looked.set(looked.get() + 1);
            a == b
        };
        let mut keys = Vec::new();
        before.differences(&map, same, |k, _, _| keys.push(*k));
        assert_eq!(keys, [7, 50_000, 100_000]);
        assert!(looked.get() <= 3 * CHUNK, "{} entries were compared", looked.get());
    }
}
