use super::*;
use proptest::prelude::*;
use weft_core::{
    model::{GroupKind, Kind, ObjectKey, ParentRef, Str},
    status::{Condition, ConditionStatus, ListenerStatus, PolicyAncestorStatus, RouteParentStatus},
};

const NOW: &str = "2026-11-21T12:00:00Z";
const OLD: &str = "2020-01-01T00:00:00Z";

fn object(kind: Kind) -> ObjectRef {
    ObjectRef { kind, key: ObjectKey::new("shop", "x") }
}

fn condition(kind: &'static str, good: bool, reason: &'static str) -> Condition {
    let status = if good { ConditionStatus::True } else { ConditionStatus::False };
    Condition { kind, status, reason, message: reason.to_owned(), observed_generation: 1 }
}

fn parent(name: &str, good: bool) -> RouteParentStatus {
    RouteParentStatus {
        parent: ParentRef {
            kind: GroupKind::from(Kind::Gateway),
            namespace: None,
            name: name.into(),
            section_name: None,
            port: None,
        },
        conditions: vec![condition("Accepted", good, "Accepted")],
    }
}

fn route(names: &[&str]) -> ObjectStatus {
    ObjectStatus::Route { parents: names.iter().map(|n| parent(n, true)).collect() }
}

fn entry(controller: &str, name: &str, status: &str) -> Value {
    json!({
        "controllerName": controller,
        "parentRef": {"group": GATEWAY_GROUP, "kind": "Gateway", "name": name},
        "conditions": [{
            "type": "Accepted", "status": status, "reason": "Accepted", "message": "Accepted",
            "observedGeneration": 1, "lastTransitionTime": OLD,
        }],
    })
}

fn ours(name: &str, status: &str) -> Value {
    entry(CONTROLLER_NAME, name, status)
}

fn live(status: &Value) -> Live {
    let object = json!({"metadata": {"name": "x", "uid": "u", "resourceVersion": "1"}, "status": status});
    Live::read(object.to_string().as_bytes()).expect("an object")
}

fn run(kind: Kind, wanted: Option<&ObjectStatus>, status: &Value) -> Plan {
    plan(&object(kind), wanted, &live(status), Context { now: NOW, lacks: &[] })
}

/// What `status.parents` becomes; None: nothing is written.
fn merged(wanted: Option<&ObjectStatus>, parents: &Value) -> Option<Value> {
    match run(Kind::HttpRoute, wanted, &json!({ "parents": parents })) {
        Plan::Nothing => None,
        Plan::Merge(status) => Some(status["parents"].clone()),
        other @ Plan::Apply(_) => panic!("{other:?}"),
    }
}

#[test]
fn entries_of_ours_are_replaced_where_they_are() {
    let foreign = entry("example.com/other", "a", "False");
    let held = json!([ours("gone", "True"), foreign, ours("a", "True"), ours("a", "False")]);
    let got = merged(Some(&route(&["b", "a"])), &held).expect("a write");
    let mut b = ours("b", "True");
    b["conditions"][0]["lastTransitionTime"] = json!(NOW);
    assert_eq!(got, json!([foreign, ours("a", "True"), b]));
    assert_eq!(merged(Some(&route(&["b", "a"])), &got), None, "idempotent");
}

#[test]
fn the_transition_time_moves_with_the_status_only() {
    let mut held = ours("a", "True");
    held["conditions"][0]["message"] = json!("another");
    let got = merged(Some(&route(&["a"])), &json!([held])).expect("a new message");
    assert_eq!(got[0]["conditions"][0]["lastTransitionTime"], OLD);
    let got = merged(Some(&route(&["a"])), &json!([ours("a", "False")])).expect("a new status");
    assert_eq!(got[0]["conditions"][0]["lastTransitionTime"], NOW);
}

#[test]
fn a_parent_is_the_same_with_its_defaults_written_out() {
    let mut held = ours("a", "True");
    held["parentRef"] = json!({"name": "a", "namespace": "shop"});
    let got = merged(Some(&route(&["a"])), &json!([held])).expect("the reference as in the spec");
    assert_eq!(got, json!([ours("a", "True")]), "but the transition time stays");
}

#[test]
fn an_object_that_is_none_of_ours() {
    let foreign = entry("example.com/other", "a", "True");
    assert_eq!(merged(None, &json!([foreign])), None);
    assert_eq!(merged(None, &Value::Null), None);
    assert_eq!(merged(None, &json!([ours("a", "True"), foreign])), Some(json!([foreign])));
    assert_eq!(merged(None, &json!([ours("a", "True")])), Some(json!([])));
}

#[test]
fn a_list_that_is_full_of_others_has_no_place_for_ours() {
    let full: Vec<_> = (0..31).map(|n| entry("example.com/other", &n.to_string(), "True")).collect();
    let got = merged(Some(&route(&["a", "b"])), &json!(full)).expect("a write");
    assert_eq!(got.as_array().map(Vec::len), Some(32));
    let ancestor = |n: usize| PolicyAncestorStatus {
        kind: GroupKind::from(Kind::Gateway),
        ancestor: ObjectKey::new("shop", n.to_string()),
        conditions: vec![condition("Accepted", true, "Accepted")],
    };
    let policy = ObjectStatus::BackendTlsPolicy { ancestors: (0..20).map(ancestor).collect() };
    let Plan::Merge(status) = run(Kind::BackendTlsPolicy, Some(&policy), &Value::Null) else {
        panic!("no write")
    };
    assert_eq!(status["ancestors"].as_array().map(Vec::len), Some(16));
    assert_eq!(run(Kind::BackendTlsPolicy, Some(&policy), &status), Plan::Nothing);
}

proptest! {
    #[test]
    fn others_entries_never_change(
        held in prop::collection::vec((0..3usize, 0..5usize, any::<bool>()), 0..12),
        wanted in prop::collection::btree_map(0..5usize, any::<bool>(), 0..5),
    ) {
        let controllers = [CONTROLLER_NAME, "example.com/a", "example.com/b"];
        let text = |good: bool| if good { "True" } else { "False" };
        let held: Vec<_> =
            held.iter().map(|(c, n, good)| entry(controllers[*c], &n.to_string(), text(*good))).collect();
        let parents = wanted.iter().map(|(n, good)| parent(&n.to_string(), *good)).collect();
        let status = ObjectStatus::Route { parents };
        let got = merged(Some(&status), &json!(held)).unwrap_or_else(|| json!(held));

        let got = got.as_array().expect("a list").clone();
        let foreign = |e: &&Value| e["controllerName"] != CONTROLLER_NAME;
        prop_assert_eq!(
            got.iter().filter(foreign).map(ToString::to_string).collect::<Vec<_>>(),
            held.iter().filter(foreign).map(ToString::to_string).collect::<Vec<_>>()
        );
        let mine: Vec<_> = got.iter().filter(|e| !foreign(e)).collect();
        prop_assert_eq!(mine.len(), wanted.len());
        for (name, good) in &wanted {
            let name = json!(name.to_string());
            let entry = mine.iter().find(|e| e["parentRef"]["name"] == name).expect("an entry");
            let is = &entry["conditions"][0];
            prop_assert_eq!(&is["status"], text(*good));
            let before = held.iter().find(|e| !foreign(e) && e["parentRef"]["name"] == name);
            let kept = before.is_some_and(|b| b["conditions"][0]["status"] == is["status"]);
            prop_assert_eq!(&is["lastTransitionTime"], if kept { OLD } else { NOW });
        }
        prop_assert_eq!(merged(Some(&status), &json!(got)), None);
    }
}

fn gateway(listeners: &[&str]) -> ObjectStatus {
    let listener = |name: &&str| ListenerStatus {
        name: (*name).into(),
        supported_kinds: vec![GroupKind::from(Kind::HttpRoute)],
        attached_routes: 2,
        conditions: vec![condition("Accepted", true, "Accepted")],
    };
    ObjectStatus::Gateway {
        conditions: vec![
            condition("Accepted", true, "Accepted"),
            condition("Programmed", true, "Programmed"),
        ],
        addresses: vec![("IPAddress", Str::from("192.0.2.1"))],
        listeners: listeners.iter().map(listener).collect(),
        attached_listener_sets: 0,
    }
}

fn applied(wanted: &ObjectStatus, status: &Value) -> Value {
    match run(Kind::Gateway, Some(wanted), status) {
        Plan::Apply(Some(status)) => status,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_gateways_status_is_as_the_crd_wants_it() {
    let condition = |kind: &str| {
        json!({"type": kind, "status": "True", "reason": kind, "message": kind, "observedGeneration": 1,
            "lastTransitionTime": NOW})
    };
    let want = json!({
        "addresses": [{"type": "IPAddress", "value": "192.0.2.1"}],
        "conditions": [condition("Accepted"), condition("Programmed")],
        "listeners": [{
            "name": "http",
            "attachedRoutes": 2,
            "supportedKinds": [{"group": GATEWAY_GROUP, "kind": "HTTPRoute"}],
            "conditions": [condition("Accepted")],
        }],
        "attachedListenerSets": 0,
    });
    assert_eq!(applied(&gateway(&["http"]), &Value::Null), want);
    let class =
        ObjectStatus::GatewayClass { conditions: vec![], supported_features: vec!["Gateway", "HTTPRoute"] };
    let Plan::Apply(Some(status)) = run(Kind::GatewayClass, Some(&class), &Value::Null) else {
        panic!("no write")
    };
    assert_eq!(status["supportedFeatures"], json!([{"name": "Gateway"}, {"name": "HTTPRoute"}]));
}

#[test]
fn nothing_is_applied_when_all_is_there() {
    let wanted = gateway(&["http", "https"]);
    let mut held = applied(&wanted, &Value::Null);
    assert_eq!(run(Kind::Gateway, Some(&wanted), &held), Plan::Nothing);
    // Map lists have no order, and a condition of somebody else in them is theirs.
    held["conditions"].as_array_mut().expect("a list").reverse();
    held["conditions"]
        .as_array_mut()
        .expect("a list")
        .push(json!({"type": "example.com/Seen", "status": "True"}));
    held["listeners"].as_array_mut().expect("a list").reverse();
    assert_eq!(run(Kind::Gateway, Some(&wanted), &held), Plan::Nothing);
    // Atomic lists do.
    held["addresses"] = json!([{"type": "IPAddress", "value": "192.0.2.2"}]);
    assert_eq!(applied(&wanted, &held)["addresses"][0]["value"], "192.0.2.1");
}

#[test]
fn a_listener_that_another_left_behind_is_removed() {
    let wanted = gateway(&["http"]);
    let held = applied(&gateway(&["http", "ghost"]), &Value::Null);
    let Plan::Merge(status) = run(Kind::Gateway, Some(&wanted), &held) else { panic!("no write") };
    assert_eq!(status["listeners"].as_array().map(Vec::len), Some(1));
    assert_eq!(status["listeners"][0], held["listeners"][0]);
}

#[test]
fn what_we_own_and_do_not_want_any_more_is_given_up() {
    let mut held = applied(&gateway(&["http"]), &Value::Null);
    let extra = json!({"type": "Extra", "status": "True", "lastTransitionTime": OLD});
    held["conditions"].as_array_mut().expect("a list").push(extra);
    let object = |fields: Value| {
        let managed = json!([{"manager": "weft.dev/gateway-controller", "operation": "Apply", "subresource": "status",
            "fieldsV1": {"f:status": fields}}]);
        let metadata = json!({"name": "x", "uid": "u", "resourceVersion": "1", "managedFields": managed});
        Live::read(json!({"metadata": metadata, "status": held}).to_string().as_bytes()).expect("an object")
    };
    let check = |fields: Value, wanted: Option<&ObjectStatus>, want: Plan| {
        let got = plan(
            &self::object(Kind::Gateway),
            wanted,
            &object(fields.clone()),
            Context { now: NOW, lacks: &[] },
        );
        assert_eq!(got, want, "{fields}");
    };
    let wanted = gateway(&["http"]);
    let mut same = held.clone();
    same["conditions"].as_array_mut().expect("a list").pop();
    let accepted = json!({"f:conditions": {".": {}, "k:{\"type\":\"Accepted\"}": {".": {}, "f:status": {}}}});
    check(accepted.clone(), Some(&wanted), Plan::Nothing);
    let extra = json!({"f:conditions": {"k:{\"type\":\"Extra\"}": {".": {}, "f:status": {}}}});
    check(extra, Some(&wanted), Plan::Apply(Some(same)));
    // Not ours any more: give up what we hold; nothing is held: leave it alone.
    check(accepted, None, Plan::Apply(None));
    check(Value::Null, None, Plan::Nothing);
}

#[test]
fn fields_that_the_crd_lacks_are_left_out() {
    let context = Context { now: NOW, lacks: &["attachedListenerSets"] };
    let Plan::Apply(Some(status)) =
        plan(&object(Kind::Gateway), Some(&gateway(&["http"])), &live(&Value::Null), context)
    else {
        panic!("no write")
    };
    assert!(status.get("attachedListenerSets").is_none());
}
