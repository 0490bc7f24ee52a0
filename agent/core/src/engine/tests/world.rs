//! Short constructors of model values, and short texts of what comes out.

use crate::{
    config::{Action, Config, HttpRule, PortConfig, TlsListener, Transport},
    engine::{Engine, Feedback, Settings, Update},
    matching::{RequestHead, RouteTable},
    model::*,
    status::{Condition, ConditionStatus, ListenerStatus, ObjectStatus},
};
use http::{HeaderMap, Method};
use std::{collections::BTreeMap, fmt::Write, net::IpAddr, sync::Arc};

pub(super) fn settings() -> Settings {
    Settings {
        trust_domain: "cluster.local".into(),
        default_mode: MtlsMode::Permissive,
        gateway_addresses: BTreeMap::new(),
        default_addresses: vec!["127.0.0.1".parse().unwrap()],
        placed: false,
        node: None,
        pod_cidrs: Vec::new(),
    }
}

/// `"ns/name"`.
pub(super) fn key(text: &str) -> ObjectKey {
    let (namespace, name) = text.split_once('/').unwrap_or(("", text));
    ObjectKey::new(namespace, name)
}

pub(super) fn meta(text: &str) -> Meta {
    Meta {
        key: key(text),
        uid: "".into(),
        generation: 1,
        created: 0,
        labels: Labels::new(),
        annotations: Labels::new(),
        origin: None,
    }
}

pub(super) fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()
}

pub(super) fn host(text: &str) -> Hostname {
    Hostname::parse(text).unwrap()
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn group_kind(group: &str, kind: &str) -> GroupKind {
    GroupKind { group: group.into(), kind: kind.into() }
}

/// A snapshot that grows; `world()` starts with our class and the namespaces `infra`, `shop` and `other`.
#[derive(Clone, Debug, Default)]
pub(super) struct World(pub(super) Snapshot);

pub(super) fn world() -> World {
    let mut w = World::default();
    w.class("weft", CONTROLLER_NAME);
    for ns in ["infra", "shop", "other"] {
        w.namespace(ns, &[("kubernetes.io/metadata.name", ns)]);
    }
    w
}

impl World {
    pub(super) fn class(&mut self, name: &str, controller: &str) {
        let class = GatewayClass {
            meta: meta(name),
            controller: controller.into(),
            parameters_ref: None,
            description: None,
        };
        self.0.classes.insert(name.into(), Arc::new(class));
    }

    pub(super) fn namespace(&mut self, name: &str, pairs: &[(&str, &str)]) {
        let meta = Meta { labels: labels(pairs), ..meta(name) };
        self.0.namespaces.insert(name.into(), Arc::new(Namespace { meta }));
    }

    pub(super) fn gateway(&mut self, gateway: Gateway) {
        self.0.gateways.insert(gateway.meta.key.clone(), Arc::new(gateway));
    }

    pub(super) fn set(&mut self, set: ListenerSet) {
        self.0.listener_sets.insert(set.meta.key.clone(), Arc::new(set));
    }

    pub(super) fn route(&mut self, route: Route) {
        self.0.routes.insert(route.id(), Arc::new(route));
    }

    pub(super) fn service(&mut self, service: Service) {
        self.0.services.insert(service.meta.key.clone(), Arc::new(service));
    }

    pub(super) fn slice(&mut self, slice: EndpointSlice) {
        self.0.endpoint_slices.insert(slice.meta.key.clone(), Arc::new(slice));
    }

    /// A node in a zone (`""`: in none).
    pub(super) fn node(&mut self, name: &str, zone: &str) {
        let zone = (!zone.is_empty()).then_some(("topology.kubernetes.io/zone", zone));
        let meta = Meta { labels: labels(zone.as_slice()), ..meta(name) };
        let node =
            Node { meta, addresses: Vec::new(), pod_cidrs: Vec::new(), ready: true, kubelet_port: 10_250 };
        self.0.nodes.insert(name.into(), Arc::new(node));
    }

    pub(super) fn node_ready(&mut self, name: &str, ready: bool) {
        let node = Node { ready, ..(**self.0.nodes.get(name).unwrap()).clone() };
        self.0.nodes.insert(name.into(), Arc::new(node));
    }

    pub(super) fn pod(&mut self, pod: Pod) {
        self.0.pods.insert(pod.meta.key.clone(), Arc::new(pod));
    }

    pub(super) fn policy(&mut self, policy: BackendTlsPolicy) {
        self.0.tls_policies.insert(policy.meta.key.clone(), Arc::new(policy));
    }

    pub(super) fn secret(&mut self, name: &str, data: SecretData) {
        self.0.secrets.insert(key(name), Arc::new(Secret { meta: meta(name), data, broken: None }));
    }

    pub(super) fn ca(&mut self, name: &str, ca: Option<Result<CaBundle, Str>>) {
        self.0
            .config_maps
            .insert(key(name), Arc::new(ConfigMap { meta: meta(name), ca, broken: None, parameters: None }));
    }

    /// Lets `from` (kind, namespace) refer to every `to` in the namespace of `name`.
    pub(super) fn grant(&mut self, name: &str, from: (Kind, &str), to: Kind) {
        let grant = ReferenceGrant {
            meta: meta(name),
            from: vec![GrantFrom { kind: from.0.into(), namespace: from.1.into() }],
            to: vec![GrantTo { kind: to.into(), name: None }],
        };
        self.0.grants.insert(key(name), Arc::new(grant));
    }

    pub(super) fn apply(&self) -> Applied {
        Applied(Engine::new(settings()).apply(self.0.clone(), &Feedback::default()))
    }
}

pub(super) fn gateway(name: &str, listeners: Vec<Listener>) -> Gateway {
    Gateway {
        meta: meta(name),
        class: "weft".into(),
        listeners,
        addresses: Vec::new(),
        infrastructure: None,
        allowed_listeners: FromNamespaces::None,
        backend_client_certificate: None,
        frontend_tls: None,
        default_scope: None,
    }
}

pub(super) fn listener(name: &str, port: u16, protocol: Protocol, hostname: &str) -> Listener {
    Listener {
        name: name.into(),
        hostname: (!hostname.is_empty()).then(|| host(hostname)),
        port,
        protocol,
        tls: None,
        allowed_namespaces: FromNamespaces::All,
        allowed_kinds: Vec::new(),
    }
}

pub(super) fn http(name: &str, port: u16, hostname: &str) -> Listener {
    listener(name, port, Protocol::Http, hostname)
}

/// An HTTPS listener with a Secret (`"ns/name"`).
pub(super) fn https(name: &str, port: u16, hostname: &str, secret: &str) -> Listener {
    Listener { tls: Some(terminate(&[secret])), ..listener(name, port, Protocol::Https, hostname) }
}

pub(super) fn terminate(secrets: &[&str]) -> ListenerTls {
    ListenerTls {
        mode: TlsMode::Terminate,
        certificate_refs: secrets.iter().map(|s| object(Kind::Secret, s)).collect(),
        options: BTreeMap::new(),
    }
}

pub(super) fn object(kind: Kind, name: &str) -> ObjectReference {
    let key = key(name);
    let namespace = (!key.namespace.is_empty()).then_some(key.namespace);
    ObjectReference { kind: kind.into(), name: key.name, namespace }
}

pub(super) fn listener_set(name: &str, parent: &str, listeners: Vec<Listener>) -> ListenerSet {
    ListenerSet { meta: meta(name), parent_kind: Kind::Gateway.into(), parent: key(parent), listeners }
}

pub(super) fn key_pair(text: &str) -> SecretData {
    key_pair_until(text, Validity::default())
}

pub(super) fn key_pair_until(text: &str, validity: Validity) -> SecretData {
    SecretData::Tls(Arc::new(KeyPair {
        chain: vec![text.as_bytes().to_vec()],
        key: PrivateKey::new(text.as_bytes().to_vec()),
        names: vec![text.into()],
        validity,
    }))
}

pub(super) fn ca_bundle(text: &str) -> CaBundle {
    CaBundle(Arc::new(vec![text.as_bytes().to_vec()]))
}

/// `"Gateway infra/gw"`, with `#section` and `:port` if wanted: `"Gateway infra/gw#http:80"`.
pub(super) fn parent(text: &str) -> ParentRef {
    let (kind, rest) = text.split_once(' ').unwrap();
    let (rest, port) = match rest.split_once(':') {
        Some((rest, port)) => (rest, Some(port.parse().unwrap())),
        None => (rest, None),
    };
    let (name, section) = match rest.split_once('#') {
        Some((name, section)) => (name, Some(section.into())),
        None => (rest, None),
    };
    let key = key(name);
    let group = if kind == "Service" { "" } else { GATEWAY_GROUP };
    ParentRef {
        kind: group_kind(group, kind),
        namespace: (!key.namespace.is_empty()).then_some(key.namespace),
        name: key.name,
        section_name: section,
        port,
    }
}

pub(super) fn route(kind: RouteKind, name: &str, parents: &[&str], rules: Vec<Rule>) -> Route {
    Route {
        meta: meta(name),
        kind,
        parents: parents.iter().map(|p| parent(p)).collect(),
        hostnames: Vec::new(),
        rules,
        use_default_gateways: None,
    }
}

pub(super) fn http_route(name: &str, parents: &[&str], rules: Vec<Rule>) -> Route {
    route(RouteKind::Http, name, parents, rules)
}

impl Route {
    pub(super) fn hosts(mut self, hosts: &[&str]) -> Self {
        self.hostnames = hosts.iter().map(|h| host(h)).collect();
        self
    }

    pub(super) fn created(mut self, at: i64) -> Self {
        self.meta.created = at;
        self
    }
}

pub(super) fn prefix(path: &str) -> Match {
    Match { path: Some(PathMatch::Prefix(path.into())), ..Match::default() }
}

/// A rule for a prefix with `"svc"`, `"ns/svc"`, or `"svc:port=weight"` backends; the port is 80, the weight 1.
pub(super) fn rule(path: &str, backends: &[&str]) -> Rule {
    Rule {
        matches: vec![prefix(path)],
        backends: backends.iter().map(|b| backend(b)).collect(),
        ..Rule::default()
    }
}

pub(super) fn backend(text: &str) -> BackendRef {
    let (rest, weight) = match text.split_once('=') {
        Some((rest, weight)) => (rest, weight.parse().unwrap()),
        None => (text, 1),
    };
    let (name, port) = match rest.split_once(':') {
        Some((name, port)) => (name, port.parse().unwrap()),
        None => (rest, 80),
    };
    let key = key(name);
    let object = BackendObjectRef {
        kind: Kind::Service.into(),
        name: key.name,
        namespace: (!key.namespace.is_empty()).then_some(key.namespace),
        port: Some(port),
    };
    BackendRef { object, weight, filters: Vec::new() }
}

pub(super) fn service(name: &str, ip: &str, ports: &[u16]) -> Service {
    let ports = ports.iter().map(|p| service_port(*p, None));
    Service {
        meta: meta(name),
        kind: ServiceType::ClusterIp,
        cluster_ips: if ip.is_empty() { Vec::new() } else { vec![self::ip(ip)] },
        ports: ports.collect(),
        family: (!ip.is_empty()).then(|| IpFamily::of(self::ip(ip))),
        internal_local: false,
        client_ip_affinity: None,
        external_ips: Vec::new(),
        ingress: Vec::new(),
        vips: Vec::new(),
        source_ranges: Vec::new(),
    }
}

pub(super) fn service_port(port: u16, app_protocol: Option<&str>) -> ServicePort {
    ServicePort {
        name: format!("p{port}").into(),
        port,
        protocol: TransportProtocol::Tcp,
        app_protocol: app_protocol.map(Into::into),
    }
}

/// What an [`Engine`] gave, in words.
pub(super) struct Applied(pub(super) Update);

impl Applied {
    pub(super) fn status(&self, kind: Kind, name: &str) -> Option<&ObjectStatus> {
        self.0.statuses.get(&ObjectRef { kind, key: key(name) }).map(|s| &**s)
    }

    /// `Accepted=True/Accepted ResolvedRefs=…` for each parent of a route of ours.
    pub(super) fn route(&self, kind: RouteKind, name: &str) -> Vec<String> {
        match self.status(kind.kind(), name) {
            Some(ObjectStatus::Route { parents }) => parents.iter().map(|p| summary(&p.conditions)).collect(),
            None => Vec::new(),
            Some(other) => panic!("{other:?}"),
        }
    }

    pub(super) fn http_route(&self, name: &str) -> String {
        self.route(RouteKind::Http, name).join(" | ")
    }

    /// The message of a condition of a route's first parent.
    pub(super) fn message(&self, kind: RouteKind, name: &str, condition: &str) -> String {
        let Some(ObjectStatus::Route { parents }) = self.status(kind.kind(), name) else {
            panic!("{name} has no status")
        };
        find(&parents[0].conditions, condition).message.clone()
    }

    pub(super) fn gateway(&self, name: &str) -> String {
        let Some(ObjectStatus::Gateway { conditions, .. }) = self.status(Kind::Gateway, name) else {
            return String::new();
        };
        summary(conditions)
    }

    pub(super) fn listeners(&self, kind: Kind, name: &str) -> &[ListenerStatus] {
        match self.status(kind, name) {
            Some(ObjectStatus::Gateway { listeners, .. } | ObjectStatus::ListenerSet { listeners, .. }) => {
                listeners
            }
            other => panic!("{other:?}"),
        }
    }

    /// Conditions of one listener of a Gateway.
    pub(super) fn listener(&self, gateway: &str, name: &str) -> String {
        let listeners = self.listeners(Kind::Gateway, gateway);
        summary(&listeners.iter().find(|l| &*l.name == name).unwrap().conditions)
    }

    pub(super) fn attached(&self, kind: Kind, name: &str) -> Vec<i32> {
        self.listeners(kind, name).iter().map(|l| l.attached_routes).collect()
    }

    /// Where a Gateway sends a request.
    pub(super) fn get(&self, gateway: &str, port: u16, url: &str) -> String {
        gateway_answer(&self.0.config, gateway, port, url)
    }

    /// Where a Service sends a request of a client in `client`.
    pub(super) fn mesh(&self, addr: &str, client: &str, path: &str) -> String {
        mesh_answer(&self.0.config, addr, client, path)
    }
}

pub(super) fn find<'a>(conditions: &'a [Condition], kind: &str) -> &'a Condition {
    conditions.iter().find(|c| c.kind == kind).unwrap_or_else(|| panic!("no {kind} in {conditions:?}"))
}

/// `Accepted ResolvedRefs=False/BackendNotFound`: what is as it should be is not spelled out.
pub(super) fn summary(conditions: &[Condition]) -> String {
    let mut out = String::new();
    for c in conditions {
        assert!(!c.message.is_empty(), "{c:?}");
        assert_eq!(c.observed_generation, 1, "{c:?}");
        let usual = match c.kind {
            "Conflicted" => (ConditionStatus::False, "NoConflicts"),
            "PartiallyInvalid" => (ConditionStatus::Unknown, ""),
            kind => (ConditionStatus::True, kind),
        };
        if (c.status, c.reason) == usual {
            if c.kind != "Conflicted" {
                let _ = write!(out, "{} ", c.kind);
            }
        } else {
            let _ = write!(out, "{}={:?}/{} ", c.kind, c.status, c.reason);
        }
    }
    out.trim_end().to_owned()
}

pub(super) fn gateway_answer(config: &Config, gateway: &str, port: u16, url: &str) -> String {
    let (host, path) = url.find('/').map_or((url, "/"), |at| (&url[..at], &url[at..]));
    let host = (!host.is_empty()).then_some(host);
    let Some(gateway) = config.gateways.get(&key(gateway)) else { return "no gateway".to_owned() };
    let at = |t| gateway.ports.get(&(port, t));
    let listener = match at(Transport::Tcp).or_else(|| at(Transport::Udp)) {
        None => return "no port".to_owned(),
        Some(PortConfig::Http(hosts)) => hosts.get(host),
        Some(PortConfig::Tls(hosts)) => match hosts.get(host).map(|l| &**l) {
            None => return "no listener".to_owned(),
            Some(TlsListener::Https { http, .. }) => Some(http),
            Some(TlsListener::Terminate { routes, .. } | TlsListener::Passthrough { routes }) => {
                return routes.get(host).map_or_else(|| "no route".to_owned(), |r| l4_text(r));
            }
        },
        Some(PortConfig::Tcp(rule) | PortConfig::Udp(rule)) => {
            return rule.as_ref().map_or_else(|| "no route".to_owned(), |r| l4_text(r));
        }
    };
    listener.map_or_else(|| "no listener".to_owned(), |l| select(&l.table, host, path))
}

pub(super) fn mesh_answer(config: &Config, addr: &str, client: &str, path: &str) -> String {
    use crate::config::MeshRoutes;
    let Some(frontend) = config.frontends.get(&addr.parse::<std::net::SocketAddr>().unwrap()) else {
        return "no frontend".to_owned();
    };
    match frontend.routes_for(client) {
        None => format!("default {}:{}", frontend.default.key.service, frontend.default.key.port),
        Some(MeshRoutes::Http(table)) => select(table, Some("svc"), path),
        Some(MeshRoutes::Tls(routes)) => routes.get(Some(path)).map_or("no route".to_owned(), |r| l4_text(r)),
        Some(MeshRoutes::Tcp(rule)) => l4_text(rule),
    }
}

pub(super) fn select(table: &RouteTable<Arc<HttpRule>>, host: Option<&str>, path: &str) -> String {
    let headers = HeaderMap::new();
    let (path, query) = path.split_once('?').map_or((path, None), |(p, q)| (p, Some(q)));
    let head = RequestHead { host, authority: host, method: &Method::GET, path, query, headers: &headers };
    table.select(&head).map_or_else(|| "404".to_owned(), |s| rule_text(&s.entry.policy))
}

pub(super) fn rule_text(rule: &HttpRule) -> String {
    let action = match &rule.action {
        Action::Redirect(r) => format!("redirect {}", r.status.as_u16()),
        Action::Fail(reason) => format!("500 {}", reason.as_str()),
        Action::Forward(backends) => {
            let one = |(weight, b): (u64, &crate::config::HttpBackend)| match &b.target {
                Ok(b) => format!("{}:{}={weight}", b.key.service, b.key.port),
                Err(reason) => format!("500 {}={weight}", reason.as_str()),
            };
            backends.iter().map(one).collect::<Vec<_>>().join(" ")
        }
    };
    format!("{}[{}] {action}", rule.id.route, rule.id.index)
}

fn l4_text(rule: &crate::config::L4Rule) -> String {
    let backends = rule.backends.as_ref().map_or_else(
        || "refused".to_owned(),
        |backends| {
            let one = |(weight, b): (u64, &Result<Arc<crate::config::Backend>, _>)| match b {
                Ok(b) => format!(
                    "{}{}:{}={weight}",
                    if b.tls.is_some() { "tls " } else { "" },
                    b.key.service,
                    b.key.port
                ),
                Err(reason) => {
                    let reason: &crate::config::FailReason = reason;
                    format!("{}={weight}", reason.as_str())
                }
            };
            backends.iter().map(one).collect::<Vec<_>>().join(" ")
        },
    );
    format!("{} {backends}", rule.id.route)
}
