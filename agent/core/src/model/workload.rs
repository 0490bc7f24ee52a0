//! Namespaces, and pods as the mesh knows them.

use super::{DeclaredProbe, Labels, Meta, ObjectKey, SpiffeId, Str, TunnelPort};
use std::{net::IpAddr, sync::Arc};

/// Label that puts a namespace or pod into the mesh (`enabled`) or keeps it out (`disabled`); the pod's wins. A value that
/// is neither says nothing: of a pod its namespace decides then, and a namespace is not in the mesh.
pub const MESH_LABEL: &str = "weft.dev/mesh";
/// Label for what an enrolled pod accepts from outside the mesh: see [`Mtls::decide`].
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

impl MtlsMode {
    /// As it is written in labels and settings.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Permissive => "permissive",
            Self::Strict => "strict",
        }
    }

    /// Reads what is written; `None` for any other word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Permissive, Self::Strict].into_iter().find(|mode| mode.as_str() == word)
    }

    /// Reads a label's value. One that is no mode counts as strict: somebody meant to protect something, and what is
    /// refused is noticed, what is let in is not.
    #[must_use]
    pub fn of_label(value: &str) -> Self {
        Self::parse(value).unwrap_or(Self::Strict)
    }
}

/// Whose word decides about a pod's mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MtlsSource {
    /// The pod's label.
    Pod,
    /// Its namespace's label.
    Namespace,
    /// The mesh's default (`AgentConfig` `mtls`).
    Mesh,
}

/// What a pod accepts from outside the mesh, and by whose word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mtls {
    /// What it accepts.
    pub mode: MtlsMode,
    /// Who says so.
    pub source: MtlsSource,
    /// The pod's label asks for less than its namespace wants, and is ignored.
    pub overruled: bool,
}

impl Mtls {
    /// From the values of [`MTLS_LABEL`] of a pod and its namespace. Under a namespace's strict the pod's label is ignored:
    /// whoever may write pods may not write their namespace, and would otherwise open what its owner has closed.
    #[must_use]
    pub fn decide(pod: Option<&str>, namespace: Option<&str>, default: MtlsMode) -> Self {
        let (own, around) = (pod.map(MtlsMode::of_label), namespace.map(MtlsMode::of_label));
        let (mode, source) = match (own, around) {
            (_, Some(MtlsMode::Strict)) => (MtlsMode::Strict, MtlsSource::Namespace),
            (Some(own), _) => (own, MtlsSource::Pod),
            (None, Some(around)) => (around, MtlsSource::Namespace),
            (None, None) => (default, MtlsSource::Mesh),
        };
        let overruled = own == Some(MtlsMode::Permissive) && mode == MtlsMode::Strict;
        Self { mode, source, overruled }
    }

    /// Whether the namespace wants strict, so that only its own annotations exclude inbound traffic.
    #[must_use]
    pub fn is_namespaces(self) -> bool {
        self.mode == MtlsMode::Strict && self.source == MtlsSource::Namespace
    }
}

/// Whether the values of [`MESH_LABEL`] of a pod and its namespace put the pod into the mesh.
#[must_use]
pub fn joins(pod: Option<&str>, namespace: Option<&str>) -> bool {
    match pod {
        Some("enabled") => true,
        Some("disabled") => false,
        _ => namespace == Some("enabled"),
    }
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
        joins(of(pod, MESH_LABEL), around(namespace, MESH_LABEL)) && !pod.host_network
    }

    /// What the pod accepts from outside the mesh, and by whose word.
    #[must_use]
    pub fn mtls(pod: &Pod, namespace: Option<&Namespace>, default: MtlsMode) -> Mtls {
        Mtls::decide(of(pod, MTLS_LABEL), around(namespace, MTLS_LABEL), default)
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
            None => TunnelPort::in_files(&pod.meta.annotations, namespace.map(|n| &n.meta.annotations)),
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
            mode: Self::mtls(pod, namespace, default_mode).mode,
            app: app_name(&pod.meta.annotations, &pod.meta.labels, &pod.meta.key.name),
            probes: pod.probes.clone(),
        }
    }
}

fn of<'a>(pod: &'a Pod, label: &str) -> Option<&'a str> {
    pod.meta.labels.get(label).map(|v| &**v)
}

fn around<'a>(namespace: Option<&'a Namespace>, label: &str) -> Option<&'a str> {
    namespace?.meta.labels.get(label).map(|v| &**v)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// E3: `STRICT` was permissive, and every screen showed it as if it held. B6: a pod's label beat its namespace's strict.
    #[test]
    fn a_word_that_is_no_mode_counts_as_strict_and_a_namespaces_strict_holds() {
        use {MtlsMode::*, MtlsSource::*};
        let check = |pod, namespace, default, expected: (MtlsMode, MtlsSource, bool)| {
            let Mtls { mode, source, overruled } = Mtls::decide(pod, namespace, default);
            assert_eq!((mode, source, overruled), expected, "{pod:?} {namespace:?} {default:?}");
        };
        check(None, None, Permissive, (Permissive, Mesh, false));
        check(None, None, Strict, (Strict, Mesh, false));
        check(Some("permissive"), None, Strict, (Permissive, Pod, false));
        check(Some("strict"), None, Permissive, (Strict, Pod, false));
        check(Some("strict"), Some("permissive"), Permissive, (Strict, Pod, false));
        check(None, Some("permissive"), Strict, (Permissive, Namespace, false));
        check(None, Some("strict"), Permissive, (Strict, Namespace, false));
        for word in ["STRICT", "Strict", "on", "true", "", "disabled", "PERMISSIVE"] {
            check(Some(word), None, Permissive, (Strict, Pod, false));
            check(Some(word), Some("permissive"), Permissive, (Strict, Pod, false));
            check(None, Some(word), Permissive, (Strict, Namespace, false));
            check(Some("permissive"), Some(word), Permissive, (Strict, Namespace, true));
        }
        check(Some("permissive"), Some("strict"), Permissive, (Strict, Namespace, true));
    }

    /// E3: `weft.dev/mesh=true` on a pod took it out of its namespace's mesh without a word.
    #[test]
    fn only_disabled_keeps_a_pod_out_of_its_namespaces_mesh() {
        let check =
            |pod, namespace, expected| assert_eq!(joins(pod, namespace), expected, "{pod:?} {namespace:?}");
        check(None, None, false);
        check(None, Some("enabled"), true);
        check(None, Some("true"), false);
        check(Some("enabled"), None, true);
        check(Some("disabled"), Some("enabled"), false);
        check(Some("true"), Some("enabled"), true);
        check(Some("true"), None, false);
    }
}
