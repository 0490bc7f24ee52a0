//! Quiet moments: who spoke, how long is long enough, and a law about clients that ask again and again.

use crate::timing::quiet::{Pauses, Rhythm, Talk, Verdict, judge, last_part};
use proptest::prelude::*;
use std::time::{Duration, Instant};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// `c`: the client has spoken, `s`: the server, `b`: both since the last look.
fn talk(words: &str) -> Talk {
    let mut talk = Talk::default();
    for word in words.chars() {
        talk.heard(word != 's', word != 'c');
    }
    talk
}

#[test]
fn a_request_or_an_answer_without_a_known_end_may_be_under_way() {
    for (words, at_rest) in [
        ("", true),
        ("c", false),
        ("cs", false), // HTTP/1.0's answer, half of it
        ("csss", false),
        ("sss", false), // FTP's data
        ("csc", false),
        ("cscs", true),
        ("cscss", true),
        ("scs", true), // a banner was taken up
        ("cscb", false),
        ("csb", false),
        ("csbs", false), // whether the client has waited for the server is not known
        ("csbscs", true),
    ] {
        assert_eq!(talk(words).is_at_rest(), at_rest, "{words}");
    }
}

#[test]
fn the_longer_it_lasts_the_sooner_is_it_quiet() {
    let wait = |n| Verdict::Wait(ms(n));
    for (left, quiet, usual, expected) in [
        (60_000, 0, None, wait(1000)),
        (5000, 0, None, wait(1000)),
        (5000, 999, None, wait(1)),
        (5000, 1000, None, Verdict::End),
        (2500, 50, None, wait(200)),
        (1000, 0, None, wait(40)),
        (500, 0, None, wait(10)),
        (0, 4, None, wait(1)),
        (0, 5, None, Verdict::End),
        // The client speaks after 75 ms: only in the first third of that…
        (1000, 0, Some(75), wait(150)),
        (500, 0, Some(75), wait(10)),
        (500, 25, Some(75), Verdict::End),
        (500, 26, Some(75), wait(124)),
        // …unless it has stopped.
        (500, 150, Some(75), Verdict::End),
        (2500, 150, Some(75), wait(100)),
        // Its pauses are too short.
        (500, 0, Some(15), wait(30)),
    ] {
        let rhythm = usual.map(|usual| Rhythm::after(None, ms(usual)));
        let verdict = judge(ms(quiet), rhythm, (ms(left), ms(5000)));
        assert_eq!(verdict, expected, "{left} ms left, quiet for {quiet} ms, usually {usual:?}");
    }
}

#[test]
fn a_short_drain_asks_for_less() {
    for (part, left, wanted) in [(1000, 1000, 200), (1000, 500, 50), (60, 60, 12), (60, 0, 5), (0, 0, 5)] {
        assert_eq!(judge(ms(0), None, (ms(left), ms(part))), Verdict::Wait(ms(wanted)), "{left} of {part}");
    }
}

#[test]
fn the_last_part_shortens_nobodys_patience_by_much() {
    for (grace, part) in [(0, 0), (300, 60), (10_000, 2000), (25_000, 5000), (3_600_000, 5000)] {
        assert_eq!(last_part(ms(grace)), ms(part), "of {grace} ms");
    }
}

#[test]
fn what_is_open_no_more_is_left_alone() {
    let now = Instant::now();
    let pauses = Pauses::new(talk(""), now);
    let judge = |is_open| pauses.judge(is_open, now + ms(400), (ms(100), ms(500)));
    assert_eq!(judge(false), Verdict::Busy);
    assert_eq!(judge(true), Verdict::End);
}

/// A client that asks, gets its answer after `answer` ms, and asks again after the next of `pauses` (from which it begins
/// anew), in a drain of 25 seconds that begins `phase` ms after an answer. Gives how long after the last answer it is
/// ended, and how long before the client's next word.
fn ended(pauses: &[u64], answer: u64, phase: u64) -> Option<(u64, u64)> {
    let start = Instant::now();
    let mut talk = talk("cscs");
    let mut watched = Pauses::new(talk, start);
    let mut next = pauses.iter().copied().cycle();
    let (mut answered, mut asks) = (0, next.next()?.saturating_sub(phase).max(1));
    for at in 0..25_000 {
        let now = start + ms(at);
        if at == asks {
            talk.heard(true, false);
            watched.moved(talk, now);
            answered = at + answer;
            asks = answered + next.next()?;
        } else if at == answered && at > 0 {
            talk.heard(false, true);
            watched.moved(talk, now);
        }
        let left = (ms(25_000 - at), ms(5000));
        if at >= 20_000 && watched.judge(true, now, left) == Verdict::End {
            return Some((at - answered, asks - at));
        }
    }
    None
}

#[test]
fn a_client_that_asks_in_bursts_is_ended_between_them() {
    let (after, before) = ended(&[1, 1, 1, 200], 5, 0).unwrap();
    assert!(after <= 30 && before >= 170, "{after} ms after the answer, {before} ms before the next request");
}

#[test]
fn a_client_without_pauses_is_not_ended_in_between() {
    assert_eq!(ended(&[3], 5, 0), None);
}

proptest! {
    /// The end has the rest of the pause to arrive.
    #[test]
    fn a_steady_client_is_ended_long_before_its_next_word(pause in 24..4000_u64, answer in 1..50_u64, phase in 0..4000_u64) {
        let (after, before) = ended(&[pause], answer, phase).expect("a quiet moment");
        prop_assert!(after <= pause / 3 && before >= pause - pause / 3, "{} ms after, {} ms before", after, before);
    }
}
