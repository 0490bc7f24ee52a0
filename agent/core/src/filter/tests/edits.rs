//! Header modifiers and the mirrored share.

use crate::{
    filter::{headers, mirror},
    model::HeaderModifier,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;

fn map(lines: &[(&str, &str)]) -> HeaderMap {
    let line =
        |(n, v): &(&str, &str)| (HeaderName::try_from(*n).unwrap(), HeaderValue::try_from(*v).unwrap());
    let mut map = HeaderMap::new();
    for (name, value) in lines.iter().map(line) {
        map.append(name, value);
    }
    map
}

fn modifier(set: &[(&str, &str)], add: &[(&str, &str)], remove: &[&str]) -> HeaderModifier {
    let pairs = |l: &[(&str, &str)]| map(l).into_iter().map(|(n, v)| (n.unwrap(), v)).collect();
    HeaderModifier {
        set: pairs(set),
        add: pairs(add),
        remove: remove.iter().map(|n| HeaderName::try_from(*n).unwrap()).collect(),
    }
}

#[test]
fn header_modifiers() {
    let x = [("x", "1"), ("x", "2"), ("y", "1")];
    for (before, filter, after) in [
        (&x[..], modifier(&[("X", "3")], &[], &[]), &[("x", "3"), ("y", "1")][..]),
        (&x, modifier(&[], &[("x", "3")], &[]), &[("x", "1"), ("x", "2"), ("x", "3"), ("y", "1")]),
        (&x, modifier(&[("z", "1")], &[("w", "1")], &["X"]), &[("w", "1"), ("y", "1"), ("z", "1")]),
        (&x, modifier(&[], &[], &["none"]), &x),
        // set, then add, then remove
        (&x, modifier(&[("x", "a")], &[("x", "b")], &[]), &[("x", "a"), ("x", "b"), ("y", "1")]),
        // framing, connection and Host are nobody's to edit
        (
            &[("content-length", "5"), ("host", "a.com"), ("te", "trailers")],
            modifier(
                &[("transfer-encoding", "chunked"), ("host", "b.org"), ("Content-Length", "9")],
                &[("connection", "x"), ("upgrade", "h2c"), ("keep-alive", "1"), ("proxy-connection", "x")],
                &["te", "content-length"],
            ),
            &[("content-length", "5"), ("host", "a.com"), ("te", "trailers")],
        ),
    ] {
        let mut headers = map(before);
        headers::apply(&filter, &mut headers);
        assert_eq!(headers, map(after), "{filter:?}");
    }
}

#[test]
fn mirrored_share() {
    for (numerator, denominator, draw, wanted) in [
        (0, 100, 0, false),
        (100, 100, u64::MAX, true),
        (1, 2, u64::MAX / 2, true),
        (1, 2, u64::MAX / 2 + 1, false),
        (1, 1_000_000, 0, true),
        (1, 0, 0, false),
        (0, 0, 0, false),
        (5, 4, u64::MAX, true),
    ] {
        assert_eq!(mirror::chosen(numerator, denominator, draw), wanted, "{numerator}/{denominator} {draw}");
    }
}

proptest! {
    #[test]
    fn mirrored_share_is_exact(denominator in 1_u32..1000, numerator in 0_u32..1000) {
        // The draws that are chosen are the first ⌈2^64 · n/d⌉: look at both sides of that border.
        let border = (u128::from(numerator) << 64).div_ceil(u128::from(denominator));
        if let Some(last) = border.checked_sub(1).and_then(|b| u64::try_from(b).ok()) {
            prop_assert!(mirror::chosen(numerator, denominator, last));
        }
        if let Ok(next) = u64::try_from(border) {
            prop_assert!(!mirror::chosen(numerator, denominator, next));
        }
    }
}
