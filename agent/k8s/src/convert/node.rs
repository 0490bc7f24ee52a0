//! Node.

use super::{Cx, kinds, meta};
use crate::problem::{Problem, Report};
use k8s_openapi::api::core::v1 as core;
use serde_json::Value;
use weft_core::model::{KUBELET_PORT, Node};

/// Converts a `Node` (core/v1).
#[must_use]
pub(crate) fn convert_node(value: &Value, source: &super::Source<'_>) -> (Option<Node>, Vec<Problem>) {
    let mut report = Report::default();
    let node = node(&mut Cx { value, source, report: &mut report });
    (node, super::problems(report, &kinds::label(value), source))
}

fn node(cx: &mut Cx<'_>) -> Option<Node> {
    let object: core::Node = cx.object()?;
    let meta = meta::of_cluster_scoped(object.metadata, cx)?;
    let spec = object.spec.unwrap_or_default();
    let status = object.status.unwrap_or_default();
    let mut addresses = Vec::new();
    for a in status.addresses.into_iter().flatten().filter(|a| a.type_ == "InternalIP") {
        match a.address.parse() {
            Ok(ip) => addresses.push(ip),
            Err(_) => {
                let reason = format!("\"{}\" is no IP address", a.address);
                cx.report.unserved("status.addresses", reason, "");
            }
        }
    }
    let one = spec.pod_cidr.into_iter();
    let cidrs = spec.pod_cidrs.filter(|c| !c.is_empty()).unwrap_or_else(|| one.collect());
    let ready = |c: &core::NodeCondition| c.type_ == "Ready" && c.status == "True";
    let kubelet = status.daemon_endpoints.and_then(|d| d.kubelet_endpoint).filter(|k| k.port > 0);
    Some(Node {
        meta,
        addresses,
        // Only a help to tell pods from others: what does not parse is left out.
        pod_cidrs: cidrs.iter().filter_map(|c| c.parse().ok()).collect(),
        ready: status.conditions.iter().flatten().any(ready),
        kubelet_port: kubelet.and_then(|k| u16::try_from(k.port).ok()).unwrap_or(KUBELET_PORT),
    })
}
