use super::*;
use crate::{
    cli::{Cli, Command, NodeCommand},
    cluster::{
        args::Output,
        fake::{Fake, Objects},
    },
};
use clap::Parser as _;
use http::Method;
use std::sync::Arc;

const POD: &str = "/api/v1/namespaces/weft-system/pods/weft-clean-n2";

const SLICE: &str = "/apis/weft.dev/v1alpha1/namespaces/shop/workloadslices/weft-0";

fn args(line: &str) -> CleanArgs {
    let Command::Node(node) = Cli::try_parse_from(line.split_whitespace()).unwrap().command else {
        panic!("{line}")
    };
    let NodeCommand::Clean(args) = node.command;
    args
}

/// A cluster whose n2 has no agent. The pod becomes `status` as soon as it is there.
fn cluster_with(status: Value) -> Fake {
    let reaction = move |method: &Method, path: &str, objects: &mut Objects| {
        if *method == Method::POST && path.ends_with("/pods") {
            objects.insert(
                POD.into(),
                json!({"metadata": {"name": "weft-clean-n2"}, "status": status,
                "spec": {"containers": [{"image": "weft:1"}]}}),
            );
        }
    };
    let fake = Fake { reaction: Box::new(reaction), ..Fake::default() }.with_agents();
    fake.objects.lock().remove("/api/v1/namespaces/weft-system/pods/weft-agent-n2");
    fake.with("/api/v1/namespaces/weft-system", json!({"metadata": {"name": "weft-system"}}))
        .with(
            SLICE,
            json!({"metadata": {"namespace": "shop", "name": "weft-0", "resourceVersion": "1"}, "workloads": [
            {"name": "a", "node": "n2", "captured": true}, {"name": "b", "node": "n1", "captured": true},
            {"name": "c", "node": "n2", "captured": false}]}),
        )
        .with(AGENTS, built_in())
        .with(&format!("{POD}/log"), "pod u: the mesh's rules are out\n".into())
}

#[tokio::test]
async fn a_node_is_cleaned_by_a_pod_that_is_gone_afterwards() {
    let ended = |code: i32| {
        json!({"phase": if code == 0 { "Succeeded" } else { "Failed" },
        "containerStatuses": [{"state": {"terminated": {"exitCode": code}}}]})
    };
    for (code, clean) in [(0, true), (1, false)] {
        let fake = Arc::new(cluster_with(ended(code)));
        let done =
            run(&fake.cluster(), &args("weft node clean n2"), &Show::new(Output::Table)).await.unwrap();
        assert_eq!(format!("{done:?}") == format!("{:?}", ExitCode::SUCCESS), clean);
        assert!(!fake.objects.lock().contains_key(POD));
        let slice = fake.objects.lock()[SLICE].clone();
        let captured: Vec<_> =
            slice["workloads"].as_array().unwrap().iter().map(|w| w["captured"].clone()).collect();
        // Peers are told only of a node that is clean, and of no other node's pods.
        assert_eq!(captured, [json!(!clean), json!(true), json!(false)]);
        let made = format!("POST {}", POD.rsplit_once('/').unwrap().0);
        assert!(fake.writes().contains(&made), "{:?}", fake.writes());
    }
}

#[tokio::test]
async fn an_uninstallation_under_way_is_told_that_the_node_is_clean() {
    let ended =
        json!({"phase": "Succeeded", "containerStatuses": [{"state": {"terminated": {"exitCode": 0}}}]});
    for (uninstall, noted) in [("true", json!("n0,n2")), ("false", json!("n0"))] {
        let config = json!({"metadata": {"annotations": {CLEANED: "n0"}}, "data": {"uninstall": uninstall}});
        let fake = Arc::new(cluster_with(ended.clone()).with(CONFIG, config));
        run(&fake.cluster(), &args("weft node clean n2"), &Show::new(Output::Table)).await.unwrap();
        assert_eq!(fake.objects.lock()[CONFIG]["metadata"]["annotations"][CLEANED], noted, "{uninstall}");
    }
}

#[tokio::test]
async fn what_keeps_a_node_from_being_cleaned_is_said() {
    let check = async |fake: Fake, line: &str, says: &str| {
        let fake = Arc::new(fake);
        let error = run(&fake.cluster(), &args(line), &Show::new(Output::Table)).await.unwrap_err();
        assert!(format!("{error:#}").contains(says), "{line}: {error:#}");
        assert!(!fake.objects.lock().contains_key(POD), "{line}: no pod is left");
    };
    let waits = |reason: &str| {
        cluster_with(json!({"phase": "Pending", "containerStatuses": [
            {"state": {"waiting": {"reason": reason, "message": "not found"}}}]}))
    };
    check(
        waits("ImagePullBackOff"),
        "weft node clean n2",
        "image weft:1 does not run there: ImagePullBackOff",
    )
    .await;
    check(waits("ContainerCreating"), "weft node clean n2 --timeout 20ms", "the node is not ready").await;
    let mut ready = crate::cluster::fake::node("n2");
    ready["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
    let slow = waits("ContainerCreating").with("/api/v1/nodes/n2", ready);
    check(slow, "weft node clean n2 --timeout 20ms", "ContainerCreating: not found").await;
    let refused = cluster_with(json!({"phase": "Failed", "reason": "OutOfpods", "message": "no room"}));
    check(refused, "weft node clean n2", "OutOfpods: no room").await;
    check(cluster_with(json!({})), "weft node clean n9", "none of this name").await;
    check(cluster_with(json!({})), "weft node clean n1", "an agent serves there (weft-agent-n1)").await;
}

#[test]
fn the_pod_may_and_mounts_what_the_agents_do_and_no_more() {
    let set = built_in();
    let made = pod(&set, &args("weft node clean n2 --force --image other:2"), "n2", "weft-system");
    let container = &made["spec"]["containers"][0];
    assert_eq!(container["image"], "other:2");
    assert_eq!(container["command"], json!(["weft", "node", "clean", "--here", "--force"]));
    let agent = &set["spec"]["template"]["spec"]["containers"][1];
    assert_eq!(container["securityContext"], agent["securityContext"]);
    let names = |of: &Value, list: &str| {
        let all = of[list].as_array().unwrap().iter();
        all.map(|v| v["name"].as_str().unwrap().to_owned()).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(names(&made["spec"], "volumes"), VOLUMES.map(str::to_owned).into());
    assert_eq!(names(container, "volumeMounts"), VOLUMES.map(str::to_owned).into());
    assert_eq!(
        (&made["spec"]["nodeName"], &made["spec"]["automountServiceAccountToken"]),
        (&json!("n2"), &json!(false))
    );
    // An agent of the version before had no mount of the cache; its folders may be elsewhere.
    let mut old = set;
    let spec = &mut old["spec"]["template"]["spec"];
    for volume in spec["volumes"].as_array_mut().unwrap() {
        match text(volume, "/name") {
            "cni-cache" => volume["name"] = "none".into(),
            "cni-bin" => volume["hostPath"]["path"] = "/var/lib/rancher/k3s/data/cni".into(),
            _ => {}
        }
    }
    let made = pod(&old, &args("weft node clean n2"), "n2", "weft-system");
    assert_eq!(names(&made["spec"], "volumes"), VOLUMES.map(str::to_owned).into());
    assert!(made["spec"]["volumes"].to_string().contains("/var/lib/rancher/k3s/data/cni"));
}
