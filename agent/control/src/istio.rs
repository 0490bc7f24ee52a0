//! `istio.v1.auth.IstioCertificateService`, wire-compatible with istiod, istio-csr and ztunnel. The field numbers are
//! those of `istio.io/api/security/v1alpha1/ca.proto` (2 is reserved there); `google.protobuf.Struct` is spelled out
//! as far as it is used.

use std::collections::HashMap;

use weft_core::model::{InvalidSpiffeId, SpiffeId};

/// The only method.
pub(crate) const CREATE_CERTIFICATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
/// The metadata entry by which a node's agent says for whom it asks.
const IMPERSONATED: &str = "ImpersonatedIdentity";

/// Asks for a certificate.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct IstioCertificateRequest {
    /// PEM of a PKCS#10 request.
    #[prost(string, tag = "1")]
    pub(crate) csr: String,
    /// Wished life in seconds.
    #[prost(int64, tag = "3")]
    pub(crate) validity_duration: i64,
    /// More about the request.
    #[prost(message, optional, tag = "4")]
    pub(crate) metadata: Option<Struct>,
}

/// The answer.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct IstioCertificateResponse {
    /// PEM texts: the leaf first, the roots last.
    #[prost(string, repeated, tag = "1")]
    pub(crate) cert_chain: Vec<String>,
}

/// `google.protobuf.Struct`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Struct {
    /// Its fields.
    #[prost(map = "string, message", tag = "1")]
    pub(crate) fields: HashMap<String, Value>,
}

/// `google.protobuf.Value`, of which we read strings; other kinds are skipped as unknown fields.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Value {
    /// `string_value`.
    #[prost(string, optional, tag = "3")]
    pub(crate) string: Option<String>,
}

impl IstioCertificateRequest {
    /// A request of a node's agent on behalf of `identity`.
    #[must_use]
    pub(crate) fn on_behalf(csr: String, validity_duration: i64, identity: &SpiffeId) -> Self {
        let value = Value { string: Some(identity.to_string()) };
        let fields = HashMap::from([(IMPERSONATED.to_owned(), value)]);
        Self { csr, validity_duration, metadata: Some(Struct { fields }) }
    }

    /// For whom is asked; none: for the caller itself.
    ///
    /// # Errors
    /// When it is no SPIFFE ID of our shape.
    pub(crate) fn impersonated(&self) -> Result<Option<SpiffeId>, InvalidSpiffeId> {
        let value = self.metadata.as_ref().and_then(|m| m.fields.get(IMPERSONATED)?.string.as_deref());
        value.map(SpiffeId::parse).transpose()
    }
}
