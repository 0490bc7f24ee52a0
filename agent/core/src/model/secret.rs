//! Secrets and ConfigMaps, as far as routing needs them: certificates.

use super::{Meta, Str, WrittenSettings};
use std::{fmt, sync::Arc};

/// A `Secret`, already read by the provider; private keys never leave [`KeyPair`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    /// Metadata.
    pub meta: Meta,
    /// What it holds; where that cannot be used, what it held last that could.
    pub data: SecretData,
    /// Why what it holds now cannot be used, when `data` is of before.
    pub broken: Option<Str>,
}

impl Secret {
    /// This version of a Secret after the one before: a renewal that cannot be used takes away nothing.
    #[must_use]
    pub(crate) fn keeping(&self, before: &Self) -> Option<Self> {
        let SecretData::Invalid(why) = &self.data else { return None };
        let usable = !matches!(before.data, SecretData::Invalid(_));
        // One that was deleted and made anew owes nothing to the old one.
        let same = self.meta.uid == before.meta.uid;
        (usable && same).then(|| Self {
            meta: self.meta.clone(),
            data: before.data.clone(),
            broken: Some(why.clone()),
        })
    }
}

/// What a Secret holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretData {
    /// `kubernetes.io/tls` with a certificate chain and key that parse and belong together.
    Tls(Arc<KeyPair>),
    /// A `ca.crt` bundle (PEM) without a key pair.
    Ca(CaBundle),
    /// Cannot be used, with the reason ("tls.crt: no PEM certificate found").
    Invalid(Str),
}

/// A certificate chain and its private key.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyPair {
    /// DER certificates, leaf first.
    pub chain: Vec<Vec<u8>>,
    /// PKCS#8, PKCS#1 or SEC1 key in DER, wiped by its owner on drop.
    pub key: PrivateKey,
    /// DNS names and IPs that the leaf carries, for messages.
    pub names: Vec<Str>,
    /// When the leaf may be used.
    pub validity: Validity,
}

/// From when to when a certificate may be used, in Unix seconds, both included (RFC 5280 §4.1.2.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Validity {
    /// `notBefore`.
    pub not_before: i64,
    /// `notAfter`.
    pub not_after: i64,
}

impl Validity {
    /// Whether it was told: a controller of before does not.
    #[must_use]
    pub const fn is_known(self) -> bool {
        self.not_after != 0
    }
}

/// A private key in DER. Not printed; overwritten on drop.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey(Vec<u8>);

impl PrivateKey {
    /// Takes the DER bytes.
    #[must_use]
    pub fn new(der: Vec<u8>) -> Self {
        Self(der)
    }

    /// The DER bytes, for the TLS library only.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for PrivateKey {
    fn drop(&mut self) {
        // `black_box` keeps the store: core has no `unsafe` for a volatile write.
        self.0.fill(0);
        std::hint::black_box(&self.0);
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(redacted)")
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPair").field("names", &self.names).finish_non_exhaustive()
    }
}

/// CA certificates in DER.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct CaBundle(pub Arc<Vec<Vec<u8>>>);

/// A `ConfigMap`, as far as it is a CA bundle (`ca.crt`) or parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigMap {
    /// Metadata.
    pub meta: Meta,
    /// `data["ca.crt"]` when it is there: its certificates, or why they cannot be used. Where they cannot, those of before
    /// that could.
    pub ca: Option<Result<CaBundle, Str>>,
    /// Why the `ca.crt` that is there now cannot be used, when `ca` is of before.
    pub broken: Option<Str>,
    /// `data["config.yaml"]` when it is there: the settings of a `WeftGatewayConfig`.
    pub parameters: Option<WrittenSettings>,
}

impl ConfigMap {
    /// As [`Secret::keeping`], for `ca.crt`.
    #[must_use]
    pub(crate) fn keeping(&self, before: &Self) -> Option<Self> {
        let Some(Err(why)) = &self.ca else { return None };
        let usable = matches!(before.ca, Some(Ok(_)));
        let same = self.meta.uid == before.meta.uid;
        (usable && same).then(|| Self { ca: before.ca.clone(), broken: Some(why.clone()), ..self.clone() })
    }
}
