//! Namespaces, and pods as the mesh knows them.

use super::{DeclaredProbe, Labels, Meta, ObjectKey, SpiffeId, Str, TunnelPort};
use std::{net::IpAddr, sync::Arc};

/// Label that puts a namespace or pod into the mesh (`enabled`) or keeps it out (`disabled`); the pod's wins.
pub const MESH_LABEL: &str = "weft.dev/mesh";
/// Label for what an enrolled pod accepts from outside the mesh; pod, then namespace, then the mesh's default.
pub const MTLS_LABEL: &str = "weft.dev/mtls";

/// `Namespace`: its labels decide selectors, enrolment and mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Metadata; the namespace is empty, the name is the namespace's.
    pub meta: Meta,
}

/// A pod: from a Pod object (own node, files) or a WorkloadSlice entry (the rest of the cluster).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Metadata.
    pub meta: Meta,
    /// `status.podIPs`; empty until the sandbox exists.
    pub ips: Vec<IpAddr>,
    /// `spec.serviceAccountName`, `default` when left out.
    pub service_account: Str,
    /// `spec.nodeName`.
    pub node: Option<Str>,
    /// `spec.hostNetwork`: never enrolled.
    pub host_network: bool,
    /// Whether its traffic is captured, as its node's agent says; `None` where nobody says (files): then the label decides.
    pub captured: Option<bool>,
    /// Those of [`Self::ips`] that are proved: read by its node's agent inside the captured network namespace, and in a
    /// cluster granted to no other pod before. `status.podIPs` alone is what a kubelet says, and proves nothing.
    pub proved: Vec<IpAddr>,
    /// Where tunnels to it may come, as its node's agent says; not looked at where nobody says.
    pub tunnel: TunnelPort,
    /// Finished (`status.phase` Succeeded or Failed): its IPs may belong to another pod by now.
    pub finished: bool,
    /// What its kubelet may ask it, in no order. Known of Pod objects only: a WorkloadSlice has no use for it, since the
    /// kubelet and the agent that lets it in are of the pod's own node.
    pub probes: Arc<[DeclaredProbe]>,
}

/// What an enrolled pod accepts from outside the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MtlsMode {
    /// Plaintext from outside the mesh is let in.
    #[default]
    Permissive,
    /// Only mutual TLS.
    Strict,
}

/// A pod as the data plane needs it. Derived from [`Pod`] and [`Namespace`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// The pod.
    pub pod: ObjectKey,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Who it is.
    pub identity: SpiffeId,
    /// Its node.
    pub node: Option<Str>,
    /// Whether its traffic is captured, so that it can be reached by HBONE.
    pub enrolled: bool,
    /// Whether labels put it into the mesh. One that is not captured yet may speak HBONE before we hear that it is.
    pub labelled: bool,
    /// Where tunnels to it may come.
    pub tunnel: TunnelPort,
    /// What it accepts from outside the mesh.
    pub mode: MtlsMode,
    /// Names for telemetry (`service.name` and the like), from annotations and labels by the
    /// OpenTelemetry k8s conventions' order.
    pub app: Str,
    /// What its kubelet may ask it in clear, whatever [`Self::mode`] says.
    pub probes: Arc<[DeclaredProbe]>,
}

impl Workload {
    /// Whether the labels put the pod into the mesh, captured or not.
    #[must_use]
    pub fn wants_mesh(pod: &Pod, namespace: Option<&Namespace>) -> bool {
        label(pod, namespace, MESH_LABEL) == Some("enabled") && !pod.host_network
    }

    /// What the pod accepts from outside the mesh: its own label, its namespace's, the mesh's default.
    #[must_use]
    pub fn mode(pod: &Pod, namespace: Option<&Namespace>, default: MtlsMode) -> MtlsMode {
        match label(pod, namespace, MTLS_LABEL) {
            Some("strict") => MtlsMode::Strict,
            Some("permissive") => MtlsMode::Permissive,
            _ => default,
        }
    }

    /// Derives a workload.
    #[must_use]
    pub fn derive(
        pod: &Pod,
        namespace: Option<&Namespace>,
        trust_domain: &str,
        default_mode: MtlsMode,
    ) -> Self {
        let labelled = Self::wants_mesh(pod, namespace);
        let tunnel = match pod.captured {
            Some(_) => pod.tunnel.clone(),
            None => TunnelPort::in_files(&pod.meta.annotations),
        };
        Self {
            pod: pod.meta.key.clone(),
            ips: pod.ips.clone(),
            identity: SpiffeId::new(
                trust_domain,
                pod.meta.key.namespace.clone(),
                pod.service_account.clone(),
            ),
            node: pod.node.clone(),
            // Peers must not speak HBONE to a running pod that is labelled and not captured yet, and must go on doing so
            // to one that is captured still.
            enrolled: pod.captured.unwrap_or(labelled) && !pod.host_network,
            labelled,
            tunnel,
            mode: Self::mode(pod, namespace, default_mode),
            app: app_name(&pod.meta.annotations, &pod.meta.labels, &pod.meta.key.name),
            probes: pod.probes.clone(),
        }
    }
}

/// The pod's label, else its namespace's.
fn label<'a>(pod: &'a Pod, namespace: Option<&'a Namespace>, name: &str) -> Option<&'a str> {
    let own = pod.meta.labels.get(name);
    own.or_else(|| namespace.and_then(|n| n.meta.labels.get(name))).map(|v| &**v)
}

/// `service.name` by the OpenTelemetry k8s conventions: annotation, then the recommended labels, then the pod's
/// name without the suffixes that a Deployment adds.
#[must_use]
pub fn app_name(annotations: &Labels, labels: &Labels, pod: &str) -> Str {
    annotations
        .get("resource.opentelemetry.io/service.name")
        .or_else(|| labels.get("app.kubernetes.io/instance"))
        .or_else(|| labels.get("app.kubernetes.io/name"))
        .or_else(|| labels.get("app"))
        .cloned()
        .unwrap_or_else(|| pod.into())
}
