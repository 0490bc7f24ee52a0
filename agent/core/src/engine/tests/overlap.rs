//! Who takes whose requests on a shared Gateway.

use super::world::*;
use crate::{
    engine::{Engine, Feedback},
    model::*,
};

/// A route at `infra/edge`, with hostnames and prefixes, made at a second.
fn at(name: &str, hosts: &[&str], prefixes: &[&str], created: i64) -> Route {
    let rule = Rule { matches: prefixes.iter().map(|p| prefix(p)).collect(), ..Rule::default() };
    http_route(name, &["Gateway infra/edge"], vec![rule]).hosts(hosts).created(created)
}

/// A listener that routes of all namespaces may attach to.
fn open() -> Gateway {
    let listener = Listener { allowed_namespaces: FromNamespaces::All, ..http("http", 80, "") };
    gateway("infra/edge", vec![listener])
}

/// A9: a tenant's route for another team's hostname took its traffic, and nothing said so.
#[test]
fn a_route_that_takes_requests_of_another_namespaces_is_named() {
    let check = |routes: Vec<Route>, expected: &[&str]| {
        let mut w = world();
        w.gateway(open());
        routes.into_iter().for_each(|route| w.route(route));
        let mut engine = Engine::new(settings());
        engine.apply(w.0, &Feedback::default());
        let said: Vec<_> = engine.overlaps().into_iter().map(|o| o.message).collect();
        assert_eq!(said, expected);
    };
    let web = || at("shop/web", &["shop.test"], &["/"], 5);
    let takes = |what: &str, from: &str| {
        format!(
            "HTTPRoute other/evil takes requests for {what} on Gateway infra/edge that HTTPRoute shop/web ({from}) would get"
        )
    };
    check(vec![web()], &[]);
    check(vec![web(), at("other/own", &["other.test"], &["/"], 1)], &[]);
    check(vec![web(), at("shop/pay", &["shop.test"], &["/pay"], 1)], &[]);
    check(
        vec![web(), at("other/evil", &["shop.test"], &["/pay"], 9)],
        &[&takes("shop.test/pay/*", "shop.test/")],
    );
    check(vec![web(), at("other/evil", &["shop.test"], &["/"], 1)], &[&takes("shop.test/*", "shop.test/")]);
    // The younger of two equal ones gets nothing; who takes what is said all the same.
    check(
        vec![web(), at("other/evil", &["shop.test"], &["/"], 9)],
        &[
            "HTTPRoute shop/web takes requests for shop.test/* on Gateway infra/edge that HTTPRoute other/evil (shop.test/) would get",
        ],
    );
    let all = || at("shop/web", &["*.shop.test"], &["/api"], 5);
    check(
        vec![all(), at("other/evil", &["pay.shop.test"], &["/"], 9)],
        &[&takes("pay.shop.test/api/*", "*.shop.test/api")],
    );
    check(vec![all(), at("other/evil", &["pay.shop.test"], &["/img"], 9)], &[]);
    // A catch-all asks for what nobody names.
    check(vec![at("shop/web", &[], &["/"], 5), at("other/evil", &["x.test"], &["/"], 9)], &[]);
    check(
        vec![at("shop/web", &[], &["/"], 5), at("other/evil", &[], &["/a"], 9)],
        &[&takes("every host, /a/*", "/")],
    );
}

/// A tenant with many routes fills neither memory nor the screen.
#[test]
fn overlaps_of_one_route_and_of_all_are_bounded() {
    let mut w = world();
    w.gateway(open());
    for n in 0..2_000 {
        w.route(at(&format!("shop/r{n}"), &["shop.test"], &["/"], n));
        w.route(at(&format!("other/r{n}"), &["shop.test"], &[&format!("/{n}")], n));
    }
    let mut engine = Engine::new(settings());
    engine.apply(w.0, &Feedback::default());
    assert_eq!(engine.overlaps().len(), 1_000);
}
