//! Signs of life: stories on a clock of their own, and two laws.

use crate::timing::{Check, Liveness, Silence};
use proptest::prelude::*;
use std::time::{Duration, Instant};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A tunnel and its clock.
struct Story {
    start: Instant,
    now: Instant,
    liveness: Liveness,
    heard: u64,
    waiting: bool,
    next: Duration,
}

impl Story {
    fn new(waiting: bool) -> Self {
        let start = Instant::now();
        let liveness = Liveness::new(start);
        let mut story = Self { start, now: start, liveness, heard: 0, waiting, next: ms(0) };
        story.look();
        story
    }

    fn look(&mut self) -> Check {
        let check = self.liveness.check(self.now, self.heard, self.waiting.then_some(1), false);
        self.next = check.next;
        check
    }

    /// Looks as often as it says, until `done`; when that was, in ms since the start.
    fn until(&mut self, done: impl Fn(&Check) -> bool) -> u64 {
        for _ in 0..10_000 {
            self.now += self.next;
            if done(&self.look()) {
                return (self.now - self.start).as_millis() as u64;
            }
        }
        panic!("never");
    }
}

#[test]
fn a_peer_that_falls_silent_under_a_request() {
    let mut story = Story::new(true);
    let ping = story.until(|c| c.ping);
    let doubted = story.until(|c| c.silence == Silence::Doubted);
    let suspect = story.until(|c| c.silence == Silence::Suspect);
    let lost = story.until(|c| c.silence == Silence::Lost);
    story.waiting = false;
    let dead = story.until(|c| c.silence == Silence::Dead);
    assert_eq!((ping, doubted), (250, 575));
    assert!(suspect <= 1000 && lost <= 1600, "F4: elsewhere within 1 s, over within 2 s: {suspect} {lost}");
    assert!((20_000..21_000).contains(&dead), "opaque connections are given time: {dead}");
}

#[test]
fn an_idle_tunnel_is_asked_every_ten_seconds_and_no_more() {
    let mut story = Story::new(false);
    for n in 1..=5 {
        let at = story.until(|c| c.ping);
        assert!((n * 10_000..n * 10_000 + 2_000).contains(&at), "{n}: {at}");
        story.heard += 1;
    }
    let silent = story.until(|c| c.ping);
    assert!(
        story.until(|c| c.silence == Silence::Suspect) <= silent + 1000,
        "but its silence is noticed, too"
    );
}

#[test]
fn an_idle_tunnel_that_falls_silent_is_asked_after_ten_to_twenty_seconds() {
    let check = |last_heard: u64, asked: u64| {
        let mut story = Story::new(false);
        story.heard += u64::from(last_heard > 0);
        assert_eq!(story.until(|c| c.ping), asked, "silent from {last_heard}");
        assert_eq!(story.until(|c| c.silence == Silence::Dead), asked + 20_000, "silent from {last_heard}");
    };
    check(0, 10_000);
    // Just after a look: noticed by the next one.
    check(1, 20_000);
}

#[test]
fn anything_heard_takes_it_back() {
    let mut story = Story::new(true);
    for wanted in [Silence::Doubted, Silence::Suspect, Silence::Lost] {
        story.until(|c| c.silence == wanted);
        story.heard += 1;
        let check = story.look();
        assert!(check.heard && check.silence == Silence::None);
    }
}

#[test]
fn a_long_wait_is_asked_after_twice_a_second() {
    let mut story = Story::new(true);
    let mut pings = 0;
    while story.now < story.start + ms(60_000) {
        story.now += story.next;
        let check = story.look();
        if check.ping {
            pings += 1;
            story.heard += 1;
            story.liveness.answered(ms(1));
        }
        assert_eq!(check.silence, Silence::None);
    }
    assert!((80..=130).contains(&pings), "{pings}");
}

#[test]
fn a_peer_that_answers_late_gets_more_patience() {
    let suspect_after = |took: u64| {
        let mut story = Story::new(true);
        (0..20).for_each(|_| story.liveness.answered(ms(took)));
        let ping = story.until(|c| c.ping);
        story.until(|c| c.silence == Silence::Suspect) - ping
    };
    assert!(suspect_after(1) < 800);
    assert!((800..1100).contains(&suspect_after(450)), "{}", suspect_after(450));
    assert!(suspect_after(1_000) < 1_350, "bounded");
    assert!(suspect_after(5_000) < 800, "an outage is no measure");
}

#[test]
fn our_own_absence_is_not_the_peers_silence() {
    let mut story = Story::new(true);
    story.until(|c| c.ping);
    story.now += ms(30_000); // stopped, and on again: the answer lies in the socket
    assert!(story.look().silence < Silence::Suspect);
    story.heard += 1;
    assert_eq!(story.look().silence, Silence::None);
}

#[test]
fn one_that_is_asked_on_anothers_behalf_answers_for_itself() {
    let mut story = Story::new(false);
    story.now += ms(50);
    assert!(story.liveness.check(story.now, 0, None, true).ping);
    story.next = ms(100);
    let suspect = story.until(|c| c.silence == Silence::Suspect);
    assert!(suspect <= 1000, "{suspect}");
}

proptest! {
    /// A peer that answers each PING within 300 ms is never suspected, whatever else it says and whoever waits.
    #[test]
    fn one_that_answers_is_never_suspected(
        steps in prop::collection::vec((any::<bool>(), any::<bool>(), 0_u64..300), 1..200),
    ) {
        let mut story = Story::new(false);
        let mut answer: Option<Instant> = None;
        for (waiting, talks, takes) in steps {
            story.waiting = waiting;
            let until = story.now + story.next;
            story.now = answer.map_or(until, |at| until.min(at)).max(story.now + ms(1));
            if answer.is_some_and(|at| at <= story.now) {
                story.heard += 1;
                answer = None;
            }
            story.heard += u64::from(talks);
            let check = story.look();
            prop_assert!(check.silence <= Silence::Doubted);
            if check.ping {
                answer = Some(story.now + ms(takes));
            }
        }
    }

    /// Whenever it falls silent while somebody waits, nothing new is sent there after 1.5 s.
    #[test]
    fn one_that_does_not_is_suspected(talk in prop::collection::vec(any::<bool>(), 0..50)) {
        let mut story = Story::new(true);
        for talks in talk {
            story.heard += u64::from(talks);
            story.now += story.next;
            story.look();
        }
        story.heard += 1;
        let from = story.now;
        story.until(|c| c.silence == Silence::Suspect);
        prop_assert!(story.now - from <= ms(1500), "{:?}", story.now - from);
    }
}
