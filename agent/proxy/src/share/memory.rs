//! What the connections of all workloads of this process hold together, and who holds most of it.
//!
//! Amounts are estimates by kind ([`super::Kind::bytes`]) and what copied connections have read and not written yet. Each
//! workload has an [`Account`], the same on every worker. When the sum is spent the workload with the largest account
//! yields: it gets no new connection, and those of its connections that were quiet for longest are ended; the others are
//! served on.

use crate::context::ShareKey;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// Beyond the bound others than the largest are still served, up to this part of it more: what the largest is told to
/// give back takes a moment.
const SLACK: u64 = 4;
/// How much the largest gives back at once: this part of the bound.
const STEP: u64 = 32;

/// The sum of a process.
#[derive(Debug)]
pub struct Memory {
    bound: u64,
    used: AtomicU64,
    accounts: Mutex<HashMap<ShareKey, Weak<Account>>>,
}

impl Default for Memory {
    /// Without a bound.
    fn default() -> Self {
        Self::new(u64::MAX)
    }
}

/// What one workload holds.
#[derive(Debug)]
pub struct Account {
    key: ShareKey,
    held: AtomicU64,
    memory: Arc<Memory>,
}

/// Whether a connection may be added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Room {
    /// Yes.
    Enough,
    /// Yes, and this workload has to give that many bytes back.
    After(ShareKey, u64),
    /// No: the workload holds more than all others, or there is none left at all.
    None,
}

impl Memory {
    /// A sum of `bound` bytes.
    #[must_use]
    pub fn new(bound: u64) -> Self {
        Self { bound, used: AtomicU64::new(0), accounts: Mutex::default() }
    }

    /// Bytes held now.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    /// The account of a workload, made when first asked for.
    #[must_use]
    pub fn account(self: &Arc<Self>, key: &ShareKey) -> Arc<Account> {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = accounts.get(key).and_then(Weak::upgrade) {
            return account;
        }
        accounts.retain(|_, account| account.strong_count() > 0);
        let account = Arc::new(Account { key: key.clone(), held: AtomicU64::new(0), memory: self.clone() });
        accounts.insert(key.clone(), Arc::downgrade(&account));
        account
    }

    /// Whether the workload of `account` may have another connection.
    #[must_use]
    pub fn room(&self, account: &Account) -> Room {
        let used = self.used();
        if used < self.bound {
            return Room::Enough;
        }
        let Some((largest, held)) = self.largest() else { return Room::Enough };
        if largest == account.key
            || account.held() >= held
            || used >= self.bound.saturating_add(self.bound / SLACK)
        {
            return Room::None;
        }
        Room::After(largest, self.bound / STEP)
    }

    fn largest(&self) -> Option<(ShareKey, u64)> {
        let accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        let held =
            accounts.values().filter_map(Weak::upgrade).map(|account| (account.key.clone(), account.held()));
        held.max_by_key(|(_, held)| *held)
    }
}

impl Account {
    /// Bytes held now.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.held.load(Relaxed)
    }

    /// The sum that it is part of.
    #[must_use]
    pub const fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    pub(super) fn take(&self, bytes: u64) {
        self.held.fetch_add(bytes, Relaxed);
        self.memory.used.fetch_add(bytes, Relaxed);
    }

    pub(super) fn give(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Relaxed);
        self.memory.used.fetch_sub(bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_core::model::ObjectKey;

    fn pod(name: &str) -> ShareKey {
        ShareKey::Pod(ObjectKey::new("shop", name))
    }

    #[test]
    fn the_largest_yields_first() {
        let memory = Arc::new(Memory::new(3200));
        let (large, small) = (memory.account(&pod("large")), memory.account(&pod("small")));
        large.take(3000);
        small.take(100);
        assert_eq!((memory.room(&large), memory.room(&small)), (Room::Enough, Room::Enough));
        large.take(200);
        assert_eq!(memory.room(&large), Room::None);
        assert_eq!(memory.room(&small), Room::After(pod("large"), 100));
        large.take(800);
        assert_eq!(memory.room(&small), Room::None, "nothing is left at all");
        large.give(2000);
        assert_eq!((memory.room(&large), memory.used()), (Room::Enough, 2100));
    }

    #[test]
    fn accounts_are_the_same_on_every_worker_and_forgotten_with_the_last() {
        let memory = Arc::new(Memory::new(100));
        let (one, other) = (memory.account(&pod("a")), memory.account(&pod("a")));
        one.take(60);
        assert_eq!(other.held(), 60);
        one.give(60);
        drop((one, other));
        let _b = memory.account(&pod("b"));
        assert_eq!(memory.accounts.lock().unwrap().len(), 1);
    }
}
