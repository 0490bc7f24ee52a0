//! References that lead nowhere are never silent.

use super::world::*;
use crate::{
    engine::{Engine, Feedback},
    model::*,
};

/// Lint of a world with Gateway `infra/edge`, its ListenerSet `shop/extra`, a class of istio's, and `more`.
fn check(more: impl FnOnce(&mut World), expected: &[&str]) {
    let mut w = world();
    w.class("istio", "istio.io/gateway-controller");
    w.gateway(gateway("infra/edge", vec![http("http", 80, "")]));
    w.set(listener_set("shop/extra", "infra/edge", vec![http("http", 81, "")]));
    more(&mut w);
    let mut engine = Engine::new(settings());
    engine.apply(w.0, &Feedback::default());
    let lint: Vec<_> = engine.lint().into_iter().map(|(o, m)| format!("{o}: {m}")).collect();
    assert_eq!(lint, expected);
}

fn of_class(name: &str, class: &str) -> Gateway {
    Gateway { class: class.into(), ..gateway(name, vec![http("http", 80, "")]) }
}

#[test]
fn a_gateway_of_no_class_of_ours_is_named() {
    let at = "Gateway shop/g: spec.gatewayClassName:";
    for (class, said) in [
        ("wefft", "GatewayClass \"wefft\" does not exist; did you mean \"weft\"?"),
        ("nginx", "GatewayClass \"nginx\" does not exist; classes that Weft serves: \"weft\""),
        (
            "istio",
            "GatewayClass \"istio\" is served by istio.io/gateway-controller, not by Weft; classes that Weft serves: \
             \"weft\"",
        ),
    ] {
        check(|w| w.gateway(of_class("shop/g", class)), &[&format!("{at} {said}")]);
    }
    check(
        |w| {
            w.0.classes.clear();
            w.0.listener_sets.clear();
        },
        &[
            "Gateway infra/edge: spec.gatewayClassName: GatewayClass \"weft\" does not exist; define a GatewayClass with \
           spec.controllerName: weft.dev/gateway-controller",
        ],
    );
}

#[test]
fn a_parent_ref_to_nothing_is_named() {
    for (parent, said) in [
        ("Gateway infra/edge", None),
        ("ListenerSet extra", None),
        // Has a condition already.
        ("Service nope", None),
        (
            "Gateway edge",
            Some(
                "Gateway shop/edge does not exist; Gateway infra/edge exists: set parentRefs[0].namespace: infra",
            ),
        ),
        ("Gateway infra/egde", Some("Gateway infra/egde does not exist; did you mean \"edge\"?")),
        (
            "Gateway egde",
            Some(
                "Gateway shop/egde does not exist; did you mean Gateway infra/edge (parentRefs[0].name: edge, \
                 parentRefs[0].namespace: infra)?",
            ),
        ),
        ("Gateway moon", Some("Gateway shop/moon does not exist; define it, or correct the reference")),
        (
            "Gateway extra",
            Some(
                "Gateway shop/extra does not exist; ListenerSet shop/extra exists: set parentRefs[0].kind: ListenerSet",
            ),
        ),
        (
            "ListenerSet infra/extra",
            Some(
                "ListenerSet infra/extra does not exist; ListenerSet shop/extra exists: set parentRefs[0].namespace: \
                 shop",
            ),
        ),
        (
            "ListenerSet infra/edge",
            Some(
                "ListenerSet infra/edge does not exist; Gateway infra/edge exists: set parentRefs[0].kind: Gateway",
            ),
        ),
        (
            "Mesh edge",
            Some("Weft serves no gateway.networking.k8s.io/Mesh; name a Gateway, a ListenerSet or a Service"),
        ),
    ] {
        for kind in RouteKind::ALL {
            let said = said.map(|s| format!("{} shop/r: spec.parentRefs[0]: {s}", kind.kind()));
            let said: Vec<_> = said.as_deref().into_iter().collect();
            check(|w| w.route(route(kind, "shop/r", &[parent], vec![])), &said);
        }
    }
}

/// E9: no status, no Event, and a hint in the wrong direction.
#[test]
fn a_service_without_its_group_is_told_what_is_missing() {
    let mut without = parent("Service cart");
    without.kind.group = GATEWAY_GROUP.into();
    check(
        |w| {
            w.service(service("shop/cart", "10.0.0.1", &[80]));
            w.route(Route { parents: vec![without], ..http_route("shop/r", &[], vec![]) });
        },
        &[
            "HTTPRoute shop/r: spec.parentRefs[0]: kind Service needs its own group beside it: add `group: \"\"`",
        ],
    );
}

#[test]
fn a_parent_of_somebody_else_is_named() {
    let class = "GatewayClass \"istio\" is served by istio.io/gateway-controller, not by Weft; classes that Weft serves: \
                 \"weft\"";
    check(
        |w| {
            w.gateway(of_class("infra/alien", "istio"));
            w.set(listener_set("shop/set", "infra/alien", vec![]));
            w.route(http_route(
                "shop/r",
                &["Gateway infra/edge", "Gateway infra/alien", "ListenerSet set"],
                vec![],
            ));
        },
        &[
            &format!("Gateway infra/alien: spec.gatewayClassName: {class}"),
            &format!(
                "ListenerSet shop/set: spec.parentRef: Gateway infra/alien is not served by Weft: its {class}"
            ),
            &format!(
                "HTTPRoute shop/r: spec.parentRefs[1]: Gateway infra/alien is not served by Weft: its {class}"
            ),
            &format!(
                "HTTPRoute shop/r: spec.parentRefs[2]: ListenerSet shop/set belongs to no Gateway of Weft: \
                 spec.parentRef: Gateway infra/alien is not served by Weft: its {class}"
            ),
        ],
    );
}

#[test]
fn a_listener_set_without_a_gateway_is_named() {
    check(
        |w| {
            w.set(listener_set("shop/a", "shop/edge", vec![]));
            w.gateway(gateway("other/edge", vec![http("http", 82, "")]));
        },
        &[
            "ListenerSet shop/a: spec.parentRef: Gateway shop/edge does not exist; Gateways of this name exist: set \
           parentRef.namespace to one of infra, other",
        ],
    );
    let foreign =
        ListenerSet { parent_kind: Kind::Service.into(), ..listener_set("shop/a", "shop/extra", vec![]) };
    check(
        |w| w.set(foreign),
        &["ListenerSet shop/a: spec.parentRef: Service is no Gateway; a ListenerSet belongs to a Gateway"],
    );
}

#[test]
fn an_external_address_of_another_service_is_named() {
    let claim = |name: &str, ip_of_its_own: &str, created| Service {
        meta: Meta { created, ..meta(name) },
        external_ips: vec![ip("10.0.0.7"), ip("192.0.2.1")],
        ..service(name, ip_of_its_own, &[80])
    };
    let counts = "a ClusterIP counts before an external address, then the older Service";
    check(
        |w| {
            w.service(service("shop/owner", "10.0.0.7", &[80]));
            w.service(claim("shop/older", "10.0.0.8", 1));
            w.service(claim("shop/newer", "10.0.0.9", 2));
        },
        &[
            &format!("Service shop/newer: 10.0.0.7:80 is Service shop/owner's: {counts}"),
            &format!("Service shop/newer: 192.0.2.1:80 is Service shop/older's: {counts}"),
            &format!("Service shop/older: 10.0.0.7:80 is Service shop/owner's: {counts}"),
        ],
    );
}
