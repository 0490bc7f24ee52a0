//! Slow start.

use crate::balance::SlowStart;
use std::time::{Duration, Instant};

#[test]
fn a_share_rises_from_a_tenth_to_all_in_ten_seconds() {
    let joined = Instant::now();
    let young = SlowStart::new(joined);
    let percent = |ms: u64| young.share(joined + Duration::from_millis(ms)).map(|s| (s * 100) >> 32);
    let seen = [0, 999, 2_500, 5_000, 9_990, 10_000, 60_000].map(percent);
    assert_eq!(seen, [Some(9), Some(9), Some(25), Some(50), Some(99), None, None]);
    assert_eq!(young.share(joined - Duration::from_secs(1)), young.share(joined), "a clock read earlier");
}
