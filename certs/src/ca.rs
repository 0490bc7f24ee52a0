//! The mesh's certificate authority: an ECDSA P-256 root (or an intermediate that an operator brings) and the
//! signing of leaves. The time is an argument; the files are in `ca_dir`.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, pem::PemObject};
use weft_core::model::SpiffeId;
use x509_parser::prelude::{FromDer, X509Certificate, X509CertificationRequest};
use zeroize::{Zeroize, Zeroizing};

use crate::{
    bundle::{InvalidBundle, TrustBundle},
    issue::IssuedCertificate,
    key::SecretKey,
    leaf, pem,
    rotation::Validity,
    tls::crypto_provider,
};

/// The shortest life of a leaf; a shorter wish is raised to it.
pub const MIN_TTL: Duration = Duration::from_secs(60);
/// The longest life of a leaf; a longer wish is cut to it.
pub const MAX_TTL: Duration = Duration::from_secs(7 * 24 * 3600);
/// How far `not_before` is set back, for agents whose clock is slow.
const CLOCK_SKEW: Duration = Duration::from_secs(120);
/// The life of a root that we make: ten years of 365.25 days.
const ROOT_LIFE: Duration = Duration::from_secs(315_576_000);

/// Why the CA could not do it.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The CA's certificate is not valid now: replace it. Nobody can be served.
    #[error("the CA certificate is valid from {not_before} to {not_after} only; bring a new one")]
    CaExpired {
        /// First valid second.
        not_before: Timestamp,
        /// Last valid second.
        not_after: Timestamp,
    },
    /// The request is malformed or its signature wrong: the fault of who asks.
    #[error("the signing request is refused: {0}")]
    Csr(String),
    /// The cryptographic library failed: ours.
    #[error("signing failed: {0}")]
    Crypto(#[from] rcgen::Error),
    /// No randomness: the machine's.
    #[error("the system gave no random bytes")]
    Random,
    /// The operator's files do not make a CA.
    #[error("{what} is no usable CA: {reason}")]
    Material {
        /// Which file or text.
        what: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// The bundle is wrong: the operator's.
    #[error(transparent)]
    Bundle(#[from] InvalidBundle),
    /// Reading or writing failed: the machine's. Worth a retry.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A CA in text form. Debug prints no key.
pub struct CaPem {
    /// The signing certificate, those above it, and the roots.
    pub certificates: String,
    /// PKCS#8, wiped on drop.
    pub key: Zeroizing<String>,
}

impl fmt::Debug for CaPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CaPem").field("certificates", &self.certificates).finish_non_exhaustive()
    }
}

/// A certificate authority with its key. Debug prints no key.
pub struct Ca {
    key: SecretKey,
    certificate: CertificateDer<'static>,
    /// Sent after the leaf: empty for a root, else the signing certificate and those above it, without the
    /// root.
    intermediates: Arc<[CertificateDer<'static>]>,
    bundle: TrustBundle,
    validity: Validity,
}

impl Ca {
    /// A new self-signed root for `trust_domain`.
    ///
    /// # Errors
    /// When the system gives no randomness or the trust domain is no text for a name.
    pub fn create(trust_domain: &str, now: Timestamp) -> Result<Self, CaError> {
        Self::create_with(SecretKey::generate()?, trust_domain, now)
    }

    pub(crate) fn create_with(key: SecretKey, trust_domain: &str, now: Timestamp) -> Result<Self, CaError> {
        let mut params = CertificateParams::default();
        let serial = serial_number()?;
        // A name of its own for each root: while two overlap, a log line and a path builder can tell them
        // apart.
        let tail: String = serial.iter().rev().take(4).map(|b| format!("{b:02x}")).collect();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, trust_domain);
        params.distinguished_name.push(DnType::CommonName, format!("Weft mesh root {tail}"));
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        // No CA below it: the root signs leaves and nothing else.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, backdated(now), plus(now, ROOT_LIFE));
        let certificate = params.self_signed(key.pair())?.der().clone();
        Self::assemble(key, vec![certificate])
    }

    /// Reads a CA that someone brings: the signing certificate first, then those above it; the self-signed
    /// ones become the trust bundle. Without a self-signed one the topmost is trusted.
    ///
    /// # Errors
    /// When a text is not PEM, the key belongs to another certificate, or the certificate may not sign.
    pub fn from_pem(certificates: &[u8], key: &[u8]) -> Result<Self, CaError> {
        let bad = |reason: String| CaError::Material { what: "the PEM text".into(), reason };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificates).collect();
        let chain = chain.map_err(|e| bad(format!("certificates: {e}")))?;
        let mut der = PrivateKeyDer::from_pem_slice(key).map_err(|e| bad(format!("private key: {e}")))?;
        let key = SecretKey::from_der(&der);
        der.zeroize();
        Self::assemble(key?, chain)
    }

    /// The same CA, trusting more roots: those of its predecessor or successor.
    #[must_use]
    pub fn trusting(mut self, more: &TrustBundle) -> Self {
        self.bundle = self.bundle.with(more);
        self
    }

    /// What the mesh trusts.
    #[must_use]
    pub fn bundle(&self) -> &TrustBundle {
        &self.bundle
    }

    /// When the CA's own certificate is valid.
    #[must_use]
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// Signs a leaf for `identity` with the public key of `csr`, whose signature proves that the asker has
    /// the key. Names and extensions in the request are ignored: whoever calls decides who the asker is. The
    /// life is `ttl` within [`MIN_TTL`] and [`MAX_TTL`], and ends no later than the CA's own.
    ///
    /// # Errors
    /// When the request is malformed or badly signed, or the CA itself is not valid at `now`.
    pub fn sign(
        &self,
        csr: &CertificateSigningRequestDer<'_>,
        identity: &SpiffeId,
        ttl: Duration,
        now: Timestamp,
    ) -> Result<IssuedCertificate, CaError> {
        let public_key = proven_key(csr)?;
        let chain = self.certify(&public_key, leaf_params(identity)?, ttl, now)?;
        Ok(IssuedCertificate { chain, bundle: self.bundle.clone() })
    }

    /// Signs a leaf of `params` for `public_key`; the chain without the root.
    pub(crate) fn certify(
        &self,
        public_key: &impl PublicKeyData,
        mut params: CertificateParams,
        ttl: Duration,
        now: Timestamp,
    ) -> Result<Vec<CertificateDer<'static>>, CaError> {
        let Validity { not_before, not_after } = self.validity;
        if !self.validity.contains(now) {
            return Err(CaError::CaExpired { not_before, not_after });
        }
        params.serial_number = Some(SerialNumber::from_slice(&serial_number()?));
        let end = plus(now, ttl.clamp(MIN_TTL, MAX_TTL)).min(not_after);
        set_validity(&mut params, backdated(now).max(not_before), end);
        let issuer = Issuer::from_ca_cert_der(&self.certificate, self.key.pair())?;
        let leaf = params.signed_by(public_key, &issuer)?;
        let mut chain = vec![leaf.der().clone()];
        chain.extend(self.intermediates.iter().cloned());
        Ok(chain)
    }

    /// The CA as PEM texts, for the Secret that only the controller may read; [`Ca::from_pem`] reads them back,
    /// with every root that is trusted.
    #[must_use]
    pub fn to_pem(&self) -> CaPem {
        let mut all = vec![&self.certificate];
        for certificate in self.intermediates.iter().chain(self.bundle.roots()) {
            if !all.contains(&certificate) {
                all.push(certificate);
            }
        }
        let certificates = all.iter().map(|c| pem::encode("CERTIFICATE", c).to_string()).collect();
        CaPem { certificates, key: pem::encode("PRIVATE KEY", self.key.der()) }
    }

    pub(crate) fn certificate_pem(&self) -> String {
        pem::encode("CERTIFICATE", &self.certificate).to_string()
    }

    fn assemble(key: SecretKey, chain: Vec<CertificateDer<'static>>) -> Result<Self, CaError> {
        let bad =
            |reason: &str| CaError::Material { what: "the CA certificate".into(), reason: reason.into() };
        let certificate = chain.first().cloned().ok_or_else(|| bad("there is no certificate"))?;
        let validity = check_signer(&certificate, &key).map_err(bad)?;
        let (mut roots, intermediates): (Vec<_>, Vec<_>) = chain.into_iter().partition(is_self_signed);
        if roots.is_empty() {
            roots.extend(intermediates.last().cloned());
        }
        let bundle = TrustBundle::new(roots)?;
        Ok(Self { key, certificate, intermediates: intermediates.into(), bundle, validity })
    }

    pub(crate) fn key(&self) -> &SecretKey {
        &self.key
    }
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ca")
            .field("roots", &self.bundle.describe())
            .field("validity", &self.validity)
            .finish_non_exhaustive()
    }
}

/// X509-SVID §4: one URI SAN; no subject, hence (RFC 5280 §4.1.2.6) rcgen marks the SAN critical; no CA;
/// digitalSignature, critical; both extended key usages.
pub(crate) fn leaf_params(identity: &SpiffeId) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// The public key of a request whose signature holds. ECDSA on P-256 or P-384 only: other keys are weak or
/// slow.
fn proven_key(csr: &CertificateSigningRequestDer<'_>) -> Result<SubjectPublicKeyInfo, CaError> {
    let refused = |reason: &str| CaError::Csr(reason.to_owned());
    let (rest, request) =
        X509CertificationRequest::from_der(csr).map_err(|e| CaError::Csr(format!("not PKCS#10: {e}")))?;
    if !rest.is_empty() {
        return Err(refused("bytes after the end of the request"));
    }
    request.verify_signature().map_err(|_| refused("the signature does not prove possession of the key"))?;
    let key = SubjectPublicKeyInfo::from_der(request.certification_request_info.subject_pki.raw)
        .map_err(|e| CaError::Csr(format!("public key: {e}")))?;
    let algorithm = key.algorithm();
    if algorithm != &rcgen::PKCS_ECDSA_P256_SHA256 && algorithm != &rcgen::PKCS_ECDSA_P384_SHA384 {
        return Err(refused("the key is not ECDSA P-256 or P-384"));
    }
    Ok(key)
}

/// Whether `certificate` belongs to `key` and may sign certificates; when it is valid.
fn check_signer(certificate: &CertificateDer<'_>, key: &SecretKey) -> Result<Validity, &'static str> {
    let (_, cert) = X509Certificate::from_der(certificate).map_err(|_| "it is no X.509 certificate")?;
    if cert.public_key().raw != key.pair().subject_public_key_info() {
        return Err("the private key belongs to another certificate");
    }
    if !cert.is_ca() {
        return Err("its basic constraints do not say CA");
    }
    match cert.key_usage() {
        Ok(Some(usage)) if !usage.value.key_cert_sign() => {
            return Err("its key usage forbids signing certificates");
        }
        Ok(_) => {}
        Err(_) => return Err("it has two key usage extensions"),
    }
    leaf::validity(&cert).ok_or("its validity is out of range")
}

pub(crate) fn is_self_signed(certificate: &CertificateDer<'static>) -> bool {
    X509Certificate::from_der(certificate)
        .is_ok_and(|(_, cert)| cert.subject() == cert.issuer() && cert.verify_signature(None).is_ok())
}

/// 16 random bytes: positive and always of the same length (RFC 5280 §4.1.2.2 allows 20).
fn serial_number() -> Result<[u8; 16], CaError> {
    let mut bytes = [0; 16];
    crypto_provider().secure_random.fill(&mut bytes).map_err(|_| CaError::Random)?;
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(bytes)
}

/// rcgen wants the `time` crate's type; its epoch plus seconds makes one without naming that crate.
fn set_validity(params: &mut CertificateParams, from: Timestamp, to: Timestamp) {
    let second = |at: Timestamp| Duration::from_secs(u64::try_from(at.as_second()).unwrap_or(0));
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + second(from);
    params.not_after = epoch + second(to);
}

fn backdated(now: Timestamp) -> Timestamp {
    now.checked_sub(CLOCK_SKEW).unwrap_or(now)
}

fn plus(now: Timestamp, life: Duration) -> Timestamp {
    SignedDuration::try_from(life).ok().and_then(|d| now.checked_add(d).ok()).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
