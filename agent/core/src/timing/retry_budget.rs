//! How many retries a workload's routes may ask for, whatever they ask for each request.
//!
//! A backend that fails is asked again by every request at once: with `attempts: 100` it gets a hundred times its load just when
//! it has least to give, and the node does a hundred times the work. So retries of `retry` stanzas come out of one purse for
//! each workload: every request puts a fifth of a retry into it, time puts in some, and a full purse holds enough that
//! small numbers are never refused.

use crate::budget::RETRIES;
use std::time::{Duration, Instant};

/// What a retry costs, in the purse's parts.
const RETRY: u64 = 10;
/// What a request puts in.
const REQUEST: u64 = 2;
/// Time that puts in one retry.
const EACH: Duration = Duration::from_millis(100);
/// A full purse.
const FULL: u64 = RETRIES.bound * RETRY;

/// The purse of one workload on one worker.
#[derive(Clone, Copy, Debug)]
pub struct RetryBudget {
    parts: u64,
    /// Until when time was counted.
    counted: Option<Instant>,
}

impl Default for RetryBudget {
    /// A full one.
    fn default() -> Self {
        Self { parts: FULL, counted: None }
    }
}

impl RetryBudget {
    /// A request came that may be retried.
    pub fn request(&mut self) {
        self.parts = (self.parts + REQUEST).min(FULL);
    }

    /// Takes a retry out, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        let passed = self.counted.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let came = u64::try_from(passed.as_millis() / EACH.as_millis()).unwrap_or(FULL);
        if came > 0 || self.counted.is_none() {
            self.counted = Some(now);
        }
        self.parts = self.parts.saturating_add(came.saturating_mul(RETRY)).min(FULL);
        let left = self.parts.checked_sub(RETRY);
        self.parts = left.unwrap_or(self.parts);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `asked` retries for each of `requests` are made within an instant.
    fn made(requests: u64, asked: u64) -> u64 {
        let (mut budget, now) = (RetryBudget::default(), Instant::now());
        let mut made = 0;
        for _ in 0..requests {
            budget.request();
            made += (0..asked).map(|_| u64::from(budget.take(now))).sum::<u64>();
        }
        made
    }

    #[test]
    fn retries_of_a_workload_are_bounded_by_its_requests() {
        // Small numbers are always made: the official suite asks for a hundred.
        assert_eq!(made(1, 100), 100);
        assert_eq!(made(5, 100), 500);
        // Ten times the purse: what it holds, and a fifth of the requests.
        assert_eq!(made(50, 100), RETRIES.bound + 9, "the purse was full at first");
        assert_eq!(made(10_000, 100), RETRIES.bound + 10_000 / 5 - 1);
        // A route of which every fifth request fails once never notices.
        assert_eq!(made(100_000, 0), 0);
    }

    #[test]
    fn time_fills_the_purse() {
        let (mut budget, start) = (RetryBudget::default(), Instant::now());
        let empty = |budget: &mut RetryBudget, now| (0..10_000).filter(|_| budget.take(now)).count();
        assert_eq!(empty(&mut budget, start), 500);
        assert_eq!(empty(&mut budget, start + Duration::from_secs(2)), 20);
        assert_eq!(empty(&mut budget, start + Duration::from_secs(3600)), 500);
    }
}
