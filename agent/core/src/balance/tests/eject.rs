//! Ejection as stories, and its laws.

use crate::balance::{
    Fault::{self, *},
    Outlier, Standing,
};
use proptest::prelude::*;
use std::time::{Duration, Instant};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Fails at once after it began.
fn fail(outlier: &mut Outlier, fault: Fault, now: Instant) -> Option<Duration> {
    outlier.failed(fault, now, now)
}

#[test]
fn how_many_failures_in_a_row_eject() {
    let now = Instant::now();
    for (fault, times) in [(Unreached, 1), (Broken, 3), (ServerError, 5)] {
        let mut outlier = Outlier::new();
        for n in 1..=times {
            assert_eq!(fail(&mut outlier, fault, now).is_some(), n == times, "{fault:?} {n}");
            assert_eq!(outlier.is_in(), n < times);
        }
        let mut outlier = Outlier::new();
        for _ in 0..100 {
            for _ in 1..times {
                assert_eq!(fail(&mut outlier, fault, now), None);
            }
            outlier.succeeded(now, now);
        }
        assert!(outlier.is_in(), "{fault:?}: a success in between starts the count anew");
    }
}

#[test]
fn ejections_grow_to_a_cap_and_one_success_ends_them() {
    let mut now = Instant::now();
    let mut outlier = Outlier::new();
    let mut rests = vec![fail(&mut outlier, Unreached, now)];
    for _ in 0..5 {
        let rest = rests.last().unwrap().unwrap();
        assert_eq!(outlier.standing(now + rest - ms(1)), Standing::Out);
        now += rest;
        assert_eq!(outlier.standing(now), Standing::Due);
        outlier.probe(now);
        assert_eq!(outlier.standing(now), Standing::Out, "one probing request at a time");
        rests.push(fail(&mut outlier, Unreached, now));
    }
    assert_eq!(rests, [500, 1000, 2000, 4000, 4000, 4000].map(|n| Some(ms(n))));
    now += ms(4000);
    outlier.probe(now);
    assert!(outlier.connected(now, now + ms(1)), "whoever takes a connection is there again");
    assert_eq!(outlier.standing(now), Standing::In);
    assert_eq!(fail(&mut outlier, Unreached, now + ms(100)), Some(ms(4000)), "it has not been well for long");
    now += ms(4100);
    outlier.probe(now);
    assert!(outlier.succeeded(now, now));
    assert_eq!(fail(&mut outlier, Unreached, now + ms(20_000)), Some(ms(500)), "forgotten");
}

#[test]
fn a_probe_without_an_outcome_is_followed_by_another() {
    let start = Instant::now();
    let mut outlier = Outlier::new();
    fail(&mut outlier, Unreached, start);
    outlier.probe(start + ms(500));
    assert_eq!(outlier.standing(start + ms(1499)), Standing::Out);
    assert_eq!(outlier.standing(start + ms(1500)), Standing::Due);
}

#[test]
fn requests_from_before_say_nothing() {
    let start = Instant::now();
    let mut outlier = Outlier::new();
    fail(&mut outlier, Unreached, start + ms(10));
    // A pod that shuts down refuses new connections and answers what it has.
    assert!(!outlier.succeeded(start, start + ms(20)) && !outlier.is_in());
    assert_eq!(outlier.failed(Unreached, start, start + ms(900)), None);
    assert_eq!(outlier.failed(Unreached, start + ms(20), start + ms(30)), None, "it rests already");
    assert_eq!(outlier.standing(start + ms(510)), Standing::Due);
    assert!(outlier.succeeded(start + ms(20), start + ms(30)), "sent after it because there was nobody else");
}

#[test]
fn a_connection_is_no_answer() {
    let now = Instant::now();
    let mut outlier = Outlier::new();
    for _ in 0..5 {
        fail(&mut outlier, ServerError, now);
    }
    assert!(!outlier.connected(now + ms(500), now + ms(501)) && !outlier.is_in());
    assert!(outlier.succeeded(now + ms(500), now + ms(501)));
}

#[test]
fn a_silent_node_is_out_while_that_is_said_and_back_with_the_first_sign() {
    let start = Instant::now();
    let mut node = Outlier::new();
    assert!(node.silent(start), "news");
    assert!(!node.silent(start + ms(100)), "no news");
    assert!(node.silent(start + ms(800)), "to be told again before it is forgotten");
    assert_eq!(node.standing(start + ms(2200)), Standing::Out);
    assert_eq!(node.standing(start + ms(2300)), Standing::Due, "nobody watches any more");
    assert!(node.heard(start + ms(2000)) && node.is_in());
    assert!(!node.heard(start + ms(2000)), "no news");
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Fail(Fault),
    Succeed,
    Connect,
    Probe,
}

fn event() -> impl Strategy<Value = (u64, Event)> {
    let kinds = prop_oneof![
        Just(Event::Fail(Unreached)),
        Just(Event::Fail(Broken)),
        Just(Event::Fail(ServerError)),
        Just(Event::Succeed),
        Just(Event::Connect),
        Just(Event::Probe),
    ];
    (0_u64..3000, kinds)
}

proptest! {
    #[test]
    fn nobody_is_out_for_long(events in prop::collection::vec(event(), 0..60)) {
        let mut now = Instant::now();
        let mut outlier = Outlier::new();
        for (wait, event) in events {
            now += ms(wait);
            match event {
                Event::Fail(fault) => {
                    let rest = outlier.failed(fault, now, now);
                    prop_assert!(rest.is_none_or(|r| (ms(500)..=ms(4000)).contains(&r)));
                    prop_assert_eq!(rest.is_some(), rest.is_some() && !outlier.is_in());
                }
                Event::Succeed => {
                    outlier.succeeded(now, now);
                    prop_assert!(outlier.is_in(), "a success restores at once");
                }
                Event::Connect => {
                    outlier.connected(now, now);
                }
                Event::Probe if outlier.standing(now) == Standing::Due => outlier.probe(now),
                Event::Probe => {}
            }
            // The law that F1 broke: whatever has happened, it is asked again within seconds.
            prop_assert_ne!(outlier.standing(now + ms(4000)), Standing::Out);
        }
    }
}
