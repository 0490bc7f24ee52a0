//! The whole watched world at one moment.

use super::{
    BackendTlsPolicy, ConfigMap, EndpointSlice, Gateway, GatewayClass, GatewayConfig, ListenerSet, Namespace,
    Node, ObjectKey, Placement, Pod, ReferenceGrant, Route, RouteKind, Secret, Service, Str,
};
use std::{collections::BTreeMap, sync::Arc};

/// Objects of one kind by `namespace/name`.
pub type Objects<T> = BTreeMap<ObjectKey, Arc<T>>;

/// The watched world. Cheap enough to clone (maps of `Arc`), compared by content where an edit must be found.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs)]
pub struct Snapshot {
    pub classes: BTreeMap<Str, Arc<GatewayClass>>,
    pub gateways: Objects<Gateway>,
    pub listener_sets: Objects<ListenerSet>,
    pub routes: BTreeMap<(RouteKind, ObjectKey), Arc<Route>>,
    pub grants: Objects<ReferenceGrant>,
    pub tls_policies: Objects<BackendTlsPolicy>,
    pub services: Objects<Service>,
    pub endpoint_slices: Objects<EndpointSlice>,
    pub namespaces: BTreeMap<Str, Arc<Namespace>>,
    pub pods: Objects<Pod>,
    pub secrets: Objects<Secret>,
    pub config_maps: Objects<ConfigMap>,
    /// `WeftGatewayConfig` of `weft.dev`.
    pub gateway_configs: Objects<GatewayConfig>,
    pub nodes: BTreeMap<Str, Arc<Node>>,
    /// Where Gateways are served, by the Gateway's key: derived by the provider from what the controller wrote.
    pub placements: Objects<Placement>,
}
