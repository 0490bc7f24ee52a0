//! The first bytes of a connection: what is spoken, and what a ClientHello says.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rustls::server::Acceptor;
use weft_core::message::head::{Admission, HeadLimits, admits};
use weft_fuzz::{cuts, planted};
use weft_proxy::l4::detect::{Detected, Offer, Sni, detect, offers, server_name};

/// As of a port where nobody has said what is spoken.
const LIMITS: HeadLimits = HeadLimits { bytes: 64 << 10, fields: 128 };

fuzz_target!(|data: &[u8]| {
    let (spoken, name, offer) = (detect(data), server_name(data), offers(data, b"h2"));
    for end in cuts(data.len()) {
        let early = detect(&data[..end]);
        assert!(early == Detected::NeedMore || early == spoken, "{early:?}, then {spoken:?}");
        let early = server_name(&data[..end]);
        assert!(early == Sni::NeedMore || early == name, "{early:?}, then {name:?}");
        let (early, whole) = (admits(&data[..end], LIMITS), admits(data, LIMITS));
        assert!(early == Admission::NeedMore || early == whole, "{early:?}, then {whole:?}");
        let early = offers(&data[..end], b"h2");
        assert!(early == Offer::NeedMore || early == offer, "{early:?}, then {offer:?}");
    }
    if let Some(theirs) = by_rustls(data) {
        // What we cannot read is refused; but we read no other name than the TLS server.
        match &name {
            Sni::Name(ours) => assert_eq!(ours, theirs.to_ascii_lowercase().trim_end_matches('.')),
            Sni::Invalid => {}
            other => panic!("{other:?}, but rustls reads {theirs}"),
        }
    }
    let Sni::Name(name) = name else { return };
    let digit = name.bytes().any(|b| b.is_ascii_digit());
    planted(digit, "a name with a digit");
});

fn by_rustls(data: &[u8]) -> Option<String> {
    let mut acceptor = Acceptor::default();
    acceptor.read_tls(&mut &data[..]).ok()?;
    let accepted = acceptor.accept().ok()??;
    accepted.client_hello().server_name().map(ToOwned::to_owned)
}
