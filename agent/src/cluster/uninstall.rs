//! `weft uninstall`: first every pod leaves the mesh and every node is cleaned by its agent, then the agents go.

use super::{
    NAMESPACE,
    api::{Cluster, annotation, key, label, number, text},
    args::{Addon, UninstallArgs},
    bundle::{self, Settings},
    facts::{agent_pods, ask_agents},
    install::{AGENTS, CONFIG, CONTROLLER},
    show::{Mark, Show, count},
    words,
};
use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    process::ExitCode,
    time::{Duration, Instant},
};

/// What the controller made in other namespaces.
const PROVISIONED: [&str; 4] = [
    "/api/v1/services",
    "/apis/discovery.k8s.io/v1/endpointslices",
    "/api/v1/serviceaccounts",
    "/apis/weft.dev/v1alpha1/workloadslices",
];

/// How often the same node is spoken of while only its connections become fewer.
const AGAIN: Duration = Duration::from_secs(5);
/// How long statuses may take to be withdrawn: the controller writes hundreds a second.
const WITHDRAWAL: Duration = Duration::from_secs(60);
/// Pods that are named where more are left.
const NAMED: usize = 3;

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
                show.line(Mark::Bad, "agents stay until every node is clean; `weft node clean NODE` heals one whose agent is gone for good, and --force removes Weft all the same");
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    withdraw(cluster, show).await?;
    if args.leave_only {
        cluster.delete(CONTROLLER).await?;
        gone(cluster, args, &["controller"], show).await?;
        let removed = remove_provisioned(cluster, show).await?;
        show.result(&json!({"uninstalled": false, "left": true, "removed": removed}));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(config) = config.filter(|c| label(c, "app.kubernetes.io/managed-by") == Some("Helm")) {
        let release = annotation(&config, "meta.helm.sh/release-name").unwrap_or("weft").to_owned();
        let namespace = annotation(&config, "meta.helm.sh/release-namespace").unwrap_or(NAMESPACE);
        show.line(Mark::Good, "no pod is in the mesh and every node is clean");
        show.plain(&format!(
            "Weft was installed by Helm, which removes the rest: helm uninstall {release} -n {namespace}"
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
    cluster.merge(CONFIG, &json!({"data": {"uninstall": "true", "drain": gep(args.drain)}})).await?;
    show.line(
        Mark::Good,
        &format!(
            "agents are asked to let their pods go; connections have {} s to end (weft-config: uninstall)",
            args.drain.as_secs()
        ),
    );
    let (end, mut told) = (Instant::now() + args.drain + args.timeout, BTreeMap::new());
    loop {
        let pods = cluster.list("/api/v1/namespaces/weft-system/pods").await?.unwrap_or_default();
        let nodes = agent_nodes(&pods);
        let reports = ask_agents(cluster, &pods).await;
        let mut open = BTreeMap::new();
        for node in nodes {
            let answer = reports.get(&node).cloned();
            let left = match answer {
                None => Left::new("its agent does not run"),
                Some(Err(reason)) => Left::new(format!("its agent does not answer: {reason}")),
                Some(Ok(report)) if report.uninstall == "done" => {
                    if told
                        .insert(node.clone(), (Left::new("clean"), Instant::now()))
                        .is_none_or(|(l, _)| l.what != "clean")
                    {
                        show.line(Mark::Good, &format!("{node}: clean"));
                    }
                    continue;
                }
                Some(Ok(report)) => left(&report),
            };
            open.insert(node, left);
        }
        if open.is_empty() || Instant::now() > end {
            return Ok(open.into_iter().map(|(node, left)| (node, left.to_string())).collect());
        }
        for (node, left) in &open {
            let news = told.get(node).is_none_or(|(l, at): &(Left, Instant)| {
                l.what != left.what || (l != left && at.elapsed() > AGAIN)
            });
            if news {
                show.line(Mark::Plain, &format!("{node}: {left}"));
                told.insert(node.clone(), (left.clone(), Instant::now()));
            }
        }
        tokio::time::sleep(cluster.pace).await;
    }
}

/// A duration as GEP-2257 writes it: at most five digits before a unit.
fn gep(duration: Duration) -> String {
    let (hours, rest) = (duration.as_secs() / 3600, duration.as_secs() % 3600);
    format!("{}h{rest}s{}ms", hours.min(99_999), duration.subsec_millis())
}

/// What a node still has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Left {
    what: String,
    /// Connections that are let end.
    connections: u64,
}

impl Left {
    fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), connections: 0 }
    }
}

impl std::fmt::Display for Left {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.what)?;
        match usize::try_from(self.connections).unwrap_or(usize::MAX) {
            0 => Ok(()),
            open => write!(f, "; {} still open", count(open, "connection")),
        }
    }
}

/// What an agent has still to do.
fn left(report: &super::agents::NodeReport) -> Left {
    let there: Vec<&super::agents::PodReport> =
        report.pods.iter().filter(|p| p.state == "captured" || p.state == "leaving").collect();
    if there.is_empty() {
        return Left::new(match report.cni.problem.as_str() {
            "" => "removing the CNI plugin".to_owned(),
            problem => format!("the CNI plugin cannot be removed: {problem}"),
        });
    }
    let mut names: Vec<String> = there
        .iter()
        .filter(|p| !p.name.is_empty()) // the page for anybody names no pod
        .take(NAMED)
        .map(|p| format!("{}/{}", p.namespace, p.name))
        .collect();
    if !names.is_empty() && there.len() > NAMED {
        names.push("…".to_owned());
    }
    let names = if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) };
    let what = format!("{} still in the mesh{names}", count(there.len(), "pod"));
    Left { what, connections: report.connections }
}

/// Waits until the controller has taken back what it says of Gateways, routes and policies: it does so from the moment on at
/// which agents are asked to leave, and nobody else could later.
async fn withdraw(cluster: &Cluster, show: &Show) -> Result<()> {
    let begin = Instant::now();
    loop {
        let ours = words::ours(cluster).await?;
        if ours.is_empty() {
            show.line(Mark::Good, "no Gateway, route or policy says any more that Weft serves it");
            return Ok(());
        }
        let controller = cluster.get(CONTROLLER).await?.unwrap_or_default();
        let runs = number(&controller, "/status/readyReplicas") > 0;
        if !runs || begin.elapsed() > WITHDRAWAL {
            let (first, more) = (ours.iter().take(NAMED).cloned().collect::<Vec<_>>(), ours.len() > NAMED);
            let why = if runs {
                "the controller has not taken it back"
            } else {
                "no controller is ready to take it back"
            };
            show.line(
                Mark::Warn,
                &format!(
                    "{} still say that Weft serves them ({}{}): {why}",
                    count(ours.len(), "object"),
                    first.join(", "),
                    if more { ", …" } else { "" }
                ),
            );
            return Ok(());
        }
        tokio::time::sleep(cluster.pace).await;
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
    gone(cluster, args, &["agent", "controller"], show).await?;
    Ok(removed)
}

/// Waits until no pod of these components is there.
async fn gone(cluster: &Cluster, args: &UninstallArgs, components: &[&str], show: &Show) -> Result<()> {
    let end = Instant::now() + args.timeout;
    loop {
        let pods = cluster.list("/api/v1/namespaces/weft-system/pods").await?.unwrap_or_default();
        let ours = |pod: &&Value| {
            label(pod, "app.kubernetes.io/component").is_some_and(|c| components.contains(&c))
                && label(pod, "app.kubernetes.io/name") == Some("weft")
        };
        let running: Vec<String> = pods.iter().filter(ours).map(key).collect();
        if running.is_empty() {
            show.line(Mark::Good, &format!("{}: ended", components.join(" and ")));
            return Ok(());
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
