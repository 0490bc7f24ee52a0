//! GEP-2257 durations and deadlines.

use crate::{
    model::Timeouts,
    timing::{Deadline, Deadlines, InvalidDuration, TimeoutKind, format_duration, parse_duration},
};
use proptest::prelude::*;
use std::time::{Duration, Instant};

#[test]
fn parsing() {
    for (text, millis) in [
        ("0s", 0),
        ("0h0m0s0ms", 0),
        ("1h", 3_600_000),
        ("1m30s", 90_000),
        ("500ms", 500),
        ("2h45m", 9_900_000),
        ("1s1s1s1s", 4_000),
        ("1ms1h", 3_600_001),
        ("99999h", 359_996_400_000),
        ("00010s", 10_000),
    ] {
        assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
    }
    for text in [
        "",
        "1",
        "s",
        "1d",
        "1.5s",
        "-1s",
        "100000s",
        "1s1s1s1s1s",
        "1S",
        " 1s",
        "1s ",
        "1us",
        "1h 1m",
        "١s",
        "1sm",
    ] {
        assert_eq!(parse_duration(text), Err(InvalidDuration::Syntax(text.to_owned())), "{text}");
    }
}

#[test]
fn formatting() {
    for (millis, text) in [
        (0, "0s"),
        (90_000, "1m30s"),
        (500, "500ms"),
        (3_600_001, "1h1ms"),
        (359_999_999_999, "99999h59m59s999ms"),
    ] {
        assert_eq!(format_duration(Duration::from_millis(millis)).as_deref(), Ok(text));
    }
    for duration in [Duration::from_micros(1), Duration::from_millis(360_000_000_000), Duration::MAX] {
        assert_eq!(format_duration(duration), Err(InvalidDuration::Unrepresentable(duration)));
    }
}

#[test]
fn deadlines() {
    let start = Instant::now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    let limit = |ms: Option<u64>| ms.map(Duration::from_millis);
    let whole = |ms| Some(Deadline { at: at(ms), kind: TimeoutKind::Request });
    let one = |ms| Some(Deadline { at: at(ms), kind: TimeoutKind::BackendRequest });
    // request, backendRequest, try begins at; deadline of the try, time left
    for (request, backend, begins, wanted, left) in [
        (None, None, 0, None, None),
        (Some(100), None, 30, whole(100), Some(70)),
        (None, Some(50), 30, one(80), None),
        (Some(100), Some(50), 0, one(50), Some(100)),
        (Some(100), Some(50), 60, whole(100), Some(40)),
        (Some(100), Some(50), 50, whole(100), Some(50)), // a tie ends retrying
        (Some(100), Some(50), 200, whole(100), Some(0)),
    ] {
        let timeouts = Timeouts { request: limit(request), backend_request: limit(backend) };
        let deadlines = Deadlines::start(&timeouts, start);
        assert_eq!(deadlines.of_try(at(begins)), wanted, "{timeouts:?}");
        assert_eq!(deadlines.remaining(at(begins)), limit(left), "{timeouts:?}");
    }
    let endless = Timeouts { request: Some(Duration::MAX), backend_request: Some(Duration::MAX) };
    assert_eq!(Deadlines::start(&endless, start).of_try(start), None);
}

proptest! {
    #[test]
    fn what_is_written_is_read(millis in 0..360_000_000_000_u64) {
        let duration = Duration::from_millis(millis);
        prop_assert_eq!(parse_duration(&format_duration(duration).unwrap()), Ok(duration));
    }

    #[test]
    fn parses_what_the_pattern_allows(text in "([0-9]{0,6}(h|m|s|ms|x)?){0,5}") {
        let pattern = regex::Regex::new("^([0-9]{1,5}(h|m|s|ms)){1,4}$").unwrap();
        prop_assert_eq!(parse_duration(&text).is_ok(), pattern.is_match(&text));
    }
}
