//! Doors for the fuzz targets (`fuzz/`): what reads a stranger's certificates here and is private. Only in their build.

use rustls::{client::danger::ServerCertVerifier, server::danger::ClientCertVerifier};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::{sync::Arc, time::Duration};
use weft_core::model::SpiffeId;

use crate::{
    TrustBundle,
    leaf::{LeafFacts, RootInfo},
    verify::{Accept, MeshVerifier, spiffe_id},
};

/// Who a certificate says it is, unverified.
#[must_use]
pub fn identity(certificate: &CertificateDer<'_>) -> Option<SpiffeId> {
    spiffe_id(certificate).ok()
}

/// What is read of a certificate for people and for renewal; serial number and issuer.
#[must_use]
pub fn facts(der: &[u8]) -> Option<(String, String)> {
    let root = RootInfo::read(der);
    let facts = LeafFacts::read(der);
    assert_eq!(root.is_some(), facts.is_some(), "two readers of one certificate");
    let (root, facts) = (root?, facts?);
    assert_eq!(root.serial, facts.serial);
    Some((facts.serial, facts.issuer))
}

/// Whom a server and a client accept by this chain, at `now` in Unix seconds, with these roots.
#[must_use]
pub fn accepted(chain: &[CertificateDer<'_>], roots: &TrustBundle, now: u64) -> Option<SpiffeId> {
    let (leaf, rest) = chain.split_first()?;
    let domain = Accept::TrustDomain("cluster.local".into());
    let verifier = MeshVerifier::new(Arc::new(roots.anchors()), domain).ok()?;
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
    let name = ServerName::try_from("weft").ok()?;
    let by_client = verifier.verify_server_cert(leaf, rest, &name, &[], now);
    let by_server = verifier.verify_client_cert(leaf, rest, now);
    (by_client.is_ok() || by_server.is_ok()).then(|| {
        let found = spiffe_id(leaf).expect("an accepted certificate names somebody");
        assert_eq!(&*found.trust_domain, "cluster.local", "of another mesh");
        found
    })
}
