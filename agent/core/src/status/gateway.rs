//! Gateway, ListenerSet and their listeners.

use super::{Condition, ListenerStatus, ObjectStatus, observed};
use crate::{
    engine::Feedback,
    model::{GroupKind, ObjectKey, PlacementAddress, Str},
    resolve::{ListenerId, Problem, ResolvedGateway, ResolvedListener, ResolvedSet, reason, transport},
};
use std::{collections::BTreeSet, net::IpAddr};

/// The status of a Gateway. `attached` counts the routes of a listener.
pub(crate) fn gateway_status(
    gateway: &ResolvedGateway,
    feedback: &Feedback,
    attached: impl Fn(&ListenerId) -> i32,
) -> ObjectStatus {
    let own: Vec<_> = gateway.listeners.iter().filter(|l| l.attach.id.set.is_none()).collect();
    let generation = gateway.gateway.meta.generation;
    let (accepted, programmed) = (accepted(gateway, &own), programmed(gateway, feedback));
    let mut conditions = vec![accepted, refs(gateway, &own), programmed];
    if gateway.insecure_frontend {
        conditions.push(Condition::yes(
            "InsecureFrontendValidationMode",
            reason::CONFIGURATION_CHANGED,
            "tls.frontend has mode AllowInsecureFallback: clients without a valid certificate are let in.",
        ));
    }
    let usable = usable(gateway, feedback);
    ObjectStatus::Gateway {
        conditions: observed(generation, conditions),
        addresses: match gateway.accepted {
            Ok(()) => usable.into_iter().map(shown).collect(),
            Err(_) => Vec::new(),
        },
        listeners: own.iter().map(|l| listener(gateway, l, generation, feedback, &attached)).collect(),
        attached_listener_sets: {
            let counted =
                gateway.sets.iter().filter(|s| set_listeners(gateway, s).any(|l| valid_in_set(l).is_ok()));
            i32::try_from(counted.count()).unwrap_or(i32::MAX)
        },
    }
}

/// The status of a ListenerSet of this Gateway.
pub(crate) fn listener_set_status(
    gateway: &ResolvedGateway,
    set: &ResolvedSet,
    feedback: &Feedback,
    attached: impl Fn(&ListenerId) -> i32,
) -> ObjectStatus {
    let generation = set.set.meta.generation;
    let listeners: Vec<_> = set_listeners(gateway, set).collect();
    let conditions = match &set.admitted {
        Err(problem) => vec![Condition::no("Accepted", problem), Condition::no("Programmed", problem)],
        Ok(()) => {
            let accepted = listeners_accepted(&listeners, valid_in_set);
            let serving = listeners.iter().any(|l| l.serves() && unbound(gateway, l, feedback).is_none());
            let programmed = match (&accepted, feedback.pending.get(&gateway.gateway.meta.key)) {
                (Err(problem), _) => Condition::no("Programmed", problem),
                (Ok(_), Some(what)) => Condition::no("Programmed", &awaited(what)),
                (Ok(_), None) if serving => {
                    Condition::yes("Programmed", reason::PROGRAMMED, "Listeners serve.")
                }
                (Ok(_), None) => Condition::no("Programmed", &none_serves()),
            };
            vec![accepted_condition(&accepted), programmed]
        }
    };
    ObjectStatus::ListenerSet {
        conditions: observed(generation, conditions),
        listeners: listeners.iter().map(|l| listener(gateway, l, generation, feedback, &attached)).collect(),
    }
}

fn set_listeners<'a>(
    gateway: &'a ResolvedGateway,
    set: &'a ResolvedSet,
) -> impl Iterator<Item = &'a ResolvedListener> {
    gateway.listeners.iter().filter(|l| l.attach.id.set.as_ref() == Some(&set.set.meta.key))
}

/// A set's listener that cannot serve for want of a certificate counts as not valid (ListenerSetReferenceGrant); a
/// Gateway's own does not (GatewaySecretInvalidReferenceGrant and its siblings ask for nothing of the kind).
fn valid_in_set(listener: &ResolvedListener) -> Result<(), &Problem> {
    listener.accepted.as_ref().and(listener.servable.as_ref()).copied()
}

fn accepted(gateway: &ResolvedGateway, own: &[&ResolvedListener]) -> Condition {
    match &gateway.accepted {
        Err(problem) => Condition::no("Accepted", problem),
        Ok(()) => accepted_condition(&listeners_accepted(own, |l| l.accepted.as_ref().copied())),
    }
}

/// `True/Accepted`, or `True/ListenersNotValid` while at least one listener is valid, else `False`.
fn listeners_accepted(
    listeners: &[&ResolvedListener],
    valid: fn(&ResolvedListener) -> Result<(), &Problem>,
) -> Result<Option<String>, Problem> {
    let bad: Vec<_> = listeners
        .iter()
        .filter_map(|l| Some(format!("{}: {}", l.attach.id.name, valid(l).err()?.message)))
        .collect();
    if bad.is_empty() {
        return Ok(None);
    }
    let message = format!("Listeners that are not valid: {}.", bad.join("; "));
    if bad.len() == listeners.len() {
        return Err(Problem::new(reason::LISTENERS_NOT_VALID, message));
    }
    Ok(Some(message))
}

fn accepted_condition(accepted: &Result<Option<String>, Problem>) -> Condition {
    match accepted {
        Ok(None) => Condition::yes("Accepted", reason::ACCEPTED, "Every listener is valid."),
        Ok(Some(message)) => Condition::yes("Accepted", reason::LISTENERS_NOT_VALID, message.clone()),
        Err(problem) => Condition::no("Accepted", problem),
    }
}

fn refs(gateway: &ResolvedGateway, own: &[&ResolvedListener]) -> Condition {
    let unresolved: Vec<_> = own.iter().filter(|l| l.refs.is_err()).map(|l| &*l.attach.id.name).collect();
    let refs = gateway.refs.clone().and_then(|()| {
        if unresolved.is_empty() {
            return Ok(());
        }
        let message = format!("See ResolvedRefs of listeners {}.", unresolved.join(", "));
        Err(Problem::new(reason::LISTENERS_NOT_RESOLVED, message))
    });
    Condition::refs(&refs)
}

fn programmed(gateway: &ResolvedGateway, feedback: &Feedback) -> Condition {
    let key = &gateway.gateway.meta.key;
    let bad = |reason, message: String| Condition::no("Programmed", &Problem::new(reason, message));
    if let Err(problem) = &gateway.accepted {
        return bad(reason::INVALID, problem.message.clone());
    }
    if let Some((why, message)) = &gateway.place.problem {
        return bad(reason::placement(*why), message.to_string());
    }
    if gateway.place.addresses.is_empty() {
        return bad(reason::ADDRESS_NOT_ASSIGNED, "No address is assigned to this Gateway yet.".to_owned());
    }
    let unusable: Vec<_> = gateway
        .place
        .addresses
        .iter()
        .filter_map(ip_of)
        .filter_map(|ip| Some(format!("{ip}: {}", feedback.unusable.get(&(key.clone(), ip))?)))
        .collect();
    if !unusable.is_empty() {
        return bad(
            reason::ADDRESS_NOT_USABLE,
            format!("Addresses that cannot be used: {}.", unusable.join("; ")),
        );
    }
    let serving: Vec<_> = gateway.listeners.iter().filter(|l| l.serves()).collect();
    if serving.is_empty() && !gateway.listeners.is_empty() {
        return Condition::no("Programmed", &none_serves());
    }
    if let Some(what) = feedback.pending.get(key) {
        return Condition::no("Programmed", &awaited(what));
    }
    let unbound: BTreeSet<_> = serving.iter().filter_map(|l| unbound(gateway, l, feedback)).collect();
    let unbound_list = || unbound.iter().map(|s| &**s).collect::<Vec<_>>().join("; ");
    let all = !serving.is_empty() && serving.iter().all(|l| self::unbound(gateway, l, feedback).is_some());
    if all {
        return bad(reason::ADDRESS_NOT_USABLE, format!("No port can be bound: {}.", unbound_list()));
    }
    let message = if unbound.is_empty() {
        "The data plane serves this Gateway.".to_owned()
    } else {
        format!("Serving, but ports cannot be bound: {}.", unbound_list())
    };
    Condition::yes("Programmed", reason::PROGRAMMED, message)
}

/// Not every node serves it yet.
fn awaited(what: &str) -> Problem {
    Problem::new(reason::PENDING, format!("Waiting for the data plane: {what}."))
}

fn none_serves() -> Problem {
    Problem::new(reason::INVALID, "No listener can serve, see their conditions.")
}

fn usable<'a>(gateway: &'a ResolvedGateway, feedback: &Feedback) -> Vec<&'a PlacementAddress> {
    let key: &ObjectKey = &gateway.gateway.meta.key;
    let usable = |address: &&PlacementAddress| {
        ip_of(address).is_none_or(|ip| !feedback.unusable.contains_key(&(key.clone(), ip)))
    };
    gateway.place.addresses.iter().filter(usable).collect()
}

fn ip_of(address: &PlacementAddress) -> Option<IpAddr> {
    match address {
        PlacementAddress::Ip(ip) => Some(*ip),
        PlacementAddress::Hostname(_) => None,
    }
}

fn shown(address: &PlacementAddress) -> (&'static str, Str) {
    match address {
        PlacementAddress::Ip(ip) => ("IPAddress", ip.to_string().into()),
        PlacementAddress::Hostname(name) => ("Hostname", name.clone()),
    }
}

/// Why the port of a listener is not bound.
fn unbound(gateway: &ResolvedGateway, listener: &ResolvedListener, feedback: &Feedback) -> Option<Str> {
    let transport = transport(&listener.attach.protocol)?;
    let at = (gateway.gateway.meta.key.clone(), listener.attach.port, transport);
    feedback.unbound.get(&at).cloned()
}

fn listener(
    gateway: &ResolvedGateway,
    listener: &ResolvedListener,
    generation: i64,
    feedback: &Feedback,
    attached: &impl Fn(&ListenerId) -> i32,
) -> ListenerStatus {
    let accepted = match &listener.accepted {
        Ok(()) => {
            let foreign = listener.foreign_options.iter().map(|said| format!(" {said}"));
            let message = format!("The listener is valid.{}", foreign.collect::<String>());
            Condition::yes("Accepted", reason::ACCEPTED, message)
        }
        Err(problem) => Condition::no("Accepted", problem),
    };
    let conflicted = match &listener.conflict {
        Some(problem) => Condition::yes("Conflicted", problem.reason, problem.message.clone()),
        None => Condition {
            status: super::ConditionStatus::False,
            ..Condition::yes("Conflicted", reason::NO_CONFLICTS, "No listener conflicts with it.")
        },
    };
    let mut refs = Condition::refs(&listener.refs);
    if let (true, Some(tls)) = (listener.serves(), &listener.tls) {
        let told = tls.told(listener.attach.hostname.as_ref());
        if !told.is_empty() && !refs.message.ends_with('.') {
            refs.message.push('.');
        }
        refs.message.push_str(&told);
    }
    let mut conditions = vec![accepted, conflicted, refs, listener_programmed(gateway, listener, feedback)];
    if let Some(overlap) = &listener.overlaps {
        let message = format!("{overlap}; clients that reuse a connection are answered 421.");
        conditions.push(Condition::yes("OverlappingTLSConfig", reason::OVERLAPPING_HOSTNAMES, message));
    }
    ListenerStatus {
        name: listener.attach.id.name.clone(),
        supported_kinds: listener.attach.kinds.iter().map(|k| GroupKind::from(k.kind())).collect(),
        attached_routes: attached(&listener.attach.id),
        conditions: observed(generation, conditions),
    }
}

fn listener_programmed(
    gateway: &ResolvedGateway,
    listener: &ResolvedListener,
    feedback: &Feedback,
) -> Condition {
    let invalid = |why: &str| Condition::no("Programmed", &Problem::new(reason::INVALID, why));
    if let Some(conflict) = &listener.conflict {
        return Condition::no("Programmed", conflict);
    }
    if let Err(problem) = gateway.accepted.as_ref().and(listener.accepted.as_ref()) {
        return invalid(&problem.message);
    }
    if let Err(problem) = &listener.servable {
        return Condition::no("Programmed", problem);
    }
    let pending = |why: String| Condition::no("Programmed", &Problem::new(reason::PENDING, why));
    if let Some((_, message)) = &gateway.place.problem {
        return pending(format!("The Gateway has no usable address: {message}"));
    }
    if gateway.place.addresses.is_empty() {
        return pending("No address is assigned to the Gateway yet.".to_owned());
    }
    if let Some(what) = feedback.pending.get(&gateway.gateway.meta.key) {
        return Condition::no("Programmed", &awaited(what));
    }
    match unbound(gateway, listener, feedback) {
        Some(why) => invalid(&format!("The port cannot be bound: {why}.")),
        None => Condition::yes("Programmed", reason::PROGRAMMED, "The data plane serves this listener."),
    }
}
