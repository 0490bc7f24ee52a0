//! What the writer has done, for metrics.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};
use tokio::time::Instant;

/// Counters and gauges of a writer. Counters grow for the life of the process.
#[derive(Debug)]
pub struct Progress {
    epoch: Instant,
    /// 0: nothing waits. Else one more than the milliseconds from `epoch` to when the oldest began to wait.
    oldest: AtomicU64,
    leads: AtomicBool,
    queued: AtomicU64,
    running: AtomicU64,
    counters: [AtomicU64; Counted::ALL.len()],
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Statuses written.
    Writes,
    /// Comparisons that needed no write.
    Unchanged,
    /// Objects read one by one, because what was known of them was old.
    Reads,
    /// Writes that met a newer object, and were made again from it.
    Conflicts,
    /// 429 and 503 with `Retry-After`.
    Throttled,
    /// 403.
    Forbidden,
    /// Other failures; each is tried again.
    Failures,
    /// Objects that were gone when their status was to be written.
    Gone,
    /// Entries of ours that did not fit into a list full of others' entries.
    Overflows,
    /// Comparisons of everything with what the cluster holds.
    Surveys,
}

impl Counted {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Writes,
        Self::Unchanged,
        Self::Reads,
        Self::Conflicts,
        Self::Throttled,
        Self::Forbidden,
        Self::Failures,
        Self::Gone,
        Self::Overflows,
        Self::Surveys,
    ];

    /// A name for a metric's label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Writes => "writes",
            Self::Unchanged => "unchanged",
            Self::Reads => "reads",
            Self::Conflicts => "conflicts",
            Self::Throttled => "throttled",
            Self::Forbidden => "forbidden",
            Self::Failures => "failures",
            Self::Gone => "gone",
            Self::Overflows => "overflows",
            Self::Surveys => "surveys",
        }
    }
}

impl Progress {
    pub(super) fn new() -> Self {
        Self {
            epoch: Instant::now(),
            oldest: AtomicU64::new(0),
            leads: AtomicBool::new(false),
            queued: AtomicU64::new(0),
            running: AtomicU64::new(0),
            counters: Default::default(),
        }
    }

    /// How often something happened.
    #[must_use]
    pub fn count(&self, what: Counted) -> u64 {
        self.counters[what as usize].load(Ordering::Acquire)
    }

    /// Objects that wait to be compared and written.
    #[must_use]
    pub fn queued(&self) -> u64 {
        self.queued.load(Ordering::Relaxed)
    }

    /// Objects that are being compared and written.
    #[must_use]
    pub fn running(&self) -> u64 {
        self.running.load(Ordering::Relaxed)
    }

    /// How long the oldest object has been waiting; zero when none is.
    #[must_use]
    pub fn lag(&self) -> Duration {
        match self.oldest.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            at => self.epoch.elapsed().saturating_sub(Duration::from_millis(at - 1)),
        }
    }

    /// Whether this writer may write.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.leads.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, what: Counted) {
        self.counters[what as usize].fetch_add(1, Ordering::Release);
    }

    pub(super) fn set_leads(&self, leads: bool) {
        self.leads.store(leads, Ordering::Relaxed);
    }

    pub(super) fn set_queue(&self, queued: usize, running: usize, oldest: Option<Instant>) {
        self.queued.store(queued as u64, Ordering::Relaxed);
        self.running.store(running as u64, Ordering::Relaxed);
        let millis = |at: Instant| u64::try_from(at.saturating_duration_since(self.epoch).as_millis());
        let oldest = oldest.map_or(0, |at| millis(at).unwrap_or(u64::MAX - 1).saturating_add(1));
        self.oldest.store(oldest, Ordering::Relaxed);
    }
}
