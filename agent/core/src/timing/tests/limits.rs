//! The rate limit.

use crate::timing::RateLimit;
use proptest::prelude::*;
use std::time::{Duration, Instant};

#[test]
fn bursts_then_a_steady_rate() {
    let start = Instant::now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    let mut limit = RateLimit::new(10, 3, start);
    let wait = |ms| Err(Duration::from_millis(ms));
    for (ms, wanted) in [
        (0, Ok(())),
        (0, Ok(())),
        (0, Ok(())),
        (0, wait(100)),
        (60, wait(40)),
        (100, Ok(())),
        (100, wait(100)),
        (10_000, Ok(())), // full again, and not fuller
        (10_000, Ok(())),
        (10_000, Ok(())),
        (10_000, wait(100)),
    ] {
        assert_eq!(limit.take(at(ms)), wanted, "at {ms} ms");
    }
}

proptest! {
    #[test]
    fn never_more_than_burst_and_rate(rate in 1..100_u32, burst in 0..20_u32, pauses in prop::collection::vec(0..50_u64, 0..200)) {
        let start = Instant::now();
        let mut limit = RateLimit::new(rate, burst, start);
        let (mut passed, mut taken) = (Duration::ZERO, 0_u32);
        for pause in pauses {
            passed += Duration::from_millis(pause);
            taken += u32::from(limit.take(start + passed).is_ok());
            // 1e-6: the interval is rounded down to a nanosecond.
            let most = f64::from(burst.max(1)) + passed.as_secs_f64() * f64::from(rate) * (1.0 + 1e-6);
            prop_assert!(f64::from(taken) <= most, "{} > {}", taken, most);
        }
    }
}
