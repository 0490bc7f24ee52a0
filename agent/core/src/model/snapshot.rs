//! The whole watched world at one moment.

use super::{
    BackendTlsPolicy, ConfigMap, Doubt, EndpointSlice, Gateway, GatewayClass, GatewayConfig, ListenerSet,
    Namespace, Node, ObjectKey, Placement, Pod, ReferenceGrant, Route, RouteKind, Secret, Service, Str,
};
use crate::sorted::Sorted;
use std::sync::Arc;

/// Objects of one kind by `namespace/name`.
pub type Objects<T> = Sorted<ObjectKey, Arc<T>>;

/// The watched world. Costs nothing to clone; an edit copies a few entries, and is found again at the cost of what two
/// Snapshots do not share.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs)]
pub struct Snapshot {
    pub classes: Sorted<Str, Arc<GatewayClass>>,
    pub gateways: Objects<Gateway>,
    pub listener_sets: Objects<ListenerSet>,
    pub routes: Sorted<(RouteKind, ObjectKey), Arc<Route>>,
    pub grants: Objects<ReferenceGrant>,
    pub tls_policies: Objects<BackendTlsPolicy>,
    pub services: Objects<Service>,
    pub endpoint_slices: Objects<EndpointSlice>,
    pub namespaces: Sorted<Str, Arc<Namespace>>,
    pub pods: Objects<Pod>,
    pub secrets: Objects<Secret>,
    pub config_maps: Objects<ConfigMap>,
    /// `WeftGatewayConfig` of `weft.dev`.
    pub gateway_configs: Objects<GatewayConfig>,
    pub nodes: Sorted<Str, Arc<Node>>,
    /// What the provider doubts of what the endpoints' conditions say.
    pub doubt: Doubt,
    /// Where Gateways are served, by the Gateway's key: derived by the provider from what the controller wrote.
    pub placements: Objects<Placement>,
}
