//! What is decided without a network: what is `Programmed`.

use weft_core::{
    config::Transport,
    engine::Feedback,
    model::{Kind, ListenerSet, Placement, PlacementAddress},
};

use super::*;
use crate::{AgentReport, Agents, Expected, feedback, placement_hash, watermarks};

fn now() -> Timestamp {
    "2026-11-21T10:00:00Z".parse().unwrap()
}

fn report(applied: crate::Applied) -> AgentReport {
    AgentReport {
        version: "1".into(),
        instance: "i".into(),
        since: now(),
        changed: now(),
        gone: None,
        reported: true,
        applied: Arc::new(applied),
        reached: Arc::default(),
        captured: Arc::default(),
    }
}

fn gone(report: AgentReport, seconds: i64) -> AgentReport {
    AgentReport { gone: Some(now() - jiff::SignedDuration::from_secs(seconds)), ..report }
}

fn unbound(mut applied: crate::Applied, port: u16) -> crate::Applied {
    for gateway in applied.values_mut() {
        gateway.unbound.insert((port, Transport::Tcp), "in use".into());
        gateway.unusable.insert("192.0.2.1".parse().unwrap(), "not ours".into());
    }
    applied
}

/// Generation 3 of a Gateway that n1, n2 and n3 serve: what is pending, and what is unbound and unusable.
fn check(every_node: bool, agents: &[(&str, AgentReport)], pending: Option<&str>, failed: Option<&str>) {
    let edge = key("infra/edge");
    let mark = Watermark { generation: 3, ..Watermark::default() };
    let expected = [(edge.clone(), Expected { mark, every_node })].into();
    let serving = [(edge.clone(), ["n1", "n2", "n3"].map(node).into())].into();
    let agents: Agents = agents.iter().map(|(name, report)| (node(name), Arc::new(report.clone()))).collect();
    let Feedback { unbound, unusable, pending: awaited } = feedback(&expected, &serving, &agents, now());
    assert_eq!(awaited.get(&edge).map(|text| &**text), pending);
    assert_eq!(unbound.get(&(edge.clone(), 80, Transport::Tcp)).map(|text| &**text), failed);
    let failed = failed.map(|text| text.replace("in use", "not ours"));
    assert_eq!(unusable.get(&(edge, "192.0.2.1".parse().unwrap())).map(|t| t.to_string()), failed);
}

#[test]
fn a_gateway_is_pending_until_every_node_that_serves_it_has_applied_it() {
    let at = |generation| report(applied(&[("infra/edge", generation)]));
    let none = "no node serves it: no agent of its nodes is connected";
    check(false, &[], Some(none), None);
    check(false, &[("n9", at(3))], Some(none), None);
    check(false, &[("n1", at(3))], None, None);
    check(false, &[("n1", at(4))], None, None);
    check(false, &[("n1", at(3)), ("n2", at(2))], Some("node n2 has not applied generation 3"), None);
    let two = "node n1 has not applied generation 3, nor have 1 more";
    check(false, &[("n1", at(1)), ("n2", report(applied(&[])))], Some(two), None);
    check(
        false,
        &[("n1", at(3)), ("n2", gone(at(2), 9))],
        Some("node n2 has not applied generation 3"),
        None,
    );
    check(false, &[("n1", at(3)), ("n2", gone(at(2), 10))], None, None);
    check(false, &[("n1", gone(at(3), 11))], Some(none), None);
    let mut moved = applied(&[("infra/edge", 3)]);
    moved.get_mut(&key("infra/edge")).unwrap().mark.placement = 7;
    check(
        false,
        &[("n1", report(moved))],
        Some("node n1 has not applied its addresses and listener sets"),
        None,
    );
}

#[test]
fn a_port_is_unbound_when_no_node_has_it_or_when_each_must() {
    let good = || report(applied(&[("infra/edge", 3)]));
    let bad = || report(unbound(applied(&[("infra/edge", 3)]), 80));
    check(false, &[("n1", good()), ("n2", bad())], None, None);
    check(true, &[("n1", good()), ("n2", bad())], None, Some("node n2: in use"));
    check(false, &[("n1", bad()), ("n2", bad())], None, Some("node n1: in use"));
    check(false, &[("n1", bad()), ("n2", gone(good(), 60))], None, Some("node n1: in use"));
}

#[test]
fn a_mark_reaches_another_when_nothing_is_older_or_missing() {
    let set = |generation: i64| BTreeMap::from([(key("shop/set"), generation)]);
    let base = Watermark { uid: "u".into(), generation: 2, sets: set(2), placement: 5 };
    let check = |edit: fn(&mut Watermark), reaches: bool| {
        let mut mark = base.clone();
        edit(&mut mark);
        assert_eq!(mark.reaches(&base), reaches, "{mark:?}");
    };
    check(|_| {}, true);
    check(|mark| mark.generation = 3, true);
    check(|mark| mark.generation = 1, false);
    check(|mark| mark.uid = "other".into(), false);
    check(|mark| mark.placement = 6, false);
    check(|mark| mark.sets.clear(), false);
    check(|mark| mark.sets.extend([(key("shop/set"), 1)]), false);
    check(|mark| mark.sets.extend([(key("shop/set"), 3)]), true);
    check(|mark| mark.sets.extend([(key("shop/other"), 1)]), false);
}

#[test]
fn marks_come_from_the_world() {
    let mut snapshot = Snapshot::default();
    snapshot.gateways.insert(key("infra/edge"), Arc::new(gateway("infra/edge", 4)));
    snapshot.listener_sets.insert(key("shop/set"), Arc::new(listener_set("shop/set", "infra/edge")));
    snapshot.listener_sets.insert(key("shop/far"), Arc::new(listener_set("shop/far", "infra/far")));
    let placement = Placement {
        addresses: vec![PlacementAddress::Ip("192.0.2.1".parse().unwrap())],
        ports: [((80, Transport::Tcp), 20_000)].into(),
        ..Placement::default()
    };
    snapshot.placements.insert(key("infra/edge"), Arc::new(placement.clone()));
    let marks = watermarks(&snapshot);
    let mark = &marks[&key("infra/edge")];
    assert_eq!(
        (mark.generation, &*mark.uid, names(&mark.sets)),
        (4, "uid-infra/edge", vec!["shop/set".into()])
    );
    assert_eq!(mark.placement, placement_hash(Some(&placement)));
    let elsewhere = Placement { bind: vec!["10.0.0.1".parse().unwrap()], ..placement.clone() };
    assert_eq!(placement_hash(Some(&elsewhere)), mark.placement, "where each node binds is its own");
    let other_port = Placement { ports: [((80, Transport::Udp), 20_000)].into(), ..placement };
    assert_ne!(placement_hash(Some(&other_port)), mark.placement);
    // Told to other builds: must never change.
    assert_eq!(mark.placement, 0xb679_4be3_457b_c889);
}

fn listener_set(of: &str, parent: &str) -> ListenerSet {
    ListenerSet {
        meta: meta(of),
        parent_kind: Kind::Gateway.into(),
        parent: key(parent),
        listeners: Vec::new(),
    }
}
