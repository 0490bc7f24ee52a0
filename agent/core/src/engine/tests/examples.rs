//! Whole worlds, and everything that is said and served, to be read.

use super::{
    workloads::{endpoint, pod, slice},
    world::*,
};
use crate::{
    config::{Config, MeshRoutes, PortConfig, TlsListener},
    model::*,
    status::{Condition, ListenerStatus, ObjectStatus},
};
use std::{collections::BTreeMap, fmt::Write};

/// Statuses, then tables.
fn told(w: &World) -> String {
    let update = w.apply().0;
    let mut out = String::new();
    for (object, status) in &*update.statuses {
        let _ = writeln!(out, "{object}");
        match &**status {
            ObjectStatus::GatewayClass { conditions, .. } => conditions_of(&mut out, "", conditions),
            ObjectStatus::Gateway { conditions, listeners, attached_listener_sets, .. } => {
                conditions_of(&mut out, "", conditions);
                listeners_of(&mut out, listeners);
                let _ = writeln!(out, "  attachedListenerSets {attached_listener_sets}");
            }
            ObjectStatus::ListenerSet { conditions, listeners } => {
                conditions_of(&mut out, "", conditions);
                listeners_of(&mut out, listeners);
            }
            ObjectStatus::Route { parents } => {
                for p in parents {
                    let what = format!("{} {}: ", p.parent.kind.kind, p.parent.name);
                    conditions_of(&mut out, &what, &p.conditions);
                }
            }
            ObjectStatus::BackendTlsPolicy { ancestors } => {
                for a in ancestors {
                    conditions_of(&mut out, &format!("{} {}: ", a.kind.kind, a.ancestor), &a.conditions);
                }
            }
        }
    }
    out.push_str("---\n");
    served(&mut out, &update.config);
    out
}

fn conditions_of(out: &mut String, what: &str, conditions: &[Condition]) {
    for c in conditions {
        let _ = writeln!(out, "  {what}{}={:?} {}: {}", c.kind, c.status, c.reason, c.message);
    }
}

fn listeners_of(out: &mut String, listeners: &[ListenerStatus]) {
    for l in listeners {
        let kinds: Vec<_> = l.supported_kinds.iter().map(|k| &*k.kind).collect();
        let _ = writeln!(out, "  listener {} ({} routes; {})", l.name, l.attached_routes, kinds.join(", "));
        conditions_of(out, "  ", &l.conditions);
    }
}

fn served(out: &mut String, config: &Config) {
    for gateway in config.gateways.values() {
        let _ = writeln!(out, "{} {:?} as {}", gateway.key, gateway.addresses, gateway.identity);
        for ((port, transport), listeners) in &gateway.ports {
            match listeners {
                PortConfig::Http(hosts) => {
                    for (_, l) in hosts.iter() {
                        let _ = writeln!(out, "  {port} http {}", l.name);
                        rules_of(out, l.table.iter());
                    }
                }
                PortConfig::Tls(hosts) => {
                    for (host, l) in hosts.iter() {
                        let kind = match &**l {
                            TlsListener::Https { .. } => "https",
                            TlsListener::Terminate { .. } => "tls, terminated",
                            TlsListener::Passthrough { .. } => "tls, passed through",
                        };
                        let _ = writeln!(out, "  {port} {kind} {}", host.map_or("*", |h| h.as_str()));
                        if let TlsListener::Https { http, .. } = &**l {
                            rules_of(out, http.table.iter());
                        }
                    }
                }
                PortConfig::Tcp(rule) | PortConfig::Udp(rule) => {
                    let id = rule.as_ref().map(|r| r.id.route.to_string());
                    let _ = writeln!(out, "  {port} {transport:?} {}", id.unwrap_or_default());
                }
            }
        }
    }
    for (addr, f) in config.frontends.iter().collect::<BTreeMap<_, _>>() {
        let _ = writeln!(out, "{addr} {}:{} {:?}", f.service, f.port, f.protocol);
        let scopes =
            f.producer.iter().map(|r| ("everybody", r)).chain(f.consumers.iter().map(|(n, r)| (&**n, r)));
        for (clients, routes) in scopes {
            let _ = writeln!(out, "  for {clients}");
            if let MeshRoutes::Http(table) = routes {
                rules_of(out, table.iter());
            }
        }
    }
    for (key, set) in config.endpoints.iter().collect::<BTreeMap<_, _>>() {
        let all: Vec<_> = set
            .ready
            .iter()
            .map(|e| {
                format!(
                    "{} {}",
                    e.addr,
                    e.workload.as_ref().map_or("-".to_owned(), |w| w.identity.to_string())
                )
            })
            .collect();
        let _ = writeln!(out, "{}:{} -> [{}]", key.service, key.port, all.join(", "));
    }
}

fn rules_of<'a>(
    out: &mut String,
    entries: impl Iterator<Item = &'a crate::matching::Entry<std::sync::Arc<crate::config::HttpRule>>>,
) {
    for e in entries {
        let host = e.hostname.as_ref().map_or("*", |h| h.as_str());
        let _ = writeln!(out, "    {host} {} -> {}", e.policy.label, rule_text(&e.policy));
    }
}

/// The README's canary, on a Gateway and in the mesh at once.
#[test]
fn canary() {
    let mut w = world();
    w.namespace("shop", &[(MESH_LABEL, "enabled")]);
    w.gateway(gateway("infra/web", vec![http("http", 80, "shop.example.com")]));
    for (i, name) in ["cart", "cart-v1", "cart-v2"].into_iter().enumerate() {
        w.service(service(&format!("shop/{name}"), &format!("10.0.0.{}", i + 1), &[80]));
    }
    for (i, v) in ["v1", "v2"].into_iter().enumerate() {
        let (p, addr) = (format!("shop/cart-{v}-x"), format!("10.1.0.{}", i + 1));
        w.pod(pod(&p, &addr));
        w.slice(slice(&format!("shop/cart-{v}"), &format!("shop/cart-{v}"), vec![endpoint(&addr, &p)]));
    }
    let rules = vec![rule("/", &["cart-v1=90", "cart-v2=10"])];
    w.route(http_route("shop/canary", &["Service cart", "Gateway infra/web"], rules));
    insta::assert_snapshot!(told(&w));
}

/// Much that is wrong, and what is said about it.
#[test]
fn mistakes() {
    let mut w = world();
    let labelled = FromNamespaces::Selector(Selector {
        match_labels: labels(&[("network-access", "yes")]),
        ..Selector::default()
    });
    w.gateway(gateway(
        "infra/web",
        vec![
            http("http", 80, "*.apps.company.com"),
            Listener { allowed_namespaces: labelled, ..http("guarded", 8080, "") },
            Listener { tls: None, ..https("https", 443, "", "x") },
            listener("sctp", 99, Protocol::Other("SCTP".into()), ""),
        ],
    ));
    w.service(service("shop/web", "10.0.0.1", &[80]));
    w.service(service("other/far", "10.0.0.2", &[80]));
    w.service(Service { kind: ServiceType::Headless, ..service("shop/db", "", &[80]) });
    let r = |name: &str, parent: &str, rules| http_route(name, &[parent], rules);
    w.route(r("shop/guarded", "Gateway infra/web#guarded", vec![rule("/", &["web"])]));
    w.route(r("shop/no-tls", "Gateway infra/web#https", vec![rule("/", &["web"])]));
    w.route(
        r("shop/hosts", "Gateway infra/web#http", vec![rule("/", &["other/far", "web", "gone"])])
            .hosts(&["www.company.com", "a.apps.company.com"]),
    );
    w.route(r("shop/headless", "Service db", vec![rule("/", &["web"])]));
    w.route(r("shop/typo", "Service wbe", vec![rule("/", &["web"])]));
    w.grant("infra/wrong-place", (Kind::HttpRoute, "shop"), Kind::Service);
    insta::assert_snapshot!(told(&w));
}
