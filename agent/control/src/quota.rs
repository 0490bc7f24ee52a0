//! How much each may ask: so many at once, so many in line, so many a second. One that asks without end waits behind itself.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

/// Askers whose share is remembered. There are no more nodes, and no more addresses that ask at once.
const REMEMBERED: usize = 20_000;

/// What one asker gets.
#[derive(Clone, Copy, Debug)]
pub struct Quota {
    /// Done at once.
    pub at_once: usize,
    /// In line for that.
    pub waiting: usize,
    /// So many one after another...
    pub burst: u32,
    /// ...and so many a second after that.
    pub rate: u32,
}

/// A [`Quota`] for each asker: a node, an address.
#[derive(Debug)]
pub struct Quotas<K> {
    quota: Quota,
    askers: Mutex<HashMap<K, Arc<Asker>>>,
}

#[derive(Debug)]
struct Asker {
    slots: Arc<Semaphore>,
    waiting: AtomicUsize,
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl<K: Clone + Eq + Hash> Quotas<K> {
    /// The same for everybody.
    #[must_use]
    pub fn new(quota: Quota) -> Self {
        Self { quota, askers: Mutex::default() }
    }

    /// A place for `asker`, after those before it, counted. None: it asks too much.
    pub async fn acquire(&self, asker: &K) -> Option<OwnedSemaphorePermit> {
        if !self.charge(asker) {
            return None;
        }
        self.wait(asker).await
    }

    /// Counts one. False: it asks too often.
    pub fn charge(&self, asker: &K) -> bool {
        self.of(asker).bucket.lock().take(Instant::now(), &self.quota)
    }

    /// A place for `asker`, after those before it. None: the line is full.
    pub async fn wait(&self, asker: &K) -> Option<OwnedSemaphorePermit> {
        let asker = self.of(asker);
        let line = Line::join(&asker, self.quota.waiting + self.quota.at_once)?;
        let slot = asker.slots.clone().acquire_owned().await.ok();
        drop(line);
        slot
    }

    fn of(&self, asker: &K) -> Arc<Asker> {
        let mut askers = self.askers.lock();
        if askers.len() >= REMEMBERED && !askers.contains_key(asker) {
            // Those that nobody uses now; they come back with a full bucket, which is harmless at this size.
            askers.retain(|_, asker| Arc::strong_count(asker) > 1);
        }
        let asker = askers.entry(asker.clone()).or_insert_with(|| {
            Arc::new(Asker {
                slots: Arc::new(Semaphore::new(self.quota.at_once)),
                waiting: AtomicUsize::new(0),
                bucket: Mutex::new(Bucket { tokens: f64::from(self.quota.burst), filled: Instant::now() }),
            })
        });
        asker.clone()
    }
}

impl Bucket {
    fn take(&mut self, now: Instant, quota: &Quota) -> bool {
        let grown = now.duration_since(self.filled).as_secs_f64() * f64::from(quota.rate);
        self.tokens = (self.tokens + grown).min(f64::from(quota.burst));
        self.filled = now;
        let enough = self.tokens >= 1.0;
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }
}

/// A place in somebody's line; cancelling gives it up.
struct Line<'a>(&'a Asker);

impl<'a> Line<'a> {
    fn join(asker: &'a Asker, bound: usize) -> Option<Self> {
        let place = asker.waiting.fetch_add(1, Ordering::Relaxed);
        let line = Self(asker);
        (place < bound).then_some(line)
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const QUOTA: Quota = Quota { at_once: 2, waiting: 64, burst: 512, rate: 32 };

    #[tokio::test(start_paused = true)]
    async fn a_node_gets_a_burst_and_then_a_rate() {
        let quotas = Quotas::<&str>::new(Quota { burst: 3, rate: 2, ..QUOTA });
        let (one, two) = ("n1", "n2");
        for _ in 0..3 {
            assert!(quotas.acquire(&one).await.is_some());
        }
        assert!(quotas.acquire(&one).await.is_none());
        assert!(quotas.acquire(&two).await.is_some(), "another node has its own");
        tokio::time::advance(Duration::from_secs(1)).await;
        for _ in 0..2 {
            assert!(quotas.acquire(&one).await.is_some());
        }
        assert!(quotas.acquire(&one).await.is_none());
        tokio::time::advance(Duration::from_secs(3600)).await;
        for _ in 0..3 {
            assert!(quotas.acquire(&one).await.is_some());
        }
        assert!(quotas.acquire(&one).await.is_none(), "time does not fill it beyond the burst");
    }

    #[tokio::test]
    async fn a_node_waits_in_a_bounded_line() {
        let quotas = Quotas::<&str>::new(Quota { at_once: 1, waiting: 1, ..QUOTA });
        let node = "n1";
        let first = quotas.acquire(&node).await;
        assert!(first.is_some());
        let mut second = Box::pin(quotas.acquire(&node));
        assert!(futures_util::poll!(second.as_mut()).is_pending());
        let mut third = Box::pin(quotas.acquire(&node));
        assert!(futures_util::poll!(third.as_mut()).is_pending());
        assert!(quotas.acquire(&node).await.is_none(), "the line is full");
        drop(third);
        drop(first);
        assert!(second.await.is_some());
    }
}
