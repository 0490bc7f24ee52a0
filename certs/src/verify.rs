//! Who the peer is: chain to the bundle, and exactly one SPIFFE ID that is expected.

use std::{fmt, sync::Arc};

use jiff::Timestamp;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature},
    server::{
        ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use weft_core::model::{InvalidSpiffeId, SpiffeId, Str};
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer, X509Certificate},
};

use crate::{bundle::TrustBundle, clock::unix_time, issue::IssuedCertificate, tls::crypto_provider};

/// The identities that an endpoint may have: usually one, several while a Service selects pods of two
/// accounts. Order and repetition do not matter. An empty set accepts nobody.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PeerSet(Arc<[SpiffeId]>);

impl PeerSet {
    /// A set of identities.
    #[must_use]
    pub fn new(identities: impl IntoIterator<Item = SpiffeId>) -> Self {
        let mut all: Vec<_> = identities.into_iter().collect();
        all.sort();
        all.dedup();
        Self(all.into())
    }

    /// The usual case.
    #[must_use]
    pub fn one(identity: SpiffeId) -> Self {
        Self(Arc::new([identity]))
    }

    /// Whether `identity` is expected.
    #[must_use]
    pub fn contains(&self, identity: &SpiffeId) -> bool {
        self.0.binary_search(identity).is_ok()
    }
}

impl fmt::Debug for PeerSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_string())
    }
}

impl fmt::Display for PeerSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            [] => f.write_str("nobody"),
            [one] => one.fmt(f),
            [first, rest @ ..] => write!(f, "{first} or {} more", rest.len()),
        }
    }
}

/// Why a certificate that chains to a trusted root is refused all the same. The peer's fault, or that of the
/// configuration which says who it should be; a retry does not help until one of them changes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// X509-SVID §2: exactly one.
    #[error("the certificate carries {0} URI names, not one SPIFFE ID")]
    Count(usize),
    /// Another identity than the endpoint may have.
    #[error("the peer is {found}, expected {expected}")]
    NotExpected {
        /// Who it is.
        found: SpiffeId,
        /// Who it should be.
        expected: PeerSet,
    },
    /// Not of our form.
    #[error(transparent)]
    NotSpiffe(#[from] InvalidSpiffeId),
    /// A peer of another mesh.
    #[error("the peer is {found}, which is not in trust domain {expected}")]
    TrustDomain {
        /// Who it is.
        found: SpiffeId,
        /// Ours.
        expected: Str,
    },
    /// The names cannot be read.
    #[error("the names of the certificate cannot be read")]
    Unreadable,
}

/// The identity of the peer of a *verified* connection, on either side:
/// `peer_identity(connection.peer_certificates()?)`. Verifies nothing itself.
#[must_use]
pub fn peer_identity(certificates: &[CertificateDer<'_>]) -> Option<SpiffeId> {
    spiffe_id(certificates.first()?).ok()
}

/// The one SPIFFE ID of a certificate.
pub(crate) fn spiffe_id(certificate: &CertificateDer<'_>) -> Result<SpiffeId, IdentityError> {
    let (_, cert) = X509Certificate::from_der(certificate).map_err(|_| IdentityError::Unreadable)?;
    let names = cert.subject_alternative_name().map_err(|_| IdentityError::Unreadable)?;
    let names = names.map_or(&[][..], |san| &san.value.general_names);
    // x509-parser keeps a name that it cannot read as `Invalid`; it might be a second URI.
    if names.iter().any(|name| matches!(name, GeneralName::Invalid(..))) {
        return Err(IdentityError::Unreadable);
    }
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.count()) {
        (Some(uri), 0) => Ok(SpiffeId::parse(uri)?),
        (first, more) => Err(IdentityError::Count(usize::from(first.is_some()) + more)),
    }
}

/// Whether an issuer's answer chains to the issuer's own roots now, as a server's certificate must.
pub(crate) fn check_chain(answer: &IssuedCertificate, now: Timestamp) -> Result<(), Error> {
    let Some((leaf, intermediates)) = answer.chain.split_first() else {
        return Err(Error::NoCertificatesPresented);
    };
    let algorithms = crypto_provider().signature_verification_algorithms.all;
    let parsed = ParsedCertificate::try_from(leaf)?;
    let roots = answer.bundle.anchors();
    verify_server_cert_signed_by_trust_anchor(&parsed, &roots, intermediates, unix_time(now), algorithms)
}

/// Whether a chain that was verified before would be verified by these roots, too.
pub(crate) fn check_client_chain(
    chain: &[CertificateDer<'_>],
    bundle: &TrustBundle,
    now: Timestamp,
) -> Result<(), Error> {
    let Some((leaf, intermediates)) = chain.split_first() else {
        return Err(Error::NoCertificatesPresented);
    };
    let algorithms = crypto_provider().signature_verification_algorithms.all;
    let (parsed, roots) = (ParsedCertificate::try_from(leaf)?, bundle.anchors());
    verify_server_cert_signed_by_trust_anchor(&parsed, &roots, intermediates, unix_time(now), algorithms)
}

/// Whom a side of a connection accepts.
#[derive(Clone, Debug)]
pub(crate) enum Accept {
    /// Servers accept any member of the mesh; policy decides later.
    TrustDomain(Str),
    /// Clients know whom they call.
    Peers(PeerSet),
}

impl Accept {
    fn check(&self, found: SpiffeId) -> Result<(), IdentityError> {
        match self {
            Self::TrustDomain(domain) if found.trust_domain == *domain => Ok(()),
            Self::TrustDomain(domain) => Err(IdentityError::TrustDomain { found, expected: domain.clone() }),
            Self::Peers(set) if set.contains(&found) => Ok(()),
            Self::Peers(set) => Err(IdentityError::NotExpected { found, expected: set.clone() }),
        }
    }
}

/// Verifies the peer on either side: the chain by webpki, then the identity. The host name plays no part.
#[derive(Debug)]
pub(crate) struct MeshVerifier {
    roots: Arc<RootCertStore>,
    client_chain: Arc<dyn ClientCertVerifier>,
    algorithms: WebPkiSupportedAlgorithms,
    accept: Accept,
}

impl MeshVerifier {
    pub(crate) fn new(roots: Arc<RootCertStore>, accept: Accept) -> Result<Self, VerifierBuilderError> {
        let provider = crypto_provider();
        let algorithms = provider.signature_verification_algorithms;
        let client_chain = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider).build()?;
        Ok(Self { roots, client_chain, algorithms, accept })
    }

    fn check_identity(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        spiffe_id(certificate)
            .and_then(|found| self.accept.check(found))
            .map_err(|e| Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(e)))))
    }

    /// Unreachable: our configs offer TLS 1.3 only.
    fn no_tls12() -> Error {
        Error::General("TLS 1.2 is not spoken in the mesh".into())
    }
}

impl ServerCertVerifier for MeshVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        self.check_identity(end_entity)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Self::no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for MeshVerifier {
    /// None: a mesh client has one certificate, and hints would name our roots to strangers.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.client_chain.verify_client_cert(end_entity, intermediates, now)?;
        self.check_identity(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Self::no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
