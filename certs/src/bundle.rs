//! The roots that the mesh trusts.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, pem::PemObject};

use crate::{leaf::RootInfo, pem};

/// One or more root certificates. Two or more while a root is being replaced: both are trusted until every
/// certificate of the old one has run out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustBundle {
    roots: Arc<[CertificateDer<'static>]>,
}

/// Why a set of certificates cannot be trusted: the fault of who made it; it stays wrong until changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBundle {
    /// Nothing to trust: every peer would be refused.
    #[error("the trust bundle holds no certificate")]
    Empty,
    /// Not PEM.
    #[error("the trust bundle is no PEM text of certificates: {0}")]
    Pem(String),
    /// Not a certificate.
    #[error("certificate {index} of the trust bundle cannot be read: {reason}")]
    Certificate {
        /// Position, from 0.
        index: usize,
        /// What is wrong with it.
        reason: String,
    },
}

impl TrustBundle {
    /// A bundle of DER certificates; the same one twice counts once.
    ///
    /// # Errors
    /// When there is none, or one of them is no certificate.
    pub fn new(roots: impl IntoIterator<Item = CertificateDer<'static>>) -> Result<Self, InvalidBundle> {
        let mut unique: Vec<CertificateDer<'static>> = Vec::new();
        for (index, root) in roots.into_iter().enumerate() {
            webpki_accepts(&root).map_err(|reason| InvalidBundle::Certificate { index, reason })?;
            if !unique.contains(&root) {
                unique.push(root);
            }
        }
        if unique.is_empty() {
            return Err(InvalidBundle::Empty);
        }
        Ok(Self { roots: unique.into() })
    }

    /// Reads the certificates of a PEM text, e.g. the root ConfigMap.
    ///
    /// # Errors
    /// As [`TrustBundle::new`], or when the text is not PEM.
    pub fn from_pem(text: &[u8]) -> Result<Self, InvalidBundle> {
        let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
        Self::new(roots.map_err(|e| InvalidBundle::Pem(e.to_string()))?)
    }

    /// The roots as PEM text.
    #[must_use]
    pub fn to_pem(&self) -> String {
        self.roots.iter().map(|root| pem::encode("CERTIFICATE", root).to_string()).collect()
    }

    /// The roots in DER.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// This bundle and the roots of another: the overlap while a root is replaced.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        let added = other.roots.iter().filter(|root| !self.roots.contains(root));
        Self { roots: self.roots.iter().chain(added).cloned().collect() }
    }

    /// What an operator wants to see of each root.
    #[must_use]
    pub fn describe(&self) -> Vec<RootInfo> {
        self.roots.iter().filter_map(|root| RootInfo::read(root)).collect()
    }

    pub(crate) fn anchors(&self) -> RootCertStore {
        let mut store = RootCertStore::empty();
        // All were readable in `new`, so none is skipped.
        store.add_parsable_certificates(self.roots.iter().cloned());
        store
    }
}

fn webpki_accepts(root: &CertificateDer<'_>) -> Result<(), String> {
    RootCertStore::empty().add(root.clone()).map_err(|e| e.to_string())
}
