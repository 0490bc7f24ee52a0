use super::*;
use crate::cluster::{
    agents::{NodeReport, PlaintextReport},
    fake::{Fake, agent_pod, node},
};
use serde_json::json;
use std::sync::Arc;

fn facts() -> Facts {
    let object = |namespace: &str, name: &str| json!({"metadata": {"namespace": namespace, "name": name}});
    let class = |name: &str, controller: &str, status: Value| json!({"metadata": {"name": name}, "spec": {"controllerName": controller}, "status": {"conditions": [status]}});
    let accepted = |status: &str| json!({"type": "Accepted", "status": status});
    let gateway = |namespace: &str, name: &str, class: &str| json!({"metadata": {"namespace": namespace, "name": name}, "spec": {"gatewayClassName": class}});
    let report = NodeReport {
        version: "1".into(),
        plaintext: vec![PlaintextReport {
            from: "10.0.0.9".into(),
            to: "shop/web".into(),
            connections: 3,
            last_seconds: 0,
        }],
        ..NodeReport::default()
    };
    Facts {
        daemon_set: Some(
            json!({"spec": {"template": {"spec": {"containers": [{"image": "h"}, {"image": "weft:1"}]}}}}),
        ),
        nodes: vec![node("n1"), node("n2")],
        system_pods: vec![agent_pod("n1")],
        agents: [("n1".to_owned(), Ok(report))].into(),
        services: vec![object("shop", "cart"), object("shop", "web")],
        gateways: vec![
            gateway("infra", "edge", "weft"),
            gateway("infra", "typo", "wefft"),
            gateway("infra", "old", "other"),
        ],
        classes: vec![
            class("weft", CONTROLLER, accepted("True")),
            class("other", "example.test/other", accepted("Unknown")),
            class("refused", "example.test/third", accepted("False")),
        ],
        ..Facts::default()
    }
}

#[test]
fn a_parent_that_is_not_there_is_found_with_the_one_that_was_meant() {
    let check = |namespace: &str, parent: Value, expected: Option<(&str, Option<&str>)>| {
        let route = json!({"metadata": {"namespace": namespace, "name": "r"}, "spec": {"parentRefs": [parent.clone()]}});
        let found = dangling_parents(&Facts { routes: vec![("HTTPRoute", route)], ..facts() });
        let found = found.first().map(|d| (d.parent.as_str(), d.meant.as_deref()));
        assert_eq!(found, expected, "{parent}");
    };
    check("infra", json!({"name": "edge"}), None);
    check("shop", json!({"name": "edge"}), Some(("Gateway shop/edge", Some("infra/edge"))));
    check("shop", json!({"name": "edge", "namespace": "infra"}), None);
    check("shop", json!({"name": "nothing"}), Some(("Gateway shop/nothing", None)));
    check("shop", json!({"name": "cart", "kind": "Service", "group": ""}), None);
    check(
        "web",
        json!({"name": "cart", "kind": "Service", "group": ""}),
        Some(("Service web/cart", Some("shop/cart"))),
    );
    // Without `group: ""` a Service is looked for in the Gateway API's group: somebody else's kind, not ours to judge.
    check("shop", json!({"name": "cart", "kind": "Service"}), None);
    check("shop", json!({"name": "set", "kind": "ListenerSet"}), Some(("ListenerSet shop/set", None)));
}

#[test]
fn classes_that_nobody_serves_are_found_with_their_gateways() {
    let found = unowned_classes(&facts());
    let found: Vec<_> = found.iter().map(|c| (c.class.as_str(), c.gateways.join(","))).collect();
    assert_eq!(found, [("other", "infra/old".to_owned()), ("wefft", "infra/typo".to_owned())]);
}

#[test]
fn nodes_namespaces_and_callers_in_clear_are_on_the_screen() {
    let mut facts = facts();
    facts.namespaces = vec![
        json!({"metadata": {"name": "shop", "labels": {"weft.dev/mesh": "enabled", "weft.dev/mtls": "strict"}}}),
    ];
    let pod = |name: &str, node: &str| json!({"metadata": {"namespace": "shop", "name": name, "uid": "u"}, "spec": {"nodeName": node}, "status": {"phase": "Running"}});
    facts.pods = vec![pod("web", "n1"), pod("cart", "n2")];
    facts.slices = vec![
        json!({"metadata": {"namespace": "shop"}, "workloads": [{"name": "web", "uid": "u", "captured": true}]}),
    ];
    let summary = summary(&facts);
    let nodes: Vec<_> = summary
        .nodes
        .iter()
        .map(|n| (n.node.as_str(), n.ready, n.captured, n.wanted, n.problem.as_str()))
        .collect();
    assert_eq!(
        nodes,
        [
            ("n1", true, 1, 1, ""),
            ("n2", false, 0, 1, "no agent serves here: no pod of DaemonSet weft-agent is there")
        ]
    );
    let line = &summary.namespaces[0];
    assert_eq!(
        (line.namespace.as_str(), line.mtls.as_str(), line.captured, line.bypassing),
        ("shop", "strict", 1, 1)
    );
    assert_eq!(summary.plaintext.len(), 1);
    assert_eq!(summary.image, "weft:1");
    assert_eq!(summary.pods.iter().map(|m| m.pod.as_str()).collect::<Vec<_>>(), ["shop/cart"]);
    let value = serde_json::to_value(&summary).unwrap();
    assert_eq!(value["danglingParents"], json!([]));
    assert_eq!(value["pods"][0]["state"], "bypassing");
}

#[tokio::test]
async fn facts_come_from_the_versions_that_the_cluster_serves() {
    let crd = |plural: &str, versions: Value| {
        let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{plural}.{GATEWAY_API}");
        (path, json!({"spec": {"group": GATEWAY_API, "names": {"plural": plural}, "versions": versions}}))
    };
    let served = |name: &str, served: bool| json!({"name": name, "served": served});
    let (http, tls) = (
        crd("httproutes", json!([served("v1beta1", true), served("v1", true)])),
        crd("tlsroutes", json!([served("v1", false), served("v1alpha3", true), served("v1alpha2", true)])),
    );
    let route = json!({"metadata": {"namespace": "a", "name": "r"}});
    let fake = Fake::default()
        .with(&http.0, http.1)
        .with(&tls.0, tls.1)
        .with("/apis/gateway.networking.k8s.io/v1/namespaces/a/httproutes/r", route.clone())
        .with("/apis/gateway.networking.k8s.io/v1alpha3/namespaces/a/tlsroutes/r", route);
    let facts = facts::gather(&Arc::new(fake).cluster(), Want::All, "shop").await.unwrap();
    let kinds: Vec<_> = facts.routes.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, ["HTTPRoute", "TLSRoute"]);
}

/// E3: `STRICT`, `on` and the mesh-wide setting: the screen showed what was written, or "default", and not what holds.
#[test]
fn the_mode_that_holds_is_shown_with_its_source() {
    let check = |config: Option<&str>, labels: Value, mode: &str, words: &str| {
        let mut facts = facts();
        facts.config = config.map(|text| {
            let text = format!("apiVersion: weft.dev/v1alpha1\nkind: AgentConfig\n{text}\n");
            json!({"data": {"config.yaml": text}})
        });
        let mut namespace = json!({"metadata": {"name": "shop", "labels": {"weft.dev/mesh": "enabled"}}});
        for (name, value) in labels.as_object().unwrap() {
            namespace["metadata"]["labels"][name] = value.clone();
        }
        facts.namespaces = vec![namespace];
        let summary = summary(&facts);
        let line = &summary.namespaces[0];
        assert_eq!((line.mtls.as_str(), line.mtls_words.as_str()), (mode, words), "{config:?} {labels}");
    };
    let mtls = |value: &str| json!({"weft.dev/mtls": value});
    check(None, json!({}), "permissive", "permissive (mesh-wide)");
    check(Some("mtls: strict"), json!({}), "strict", "strict (mesh-wide)");
    check(Some("mtls: STRICT"), json!({}), "strict", "strict (mesh-wide)");
    check(Some("mtls: strict"), mtls("permissive"), "permissive", "permissive (namespace's label)");
    check(None, mtls("strict"), "strict", "strict (namespace's label)");
    check(None, mtls("STRICT"), "strict", "strict (namespace's label \"STRICT\" is no mode)");
    let mut facts = facts();
    facts.denied.insert(crate::cluster::install::CONFIG.into());
    facts.namespaces = vec![json!({"metadata": {"name": "shop", "labels": {"weft.dev/mesh": "enabled"}}})];
    let unknown = "unknown (mesh-wide setting, not readable by you)";
    assert_eq!(summary(&facts).namespaces[0].mtls_words, unknown);
}

/// B6, E3: pods that differ from their namespace, and words that count for nothing, are on the screen.
#[test]
fn pods_that_differ_and_words_that_count_for_nothing_are_shown() {
    let mut facts = facts();
    let pod = |name: &str, labels: Value| json!({"metadata": {"namespace": "shop", "name": name, "labels": labels}});
    facts.pods = vec![
        pod("web", json!({"weft.dev/mtls": "permissive"})),
        pod("db", json!({"weft.dev/mtls": "strict"})),
    ];
    let shown = |facts: &Facts| {
        let summary = summary(facts);
        let pods: Vec<String> =
            summary.mtls_of_pods.iter().map(|p| format!("{} {}", p.pod, p.words)).collect();
        (pods, summary.remarks.iter().map(Said::line).collect::<Vec<_>>())
    };
    facts.namespaces = vec![json!({"metadata": {"name": "shop", "labels": {"weft.dev/mesh": "enabled"}}})];
    assert_eq!(shown(&facts), (vec!["shop/db strict (pod's label)".to_owned()], Vec::new()));
    facts.namespaces[0]["metadata"]["labels"]["weft.dev/mtls"] = "strict".into();
    let (pods, said) = shown(&facts);
    assert_eq!(pods, [""; 0]);
    assert!(
        matches!(&said[..], [one] if one.starts_with("pod shop/web: label weft.dev/mtls=permissive is ignored")),
        "{said:?}"
    );
}
