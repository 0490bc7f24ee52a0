//! The provider against an API server.

use super::{
    ClusterHandle, ClusterInputs, ClusterOptions, ClusterProvider, Material, Retry, Role, WatchState,
    Watched, watched_kinds,
};
use crate::{testing::FakeApi, world::World};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::sync::watch;
use weft_core::model::{
    Capture, DEFAULT_TRUST_DOMAIN, Doubt, Kind, MtlsMode, ObjectKey, ObjectRef, RouteKind, Snapshot, Str,
    TunnelPort, Workload,
};

const GATEWAY: &str = "gateway.networking.k8s.io";

/// A provider of a fake server.
struct Bed {
    api: FakeApi,
    handle: ClusterHandle,
    worlds: watch::Receiver<Arc<World>>,
}

fn agent() -> Role {
    Role::Agent { node: "n1".into() }
}

const SOON: Retry = Retry { first: Duration::from_millis(1), longest: Duration::from_millis(5) };

fn start(api: &FakeApi, role: Role, inputs: ClusterInputs) -> ClusterHandle {
    start_with(api, role, inputs, SOON)
}

fn start_with(api: &FakeApi, role: Role, inputs: ClusterInputs, retry: Retry) -> ClusterHandle {
    let options = ClusterOptions {
        debounce: Duration::from_millis(1),
        retry,
        forbidden_grace: Duration::from_millis(50),
        discover_every: Duration::from_millis(100),
        ..ClusterOptions::new(role)
    };
    ClusterProvider::start(api.client(), options, inputs).expect("options are right")
}

async fn bed_of(api: FakeApi, role: Role) -> Bed {
    let handle = start(&api, role, ClusterInputs::none());
    bed_with(api, handle).await
}

async fn bed_with(api: FakeApi, handle: ClusterHandle) -> Bed {
    let ready = tokio::time::timeout(Duration::from_secs(30), handle.worlds()).await;
    let worlds = ready.expect("a first world").expect("the provider runs");
    Bed { api, handle, worlds }
}

impl Bed {
    /// Waits for a world.
    async fn world(&self, what: &str, holds: impl FnMut(&Arc<World>) -> bool) -> Arc<World> {
        let mut worlds = self.worlds.clone();
        let found = tokio::time::timeout(Duration::from_secs(30), worlds.wait_for(holds)).await;
        let Ok(found) = found else { panic!("never came: {what}; {:?}", self.worlds.borrow().problems) };
        found.expect("the provider runs").clone()
    }

    /// Waits for a state.
    async fn state(&self, what: &str, holds: impl FnMut(&Arc<WatchState>) -> bool) -> Arc<WatchState> {
        let mut state = self.handle.state.clone();
        let found = tokio::time::timeout(Duration::from_secs(30), state.wait_for(holds)).await;
        let Ok(found) = found else { panic!("never came: {what}; {:?}", self.handle.state.borrow()) };
        found.expect("the provider runs").clone()
    }

    async fn routes(&self, what: &str, names: &[&str]) {
        self.world(what, |w| routes(w) == names).await;
    }

    /// How often a kind was listed from the start, by either way.
    fn lists(&self, plural: &str) -> usize {
        let all = self.api.requests();
        let of = |r: &&crate::testing::Recorded| r.path.ends_with(plural);
        all.iter()
            .filter(of)
            .filter(|r| !r.query.contains_key("watch") || r.query.contains_key("sendInitialEvents"))
            .count()
    }
}

fn routes(world: &World) -> Vec<String> {
    let http = world.snapshot.routes.keys().filter(|(kind, _)| *kind == RouteKind::Http);
    http.map(|(_, key)| key.name.to_string()).collect()
}

fn route(name: &str) -> Value {
    json!({
        "apiVersion": format!("{GATEWAY}/v1"), "kind": "HTTPRoute",
        "metadata": { "name": name, "namespace": "shop", "annotations": {
            "kubectl.kubernetes.io/last-applied-configuration": "{}", "mine": "stays",
        }, "managedFields": [{ "manager": "kubectl" }] },
        "spec": { "parentRefs": [{ "name": "gw" }],
                  "rules": [{ "backendRefs": [{ "name": "cart", "port": 80 }] }] },
    })
}

fn pod(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "shop",
                      "labels": { "app": name, "pod-template-hash": "x" }, "annotations": { "cni": "long" } },
        "spec": { "nodeName": node, "serviceAccountName": "sa", "aNewField": 1 },
        "status": { "phase": "Running", "podIP": "10.0.0.1" },
    })
}

fn namespace(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } })
}

fn settings(domain: &str) -> Value {
    let text = format!("apiVersion: weft.dev/v1alpha1\nkind: AgentConfig\ntrustDomain: {domain}\n");
    json!({ "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": "weft-config", "namespace": "weft-system" }, "data": { "config.yaml": text } })
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("shop", name)
}

#[tokio::test]
async fn a_list_and_then_events() {
    for streaming in [true, false] {
        let api = FakeApi::new();
        api.lists(streaming, 2);
        for name in ["a", "b", "c", "d", "e"] {
            api.put(route(name));
        }
        api.put(namespace("shop"));
        let bed = bed_of(api, agent()).await;
        assert_eq!(routes(&bed.worlds.borrow()), ["a", "b", "c", "d", "e"], "the first world is complete");
        let old = bed.worlds.borrow().clone();
        bed.api.put(route("f"));
        bed.api.delete("httproutes", "shop", "b");
        bed.routes("changes", &["a", "c", "d", "e", "f"]).await;
        let world = bed.worlds.borrow().clone();
        let of = |w: &World| w.snapshot.routes[&(RouteKind::Http, key("a"))].clone();
        assert!(Arc::ptr_eq(&of(&old), &of(&world)), "what has not changed is the same");
        let meta = of(&world).meta.clone();
        assert_eq!(meta.annotations.keys().map(|k| &**k).collect::<Vec<_>>(), ["mine"]);
        assert!(meta.generation == 1 && meta.uid.starts_with("0000"), "{meta:?}");
        assert!(world.problems.is_empty(), "{:?}", world.problems);
        let state = bed.state("all synced", |s| s.kinds.values().all(|k| k.synced)).await;
        let http = &state.kinds[&Watched::Model(Kind::HttpRoute)];
        assert_eq!((http.version, http.objects, http.lists), (Some("v1"), 5, 1));
        assert_eq!(state.kubernetes.as_deref(), Some("v1.36.0"));
        let bundles: Vec<_> = state.bundles.iter().map(|b| (&*b.version, &*b.channel)).collect();
        assert_eq!(bundles, [("v1.6.1", "experimental")]);
        assert_eq!(state.findings(), []);
        bed.handle.stop().await;
    }
}

#[tokio::test]
async fn a_change_of_nothing_that_counts_makes_no_world() {
    let api = FakeApi::new();
    api.put(pod("p", "n1"));
    let mut bed = bed_of(api, agent()).await;
    bed.worlds.mark_unchanged();
    let mut same = pod("p", "n1");
    same["status"]["conditions"] = json!([{ "type": "Ready", "status": "True" }]);
    same["metadata"]["annotations"]["cni"] = "another".into();
    bed.api.put(same);
    bed.api.put(route("after"));
    let world = bed.world("the next change", |w| routes(w) == ["after"]).await;
    assert_eq!(world.snapshot.pods[&key("p")].meta.labels.len(), 1, "labels that nobody reads are dropped");
    assert!(world.problems.is_empty(), "an unknown field of a newer API server is no problem");
}

#[tokio::test]
async fn a_bookmark_is_where_a_watch_goes_on() {
    let api = FakeApi::new();
    api.put(route("a"));
    let bed = bed_of(api, agent()).await;
    // Moves the server's version on without an event for the routes.
    bed.api.put(namespace("late"));
    bed.world("the namespace", |w| w.snapshot.namespaces.contains_key("late")).await;
    bed.api.forget_requests();
    bed.api.bookmark();
    bed.api.end_watches();
    let watch =
        |r: &crate::testing::Recorded| r.path.ends_with("httproutes") && r.query.contains_key("watch");
    bed.api.until("a new watch", |a| a.requests().iter().any(watch)).await;
    let from = bed.api.requests().iter().find(|r| watch(r)).map(|r| r.query["resourceVersion"].clone());
    let newest = bed.api.objects("namespaces")[0]["metadata"]["resourceVersion"].clone();
    assert_eq!(from.as_deref(), newest.as_str());
    assert_eq!(bed.lists("httproutes"), 0);
}

#[tokio::test]
async fn a_cut_connection_goes_on_where_it_was() {
    let api = FakeApi::new();
    api.put(route("a"));
    let bed = bed_of(api, agent()).await;
    let lists = bed.lists("httproutes");
    for name in ["b", "c"] {
        bed.api.until("a watch", |a| a.watches("httproutes") > 0).await;
        bed.api.cut();
        bed.api.put(route(name));
        bed.world(name, |w| routes(w).iter().any(|r| r == name)).await;
    }
    assert_eq!(bed.lists("httproutes"), lists, "nothing is listed again");
}

#[tokio::test]
async fn a_version_that_is_gone_is_listed_again() {
    let api = FakeApi::new();
    for name in ["a", "b"] {
        api.put(route(name));
    }
    let bed = bed_of(api, agent()).await;
    bed.api.away(true);
    bed.api.delete("httproutes", "shop", "a");
    bed.api.put(route("c"));
    bed.api.compact();
    bed.api.away(false);
    bed.routes("caught up", &["b", "c"]).await;
    assert!(bed.handle.state.borrow().kinds[&Watched::Model(Kind::HttpRoute)].lists >= 2);
}

#[tokio::test]
async fn a_server_that_is_away_changes_nothing() {
    let api = FakeApi::new();
    api.put(route("a"));
    let bed = bed_of(api, agent()).await;
    let before = bed.worlds.borrow().clone();
    bed.api.away(true);
    let state = bed.state("says so", |s| s.kinds.values().all(|k| !k.synced)).await;
    assert!(state.ready, "the last state is served");
    let fault = state.kinds[&Watched::Model(Kind::Service)].error.clone().expect("a reason");
    assert!(fault.reason.contains("connection refused"), "{fault:?}");
    let now = bed.worlds.borrow().snapshot.clone();
    assert_eq!(now.doubt, Doubt::Everywhere, "nothing is heard of nodes");
    let doubt = before.snapshot.doubt.clone();
    assert_eq!(Snapshot { doubt, ..now }, before.snapshot, "else the last world stays");
    bed.api.put(route("b"));
    bed.api.away(false);
    bed.routes("caught up", &["a", "b"]).await;
    let state = bed.state("is well again", |s| s.kinds.values().all(|k| k.synced)).await;
    assert_eq!(state.findings(), []);
}

#[tokio::test]
async fn a_node_that_is_not_heard_of_is_in_doubt_and_a_while_longer() {
    let node = |status: &str| {
        let conditions = json!([{"type": "Ready", "status": status}]);
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n2"}, "status": {"conditions": conditions}})
    };
    let api = FakeApi::new();
    api.put(node("True"));
    let bed = bed_of(api, agent()).await;
    let calm = Doubt::default();
    let doubted = Doubt::Nodes(Arc::new([Str::from("n2")].into()));
    let mut worlds = bed.worlds.clone();
    let mut until = async |ready: bool, doubt: &Doubt| {
        let holds = |w: &Arc<World>| {
            let node = w.snapshot.nodes.get("n2");
            w.snapshot.doubt == *doubt && node.is_some_and(|n| n.ready == ready)
        };
        let waited = tokio::time::timeout(Duration::from_secs(30), worlds.wait_for(holds)).await;
        waited.expect("in time").expect("it runs");
    };
    until(true, &calm).await;
    bed.api.put(node("Unknown"));
    until(false, &doubted).await;
    bed.api.put(node("True"));
    until(true, &doubted).await;
}

#[tokio::test]
async fn a_server_that_is_not_there_yet_is_waited_for() {
    let api = FakeApi::new();
    api.put(route("a"));
    api.away(true);
    let handle = start(&api, agent(), ClusterInputs::none());
    let mut state = handle.state.clone();
    let down = tokio::time::timeout(Duration::from_secs(30), state.wait_for(|s| s.discovery.is_some())).await;
    assert!(!down.expect("in time").expect("runs").ready);
    api.away(false);
    let worlds = tokio::time::timeout(Duration::from_secs(30), handle.worlds()).await;
    assert_eq!(routes(&worlds.expect("in time").expect("runs").borrow()), ["a"]);
}

#[tokio::test]
async fn kinds_come_and_go() {
    let api = FakeApi::new();
    api.unserve(GATEWAY, "listenersets");
    api.unserve(GATEWAY, "httproutes");
    let bed = bed_of(api, agent()).await;
    let findings = bed.handle.state.borrow().findings();
    let said: Vec<_> =
        findings.iter().map(|(what, f)| format!("{what}: {}; {}", f.reason, f.remedy)).collect();
    assert_eq!(
        said,
        [
            "HTTPRoute: the cluster does not serve this kind; install the Gateway API CRDs; they are picked up when they \
          appear"
        ],
        "ListenerSet is younger than the oldest bundle that is read"
    );
    bed.api.serve(GATEWAY, &["v1"], "httproutes");
    bed.api.put(route("a"));
    bed.routes("picked up", &["a"]).await;
    bed.api.unserve(GATEWAY, "httproutes");
    bed.routes("dropped", &[]).await;
    let http = |s: &Arc<WatchState>| s.kinds[&Watched::Model(Kind::HttpRoute)].clone();
    let state = bed.state("not served", |s| http(s).version.is_none()).await;
    assert_eq!((http(&state).objects, http(&state).error), (0, None));
}

#[tokio::test]
async fn a_kind_that_is_only_missing_for_a_moment_stays() {
    let api = FakeApi::new();
    api.put(route("a"));
    let bed = bed_of(api, agent()).await;
    bed.state("definitions known", |s| s.kinds[&Watched::Definition].synced).await;
    // As an API server that starts: it has the definition and does not serve the kind yet.
    bed.api.forget_requests();
    bed.api.hide(GATEWAY, "httproutes");
    bed.state("missed", |s| s.kinds[&Watched::Model(Kind::HttpRoute)].error.is_some()).await;
    // Asked again, and told the same.
    let asked = |r: &crate::testing::Recorded| r.path == "/apis";
    bed.api.until("discovery", |a| a.requests().iter().filter(|r| asked(r)).count() >= 3).await;
    assert_eq!(routes(&bed.worlds.borrow()), ["a"]);
    bed.api.serve(GATEWAY, &["v1"], "httproutes");
    bed.api.put(route("b"));
    bed.routes("goes on", &["a", "b"]).await;
}

#[tokio::test]
async fn the_newest_version_that_both_know() {
    // Bundle v1.2.0: no ListenerSet, and old versions of the rest.
    let api = FakeApi::new();
    api.unserve(GATEWAY, "listenersets");
    api.serve(GATEWAY, &["v1alpha2"], "tcproutes");
    api.serve(GATEWAY, &["v1alpha2"], "tlsroutes");
    api.serve(GATEWAY, &["v1alpha3"], "backendtlspolicies");
    api.serve(GATEWAY, &["v1beta1"], "referencegrants");
    api.serve(GATEWAY, &["v2", "v1"], "httproutes");
    api.put(json!({
        "apiVersion": format!("{GATEWAY}/v1alpha2"), "kind": "TCPRoute",
        "metadata": { "name": "t", "namespace": "shop" },
        "spec": { "parentRefs": [{ "name": "gw" }], "rules": [{ "backendRefs": [{ "name": "db", "port": 1 }] }] },
    }));
    let bed = bed_of(api, agent()).await;
    let version = |s: &WatchState, kind| s.kinds[&Watched::Model(kind)].version;
    let state = bed.handle.state.borrow().clone();
    for (kind, expected) in [
        (Kind::TcpRoute, Some("v1alpha2")),
        (Kind::TlsRoute, Some("v1alpha2")),
        (Kind::UdpRoute, Some("v1")),
        (Kind::BackendTlsPolicy, Some("v1alpha3")),
        (Kind::ReferenceGrant, Some("v1beta1")),
        (Kind::HttpRoute, Some("v1")),
        (Kind::ListenerSet, None),
    ] {
        assert_eq!(version(&state, kind), expected, "{kind}");
    }
    let world = bed.worlds.borrow().clone();
    assert!(world.snapshot.routes.contains_key(&(RouteKind::Tcp, key("t"))));
    assert!(world.problems.is_empty(), "the version is not the user's: {:?}", world.problems);
    // The CRDs are upgraded: the same objects in the newer version, none of them gone in between.
    bed.api.serve(GATEWAY, &["v1"], "tcproutes");
    bed.state("upgraded", |s| version(s, Kind::TcpRoute) == Some("v1")).await;
    bed.state("listed", |s| s.kinds[&Watched::Model(Kind::TcpRoute)].synced).await;
    assert!(bed.worlds.borrow().snapshot.routes.contains_key(&(RouteKind::Tcp, key("t"))));
}

#[tokio::test]
async fn an_agent_reads_what_it_may_and_no_more() {
    let api = FakeApi::new();
    for (name, node) in [("mine", "n1"), ("theirs", "n2")] {
        api.put(pod(name, node));
    }
    api.put(settings("first.example"));
    let bed = bed_of(api, agent()).await;
    let pods = |w: &World| w.snapshot.pods.keys().map(|k| k.name.to_string()).collect::<Vec<_>>();
    assert_eq!(pods(&bed.worlds.borrow()), ["mine"]);
    assert_eq!(&*bed.worlds.borrow().agent.trust_domain, "first.example");
    for request in bed.api.requests() {
        let last = request.path.rsplit('/').next().unwrap_or_default();
        let fields = request.query.get("fieldSelector").map(String::as_str).unwrap_or_default();
        assert_eq!(request.method, "GET", "{request:?}");
        match last {
            "secrets" => panic!("an agent asked for Secrets: {request:?}"),
            "configmaps" => {
                assert_eq!(request.path, "/api/v1/namespaces/weft-system/configmaps");
                assert!(
                    ["metadata.name=weft-config", "metadata.name=weft-ca-root"].contains(&fields),
                    "{fields}"
                );
            }
            "pods" => assert_eq!(fields, "spec.nodeName=n1"),
            _ => assert_eq!(fields, "", "{request:?}"),
        }
    }
}

#[test]
fn what_is_watched_is_what_rbac_has_to_grant() {
    let of = |role: &Role, resource: &str| {
        let all = watched_kinds(role);
        all.iter().filter(|a| a.resource == resource).map(|a| a.names.to_vec()).collect::<Vec<_>>()
    };
    assert!(of(&agent(), "secrets").is_empty());
    assert_eq!(of(&agent(), "configmaps"), [["weft-config"], ["weft-ca-root"]]);
    assert_eq!(of(&agent(), "pods"), [[""; 0]]);
    assert_eq!(of(&Role::Controller, "secrets"), [[""; 0]]);
    assert!(of(&Role::Controller, "workloadslices").is_empty());
    assert!(watched_kinds(&agent()).iter().all(|a| a.verbs == ["list", "watch"]));
}

#[tokio::test]
async fn a_kind_that_is_forbidden_does_not_stop_the_rest() {
    let api = FakeApi::new();
    api.put(route("a"));
    api.put(namespace("shop"));
    api.fail("httproutes", Some(403));
    let bed = bed_of(api, agent()).await;
    assert!(bed.worlds.borrow().snapshot.namespaces.contains_key("shop"));
    let state = bed.handle.state.borrow().clone();
    let fault = state.kinds[&Watched::Model(Kind::HttpRoute)].error.clone().expect("a fault");
    assert!(fault.remedy.contains(&format!("list and watch on httproutes.{GATEWAY}")), "{fault:?}");
    bed.api.fail("httproutes", None);
    bed.routes("granted at last", &["a"]).await;
}

#[tokio::test]
async fn a_watch_that_stands_again_says_that_the_server_is_back() {
    let api = FakeApi::new();
    api.put(route("a"));
    api.fail("httproutes", Some(503));
    // So long that only another kind's luck can end the wait.
    let retry = Retry { first: Duration::from_secs(3600), longest: Duration::from_secs(3600) };
    let handle = start_with(&api, agent(), ClusterInputs::none(), retry);
    let mut state = handle.state.clone();
    let failed = state.wait_for(|s| {
        let kind = s.kinds.get(&Watched::Model(Kind::HttpRoute));
        kind.is_some_and(|kind| kind.error.is_some())
    });
    tokio::time::timeout(Duration::from_secs(30), failed).await.expect("a fault").expect("the provider runs");
    api.fail("httproutes", None);
    // A watch that ends at once is a failure too, unless it has said something.
    api.bookmark();
    api.end_watches();
    bed_with(api, handle).await.routes("at once", &["a"]).await;
}

#[tokio::test]
async fn a_broken_object_keeps_its_last_good_version() {
    let api = FakeApi::new();
    api.put(route("a"));
    let bed = bed_of(api, agent()).await;
    let good = bed.worlds.borrow().snapshot.routes[&(RouteKind::Http, key("a"))].clone();
    let mut broken = route("a");
    broken["spec"]["rules"] = json!("none");
    bed.api.put(broken);
    let world = bed.world("a problem", |w| !w.problems.is_empty()).await;
    assert!(Arc::ptr_eq(&good, &world.snapshot.routes[&(RouteKind::Http, key("a"))]));
    let said: Vec<String> = world.problems.iter().map(ToString::to_string).collect();
    assert!(said.iter().any(|p| p.starts_with("HTTPRoute shop/a: spec.rules")), "{said:?}");
    assert!(said.iter().any(|p| p.ends_with("the last good version stays in effect")), "{said:?}");
    bed.api.delete("httproutes", "shop", "a");
    bed.world("gone with its problems", |w| routes(w).is_empty() && w.problems.is_empty()).await;
}

#[tokio::test]
async fn settings_and_roots_come_from_two_config_maps() {
    let api = FakeApi::new();
    let bed = bed_of(api, agent()).await;
    assert_eq!(&*bed.worlds.borrow().agent.trust_domain, DEFAULT_TRUST_DOMAIN);
    bed.api.put(settings("one.example"));
    bed.world("settings", |w| &*w.agent.trust_domain == "one.example" && !w.uninstall).await;
    let mut removed = settings("one.example");
    removed["data"]["uninstall"] = json!("true");
    removed["data"]["drain"] = json!("soon");
    bed.api.put(removed.clone());
    let world = bed.world("uninstall", |w| w.uninstall).await;
    assert_eq!(world.drain, None, "no duration");
    removed["data"]["drain"] = json!("1m30s");
    bed.api.put(removed);
    let world = bed.world("a patience", |w| w.drain.is_some()).await;
    assert_eq!((world.uninstall, world.drain), (true, Some(Duration::from_secs(90))));
    assert_eq!(&*world.agent.trust_domain, "one.example");
    bed.api.put(settings("one.example"));
    bed.world("no uninstall", |w| !w.uninstall && w.drain.is_none()).await;
    bed.api.put(settings("NO DOMAIN"));
    let world = bed.world("a problem", |w| !w.problems.is_empty()).await;
    assert_eq!(&*world.agent.trust_domain, "one.example", "the last good value stays");
    let said = world.problems[0].to_string();
    assert!(
        said.starts_with("ConfigMap weft-system/weft-config config.yaml:3: AgentConfig: trustDomain"),
        "{said}"
    );
    bed.api.put(json!({ "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": "weft-ca-root", "namespace": "weft-system" }, "data": { "root.pem": "PEM" } }));
    let mut roots = bed.handle.roots.clone();
    let found = tokio::time::timeout(Duration::from_secs(30), roots.wait_for(Option::is_some)).await;
    assert_eq!(found.expect("in time").expect("runs").as_deref(), Some("PEM"));
    bed.api.delete("configmaps", "weft-system", "weft-config");
    bed.world("defaults", |w| &*w.agent.trust_domain == DEFAULT_TRUST_DOMAIN && w.problems.is_empty()).await;
}

#[tokio::test]
async fn pods_of_other_nodes_come_from_slices() {
    let slice = |name: &str, pods: &[(&str, &str, bool)]| {
        let entry = |(name, node, captured): &(&str, &str, bool)| {
            json!({ "name": name, "uid": format!("u-{name}"), "ips": ["10.1.0.7", "fd00::7"], "serviceAccount": "cart",
                    "node": node, "enrolled": true, "captured": captured, "mtls": "strict", "app": "cart-app",
                    "hostNetwork": false })
        };
        let workloads: Vec<Value> = pods.iter().map(entry).collect();
        json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "WorkloadSlice",
                "metadata": { "name": name, "namespace": "shop" }, "workloads": workloads })
    };
    let api = FakeApi::new();
    api.put(pod("own", "n1"));
    api.put(slice("weft-0", &[("far", "n2", true), ("own", "n1", true), ("dead", "n1", true)]));
    api.put(slice("weft-1", &[("moved", "n2", false)]));
    let (captured_tx, captured) = watch::channel(Arc::default());
    let (_material_tx, material) = watch::channel(Arc::<Material>::default());
    let handle = start(&api, agent(), ClusterInputs { material, captured });
    let worlds = handle.worlds().await.expect("runs");
    let bed = Bed { api, handle, worlds };
    let names = |w: &World| w.snapshot.pods.keys().map(|k| k.name.to_string()).collect::<Vec<_>>();
    let world = bed.worlds.borrow().clone();
    assert_eq!(names(&world), ["far", "moved", "own"], "a pod of this node is there while its Pod is");
    let far = Workload::derive(&world.snapshot.pods[&key("far")], None, "d", MtlsMode::Permissive);
    assert_eq!((far.enrolled, far.mode, &*far.app), (true, MtlsMode::Strict, "cart-app"));
    assert_eq!(far.identity.to_string(), "spiffe://d/ns/shop/sa/cart");
    assert_eq!(far.ips.len(), 2);
    assert_eq!(world.snapshot.pods[&key("moved")].captured, Some(false));
    assert_eq!(world.snapshot.pods[&key("own")].captured, Some(false), "nobody has captured it yet");
    // Its capture stands: for the pod of that uid only.
    let uid = world.snapshot.pods[&key("own")].meta.uid.clone();
    captured_tx.send_replace(Arc::new(BTreeMap::from([(
        key("own"),
        Capture { uid, tunnel: TunnelPort::application([9100]), addresses: Vec::new() },
    )])));
    let captured = bed.world("captured", |w| w.snapshot.pods[&key("own")].captured == Some(true)).await;
    assert_eq!(captured.snapshot.pods[&key("own")].tunnel, TunnelPort::application([9100]));
    // From one slice to another, in either order of events.
    bed.api.put(slice("weft-0", &[("far", "n2", true), ("moved", "n3", true)]));
    bed.api.put(slice("weft-1", &[]));
    let on = |w: &World| w.snapshot.pods.get(&key("moved")).and_then(|p| p.node.clone());
    bed.world("moved", |w| on(w).as_deref() == Some("n3")).await;
    bed.api.delete("workloadslices", "shop", "weft-0");
    bed.api.delete("pods", "shop", "own");
    bed.world("all gone", |w| names(w).is_empty()).await;
}

#[tokio::test]
async fn material_is_the_snapshots_secrets() {
    use weft_core::model::{ConfigMap, Objects, Secret};
    let api = FakeApi::new();
    let (material_tx, material) = watch::channel(Arc::<Material>::default());
    let (_captured_tx, captured) = watch::channel(Arc::default());
    let handle = start(&api, agent(), ClusterInputs { material, captured });
    let worlds = handle.worlds().await.expect("runs");
    let bed = Bed { api, handle, worlds };
    let convert =
        |value: Value| crate::convert(value, &crate::Source { admitted: true, ..Default::default() });
    let meta = json!({ "name": "cert", "namespace": "shop" });
    let secret: Arc<Secret> =
        match convert(json!({ "apiVersion": "v1", "kind": "Secret", "metadata": meta })).object {
            Some(crate::Object::Secret(secret)) => secret,
            other => panic!("{other:?}"),
        };
    let map: Arc<ConfigMap> =
        match convert(json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": meta })).object {
            Some(crate::Object::ConfigMap(map)) => map,
            other => panic!("{other:?}"),
        };
    material_tx.send_replace(Arc::new(Material {
        secrets: Objects::from([(key("cert"), secret)]),
        config_maps: Objects::from([(key("cert"), map)]),
    }));
    bed.world("material", |w| w.snapshot.secrets.len() + w.snapshot.config_maps.len() == 2).await;
    material_tx.send_replace(Arc::default());
    bed.world("taken back", |w| w.snapshot.secrets.is_empty() && w.snapshot.config_maps.is_empty()).await;
}

#[tokio::test]
async fn a_controller_sees_all_pods_nodes_and_certificates() {
    let api = FakeApi::new();
    api.put(pod("p1", "n1"));
    api.put(pod("p2", "n2"));
    api.put(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" },
        "spec": { "podCIDRs": ["10.0.0.0/24"] },
        "status": { "addresses": [{ "type": "InternalIP", "address": "192.0.2.1" },
                                  { "type": "Hostname", "address": "n1" }],
                    "conditions": [{ "type": "Ready", "status": "True" }] } }));
    for (name, kind) in [("cert", "Opaque"), ("release", "helm.sh/release.v1")] {
        api.put(json!({ "apiVersion": "v1", "kind": "Secret", "type": kind,
                        "metadata": { "name": name, "namespace": "shop" } }));
    }
    let bed = bed_of(api, Role::Controller).await;
    let world = bed.worlds.borrow().clone();
    assert_eq!(world.snapshot.pods.len(), 2);
    assert_eq!(world.snapshot.pods[&key("p1")].captured, None);
    assert_eq!(world.snapshot.secrets.keys().collect::<Vec<_>>(), [&key("cert")]);
    let node = &world.snapshot.nodes["n1"];
    assert_eq!((node.addresses.len(), node.pod_cidrs.len(), node.ready), (1, 1, true));
}

/// Statuses that other controllers may write too come with their objects, for who writes there; they are no part of the
/// world.
#[tokio::test]
async fn a_controller_keeps_the_statuses_of_routes() {
    let object = ObjectRef { kind: Kind::HttpRoute, key: key("a") };
    for (role, keeps) in [(Role::Controller, true), (agent(), false)] {
        let api = FakeApi::new();
        api.put(route("a"));
        let bed = bed_of(api, role).await;
        let known = bed.handle.lives.get(&object).map(|live| live.resource_version.clone());
        assert_eq!(known.is_some(), keeps);
        if !keeps {
            continue;
        }
        let mut with_status = route("a");
        with_status["status"] = json!({ "parents": [] });
        bed.api.put(with_status);
        bed.api.put(route("b"));
        bed.world("the other route", |w| w.snapshot.routes.len() == 2).await;
        let newer = bed.handle.lives.get(&object).map(|live| live.resource_version.clone());
        assert_ne!(newer, known, "the status came");
        bed.api.delete("httproutes", "shop", "a");
        bed.world("a is gone", |w| w.snapshot.routes.len() == 1).await;
        assert!(bed.handle.lives.get(&object).is_none());
    }
}
