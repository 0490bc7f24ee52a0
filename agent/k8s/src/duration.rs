//! GEP-2257 durations.

use std::time::Duration;

/// Parses `([0-9]{1,5}(h|m|s|ms)){1,4}`; units may come in any order and repeat, as in Go.
pub(crate) fn parse(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    for _ in 0..4 {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, tail) = rest.split_at(digits);
        let number: u64 = (1..=5).contains(&digits).then(|| number.parse().ok())??;
        let (unit, tail) = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1000)]
            .into_iter()
            .find_map(|(name, ms)| tail.strip_prefix(name).map(|t| (ms, t)))?;
        total += Duration::from_millis(number * unit);
        rest = tail;
        if rest.is_empty() {
            return Some(total);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_gep_2257() {
        for (text, ms) in [
            ("10s", Some(10_000)),
            ("1h30m", Some(5_400_000)),
            ("0s", Some(0)),
            ("500ms", Some(500)),
            ("1h1m1s1ms", Some(3_661_001)),
            ("99999h", Some(359_996_400_000)),
            ("1.5s", None),
            ("100000s", None),
            ("10", None),
            ("-1s", None),
            ("1us", None),
            ("1s1s1s1s1s", None),
            ("", None),
        ] {
            assert_eq!(parse(text), ms.map(Duration::from_millis), "{text}");
        }
    }
}
