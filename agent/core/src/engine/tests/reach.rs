//! Which endpoints the clients of a node reach, and at which addresses: as kube-proxy of Kubernetes v1.36 decides.

use super::{
    workloads::{endpoint, pod, slice},
    world::*,
};
use crate::{
    config::{BackendKey, Config, Frontend, Reach, Transport},
    engine::{Engine, Feedback, Settings},
    model::*,
};
use std::sync::Arc;

const LOCAL: Reach = Reach { local: true, second_family: false };

/// `"1 n1 ready z=a,b n=n1"`: the last byte of its address, its node, its conditions, its hints.
fn written(text: &str) -> SliceEndpoint {
    let words: Vec<&str> = text.split(' ').collect();
    let (ready, serving, terminating) = match words[2] {
        "ready" => (true, true, false),
        // Of a Service with publishNotReadyAddresses: the EndpointSlice controller calls all of them ready.
        "published" => (true, false, false),
        "published-going" => (true, true, true),
        "away" => (false, false, false),
        "going" => (false, true, true),
        "gone" => (false, false, true),
        other => panic!("{other}"),
    };
    let hints = |prefix: &str| {
        let all = words[3..].iter().filter_map(|w| w.strip_prefix(prefix));
        all.flat_map(|w| w.split(',')).map(Str::from).collect()
    };
    SliceEndpoint {
        ready,
        serving,
        terminating,
        node: (words[1] != "-").then(|| words[1].into()),
        for_zones: hints("z="),
        for_nodes: hints("n="),
        ..endpoint(&format!("10.1.0.{}", words[0]), "")
    }
}

fn here() -> Settings {
    Settings { node: Some("n1".into()), ..settings() }
}

/// The last bytes of the addresses behind port 80 of `shop/web`.
fn reached(config: &Config, reach: Reach) -> String {
    let key = BackendKey { service: key("shop/web"), port: 80, transport: Transport::Tcp, reach };
    let Some(set) = config.endpoints.get(&key) else { return "nothing".to_owned() };
    let last =
        |e: &crate::config::Endpoint| e.addr.ip().to_string().rsplit(['.', ':']).next().unwrap().to_owned();
    set.ready.iter().map(last).collect::<Vec<_>>().join(" ")
}

/// Clients on node `n1` in zone `a`. (what, endpoints, reached by traffic policy Cluster, by Local)
#[test]
fn endpoints_are_those_that_kube_proxy_would_choose() {
    let cases: &[(&str, &[&str], &str, &str)] = &[
        ("nobody", &[], "", ""),
        ("all that are ready", &["1 n1 ready", "2 n2 ready", "3 n2 away"], "1 2", "1"),
        ("local: another node's are no substitute", &["2 n2 ready", "3 n3 ready"], "2 3", ""),
        ("local: who is not ready here is no reason to go elsewhere", &["1 n1 away", "2 n2 ready"], "2", ""),
        ("one without a node is nowhere local", &["1 - ready"], "1", ""),
        // Terminating.
        ("who is going is not used beside ready ones", &["1 n1 going", "2 n2 ready"], "2", "1"),
        ("who is going is better than nobody", &["1 n1 going", "2 n2 going", "3 n2 away"], "1 2", "1"),
        ("who no longer serves is nobody", &["1 n1 gone", "2 n2 gone"], "", ""),
        ("local: ready before going", &["1 n1 going", "2 n1 ready", "3 n2 ready"], "2 3", "2"),
        ("local: only going ones elsewhere", &["2 n2 going"], "2", ""),
        // publishNotReadyAddresses, as the slices say it.
        ("published", &["1 n1 published", "2 n2 published"], "1 2", "1"),
        ("published, and going", &["1 n1 published-going", "2 n2 ready"], "1 2", "1"),
        // Zones.
        ("each its zone", &["1 n1 ready z=a", "2 n2 ready z=b"], "1", "1"),
        ("a zone has several", &["1 n1 ready z=a", "2 n2 ready z=b", "3 n3 ready z=a"], "1 3", "1"),
        ("an endpoint is for several zones", &["1 n1 ready z=c", "2 n2 ready z=a,b"], "2", "1"),
        ("none is for this zone", &["1 n1 ready z=b", "2 n2 ready z=c"], "1 2", "1"),
        ("one has no hint", &["1 n1 ready z=a", "2 n2 ready"], "1 2", "1"),
        ("only ready ones need hints", &["1 n1 ready z=a", "2 n2 ready z=b", "3 n2 away"], "1", "1"),
        ("who is not ready is for nobody", &["1 n1 away z=a", "2 n2 ready z=b"], "2", ""),
        ("local is stricter than a zone", &["1 n2 ready z=a", "2 n1 ready z=b"], "1", "2"),
        ("terminating ones are not divided", &["1 n1 going z=a", "2 n2 going z=b"], "1 2", "1"),
        // Nodes.
        ("each its node", &["1 n1 ready n=n1", "2 n2 ready n=n2"], "1", "1"),
        ("a node before a zone", &["1 n2 ready n=n2 z=a", "2 n1 ready n=n1 z=a"], "2", "2"),
        ("none is for this node, so its zone", &["1 n2 ready n=n2 z=a", "2 n3 ready n=n3 z=b"], "1", ""),
        ("neither node nor zone", &["1 n2 ready n=n2 z=c", "2 n3 ready n=n3 z=b"], "1 2", ""),
        ("one has no hint of a node", &["1 n1 ready n=n1 z=a", "2 n2 ready z=a"], "1 2", "1"),
    ];
    for (what, endpoints, cluster, local) in cases {
        let mut w = world();
        w.service(Service { internal_local: true, ..service("shop/web", "10.0.0.1", &[80]) });
        // In two slices, as they come of big Services.
        let (one, two) = endpoints.split_at(endpoints.len() / 2);
        for (name, part) in [("shop/web-1", one), ("shop/web-2", two)] {
            w.slice(slice(name, "shop/web", part.iter().map(|e| written(e)).collect()));
        }
        w.node("n1", "a");
        let config = Engine::new(here()).apply(w.0, &Feedback::default()).config;
        let got = (reached(&config, Reach::default()), reached(&config, LOCAL));
        assert_eq!(got, ((*cluster).to_owned(), (*local).to_owned()), "{what}: {endpoints:?}");
    }
}

/// (the engine's node, its zone, endpoints with hints for n1 and a, reached)
#[test]
fn without_a_node_or_a_zone_no_hint_is_for_here() {
    for (node_name, zone, endpoints, reached_here) in [
        (None, "a", ["1 n1 ready z=a n=n1", "2 n2 ready z=b n=n2"], "1 2"),
        (Some("n1"), "", ["1 n1 ready z=a", "2 n2 ready z=b"], "1 2"),
        (Some("n1"), "", ["1 n1 ready z=a n=n1", "2 n2 ready z=b n=n2"], "1"),
        (Some("n1"), "b", ["1 n1 ready z=a", "2 n2 ready z=b"], "2"),
    ] {
        let mut w = world();
        w.service(service("shop/web", "10.0.0.1", &[80]));
        w.slice(slice("shop/web-1", "shop/web", endpoints.iter().map(|e| written(e)).collect()));
        w.node("n1", zone);
        let settings = Settings { node: node_name.map(Str::from), ..settings() };
        let config = Engine::new(settings).apply(w.0, &Feedback::default()).config;
        assert_eq!(reached(&config, Reach::default()), reached_here, "{node_name:?} {zone} {endpoints:?}");
        assert_eq!(reached(&config, LOCAL), "nothing", "nobody asked for it");
    }
}

/// An endpoint whose pod is not known yet cannot be used, so that it must not decide about the others.
#[test]
fn hints_of_those_who_may_be_spoken_to() {
    let mut w = world();
    w.service(service("shop/web", "10.0.0.1", &[80]));
    let unknown = SliceEndpoint { pod: Some(key("shop/new")), ..written("1 n1 ready z=a") };
    w.slice(slice("shop/web-1", "shop/web", vec![unknown, written("2 n2 ready z=b")]));
    w.node("n1", "a");
    let mut engine = Engine::new(here());
    let mut apply =
        |w: &World| reached(&engine.apply(w.0.clone(), &Feedback::default()).config, Reach::default());
    assert_eq!(apply(&w), "2", "better another zone than nobody");
    w.pod(pod("shop/new", "10.1.0.1"));
    assert_eq!(apply(&w), "1");
}

/// Kubernetes calls every pod of a node that it has not heard of not ready, the clients' own node included.
#[test]
fn local_endpoints_of_a_node_in_doubt() {
    let mut w = world();
    w.service(Service { internal_local: true, ..service("shop/web", "10.0.0.1", &[80]) });
    w.slice(slice("shop/web-1", "shop/web", vec![written("1 n1 away"), written("2 n2 ready")]));
    let mut engine = Engine::new(here());
    let mut apply = |w: &World| {
        let config = engine.apply(w.0.clone(), &Feedback::default()).config;
        (reached(&config, Reach::default()), reached(&config, LOCAL))
    };
    let got = |cluster: &str, local: &str| (cluster.to_owned(), local.to_owned());
    assert_eq!(apply(&w), got("2", ""));
    w.0.doubt = Doubt::Nodes(Arc::new([Str::from("n2")].into()));
    assert_eq!(apply(&w), got("2", ""), "another node's trouble is not ours");
    w.0.doubt = Doubt::Nodes(Arc::new([Str::from("n1")].into()));
    assert_eq!(apply(&w), got("2", "1"));
    w.0.doubt = Doubt::default();
    assert_eq!(apply(&w), got("2", ""));
}

/// Of two endpoints of one address: the pod that runs, then the better state. (both, in both orders; reached)
#[test]
fn one_address_in_two_slices() {
    for (one, other, cluster) in [
        ("1 n1 ready", "1 n1 away", "1"),
        ("1 n1 ready", "1 n1 going", "1"),
        // The address is a new pod's, which is not ready yet; the old pod's endpoint is not gone yet.
        ("1 n1 away", "1 n1 going", ""),
        ("1 n1 away", "1 n1 published-going", ""),
    ] {
        for (a, b) in [(one, other), (other, one)] {
            let mut w = world();
            w.service(service("shop/web", "10.0.0.1", &[80]));
            w.slice(slice("shop/web-1", "shop/web", vec![written(a)]));
            w.slice(slice("shop/web-2", "shop/web", vec![written(b)]));
            let config = Engine::new(here()).apply(w.0, &Feedback::default()).config;
            assert_eq!(reached(&config, Reach::default()), cluster, "{a}, {b}");
        }
    }
}

#[test]
fn further_addresses_of_an_endpoint_mean_nothing() {
    let mut w = world();
    w.service(service("shop/web", "10.0.0.1", &[80]));
    let mut two = written("1 n1 ready");
    two.addresses.push(ip("10.1.0.9"));
    w.slice(slice("shop/web-1", "shop/web", vec![two]));
    assert_eq!(reached(&w.apply().0.config, Reach::default()), "1");
}

/// A dual-stack Service leads from each of its addresses to the endpoints of that family.
#[test]
fn each_family_has_its_own_endpoints() {
    let check = |ips: [&str; 2], first: &str, second: &str| {
        let mut w = world();
        let mut web = service("shop/web", ips[0], &[80]);
        web.cluster_ips.push(ip(ips[1]));
        web.internal_local = true;
        w.service(web);
        w.slice(slice("shop/web-4", "shop/web", vec![written("1 n1 ready"), written("2 n2 ready")]));
        let six = |addr: &str, node: &str| SliceEndpoint {
            addresses: vec![ip(addr)],
            ..written(&format!("1 {node} ready"))
        };
        w.slice(slice("shop/web-6", "shop/web", vec![six("fd01::3", "n1"), six("fd01::4", "n2")]));
        let config = Engine::new(here()).apply(w.0, &Feedback::default()).config;
        let at = |addr: &str| {
            let key = &frontend(&config, &format!("{addr}:80")).default.key;
            let all = Reach { local: false, ..key.reach };
            format!("{} local {}", reached(&config, all), reached(&config, key.reach))
        };
        let bracketed = |ip: &str| if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        assert_eq!(at(&bracketed(ips[0])), first);
        assert_eq!(at(&bracketed(ips[1])), second);
    };
    check(["10.0.0.1", "fd00::1"], "1 2 local 1", "3 4 local 3");
    check(["fd00::1", "10.0.0.1"], "3 4 local 3", "1 2 local 1");
}

fn frontend(config: &Config, addr: &str) -> Arc<Frontend> {
    config.frontends.get(&addr.parse().unwrap()).unwrap_or_else(|| panic!("nothing at {addr}")).clone()
}

/// (Service of an IPv4 ClusterIP or without any, endpoints of which family are there, reached)
#[test]
fn slices_made_by_hand_may_be_of_another_family() {
    let mut w = world();
    w.service(service("shop/web", "10.0.0.1", &[80]));
    let six = SliceEndpoint { addresses: vec![ip("fd01::6")], ..written("1 - ready") };
    w.slice(slice("shop/web-6", "shop/web", vec![six]));
    assert_eq!(reached(&w.apply().0.config, Reach::default()), "6", "better served than refused");
    w.slice(slice("shop/web-4", "shop/web", vec![written("4 - ready")]));
    assert_eq!(reached(&w.apply().0.config, Reach::default()), "4");
    w.service(service("shop/web", "", &[80]));
    assert_eq!(reached(&w.apply().0.config, Reach::default()), "4", "IPv4 where nothing is said");
    w.service(Service { family: Some(IpFamily::V6), ..service("shop/web", "", &[80]) });
    assert_eq!(reached(&w.apply().0.config, Reach::default()), "6");
}

/// A Service with every kind of address. `"local"` where its clients use their own node's endpoints only.
#[test]
fn external_addresses_lead_to_the_endpoints_of_all_nodes() {
    let mut w = world();
    w.service(Service {
        kind: ServiceType::LoadBalancer,
        internal_local: true,
        external_ips: vec![ip("192.0.2.1")],
        vips: vec![ip("192.0.2.2")],
        ingress: vec![PlacementAddress::Ip(ip("192.0.2.2")), PlacementAddress::Ip(ip("192.0.2.3"))],
        source_ranges: vec!["10.1.0.0/24".parse().unwrap(), "fd00::/8".parse().unwrap()],
        ..service("shop/web", "10.0.0.1", &[80])
    });
    w.route(http_route("shop/r", &["Service shop/web"], vec![rule("/", &["web"])]));
    let out = w.apply();
    let at = |addr: &str| frontend(&out.0.config, addr);
    let admits = |addr: &str, client: &str| at(addr).external.as_ref().unwrap().admits(&[ip(client)]);
    assert_eq!((at("10.0.0.1:80").default.key.reach, at("10.0.0.1:80").external.clone()), (LOCAL, None));
    for addr in ["192.0.2.1:80", "192.0.2.2:80"] {
        assert_eq!(at(addr).default.key.reach, Reach::default(), "{addr}");
        assert_eq!(out.mesh(addr, "shop", "/"), "shop/r[0] shop/web:80=1", "routed as its ClusterIP is");
    }
    assert!(admits("192.0.2.1:80", "10.9.9.9"), "loadBalancerSourceRanges are the load balancer's");
    assert!(admits("192.0.2.2:80", "10.1.0.7") && !admits("192.0.2.2:80", "10.9.9.9"));
    assert_eq!(out.mesh("192.0.2.3:80", "shop", "/"), "no frontend", "ipMode: Proxy");
}

/// Who claims an address of another's, as an external one: (who, by what, since when) and who has it.
#[test]
fn an_external_address_takes_no_cluster_ip() {
    let claim = |name: &str, own: &str, created: i64| Service {
        meta: Meta { created, ..meta(name) },
        external_ips: vec![ip("10.0.0.1"), ip("192.0.2.1")],
        ..service(name, own, &[80, 81])
    };
    let mut w = world();
    w.service(claim("evil/older", "10.0.0.8", -5));
    w.service(claim("evil/newer", "10.0.0.9", 9));
    w.service(service("shop/web", "10.0.0.1", &[80]));
    let mut engine = Engine::new(here());
    let mut owner = |w: &World, addr: &str| {
        let config = engine.apply(w.0.clone(), &Feedback::default()).config;
        frontend(&config, addr).service.to_string()
    };
    assert_eq!(owner(&w, "10.0.0.1:80"), "shop/web");
    assert_eq!(owner(&w, "192.0.2.1:80"), "evil/older", "of equals the oldest");
    // Gone and back again.
    w.0.services.remove(&key("evil/older"));
    assert_eq!(owner(&w, "192.0.2.1:80"), "evil/newer");
    assert_eq!(owner(&w, "10.0.0.1:80"), "shop/web");
    w.0.services.remove(&key("shop/web"));
    assert_eq!(owner(&w, "10.0.0.1:80"), "evil/newer", "nobody's any more");
    w.service(service("shop/web", "10.0.0.1", &[80]));
    assert_eq!(owner(&w, "10.0.0.1:80"), "shop/web");
}

/// The policy of the Service that a rule leads to holds in the mesh, and not at a Gateway, whose clients are on no node.
#[test]
fn local_is_for_the_mesh() {
    let mut w = world();
    w.gateway(gateway("shop/gw", vec![http("http", 80, "")]));
    w.service(Service { internal_local: true, ..service("shop/local", "10.0.0.1", &[80]) });
    w.service(service("shop/web", "10.0.0.2", &[80]));
    let parents = ["Gateway shop/gw", "Service shop/web"];
    w.route(http_route("shop/r", &parents, vec![rule("/", &["local"])]));
    let config = w.apply().0.config;
    let reach = |rule: &crate::config::HttpRule| {
        let crate::config::Action::Forward(backends) = &rule.action else { panic!() };
        let (_, backend) = backends.iter().next().unwrap();
        backend.target.as_ref().unwrap().key.reach
    };
    let web = frontend(&config, "10.0.0.2:80");
    let Some(crate::config::MeshRoutes::Http(mesh)) = &web.producer else { panic!() };
    assert_eq!(mesh.iter().map(|e| reach(&e.policy)).collect::<Vec<_>>(), [LOCAL]);
    let crate::config::PortConfig::Http(hosts) =
        &config.gateways[&key("shop/gw")].ports[&(80, Transport::Tcp)]
    else {
        panic!()
    };
    let table = &hosts.get(None).unwrap().table;
    assert_eq!(table.iter().map(|e| reach(&e.policy)).collect::<Vec<_>>(), [Reach::default()]);
    assert_eq!(web.default.key.reach, Reach::default(), "its own policy, not that of the backend");
}

#[test]
fn why_nobody_is_reached_is_said() {
    let mut w = world();
    w.service(service("shop/web", "10.0.0.1", &[80]));
    let say = |settings: Settings, reach| {
        let config = Engine::new(settings).apply(w.0.clone(), &Feedback::default()).config;
        config.no_endpoint(&BackendKey {
            service: key("shop/web"),
            port: 80,
            transport: Transport::Tcp,
            reach,
        })
    };
    assert_eq!(say(here(), Reach::default()), "shop/web port 80 has no ready endpoint");
    assert_eq!(
        say(here(), LOCAL),
        "shop/web port 80 has internalTrafficPolicy: Local and no ready endpoint on node n1"
    );
}
