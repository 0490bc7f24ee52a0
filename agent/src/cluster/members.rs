//! Which pods are in the mesh, which should be, and which cannot.

use super::{
    agents::NodeReport,
    api::{key, label, list, text},
    missing::Missing,
};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use weft_core::model::{MESH_LABEL, joins};

/// A pod and where it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Member {
    /// `namespace/name`.
    pub(super) pod: String,
    /// Its node; empty when it has none yet.
    pub(super) node: String,
    /// Where it stands.
    pub(super) state: State,
    /// Why it is not captured, or not let go.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) why: String,
}

/// Where a pod stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum State {
    /// In the mesh, as its label wants.
    Captured,
    /// Its label wants it in the mesh, and it speaks past it.
    Bypassing,
    /// In the mesh, as its label wants, on a node whose agent is missing: nobody answers for it.
    Unserved,
    /// Its label wants it, but it can never be captured.
    Excluded,
    /// Out of the mesh, as its label wants.
    Outside,
    /// No label wants it, but it is still captured.
    Leaving,
}

/// What pods are judged by.
#[derive(Clone, Copy, Default)]
pub(super) struct Scene<'a> {
    /// Their namespaces.
    pub(super) namespaces: &'a [Value],
    /// WorkloadSlices.
    pub(super) slices: &'a [Value],
    /// What agents say, by node; `None` when they were not asked.
    pub(super) agents: Option<&'a BTreeMap<String, Result<NodeReport, String>>>,
    /// Nodes without an agent.
    pub(super) missing: Option<&'a BTreeMap<String, Missing>>,
    /// RuntimeClasses.
    pub(super) runtimes: &'a [Value],
    /// The person may not see agents, so that nothing is said of what they do not say.
    pub(super) agents_unseen: bool,
}

/// Judges pods by labels, WorkloadSlices and what agents say.
pub(super) fn members(pods: &[Value], scene: &Scene<'_>) -> Vec<Member> {
    let captured = captured(scene.slices);
    let labels: BTreeMap<&str, &Value> =
        scene.namespaces.iter().map(|ns| (text(ns, "/metadata/name"), ns)).collect();
    pods.iter()
        .filter(|pod| !matches!(text(pod, "/status/phase"), "Succeeded" | "Failed"))
        .map(|pod| judge(pod, labels.get(text(pod, "/metadata/namespace")).copied(), &captured, scene))
        .collect()
}

/// What WorkloadSlices say by pod: its uid, and whether it is captured.
fn captured(slices: &[Value]) -> BTreeMap<String, (&str, bool)> {
    let mut found = BTreeMap::new();
    for slice in slices {
        for workload in list(slice, "/workloads") {
            let pod = format!("{}/{}", text(slice, "/metadata/namespace"), text(workload, "/name"));
            found.insert(pod, (text(workload, "/uid"), workload["captured"] == true));
        }
    }
    found
}

fn judge(
    pod: &Value,
    namespace: Option<&Value>,
    captured: &BTreeMap<String, (&str, bool)>,
    scene: &Scene<'_>,
) -> Member {
    let (key, node) = (key(pod), text(pod, "/spec/nodeName").to_owned());
    let wanted = joins(label(pod, MESH_LABEL), namespace.and_then(|ns| label(ns, MESH_LABEL)));
    // A pod of the same name may have been made anew since the slice was written.
    let known = captured.get(&key).filter(|(uid, _)| uid.is_empty() || *uid == text(pod, "/metadata/uid"));
    let is = known.is_some_and(|(_, captured)| *captured);
    let missing = scene.missing.and_then(|missing| missing.get(&node));
    let (state, why) = match (wanted, is) {
        (true, _) if let Some(why) = beyond_capture(pod, scene.runtimes) => (State::Excluded, why),
        (true, true) => match missing {
            Some(missing) => (State::Unserved, format!("no agent serves {node}: {}", missing.cause)),
            None => (State::Captured, String::new()),
        },
        (true, false) => match missing {
            Some(missing) => (State::Bypassing, format!("no agent serves {node}: {}", missing.cause)),
            None => {
                let agent = scene.agents.and_then(|agents| agents.get(&node));
                (State::Bypassing, why(pod, known.is_some(), agent, scene.agents_unseen))
            }
        },
        (false, true) => (State::Leaving, "its connections are being let go".to_owned()),
        (false, false) => (State::Outside, String::new()),
    };
    Member { pod: key, node, state, why }
}

/// Why a pod can never be captured: rules in its network namespace would see other pods' traffic, or none.
fn beyond_capture(pod: &Value, runtimes: &[Value]) -> Option<String> {
    if pod.pointer("/spec/hostNetwork") == Some(&Value::Bool(true)) {
        return Some("it is on the host's network, which its neighbours share".to_owned());
    }
    let class = Some(text(pod, "/spec/runtimeClassName")).filter(|class| !class.is_empty())?;
    let handler = runtimes.iter().find(|runtime| key(runtime) == class).map(|r| text(r, "/handler"));
    // Who may not read RuntimeClasses goes by the name, which people take from the handler.
    own_stack(handler.unwrap_or(class)).then(|| {
        format!(
            "its RuntimeClass {class} (handler {}) has a network stack of its own, past which rules in the pod's network \
             namespace do not reach",
            handler.unwrap_or("not readable by you")
        )
    })
}

/// Runtimes that take packets off the pod's interface before the kernel's stack: gVisor by a packet socket, virtual machines
/// (Kata, Firecracker) by a redirect to a tap device.
fn own_stack(handler: &str) -> bool {
    let handler = handler.to_ascii_lowercase();
    ["runsc", "gvisor", "kata", "firecracker"].iter().any(|name| handler.contains(name))
}

/// Why a pod is not captured, from the nearest cause to the farthest.
fn why(pod: &Value, listed: bool, agent: Option<&Result<NodeReport, String>>, unseen: bool) -> String {
    if text(pod, "/spec/nodeName").is_empty() {
        return "it has no node yet".into();
    }
    let report = match agent {
        None if text(pod, "/status/phase") == "Pending" => return "it has not started yet".into(),
        None if unseen => {
            return "it is not captured yet; what its node's agent says of it is not readable by you".into();
        }
        None => return format!("no agent is ready on {}", text(pod, "/spec/nodeName")),
        Some(Err(reason)) => {
            return format!("the agent of {} does not answer: {reason}", text(pod, "/spec/nodeName"));
        }
        Some(Ok(report)) => report,
    };
    let (namespace, name) = (text(pod, "/metadata/namespace"), text(pod, "/metadata/name"));
    match report.pods.iter().find(|p| p.namespace == namespace && p.name == name) {
        Some(known) if !known.why.is_empty() => known.why.clone(),
        Some(known) if known.state == "captured" => {
            "captured just now; the controller has not told yet".into()
        }
        _ if text(pod, "/status/phase") == "Pending" => "it has not started yet".into(),
        _ if !listed => "the controller has not told the agents about it yet".into(),
        _ => "its agent has not captured it yet".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    #[allow(clippy::too_many_lines, reason = "a table")]
    fn each_pod_is_judged_by_label_capture_and_what_its_agent_says() {
        let namespaces = [
            json!({"metadata": {"name": "shop", "labels": {"weft.dev/mesh": "enabled"}}}),
            json!({"metadata": {"name": "out"}}),
        ];
        let agents = BTreeMap::from([
            (
                "n1".to_owned(),
                Ok(NodeReport {
                    pods: vec![super::super::agents::PodReport {
                        namespace: "shop".into(),
                        name: "stuck".into(),
                        state: "failed".into(),
                        why: "nft: no such table".into(),
                    }],
                    ..NodeReport::default()
                }),
            ),
            ("n2".to_owned(), Err("timed out".to_owned())),
        ]);
        let gone = Missing { cause: "evicted".into(), remedy: String::new(), chosen: false };
        let missing = BTreeMap::from([("n4".to_owned(), gone)]);
        let slices = [
            json!({"metadata": {"namespace": "shop"}, "workloads": [
                {"name": "in", "uid": "1", "captured": true}, {"name": "anew", "uid": "old", "captured": true},
                {"name": "stuck", "uid": "1", "captured": false}, {"name": "slow", "uid": "1"},
                {"name": "opted-out", "uid": "1", "captured": true}]}),
            json!({"metadata": {"namespace": "out"}, "workloads": [{"name": "own-label", "uid": "1", "captured": true}]}),
        ];
        let check = |name: &str, extra: Value, state: State, why: &str| {
            let namespace = if name == "own-label" || name == "plain" { "out" } else { "shop" };
            let mut pod = json!({
                "metadata": {"namespace": namespace, "name": name, "uid": "1"},
                "spec": {"nodeName": "n1"}, "status": {"phase": "Running"},
            });
            for (field, value) in extra.as_object().unwrap() {
                *pod.pointer_mut(field).unwrap() = value.clone();
            }
            let scene = Scene {
                namespaces: &namespaces,
                slices: &slices,
                agents: Some(&agents),
                missing: Some(&missing),
                runtimes: &[],
                agents_unseen: false,
            };
            let found = members(&[pod], &scene);
            assert_eq!((found[0].state, found[0].why.contains(why)), (state, true), "{name}: {found:?}");
        };
        check("in", json!({}), State::Captured, "");
        check("anew", json!({}), State::Bypassing, "not told");
        check("stuck", json!({}), State::Bypassing, "nft: no such table");
        check("slow", json!({}), State::Bypassing, "has not captured it yet");
        check("slow", json!({"/spec": {"nodeName": "n2"}}), State::Bypassing, "timed out");
        check("slow", json!({"/spec": {"nodeName": "n3"}}), State::Bypassing, "no agent is ready on n3");
        check("slow", json!({"/spec": {"nodeName": "n4"}}), State::Bypassing, "no agent serves n4: evicted");
        check("in", json!({"/spec": {"nodeName": "n4"}}), State::Unserved, "no agent serves n4: evicted");
        check("slow", json!({"/spec": {}}), State::Bypassing, "no node yet");
        check(
            "host",
            json!({"/spec": {"nodeName": "n1", "hostNetwork": true}}),
            State::Excluded,
            "host's network",
        );
        check("plain", json!({}), State::Outside, "");
        let labels = |value: &str, name: &str| {
            json!({"/metadata": {
            "namespace": if name == "own-label" { "out" } else { "shop" }, "name": name, "uid": "1",
            "labels": {"weft.dev/mesh": value}}})
        };
        check("opted-out", labels("disabled", "opted-out"), State::Leaving, "let go");
        check("own-label", labels("enabled", "own-label"), State::Captured, "");
    }

    #[test]
    fn a_pod_whose_runtime_has_a_network_stack_of_its_own_cannot_join() {
        let namespaces = [json!({"metadata": {"name": "shop", "labels": {"weft.dev/mesh": "enabled"}}})];
        let slices =
            [json!({"metadata": {"namespace": "shop"}, "workloads": [{"name": "web", "captured": true}]})];
        let runtimes = [
            json!({"metadata": {"name": "sandboxed"}, "handler": "runsc"}),
            json!({"metadata": {"name": "kata-fast"}, "handler": "kata-qemu"}),
            json!({"metadata": {"name": "nvidia"}, "handler": "nvidia"}),
        ];
        let scene =
            Scene { namespaces: &namespaces, slices: &slices, runtimes: &runtimes, ..Scene::default() };
        let check = |class: &str, state: State, why: &str| {
            let pod = json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": {"runtimeClassName": class},
                "status": {"phase": "Running"}});
            let found = members(&[pod], &scene);
            assert_eq!((found[0].state, found[0].why.contains(why)), (state, true), "{class}: {found:?}");
        };
        check("sandboxed", State::Excluded, "RuntimeClass sandboxed (handler runsc)");
        check("kata-fast", State::Excluded, "handler kata-qemu");
        check("gvisor", State::Excluded, "not readable by you");
        check("nvidia", State::Captured, "");
        check("", State::Captured, "");
    }
}
