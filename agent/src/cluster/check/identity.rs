//! What tells whose an address is: WEFT-C060 and C061.

use super::*;
use crate::cluster::{facts::SLICES, install::CONFIG};
use std::collections::{BTreeMap, BTreeSet};

/// Addresses or nodes that are named where more are concerned.
const NAMED: usize = 6;

pub(super) fn addresses(report: &mut Report<'_>) {
    conflicts(report);
    networks(report);
}

/// Pods that claim what another one has proved. From the slices, which hold every pod, enrolled or not.
fn conflicts(report: &mut Report<'_>) {
    if report.denied("WEFT-C060", SLICES) {
        return;
    }
    let facts = report.facts;
    let entries: Vec<(String, &Value)> = facts
        .slices
        .iter()
        .flat_map(|slice| {
            let namespace = text(slice, "/metadata/namespace");
            list(slice, "/workloads").iter().map(move |w| (format!("{namespace}/{}", text(w, "/name")), w))
        })
        .collect();
    let ips = |of: &'static str| {
        entries.iter().flat_map(move |(pod, workload)| {
            list(workload, of).iter().filter_map(move |ip| Some((ip.as_str()?, pod.as_str(), *workload)))
        })
    };
    let holders: BTreeMap<&str, &str> = ips("/provedIPs").map(|(ip, pod, _)| (ip, pod)).collect();
    for (ip, pod, workload) in ips("/ips") {
        let Some(holder) = holders.get(ip).filter(|holder| **holder != pod) else { continue };
        let node = text(workload, "/node");
        report.add(
            "WEFT-C060",
            Level::Error,
            format!("pod {pod} on node {node} claims {ip}, which pod {holder} has proved to have: nothing is sent to {pod} there"),
            format!("kubectl get pods -A -o wide: if it lasts longer than a restart, the kubelet of node {node} does not tell the truth"),
        );
    }
}

/// Where pods' networks are learned only, since nobody says them.
fn networks(report: &mut Report<'_>) {
    let facts = report.facts;
    if report.denied("WEFT-C061", CONFIG) {
        return;
    }
    let settings = facts.config.as_ref().map_or("", |config| text(config, "/data/config.yaml"));
    let said = |document: &weft_k8s::yaml::Document| !list(&document.value, "/podCidrs").is_empty();
    if weft_k8s::yaml::read(settings).0.iter().any(said) {
        return;
    }
    let without =
        |node: &&Value| text(node, "/spec/podCIDR").is_empty() && list(node, "/spec/podCIDRs").is_empty();
    let nodes: BTreeSet<String> = facts.nodes.iter().filter(without).map(key).collect();
    if nodes.is_empty() {
        return;
    }
    let named: Vec<&str> = nodes.iter().take(NAMED).map(String::as_str).collect();
    let more = if nodes.len() > NAMED { ", …" } else { "" };
    report.add(
        "WEFT-C061",
        Level::Info,
        format!(
            "{} without spec.podCIDRs ({}{more}): pods' networks are learned from the addresses of pods of the mesh, and an unknown address \
             near one of theirs is refused",
            count(nodes.len(), "node"),
            named.join(", ")
        ),
        "name them: weft-config, `podCidrs: [CIDR, …]`; a machine among pods that is none is reached by a Service with an EndpointSlice",
    );
}
