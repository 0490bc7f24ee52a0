//! What a kubelet's connection may ask, for the fuzz target `probe`.

use super::{
    Asked,
    head::{Scheme, Verdict, judge},
};
use weft_core::model::ProbeAsk;

/// The pod's address.
const TO: ([u8; 4], u16) = ([10, 0, 0, 1], 80);

/// What is let through of `bytes`, by a pod that declares GETs of `/healthz` (with the header `X-Probe: yes`) and `/redirected`,
/// which it has led to itself: the target, and what the application gets. A decision stays with more bytes, and what the
/// application gets would be let through again as it is.
#[must_use]
pub fn probe_head(bytes: &[u8]) -> Option<(String, Vec<u8>)> {
    let http = |target: &str, headers| ProbeAsk::Http { target: target.into(), headers };
    let asks = [
        Asked { ask: http("/healthz", vec![("X-Probe".into(), "yes".into())]), depth: 0 },
        Asked { ask: http("/redirected", Vec::new()), depth: 1 },
        Asked { ask: ProbeAsk::Grpc { service: "".into() }, depth: 0 },
    ];
    let judged = |bytes: &[u8]| judge(bytes, Scheme::Http, TO.into(), &asks);
    let whole = judged(bytes);
    for end in (0..bytes.len()).step_by(bytes.len().div_ceil(32).max(1)) {
        match judged(&bytes[..end]) {
            Verdict::NeedMore => {}
            // With something behind it, it is refused.
            Verdict::Get(_) => assert!(matches!(whole, Verdict::Refuse(_)), "{end}: {whole:?}"),
            Verdict::Refuse(_) => assert!(matches!(whole, Verdict::Refuse(_)), "{end}: {whole:?}"),
            early => assert_eq!(early, whole, "{end}"),
        }
    }
    let Verdict::Get(declared) = whole else { return None };
    match judged(&declared.forward) {
        Verdict::Get(again) => assert_eq!(again.forward, declared.forward),
        other => panic!("what is passed on is not let through: {other:?}"),
    }
    Some((declared.target, declared.forward))
}
