//! Routes on Gateways: attachment, references, rules.

use super::world::*;
use crate::model::*;
use std::sync::Arc;

/// A Gateway `infra/gw` with an HTTP listener for every namespace, and Services `shop/web`, `shop/old`, `other/far`.
fn shop() -> World {
    let mut w = world();
    w.gateway(gateway("infra/gw", vec![http("http", 80, "")]));
    w.service(service("shop/web", "10.0.0.1", &[80, 81]));
    w.service(service("shop/old", "10.0.0.2", &[80]));
    w.service(service("other/far", "10.0.0.3", &[80]));
    w
}

const GW: &[&str] = &["Gateway infra/gw"];

#[test]
fn a_route_on_a_gateway_serves() {
    let mut w = shop();
    w.route(http_route("shop/r", GW, vec![rule("/", &["web"])]));
    let out = w.apply();
    assert_eq!(out.gateway("infra/gw"), "Accepted ResolvedRefs Programmed");
    assert_eq!(out.listener("infra/gw", "http"), "Accepted ResolvedRefs Programmed");
    assert_eq!(out.http_route("shop/r"), "Accepted ResolvedRefs");
    assert_eq!(out.attached(Kind::Gateway, "infra/gw"), [1]);
    assert_eq!(out.get("infra/gw", 80, "a.b/x"), "shop/r[0] shop/web:80=1");
    assert_eq!(out.mesh("10.0.0.1:80", "shop", "/"), "default shop/web:80");
}

/// (parentRef, kind, conditions of the route, words in the message) against a Gateway with one listener of each kind.
#[test]
fn parents_and_sections() {
    let mut w = shop();
    let only_shop = Listener {
        allowed_namespaces: FromNamespaces::Selector(Selector {
            match_labels: labels(&[("network-access", "yes")]),
            ..Selector::default()
        }),
        ..http("labelled", 81, "")
    };
    let tls_kinds = Listener { allowed_kinds: vec![Kind::TlsRoute.into()], ..http("wrong-kind", 82, "") };
    let http_only = Listener { allowed_kinds: vec![Kind::HttpRoute.into()], ..http("http-only", 83, "") };
    let same = Listener { allowed_namespaces: FromNamespaces::Same, ..http("same", 84, "") };
    w.gateway(gateway(
        "infra/many",
        vec![
            http("http", 80, "*.example.com"),
            only_shop,
            tls_kinds,
            http_only,
            same,
            listener("tcp", 90, Protocol::Tcp, ""),
            listener("udp", 90, Protocol::Udp, ""),
        ],
    ));
    use RouteKind::*;
    let cases = [
        (Http, "Gateway infra/many#http", "Accepted ResolvedRefs", "attached"),
        (Http, "Gateway infra/many:80", "Accepted ResolvedRefs", "attached"),
        (Http, "Gateway infra/many#http:81", "Accepted=False/NoMatchingParent ResolvedRefs", "on port 81"),
        (Http, "Gateway infra/many#nope", "Accepted=False/NoMatchingParent ResolvedRefs", "it has http (80)"),
        (
            Http,
            "Gateway infra/many#labelled",
            "Accepted=False/NotAllowedByListeners ResolvedRefs",
            "namespace shop lacks label network-access=yes",
        ),
        (Http, "Gateway infra/many#same", "Accepted=False/NotAllowedByListeners ResolvedRefs", "infra"),
        (Tls, "Gateway infra/many#wrong-kind", "Accepted=False/NoMatchingParent ResolvedRefs", "TLSRoute"),
        (Http, "Gateway infra/many#wrong-kind", "Accepted=False/NotAllowedByListeners ResolvedRefs", "HTTP"),
        (Grpc, "Gateway infra/many#http-only", "Accepted=False/NotAllowedByListeners ResolvedRefs", "GRPC"),
        (
            Udp,
            "Gateway infra/many#tcp",
            "Accepted=False/NotAllowedByListeners ResolvedRefs=False/UnsupportedProtocol",
            "tcp",
        ),
        (Tcp, "Gateway infra/many#udp", "Accepted=False/NotAllowedByListeners ResolvedRefs", "udp"),
        (Tcp, "Gateway infra/many", "Accepted ResolvedRefs", "attached"),
        (Http, "ListenerSet infra/many", "", ""),
        (Http, "Gateway infra/absent", "", ""),
        (Http, "Mystery infra/many", "", ""),
    ];
    for (kind, parent, conditions, words) in cases {
        let mut w = w.clone();
        w.route(route(kind, "shop/r", &[parent], vec![rule("/", &["web"])]));
        let out = w.apply();
        assert_eq!(out.route(kind, "shop/r").join(" | "), conditions, "{kind:?} {parent}");
        if !conditions.is_empty() {
            let message = out.message(kind, "shop/r", "Accepted");
            assert!(message.contains(words), "{kind:?} {parent}: {message}");
        }
    }
}

#[test]
fn hostnames_are_intersected_and_the_ignored_ones_named() {
    let mut w = shop();
    w.gateway(gateway("infra/gw", vec![http("http", 80, "*.apps.company.com")]));
    let r = |hosts: &[&str]| http_route("shop/r", GW, vec![rule("/", &["web"])]).hosts(hosts);
    w.route(r(&["www.company.com", "a.apps.company.com"]));
    let out = w.apply();
    assert_eq!(out.http_route("shop/r"), "Accepted ResolvedRefs");
    assert!(
        out.message(RouteKind::Http, "shop/r", "Accepted").contains("no listener covers: www.company.com")
    );
    assert_eq!(out.get("infra/gw", 80, "a.apps.company.com/"), "shop/r[0] shop/web:80=1");
    assert_eq!(out.get("infra/gw", 80, "b.apps.company.com/"), "404");
    w.route(r(&["www.company.com"]));
    let out = w.apply();
    assert_eq!(out.http_route("shop/r"), "Accepted=False/NoMatchingListenerHostname ResolvedRefs");
    assert_eq!(out.attached(Kind::Gateway, "infra/gw"), [0]);
    let message = out.message(RouteKind::Http, "shop/r", "Accepted");
    assert!(message.contains("www.company.com") && message.contains("*.apps.company.com"), "{message}");
}

/// (backendRefs, conditions, the answer).
#[test]
fn backends() {
    let mut w = shop();
    w.service(Service { kind: ServiceType::ExternalName, ..service("shop/ext", "", &[80]) });
    let mut dns = service("shop/dns", "10.0.0.9", &[]);
    dns.ports = vec![ServicePort { protocol: TransportProtocol::Udp, ..service_port(53, None) }];
    w.service(dns);
    let cases: &[(&[&str], &str, &str)] = &[
        (&["web"], "Accepted ResolvedRefs", "shop/web:80=1"),
        (&["web:81=3", "old"], "Accepted ResolvedRefs", "shop/web:81=3 shop/old:80=1"),
        (&["nope"], "Accepted ResolvedRefs=False/BackendNotFound", "500 backend_not_found=1"),
        (&["web:99"], "Accepted ResolvedRefs=False/BackendNotFound", "500 backend_port_not_found=1"),
        (&["dns:53"], "Accepted ResolvedRefs=False/UnsupportedProtocol", "500 invalid_backend=1"),
        (&["ext"], "Accepted ResolvedRefs=False/InvalidKind", "500 invalid_backend=1"),
        (&["other/far"], "Accepted ResolvedRefs=False/RefNotPermitted", "500 backend_not_permitted=1"),
        (
            &["web=3", "nope=1"],
            "Accepted ResolvedRefs=False/BackendNotFound",
            "shop/web:80=3 500 backend_not_found=1",
        ),
        (&["web=1", "nope=0"], "Accepted ResolvedRefs=False/BackendNotFound", "shop/web:80=1"),
        (&["web=0"], "Accepted ResolvedRefs", "500 no_backend"),
        (&[], "Accepted ResolvedRefs", "500 no_backend"),
    ];
    for (backends, conditions, answer) in cases {
        let mut w = w.clone();
        w.route(http_route("shop/r", GW, vec![rule("/", backends)]));
        let out = w.apply();
        assert_eq!(out.http_route("shop/r"), *conditions, "{backends:?}");
        assert_eq!(out.get("infra/gw", 80, "a/"), format!("shop/r[0] {answer}"), "{backends:?}");
        assert_eq!(out.attached(Kind::Gateway, "infra/gw"), [1], "{backends:?}");
    }
}

#[test]
fn a_grant_permits_and_its_absence_prints_it() {
    let mut w = shop();
    w.route(http_route("shop/r", GW, vec![rule("/", &["other/far"])]));
    let message = w.apply().message(RouteKind::Http, "shop/r", "ResolvedRefs");
    let grant = "{apiVersion: gateway.networking.k8s.io/v1, kind: ReferenceGrant, metadata: {name: from-shop, \
                 namespace: other}, spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, \
                 namespace: shop}], to: [{group: \"\", kind: Service, name: far}]}}";
    assert!(message.contains(grant), "{message}");
    w.grant("other/g", (Kind::HttpRoute, "shop"), Kind::Service);
    w.grant("shop/useless", (Kind::HttpRoute, "other"), Kind::Service);
    let out = w.apply();
    assert_eq!(out.http_route("shop/r"), "Accepted ResolvedRefs");
    assert_eq!(out.get("infra/gw", 80, "a/"), "shop/r[0] other/far:80=1");
    let mut engine = crate::engine::Engine::new(settings());
    engine.apply(w.0, &crate::engine::Feedback::default());
    let lint: Vec<_> = engine.lint().into_iter().map(|(o, _)| o.to_string()).collect();
    assert_eq!(lint, ["ReferenceGrant shop/useless"]);
}

fn with_filter(filter: Filter, backends: &[&str]) -> Rule {
    Rule { filters: vec![filter], ..rule("/f", backends) }
}

fn redirect() -> Filter {
    Filter::RequestRedirect(Redirect {
        scheme: Some("https".into()),
        hostname: None,
        path: None,
        port: None,
        status: http::StatusCode::FOUND,
    })
}

fn rewrite(path: PathModifier) -> Filter {
    Filter::UrlRewrite(UrlRewrite { hostname: None, path: Some(path) })
}

fn extension() -> Filter {
    Filter::ExtensionRef { group: "x.dev".into(), kind: "Magic".into(), name: "m".into() }
}

fn mirror(to: &str) -> Filter {
    Filter::RequestMirror(Mirror { backend: backend(to).object, numerator: 1, denominator: 2 })
}

/// (rules, conditions, answers to /f and /).
#[test]
fn filters_that_cannot_be_applied_fail_closed() {
    let bad = |backends: &[&str]| with_filter(extension(), backends);
    let good = || rule("/", &["web"]);
    let both = Rule {
        filters: vec![redirect(), rewrite(PathModifier::ReplaceFullPath("/x".into()))],
        ..rule("/f", &["web"])
    };
    let no_prefix = Rule {
        matches: vec![Match { path: Some(PathMatch::Exact("/f".into())), ..Match::default() }],
        ..with_filter(rewrite(PathModifier::ReplacePrefixMatch("/x".into())), &["web"])
    };
    let mut on_backend = rule("/f", &["web=3", "old=1"]);
    on_backend.backends[1].filters = vec![extension()];
    let invalid = Rule {
        invalid: vec![InvalidField { path: "spec.rules[0].x".into(), message: "bad".into() }],
        ..rule("/f", &["web"])
    };
    let partially = "Accepted ResolvedRefs PartiallyInvalid=True/UnsupportedValue";
    let cases: Vec<(Vec<Rule>, &str, &str, &str)> = vec![
        (vec![bad(&["web"])], "Accepted=False/UnsupportedValue ResolvedRefs", "500 invalid_filter", "404"),
        (vec![bad(&["web"]), good()], partially, "500 invalid_filter", "shop/web:80=1"),
        (vec![both.clone()], "Accepted=False/IncompatibleFilters ResolvedRefs", "500 invalid_rule", "404"),
        (vec![both, good()], partially, "500 invalid_rule", "shop/web:80=1"),
        (vec![no_prefix, good()], partially, "500 invalid_rule", "shop/web:80=1"),
        (vec![on_backend], partially, "shop/web:80=3 500 invalid_filter=1", "404"),
        (vec![invalid, good()], partially, "500 invalid_rule", "shop/web:80=1"),
        (
            vec![with_filter(redirect(), &[]), good()],
            "Accepted ResolvedRefs",
            "redirect 302",
            "shop/web:80=1",
        ),
        (
            vec![with_filter(redirect(), &["nope"]), good()],
            "Accepted ResolvedRefs=False/BackendNotFound",
            "redirect 302",
            "shop/web:80=1",
        ),
        (
            vec![with_filter(mirror("nope"), &["web"])],
            "Accepted ResolvedRefs=False/BackendNotFound",
            "shop/web:80=1",
            "404",
        ),
        (vec![with_filter(mirror("old"), &["web"])], "Accepted ResolvedRefs", "shop/web:80=1", "404"),
    ];
    for (rules, conditions, filtered, plain) in cases {
        let mut w = shop();
        let text = format!("{rules:?}");
        let last = rules.len() - 1;
        w.route(http_route("shop/r", GW, rules));
        let out = w.apply();
        assert_eq!(out.http_route("shop/r"), conditions, "{text}");
        assert_eq!(out.get("infra/gw", 80, "a/f"), format!("shop/r[0] {filtered}"), "{text}");
        let plain = if plain == "404" { plain.to_owned() } else { format!("shop/r[{last}] {plain}") };
        assert_eq!(out.get("infra/gw", 80, "a/"), plain, "{text}");
        if conditions.contains("PartiallyInvalid") {
            let message = out.message(RouteKind::Http, "shop/r", "PartiallyInvalid");
            assert!(message.starts_with("Dropped Rule"), "{message}");
        }
        let counted = i32::from(!conditions.contains("Accepted=False"));
        assert_eq!(out.attached(Kind::Gateway, "infra/gw"), [counted], "{text}");
    }
}

#[test]
fn mirrors_and_backend_filters_are_compiled() {
    let mut w = shop();
    let modifier = HeaderModifier {
        set: vec![(http::HeaderName::from_static("a"), http::HeaderValue::from_static("b"))],
        ..HeaderModifier::default()
    };
    let mut r = with_filter(mirror("nope"), &["web"]);
    r.filters.push(mirror("old"));
    r.backends[0].filters = vec![Filter::RequestHeaderModifier(modifier), mirror("web")];
    w.route(http_route("shop/r", GW, vec![r]));
    let out = w.apply();
    let config = &out.0.config;
    let crate::config::PortConfig::Http(hosts) =
        &config.gateways[&key("infra/gw")].ports[&(80, crate::config::Transport::Tcp)]
    else {
        panic!()
    };
    let entry = hosts.get(None).unwrap().table.iter().next().unwrap();
    assert_eq!(&*entry.policy.label, "/f/*");
    assert_eq!(entry.policy.filters.mirrors.len(), 1, "the one that resolves");
    assert_eq!(entry.policy.filters.mirrors[0].backend.key.service, key("shop/old"));
    let crate::config::Action::Forward(backends) = &entry.policy.action else { panic!() };
    let backend = backends.iter().next().unwrap().1;
    assert!(backend.filters.request_headers.is_some());
    assert_eq!(backend.filters.mirrors.len(), 1);
}

/// T9: equal specificity, the oldest wins, and the others are told.
#[test]
fn shadowed_rules_are_named() {
    let mut w = shop();
    let r = |name: &str, at| {
        http_route(name, GW, vec![rule("/store", &["web"])]).hosts(&["api.example.com"]).created(at)
    };
    w.route(r("shop/plain", 1));
    w.route(r("shop/canary", 2));
    w.route(http_route("shop/wide", GW, vec![rule("/store", &["web"])]).created(0));
    let out = w.apply();
    let message = |name| out.message(RouteKind::Http, name, "Accepted");
    assert_eq!(message("shop/plain"), "The route is attached.");
    assert_eq!(message("shop/wide"), "The route is attached.");
    assert_eq!(
        message("shop/canary"),
        "The route is attached. rules[0] is never reached: shadowed by HTTPRoute shop/plain rules[0], which has the \
         same matches and comes first."
    );
    assert_eq!(out.http_route("shop/canary"), "Accepted ResolvedRefs");
    assert_eq!(out.get("infra/gw", 80, "api.example.com/store"), "shop/plain[0] shop/web:80=1");
}

/// T10, T11: one rule torn into three list entries.
#[test]
fn torn_rules_are_explained() {
    let mut w = shop();
    let torn = vec![
        Rule { matches: vec![prefix("/api")], ..Rule::default() },
        rule("/", &["web"]),
        rule("/", &["old"]),
    ];
    w.route(http_route("shop/r", GW, torn));
    let out = w.apply();
    let message = out.message(RouteKind::Http, "shop/r", "Accepted");
    assert!(message.contains("rules[0] has neither backendRefs nor a redirect"), "{message}");
    assert!(message.contains("rules[2] is never reached: shadowed by its own rules[1]"), "{message}");
    assert_eq!(out.get("infra/gw", 80, "a/api"), "shop/r[0] 500 no_backend");
    assert_eq!(out.get("infra/gw", 80, "a/"), "shop/r[1] shop/web:80=1");
}

/// T2: a pattern without its type.
#[test]
fn a_pattern_compared_as_text_is_pointed_out() {
    let mut w = shop();
    let mut r = rule("/", &["web"]);
    r.matches[0].headers.push(HeaderMatch {
        name: http::header::USER_AGENT,
        value: ValueMatch::Exact(http::HeaderValue::from_static(".*Mobile.*")),
    });
    w.route(http_route("shop/r", GW, vec![r]));
    let message = w.apply().message(RouteKind::Http, "shop/r", "Accepted");
    assert!(
        message.contains("rules[0].matches[0]: the value of header user-agent looks like a pattern"),
        "{message}"
    );
}

#[test]
fn http_and_grpc_cannot_share_a_hostname_on_a_listener() {
    let mut w = shop();
    w.route(http_route("shop/h", GW, vec![rule("/", &["web"])]).hosts(&["*.a.com"]).created(2));
    let grpc = |name: &str, host: &str, at| {
        route(RouteKind::Grpc, name, GW, vec![rule("/", &["web"])]).hosts(&[host]).created(at)
    };
    w.route(grpc("shop/g", "x.a.com", 1));
    w.route(grpc("shop/apart", "x.b.com", 3));
    let out = w.apply();
    assert_eq!(out.http_route("shop/h"), "Accepted=False/Conflicted ResolvedRefs");
    assert!(out.message(RouteKind::Http, "shop/h", "Accepted").contains("GRPCRoute shop/g"));
    assert_eq!(out.route(RouteKind::Grpc, "shop/g"), ["Accepted ResolvedRefs"]);
    assert_eq!(out.route(RouteKind::Grpc, "shop/apart"), ["Accepted ResolvedRefs"]);
    assert_eq!(out.attached(Kind::Gateway, "infra/gw"), [2]);
}

#[test]
fn listeners_are_isolated() {
    let mut w = shop();
    w.gateway(gateway("infra/gw", vec![http("any", 80, ""), http("one", 80, "x.a.com")]));
    w.route(http_route("shop/any", &["Gateway infra/gw#any"], vec![rule("/any", &["web"])]));
    w.route(http_route("shop/one", &["Gateway infra/gw#one"], vec![rule("/one", &["old"])]));
    let out = w.apply();
    assert_eq!(out.get("infra/gw", 80, "x.a.com/any"), "404", "the most specific listener only");
    assert_eq!(out.get("infra/gw", 80, "x.a.com/one"), "shop/one[0] shop/old:80=1");
    assert_eq!(out.get("infra/gw", 80, "b/any"), "shop/any[0] shop/web:80=1");
    assert_eq!(out.attached(Kind::Gateway, "infra/gw"), [1, 1]);
}

/// TCP, UDP and TLS: two routes on one listener are both accepted, only the oldest serves.
#[test]
fn l4_routes() {
    let mut w = shop();
    let passthrough = Listener {
        tls: Some(ListenerTls { mode: TlsMode::Passthrough, ..terminate(&[]) }),
        ..listener("tls", 443, Protocol::Tls, "*.a.com")
    };
    w.gateway(gateway(
        "infra/l4",
        vec![listener("tcp", 90, Protocol::Tcp, ""), listener("none", 91, Protocol::Tcp, ""), passthrough],
    ));
    let tcp = |name: &str, to: &[&str], at| {
        route(RouteKind::Tcp, name, &["Gateway infra/l4#tcp"], vec![rule("/", to)]).created(at)
    };
    w.route(tcp("shop/new", &["old"], 2));
    w.route(tcp("shop/first", &["web=2", "nope=1"], 1));
    let tls = |name: &str, host: &str, at| {
        route(RouteKind::Tls, name, &["Gateway infra/l4#tls"], vec![rule("/", &["web"])])
            .hosts(&[host])
            .created(at)
    };
    w.route(tls("shop/t1", "x.a.com", 1));
    w.route(tls("shop/t2", "x.a.com", 2));
    w.route(tls("shop/t3", "*.a.com", 3));
    let out = w.apply();
    assert_eq!(out.route(RouteKind::Tcp, "shop/new"), ["Accepted ResolvedRefs"]);
    assert!(out.message(RouteKind::Tcp, "shop/new", "Accepted").contains("older TCPRoute shop/first"));
    assert_eq!(out.route(RouteKind::Tcp, "shop/first"), ["Accepted ResolvedRefs=False/BackendNotFound"]);
    assert!(
        out.message(RouteKind::Tls, "shop/t2", "Accepted")
            .contains("x.a.com is served by the older TLSRoute shop/t1")
    );
    assert_eq!(out.attached(Kind::Gateway, "infra/l4"), [2, 0, 3]);
    assert_eq!(out.get("infra/l4", 90, "/"), "shop/first shop/web:80=2 backend_not_found=1");
    assert_eq!(out.get("infra/l4", 91, "/"), "no route");
    assert_eq!(out.get("infra/l4", 443, "x.a.com/"), "shop/t1 shop/web:80=1");
    assert_eq!(out.get("infra/l4", 443, "y.a.com/"), "shop/t3 shop/web:80=1");
}

#[test]
fn two_parent_refs_to_one_listener_count_once() {
    let mut w = shop();
    w.route(http_route("shop/r", &["Gateway infra/gw", "Gateway infra/gw#http"], vec![rule("/", &["web"])]));
    let out = w.apply();
    assert_eq!(out.route(RouteKind::Http, "shop/r").len(), 2);
    assert_eq!(out.attached(Kind::Gateway, "infra/gw"), [1]);
    assert_eq!(out.message(RouteKind::Http, "shop/r", "Accepted"), "The route is attached.");
}

#[test]
fn everybody_elses_parents_are_left_alone() {
    let mut w = shop();
    w.class("theirs", "other.dev/controller");
    w.gateway(Gateway { class: "theirs".into(), ..gateway("infra/theirs", vec![http("http", 80, "")]) });
    w.route(http_route("shop/r", &["Gateway infra/theirs", "Gateway infra/gw"], vec![rule("/", &["web"])]));
    let out = w.apply();
    assert_eq!(out.status(Kind::GatewayClass, "theirs"), None);
    assert_eq!(out.status(Kind::Gateway, "infra/theirs"), None);
    assert_eq!(out.route(RouteKind::Http, "shop/r").len(), 1);
    // Once the class is ours, so are its Gateways.
    let mut engine = crate::engine::Engine::new(settings());
    let feedback = crate::engine::Feedback::default();
    engine.apply(w.0.clone(), &feedback);
    w.class("theirs", CONTROLLER_NAME);
    let out = Applied(engine.apply(w.0.clone(), &feedback));
    assert_eq!(out.route(RouteKind::Http, "shop/r").len(), 2);
    assert_eq!(out.get("infra/theirs", 80, "a/"), "shop/r[0] shop/web:80=1");
    assert!(Arc::ptr_eq(&out.0.config, &engine.apply(w.0, &feedback).config), "nothing changed");
}

/// Conformance HTTPRouteBackendRequestHeaderModifier follows HTTPRouteRequestHeaderModifier, whose route has the same
/// name; both changes may come in one Snapshot.
#[test]
fn a_route_made_anew_is_told_its_status_again() {
    let mut w = world();
    w.gateway(gateway("infra/gw", vec![http("a", 80, "")]));
    w.route(http_route("shop/r", &["Gateway infra/gw"], vec![rule("/", &["web"])]));
    let mut engine = crate::engine::Engine::new(settings());
    let feedback = crate::engine::Feedback::default();
    let before = Applied(engine.apply(w.0.clone(), &feedback));
    let mut anew = http_route("shop/r", &["Gateway infra/gw"], vec![rule("/", &["web"])]);
    anew.meta.uid = "another".into();
    w.route(anew);
    let after = Applied(engine.apply(w.0, &feedback));
    assert_eq!(after.http_route("shop/r"), before.http_route("shop/r"));
    assert_eq!(after.0.changed, [crate::model::ObjectRef { kind: Kind::HttpRoute, key: key("shop/r") }]);
}

#[test]
fn session_persistence_is_not_claimed() {
    let mut w = world();
    w.gateway(gateway("infra/gw", vec![http("http", 80, "")]));
    w.service(service("shop/web", "10.0.0.1", &[80]));
    let mut sticky = rule("/", &["web"]);
    sticky.session = Some(SessionPersistence {
        name: None,
        header: false,
        absolute_timeout: None,
        idle_timeout: None,
        permanent: false,
    });
    w.route(http_route("shop/r", &["Gateway infra/gw"], vec![sticky]));
    let message = w.apply().message(RouteKind::Http, "shop/r", "Accepted");
    assert!(message.contains("rules[0].sessionPersistence is not served yet"), "{message}");
}

#[test]
fn attempts_beyond_the_bound_are_said_in_the_condition() {
    let mut w = shop();
    for (attempts, said) in [(100, false), (100_000, true)] {
        let mut eager = rule("/", &["web"]);
        eager.retry = Some(Retry { codes: vec![503], attempts, backoff: None });
        w.route(http_route("shop/r", GW, vec![eager]));
        let message = w.apply().message(RouteKind::Http, "shop/r", "Accepted");
        let note = "rules[0].retry.attempts is 100000: a request is retried 100 times at most.";
        assert_eq!(message.contains(note), said, "{attempts}: {message}");
    }
}
