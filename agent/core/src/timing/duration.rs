//! GEP-2257 durations: `^([0-9]{1,5}(h|m|s|ms)){1,4}$`.

use std::{fmt::Write, time::Duration};

/// Why a string is no GEP-2257 duration, or a duration cannot be written as one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDuration {
    /// The text does not match the pattern.
    #[error("\"{0}\" is not a duration such as 10s, 1m30s or 500ms (GEP-2257)")]
    Syntax(String),
    /// Finer than a millisecond, or longer than 99999h59m59s999ms.
    #[error("{0:?} cannot be written as a GEP-2257 duration")]
    Unrepresentable(Duration),
}

/// Units with their milliseconds, largest first.
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Parses. Units may come in any order and repeat, as Go's `time.ParseDuration` allows; they add up.
///
/// # Errors
/// [`InvalidDuration::Syntax`].
pub fn parse_duration(text: &str) -> Result<Duration, InvalidDuration> {
    let syntax = || InvalidDuration::Syntax(text.to_owned());
    let (mut rest, mut millis, mut terms) = (text, 0_u64, 0);
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let letters = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, tail) = tail.split_at(letters);
        let (_, factor) = UNITS.iter().find(|(u, _)| *u == unit).ok_or_else(syntax)?;
        terms += 1;
        if digits > 5 || terms > 4 {
            return Err(syntax());
        }
        // At most 4 × 99,999 h: far from overflow.
        millis += number.parse::<u64>().map_err(|_| syntax())? * factor;
        rest = tail;
    }
    if terms == 0 { Err(syntax()) } else { Ok(Duration::from_millis(millis)) }
}

/// Writes the canonical form: largest units first, none that is zero; `0s` for nothing.
///
/// # Errors
/// [`InvalidDuration::Unrepresentable`].
pub fn format_duration(duration: Duration) -> Result<String, InvalidDuration> {
    let wrong = || InvalidDuration::Unrepresentable(duration);
    if !duration.subsec_nanos().is_multiple_of(1_000_000) {
        return Err(wrong());
    }
    let mut millis = u64::try_from(duration.as_millis()).map_err(|_| wrong())?;
    if millis >= 100_000 * UNITS[0].1 {
        return Err(wrong());
    }
    let mut text = String::new();
    for (unit, factor) in UNITS {
        let count = millis / factor;
        millis %= factor;
        if count > 0 {
            let _ = write!(text, "{count}{unit}"); // writing to a String cannot fail
        }
    }
    Ok(if text.is_empty() { "0s".to_owned() } else { text })
}
