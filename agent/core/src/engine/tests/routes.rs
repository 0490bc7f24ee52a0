//! Routes on Gateways: attachment, references, rules.

use super::world::*;
use crate::model::*;

#[test]
fn a_route_on_a_gateway_serves() {
    let mut w = world();
    w.gateway(gateway("infra/gw", vec![http("http", 80, "")]));
    w.service(service("shop/web", "10.0.0.1", &[80]));
    w.route(http_route("shop/r", &["Gateway infra/gw"], vec![rule("/", &["web"])]));
    let out = w.apply();
    assert_eq!(out.gateway("infra/gw"), "Accepted ResolvedRefs Programmed");
    assert_eq!(out.listener("infra/gw", "http"), "Accepted ResolvedRefs Programmed");
    assert_eq!(out.http_route("shop/r"), "Accepted ResolvedRefs");
    assert_eq!(out.attached(Kind::Gateway, "infra/gw"), [1]);
    assert_eq!(out.get("infra/gw", 80, "a.b/x"), "shop/r[0] shop/web:80=1");
    assert_eq!(out.mesh("10.0.0.1:80", "shop", "/"), "default shop/web:80");
}
