//! GatewayClass, Gateway, Listener, ListenerSet.

use super::{GroupKind, Hostname, Meta, ObjectKey, Selector, Str};
use std::{collections::BTreeMap, fmt};

/// `GatewayClass` (cluster-scoped).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayClass {
    /// Metadata; the namespace is empty.
    pub meta: Meta,
    /// `spec.controllerName`.
    pub controller: Str,
    /// `spec.parametersRef`.
    pub parameters_ref: Option<ParametersRef>,
    /// `spec.description`.
    pub description: Option<Str>,
}

/// `parametersRef` of a class, or of a Gateway's `spec.infrastructure` (then without namespace).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParametersRef {
    /// Group and kind.
    pub kind: GroupKind,
    /// Name.
    pub name: Str,
    /// Namespace; a class may leave it out for cluster-scoped kinds.
    pub namespace: Option<Str>,
}

/// `Gateway`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Metadata.
    pub meta: Meta,
    /// `spec.gatewayClassName`.
    pub class: Str,
    /// `spec.listeners`.
    pub listeners: Vec<Listener>,
    /// `spec.addresses`.
    pub addresses: Vec<GatewayAddress>,
    /// `spec.infrastructure`.
    pub infrastructure: Option<Infrastructure>,
    /// `spec.allowedListeners.namespaces`: from where ListenerSets may attach; `None` by default (GEP-1713).
    pub allowed_listeners: FromNamespaces,
    /// `spec.tls.backend.clientCertificateRef` (GEP-3155).
    pub backend_client_certificate: Option<SecretRef>,
    /// `spec.tls.frontend` (GEP-91).
    pub frontend_tls: Option<FrontendTls>,
    /// `spec.defaultScope` (GEP-3793, experimental).
    pub default_scope: Option<Str>,
}

/// One entry of `spec.addresses`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayAddress {
    /// Type; `IPAddress` when left out.
    pub kind: AddressType,
    /// Value; may be empty ("choose one of this type").
    pub value: Option<Str>,
}

/// `AddressType`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum AddressType {
    IpAddress,
    Hostname,
    /// An implementation-specific, domain-prefixed type: none is supported.
    Other(Str),
}

/// `spec.infrastructure` (GEP-1867).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Infrastructure {
    /// Labels for every generated object.
    pub labels: BTreeMap<Str, Str>,
    /// Annotations for every generated object.
    pub annotations: BTreeMap<Str, Str>,
    /// `parametersRef`.
    pub parameters_ref: Option<ParametersRef>,
}

/// `spec.tls.frontend`: client certificate validation, default and per port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontendTls {
    /// `default.validation`.
    pub default: Option<FrontendValidation>,
    /// `perPort[]`: port and its validation.
    pub per_port: Vec<(u16, Option<FrontendValidation>)>,
}

/// `FrontendTLSValidation`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontendValidation {
    /// `caCertificateRefs`.
    pub ca_refs: Vec<ObjectReference>,
    /// `mode: AllowInsecureFallback` instead of `AllowValidOnly`.
    pub insecure_fallback: bool,
}

/// `ObjectReference`: any kind, maybe in another namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectReference {
    /// Group and kind.
    pub kind: GroupKind,
    /// Name.
    pub name: Str,
    /// Namespace; the referrer's when left out.
    pub namespace: Option<Str>,
}

/// `SecretObjectReference`; group and kind default to core `Secret`.
pub type SecretRef = ObjectReference;

/// One listener of a Gateway or ListenerSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// `name`, unique within its object.
    pub name: Str,
    /// `hostname`; none means all.
    pub hostname: Option<Hostname>,
    /// `port`, 1–65535.
    pub port: u16,
    /// `protocol`.
    pub protocol: Protocol,
    /// `tls`.
    pub tls: Option<ListenerTls>,
    /// `allowedRoutes.namespaces`.
    pub allowed_namespaces: FromNamespaces,
    /// `allowedRoutes.kinds`; empty means those of the protocol.
    pub allowed_kinds: Vec<GroupKind>,
}

/// `ProtocolType`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Protocol {
    Http,
    Https,
    Tls,
    Tcp,
    Udp,
    /// Anything else: unsupported, reported.
    Other(Str),
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "HTTP",
            Self::Https => "HTTPS",
            Self::Tls => "TLS",
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Other(other) => other,
        })
    }
}

/// `ListenerTLSConfig`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerTls {
    /// `mode`, `Terminate` by default.
    pub mode: TlsMode,
    /// `certificateRefs`.
    pub certificate_refs: Vec<SecretRef>,
    /// `options`.
    pub options: BTreeMap<Str, Str>,
}

/// `TLSModeType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum TlsMode {
    Terminate,
    Passthrough,
}

/// `FromNamespaces` with its selector.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum FromNamespaces {
    All,
    Same,
    Selector(Selector),
    None,
}

/// `ListenerSet` (GEP-1713).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerSet {
    /// Metadata.
    pub meta: Meta,
    /// `spec.parentRef`: group and kind as written (only Gateway is supported).
    pub parent_kind: GroupKind,
    /// `spec.parentRef`, namespace defaulted.
    pub parent: ObjectKey,
    /// `spec.listeners`.
    pub listeners: Vec<Listener>,
}
