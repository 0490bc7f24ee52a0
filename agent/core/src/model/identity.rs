//! SPIFFE identities.

use super::Str;
use std::fmt;

/// The default trust domain.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

/// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>` (SPIFFE-ID; the path Istio uses too).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    /// Trust domain, e.g. `cluster.local`.
    pub trust_domain: Str,
    /// Kubernetes namespace.
    pub namespace: Str,
    /// Service account.
    pub service_account: Str,
}

/// Why a URI is no identity of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
pub struct InvalidSpiffeId(pub String);

impl SpiffeId {
    /// An identity from its parts.
    #[must_use]
    pub fn new(
        trust_domain: impl Into<Str>,
        namespace: impl Into<Str>,
        service_account: impl Into<Str>,
    ) -> Self {
        Self {
            trust_domain: trust_domain.into(),
            namespace: namespace.into(),
            service_account: service_account.into(),
        }
    }

    /// Parses the URI.
    ///
    /// # Errors
    /// When the URI has another scheme or path shape, an empty part, or is longer than 2048 bytes (X509-SVID).
    pub fn parse(uri: &str) -> Result<Self, InvalidSpiffeId> {
        let err = || InvalidSpiffeId(uri.chars().take(256).collect());
        let rest = uri.strip_prefix("spiffe://").filter(|_| uri.len() <= 2048).ok_or_else(err)?;
        let parts: Vec<&str> = rest.split('/').collect();
        let name_ok =
            |s: &&str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
        match parts.as_slice() {
            [td, "ns", ns, "sa", sa] if [td, ns, sa].into_iter().all(name_ok) => Ok(Self::new(*td, *ns, *sa)),
            _ => Err(err()),
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}
