//! Ejection as a story, and its one law.

use crate::balance::{EjectPolicy, Outliers};
use proptest::prelude::*;
use std::time::{Duration, Instant};

const POLICY: EjectPolicy =
    EjectPolicy { failures: 3, base: Duration::from_secs(10), max: Duration::from_secs(60) };

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Fails `times` times and returns what the last one did.
fn fail(outliers: &mut Outliers<u8>, times: u32, now: Instant) -> Option<Duration> {
    (0..times).map(|_| outliers.failed(1, 4, now)).last().flatten()
}

#[test]
fn failures_in_a_row_eject_for_longer_each_time() {
    let start = Instant::now();
    let mut outliers = Outliers::new(POLICY);
    assert_eq!(fail(&mut outliers, 2, start), None);
    outliers.succeeded(&1, start);
    assert_eq!(fail(&mut outliers, 2, start), None, "a success starts the count anew");
    assert_eq!(fail(&mut outliers, 1, start), Some(secs(10)));
    assert!(outliers.is_ejected(&1, start + secs(9)) && !outliers.is_ejected(&1, start + secs(10)));
    assert!(!outliers.is_ejected(&2, start));
    assert_eq!(fail(&mut outliers, 9, start + secs(5)), None, "requests that were under way change nothing");
    let mut now = start;
    for rest in [20, 40, 60, 60] {
        now += secs(100);
        assert_eq!(fail(&mut outliers, 3, now), Some(secs(rest)));
    }
    now += secs(60);
    outliers.succeeded(&1, now);
    assert_eq!(fail(&mut outliers, 3, now), Some(secs(60)), "still on probation");
    now += secs(120);
    outliers.succeeded(&1, now);
    assert_eq!(fail(&mut outliers, 3, now), Some(secs(10)), "the past is forgotten");
    outliers.retain(|_| false);
    assert!(!outliers.is_ejected(&1, now));
}

#[test]
fn a_lone_endpoint_is_never_ejected() {
    let now = Instant::now();
    let mut outliers = Outliers::new(POLICY);
    for _ in 0..20 {
        assert_eq!(outliers.failed(1, 1, now), None);
    }
    // and as soon as there is a second one, it is
    assert_eq!(outliers.failed(1, 2, now), Some(secs(10)));
}

proptest! {
    #[test]
    fn at_most_half_are_out(events in prop::collection::vec((0..5_u8, any::<bool>(), 0..20_u64), 0..200)) {
        let mut outliers = Outliers::new(POLICY);
        let mut now = Instant::now();
        for (endpoint, fails, pause) in events {
            now += secs(pause / 10);
            if fails {
                outliers.failed(endpoint, 5, now);
            } else {
                outliers.succeeded(&endpoint, now);
            }
            let out = (0..5).filter(|e| outliers.is_ejected(e, now)).count();
            prop_assert_eq!(out, outliers.ejected(now));
            prop_assert!(out <= 2, "{} of 5", out);
        }
    }
}
