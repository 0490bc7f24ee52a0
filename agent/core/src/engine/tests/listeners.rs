//! ListenerSets, and listeners in each other's way.

use super::world::*;
use crate::{model::*, status::ObjectStatus};

fn open(listeners: Vec<Listener>) -> Gateway {
    Gateway { allowed_listeners: FromNamespaces::All, ..gateway("infra/gw", listeners) }
}

fn set_summary(out: &Applied, name: &str) -> String {
    match out.status(Kind::ListenerSet, name) {
        Some(ObjectStatus::ListenerSet { conditions, .. }) => summary(conditions),
        None => String::new(),
        other => panic!("{other:?}"),
    }
}

fn set_listeners(out: &Applied, name: &str) -> Vec<String> {
    out.listeners(Kind::ListenerSet, name).iter().map(|l| summary(&l.conditions)).collect()
}

fn attached_sets(out: &Applied) -> i32 {
    let Some(ObjectStatus::Gateway { attached_listener_sets, .. }) = out.status(Kind::Gateway, "infra/gw")
    else {
        panic!()
    };
    *attached_listener_sets
}

const OK: &str = "Accepted ResolvedRefs Programmed";

#[test]
fn admission_by_namespace() {
    let selector =
        FromNamespaces::Selector(Selector { match_labels: labels(&[("team", "a")]), ..Selector::default() });
    let cases = [
        (FromNamespaces::All, true),
        (FromNamespaces::None, false),
        (FromNamespaces::Same, false),
        (selector, false),
    ];
    for (allowed, admitted) in cases {
        let mut w = world();
        let text = format!("{allowed:?}");
        w.gateway(Gateway { allowed_listeners: allowed, ..gateway("infra/gw", vec![http("own", 80, "")]) });
        w.set(listener_set("shop/ls", "infra/gw", vec![http("l", 81, "")]));
        w.service(service("shop/web", "10.0.0.1", &[80]));
        w.route(http_route("shop/r", &["ListenerSet shop/ls"], vec![rule("/", &["web"])]));
        let out = w.apply();
        assert_eq!(out.gateway("infra/gw"), OK, "{text}");
        assert_eq!(attached_sets(&out), i32::from(admitted), "{text}");
        let no = "Accepted=False/NotAllowed Programmed=False/NotAllowed";
        assert_eq!(set_summary(&out, "shop/ls"), if admitted { "Accepted Programmed" } else { no }, "{text}");
        let route =
            if admitted { "Accepted ResolvedRefs" } else { "Accepted=False/NoMatchingParent ResolvedRefs" };
        assert_eq!(out.http_route("shop/r"), route, "{text}");
        let answer = if admitted { "shop/r[0] shop/web:80=1" } else { "no port" };
        assert_eq!(out.get("infra/gw", 81, "a/"), answer, "{text}");
        // Labelling the namespace lets the set in.
        if text.contains("team") {
            w.namespace("shop", &[("team", "a")]);
            assert_eq!(set_summary(&w.apply(), "shop/ls"), "Accepted Programmed");
        }
    }
}

#[test]
fn routes_name_the_gateway_or_the_set_never_both() {
    let mut w = world();
    w.gateway(open(vec![http("own", 80, "")]));
    w.set(listener_set("shop/ls", "infra/gw", vec![http("extra", 81, "")]));
    w.service(service("shop/web", "10.0.0.1", &[80]));
    let r = |name: &str, parent: &str| http_route(name, &[parent], vec![rule("/", &["web"])]);
    w.route(r("shop/gw", "Gateway infra/gw"));
    w.route(r("shop/ls", "ListenerSet ls"));
    w.route(r("shop/cross", "Gateway infra/gw#extra"));
    let out = w.apply();
    assert_eq!(out.http_route("shop/cross"), "Accepted=False/NoMatchingParent ResolvedRefs");
    assert_eq!(out.attached(Kind::Gateway, "infra/gw"), [1]);
    assert_eq!(out.attached(Kind::ListenerSet, "shop/ls"), [1]);
    assert_eq!(out.get("infra/gw", 80, "a/"), "shop/gw[0] shop/web:80=1");
    assert_eq!(out.get("infra/gw", 81, "a/"), "shop/ls[0] shop/web:80=1");
}

/// Conformance ListenerSetHostnameConflict and ListenerSetProtocolConflict.
#[test]
fn the_gateway_beats_sets_and_older_sets_beat_newer() {
    let mut w = world();
    w.gateway(open(vec![http("own", 80, "own.com"), http("taken", 80, "taken.com")]));
    let mut first = listener_set(
        "shop/z-first",
        "infra/gw",
        vec![http("mine", 80, "mine.com"), http("taken", 80, "taken.com"), http("shared", 80, "shared.com")],
    );
    first.meta.created = 1;
    let mut second = listener_set("shop/a-second", "infra/gw", vec![http("shared", 80, "shared.com")]);
    second.meta.created = 2;
    let mut third = listener_set(
        "shop/third",
        "infra/gw",
        vec![
            listener("tcp", 80, Protocol::Tcp, ""),
            http("beside", 80, "beside.com"),
            http("twin-a", 80, "twin.com"),
            http("twin-b", 80, "twin.com"),
            http("ok", 81, ""),
        ],
    );
    third.meta.created = 3;
    w.set(first);
    w.set(second);
    w.set(third);
    let out = w.apply();
    let lost = |reason: &str| {
        format!("Accepted=False/{reason} Conflicted=True/{reason} ResolvedRefs Programmed=False/{reason}")
    };
    assert_eq!(out.gateway("infra/gw"), OK);
    assert_eq!(set_summary(&out, "shop/z-first"), "Accepted=True/ListenersNotValid Programmed");
    assert_eq!(set_listeners(&out, "shop/z-first"), [OK, &lost("HostnameConflict"), OK]);
    assert_eq!(
        set_summary(&out, "shop/a-second"),
        "Accepted=False/ListenersNotValid Programmed=False/ListenersNotValid"
    );
    assert_eq!(set_listeners(&out, "shop/a-second"), [lost("HostnameConflict")]);
    // What lost to an older object takes nobody of its own set with it; those that fight among themselves both lose.
    let (tcp, twin) = (lost("ProtocolConflict"), lost("HostnameConflict"));
    assert_eq!(set_listeners(&out, "shop/third"), [&tcp, OK, &twin, &twin, OK]);
    assert_eq!(attached_sets(&out), 2, "only those with a valid listener");
}

/// Listeners of one Gateway, and which of them conflict.
#[test]
fn conflicts_within_a_gateway() {
    let mut w = world();
    w.secret("infra/good", key_pair("good"));
    let tls = |name: &str, hostname: &str| Listener {
        tls: Some(ListenerTls { mode: TlsMode::Passthrough, ..terminate(&[]) }),
        ..listener(name, 443, Protocol::Tls, hostname)
    };
    let cases: Vec<(Vec<Listener>, &[&str])> = vec![
        (vec![http("a", 80, "x.com"), http("b", 80, "y.com"), http("c", 80, "")], &["", "", ""]),
        (
            vec![http("a", 80, "x.com"), http("b", 80, "x.com"), http("c", 80, "")],
            &["HostnameConflict", "HostnameConflict", ""],
        ),
        (
            vec![http("a", 80, ""), listener("b", 80, Protocol::Tcp, "")],
            &["ProtocolConflict", "ProtocolConflict"],
        ),
        (vec![http("a", 80, ""), listener("b", 80, Protocol::Udp, "")], &["", ""]),
        (
            vec![listener("a", 80, Protocol::Tcp, ""), listener("b", 80, Protocol::Tcp, "")],
            &["HostnameConflict", "HostnameConflict"],
        ),
        (vec![https("a", 443, "x.com", "good"), tls("b", "y.com")], &["", ""]),
        (
            vec![https("a", 443, "x.com", "good"), tls("b", "x.com")],
            &["HostnameConflict", "HostnameConflict"],
        ),
        (
            vec![https("a", 443, "x.com", "good"), http("b", 443, "y.com")],
            &["ProtocolConflict", "ProtocolConflict"],
        ),
        (vec![http("a", 80, ""), listener("b", 80, Protocol::Other("X".into()), "")], &["", ""]),
    ];
    for (listeners, conflicts) in cases {
        let text = format!("{listeners:?}");
        w.gateway(gateway("infra/gw", listeners));
        let out = w.apply();
        let found: Vec<_> = out
            .listeners(Kind::Gateway, "infra/gw")
            .iter()
            .map(|l| match find(&l.conditions, "Conflicted").reason {
                "NoConflicts" => "",
                reason => reason,
            })
            .collect();
        assert_eq!(found, conflicts, "{text}");
    }
}

#[test]
fn overlapping_https_hostnames_are_noted() {
    let mut w = world();
    w.secret("infra/good", key_pair("good"));
    w.gateway(gateway(
        "infra/gw",
        vec![
            https("wild", 443, "*.a.com", "good"),
            https("one", 443, "x.a.com", "good"),
            https("apart", 443, "b.com", "good"),
            https("port", 8443, "x.a.com", "good"),
        ],
    ));
    let out = w.apply();
    let noted =
        |name| out.listener("infra/gw", name).contains("OverlappingTLSConfig=True/OverlappingHostnames");
    assert_eq!([noted("wild"), noted("one"), noted("apart"), noted("port")], [true, true, false, false]);
}

#[test]
fn a_route_only_on_rejected_listeners_is_not_accepted() {
    let mut w = world();
    w.gateway(gateway(
        "infra/gw",
        vec![http("a", 80, "x.com"), http("b", 80, "x.com"), http("ok", 80, "y.com")],
    ));
    w.service(service("shop/web", "10.0.0.1", &[80]));
    let r = |name: &str, parent: &str| http_route(name, &[parent], vec![rule("/", &["web"])]);
    w.route(r("shop/only", "Gateway infra/gw#a"));
    w.route(r("shop/all", "Gateway infra/gw"));
    let out = w.apply();
    assert_eq!(out.http_route("shop/only"), "Accepted=False/NoMatchingParent ResolvedRefs");
    assert_eq!(out.http_route("shop/all"), "Accepted ResolvedRefs");
    assert_eq!(out.attached(Kind::Gateway, "infra/gw"), [1, 1, 1]);
}

#[test]
fn a_listener_set_refers_with_its_own_namespace() {
    let mut w = world();
    w.secret("other/cert", key_pair("cert"));
    w.gateway(open(vec![http("own", 80, "")]));
    w.set(listener_set("shop/ls", "infra/gw", vec![https("l", 443, "", "other/cert")]));
    let refused = "Accepted ResolvedRefs=False/RefNotPermitted Programmed=False/Invalid";
    let out = w.apply();
    assert_eq!(set_listeners(&out, "shop/ls"), [refused]);
    // Conformance ListenerSetReferenceGrant: a set none of whose listeners can serve is not accepted.
    assert_eq!(
        set_summary(&out, "shop/ls"),
        "Accepted=False/ListenersNotValid Programmed=False/ListenersNotValid"
    );
    assert_eq!(attached_sets(&out), 0);
    w.grant("other/g", (Kind::Gateway, "shop"), Kind::Secret);
    assert_eq!(
        set_listeners(&w.apply(), "shop/ls"),
        [refused],
        "a grant for Gateways is none for ListenerSets"
    );
    w.grant("other/g", (Kind::ListenerSet, "shop"), Kind::Secret);
    let out = w.apply();
    assert_eq!(set_listeners(&out, "shop/ls"), [OK]);
    assert_eq!(set_summary(&out, "shop/ls"), "Accepted Programmed");
}
