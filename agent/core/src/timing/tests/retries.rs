//! Retries.

use crate::{
    model::{Retry, Timeouts},
    timing::{
        Attempt, Deadlines, Decision, Outcome, decide,
        retry::{REFUSALS_MAX, Repeat, UNREACHED_TRIES},
    },
};
use http::StatusCode;
use proptest::prelude::*;
use std::time::{Duration, Instant};

fn policy(attempts: u32, codes: &[u16], backoff_ms: Option<u64>) -> Retry {
    Retry { codes: codes.to_vec(), attempts, backoff: backoff_ms.map(Duration::from_millis) }
}

fn status(code: u16) -> Outcome {
    Outcome::Status(StatusCode::from_u16(code).unwrap())
}

fn attempt(tries: u32, outcome: Outcome) -> Attempt {
    let refusals = u32::from(outcome == Outcome::Refused);
    Attempt {
        tries,
        outcome,
        replayable: true,
        repeat: Repeat::Safe,
        resets: 1,
        refusals,
        remaining: None,
        draw: 0,
    }
}

const OUTCOMES: [Outcome; 6] = [
    Outcome::Status(StatusCode::SERVICE_UNAVAILABLE),
    Outcome::Unreached,
    Outcome::Refused,
    Outcome::Stale,
    Outcome::Reset,
    Outcome::TryTimeout,
];

/// The outcomes of [`OUTCOMES`] that are tried again after the first try.
fn check(policy: Option<&Retry>, replayable: bool, repeat: Repeat, wanted: &[Outcome]) {
    let retried =
        |o: &Outcome| decide(policy, &Attempt { replayable, repeat, ..attempt(1, *o) }) != Decision::Stop;
    let found: Vec<_> = OUTCOMES.iter().copied().filter(retried).collect();
    assert_eq!(found, wanted, "{policy:?} replayable {replayable} {repeat:?}");
}

#[test]
fn what_is_tried_again() {
    use Outcome::{Refused, Reset, Stale, TryTimeout, Unreached};
    let full = policy(1, &[503], None);
    check(None, true, Repeat::Safe, &[Unreached, Refused, Stale, Reset]);
    check(None, true, Repeat::Idempotent, &[Unreached, Refused, Stale]);
    check(None, true, Repeat::No, &[Unreached, Refused]);
    check(None, false, Repeat::Safe, &[Unreached]);
    check(Some(&full), true, Repeat::Safe, &OUTCOMES);
    check(Some(&full), true, Repeat::Idempotent, &OUTCOMES);
    check(Some(&full), true, Repeat::No, &[status(503), Unreached, Refused, TryTimeout]);
    check(Some(&full), false, Repeat::Safe, &[Unreached]);
    let other = policy(1, &[502], None);
    check(Some(&other), true, Repeat::Safe, &[Unreached, Refused, Stale, Reset, TryTimeout]);
    check(Some(&policy(0, &[503], None)), true, Repeat::No, &[Refused]);
}

#[test]
fn attempts_and_waits() {
    let retry = |ms| Decision::Retry { after: Duration::from_millis(ms) };
    let backoff = policy(3, &[500], Some(100));
    for (policy, attempt, wanted) in [
        (None, attempt(1, Outcome::Unreached), retry(0)),
        // Three pods that are scaled away at once.
        (None, attempt(3, Outcome::Unreached), retry(0)),
        (None, attempt(4, Outcome::Unreached), Decision::Stop),
        (None, attempt(3, Outcome::Refused), retry(0)),
        (None, attempt(3, Outcome::Stale), retry(0)),
        (None, attempt(2, Outcome::Reset), retry(0)),
        (None, Attempt { resets: 2, ..attempt(2, Outcome::Reset) }, Decision::Stop),
        (None, attempt(1, Outcome::Silent), retry(0)),
        (None, attempt(2, Outcome::Silent), Decision::Stop),
        (Some(&backoff), attempt(1, status(500)), retry(100)),
        (Some(&backoff), attempt(2, status(500)), retry(200)),
        (Some(&backoff), attempt(3, status(500)), retry(400)),
        (Some(&backoff), attempt(4, status(500)), Decision::Stop),
        (Some(&backoff), attempt(1, status(501)), Decision::Stop),
        (Some(&backoff), attempt(1, status(200)), Decision::Stop),
        (Some(&policy(9, &[], Some(100))), attempt(9, Outcome::Unreached), retry(1600)), // no longer than 16 times
        (Some(&policy(99, &[], Some(100))), attempt(60, Outcome::Unreached), retry(1600)),
        (Some(&policy(1, &[], None)), attempt(1, Outcome::Unreached), retry(25)),
    ] {
        assert_eq!(decide(policy, &attempt), wanted, "{attempt:?}");
    }
    // What nobody has looked at is sent again, and counts for nothing.
    let refused = |refusals| Attempt { refusals, ..attempt(refusals, Outcome::Refused) };
    for (policy, attempt, wanted) in [
        (None, refused(2), retry(0)),
        (None, refused(3), retry(25)),
        (Some(&policy(0, &[], None)), refused(8), retry(800)),
        (None, refused(9), Decision::Stop),
        (None, Attempt { refusals: 3, ..attempt(6, Outcome::Unreached) }, retry(0)),
        (None, Attempt { refusals: 3, ..attempt(7, Outcome::Unreached) }, Decision::Stop),
        (Some(&backoff), Attempt { refusals: 3, ..attempt(4, status(500)) }, retry(100)),
    ] {
        assert_eq!(decide(policy, &attempt), wanted, "{attempt:?}");
    }
    let left = |ms| Attempt { remaining: Some(Duration::from_millis(ms)), ..attempt(1, status(500)) };
    assert_eq!(decide(Some(&backoff), &left(101)), retry(100));
    assert_eq!(decide(Some(&backoff), &left(100)), Decision::Stop, "no time for another try");
    assert_eq!(
        decide(None, &Attempt { remaining: Some(Duration::ZERO), ..attempt(1, Outcome::Unreached) }),
        Decision::Stop
    );
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop::sample::select(OUTCOMES.to_vec())
}

proptest! {
    #[test]
    fn never_beyond_attempts_or_deadline(
        attempts in 0..6_u32,
        backoff in prop::option::of(0..500_u64),
        timeout in prop::option::of(0..2_000_u64),
        tries in prop::collection::vec((outcome(), 0..300_u64, any::<u64>()), 10),
        configured: bool,
    ) {
        let policy = policy(attempts, &[503], backoff);
        let policy = configured.then_some(&policy);
        let start = Instant::now();
        let limit = timeout.map(Duration::from_millis);
        let deadlines = Deadlines::start(&Timeouts { request: limit, backend_request: None }, start);
        let (mut now, mut made, mut resets, mut refusals) = (start, 0, 0, 0);
        for (outcome, took, draw) in tries {
            made += 1;
            now += Duration::from_millis(took);
            let remaining = deadlines.remaining(now);
            resets += u32::from(outcome == Outcome::Reset);
            refusals += u32::from(outcome == Outcome::Refused);
            let attempt = Attempt {
                tries: made, outcome, replayable: true, repeat: Repeat::Safe, resets, refusals, remaining, draw,
            };
            let Decision::Retry { after } = decide(policy, &attempt) else { break };
            if let (Some(policy), true) = (policy, outcome != Outcome::Refused) {
                prop_assert!(after >= policy.backoff.unwrap_or_default(), "not before the configured minimum");
            }
            now += after;
            prop_assert!(limit.is_none_or(|l| now < start + l), "a try must begin before the deadline");
        }
        prop_assert!(made - refusals <= policy.map_or(UNREACHED_TRIES, |p| 1 + p.attempts));
        prop_assert!(refusals <= REFUSALS_MAX + 1);
    }
}
