//! Which Events are sent, and which are counted in one that was sent. No clock: `now` is an argument.

use super::Transition;
use std::{collections::HashMap, time::Duration};
use tokio::time::Instant;
use weft_core::model::Str;

/// The same transition within this time is the same series (client-go: 6 minutes).
const WINDOW: Duration = Duration::from_secs(360);
/// A series is updated in the cluster at most once in this time.
const UPDATE: Duration = Duration::from_secs(60);
/// An object may have this many Events at once …
const BURST: f64 = 10.0;
/// … and then one in this time.
const REFILL: Duration = Duration::from_secs(60);
/// Bounds of the memory. What is forgotten begins a new series, or a new burst.
const MAX_SERIES: usize = 4096;

/// What is one series: the same thing of the same object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) uid: Str,
    pub(super) transition: Transition,
}

/// An Event in the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) namespace: Str,
    pub(super) name: String,
}

#[derive(Debug)]
struct Series {
    event: Sent,
    count: i32,
    last: Instant,
    /// When the cluster was told.
    told: Instant,
    told_count: i32,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

/// What to do with a transition.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A new Event.
    Create,
    /// This one has happened so often.
    Update(Sent, i32),
    /// Counted; [`Book::due`] tells later.
    Counted,
    /// The object has had too many.
    Drop,
}

/// What was sent lately.
#[derive(Debug, Default)]
pub(super) struct Book {
    series: HashMap<Key, Series>,
    buckets: HashMap<Str, Bucket>,
}

impl Book {
    pub(super) fn record(&mut self, key: &Key, now: Instant) -> Verdict {
        if let Some(series) = self.series.get_mut(key).filter(|s| now - s.last < WINDOW) {
            series.count = series.count.saturating_add(1);
            series.last = now;
            if now - series.told < UPDATE {
                return Verdict::Counted;
            }
            return series.tell(now);
        }
        self.series.remove(key);
        if self.may(&key.uid, now) { Verdict::Create } else { Verdict::Drop }
    }

    /// An Event was created.
    pub(super) fn created(&mut self, key: Key, event: Sent, now: Instant) {
        self.shrink(now);
        self.series.insert(key, Series { event, count: 1, last: now, told: now, told_count: 1 });
    }

    /// The Event of a series is gone from the cluster.
    pub(super) fn gone(&mut self, event: &Sent) {
        self.series.retain(|_, s| s.event != *event);
    }

    /// Series that have grown since the cluster was told, and may be told again.
    pub(super) fn due(&mut self, now: Instant) -> Vec<(Sent, i32)> {
        let due = |s: &&mut Series| s.count > s.told_count && now - s.told >= UPDATE;
        let told = self.series.values_mut().filter(due).map(|s| {
            s.tell(now);
            (s.event.clone(), s.count)
        });
        told.collect()
    }

    fn may(&mut self, uid: &Str, now: Instant) -> bool {
        let bucket = self.buckets.entry(uid.clone()).or_insert(Bucket { tokens: BURST, at: now });
        let gained = (now - bucket.at).as_secs_f64() / REFILL.as_secs_f64();
        bucket.tokens = (bucket.tokens + gained).min(BURST);
        bucket.at = now;
        let may = bucket.tokens >= 1.0;
        if may {
            bucket.tokens -= 1.0;
        }
        may
    }

    fn shrink(&mut self, now: Instant) {
        if self.series.len() >= MAX_SERIES {
            self.series.retain(|_, s| now - s.last < WINDOW);
        }
        if self.series.len() >= MAX_SERIES {
            self.series.clear();
        }
        if self.buckets.len() >= MAX_SERIES {
            let full = REFILL.mul_f64(BURST);
            self.buckets.retain(|_, b| now - b.at < full);
        }
        if self.buckets.len() >= 4 * MAX_SERIES {
            self.buckets.clear();
        }
    }
}

impl Series {
    fn tell(&mut self, now: Instant) -> Verdict {
        self.told = now;
        self.told_count = self.count;
        Verdict::Update(self.event.clone(), self.count)
    }
}
