//! A map kept the same on both ends of a stream: whole once, then what changed, in messages of bounded size.
//!
//! The sender [`diff`]s; the receiver feeds each message to a [`Mirror`], which says when a change is complete, so
//! that nobody acts on half of one.

use std::collections::BTreeMap;

use prost::Message;

/// Where a message ends and the next begins, in bytes. A single entry may be larger.
pub(crate) const CHUNK: usize = 256 * 1024;

/// A message that carries a part of a map.
pub(crate) trait Chunk: Message + Default {
    /// Names an entry.
    type Key: Ord + Clone;
    /// What is kept.
    type Value: PartialEq;

    /// Adds an entry; gives its size in bytes.
    fn set(&mut self, key: &Self::Key, value: &Self::Value) -> usize;
    /// Adds a removal; gives its size in bytes.
    fn unset(&mut self, key: &Self::Key) -> usize;
    /// Says whether it starts anew, and whether more of the same change follows.
    fn mark(&mut self, full: bool, more: bool);
    /// Takes it apart.
    ///
    /// # Errors
    /// When a part is not what it must be: the sender's fault.
    fn open(self) -> Result<Opened<Self::Key, Self::Value>, Malformed>;
}

/// A [`Chunk`], taken apart.
#[derive(Debug)]
pub(crate) struct Opened<K, V> {
    /// Forget everything first.
    pub(crate) full: bool,
    /// More of the same change follows.
    pub(crate) more: bool,
    /// New or changed, with their size in bytes.
    pub(crate) set: Vec<(K, V, usize)>,
    /// Gone.
    pub(crate) unset: Vec<K>,
}

/// What a peer sent cannot be used: its fault, and a retry would bring the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// A part is missing or not what it must be.
    #[error("{what} is missing or malformed")]
    Part {
        /// Which.
        what: &'static str,
    },
    /// More than the receiver keeps.
    #[error("more than {limit} {what}")]
    TooMuch {
        /// Entries or bytes.
        what: &'static str,
        /// The bound.
        limit: usize,
    },
}

/// The messages that bring a peer from `old` (none: it knows nothing) to `new`. None when nothing changed.
pub(crate) fn diff<C: Chunk>(
    old: Option<&BTreeMap<C::Key, C::Value>>,
    new: &BTreeMap<C::Key, C::Value>,
) -> Vec<C> {
    let empty = BTreeMap::new();
    let before = old.unwrap_or(&empty);
    let mut cut = Cut::default();
    for (key, value) in new.iter().filter(|(key, value)| before.get(key) != Some(value)) {
        cut.add(|chunk: &mut C| chunk.set(key, value));
    }
    for key in before.keys().filter(|key| !new.contains_key(key)) {
        cut.add(|chunk| chunk.unset(key));
    }
    let Cut { mut chunks, open, size } = cut;
    if size > 0 || (old.is_none() && chunks.is_empty()) {
        chunks.push(open);
    }
    let last = chunks.len().saturating_sub(1);
    for (i, chunk) in chunks.iter_mut().enumerate() {
        chunk.mark(old.is_none() && i == 0, i < last);
    }
    chunks
}

/// Messages as they fill up.
#[derive(Default)]
struct Cut<C> {
    chunks: Vec<C>,
    open: C,
    size: usize,
}

impl<C: Default> Cut<C> {
    fn add(&mut self, add: impl FnOnce(&mut C) -> usize) {
        self.size += add(&mut self.open);
        if self.size >= CHUNK {
            self.chunks.push(std::mem::take(&mut self.open));
            self.size = 0;
        }
    }
}

/// How much a receiver keeps.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Entries.
    pub entries: usize,
    /// Bytes, as encoded.
    pub bytes: usize,
}

/// The receiver's copy.
#[derive(Debug)]
pub(crate) struct Mirror<C: Chunk> {
    bounds: Bounds,
    entries: BTreeMap<C::Key, C::Value>,
    sizes: BTreeMap<C::Key, usize>,
    bytes: usize,
}

impl<C: Chunk> Mirror<C> {
    /// An empty copy.
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { bounds, entries: BTreeMap::new(), sizes: BTreeMap::new(), bytes: 0 }
    }

    /// Takes a message. True: the change is complete.
    ///
    /// # Errors
    /// When it is malformed or too much; the copy is then of no use.
    pub(crate) fn take(&mut self, chunk: C) -> Result<bool, Malformed> {
        let Opened { full, more, set, unset } = chunk.open()?;
        if full {
            self.entries.clear();
            self.sizes.clear();
            self.bytes = 0;
        }
        for key in unset {
            self.entries.remove(&key);
            self.bytes -= self.sizes.remove(&key).unwrap_or(0);
        }
        for (key, value, size) in set {
            self.bytes -= self.sizes.insert(key.clone(), size).unwrap_or(0);
            self.bytes += size;
            self.entries.insert(key, value);
            let Bounds { entries, bytes } = self.bounds;
            if self.entries.len() > entries {
                return Err(Malformed::TooMuch { what: "entries", limit: entries });
            }
            if self.bytes > bytes {
                return Err(Malformed::TooMuch { what: "bytes", limit: bytes });
            }
        }
        Ok(!more)
    }

    /// What the peer has said.
    pub(crate) fn entries(&self) -> &BTreeMap<C::Key, C::Value> {
        &self.entries
    }
}
