//! Affinity: stable, even, and moving only what must move.

use crate::balance::affinity::{choose, client_key, seat, session_key};
use proptest::prelude::*;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

fn endpoints(count: u8) -> Vec<SocketAddr> {
    (0..count).map(|i| SocketAddr::from(([10, 244, 0, i], 8080))).collect()
}

fn pick(key: u64, endpoints: &[SocketAddr]) -> Option<SocketAddr> {
    choose(key, endpoints.iter().map(|e| Some(seat(e)))).map(|i| endpoints[i])
}

#[test]
fn even_over_neighbouring_clients() {
    let endpoints = endpoints(4);
    let mut counts = [0; 4];
    for client in 0..4000_u32 {
        let key = client_key(IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + client)));
        let at = pick(key, &endpoints).unwrap();
        counts[endpoints.iter().position(|e| *e == at).unwrap()] += 1;
    }
    assert!(counts.iter().all(|c| (900..1100).contains(c)), "{counts:?}");
}

#[test]
fn the_hash_is_the_same_in_every_agent_and_version() {
    // Changing these moves every session during an upgrade.
    assert_eq!(client_key([10, 0, 0, 1].into()), 0xe7a7_7091_5e3a_6bb4);
    assert_eq!(session_key(b"abc"), 0x0dd4_9049_0804_b508);
    assert_eq!(client_key("::ffff:10.0.0.1".parse().unwrap()), client_key([10, 0, 0, 1].into()));
    assert_eq!(choose(1, []), None);
    assert_eq!(choose(1, [None, Some(5), None]), Some(1));
    assert_eq!(choose(1, [Some(5), Some(5)]), Some(0));
}

proptest! {
    #[test]
    fn only_the_keys_of_a_lost_endpoint_move(key: u64, count in 2_u8..20, lost in any::<prop::sample::Index>()) {
        let all = endpoints(count);
        let before = pick(key, &all).unwrap();
        let lost = all[lost.index(all.len())];
        let left: Vec<_> = all.iter().copied().filter(|e| *e != lost).collect();
        let after = pick(key, &left).unwrap();
        prop_assert!(after == before || before == lost);
        // The order of endpoints does not count, and a forbidden seat is as good as gone.
        let mut turned = all.clone();
        turned.reverse();
        prop_assert_eq!(pick(key, &turned), Some(before));
        let without = choose(key, all.iter().map(|e| (*e != lost).then(|| seat(e)))).map(|i| all[i]);
        prop_assert_eq!(without, Some(after));
    }
}
