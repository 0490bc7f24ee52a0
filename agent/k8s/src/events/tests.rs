use super::{
    series::{Book, Key, Sent, Verdict},
    transition::{Transition, transitions},
    *,
};
use crate::{
    apiserver::{ApiServer, refuse},
    lease::Leadership,
};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::{sync::watch, time::Instant};
use weft_core::model::{CONTROLLER_NAME, Kind, ObjectKey, ObjectRef};

fn conditions(all: &[(&str, &str, &str)]) -> Value {
    all.iter().map(|(kind, status, reason)| json!({"type": kind, "status": status, "reason": reason, "message": format!("{reason}.")})).collect()
}

fn check(kind: Kind, before: &Value, after: &Value, want: &[&str]) {
    let got: Vec<_> = transitions(kind, before, after)
        .into_iter()
        .map(|t| format!("{} {}: {}", if t.warning { "Warning" } else { "Normal" }, t.reason, t.note))
        .collect();
    assert_eq!(got, want, "{before} → {after}");
}

fn check_gateway(before: &[(&str, &str, &str)], after: &[(&str, &str, &str)], want: &[&str]) {
    let status = |c: &[(&str, &str, &str)]| json!({"conditions": conditions(c)});
    check(Kind::Gateway, &status(before), &status(after), want);
}

#[test]
fn a_gateway_says_when_it_serves_and_when_it_does_not() {
    let accepted = ("Accepted", "True", "Accepted");
    let (yes, pending) = (("Programmed", "True", "Programmed"), ("Programmed", "False", "Pending"));
    let unknown = [("Accepted", "Unknown", "Pending"), ("Programmed", "Unknown", "Pending")];
    check_gateway(&unknown, &[accepted, pending], &[]);
    check_gateway(&[accepted, pending], &[accepted, yes], &["Normal Programmed: Programmed."]);
    check_gateway(&[accepted, yes], &[accepted, yes], &[]);
    check_gateway(&[accepted, yes], &[accepted, pending], &["Warning Pending: Pending."]);
    check_gateway(
        &[accepted, pending],
        &[accepted, ("Programmed", "False", "Invalid")],
        &["Warning Invalid: Invalid."],
    );
    let no = [("Accepted", "False", "InvalidParameters"), ("Programmed", "False", "Invalid")];
    check_gateway(&unknown, &no, &["Warning InvalidParameters: InvalidParameters."]);
    check_gateway(&no, &[accepted, yes], &["Normal Accepted: Accepted.", "Normal Programmed: Programmed."]);
    let addresses =
        |a: &[&str]| json!({"addresses": a.iter().map(|v| json!({"value": v})).collect::<Value>()});
    let want = ["Normal AddressAssigned: Addresses: 192.0.2.1, 192.0.2.2."];
    check(Kind::Gateway, &addresses(&["192.0.2.1"]), &addresses(&["192.0.2.1", "192.0.2.2"]), &want);
    check(Kind::Gateway, &addresses(&["192.0.2.1"]), &addresses(&[]), &[]);
}

#[test]
fn a_route_says_which_parent_refuses_it_and_why() {
    let entry = |controller: &str, parent: &str, c: &[(&str, &str, &str)]| {
        json!({"controllerName": controller, "parentRef": {"kind": "Gateway", "namespace": "infra", "name": parent},
            "conditions": conditions(c)})
    };
    let (good, bad) = (
        [("Accepted", "True", "Accepted"), ("ResolvedRefs", "True", "ResolvedRefs")],
        [("Accepted", "True", "Accepted"), ("ResolvedRefs", "False", "BackendNotFound")],
    );
    let status = |ours: &[(&str, &str, &str)]| json!({"parents": [entry("example.com/other", "theirs", &bad), entry(CONTROLLER_NAME, "web", ours)]});
    let none = json!({"parents": [entry("example.com/other", "theirs", &good)]});
    check(Kind::HttpRoute, &none, &status(&good), &[]);
    let warning = ["Warning BackendNotFound: Gateway infra/web: BackendNotFound."];
    check(Kind::HttpRoute, &none, &status(&bad), &warning);
    check(Kind::HttpRoute, &status(&good), &status(&bad), &warning);
    check(Kind::HttpRoute, &status(&bad), &status(&bad), &[]);
    check(
        Kind::HttpRoute,
        &status(&bad),
        &status(&good),
        &["Normal ResolvedRefs: Gateway infra/web: ResolvedRefs."],
    );
    check(Kind::HttpRoute, &status(&bad), &none, &[]);
}

fn transition(reason: &str) -> Transition {
    Transition { warning: true, reason: reason.to_owned(), note: "why".to_owned() }
}

fn key(uid: &str, reason: &str) -> Key {
    Key { uid: uid.into(), transition: transition(reason) }
}

#[test]
fn the_same_again_is_counted_and_told_once_a_minute() {
    let (mut book, start) = (Book::default(), Instant::now());
    let (key, event) = (key("u", "Bad"), Sent { namespace: "shop".into(), name: "e".to_owned() });
    let at = |seconds| start + Duration::from_secs(seconds);
    assert_eq!(book.record(&key, at(0)), Verdict::Create);
    book.created(key.clone(), event.clone(), at(0));
    assert_eq!(book.record(&key, at(1)), Verdict::Counted);
    assert_eq!(book.due(at(30)), []);
    assert_eq!(book.due(at(61)), [(event.clone(), 2)]);
    assert_eq!(book.due(at(200)), [], "nothing new");
    assert_eq!(book.record(&key, at(201)), Verdict::Update(event.clone(), 3));
    assert_eq!(book.record(&key, at(201 + 361)), Verdict::Create, "long after: a new one");
    book.created(key.clone(), event.clone(), at(562));
    book.gone(&event);
    assert_eq!(book.record(&key, at(563)), Verdict::Create);
}

#[test]
fn an_object_gets_only_so_many() {
    let (mut book, now) = (Book::default(), Instant::now());
    let verdict = |book: &mut Book, uid: &str, n: usize, at| book.record(&key(uid, &n.to_string()), at);
    let first: Vec<_> = (0..12).map(|n| verdict(&mut book, "u", n, now)).collect();
    assert_eq!(first.iter().filter(|v| **v == Verdict::Create).count(), 10);
    assert_eq!(verdict(&mut book, "other", 0, now), Verdict::Create);
    assert_eq!(verdict(&mut book, "u", 20, now + Duration::from_secs(61)), Verdict::Create);
    assert_eq!(verdict(&mut book, "u", 21, now + Duration::from_secs(61)), Verdict::Drop);
}

const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/";

fn recorder(server: &ApiServer, leadership: Leadership) -> (Recorder, watch::Sender<Leadership>) {
    let (sender, follow) = watch::channel(leadership);
    let config = RecorderConfig { instance: "weft-controller-1".to_owned(), qps: 1000 };
    (Recorder::start(server.client(), config, follow), sender)
}

#[tokio::test(start_paused = true)]
async fn events_are_as_the_api_wants_them() {
    let server = ApiServer::new();
    let (recorder, _leadership) = recorder(&server, Leadership::alone());
    let route = ObjectRef { kind: Kind::HttpRoute, key: ObjectKey::new("shop", "cart") };
    let class = ObjectRef { kind: Kind::GatewayClass, key: ObjectKey::new("", "weft") };
    let mut long = transition("Bad");
    long.note = "é".repeat(2000);
    recorder.record(&route, &"u1".into(), "v1", transition("Bad"));
    recorder.record(&route, &"u1".into(), "v1", transition("Bad"));
    recorder.record(&class, &"u2".into(), "v1", long);
    server.until("two", |s| s.under(EVENTS).len() == 2).await;
    let events = server.under(EVENTS);
    let (of_class, of_route) = (&events[0], &events[1]);
    assert_eq!(of_class["metadata"]["namespace"], "default");
    assert!(of_class["note"].as_str().is_some_and(|n| n.len() <= 1024 && n.ends_with('…')));
    assert_eq!(
        of_route["regarding"],
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "namespace": "shop", "name": "cart", "uid": "u1"})
    );
    for (field, want) in [
        ("type", "Warning"),
        ("reason", "Bad"),
        ("note", "why"),
        ("action", "Reject"),
        ("reportingController", CONTROLLER_NAME),
        ("reportingInstance", "weft-controller-1"),
    ] {
        assert_eq!(of_route[field], want, "{field}");
    }
    assert!(of_route["eventTime"].as_str().is_some_and(|t| t.ends_with('Z') && t.contains('.')));
    // The second one is told when a minute has passed.
    let counted = |s: &ApiServer| s.under(EVENTS).iter().any(|e| e["series"]["count"] == 2);
    server.until("the series", counted).await;
    assert_eq!((recorder.counts().sent(), recorder.counts().counted()), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_recorded_without_leading_or_beyond_the_queue() {
    let server = ApiServer::new();
    let (recorder, leadership) = recorder(&server, Leadership::none());
    let object = |n: usize| ObjectRef { kind: Kind::HttpRoute, key: ObjectKey::new("shop", n.to_string()) };
    // The task has not run yet: what does not fit into the queue is dropped.
    for n in 0..2000 {
        recorder.record(&object(n), &n.to_string().into(), "v1", transition("Bad"));
    }
    let counts = recorder.counts();
    assert_eq!(counts.dropped(), 2000 - 1024);
    let wait = async {
        while counts.dropped() < 2000 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.expect("all dropped");
    assert_eq!(server.log().len(), 0);
    leadership.send_replace(Leadership::alone());
    server.set_fault(|_| Some(refuse(403, "cannot create")));
    recorder.record(&object(0), &"u".into(), "v1", transition("Bad"));
    server.until("an attempt", |s| s.log().len() == 1).await;
    server.no_fault();
    recorder.record(&object(0), &"u".into(), "v1", transition("Bad"));
    server.until("the next one", |s| s.under(EVENTS).len() == 1).await;
    assert_eq!(recorder.counts().failed(), 1);
}
