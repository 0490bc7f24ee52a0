use super::{Pick::*, *};

#[test]
fn streams_are_spread() {
    let check = |tunnels: &[(usize, usize)], bulk: bool, opening: bool, expected: Pick| {
        let views: Vec<_> = tunnels.iter().map(|&(streams, bulk)| View { streams, bulk }).collect();
        assert_eq!(pick(&views, bulk, opening), expected, "{tunnels:?} bulk={bulk} opening={opening}");
    };
    // The first.
    check(&[], false, false, Open);
    check(&[], false, true, Wait);
    // Small streams share, up to the limit of one tunnel.
    check(&[(99, 0)], false, false, Use(0));
    check(&[(100, 0)], false, false, Open);
    check(&[(100, 0)], false, true, Wait);
    check(&[(5, 0), (3, 0)], false, false, Use(1));
    // They avoid a bulk stream, but do not wait.
    check(&[(1, 1)], false, false, Open);
    check(&[(1, 1)], false, true, Use(0));
    check(&[(1, 1), (50, 0)], false, false, Use(1));
    // A bulk stream wants a tunnel of its own, while there are few.
    check(&[(0, 0)], true, false, Use(0));
    check(&[(3, 0)], true, false, Open);
    check(&[(3, 0)], true, true, Use(0));
    check(&[(1, 1), (1, 1), (9, 0), (2, 1)], true, false, Use(2));
    // Beyond the usual four only when all are full.
    check(&[(100, 0); 4], false, false, Open);
    check(&[(100, 0); TUNNELS_MAX], false, false, Full);
}
