//! BackendTLSPolicy.

use super::{GroupKind, Hostname, Meta, ObjectReference, Str};
use std::collections::BTreeMap;

/// `BackendTLSPolicy` (GEP-1897).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendTlsPolicy {
    /// Metadata.
    pub meta: Meta,
    /// `spec.targetRefs`.
    pub targets: Vec<PolicyTarget>,
    /// `spec.validation.hostname`: SNI, and the name that the certificate must carry unless SANs are given.
    pub hostname: Hostname,
    /// `spec.validation.caCertificateRefs` (same namespace).
    pub ca_refs: Vec<ObjectReference>,
    /// `spec.validation.wellKnownCACertificates: System`.
    pub system_roots: bool,
    /// `spec.validation.subjectAltNames`.
    pub subject_alt_names: Vec<SubjectAltName>,
    /// `spec.options`.
    pub options: BTreeMap<Str, Str>,
}

/// `LocalPolicyTargetReferenceWithSectionName`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyTarget {
    /// Group and kind.
    pub kind: GroupKind,
    /// Name, in the policy's namespace.
    pub name: Str,
    /// Service port name.
    pub section_name: Option<Str>,
}

/// `SubjectAltName`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum SubjectAltName {
    Hostname(Hostname),
    Uri(Str),
}
