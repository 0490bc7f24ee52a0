//! NetworkPolicies hold as they stand: what was allowed before joining is allowed after it, what was refused is refused, on one
//! node and across two (E22). The test bed enforces them at the pods' nodes, as a CNI does.

use crate::{Story, step};
use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use std::thread;
use weft_tests::{cluster::Cluster, family::host, policies};

/// In the mesh later, and never.
const NAMESPACES: [&str; 2] = ["e2e-policies", "e2e-policies-out"];
/// Name, namespace.
const CLIENTS: [(&str, &str); 4] = [
    ("friend", NAMESPACES[0]),
    ("other", NAMESPACES[0]),
    ("fenced", NAMESPACES[0]),
    ("guest", NAMESPACES[1]),
];
/// Each once on each node.
const SERVERS: [&str; 5] = ["open", "closed", "port", "peer", "guests"];

/// Client, server, port (9000 speaks opaque TCP), whether it may.
type Cell = (&'static str, &'static str, u16, bool);

const TABLE: &[Cell] = &[
    ("friend", "open", 8080, true),
    ("other", "open", 9000, true),
    ("guest", "open", 8080, true),
    // Default deny.
    ("friend", "closed", 8080, false),
    ("friend", "closed", 9000, false),
    ("guest", "closed", 8080, false),
    // By port.
    ("friend", "port", 8080, true),
    ("guest", "port", 8080, true),
    ("friend", "port", 9000, false),
    ("guest", "port", 9000, false),
    // By peer.
    ("friend", "peer", 8080, true),
    ("friend", "peer", 9000, true),
    ("other", "peer", 8080, false),
    ("other", "peer", 9000, false),
    ("guest", "peer", 8080, false),
    // By namespace and port.
    ("guest", "guests", 8080, true),
    ("guest", "guests", 9000, false),
    ("friend", "guests", 8080, false),
    // By what the client may.
    ("fenced", "open", 8080, true),
    ("fenced", "open", 9000, false),
    ("fenced", "port", 8080, false),
];

pub(crate) fn run(story: &Story<'_>) -> Result<()> {
    let cluster = story.cluster;
    clear(cluster)?;
    let world = World::build(story)?;
    let result = world.compare();
    policies::lift(cluster)?;
    result?;
    clear(cluster)
}

fn clear(cluster: &Cluster) -> Result<()> {
    let delete = ["delete", "namespace", "--ignore-not-found", "--timeout=110s"];
    cluster.kubectl(&[&delete[..], &NAMESPACES].concat()).map(drop)
}

struct World<'a> {
    cluster: &'a Cluster,
    /// Server, node, address: each server once for each address that it has.
    servers: Vec<(String, String, String)>,
}

impl<'a> World<'a> {
    fn build(story: &'a Story<'_>) -> Result<Self> {
        let cluster = story.cluster;
        let [here, there] = &story.nodes;
        let mut objects: Vec<_> =
            NAMESPACES.iter().map(|name| namespace(name)).chain(network_policies()).collect();
        objects.extend(CLIENTS.iter().map(|(name, namespace)| pod(cluster, namespace, name, here)));
        for server in SERVERS {
            objects.extend([here, there].map(|node| pod(cluster, NAMESPACES[0], server, node)));
        }
        cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string())?;
        for namespace in NAMESPACES {
            let wait = ["-n", namespace, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=110s"];
            cluster.kubectl(&wait)?;
        }
        policies::enforce(cluster)?;
        let pods = cluster.json(&["-n", NAMESPACES[0], "get", "pods"])?;
        let mut servers = Vec::new();
        for pod in pods["items"].as_array().context("items")? {
            let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
            let (app, node) = (text(&pod["metadata"]["labels"]["app"]), text(&pod["spec"]["nodeName"]));
            for ip in pod["status"]["podIPs"].as_array().context("podIPs")? {
                servers.push((app.clone(), node.clone(), text(&ip["ip"])));
            }
        }
        Ok(Self { cluster, servers })
    }

    fn compare(&self) -> Result<()> {
        step("policies before joining", || self.check())?;
        self.cluster.weft(&["join", NAMESPACES[0]])?;
        step("policies after joining", || self.check())?;
        self.cluster.kubectl(&["label", "namespace", NAMESPACES[0], "weft.dev/mtls=strict"])?;
        // A guest is refused by strict too then; pods of the mesh are as before.
        self.cluster.wait("strict to refuse a guest", || {
            let cell = self.ways().find(|(cell, _, _)| cell.0 == "guest" && cell.3).context("no guest")?;
            ensure!(!self.passes(cell.0, cell.2)?, "served in clear");
            Ok(())
        })?;
        step("policies under strict", || self.check_those(|cell| cell.0 != "guest"))
    }

    fn check(&self) -> Result<()> {
        self.check_those(|_| true)
    }

    /// Every cell on every node; all that are wrong are told.
    fn check_those(&self, wanted: impl Fn(&Cell) -> bool) -> Result<()> {
        let ways: Vec<_> = self.ways().filter(|(cell, _, _)| wanted(cell)).collect();
        let mut wrong = Vec::new();
        for some in ways.chunks(6) {
            let answers: Vec<Result<bool>> = thread::scope(|scope| {
                let asked: Vec<_> =
                    some.iter().map(|(cell, _, ip)| scope.spawn(move || self.passes(cell, ip))).collect();
                asked.into_iter().map(|a| a.join().unwrap_or_else(|_| bail!("panicked"))).collect()
            });
            for ((cell, node, ip), passed) in some.iter().zip(answers) {
                let (client, server, port, may) = cell;
                if passed? != *may {
                    let said = if *may { "is refused" } else { "gets through" };
                    wrong.push(format!("{client} {said} to {server} on {node}, {ip} port {port}"));
                }
            }
        }
        println!("{} ways, {} wrong", ways.len(), wrong.len());
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    }

    fn ways(&self) -> impl Iterator<Item = (&'static Cell, &str, &str)> {
        TABLE.iter().flat_map(|cell| {
            let its = self.servers.iter().filter(|(app, _, _)| app == cell.1);
            its.map(move |(_, node, ip)| (cell, &**node, &**ip))
        })
    }

    /// Whether messages come back; some that do and some that do not are an error.
    fn passes(&self, (client, _, port, _): &Cell, ip: &str) -> Result<bool> {
        let namespace = CLIENTS.iter().find(|c| c.0 == *client).context("client")?.1;
        let url = format!("http://{}:{port}/", host(ip));
        let protocol = if *port == 9000 { "--protocol=tcp" } else { "--protocol=http" };
        let args = [&*url, protocol, "--count=2", "--connections=1", "--no-keepalive"];
        let tally = self.cluster.call(&format!("{namespace}/{client}"), &args)?;
        match (tally.good(), tally.bad()) {
            (2, 0) => Ok(true),
            (0, 2) => Ok(false),
            _ => bail!("{client} to {url}: {tally:?}"),
        }
    }
}

fn namespace(name: &str) -> serde_json::Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"name": name}}})
}

/// A server, or a client: every one can be both.
fn pod(cluster: &Cluster, namespace: &str, app: &str, node: &str) -> serde_json::Value {
    let is_client = CLIENTS.iter().any(|(name, _)| *name == app);
    let name = if is_client { app.to_owned() } else { format!("{app}-{node}") };
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": app}},
        "spec": {"nodeSelector": {"kubernetes.io/hostname": node}, "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "app", "image": cluster.image, "imagePullPolicy": "IfNotPresent",
                "args": ["echo", "--name", app, "--http", "8080", "--tcp", "9000"]}]}})
}

fn network_policies() -> Vec<serde_json::Value> {
    let app = |name: &str| json!({"matchLabels": {"app": name}});
    let http = json!([{"protocol": "TCP", "port": 8080}]);
    let ingress = |name: &str, rules: serde_json::Value| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": NAMESPACES[0], "name": name},
            "spec": {"podSelector": app(name), "policyTypes": ["Ingress"], "ingress": rules}})
    };
    let guests = json!({"matchLabels": {"name": NAMESPACES[1]}});
    vec![
        ingress("closed", json!([])),
        ingress("port", json!([{"ports": http}])),
        ingress("peer", json!([{"from": [{"podSelector": app("friend")}]}])),
        ingress("guests", json!([{"from": [{"namespaceSelector": guests}], "ports": http}])),
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": NAMESPACES[0], "name": "fenced"},
            "spec": {"podSelector": app("fenced"), "policyTypes": ["Egress"],
                "egress": [{"to": [{"podSelector": app("open")}], "ports": http}]}}),
    ]
}
