//! SPIFFE identities as text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_core::model::SpiffeId;
use weft_fuzz::planted;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(id) = SpiffeId::parse(text) else { return };
    // One text for one identity: what is compared is what is written.
    assert_eq!(id.to_string(), text);
    let parts = [&id.trust_domain, &id.namespace, &id.service_account];
    assert!(
        parts.iter().all(|p| !p.is_empty() && !p.contains(['/', '%', ':', '@', '?', '#', '\0'])),
        "{id:?}"
    );
    planted(id.namespace.len() < 3 && id.service_account.contains('.'), "a dot after a short namespace");
});
