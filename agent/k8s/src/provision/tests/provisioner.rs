//! The provisioner against an API server.

use super::{
    super::{Provisioner, ProvisionerOptions, Serving},
    *,
};
use crate::testing::FakeApi;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use weft_core::{
    engine::{Engine, Feedback, Settings},
    model::MtlsMode,
};

const GATEWAYS: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: weft}
spec: {controllerName: weft.dev/gateway-controller}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: web, namespace: infra, uid: uid-web}
spec: {gatewayClassName: weft, listeners: [{name: http, port: 80, protocol: HTTP}]}
";

fn settings() -> Settings {
    Settings {
        trust_domain: "cluster.local".into(),
        default_mode: MtlsMode::default(),
        gateway_addresses: BTreeMap::new(),
        default_addresses: Vec::new(),
        placed: true,
        node: None,
        pod_cidrs: Vec::new(),
    }
}

struct Setup {
    api: FakeApi,
    provisioner: Provisioner,
    world: Snapshot,
}

impl Setup {
    fn new() -> Self {
        Self::with(ProvisionerOptions::default().settle)
    }

    fn with(settle: Duration) -> Self {
        let api = FakeApi::new();
        let options = ProvisionerOptions {
            settle,
            backoff: Duration::from_millis(5),
            echo: Duration::from_secs(600),
            ..ProvisionerOptions::default()
        };
        let provisioner = Provisioner::start(api.client(), options);
        let mut world = world(GATEWAYS);
        node(&mut world, "n1", &["10.0.0.1"], &[]);
        Self { api, provisioner, world }
    }

    fn publish(&self) {
        self.publish_with(&["n1"]);
    }

    /// With agents connected on these nodes.
    fn publish_with(&self, nodes: &[&str]) {
        let mut engine = Engine::new(settings());
        let update = engine.apply(self.world.clone(), &Feedback::default());
        let nodes: BTreeSet<_> = nodes.iter().map(|n| (*n).into()).collect();
        let heard = (!nodes.is_empty()).then(tokio::time::Instant::now);
        let serving = Serving { nodes, heard, ..Serving::default() };
        self.provisioner.publish(&self.world, &update.config, &serving);
    }

    /// Nodes that stand in the Gateway's slice.
    fn endpoints(&self, gateway: &str) -> Vec<String> {
        let slice = self.api.object("endpointslices", "infra", &format!("{gateway}-weft-ipv4"));
        let endpoints = slice.map(|s| s["endpoints"].as_array().cloned().unwrap_or_default());
        let node = |e: &Value| e["nodeName"].as_str().unwrap_or_default().to_owned();
        endpoints.unwrap_or_default().iter().map(node).collect()
    }

    /// What a watch would show.
    fn watch(&mut self) {
        self.world.services.clear();
        self.world.endpoint_slices.clear();
        for plural in ["services", "endpointslices"] {
            for object in self.api.objects(plural) {
                let source = convert::Source { admitted: true, ..convert::Source::default() };
                convert::convert(object, &source).object.expect("it converts").insert(&mut self.world);
            }
        }
    }

    async fn written(&self, gateway: &str) {
        let name = format!("{gateway}-weft");
        self.api
            .until(&format!("the objects of {gateway}"), |api| {
                api.object("services", "infra", &name).is_some()
                    && api.object("serviceaccounts", "infra", &name).is_some()
                    && api.object("endpointslices", "infra", &format!("{name}-ipv4")).is_some()
            })
            .await;
    }

    async fn problem(&self, holds: impl Fn(Option<&str>) -> bool) {
        let mut problems = self.provisioner.problems();
        let wait = problems.wait_for(|p| holds(p.get(&key("infra/web")).map(|p| &**p)));
        tokio::time::timeout(Duration::from_secs(30), wait)
            .await
            .expect("a problem in time")
            .expect("it runs");
    }
}

#[tokio::test]
async fn objects_are_written_by_the_leader_and_once() {
    let mut s = Setup::new();
    s.publish();
    s.provisioner.set_leader(true);
    s.written("web").await;
    let service = s.api.object("services", "infra", "web-weft").expect("it was waited for");
    assert_eq!(service["spec"]["type"], "LoadBalancer");
    assert_eq!(service["spec"]["externalTrafficPolicy"], "Local");
    let owner = &service["metadata"]["ownerReferences"][0];
    assert_eq!(
        (&owner["kind"], &owner["name"], &owner["uid"]),
        (&json!("Gateway"), &json!("web"), &json!("uid-web"))
    );
    let slice = s.api.object("endpointslices", "infra", "web-weft-ipv4").expect("it was waited for");
    assert_eq!(slice["endpoints"][0]["nodeName"], "n1");
    assert_eq!(slice["metadata"]["labels"]["kubernetes.io/service-name"], "web-weft");
    let writes = |s: &Setup| s.api.requests().into_iter().filter(|r| r.method != "GET").collect::<Vec<_>>();
    for request in writes(&s) {
        assert_eq!(request.method, "PATCH");
        assert_eq!(request.query.get("fieldManager").map(String::as_str), Some("weft-controller"));
        assert_eq!(request.query.get("force").map(String::as_str), Some("true"));
    }
    // Not before and not after the watch shows it.
    for (i, watched) in [false, true].into_iter().enumerate() {
        s.api.forget_requests();
        if watched {
            s.watch();
        }
        let name = format!("probe{i}");
        add(&mut s.world, &GATEWAYS.replace("web", &name));
        s.publish();
        s.written(&name).await;
        let of_web = writes(&s).into_iter().filter(|r| r.path.contains("web-weft")).count();
        assert_eq!(of_web, 0, "watched: {watched}");
    }
    // Who leads no longer writes no more; who leads again finds what is there.
    s.provisioner.set_leader(false);
    s.watch();
    s.api.forget_requests();
    add(&mut s.world, &GATEWAYS.replace("web", "later"));
    s.publish();
    s.provisioner.set_leader(true);
    s.written("later").await;
    assert!(writes(&s).iter().all(|r| r.path.contains("later")), "{:?}", writes(&s));
    s.provisioner.stop().await;
}

/// The API server was away, and with it the leader's own way to the agents: a Gateway that everybody serves must not lose
/// its nodes because nobody can say so.
#[tokio::test]
async fn a_leader_to_whom_nobody_comes_moves_nothing() {
    let mut s = Setup::with(Duration::ZERO);
    node(&mut s.world, "n2", &["10.0.0.2"], &[]);
    s.publish_with(&["n1", "n2"]);
    s.provisioner.set_leader(true);
    s.written("web").await;
    s.api.until("both nodes", |_| s.endpoints("web") == ["n1", "n2"]).await;
    s.provisioner.set_leader(false);
    s.watch();
    s.publish_with(&[]);
    s.provisioner.set_leader(true);
    // Something to be written, so that there is a moment to look at.
    for name in ["later", "last"] {
        add(&mut s.world, &GATEWAYS.replace("web", name));
        s.publish_with(&[]);
        s.written(name).await;
        assert_eq!(s.endpoints("web"), ["n1", "n2"], "nobody came, so nobody is known to be away");
    }
    s.watch();
    s.publish_with(&["n2"]);
    s.api.until("who did not come is let go of", |_| s.endpoints("web") == ["n2"]).await;
}

#[tokio::test]
async fn what_is_refused_is_tried_again_and_said() {
    let s = Setup::new();
    s.api.fail("services", Some(500));
    s.provisioner.set_leader(true);
    s.publish();
    s.problem(|p| p.is_some_and(|p| p.starts_with("Service infra/web-weft: "))).await;
    s.api.fail("services", None);
    s.written("web").await;
    s.problem(|p| p.is_none()).await;
}

/// As when a conformance run follows another: the garbage collector took everything, and the ServiceAccounts, which are
/// not watched, are still remembered.
#[tokio::test]
async fn a_gateway_that_comes_again_gets_its_objects_again() {
    let mut s = Setup::new();
    s.provisioner.set_leader(true);
    s.publish();
    s.written("web").await;
    let gateway = s.world.gateways.remove(&key("infra/web"));
    for (plural, name) in
        [("services", "web-weft"), ("serviceaccounts", "web-weft"), ("endpointslices", "web-weft-ipv4")]
    {
        s.api.delete(plural, "infra", name);
    }
    s.watch();
    s.publish();
    assert!(gateway.is_some());
    add(&mut s.world, &GATEWAYS.replace("uid-web", "uid-web-again"));
    s.publish();
    s.written("web").await;
    s.problem(|p| p.is_none()).await;
    let account = s.api.object("serviceaccounts", "infra", "web-weft").expect("it was waited for");
    assert_eq!(account["metadata"]["ownerReferences"][0]["uid"], "uid-web-again");
}

#[tokio::test]
async fn objects_of_others_are_left_alone() {
    let s = Setup::new();
    // Neither is in the published world, as if the watch lagged.
    let foreign = |api: &str, kind: &str, name: &str| {
        let mut object =
            json!({"apiVersion": api, "kind": kind, "metadata": {"name": name, "namespace": "infra"}});
        if kind == "EndpointSlice" {
            object["addressType"] = "IPv4".into();
            object["endpoints"] = json!([]);
        }
        s.api.put(object)
    };
    let before: [Value; 2] = [
        foreign("v1", "ServiceAccount", "web-weft"),
        foreign("discovery.k8s.io/v1", "EndpointSlice", "web-weft-ipv4"),
    ];
    s.provisioner.set_leader(true);
    s.publish();
    s.problem(|p| p == Some("EndpointSlice infra/web-weft-ipv4 is there already and not Weft's")).await;
    s.written("web").await;
    let after = [("serviceaccounts", "web-weft"), ("endpointslices", "web-weft-ipv4")];
    let after = after.map(|(plural, name)| s.api.object(plural, "infra", name).expect("it stays"));
    assert_eq!(after, before);
}

#[tokio::test]
async fn nothing_is_written_without_leading() {
    let s = Setup::new();
    s.publish();
    s.provisioner.stop().await;
    assert!(s.api.requests().is_empty());
}
