//! Objects to decisions: who is attached to whom, what is permitted, what is wrong and why.
//!
//! Every function here reads the world through a [`Reader`], which notes what it was asked for; the engine repeats
//! exactly those resolutions whose reads have changed. Nothing here knows of tables or conditions: both are made of
//! the values below, so what is reported is what runs.

mod allowed;
mod app_protocol;
mod backends;
mod certificates;
mod class;
mod conflicts;
mod gateway;
mod grants;
mod hostnames;
mod listeners;
mod mesh;
mod parents;
mod reader;
pub(crate) mod reason;
mod rules;
mod settings;
mod tls_policy;

pub(crate) use self::{
    app_protocol::declared,
    class::resolve_class,
    conflicts::{label as listener_label, transport},
    gateway::resolve_gateway,
    grants::unused_grants,
    parents::resolve_route,
    reader::{Reader, RouteId, Source, Tracker, Unit, World, policies_of, policy_targets},
    tls_policy::resolve_policy,
};
pub use settings::Settings;

use crate::{
    config::{Backend, BackendTls, FailReason, TlsTermination},
    model::{
        BackendTlsPolicy, FromNamespaces, Gateway, GatewayParameters, GroupKind, Hostname, KeyPair,
        ListenerSet, ObjectKey, Placement, Protocol, Route, RouteKind, Str, TlsMode,
    },
};
use std::{collections::BTreeSet, sync::Arc};

/// Why something is not as its author wished: the reason of the condition and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl Problem {
    pub(crate) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    /// One problem of many: the first reason, every message.
    pub(crate) fn join(problems: Vec<Self>) -> Result<(), Self> {
        let mut problems = problems.into_iter();
        let Some(mut first) = problems.next() else { return Ok(()) };
        for other in problems {
            if !first.message.contains(&other.message) {
                first.message.push_str("; ");
                first.message.push_str(&other.message);
            }
        }
        Err(first)
    }
}

/// A Gateway of our classes, with the ListenerSets attached to it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ResolvedGateway {
    pub(crate) gateway: Arc<Gateway>,
    /// Class, parameters and addresses. Listeners are judged apart.
    pub(crate) accepted: Result<(), Problem>,
    /// `spec.tls.backend.clientCertificateRef`.
    pub(crate) refs: Result<(), Problem>,
    pub(crate) client_certificate: Option<Arc<KeyPair>>,
    /// Of its class and its own; the defaults unless it is accepted.
    pub(crate) parameters: Arc<GatewayParameters>,
    /// Where it is to be reached.
    pub(crate) place: Placement,
    /// `AllowInsecureFallback` is configured somewhere.
    pub(crate) insecure_frontend: bool,
    /// The Gateway's own listeners, then those of admitted ListenerSets, by precedence (GEP-1713).
    pub(crate) listeners: Vec<ResolvedListener>,
    /// Every ListenerSet that names this Gateway, by precedence.
    pub(crate) sets: Vec<ResolvedSet>,
}

/// A ListenerSet that names one of our Gateways.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ResolvedSet {
    pub(crate) set: Arc<ListenerSet>,
    /// Admission by `allowedListeners`, and the Gateway's own acceptance.
    pub(crate) admitted: Result<(), Problem>,
}

/// Names a listener within its Gateway.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ListenerId {
    /// The ListenerSet that it comes from.
    pub(crate) set: Option<ObjectKey>,
    pub(crate) name: Str,
}

/// A listener with everything that decides about its routes and whether it serves.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ResolvedListener {
    pub(crate) attach: Arc<AttachPoint>,
    pub(crate) mode: TlsMode,
    /// Conflicts with a listener of higher precedence, or of the same object.
    pub(crate) conflict: Option<Problem>,
    /// `Accepted=False` when this is an error.
    pub(crate) accepted: Result<(), Problem>,
    /// Certificates, CAs and route kinds.
    pub(crate) refs: Result<(), Problem>,
    /// Why it cannot serve although it is accepted.
    pub(crate) servable: Result<(), Problem>,
    /// Shares its port with an HTTPS listener of an overlapping hostname (GEP-3567).
    pub(crate) overlaps: Option<String>,
    /// For HTTPS, and TLS with `mode: Terminate`.
    pub(crate) tls: Option<Arc<TlsTermination>>,
    /// What is to be said of options that are other implementations'.
    pub(crate) foreign_options: Option<String>,
}

impl ResolvedListener {
    /// Whether the data plane serves it (given that its port can be bound).
    pub(crate) fn serves(&self) -> bool {
        self.accepted.is_ok() && self.servable.is_ok()
    }
}

/// The part of a listener that decides which routes attach: all that routes may read of it, so that a rotated
/// certificate re-resolves no route.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AttachPoint {
    pub(crate) id: ListenerId,
    /// Namespace of the Gateway or ListenerSet.
    pub(crate) namespace: Str,
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
    pub(crate) hostname: Option<Hostname>,
    pub(crate) allowed: FromNamespaces,
    /// Kinds served: those of the protocol that `allowedRoutes.kinds` lets in.
    pub(crate) kinds: Vec<RouteKind>,
    /// `allowedRoutes.kinds` as written.
    pub(crate) listed_kinds: Vec<GroupKind>,
    /// Why it is not accepted; routes attached only here are not either.
    pub(crate) rejected: Option<String>,
}

/// A place with a route table: a listener, or a Service port as seen by some clients.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Slot {
    Listener {
        gateway: ObjectKey,
        id: ListenerId,
    },
    Port {
        service: ObjectKey,
        port: u16,
        /// The clients' namespace of consumer routes; none for producer routes.
        consumer: Option<Str>,
    },
}

/// A route and its relation to every parent that is ours.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ResolvedRoute {
    pub(crate) route: Arc<Route>,
    /// Entries for our parents only, in the order of `spec.parentRefs`.
    pub(crate) parents: Vec<ResolvedParent>,
    /// Rules as Gateways serve them: ReferenceGrants needed. None without a Gateway parent.
    pub(crate) gateway_rules: Option<Arc<ResolvedRules>>,
    /// Rules as Services serve them: no grant needed (GEP-1294). None without a Service parent.
    pub(crate) mesh_rules: Option<Arc<ResolvedRules>>,
}

impl ResolvedRoute {
    /// The rules that a parent of this domain serves.
    pub(crate) fn rules(&self, domain: Domain) -> Option<&Arc<ResolvedRules>> {
        match domain {
            Domain::Gateway => self.gateway_rules.as_ref(),
            Domain::Mesh => self.mesh_rules.as_ref(),
        }
    }

    /// Makes rules fail closed, whatever they were.
    pub(crate) fn fail_rules(&mut self, which: impl Fn(usize) -> bool) {
        for rules in self.gateway_rules.iter_mut().chain(&mut self.mesh_rules) {
            for (index, rule) in Arc::make_mut(rules).rules.iter_mut().enumerate() {
                if which(index) {
                    rule.fail = Some(FailReason::InvalidRule);
                }
            }
        }
    }

    /// Says of rules why they are not served.
    pub(crate) fn drop_rules(&mut self, problems: &[(usize, Problem)]) {
        for rules in self.gateway_rules.iter_mut().chain(&mut self.mesh_rules) {
            Arc::make_mut(rules).dropped.extend_from_slice(problems);
        }
    }

    /// Every slot that this route is attached to.
    pub(crate) fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.parents.iter().flat_map(|p| p.attachments.iter().map(|a| &a.slot))
    }
}

/// North–south or east–west.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Domain {
    Gateway,
    Mesh,
}

/// One `parentRef` of ours.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ResolvedParent {
    /// Index in `spec.parentRefs`.
    pub(crate) index: usize,
    pub(crate) domain: Domain,
    /// The parent: Gateway, or Service.
    pub(crate) object: ObjectKey,
    pub(crate) accepted: Result<(), Problem>,
    /// Extra sentences for the `Accepted` message.
    pub(crate) notes: Vec<String>,
    /// Empty unless accepted, or not accepted only because it fails closed.
    pub(crate) attachments: Vec<Attachment>,
    /// The parent does not exist: nothing is said about references.
    pub(crate) missing: bool,
}

/// A route at a slot.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Attachment {
    pub(crate) slot: Slot,
    /// Route ∩ listener; a single `None` covers all.
    pub(crate) hostnames: Vec<Option<Hostname>>,
}

/// All rules of a route, for one domain.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ResolvedRules {
    pub(crate) rules: Vec<ResolvedRule>,
    pub(crate) refs: Vec<Problem>,
    /// Rules, or parts of them, that cannot be served; the index, and what and why.
    pub(crate) dropped: Vec<(usize, Problem)>,
    /// Extra sentences for the `Accepted` message.
    pub(crate) notes: Vec<String>,
    /// Services that backendRefs and mirrors resolve to.
    pub(crate) services: BTreeSet<ObjectKey>,
}

impl ResolvedRules {
    /// Whether no rule at all can be served: the route is then not accepted, and answers 500 where it would match.
    pub(crate) fn all_dropped(&self) -> bool {
        !self.rules.is_empty() && self.rules.iter().all(|r| r.fail.is_some())
    }
}

/// One rule with its references looked up.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ResolvedRule {
    /// The whole rule fails closed.
    pub(crate) fail: Option<FailReason>,
    /// In the order of the rule's `RequestMirror` filters; none where it cannot be resolved.
    pub(crate) mirrors: Vec<Option<Arc<Backend>>>,
    /// In the order of `backendRefs`.
    pub(crate) backends: Vec<ResolvedBackend>,
}

/// One backendRef with its references looked up.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ResolvedBackend {
    pub(crate) target: Result<Arc<Backend>, FailReason>,
    /// As [`ResolvedRule::mirrors`].
    pub(crate) mirrors: Vec<Option<Arc<Backend>>>,
}

/// A BackendTLSPolicy by itself; which one wins a Service port is decided where it is used.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ResolvedPolicy {
    pub(crate) policy: Arc<BackendTlsPolicy>,
    pub(crate) accepted: Result<(), Problem>,
    pub(crate) refs: Result<(), Problem>,
    /// None when not accepted: backends under this policy fail.
    pub(crate) tls: Option<Arc<BackendTls>>,
}
