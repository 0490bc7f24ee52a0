//! Certificates, chains, requests and bundles: ours and another reader agree on who somebody is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use std::sync::LazyLock;
use weft_certs::{
    SpiffeId, TrustBundle, csr_from_pem, csr_names_only,
    fuzzing::{accepted, facts, identity},
};
use weft_fuzz::{Bytes, planted};

/// The root of the chains among the seeds.
static ROOTS: LazyLock<TrustBundle> = LazyLock::new(|| {
    TrustBundle::from_pem(include_bytes!("../seeds/root.pem")).expect("the root of the seeds")
});
/// When the chains of the seeds hold.
const NOW: u64 = 1_800_000_000;

fuzz_target!(|data: &[u8]| {
    let mut input = Bytes(data);
    match input.byte() % 4 {
        0 => certificate(input.0),
        1 => chain(input),
        2 => request(input),
        _ => bundle(input.0),
    }
});

fn certificate(der: &[u8]) {
    let der = CertificateDer::from(der);
    let ours = identity(&der);
    let serial = facts(&der);
    if let (Some(ours), Ok(theirs)) = (&ours, webpki::EndEntityCert::try_from(&der)) {
        // It stops at the first name that it does not know, and so may see none; it must see no other.
        let ours = ours.to_string();
        assert!(theirs.valid_uri_names().all(|uri| uri == ours), "another reader sees other names");
    }
    let digit = |text: &str| text.bytes().any(|b| b.is_ascii_digit());
    let deep = serial.is_some() && ours.is_some_and(|id| digit(&id.service_account));
    planted(deep, "a digit in an account");
}

fn chain(mut input: Bytes<'_>) {
    let mut chain = Vec::new();
    while !input.is_empty() && chain.len() < 8 {
        chain.push(CertificateDer::from(input.piece()));
    }
    if accepted(&chain, &ROOTS, NOW).is_some() {
        planted(chain.len() > 2, "a chain with a certificate more than it needs");
    }
}

fn request(mut input: Bytes<'_>) {
    let who = SpiffeId::new("cluster.local", "shop", "web");
    let is_pem = input.byte() & 1 == 0;
    let csr = if is_pem {
        let Ok(csr) = csr_from_pem(input.0) else { return };
        csr
    } else {
        CertificateSigningRequestDer::from(input.0.to_vec())
    };
    // Only whether it is read at all; a signature that does not fit is refused when it is signed.
    let _ = csr_names_only(&csr, &who);
}

fn bundle(text: &[u8]) {
    let Ok(bundle) = TrustBundle::from_pem(text) else { return };
    assert!(!bundle.roots().is_empty());
    assert_eq!(
        TrustBundle::from_pem(bundle.to_pem().as_bytes()).as_ref(),
        Ok(&bundle),
        "written and read again"
    );
    assert!(bundle.describe().len() <= bundle.roots().len());
}
