//! install, uninstall, join and leave against a fake API server.

use super::{
    NAMESPACE,
    api::Cluster,
    args::{InstallArgs, MembershipArgs, Output, UninstallArgs},
    fake::{Fake, Objects},
    install, join,
    show::Show,
    uninstall,
};
use crate::cli::{Cli, Command};
use clap::Parser as _;
use http::Method;
use serde_json::{Value, json};
use std::{process::ExitCode, sync::Arc};

const CRD: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/";

fn parse(line: &str) -> Command {
    Cli::try_parse_from(line.split_whitespace()).unwrap_or_else(|e| panic!("{line}: {e}")).command
}

fn install_args(line: &str) -> InstallArgs {
    let Command::Install(args) = parse(line) else { panic!("{line}") };
    args
}

fn uninstall_args(line: &str) -> UninstallArgs {
    let Command::Uninstall(args) = parse(line) else { panic!("{line}") };
    args
}

fn membership(line: &str) -> (MembershipArgs, bool) {
    match parse(line) {
        Command::Join(args) => (args, true),
        Command::Leave(args) => (args, false),
        _ => panic!("{line}"),
    }
}

fn show() -> Show {
    Show::new(Output::Table)
}

fn good(code: ExitCode) -> bool {
    // ExitCode compares by its debug form only.
    format!("{code:?}") == format!("{:?}", ExitCode::SUCCESS)
}

/// What the API server and the other controllers do: definitions become established, workloads ready.
fn lively(method: &Method, path: &str, objects: &mut Objects) {
    if method != Method::PATCH {
        return;
    }
    let Some(object) = objects.get_mut(path) else { return };
    if path.starts_with(CRD) {
        object["status"] = json!({"conditions": [{"type": "Established", "status": "True"}]});
    } else if path == install::AGENTS {
        object["status"] = json!({"observedGeneration": 0, "desiredNumberScheduled": 2, "numberReady": 2, "updatedNumberScheduled": 2});
    } else if path == install::CONTROLLER {
        let replicas = object["spec"]["replicas"].clone();
        object["status"] = json!({"observedGeneration": 0, "readyReplicas": replicas, "updatedReplicas": replicas, "replicas": replicas});
    }
}

fn lively_fake() -> Fake {
    Fake { reaction: Box::new(lively), ..Fake::default() }
}

async fn install(cluster: &Cluster, line: &str) -> anyhow::Result<ExitCode> {
    install::run(cluster, &install_args(line), &show()).await
}

#[tokio::test]
async fn an_installation_applies_all_in_order_and_waits_and_the_next_changes_nothing() {
    let fake = Arc::new(lively_fake());
    let cluster = fake.cluster();
    assert!(good(
        install(&cluster, "weft install --image r.test/weft:1 --set config.mtls=strict").await.unwrap()
    ));
    let writes = fake.writes();
    assert!(writes.iter().all(|w| w.starts_with("PATCH")), "{writes:?}");
    assert!(writes[0].starts_with(&format!("PATCH {CRD}")), "{writes:?}");
    assert_eq!(writes[2], "PATCH /api/v1/namespaces/weft-system");
    assert!(writes.last().unwrap().contains("gatewayclasses/weft"), "{writes:?}");
    let image = |path| {
        let objects = fake.objects.lock();
        objects[path]["spec"]["template"]["spec"]["containers"][0]["image"].clone()
    };
    assert_eq!(image(install::AGENTS), "r.test/weft:1");

    // Again, with nothing given: the same settings, and not one object is another.
    let versions = |fake: &Fake| {
        let version = |o: &Value| o["metadata"]["resourceVersion"].clone();
        fake.objects.lock().iter().map(|(path, o)| (path.clone(), version(o))).collect::<Vec<_>>()
    };
    let before = versions(&fake);
    assert!(good(install(&cluster, "weft install").await.unwrap()));
    assert_eq!(image(install::AGENTS), "r.test/weft:1");
    assert_eq!(versions(&fake), before);
    assert!(good(install(&cluster, "weft install --reset").await.unwrap()));
    assert_ne!(image(install::AGENTS), "r.test/weft:1");
}

#[tokio::test]
async fn what_keeps_an_installation_from_starting_changes_nothing() {
    let check = async |fake: Fake, line: &str, starts: bool| {
        let fake = Arc::new(fake);
        let outcome = install(&fake.cluster(), line).await;
        assert_eq!(outcome.is_ok_and(good), starts, "{line}");
        assert_eq!(!fake.writes().is_empty(), starts, "{line}: {:?}", fake.writes());
    };
    let old = || lively_fake().with("/version", json!({"gitVersion": "v1.29.1"}));
    check(old(), "weft install", false).await;
    check(old(), "weft install --force", true).await;
    let helm = json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "Helm"}}});
    check(lively_fake().with(install::CONFIG, helm), "weft install", false).await;
    check(lively_fake(), "weft install --set replicas=3", false).await;
    check(lively_fake(), "weft install", true).await;
}

#[tokio::test]
async fn a_configuration_that_somebody_edited_is_kept_and_its_readers_restart() {
    let edited = json!({"metadata": {"name": "weft-config"}, "data": {"config.yaml": "kind: AgentConfig\nmtls: strict\n"}});
    let mut fake = lively_fake().with(install::CONFIG, edited);
    fake.refused.insert(install::CONFIG, (409, "conflict with \"kubectl-edit\": .data.config.yaml"));
    let (fake, plain) = (Arc::new(fake), Arc::new(lively_fake()));
    assert!(good(install(&fake.cluster(), "weft install").await.unwrap()));
    assert!(good(install(&plain.cluster(), "weft install").await.unwrap()));
    let sum = |fake: &Fake| {
        let objects = fake.objects.lock();
        objects[install::AGENTS]["spec"]["template"]["metadata"]["annotations"]["weft.dev/config-checksum"]
            .clone()
    };
    assert!(fake.objects.lock()[install::CONFIG]["data"]["config.yaml"].as_str().unwrap().contains("strict"));
    assert_ne!(sum(&fake), sum(&plain));
}

#[tokio::test]
async fn an_installation_takes_a_begun_uninstallation_back() {
    let fake =
        Arc::new(lively_fake().with(install::CONFIG, json!({"metadata": {}, "data": {"uninstall": "true"}})));
    assert!(good(install(&fake.cluster(), "weft install").await.unwrap()));
    assert!(fake.objects.lock()[install::CONFIG].pointer("/data/uninstall").is_none());
}

#[tokio::test]
async fn an_installation_that_does_not_become_ready_says_so_in_time() {
    let established = |method: &Method, path: &str, objects: &mut Objects| {
        if path.starts_with(CRD) {
            lively(method, path, objects);
        }
    };
    let fake = Arc::new(Fake { reaction: Box::new(established), ..Fake::default() });
    assert!(!good(install(&fake.cluster(), "weft install --timeout 10ms").await.unwrap()));
    assert!(good(install(&fake.cluster(), "weft install --wait=false").await.unwrap()));
}

#[test]
fn what_is_waited_for_names_the_pod_and_its_reason() {
    let pod = |status: Value| json!({"metadata": {"namespace": NAMESPACE, "name": "p"}, "spec": {"nodeName": "n1"}, "status": status});
    let check = |status: Value, says: &str| {
        let found = install::trouble(&pod(status.clone())).unwrap_or_default();
        assert!(found.contains(says) && found.is_empty() == says.is_empty(), "{status}: {found}");
    };
    let waiting = |reason: &str| json!({"containerStatuses": [{"name": "agent", "state": {"waiting": {"reason": reason, "message": "m"}}}]});
    check(waiting("ImagePullBackOff"), "on n1: container agent: ImagePullBackOff: m");
    check(waiting("ContainerCreating"), "");
    let ended = json!({"exitCode": 1, "reason": "Error"});
    check(
        json!({"containerStatuses": [{"name": "agent", "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": ended}}]}),
        "ended with code 1 (Error)",
    );
    check(
        json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no room"}]}),
        "Unschedulable: no room",
    );
    check(json!({"containerStatuses": [{"name": "agent", "state": {"running": {}}}]}), "");

    let ready = json!({"metadata": {"generation": 2}, "status": {"observedGeneration": 2, "desiredNumberScheduled": 1,
        "numberReady": 1, "updatedNumberScheduled": 1}});
    let controller = json!({"spec": {"replicas": 1}, "metadata": {"generation": 1},
        "status": {"observedGeneration": 1, "readyReplicas": 1, "updatedReplicas": 1, "replicas": 1}});
    assert!(install::waiting_for(&ready, &controller, &[]).is_empty());
    let mut old = ready.clone();
    old["status"]["observedGeneration"] = 1.into();
    assert_eq!(install::waiting_for(&old, &controller, &[]), ["agents: 1 of 1 ready"]);
    assert_eq!(install::waiting_for(&Value::Null, &controller, &[]), ["agents: 0 of 0 ready"]);
}

/// An installation with what the controller made, and agents that are clean when asked to leave.
fn installed(clean: &'static [&'static str]) -> Fake {
    let agent = move |pod: &str| match clean.iter().any(|node| pod.ends_with(node)) {
        true => Ok(json!({"uninstall": "done"})),
        false => Ok(json!({"uninstall": "leaving", "pods": [{"state": "captured"}]})),
    };
    // A DaemonSet's pods go with it.
    let reaction = |method: &Method, path: &str, objects: &mut Objects| {
        if method == Method::DELETE && path == install::AGENTS {
            objects.retain(|path, _| !path.contains("/pods/weft-agent-"));
        }
    };
    let ours = json!({"metadata": {"namespace": "shop", "name": "edge-weft", "labels": {"weft.dev/managed-by": "weft-controller"}}});
    let theirs = json!({"metadata": {"namespace": "shop", "name": "cart"}});
    Fake { agent: Box::new(agent), reaction: Box::new(reaction), ..Fake::default() }
        .with_agents()
        .with(install::CONFIG, json!({"metadata": {"name": "weft-config"}, "data": {}}))
        .with(install::CONTROLLER, json!({"metadata": {"name": "weft-controller"}}))
        .with("/api/v1/namespaces/shop/services/edge-weft", ours.clone())
        .with("/api/v1/namespaces/shop/services/cart", theirs)
        .with("/api/v1/namespaces/weft-system", json!({"metadata": {"name": "weft-system"}}))
        .with("/api/v1/namespaces/weft-system/secrets/weft-ca", json!({}))
        .with(&format!("{CRD}workloadslices.weft.dev"), json!({}))
}

#[tokio::test]
async fn pods_leave_first_then_agents_then_the_rest() {
    let check = async |line: &str, purged: bool| {
        let fake = Arc::new(installed(&["n1", "n2"]));
        let done = uninstall::run(&fake.cluster(), &uninstall_args(line), &show()).await.unwrap();
        assert!(good(done), "{line}");
        let writes = fake.writes();
        assert_eq!(writes[0], format!("PATCH {}", install::CONFIG), "{line}");
        assert_eq!(writes[1], format!("DELETE {}", install::AGENTS), "{line}");
        let objects = fake.objects.lock();
        assert!(!objects.contains_key("/api/v1/namespaces/shop/services/edge-weft"), "{line}");
        assert!(objects.contains_key("/api/v1/namespaces/shop/services/cart"), "{line}");
        assert!(
            !objects.contains_key(install::CONFIG) && !objects.contains_key(install::CONTROLLER),
            "{line}"
        );
        for kept in [
            "/api/v1/namespaces/weft-system",
            "/api/v1/namespaces/weft-system/secrets/weft-ca",
            &format!("{CRD}workloadslices.weft.dev"),
        ] {
            assert_eq!(objects.contains_key(kept), !purged, "{line}: {kept}");
        }
    };
    check("weft uninstall", false).await;
    check("weft uninstall --purge", true).await;
}

#[tokio::test]
async fn agents_stay_while_a_node_is_not_clean() {
    let fake = Arc::new(installed(&["n1"]));
    let done =
        uninstall::run(&fake.cluster(), &uninstall_args("weft uninstall --drain 0s --timeout 20ms"), &show())
            .await
            .unwrap();
    assert!(!good(done));
    assert_eq!(fake.writes(), [format!("PATCH {}", install::CONFIG)]);
    let done = uninstall::run(
        &fake.cluster(),
        &uninstall_args("weft uninstall --drain 0s --timeout 20ms --force"),
        &show(),
    )
    .await
    .unwrap();
    assert!(good(done));
    assert!(!fake.objects.lock().contains_key(install::AGENTS));
}

/// Review 1: where n2's agent was missing, or the DaemonSet gone, n2's captured pods were left cut off, and every node was
/// said to be clean.
#[tokio::test]
async fn a_node_with_captured_pods_and_no_agent_keeps_weft_installed_until_it_is_cleaned() {
    let slice = "/apis/weft.dev/v1alpha1/namespaces/shop/workloadslices/weft-0";
    let pod = "/api/v1/namespaces/weft-system/pods/weft-agent-n2";
    for (what, agents_gone) in [("its agent", false), ("every agent", true)] {
        let left = json!({"metadata": {"namespace": "shop", "name": "weft-0"},
            "workloads": [{"name": "web", "node": "n2", "captured": true}]});
        let fake = Arc::new(installed(&["n1"]).with(slice, left));
        fake.objects.lock().remove(pod);
        if agents_gone {
            fake.objects
                .lock()
                .retain(|path, _| path != install::AGENTS && !path.contains("/pods/weft-agent-"));
        }
        let args = uninstall_args("weft uninstall --drain 0s --timeout 20ms");
        let run = async || good(uninstall::run(&fake.cluster(), &args, &show()).await.unwrap());
        assert!(!run().await, "{what}");
        assert!(fake.writes().iter().all(|w| w.starts_with("PATCH")), "{what}: {:?}", fake.writes());
        // `weft node clean n2` tells the slices, and the uninstallation under way.
        fake.objects.lock().get_mut(slice).unwrap()["workloads"][0]["captured"] = false.into();
        let config = &mut fake.objects.lock()[install::CONFIG].clone();
        assert_eq!(config["data"]["uninstall"], "true", "{what}");
        config["metadata"]["annotations"] = json!({uninstall::nodes::CLEANED: "n2"});
        fake.objects.lock().insert(install::CONFIG.into(), config.take());
        assert!(run().await, "{what}");
        assert!(!fake.objects.lock().contains_key(install::CONTROLLER), "{what}");
    }
}

/// What was cleaned before an uninstallation was begun may have had an agent since.
#[tokio::test]
async fn an_uninstallation_that_begins_forgets_what_was_cleaned_before() {
    let config = json!({"metadata": {"annotations": {uninstall::nodes::CLEANED: "n2"}}, "data": {}});
    let fake = Arc::new(installed(&["n1"]).with(install::CONFIG, config));
    fake.objects.lock().remove("/api/v1/namespaces/weft-system/pods/weft-agent-n2");
    let args = uninstall_args("weft uninstall --drain 0s --timeout 20ms");
    assert!(!good(uninstall::run(&fake.cluster(), &args, &show()).await.unwrap()));
    let config = fake.objects.lock()[install::CONFIG].clone();
    assert_eq!(config["metadata"]["annotations"], json!({}));
}

#[tokio::test]
async fn agents_are_told_how_long_connections_may_go_on() {
    let check = async |line: &str, drain: &str| {
        let fake = Arc::new(installed(&["n1", "n2"]));
        let done = Arc::new(parking_lot::Mutex::new(Value::Null));
        let config = fake.objects.lock()[install::CONFIG].clone();
        let seen = done.clone();
        let watching = Fake {
            reaction: Box::new(move |method, path, objects| {
                if method == Method::PATCH && path == install::CONFIG {
                    *seen.lock() = objects[path]["data"].clone();
                }
                if method == Method::DELETE && path == install::AGENTS {
                    objects.retain(|path, _| !path.contains("/pods/weft-agent-"));
                }
            }),
            ..installed(&["n1", "n2"]).with(install::CONFIG, config)
        };
        assert!(good(
            uninstall::run(&Arc::new(watching).cluster(), &uninstall_args(line), &show()).await.unwrap()
        ));
        assert_eq!(*done.lock(), json!({"uninstall": "true", "drain": drain}), "{line}");
    };
    check("weft uninstall", "0h30s0ms").await;
    check("weft uninstall --drain 1h1m1s", "1h61s0ms").await;
    check("weft uninstall --drain 250ms", "0h0s250ms").await;
}

/// What the chart's hook runs: everybody leaves, and Helm finds its own objects for it to remove.
#[tokio::test]
async fn only_leaving_ends_the_controller_and_what_it_made_and_leaves_the_rest_to_helm() {
    let fake = Arc::new(installed(&["n1", "n2"]));
    let args = uninstall_args("weft uninstall --leave-only");
    assert!(good(uninstall::run(&fake.cluster(), &args, &show()).await.unwrap()));
    assert_eq!(
        fake.writes(),
        [
            format!("PATCH {}", install::CONFIG),
            format!("DELETE {}", install::CONTROLLER),
            "DELETE /api/v1/namespaces/shop/services/edge-weft".to_owned(),
        ]
    );
    // Again, as by a hook that is tried a second time.
    assert!(good(uninstall::run(&fake.cluster(), &args, &show()).await.unwrap()));
    assert!(fake.objects.lock().contains_key(install::AGENTS));
    assert!(Cli::try_parse_from(["weft", "uninstall", "--leave-only", "--purge"]).is_err());
}

/// E11: Gateways still said `PROGRAMMED True` when Weft was gone.
#[tokio::test]
async fn an_uninstallation_waits_until_the_controllers_words_are_taken_back() {
    let path = |plural: &str, name: &str| {
        format!("/apis/gateway.networking.k8s.io/v1/namespaces/shop/{plural}/{name}")
    };
    let says = |status: &str| json!({"conditions": [{"type": "Programmed", "status": status}]});
    let entry = |list: &str, controller: &str| json!({list: [{"controllerName": controller}]});
    let (us, them) = ("weft.dev/gateway-controller", "example.test/other");
    let meta = |name: &str| json!({"namespace": "shop", "name": name});
    let gateway = |name: &str, class: &str| json!({"metadata": meta(name), "spec": {"gatewayClassName": class}, "status": says("True")});
    let with = |fake: Fake| {
        fake.with("/apis/gateway.networking.k8s.io/v1/gatewayclasses/weft", json!({"metadata": {"name": "weft"}, "spec": {"controllerName": us}}))
            .with(&path("gateways", "edge"), gateway("edge", "weft"))
            .with(&path("gateways", "theirs"), gateway("theirs", "other"))
            .with(&path("listenersets", "more"), json!({"metadata": meta("more"), "spec": {"parentRef": {"name": "edge"}}, "status": says("True")}))
            .with(&path("httproutes", "web"), json!({"metadata": meta("web"), "status": entry("parents", us)}))
            .with(&path("httproutes", "theirs"), json!({"metadata": meta("theirs"), "status": entry("parents", them)}))
            .with(&path("backendtlspolicies", "tls"), json!({"metadata": meta("tls"), "status": entry("ancestors", us)}))
            .with(install::CONTROLLER, json!({"metadata": {"name": "weft-controller"}, "status": {"readyReplicas": 1}}))
    };
    let ours =
        ["Gateway shop/edge", "ListenerSet shop/more", "HTTPRoute shop/web", "BackendTLSPolicy shop/tls"];
    let fake = Arc::new(with(Fake::default()));
    assert_eq!(super::words::ours(&fake.cluster()).await.unwrap(), ours);
    // A controller that needs a few looks to take each back.
    let looks = std::sync::atomic::AtomicU32::new(0);
    let reaction = move |method: &Method, at: &str, objects: &mut Objects| {
        if method == Method::GET && at.ends_with("backendtlspolicies") {
            let which = ["gateways/edge", "listenersets/more", "httproutes/web", "backendtlspolicies/tls"];
            let look = looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed) as usize;
            if let Some((plural, name)) = which.get(look).and_then(|w| w.split_once('/'))
                && let Some(object) = objects.get_mut(&path(plural, name))
            {
                object["status"] =
                    json!({"conditions": [{"type": "Programmed", "status": "Unknown"}], "parents": []});
            }
        }
        if method == Method::DELETE && at == install::AGENTS {
            objects.retain(|path, _| !path.contains("/pods/weft-agent-"));
        }
    };
    let fake = Arc::new(with(Fake { reaction: Box::new(reaction), ..installed(&["n1", "n2"]) }));
    assert!(good(uninstall::run(&fake.cluster(), &uninstall_args("weft uninstall"), &show()).await.unwrap()));
    assert_eq!(super::words::ours(&fake.cluster()).await.unwrap(), Vec::<String>::new());
    assert!(!fake.objects.lock().contains_key(install::CONTROLLER), "only then it went");
}

/// A namespace with a pod each of a kind; the controller captures and lets go a pod a request after its label changed.
fn shop(label: Option<&str>) -> Fake {
    let reaction = |method: &Method, path: &str, objects: &mut Objects| {
        if method != Method::GET || !path.ends_with("workloadslices") {
            return;
        }
        let joined = objects["/api/v1/namespaces/shop"]["metadata"]["labels"]["weft.dev/mesh"] == "enabled";
        let own = |o: &Objects| {
            o["/api/v1/namespaces/shop/pods/web"]["metadata"]["labels"]["weft.dev/mesh"].clone()
        };
        let captured = own(objects) == "enabled" || (joined && own(objects) != "disabled");
        let slice = json!({"metadata": {"namespace": "shop", "name": "weft-0"},
            "workloads": [{"name": "web", "uid": "u", "captured": captured}]});
        objects.insert("/apis/weft.dev/v1alpha1/namespaces/shop/workloadslices/weft-0".into(), slice);
    };
    let pod = |name: &str, host: bool| {
        json!({"metadata": {"namespace": "shop", "name": name, "uid": "u", "labels": {"app": "x"}},
        "spec": {"nodeName": "n1", "hostNetwork": host}, "status": {"phase": "Running"}})
    };
    let labels = label.map_or_else(|| json!({"a": "b"}), |value| json!({"weft.dev/mesh": value}));
    Fake { reaction: Box::new(reaction), ..Fake::default() }
        .with_agents()
        .with("/api/v1/namespaces/shop", json!({"metadata": {"name": "shop", "labels": labels}}))
        .with("/api/v1/namespaces/shop/pods/web", pod("web", false))
        .with("/api/v1/namespaces/shop/pods/host", pod("host", true))
}

#[tokio::test]
async fn joining_and_leaving_set_one_label_and_follow_the_pods() {
    let check = async |line: &str, before: Option<&str>, object: &str, after: Value| {
        let fake = Arc::new(shop(before));
        let (args, enter) = membership(line);
        assert!(good(join::run(&fake.cluster(), &args, enter, &show()).await.unwrap()), "{line}");
        let label = fake.objects.lock()[object]["metadata"]["labels"]["weft.dev/mesh"].clone();
        assert_eq!(label, after, "{line}");
        let writes = fake.writes();
        assert!(
            writes.iter().all(|w| *w == format!("PATCH {object}")) && writes.len() <= 1,
            "{line}: {writes:?}"
        );
    };
    let (namespace, pod) = ("/api/v1/namespaces/shop", "/api/v1/namespaces/shop/pods/web");
    check("weft join shop", None, namespace, json!("enabled")).await;
    check("weft join shop", Some("enabled"), namespace, json!("enabled")).await;
    check("weft join pod/web -n shop", None, pod, json!("enabled")).await;
    check("weft leave shop", Some("enabled"), namespace, Value::Null).await;
    check("weft leave pod/web -n shop", Some("enabled"), pod, json!("disabled")).await;
    check("weft leave pod/web -n shop", None, pod, Value::Null).await;
}

#[tokio::test]
async fn who_cannot_join_is_told_why() {
    let check = async |fake: Fake, line: &str, says: &str| {
        let fake = Arc::new(fake);
        let (args, enter) = membership(line);
        let error = join::run(&fake.cluster(), &args, enter, &show()).await.unwrap_err();
        assert!(format!("{error:#}").contains(says), "{line}: {error:#}");
        assert!(fake.writes().is_empty(), "{line}");
    };
    check(shop(None), "weft join kube-system", "never join").await;
    check(shop(None), "weft join weft-system", "never join").await;
    check(shop(None), "weft join nowhere", "none of this name").await;
    check(shop(None), "weft join pod/nobody -n shop", "not there").await;
    check(shop(None), "weft join deployment/web", "only a NAMESPACE or pod/NAME").await;
    check(Fake::default(), "weft join shop", "weft install").await;
}

#[tokio::test]
async fn a_pod_that_is_not_captured_in_time_is_a_failure() {
    let fake = Arc::new(Fake { reaction: Box::new(|_, _, _| {}), ..shop(None) });
    let (args, enter) = membership("weft join shop --timeout 20ms");
    assert!(!good(join::run(&fake.cluster(), &args, enter, &show()).await.unwrap()));
}
