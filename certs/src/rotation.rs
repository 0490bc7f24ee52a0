//! When to renew a certificate. Pure: the time and a drawn number are arguments.
//!
//! A certificate is renewed at about half of its remaining life, spread so that a node's identities do not
//! all ask at once. When issuing fails, the next try comes after 0.5 s, doubling to 150 s, and the
//! certificate held is kept for as long as it is valid: an outage of the CA must not matter until
//! certificates run out.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::issue::Retry;

/// The first pause after a failure.
pub const BACKOFF_MIN: Duration = Duration::from_millis(500);
/// The longest pause between two tries.
pub const BACKOFF_MAX: Duration = Duration::from_secs(150);
/// No renewal sooner than this after an issue, however short the certificate's life: else a CA that hands out
/// expired certificates would be asked without a pause.
pub const RENEWAL_MIN: Duration = Duration::from_secs(1);

/// The spread of the renewal around half life, as a part of the life: 45 % to 55 %.
const SPREAD_PERCENT: i64 = 10;

/// From when until when a certificate is valid, both included (RFC 5280 §4.1.2.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// First valid second.
    pub not_before: Timestamp,
    /// Last valid second.
    pub not_after: Timestamp,
}

impl Validity {
    /// Whether `now` is within.
    #[must_use]
    pub fn contains(&self, now: Timestamp) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

/// What to do after a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// When to ask again.
    pub next_attempt: Timestamp,
    /// Whether the certificate held is still good. False: none, or run out.
    pub serving: bool,
}

/// The rotation of one identity: counts failures in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rotation {
    failures: u32,
}

impl Rotation {
    /// Failures since the last success.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// A certificate came.
    pub fn issued(&mut self, fresh: Validity, now: Timestamp, draw: u64) -> Plan {
        self.failures = 0;
        Plan { next_attempt: renewal(fresh, now, draw), serving: fresh.contains(now) }
    }

    /// None came; `held` is the one from before.
    pub fn failed(&mut self, held: Option<Validity>, now: Timestamp, retry: Retry, draw: u64) -> Plan {
        self.failures = self.failures.saturating_add(1);
        let pause = match retry {
            Retry::Backoff => backoff(self.failures, draw),
            Retry::Seldom => BACKOFF_MAX,
        };
        Plan { next_attempt: after(now, pause), serving: held.is_some_and(|v| v.contains(now)) }
    }
}

/// When to renew a certificate that came at `now`: at 45 % to 55 % of the life that is left, by `draw`.
/// Counted from `now`, not from `not_before`, which a CA may set back to allow for slow clocks.
#[must_use]
pub fn renewal(validity: Validity, now: Timestamp, draw: u64) -> Timestamp {
    let start = now.max(validity.not_before);
    let left = validity.not_after.duration_since(start).as_millis().max(0);
    let spread = left * i128::from(SPREAD_PERCENT) / 100;
    let within = if spread > 0 { i128::from(draw) % (spread + 1) } else { 0 };
    let wait = left / 2 - spread / 2 + within;
    let wait = SignedDuration::from_millis(i64::try_from(wait).unwrap_or(i64::MAX));
    let at = start.checked_add(wait).unwrap_or(Timestamp::MAX);
    at.max(after(now, RENEWAL_MIN))
}

/// The pause after the `failures`-th failure in a row: 0.5 s doubling to 150 s, of which the last fifth is
/// drawn.
#[must_use]
pub fn backoff(failures: u32, draw: u64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let full = BACKOFF_MIN.saturating_mul(1 << doublings).min(BACKOFF_MAX);
    let fifth = u64::try_from(full.as_millis() / 5).unwrap_or(0);
    let less = Duration::from_millis(draw % (fifth + 1));
    full.saturating_sub(less).max(BACKOFF_MIN)
}

/// Whether an issue must go before ordinary renewals: nothing valid is held, or less than a tenth of its life
/// is left.
#[must_use]
pub fn is_urgent(held: Option<Validity>, now: Timestamp) -> bool {
    held.is_none_or(|v| {
        let life = v.not_after.duration_since(v.not_before).as_millis();
        !v.contains(now) || v.not_after.duration_since(now).as_millis() * 10 < life
    })
}

fn after(now: Timestamp, pause: Duration) -> Timestamp {
    now.checked_add(pause).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
