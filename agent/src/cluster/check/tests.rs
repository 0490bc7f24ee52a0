use super::*;
use crate::cluster::{
    BudgetReport, ListenerReport,
    fake::{Fake, agent_pod, node},
};
use std::sync::Arc;

/// The highest level that `id` has under `facts`.
fn level(facts: &Facts, want: Want, id: &str) -> Option<Level> {
    findings(facts, want).into_iter().filter(|f| f.id == id).map(|f| f.level).max()
}

fn fine() -> Facts {
    Facts {
        version: json!({"gitVersion": "v1.36.3"}),
        may_install: true,
        nodes: vec![node("n1")],
        crds: [
            "gateways",
            "gatewayclasses",
            "backendtlspolicies",
            "grpcroutes",
            "httproutes",
            "listenersets",
            "referencegrants",
            "tcproutes",
            "tlsroutes",
            "udproutes",
        ]
        .map(|plural| crd(plural, "v1.6.1", "experimental"))
        .into(),
        upgrade_guard: true,
        ..Facts::default()
    }
}

fn crd(plural: &str, bundle: &str, channel: &str) -> Value {
    json!({"metadata": {"name": format!("{plural}.{GATEWAY_API}"), "annotations": {
            "gateway.networking.k8s.io/bundle-version": bundle, "gateway.networking.k8s.io/channel": channel}},
        "spec": {"group": GATEWAY_API, "names": {"plural": plural}, "versions": [{"name": "v1", "served": true}]}})
}

#[test]
fn a_fine_cluster_has_no_complaint() {
    let findings = findings(&fine(), Want::Pre);
    assert!(findings.iter().all(|f| f.level == Level::Ok), "{findings:#?}");
    assert!(findings.len() >= 6, "{findings:#?}");
}

/// Spoils a fine cluster and says what the check with this id then finds.
fn check(id: &str, expected: Level, spoil: &dyn Fn(&mut Facts)) {
    let mut facts = fine();
    spoil(&mut facts);
    assert_eq!(level(&facts, Want::Pre, id), Some(expected), "{id}: {:#?}", findings(&facts, Want::Pre));
    let remedies =
        findings(&facts, Want::Pre).into_iter().filter(|f| f.level == Level::Error && f.remedy.is_empty());
    assert_eq!(remedies.count(), 0, "{id}: an error without a remedy");
}

#[test]
fn each_thing_that_is_missing_before_an_installation_has_its_finding() {
    check("WEFT-C001", Level::Error, &|f| f.version = json!({"gitVersion": "v1.29.9"}));
    check("WEFT-C001", Level::Ok, &|f| f.version = json!({"gitVersion": "v1.30.0-gke.1"}));
    check("WEFT-C001", Level::Warning, &|f| f.version = json!({}));
    check("WEFT-C002", Level::Warning, &|f| f.may_install = false);
    let kernel = |version: &'static str| {
        move |f: &mut Facts| f.nodes[0]["status"]["nodeInfo"]["kernelVersion"] = version.into()
    };
    check("WEFT-C003", Level::Error, &kernel("4.18.0-553.el8"));
    check("WEFT-C003", Level::Ok, &kernel("5.10.0"));
    check("WEFT-C003", Level::Error, &|f| f.nodes.clear());
    check("WEFT-C003", Level::Warning, &|f| {
        f.denied.insert("/api/v1/nodes".into());
    });
    check("WEFT-C004", Level::Warning, &|f| {
        f.nodes[0]["status"]["nodeInfo"]["architecture"] = "s390x".into()
    });
    check("WEFT-C005", Level::Warning, &|f| f.crds.clear());
    let bundle = |version: &'static str| {
        move |f: &mut Facts| {
            for crd in &mut f.crds {
                crd["metadata"]["annotations"]["gateway.networking.k8s.io/bundle-version"] = version.into();
            }
        }
    };
    check("WEFT-C005", Level::Error, &bundle("v1.1.0"));
    check("WEFT-C005", Level::Ok, &bundle("v1.2.0"));
    check("WEFT-C005", Level::Info, &bundle("v1.7.0"));
    check("WEFT-C005", Level::Warning, &bundle("unknown"));
    check("WEFT-C006", Level::Error, &|f| f.crds[1] = crd("gatewayclasses", "v1.6.1", "standard"));
    check("WEFT-C006", Level::Error, &|f| f.crds[1] = crd("gatewayclasses", "v1.4.0", "experimental"));
    check("WEFT-C006", Level::Info, &|f| drop(f.crds.pop()));
    check("WEFT-C007", Level::Warning, &|f| f.upgrade_guard = false);
    let namespace = |level: &str| {
        Some(
            json!({"metadata": {"name": "weft-system", "labels": {"pod-security.kubernetes.io/enforce": level}}}),
        )
    };
    check("WEFT-C008", Level::Error, &|f| f.namespace = namespace("baseline"));
    check("WEFT-C008", Level::Ok, &|f| f.namespace = namespace("privileged"));
}

#[test]
fn what_rewrites_service_addresses_before_the_capture_rules_has_its_finding() {
    let cilium = |data: Value| move |f: &mut Facts| f.cilium = Some(json!({"data": data}));
    check("WEFT-C009", Level::Error, &cilium(json!({"kube-proxy-replacement": "true"})));
    check(
        "WEFT-C009",
        Level::Error,
        &cilium(json!({"bpf-lb-sock": "true", "bpf-lb-sock-hostns-only": "false"})),
    );
    check("WEFT-C009", Level::Ok, &cilium(json!({"bpf-lb-sock": "true", "bpf-lb-sock-hostns-only": "true"})));
    check("WEFT-C009", Level::Ok, &cilium(json!({"kube-proxy-replacement": "false"})));
    check("WEFT-C012", Level::Error, &cilium(json!({})));
    check("WEFT-C012", Level::Ok, &cilium(json!({"cni-exclusive": "false"})));
    let calico = |spec: Value| move |f: &mut Facts| f.calico = Some(json!({"spec": spec}));
    check("WEFT-C010", Level::Error, &calico(json!({"bpfEnabled": true})));
    check(
        "WEFT-C010",
        Level::Error,
        &calico(json!({"bpfEnabled": true, "bpfConnectTimeLoadBalancing": "TCP"})),
    );
    check(
        "WEFT-C010",
        Level::Ok,
        &calico(json!({"bpfEnabled": true, "bpfConnectTimeLoadBalancing": "Disabled"})),
    );
    check(
        "WEFT-C010",
        Level::Ok,
        &calico(json!({"bpfEnabled": true, "bpfConnectTimeLoadBalancingEnabled": false})),
    );
    check("WEFT-C010", Level::Ok, &calico(json!({})));
    let proxy = |conf: &str| Some(json!({"data": {"config.conf": conf}}));
    check("WEFT-C011", Level::Ok, &|f| f.kube_proxy = proxy("kind: X\nmode: \"nftables\"\n"));
    check("WEFT-C011", Level::Info, &|f| f.kube_proxy = proxy("mode: ipvs"));
    check("WEFT-C011", Level::Ok, &|f| f.kube_proxy = proxy("mode: \"\""));
}

fn installed() -> Facts {
    let workload = |name: &str| {
        json!({"metadata": {"name": name, "generation": 1},
        "spec": {"replicas": 1, "template": {"spec": {"containers": [{"image": "weft:1"}]}}},
        "status": {"observedGeneration": 1, "desiredNumberScheduled": 1, "numberReady": 1, "updatedNumberScheduled": 1,
            "replicas": 1, "readyReplicas": 1, "updatedReplicas": 1}})
    };
    let accepted = json!({"conditions": [{"type": "Accepted", "status": "True"}]});
    let report = crate::cluster::agents::NodeReport {
        kernel: "6.1".into(),
        nft: "1.0.6".into(),
        controller: "connected".into(),
        cni: crate::cluster::agents::CniReport { state: "installed".into(), ..Default::default() },
        ..Default::default()
    };
    Facts {
        daemon_set: Some(workload("weft-agent")),
        controller: Some(workload("weft-controller")),
        lease: Some(
            json!({"spec": {"holderIdentity": "c1", "renewTime": jiff::Timestamp::now().to_string()}}),
        ),
        config: Some(json!({"data": {}})),
        ca_root: Some(json!({"data": {"root.pem": "-----BEGIN CERTIFICATE-----"}})),
        classes: vec![json!({"metadata": {"name": "weft"}, "status": accepted})],
        system_pods: vec![agent_pod("n1")],
        agents: [("n1".to_owned(), Ok(report))].into(),
        namespaces: vec![json!({"metadata": {"name": "shop", "labels": {"weft.dev/mesh": "enabled"}}})],
        pods: vec![
            json!({"metadata": {"namespace": "shop", "name": "web", "uid": "u"}, "spec": {"nodeName": "n1"}, "status": {"phase": "Running"}}),
        ],
        slices: vec![
            json!({"metadata": {"namespace": "shop"}, "workloads": [{"name": "web", "uid": "u", "captured": true}]}),
        ],
        ..fine()
    }
}

#[test]
fn each_thing_that_is_wrong_with_an_installation_has_its_finding() {
    let findings_of = |facts: &Facts| findings(facts, Want::All);
    assert!(
        findings_of(&installed()).iter().all(|f| f.level == Level::Ok),
        "{:#?}",
        findings_of(&installed())
    );
    let check = |id: &str, expected: Level, spoil: &dyn Fn(&mut Facts)| {
        let mut facts = installed();
        spoil(&mut facts);
        assert_eq!(level(&facts, Want::All, id), Some(expected), "{id}: {:#?}", findings_of(&facts));
        let remedies =
            findings_of(&facts).into_iter().filter(|f| f.level == Level::Error && f.remedy.is_empty());
        assert_eq!(remedies.count(), 0, "{id}: an error without a remedy");
    };
    let agent = |change: &'static dyn Fn(&mut crate::cluster::agents::NodeReport)| {
        move |f: &mut Facts| {
            if let Some(Ok(report)) = f.agents.get_mut("n1") {
                change(report);
            }
        }
    };
    check("WEFT-C020", Level::Error, &|f| (f.daemon_set, f.controller) = (None, None));
    check("WEFT-C020", Level::Error, &|f| f.daemon_set = None);
    check("WEFT-C020", Level::Error, &|f| f.daemon_set.as_mut().unwrap()["status"]["numberReady"] = 0.into());
    check("WEFT-C021", Level::Error, &|f| f.lease = None);
    check("WEFT-C021", Level::Error, &|f| {
        f.lease.as_mut().unwrap()["spec"]["renewTime"] = "2020-01-01T00:00:00.000000Z".into()
    });
    check("WEFT-C022", Level::Warning, &|f| {
        f.controller.as_mut().unwrap()["spec"]["template"]["spec"]["containers"][0]["image"] =
            "weft:2".into();
    });
    check("WEFT-C022", Level::Info, &agent(&|a| a.version = "9.9.9".into()));
    check("WEFT-C023", Level::Warning, &|f| drop(f.agents.insert("n1".into(), Err("timed out".into()))));
    check("WEFT-C024", Level::Error, &agent(&|a| a.nft.clear()));
    check("WEFT-C040", Level::Warning, &agent(&|a| a.capture = "redirect".into()));
    check("WEFT-C040", Level::Warning, &agent(&|a| a.capture = "redirect-listening".into()));
    check("WEFT-C025", Level::Warning, &agent(&|a| a.controller = "refused".into()));
    check("WEFT-C026", Level::Error, &agent(&|a| a.cni.state = "waiting".into()));
    check("WEFT-C026", Level::Error, &agent(&|a| a.cni.state = "failed".into()));
    check("WEFT-C026", Level::Warning, &agent(&|a| a.cni.problem = "no ADD has come".into()));
    check("WEFT-C027", Level::Error, &|f| f.ca_root = None);
    check("WEFT-C028", Level::Error, &|f| f.config = Some(json!({"data": {"uninstall": "true"}})));
    check("WEFT-C029", Level::Info, &|f| f.classes.clear());
    check("WEFT-C029", Level::Error, &|f| f.classes[0]["status"] = json!({}));
    check("WEFT-C029", Level::Error, &|f| f.classes[0]["status"]["conditions"][0]["status"] = "False".into());
    check("WEFT-C030", Level::Warning, &|f| {
        f.nodes[0]["spec"] = json!({"taints": [{"key": "weft.dev/agent-not-ready"}]})
    });
    check("WEFT-C031", Level::Error, &|f| f.slices.clear());
    check("WEFT-C036", Level::Info, &|f| {
        f.pods[0]["metadata"]["labels"] = json!({"weft.dev/mesh": "enabled", "weft.dev/mtls": "strict"});
    });
    check("WEFT-C032", Level::Info, &|f| f.pods[0]["spec"]["hostNetwork"] = true.into());
    // Review 11: a rule for 15008 alone may be meant for callers of another mesh.
    let policy = |port: u64| {
        move |f: &mut Facts| {
            f.pods[0]["metadata"]["labels"] = json!({"app": "web"});
            let mut cart = f.pods[0].clone();
            cart["metadata"] = json!({"namespace": "shop", "name": "cart", "uid": "v"});
            f.pods.push(cart);
            let entry = json!({"name": "cart", "uid": "v", "captured": true});
            f.slices[0]["workloads"].as_array_mut().unwrap().push(entry);
            f.policies = vec![json!({"metadata": {"namespace": "shop", "name": "p"}, "spec": {
                "podSelector": {"matchLabels": {"app": "web"}},
                "ingress": [{"ports": [{"port": port}], "from": [{"podSelector": {}}]}]}})];
        }
    };
    check("WEFT-C037", Level::Error, &policy(8080));
    check("WEFT-C038", Level::Warning, &policy(15008));
}

/// B1, B10: nobody was told.
#[test]
fn whose_an_address_is_and_where_pods_are_is_said() {
    let mut facts = installed();
    assert_eq!(level(&facts, Want::All, "WEFT-C060"), None);
    let slice = |namespace: &str, workload: Value| json!({"metadata": {"namespace": namespace, "name": "weft-0"}, "workloads": [workload]});
    facts.slices.push(slice(
        "a",
        json!({"name": "a", "uid": "a", "ips": ["10.1.0.1"], "provedIPs": ["10.1.0.1"], "node": "n1"}),
    ));
    assert_eq!(level(&facts, Want::All, "WEFT-C060"), None);
    facts.slices.push(slice("b", json!({"name": "forged", "uid": "b", "ips": ["10.1.0.1"], "node": "n9"})));
    assert_eq!(level(&facts, Want::All, "WEFT-C060"), Some(Level::Error));
    assert_eq!(level(&facts, Want::All, "WEFT-C061"), None);
    facts.nodes[0]["spec"] = json!({});
    assert_eq!(level(&facts, Want::All, "WEFT-C061"), Some(Level::Info));
    let settings = "apiVersion: weft.dev/v1alpha1\nkind: AgentConfig\npodCidrs: [10.244.0.0/16]\n";
    facts.config = Some(json!({"metadata": {}, "data": {"config.yaml": settings}}));
    assert_eq!(level(&facts, Want::All, "WEFT-C061"), None);
}

/// Only the access log said why probes of strict pods were refused.
#[test]
fn a_kubelet_that_is_not_recognised_is_an_error_where_pods_are_strict() {
    let mut facts = installed();
    facts.pods[0]["spec"]["nodeName"] = "n1".into();
    assert_eq!(level(&facts, Want::All, "WEFT-C042"), None);
    facts.agents.get_mut("n1").unwrap().as_mut().unwrap().kubelet = "two processes hold its port".into();
    assert_eq!(level(&facts, Want::All, "WEFT-C042"), None, "nobody misses it");
    facts.pods[0]["metadata"]["labels"] = json!({"weft.dev/mesh": "enabled", "weft.dev/mtls": "strict"});
    assert_eq!(level(&facts, Want::All, "WEFT-C042"), Some(Level::Error));
}

#[test]
fn a_budget_that_is_used_up_is_said_with_its_workload() {
    let mut facts = installed();
    assert_eq!(level(&facts, Want::All, "WEFT-C070"), None);
    let reached = BudgetReport {
        budget: "connections-in".into(),
        kind: "Pod".into(),
        namespace: "shop".into(),
        name: "cart".into(),
        times: 7,
    };
    facts.agents.get_mut("n1").unwrap().as_mut().unwrap().budgets = vec![reached];
    assert_eq!(level(&facts, Want::All, "WEFT-C070"), Some(Level::Warning));
}

/// E10: an expired certificate was on no screen. Each node that serves the Gateway says it.
#[test]
fn a_listeners_certificate_that_ended_is_named_once_with_its_remedy() {
    let mut facts = installed();
    assert_eq!(level(&facts, Want::All, "WEFT-C050"), None);
    let report = |now| ListenerReport {
        gateway: "shop/edge".into(),
        fault: "CertificateExpired".into(),
        now,
        message: "the certificate of Secret shop/cert ended at 2026-11-30T00:00:00Z".into(),
        remedy: "renew it".into(),
    };
    facts.agents.get_mut("n1").unwrap().as_mut().unwrap().listeners = vec![report(true)];
    let other = facts.agents["n1"].clone();
    facts.agents.insert("n2".into(), other);
    let found = findings(&facts, Want::All);
    let said: Vec<_> =
        found.iter().filter(|f| f.id == "WEFT-C050").map(|f| (&*f.message, &*f.remedy)).collect();
    let wanted = "Gateway shop/edge: the certificate of Secret shop/cert ended at 2026-11-30T00:00:00Z";
    assert_eq!(said, [(wanted, "renew it")]);
    assert_eq!(level(&facts, Want::All, "WEFT-C050"), Some(Level::Error));
    facts.agents.remove("n2");
    facts.agents.get_mut("n1").unwrap().as_mut().unwrap().listeners = vec![report(false)];
    assert_eq!(level(&facts, Want::All, "WEFT-C050"), Some(Level::Warning));
}

/// Only the agent's log said that an entry of an annotation was not understood.
#[test]
fn an_exclusion_that_cannot_be_read_is_named_with_its_pod_and_one_that_can_is_not() {
    let mut facts = installed();
    facts.pods[0]["metadata"]["annotations"] = json!({
        "weft.dev/exclude-outbound-ports": "5432, postgres", "weft.dev/exclude-inbound-cidrs": "192.0.2.0/24"});
    let found = findings(&facts, Want::All);
    let said: Vec<_> = found.iter().filter(|f| f.id == "WEFT-C041").map(|f| &*f.message).collect();
    assert_eq!(
        said,
        [
            "pod shop/web: annotation weft.dev/exclude-outbound-ports: \"postgres\" is not a port from 1 to 65535; \
          what it meant is captured"
        ]
    );
}

/// E4: an agent gone from a node with pods of the mesh was "12 checks, 0 errors", and status showed 6 of 6 pods.
#[test]
fn an_agent_gone_from_a_node_with_enrolled_pods_is_an_error_with_node_pods_and_cause() {
    let mut facts = installed();
    facts.nodes.push(node("n2"));
    let pod = |name: &str| json!({"metadata": {"namespace": "shop", "name": name, "uid": "u"}, "spec": {"nodeName": "n2"}, "status": {"phase": "Running"}});
    facts.pods.extend([pod("cart"), pod("pay"), pod("late")]);
    let captured = |name: &str| json!({"name": name, "uid": "u", "captured": true});
    facts.slices[0]["workloads"] = json!([captured("web"), captured("cart"), captured("pay")]);
    let found = findings(&facts, Want::All);
    let [absent] = &found.iter().filter(|f| f.id == "WEFT-C033").collect::<Vec<_>>()[..] else {
        panic!("{found:#?}")
    };
    assert_eq!(absent.level, Level::Error);
    for words in [
        "n2: no agent serves there",
        "no pod of DaemonSet weft-agent",
        "3 pods",
        "shop/cart, shop/pay, shop/late",
    ] {
        assert!(absent.message.contains(words), "{words}: {absent:?}");
    }
    // Said once, with the node; what is in the mesh elsewhere still is.
    let others: Vec<_> = found.iter().filter(|f| f.id == "WEFT-C031").collect();
    assert!(
        matches!(&others[..], [one] if one.level == Level::Ok && one.message == "1 pod in the mesh"),
        "{others:?}"
    );
    // A node that the administrator leaves out and that has no pod of the mesh is as they want it.
    facts.daemon_set.as_mut().unwrap()["spec"]["template"]["spec"]["nodeSelector"] = json!({"mesh": "yes"});
    assert_eq!(level(&facts, Want::All, "WEFT-C033"), Some(Level::Error));
    facts.pods.truncate(1);
    facts.nodes[0]["metadata"]["labels"] = json!({"mesh": "yes"});
    assert_eq!(level(&facts, Want::All, "WEFT-C033"), None);
    facts.denied.insert("/api/v1/namespaces/weft-system/pods".into());
    assert_eq!(level(&facts, Want::All, "WEFT-C033"), Some(Level::Warning));
}

/// Review 16: of a crashed agent it was said that it "is ready and does not answer you" where DaemonSets might not be read.
#[test]
fn a_crashed_agent_is_not_called_ready_by_who_may_not_read_the_daemon_set() {
    let check = |ready: &str, says: &str| {
        let mut facts = installed();
        facts.denied.insert(crate::cluster::install::AGENTS.into());
        facts.system_pods[0]["status"]["conditions"][0]["status"] = ready.into();
        facts.agents.insert("n1".into(), Err("it does not run: CrashLoopBackOff".into()));
        let found = findings(&facts, Want::All);
        let said: Vec<_> = found.iter().filter(|f| f.id == "WEFT-C023").map(|f| f.message.as_str()).collect();
        assert!(said.len() == 1 && said[0].contains(says), "{ready}: {said:?}");
    };
    check("True", "its agent is ready and does not answer you");
    check("False", "is not ready and does not answer; whether it serves is unknown: it does not run");
}

#[test]
fn where_capture_is_impossible_is_found_and_said() {
    let mut facts = installed();
    facts.pods[0]["spec"]["runtimeClassName"] = "sandboxed".into();
    facts.runtime_classes = vec![json!({"metadata": {"name": "sandboxed"}, "handler": "runsc"})];
    assert_eq!(level(&facts, Want::All, "WEFT-C034"), Some(Level::Error));
    facts.runtime_classes[0]["handler"] = "runc".into();
    assert_eq!(level(&facts, Want::All, "WEFT-C034"), None);
    assert_eq!(blind_spots(&facts), []);
    facts.cilium = Some(json!({"data": {"kube-proxy-replacement": "true"}}));
    facts.calico = Some(json!({"spec": {"bpfEnabled": true}}));
    let ids: Vec<_> = blind_spots(&facts).into_iter().map(|f| f.id).collect();
    assert_eq!(ids, ["WEFT-C009", "WEFT-C010"]);
}

#[tokio::test]
async fn what_may_not_be_read_is_said_and_never_called_fine() {
    let mut fake = Fake::default();
    fake.refused.insert("/api/v1/nodes", (403, "no"));
    fake.refused.insert("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", (403, "no"));
    let facts = facts::gather(&Arc::new(fake).cluster(), Want::All, "shop").await.unwrap();
    assert_eq!(level(&facts, Want::All, "WEFT-C003"), Some(Level::Warning));
    assert_eq!(level(&facts, Want::All, "WEFT-C005"), Some(Level::Warning));
}

#[test]
fn versions_are_read_as_vendors_write_them() {
    let check = |text: &str, expected: Option<(u32, u32)>| assert_eq!(version(text), expected, "{text}");
    check("v1.31.4-gke.1256000", Some((1, 31)));
    check("6.1.0-18-amd64", Some((6, 1)));
    check("5.15.167.4-microsoft-standard-WSL2", Some((5, 15)));
    check("v1.32+", Some((1, 32)));
    check("", None);
    check("latest", None);
}

/// E3: a mesh-wide strict was seen by no screen; wrong settings and labels were green.
#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn what_is_written_and_does_not_hold_has_its_finding() {
    let check = |id: &str, expected: Option<Level>, says: &str, spoil: &dyn Fn(&mut Facts)| {
        let mut facts = installed();
        spoil(&mut facts);
        let found = findings(&facts, Want::All);
        let of: Vec<_> = found.iter().filter(|f| f.id == id).collect();
        assert_eq!(of.iter().map(|f| f.level).max(), expected, "{id}: {found:#?}");
        assert!(of.iter().any(|f| f.message.contains(says)) || expected.is_none(), "{id} {says}: {of:?}");
    };
    let config = |text: &str| {
        let text = format!("apiVersion: weft.dev/v1alpha1\nkind: AgentConfig\n{text}\n");
        move |f: &mut Facts| f.config = Some(json!({"data": {"config.yaml": text}}))
    };
    let namespace = |name: &'static str, value: &'static str| {
        move |f: &mut Facts| f.namespaces[0]["metadata"]["labels"][name] = value.into()
    };
    check("WEFT-C036", Some(Level::Info), "1 pod strict (1 mesh-wide)", &config("mtls: strict"));
    check(
        "WEFT-C036",
        Some(Level::Info),
        "1 pod strict (1 by the namespace's label)",
        &namespace("weft.dev/mtls", "strict"),
    );
    check("WEFT-C036", Some(Level::Info), "1 pod strict", &namespace("weft.dev/mtls", "STRICT"));
    check("WEFT-C036", None, "", &config("mtls: permissive"));
    check("WEFT-C036", Some(Level::Info), "not readable by you", &|f| {
        f.config = None;
        f.denied.insert(crate::cluster::install::CONFIG.into());
    });
    check("WEFT-C051", None, "", &config("mtls: strict"));
    check(
        "WEFT-C051",
        Some(Level::Error),
        "mtls: \"STRICT\" is no mode and counts as strict",
        &config("mtls: STRICT"),
    );
    check(
        "WEFT-C051",
        Some(Level::Warning),
        "tracing.samplingRato: unknown field",
        &config("tracing: {samplingRato: 1}"),
    );
    check("WEFT-C051", Some(Level::Error), "weft-config", &|f| {
        f.config = Some(json!({"data": {"config.yaml": "mtls: {"}}))
    });
    check(
        "WEFT-C052",
        Some(Level::Warning),
        "namespace shop: label weft.dev/mtls: \"STRICT\"",
        &namespace("weft.dev/mtls", "STRICT"),
    );
    check(
        "WEFT-C052",
        Some(Level::Warning),
        "namespace shop: label weft.dev/mesh: \"true\"",
        &namespace("weft.dev/mesh", "true"),
    );
    check(
        "WEFT-C052",
        Some(Level::Warning),
        "did you mean weft.dev/mesh?",
        &namespace("weft.dev/mseh", "enabled"),
    );
    check("WEFT-C054", Some(Level::Info), "Istio's", &|f| {
        f.namespaces.push(json!({"metadata": {"name": "old", "labels": {"istio-injection": "enabled"}}}));
    });
    let under_strict = |what: &'static str, value: Value| {
        move |f: &mut Facts| {
            f.namespaces[0]["metadata"]["labels"]["weft.dev/mtls"] = "strict".into();
            f.pods[0]["metadata"][what] = value.clone();
        }
    };
    check(
        "WEFT-C053",
        Some(Level::Warning),
        "pod shop/web: label weft.dev/mtls=permissive is ignored",
        &under_strict("labels", json!({"weft.dev/mtls": "permissive"})),
    );
    check(
        "WEFT-C053",
        Some(Level::Warning),
        "exclude-inbound-ports is ignored",
        &under_strict("annotations", json!({"weft.dev/exclude-inbound-ports": "22"})),
    );
    check(
        "WEFT-C053",
        None,
        "",
        &under_strict("annotations", json!({"weft.dev/exclude-outbound-ports": "22"})),
    );
    check("WEFT-C041", Some(Level::Warning), "namespace shop: annotation", &|f| {
        f.namespaces[0]["metadata"]["annotations"] = json!({"weft.dev/exclude-inbound-ports": "http"});
    });
}

/// E6: a broken route was no error of `weft check`. A9: nothing said that a route takes another namespace's requests.
#[test]
fn broken_objects_and_overlaps_have_their_findings() {
    let mut facts = installed();
    let controller = weft_core::model::CONTROLLER_NAME;
    facts.classes[0]["spec"] = json!({"controllerName": controller});
    let ready = json!([{"type": "Accepted", "status": "True"}, {"type": "Programmed", "status": "True"}]);
    facts.gateways = vec![
        json!({"metadata": {"namespace": "infra", "name": "edge"}, "status": {"conditions": ready},
        "spec": {"gatewayClassName": "weft", "listeners": [
            {"name": "http", "port": 80, "protocol": "HTTP", "allowedRoutes": {"namespaces": {"from": "All"}}}]}}),
    ];
    let route = |namespace: &str, path: &str, status: &str| {
        let parent = json!({"namespace": "infra", "name": "edge"});
        json!({"metadata": {"namespace": namespace, "name": "web"}, "spec": {"parentRefs": [parent], "hostnames": ["shop.test"],
            "rules": [{"matches": [{"path": {"type": "PathPrefix", "value": path}}]}]},
            "status": {"parents": [{"controllerName": controller, "parentRef": parent, "conditions": [
                {"type": "ResolvedRefs", "status": status, "reason": "BackendNotFound", "message": "Service shop/x is not there"}]}]}})
    };
    facts.routes = vec![("HTTPRoute", route("shop", "/", "True"))];
    assert_eq!(level(&facts, Want::All, "WEFT-C055"), None);
    assert_eq!(level(&facts, Want::All, "WEFT-C056"), None);
    facts.routes.push(("HTTPRoute", route("evil", "/pay", "False")));
    let found = findings(&facts, Want::All);
    let message = |id: &str| found.iter().find(|f| f.id == id).map(|f| f.message.clone()).unwrap_or_default();
    assert!(message("WEFT-C055").contains(
        "HTTPRoute evil/web, parent Gateway infra/edge: ResolvedRefs=False (BackendNotFound): Service shop/x"
    ));
    assert!(
        message("WEFT-C056").contains("HTTPRoute evil/web takes requests for shop.test/pay/*"),
        "{found:#?}"
    );
    assert_eq!(level(&facts, Want::All, "WEFT-C055"), Some(Level::Error));
}
