//! Slow start: an endpoint that joins a running set gets its share bit by bit, since what is cold (caches, a JIT,
//! connection pools) answers slowly and may break under its full share.

use std::time::{Duration, Instant};

/// From joining to the full share.
const WINDOW: Duration = Duration::from_secs(10);
/// Where the share begins: a tenth.
const FIRST_DIVISOR: u64 = 10;

/// An endpoint that joined a running set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowStart {
    joined: Instant,
}

impl SlowStart {
    /// It joins.
    #[must_use]
    pub const fn new(joined: Instant) -> Self {
        Self { joined }
    }

    /// How much of its share it gets, as a part of 2^32; `None` once that is all of it.
    #[must_use]
    pub fn share(&self, now: Instant) -> Option<u64> {
        let age = now.saturating_duration_since(self.joined);
        if age >= WINDOW {
            return None;
        }
        let whole = 1_u64 << 32;
        let part = (age.as_nanos() * u128::from(whole) / WINDOW.as_nanos()) as u64; // less than `whole`
        Some(part.max(whole / FIRST_DIVISOR))
    }
}
