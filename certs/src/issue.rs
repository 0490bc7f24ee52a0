//! Who issues certificates: behind a trait, so that the same store works with a CA in this process and with
//! one across the network (`istio.v1.auth.IstioCertificateService`).

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, pem::PemObject};
use weft_core::model::{SpiffeId, Str};

use crate::{
    bundle::TrustBundle,
    ca::{Ca, CaError, is_self_signed},
    clock::{Clock, SystemClock},
    pem,
};

/// A certificate that someone asks for.
#[derive(Clone, Debug)]
pub struct IssueRequest {
    /// PKCS#10, signed with the key to be certified.
    pub csr: CertificateSigningRequestDer<'static>,
    /// Whom the certificate shall name. The issuer decides whether the asker may have it.
    pub identity: SpiffeId,
    /// Wished life; the issuer may give another.
    pub ttl: Duration,
}

impl IssueRequest {
    /// The request as PEM text, which Istio's service wants.
    #[must_use]
    pub fn csr_pem(&self) -> String {
        pem::encode("CERTIFICATE REQUEST", &self.csr).to_string()
    }
}

/// What an issuer gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedCertificate {
    /// Leaf first, then the intermediates, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// What the issuer wants trusted.
    pub bundle: TrustBundle,
}

impl IssuedCertificate {
    /// From PEM texts as Istio's service gives them: leaf first, root or roots last. The self-signed ones are
    /// the bundle; without one, the last.
    ///
    /// # Errors
    /// [`IssueError::BadAnswer`] when this is no chain.
    pub fn from_pem_chain<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, IssueError> {
        let bad = |reason: String| IssueError::BadAnswer { reason };
        let mut all = Vec::new();
        for text in texts {
            for cert in CertificateDer::pem_slice_iter(text.as_bytes()) {
                all.push(cert.map_err(|e| bad(format!("not PEM: {e}")))?);
            }
        }
        let (mut roots, mut chain): (Vec<_>, Vec<_>) = all.into_iter().partition(is_self_signed);
        if roots.is_empty() && chain.len() > 1 {
            roots.extend(chain.pop());
        }
        if chain.is_empty() {
            return Err(bad("there is no leaf".into()));
        }
        let bundle = TrustBundle::new(roots).map_err(|e| bad(e.to_string()))?;
        Ok(Self { chain, bundle })
    }

    /// PEM texts as Istio's service gives them: leaf first, the roots last. [`Self::from_pem_chain`] reads them.
    #[must_use]
    pub fn to_pem_chain(&self) -> Vec<String> {
        let all = self.chain.iter().chain(self.bundle.roots());
        all.map(|certificate| pem::encode("CERTIFICATE", certificate).to_string()).collect()
    }
}

/// Whose fault a failed issue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Ours: the request, or this machine.
    Caller,
    /// The issuer's, or the network's on the way to it.
    Issuer,
}

/// When to ask again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Soon, then ever later.
    Backoff,
    /// At the longest pause: the answer changes only when someone changes something.
    Seldom,
}

/// Why there is no certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// The issuer's answer cannot be used.
    #[error("the issuer's answer cannot be used: {reason}")]
    BadAnswer {
        /// What is wrong with it.
        reason: String,
    },
    /// The issuer does not take the request.
    #[error("the issuer refuses the request: {reason}")]
    BadRequest {
        /// What it said.
        reason: String,
    },
    /// The issuer does not let us have this identity. Soon tried again, since an issuer may know of a new pod
    /// later than we do.
    #[error("the issuer denies this identity: {reason}")]
    Denied {
        /// What it said.
        reason: String,
    },
    /// This process could not make a key or a request.
    #[error("no key could be made: {reason}")]
    Local {
        /// What failed.
        reason: String,
    },
    /// No answer in time.
    #[error("the issuer did not answer within {0:?}")]
    TimedOut(Duration),
    /// The issuer cannot be reached or cannot sign now.
    #[error("the issuer is unavailable: {reason}")]
    Unavailable {
        /// What failed.
        reason: String,
    },
}

impl IssueError {
    /// Whose fault it is.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::BadRequest { .. } | Self::Denied { .. } | Self::Local { .. } => Fault::Caller,
            Self::BadAnswer { .. } | Self::TimedOut(_) | Self::Unavailable { .. } => Fault::Issuer,
        }
    }

    /// When to ask again.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::BadRequest { .. } => Retry::Seldom,
            _ => Retry::Backoff,
        }
    }
}

/// A pending issue. Dropping it cancels.
pub type IssueFuture<'a> = Pin<Box<dyn Future<Output = Result<IssuedCertificate, IssueError>> + Send + 'a>>;

/// Issues certificates. The store sets the deadline and bounds how many run at once.
pub trait Issuer: Send + Sync {
    /// Asks for one certificate.
    fn issue(&self, request: IssueRequest) -> IssueFuture<'_>;
}

/// Signs in this process.
#[derive(Debug)]
pub struct LocalIssuer {
    ca: ArcSwap<Ca>,
    trust_domain: Str,
    clock: Arc<dyn Clock>,
}

impl LocalIssuer {
    /// An issuer of identities of `trust_domain` only.
    #[must_use]
    pub fn new(ca: Ca, trust_domain: impl Into<Str>) -> Self {
        Self::with_clock(ca, trust_domain, Arc::new(SystemClock))
    }

    /// As [`LocalIssuer::new`] with another clock.
    #[must_use]
    pub fn with_clock(ca: Ca, trust_domain: impl Into<Str>, clock: Arc<dyn Clock>) -> Self {
        Self { ca: ArcSwap::from_pointee(ca), trust_domain: trust_domain.into(), clock }
    }

    /// Signs with another CA from now on. For an overlap, let the new one trust the old one's roots
    /// ([`Ca::trusting`]) and hand the joint bundle to every store first.
    pub fn replace(&self, ca: Ca) {
        self.ca.store(Arc::new(ca));
    }

    fn sign(&self, request: &IssueRequest) -> Result<IssuedCertificate, IssueError> {
        let IssueRequest { csr, identity, ttl } = request;
        if identity.trust_domain != self.trust_domain {
            let reason = format!("{identity} is not in trust domain {}", self.trust_domain);
            return Err(IssueError::Denied { reason });
        }
        self.ca.load().sign(csr, identity, *ttl, self.clock.now()).map_err(|error| {
            let reason = error.to_string();
            match error {
                CaError::Csr(_) => IssueError::BadRequest { reason },
                _ => IssueError::Unavailable { reason },
            }
        })
    }
}

impl Issuer for LocalIssuer {
    fn issue(&self, request: IssueRequest) -> IssueFuture<'_> {
        Box::pin(async move { self.sign(&request) })
    }
}

#[cfg(test)]
mod tests;
