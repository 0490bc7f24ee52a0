//! Passive outlier ejection: an endpoint that fails several times in a row rests for a while.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

/// When to eject and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EjectPolicy {
    /// Failures in a row that eject: connections that could not be made, resets, 5xx.
    pub failures: u32,
    /// First ejection; doubles with each that follows.
    pub base: Duration,
    /// Longest ejection. Also how long an endpoint must do well for its past to be forgotten.
    pub max: Duration,
}

impl Default for EjectPolicy {
    /// 5 failures; 10 s to 5 min.
    fn default() -> Self {
        Self { failures: 5, base: Duration::from_secs(10), max: Duration::from_secs(300) }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Record {
    failures: u32,
    ejections: u32,
    until: Option<Instant>,
}

/// The endpoints of one backend that failed lately. Healthy ones take no memory and no lookup.
#[derive(Clone, Debug)]
pub struct Outliers<K> {
    policy: EjectPolicy,
    records: HashMap<K, Record>,
}

impl<K: Eq + Hash> Outliers<K> {
    /// Nothing has failed.
    #[must_use]
    pub fn new(policy: EjectPolicy) -> Self {
        Self { policy, records: HashMap::new() }
    }

    /// Notes a success.
    pub fn succeeded(&mut self, endpoint: &K, now: Instant) {
        if self.records.is_empty() {
            return;
        }
        let Some(record) = self.records.get_mut(endpoint) else { return };
        record.failures = 0;
        if record.until.is_none_or(|until| now >= until + self.policy.max) {
            self.records.remove(endpoint);
        }
    }

    /// Notes a failure of one of `endpoints` endpoints. Returns for how long it has been ejected by this, if so.
    ///
    /// At most half of the endpoints are ejected at a time: when most fail, the fault is hardly theirs.
    pub fn failed(&mut self, endpoint: K, endpoints: usize, now: Instant) -> Option<Duration> {
        let policy = self.policy;
        let before = self.records.get(&endpoint).map_or(0, |r| r.failures);
        // Counting those at rest is left for when it matters.
        let eject = before.saturating_add(1) >= policy.failures && self.ejected(now) < endpoints / 2;
        let record = self.records.entry(endpoint).or_default();
        if record.until.is_some_and(|until| now < until) {
            return None; // the tail of requests sent before
        }
        record.failures = record.failures.saturating_add(1);
        if !eject {
            return None;
        }
        let growth = 1_u32.checked_shl(record.ejections).unwrap_or(u32::MAX);
        let rest = policy.base.saturating_mul(growth).min(policy.max);
        *record =
            Record { failures: 0, ejections: record.ejections.saturating_add(1), until: Some(now + rest) };
        Some(rest)
    }

    /// Whether an endpoint rests now.
    #[must_use]
    pub fn is_ejected(&self, endpoint: &K, now: Instant) -> bool {
        !self.records.is_empty()
            && self.records.get(endpoint).and_then(|r| r.until).is_some_and(|until| now < until)
    }

    /// How many endpoints rest now.
    #[must_use]
    pub fn ejected(&self, now: Instant) -> usize {
        self.records.values().filter(|r| r.until.is_some_and(|until| now < until)).count()
    }

    /// Forgets endpoints that are gone. Call when the set of endpoints changes: it bounds the memory.
    pub fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        self.records.retain(|k, _| keep(k));
    }
}
