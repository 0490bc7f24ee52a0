//! Whether to try again (GEP-1731), and when.
//!
//! | outcome | without `retry` | with `retry` |
//! |---|---|---|
//! | nobody was reached | up to [`UNREACHED_TRIES`] endpoints, at once | until `attempts` |
//! | refused unprocessed | up to [`REFUSALS_MAX`] times, whatever the method | the same, beside `attempts` |
//! | a kept connection had gone stale | as where nobody was reached, if idempotent; then on a new connection | until `attempts`, if idempotent |
//! | the peer went silent before an answer | once, at once, if idempotent | until `attempts`, if idempotent |
//! | reset or closed after sending, before an answer | once, at once, if the method is safe | until `attempts`, if idempotent |
//! | `backendRequest` timeout | never | until `attempts`, any method |
//! | status in `codes` | never | until `attempts`, any method |
//!
//! v1.6.1 says that resets SHOULD be retried when there is a `retry` stanza; we hold that to idempotent methods
//! (RFC 9110 §9.2.2), as the text on the API's main branch asks. A request whose body is gone is retried only where
//! nothing of it was sent. `attempts: 0` switches all of it off, but for what the peer says that it did not process (RFC 9113
//! §6.8, §8.7): that is no retry, since nobody has seen the request yet, and counts as none.

use crate::model::Retry;
use http::{Method, StatusCode};
use std::time::Duration;

/// How a try ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An answer.
    Status(StatusCode),
    /// No connection came about (refused, timed out, unreachable, TLS failed): nothing was sent to anybody.
    Unreached,
    /// The peer says that it did not process the request (HTTP/2 `REFUSED_STREAM`, a stream above GOAWAY's last id).
    Refused,
    /// A kept connection ended before the first byte of an answer: most likely the peer had closed it already.
    Stale,
    /// The peer's node gave no sign of life any more while an answer was waited for.
    Silent,
    /// Reset or closed after sending: the request may have been processed.
    Reset,
    /// `timeouts.backendRequest` passed.
    TryTimeout,
}

/// What may be done again with a request, by its method (RFC 9110 §9.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// It asks, and changes nothing: `GET`, `HEAD`, `OPTIONS`, `TRACE`.
    Safe,
    /// Twice is as once: `PUT`, `DELETE`.
    Idempotent,
    /// All others.
    No,
}

impl Repeat {
    /// Of a method.
    #[must_use]
    pub fn of(method: &Method) -> Self {
        match (method.is_safe(), method.is_idempotent()) {
            (true, _) => Self::Safe,
            (false, true) => Self::Idempotent,
            (false, false) => Self::No,
        }
    }

    /// Whether it may be repeated without harm.
    #[must_use]
    pub fn is_idempotent(self) -> bool {
        self != Self::No
    }
}

/// A finished try.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// How many tries have been made, this one included: 1 after the first.
    pub tries: u32,
    /// How it ended.
    pub outcome: Outcome,
    /// Whether the request can still be sent in full (no body, or all of it is kept).
    pub replayable: bool,
    /// By its method.
    pub repeat: Repeat,
    /// How many tries have ended in [`Outcome::Reset`], this one included.
    pub resets: u32,
    /// How many tries have ended in [`Outcome::Refused`], this one included: they do not count as tries.
    pub refusals: u32,
    /// What is left until the request's deadline ([`super::Deadlines::remaining`]).
    pub remaining: Option<Duration>,
    /// Uniform draw, for jitter.
    pub draw: u64,
}

/// What to do after a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Try again, on another endpoint if there is one.
    Retry {
        /// Wait first.
        after: Duration,
    },
    /// Hand the outcome to the client.
    Stop,
}

/// First wait when `backoff` is left out.
const DEFAULT_BACKOFF: Duration = Duration::from_millis(25);
/// Waits double up to this many times the first.
const MAX_GROWTH: u32 = 16;

/// How many endpoints are asked for a request or connection that none of them has seen, where no policy says. A Deployment
/// that is scaled down loses several pods at once, and for as long as nobody has heard of it all of them are asked.
pub const UNREACHED_TRIES: u32 = 4;

/// Whether another try may be made after `tries`, if nobody is reached by the one under way.
#[must_use]
pub fn has_tries(policy: Option<&Retry>, tries: u32) -> bool {
    policy.map_or(tries < UNREACHED_TRIES, |p| tries <= p.attempts)
}

/// How often a request is sent again because nobody has looked at it. A server that ends its connections after so many
/// requests refuses what was on its way, and the next connection may be as old; one that refuses always is too busy.
pub const REFUSALS_MAX: u32 = 8;
/// So many of them at once: the connection was at its end. The others wait, each twice as long.
const REFUSALS_AT_ONCE: u32 = 2;

/// Decides. Never more than `attempts` retries, never a wait that ends after the request's deadline. Without a policy a
/// second retry is for an endpoint that was not asked yet: whoever calls knows whether there is one.
#[must_use]
pub fn decide(policy: Option<&Retry>, attempt: &Attempt) -> Decision {
    let wanted = match attempt.outcome {
        Outcome::Unreached => true,
        Outcome::Refused => return after_refusal(attempt),
        Outcome::Stale | Outcome::Silent => attempt.replayable && attempt.repeat.is_idempotent(),
        Outcome::Reset if policy.is_some() => attempt.replayable && attempt.repeat.is_idempotent(),
        // A server that ends resets what waits in its accept queue, and nobody can tell that from a request that it had begun
        // with. Once: a request that kills its server must not kill them all.
        Outcome::Reset => attempt.replayable && attempt.repeat == Repeat::Safe && attempt.resets <= 1,
        Outcome::TryTimeout => policy.is_some() && attempt.replayable,
        Outcome::Status(code) => {
            attempt.replayable && policy.is_some_and(|p| p.codes.contains(&code.as_u16()))
        }
    };
    // Each time it would be waited for a node's silence.
    let once = policy.is_none() && attempt.outcome == Outcome::Silent && attempt.tries > 1;
    if !wanted || once || !has_tries(policy, attempt.tries - attempt.refusals) {
        return Decision::Stop;
    }
    within(attempt, policy.map_or(Duration::ZERO, |p| wait(p, attempt)))
}

/// Another try, if there is time for one.
fn within(attempt: &Attempt, after: Duration) -> Decision {
    match attempt.remaining {
        Some(left) if left <= after => Decision::Stop,
        _ => Decision::Retry { after },
    }
}

fn after_refusal(attempt: &Attempt) -> Decision {
    if !attempt.replayable || attempt.refusals > REFUSALS_MAX {
        return Decision::Stop;
    }
    let later = attempt.refusals.saturating_sub(REFUSALS_AT_ONCE);
    within(attempt, if later == 0 { Duration::ZERO } else { DEFAULT_BACKOFF * (1 << (later - 1).min(8)) })
}

/// `backoff` is the least time between tries (v1.6.1): doubled with each retry, and up to half of it on top.
fn wait(policy: &Retry, attempt: &Attempt) -> Duration {
    let growth = 1_u32
        .checked_shl((attempt.tries - attempt.refusals).saturating_sub(1))
        .map_or(MAX_GROWTH, |g| g.clamp(1, MAX_GROWTH));
    let base = policy.backoff.unwrap_or(DEFAULT_BACKOFF).saturating_mul(growth);
    let half = u64::try_from(base.as_nanos() / 2).unwrap_or(u64::MAX);
    let jitter = (u128::from(attempt.draw) * u128::from(half)) >> 64;
    base.saturating_add(Duration::from_nanos(u64::try_from(jitter).unwrap_or(u64::MAX)))
}
