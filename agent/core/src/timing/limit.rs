//! A rate limit as one point in time (GCRA: a token bucket without a counter).

use std::time::{Duration, Instant};

/// A token bucket: `rate` a second, with bursts of up to `burst`. Starts full.
#[derive(Clone, Copy, Debug)]
pub struct RateLimit {
    /// Time that one token takes to grow.
    interval: Duration,
    /// Time that a full bucket takes to grow.
    depth: Duration,
    /// When the bucket will be full again; in the past: it is full.
    full_at: Instant,
}

impl RateLimit {
    /// A full bucket. Zeros count as one.
    #[must_use]
    pub fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        let interval = Duration::from_nanos(1_000_000_000 / u64::from(per_second.max(1)));
        Self { interval, depth: interval.saturating_mul(burst.max(1)), full_at: now }
    }

    /// Takes one token.
    ///
    /// # Errors
    /// How long to wait for it; nothing is taken then.
    pub fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let full_at = self.full_at.max(now) + self.interval;
        let wait = full_at.saturating_duration_since(now).saturating_sub(self.depth);
        if wait > Duration::ZERO {
            return Err(wait);
        }
        self.full_at = full_at;
        Ok(())
    }
}
