//! What is decided without a network: who needs what, and what is `Programmed`.

use weft_core::{
    config::Transport,
    engine::Feedback,
    model::{
        BackendTlsPolicy, CONTROLLER_NAME, FrontendTls, FrontendValidation, GatewayClass, GrantFrom, GrantTo,
        GroupKind, Hostname, Infrastructure, Kind, Listener, ListenerSet, ListenerTls, ObjectReference,
        ParametersRef, Placement, PlacementAddress, Protocol, ReferenceGrant, TlsMode,
    },
};

use super::*;
use crate::{AgentReport, Agents, Expected, feedback, materials, placement_hash, watermarks};

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
    snapshot.listener_sets.insert(key("shop/set"), Arc::new(listener_set("shop/set", "infra/edge", None)));
    snapshot.listener_sets.insert(key("shop/far"), Arc::new(listener_set("shop/far", "infra/far", None)));
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

fn reference(kind: Kind, of: &str) -> ObjectReference {
    let (namespace, name) =
        of.split_once('/').map_or((None, of), |(namespace, name)| (Some(namespace), name));
    ObjectReference { kind: GroupKind::from(kind), name: name.into(), namespace: namespace.map(Into::into) }
}

fn tls_listener(certificate: &str) -> Listener {
    Listener {
        name: "https".into(),
        hostname: None,
        port: 443,
        protocol: Protocol::Https,
        tls: Some(ListenerTls {
            mode: TlsMode::Terminate,
            certificate_refs: vec![reference(Kind::Secret, certificate)],
            options: BTreeMap::new(),
        }),
        allowed_namespaces: weft_core::model::FromNamespaces::Same,
        allowed_kinds: Vec::new(),
    }
}

fn listener_set(of: &str, parent: &str, certificate: Option<&str>) -> ListenerSet {
    ListenerSet {
        meta: meta(of),
        parent_kind: Kind::Gateway.into(),
        parent: key(parent),
        listeners: certificate.map(tls_listener).into_iter().collect(),
    }
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn each_node_gets_what_its_gateways_may_use_and_no_more() {
    let mut snapshot = Snapshot::default();
    let secrets = [
        "infra/own",
        "infra/client",
        "shop/set-cert",
        "other/granted",
        "other/private",
        "infra/inner",
        "infra/unused",
    ];
    snapshot.secrets = secrets.iter().map(|of| (key(of), secret(of))).collect();
    let maps = [
        "infra/clients-ca",
        "shop/backend-ca",
        "infra/unused-ca",
        "infra/of-edge",
        "weft-system/pool",
        "weft-system/not-ours",
    ];
    snapshot.config_maps = maps.iter().map(|of| (key(of), config_map(of, b"ca".to_vec()))).collect();

    let mut edge = gateway("infra/edge", 1);
    edge.listeners = ["own", "other/granted", "other/private", "missing"].map(tls_listener).into();
    edge.backend_client_certificate = Some(reference(Kind::Secret, "client"));
    // The second is a key pair, which is no CA.
    let ca_refs = vec![reference(Kind::ConfigMap, "clients-ca"), reference(Kind::Secret, "unused")];
    let validation = FrontendValidation { ca_refs, insecure_fallback: false };
    edge.frontend_tls = Some(FrontendTls { default: Some(validation), per_port: Vec::new() });
    let parameters = |name: &str, namespace: Option<&str>| {
        let namespace = namespace.map(Into::into);
        Some(ParametersRef { kind: Kind::ConfigMap.into(), name: name.into(), namespace })
    };
    let parameters_ref = parameters("of-edge", None);
    edge.infrastructure = Some(Infrastructure { parameters_ref, ..Infrastructure::default() });
    for (name, controller, map) in
        [("weft", CONTROLLER_NAME, "pool"), ("other", "example.com/other", "not-ours")]
    {
        let parameters_ref = parameters(map, Some("weft-system"));
        let (meta, controller) = (meta(&format!("/{name}")), controller.into());
        let class = GatewayClass { meta, controller, parameters_ref, description: None };
        snapshot.classes.insert(name.into(), Arc::new(class));
    }
    let mut inner = gateway("infra/inner", 1);
    inner.listeners = vec![tls_listener("inner")];
    snapshot.gateways = [edge, inner].map(|gateway| (gateway.meta.key.clone(), Arc::new(gateway))).into();
    let set = listener_set("shop/set", "infra/edge", Some("set-cert"));
    snapshot.listener_sets.insert(key("shop/set"), Arc::new(set));
    let grant = ReferenceGrant {
        meta: meta("other/grant"),
        from: vec![GrantFrom { kind: Kind::Gateway.into(), namespace: "infra".into() }],
        to: vec![GrantTo { kind: Kind::Secret.into(), name: Some("granted".into()) }],
    };
    snapshot.grants.insert(key("other/grant"), Arc::new(grant));
    let policy = BackendTlsPolicy {
        meta: meta("shop/policy"),
        targets: Vec::new(),
        hostname: Hostname::parse("backend.example").unwrap(),
        ca_refs: vec![reference(Kind::ConfigMap, "infra/backend-ca")],
        system_roots: false,
        subject_alt_names: Vec::new(),
        options: BTreeMap::new(),
    };
    snapshot.tls_policies.insert(key("shop/policy"), Arc::new(policy));

    let serving: Serving =
        [(key("infra/edge"), [node("n1"), node("n2")].into()), (key("infra/inner"), [node("n3")].into())]
            .into();
    let nodes = ["n1", "n2", "n3", "n4"].map(node);
    let made = materials(&snapshot, &serving, &nodes, &Materials::default());
    let edge = ["infra/client", "infra/own", "other/granted", "shop/set-cert"];
    let check = |node: &str, secrets: &[&str], config_maps: &[&str]| {
        assert_eq!(names(&made[node].secrets), secrets, "{node}");
        assert_eq!(names(&made[node].config_maps), config_maps, "{node}");
    };
    let of_edge = ["infra/clients-ca", "infra/of-edge", "shop/backend-ca", "weft-system/pool"];
    check("n1", &edge, &of_edge);
    check("n2", &edge, &of_edge);
    check("n3", &["infra/inner"], &["shop/backend-ca", "weft-system/pool"]);
    check("n4", &[], &["shop/backend-ca", "weft-system/pool"]);
    assert!(Arc::ptr_eq(&made["n1"], &made["n2"]));

    snapshot.secrets.remove(&key("infra/inner"));
    let again = materials(&snapshot, &serving, &nodes, &made);
    for (name, same) in [("n1", true), ("n2", true), ("n3", false), ("n4", true)] {
        assert_eq!(Arc::ptr_eq(&again[name], &made[name]), same, "{name}");
    }
}
