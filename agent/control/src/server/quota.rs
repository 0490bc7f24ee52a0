//! How many certificates a node gets: so many at once, so many in line, so many a second. One node that asks without
//! end waits behind itself.

use std::{
    collections::HashMap,
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
use weft_core::model::Str;

use super::Limits;

/// Nodes whose quota is remembered. Names come from checked tokens, so there are no more than nodes.
const NODES: usize = 20_000;

pub(super) struct Quotas {
    limits: Limits,
    nodes: Mutex<HashMap<Str, Arc<Quota>>>,
}

struct Quota {
    slots: Arc<Semaphore>,
    waiting: AtomicUsize,
    bucket: Mutex<Bucket>,
}

struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Quotas {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, nodes: Mutex::default() }
    }

    /// A place to sign for `node`, after those before it. None: it asks too much.
    pub(super) async fn acquire(&self, node: &Str) -> Option<OwnedSemaphorePermit> {
        let quota = self.of(node);
        if !quota.bucket.lock().take(Instant::now(), &self.limits) {
            return None;
        }
        let line = Line::join(&quota, self.limits.waiting_per_node + self.limits.signing_per_node)?;
        let slot = quota.slots.clone().acquire_owned().await.ok();
        drop(line);
        slot
    }

    fn of(&self, node: &Str) -> Arc<Quota> {
        let mut nodes = self.nodes.lock();
        if nodes.len() >= NODES && !nodes.contains_key(node) {
            // Those that nobody uses now; they come back with a full bucket, which is harmless at this size.
            nodes.retain(|_, quota| Arc::strong_count(quota) > 1);
        }
        let quota = nodes.entry(node.clone()).or_insert_with(|| {
            Arc::new(Quota {
                slots: Arc::new(Semaphore::new(self.limits.signing_per_node)),
                waiting: AtomicUsize::new(0),
                bucket: Mutex::new(Bucket {
                    tokens: f64::from(self.limits.burst_per_node),
                    filled: Instant::now(),
                }),
            })
        });
        quota.clone()
    }
}

impl Bucket {
    fn take(&mut self, now: Instant, limits: &Limits) -> bool {
        let grown = now.duration_since(self.filled).as_secs_f64() * f64::from(limits.rate_per_node);
        self.tokens = (self.tokens + grown).min(f64::from(limits.burst_per_node));
        self.filled = now;
        let enough = self.tokens >= 1.0;
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }
}

/// A place in a node's line; cancelling gives it up.
struct Line<'a>(&'a Quota);

impl<'a> Line<'a> {
    fn join(quota: &'a Quota, bound: usize) -> Option<Self> {
        let place = quota.waiting.fetch_add(1, Ordering::Relaxed);
        let line = Self(quota);
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

    #[tokio::test(start_paused = true)]
    async fn a_node_gets_a_burst_and_then_a_rate() {
        let quotas = Quotas::new(Limits { burst_per_node: 3, rate_per_node: 2, ..Limits::default() });
        let (one, two) = ("n1".into(), "n2".into());
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
        let quotas = Quotas::new(Limits { signing_per_node: 1, waiting_per_node: 1, ..Limits::default() });
        let node = "n1".into();
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
