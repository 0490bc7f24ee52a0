//! What the objects made for a Gateway are called, and what they say about themselves.
//!
//! Labels and annotations are how the controller tells the agents where a Gateway is served: both sides derive their
//! [`weft_core::model::Placement`]s from them, so there is no other wire for that.

use std::net::IpAddr;
use weft_core::{
    config::Transport,
    model::{Labels, ObjectKey, Str, gateway_object_name},
};

/// Field manager of everything that the controller writes, and the value of [`MANAGED_BY`].
pub const MANAGER: &str = "weft-controller";
/// Label of everything that the controller makes.
pub const MANAGED_BY: &str = "weft.dev/managed-by";
/// Label that names the Gateway (GEP-1762), shortened if it is longer than a label's value may be.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// Label by which a slice belongs to a Service.
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label that keeps other slice controllers away.
pub(super) const SLICE_MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";

/// Annotation: name of the Gateway in full.
pub(super) const GATEWAY: &str = "weft.dev/gateway";
/// Annotation: uid of the Gateway, so that one that is made anew under its old name takes its objects over.
pub(super) const GATEWAY_UID: &str = "weft.dev/gateway-uid";
/// Annotation: JSON list of the assigned addresses (AddressPool, HostPort).
pub const ADDRESSES: &str = "weft.dev/addresses";
/// Annotation: name of the node that holds the addresses (AddressPool).
pub(super) const ADDRESS_OWNER: &str = "weft.dev/address-owner";
/// Annotation: `LoadBalancer`, `AddressPool` or `HostPort`.
pub const ADDRESS_MODE: &str = "weft.dev/address-mode";
/// Annotation: JSON map of the labels that a serving node must have.
pub(super) const NODE_SELECTOR: &str = "weft.dev/node-selector";
/// Annotation: JSON list of nodes that must not serve it (HostPort: another Gateway holds the port there).
pub(super) const REFUSED_NODES: &str = "weft.dev/refused-nodes";
/// Annotation: `REASON: message` of what cannot be had.
pub(super) const PROBLEM: &str = "weft.dev/problem";
/// Annotation: hash of what was applied last, for the fields that the model does not show.
pub(super) const APPLIED: &str = "weft.dev/applied";

/// The Service and ServiceAccount of a Gateway.
#[must_use]
pub fn object_key(gateway: &ObjectKey) -> ObjectKey {
    ObjectKey { namespace: gateway.namespace.clone(), name: gateway_object_name(&gateway.name).into() }
}

/// What the names of a Gateway's EndpointSlices start with.
pub(super) fn slice_prefix(service: &ObjectKey) -> String {
    format!("{}-ipv", service.name)
}

/// The name of a Gateway's EndpointSlice: `web-weft-ipv4`, then `web-weft-ipv4-1` and so on.
pub(super) fn slice_name(service: &ObjectKey, v6: bool, number: u32) -> Str {
    let family = if v6 { 6 } else { 4 };
    match number {
        0 => format!("{}-ipv{family}", service.name).into(),
        n => format!("{}-ipv{family}-{n}", service.name).into(),
    }
}

/// Family and number of a slice, from its name.
pub(super) fn parse_slice_name(service: &ObjectKey, name: &str) -> Option<(bool, u32)> {
    let rest = name.strip_prefix(&slice_prefix(service))?;
    let (family, number) = rest.split_once('-').unwrap_or((rest, "0"));
    let v6 = match family {
        "4" => false,
        "6" => true,
        _ => return None,
    };
    Some((v6, number.parse().ok()?))
}

/// The name of a port, in the Service and in the slices: `p443-tcp`.
pub(super) fn port_name(port: u16, transport: Transport) -> Str {
    let transport = match transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    };
    format!("p{port}-{transport}").into()
}

/// The listener's port, from its name.
pub(super) fn parse_port_name(name: &str) -> Option<(u16, Transport)> {
    let (port, transport) = name.strip_prefix('p')?.split_once('-')?;
    let transport = match transport {
        "tcp" => Transport::Tcp,
        "udp" => Transport::Udp,
        _ => return None,
    };
    Some((port.parse().ok()?, transport))
}

/// Whether the controller made the object.
pub(crate) fn is_managed(labels: &Labels) -> bool {
    labels.get(MANAGED_BY).is_some_and(|v| &**v == MANAGER)
}

/// The addresses in an [`ADDRESSES`] annotation.
pub(super) fn parse_addresses(annotations: &Labels) -> Vec<IpAddr> {
    let texts: Vec<String> = json(annotations, ADDRESSES).unwrap_or_default();
    texts.iter().filter_map(|t| t.parse().ok()).collect()
}

/// An annotation in JSON; `None` also when it is broken, since nobody but us is to write it.
pub(super) fn json<T: serde::de::DeserializeOwned>(annotations: &Labels, name: &str) -> Option<T> {
    serde_json::from_str(annotations.get(name)?).ok()
}
