use proptest::prelude::*;

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn validity(from: i64, to: i64) -> Validity {
    Validity { not_before: at(from), not_after: at(to) }
}

#[test]
fn renews_around_half_life() {
    // (not_before, not_after, draw, seconds until the renewal)
    let table = [
        (-120, 86_400, 0, 38_880),         // 45 %
        (-120, 86_400, 4_320_000, 43_200), // 50 %
        (-120, 86_400, 8_640_000, 47_520), // 55 %
        (0, 10, 0, 4),                     // 4.5 s
        (0, 1, 0, 1),                      // not sooner than RENEWAL_MIN
        (-100, -10, 7, 1),                 // already run out: ask at once, but not in a loop
        (100, 300, 0, 190),                // not valid yet: counted from its start
    ];
    for (from, to, draw, wait) in table {
        let got = renewal(validity(from, to), at(0), draw).duration_since(at(0)).as_secs();
        assert_eq!(got, wait, "{from}..{to} draw {draw}");
    }
}

#[test]
fn backs_off_from_half_a_second_to_150() {
    let table =
        [(1, 500), (2, 1000), (3, 2000), (8, 64_000), (9, 128_000), (10, 150_000), (u32::MAX, 150_000)];
    for (failures, ms) in table {
        assert_eq!(backoff(failures, 0), Duration::from_millis(ms), "{failures}");
    }
}

#[test]
fn failure_keeps_what_is_valid() {
    let mut rotation = Rotation::default();
    assert!(rotation.failed(Some(validity(-10, 10)), at(0), Retry::Backoff, 0).serving);
    assert!(!rotation.failed(Some(validity(-10, -1)), at(0), Retry::Backoff, 0).serving);
    assert!(!rotation.failed(None, at(0), Retry::Backoff, 0).serving);
    assert_eq!(rotation.failures(), 3);
    assert_eq!(rotation.failed(None, at(0), Retry::Seldom, 0).next_attempt, at(150));
    rotation.issued(validity(0, 100), at(0), 0);
    assert_eq!(rotation.failures(), 0);
}

#[test]
fn urgent_without_a_certificate_or_near_its_end() {
    let table = [
        (None, true),
        (Some(validity(0, 1000)), false),
        (Some(validity(-899, 101)), false),
        (Some(validity(-901, 99)), true),
        (Some(validity(-1000, -1)), true),
        (Some(validity(10, 1000)), true), // not valid yet
    ];
    for (held, urgent) in table {
        assert_eq!(is_urgent(held, at(0)), urgent, "{held:?}");
    }
}

proptest! {
    /// A renewal falls within the life, after now, and before the last 40 % of what is left.
    #[test]
    fn renewal_is_in_time(back in 0i64..100_000, life in 10i64..10_000_000, draw: u64) {
        let now = at(0);
        let renew = renewal(validity(-back, life), now, draw);
        let share = renew.duration_since(now).as_secs_f64() / life as f64;
        prop_assert!((0.449..=0.551).contains(&share), "{}", share);
    }

    /// Pauses stay within the bounds and, but for the draw, never shrink.
    #[test]
    fn backoff_is_bounded_and_grows(failures in 1u32..1000, a: u64, b: u64) {
        let (this, next) = (backoff(failures, a), backoff(failures + 1, b));
        prop_assert!((BACKOFF_MIN..=BACKOFF_MAX).contains(&this));
        prop_assert!(next.as_secs_f64() >= this.as_secs_f64() * 0.8);
    }

    /// Any sequence of failures and successes: the next try is always in the future and at most 150 s away
    /// while failing; whatever is valid is served.
    #[test]
    fn any_history_goes_on(history in proptest::collection::vec((any::<bool>(), 1i64..200_000, any::<u64>()), 1..60)) {
        let (mut rotation, mut now, mut held) = (Rotation::default(), at(0), None);
        for (ok, life, draw) in history {
            let plan = if ok {
                let fresh = Validity { not_before: now, not_after: now + SignedDuration::from_secs(life) };
                held = Some(fresh);
                rotation.issued(fresh, now, draw)
            } else {
                let plan = rotation.failed(held, now, Retry::Backoff, draw);
                prop_assert!(plan.next_attempt.duration_since(now).as_secs() <= 150);
                plan
            };
            prop_assert!(plan.next_attempt > now);
            prop_assert_eq!(plan.serving, held.is_some_and(|v| v.contains(now)));
            now = plan.next_attempt;
        }
    }
}
