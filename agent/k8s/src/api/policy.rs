//! ReferenceGrant and BackendTLSPolicy.

use super::Reference;
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Debug, Deserialize)]
pub(crate) struct ReferenceGrantSpec {
    pub(crate) from: Vec<GrantFrom>,
    pub(crate) to: Vec<GrantTo>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct GrantFrom {
    pub(crate) group: String,
    pub(crate) kind: String,
    pub(crate) namespace: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct GrantTo {
    pub(crate) group: String,
    pub(crate) kind: String,
    pub(crate) name: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BackendTlsPolicySpec {
    pub(crate) target_refs: Vec<PolicyTarget>,
    pub(crate) validation: BackendTlsValidation,
    #[serde(default)]
    pub(crate) options: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PolicyTarget {
    pub(crate) group: String,
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) section_name: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BackendTlsValidation {
    pub(crate) hostname: String,
    #[serde(default, rename = "caCertificateRefs")]
    pub(crate) ca_certificate_refs: Vec<Reference>,
    #[serde(rename = "wellKnownCACertificates")]
    pub(crate) well_known_ca_certificates: Option<String>,
    #[serde(default)]
    pub(crate) subject_alt_names: Vec<SubjectAltName>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct SubjectAltName {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) hostname: Option<String>,
    pub(crate) uri: Option<String>,
}
