//! Routes on Services.

use super::{workloads::pod, world::*};
use crate::{
    config::AppProtocol,
    engine::{Engine, Feedback},
    model::*,
};

/// Services `shop/web` (80 undeclared, 81 http, 82 tcp, 443 https; UDP 53), `shop/v1`, `shop/v2`.
fn shop() -> World {
    let mut w = world();
    let mut web = service("shop/web", "10.0.0.1", &[80]);
    web.ports.push(service_port(81, Some("http")));
    web.ports.push(service_port(82, Some("tcp")));
    web.ports.push(service_port(443, Some("https")));
    web.ports.push(ServicePort { protocol: TransportProtocol::Udp, ..service_port(53, None) });
    web.cluster_ips.push(ip("fd00::1"));
    w.service(web);
    w.service(service("shop/v1", "10.0.0.2", &[80]));
    w.service(service("shop/v2", "10.0.0.3", &[80]));
    w
}

const WEB: &[&str] = &["Service shop/web"];

#[test]
fn producer_and_consumer_routes() {
    let mut w = shop();
    w.route(http_route("shop/producer", WEB, vec![rule("/p", &["v1"])]));
    w.route(http_route("other/consumer", WEB, vec![rule("/c", &["shop/v2"])]));
    let out = w.apply();
    assert_eq!(out.http_route("shop/producer"), "Accepted ResolvedRefs");
    assert_eq!(out.http_route("other/consumer"), "Accepted ResolvedRefs", "no grant is needed in the mesh");
    for addr in ["10.0.0.1:80", "10.0.0.1:81", "[fd00::1]:80"] {
        assert_eq!(out.mesh(addr, "shop", "/p"), "shop/producer[0] shop/v1:80=1");
        assert_eq!(out.mesh(addr, "infra", "/p"), "shop/producer[0] shop/v1:80=1");
        assert_eq!(out.mesh(addr, "shop", "/else"), "404", "present but none matches");
        assert_eq!(out.mesh(addr, "other", "/c"), "other/consumer[0] shop/v2:80=1");
        assert_eq!(out.mesh(addr, "other", "/p"), "404", "never merged with the producer's");
    }
    assert_eq!(out.mesh("10.0.0.1:82", "shop", "/p"), "default shop/web:82", "HTTP rules need HTTP");
    assert_eq!(out.mesh("10.0.0.1:443", "shop", "/p"), "default shop/web:443");
    assert_eq!(out.mesh("10.0.0.1:53", "shop", "/p"), "no frontend", "UDP is not captured");
    assert_eq!(out.mesh("10.0.0.2:80", "shop", "/p"), "default shop/v1:80", "only the first level of routes");
}

/// (kind, parentRef, conditions, words of the message).
#[test]
fn service_parents() {
    let mut w = shop();
    w.service(Service { kind: ServiceType::Headless, ..service("shop/headless", "", &[80]) });
    w.service(Service { kind: ServiceType::ExternalName, ..service("shop/ext", "", &[80]) });
    w.service(Service { kind: ServiceType::LoadBalancer, ..service("shop/lb", "10.0.0.7", &[80]) });
    use RouteKind::*;
    let cases = [
        (Http, "Service shop/web", "Accepted ResolvedRefs", ""),
        (Http, "Service web", "Accepted ResolvedRefs", ""),
        (Http, "Service shop/web:80", "Accepted ResolvedRefs", ""),
        (Http, "Service shop/web#p81", "Accepted ResolvedRefs", ""),
        (Http, "Service shop/web#p81:80", "Accepted=False/NoMatchingParent ResolvedRefs", "443 \"p443\""),
        (Http, "Service shop/web:99", "Accepted=False/NoMatchingParent ResolvedRefs", "no such TCP port"),
        (Http, "Service shop/web:53", "Accepted=False/NoMatchingParent ResolvedRefs", "no such TCP port"),
        (Http, "Service shop/web:82", "Accepted=False/NoMatchingParent ResolvedRefs", "82 appProtocol tcp"),
        (Tcp, "Service shop/web:82", "Accepted ResolvedRefs", ""),
        (Tls, "Service shop/web:443", "Accepted ResolvedRefs", ""),
        (Tls, "Service shop/web:82", "Accepted=False/NoMatchingParent ResolvedRefs", "TLSRoute"),
        (Http, "Service shop/nope", "Accepted=False/NoMatchingParent", "does not exist"),
        (Http, "Service shop/headless", "Accepted=False/UnsupportedValue ResolvedRefs", "headless"),
        (Http, "Service shop/ext", "Accepted=False/UnsupportedValue ResolvedRefs", "ExternalName"),
        (Http, "Service shop/lb", "Accepted ResolvedRefs", ""),
        (
            Udp,
            "Service shop/web",
            "Accepted=False/UnsupportedValue ResolvedRefs=False/UnsupportedProtocol",
            "UDP",
        ),
    ];
    for (kind, parent, conditions, words) in cases {
        let mut w = w.clone();
        w.route(route(kind, "shop/r", &[parent], vec![rule("/", &["v1"])]));
        let out = w.apply();
        assert_eq!(out.route(kind, "shop/r").join(" | "), conditions, "{kind:?} {parent}");
        assert!(out.message(kind, "shop/r", "Accepted").contains(words), "{parent}");
    }
}

#[test]
fn the_group_may_be_written_core() {
    let mut w = shop();
    let mut r = http_route("shop/r", WEB, vec![rule("/", &["v1"])]);
    r.parents[0].kind = group_kind("core", "Service");
    w.route(r);
    let out = w.apply();
    assert_eq!(out.http_route("shop/r"), "Accepted ResolvedRefs");
    assert_eq!(out.mesh("10.0.0.1:80", "shop", "/"), "shop/r[0] shop/v1:80=1");
}

#[test]
fn kinds_on_one_port_take_precedence() {
    let mut w = shop();
    let r = |kind, name: &str, parent: &str, at| {
        route(kind, name, &[parent], vec![rule("/", &["shop/v1"])]).created(at)
    };
    w.route(r(RouteKind::Tcp, "shop/tcp", "Service shop/web:80", 1));
    w.route(r(RouteKind::Http, "shop/http", "Service shop/web:80", 2));
    let out = w.apply();
    assert_eq!(out.route(RouteKind::Tcp, "shop/tcp"), ["Accepted=False/Conflicted ResolvedRefs"]);
    assert!(out.message(RouteKind::Tcp, "shop/tcp", "Accepted").contains("HTTPRoute shop/http"));
    w.route(r(RouteKind::Grpc, "shop/grpc", "Service shop/web", 3));
    let out = w.apply();
    assert_eq!(out.route(RouteKind::Http, "shop/http"), ["Accepted=False/Conflicted ResolvedRefs"]);
    assert_eq!(out.route(RouteKind::Grpc, "shop/grpc"), ["Accepted ResolvedRefs"]);
    // The other namespace is another group: a consumer's HTTPRoute does not lose to the producer's GRPCRoute.
    w.route(r(RouteKind::Http, "other/http", "Service shop/web:80", 4));
    let out = w.apply();
    assert_eq!(out.route(RouteKind::Http, "other/http"), ["Accepted ResolvedRefs"]);
    // A GRPCRoute that cannot be served does not take the port away from one that can.
    let mut broken = r(RouteKind::Grpc, "shop/grpc", "Service shop/web", 3);
    broken.rules[0].filters.push(Filter::Unknown("Magic".into()));
    w.route(broken);
    let out = w.apply();
    assert_eq!(out.route(RouteKind::Http, "shop/http"), ["Accepted ResolvedRefs"]);
    assert_eq!(out.mesh("10.0.0.1:80", "shop", "/"), "shop/http[0] shop/v1:80=1");
}

#[test]
fn one_route_on_a_gateway_and_a_service() {
    let mut w = shop();
    w.gateway(gateway("infra/gw", vec![http("http", 80, "")]));
    w.service(service("other/far", "10.0.0.8", &[80]));
    w.route(http_route("shop/r", &["Gateway infra/gw", "Service web"], vec![rule("/", &["other/far"])]));
    let out = w.apply();
    assert_eq!(
        out.http_route("shop/r"),
        "Accepted ResolvedRefs=False/RefNotPermitted | Accepted ResolvedRefs",
        "grants bind the Gateway only"
    );
    assert_eq!(out.get("infra/gw", 80, "a/"), "shop/r[0] 500 invalid_backend=1");
    assert_eq!(out.mesh("10.0.0.1:80", "shop", "/"), "shop/r[0] other/far:80=1");
}

#[test]
fn hostnames_mean_nothing_on_a_service() {
    let mut w = shop();
    w.route(http_route("shop/r", WEB, vec![rule("/", &["v1"])]).hosts(&["a.example.com"]));
    let out = w.apply();
    assert_eq!(out.mesh("10.0.0.1:80", "shop", "/"), "shop/r[0] shop/v1:80=1");
    assert!(out.message(RouteKind::Http, "shop/r", "Accepted").contains("Hostnames are not looked at"));
}

#[test]
fn protocols_are_declared_or_implied() {
    let mut w = shop();
    let protocol = |w: &World, port: u16| {
        let addr = std::net::SocketAddr::new(ip("10.0.0.1"), port);
        w.apply().0.config.frontends.get(&addr).unwrap().protocol
    };
    assert_eq!(protocol(&w, 80), AppProtocol::Unknown);
    assert_eq!(protocol(&w, 81), AppProtocol::Http);
    assert_eq!(protocol(&w, 82), AppProtocol::Opaque);
    assert_eq!(protocol(&w, 443), AppProtocol::Tls);
    w.route(route(RouteKind::Grpc, "shop/g", &["Service shop/web:80"], vec![rule("/", &["v1"])]));
    assert_eq!(protocol(&w, 80), AppProtocol::Grpc);
    w.route(route(RouteKind::Tcp, "other/t", &["Service shop/web:80"], vec![rule("/", &["shop/v1"])]));
    assert_eq!(protocol(&w, 80), AppProtocol::Unknown, "clients differ: look at the bytes");
}

/// What routes of each kind speak to backends of each declaration.
#[test]
fn backends_are_spoken_to_as_route_and_port_say() {
    use AppProtocol as P;
    let cases = [
        (RouteKind::Http, None, P::Http),
        (RouteKind::Http, Some("kubernetes.io/h2c"), P::H2c),
        (RouteKind::Http, Some("kubernetes.io/ws"), P::WebSocket),
        (RouteKind::Http, Some("acme.example/unheard-of"), P::Http),
        (RouteKind::Http, Some("grpc"), P::Grpc),
        (RouteKind::Grpc, None, P::Grpc),
        (RouteKind::Grpc, Some("http"), P::Grpc),
        (RouteKind::Grpc, Some("kubernetes.io/h2c"), P::H2c),
    ];
    for (kind, declared, spoken) in cases {
        let mut w = shop();
        let mut v3 = service("shop/v3", "10.0.0.4", &[]);
        v3.ports.push(service_port(80, declared));
        w.service(v3);
        w.route(route(kind, "shop/r", &["Service shop/web:80"], vec![rule("/", &["v3"])]));
        let out = w.apply();
        let addr = "10.0.0.1:80".parse::<std::net::SocketAddr>().unwrap();
        let Some(crate::config::MeshRoutes::Http(table)) =
            out.0.config.frontends.get(&addr).unwrap().producer.clone()
        else {
            panic!()
        };
        let crate::config::Action::Forward(backends) = &table.iter().next().unwrap().policy.action else {
            panic!()
        };
        let backend = backends.iter().next().unwrap().1.target.as_ref().unwrap();
        assert_eq!(backend.protocol, spoken, "{kind:?} {declared:?}");
    }
}

#[test]
fn the_same_cluster_ip_twice_goes_to_the_older_service() {
    let mut w = shop();
    let mut twin = service("shop/twin", "10.0.0.1", &[80]);
    twin.meta.created = 5;
    w.service(twin);
    assert_eq!(w.apply().mesh("10.0.0.1:80", "shop", "/"), "default shop/web:80");
    w.0.services.remove(&key("shop/web"));
    assert_eq!(w.apply().mesh("10.0.0.1:80", "shop", "/"), "default shop/twin:80");
}

/// E9: a route on a Service said Accepted, had no effect, and not a word.
#[test]
fn a_route_that_no_client_can_use_yet_says_so() {
    let mut w = shop();
    w.route(http_route("shop/producer", WEB, vec![rule("/", &["v1"])]));
    w.route(http_route("other/consumer", WEB, vec![rule("/", &["shop/v1"])]));
    let mut engine = Engine::new(settings());
    let mut check = |w: &World, producer: Option<&str>, consumer: Option<&str>| {
        let out = Applied(engine.apply(w.0.clone(), &Feedback::default()));
        for (route, said) in [("shop/producer", producer), ("other/consumer", consumer)] {
            assert_eq!(out.http_route(route), "Accepted ResolvedRefs", "whoever calls");
            let message = out.message(RouteKind::Http, route, "Accepted");
            match said {
                Some(words) => assert!(message.contains(words), "{route}: {message}"),
                None => assert_eq!(message, "The route is attached.", "{route}"),
            }
        }
    };
    let nobody = Some("Gets no traffic now: no pod that could call is in the mesh yet (weft join shop).");
    let none_of = Some(
        "Gets no traffic now: no pod of namespace other, whose calls alone it is for, is in the mesh yet (weft join other).",
    );
    w.pod(pod("shop/outside", "10.1.0.9"));
    check(&w, nobody, none_of);
    w.namespace("infra", &[(MESH_LABEL, "enabled")]);
    w.pod(pod("infra/curl", "10.1.0.1"));
    check(&w, None, none_of);
    w.namespace("other", &[(MESH_LABEL, "enabled")]);
    w.pod(pod("other/a", "10.1.0.2"));
    w.pod(pod("other/b", "10.1.0.3"));
    check(&w, None, None);
    w.0.pods.remove(&key("other/a"));
    check(&w, None, None);
    w.0.pods.remove(&key("other/b"));
    check(&w, None, none_of);
    w.0.pods.remove(&key("infra/curl"));
    check(&w, nobody, none_of);
}
