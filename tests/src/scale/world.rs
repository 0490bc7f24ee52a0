//! The objects, and what their statuses must say. Pure: the same numbers give the same world.

use super::api::{GATEWAY, Object};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The label of everything that this program creates.
pub(super) const MARK: &str = "weft-scale";
/// Namespace of the Gateways.
pub(super) const HOME: &str = "scale-00";
/// Gateways, each with [`LISTENERS`].
const GATEWAYS: usize = 4;
/// Name, port, hostname, who may attach.
const LISTENERS: [(&str, u16, Option<&str>, &str); 3] =
    [("any", 80, None, "All"), ("example", 80, Some("*.example.com"), "All"), ("own", 8080, None, "Same")];

/// How much there is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) namespaces: usize,
    pub(super) services: usize,
    pub(super) routes: usize,
}

/// A condition: type, status, reason.
type Want = (&'static str, &'static str, &'static str);

/// What a route is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Sort {
    /// On a Service, two backends.
    Mesh,
    /// On a Service of another namespace: for the clients of its own.
    Consumer,
    /// On a Gateway.
    Gateway,
    /// On a Gateway and on a Service.
    Both,
    /// A backend does not exist.
    NoBackend,
    /// A backend in another namespace without a grant, on a Gateway.
    NoGrant,
    /// No listener has its hostname.
    NoHostname,
    /// The listener is for its own namespace only.
    NotAllowed,
    /// The Service has no such port.
    NoPort,
}

/// Of fifty routes: 84 % good, most of them on Services.
const MIX: [(usize, Sort); 9] = [
    (32, Sort::Mesh),
    (2, Sort::Consumer),
    (6, Sort::Gateway),
    (2, Sort::Both),
    (2, Sort::NoBackend),
    (1, Sort::NoGrant),
    (2, Sort::NoHostname),
    (2, Sort::NotAllowed),
    (1, Sort::NoPort),
];

const GOOD: [Want; 2] = [("Accepted", "True", "Accepted"), ("ResolvedRefs", "True", "ResolvedRefs")];

impl Sort {
    fn of(index: usize) -> Self {
        let mut left = index % 50;
        for (share, sort) in MIX {
            if left < share {
                return sort;
            }
            left -= share;
        }
        Self::Mesh
    }

    /// The conditions of each entry.
    const fn wanted(self) -> [Want; 2] {
        let accepted = match self {
            Self::NoHostname => ("Accepted", "False", "NoMatchingListenerHostname"),
            Self::NotAllowed => ("Accepted", "False", "NotAllowedByListeners"),
            Self::NoPort => ("Accepted", "False", "NoMatchingParent"),
            _ => GOOD[0],
        };
        let refs = match self {
            Self::NoBackend => ("ResolvedRefs", "False", "BackendNotFound"),
            Self::NoGrant => ("ResolvedRefs", "False", "RefNotPermitted"),
            _ => GOOD[1],
        };
        [accepted, refs]
    }
}

/// One route with what its status must say.
#[derive(Clone, Debug)]
pub(super) struct Route {
    pub(super) sort: Sort,
    pub(super) object: Object,
    /// Listeners that it must be attached to, by Gateway and name.
    attached: Vec<(usize, &'static str)>,
}

impl Route {
    /// What is wrong with a route as the cluster shows it; `None` when all is right.
    pub(super) fn wrong(&self, shown: &Value) -> Option<String> {
        let empty = Vec::new();
        let wanted = self.object.body["spec"]["parentRefs"].as_array().unwrap_or(&empty);
        let parents = shown["status"]["parents"].as_array().unwrap_or(&empty);
        if parents.len() != wanted.len() {
            return Some(format!("{} entries in status.parents, expected {}", parents.len(), wanted.len()));
        }
        let generation = &shown["metadata"]["generation"];
        for (reference, entry) in wanted.iter().zip(parents) {
            for field in ["name", "namespace", "sectionName", "port", "kind"] {
                if !reference[field].is_null() && entry["parentRef"][field] != reference[field] {
                    return Some(format!("an entry is of {}, expected {reference}", entry["parentRef"]));
                }
            }
            if entry["controllerName"] != weft_core::model::CONTROLLER_NAME {
                return Some(format!("an entry is of {}", entry["controllerName"]));
            }
            let conditions = entry["conditions"].as_array().unwrap_or(&empty);
            let text = |c: &Value, field: &str| c[field].as_str().unwrap_or_default().to_owned();
            let mut said: Vec<_> =
                conditions.iter().map(|c| ["type", "status", "reason"].map(|f| text(c, f))).collect();
            said.sort();
            let wanted =
                self.sort.wanted().map(|(kind, status, reason)| [kind, status, reason].map(str::to_owned));
            if said != wanted {
                return Some(format!("conditions {said:?}, expected {wanted:?}"));
            }
            if let Some(old) = conditions.iter().find(|c| c["observedGeneration"] != *generation) {
                return Some(format!(
                    "observedGeneration {}, expected {generation}",
                    old["observedGeneration"]
                ));
            }
        }
        None
    }
}

/// Everything.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) namespaces: Vec<Object>,
    /// With their EndpointSlices.
    pub(super) services: Vec<Object>,
    pub(super) gateways: Vec<Object>,
    /// By `namespace/name`.
    pub(super) routes: BTreeMap<String, Route>,
    size: Size,
}

impl World {
    /// `addresses`: Gateways get them from there, as long as nothing else gives them any.
    pub(super) fn new(size: Size, addresses: Option<&str>) -> Self {
        let routes = (0..size.routes).map(|i| route(i, &size)).map(|r| (key(&r.object.body), r)).collect();
        Self {
            namespaces: (0..size.namespaces).map(namespace).collect(),
            services: (0..size.services).flat_map(|i| service(i, &size)).collect(),
            gateways: gateways(addresses),
            routes,
            size,
        }
    }

    /// The order in which routes are created: sorts and namespaces mixed, as numbered.
    pub(super) fn route_objects(&self) -> Vec<Object> {
        let mut all: Vec<Object> = self.routes.values().map(|r| r.object.clone()).collect();
        all.sort_by(|a, b| a.name().cmp(b.name()));
        all
    }

    /// `attachedRoutes` of each listener, by Gateway.
    pub(super) fn attached(&self) -> BTreeMap<String, BTreeMap<String, u64>> {
        let mut out: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
        for gateway in 0..GATEWAYS {
            let listeners = LISTENERS.map(|(name, ..)| (name.to_owned(), 0));
            out.insert(format!("edge-{gateway}"), listeners.into());
        }
        for (gateway, listener) in self.routes.values().flat_map(|r| &r.attached) {
            let listeners = out.entry(format!("edge-{gateway}")).or_default();
            *listeners.entry((*listener).to_owned()).or_default() += 1;
        }
        out
    }

    /// How many routes of each sort there are.
    pub(super) fn sorts(&self) -> BTreeMap<Sort, usize> {
        let mut out = BTreeMap::new();
        for route in self.routes.values() {
            *out.entry(route.sort).or_default() += 1;
        }
        out
    }

    /// The collections that hold all of it but the namespaces.
    pub(super) fn collections(&self) -> Vec<String> {
        let of = |base: &str, plural: &str| {
            let one = |n| format!("{base}/namespaces/{}/{plural}", name_of_namespace(n));
            (0..self.size.namespaces).map(one).collect::<Vec<_>>()
        };
        let slices = of("/apis/discovery.k8s.io/v1", "endpointslices");
        [of(GATEWAY, "httproutes"), of(GATEWAY, "gateways"), slices].concat()
    }

    /// Every Service, which the API cannot delete many of at once in every version.
    pub(super) fn paths_of_services(&self) -> Vec<String> {
        let services = self.services.iter().filter(|o| o.path.starts_with("/api/v1/"));
        services.map(|o| format!("{}/{}", o.path, o.name())).collect()
    }
}

/// `namespace/name`.
pub(super) fn key(object: &Value) -> String {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    format!("{}/{}", text("namespace"), text("name"))
}

fn name_of_namespace(index: usize) -> String {
    format!("scale-{index:02}")
}

fn name_of_service(index: usize) -> String {
    format!("s{index:04}")
}

fn meta(namespace: &str, name: &str) -> Value {
    json!({"namespace": namespace, "name": name, "labels": {MARK: "yes"}})
}

fn namespace(index: usize) -> Object {
    let labels = json!({MARK: "yes", "weft.dev/mesh": "enabled"});
    let body = json!({"metadata": {"name": name_of_namespace(index), "labels": labels}});
    Object::new("/api/v1", "namespaces", body)
}

/// Without a selector: its slice names addresses that no pod has (RFC 2544).
fn service(index: usize, size: &Size) -> [Object; 2] {
    let (namespace, name) = (name_of_namespace(index % size.namespaces), name_of_service(index));
    let port = json!({"name": "http", "port": 80, "targetPort": 8080, "appProtocol": "http"});
    let service = json!({"metadata": meta(&namespace, &name), "spec": {"ports": [port]}});
    let address = |last: usize| format!("198.18.{}.{}", index / 100, 2 * (index % 100) + last);
    let mut slice = json!({
        "metadata": meta(&namespace, &name),
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP", "appProtocol": "http"}],
        "endpoints": [{"addresses": [address(1)]}, {"addresses": [address(2)]}],
    });
    slice["metadata"]["labels"]["kubernetes.io/service-name"] = json!(name);
    slice["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] = json!("weft-scale");
    [
        Object::new("/api/v1", "services", service),
        Object::new("/apis/discovery.k8s.io/v1", "endpointslices", slice),
    ]
}

fn gateways(addresses: Option<&str>) -> Vec<Object> {
    let mut out = Vec::new();
    if let Some(range) = addresses {
        let spec = json!({"addressMode": "AddressPool", "addressPool": {"ranges": [range]}});
        let body = json!({
            "apiVersion": "weft.dev/v1alpha1", "kind": "WeftGatewayConfig", "metadata": meta(HOME, "pool"), "spec": spec,
        });
        out.push(Object::new("/apis/weft.dev/v1alpha1", "weftgatewayconfigs", body));
    }
    for index in 0..GATEWAYS {
        let listeners = LISTENERS.map(|(name, port, hostname, from)| {
            let mut listener = json!({
                "name": name, "port": port, "protocol": "HTTP", "allowedRoutes": {"namespaces": {"from": from}},
            });
            if let Some(hostname) = hostname {
                listener["hostname"] = json!(hostname);
            }
            listener
        });
        let mut spec = json!({"gatewayClassName": "weft", "listeners": listeners});
        if addresses.is_some() {
            let parameters = json!({"group": "weft.dev", "kind": "WeftGatewayConfig", "name": "pool"});
            spec["infrastructure"] = json!({"parametersRef": parameters});
        }
        out.push(of_gateway_api("Gateway", "gateways", meta(HOME, &format!("edge-{index}")), &spec));
    }
    out
}

fn of_gateway_api(kind: &str, plural: &str, metadata: Value, spec: &Value) -> Object {
    let api = GATEWAY.strip_prefix("/apis/").unwrap_or_default();
    Object::new(GATEWAY, plural, json!({"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec}))
}

fn route(index: usize, size: &Size) -> Route {
    let sort = Sort::of(index);
    let mut service = index % size.services;
    // Not allowed is who is elsewhere than the Gateway.
    if sort == Sort::NotAllowed && service.is_multiple_of(size.namespaces) {
        service += 1;
    }
    let home = service % size.namespaces;
    // The Services of a namespace are every N-th.
    let beside = name_of_service((service + size.namespaces) % size.services);
    let mut backends = vec![
        json!({"name": name_of_service(service), "port": 80, "weight": 90}),
        json!({"name": beside, "port": 80, "weight": 10}),
    ];
    match sort {
        Sort::NoBackend => backends[1]["name"] = json!("nobody"),
        Sort::NoGrant => backends[1]["namespace"] = json!(name_of_namespace((home + 1) % size.namespaces)),
        _ => {}
    }
    let mut spec = json!({
        "parentRefs": parents(sort, index, service, size),
        "rules": [{
            "matches": [{"path": {"type": "PathPrefix", "value": format!("/r{index}")}}],
            "backendRefs": backends,
        }],
    });
    match sort {
        Sort::Mesh | Sort::Consumer | Sort::NoBackend | Sort::NoPort => {}
        Sort::NoHostname => spec["hostnames"] = json!([format!("r{index}.example.org")]),
        _ => spec["hostnames"] = json!([format!("r{index}.example.com")]),
    }
    let attached = match sort {
        Sort::Gateway | Sort::Both | Sort::NoGrant => {
            let open =
                LISTENERS.iter().filter(|(.., from)| *from == "All" || name_of_namespace(home) == HOME);
            let chosen = open.filter(|(name, ..)| section(index).is_none_or(|s| s == *name));
            chosen.map(|(name, ..)| (gateway_of(index), *name)).collect()
        }
        _ => Vec::new(),
    };
    let metadata = meta(&name_of_namespace(home), &format!("r{index:05}"));
    Route { sort, object: of_gateway_api("HTTPRoute", "httproutes", metadata, &spec), attached }
}

fn gateway_of(index: usize) -> usize {
    index / 50 % GATEWAYS
}

/// The listener that a route names; all of them when none.
fn section(index: usize) -> Option<&'static str> {
    [None, Some("any"), Some("example")][index / 50 / GATEWAYS % 3]
}

fn parents(sort: Sort, index: usize, service: usize, size: &Size) -> Vec<Value> {
    let on_service = |service: usize, port: u16| json!({"group": "", "kind": "Service", "name": name_of_service(service), "port": port});
    let on_gateway = |section: Option<&str>| {
        let mut reference = json!({
            "group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": HOME,
            "name": format!("edge-{}", gateway_of(index)),
        });
        if let Some(section) = section {
            reference["sectionName"] = json!(section);
        }
        reference
    };
    match sort {
        Sort::Mesh | Sort::NoBackend => vec![on_service(service, 80)],
        Sort::NoPort => vec![on_service(service, 81)],
        Sort::Consumer => {
            let other = (service + 1) % size.services;
            let mut reference = on_service(other, 80);
            reference["namespace"] = json!(name_of_namespace(other % size.namespaces));
            vec![reference]
        }
        Sort::Gateway | Sort::NoGrant => vec![on_gateway(section(index))],
        Sort::Both => vec![on_gateway(section(index)), on_service(service, 80)],
        Sort::NoHostname => vec![on_gateway(Some("example"))],
        Sort::NotAllowed => vec![on_gateway(Some("own"))],
    }
}
