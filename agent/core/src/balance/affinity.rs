//! Affinity by rendezvous hashing: each (key, endpoint) pair has a score, the highest wins. When an endpoint comes, it
//! takes only the keys that it wins; when one goes, only its own keys move.
//!
//! The hash is fixed, so every agent sends the same client to the same endpoint.

use std::net::{IpAddr, SocketAddr};

/// The key of a client address: `sessionAffinity: ClientIP`. An IPv4-mapped address is its IPv4 address.
#[must_use]
pub fn client_key(client: IpAddr) -> u64 {
    match client.to_canonical() {
        IpAddr::V4(ip) => hash(&ip.octets()),
        IpAddr::V6(ip) => hash(&ip.octets()),
    }
}

/// The key of a session (cookie or header value).
#[must_use]
pub fn session_key(value: &[u8]) -> u64 {
    hash(value)
}

/// An endpoint's seat: may be kept beside it, so that choosing hashes nothing.
#[must_use]
pub fn seat(endpoint: &SocketAddr) -> u64 {
    mix(client_key(endpoint.ip()) ^ u64::from(endpoint.port()).rotate_left(32))
}

/// The index of the seat that `key` belongs to; `None` marks a seat that must not be taken (ejected, tried).
#[must_use]
pub fn choose(key: u64, seats: impl IntoIterator<Item = Option<u64>>) -> Option<usize> {
    let scored = seats.into_iter().enumerate().filter_map(|(i, s)| Some((mix(key ^ s?.rotate_left(17)), i)));
    // On equal scores (one address twice) the first: `max` would take the last.
    scored.reduce(|best, next| if next.0 > best.0 { next } else { best }).map(|(_, index)| index)
}

/// FNV-1a, then mixed: short keys such as addresses differ in few bits.
fn hash(bytes: &[u8]) -> u64 {
    let fnv = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    mix(fnv)
}

/// The finalizer of SplitMix64: every input bit changes every output bit with probability 1/2.
pub(super) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
