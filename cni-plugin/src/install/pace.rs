//! PURE: how often something may be done again.

use std::time::{Duration, Instant};

/// This many times at once…
const BURST: u32 = 5;
/// …and then once in this time.
const EACH: Duration = Duration::from_secs(10);

/// Another CNI that rewrites its file is answered at once, one that never stops (it and we undo each other's work) now and
/// then.
#[derive(Debug)]
pub(super) struct Pace {
    tokens: u32,
    /// When the tokens were counted last.
    counted: Instant,
}

impl Pace {
    pub(super) const fn new(now: Instant) -> Self {
        Self { tokens: BURST, counted: now }
    }

    /// Takes one turn.
    ///
    /// # Errors
    /// How long to wait for it.
    pub(super) fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let passed = now.saturating_duration_since(self.counted);
        let gained = u32::try_from(passed.as_nanos() / EACH.as_nanos()).unwrap_or(u32::MAX);
        if gained > 0 {
            self.tokens = self.tokens.saturating_add(gained).min(BURST);
            self.counted += EACH.saturating_mul(gained);
        }
        match self.tokens.checked_sub(1) {
            Some(left) => {
                self.tokens = left;
                Ok(())
            }
            None => Err(EACH.saturating_sub(now.saturating_duration_since(self.counted))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_now_and_then() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let at = |seconds| start + Duration::from_secs(seconds);
        // (second, wait or none)
        let story = [
            (0, None),
            (0, None),
            (1, None),
            (1, None),
            (2, None),
            (2, Some(8)),
            (9, Some(1)),
            (10, None),
            (10, Some(10)),
            (31, None),
            (31, None),
            (31, Some(9)),
            (1000, None),
        ];
        for (second, wait) in story {
            assert_eq!(pace.take(at(second)).err(), wait.map(Duration::from_secs), "second {second}");
        }
    }
}
