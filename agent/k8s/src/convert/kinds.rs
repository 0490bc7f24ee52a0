//! Which documents are ours, whose the others are, and what to say about them.

use crate::{path::closest, yaml::Marks};
use serde_json::Value;
use weft_core::model::{GATEWAY_GROUP, Kind, ObjectKey};

/// What a document is.
pub(super) enum Class {
    Ours(Kind),
    /// Somebody else's, with a helpful word.
    Foreign(&'static str),
    Wrong {
        path: &'static str,
        reason: String,
        remedy: String,
    },
}

const KINDS: [Kind; 16] = [
    Kind::GatewayClass,
    Kind::Gateway,
    Kind::ListenerSet,
    Kind::HttpRoute,
    Kind::GrpcRoute,
    Kind::TlsRoute,
    Kind::TcpRoute,
    Kind::UdpRoute,
    Kind::ReferenceGrant,
    Kind::BackendTlsPolicy,
    Kind::Service,
    Kind::EndpointSlice,
    Kind::Namespace,
    Kind::Pod,
    Kind::Secret,
    Kind::ConfigMap,
];

/// Versions that v1.6.1 (or the core API) serves, the current one first.
pub(crate) const fn versions(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::GatewayClass | Kind::Gateway | Kind::HttpRoute | Kind::ReferenceGrant => &["v1", "v1beta1"],
        Kind::BackendTlsPolicy => &["v1", "v1alpha3"],
        Kind::TcpRoute | Kind::UdpRoute => &["v1", "v1alpha2"],
        Kind::TlsRoute => &["v1", "v1alpha3", "v1alpha2"],
        _ => &["v1"],
    }
}

const fn cluster_scoped(kind: Kind) -> bool {
    matches!(kind, Kind::GatewayClass | Kind::Namespace)
}

/// The warning for a version that is served but not current.
pub(super) fn old_version(kind: Kind, value: &Value) -> Option<String> {
    let version = field(value, "apiVersion").rsplit('/').next().unwrap_or("");
    (version != versions(kind)[0])
        .then(|| format!("{version} is an old version; {kind} is {} now", versions(kind)[0]))
}

pub(super) fn classify(value: &Value) -> Class {
    let wrong = |path, reason: String, remedy: String| Class::Wrong { path, reason, remedy };
    if !value.is_object() {
        let reason = format!("expected a Kubernetes object, found {}", crate::schema::describe(value));
        return wrong("", reason, "move files of other tools out of this directory".to_owned());
    }
    let (api, kind) = (field(value, "apiVersion"), field(value, "kind"));
    if api.is_empty() || kind.is_empty() {
        let missing = if kind.is_empty() { "kind" } else { "apiVersion" };
        return wrong(missing, "is required: this is no Kubernetes object".to_owned(), missing_field(kind));
    }
    let (group, version) = api.rsplit_once('/').unwrap_or(("", api));
    match KINDS.into_iter().find(|k| k.as_str() == kind) {
        Some(ours) if ours.group() == group && versions(ours).contains(&version) => Class::Ours(ours),
        Some(ours) if ours.group() == group || maybe_meant(group) => {
            let current = api_version(ours);
            wrong(
                "apiVersion",
                format!("\"{api}\" has no {kind}"),
                format!("write \"apiVersion: {current}\""),
            )
        }
        Some(_) => Class::Foreign(foreign(group, kind)),
        None if maybe_meant(group) => unknown_kind(group, kind),
        None => Class::Foreign(foreign(group, kind)),
    }
}

/// Groups in which a kind that is not there is a mistake rather than somebody else's.
fn maybe_meant(group: &str) -> bool {
    matches!(group, "" | "core" | "networking.k8s.io" | "discovery.k8s.io") || group == GATEWAY_GROUP
}

fn unknown_kind(group: &str, kind: &str) -> Class {
    let help = foreign(group, kind);
    if help != UNKNOWN_HELP {
        return Class::Foreign(help);
    }
    match closest(kind, KINDS.into_iter().filter(|k| k.group() == group).map(Kind::as_str)) {
        Some(meant) if kind.len().abs_diff(meant.len()) <= 3 => Class::Wrong {
            path: "kind",
            reason: format!("\"{kind}\" is no kind"),
            remedy: format!("did you mean \"{meant}\"?"),
        },
        _ => Class::Foreign(help),
    }
}

fn missing_field(kind: &str) -> String {
    match KINDS.into_iter().find(|k| k.as_str() == kind) {
        Some(kind) => format!("write \"apiVersion: {}\"", api_version(kind)),
        None => "move files of other tools out of this directory".to_owned(),
    }
}

fn api_version(kind: Kind) -> String {
    let version = versions(kind)[0];
    if kind.group().is_empty() { version.to_owned() } else { format!("{}/{version}", kind.group()) }
}

const UNKNOWN_HELP: &str = "";

/// A helpful word about a kind that is not ours.
fn foreign(group: &str, kind: &str) -> &'static str {
    match (group, kind) {
        (_, "Ingress" | "IngressClass") => "write a Gateway and an HTTPRoute instead",
        (_, "Certificate" | "Issuer" | "ClusterIssuer") => {
            "cert-manager does not run here: add the kubernetes.io/tls Secret that it would make"
        }
        (_, "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "Job" | "CronJob") => {
            "no pods are started here: describe them as Pod (status.podIPs) or EndpointSlice objects"
        }
        (_, "Endpoints") => "write an EndpointSlice (discovery.k8s.io/v1) instead",
        (_, "VirtualService" | "DestinationRule" | "ServiceEntry" | "Sidecar") => {
            "this is Istio's: write an HTTPRoute with a Service as parent instead"
        }
        ("networking.istio.io", "Gateway") => {
            "this is Istio's Gateway: write one of gateway.networking.k8s.io/v1 instead"
        }
        (_, "ServiceProfile" | "TrafficSplit" | "HTTPRouteGroup") => {
            "write an HTTPRoute with weights instead"
        }
        (_, "PeerAuthentication") => "set the label weft.dev/mtls=strict on the namespace or pod instead",
        (_, "AuthorizationPolicy" | "NetworkPolicy" | "CiliumNetworkPolicy") => {
            "Weft enforces no such policy: nothing is denied by it here"
        }
        (_, "XBackendTrafficPolicy" | "XBackend" | "XMesh" | "XListenerSet") => {
            "this experimental kind has no effect yet"
        }
        ("weft.dev", _) => "Weft's own kinds are AgentConfig and WeftGatewayConfig (weft.dev/v1alpha1)",
        (_, "Kustomization") => "render it first: \"kustomize build\"",
        (_, "HelmRelease" | "HelmChart" | "Application") => {
            "render its manifests into this directory instead"
        }
        _ => UNKNOWN_HELP,
    }
}

pub(super) fn label(value: &Value) -> String {
    let kind = field(value, "kind");
    let meta = value.get("metadata").unwrap_or(&Value::Null);
    match (field(meta, "namespace"), field(meta, "name")) {
        _ if kind.is_empty() => String::new(),
        (_, "") => kind.to_owned(),
        ("", name) => format!("{kind} {name}"),
        (namespace, name) => format!("{kind} {namespace}/{name}"),
    }
}

/// Namespace (`default` when left out) and name, when there is one.
pub(super) fn key(kind: Kind, value: &Value) -> Option<ObjectKey> {
    let meta = value.get("metadata")?;
    let name = Some(field(meta, "name")).filter(|n| !n.is_empty())?;
    let namespace = match field(meta, "namespace") {
        _ if cluster_scoped(kind) => "",
        "" => "default",
        namespace => namespace,
    };
    Some(ObjectKey::new(namespace, name))
}

fn field<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or("")
}

/// The objects of a `List`, `HTTPRouteList`…, or the object itself; `kind` and `apiVersion` are filled in from the list.
/// CustomResourceDefinitions come along in releases' bundles: they are for the API server and left out without a word.
#[must_use]
pub fn unroll(value: Value, marks: Marks) -> Vec<(Value, Marks)> {
    let (api, kind) = (field(&value, "apiVersion").to_owned(), field(&value, "kind").to_owned());
    if kind == "CustomResourceDefinition" {
        return Vec::new();
    }
    let Some(item_kind) = kind.strip_suffix("List").filter(|_| value.get("items").is_some()) else {
        return vec![(value, marks)];
    };
    let Value::Object(mut map) = value else { return Vec::new() };
    let Some(Value::Array(items)) = map.remove("items") else { return Vec::new() };
    let marks_of = |i| marks.entry("items").and_then(|m| m.item(i)).unwrap_or(&marks).clone();
    let fill = |(i, mut item): (usize, Value)| {
        if let (Value::Object(map), false) = (&mut item, item_kind.is_empty()) {
            map.entry("kind").or_insert_with(|| item_kind.into());
            map.entry("apiVersion").or_insert_with(|| api.clone().into());
        }
        (item, marks_of(i))
    };
    items.into_iter().enumerate().map(fill).collect()
}
