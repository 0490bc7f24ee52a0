//! The objects of one Gateway: as wanted, as they are, and as they are sent.

use super::names::{APPLIED, MANAGER, port_name};
use serde_json::{Map, Value, json};
use std::net::IpAddr;
use weft_core::{
    config::Transport,
    model::{
        EndpointSlice, GatewayParameters, Labels, ObjectKey, Service, ServiceType, SliceEndpoint, Str,
        TrafficPolicy, TransportProtocol, fnv1a,
    },
};

/// The kinds that are made for a Gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum ObjectKind {
    ServiceAccount,
    EndpointSlice,
    Service,
}

/// What every object of a Gateway has in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Common {
    pub(super) gateway: ObjectKey,
    pub(super) gateway_uid: Str,
    pub(super) labels: Labels,
    pub(super) annotations: Labels,
}

/// An object as it shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) key: ObjectKey,
    /// Labels and annotations, without [`APPLIED`].
    pub(super) labels: Labels,
    pub(super) annotations: Labels,
    pub(super) owner: (Str, Str),
    pub(super) body: Body,
}

/// What is particular to a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Body {
    Account,
    Service(WantedService),
    Slice { v6: bool, endpoints: Vec<SliceEndpoint>, ports: Vec<WantedPort> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WantedService {
    /// `Some` makes a Service of type LoadBalancer.
    pub(super) balancer: Option<GatewayParameters>,
    /// `spec.loadBalancerIP`: deprecated, and still the only field for it that implementations share.
    pub(super) address: Option<IpAddr>,
    pub(super) dual_stack: bool,
    pub(super) ports: Vec<WantedPort>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WantedPort {
    pub(super) port: u16,
    pub(super) transport: Transport,
    pub(super) target: u16,
}

impl WantedPort {
    fn name(&self) -> Str {
        port_name(self.port, self.transport)
    }

    const fn protocol(&self) -> (&'static str, TransportProtocol) {
        match self.transport {
            Transport::Tcp => ("TCP", TransportProtocol::Tcp),
            Transport::Udp => ("UDP", TransportProtocol::Udp),
        }
    }
}

impl Wanted {
    pub(super) fn new(common: &Common, key: ObjectKey, body: Body) -> Self {
        Self {
            key,
            labels: common.labels.clone(),
            annotations: common.annotations.clone(),
            owner: (common.gateway.name.clone(), common.gateway_uid.clone()),
            body,
        }
    }

    pub(super) const fn kind(&self) -> ObjectKind {
        match self.body {
            Body::Account => ObjectKind::ServiceAccount,
            Body::Service(_) => ObjectKind::Service,
            Body::Slice { .. } => ObjectKind::EndpointSlice,
        }
    }

    /// Covers what the model does not show of an object, and labels and annotations that are wanted no longer.
    pub(super) fn hash(&self) -> Str {
        let hidden = match &self.body {
            Body::Service(s) => format!("{:?} {:?} {} {:?}", s.balancer, s.address, s.dual_stack, s.ports),
            Body::Account | Body::Slice { .. } => String::new(),
        };
        let text = format!("{:?} {:?} {:?} {hidden}", self.labels, self.annotations, self.owner);
        format!("{:016x}", fnv1a(text.as_bytes())).into()
    }

    /// Whether a ServiceAccount with these annotations is as wanted; as far as the API server is asked about them.
    pub(super) fn applied(&self, annotations: &Labels) -> bool {
        annotations.get(APPLIED) == Some(&self.hash())
    }

    pub(super) fn matches_service(&self, is: &Service) -> bool {
        let Body::Service(wanted) = &self.body else { return false };
        let kind = if wanted.balancer.is_some() { ServiceType::LoadBalancer } else { ServiceType::ClusterIp };
        let port = |p: &WantedPort| {
            is.ports.iter().any(|q| q.port == p.port && q.protocol == p.protocol().1 && q.name == p.name())
        };
        is.kind == kind
            && is.ports.len() == wanted.ports.len()
            && wanted.ports.iter().all(port)
            && self.matches_meta(&is.meta.labels, &is.meta.annotations)
    }

    pub(super) fn matches_slice(&self, is: &EndpointSlice) -> bool {
        let Body::Slice { endpoints, ports, .. } = &self.body else { return false };
        let port = |p: &WantedPort| {
            let same = |q: &weft_core::model::SlicePort| {
                q.port == p.target && q.protocol == p.protocol().1 && q.name == p.name()
            };
            is.ports.iter().any(same)
        };
        is.endpoints == *endpoints
            && is.ports.len() == ports.len()
            && ports.iter().all(port)
            && self.matches_meta(&is.meta.labels, &is.meta.annotations)
    }

    fn matches_meta(&self, labels: &Labels, annotations: &Labels) -> bool {
        let within = |wanted: &Labels, is: &Labels| wanted.iter().all(|(k, v)| is.get(k) == Some(v));
        self.applied(annotations) && within(&self.labels, labels) && within(&self.annotations, annotations)
    }

    /// The object for a server-side apply. With `uid`, of that very object: applied to another, the API server refuses.
    pub(super) fn render(&self, uid: Option<&str>) -> Value {
        let mut annotations = text_map(&self.annotations);
        annotations.insert(APPLIED.to_owned(), Value::from(&*self.hash()));
        let (owner, owner_uid) = &self.owner;
        let mut metadata = json!({
            "name": &*self.key.name,
            "namespace": &*self.key.namespace,
            "labels": text_map(&self.labels),
            "annotations": annotations,
            "ownerReferences": [{
                "apiVersion": "gateway.networking.k8s.io/v1",
                "kind": "Gateway",
                "name": &**owner,
                "uid": &**owner_uid,
                "controller": true,
            }],
        });
        if let Some(uid) = uid {
            metadata["uid"] = uid.into();
        }
        let mut object = match &self.body {
            Body::Account => json!({
                "apiVersion": "v1",
                "kind": "ServiceAccount",
                // Nobody runs as it: it is a name to hand out an identity by.
                "automountServiceAccountToken": false,
            }),
            Body::Service(service) => {
                json!({"apiVersion": "v1", "kind": "Service", "spec": service_spec(service)})
            }
            Body::Slice { v6, endpoints, ports } => json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "addressType": if *v6 { "IPv6" } else { "IPv4" },
                "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
                "ports": ports
                    .iter()
                    .map(|p| json!({"name": &*p.name(), "port": p.target, "protocol": p.protocol().0}))
                    .collect::<Vec<_>>(),
            }),
        };
        object["metadata"] = metadata;
        object
    }
}

fn service_spec(service: &WantedService) -> Value {
    let port = |p: &WantedPort| json!({"name": &*p.name(), "port": p.port, "protocol": p.protocol().0, "targetPort": p.target});
    let mut spec = json!({
        "type": "ClusterIP",
        "ports": service.ports.iter().map(port).collect::<Vec<_>>(),
    });
    if service.dual_stack {
        spec["ipFamilyPolicy"] = "PreferDualStack".into();
    }
    if let Some(parameters) = &service.balancer {
        spec["type"] = "LoadBalancer".into();
        spec["externalTrafficPolicy"] = match parameters.traffic_policy {
            TrafficPolicy::Local => "Local".into(),
            TrafficPolicy::Cluster => "Cluster".into(),
        };
        if let Some(class) = &parameters.load_balancer_class {
            spec["loadBalancerClass"] = (**class).into();
        }
        if let Some(ip) = service.address {
            spec["loadBalancerIP"] = ip.to_string().into();
        }
        if !parameters.source_ranges.is_empty() {
            let ranges: Vec<String> = parameters.source_ranges.iter().map(ToString::to_string).collect();
            spec["loadBalancerSourceRanges"] = ranges.into();
        }
    }
    spec
}

fn endpoint(endpoint: &SliceEndpoint) -> Value {
    let mut value = json!({
        "addresses": endpoint.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "conditions": {
            "ready": endpoint.ready,
            "serving": endpoint.serving,
            "terminating": endpoint.terminating,
        },
    });
    if let Some(node) = &endpoint.node {
        value["nodeName"] = (**node).into();
    }
    if let Some(zone) = &endpoint.zone {
        value["zone"] = (**zone).into();
    }
    value
}

fn text_map(labels: &Labels) -> Map<String, Value> {
    labels.iter().map(|(k, v)| (k.to_string(), Value::from(&**v))).collect()
}

/// Fit for a label's value: at most 63 characters, the end of a longer text replaced by a hash.
pub(super) fn label_value(text: &str) -> Str {
    if text.len() <= 63 {
        return text.into();
    }
    let kept: String = text.chars().take(54).collect();
    let kept = kept.trim_end_matches(['-', '.']);
    format!("{kept}-{:08x}", fnv1a(text.as_bytes()) >> 32).into()
}

/// Labels of one thing over those of another.
pub(super) fn over(base: &Labels, ours: impl IntoIterator<Item = (&'static str, Str)>) -> Labels {
    let mut out = base.clone();
    out.extend(ours.into_iter().map(|(k, v)| (Str::from(k), v)));
    out
}

/// [`MANAGER`] as a value.
pub(super) fn manager() -> Str {
    MANAGER.into()
}
