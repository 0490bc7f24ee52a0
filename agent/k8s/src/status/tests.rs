use super::*;
use crate::apiserver::{ApiServer, answer, path, refuse};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::{sync::watch, time::Instant};
use weft_core::{
    model::{GroupKind, ObjectKey, ParentRef},
    status::{Condition, ConditionStatus, ListenerStatus, ObjectStatus, RouteParentStatus},
};

/// A controller over an API server.
struct Setup {
    leadership: watch::Sender<Leadership>,
    writer: StatusWriter,
    statuses: AllStatuses,
    known: BTreeMap<ObjectRef, (String, i64)>,
}

impl Setup {
    fn new(server: &ApiServer) -> Self {
        let config = WriterConfig { qps: 10_000, burst: 10_000, ..WriterConfig::default() };
        Self::with(server, config)
    }

    fn with(server: &ApiServer, config: WriterConfig) -> Self {
        let (leadership, follow) = watch::channel(Leadership::alone());
        let writer = StatusWriter::start(server.client(), config, follow, None);
        Self { leadership, writer, statuses: AllStatuses::default(), known: BTreeMap::new() }
    }

    /// Sets the status of an object that exists in the cluster and is known; None: it is none of ours.
    fn set(&mut self, object: &ObjectRef, generation: i64, status: Option<ObjectStatus>) {
        self.known.insert(object.clone(), (format!("uid-{}", object.key.name), generation));
        match status {
            Some(status) => self.statuses.insert(object.clone(), Arc::new(status)),
            None => self.statuses.remove(object),
        };
    }

    fn publish(&self, changed: &[ObjectRef]) {
        let known = self.known.clone();
        let desired = Desired {
            statuses: Arc::new(self.statuses.clone()),
            known: Arc::new(move |object| {
                let (uid, generation) = known.get(object)?;
                Some(Known { uid: uid.as_str().into(), generation: *generation, live: None })
            }),
            served: Arc::new(kinds::KINDS.into_iter().map(|k| (k, "v1".into())).collect()),
        };
        self.writer.publish(desired, changed);
    }

    fn count(&self, what: Counted) -> u64 {
        self.writer.progress.count(what)
    }

    /// Until everything has been compared and nothing waits.
    async fn idle(&self) {
        let progress = self.writer.progress();
        let wait = async {
            let busy = || {
                let unread = self.writer.inbox.mail.lock().changed.len() as u64;
                unread + progress.queued() + progress.running() > 0
            };
            while progress.count(Counted::Surveys) < 9 || busy() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(3600), wait).await.expect("idle");
    }
}

fn object(kind: Kind, namespace: &str, name: &str) -> ObjectRef {
    ObjectRef { kind, key: ObjectKey::new(namespace, name) }
}

fn route(namespace: &str, name: &str) -> ObjectRef {
    object(Kind::HttpRoute, namespace, name)
}

fn condition(kind: &'static str, good: bool, reason: &'static str, generation: i64) -> Condition {
    let status = if good { ConditionStatus::True } else { ConditionStatus::False };
    Condition { kind, status, reason, message: reason.to_owned(), observed_generation: generation }
}

fn attached(generation: i64, good: bool) -> ObjectStatus {
    let parent = ParentRef {
        kind: GroupKind::from(Kind::Gateway),
        namespace: Some("infra".into()),
        name: "web".into(),
        section_name: None,
        port: None,
    };
    let conditions = vec![
        condition("Accepted", true, "Accepted", generation),
        condition("ResolvedRefs", good, "Refs", generation),
    ];
    ObjectStatus::Route { parents: vec![RouteParentStatus { parent, conditions }] }
}

fn gateway(generation: i64, programmed: (bool, &'static str), routes: i32) -> ObjectStatus {
    let listener = ListenerStatus {
        name: "http".into(),
        supported_kinds: vec![GroupKind::from(Kind::HttpRoute)],
        attached_routes: routes,
        conditions: vec![condition("Accepted", true, "Accepted", generation)],
    };
    ObjectStatus::Gateway {
        conditions: vec![
            condition("Accepted", true, "Accepted", generation),
            condition("Programmed", programmed.0, programmed.1, generation),
        ],
        addresses: vec![("IPAddress", "192.0.2.1".into())],
        listeners: vec![listener],
        attached_listener_sets: 0,
    }
}

const SERVED: (bool, &str) = (true, "Programmed");
const PENDING: (bool, &str) = (false, "Pending");

fn new_object(generation: i64) -> Value {
    json!({"metadata": {"generation": generation}, "spec": {}})
}

fn foreign() -> Value {
    json!({"controllerName": "example.com/other", "parentRef": {"name": "theirs", "kind": "Gateway", "group": "gateway.networking.k8s.io"},
        "conditions": [{"type": "Accepted", "status": "True", "reason": "x", "message": "y", "lastTransitionTime": "2020-01-01T00:00:00Z"}]})
}

fn parents(server: &ApiServer, namespace: &str, name: &str) -> Vec<Value> {
    server.object("httproutes", namespace, name)["status"]["parents"].as_array().cloned().unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn a_restart_writes_nothing_when_all_is_right() {
    let server = ApiServer::new();
    let objects = [
        (object(Kind::GatewayClass, "", "weft"), "gatewayclasses"),
        (object(Kind::Gateway, "infra", "web"), "gateways"),
        (route("shop", "a"), "httproutes"),
    ];
    let statuses = || {
        [
            ObjectStatus::GatewayClass {
                conditions: vec![condition("Accepted", true, "Accepted", 1)],
                supported_features: vec!["Gateway", "HTTPRoute"],
            },
            gateway(1, SERVED, 1),
            attached(1, true),
        ]
    };
    for (object, plural) in &objects {
        server.put(plural, &object.key.namespace, &object.key.name, new_object(1));
    }
    let start = || {
        let mut setup = Setup::new(&server);
        for ((object, _), status) in objects.iter().zip(statuses()) {
            setup.set(object, 1, Some(status));
        }
        setup.publish(&[]);
        setup
    };
    let first = start();
    first.idle().await;
    assert_eq!(server.writes().len(), 3, "{:#?}", server.writes());
    assert_eq!(first.count(Counted::Writes), 3);
    assert_eq!(first.count(Counted::Reads), 0, "the lists say it all");
    first.writer.stop().await;
    server.forget_log();

    let second = start();
    second.idle().await;
    second.publish(&objects.clone().map(|(object, _)| object));
    second.idle().await;
    assert_eq!(server.writes().len(), 0, "{:#?}", server.writes());
    assert_eq!(server.log().len(), kinds::KINDS.len(), "one list of each kind, no more");
}

#[tokio::test(start_paused = true)]
async fn two_controllers_share_a_route() {
    let server = ApiServer::new();
    let mut setup = Setup::new(&server);
    server.put(
        "httproutes",
        "shop",
        "a",
        json!({"metadata": {"generation": 1}, "status": {"parents": [foreign()]}}),
    );
    setup.set(&route("shop", "a"), 1, Some(attached(1, true)));
    setup.publish(&[]);
    server.until("our entry", |s| parents(s, "shop", "a").len() == 2).await;
    setup.idle().await;

    // The other controller writes between our comparison and our write, each of three times.
    let times = AtomicUsize::new(0);
    server.set_meddle(move |server, request| {
        if request.method == "PATCH" && times.fetch_add(1, Ordering::Relaxed) < 3 {
            server.edit("httproutes", "shop", "a", |route| {
                let seen = route["status"]["parents"][0]["seen"].as_i64().unwrap_or(0);
                route["status"]["parents"][0]["seen"] = json!(seen + 1);
            });
        }
    });
    server.edit("httproutes", "shop", "a", |route| route["metadata"]["generation"] = json!(2));
    setup.set(&route("shop", "a"), 2, Some(attached(2, true)));
    setup.publish(&[route("shop", "a")]);
    server
        .until("generation 2", |s| parents(s, "shop", "a")[1]["conditions"][0]["observedGeneration"] == 2)
        .await;
    setup.idle().await;
    let mut theirs = foreign();
    theirs["seen"] = json!(3);
    let got = parents(&server, "shop", "a");
    assert_eq!((got.len(), &got[0]), (2, &theirs), "theirs is as they left it, and first");
    assert_eq!(setup.count(Counted::Conflicts), 3);

    // Not ours any more: our entry goes, theirs stays.
    setup.set(&route("shop", "a"), 2, None);
    setup.publish(&[route("shop", "a")]);
    server.until("removal", |s| parents(s, "shop", "a").len() == 1).await;
    setup.idle().await;
    assert_eq!(parents(&server, "shop", "a"), [theirs]);
}

#[tokio::test(start_paused = true)]
async fn entries_of_ours_in_objects_that_are_none_of_ours_are_removed_at_the_start() {
    let server = ApiServer::new();
    let mut ours = foreign();
    ours["controllerName"] = json!(CONTROLLER_NAME);
    let status = json!({"parents": [ours, foreign()]});
    server.put("httproutes", "shop", "left", json!({"metadata": {"generation": 1}, "status": status}));
    // The watch has not seen this one: it may be ours.
    server.put("httproutes", "shop", "unseen", json!({"metadata": {"generation": 1}, "status": status}));
    let mut setup = Setup::new(&server);
    setup.set(&route("shop", "left"), 1, None);
    setup.publish(&[]);
    server.until("removal", |s| parents(s, "shop", "left").len() == 1).await;
    setup.idle().await;
    assert_eq!(parents(&server, "shop", "left"), [foreign()]);
    assert_eq!(parents(&server, "shop", "unseen").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_spec_edit_costs_one_read_and_one_write() {
    let server = ApiServer::new();
    server.put("httproutes", "shop", "a", new_object(1));
    let mut setup = Setup::new(&server);
    setup.set(&route("shop", "a"), 1, Some(attached(1, true)));
    setup.publish(&[]);
    setup.idle().await;
    server.edit("httproutes", "shop", "a", |route| route["metadata"]["generation"] = json!(2));
    server.forget_log();
    setup.set(&route("shop", "a"), 2, Some(attached(2, true)));
    setup.publish(&[route("shop", "a")]);
    setup.publish(&[route("shop", "a")]);
    server
        .until("generation 2", |s| parents(s, "shop", "a")[0]["conditions"][0]["observedGeneration"] == 2)
        .await;
    setup.idle().await;
    let methods: Vec<_> = server.log().into_iter().map(|l| l.method).collect();
    assert_eq!(methods, ["GET", "PATCH"]);

    // With what the watch saw, there is no read either.
    server.edit("httproutes", "shop", "a", |route| route["metadata"]["generation"] = json!(3));
    server.forget_log();
    let live = Live::read(server.object("httproutes", "shop", "a").to_string().as_bytes()).map(Arc::new);
    setup.set(&route("shop", "a"), 3, Some(attached(3, true)));
    let desired = Desired {
        statuses: Arc::new(setup.statuses.clone()),
        known: Arc::new(move |_| Some(Known { uid: "uid-a".into(), generation: 3, live: live.clone() })),
        served: Arc::new(kinds::KINDS.into_iter().map(|k| (k, "v1".into())).collect()),
    };
    setup.writer.publish(desired, &[route("shop", "a")]);
    server
        .until("generation 3", |s| parents(s, "shop", "a")[0]["conditions"][0]["observedGeneration"] == 3)
        .await;
    setup.idle().await;
    assert_eq!(server.log().len(), 1, "{:#?}", server.log());
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_is_pending_is_written_once_when_it_is_served_soon() {
    let server = ApiServer::new();
    server.put("gateways", "infra", "web", new_object(1));
    let web = object(Kind::Gateway, "infra", "web");
    let mut setup = Setup::new(&server);
    setup.publish(&[]);
    setup.idle().await;
    setup.set(&web, 1, Some(gateway(1, PENDING, 0)));
    setup.publish(std::slice::from_ref(&web));
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(server.writes().len(), 0, "held back");
    setup.set(&web, 1, Some(gateway(1, SERVED, 0)));
    setup.publish(std::slice::from_ref(&web));
    setup.idle().await;
    assert_eq!(server.writes().len(), 1);

    // What goes on pending is said.
    setup.set(&web, 2, Some(gateway(2, PENDING, 0)));
    server.edit("gateways", "infra", "web", |g| g["metadata"]["generation"] = json!(2));
    let began = Instant::now();
    setup.publish(std::slice::from_ref(&web));
    server
        .until("pending", |s| {
            s.object("gateways", "infra", "web")["status"]["conditions"][1]["reason"] == "Pending"
        })
        .await;
    assert!((2000..3000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_does_not_take_programmed_back_before_it_has_heard_from_the_agents() {
    let server = ApiServer::new();
    server.put("gateways", "infra", "web", new_object(1));
    let web = object(Kind::Gateway, "infra", "web");
    let start = |status| {
        let mut setup = Setup::new(&server);
        setup.set(&web, 1, Some(status));
        setup.publish(&[]);
        setup
    };
    let first = start(gateway(1, SERVED, 0));
    first.idle().await;
    first.writer.stop().await;
    server.forget_log();
    let began = Instant::now();
    let mut second = start(gateway(1, PENDING, 0));
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert_eq!(server.writes().len(), 0);
    second.set(&web, 1, Some(gateway(1, SERVED, 0)));
    second.publish(std::slice::from_ref(&web));
    second.idle().await;
    assert_eq!(server.writes().len(), 0, "all is as it was");
    second.writer.stop().await;

    let third = start(gateway(1, PENDING, 0));
    third.idle().await;
    assert!(began.elapsed() >= Duration::from_secs(19));
    assert_eq!(server.writes().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn counts_of_a_gateway_are_written_at_most_once_a_second() {
    let server = ApiServer::new();
    server.put("gateways", "infra", "web", new_object(1));
    let web = object(Kind::Gateway, "infra", "web");
    let mut setup = Setup::new(&server);
    for routes in 0..500 {
        setup.set(&web, 1, Some(gateway(1, SERVED, routes)));
        setup.publish(std::slice::from_ref(&web));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    setup.idle().await;
    let writes = server.writes().len();
    assert!((2..=7).contains(&writes), "{writes}");
    assert_eq!(server.object("gateways", "infra", "web")["status"]["listeners"][0]["attachedRoutes"], 499);
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_objects_and_one_hot_namespace() {
    let server = ApiServer::new();
    server.set_latency(Duration::from_millis(20));
    let mut setup = Setup::new(&server);
    setup.publish(&[]);
    setup.idle().await;
    let mut all = Vec::new();
    for n in 0..10_000 {
        let (namespace, name) = ("hot".to_owned(), format!("r{n}"));
        server.put("httproutes", &namespace, &name, new_object(1));
        all.push(route(&namespace, &name));
    }
    for object in &all {
        setup.set(object, 1, Some(attached(1, true)));
    }
    setup.publish(&all);
    server.until("some are written", |s| s.writes().len() >= 100).await;
    let quiet = route("quiet", "one");
    server.put("httproutes", "quiet", "one", new_object(1));
    setup.set(&quiet, 1, Some(attached(1, true)));
    let began = Instant::now();
    setup.publish(std::slice::from_ref(&quiet));
    server.until("the quiet one", |s| !parents(s, "quiet", "one").is_empty()).await;
    assert!(began.elapsed() < Duration::from_millis(200), "{:?}", began.elapsed());
    assert!(setup.writer.progress.queued() > 9000);
    assert!(setup.writer.progress.lag() > Duration::ZERO);
    setup.idle().await;
    assert_eq!(setup.writer.progress.lag(), Duration::ZERO);
    assert_eq!(server.writes().len(), 10_001, "one write an object");
    assert!(server.most_at_once() <= 16, "{}", server.most_at_once());
}

#[tokio::test(start_paused = true)]
async fn lost_leadership_stops_writing_at_once() {
    let server = ApiServer::new();
    let mut setup = Setup::new(&server);
    setup.publish(&[]);
    setup.idle().await;
    server.set_latency(Duration::from_millis(100));
    let all: Vec<_> = (0..200).map(|n| route("shop", &format!("r{n}"))).collect();
    for object in &all {
        server.put("httproutes", "shop", &object.key.name, new_object(1));
        setup.set(object, 1, Some(attached(1, true)));
    }
    setup.publish(&all);
    server.until("some are written", |s| s.writes().len() >= 20).await;
    let Leadership::Leader { term } = setup.leadership.borrow().clone() else { panic!("we lead") };
    term.end();
    setup.leadership.send_replace(Leadership::none());
    let wrote = server.writes().len();
    let at = Instant::now();
    setup.publish(&all);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(server.log().iter().all(|l| l.at <= at), "nothing is sent after the term has ended");
    assert_eq!(server.writes().len(), wrote, "what was in flight was cancelled");
    assert!(!setup.writer.progress.leads());
    assert_eq!(setup.writer.progress.queued() + setup.writer.progress.running(), 0);

    // Leading again: the rest is written, and only the rest.
    server.forget_log();
    setup.leadership.send_replace(Leadership::alone());
    server.until("the rest", |s| s.writes().len() == 200 - wrote).await;
    setup.idle().await;
    assert_eq!(server.writes().len(), 200 - wrote);
}

#[tokio::test(start_paused = true)]
async fn the_api_server_is_obeyed_and_outlived() {
    let server = ApiServer::new();
    let mut setup = Setup::new(&server);
    setup.publish(&[]);
    setup.idle().await;
    for name in ["a", "gone"] {
        server.put("httproutes", "shop", name, new_object(1));
        setup.set(&route("shop", name), 1, Some(attached(1, true)));
    }
    server.remove("httproutes", "shop", "gone");
    let began = Instant::now();
    // Throttled, then failing, then well.
    let asked = AtomicUsize::new(0);
    server.set_fault(move |request| {
        if request.method != "PATCH" {
            return None;
        }
        match asked.fetch_add(1, Ordering::Relaxed) {
            0 => {
                let mut throttled = refuse(429, "too many");
                throttled.headers_mut().insert("retry-after", http::HeaderValue::from_static("7"));
                Some(throttled)
            }
            1 => Some(answer(500, &json!({"message": "down"}))),
            _ => None,
        }
    });
    setup.publish(&[route("shop", "gone"), route("shop", "a")]);
    server.until("a write", |s| !parents(s, "shop", "a").is_empty()).await;
    setup.idle().await;
    let at: Vec<_> = server.writes().iter().map(|l| (l.at - began).as_millis()).collect();
    assert_eq!(at.len(), 3, "{at:?}");
    assert!(at[1] >= 7000 && at[2] > at[1], "{at:?}");
    let count = |what| setup.count(what);
    assert_eq!([count(Counted::Throttled), count(Counted::Failures), count(Counted::Gone)], [1, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_missing_rule_is_waited_for() {
    let server = ApiServer::new();
    server.put("httproutes", "shop", "a", new_object(1));
    let allowed = Arc::new(AtomicBool::new(false));
    let rule = allowed.clone();
    server.set_fault(move |request| {
        let refused = request.path.contains("httproutes") && !rule.load(Ordering::Relaxed);
        refused.then(|| refuse(403, "cannot"))
    });
    let mut setup = Setup::new(&server);
    setup.set(&route("shop", "a"), 1, Some(attached(1, true)));
    setup.publish(&[route("shop", "a")]);
    server.until("a refusal", |s| s.log().iter().any(|l| l.path == path("httproutes", "shop", "a"))).await;
    allowed.store(true, Ordering::Relaxed);
    server.until("a write", |s| !parents(s, "shop", "a").is_empty()).await;
    setup.idle().await;
    assert!(setup.count(Counted::Forbidden) >= 1);
}

#[tokio::test(start_paused = true)]
async fn an_older_crd_is_learned_from_its_refusal() {
    let server = ApiServer::new();
    server.set_lacks(&["attachedListenerSets"]);
    server.put("gateways", "infra", "web", new_object(1));
    let web = object(Kind::Gateway, "infra", "web");
    let mut setup = Setup::new(&server);
    setup.set(&web, 1, Some(gateway(1, SERVED, 0)));
    setup.publish(&[]);
    setup.idle().await;
    let status = server.object("gateways", "infra", "web")["status"].clone();
    assert_eq!(status["conditions"].as_array().map(Vec::len), Some(2));
    assert!(status.get("attachedListenerSets").is_none());
    assert_eq!(server.writes().len(), 2, "one is refused");
    setup.publish(std::slice::from_ref(&web));
    setup.idle().await;
    assert_eq!(server.writes().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_object_made_anew_under_the_same_name_gets_its_status() {
    let server = ApiServer::new();
    server.put("httproutes", "shop", "a", new_object(1));
    let mut setup = Setup::new(&server);
    setup.set(&route("shop", "a"), 1, Some(attached(1, true)));
    setup.publish(&[]);
    setup.idle().await;
    // The watch still knows the old one: its status is not for the new one.
    let anew = json!({"metadata": {"generation": 1, "uid": "uid-new"}});
    server.put("httproutes", "shop", "a", anew);
    setup.set(&route("shop", "a"), 1, Some(attached(1, false)));
    setup.publish(&[route("shop", "a")]);
    setup.idle().await;
    assert!(parents(&server, "shop", "a").is_empty());
    setup.known.insert(route("shop", "a"), ("uid-new".to_owned(), 1));
    setup.publish(&[route("shop", "a")]);
    setup.idle().await;
    assert_eq!(parents(&server, "shop", "a").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_gateway_of_another_class_is_left_alone_and_one_that_left_is_given_up() {
    let server = ApiServer::new();
    let theirs = json!({"metadata": {"generation": 1}, "status": {"conditions": [{"type": "Accepted", "status": "True"}]}});
    server.put("gateways", "infra", "theirs", theirs);
    server.put("gateways", "infra", "web", new_object(1));
    let web = object(Kind::Gateway, "infra", "web");
    let mut setup = Setup::new(&server);
    setup.set(&web, 1, Some(gateway(1, SERVED, 0)));
    setup.set(&object(Kind::Gateway, "infra", "theirs"), 1, None);
    setup.publish(&[object(Kind::Gateway, "infra", "theirs")]);
    setup.idle().await;
    assert_eq!(server.writes().len(), 1);
    setup.set(&web, 1, None);
    setup.publish(std::slice::from_ref(&web));
    setup.idle().await;
    assert_eq!(server.writes().len(), 2);
    let status = server.object("gateways", "infra", "web")["status"].clone();
    assert_eq!(status.as_object().map(serde_json::Map::len), Some(0), "{status}");
}

#[tokio::test(start_paused = true)]
async fn damage_by_others_is_mended_by_the_next_survey() {
    let server = ApiServer::new();
    server.put("httproutes", "shop", "a", new_object(1));
    let mut setup = Setup::new(&server);
    setup.set(&route("shop", "a"), 1, Some(attached(1, true)));
    setup.publish(&[]);
    setup.idle().await;
    server.edit("httproutes", "shop", "a", |route| route["status"]["parents"] = json!([foreign()]));
    server.until("it is back", |s| parents(s, "shop", "a").len() == 2).await;
}
