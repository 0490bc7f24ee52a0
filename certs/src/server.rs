//! Certificates of our own servers, which clients find by DNS name.

use std::{fmt, sync::Arc, time::Duration};

use jiff::Timestamp;
use rcgen::SanType;
use rustls::sign::CertifiedKey;
use weft_core::model::SpiffeId;

use crate::{
    ca::{Ca, CaError, leaf_params},
    key::SecretKey,
    leaf::LeafFacts,
    rotation::Validity,
};

/// A server's certificate with its key, made in one step where the CA is. Debug prints no key.
#[derive(Clone)]
pub struct ServerCertificate {
    /// For a rustls certificate resolver.
    pub key: Arc<CertifiedKey>,
    /// When it is valid.
    pub validity: Validity,
}

impl fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerCertificate").field("validity", &self.validity).finish_non_exhaustive()
    }
}

impl Ca {
    /// A new key with a certificate for `names` (DNS) that is at the same time the SVID of `identity`, so that
    /// clients of both kinds accept it.
    ///
    /// # Errors
    /// When a name is no DNS name, or the CA is not valid at `now`.
    pub fn server_certificate(
        &self,
        identity: &SpiffeId,
        names: &[String],
        ttl: Duration,
        now: Timestamp,
    ) -> Result<ServerCertificate, CaError> {
        let key = SecretKey::generate()?;
        let mut params = leaf_params(identity)?;
        for name in names {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
        }
        let chain = self.certify(key.pair(), params, ttl, now)?;
        let unusable = |reason: &dyn fmt::Display| CaError::Material {
            what: "the new server certificate".into(),
            reason: reason.to_string(),
        };
        let facts = chain.first().and_then(|leaf| LeafFacts::read(leaf));
        let validity = facts.ok_or_else(|| unusable(&"it cannot be read back"))?.validity;
        let tls_key = key.tls_key().map_err(|e| unusable(&e))?;
        Ok(ServerCertificate { key: Arc::new(CertifiedKey::new(chain, tls_key)), validity })
    }
}
