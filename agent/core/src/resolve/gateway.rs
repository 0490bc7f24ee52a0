//! A Gateway with its ListenerSets.

use super::{
    Problem, Reader, ResolvedGateway, ResolvedSet, allowed,
    certificates::certificate,
    class::{resolve_class, resolve_parameters},
    conflicts::{mark_conflicts, mark_overlaps},
    grants::Referrer,
    listeners::resolve_listener,
    reason,
};
use crate::model::{AddressType, Gateway, GatewayAddress, Kind, ObjectKey, Placement, PlacementAddress};
use std::{net::IpAddr, sync::Arc};

/// Resolves a Gateway; `None` when it is not there or its class is not ours.
pub(crate) fn resolve_gateway(reader: &Reader<'_>, key: &ObjectKey) -> Option<ResolvedGateway> {
    let gateway = reader.gateway(key)?;
    let (_, class) = resolve_class(reader, &gateway.class)?;
    let place = place(reader, gateway);
    let parameters = resolve_parameters(reader, gateway, class);
    let accepted = parameters
        .as_ref()
        .map_err(Clone::clone)
        .and_then(|_| place.as_ref().map(|_| ()).map_err(Clone::clone));
    let owner = Referrer { kind: Kind::Gateway, namespace: key.namespace.clone() };
    let client = gateway
        .backend_client_certificate
        .as_ref()
        .map(|r| certificate(reader, &owner, r, reason::INVALID_CLIENT_CERTIFICATE_REF));
    let (client_certificate, refs) = match client {
        None => (None, Ok(())),
        Some(Ok(found)) => (Some(found.value), found.stale.map_or(Ok(()), Err)),
        Some(Err(problem)) => (None, Err(problem)),
    };
    let sets: Vec<_> = reader
        .listener_sets(key)
        .into_iter()
        .map(|set| ResolvedSet {
            set: set.clone(),
            admitted: admit(reader, gateway, accepted.is_ok(), &set.meta.key),
        })
        .collect();
    let mut listeners: Vec<_> =
        gateway.listeners.iter().map(|l| resolve_listener(reader, gateway, None, l)).collect();
    for set in sets.iter().filter(|s| s.admitted.is_ok()) {
        let own = set.set.listeners.iter();
        listeners.extend(own.map(|l| resolve_listener(reader, gateway, Some(&set.set.meta.key), l)));
    }
    mark_conflicts(&mut listeners);
    mark_overlaps(&mut listeners);
    Some(ResolvedGateway {
        gateway: Arc::clone(gateway),
        place: place.unwrap_or_default(),
        parameters: parameters.unwrap_or_default(),
        accepted,
        refs,
        client_certificate,
        insecure_frontend: insecure_frontend(gateway),
        listeners,
        sets,
    })
}

fn insecure_frontend(gateway: &Gateway) -> bool {
    gateway.frontend_tls.as_ref().is_some_and(|f| {
        let per_port = f.per_port.iter().filter_map(|(_, v)| v.as_ref());
        f.default.iter().chain(per_port).any(|v| v.insecure_fallback)
    })
}

/// Admission of a ListenerSet by `spec.allowedListeners` (GEP-1713).
fn admit(
    reader: &Reader<'_>,
    gateway: &Gateway,
    gateway_accepted: bool,
    set: &ObjectKey,
) -> Result<(), Problem> {
    let home = &gateway.meta.key.namespace;
    allowed::from_namespace(reader, &gateway.allowed_listeners, home, &set.namespace).map_err(|why| {
        let gateway = &gateway.meta.key;
        Problem::new(
            reason::NOT_ALLOWED,
            format!("Gateway {gateway} does not let this ListenerSet in (spec.allowedListeners): {why}"),
        )
    })?;
    if gateway_accepted {
        return Ok(());
    }
    let gateway = &gateway.meta.key;
    Err(Problem::new(reason::PARENT_NOT_ACCEPTED, format!("Gateway {gateway} is not accepted")))
}

/// Where the Gateway is to be reached: as the controller assigned it, or without one by the address map.
fn place(reader: &Reader<'_>, gateway: &Gateway) -> Result<Placement, Problem> {
    for address in &gateway.addresses {
        wanted(address)?;
    }
    if reader.settings.placed {
        return Ok(reader.placement(&gateway.meta.key).map(|p| Placement::clone(p)).unwrap_or_default());
    }
    let bind = addresses(reader, gateway)?;
    let addresses = bind.iter().copied().map(PlacementAddress::Ip).collect();
    Ok(Placement { addresses, bind, ..Placement::default() })
}

/// What the Gateway binds: `spec.addresses`, else what it was given.
fn addresses(reader: &Reader<'_>, gateway: &Gateway) -> Result<Vec<IpAddr>, Problem> {
    let settings = reader.settings;
    let given = settings.gateway_addresses.get(&gateway.meta.key).unwrap_or(&settings.default_addresses);
    let mut out = Vec::new();
    for address in &gateway.addresses {
        match wanted(address)? {
            Some(ip) => out.push(ip),
            // "An address of this type, whichever": GatewayAddressEmpty.
            None => out.extend(given),
        }
    }
    if gateway.addresses.is_empty() {
        out.extend(given);
    }
    out.sort();
    out.dedup();
    Ok(out)
}

fn wanted(address: &GatewayAddress) -> Result<Option<IpAddr>, Problem> {
    let unsupported = |why: String| Err(Problem::new(reason::UNSUPPORTED_ADDRESS, why));
    let value = address.value.as_deref().filter(|v| !v.is_empty());
    match (&address.kind, value) {
        (AddressType::IpAddress, None) => Ok(None),
        (AddressType::IpAddress, Some(v)) => match v.parse() {
            Ok(ip) => Ok(Some(ip)),
            Err(_) => unsupported(format!("spec.addresses: \"{v}\" is not an IP address")),
        },
        (AddressType::Hostname, _) => {
            unsupported("spec.addresses: type Hostname is not supported; use IPAddress".to_owned())
        }
        (AddressType::Other(kind), _) => {
            unsupported(format!("spec.addresses: type {kind} is not supported; use IPAddress"))
        }
    }
}
