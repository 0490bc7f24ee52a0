//! Shares over the whole space of draws.

use crate::balance::Weighted;
use proptest::prelude::*;

/// The first draw that picks what lies at cumulative weight `at` of `total`: the share of an item is exactly the draws
/// between its own and the next one's.
fn first_draw(at: u64, total: u64) -> Option<u64> {
    u64::try_from((u128::from(at) << 64).div_ceil(u128::from(total))).ok()
}

/// Checks both sides of every border.
fn check(weights: &[u32]) {
    let items = weights.iter().copied().zip(0..);
    let Some(weighted) = Weighted::build(items) else {
        assert!(weights.iter().all(|w| *w == 0), "{weights:?}");
        return;
    };
    let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
    let mut before = 0;
    for (index, weight) in weights.iter().enumerate().filter(|(_, w)| **w > 0) {
        let end = before + u64::from(*weight);
        assert_eq!(*weighted.pick(first_draw(before, total).unwrap()), index, "{weights:?}");
        let last = first_draw(end, total).map_or(u64::MAX, |next| next - 1);
        assert_eq!(*weighted.pick(last), index, "{weights:?}");
        before = end;
    }
    let listed: Vec<(u64, usize)> = weighted.iter().map(|(w, i)| (w, *i)).collect();
    let wanted: Vec<(u64, usize)> =
        weights.iter().zip(0..).filter(|(w, _)| **w > 0).map(|(w, i)| (u64::from(*w), i)).collect();
    assert_eq!(listed, wanted);
}

#[test]
fn shares() {
    for weights in
        [&[1][..], &[90, 10], &[0, 1, 0], &[], &[0, 0], &[1, 1, 1], &[1_000_000, 1], &[u32::MAX, u32::MAX]]
    {
        check(weights);
    }
}

#[test]
fn an_invalid_backend_takes_exactly_its_share() {
    // Two valid backends and one that answers 500: every fourth of evenly spread draws.
    let weighted = Weighted::build([(2, Ok("a")), (1, Err(500)), (1, Ok("b"))]).unwrap();
    let draws = 1000;
    let failed = (0..draws).filter(|i| weighted.pick(u64::MAX / draws * i).is_err()).count();
    assert_eq!(failed, 250);
    // weight 0 and invalid: harmless
    let weighted = Weighted::build([(1, Ok("a")), (0, Err(500))]).unwrap();
    assert!(weighted.iter().all(|(_, target)| target.is_ok()));
}

proptest! {
    #[test]
    fn every_border_is_exact(weights in prop::collection::vec(prop_oneof![Just(0), 1_u32..4, 0..=1_000_000_u32], 0..6)) {
        check(&weights);
    }
}
