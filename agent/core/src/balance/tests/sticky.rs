//! `sessionAffinity: ClientIP`: a client keeps its endpoint.

use crate::{
    balance::{Seeker, Sticky},
    config::{AppProtocol, Backend, BackendKey, Endpoint, Reach, Transport},
    model::ObjectKey,
};
use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

const TIMEOUT: Duration = Duration::from_secs(100);

fn backend(name: &str, port: u16, reach: Reach) -> Backend {
    Backend {
        key: BackendKey { service: ObjectKey::new("shop", name), port, transport: Transport::Tcp, reach },
        protocol: AppProtocol::Http,
        tls: None,
        client_ip_affinity: Some(TIMEOUT),
    }
}

/// Endpoints by the last byte of their address.
fn endpoints(last: impl IntoIterator<Item = u8>) -> Vec<Endpoint> {
    let one = |n| Endpoint { addr: SocketAddr::from(([10, 1, 0, n], 8080)), workload: None, zone: None };
    last.into_iter().map(one).collect()
}

fn client(n: u32) -> IpAddr {
    IpAddr::from((0x0a02_0000 + n).to_be_bytes())
}

/// A table with its clock.
struct Table {
    sticky: Sticky,
    start: Instant,
}

impl Table {
    fn new(capacity: usize) -> Self {
        Self { sticky: Sticky::new(capacity), start: Instant::now() }
    }

    /// The last byte of the endpoint that a client gets after so many seconds; `tried` may not be taken.
    fn get(&mut self, seconds: u64, n: u32, all: &[u8], tried: &[u8]) -> Option<u8> {
        self.of(&backend("web", 80, Reach::default()), (seconds, n), all, tried)
    }

    fn of(&mut self, backend: &Backend, (seconds, n): (u64, u32), all: &[u8], tried: &[u8]) -> Option<u8> {
        let now = self.start + Duration::from_secs(seconds);
        let fresh = |i: usize| !tried.contains(&all[i]);
        let set = endpoints(all.iter().copied());
        let index = self.sticky.pick(Seeker { client: client(n), backend }, &set, fresh, now)?;
        Some(all[index])
    }
}

#[test]
fn clients_keep_their_endpoint_across_a_scale_up() {
    let mut table = Table::new(1000);
    let before: Vec<_> = (0..500).map(|n| table.get(0, n, &[1, 2, 3], &[])).collect();
    let spread = |seen: &[Option<u8>]| [1, 2, 3, 4].map(|e| seen.iter().filter(|s| **s == Some(e)).count());
    assert!(spread(&before)[..3].iter().all(|n| (110..225).contains(n)), "{:?}", spread(&before));
    let after: Vec<_> = (0..500).map(|n| table.get(10, n, &[1, 2, 3, 4], &[])).collect();
    assert_eq!(before, after);
    let new: Vec<_> = (500..1000).map(|n| table.get(10, n, &[1, 2, 3, 4], &[])).collect();
    assert!((80..175).contains(&spread(&new)[3]), "new clients use the new endpoint: {:?}", spread(&new));
}

#[test]
fn clients_of_an_endpoint_that_goes_are_spread_and_stay_there() {
    let mut table = Table::new(1000);
    let before: Vec<_> = (0..300).map(|n| table.get(0, n, &[1, 2, 3], &[])).collect();
    let without: Vec<_> = (0..300).map(|n| table.get(1, n, &[1, 3], &[])).collect();
    for (was, is) in before.iter().zip(&without) {
        assert!(if *was == Some(2) { *is != Some(2) } else { was == is }, "{was:?} {is:?}");
    }
    let back: Vec<_> = (0..300).map(|n| table.get(2, n, &[1, 2, 3], &[])).collect();
    assert_eq!(back, without, "their sessions are elsewhere now");
}

#[test]
fn a_silent_client_is_forgotten_after_the_timeout() {
    // A client that hashing moves when endpoint 4 comes.
    let hashed = |n: u32, all: &[u8]| Table::new(10).get(0, n, all, &[]);
    let moved = (0..).find(|n| hashed(*n, &[1, 2, 3, 4]) == Some(4)).unwrap();
    let mut table = Table::new(10);
    let first = table.get(0, moved, &[1, 2, 3], &[]);
    // Each use counts anew.
    for seconds in [99, 198, 297] {
        assert_eq!(table.get(seconds, moved, &[1, 2, 3, 4], &[]), first);
    }
    assert_eq!(table.get(398, moved, &[1, 2, 3, 4], &[]), Some(4));
}

#[test]
fn a_failed_try_goes_elsewhere_and_loses_no_seat() {
    let mut table = Table::new(10);
    let own = table.get(0, 7, &[1, 2, 3], &[]).unwrap();
    let other = table.get(1, 7, &[1, 2, 3], &[own]).unwrap();
    assert_ne!(own, other);
    assert_eq!(table.get(2, 7, &[1, 2, 3], &[own]), Some(other), "always the same one");
    assert_eq!(table.get(3, 7, &[1, 2, 3], &[]), Some(own), "its session is there");
    assert_eq!(table.get(4, 7, &[1, 2, 3], &[1, 2, 3]), None);
    assert_eq!(table.get(4, 7, &[], &[]), None);
}

#[test]
fn a_seat_belongs_to_a_client_and_a_service_port() {
    let mut table = Table::new(100);
    let (web, local) = (backend("web", 80, Reach::default()), Reach { local: true, second_family: false });
    for n in 0..20 {
        let first = table.of(&web, (0, n), &[1, 2], &[]);
        let by_its_other_address = table.of(&backend("web", 80, local), (1, n), &[1, 2, 3, 4, 5], &[]);
        assert_eq!(first, by_its_other_address);
    }
    let others = [backend("web", 81, Reach::default()), backend("api", 80, Reach::default())];
    for other in others {
        let seen: Vec<_> = (0..20).map(|n| table.of(&other, (1, n), &[1, 2, 3, 4, 5], &[])).collect();
        assert!(seen.iter().any(|e| *e > Some(2)), "{}: {seen:?}", other.key.port);
    }
    // An IPv4-mapped address is the IPv4 client.
    let now = Instant::now();
    let mut sticky = Sticky::new(10);
    let mut pick =
        |ip: IpAddr, all: &[Endpoint]| sticky.pick(Seeker { client: ip, backend: &web }, all, |_| true, now);
    let IpAddr::V4(v4) = client(1) else { panic!() };
    assert_eq!(pick(v4.into(), &endpoints([1])), Some(0));
    assert_eq!(pick(v4.to_ipv6_mapped().into(), &endpoints(1..9)), Some(0));
}

#[test]
fn the_table_is_bounded_and_the_busy_stay() {
    let mut table = Table::new(64);
    let own = table.get(0, 0, &[1, 2, 3], &[]);
    for n in 1..5_000 {
        table.get(0, n, &[1, 2, 3], &[]);
        if n % 50 == 0 {
            // Comes again before a whole table of others has.
            assert_eq!(table.get(0, 0, &[1, 2, 3, 4, 5, 6, 7, 8, 9], &[]), own);
        }
        assert!(table.sticky.len() <= 128, "{}", table.sticky.len());
    }
}
