//! Facts read from certificates.

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::rotation::Validity;

/// What the store and the admin page need to know of a leaf. No key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LeafFacts {
    /// Hexadecimal, colons between bytes, as OpenSSL prints it.
    pub(crate) serial: String,
    pub(crate) issuer: String,
    pub(crate) validity: Validity,
}

impl LeafFacts {
    pub(crate) fn read(der: &[u8]) -> Option<Self> {
        let (_, cert) = X509Certificate::from_der(der).ok()?;
        Some(Self {
            serial: cert.raw_serial_as_string(),
            issuer: cert.issuer().to_string(),
            validity: validity(&cert)?,
        })
    }
}

/// One trusted root, for the admin page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RootInfo {
    /// Distinguished name.
    pub subject: String,
    /// Hexadecimal, colons between bytes.
    pub serial: String,
    /// First moment of validity.
    #[serde(serialize_with = "as_text")]
    pub not_before: Timestamp,
    /// Last moment of validity.
    #[serde(serialize_with = "as_text")]
    pub not_after: Timestamp,
}

impl RootInfo {
    pub(crate) fn read(der: &[u8]) -> Option<Self> {
        let (_, cert) = X509Certificate::from_der(der).ok()?;
        let Validity { not_before, not_after } = validity(&cert)?;
        Some(Self {
            subject: cert.subject().to_string(),
            serial: cert.raw_serial_as_string(),
            not_before,
            not_after,
        })
    }
}

pub(crate) fn validity(cert: &X509Certificate<'_>) -> Option<Validity> {
    let second = |t: x509_parser::time::ASN1Time| Timestamp::from_second(t.timestamp()).ok();
    Some(Validity {
        not_before: second(cert.validity().not_before)?,
        not_after: second(cert.validity().not_after)?,
    })
}

/// RFC 3339.
pub(crate) fn as_text<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(at)
}

/// RFC 3339 or null.
pub(crate) fn as_text_opt<S: Serializer>(at: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => serializer.collect_str(at),
        None => serializer.serialize_none(),
    }
}
