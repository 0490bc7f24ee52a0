//! GatewayClass, Gateway, ListenerSet.

use super::{LabelSelector, Reference};
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GatewayClassSpec {
    pub(crate) controller_name: String,
    pub(crate) parameters_ref: Option<Reference>,
    pub(crate) description: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GatewaySpec {
    pub(crate) gateway_class_name: String,
    pub(crate) listeners: Vec<Listener>,
    #[serde(default)]
    pub(crate) addresses: Vec<Address>,
    pub(crate) infrastructure: Option<Infrastructure>,
    pub(crate) allowed_listeners: Option<AllowedListeners>,
    pub(crate) tls: Option<GatewayTls>,
    pub(crate) default_scope: Option<String>,
}

/// `ListenerSetSpec`: its entries have the fields of a Gateway's listener.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ListenerSetSpec {
    pub(crate) parent_ref: Reference,
    pub(crate) listeners: Vec<Listener>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Listener {
    pub(crate) name: String,
    pub(crate) hostname: Option<String>,
    pub(crate) port: u16,
    pub(crate) protocol: String,
    pub(crate) tls: Option<ListenerTls>,
    pub(crate) allowed_routes: Option<AllowedRoutes>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ListenerTls {
    pub(crate) mode: String,
    #[serde(default)]
    pub(crate) certificate_refs: Vec<Reference>,
    #[serde(default)]
    pub(crate) options: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct AllowedRoutes {
    pub(crate) namespaces: Option<Namespaces>,
    #[serde(default)]
    pub(crate) kinds: Vec<RouteGroupKind>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct AllowedListeners {
    pub(crate) namespaces: Option<Namespaces>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Namespaces {
    pub(crate) from: Option<String>,
    pub(crate) selector: Option<LabelSelector>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct RouteGroupKind {
    #[serde(default)]
    pub(crate) group: String,
    pub(crate) kind: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Address {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) value: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Infrastructure {
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) parameters_ref: Option<Reference>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct GatewayTls {
    pub(crate) backend: Option<BackendTls>,
    pub(crate) frontend: Option<FrontendTls>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BackendTls {
    pub(crate) client_certificate_ref: Option<Reference>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FrontendTls {
    pub(crate) default: TlsConfig,
    #[serde(default)]
    pub(crate) per_port: Vec<PortTls>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct TlsConfig {
    pub(crate) validation: Option<TlsValidation>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct PortTls {
    pub(crate) port: u16,
    pub(crate) tls: TlsConfig,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TlsValidation {
    pub(crate) ca_certificate_refs: Vec<Reference>,
    pub(crate) mode: String,
}
