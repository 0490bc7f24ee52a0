//! Whether an HTTP/2 client opens streams only to reset them (CVE-2023-44487 and its slower kin): each costs a way to a backend,
//! and no bound on streams that are open at one time sees it.

use crate::budget::STREAM_RESETS;
use std::time::Duration;

/// A stream that was reset sooner than this was not meant to be answered.
const PREMATURE: Duration = Duration::from_secs(1);

/// Counts over the life of one connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resets {
    ended: u64,
    premature: u64,
}

impl Resets {
    /// A stream has ended after `lived`; `reset`: its client did that before its answer was whole. Whether the connection
    /// must end: more streams than the budget have ended, and more than three fifths of them were reset too soon. A client that
    /// cancels now and then, or of two calls always the slower one, may do so for ever.
    pub fn ended(&mut self, lived: Duration, reset: bool) -> bool {
        self.ended += 1;
        self.premature += u64::from(reset && lived < PREMATURE);
        self.ended > STREAM_RESETS.bound && self.premature * 5 > self.ended * 3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After how many of these streams, over and over, the connection ends; 0: never.
    fn check(streams: &[(u64, bool)], wanted: u64) {
        let mut resets = Resets::default();
        let all = streams.iter().cycle().zip(1..=100_000_u64);
        let found = all
            .filter_map(|((ms, reset), n)| resets.ended(Duration::from_millis(*ms), *reset).then_some(n))
            .next();
        assert_eq!(found.unwrap_or(0), wanted, "{streams:?}");
    }

    #[test]
    fn a_connection_most_of_whose_streams_are_reset_at_once_ends() {
        check(&[(0, true)], 501);
        check(&[(999, true)], 501);
        // Hedging: of two calls, the slower one is cancelled.
        check(&[(5, true), (5, false)], 0);
        check(&[(5, true), (5, true), (5, false)], 501);
        // Whoever waits for a second has waited for an answer.
        check(&[(1000, true)], 0);
        check(&[(0, false)], 0);
    }
}
