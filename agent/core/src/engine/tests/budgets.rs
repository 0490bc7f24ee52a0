//! What the routes of one namespace may make an engine hold, and that its neighbours are served whatever it asks for.

use super::world::*;
use crate::{
    budget::{MATCHES, NAMESPACE_PATTERNS, PATTERN, ROUTES},
    engine::{Engine, Feedback},
    model::*,
};
use http::Method;

const NOT_ACCEPTED: &str = "Accepted=False/UnsupportedValue ResolvedRefs";

/// A Gateway, a Service in each of two namespaces, and a neighbour's route.
fn two_tenants() -> World {
    let mut w = world();
    w.gateway(gateway("infra/gw", vec![http("http", 80, "")]));
    w.service(service("shop/web", "10.0.0.1", &[80]));
    w.service(service("other/web", "10.0.0.2", &[80]));
    let neighbour = http_route("other/good", &["Gateway infra/gw"], vec![rule("/good", &["web"])]);
    w.route(neighbour.hosts(&["good.example"]).created(1_000_000));
    w
}

fn header(name: &str, pattern: &str) -> HeaderMatch {
    let name = name.parse().expect("a name");
    HeaderMatch { name, value: ValueMatch::Regex(Pattern::unread(pattern.into())) }
}

/// A route of a rule whose matches have a pattern each, about 50 KiB compiled.
fn patterned(name: &str, count: usize, parent: &str) -> Route {
    let one = |i: usize| Match { headers: vec![header("x", &format!("{name}{i}\\w{{3}}"))], ..prefix("/re") };
    let rule = Rule { matches: (0..count).map(one).collect(), ..rule("/", &["web"]) };
    http_route(&format!("shop/{name}"), &[parent], vec![rule]).hosts(&["shop.example"])
}

fn apply(w: &World) -> (Engine, Applied) {
    let mut engine = Engine::new(settings());
    let update = engine.apply(w.0.clone(), &Feedback::default());
    (engine, Applied(update))
}

fn neighbour_is_served(applied: &Applied) {
    assert_eq!(applied.http_route("other/good"), "Accepted ResolvedRefs");
    assert_eq!(applied.get("infra/gw", 80, "good.example/good"), "other/good[0] other/web:80=1");
}

#[test]
fn patterns_of_a_route_are_bounded() {
    let mut w = two_tenants();
    w.route(patterned("flood", 10 * 20, "Gateway infra/gw"));
    let (engine, applied) = apply(&w);
    assert_eq!(engine.state.ledger.held("shop"), 0);
    assert_eq!(applied.http_route("shop/flood"), NOT_ACCEPTED);
    let message = applied.message(RouteKind::Http, "shop/flood", "Accepted");
    assert_eq!(
        message,
        "the route has 200 regular expressions, of which 20 take 1048 KiB compiled; the budget route-patterns is 1 MiB for \
         each route. Requests that it might match get 500."
    );
    assert_eq!(applied.get("infra/gw", 80, "shop.example/re"), "shop/flood[0] 500 invalid_rule");
    neighbour_is_served(&applied);
}

#[test]
fn patterns_of_a_namespace_are_bounded_and_neighbours_are_served() {
    let mut w = two_tenants();
    for i in 0..11 {
        w.route(patterned(&format!("r{i:02}"), 18, "Gateway infra/gw").created(i));
    }
    let (mut engine, applied) = apply(&w);
    let held = engine.state.ledger.held("shop");
    assert!(held > 0 && held <= NAMESPACE_PATTERNS.size(), "{held}");
    assert_eq!(applied.http_route("shop/r00"), "Accepted ResolvedRefs");
    for i in 1..11 {
        assert_eq!(applied.http_route(&format!("shop/r{i:02}")), NOT_ACCEPTED);
    }
    assert_eq!(
        applied.message(RouteKind::Http, "shop/r10", "Accepted"),
        "the older routes of namespace shop leave too little of its budget namespace-patterns (1 MiB) for this route, which \
         has 18 matches and 18 regular expressions: requests that it might match get 500."
    );
    neighbour_is_served(&applied);
    // The oldest leaves: the next one gets what it held, nobody else's condition moves.
    w.0.routes.remove(&(RouteKind::Http, key("shop/r00")));
    let update = engine.apply(w.0.clone(), &Feedback::default());
    let changed: Vec<String> = update.changed.iter().map(|o| o.key.to_string()).collect();
    assert_eq!(changed, ["shop/r00", "shop/r01"]);
    assert!(engine.state.ledger.held("shop") <= NAMESPACE_PATTERNS.size());
    assert_eq!(Applied(update).http_route("shop/r01"), "Accepted ResolvedRefs");
}

#[test]
fn equal_patterns_of_a_namespace_are_held_once() {
    let mut w = two_tenants();
    let one = patterned("a", 1, "Gateway infra/gw");
    w.route(one.clone());
    let once = apply(&w).0.state.ledger.held("shop");
    for i in 0..100 {
        let mut same = one.clone();
        same.meta.key = key(&format!("shop/same{i}"));
        w.route(same);
    }
    let (engine, applied) = apply(&w);
    assert_eq!(engine.state.ledger.held("shop"), once);
    assert_eq!(applied.http_route("shop/same99"), "Accepted ResolvedRefs");
}

#[test]
fn patterns_of_routes_to_others_gateways_are_not_compiled() {
    let mut w = two_tenants();
    w.class("foreign", "example.com/other");
    w.gateway(Gateway { class: "foreign".into(), ..gateway("infra/foreign", vec![http("http", 80, "")]) });
    w.route(patterned("flood", 200, "Gateway infra/foreign"));
    w.route(patterned("lost", 200, "Gateway infra/none"));
    w.route(patterned("mesh", 200, "Service shop/none"));
    let (engine, applied) = apply(&w);
    assert_eq!(engine.state.ledger.held("shop"), 0);
    assert_eq!(applied.http_route("shop/flood"), "");
}

/// D7: what a pattern is to match is not known, so whoever meets the rest of its match gets 500.
#[test]
fn a_bad_pattern_fails_closed() {
    let bad = |m: Match| Rule { matches: vec![m], ..rule("/", &["web"]) };
    let check = |m: Match, path: &str, field: &str| {
        let mut w = two_tenants();
        let wide = rule("/", &["web"]);
        let admin = http_route("shop/a", &["Gateway infra/gw"], vec![bad(m), wide]).hosts(&["shop.example"]);
        w.route(admin);
        let applied = w.apply();
        assert_eq!(applied.get("infra/gw", 80, &format!("shop.example{path}")), "shop/a[0] 500 invalid_rule");
        assert_eq!(
            applied.http_route("shop/a"),
            "Accepted ResolvedRefs PartiallyInvalid=True/UnsupportedValue",
            "{field}"
        );
        assert_eq!(
            applied.message(RouteKind::Http, "shop/a", "PartiallyInvalid"),
            format!(
                "Dropped Rule: rules[0]: spec.rules[0].matches[0].{field}: not a valid regular expression: unclosed \
                 group; requests that meet the rest of this match get 500, they do not go to a wider rule"
            )
        );
        neighbour_is_served(&applied);
        applied
    };
    let open = || Pattern::unread("(".into());
    let wide = "shop/a[1] shop/web:80=1";
    let applied = check(
        Match { headers: vec![header("x-role", "(")], ..prefix("/admin") },
        "/admin/x",
        "headers[0].value",
    );
    assert_eq!(applied.get("infra/gw", 80, "shop.example/other"), wide);
    let query = QueryMatch { name: "q".into(), value: ValueMatch::Regex(open()) };
    let applied =
        check(Match { query: vec![query], ..prefix("/admin") }, "/admin?q=1", "queryParams[0].value");
    assert_eq!(applied.get("infra/gw", 80, "shop.example/other"), wide);
    let path = Some(PathMatch::Regex(open()));
    check(Match { path, ..Match::default() }, "/anything", "path.value");
    let method = Some(Method::POST);
    let path = Some(PathMatch::Regex(open()));
    let mut w = two_tenants();
    let posts = bad(Match { path, method, ..Match::default() });
    w.route(
        http_route("shop/a", &["Gateway infra/gw"], vec![posts, rule("/", &["web"])])
            .hosts(&["shop.example"]),
    );
    assert_eq!(w.apply().get("infra/gw", 80, "shop.example/x"), wide, "a GET does not meet the rest");
}

#[test]
fn a_pattern_larger_than_its_budget_fails_closed() {
    let mut w = two_tenants();
    let large = Match { headers: vec![header("x", r"\pL{1,6}")], ..prefix("/re") };
    let rules = vec![Rule { matches: vec![large; 128], ..rule("/", &["web"]) }];
    w.route(http_route("shop/flood", &["Gateway infra/gw"], rules).hosts(&["shop.example"]));
    let (engine, applied) = apply(&w);
    assert!(engine.state.ledger.held("shop") < PATTERN.size());
    assert_eq!(applied.http_route("shop/flood"), NOT_ACCEPTED);
    assert_eq!(applied.get("infra/gw", 80, "shop.example/re"), "shop/flood[0] 500 invalid_rule");
    neighbour_is_served(&applied);
}

#[test]
fn matches_of_a_namespace_are_bounded_and_neighbours_are_served() {
    let mut w = two_tenants();
    let each = 128;
    let matches: Vec<Match> = (0..each).map(|i| prefix(&format!("/m{i}"))).collect();
    let rules = vec![Rule { matches, ..rule("/", &["web"]) }];
    let count = 10 * MATCHES.size() / each;
    for i in 0..count {
        let route = http_route(&format!("shop/r{i:05}"), &["Gateway infra/gw"], rules.clone());
        w.route(route.hosts(&[&format!("h{i}.example")]).created(i as i64));
    }
    let (engine, applied) = apply(&w);
    let routes = &engine.state.routes;
    let held: usize = routes.values().map(|r| r.gateway.len()).sum();
    let fits = MATCHES.size() / each;
    assert_eq!(held, fits * each + 1, "and the neighbour's");
    let (last, first_out) = (format!("shop/r{:05}", fits - 1), format!("shop/r{fits:05}"));
    assert_eq!(applied.http_route(&last), "Accepted ResolvedRefs");
    assert_eq!(applied.http_route(&first_out), NOT_ACCEPTED);
    assert_eq!(
        applied.message(RouteKind::Http, &first_out, "Accepted"),
        "the older routes of namespace shop leave too little of its budget matches (20000) for this route, which has 128 \
         matches: it is not served."
    );
    assert_eq!(applied.get("infra/gw", 80, &format!("h{fits}.example/m1")), "404");
    neighbour_is_served(&applied);
}

#[test]
fn routes_of_a_namespace_are_bounded_and_the_newest_are_left_out() {
    let mut w = two_tenants();
    let rules = vec![rule("/", &["web"])];
    for i in 0..10 * ROUTES.size() {
        let route = http_route(&format!("shop/r{i}"), &["Gateway infra/gw"], rules.clone());
        w.route(route.hosts(&["shop.example"]).created(i as i64));
    }
    let (mut engine, applied) = apply(&w);
    let attached: usize = engine.state.attached.values().map(std::collections::BTreeSet::len).sum();
    assert_eq!(attached, ROUTES.size() + 1, "and the neighbour's");
    assert_eq!(applied.http_route("shop/r9999"), "Accepted ResolvedRefs");
    assert_eq!(applied.http_route("shop/r10000"), NOT_ACCEPTED);
    neighbour_is_served(&applied);
    // One that comes later changes nobody's verdict.
    w.route(http_route("shop/last", &["Gateway infra/gw"], rules).created(2_000_000));
    let update = engine.apply(w.0.clone(), &Feedback::default());
    assert_eq!(update.changed.len(), 1, "its own status");
}

#[test]
fn broken_routes_of_a_namespace_cost_others_nothing() {
    let mut w = two_tenants();
    w.gateway(gateway("infra/own", vec![http("http", 80, "")]));
    for i in 0..2_000 {
        let broken = Match { headers: vec![header("x", &format!("({i}"))], ..prefix("/") };
        let rules = vec![Rule { matches: vec![broken], ..rule("/", &["web"]) }];
        w.route(http_route(&format!("shop/r{i}"), &["Gateway infra/gw"], rules).created(i));
    }
    let (mut engine, applied) = apply(&w);
    assert_eq!(applied.http_route("shop/r1"), NOT_ACCEPTED);
    let before = engine.work();
    w.route(http_route("other/new", &["Gateway infra/own"], vec![rule("/new", &["web"])]));
    let update = engine.apply(w.0.clone(), &Feedback::default());
    assert_eq!(engine.work().routes - before.routes, 1);
    assert_eq!(engine.work().tables - before.tables, 1);
    let changed: Vec<String> = update.changed.iter().map(|o| o.key.to_string()).collect();
    assert_eq!(changed, ["infra/own", "other/new"]);
}
