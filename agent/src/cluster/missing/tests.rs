use super::*;
use crate::cluster::fake::{agent_pod, node};
use serde_json::json;

/// n1 has its agent; n2 has what the case gives it.
fn facts() -> Facts {
    let selector = json!({"kubernetes.io/os": "linux"});
    let template = json!({"spec": {"nodeSelector": selector, "tolerations": [{"operator": "Exists"}]}});
    let mut nodes = vec![node("n1"), node("n2")];
    for node in &mut nodes {
        node["metadata"]["labels"] = json!({"kubernetes.io/os": "linux"});
    }
    Facts {
        daemon_set: Some(json!({"spec": {"template": template}})),
        nodes,
        system_pods: vec![agent_pod("n1")],
        ..Facts::default()
    }
}

/// A pod of the agents that is not well.
fn pod(status: Value) -> Value {
    let mut pod = agent_pod("n2");
    pod["status"] = status;
    pod
}

fn container(state: Value, last: Value) -> Value {
    json!({"phase": "Running", "containerStatuses": [
        {"name": "holder", "state": {"running": {}}},
        {"name": "agent", "state": state, "lastState": last, "restartCount": 7}]})
}

#[test]
fn an_agent_that_is_missing_has_its_cause() {
    let check = |spoil: &dyn Fn(&mut Facts), says: &str, chosen: bool| {
        let mut facts = facts();
        spoil(&mut facts);
        let found = missing(&facts);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["n2"], "{says}");
        let n2 = &found["n2"];
        assert!(n2.cause.contains(says) && !n2.remedy.is_empty(), "{says}: {n2:?}");
        assert_eq!(n2.chosen, chosen, "{says}");
    };
    let with = |pod: Value| move |f: &mut Facts| f.system_pods.push(pod.clone());
    check(&|_| {}, "no pod of DaemonSet weft-agent", false);
    check(
        &with(pod(container(
            json!({"waiting": {"reason": "ImagePullBackOff", "message": "no  such\nimage"}}),
            json!({}),
        ))),
        "container agent of weft-agent-n2: ImagePullBackOff: no such image",
        false,
    );
    let crash = pod(container(
        json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}),
        json!({"terminated": {"exitCode": 1, "reason": "Error"}}),
    ));
    check(&with(crash.clone()), "ended with code 1 (Error), 7 restarts", false);
    check(
        &|f| {
            f.system_pods.push(crash.clone());
            f.last_words.insert("weft-agent-n2".into(), "weft: cannot listen on 0.0.0.0:15020".into());
        },
        "its last words: weft: cannot listen on 0.0.0.0:15020",
        false,
    );
    let unready = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}],
        "containerStatuses": [{"name": "agent", "state": {"running": {}}}]});
    let event = |kind: &str, name: &str, reason: &str, message: &str, at: &str| {
        json!({"type": "Warning", "reason": reason, "message": message, "lastTimestamp": at,
            "involvedObject": {"kind": kind, "name": name}})
    };
    check(
        &|f| {
            f.system_pods.push(pod(unready.clone()));
            f.events = vec![
                event("Pod", "weft-agent-n2", "Unhealthy", "new", "2026-01-02T00:00:00Z"),
                event("Pod", "weft-agent-n2", "Unhealthy", "old", "2026-01-01T00:00:00Z"),
                event("Pod", "weft-agent-n1", "Other", "else", "2026-01-03T00:00:00Z"),
            ];
        },
        "is not ready: Unhealthy: new",
        false,
    );
    check(&with(pod(json!({"phase": "Pending"}))), "has not started", false);
    check(
        &with(pod(json!({"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory."}))),
        "was ended: Evicted: The node was low on memory.",
        false,
    );
    let mut ending = pod(unready.clone());
    ending["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    check(&with(ending), "is ending (told at 2026-01-01T00:00:00Z)", false);
    let mut waits = pod(json!({"phase": "Pending", "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "1 Insufficient memory"}]}));
    waits["spec"] = json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]}]}}}});
    check(&with(waits), "is not scheduled: Unschedulable: 1 Insufficient memory", false);
    check(
        &|f| {
            f.nodes[1]["status"]["conditions"] = json!([{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown",
            "message": "Kubelet stopped posting node status.", "lastTransitionTime": "2026-01-01T00:00:00Z"}])
        },
        "the node is not ready since 2026-01-01T00:00:00Z: NodeStatusUnknown",
        false,
    );
    check(
        &|f| {
            f.daemon_set.as_mut().unwrap()["spec"]["template"]["spec"]["nodeSelector"]["mesh"] = "yes".into()
        },
        "no label mesh",
        true,
    );
}

#[test]
fn taints_and_what_the_daemon_set_could_not_make_are_causes() {
    let check = |tolerations: Value, taint: Value, events: Vec<Value>, says: &str| {
        let mut facts = facts();
        facts.daemon_set.as_mut().unwrap()["spec"]["template"]["spec"]["tolerations"] = tolerations;
        facts.nodes[1]["spec"] = json!({"taints": [taint]});
        facts.events = events;
        let cause = missing(&facts)["n2"].cause.clone();
        assert!(cause.contains(says), "{says}: {cause}");
    };
    let gpu = || json!({"key": "gpu", "value": "a100", "effect": "NoSchedule"});
    check(json!([]), gpu(), vec![], "do not tolerate the node's taint gpu=a100:NoSchedule");
    check(json!([{"key": "gpu", "value": "h100", "effect": "NoSchedule"}]), gpu(), vec![], "do not tolerate");
    check(json!([{"key": "gpu", "operator": "Exists"}]), gpu(), vec![], "no pod of DaemonSet");
    check(json!([{"key": "gpu", "value": "a100"}]), gpu(), vec![], "no pod of DaemonSet");
    check(json!([]), json!({"key": "x", "effect": "PreferNoSchedule"}), vec![], "no pod of DaemonSet");
    let refused = json!({"type": "Warning", "reason": "FailedCreate", "message": "violates PodSecurity \"baseline\"",
        "involvedObject": {"kind": "DaemonSet", "name": "weft-agent"}});
    check(json!([{"operator": "Exists"}]), gpu(), vec![refused], "could not be made: violates PodSecurity");
}

#[test]
fn who_may_not_see_agents_is_told_of_none() {
    let mut blind = facts();
    blind.denied.insert("/api/v1/namespaces/weft-system/pods".into());
    assert_eq!(missing(&blind), BTreeMap::new());
    // Nodes are known by pods where they may not be read.
    let mut facts = facts();
    facts.nodes.clear();
    facts.pods =
        vec![json!({"spec": {"nodeName": "n3"}}), json!({"spec": {"nodeName": "n1"}}), json!({"spec": {}})];
    assert_eq!(missing(&facts).keys().collect::<Vec<_>>(), ["n3"]);
}
