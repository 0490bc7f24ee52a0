//! `weft uninstall`: first every pod leaves the mesh and every node is cleaned by its agent, then the agents go.

use super::{
    NAMESPACE,
    api::{Cluster, annotation, key, label, text},
    args::{Addon, UninstallArgs},
    bundle::{self, Settings},
    facts::{agent_pods, ask_agents},
    install::{AGENTS, CONFIG, CONTROLLER},
    show::{Mark, Show, count},
};
use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use std::{collections::BTreeMap, process::ExitCode, time::Instant};

/// What the controller made in other namespaces.
const PROVISIONED: [&str; 4] = [
    "/api/v1/services",
    "/apis/discovery.k8s.io/v1/endpointslices",
    "/api/v1/serviceaccounts",
    "/apis/weft.dev/v1alpha1/workloadslices",
];

/// Removes Weft.
pub(super) async fn run(cluster: &Cluster, args: &UninstallArgs, show: &Show) -> Result<ExitCode> {
    let agents = cluster.get(AGENTS).await?;
    let config = cluster.get(CONFIG).await?;
    if agents.is_some() {
        let unclean = leave_nodes(cluster, args, show).await?;
        if !unclean.is_empty() {
            for (node, why) in &unclean {
                show.line(Mark::Bad, &format!("{node}: {why}"));
            }
            if !args.force {
                show.result(&json!({"uninstalled": false, "unclean": unclean}));
                show.line(Mark::Bad, "agents stay until every node is clean; --force removes them all the same (a reboot cleans such a node but for /etc/cni/net.d and /opt/cni/bin)");
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    if let Some(config) = config.filter(|c| label(c, "app.kubernetes.io/managed-by") == Some("Helm")) {
        let release = annotation(&config, "meta.helm.sh/release-name").unwrap_or("weft").to_owned();
        show.line(Mark::Good, "no pod is in the mesh and every node is clean");
        show.plain(&format!(
            "Weft was installed by Helm, which removes the rest: helm uninstall {release} -n {NAMESPACE}"
        ));
        return Ok(ExitCode::SUCCESS);
    }
    let mut removed = stop_workloads(cluster, args, show).await?;
    removed += remove_provisioned(cluster, show).await?;
    removed += remove_objects(cluster, args.purge, show).await?;
    conclude(args.purge, removed, show);
    Ok(ExitCode::SUCCESS)
}

/// Asks the agents to let their pods go and to clean up, and waits for it. Returns the nodes that are not clean, with the
/// reason.
async fn leave_nodes(
    cluster: &Cluster,
    args: &UninstallArgs,
    show: &Show,
) -> Result<BTreeMap<String, String>> {
    cluster.merge(CONFIG, &json!({"data": {"uninstall": "true"}})).await?;
    show.line(Mark::Good, "agents are asked to let their pods go (weft-config: uninstall)");
    let (end, mut told) = (Instant::now() + args.timeout, BTreeMap::new());
    loop {
        let pods = cluster.list("/api/v1/namespaces/weft-system/pods").await?.unwrap_or_default();
        let nodes = agent_nodes(&pods);
        let reports = ask_agents(cluster, &pods).await;
        let mut open = BTreeMap::new();
        for node in nodes {
            let answer = reports.get(&node).cloned();
            let why = match answer {
                None => "its agent does not run".to_owned(),
                Some(Err(reason)) => format!("its agent does not answer: {reason}"),
                Some(Ok(report)) if report.uninstall == "done" => {
                    if told.insert(node.clone(), "clean".to_owned()).as_deref() != Some("clean") {
                        show.line(Mark::Good, &format!("{node}: clean"));
                    }
                    continue;
                }
                Some(Ok(report)) => left(&report),
            };
            open.insert(node, why);
        }
        if open.is_empty() || Instant::now() > end {
            return Ok(open);
        }
        for (node, why) in &open {
            if told.insert(node.clone(), why.clone()).as_ref() != Some(why) {
                show.line(Mark::Plain, &format!("{node}: {why}"));
            }
        }
        tokio::time::sleep(cluster.pace).await;
    }
}

/// What an agent has still to do.
fn left(report: &super::agents::NodeReport) -> String {
    let captured = report.pods.iter().filter(|p| p.state == "captured" || p.state == "leaving").count();
    match (captured, report.cni.problem.as_str()) {
        (0, "") => "removing the CNI plugin".into(),
        (0, problem) => format!("the CNI plugin cannot be removed: {problem}"),
        (n, _) => format!("{} still in the mesh", count(n, "pod")),
    }
}

/// Nodes on which an agent's pod is, running or not.
fn agent_nodes(pods: &[Value]) -> Vec<String> {
    let mut nodes: Vec<String> = agent_pods(pods).into_keys().collect();
    let agents = pods.iter().filter(|pod| label(pod, "app.kubernetes.io/component") == Some("agent"));
    nodes.extend(agents.map(|pod| text(pod, "/spec/nodeName").to_owned()).filter(|node| !node.is_empty()));
    nodes.sort();
    nodes.dedup();
    nodes
}

/// Removes agents and controller, and waits until their pods are gone: a controller that still runs would make its objects
/// anew.
async fn stop_workloads(cluster: &Cluster, args: &UninstallArgs, show: &Show) -> Result<usize> {
    let mut removed = 0;
    for path in [AGENTS, CONTROLLER] {
        removed += usize::from(cluster.delete(path).await?);
    }
    let end = Instant::now() + args.timeout;
    loop {
        let pods = cluster.list("/api/v1/namespaces/weft-system/pods").await?.unwrap_or_default();
        let ours = |pod: &&Value| {
            matches!(label(pod, "app.kubernetes.io/component"), Some("agent" | "controller"))
                && label(pod, "app.kubernetes.io/name") == Some("weft")
        };
        let running: Vec<String> = pods.iter().filter(ours).map(key).collect();
        if running.is_empty() {
            show.line(Mark::Good, "agents and controller have ended");
            return Ok(removed);
        }
        if Instant::now() > end {
            bail!(
                "pods {}: still there after {} s; `kubectl describe` says why",
                running.join(", "),
                args.timeout.as_secs()
            );
        }
        tokio::time::sleep(cluster.pace).await;
    }
}

/// Removes what the controller made for Gateways and pods.
async fn remove_provisioned(cluster: &Cluster, show: &Show) -> Result<usize> {
    let mut removed = 0;
    let ours = super::api::escape("weft.dev/managed-by=weft-controller");
    for path in PROVISIONED {
        for object in cluster.list(&format!("{path}?labelSelector={ours}")).await?.unwrap_or_default() {
            let (root, plural) = path.rsplit_once('/').unwrap_or((path, ""));
            let (namespace, name) = (text(&object, "/metadata/namespace"), text(&object, "/metadata/name"));
            removed +=
                usize::from(cluster.delete(&format!("{root}/namespaces/{namespace}/{plural}/{name}")).await?);
        }
    }
    show.line(Mark::Good, &format!("{} of Gateways and pods removed", count(removed, "object")));
    Ok(removed)
}

/// Removes what was installed, last things first. What an add-on brought is in it too.
async fn remove_objects(cluster: &Cluster, purge: bool, show: &Show) -> Result<usize> {
    let everything =
        Settings::read(None, &[], &[Addon::Jaeger, Addon::NodeTaint]).map_err(anyhow::Error::msg)?;
    let mut paths = vec![
        "/apis/coordination.k8s.io/v1/namespaces/weft-system/leases/weft-controller".to_owned(),
        "/api/v1/namespaces/weft-system/configmaps/weft-ca-root".to_owned(),
    ];
    let mut last = Vec::new();
    for object in bundle::objects(&everything, None).iter().rev() {
        let path = bundle::path(object).with_context(|| bundle::title(object))?;
        let kept = matches!(text(object, "/kind"), "CustomResourceDefinition" | "Namespace");
        if kept { last.push(path) } else { paths.push(path) }
    }
    if purge {
        paths.push("/api/v1/namespaces/weft-system/secrets/weft-ca".to_owned());
        paths.extend(last);
    }
    let mut removed = 0;
    for path in &paths {
        removed += usize::from(cluster.delete(path).await?);
    }
    show.line(Mark::Good, &format!("{} of the installation removed", count(removed, "object")));
    Ok(removed)
}

fn conclude(purge: bool, removed: usize, show: &Show) {
    show.result(&json!({"uninstalled": true, "removed": removed, "purged": purge}));
    if purge {
        show.plain("Labels weft.dev/mesh of namespaces and pods stay; they do nothing now.");
    } else {
        show.plain("Kept: namespace weft-system with the CA's Secret weft-ca, Weft's CRDs and WeftGatewayConfigs, labels of");
        show.plain("namespaces and pods. `weft uninstall --purge` removes all but the labels.");
    }
}
