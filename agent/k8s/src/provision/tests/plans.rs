//! Plans and changes in a closed loop: what is applied is the world of the next plan.

use super::{
    super::{
        Assigned, Demand, Demands, Input, Serving,
        changes::{Account, Accounts, Change, changes},
        objects::ObjectKind,
        placements, plan,
        pool::{self, Wish},
    },
    *,
};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};
use weft_core::{
    config::Transport,
    model::{
        AddressMode, GatewayParameters, GatewaySettings, IpRange, PlacementAddress, Protocol, ServiceType,
    },
};

/// A cluster without clients: what is planned is applied to the world.
struct Cluster {
    world: Snapshot,
    accounts: Accounts,
    parameters: BTreeMap<ObjectKey, GatewayParameters>,
    refused: BTreeSet<ObjectKey>,
    serving: Serving,
    settled: bool,
    memory: Assigned,
    uids: u32,
}

impl Cluster {
    fn new(nodes: &[&str]) -> Self {
        let mut world = world(CLASSES);
        for (i, name) in nodes.iter().enumerate() {
            node(&mut world, name, &[&format!("10.0.0.{}", i + 1)], &["topology.kubernetes.io/zone=z1"]);
        }
        let serving = Serving { nodes: nodes.iter().map(|n| Str::from(*n)).collect(), ..Serving::default() };
        Self {
            world,
            accounts: Accounts::new(),
            parameters: BTreeMap::new(),
            refused: BTreeSet::new(),
            serving,
            settled: true,
            memory: Assigned::default(),
            uids: 0,
        }
    }

    /// A Gateway with listeners `80`, `53/udp`, created at the `age`th second.
    fn gateway(
        &mut self,
        (name, age): (&str, u32),
        listeners: &[&str],
        parameters: &GatewayParameters,
        more: &str,
    ) {
        let listeners: Vec<String> = listeners
            .iter()
            .map(|l| {
                let (port, protocol) = l.split_once('/').map_or((*l, "TCP"), |(p, _)| (p, "UDP"));
                format!("{{name: l{port}-{}, port: {port}, protocol: {protocol}}}", protocol.to_lowercase())
            })
            .collect();
        let text = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: infra, \
             uid: uid-{name}, creationTimestamp: \"2026-01-01T00:{:02}:{:02}Z\"}}\nspec: {{gatewayClassName: weft, \
             listeners: [{}], {more}}}\n",
            age / 60,
            age % 60,
            listeners.join(", ")
        );
        add(&mut self.world, &text);
        self.parameters.insert(key(&format!("infra/{name}")), parameters.clone());
    }

    fn demands(&self) -> Demands {
        let one = |(key, gateway): (&ObjectKey, &Arc<weft_core::model::Gateway>)| {
            let ports = gateway
                .listeners
                .iter()
                .map(|l| (l.port, if l.protocol == Protocol::Udp { Transport::Udp } else { Transport::Tcp }));
            let parameters = Arc::new(self.parameters.get(key)?.clone());
            (!self.refused.contains(key))
                .then(|| (key.clone(), Demand { ports: ports.collect(), parameters }))
        };
        self.world.gateways.iter().filter_map(one).collect()
    }

    fn plan(&mut self) -> Vec<Change> {
        let demands = self.demands();
        let input = Input {
            world: &self.world,
            demands: &demands,
            serving: &self.serving,
            settled: self.settled,
            before: &self.memory,
        };
        let planned = plan(&input);
        let out = changes(&planned, &self.world, &self.accounts);
        self.memory = planned.assigned;
        out
    }

    /// Plans and applies; says what was done, and that there is nothing more to do then.
    fn step(&mut self) -> Vec<String> {
        let changes = self.plan();
        let lines = changes.iter().map(describe).collect();
        for change in changes {
            self.apply(change);
        }
        let more: Vec<_> = self.plan().iter().map(describe).collect();
        assert!(more.is_empty(), "applied and yet to do: {more:?}");
        lines
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Delete { id: (ObjectKind::Service, key), .. } => drop(self.world.services.remove(&key)),
            Change::Delete { id: (ObjectKind::EndpointSlice, key), .. } => {
                drop(self.world.endpoint_slices.remove(&key));
            }
            Change::Delete { id: (ObjectKind::ServiceAccount, key), .. } => drop(self.accounts.remove(&key)),
            Change::Apply { wanted, uid } => {
                self.uids += 1;
                let uid = uid.unwrap_or_else(|| format!("uid-{}", self.uids).into());
                let body = wanted.render(Some(&uid));
                if wanted.kind() == ObjectKind::ServiceAccount {
                    let annotations = body["metadata"]["annotations"].as_object().expect("annotations");
                    let annotations = annotations
                        .iter()
                        .map(|(k, v)| (Str::from(k.as_str()), Str::from(v.as_str().expect("text"))));
                    let account = Account { uid, annotations: annotations.collect() };
                    self.accounts.insert(wanted.key.clone(), account);
                    return;
                }
                let converted =
                    convert::convert(body, &convert::Source { admitted: true, ..convert::Source::default() });
                assert_eq!(converted.problems, []);
                converted.object.expect("it converts").insert(&mut self.world);
            }
        }
    }

    /// The controller starts anew: it knows the objects only.
    fn restart(&mut self) {
        self.memory = Assigned::default();
    }

    fn targets(&self, name: &str) -> BTreeMap<(u16, Transport), u16> {
        placements(&self.world, None)
            .get(&key(&format!("infra/{name}")))
            .map(|p| p.ports.clone())
            .unwrap_or_default()
    }

    /// `addresses owner problem` of a Gateway.
    fn place(&self, name: &str) -> String {
        let placements = placements(&self.world, None);
        let Some(p) = placements.get(&key(&format!("infra/{name}"))) else { return "none".to_owned() };
        let addresses: Vec<String> = p
            .addresses
            .iter()
            .map(|a| match a {
                PlacementAddress::Ip(ip) => ip.to_string(),
                PlacementAddress::Hostname(h) => h.to_string(),
            })
            .collect();
        let service = &self.world.services[&key(&format!("infra/{name}-weft"))];
        let owner = service.meta.annotations.get("weft.dev/address-owner").map_or("-", |o| &**o);
        let problem = p.problem.as_ref().map(|(r, m)| format!(" {r:?}: {m}")).unwrap_or_default();
        format!("{} {owner}{problem}", addresses.join(","))
    }

    /// `node=address` of every endpoint.
    fn endpoints(&self, name: &str) -> String {
        let slices = self
            .world
            .endpoint_slices
            .iter()
            .filter(|(k, _)| k.name.starts_with(&format!("{name}-weft-ipv")));
        let endpoints = slices.flat_map(|(_, s)| &s.endpoints);
        let one = |e: &weft_core::model::SliceEndpoint| {
            format!("{}={}", e.node.as_deref().unwrap_or("-"), e.addresses[0])
        };
        endpoints.map(one).collect::<Vec<_>>().join(" ")
    }
}

const CLASSES: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: weft}
spec: {controllerName: weft.dev/gateway-controller}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: other}
spec: {controllerName: example.com/other}
";

fn describe(change: &Change) -> String {
    let (kind, key) = change.id();
    match change {
        Change::Apply { uid: None, .. } => format!("create {kind:?} {}", key.name),
        Change::Apply { .. } => format!("apply {kind:?} {}", key.name),
        Change::Delete { .. } => format!("delete {kind:?} {}", key.name),
    }
}

fn balancer() -> GatewayParameters {
    GatewayParameters::default()
}

fn host() -> GatewayParameters {
    GatewayParameters { mode: AddressMode::HostPort, ..GatewayParameters::default() }
}

fn pool_of(ranges: &[&str]) -> GatewayParameters {
    let range = |r: &&str| {
        let (a, b) = r.split_once('-').expect("a range");
        IpRange::new(a.parse().expect("first"), b.parse().expect("last")).expect("a range")
    };
    let settings = GatewaySettings {
        mode: Some(AddressMode::AddressPool),
        pool: Some(ranges.iter().map(range).collect()),
        ..GatewaySettings::default()
    };
    GatewayParameters::new(Some(&settings), None).expect("complete")
}

#[test]
fn a_gateway_gets_its_objects_once() {
    let mut c = Cluster::new(&["n1", "n2"]);
    c.gateway(
        ("web", 1),
        &["80", "53/udp"],
        &balancer(),
        "infrastructure: {labels: {a: b}, annotations: {c: d, weft.dev/addresses: evil}}",
    );
    assert_eq!(
        c.step(),
        ["create ServiceAccount web-weft", "create EndpointSlice web-weft-ipv4", "create Service web-weft"]
    );
    let service = c.world.services[&key("infra/web-weft")].clone();
    assert_eq!(service.kind, ServiceType::LoadBalancer);
    assert_eq!(service.ports.iter().map(|p| &*p.name).collect::<Vec<_>>(), ["p53-udp", "p80-tcp"]);
    assert_eq!(service.meta.labels.get("a").map(|v| &**v), Some("b"));
    assert_eq!(service.meta.annotations.get("c").map(|v| &**v), Some("d"));
    assert_eq!(service.meta.annotations.get("weft.dev/addresses"), None, "not the author's to say");
    assert_eq!(c.endpoints("web"), "n1=10.0.0.1 n2=10.0.0.2");
    let slice = &c.world.endpoint_slices[&key("infra/web-weft-ipv4")];
    assert_eq!(slice.endpoints[0].zone.as_deref(), Some("z1"));
    assert_eq!(slice.meta.labels.get("a").map(|v| &**v), Some("b"));
    // A label that is gone from the Gateway goes from everything.
    c.gateway(("web", 1), &["80", "53/udp"], &balancer(), "");
    assert_eq!(c.step().len(), 3);
    // A node that comes costs a slice, and so does one that cannot serve.
    node(&mut c.world, "n3", &["10.0.0.3", "fd00::3"], &[]);
    c.serving.nodes.insert("n3".into());
    c.serving.unable.insert(key("infra/web"), BTreeSet::from(["n1".into()]));
    let done = c.step();
    assert_eq!(
        done,
        ["apply EndpointSlice web-weft-ipv4", "create EndpointSlice web-weft-ipv6", "apply Service web-weft"]
    );
    assert_eq!(c.endpoints("web"), "n2=10.0.0.2 n3=10.0.0.3 n3=fd00::3");
    // Somebody edits an object.
    let mut edited = (*c.world.services[&key("infra/web-weft")]).clone();
    edited.ports[0].port = 54;
    c.world.services.insert(key("infra/web-weft"), edited.into());
    assert_eq!(c.step(), ["apply Service web-weft"]);
}

#[test]
fn what_is_not_to_be_touched() {
    let mut c = Cluster::new(&["n1"]);
    c.gateway(("web", 1), &["80"], &balancer(), "");
    add(
        &mut c.world,
        "apiVersion: v1\nkind: Service\nmetadata: {name: web-weft, namespace: infra}\nspec: {ports: [{port: 80}]}\n",
    );
    assert_eq!(c.step(), [""; 0], "a Service of somebody else");
    c.world.services.clear();
    assert_eq!(c.step().len(), 3);
    let port = c.targets("web");
    c.refused.insert(key("infra/web"));
    assert_eq!(c.step(), [""; 0], "a Gateway that is not accepted keeps what it has");
    let class = c.world.classes.remove("weft").expect("it was there");
    assert_eq!(c.step(), [""; 0], "nobody knows whose it is");
    c.world.classes.insert("weft".into(), class);
    c.refused.clear();
    assert_eq!(c.step(), [""; 0]);
    assert_eq!(c.targets("web"), port);
    let mut theirs = (*c.world.gateways[&key("infra/web")]).clone();
    theirs.class = "other".into();
    c.world.gateways.insert(key("infra/web"), theirs.into());
    c.refused.insert(key("infra/web"));
    assert_eq!(
        c.step(),
        ["delete EndpointSlice web-weft-ipv4", "delete Service web-weft", "delete ServiceAccount web-weft"]
    );
    // Gone: left to the garbage collector, and its ports stay taken while its slices are there.
    c.gateway(("gone", 2), &["80"], &balancer(), "");
    c.refused.clear();
    c.step();
    let taken = c.targets("gone");
    c.world.gateways.remove(&key("infra/gone"));
    assert_eq!(c.step(), [""; 0]);
    c.gateway(("gone2", 2), &["80"], &balancer(), "");
    c.step();
    assert_ne!(c.targets("gone2").values().next(), taken.values().next());
}

#[test]
fn a_new_leader_believes_the_objects_first() {
    let mut c = Cluster::new(&["n1", "n2"]);
    c.gateway(("web", 1), &["80"], &balancer(), "");
    c.gateway(("pool", 2), &["80"], &pool_of(&["192.0.2.1-192.0.2.9"]), "");
    c.step();
    let before = (c.endpoints("web"), c.place("pool"));
    c.restart();
    (c.settled, c.serving) = (false, Serving::default());
    assert_eq!(c.step(), [""; 0]);
    c.settled = true;
    c.serving.nodes.insert("n2".into());
    c.step();
    assert_eq!(c.endpoints("web"), "n2=10.0.0.2");
    assert_eq!((before.0.as_str(), before.1.as_str()), ("n1=10.0.0.1 n2=10.0.0.2", "192.0.2.1 n1"));
    assert_eq!(c.place("pool"), "192.0.2.1 n2", "the owner moves, the address stays");
    c.serving.nodes.insert("n1".into());
    c.step();
    assert_eq!(c.place("pool"), "192.0.2.1 n2", "and does not move back");
    c.serving = Serving::default();
    c.step();
    assert_eq!(c.place("pool"), "192.0.2.1 -", "nobody serves it");
}

#[test]
fn addresses_from_a_pool() {
    let mut c = Cluster::new(&["n1", "n2"]);
    let pool = pool_of(&["10.0.0.1-10.0.0.2", "192.0.2.1-192.0.2.2"]);
    c.gateway(("a", 1), &["80"], &pool, "");
    c.gateway(("b", 2), &["80"], &pool, "addresses: [{value: 192.0.2.2}]");
    c.gateway(("c", 3), &["80"], &pool, "addresses: [{type: IPAddress}]");
    c.gateway(
        ("d", 4),
        &["80"],
        &pool,
        "addresses: [{value: 192.0.2.1}, {value: 192.0.2.9}, {value: 10.0.0.1}]",
    );
    c.gateway(("e", 5), &["80"], &pool, "addresses: [{value: 192.0.2.2}]");
    c.step();
    for (gateway, want) in [
        ("a", "192.0.2.1 n1"),
        ("b", "192.0.2.2 n2"),
        ("c", " n1 AddressNotAssigned: the address pool has no free address left"),
        (
            "d",
            " n2 AddressNotUsable: spec.addresses: 192.0.2.1: another Gateway has it; 192.0.2.9: not in the address \
             pool; 10.0.0.1: a node's own address",
        ),
        ("e", " n1 AddressNotUsable: spec.addresses: 192.0.2.2: another Gateway has it"),
    ] {
        // `d` names 192.0.2.1 before anybody has it: a name counts more than an age.
        if matches!(gateway, "a" | "d") {
            continue;
        }
        assert_eq!(c.place(gateway), want, "{gateway}");
    }
    assert_eq!(c.place("a"), " n1 AddressNotAssigned: the address pool has no free address left");
    assert!(c.place("d").starts_with("192.0.2.1 n2 AddressNotUsable"), "{}", c.place("d"));
    assert_eq!(c.endpoints("b"), "n2=192.0.2.2");
    // As GatewayStaticAddresses does: the bad ones are taken away.
    c.gateway(("d", 4), &["80"], &pool, "addresses: [{value: 192.0.2.1}]");
    c.step();
    assert_eq!(c.place("d"), "192.0.2.1 n2");
    c.world.gateways.remove(&key("infra/d"));
    c.step();
    assert_eq!(c.place("a"), "192.0.2.1 n1", "what is given back is given on");
    c.restart();
    assert_eq!(c.step(), [""; 0]);
}

#[test]
fn both_families_and_a_mode_that_changes() {
    let mut c = Cluster::new(&["n1"]);
    c.gateway(("web", 1), &["80"], &pool_of(&["192.0.2.1-192.0.2.9", "fd00:1::1-fd00:1::9"]), "");
    c.step();
    assert_eq!(c.place("web"), "192.0.2.1,fd00:1::1 n1");
    assert_eq!(c.endpoints("web"), "n1=192.0.2.1 n1=fd00:1::1");
    c.gateway(("web", 1), &["80"], &balancer(), "");
    let done = c.step();
    assert!(done.contains(&"delete EndpointSlice web-weft-ipv6".to_owned()), "{done:?}");
    assert!(
        c.place("web").starts_with(" - AddressNotAssigned: Service infra/web-weft waits"),
        "{}",
        c.place("web")
    );
    assert_eq!(c.endpoints("web"), "n1=10.0.0.1");
}

#[test]
fn host_ports_have_one_holder() {
    let mut c = Cluster::new(&["n1", "n2"]);
    c.gateway(("old", 1), &["80", "53/udp"], &host(), "addresses: [{value: 10.0.0.1}]");
    c.gateway(("new", 2), &["80"], &host(), "");
    c.gateway(("udp", 3), &["53"], &host(), "");
    c.step();
    assert_eq!(c.place("old"), "10.0.0.1 -");
    assert_eq!(
        c.place("new"),
        "10.0.0.2 - AddressNotUsable: port 80 of node n1 is held by Gateway infra/old"
    );
    assert_eq!(c.place("udp"), "10.0.0.1,10.0.0.2 -", "another transport");
    assert_eq!(c.endpoints("new"), "n2=10.0.0.2");
    let bind = |c: &Cluster, gateway: &str, node: &str| {
        placements(&c.world, Some(node))[&key(gateway)]
            .bind
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(bind(&c, "infra/new", "n1"), [""; 0]);
    assert_eq!(bind(&c, "infra/new", "n2"), ["10.0.0.2"]);
    assert_eq!(bind(&c, "infra/old", "n2"), [""; 0], "it named n1's address");
    c.world.gateways.remove(&key("infra/old"));
    c.step();
    assert_eq!(c.place("new"), "10.0.0.1,10.0.0.2 -");
    c.gateway(("old", 9), &["443"], &host(), "addresses: [{value: 10.9.9.9}]");
    c.step();
    let want = " - AddressNotUsable: spec.addresses: 10.9.9.9 is no address of a node that may serve it";
    assert_eq!(c.place("old"), want);
}

#[test]
fn many_nodes_share_slices() {
    let names: Vec<String> = (0..1100).map(|i| format!("n{i:04}")).collect();
    let mut c = Cluster::new(&[]);
    for (i, name) in names.iter().enumerate() {
        node(&mut c.world, name, &[&format!("10.0.{}.{}", i / 250, i % 250 + 1)], &[]);
        c.serving.nodes.insert(name.as_str().into());
    }
    c.gateway(("web", 1), &["80"], &balancer(), "");
    let slices: Vec<_> = c.step().into_iter().filter(|l| l.contains("Slice")).collect();
    assert_eq!(slices.len(), 3, "{slices:?}");
    c.serving.nodes.remove("n0003");
    assert_eq!(c.step(), ["apply EndpointSlice web-weft-ipv4"]);
    c.serving.nodes.insert("n0003".into());
    assert_eq!(c.step(), ["apply EndpointSlice web-weft-ipv4"]);
}

#[derive(Clone, Debug)]
enum Step {
    Gateway(u8, Vec<u16>),
    Gone(u8),
    Refused(u8),
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0u8..6, prop::collection::vec(1u16..9, 1..4)).prop_map(|(g, p)| Step::Gateway(g, p)),
        1 => (0u8..6).prop_map(Step::Gone),
        1 => (0u8..6).prop_map(Step::Refused),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn target_ports_are_unique_and_stay(steps in steps()) {
        let mut c = Cluster::new(&["n1"]);
        for step in steps {
            let before: BTreeMap<String, _> = (0..6).map(|g| format!("g{g}")).map(|g| (g.clone(), c.targets(&g))).collect();
            match step {
                Step::Gateway(g, ports) => {
                    let ports: BTreeSet<String> = ports.iter().map(ToString::to_string).collect();
                    let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
                    c.refused.remove(&key(&format!("infra/g{g}")));
                    c.gateway((&format!("g{g}"), u32::from(g)), &ports, &balancer(), "");
                }
                Step::Gone(g) => drop(c.world.gateways.remove(&key(&format!("infra/g{g}")))),
                Step::Refused(g) => drop(c.refused.insert(key(&format!("infra/g{g}")))),
                Step::Restart => c.restart(),
            }
            c.step();
            let mut seen = BTreeSet::new();
            for slice in c.world.endpoint_slices.values() {
                for port in &slice.ports {
                    prop_assert!(seen.insert(port.port), "{} twice", port.port);
                    prop_assert!((20_000..30_000).contains(&port.port));
                }
            }
            for (gateway, had) in before {
                let has = c.targets(&gateway);
                for (at, target) in had {
                    prop_assert!(has.get(&at).is_none_or(|t| *t == target), "{gateway} {at:?}");
                }
            }
        }
    }

    #[test]
    fn no_address_is_given_twice(wishes in prop::collection::vec((0u8..8, 0usize..3, prop::collection::vec(0u8..24, 0..3)), 1..30)) {
        let pool = [
            IpRange::new("192.0.2.0".parse().unwrap(), "192.0.2.11".parse().unwrap()).unwrap(),
            IpRange::new("192.0.2.8".parse().unwrap(), "192.0.2.19".parse().unwrap()).unwrap(),
        ];
        let ip = |n: u8| IpAddr::from([192, 0, 2, n]);
        let reserved = BTreeSet::from([ip(3)]);
        let mut all: BTreeMap<ObjectKey, (usize, Vec<IpAddr>, usize)> = BTreeMap::new();
        let mut before: BTreeMap<ObjectKey, Vec<IpAddr>> = BTreeMap::new();
        for (gateway, any, named) in wishes {
            let half = usize::from(gateway % 2);
            all.insert(key(&format!("a/g{gateway}")), (any, named.into_iter().map(ip).collect(), half));
            let wishes: Vec<Wish<'_>> = all
                .iter()
                .map(|(gateway, (any, named, half))| Wish { gateway, pool: &pool[*half..=*half], named: named.clone(), any: *any })
                .collect();
            let granted = pool::assign(&wishes, &before, &reserved);
            let mut seen = reserved.clone();
            for wish in &wishes {
                let got = &granted[wish.gateway];
                for ip in &got.addresses {
                    prop_assert!(seen.insert(*ip), "{ip} twice");
                    prop_assert!(wish.pool[0].contains(*ip));
                }
                let dynamic = got.addresses.iter().filter(|ip| !wish.named.contains(ip)).count();
                prop_assert!(dynamic == wish.any || (got.exhausted && dynamic < wish.any));
                for ip in &wish.named {
                    prop_assert!(got.addresses.contains(ip) != got.refused.iter().any(|(r, _)| r == ip));
                }
            }
            let again: BTreeMap<_, _> = granted.iter().map(|(k, g)| (k.clone(), g.addresses.clone())).collect();
            let twice = pool::assign(&wishes, &again, &reserved);
            for (gateway, had) in &again {
                let (had, has): (BTreeSet<_>, BTreeSet<_>) = (had.iter().collect(), twice[gateway].addresses.iter().collect());
                prop_assert_eq!(had, has, "what is given stays given");
            }
            before = again;
        }
    }
}
