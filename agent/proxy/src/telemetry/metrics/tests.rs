use super::*;
use crate::{
    error::Reason,
    telemetry::fixtures::{Exchange as Fixture, backend, peer, rule, workload},
};

const IDLE: Duration = Duration::from_secs(60);

fn registry(max: usize) -> Arc<Registry> {
    Arc::new(Registry::new(max, IDLE))
}

/// Codes and counts, sorted by labels.
fn codes(registry: &Registry) -> Vec<(u16, u64)> {
    let all = registry.outcomes.snapshot();
    all.iter().map(|(l, parts)| (l.code, parts.iter().map(|p| p.uses()).sum())).collect()
}

#[test]
fn workers_count_apart_and_sum_up() {
    let (registry, fixture) = (registry(100), Fixture::new());
    let workers = [0, 1].map(|index| Handles::new(index, registry.clone()));
    for (worker, times) in workers.iter().zip([2, 3]) {
        (0..times).for_each(|_| worker.request(&fixture.record()));
    }
    workers[0].request(&RequestRecord { code: 503, reason: Some(Reason::NoEndpoint), ..fixture.record() });
    assert_eq!(codes(&registry), [(200, 5), (503, 1)]);
    let exchanges = registry.exchanges.snapshot();
    let [(edge, parts)] = &exchanges[..] else { panic!("one edge, whatever the outcome") };
    assert_eq!(edge.source, Some(("shop".into(), "web".into())));
    assert_eq!(parts.iter().map(|p| p.uses()).sum::<u64>(), 6);
    assert_eq!(parts.iter().map(|p| p.request_bytes.load(Relaxed)).sum::<u64>(), 18);
}

#[test]
fn a_duration_falls_into_the_first_bucket_that_holds_it() {
    let cases = [
        (Duration::ZERO, 0),
        (Duration::from_nanos(100_000), 0),
        (Duration::from_nanos(100_001), 1),
        (Duration::from_millis(5), 5),
        (Duration::from_secs(10), 18),
        (Duration::from_secs(11), 19),
        (Duration::MAX, 19),
    ];
    let fixture = Fixture::new();
    for (duration, bucket) in cases {
        let exchange = Exchange::default();
        exchange.observe(&RequestRecord { duration, ..fixture.record() });
        let hit = exchange.buckets.iter().position(|b| b.load(Relaxed) == 1);
        assert_eq!(hit, Some(bucket), "{duration:?}");
    }
    assert!(BUCKETS.is_sorted());
}

#[test]
fn a_reload_finds_the_same_series() {
    let (registry, mut fixture) = (registry(100), Fixture::new());
    let worker = Handles::new(0, registry.clone());
    worker.request(&fixture.record());
    // The same names in new allocations, as after a recompilation.
    fixture.rule = rule("canary", "/cart/*");
    fixture.backend = backend("cart-v2");
    fixture.source = workload("shop", "web-2", "web");
    worker.request(&fixture.record());
    assert_eq!(codes(&registry), [(200, 2)]);
}

#[test]
fn labels_are_bounded() {
    let (registry, mut fixture) = (registry(3), Fixture::new());
    let worker = Handles::new(0, registry.clone());
    for index in 0..50 {
        fixture.rule = rule(&format!("route-{index}"), "/");
        worker.request(&RequestRecord { code: 503, ..fixture.record() });
    }
    let all = registry.outcomes.snapshot();
    assert_eq!(all.len(), 4);
    let overflow =
        all.iter().find(|(l, _)| l.edge.parent.as_ref().is_some_and(|p| &*p.name == OVERFLOW)).unwrap();
    assert_eq!((overflow.0.code, overflow.1[0].uses()), (500, 47));
    assert_eq!(registry.outcomes.overflows.load(Relaxed), 47);
}

#[test]
fn the_cache_is_bounded_and_loses_nothing() {
    let (registry, mut fixture) = (registry(10 * CACHE_MAX), Fixture::new());
    let worker = Handles::new(0, registry.clone());
    let rounds = CACHE_MAX as u64 + 10;
    for index in 0..rounds {
        fixture.rule = rule(&format!("route-{}", index % 20), "/");
        worker.request(&fixture.record());
    }
    assert!(worker.requests.borrow().len() <= CACHE_MAX);
    assert_eq!(codes(&registry).iter().map(|(_, n)| n).sum::<u64>(), rounds);
}

#[test]
fn an_idle_series_is_forgotten_and_comes_back() {
    let (registry, fixture) = (registry(100), Fixture::new());
    let worker = Handles::new(0, registry.clone());
    let start = Instant::now();
    worker.request(&fixture.record());
    registry.sweep(start + IDLE / 2);
    assert_eq!(codes(&registry), [(200, 1)]);
    // It moved until half time, so a full idle time from the start is not enough.
    registry.sweep(start + IDLE);
    assert_eq!(codes(&registry), [(200, 1)]);
    registry.sweep(start + IDLE * 2);
    assert_eq!(codes(&registry), []);
    // The worker's cached handle is stale by now.
    worker.request(&fixture.record());
    assert_eq!(codes(&registry), [(200, 1)]);
}

#[test]
fn room_that_idle_series_leave_is_used() {
    let (registry, mut fixture) = (registry(1), Fixture::new());
    let worker = Handles::new(0, registry.clone());
    let start = Instant::now();
    worker.request(&fixture.record());
    fixture.rule = rule("late", "/");
    worker.request(&RequestRecord { code: 404, ..fixture.record() });
    assert_eq!(codes(&registry), [(400, 1), (200, 1)]);
    registry.sweep(start);
    worker.request(&RequestRecord { code: 404, ..fixture.record() });
    // The first is idle, the overflow is not: from now on the late one has a series of its own.
    registry.sweep(start + IDLE);
    worker.request(&RequestRecord { code: 404, ..fixture.record() });
    assert_eq!(codes(&registry), [(400, 2), (404, 1)]);
}

#[test]
fn connections_by_edge_and_reason() {
    let registry = registry(100);
    let worker = Handles::new(0, registry.clone());
    let (source, destination) = (workload("shop", "web-1", "web"), workload("db", "pg-0", "pg"));
    let record = ConnectionRecord {
        source: Some(&source),
        destination: Some(&destination),
        received_bytes: 7,
        sent_bytes: 9,
        ..ConnectionRecord::new(Direction::Mesh, "tcp", peer())
    };
    worker.connection(&record);
    worker.connection(&record);
    worker.connection(&ConnectionRecord { reason: Some(Reason::Denied), ..record });
    let all = registry.flows.snapshot();
    let counts: Vec<_> =
        all.iter().map(|(l, p)| (l.reason, p[0].count.load(Relaxed), p[0].received.load(Relaxed))).collect();
    assert_eq!(counts, [(None, 2, 14), (Some("denied"), 1, 7)]);
    assert_eq!(all[0].0.destination, Some(("db".into(), "pg".into())));
}
