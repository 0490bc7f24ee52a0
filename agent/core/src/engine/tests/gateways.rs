//! GatewayClass and Gateway: ownership, parameters, addresses, certificates, feedback.

use super::world::*;
use crate::{
    config::{PortConfig, TlsListener, Transport},
    engine::{Engine, Feedback},
    model::*,
    status::ObjectStatus,
};
use std::{collections::BTreeMap, sync::Arc};

fn class_summary(w: &World) -> String {
    match w.apply().status(Kind::GatewayClass, "weft") {
        Some(ObjectStatus::GatewayClass { conditions, supported_features }) => {
            assert!(supported_features.is_sorted() && !supported_features.is_empty());
            summary(conditions)
        }
        other => panic!("{other:?}"),
    }
}

fn parameters(group: &str, kind: &str, name: &str) -> ParametersRef {
    let key = key(name);
    let namespace = (!key.namespace.is_empty()).then_some(key.namespace);
    ParametersRef { kind: group_kind(group, kind), name: key.name, namespace }
}

#[test]
fn parameters_are_looked_up() {
    let invalid = "Accepted=False/InvalidParameters SupportedVersion";
    let mut w = world();
    let bad = || Err("addressMode: \"Nowhere\" is no mode".into());
    for (name, settings) in [("infra/there", Ok(GatewaySettings::default())), ("infra/bad", bad())] {
        let config = GatewayConfig { meta: meta(name), settings: settings.clone() };
        w.0.gateway_configs.insert(key(name), std::sync::Arc::new(config));
        let map = ConfigMap { meta: meta(name), ca: None, broken: None, parameters: Some(settings.into()) };
        w.0.config_maps.insert(key(name), std::sync::Arc::new(map));
    }
    w.ca("infra/empty", None);
    let cases = [
        (None, "Accepted SupportedVersion"),
        (Some(("weft.dev", "WeftGatewayConfig", "infra/there")), "Accepted SupportedVersion"),
        (Some(("", "ConfigMap", "infra/there")), "Accepted SupportedVersion"),
        (Some(("", "ConfigMap", "infra/absent")), invalid),
        (Some(("weft.dev", "WeftGatewayConfig", "infra/absent")), invalid),
        (Some(("", "ConfigMap", "infra/empty")), invalid),
        (Some(("", "ConfigMap", "infra/bad")), invalid),
        (Some(("weft.dev", "WeftGatewayConfig", "infra/bad")), invalid),
        (Some(("", "ConfigMap", "there")), invalid),
        (Some(("acme.example", "Nobody", "infra/there")), invalid),
    ];
    for (reference, class) in cases {
        let mut w = w.clone();
        let reference = reference.map(|(g, k, n)| parameters(g, k, n));
        let mut ours = (*w.0.classes["weft"]).clone();
        ours.parameters_ref.clone_from(&reference);
        w.0.classes.insert("weft".into(), std::sync::Arc::new(ours));
        w.gateway(gateway("infra/gw", vec![http("http", 80, "")]));
        assert_eq!(class_summary(&w), class, "{reference:?}");
        let accepted = class.starts_with("Accepted ");
        let out = w.apply();
        assert_eq!(out.gateway("infra/gw").starts_with("Accepted "), accepted, "{reference:?}");
        assert_eq!(out.0.config.gateways.is_empty(), !accepted);
    }
    // On a Gateway the namespace is the Gateway's.
    let mut gw = gateway("infra/gw", vec![http("http", 80, "")]);
    let with = |name: &str| {
        Some(Infrastructure {
            parameters_ref: Some(parameters("", "ConfigMap", name)),
            ..Infrastructure::default()
        })
    };
    gw.infrastructure = with("there");
    w.gateway(gw.clone());
    assert_eq!(w.apply().gateway("infra/gw"), "Accepted ResolvedRefs Programmed");
    gw.infrastructure = with("absent");
    w.gateway(gw);
    let out = w.apply();
    assert_eq!(
        out.gateway("infra/gw"),
        "Accepted=False/InvalidParameters ResolvedRefs Programmed=False/Invalid"
    );
    assert_eq!(out.listener("infra/gw", "http"), "Accepted ResolvedRefs Programmed=False/Invalid");
}

fn address(kind: AddressType, value: &str) -> GatewayAddress {
    GatewayAddress { kind, value: (!value.is_empty()).then(|| value.into()) }
}

#[test]
fn addresses() {
    use AddressType::*;
    let cases: Vec<(Vec<GatewayAddress>, &str, &[&str])> = vec![
        (vec![], "Accepted ResolvedRefs Programmed", &["127.0.0.1"]),
        (vec![address(IpAddress, "")], "Accepted ResolvedRefs Programmed", &["127.0.0.1"]),
        (vec![address(IpAddress, "192.0.2.1")], "Accepted ResolvedRefs Programmed", &["192.0.2.1"]),
        (
            vec![address(IpAddress, "192.0.2.66"), address(IpAddress, "192.0.2.1")],
            "Accepted ResolvedRefs Programmed=False/AddressNotUsable",
            &["192.0.2.1"],
        ),
        (
            vec![address(Hostname, "a.b")],
            "Accepted=False/UnsupportedAddress ResolvedRefs Programmed=False/Invalid",
            &[],
        ),
        (
            vec![address(Other("x.dev/y".into()), "z"), address(IpAddress, "192.0.2.1")],
            "Accepted=False/UnsupportedAddress ResolvedRefs Programmed=False/Invalid",
            &[],
        ),
        (
            vec![address(IpAddress, "nonsense")],
            "Accepted=False/UnsupportedAddress ResolvedRefs Programmed=False/Invalid",
            &[],
        ),
    ];
    let mut feedback = Feedback::default();
    feedback.unusable.insert((key("infra/gw"), ip("192.0.2.66")), "cannot assign requested address".into());
    for (addresses, conditions, shown) in cases {
        let mut w = world();
        w.gateway(Gateway {
            addresses: addresses.clone(),
            ..gateway("infra/gw", vec![http("http", 80, "")])
        });
        let out = Applied(Engine::new(settings()).apply(w.0, &feedback));
        assert_eq!(out.gateway("infra/gw"), conditions, "{addresses:?}");
        let Some(ObjectStatus::Gateway { addresses, .. }) = out.status(Kind::Gateway, "infra/gw") else {
            panic!()
        };
        let values: Vec<_> = addresses.iter().map(|(_, v)| &**v).collect();
        assert_eq!(values, shown);
    }
    let mut w = world();
    w.gateway(gateway("infra/gw", vec![http("http", 80, "")]));
    let none = crate::engine::Settings { default_addresses: vec![], ..settings() };
    let out = Applied(Engine::new(none).apply(w.0, &Feedback::default()));
    assert_eq!(out.gateway("infra/gw"), "Accepted ResolvedRefs Programmed=False/AddressNotAssigned");
}

#[test]
fn placements() {
    let placed = || crate::engine::Settings { placed: true, ..settings() };
    let address = |text: &str| PlacementAddress::Ip(ip(text));
    let check = |placement: Option<Placement>, conditions: &str, shown: &[&str], bound: &[&str]| {
        let mut w = world();
        // What the spec asks for is the controller's to give.
        let wish = GatewayAddress { kind: AddressType::IpAddress, value: Some("192.0.2.7".into()) };
        w.gateway(Gateway { addresses: vec![wish], ..gateway("infra/gw", vec![http("http", 80, "")]) });
        if let Some(placement) = &placement {
            w.0.placements.insert(key("infra/gw"), Arc::new(placement.clone()));
        }
        let out = Applied(Engine::new(placed()).apply(w.0, &Feedback::default()));
        assert_eq!(out.gateway("infra/gw"), conditions, "{placement:?}");
        let Some(ObjectStatus::Gateway { addresses, .. }) = out.status(Kind::Gateway, "infra/gw") else {
            panic!()
        };
        assert_eq!(addresses.iter().map(|(_, v)| &**v).collect::<Vec<_>>(), shown, "{placement:?}");
        let config = &out.0.config.gateways[&key("infra/gw")];
        assert_eq!(config.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), bound);
        assert_eq!(config.targets.get(&(80, Transport::Tcp)).copied(), placement.map(|_| 20_000));
    };
    let ports = BTreeMap::from([((80, Transport::Tcp), 20_000)]);
    let there = Placement {
        addresses: vec![address("192.0.2.7"), PlacementAddress::Hostname("lb.example.com".into())],
        bind: vec![ip("10.90.0.2")],
        ports: ports.clone(),
        problem: None,
    };
    check(None, "Accepted ResolvedRefs Programmed=False/AddressNotAssigned", &[], &[]);
    check(
        Some(there.clone()),
        "Accepted ResolvedRefs Programmed",
        &["192.0.2.7", "lb.example.com"],
        &["10.90.0.2"],
    );
    let problem = Some((PlacementReason::AddressNotUsable, "192.0.2.7 is not in the pool".into()));
    check(
        Some(Placement { problem, ports, ..Placement::default() }),
        "Accepted ResolvedRefs Programmed=False/AddressNotUsable",
        &[],
        &[],
    );
}

#[test]
fn a_gateway_is_programmed_when_every_node_serves_it() {
    let mut w = world();
    w.gateway(gateway("infra/gw", vec![http("a", 80, "")]));
    let mut engine = Engine::new(settings());
    let mut feedback = Feedback::default();
    feedback.pending.insert(key("infra/gw"), "node n2 has not applied generation 1".into());
    let out = Applied(engine.apply(w.0.clone(), &feedback));
    assert_eq!(out.gateway("infra/gw"), "Accepted ResolvedRefs Programmed=False/Pending");
    assert_eq!(out.listener("infra/gw", "a"), "Accepted ResolvedRefs Programmed=False/Pending");
    let out = Applied(engine.apply(w.0, &Feedback::default()));
    assert_eq!(out.0.changed.len(), 1);
    assert_eq!(out.gateway("infra/gw"), "Accepted ResolvedRefs Programmed");
}

#[test]
fn programmed_follows_feedback() {
    let mut w = world();
    w.gateway(gateway("infra/gw", vec![http("a", 80, ""), http("b", 81, "")]));
    let mut engine = Engine::new(settings());
    assert_eq!(
        Applied(engine.apply(w.0.clone(), &Feedback::default())).gateway("infra/gw"),
        "Accepted ResolvedRefs Programmed"
    );
    let mut feedback = Feedback::default();
    feedback.unbound.insert((key("infra/gw"), 80, Transport::Tcp), "127.0.0.1:80: permission denied".into());
    let out = Applied(engine.apply(w.0.clone(), &feedback));
    assert_eq!(out.0.changed.len(), 1);
    assert_eq!(out.gateway("infra/gw"), "Accepted ResolvedRefs Programmed");
    assert_eq!(out.listener("infra/gw", "a"), "Accepted ResolvedRefs Programmed=False/Invalid");
    assert_eq!(out.listener("infra/gw", "b"), "Accepted ResolvedRefs Programmed");
    feedback.unbound.insert((key("infra/gw"), 81, Transport::Tcp), "in use".into());
    let out = Applied(engine.apply(w.0.clone(), &feedback));
    assert_eq!(out.gateway("infra/gw"), "Accepted ResolvedRefs Programmed=False/AddressNotUsable");
    let out = Applied(engine.apply(w.0, &Feedback::default()));
    assert_eq!(out.gateway("infra/gw"), "Accepted ResolvedRefs Programmed");
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn protocols_kinds_and_certificates() {
    let mut w = world();
    w.secret("infra/good", key_pair("good"));
    w.secret("infra/bad", SecretData::Invalid("tls.crt: no PEM certificate found".into()));
    w.secret("infra/ca", SecretData::Ca(ca_bundle("ca")));
    w.secret("shop/far", key_pair("far"));
    w.secret("other/granted", key_pair("granted"));
    w.grant("other/g", (Kind::Gateway, "infra"), Kind::Secret);
    let kinds = |k: &[&str]| Listener {
        allowed_kinds: k.iter().map(|k| group_kind(GATEWAY_GROUP, k)).collect(),
        ..http("x", 80, "")
    };
    let bare = Listener { tls: None, ..https("x", 443, "", "good") };
    let no_refs = Listener { tls: Some(terminate(&[])), ..bare.clone() };
    let passthrough =
        Listener { tls: Some(ListenerTls { mode: TlsMode::Passthrough, ..terminate(&[]) }), ..bare.clone() };
    let mut wrong_kind = https("x", 443, "", "good");
    wrong_kind.tls.as_mut().unwrap().certificate_refs[0].kind = Kind::ConfigMap.into();
    let two = Listener { tls: Some(terminate(&["good", "absent"])), ..bare.clone() };
    let ok = "Accepted ResolvedRefs Programmed";
    let cases: Vec<(Listener, &str, &[&str])> = vec![
        (http("x", 80, ""), ok, &["HTTPRoute", "GRPCRoute"]),
        (listener("x", 80, Protocol::Tcp, ""), ok, &["TCPRoute"]),
        (listener("x", 80, Protocol::Udp, ""), ok, &["UDPRoute"]),
        (
            listener("x", 80, Protocol::Other("SCTP".into()), ""),
            "Accepted=False/UnsupportedProtocol ResolvedRefs Programmed=False/Invalid",
            &[],
        ),
        (kinds(&["HTTPRoute"]), ok, &["HTTPRoute"]),
        (kinds(&["Bogus"]), "Accepted ResolvedRefs=False/InvalidRouteKinds Programmed", &[]),
        (
            kinds(&["Bogus", "HTTPRoute"]),
            "Accepted ResolvedRefs=False/InvalidRouteKinds Programmed",
            &["HTTPRoute"],
        ),
        (https("x", 443, "", "good"), ok, &["HTTPRoute", "GRPCRoute"]),
        (https("x", 443, "", "other/granted"), ok, &["HTTPRoute", "GRPCRoute"]),
        (
            https("x", 443, "", "absent"),
            "Accepted ResolvedRefs=False/InvalidCertificateRef Programmed=False/Invalid",
            &["HTTPRoute", "GRPCRoute"],
        ),
        (
            https("x", 443, "", "bad"),
            "Accepted ResolvedRefs=False/InvalidCertificateRef Programmed=False/Invalid",
            &["HTTPRoute", "GRPCRoute"],
        ),
        (
            https("x", 443, "", "ca"),
            "Accepted ResolvedRefs=False/InvalidCertificateRef Programmed=False/Invalid",
            &["HTTPRoute", "GRPCRoute"],
        ),
        (
            wrong_kind,
            "Accepted ResolvedRefs=False/InvalidCertificateRef Programmed=False/Invalid",
            &["HTTPRoute", "GRPCRoute"],
        ),
        (
            https("x", 443, "", "shop/far"),
            "Accepted ResolvedRefs=False/RefNotPermitted Programmed=False/Invalid",
            &["HTTPRoute", "GRPCRoute"],
        ),
        (bare, "Accepted ResolvedRefs Programmed=False/Invalid", &["HTTPRoute", "GRPCRoute"]),
        (no_refs, "Accepted ResolvedRefs Programmed=False/Invalid", &["HTTPRoute", "GRPCRoute"]),
        (two, "Accepted ResolvedRefs=False/InvalidCertificateRef Programmed", &["HTTPRoute", "GRPCRoute"]),
        (
            passthrough,
            "Accepted=False/UnsupportedValue ResolvedRefs Programmed=False/Invalid",
            &["HTTPRoute", "GRPCRoute"],
        ),
    ];
    for (listener, conditions, kinds) in cases {
        let text = format!("{listener:?}");
        let port = listener.port;
        w.gateway(gateway("infra/gw", vec![listener]));
        let out = w.apply();
        assert_eq!(out.listener("infra/gw", "x"), conditions, "{text}");
        let status = &out.listeners(Kind::Gateway, "infra/gw")[0];
        let shown: Vec<_> = status.supported_kinds.iter().map(|k| &*k.kind).collect();
        assert_eq!(shown, kinds, "{text}");
        let serves = out.0.config.gateways[&key("infra/gw")].ports.keys().any(|(p, _)| *p == port);
        assert_eq!(serves, conditions.ends_with("Programmed"), "what is reported is what runs: {text}");
        let expected = match (conditions.contains("Accepted=False"), serves) {
            (true, _) => "Accepted=False/ListenersNotValid",
            (false, true) => "Accepted",
            (false, false) => "Accepted",
        };
        assert!(out.gateway("infra/gw").starts_with(expected), "{text}");
        assert_eq!(out.gateway("infra/gw").ends_with(" Programmed"), serves, "{text}");
    }
}

#[test]
fn one_valid_listener_keeps_the_gateway_accepted() {
    let mut w = world();
    w.gateway(gateway(
        "infra/gw",
        vec![http("a", 80, ""), listener("b", 81, Protocol::Other("X".into()), "")],
    ));
    let out = w.apply();
    assert_eq!(out.gateway("infra/gw"), "Accepted=True/ListenersNotValid ResolvedRefs Programmed");
}

#[test]
fn client_certificates_are_validated() {
    let mut w = world();
    w.secret("infra/good", key_pair("good"));
    w.ca("infra/ca", Some(Ok(ca_bundle("ca"))));
    w.ca("infra/broken", Some(Err("no PEM certificate found".into())));
    w.ca("shop/far", Some(Ok(ca_bundle("far"))));
    let validation =
        |kind, name: &str| FrontendValidation { ca_refs: vec![object(kind, name)], insecure_fallback: false };
    let no_ca = "Accepted=False/NoValidCACertificate";
    let cases = [
        (Kind::ConfigMap, "ca", "Accepted ResolvedRefs Programmed".to_owned()),
        (
            Kind::ConfigMap,
            "absent",
            format!("{no_ca} ResolvedRefs=False/InvalidCACertificateRef Programmed=False/Invalid"),
        ),
        (
            Kind::ConfigMap,
            "broken",
            format!("{no_ca} ResolvedRefs=False/InvalidCACertificateRef Programmed=False/Invalid"),
        ),
        (
            Kind::Service,
            "ca",
            format!("{no_ca} ResolvedRefs=False/InvalidCACertificateKind Programmed=False/Invalid"),
        ),
        (
            Kind::ConfigMap,
            "shop/far",
            format!("{no_ca} ResolvedRefs=False/RefNotPermitted Programmed=False/Invalid"),
        ),
    ];
    for (kind, name, conditions) in cases {
        let mut gw = gateway(
            "infra/gw",
            vec![https("x", 443, "", "good"), https("open", 8443, "", "good"), http("plain", 80, "")],
        );
        let default = Some(validation(kind, name));
        gw.frontend_tls = Some(FrontendTls { default, per_port: vec![(8443, None)] });
        w.gateway(gw);
        let out = w.apply();
        assert_eq!(out.listener("infra/gw", "x"), conditions, "{name}");
        assert_eq!(out.listener("infra/gw", "open"), "Accepted ResolvedRefs Programmed", "{name}");
        assert_eq!(out.listener("infra/gw", "plain"), "Accepted ResolvedRefs Programmed", "{name}");
    }
    let mut gw = gateway("infra/gw", vec![https("x", 443, "", "good")]);
    let insecure = FrontendValidation { insecure_fallback: true, ..validation(Kind::ConfigMap, "ca") };
    gw.frontend_tls = Some(FrontendTls { default: None, per_port: vec![(443, Some(insecure))] });
    w.gateway(gw);
    let out = w.apply();
    assert_eq!(
        out.gateway("infra/gw"),
        "Accepted ResolvedRefs Programmed InsecureFrontendValidationMode=True/ConfigurationChanged"
    );
    let PortConfig::Tls(hosts) = &out.0.config.gateways[&key("infra/gw")].ports[&(443, Transport::Tcp)]
    else {
        panic!()
    };
    let TlsListener::Https { tls, .. } = &**hosts.get(None).unwrap() else { panic!() };
    let client = tls.client_ca.as_ref().unwrap();
    assert!(client.optional && client.roots == ca_bundle("ca"));
    assert_eq!(tls.alpn, ["h2".into(), "http/1.1".into()]);
}

#[test]
fn the_certificate_for_backends() {
    let mut w = world();
    w.secret("infra/good", key_pair("good"));
    w.secret("shop/far", key_pair("far"));
    let cases = [
        (Kind::Secret, "good", "Accepted ResolvedRefs Programmed"),
        (Kind::Secret, "absent", "Accepted ResolvedRefs=False/InvalidClientCertificateRef Programmed"),
        (Kind::ConfigMap, "good", "Accepted ResolvedRefs=False/InvalidClientCertificateRef Programmed"),
        (Kind::Secret, "shop/far", "Accepted ResolvedRefs=False/RefNotPermitted Programmed"),
    ];
    for (kind, name, conditions) in cases {
        let mut gw = gateway("infra/gw", vec![http("http", 80, "")]);
        gw.backend_client_certificate = Some(object(kind, name));
        w.gateway(gw);
        let out = w.apply();
        assert_eq!(out.gateway("infra/gw"), conditions, "{name}");
        let shown = out.0.config.gateways[&key("infra/gw")].backend_client_certificate.is_some();
        assert_eq!(shown, name == "good" && kind == Kind::Secret);
    }
}

#[test]
fn a_gateway_has_an_identity_of_its_own() {
    let mut w = world();
    w.gateway(gateway("infra/gw", vec![http("http", 80, "")]));
    let identity = w.apply().0.config.gateways[&key("infra/gw")].identity.to_string();
    assert_eq!(identity, "spiffe://cluster.local/ns/infra/sa/gw-weft");
}
