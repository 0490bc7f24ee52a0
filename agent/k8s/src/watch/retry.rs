//! When to try again, and how to say that nothing answered.

use super::state::{Fault, fault};
use std::{
    error::Error,
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

/// Waits between attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// After the first failure; it doubles with each.
    pub first: Duration,
    /// At most.
    pub longest: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { first: Duration::from_millis(500), longest: Duration::from_secs(15) }
    }
}

/// Counts failures.
pub(super) struct Backoff {
    retry: Retry,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(retry: Retry) -> Self {
        Self { retry, next: retry.first }
    }

    pub(super) fn reset(&mut self) {
        self.next = self.retry.first;
    }

    /// Waits for at least `asked`, the server's own wish.
    pub(super) async fn wait(&mut self, asked: Duration) {
        tokio::time::sleep(self.next().max(asked)).await;
    }

    /// The next wait.
    pub(super) fn next(&mut self) -> Duration {
        let wait = jitter(self.next);
        self.next = (self.next * 2).min(self.retry.longest);
        wait
    }
}

/// Between half and one and a half of it: after an outage thousands of agents must not come back at once.
pub(super) fn jitter(around: Duration) -> Duration {
    around / 2 + around.mul_f64(random())
}

/// Up to a sixth less.
pub(super) fn spread(seconds: u32) -> u32 {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    // positive, and smaller than what went in
    let less = (f64::from(seconds / 6) * random()) as u32;
    seconds - less
}

/// From 0 to 1. The standard library seeds each of these anew; nothing here needs more.
fn random() -> f64 {
    let bits = RandomState::new().build_hasher().finish() >> 11;
    #[allow(clippy::cast_precision_loss)] // 53 bits fit
    let fraction = bits as f64 / (1u64 << 53) as f64;
    fraction
}

/// An error that is no answer of the API server, with its causes.
pub(super) fn unreachable(error: &kube::Error) -> Fault {
    let mut reason = match error {
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        other => other.to_string(),
    };
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // Most of them repeat what is below.
        if !reason.contains(&text) {
            reason = format!("{reason}: {text}");
        }
        cause = error.source();
    }
    fault(&reason, "the last state stays in effect; it is tried again")
}
