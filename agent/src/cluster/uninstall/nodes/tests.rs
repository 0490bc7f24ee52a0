use super::*;
use crate::cluster::fake::{agent_pod, node};

/// n1 is left by its agent; n2 has none, for whatever cause, and one captured pod.
fn facts() -> Facts {
    let slice = json!({"metadata": {"namespace": "shop"}, "workloads": [
        {"name": "web", "node": "n1", "captured": true}, {"name": "cart", "node": "n2", "captured": true},
        {"name": "out", "node": "n2", "captured": false}, {"name": "old", "node": "n9", "captured": true}]});
    Facts {
        daemon_set: Some(json!({"spec": {"template": {"spec": {}}}})),
        config: Some(json!({"data": {"uninstall": "true"}})),
        nodes: vec![node("n1"), node("n2")],
        system_pods: vec![agent_pod("n1")],
        slices: vec![slice],
        ..Facts::default()
    }
}

#[test]
fn every_node_that_has_captured_pods_or_should_have_an_agent_is_waited_for() {
    let done = NodeReport { uninstall: "done".into(), ..NodeReport::default() };
    let reports = Reports::from([("n1".to_owned(), Ok(done))]);
    // What is said of n2, and whether nobody will come who could change it; no other node is open.
    let check = |what: &str, spoil: &dyn Fn(&mut Facts), said: Option<(&str, bool)>| {
        let mut facts = facts();
        spoil(&mut facts);
        let open = open(&facts, &reports);
        let names: Vec<&str> = open.keys().map(String::as_str).collect();
        assert_eq!(names, said.map(|_| "n2").into_iter().collect::<Vec<_>>(), "{what}");
        let Some((words, nobody)) = said else { return };
        let left = &open["n2"];
        assert!(left.what.contains(words) && left.nobody == nobody, "{what}: {left:?}");
    };
    let free = |facts: &mut Facts| facts.slices.clear();
    let left_out = |facts: &mut Facts| {
        facts.daemon_set = Some(json!({"spec": {"template": {"spec": {"nodeSelector": {"mesh": "yes"}}}}}));
    };
    let cleaned = |facts: &mut Facts| {
        let notes = json!({"annotations": {CLEANED: "n2,n3"}});
        facts.config = Some(json!({"metadata": notes, "data": {"uninstall": "true"}}));
    };
    check("no pod of the DaemonSet", &|_| {}, Some(("1 pod cut off (shop/cart); weft node clean n2", false)));
    check("left out by the selector", &left_out, Some(("nodeSelector wants mesh=yes", true)));
    check("left out, and nothing captured", &|f| (free(f), left_out(f)).0, None);
    check("it should have an agent, whoever is there", &free, Some(("no pod of DaemonSet", false)));
    check("cleaned meanwhile", &cleaned, None);
    check(
        "cleaned before it began",
        &|f| {
            cleaned(f);
            f.config.as_mut().unwrap()["data"] = json!({});
        },
        Some(("cut off", false)),
    );
    check("the DaemonSet is gone", &|f| f.daemon_set = None, Some(("is not there", true)));
    check("it is gone, and nothing captured", &|f| (free(f), f.daemon_set.take()).0, None);
    check(
        "nodes may not be read",
        &|f| {
            f.nodes.clear();
            f.slices[0]["workloads"].as_array_mut().unwrap().pop();
        },
        Some(("none is there", false)),
    );
    check(
        "its agent does not answer",
        &|f| f.system_pods.push(agent_pod("n2")),
        Some(("does not run", false)),
    );
    check(
        "that, and cleaned",
        &|f| {
            cleaned(f);
            f.system_pods.push(agent_pod("n2"));
        },
        None,
    );
}
