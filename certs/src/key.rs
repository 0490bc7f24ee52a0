//! Private keys: made here, wiped on drop, never printed.

use std::{fmt, sync::Arc};

use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::{crypto::aws_lc_rs::sign::any_supported_type, sign::SigningKey};
use rustls_pki_types::{CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use weft_core::model::SpiffeId;
use zeroize::Zeroize;

/// A key pair whose serialised form is wiped on drop (aws-lc wipes its own copy when freed).
pub(crate) struct SecretKey(KeyPair);

impl SecretKey {
    /// A new ECDSA P-256 key.
    pub(crate) fn generate() -> Result<Self, rcgen::Error> {
        KeyPair::generate().map(Self)
    }

    /// Reads PKCS#8, SEC1 or PKCS#1, the three that cert-manager writes.
    pub(crate) fn from_der(der: &PrivateKeyDer<'_>) -> Result<Self, rcgen::Error> {
        KeyPair::try_from(der).map(Self)
    }

    pub(crate) fn pair(&self) -> &KeyPair {
        &self.0
    }

    /// PKCS#8.
    pub(crate) fn der(&self) -> &[u8] {
        self.0.serialized_der()
    }

    /// The key as rustls signs with it.
    pub(crate) fn tls_key(&self) -> Result<Arc<dyn SigningKey>, rustls::Error> {
        any_supported_type(&PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.der())))
    }

    /// A request for a certificate of `identity`, signed with this key (which proves possession).
    /// The subject is empty and the URI SAN is there for issuers that read it; ours ignores it.
    pub(crate) fn csr(
        &self,
        identity: &SpiffeId,
    ) -> Result<CertificateSigningRequestDer<'static>, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
        Ok(params.serialize_request(&self.0)?.into())
    }
}

impl Drop for SecretKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_prints_no_key() {
        let key = SecretKey::generate().unwrap();
        assert_eq!(format!("{key:?}"), "SecretKey(redacted)");
    }
}
