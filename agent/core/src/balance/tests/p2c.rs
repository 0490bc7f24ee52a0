//! Two choices.

use crate::balance::{
    Load, Picked, SlowStart,
    View::{self, *},
    pick,
};
use proptest::prelude::*;
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

const fn well(cost: u64) -> View {
    Well(cost, None)
}

/// Draws spread over all of `u64`.
fn draws(count: u64) -> impl Iterator<Item = u64> {
    (1..=count).map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// How often each is picked, and which of them as probes.
fn shares(views: &[View], now: Instant) -> (Vec<u64>, BTreeSet<usize>) {
    let (mut counts, mut probes) = (vec![0; views.len()], BTreeSet::new());
    for draw in draws(10_000) {
        let Picked { index, probe } = pick(views.len(), now, draw, |i| views[i]).unwrap();
        counts[index] += 1;
        if probe {
            probes.insert(index);
        }
    }
    (counts, probes)
}

#[test]
fn latency_jumps_up_and_fades() {
    let start = Instant::now();
    let mut load = Load::new(start);
    assert_eq!(load.cost(start), 0, "nothing is known: asked first");
    load.begin();
    assert!(load.cost(start) > u64::MAX / 4, "one request at a time for an unknown endpoint");
    load.observe(ms(1), start);
    load.end();
    let fast = load.cost(start);
    load.observe(ms(3), start);
    assert_eq!(load.cost(start), fast, "quick is quick");
    load.begin();
    load.begin();
    assert_eq!(load.cost(start), 3 * fast, "two are waiting already");
    load.end();
    load.end();
    load.observe(ms(1000), start);
    let slow = load.cost(start);
    assert!(slow >= 64 * fast, "{slow}");
    load.observe(ms(1), start);
    assert_eq!(load.cost(start), slow, "a peak counts at once, a quick answer right after it hardly");
    assert!(load.cost(start + ms(20_000)) < slow && load.cost(start + ms(60_000)) == fast, "and fades");
    load.end();
    assert_eq!(load.in_flight(), 0);
    load.observe(ms(1), start - ms(5)); // a clock that a caller read earlier
    assert!(load.cost(start) <= slow);
}

#[test]
fn too_busy_costs_more_for_a_moment_and_is_no_sign_of_speed() {
    let start = Instant::now();
    let (mut busy, mut idle) = (Load::new(start), Load::new(start));
    idle.observe(ms(1), start);
    busy.too_busy(start);
    assert!(busy.cost(start) > idle.cost(start), "however quickly it said so");
    let after = start + ms(3000);
    assert_eq!(busy.cost(after), idle.cost(after), "forgotten after seconds");
    for _ in 0..100 {
        busy.too_busy(start);
    }
    assert_eq!(busy.cost(start + ms(6000)), idle.cost(start), "bounded");
    // It still gets a part of the load when the others are under more.
    for _ in 0..64 {
        idle.begin();
    }
    assert!(busy.cost(start) < idle.cost(start));
}

#[test]
fn failing_quickly_is_not_being_quick() {
    let now = Instant::now();
    let (mut dead, mut alive) = (Load::new(now), Load::new(now));
    dead.known();
    alive.observe(ms(1), now);
    assert_eq!(dead.cost(now), alive.cost(now));
}

#[test]
fn the_better_of_two() {
    let now = Instant::now();
    for draw in [0, 1, u64::MAX, u64::MAX / 2, 1 << 32, 7 << 60] {
        let picked = pick(2, now, draw, |i| well([10, 1][i]));
        assert_eq!(picked, Some(Picked { index: 1, probe: false }), "both are drawn, the cheap one wins");
    }
    assert_eq!(pick(0, now, 0, |_| well(0)), None);
    assert_eq!(pick(1, now, u64::MAX, |_| Ejected).map(|p| p.index), Some(0));
    assert_eq!(pick(1, now, 0, |_| Tried), None);
}

#[test]
fn each_pair_is_as_likely() {
    // 4 × 3 ordered pairs, drawn evenly in both halves: each comes up equally often.
    let mut seen = BTreeMap::new();
    for high in 0..4_u64 {
        for low in 0..3_u64 {
            let draw = (high << 62) | (low * (u64::from(u32::MAX) / 3) + low);
            let pair = RefCell::new(Vec::new());
            let _ = pick(4, Instant::now(), draw, |i| {
                pair.borrow_mut().push(i);
                well(0)
            });
            *seen.entry(pair.into_inner()).or_insert(0) += 1;
        }
    }
    assert_eq!(seen.len(), 12, "{seen:?}");
    assert!(seen.keys().all(|p| p.len() == 2 && p[0] != p[1]));
}

/// Shares in percent, ±3.
fn check(views: &[View], expected: &[u64]) {
    let (counts, _) = shares(views, Instant::now());
    let percent: Vec<_> = counts.iter().map(|c| c / 100).collect();
    let close = percent.iter().zip(expected).all(|(a, b)| a.abs_diff(*b) <= 3);
    assert!(close && percent.len() == expected.len(), "{views:?}: {percent:?}, not {expected:?}");
}

#[test]
fn who_gets_how_much() {
    let w = well(7);
    check(&[w, w, w, w], &[25, 25, 25, 25]);
    // The ejected get nothing, and the others equal parts, wherever they stand.
    check(&[w, Ejected], &[100, 0]);
    check(&[w, w, Ejected, Ejected], &[50, 50, 0, 0]);
    check(&[Ejected, Ejected, w, w, w], &[0, 0, 33, 33, 33]);
    // Beyond the panic threshold all are tried: better a try than a certain 503.
    check(&[w, Ejected, Ejected], &[33, 33, 33]);
    check(&[Ejected, Ejected], &[50, 50]);
    // But not by a request that has failed once already.
    check(&[w, Ejected, Ejected, Tried], &[100, 0, 0, 0]);
    // Silent nodes take nothing as long as anybody answers, and do not count for the threshold.
    check(&[w, Silent, Silent, Silent], &[100, 0, 0, 0]);
    check(&[w, w, Ejected, Silent, Silent], &[50, 50, 0, 0, 0]);
    check(&[Ejected, Silent, Silent], &[100, 0, 0]);
    check(&[Silent, Silent, Tried], &[50, 50, 0]);
    // A new one competes for a tenth of its draws.
    let young = Well(7, Some(SlowStart::new(Instant::now())));
    check(&[w, young], &[95, 5]);
    check(&[w, w, w, young], &[32, 32, 32, 3]);
    check(&[young, young], &[50, 50]);
    check(&[young, Ejected], &[100, 0]);
}

#[test]
fn one_whose_time_is_over_is_probed_by_whoever_draws_it() {
    let (counts, probes) = shares(&[well(1), Due, well(1)], Instant::now());
    assert!(counts[1] > 5000 && probes == BTreeSet::from([1]), "{counts:?} {probes:?}");
}

fn any_view() -> impl Strategy<Value = View> {
    prop_oneof![3 => (0_u64..5).prop_map(well), 1 => Just(Due), 2 => Just(Ejected), 1 => Just(Silent), 1 => Just(Tried)]
}

proptest! {
    #[test]
    fn never_out_of_range_nor_forbidden(views in prop::collection::vec(any_view(), 0..9), draw: u64) {
        let picked = pick(views.len(), Instant::now(), draw, |i| views[i]);
        prop_assert_eq!(picked.is_some(), views.iter().any(|v| *v != Tried));
        let Some(Picked { index, probe }) = picked else { return Ok(()) };
        let seen = views[index];
        prop_assert_ne!(seen, Tried);
        prop_assert!(!probe || seen == Due);
        let any = |wanted: fn(&View) -> bool| views.iter().any(wanted);
        if seen == Silent {
            prop_assert!(!any(|v| matches!(v, Well(..) | Due | Ejected)));
        }
        if seen == Ejected && any(|v| matches!(v, Well(..))) {
            let out = views.iter().filter(|v| matches!(v, Due | Ejected)).count();
            let well = views.iter().filter(|v| matches!(v, Well(..))).count();
            prop_assert!(out > well && !any(|v| *v == Tried), "panic only");
        }
        // The worst is never taken while all others may be: it loses to whichever it is drawn with.
        if views.len() > 1 && views.iter().all(|v| matches!(v, Well(..))) {
            let cost = |v: &View| match v { Well(cost, _) => *cost, _ => 0 };
            let worst = views.iter().map(cost).max().unwrap();
            if views.iter().filter(|v| cost(v) == worst).count() == 1 {
                prop_assert_ne!(cost(&seen), worst);
            }
        }
    }
}
