//! E5: every command with an application developer's rights: ClusterRole `edit`, with what Weft adds to it, in one namespace.

use super::{
    bundle,
    check::{self, Level},
    facts::{self, Want},
    fake::{Fake, Objects, Role},
    install, status,
};
use crate::cli::{Cli, Command, NodeCommand};
use clap::Parser as _;
use http::Method;
use serde_json::{Value, json};
use std::{process::ExitCode, sync::Arc};

/// What Kubernetes itself has in `edit`, as far as commands ask for it.
fn edit() -> Vec<Value> {
    let read = ["get", "list", "watch"];
    let write = ["create", "delete", "deletecollection", "patch", "update"];
    vec![
        json!({"apiGroups": [""], "resources": ["configmaps", "events", "namespaces", "pods", "serviceaccounts", "services", "secrets"],
            "verbs": read}),
        json!({"apiGroups": [""], "resources": ["configmaps", "pods", "serviceaccounts", "services", "secrets"], "verbs": write}),
        json!({"apiGroups": ["apps"], "resources": ["daemonsets", "deployments"], "verbs": read}),
        json!({"apiGroups": ["apps"], "resources": ["daemonsets", "deployments"], "verbs": write}),
        json!({"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": read}),
        json!({"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": read}),
    ]
}

/// `edit`, with the rules that Weft's own ClusterRole adds to it.
fn developer() -> Role {
    let objects = bundle::objects(&bundle::Settings::default(), None);
    let ours =
        objects.iter().find(|o| super::api::key(o) == "weft-application-developer").expect("the persona");
    assert_eq!(super::api::label(ours, "rbac.authorization.k8s.io/aggregate-to-edit"), Some("true"));
    let rules = ours["rules"].as_array().expect("rules").iter().cloned().chain(edit()).collect();
    Role { namespace: "shop", rules }
}

const SLICE: &str = "/apis/weft.dev/v1alpha1/namespaces/shop/workloadslices/weft-0";

/// A cluster with Weft, whose agents capture what is labelled.
fn cluster() -> Fake {
    let pod = |name: &str| {
        json!({"metadata": {"namespace": "shop", "name": name, "uid": name, "labels": {"app": name}},
        "spec": {"nodeName": "n1"}, "status": {"phase": "Running"}})
    };
    let capture = |method: &Method, path: &str, objects: &mut Objects| {
        if method == Method::PATCH && path.contains("/pods/") {
            let wanted = objects[path]["metadata"]["labels"]["weft.dev/mesh"] == "enabled";
            objects.get_mut(SLICE).expect("the slice")["workloads"][0]["captured"] = wanted.into();
        }
    };
    let refs = json!([{"type": "ResolvedRefs", "status": "False", "reason": "BackendNotFound", "message": "no Service cart"}]);
    let fake = Fake { reaction: Box::new(capture), ..Fake::default() };
    fake.with_agents()
        .with(install::CONTROLLER, json!({"metadata": {"name": "weft-controller"}}))
        .with("/api/v1/namespaces/shop", json!({"metadata": {"name": "shop"}}))
        .with("/api/v1/namespaces/other", json!({"metadata": {"name": "other", "labels": {"weft.dev/mesh": "enabled"}}}))
        .with("/api/v1/namespaces/shop/pods/web", pod("web"))
        .with(SLICE, json!({"metadata": {"namespace": "shop", "name": "weft-0"},
            "workloads": [{"name": "web", "uid": "web", "captured": false}]}))
        .with("/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes/r", json!({
            "metadata": {"namespace": "shop", "name": "r"}, "spec": {},
            "status": {"parents": [{"controllerName": weft_core::model::CONTROLLER_NAME, "parentRef": {"name": "edge"}, "conditions": refs}]}}))
}

async fn run(fake: &Arc<Fake>, line: &str) -> Result<bool, String> {
    let command =
        Cli::try_parse_from(line.split_whitespace()).unwrap_or_else(|e| panic!("{line}: {e}")).command;
    let (cluster, show) = (fake.cluster(), super::Show::new(super::args::Output::Table));
    let outcome = match &command {
        Command::Install(args) => install::run(&cluster, args, &show).await,
        Command::Uninstall(args) => super::uninstall::run(&cluster, args, &show).await,
        Command::Join(args) => super::join::run(&cluster, args, true, &show).await,
        Command::Leave(args) => super::join::run(&cluster, args, false, &show).await,
        Command::Check(args) => check::run(&cluster, args, &show).await,
        Command::Status(args) => status::run(&cluster, args, &show).await,
        Command::Node(node) => {
            let NodeCommand::Clean(args) = &node.command;
            super::clean::run(&cluster, args, &show).await
        }
        _ => panic!("{line}"),
    };
    outcome
        .map(|code| format!("{code:?}") == format!("{:?}", ExitCode::SUCCESS))
        .map_err(|e| format!("{e:#}"))
}

/// E5: "Weft is not installed", since a 403 counted as absent; `join pod/…` wanted the right to read daemonsets.
#[tokio::test]
async fn every_command_works_with_an_application_developers_rights() {
    let check = async |line: &str, expected: Result<bool, &str>, writes: &[&str]| {
        let fake = Arc::new(Fake { role: Some(developer()), ..cluster() });
        match (run(&fake, line).await, expected) {
            (Ok(good), Ok(expected)) => assert_eq!(good, expected, "{line}"),
            (Err(error), Err(says)) => assert!(error.contains(says), "{line}: {error}"),
            (outcome, expected) => panic!("{line}: {outcome:?}, not {expected:?}"),
        }
        let fake_writes = fake.writes();
        assert_eq!(fake_writes, writes, "{line}");
    };
    let pod = "PATCH /api/v1/namespaces/shop/pods/web";
    let space = "PATCH /api/v1/namespaces/shop";
    check("weft join pod/web -n shop", Ok(true), &[pod]).await;
    check("weft leave pod/web -n shop", Ok(true), &[]).await;
    check(
        "weft join shop",
        Err(
            "you may not label it; whoever owns it may, and pods join one by one: weft join pod/NAME -n shop",
        ),
        &[space],
    )
    .await;
    check("weft leave shop", Ok(true), &[]).await;
    check("weft join pod/web -n other", Err("pods is forbidden"), &[]).await;
    check("weft join other", Err("namespace other: not readable by you"), &[]).await;
    check("weft status -n shop", Ok(true), &[]).await;
    // A route of theirs is broken: that is an error, and what they may not see is none.
    check("weft check -n shop", Ok(false), &[]).await;
    check("weft check --pre", Ok(true), &[]).await;
    check("weft node clean n1", Err("nodes is forbidden"), &[]).await;
    check("weft install", Err("ask for the right"), &[]).await;
    check("weft uninstall", Err("ask for the right"), &[]).await;
}

#[tokio::test]
async fn screens_show_what_a_developer_may_see_and_say_what_not() {
    let mut fake = Fake { role: Some(developer()), ..cluster() };
    fake.objects.get_mut().get_mut("/api/v1/namespaces/shop/pods/web").unwrap()["metadata"]["labels"]["weft.dev/mesh"] =
        "enabled".into();
    let facts = facts::gather(&Arc::new(fake).cluster(), Want::All, "shop").await.unwrap();
    let screen = serde_json::to_value(status::summary(&facts)).unwrap();
    assert_eq!((&screen["installed"], &screen["seen"]), (&json!(true), &json!("kinds")));
    assert_eq!(screen["namespaces"][0]["namespace"], "shop");
    assert_eq!(screen["namespaces"][0]["mtls"], "unknown");
    assert_eq!(screen["conditions"][0]["object"], "HTTPRoute shop/r");
    assert_eq!(
        screen["pods"][0]["why"],
        "it is not captured yet; what its node's agent says of it is not readable by you"
    );
    let denied: Vec<&str> = facts.denied.iter().map(String::as_str).collect();
    for path in [install::AGENTS, install::CONFIG, facts::SYSTEM_PODS, "/api/v1/nodes"] {
        assert!(denied.contains(&path), "{path}: {denied:?}");
    }
    assert!(facts.narrowed.contains(facts::SLICES), "{:?}", facts.narrowed);
    let found = check::findings(&facts, Want::All);
    let errors: Vec<_> = found.iter().filter(|f| f.level == Level::Error).map(|f| f.id).collect();
    assert_eq!(errors, ["WEFT-C031", "WEFT-C055"], "{found:#?}");
    let says = |part: &str| found.iter().any(|f| f.message.contains(part));
    assert!(!says("not installed") && !says("no controller leads") && !says("no root.pem"), "{found:#?}");
    assert!(
        says("looked at in namespace shop only") && says("daemonsets/weft-agent: not readable by you"),
        "{found:#?}"
    );
}
