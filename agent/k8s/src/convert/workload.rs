//! Namespace and Pod.

use super::{Cx, meta, probe};
use k8s_openapi::api::core::v1 as core;
use weft_core::model::{Kind, Labels, MESH_LABEL, MTLS_LABEL, Namespace, Pod, Str, TunnelPort};

pub(super) fn namespace(cx: &mut Cx<'_>) -> Option<Namespace> {
    let object: core::Namespace = cx.object()?;
    let meta = meta::of(Kind::Namespace, object.metadata, cx)?;
    mesh_labels(&meta.labels, cx);
    Some(Namespace { meta })
}

/// The annotation of a static pod's mirror (`kubernetes.io/config.mirror`). Kubelets make such pods, in any namespace they
/// like, and without a service account.
pub const MIRROR: &str = "kubernetes.io/config.mirror";

pub(super) fn pod(cx: &mut Cx<'_>) -> Option<Pod> {
    let object: core::Pod = cx.object()?;
    let mut meta = meta::of(Kind::Pod, object.metadata, cx)?;
    // Who holds a kubelet's credential could give its node any namespace's identity with one. So static pods are not in
    // the mesh, whatever their labels say.
    if meta.annotations.contains_key(MIRROR) {
        meta.labels.insert(MESH_LABEL.into(), "disabled".into());
    }
    mesh_labels(&meta.labels, cx);
    let spec = object.spec.unwrap_or_default();
    let status = object.status.unwrap_or_default();
    let listed: Vec<String> = status.pod_ips.unwrap_or_default().into_iter().map(|p| p.ip).collect();
    let written = if listed.is_empty() { status.pod_ip.into_iter().collect() } else { listed };
    let mut ips = Vec::new();
    for ip in written.iter().filter(|ip| !ip.is_empty()) {
        match ip.parse() {
            Ok(ip) => ips.push(ip),
            Err(_) => cx.report.reject("status.podIPs", format!("\"{ip}\" is no IP address"), ""),
        }
    }
    let probes = probe::declared(&spec, &ips).into();
    Some(Pod {
        meta,
        ips,
        service_account: spec
            .service_account_name
            .or(spec.service_account)
            .filter(|s| !s.is_empty())
            .map_or_else(|| Str::from("default"), Str::from),
        node: spec.node_name.filter(|n| !n.is_empty()).map(Str::from),
        host_network: spec.host_network.unwrap_or(false),
        captured: None,
        proved: Vec::new(),
        tunnel: TunnelPort::default(),
        finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
        probes,
    })
}

/// A label with a value that means nothing would be a pod left out of the mesh in silence.
fn mesh_labels(labels: &Labels, cx: &mut Cx<'_>) {
    for (label, allowed) in [(MESH_LABEL, ["enabled", "disabled"]), (MTLS_LABEL, ["strict", "permissive"])] {
        if let Some(value) = labels.get(label).filter(|v| !allowed.contains(&&***v)) {
            let path = crate::path::key("metadata.labels", label);
            let remedy = format!("write \"{}\" or \"{}\"", allowed[0], allowed[1]);
            cx.report.warn(&path, format!("\"{value}\" has no meaning"), remedy);
        }
    }
}
