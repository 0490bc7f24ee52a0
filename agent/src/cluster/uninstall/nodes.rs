//! Every node is left before agents go: by its agent, or, where none is, by `weft node clean`. A node that has captured pods
//! and no agent is waited for like any other, since its pods would be cut off for ever.

use crate::cluster::{
    agents::{NodeReport, PodReport},
    api::{Cluster, annotation, key, list, text},
    args::UninstallArgs,
    facts::{Facts, SYSTEM_PODS, agent_pods, ask_agents, is_agent},
    install::CONFIG,
    missing::missing,
    show::{Mark, Show, count},
};
use anyhow::Result;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// Annotation of weft-config: nodes that `weft node clean` has cleaned since the uninstallation began, with commas between.
/// No agent takes pods in from then on, so that they stay clean.
pub(in crate::cluster) const CLEANED: &str = "weft.dev/cleaned-nodes";
/// How often the same node is spoken of while only its connections become fewer.
const AGAIN: Duration = Duration::from_secs(5);
/// Pods that are named where more are left.
const NAMED: usize = 3;

/// What agents answer, by node.
type Reports = BTreeMap<String, Result<NodeReport, String>>;

/// Whether agents are asked to leave.
pub(in crate::cluster) fn is_begun(config: &Value) -> bool {
    text(config, "/data/uninstall") == "true"
}

/// The nodes of [`CLEANED`].
pub(in crate::cluster) fn cleaned(config: &Value) -> BTreeSet<String> {
    let nodes = annotation(config, CLEANED).unwrap_or_default().split(',');
    nodes.filter(|node| !node.is_empty()).map(str::to_owned).collect()
}

/// Asks the agents to let their pods go and to clean up, and waits for it. Returns the nodes that are not clean, with the
/// reason.
///
/// # Errors
/// When the API server does not answer, or refuses.
pub(super) async fn leave(
    cluster: &Cluster,
    args: &UninstallArgs,
    show: &Show,
) -> Result<BTreeMap<String, String>> {
    let mut facts = Facts::of_nodes(cluster).await?;
    let known: BTreeSet<String> = agent_nodes(&facts.system_pods)
        .into_iter()
        .chain(open(&facts, &BTreeMap::new()).into_keys())
        .collect();
    if facts.daemon_set.is_none() && known.is_empty() {
        return Ok(BTreeMap::new()); // an earlier uninstallation has come so far
    }
    if facts.daemon_set.is_some() || facts.config.is_some() {
        begin(cluster, &facts, args, show).await?;
        facts = Facts::of_nodes(cluster).await?;
    }
    tell_left_out(&facts, show);
    let (end, mut told) = (Instant::now() + args.drain + args.timeout, BTreeMap::new());
    loop {
        let reports = ask_agents(cluster, &facts.system_pods).await;
        let open = open(&facts, &reports);
        let clean = reports.iter().filter(|(node, _)| !open.contains_key(*node));
        let clean = clean.map(|(node, _)| (node.clone(), Left::new("clean")));
        for (node, left) in clean.chain(open.clone()) {
            let news = told.get(&node).is_none_or(|(l, at): &(Left, Instant)| {
                l.what != left.what || (*l != left && at.elapsed() > AGAIN)
            });
            if news {
                let mark = if open.contains_key(&node) { Mark::Plain } else { Mark::Good };
                show.line(mark, &format!("{node}: {left}"));
                told.insert(node, (left, Instant::now()));
            }
        }
        if open.values().all(|left| left.nobody) || Instant::now() > end {
            return Ok(open.into_iter().map(|(node, left)| (node, left.to_string())).collect());
        }
        tokio::time::sleep(cluster.pace).await;
        facts.system_pods = cluster.list(SYSTEM_PODS).await?.unwrap_or_default();
        if !known.is_subset(&agent_nodes(&facts.system_pods)) {
            // Somebody may clean those from outside. Where each node has its agent, they alone are asked.
            facts = Facts::of_nodes(cluster).await?;
        }
    }
}

/// Tells the agents. What was cleaned before a beginning says nothing: an agent may have been there since.
async fn begin(cluster: &Cluster, facts: &Facts, args: &UninstallArgs, show: &Show) -> Result<()> {
    let mut patch = json!({"data": {"uninstall": "true", "drain": gep(args.drain)}});
    let stale = facts.config.as_ref().filter(|config| !is_begun(config)).map(cleaned);
    if stale.is_some_and(|nodes| !nodes.is_empty()) {
        patch["metadata"] = json!({"annotations": {CLEANED: null}});
    }
    cluster.merge(CONFIG, &patch).await?;
    show.line(
        Mark::Good,
        &format!(
            "agents are asked to let their pods go; connections have {} s to end (weft-config: uninstall)",
            args.drain.as_secs()
        ),
    );
    Ok(())
}

/// Names nodes that the installation leaves out and where nothing speaks of the mesh: nobody can tell whether an agent was
/// ever there.
fn tell_left_out(facts: &Facts, show: &Show) {
    let captured = captured(&facts.slices);
    let linux = |node: &str| {
        let object = facts.nodes.iter().find(|object| key(object) == node);
        object.is_none_or(|object| text(object, "/status/nodeInfo/operatingSystem") == "linux")
    };
    let out = missing(facts).into_iter().filter(|(_, missing)| missing.chosen);
    for (node, missing) in out.filter(|(node, _)| linux(node) && !captured.contains_key(node)) {
        let advice = format!("if one ever did: weft node clean {node}");
        show.line(Mark::Plain, &format!("{node}: no agent serves there: {}; {advice}", missing.cause));
    }
}

/// Nodes that are not clean yet, with what is left there.
fn open(facts: &Facts, reports: &Reports) -> BTreeMap<String, Left> {
    let cleaned = facts.config.as_ref().filter(|config| is_begun(config)).map(cleaned).unwrap_or_default();
    let served = agent_nodes(&facts.system_pods);
    let mut open = BTreeMap::new();
    for node in &served {
        let left = match reports.get(node) {
            Some(Ok(report)) if report.uninstall == "done" => continue,
            Some(Ok(report)) => left(report),
            _ if cleaned.contains(node) => continue,
            Some(Err(reason)) => Left::new(format!("its agent does not answer: {reason}")),
            None => Left::new("its agent does not run"),
        };
        open.insert(node.clone(), left);
    }
    let absent = absent(facts).into_iter();
    open.extend(absent.filter(|(node, _)| !served.contains(node) && !cleaned.contains(node)));
    open
}

/// Nodes without an agent that serves and with something of Weft's, or where an agent should be.
fn absent(facts: &Facts) -> BTreeMap<String, Left> {
    let (captured, missing) = (captured(&facts.slices), missing(facts));
    // Pods of a node that was deleted are nowhere.
    let there = |node: &str| facts.nodes.is_empty() || facts.nodes.iter().any(|object| key(object) == node);
    // Where the DaemonSet is gone every node misses its agent: it is what is captured that tells.
    let missed =
        missing.iter().filter(|(_, m)| facts.daemon_set.is_some() && !m.chosen).map(|(node, _)| node);
    let nodes: BTreeSet<&String> = captured.keys().chain(missed).filter(|node| there(node)).collect();
    let left = |node: &String| {
        let (missing, pods) = (missing.get(node), captured.get(node).map(Vec::as_slice).unwrap_or_default());
        let cause = missing.map_or("none is there", |missing| missing.cause.as_str());
        let pods = match pods.len() {
            0 => String::new(),
            n => format!("{} cut off{}; ", count(n, "pod"), named(pods)),
        };
        Left {
            what: format!("no agent serves there: {cause}; {pods}weft node clean {node}"),
            connections: 0,
            nobody: facts.daemon_set.is_none() || missing.is_some_and(|missing| missing.chosen),
        }
    };
    nodes.into_iter().map(|node| (node.clone(), left(node))).collect()
}

/// Captured pods by node.
fn captured(slices: &[Value]) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for slice in slices {
        for workload in list(slice, "/workloads").iter().filter(|w| w["captured"] == true) {
            let pod = format!("{}/{}", text(slice, "/metadata/namespace"), text(workload, "/name"));
            found.entry(text(workload, "/node").to_owned()).or_default().push(pod);
        }
    }
    found.remove("");
    found
}

/// Nodes on which an agent's pod is, running or not.
fn agent_nodes(pods: &[Value]) -> BTreeSet<String> {
    let agents = pods.iter().filter(|pod| is_agent(pod));
    let nodes = agents.map(|pod| text(pod, "/spec/nodeName").to_owned()).filter(|node| !node.is_empty());
    nodes.chain(agent_pods(pods).into_keys()).collect()
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
    /// No agent is there and none will come, so that waiting is in vain.
    nobody: bool,
}

impl Left {
    fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), connections: 0, nobody: false }
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
fn left(report: &NodeReport) -> Left {
    let there: Vec<&PodReport> =
        report.pods.iter().filter(|p| p.state == "captured" || p.state == "leaving").collect();
    if there.is_empty() {
        return Left::new(match report.cni.problem.as_str() {
            "" => "removing the CNI plugin".to_owned(),
            problem => format!("the CNI plugin cannot be removed: {problem}"),
        });
    }
    // The page for anybody names no pod.
    let names: Vec<String> =
        there.iter().filter(|p| !p.name.is_empty()).map(|p| format!("{}/{}", p.namespace, p.name)).collect();
    let what = format!("{} still in the mesh{}", count(there.len(), "pod"), named(&names));
    Left { connections: report.connections, ..Left::new(what) }
}

/// The first of these names, in brackets.
fn named(names: &[String]) -> String {
    let first = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    match names.len() {
        0 => first,
        n if n > NAMED => format!(" ({first}, …)"),
        _ => format!(" ({first})"),
    }
}

#[cfg(test)]
mod tests;
