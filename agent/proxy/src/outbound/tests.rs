use super::*;
use crate::fixtures::{frontend, workload};
use std::net::IpAddr;
use weft_core::{
    config::{External, L4Rule, RuleId},
    matching::HostMap,
    model::{MtlsMode, ObjectKey, RouteKind},
};

fn rule() -> Arc<L4Rule> {
    let id = RuleId { kind: RouteKind::Tcp, route: ObjectKey::new("shop", "r"), index: 0, name: None };
    Arc::new(L4Rule { id, backends: None })
}

/// The action in a word.
fn word(action: &Action) -> &'static str {
    match action {
        Action::Http => "http",
        Action::Opaque(L4Target::Backend(_)) => "backend",
        Action::Opaque(L4Target::Rule(_)) => "rule",
        Action::Opaque(L4Target::Endpoint(e)) if e.workload.is_some() => "pod",
        Action::Opaque(L4Target::Endpoint(_)) => "outside",
        Action::ServerName => "server name",
        Action::Sniff { was_http: true } => "sniff, was http",
        Action::Sniff { was_http: false } => "sniff",
        Action::Stranger => "stranger",
        Action::Refuse(_) => "refuse",
    }
}

#[test]
fn frontends_go_where_their_routes_and_protocol_say() {
    use AppProtocol::{Grpc, H2c, Http, Opaque, Tls, Unknown, WebSocket};
    let client = workload("a", [10, 0, 0, 1].into(), true, MtlsMode::Strict);
    let http = || Some(MeshRoutes::Http(Arc::default()));
    let tls = || Some(MeshRoutes::Tls(HostMap::default()));
    let tcp = || Some(MeshRoutes::Tcp(rule()));
    let none = || None;
    let (is_http, is_opaque) = (Some(Class::Http), Some(Class::Opaque));
    let check = |protocol, routes: &dyn Fn() -> Option<MeshRoutes>, learned, expected: &str| {
        let (frontend, to) = frontend("web", protocol, routes());
        let mut config = Config::default();
        config.frontends.insert(to, frontend);
        let (action, service) = decide(&config, &client, to, |_| learned);
        assert_eq!(word(&action), expected, "{protocol:?}, {:?}, {learned:?}", routes());
        assert!(service.is_some());
    };
    for protocol in [Http, H2c, Grpc, WebSocket] {
        check(protocol, &none, None, "http");
        check(protocol, &none, is_opaque, "http");
        check(protocol, &tcp, None, "rule");
    }
    for protocol in [Http, Opaque, Unknown] {
        check(protocol, &http, None, "http");
        check(protocol, &http, is_opaque, "http");
        check(protocol, &tls, None, "server name");
        check(protocol, &tcp, is_http, "rule");
    }
    check(Tls, &none, None, "backend");
    check(Tls, &http, None, "backend");
    check(Tls, &tls, None, "server name");
    check(Opaque, &none, None, "backend");
    check(Opaque, &none, is_http, "backend");
    check(Unknown, &none, None, "sniff");
    check(Unknown, &none, is_http, "sniff, was http");
    check(Unknown, &none, is_opaque, "backend");
}

#[test]
fn consumer_routes_replace_the_producers() {
    let (frontend, to) = frontend("web", AppProtocol::Http, Some(MeshRoutes::Tcp(rule())));
    let mut frontend = (*frontend).clone();
    frontend.consumers.insert("shop".into(), MeshRoutes::Http(Arc::default()));
    let mut config = Config::default();
    config.frontends.insert(to, Arc::new(frontend));
    let mut client = (*workload("a", [10, 0, 0, 1].into(), true, MtlsMode::Strict)).clone();
    assert_eq!(word(&decide(&config, &client, to, |_| None).0), "http");
    client.pod.namespace = "elsewhere".into();
    assert_eq!(word(&decide(&config, &client, to, |_| None).0), "rule");
}

/// (external address, who may use it, what is known of the address) and what becomes of a pod's connection there.
#[test]
fn an_external_address_is_the_services_unless_it_is_a_pods() {
    let client = workload("a", [10, 0, 0, 1].into(), true, MtlsMode::Strict);
    let check = |to: &str, source_ranges: &[&str], edit: &dyn Fn(&mut Config), expected: &str| {
        let (frontend, _) = frontend("web", AppProtocol::Opaque, None);
        let source_ranges = source_ranges.iter().map(|r| r.parse().unwrap()).collect();
        let frontend = Frontend { external: Some(External { source_ranges }), ..(*frontend).clone() };
        let mut config = Config::default();
        let to = to.parse().unwrap();
        config.frontends.insert(to, Arc::new(frontend));
        config.pod_cidrs = Arc::new(["10.0.7.0/24".parse().unwrap()]);
        edit(&mut config);
        assert_eq!(word(&decide(&config, &client, to, |_| None).0), expected, "{to}");
    };
    let nothing = |_: &mut Config| {};
    check("203.0.113.1:80", &[], &nothing, "backend");
    check("203.0.113.1:80", &["10.0.0.0/24"], &nothing, "backend");
    check("203.0.113.1:80", &["10.9.0.0/24", "192.0.2.0/24"], &nothing, "refuse");
    let pod = |config: &mut Config| {
        config
            .workloads
            .insert([10, 0, 0, 2].into(), workload("b", [10, 0, 0, 2].into(), true, MtlsMode::Strict));
    };
    check("10.0.0.2:80", &[], &pod, "pod");
    check("10.0.7.9:80", &[], &nothing, "stranger");
    // The node's own address on the pods' network.
    check("10.0.7.1:80", &[], &nothing, "backend");
}

#[test]
fn other_addresses_are_protected_or_passed() {
    let mut config = Config::default();
    let ip = |s: &str| s.parse::<IpAddr>().unwrap();
    let client = workload("a", ip("10.0.0.1"), true, MtlsMode::Strict);
    for pod in [client.clone(), workload("b", ip("10.0.0.2"), true, MtlsMode::Strict)] {
        config.workloads.insert(pod.ips[0], pod);
    }
    // The network's first address is the node's.
    config.pod_cidrs = ["10.0.0.0/28", "10.0.7.0/24"].iter().map(|c| c.parse().unwrap()).collect();
    let check = |to: &str, expected: &str| {
        let (action, service) = decide(&config, &client, to.parse().unwrap(), |_| None);
        assert_eq!(word(&action), expected, "{to}");
        assert!(service.is_none());
    };
    check("10.0.0.2:80", "pod");
    check("10.0.0.2:15008", "pod");
    check("93.184.216.34:443", "outside");
    check("10.0.0.9:80", "stranger");
    check("10.0.7.1:80", "outside");
    check("[2001:db8::1]:443", "outside");
    for port in [15001, 15006, 15008] {
        check(&format!("10.0.0.1:{port}"), "refuse");
        check(&format!("127.0.0.1:{port}"), "refuse");
        check(&format!("[::1]:{port}"), "refuse");
    }
}
