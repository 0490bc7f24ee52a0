//! An engine that was fed step by step knows what a fresh one would, and does no more than it must.

use super::{
    workloads::{endpoint, pod, slice},
    world::*,
};
use crate::{
    config::{Action, Config, FailReason, PortConfig, TlsListener, Transport},
    engine::{Engine, Feedback, Settings, Update, Work},
    matching::RouteTable,
    model::*,
    status::{Condition, ConditionStatus, ListenerStatus, ObjectStatus},
};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    sync::Arc,
    time::Duration,
};

/// Everything that the data plane can see of a Config, as text in a stable order.
fn observed(config: &Config) -> String {
    let mut out = String::new();
    let table = |out: &mut String, what: &str, t: &RouteTable<Arc<crate::config::HttpRule>>| {
        for entry in t.iter() {
            let host = entry.hostname.as_ref().map_or("*", |h| h.as_str());
            let _ = writeln!(out, "{what} {host} {:?} {:?}", entry.matcher, entry.policy);
        }
    };
    for (key, gateway) in &*config.gateways {
        let _ = writeln!(out, "{key} {:?} {}", gateway.addresses, gateway.identity);
        for (port, listeners) in &gateway.ports {
            let what = format!("{key} {port:?}");
            match listeners {
                PortConfig::Http(hosts) => {
                    for (host, listener) in hosts.iter() {
                        let _ = writeln!(out, "{what} http {host:?} {}", listener.name);
                        table(&mut out, &what, &listener.table);
                    }
                }
                PortConfig::Tls(hosts) => {
                    for (host, listener) in hosts.iter() {
                        match &**listener {
                            TlsListener::Https { tls, http } => {
                                let _ = writeln!(out, "{what} https {host:?} {tls:?}");
                                table(&mut out, &what, &http.table);
                            }
                            other => {
                                let _ = writeln!(out, "{what} tls {host:?} {other:?}");
                            }
                        }
                    }
                }
                l4 => {
                    let _ = writeln!(out, "{what} {l4:?}");
                }
            }
        }
    }
    let frontends: BTreeMap<_, _> = config.frontends.iter().collect();
    for (addr, frontend) in frontends {
        let _ = writeln!(out, "{addr} {frontend:?}");
    }
    let _ = writeln!(out, "{:?}", config.workloads.iter().collect::<BTreeMap<_, _>>());
    let _ = writeln!(out, "{:?}", config.endpoints.iter().collect::<BTreeMap<_, _>>());
    out
}

/// One edit of a small world in which everything can refer to everything.
#[derive(Clone, Debug)]
enum Edit {
    Class(bool),
    Gateway(u8, Option<(u8, u8)>),
    Set(u8, Option<(u8, u8)>),
    Route(u8, Option<RouteSpec>),
    Service(u8, Option<u8>),
    Policy(u8, Option<(u8, u8)>),
    Grant(u8, bool),
    Secret(u8, Option<bool>),
    Ca(u8, Option<bool>),
    Namespace(u8, u8),
    Pod(u8, Option<(u8, u8)>),
    Slice(u8, Option<(u8, u8)>),
    Doubt(u8),
    Node(u8, Option<u8>),
    Unbound(u8, bool),
    Settings(bool),
}

#[derive(Clone, Debug)]
struct RouteSpec {
    kind: u8,
    parents: Vec<u8>,
    backends: Vec<u8>,
    paths: Vec<u8>,
    host: u8,
    created: i64,
}

const NS: [&str; 3] = ["infra", "shop", "other"];

fn name(i: u8) -> String {
    format!("{}/n{}", NS[usize::from(i) % 3], i / 3)
}

fn listeners(shape: u8, ends: bool) -> Vec<Listener> {
    let passthrough = ListenerTls { mode: TlsMode::Passthrough, ..terminate(&[]) };
    let labelled =
        FromNamespaces::Selector(Selector { match_labels: labels(&[("l", "1")]), ..Selector::default() });
    let all = [
        http("a", 80, ""),
        http("b", 80, "*.x.com"),
        Listener { allowed_namespaces: FromNamespaces::Same, ..http("c", 81, "a.x.com") },
        Listener { allowed_namespaces: labelled, ..http("d", 82, "") },
        https("e", 443, "a.x.com", "shop/n0"),
        Listener {
            tls: Some(if ends { terminate(&["shop/n0"]) } else { passthrough }),
            ..listener("f", 443, Protocol::Tls, "*.x.com")
        },
        listener("g", 80, Protocol::Tcp, ""),
        listener("h", 90, Protocol::Tcp, ""),
    ];
    all.into_iter().enumerate().filter(|(i, _)| shape >> i & 1 == 1).map(|(_, l)| l).collect()
}

fn route_of(i: u8, spec: &RouteSpec) -> Route {
    let parents: Vec<String> = spec
        .parents
        .iter()
        .map(|p| match p % 6 {
            0 => format!("Gateway {}", name(p / 6 % 3)),
            1 => format!("Gateway {}#a", name(p / 6 % 3)),
            2 => format!("ListenerSet {}", name(p / 6 % 3)),
            3 => format!("Service {}", name(p / 6)),
            4 => format!("Service {}:80", name(p / 6)),
            _ => format!("Gateway {}:443", name(p / 6 % 3)),
        })
        .collect();
    let parents: Vec<&str> = parents.iter().map(String::as_str).collect();
    let backends: Vec<String> = spec
        .backends
        .iter()
        .map(|b| format!("{}:{}={}", name(b % 6), 80 + u16::from(b / 6 % 2), b / 12))
        .collect();
    let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
    let rules = spec.paths.iter().map(|p| {
        let mut rule = rule(["/", "/a", "/a/b"][usize::from(p % 3)], &backends);
        if p / 3 % 5 == 4 {
            rule.filters.push(Filter::Unknown("X".into()));
        }
        rule
    });
    let kind =
        [RouteKind::Http, RouteKind::Http, RouteKind::Http, RouteKind::Grpc, RouteKind::Tls, RouteKind::Tcp]
            [usize::from(spec.kind) % 6];
    let hosts: &[&str] =
        [&[][..], &["a.x.com"], &["*.x.com", "b.y.com"], &["c.y.com"]][usize::from(spec.host) % 4];
    // One name, several kinds: an edit may change the kind.
    route(kind, &name(i), &parents, rules.collect()).hosts(hosts).created(spec.created)
}

fn put<T>(map: &mut Objects<T>, name: &str, value: Option<T>) {
    match value {
        Some(value) => map.insert(key(name), Arc::new(value)),
        None => map.remove(&key(name)),
    };
}

/// Applies an edit to the Snapshot and the feedback.
#[allow(clippy::too_many_lines, reason = "one arm for each kind of object")]
fn edit(w: &mut World, feedback: &mut Feedback, e: &Edit) {
    match e {
        Edit::Class(ours) => w.class("weft", if *ours { CONTROLLER_NAME } else { "other.dev/c" }),
        Edit::Gateway(i, v) => {
            let new = v.map(|(shape, allowed)| Gateway {
                allowed_listeners: [FromNamespaces::All, FromNamespaces::Same, FromNamespaces::None]
                    [usize::from(allowed) % 3]
                    .clone(),
                ..gateway(&name(i % 3), listeners(shape, allowed / 3 % 2 == 1))
            });
            put(&mut w.0.gateways, &name(i % 3), new);
        }
        Edit::Set(i, v) => {
            let new = v.map(|(parent, shape)| {
                let mut set = listener_set(&name(i % 3), &name(parent % 3), listeners(shape, false));
                set.meta.created = i64::from(shape % 2);
                set
            });
            put(&mut w.0.listener_sets, &name(i % 3), new);
        }
        Edit::Route(i, v) => {
            let others = w.0.routes.iter().filter(|((_, k), _)| *k != key(&name(i % 8)));
            w.0.routes = others.map(|(id, route)| (id.clone(), route.clone())).collect();
            if let Some(spec) = v {
                w.route(route_of(i % 8, spec));
            }
        }
        Edit::Service(i, v) => {
            let i = i % 6;
            let new = v.map(|shape| {
                let mut s = service(&name(i), &format!("10.0.0.{}", i % 4 + 1), &[80, 81]);
                s.kind = match shape % 5 {
                    0 => ServiceType::Headless,
                    1 => ServiceType::ExternalName,
                    _ => ServiceType::ClusterIp,
                };
                s.meta.created = i64::from(shape % 2);
                if shape % 7 == 0 {
                    s.ports[0].app_protocol = Some("mysql".into());
                }
                s.internal_local = shape % 3 == 0;
                s.client_ip_affinity = (shape % 11 == 0).then(|| Duration::from_secs(u64::from(shape)));
                // Its own ClusterIP, another's, an address that others claim too.
                let claimed =
                    [None, Some("10.0.0.2"), Some("192.0.2.1"), Some("fd00::9")][usize::from(shape / 16 % 4)];
                s.external_ips = claimed.into_iter().map(ip).collect();
                if shape / 64 % 2 == 1 {
                    s.vips = vec![ip("192.0.2.1")];
                    s.source_ranges = vec!["10.1.0.0/30".parse().unwrap()];
                }
                if shape / 128 == 1 {
                    s.cluster_ips.push(ip(&format!("fd00::{}", i % 4 + 1)));
                }
                s
            });
            put(&mut w.0.services, &name(i), new);
        }
        Edit::Policy(i, v) => {
            let new = v.map(|(target, ca)| {
                let key = key(&name(i % 6));
                BackendTlsPolicy {
                    meta: Meta { created: i64::from(ca % 2), ..meta(&name(i % 6)) },
                    targets: vec![PolicyTarget {
                        kind: Kind::Service.into(),
                        name: format!("n{}", target % 2).into(),
                        section_name: (ca % 3 == 0).then(|| "p80".into()),
                    }],
                    hostname: host("a.b"),
                    ca_refs: vec![object(Kind::ConfigMap, "n0")],
                    system_roots: false,
                    subject_alt_names: Vec::new(),
                    options: BTreeMap::new(),
                }
                .clone_into_namespace(&key)
            });
            put(&mut w.0.tls_policies, &name(i % 6), new);
        }
        Edit::Grant(i, there) => {
            let to = NS[usize::from(i % 3)];
            let from = NS[usize::from(i / 3 % 3)];
            let kinds = [Kind::HttpRoute, Kind::Gateway];
            let grant = ReferenceGrant {
                meta: meta(&format!("{to}/{from}")),
                from: kinds.iter().map(|k| GrantFrom { kind: (*k).into(), namespace: from.into() }).collect(),
                to: vec![
                    GrantTo { kind: Kind::Service.into(), name: None },
                    GrantTo { kind: Kind::Secret.into(), name: None },
                ],
            };
            put(&mut w.0.grants, &format!("{to}/{from}"), there.then_some(grant));
        }
        Edit::Secret(i, v) => {
            let n = name(i % 3);
            let data = v.map(|good| if good { key_pair("k") } else { SecretData::Invalid("bad".into()) });
            put(&mut w.0.secrets, &n, data.map(|data| Secret { meta: meta(&n), data, broken: None }));
        }
        Edit::Ca(i, v) => {
            let n = name(i % 3);
            let ca = v.map(|good| if good { Ok(ca_bundle("c")) } else { Err("bad".into()) });
            put(
                &mut w.0.config_maps,
                &n,
                ca.map(|ca| ConfigMap { meta: meta(&n), ca: Some(ca), broken: None, parameters: None }),
            );
        }
        Edit::Namespace(i, label) => {
            let ns = NS[usize::from(i % 3)];
            let mesh = if label % 2 == 0 { "enabled" } else { "disabled" };
            w.namespace(ns, &[("l", if label / 2 % 2 == 0 { "0" } else { "1" }), (MESH_LABEL, mesh)]);
        }
        Edit::Pod(i, v) => {
            let new = v.map(|(addr, shape)| {
                let mut p = pod(&name(i % 6), &format!("10.1.0.{}", addr % 5));
                p.finished = shape % 4 == 0;
                p.host_network = shape % 5 == 0;
                p.meta.created = i64::from(shape % 3);
                p
            });
            put(&mut w.0.pods, &name(i % 6), new);
        }
        Edit::Slice(i, v) => {
            let new = v.map(|(service, shape)| {
                let pod = if shape % 3 == 0 { String::new() } else { name(shape % 6) };
                let mut e = endpoint(&format!("10.1.0.{}", shape % 5), &pod);
                e.ready = shape % 7 != 0;
                e.node = Some(format!("n{}", shape % 2).into());
                e.serving = shape % 13 != 0;
                e.terminating = shape % 4 == 1;
                e.for_zones = [vec![], vec!["a".into()], vec!["a".into(), "b".into()], vec!["b".into()]]
                    [usize::from(shape / 8 % 4)]
                .clone();
                e.for_nodes = (shape / 32 % 2 == 1)
                    .then(|| format!("n{}", shape / 64 % 2).into())
                    .into_iter()
                    .collect();
                if shape % 17 == 0 {
                    e.addresses = vec![ip("fd01::1")];
                }
                slice(&name(i % 6), &name(service % 6), vec![e, endpoint("10.1.0.1", "")])
            });
            put(&mut w.0.endpoint_slices, &name(i % 6), new);
        }
        Edit::Doubt(which) => {
            let nodes = (0..2).filter(|n| which >> n & 1 == 1).map(|n| format!("n{n}").into());
            w.0.doubt = match which % 5 {
                0 => Doubt::Everywhere,
                _ => Doubt::Nodes(Arc::new(nodes.collect())),
            };
        }
        Edit::Node(i, v) => {
            let name = format!("n{}", i % 2);
            match v {
                Some(shape) => {
                    let zone: &[(&str, &str)] = [
                        &[][..],
                        &[("topology.kubernetes.io/zone", "a")],
                        &[("topology.kubernetes.io/zone", "b")],
                    ][usize::from(shape % 3)];
                    let node = Node {
                        meta: Meta { labels: labels(zone), ..meta(&name) },
                        addresses: vec![ip(&format!("10.1.0.{}", shape % 5))],
                        pod_cidrs: Vec::new(),
                        kubelet_port: 10_250,
                        ready: shape % 2 == 0,
                    };
                    w.0.nodes.insert(name.into(), Arc::new(node));
                }
                None => drop(w.0.nodes.remove(&*name)),
            }
        }
        Edit::Unbound(i, there) => {
            let at = (key(&name(i % 3)), 80, Transport::Tcp);
            match there {
                true => feedback.unbound.insert(at, "in use".into()),
                false => feedback.unbound.remove(&at),
            };
        }
        Edit::Settings(_) => {}
    }
}

trait InNamespace {
    fn clone_into_namespace(self, key: &ObjectKey) -> Self;
}

impl InNamespace for BackendTlsPolicy {
    /// Targets are of the policy's namespace; nothing else of it has one.
    fn clone_into_namespace(mut self, key: &ObjectKey) -> Self {
        self.meta.key = key.clone();
        self
    }
}

fn any_edit() -> impl Strategy<Value = Edit> {
    let b = any::<u8>;
    let spec = (
        b(),
        proptest::collection::vec(b(), 0..3),
        proptest::collection::vec(b(), 0..3),
        proptest::collection::vec(b(), 1..3),
        b(),
        0..3_i64,
    )
        .prop_map(|(kind, parents, backends, paths, host, created)| RouteSpec {
            kind,
            parents,
            backends,
            paths,
            host,
            created,
        });
    let opt = |s: BoxedStrategy<(u8, u8)>| proptest::option::weighted(0.8, s);
    let pair = || (b(), b()).boxed();
    prop_oneof![
        1 => proptest::bool::weighted(0.8).prop_map(Edit::Class),
        4 => (b(), opt(pair())).prop_map(|(i, v)| Edit::Gateway(i, v)),
        3 => (b(), opt(pair())).prop_map(|(i, v)| Edit::Set(i, v)),
        12 => (b(), proptest::option::weighted(0.85, spec)).prop_map(|(i, v)| Edit::Route(i, v)),
        5 => (b(), proptest::option::weighted(0.8, b())).prop_map(|(i, v)| Edit::Service(i, v)),
        3 => (b(), opt(pair())).prop_map(|(i, v)| Edit::Policy(i, v)),
        2 => (b(), any::<bool>()).prop_map(|(i, v)| Edit::Grant(i, v)),
        1 => (b(), proptest::option::of(any::<bool>())).prop_map(|(i, v)| Edit::Secret(i, v)),
        2 => (b(), proptest::option::of(any::<bool>())).prop_map(|(i, v)| Edit::Ca(i, v)),
        2 => (b(), b()).prop_map(|(i, v)| Edit::Namespace(i, v)),
        4 => (b(), opt(pair())).prop_map(|(i, v)| Edit::Pod(i, v)),
        4 => (b(), opt(pair())).prop_map(|(i, v)| Edit::Slice(i, v)),
        2 => b().prop_map(Edit::Doubt),
        3 => (b(), proptest::option::weighted(0.8, b())).prop_map(|(i, v)| Edit::Node(i, v)),
        1 => (b(), any::<bool>()).prop_map(|(i, v)| Edit::Unbound(i, v)),
        1 => any::<bool>().prop_map(Edit::Settings),
    ]
}

fn condition(conditions: &[Condition], kind: &str) -> Option<ConditionStatus> {
    conditions.iter().find(|c| c.kind == kind).map(|c| c.status)
}

/// What must hold of every status, whatever the world.
fn check_invariants(w: &World, update: &Update) {
    for (object, status) in &*update.statuses {
        let lists: Vec<&[Condition]> = match &**status {
            ObjectStatus::GatewayClass { conditions, .. } => vec![conditions],
            ObjectStatus::Gateway { conditions, listeners, .. }
            | ObjectStatus::ListenerSet { conditions, listeners } => {
                let own = listeners.iter().map(|l| &*l.conditions);
                own.chain([&**conditions]).collect()
            }
            ObjectStatus::Route { parents } => parents.iter().map(|p| &*p.conditions).collect(),
            ObjectStatus::BackendTlsPolicy { ancestors } => {
                ancestors.iter().map(|a| &*a.conditions).collect()
            }
        };
        for conditions in lists {
            let kinds: BTreeSet<_> = conditions.iter().map(|c| c.kind).collect();
            assert_eq!(kinds.len(), conditions.len(), "{object}: {conditions:?}");
            assert!(kinds.contains("Accepted"), "{object}: {conditions:?}");
            for c in conditions {
                assert!(!c.reason.is_empty() && !c.message.is_empty() && c.message.len() <= 32_768, "{c:?}");
                assert_eq!(c.observed_generation, 1);
            }
        }
    }
    for (key, gateway) in &w.0.gateways {
        let object = ObjectRef { kind: Kind::Gateway, key: key.clone() };
        let Some(status) = update.statuses.get(&object) else { continue };
        let ObjectStatus::Gateway { listeners, .. } = &**status else { panic!() };
        assert_eq!(listeners.len(), gateway.listeners.len());
        for (listener, spec) in listeners.iter().zip(&gateway.listeners) {
            check_listener(update, key, listener, spec);
        }
    }
}

/// What is reported of a listener is what runs: it is programmed exactly if it is in the Config, and its routes are
/// those of its table.
fn check_listener(update: &Update, gateway: &ObjectKey, status: &ListenerStatus, spec: &Listener) {
    let what = format!("{gateway} {}", spec.name);
    let bound = !find(&status.conditions, "Programmed").message.contains("cannot be bound");
    let programmed = condition(&status.conditions, "Programmed") == Some(ConditionStatus::True);
    let ports = update.config.gateways.get(gateway).map(|g| &g.ports);
    let port = ports.and_then(|p| p.get(&(spec.port, Transport::Tcp)));
    let table = match (port, &spec.protocol) {
        (None, _) => None,
        (Some(PortConfig::Http(hosts)), Protocol::Http) => {
            hosts.iter().find(|(_, l)| l.name == spec.name).map(|(_, l)| l.table.clone())
        }
        (Some(PortConfig::Tls(hosts)), Protocol::Https) => hosts.iter().find_map(|(_, l)| match &**l {
            TlsListener::Https { http, .. } if http.name == spec.name => Some(http.table.clone()),
            _ => None,
        }),
        (Some(_), _) => return,
    };
    assert_eq!(programmed || !bound, table.is_some(), "{what}: {status:?}");
    let Some(table) = table else { return };
    let mut routes: BTreeMap<ObjectRef, bool> = BTreeMap::new();
    for entry in table.iter() {
        let id = &entry.policy.id;
        let object = ObjectRef { kind: id.kind.kind(), key: id.route.clone() };
        let whole =
            !matches!(entry.policy.action, Action::Fail(FailReason::InvalidRule | FailReason::InvalidFilter));
        *routes.entry(object.clone()).or_default() |= whole;
        check_served(update, &object, gateway, &entry.policy.action);
    }
    let counted = routes.values().filter(|whole| **whole).count();
    assert_eq!(usize::try_from(status.attached_routes), Ok(counted), "{what}");
}

/// A route reported with all references resolved forwards every share of its requests.
fn check_served(update: &Update, route: &ObjectRef, gateway: &ObjectKey, action: &Action) {
    let ObjectStatus::Route { parents } = &*update.statuses[route] else { panic!() };
    let mut parents = parents.iter().filter(|p| {
        let namespace = p.parent.namespace.as_ref().unwrap_or(&route.key.namespace);
        p.parent.kind.is(Kind::Gateway) && *namespace == gateway.namespace && p.parent.name == gateway.name
    });
    let resolved = parents.any(|p| {
        condition(&p.conditions, "Accepted") == Some(ConditionStatus::True)
            && condition(&p.conditions, "ResolvedRefs") == Some(ConditionStatus::True)
            && !find(&p.conditions, "Accepted").message.contains("BackendTLSPolicy")
    });
    if let (true, Action::Forward(backends)) = (resolved, action) {
        assert!(backends.iter().all(|(_, b)| b.target.is_ok()), "{route} says that all is well");
    }
}

proptest! {
    #[test]
    fn step_by_step_is_the_same_as_at_once(edits in proptest::collection::vec(any_edit(), 1..40)) {
        let (mut w, mut feedback) = (world(), Feedback::default());
        let mut settings = Settings { node: Some("n0".into()), ..settings() };
        let mut engine = Engine::new(settings.clone());
        let mut last: Option<Update> = None;
        for e in &edits {
            edit(&mut w, &mut feedback, e);
            if let Edit::Settings(other) = e {
                settings.trust_domain = if *other { "other.dev".into() } else { "cluster.local".into() };
                settings.node = if *other { Some("n1".into()) } else { Some("n0".into()) };
                engine.set_settings(settings.clone());
            }
            let update = engine.apply(w.0.clone(), &feedback);
            let before = last.as_ref().map(|l| l.statuses.clone()).unwrap_or_default();
            let differs = |o: &&ObjectRef| before.get(*o) != update.statuses.get(*o);
            let changed: BTreeSet<_> =
                before.keys().chain(update.statuses.keys()).filter(differs).cloned().collect();
            prop_assert_eq!(&changed, &update.changed.iter().cloned().collect(), "after {:?}", e);
            check_invariants(&w, &update);
            last = Some(update);
        }
        let last = last.unwrap();
        // With what it has kept: a fresh one remembers no certificate from before.
        let fresh = Engine::new(settings).apply(engine.snapshot().clone(), &feedback);
        prop_assert_eq!(&last.statuses, &fresh.statuses);
        prop_assert_eq!(observed(&last.config), observed(&fresh.config));
        // Once more, with equal content in other allocations: nothing happens.
        let mut copy = w.0.clone();
        let anew = |route: &Arc<Route>| Arc::new((**route).clone());
        copy.routes = copy.routes.iter().map(|(id, route)| (id.clone(), anew(route))).collect();
        let again = engine.apply(copy, &feedback);
        prop_assert!(again.changed.is_empty());
        prop_assert!(Arc::ptr_eq(&again.config, &last.config));
    }
}

/// A big world: `gateways` Gateways, and `routes` routes spread over them.
pub(super) fn big(gateways: usize, routes: usize) -> World {
    let mut w = world();
    w.service(service("shop/web", "10.0.0.1", &[80]));
    w.service(service("shop/other", "10.0.0.2", &[80]));
    w.pod(pod("shop/a", "10.1.0.1"));
    w.slice(slice("shop/web-1", "shop/web", vec![endpoint("10.1.0.1", "shop/a")]));
    for g in 0..gateways {
        w.gateway(gateway(&format!("infra/g{g}"), vec![http("http", 80, ""), http("more", 81, "")]));
    }
    for r in 0..routes {
        let parent = format!("Gateway infra/g{}#http", r % gateways);
        w.route(http_route(&format!("shop/r{r}"), &[&parent], vec![rule(&format!("/r{r}"), &["web"])]));
    }
    w
}

fn table(config: &Config, gateway: &str, port: u16) -> Arc<RouteTable<Arc<crate::config::HttpRule>>> {
    let PortConfig::Http(hosts) = &config.gateways[&key(gateway)].ports[&(port, Transport::Tcp)] else {
        panic!()
    };
    hosts.get(None).unwrap().table.clone()
}

fn less(after: Work, before: Work) -> Work {
    Work {
        gateways: after.gateways - before.gateways,
        routes: after.routes - before.routes,
        policies: after.policies - before.policies,
        tables: after.tables - before.tables,
        frontends: after.frontends - before.frontends,
        endpoints: after.endpoints - before.endpoints,
    }
}

fn claim_external(w: &mut World) {
    w.service(Service {
        external_ips: vec![ip("192.0.2.1")],
        ..service("shop/other", "10.0.0.2", &[80, 81])
    });
}

/// (what is edited, the work that it takes) in a world of 2,000 routes.
#[test]
fn an_edit_costs_what_it_touches() {
    type Step = (&'static str, fn(&mut World), Work);
    let none = Work::default();
    let steps: [Step; 12] = [
        (
            "one route",
            |w| w.route(http_route("shop/r7", &["Gateway infra/g7#http"], vec![rule("/x", &["web"])])),
            Work { routes: 1, tables: 1, ..none },
        ),
        (
            "one route moves",
            |w| w.route(http_route("shop/r7", &["Gateway infra/g8#http"], vec![rule("/x", &["web"])])),
            Work { routes: 1, tables: 2, ..none },
        ),
        (
            "a pod",
            |w| w.pod(Pod { node: Some("n2".into()), ..pod("shop/a", "10.1.0.1") }),
            Work { endpoints: 1, ..none },
        ),
        (
            "an endpoint",
            |w| w.slice(slice("shop/web-2", "shop/web", vec![endpoint("10.1.0.9", "")])),
            Work { endpoints: 1, ..none },
        ),
        (
            "a service that nobody routes to",
            |w| w.service(service("shop/other", "10.0.0.2", &[80, 81])),
            Work { frontends: 1, endpoints: 1, ..none },
        ),
        (
            "the own node comes into a zone that hints are about",
            |w| w.node("n1", "b"),
            Work { endpoints: 1, ..none },
        ),
        ("another node's zone", |w| w.node("n2", "b"), none),
        ("the own node is not ready", |w| w.node_ready("n1", false), none),
        ("an external address", claim_external, Work { frontends: 1, endpoints: 1, ..none }),
        ("a secret that nobody uses", |w| w.secret("infra/s", key_pair("s")), none),
        ("a grant that nobody needs", |w| w.grant("other/g", (Kind::HttpRoute, "shop"), Kind::Service), none),
        ("labels that nobody selects", |w| w.namespace("infra", &[("a", "b")]), none),
    ];
    let mut w = big(10, 2_000);
    w.service(service("shop/zoned", "10.0.0.3", &[80]));
    let hinted = SliceEndpoint { for_zones: vec!["a".into()], ..endpoint("10.1.0.8", "") };
    w.slice(slice("shop/zoned-1", "shop/zoned", vec![hinted]));
    w.node("n1", "a");
    let mut engine = Engine::new(Settings { node: Some("n1".into()), ..settings() });
    let feedback = Feedback::default();
    let mut last = engine.apply(w.0.clone(), &feedback);
    for (what, step, work) in steps {
        let before = engine.work();
        step(&mut w);
        let update = engine.apply(w.0.clone(), &feedback);
        assert_eq!(less(engine.work(), before), work, "{what}");
        for (g, port) in [(9, 80), (9, 81), (7, 81)] {
            let gateway = format!("infra/g{g}");
            let same =
                Arc::ptr_eq(&table(&last.config, &gateway, port), &table(&update.config, &gateway, port));
            assert!(same, "{what}: {gateway}:{port} is shared");
        }
        last = update;
    }
}

/// A rotated certificate rebuilds a listener, not its table.
#[test]
fn a_rotated_certificate_resolves_no_route() {
    let mut w = big(1, 10);
    w.secret("infra/cert", key_pair("one"));
    w.gateway(gateway("infra/g0", vec![https("http", 443, "", "cert")]));
    let mut engine = Engine::new(settings());
    let feedback = Feedback::default();
    let get = |config: &Config| {
        let PortConfig::Tls(hosts) = &config.gateways[&key("infra/g0")].ports[&(443, Transport::Tcp)] else {
            panic!()
        };
        let TlsListener::Https { tls, http } = &**hosts.get(None).unwrap() else { panic!() };
        (tls.clone(), http.table.clone())
    };
    let (old_tls, old_table) = get(&engine.apply(w.0.clone(), &feedback).config);
    let before = engine.work();
    w.secret("infra/cert", key_pair("two"));
    let update = engine.apply(w.0.clone(), &feedback);
    assert_eq!(less(engine.work(), before), Work { gateways: 1, ..Work::default() });
    let (tls, table) = get(&update.config);
    assert!(tls != old_tls && Arc::ptr_eq(&table, &old_table));
    assert!(update.changed.is_empty(), "the conditions say the same");
    // What is not touched keeps its TLS value, so that its TLS library's config is not built again.
    w.gateway(gateway("infra/g0", vec![https("http", 443, "", "cert"), http("plain", 80, "")]));
    assert!(Arc::ptr_eq(&get(&engine.apply(w.0, &feedback).config).0, &tls));
}

/// Found by the property test: the route resolves as before, yet what is said of it changes.
#[test]
fn routes_hear_of_a_listener_that_becomes_valid() {
    let mut w = big(1, 1);
    let mut engine = Engine::new(settings());
    let feedback = Feedback::default();
    let both =
        vec![http("http", 80, ""), listener("tcp", 80, Protocol::Tcp, ""), https("https", 443, "", "none")];
    w.gateway(gateway("infra/g0", both));
    w.route(http_route("shop/r0", &["Gateway infra/g0"], vec![rule("/", &["web"])]));
    let message = |u: Update| Applied(u).message(RouteKind::Http, "shop/r0", "Accepted");
    assert!(message(engine.apply(w.0.clone(), &feedback)).contains("Gets no traffic now"));
    w.gateway(gateway("infra/g0", vec![http("http", 80, ""), https("https", 443, "", "none")]));
    assert_eq!(message(engine.apply(w.0, &feedback)), "The route is attached.");
}

/// The same attachment, another kind of table: a policy's TLS is added where the listener ends the client's.
#[test]
fn a_tls_listener_that_changes_its_mode_gets_another_table() {
    let mut w = big(1, 0);
    w.secret("infra/cert", key_pair("cert"));
    w.ca("shop/n0", Some(Ok(ca_bundle("ca"))));
    w.policy(BackendTlsPolicy {
        meta: meta("shop/p"),
        targets: vec![PolicyTarget { kind: Kind::Service.into(), name: "web".into(), section_name: None }],
        hostname: host("a.b"),
        ca_refs: vec![object(Kind::ConfigMap, "n0")],
        system_roots: false,
        subject_alt_names: Vec::new(),
        options: BTreeMap::new(),
    });
    w.route(route(RouteKind::Tls, "shop/t", &["Gateway infra/g0"], vec![rule("/", &["web"])]));
    let mut engine = Engine::new(settings());
    let mut answer = |mode| {
        let tls = Some(ListenerTls { mode, ..terminate(&["cert"]) });
        w.gateway(gateway("infra/g0", vec![Listener { tls, ..listener("tls", 443, Protocol::Tls, "") }]));
        Applied(engine.apply(w.0.clone(), &Feedback::default())).get("infra/g0", 443, "a/")
    };
    assert_eq!(answer(TlsMode::Passthrough), "shop/t shop/web:80=1");
    assert_eq!(answer(TlsMode::Terminate), "shop/t invalid_backend=1", "never in clear");
    assert_eq!(answer(TlsMode::Passthrough), "shop/t shop/web:80=1");
}
