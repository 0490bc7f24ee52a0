//! Two choices.

use crate::balance::{Load, pick, pick_by};
use proptest::prelude::*;
use std::time::{Duration, Instant};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[test]
fn latency_jumps_up_and_fades() {
    let start = Instant::now();
    let mut load = Load::new(start);
    assert_eq!(load.cost(start), 0);
    load.begin();
    assert!(load.cost(start) > u64::MAX / 4, "one probe at a time for an unknown endpoint");
    load.end(Some(ms(10)), start);
    assert_eq!((load.cost(start), load.in_flight()), (10_000_000, 0));
    load.begin();
    load.begin();
    assert_eq!(load.cost(start), 30_000_000, "two are waiting already");
    load.end(Some(ms(100)), start);
    load.end(Some(ms(1)), start);
    assert_eq!(load.cost(start), 100_000_000, "a peak counts at once, a quick answer right after it hardly");
    let later = start + Duration::from_secs(10);
    let cost = load.cost(later);
    assert!((36_000_000..38_000_000).contains(&cost), "1/e after ten seconds: {cost}");
    load.begin();
    load.end(None, later);
    assert_eq!((load.cost(later), load.in_flight()), (cost, 0), "nothing measured");
    load.end(None, later);
    assert_eq!(load.in_flight(), 0);
    load.begin();
    load.end(Some(ms(1)), start); // a clock that a caller read earlier
    assert!(load.cost(later) <= cost.max(100_000_000));
}

#[test]
fn a_failure_is_slow_however_quick_it_came() {
    let now = Instant::now();
    let (mut dead, mut busy) = (Load::new(now), Load::new(now));
    dead.begin();
    dead.failed(now);
    dead.end(None, now);
    busy.begin();
    busy.observe(ms(50), now);
    assert_eq!((dead.in_flight(), busy.in_flight()), (0, 1));
    assert!(dead.cost(now) > busy.cost(now));
    let later = now + Duration::from_secs(60);
    assert!(dead.cost(later) < busy.cost(now), "and is tried again after a while");
}

#[test]
fn the_better_of_two() {
    let now = Instant::now();
    let loads = [10, 1].map(|latency| {
        let mut load = Load::new(now);
        load.end(Some(ms(latency)), now);
        load
    });
    for draw in [0, 1, u64::MAX, u64::MAX / 2, 1 << 32, 7 << 60] {
        assert_eq!(pick(&loads, now, draw), Some(1), "both are drawn, the quick one wins");
    }
    assert_eq!(pick(&[], now, 0), None);
    assert_eq!(pick(&loads[..1], now, u64::MAX), Some(0));
}

#[test]
fn each_pair_is_as_likely() {
    // 4 × 3 ordered pairs, drawn evenly in both halves: each comes up equally often.
    let mut seen = std::collections::BTreeMap::new();
    for high in 0..4_u64 {
        for low in 0..3_u64 {
            let draw = (high << 62) | (low * (u64::from(u32::MAX) / 3) + low);
            let mut pair = Vec::new();
            let _ = pick_by(4, draw, |i| {
                pair.push(i);
                Some(0)
            });
            *seen.entry(pair).or_insert(0) += 1;
        }
    }
    assert_eq!(seen.len(), 12, "{seen:?}");
    assert!(seen.keys().all(|p| p.len() == 2 && p[0] != p[1]));
}

proptest! {
    #[test]
    fn never_out_of_range_nor_forbidden(costs in prop::collection::vec(prop::option::weighted(0.6, 0_u64..5), 0..9), draw: u64) {
        let picked = pick_by(costs.len(), draw, |i| costs[i]);
        prop_assert_eq!(picked.is_some(), costs.iter().any(Option::is_some));
        if let Some(picked) = picked {
            prop_assert!(costs[picked].is_some());
        }
        // The worst is never taken while all others may be: it loses to whichever it is drawn with.
        if costs.len() > 1 && costs.iter().all(Option::is_some) {
            let worst = costs.iter().max().copied().flatten();
            if costs.iter().filter(|c| **c == worst).count() == 1 {
                prop_assert_ne!(picked.map(|p| costs[p]), Some(worst));
            }
        }
    }
}
