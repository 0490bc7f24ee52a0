//! Why a handshake failed, in words and as a short reason for metrics.

use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};

use crate::verify::IdentityError;

/// A handshake that failed. The text names the likely cause and remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeFailure {
    /// The chain or its dates are wrong.
    #[error("the peer's certificate is not acceptable: {0}")]
    BadCertificate(String),
    /// Clocks, or a renewal that did not happen.
    #[error("the peer's certificate has run out: its agent could not renew it, or a clock is wrong ({0})")]
    Expired(String),
    /// The peer is someone else, or nobody we know.
    #[error(transparent)]
    Identity(IdentityError),
    /// The connection broke.
    #[error("the connection broke during the handshake: {0}")]
    Io(String),
    /// Mutual TLS only.
    #[error("the peer sent no certificate: it is not in the mesh")]
    NoCertificate,
    /// Clocks.
    #[error("the peer's certificate is not valid yet: a clock is wrong ({0})")]
    NotYetValid(String),
    /// Plain text or another protocol on the mesh port.
    #[error("the peer does not speak TLS: {0}")]
    NotTls(String),
    /// TLS 1.2 or older.
    #[error("the peer does not speak TLS 1.3, which the mesh requires")]
    OldTls,
    /// The peer refused us and said why.
    #[error("the peer refused the connection: {0}")]
    RefusedByPeer(String),
    /// Any other breach of TLS.
    #[error("the handshake failed: {0}")]
    Tls(String),
    /// Another CA.
    #[error(
        "the peer's certificate comes from a CA that this mesh does not trust: compare the trust bundles"
    )]
    UnknownIssuer,
}

impl HandshakeFailure {
    /// What the error of a `tokio_rustls` handshake means.
    #[must_use]
    pub fn from_io(error: &io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(tls) => Self::from_tls(tls),
            None => Self::Io(error.to_string()),
        }
    }

    /// What a TLS error means.
    #[must_use]
    pub fn from_tls(error: &Error) -> Self {
        match error {
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::InvalidCertificate(error) => Self::from_certificate(error),
            Error::AlertReceived(AlertDescription::ProtocolVersion) => Self::OldTls,
            Error::AlertReceived(alert) => Self::RefusedByPeer(format!("{alert:?}")),
            Error::PeerIncompatible(
                PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                | PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::Tls12NotOfferedOrEnabled,
            ) => Self::OldTls,
            Error::InvalidMessage(
                InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
            ) => Self::NotTls(error.to_string()),
            other => Self::Tls(other.to_string()),
        }
    }

    /// A stable word for metrics and logs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::BadCertificate(_) => "tls_bad_certificate",
            Self::Expired(_) => "tls_expired_certificate",
            Self::Identity(_) => "tls_wrong_identity",
            Self::Io(_) => "tls_connection_broken",
            Self::NoCertificate => "tls_no_certificate",
            Self::NotTls(_) => "tls_not_tls",
            Self::NotYetValid(_) => "tls_certificate_not_yet_valid",
            Self::OldTls => "tls_old_version",
            Self::RefusedByPeer(_) => "tls_refused_by_peer",
            Self::Tls(_) => "tls_failed",
            Self::UnknownIssuer => "tls_unknown_issuer",
        }
    }

    fn from_certificate(error: &CertificateError) -> Self {
        match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                Self::Expired(error.to_string())
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Self::NotYetValid(error.to_string())
            }
            // Two roots of the same name: the chain is found, the signature does not fit.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownIssuer,
            CertificateError::Other(inner) => match inner.0.downcast_ref::<IdentityError>() {
                Some(identity) => Self::Identity(identity.clone()),
                None => Self::BadCertificate(inner.to_string()),
            },
            other => Self::BadCertificate(other.to_string()),
        }
    }
}
