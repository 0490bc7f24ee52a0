//! Nodes without an agent that serves, and why: [`missing`] is a function of [`Facts`]. Pods of the mesh on such a node are cut
//! off (their rules lead to listeners behind which nobody is), so that it is an error, and the cause is wanted at once: what
//! the DaemonSet's pods, their events and the node itself say.

use super::{
    api::{condition, key, label, list, number, text},
    facts::{Facts, is_agent, is_served},
    install::AGENTS,
};
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Longest message of a cause, in characters.
const WORDS_MAX: usize = 300;

/// A node without an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Missing {
    /// Why, from the nearest cause to the farthest.
    pub(super) cause: String,
    /// What to do.
    pub(super) remedy: String,
    /// The DaemonSet leaves this node out by its selector.
    pub(super) chosen: bool,
}

/// Every node without an agent that serves. Empty where that cannot be known: the DaemonSet or its pods may not be read.
pub(super) fn missing(facts: &Facts) -> BTreeMap<String, Missing> {
    let unseen = [AGENTS, "/api/v1/namespaces/weft-system/pods"];
    if unseen.iter().any(|path| facts.denied.contains(*path)) {
        return BTreeMap::new();
    }
    let nodes: BTreeSet<String> = facts.nodes.iter().map(key).collect();
    // Who may not read nodes knows them by the pods that are there.
    let known = facts.pods.iter().map(|pod| text(pod, "/spec/nodeName").to_owned()).filter(|n| !n.is_empty());
    let nodes = if nodes.is_empty() { known.collect() } else { nodes };
    let absent = |node: &String| !is_served(&facts.system_pods, node);
    nodes.into_iter().filter(absent).map(|node| (node.clone(), judge(facts, &node))).collect()
}

fn judge(facts: &Facts, node: &str) -> Missing {
    let because = |cause: String, remedy: String| Missing { cause, remedy, chosen: false };
    let Some(set) = &facts.daemon_set else {
        let cause = "DaemonSet weft-system/weft-agent is not there".to_owned();
        return because(
            cause,
            format!("weft install; or weft node clean {node}, which takes the mesh's rules off it"),
        );
    };
    let object = facts.nodes.iter().find(|object| key(object) == node);
    if let Some(cause) = object.and_then(down) {
        return because(cause, format!("kubectl describe node {node}"));
    }
    if let Some(pod) = pod_for(facts, node) {
        let name = text(pod, "/metadata/name");
        let remedy = format!(
            "kubectl -n weft-system describe pod {name}; until it runs, no pod in the mesh starts there"
        );
        return because(of_pod(facts, pod), remedy);
    }
    if let Some(cause) = object.and_then(|object| left_out(set, object)) {
        let remedy = format!(
            "change agent.nodeSelector of the installation, or keep pods of the mesh off the node and run weft node clean {node}"
        );
        return Missing { cause, remedy, chosen: true };
    }
    if let Some(cause) = object.and_then(|object| kept_off(set, object)) {
        return because(cause, "add a toleration to agent.tolerations of the installation".to_owned());
    }
    let refused =
        last_event(facts, "DaemonSet", "weft-agent").filter(|event| text(event, "/reason") == "FailedCreate");
    let remedy = "kubectl -n weft-system describe daemonset weft-agent".to_owned();
    match refused {
        Some(event) => {
            because(format!("its pod could not be made: {}", short(text(event, "/message"))), remedy)
        }
        None => because("no pod of DaemonSet weft-agent is there".to_owned(), remedy),
    }
}

/// Why the node itself does not run.
fn down(node: &Value) -> Option<String> {
    let ready = condition(node, "Ready").filter(|c| text(c, "/status") != "True")?;
    let since = text(ready, "/lastTransitionTime");
    let since = if since.is_empty() { String::new() } else { format!(" since {since}") };
    Some(format!(
        "the node is not ready{since}: {}: {}",
        text(ready, "/reason"),
        short(text(ready, "/message"))
    ))
}

/// The newest of the agents' pods that is on the node, or waits to get there.
fn pod_for<'a>(facts: &'a Facts, node: &str) -> Option<&'a Value> {
    let there = |pod: &&Value| match text(pod, "/spec/nodeName") {
        "" => waits_for(pod, node),
        name => name == node,
    };
    let pods = facts.system_pods.iter().filter(|pod| is_agent(pod)).filter(there);
    // A finished one is left behind where a new one could not be made.
    pods.max_by_key(|pod| (text(pod, "/status/phase") != "Failed", text(pod, "/metadata/creationTimestamp")))
}

/// The DaemonSet's controller names the node in each pod's affinity.
fn waits_for(pod: &Value, node: &str) -> bool {
    let terms =
        "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    let fields = list(pod, terms).iter().flat_map(|term| list(term, "/matchFields"));
    fields
        .filter(|f| text(f, "/key") == "metadata.name")
        .any(|f| list(f, "/values").iter().any(|v| v == node))
}

fn of_pod(facts: &Facts, pod: &Value) -> String {
    let name = text(pod, "/metadata/name");
    if let Some(since) = pod.pointer("/metadata/deletionTimestamp").and_then(Value::as_str) {
        return format!("its pod {name} is ending (told at {since}) and has no successor yet");
    }
    if text(pod, "/status/phase") == "Failed" {
        let reason = Some(text(pod, "/status/reason")).filter(|r| !r.is_empty()).unwrap_or("Failed");
        return format!("its pod {name} was ended: {reason}: {}", short(text(pod, "/status/message")));
    }
    let statuses =
        list(pod, "/status/containerStatuses").iter().chain(list(pod, "/status/initContainerStatuses"));
    if let Some(cause) = statuses.filter_map(|status| of_container(facts, name, status)).next() {
        return cause;
    }
    let unscheduled = condition(pod, "PodScheduled").filter(|c| text(c, "/status") == "False");
    if let Some(c) = unscheduled {
        return format!(
            "its pod {name} is not scheduled: {}: {}",
            text(c, "/reason"),
            short(text(c, "/message"))
        );
    }
    let state = if text(pod, "/status/phase") == "Running" { "is not ready" } else { "has not started" };
    match last_event(facts, "Pod", name) {
        Some(event) => {
            format!("its pod {name} {state}: {}: {}", text(event, "/reason"), short(text(event, "/message")))
        }
        None => format!("its pod {name} {state}"),
    }
}

/// Why a container does not run; `None` when it does, or nobody has said yet.
fn of_container(facts: &Facts, pod: &str, status: &Value) -> Option<String> {
    let (name, waiting) = (text(status, "/name"), status.pointer("/state/waiting"));
    if status.pointer("/state/running").is_some() {
        return None;
    }
    let reason = waiting.map_or("", |w| text(w, "/reason"));
    let ended = status.pointer("/state/terminated").or_else(|| status.pointer("/lastState/terminated"));
    if let Some(ended) = ended.filter(|_| matches!(reason, "" | "CrashLoopBackOff")) {
        let words = facts.last_words.get(pod).map(|line| format!("; its last words: {}", short(line)));
        return Some(format!(
            "container {name} of {pod} ended with code {} ({}), {} restarts{}",
            number(ended, "/exitCode"),
            text(ended, "/reason"),
            number(status, "/restartCount"),
            words.unwrap_or_default()
        ));
    }
    if matches!(reason, "" | "ContainerCreating" | "PodInitializing") {
        return None;
    }
    let message = waiting.map_or("", |w| text(w, "/message"));
    Some(format!("container {name} of {pod}: {reason}: {}", short(message)))
}

/// The DaemonSet's selector does not want the node.
fn left_out(set: &Value, node: &Value) -> Option<String> {
    let wanted = set.pointer("/spec/template/spec/nodeSelector").and_then(Value::as_object)?;
    let (name, value) = wanted.iter().find(|(name, value)| label(node, name) != value.as_str())?;
    let has = match label(node, name) {
        Some(other) => format!("{name}={other}"),
        None => format!("no label {name}"),
    };
    let value = value.as_str().unwrap_or_default();
    Some(format!("the agents' nodeSelector wants {name}={value}, and the node has {has}"))
}

/// A taint that the DaemonSet does not tolerate. Those of a node's own state its controller adds itself.
fn kept_off(set: &Value, node: &Value) -> Option<String> {
    let tolerations = list(set, "/spec/template/spec/tolerations");
    let of_state = |taint: &&Value| !text(taint, "/key").starts_with("node.kubernetes.io/");
    let binds = |taint: &&Value| text(taint, "/effect") != "PreferNoSchedule";
    let mut taints = list(node, "/spec/taints").iter().filter(of_state).filter(binds);
    let taint = taints.find(|taint| !tolerations.iter().any(|t| tolerates(t, taint)))?;
    let (name, value) = (text(taint, "/key"), text(taint, "/value"));
    let equals = if value.is_empty() { String::new() } else { format!("={value}") };
    Some(format!("the agents do not tolerate the node's taint {name}{equals}:{}", text(taint, "/effect")))
}

/// `k8s.io/api` `Toleration.ToleratesTaint`: an empty key with `Exists` is every taint, an empty effect every effect.
fn tolerates(toleration: &Value, taint: &Value) -> bool {
    let (key, effect) = (text(toleration, "/key"), text(toleration, "/effect"));
    let exists = text(toleration, "/operator") == "Exists";
    (effect.is_empty() || effect == text(taint, "/effect"))
        && (key == text(taint, "/key") || (key.is_empty() && exists))
        && (exists || text(toleration, "/value") == text(taint, "/value"))
}

/// The last warning about an object of weft-system.
fn last_event<'a>(facts: &'a Facts, kind: &str, name: &str) -> Option<&'a Value> {
    let about = |event: &&Value| {
        text(event, "/type") == "Warning"
            && text(event, "/involvedObject/kind") == kind
            && text(event, "/involvedObject/name") == name
    };
    let when = |event: &&Value| {
        let times =
            ["/series/lastObservedTime", "/lastTimestamp", "/eventTime", "/metadata/creationTimestamp"];
        times.iter().map(|at| text(event, at)).find(|at| !at.is_empty()).unwrap_or_default().to_owned()
    };
    facts.events.iter().filter(about).max_by_key(when)
}

fn short(words: &str) -> String {
    let line = words.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(WORDS_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests;
