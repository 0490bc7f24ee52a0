//! Plain scalars as `kubectl` reads them: sigs.k8s.io/yaml, which is YAML 1.1 where it matters.

use serde_json::{Number, Value};

/// A resolved plain scalar.
#[derive(Debug, PartialEq)]
pub(super) enum Plain {
    Value(Value),
    /// A boolean for YAML 1.1 only (`yes`, `off`, `y`…).
    Word(bool),
}

pub(super) fn plain(text: &str) -> Plain {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Plain::Value(Value::Null),
        "true" | "True" | "TRUE" => return Plain::Value(Value::Bool(true)),
        "false" | "False" | "FALSE" => return Plain::Value(Value::Bool(false)),
        "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return Plain::Word(true),
        "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => return Plain::Word(false),
        _ => {}
    }
    let number = text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c));
    let value = number.then(|| integer(text).or_else(|| float(text))).flatten();
    Plain::Value(value.unwrap_or_else(|| Value::String(text.to_owned())))
}

/// Decimal, `0x`, `0o`, `0b` and the old octal `0755`, with `_` between digits.
fn integer(text: &str) -> Option<Value> {
    let clean = text.replace('_', "");
    let (negative, digits) = match clean.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, clean.strip_prefix('+').unwrap_or(&clean)),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let (radix, body) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    if body.starts_with(['+', '-']) {
        return None;
    }
    let magnitude = u64::from_str_radix(body, radix).ok()?;
    if negative {
        let value = 0_i64.checked_sub_unsigned(magnitude)?;
        return Some(value.into());
    }
    Some(magnitude.into())
}

/// Whole floats become integers, as on the way through JSON in Go: `port: 8e1` is 80.
fn float(text: &str) -> Option<Value> {
    let clean = text.replace('_', "");
    let shape = clean.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b))
        && clean.bytes().any(|b| b.is_ascii_digit());
    let value: f64 = shape.then(|| clean.parse().ok())??;
    if value.fract() == 0.0 && value.abs() < 9e15 {
        #[allow(clippy::cast_possible_truncation)] // whole and small, as just checked
        return Some((value as i64).into());
    }
    Number::from_f64(value).map(Value::Number)
}
