//! The maps of a Snapshot, by kind.

use crate::convert::Object;
use std::sync::Arc;
use weft_core::{
    model::{Kind, ObjectKey, Objects, RouteKind, Snapshot, Str},
    sorted::Sorted,
};

/// True when it was not there, or is different.
pub(super) fn replace<K: Ord + Clone, V: PartialEq>(
    map: &mut Sorted<K, Arc<V>>,
    key: K,
    value: Arc<V>,
) -> bool {
    if map.get(&key).is_some_and(|old| **old == *value) {
        return false;
    }
    map.insert(key, value);
    true
}

pub(super) fn insert(s: &mut Snapshot, object: Object) -> bool {
    let key = object.meta().key.clone();
    match object {
        Object::GatewayClass(o) => replace(&mut s.classes, key.name, o),
        Object::Gateway(o) => replace(&mut s.gateways, key, o),
        Object::ListenerSet(o) => replace(&mut s.listener_sets, key, o),
        Object::Route(o) => replace(&mut s.routes, (o.kind, key), o),
        Object::ReferenceGrant(o) => replace(&mut s.grants, key, o),
        Object::BackendTlsPolicy(o) => replace(&mut s.tls_policies, key, o),
        Object::Service(o) => replace(&mut s.services, key, o),
        Object::EndpointSlice(o) => replace(&mut s.endpoint_slices, key, o),
        Object::Namespace(o) => replace(&mut s.namespaces, key.name, o),
        Object::Pod(o) => replace(&mut s.pods, key, o),
        Object::Secret(o) => replace(&mut s.secrets, key, o),
        Object::ConfigMap(o) => replace(&mut s.config_maps, key, o),
    }
}

pub(super) fn remove(s: &mut Snapshot, kind: Kind, key: &ObjectKey) {
    match kind {
        Kind::GatewayClass => drop(s.classes.remove(&key.name)),
        Kind::Gateway => drop(s.gateways.remove(key)),
        Kind::ListenerSet => drop(s.listener_sets.remove(key)),
        Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute | Kind::UdpRoute => {
            if let Some(route) = route_kind(kind) {
                s.routes.remove(&(route, key.clone()));
            }
        }
        Kind::ReferenceGrant => drop(s.grants.remove(key)),
        Kind::BackendTlsPolicy => drop(s.tls_policies.remove(key)),
        Kind::Service => drop(s.services.remove(key)),
        Kind::EndpointSlice => drop(s.endpoint_slices.remove(key)),
        Kind::Namespace => drop(s.namespaces.remove(&key.name)),
        Kind::Pod => drop(s.pods.remove(key)),
        Kind::Secret => drop(s.secrets.remove(key)),
        Kind::ConfigMap => drop(s.config_maps.remove(key)),
    }
}

pub(super) fn has(s: &Snapshot, kind: Kind, key: &ObjectKey) -> bool {
    match kind {
        Kind::GatewayClass => s.classes.contains_key(&key.name),
        Kind::Gateway => s.gateways.contains_key(key),
        Kind::ListenerSet => s.listener_sets.contains_key(key),
        Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute | Kind::UdpRoute => {
            route_kind(kind).is_some_and(|route| s.routes.contains_key(&(route, key.clone())))
        }
        Kind::ReferenceGrant => s.grants.contains_key(key),
        Kind::BackendTlsPolicy => s.tls_policies.contains_key(key),
        Kind::Service => s.services.contains_key(key),
        Kind::EndpointSlice => s.endpoint_slices.contains_key(key),
        Kind::Namespace => s.namespaces.contains_key(&key.name),
        Kind::Pod => s.pods.contains_key(key),
        Kind::Secret => s.secrets.contains_key(key),
        Kind::ConfigMap => s.config_maps.contains_key(key),
    }
}

pub(super) fn keys(s: &Snapshot, kind: Kind) -> Vec<ObjectKey> {
    fn of<T>(map: &Objects<T>) -> Vec<ObjectKey> {
        map.keys().cloned().collect()
    }
    let named = |name: &Str| ObjectKey::new("", name.clone());
    match kind {
        Kind::GatewayClass => s.classes.keys().map(named).collect(),
        Kind::Gateway => of(&s.gateways),
        Kind::ListenerSet => of(&s.listener_sets),
        Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute | Kind::UdpRoute => {
            let ours = s.routes.keys().filter(|(route, _)| route.kind() == kind);
            ours.map(|(_, key)| key.clone()).collect()
        }
        Kind::ReferenceGrant => of(&s.grants),
        Kind::BackendTlsPolicy => of(&s.tls_policies),
        Kind::Service => of(&s.services),
        Kind::EndpointSlice => of(&s.endpoint_slices),
        Kind::Namespace => s.namespaces.keys().map(named).collect(),
        Kind::Pod => of(&s.pods),
        Kind::Secret => of(&s.secrets),
        Kind::ConfigMap => of(&s.config_maps),
    }
}

const fn route_kind(kind: Kind) -> Option<RouteKind> {
    Some(match kind {
        Kind::HttpRoute => RouteKind::Http,
        Kind::GrpcRoute => RouteKind::Grpc,
        Kind::TlsRoute => RouteKind::Tls,
        Kind::TcpRoute => RouteKind::Tcp,
        Kind::UdpRoute => RouteKind::Udp,
        _ => return None,
    })
}
