//! BackendTLSPolicy.

use super::world::*;
use crate::{
    config::BackendTls,
    engine::{Engine, Feedback},
    model::*,
    status::ObjectStatus,
};
use std::{collections::BTreeMap, sync::Arc};

/// A policy for `"svc"` or `"svc#port name"` with one CA ConfigMap.
fn policy(name: &str, target: &str, ca: &str) -> BackendTlsPolicy {
    let (service, section) = target.split_once('#').map_or((target, None), |(s, p)| (s, Some(p.into())));
    BackendTlsPolicy {
        meta: meta(name),
        targets: vec![PolicyTarget {
            kind: Kind::Service.into(),
            name: service.into(),
            section_name: section,
        }],
        hostname: host("web.example.com"),
        ca_refs: if ca.is_empty() { vec![] } else { vec![object(Kind::ConfigMap, ca)] },
        system_roots: false,
        subject_alt_names: Vec::new(),
        options: BTreeMap::new(),
    }
}

fn shop() -> World {
    let mut w = world();
    w.gateway(gateway("infra/gw", vec![http("http", 80, "")]));
    w.service(service("shop/web", "10.0.0.1", &[80, 81]));
    w.ca("shop/ca", Some(Ok(ca_bundle("ca"))));
    w.ca("shop/ca2", Some(Ok(ca_bundle("ca2"))));
    w.ca("shop/broken", Some(Err("no PEM certificate found".into())));
    w.route(http_route("shop/r", &["Gateway infra/gw"], vec![rule("/", &["web"]), rule("/81", &["web:81"])]));
    w
}

/// `Gateway infra/gw: Accepted ResolvedRefs` for each ancestor.
fn ancestors(out: &Applied, name: &str) -> Vec<String> {
    match out.status(Kind::BackendTlsPolicy, name) {
        None => Vec::new(),
        Some(ObjectStatus::BackendTlsPolicy { ancestors }) => ancestors
            .iter()
            .map(|a| format!("{} {}: {}", a.kind.kind, a.ancestor, summary(&a.conditions)))
            .collect(),
        other => panic!("{other:?}"),
    }
}

/// TLS to the backend at a path, or why there is none.
fn tls(out: &Applied, path: &str) -> Result<Option<Arc<BackendTls>>, String> {
    let config = &out.0.config.gateways[&key("infra/gw")];
    let crate::config::PortConfig::Http(hosts) = &config.ports[&(80, crate::config::Transport::Tcp)] else {
        panic!()
    };
    let table = &hosts.get(None).unwrap().table;
    let rule = table.iter().find(|e| e.matcher == prefix(path)).unwrap();
    let crate::config::Action::Forward(backends) = &rule.policy.action else { panic!() };
    let target = &backends.iter().next().unwrap().1.target;
    target.as_ref().map(|b| b.tls.clone()).map_err(|e| e.as_str().to_owned())
}

const ACCEPTED: &str = "Gateway infra/gw: Accepted ResolvedRefs";

/// (policy, its status, whether the backend is spoken to with TLS or fails).
#[test]
fn policies_by_themselves() {
    let with = |ca: &str| policy("shop/p", "web", ca);
    let optioned = |key: &str, value: &str| BackendTlsPolicy {
        options: BTreeMap::from([(key.into(), value.into())]),
        ..with("ca")
    };
    let wrong_kind = BackendTlsPolicy { ca_refs: vec![object(Kind::Service, "ca")], ..with("") };
    let both = BackendTlsPolicy {
        ca_refs: vec![object(Kind::ConfigMap, "ca"), object(Kind::ConfigMap, "absent")],
        ..with("")
    };
    let no_ca =
        "Gateway infra/gw: Accepted=False/NoValidCACertificate ResolvedRefs=False/InvalidCACertificateRef";
    let cases = [
        (with("ca"), ACCEPTED, true),
        (with("absent"), no_ca, false),
        (with("broken"), no_ca, false),
        (
            wrong_kind,
            "Gateway infra/gw: Accepted=False/NoValidCACertificate ResolvedRefs=False/InvalidKind",
            false,
        ),
        (both, "Gateway infra/gw: Accepted ResolvedRefs=False/InvalidCACertificateRef", true),
        (with(""), "Gateway infra/gw: Accepted=False/Invalid ResolvedRefs", false),
        (BackendTlsPolicy { system_roots: true, ..with("") }, ACCEPTED, true),
        // B11
        (optioned(MIN_TLS_VERSION, "1.3"), ACCEPTED, true),
        (optioned("example.com/min", "9"), ACCEPTED, true),
        (optioned(MIN_TLS_VERSION, "1.4"), "Gateway infra/gw: Accepted=False/Invalid ResolvedRefs", false),
        (optioned("weft.dev/min", "1.3"), "Gateway infra/gw: Accepted=False/Invalid ResolvedRefs", false),
    ];
    for (policy, status, served) in cases {
        let mut w = shop();
        w.policy(policy);
        let out = w.apply();
        assert_eq!(ancestors(&out, "shop/p"), [status]);
        match tls(&out, "/") {
            Ok(tls) => assert!(served && tls.is_some(), "{status}"),
            Err(reason) => {
                assert!(!served && reason == "backend_tls", "never in clear: {status}");
                let message = out.message(RouteKind::Http, "shop/r", "Accepted");
                assert!(message.contains("BackendTLSPolicy shop/p is not valid"), "{message}");
            }
        }
    }
}

#[test]
fn the_older_of_two_wins_and_a_port_beats_the_whole_service() {
    let mut w = shop();
    let at = |mut p: BackendTlsPolicy, created| {
        p.meta.created = created;
        p
    };
    w.policy(at(policy("shop/late", "web", "ca"), 2));
    w.policy(at(policy("shop/first", "web", "ca2"), 1));
    w.policy(at(policy("shop/port", "web#p81", "ca"), 3));
    let out = w.apply();
    let conflicted = "Gateway infra/gw: Accepted=False/Conflicted ResolvedRefs";
    assert_eq!(ancestors(&out, "shop/late"), [conflicted]);
    assert_eq!(ancestors(&out, "shop/first"), [ACCEPTED]);
    assert_eq!(ancestors(&out, "shop/port"), [ACCEPTED]);
    assert_eq!(tls(&out, "/").unwrap().unwrap().roots, Some(ca_bundle("ca2")));
    assert_eq!(tls(&out, "/81").unwrap().unwrap().roots, Some(ca_bundle("ca")));
}

#[test]
fn ancestors_are_the_parents_of_the_routes_that_use_it() {
    let mut w = shop();
    w.policy(policy("shop/p", "web", "ca"));
    w.route(http_route("shop/mesh", &["Service web"], vec![rule("/", &["web"])]));
    let out = w.apply();
    assert_eq!(ancestors(&out, "shop/p"), [ACCEPTED, "Service shop/web: Accepted ResolvedRefs"]);
    w.0.routes.clear();
    assert_eq!(ancestors(&w.apply(), "shop/p"), [""; 0], "nothing of ours uses it");
}

#[test]
fn a_passthrough_listener_does_not_wrap_tls_again() {
    let mut w = shop();
    w.policy(policy("shop/p", "web", "ca"));
    w.secret("infra/good", key_pair("good"));
    let tls = |name: &str, hostname: &str, tls| Listener {
        tls: Some(tls),
        ..listener(name, 443, Protocol::Tls, hostname)
    };
    let passthrough = ListenerTls { mode: TlsMode::Passthrough, ..terminate(&[]) };
    w.gateway(gateway(
        "infra/tls",
        vec![tls("through", "a.com", passthrough), tls("ends", "b.com", terminate(&["good"]))],
    ));
    w.route(route(RouteKind::Tls, "shop/t", &["Gateway infra/tls"], vec![rule("/", &["web"])]));
    let out = w.apply();
    assert_eq!(out.get("infra/tls", 443, "a.com/"), "shop/t shop/web:80=1");
    assert_eq!(out.get("infra/tls", 443, "b.com/"), "shop/t backend_tls=1");
}

/// Copied connections speak no TLS of our own: a backend that a policy wants TLS for fails, and the route says so.
#[test]
fn copied_connections_never_go_in_clear_where_a_policy_asks_for_tls() {
    use crate::config::{L4Rule, PortConfig, TlsListener, Transport};
    let answers = |rule: &L4Rule| -> Vec<_> {
        let backends = rule.backends.as_ref().unwrap();
        backends.iter().map(|(_, b)| b.as_ref().map(|b| b.tls.is_some()).map_err(|e| e.as_str())).collect()
    };
    let mut w = shop();
    let mut tls = listener("tls", 443, Protocol::Tls, "");
    tls.tls = Some(terminate(&["cert"]));
    w.secret("infra/cert", key_pair("cert"));
    w.gateway(gateway("infra/l4", vec![listener("tcp", 9000, Protocol::Tcp, ""), tls]));
    w.service(service("shop/plain", "10.0.0.2", &[80]));
    w.policy(policy("shop/p", "web", "ca"));
    for kind in [RouteKind::Tcp, RouteKind::Tls] {
        let both = Rule { matches: Vec::new(), ..rule("/", &["web", "plain"]) };
        w.route(route(kind, "shop/copied", &["Gateway infra/l4"], vec![both]));
    }
    let out = w.apply();
    let ports = &out.0.config.gateways[&key("infra/l4")].ports;
    let Some(PortConfig::Tcp(Some(tcp))) = ports.get(&(9000, Transport::Tcp)) else { panic!("{ports:?}") };
    assert_eq!(answers(tcp), [Err("backend_tls"), Ok(false)]);
    let Some(PortConfig::Tls(hosts)) = ports.get(&(443, Transport::Tcp)) else { panic!("{ports:?}") };
    let TlsListener::Terminate { routes, .. } = &**hosts.get(Some("a.example")).unwrap() else { panic!() };
    assert_eq!(answers(routes.get(Some("a.example")).unwrap()), [Err("backend_tls"), Ok(false)]);
    for kind in [RouteKind::Tcp, RouteKind::Tls] {
        let message = out.message(kind, "shop/copied", "Accepted");
        assert!(message.contains("Connections to backends under a BackendTLSPolicy fail"), "{message}");
    }
}

/// D1, for backends: one that is reached over TLS stays reachable.
#[test]
fn a_broken_ca_leaves_the_last_good_one_in_use() {
    let mut w = shop();
    w.policy(policy("shop/p", "web", "ca"));
    let mut engine = Engine::new(settings());
    let mut check = |w: &World, conditions: &str, usable: bool| {
        let out = Applied(engine.apply(w.0.clone(), &Feedback::default()));
        assert_eq!(ancestors(&out, "shop/p"), [conditions]);
        assert_eq!(tls(&out, "/").is_ok_and(|tls| tls.is_some()), usable, "{conditions}");
    };
    check(&w, ACCEPTED, true);
    w.ca("shop/ca", Some(Err("ca.crt: no PEM certificate found".into())));
    check(&w, "Gateway infra/gw: Accepted ResolvedRefs=False/InvalidCACertificateRef", true);
    w.0.config_maps.remove(&key("shop/ca"));
    let gone =
        "Gateway infra/gw: Accepted=False/NoValidCACertificate ResolvedRefs=False/InvalidCACertificateRef";
    check(&w, gone, false);
}

/// D4: clear text to a port that declares TLS was a bare 502. (appProtocol, whether a policy names the Service, kind of
/// route, ResolvedRefs, what serves.)
#[test]
fn a_port_that_declares_tls_needs_a_backend_tls_policy() {
    const REFUSED: &str = "Accepted ResolvedRefs=False/UnsupportedProtocol";
    const GOOD: &str = "Accepted ResolvedRefs";
    let cases = [
        ("kubernetes.io/wss", false, REFUSED, Err("invalid_backend")),
        ("wss", false, REFUSED, Err("invalid_backend")),
        ("https", false, REFUSED, Err("invalid_backend")),
        ("TLS", false, REFUSED, Err("invalid_backend")),
        ("kubernetes.io/wss", true, GOOD, Ok(true)),
        ("https", true, GOOD, Ok(true)),
        ("kubernetes.io/ws", false, GOOD, Ok(false)),
        ("kubernetes.io/h2c", false, GOOD, Ok(false)),
        ("example.com/own", false, GOOD, Ok(false)),
    ];
    for (app_protocol, has_policy, conditions, served) in cases {
        let mut w = shop();
        let mut web = service("shop/web", "10.0.0.1", &[80, 81]);
        web.ports[0].app_protocol = Some(app_protocol.into());
        w.service(web);
        if has_policy {
            w.policy(policy("shop/p", "web", "ca"));
        }
        let out = w.apply();
        assert_eq!(out.route(RouteKind::Http, "shop/r"), [conditions], "{app_protocol}");
        let got = tls(&out, "/").map(|tls| tls.is_some());
        assert_eq!(got.as_ref().map_err(String::as_str), served.as_ref().map_err(|e| *e), "{app_protocol}");
        if served.is_err() {
            let message = out.message(RouteKind::Http, "shop/r", "ResolvedRefs");
            assert!(message.contains("BackendTLSPolicy"), "{message}");
        }
    }
}
