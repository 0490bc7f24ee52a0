//! How long shares wait for their turns, in a few numbers that cost next to nothing.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Upper bounds of the buckets: nanoseconds, and seconds as Prometheus shows them.
pub const BOUNDS: [(u64, &str); 10] = [
    (20_000, "0.00002"),
    (50_000, "0.00005"),
    (100_000, "0.0001"),
    (200_000, "0.0002"),
    (500_000, "0.0005"),
    (1_000_000, "0.001"),
    (2_000_000, "0.002"),
    (5_000_000, "0.005"),
    (20_000_000, "0.02"),
    (100_000_000, "0.1"),
];

/// What one worker counts. Read from any thread.
#[derive(Debug, Default)]
pub struct Timing {
    /// From the moment when a share was found ready to its turn.
    pub waits: Durations,
    /// Between two looks at the sockets: a share whose bytes came in meanwhile is not found ready before.
    pub stretches: Durations,
}

/// A histogram. Written by one thread.
#[derive(Debug, Default)]
pub struct Durations {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanos: AtomicU64,
}

impl Durations {
    /// Counts one.
    pub(super) fn add(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let index = BOUNDS.iter().position(|(bound, _)| nanos <= *bound).unwrap_or(BOUNDS.len());
        let add = |cell: &AtomicU64, n: u64| cell.store(cell.load(Relaxed).wrapping_add(n), Relaxed);
        add(&self.buckets[index], 1);
        add(&self.nanos, nanos);
    }

    /// How many were in each bucket, the last without a bound, and their sum in nanoseconds.
    #[must_use]
    pub fn read(&self) -> ([u64; BOUNDS.len() + 1], u64) {
        (std::array::from_fn(|i| self.buckets[i].load(Relaxed)), self.nanos.load(Relaxed))
    }
}
