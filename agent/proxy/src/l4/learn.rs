//! What (Service, port)s without a declared protocol turned out to speak, so that later connections need no race.

use std::{
    cell::RefCell,
    collections::HashMap,
    time::{Duration, Instant},
};
use weft_core::config::BackendKey;

/// Entries kept; beyond that, all are forgotten (they are learned again with the next connection).
const ENTRIES_MAX: usize = 16_384;
/// A Service may change what it speaks.
const TTL: Duration = Duration::from_secs(600);

/// What a port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// HTTP/1 or HTTP/2.
    Http,
    /// Anything else, the server's banner first or not.
    Opaque,
}

/// Classes learned on one worker.
#[derive(Debug, Default)]
pub struct Learned {
    classes: RefCell<HashMap<BackendKey, (Class, Instant)>>,
}

impl Learned {
    /// What is known at `now`.
    pub fn get(&self, key: &BackendKey, now: Instant) -> Option<Class> {
        let classes = self.classes.borrow();
        classes.get(key).filter(|(_, at)| now.duration_since(*at) < TTL).map(|(class, _)| *class)
    }

    /// Remembers.
    pub fn set(&self, key: &BackendKey, class: Class, now: Instant) {
        let mut classes = self.classes.borrow_mut();
        if classes.len() >= ENTRIES_MAX && !classes.contains_key(key) {
            classes.clear();
        }
        classes.insert(key.clone(), (class, now));
    }

    /// Forgets: the next connection finds out anew.
    pub fn forget(&self, key: &BackendKey) {
        self.classes.borrow_mut().remove(key);
    }
}
