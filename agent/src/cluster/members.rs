//! Which pods are in the mesh, which should be, and which cannot.

use super::{
    agents::NodeReport,
    api::{key, label, list, text},
};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use weft_core::model::MESH_LABEL;

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
    /// Its label wants it, but it can never be captured.
    Excluded,
    /// Out of the mesh, as its label wants.
    Outside,
    /// No label wants it, but it is still captured.
    Leaving,
}

/// Judges pods by labels, WorkloadSlices and what agents say.
pub(super) fn members(
    pods: &[Value],
    namespaces: &[Value],
    slices: &[Value],
    agents: &BTreeMap<String, Result<NodeReport, String>>,
) -> Vec<Member> {
    let captured = captured(slices);
    let labels: BTreeMap<&str, &Value> =
        namespaces.iter().map(|ns| (text(ns, "/metadata/name"), ns)).collect();
    pods.iter()
        .filter(|pod| !matches!(text(pod, "/status/phase"), "Succeeded" | "Failed"))
        .map(|pod| judge(pod, labels.get(text(pod, "/metadata/namespace")).copied(), &captured, agents))
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
    agents: &BTreeMap<String, Result<NodeReport, String>>,
) -> Member {
    let (key, node) = (key(pod), text(pod, "/spec/nodeName").to_owned());
    let wanted = label(pod, MESH_LABEL).or_else(|| label(namespace?, MESH_LABEL)) == Some("enabled");
    // A pod of the same name may have been made anew since the slice was written.
    let known = captured.get(&key).filter(|(uid, _)| uid.is_empty() || *uid == text(pod, "/metadata/uid"));
    let is = known.is_some_and(|(_, captured)| *captured);
    let host = pod.pointer("/spec/hostNetwork") == Some(&Value::Bool(true));
    let (state, why) = match (wanted, is) {
        (true, _) if host => {
            (State::Excluded, "it is on the host's network, which its neighbours share".to_owned())
        }
        (true, true) => (State::Captured, String::new()),
        (true, false) => (State::Bypassing, why(pod, known.is_some(), agents.get(&node))),
        (false, true) => (State::Leaving, "its connections are being let go".to_owned()),
        (false, false) => (State::Outside, String::new()),
    };
    Member { pod: key, node, state, why }
}

/// Why a pod is not captured, from the nearest cause to the farthest.
fn why(pod: &Value, listed: bool, agent: Option<&Result<NodeReport, String>>) -> String {
    if text(pod, "/spec/nodeName").is_empty() {
        return "it has no node yet".into();
    }
    let report = match agent {
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
            let found = members(&[pod], &namespaces, &slices, &agents);
            assert_eq!((found[0].state, found[0].why.contains(why)), (state, true), "{name}: {found:?}");
        };
        check("in", json!({}), State::Captured, "");
        check("anew", json!({}), State::Bypassing, "not told");
        check("stuck", json!({}), State::Bypassing, "nft: no such table");
        check("slow", json!({}), State::Bypassing, "has not captured it yet");
        check("slow", json!({"/spec": {"nodeName": "n2"}}), State::Bypassing, "timed out");
        check("slow", json!({"/spec": {"nodeName": "n3"}}), State::Bypassing, "no agent is ready on n3");
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
}
