//! GatewayClass, Gateway, ListenerSet.

use super::{Cx, key_in, meta};
use crate::{api, path};
use weft_core::model::{
    AddressType, FromNamespaces, FrontendTls, FrontendValidation, Gateway, GatewayAddress, GatewayClass,
    GroupKind, Hostname, Infrastructure, Kind, Listener, ListenerSet, ListenerTls, Meta, ObjectReference,
    ParametersRef, Protocol, Requirement, Selector, SelectorOp, Str, TlsMode,
};

pub(super) fn class(cx: &mut Cx<'_>) -> Option<GatewayClass> {
    let meta = meta::of_gateway_kind(Kind::GatewayClass, cx)?;
    let spec: api::GatewayClassSpec = cx.spec()?;
    Some(GatewayClass {
        meta,
        controller: spec.controller_name.into(),
        parameters_ref: spec.parameters_ref.map(parameters),
        description: spec.description.map(Str::from),
    })
}

pub(super) fn gateway(cx: &mut Cx<'_>) -> Option<Gateway> {
    let meta = meta::of_gateway_kind(Kind::Gateway, cx)?;
    let spec: api::GatewaySpec = cx.spec()?;
    let (backend, frontend) = spec.tls.map_or((None, None), |t| (t.backend, t.frontend));
    Some(Gateway {
        class: spec.gateway_class_name.into(),
        listeners: listeners(spec.listeners, cx)?,
        addresses: spec.addresses.into_iter().map(address).collect(),
        infrastructure: spec.infrastructure.map(infrastructure),
        // GEP-1713: ListenerSets attach only where the Gateway says so.
        allowed_listeners: spec
            .allowed_listeners
            .and_then(|a| a.namespaces)
            .map_or(FromNamespaces::None, |n| from_namespaces(n, "spec.allowedListeners.namespaces", cx)),
        backend_client_certificate: backend.and_then(|b| b.client_certificate_ref).map(reference),
        frontend_tls: frontend.map(frontend_tls),
        default_scope: spec.default_scope.map(Str::from),
        meta,
    })
}

pub(super) fn listener_set(cx: &mut Cx<'_>) -> Option<ListenerSet> {
    let meta: Meta = meta::of_gateway_kind(Kind::ListenerSet, cx)?;
    let spec: api::ListenerSetSpec = cx.spec()?;
    let parent = spec.parent_ref;
    Some(ListenerSet {
        parent: key_in(parent.namespace.as_deref(), &parent.name, &meta.key),
        parent_kind: group_kind(parent.group, parent.kind),
        listeners: listeners(spec.listeners, cx)?,
        meta,
    })
}

fn listeners(listeners: Vec<api::Listener>, cx: &mut Cx<'_>) -> Option<Vec<Listener>> {
    let one = |(i, l)| listener(l, &path::index("spec.listeners", i), cx);
    listeners.into_iter().enumerate().map(one).collect()
}

fn listener(l: api::Listener, at: &str, cx: &mut Cx<'_>) -> Option<Listener> {
    // An empty hostname counts as none (`Listener.hostname`: "When unspecified or empty").
    let written = l.hostname.filter(|h| !h.is_empty());
    let hostname = match written {
        Some(h) => Some(cx.accept(&path::key(at, "hostname"), Hostname::parse(&h))?),
        None => None,
    };
    let (namespaces, kinds) = l.allowed_routes.map_or((None, Vec::new()), |a| (a.namespaces, a.kinds));
    Some(Listener {
        name: l.name.into(),
        hostname,
        port: l.port,
        protocol: protocol(&l.protocol),
        tls: l.tls.map(listener_tls),
        allowed_namespaces: namespaces.map_or(FromNamespaces::Same, |n| {
            from_namespaces(n, &format!("{at}.allowedRoutes.namespaces"), cx)
        }),
        allowed_kinds: kinds.into_iter().map(|k| group_kind(k.group, k.kind)).collect(),
    })
}

fn protocol(text: &str) -> Protocol {
    match text {
        "HTTP" => Protocol::Http,
        "HTTPS" => Protocol::Https,
        "TLS" => Protocol::Tls,
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        other => Protocol::Other(other.into()),
    }
}

fn listener_tls(tls: api::ListenerTls) -> ListenerTls {
    ListenerTls {
        mode: if tls.mode == "Passthrough" { TlsMode::Passthrough } else { TlsMode::Terminate },
        certificate_refs: tls.certificate_refs.into_iter().map(reference).collect(),
        options: meta::strings(tls.options),
    }
}

fn from_namespaces(n: api::Namespaces, at: &str, cx: &mut Cx<'_>) -> FromNamespaces {
    match n.from.as_deref() {
        Some("All") => FromNamespaces::All,
        Some("None") => FromNamespaces::None,
        Some("Selector") => match n.selector {
            Some(selector) => self::selector(selector, &path::key(at, "selector"), cx)
                .map_or(FromNamespaces::None, FromNamespaces::Selector),
            None => {
                // The CRD lets it pass; the spec requires it. Nothing is let in rather than everything.
                let remedy = "add \"selector: {matchLabels: {…}}\"; until then no namespace is let in";
                cx.report.unserved(at, "\"from: Selector\" needs a selector", remedy);
                FromNamespaces::None
            }
        },
        _ => FromNamespaces::Same,
    }
}

/// A selector, or `None` when it is broken: then nothing may match.
fn selector(s: api::LabelSelector, at: &str, cx: &mut Cx<'_>) -> Option<Selector> {
    let mut expressions = Vec::new();
    for (i, e) in s.match_expressions.into_iter().enumerate() {
        let (operator, wants_values) = match e.operator.as_str() {
            "In" => (SelectorOp::In, true),
            "NotIn" => (SelectorOp::NotIn, true),
            "Exists" => (SelectorOp::Exists, false),
            "DoesNotExist" => (SelectorOp::DoesNotExist, false),
            other => {
                let at = format!("{at}.matchExpressions[{i}].operator");
                let remedy = "write In, NotIn, Exists or DoesNotExist; until then no namespace is let in";
                cx.report.unserved(&at, format!("\"{other}\" is no operator"), remedy);
                return None;
            }
        };
        if e.values.is_empty() == wants_values {
            let at = format!("{at}.matchExpressions[{i}].values");
            let reason =
                if wants_values { "is required for In and NotIn" } else { "has no place beside Exists" };
            cx.report.unserved(&at, reason, "until then no namespace is let in");
            return None;
        }
        let values = e.values.into_iter().map(Str::from).collect();
        expressions.push(Requirement { key: e.key.into(), operator, values });
    }
    Some(Selector { match_labels: meta::strings(s.match_labels), match_expressions: expressions })
}

fn address(a: api::Address) -> GatewayAddress {
    let kind = match a.kind.as_str() {
        "IPAddress" => AddressType::IpAddress,
        "Hostname" => AddressType::Hostname,
        other => AddressType::Other(other.into()),
    };
    GatewayAddress { kind, value: a.value.filter(|v| !v.is_empty()).map(Str::from) }
}

fn infrastructure(i: api::Infrastructure) -> Infrastructure {
    Infrastructure {
        labels: meta::strings(i.labels),
        annotations: meta::strings(i.annotations),
        parameters_ref: i.parameters_ref.map(parameters),
    }
}

fn frontend_tls(f: api::FrontendTls) -> FrontendTls {
    FrontendTls {
        default: f.default.validation.map(validation),
        per_port: f.per_port.into_iter().map(|p| (p.port, p.tls.validation.map(validation))).collect(),
    }
}

fn validation(v: api::TlsValidation) -> FrontendValidation {
    FrontendValidation {
        ca_refs: v.ca_certificate_refs.into_iter().map(reference).collect(),
        insecure_fallback: v.mode == "AllowInsecureFallback",
    }
}

fn parameters(r: api::Reference) -> ParametersRef {
    let r = reference(r);
    ParametersRef { kind: r.kind, name: r.name, namespace: r.namespace }
}

pub(super) fn reference(r: api::Reference) -> ObjectReference {
    ObjectReference {
        kind: group_kind(r.group, r.kind),
        name: r.name.into(),
        namespace: r.namespace.map(Str::from),
    }
}

pub(super) fn group_kind(group: String, kind: String) -> GroupKind {
    GroupKind { group: group.into(), kind: kind.into() }
}
