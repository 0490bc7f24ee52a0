//! Pods to workloads, EndpointSlices to endpoints.

use super::world::*;
use crate::{
    config::{BackendKey, Reach, Transport},
    engine::{Engine, Feedback},
    model::*,
};
use std::sync::Arc;

pub(super) fn pod(name: &str, addr: &str) -> Pod {
    Pod {
        meta: meta(name),
        ips: vec![ip(addr)],
        service_account: "sa".into(),
        node: Some("n1".into()),
        host_network: false,
        captured: None,
        proved: Vec::new(),
        tunnel: TunnelPort::default(),
        finished: false,
        probes: Arc::default(),
    }
}

pub(super) fn endpoint(addr: &str, pod: &str) -> SliceEndpoint {
    SliceEndpoint {
        addresses: vec![ip(addr)],
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        zone: None,
        for_zones: Vec::new(),
        for_nodes: Vec::new(),
        pod: (!pod.is_empty()).then(|| key(pod)),
    }
}

pub(super) fn slice(name: &str, service: &str, endpoints: Vec<SliceEndpoint>) -> EndpointSlice {
    EndpointSlice {
        meta: meta(name),
        service: key(service),
        endpoints,
        ports: vec![SlicePort {
            name: "p80".into(),
            port: 8080,
            protocol: TransportProtocol::Tcp,
            app_protocol: None,
        }],
    }
}

/// `10.1.0.1:8080 shop/a` for each endpoint of `shop/web`.
fn endpoints(out: &Applied) -> Vec<String> {
    let key =
        BackendKey { service: key("shop/web"), port: 80, transport: Transport::Tcp, reach: Reach::default() };
    let set = out.0.config.endpoints.get(&key).unwrap();
    let text = |e: &crate::config::Endpoint| {
        let pod = e.workload.as_ref().map_or("-".to_owned(), |w| w.pod.to_string());
        format!("{} {pod}", e.addr)
    };
    set.ready.iter().map(text).collect()
}

fn shop(endpoints: Vec<SliceEndpoint>) -> World {
    let mut w = world();
    w.namespace("shop", &[(MESH_LABEL, "enabled")]);
    w.service(service("shop/web", "10.0.0.1", &[80]));
    w.pod(pod("shop/a", "10.1.0.1"));
    w.pod(pod("shop/b", "10.1.0.2"));
    w.slice(slice("shop/web-1", "shop/web", endpoints));
    w
}

#[test]
fn conditions_of_endpoints() {
    let with = |ready, serving, terminating| SliceEndpoint {
        ready,
        serving,
        terminating,
        ..endpoint("10.1.0.1", "shop/a")
    };
    let good = || endpoint("10.1.0.2", "shop/b");
    let (a, b) = ("10.1.0.1:8080 shop/a", "10.1.0.2:8080 shop/b");
    let cases: Vec<(Vec<SliceEndpoint>, Vec<&str>)> = vec![
        (vec![with(true, true, false), good()], vec![a, b]),
        (vec![with(false, false, false), good()], vec![b]),
        (vec![with(false, true, true), good()], vec![b]),
        (vec![with(false, true, true)], vec![a]),
        (vec![with(false, false, true)], vec![]),
        (vec![with(false, true, false)], vec![]),
        (vec![], vec![]),
    ];
    for (list, expected) in cases {
        assert_eq!(endpoints(&shop(list.clone()).apply()), expected, "{list:?}");
    }
}

#[test]
fn pods_of_a_node_that_is_not_heard_of_are_used_when_nobody_else_is_ready() {
    let lost = |addr: &str, pod: &str, node: &str| SliceEndpoint {
        ready: false,
        serving: false,
        node: Some(node.into()),
        ..endpoint(addr, pod)
    };
    let (a, b) = ("10.1.0.1:8080 shop/a", "10.1.0.2:8080 shop/b");
    let both = || vec![lost("10.1.0.1", "shop/a", "n1"), lost("10.1.0.2", "shop/b", "n2")];
    let going = SliceEndpoint { terminating: true, ..lost("10.1.0.1", "shop/a", "n1") };
    let nodes = |names: &[&str]| Doubt::Nodes(Arc::new(names.iter().map(|n| (*n).into()).collect()));
    let cases: Vec<(Vec<SliceEndpoint>, Doubt, Vec<&str>)> = vec![
        (both(), nodes(&[]), vec![]),
        (both(), nodes(&["n1"]), vec![a]),
        (both(), nodes(&["n1", "n2"]), vec![a, b]),
        (both(), Doubt::Everywhere, vec![a, b]),
        (vec![lost("10.1.0.1", "shop/a", "n1"), endpoint("10.1.0.2", "shop/b")], nodes(&["n1"]), vec![b]),
        (vec![going], nodes(&["n1"]), vec![]),
        // No pod of any node: its readiness is its own.
        (vec![SliceEndpoint { node: None, ..lost("10.1.0.1", "shop/a", "") }], Doubt::Everywhere, vec![]),
    ];
    for (list, doubt, expected) in cases {
        let mut w = shop(list.clone());
        let mut engine = Engine::new(settings());
        let mut apply = |w: &World| Applied(engine.apply(w.0.clone(), &Feedback::default()));
        let calm = endpoints(&apply(&w));
        w.0.doubt = doubt.clone();
        assert_eq!(endpoints(&apply(&w)), expected, "{doubt:?}: {list:?}");
        assert_eq!(
            endpoints(&Applied(Engine::new(settings()).apply(w.0.clone(), &Feedback::default()))),
            expected
        );
        w.0.doubt = Doubt::default();
        assert_eq!(endpoints(&apply(&w)), calm, "after {doubt:?}: {list:?}");
    }
}

#[test]
fn identities_of_endpoints() {
    let mut w = shop(vec![
        endpoint("10.1.0.1", "shop/a"),
        endpoint("10.1.0.2", ""),
        endpoint("192.0.2.1", ""),
        endpoint("10.1.0.3", "shop/unknown"),
        endpoint("10.1.0.9", "shop/host"),
    ]);
    w.pod(Pod { host_network: true, ..pod("shop/host", "10.1.0.9") });
    let out = w.apply();
    assert_eq!(
        endpoints(&out),
        ["10.1.0.1:8080 shop/a", "10.1.0.2:8080 shop/b", "10.1.0.9:8080 -", "192.0.2.1:8080 -"],
        "an endpoint whose pod is not known is left out"
    );
    let workload = out.0.config.workloads.get(&ip("10.1.0.1")).unwrap();
    assert_eq!(workload.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/sa");
    assert!(workload.enrolled);
    assert!(out.0.config.workloads.get(&ip("10.1.0.9")).is_none(), "a pod in its node's network");
}

#[test]
fn a_node_shares_its_address_with_pods_that_nobody_tells_of() {
    let mut w = shop(vec![endpoint("192.0.2.9", "other/host")]);
    let mut engine = Engine::new(settings());
    let mut apply = |w: &World| Applied(engine.apply(w.0.clone(), &Feedback::default()));
    assert_eq!(endpoints(&apply(&w)), [""; 0], "a pod that is not known yet");
    let node = Node {
        meta: meta("n2"),
        addresses: vec![ip("192.0.2.9")],
        pod_cidrs: vec!["10.2.0.0/24".parse().unwrap()],
        ready: true,
        kubelet_port: crate::model::KUBELET_PORT,
    };
    w.0.nodes.insert("n2".into(), Arc::new(node));
    let out = apply(&w);
    assert_eq!(endpoints(&out), ["192.0.2.9:8080 -"]);
    let nets: Vec<String> = out.0.config.pod_cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(nets, ["10.1.0.0/16", "10.2.0.0/24"]);
    // B10: a controller that tells of pods in their node's network tells of this one too, if it is one.
    w.pod(Pod { host_network: true, node: Some("n3".into()), ..pod("other/agent", "192.0.2.10") });
    assert_eq!(endpoints(&apply(&w)), [""; 0], "an address that a node says is its own proves nothing");
    w.pod(Pod { host_network: true, node: Some("n2".into()), ..pod("other/host", "192.0.2.9") });
    assert_eq!(endpoints(&apply(&w)), ["192.0.2.9:8080 -"]);
    w.0.pods.remove(&key("other/host"));
    w.0.pods.remove(&key("other/agent"));
    assert_eq!(endpoints(&apply(&w)), ["192.0.2.9:8080 -"], "a controller of the version before");
    w.0.nodes.clear();
    let out = apply(&w);
    assert_eq!(endpoints(&out), [""; 0]);
    w.0.pods.remove(&key("shop/a"));
    w.0.pods.remove(&key("shop/b"));
    assert!(apply(&w).0.config.pod_cidrs.is_empty());
}

#[test]
fn a_labelled_pod_is_enrolled_once_it_is_captured() {
    let check = |captured, label: &str, enrolled| {
        let mut w = shop(vec![]);
        let mut joining = pod("shop/joining", "10.1.0.7");
        joining.captured = captured;
        joining.meta.labels = labels(&[(MESH_LABEL, label)]);
        w.pod(joining);
        let out = w.apply();
        assert_eq!(
            out.0.config.workloads.get(&ip("10.1.0.7")).unwrap().enrolled,
            enrolled,
            "{captured:?} {label}"
        );
    };
    check(None, "enabled", true);
    check(Some(true), "enabled", true);
    check(Some(false), "enabled", false);
    // Leaving: it is still captured for a moment.
    check(Some(true), "disabled", true);
    check(None, "disabled", false);
}

#[test]
fn an_address_that_moves_to_another_pod() {
    let mut w = shop(vec![endpoint("10.1.0.1", "shop/a")]);
    let mut engine = Engine::new(settings());
    let mut apply = |w: &World| Applied(engine.apply(w.0.clone(), &Feedback::default()));
    assert_eq!(endpoints(&apply(&w)), ["10.1.0.1:8080 shop/a"]);
    // A newer pod has the address, and is enrolled too; the slice is behind.
    let mut taker = pod("other/taker", "10.1.0.1");
    taker.meta.created = 9;
    w.pod(taker.clone());
    assert_eq!(endpoints(&apply(&w)), ["10.1.0.1:8080 shop/a"], "what is told makes nothing clear");
    taker.meta.labels = labels(&[(MESH_LABEL, "enabled")]);
    w.pod(taker);
    assert_eq!(endpoints(&apply(&w)), [""; 0], "nobody is sent to the wrong pod");
    assert_eq!(apply(&w).0.config.workloads.get(&ip("10.1.0.1")).unwrap().pod, key("other/taker"));
    // It finishes, and the first one is what it was.
    w.pod(Pod { finished: true, ..pod("other/taker", "10.1.0.1") });
    assert_eq!(endpoints(&apply(&w)), ["10.1.0.1:8080 shop/a"]);
    // A label on the namespace reaches the endpoint.
    w.namespace("shop", &[]);
    let out = apply(&w);
    let key =
        BackendKey { service: key("shop/web"), port: 80, transport: Transport::Tcp, reach: Reach::default() };
    assert!(!out.0.config.endpoints.get(&key).unwrap().ready[0].workload.as_ref().unwrap().enrolled);
}

#[test]
fn slices_are_merged_and_ports_found_by_name() {
    let mut w = shop(vec![endpoint("10.1.0.1", "shop/a")]);
    let not_ready = SliceEndpoint { ready: false, ..endpoint("10.1.0.1", "shop/a") };
    w.slice(slice("shop/web-2", "shop/web", vec![not_ready, endpoint("10.1.0.2", "shop/b")]));
    let mut renumbered = slice("shop/web-3", "shop/web", vec![endpoint("10.1.0.3", "")]);
    renumbered.ports[0].port = 9090;
    w.slice(renumbered);
    let mut other = slice("shop/web-x", "shop/web", vec![endpoint("10.1.0.7", "")]);
    other.ports[0].name = "metrics".into();
    w.slice(other);
    assert_eq!(endpoints(&w.apply()), ["10.1.0.1:8080 shop/a", "10.1.0.2:8080 shop/b", "10.1.0.3:9090 -"]);
}

#[test]
fn the_same_port_number_over_tcp_and_udp() {
    let mut w = world();
    let mut dns = service("shop/dns", "10.0.0.1", &[]);
    dns.ports = vec![
        service_port(53, None),
        ServicePort { name: "udp".into(), protocol: TransportProtocol::Udp, ..service_port(53, None) },
    ];
    w.service(dns);
    let mut s = slice("shop/dns-1", "shop/dns", vec![endpoint("10.1.0.1", "")]);
    s.ports = [("p53", 1053, TransportProtocol::Tcp), ("udp", 2053, TransportProtocol::Udp)]
        .map(|(name, port, protocol)| SlicePort { name: name.into(), port, protocol, app_protocol: None })
        .to_vec();
    w.slice(s);
    let out = w.apply();
    let port = |transport| {
        let key = BackendKey { service: key("shop/dns"), port: 53, transport, reach: Reach::default() };
        out.0.config.endpoints.get(&key).unwrap().ready[0].addr.port()
    };
    assert_eq!((port(Transport::Tcp), port(Transport::Udp)), (1053, 2053));
}

/// B1: a kubelet may write any `status.podIPs`. The enrolled pod's address stayed its own, and its Service keeps the endpoint.
#[test]
fn a_forged_pod_ip_takes_nothing_from_a_proved_one() {
    let mut w = shop(vec![endpoint("10.1.0.1", "shop/a")]);
    let mut engine = Engine::new(settings());
    let mut apply = |w: &World| Applied(engine.apply(w.0.clone(), &Feedback::default()));
    let proved =
        |name: &str| Pod { captured: Some(true), proved: vec![ip("10.1.0.1")], ..pod(name, "10.1.0.1") };
    w.pod(proved("shop/a"));
    assert_eq!(endpoints(&apply(&w)), ["10.1.0.1:8080 shop/a"]);
    let mut forged =
        Pod { node: Some("n9".into()), captured: Some(false), ..pod("other/forged", "10.1.0.1") };
    forged.meta.created = 9;
    for label in ["disabled", "enabled"] {
        forged.meta.labels = labels(&[(MESH_LABEL, label)]);
        w.pod(forged.clone());
        let out = apply(&w);
        assert_eq!(endpoints(&out), ["10.1.0.1:8080 shop/a"], "{label}");
        assert!(out.0.config.workloads.get(&ip("10.1.0.1")).unwrap().enrolled, "{label}");
    }
    // Its agent has let it go, and it is about to be captured again: nobody knows whose the address is.
    w.pod(Pod { captured: Some(false), proved: Vec::new(), ..proved("shop/a") });
    let out = apply(&w);
    assert_eq!(endpoints(&out), [""; 0]);
    assert!(out.0.config.workloads.get(&ip("10.1.0.1")).is_none());
    // It is gone, and the address is free at once for the next pod with proof.
    w.0.pods.remove(&key("shop/a"));
    w.pod(proved("shop/next"));
    assert_eq!(apply(&w).0.config.workloads.get(&ip("10.1.0.1")).unwrap().pod, key("shop/next"));
}
