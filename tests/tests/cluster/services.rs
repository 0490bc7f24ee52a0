//! Whom Services reach: a table of Services is called from a pod on each node, first outside the mesh, so that kube-proxy
//! decides, then by the same pods in the mesh, permissive and strict. The endpoints must be the same. Once for each address
//! family that the cluster has.

use crate::Story;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::atomic::{AtomicUsize, Ordering},
};
use weft_tests::{
    cluster::Cluster,
    family::{Family, host},
};

const NAMESPACE: &str = "e2e-services";
/// Clients, one on each node.
const CLIENTS: [&str; 2] = ["client-1", "client-2"];
/// Rows that are tried at a time: one that is dropped takes its time.
const AT_ONCE: usize = 4;
const ZONE: &str = "topology.kubernetes.io/zone";

/// Services: name, selector, more of the spec.
const SERVICES: &[(&str, &str, &str)] = &[
    ("plain", "app: web", ""),
    ("local", "app: web", ", internalTrafficPolicy: Local"),
    ("local-away", "only: second", ", internalTrafficPolicy: Local"),
    ("close", "app: web", ", trafficDistribution: PreferClose"),
    ("same-zone", "app: web", ", trafficDistribution: PreferSameZone"),
    ("same-node", "app: web", ", trafficDistribution: PreferSameNode"),
    ("same-zone-away", "only: second", ", trafficDistribution: PreferSameZone"),
    ("sick", "app: sick", ""),
    ("sick-published", "app: sick", ", publishNotReadyAddresses: true"),
    ("nobody", "app: nobody", ""),
    ("going", "app: going", ""),
    ("going-mixed", "mixed: one", ""),
    ("going-local", "mixed: one", ", internalTrafficPolicy: Local"),
    ("sticky", "seat: first", ", sessionAffinity: ClientIP"),
    ("seats", "seat: first", ""),
    ("by-hand", "", ""),
    ("by-hand-hints", "", ""),
    ("by-hand-partial", "", ""),
    ("external", "app: web", ", externalIPs: [\"198.51.100.10\"]"),
    (
        "external-local",
        "app: web",
        ", type: NodePort, externalIPs: [\"198.51.100.11\"], internalTrafficPolicy: Local, externalTrafficPolicy: Local",
    ),
    ("lb", "app: web", ", type: LoadBalancer"),
    (
        "lb-local",
        "only: second",
        ", type: LoadBalancer, internalTrafficPolicy: Local, externalTrafficPolicy: Local",
    ),
    ("lb-ranges", "app: web", ", type: LoadBalancer, loadBalancerSourceRanges: [\"FIRST_PODS\"]"),
    ("lb-proxy", "app: web", ", type: LoadBalancer"),
    ("node-port", "app: web", ", type: NodePort"),
    ("node-port-local", "app: web", ", type: NodePort, externalTrafficPolicy: Local"),
];

/// Addresses that no node has begin with this in the tables, and with the other when the table is run with IPv6.
const OUTSIDE_PREFIX: [&str; 2] = ["198.51.100.", "2001:db8::"];

/// What the load balancers of these Services answer at.
const BALANCERS: &[(&str, &str, &str)] = &[
    ("lb", "198.51.100.20", "VIP"),
    ("lb-local", "198.51.100.21", "VIP"),
    ("lb-ranges", "198.51.100.22", "VIP"),
    ("lb-proxy", "198.51.100.23", "Proxy"),
];

/// EndpointSlices of Services without selector: pods, and more of each endpoint.
const BY_HAND: &[(&str, [(&str, &str); 2])] = &[
    ("by-hand", [("a-1", ""), ("b-1", "")]),
    (
        "by-hand-hints",
        [("a-1", ", hints: {forZones: [{name: west}]}"), ("b-1", ", hints: {forZones: [{name: east}]}")],
    ),
    ("by-hand-partial", [("a-1", ", hints: {forZones: [{name: west}]}"), ("b-1", "")]),
];

const ALL: [&str; 2] = ["a-1 b-1 b-2"; 2];
const OWN: [&str; 2] = ["a-1", "b-1 b-2"];
const NOBODY: [&str; 2] = ["nobody"; 2];

/// Called at their ClusterIP.
const AT_CLUSTER_IPS: &[(&str, &str, [&str; 2])] = &[
    ("plain", "default", ALL),
    ("local", "internalTrafficPolicy: Local", OWN),
    ("local-away", "internalTrafficPolicy: Local, none on the first node", ["nobody", "b-1 b-2"]),
    ("close", "trafficDistribution: PreferClose", OWN),
    ("same-zone", "trafficDistribution: PreferSameZone", OWN),
    ("same-node", "trafficDistribution: PreferSameNode", OWN),
    ("same-zone-away", "trafficDistribution: PreferSameZone, none in the first zone", ["b-1 b-2"; 2]),
    ("sick", "an endpoint that is not ready", NOBODY),
    ("sick-published", "publishNotReadyAddresses", ["sick-1"; 2]),
    ("nobody", "no endpoint", NOBODY),
    ("going", "endpoints that terminate only", ["going-1 going-2"; 2]),
    ("going-mixed", "a ready one, and some that terminate", ["a-1"; 2]),
    ("going-local", "the same, internalTrafficPolicy: Local", ["a-1", "going-2"]),
    ("by-hand", "without selector", ["a-1 b-1"; 2]),
    ("by-hand-hints", "hints by hand, each for the other zone", ["b-1", "a-1"]),
    ("by-hand-partial", "hints by hand, one missing", ["a-1 b-1"; 2]),
    ("lb", "type LoadBalancer", ALL),
    ("external-local", "both policies Local", OWN),
];

/// Called at other addresses.
const OUTSIDE: &[(&str, &str, [&str; 2])] = &[
    ("198.51.100.10", "externalIPs", ALL),
    ("198.51.100.11", "externalIPs, both policies Local", ALL),
    ("198.51.100.20", "load balancer's address", ALL),
    ("198.51.100.21", "load balancer's address, both policies Local, none on the first node", ["b-1 b-2"; 2]),
    (
        "198.51.100.22",
        "load balancer's address, loadBalancerSourceRanges: the first node's pods",
        ["a-1 b-1 b-2", "nobody"],
    ),
    ("198.51.100.23", "load balancer's address, ipMode: Proxy", NOBODY),
];

/// One address that is called.
struct Row {
    what: &'static str,
    url: String,
    /// Who answers, by the client's node; `None`: whoever it was outside the mesh.
    expected: Option<[&'static str; 2]>,
    /// Strict pods are reached by nobody this way, since it is kube-proxy's affair: what comes is in clear.
    in_clear: bool,
}

/// Who answered, by the client's node.
type Seen = [String; 2];

/// Compares, and prints the table.
///
/// # Errors
/// When a row is not what it should be, with the table so far.
pub(crate) fn run(story: &Story<'_>) -> Result<()> {
    for family in story.cluster.families()? {
        println!("Services of {}", family.name());
        let table = Table { cluster: story.cluster, nodes: &story.nodes, family };
        table.clear()?;
        table.make().and_then(|()| table.compare()).context(family.name())?;
        table.clear()?;
    }
    Ok(())
}

struct Table<'a> {
    cluster: &'a Cluster,
    nodes: &'a [String; 2],
    family: Family,
}

impl Table<'_> {
    /// An address of the tables in this family, or a text with some.
    fn outside(&self, text: &str) -> String {
        text.replace(OUTSIDE_PREFIX[0], self.family.pick(OUTSIDE_PREFIX[0], OUTSIDE_PREFIX[1]))
    }

    fn pod_ip(&self, name: &str) -> Result<String> {
        let pod = self.cluster.json(&["-n", NAMESPACE, "get", "pod", name])?;
        Ok(self.family.pod_ip(&pod).with_context(|| pod["status"].to_string())?.to_owned())
    }

    /// Of what `kubectl` prints with spaces between, the one of this family.
    fn own_of(&self, args: &[&str]) -> Result<String> {
        let all = self.cluster.kubectl(args)?;
        let own = all.split_whitespace().find(|address| Family::of(address) == self.family);
        Ok(own.with_context(|| format!("none of {} among {all}", self.family.name()))?.to_owned())
    }

    fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.cluster.kubectl(&[&["-n", NAMESPACE], args].concat())
    }

    /// Pods, then the Services over them. One endpoint on the first node, two on the second, in two zones.
    fn make(&self) -> Result<()> {
        for (node, zone) in self.nodes.iter().zip(["east", "west"]) {
            self.cluster.kubectl(&["label", "node", node, "--overwrite", &format!("{ZONE}={zone}")])?;
        }
        self.cluster.apply(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}\n"))?;
        self.cluster.wait("the namespace's service account", || {
            self.kubectl(&["get", "serviceaccount", "default"])
        })?;
        self.cluster.apply(&self.pods())?;
        let ready =
            ["client-1", "client-2", "a-1", "b-1", "b-2", "going-1", "going-2"].map(|p| format!("pod/{p}"));
        let ready: Vec<&str> = ready.iter().map(String::as_str).collect();
        self.kubectl(&[&["wait", "--for=condition=Ready", "--timeout=110s"], &ready[..]].concat())?;
        self.cluster.apply(&self.services()?)?;
        for (name, ip, mode) in BALANCERS {
            let ip = self.outside(ip);
            let ingress = format!("[{{\"ip\":\"{ip}\",\"ipMode\":\"{mode}\"}}]");
            let status = format!("{{\"status\":{{\"loadBalancer\":{{\"ingress\":{ingress}}}}}}}");
            self.kubectl(&["patch", "service", name, "--subresource=status", "--type=merge", "-p", &status])?;
        }
        // On their way out, and serving for a long time yet.
        self.kubectl(&["delete", "pod", "going-1", "going-2", "--wait=false"]).map(drop)
    }

    fn pods(&self) -> String {
        let mut text = String::new();
        let [first, second] = self.nodes;
        let never = "\n    readinessProbe: {exec: {command: [weft, --no-such-flag]}}";
        let slow = "\n    lifecycle: {preStop: {sleep: {seconds: 1800}}}";
        for (name, node, labels, more) in [
            ("client-1", first, "app: client", ""),
            ("client-2", second, "app: client", ""),
            ("a-1", first, "app: web, mixed: one, seat: first", ""),
            ("b-1", second, "app: web, only: second", ""),
            ("b-2", second, "app: web, only: second", ""),
            ("sick-1", first, "app: sick", never),
            ("going-1", first, "app: going, mixed: one", slow),
            ("going-2", second, "app: going, mixed: one", slow),
        ] {
            let _ = write!(
                text,
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{namespace: {NAMESPACE}, name: {name}, labels: {{{labels}}}}}\nspec:\n  \
                 nodeSelector: {{kubernetes.io/hostname: {node}}}\n  terminationGracePeriodSeconds: 1800\n  containers:\n  \
                 - name: app\n    image: \"{image}\"\n    imagePullPolicy: IfNotPresent\n    \
                 args: [echo, --name, {name}, --http, \"8080\"]{more}\n",
                image = self.cluster.image
            );
        }
        text
    }

    fn services(&self) -> Result<String> {
        let first_pods =
            self.own_of(&["get", "node", &self.nodes[0], "-o", "jsonpath={.spec.podCIDRs[*]}"])?;
        let family = self.family.name();
        let mut text = String::new();
        for (name, selector, more) in SERVICES {
            let selector =
                if selector.is_empty() { String::new() } else { format!("selector: {{{selector}}}, ") };
            let more = self.outside(more).replace("FIRST_PODS", &first_pods);
            let _ = write!(
                text,
                "---\napiVersion: v1\nkind: Service\nmetadata: {{namespace: {NAMESPACE}, name: {name}}}\n\
                 spec: {{{selector}ipFamilies: [{family}], ports: [{{name: http, port: 80, targetPort: 8080, appProtocol: http}}, \
                 {{name: raw, port: 81, targetPort: 8080, appProtocol: tcp}}]{more}}}\n"
            );
        }
        for (name, endpoints) in BY_HAND {
            let mut all = String::new();
            for (pod, hints) in endpoints {
                let ip = self.pod_ip(pod)?;
                let _ = writeln!(all, "- {{addresses: [\"{ip}\"]{hints}}}");
            }
            let _ = write!(
                text,
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                 metadata: {{namespace: {NAMESPACE}, name: {name}-1, labels: {{kubernetes.io/service-name: {name}}}}}\n\
                 addressType: {family}\nports: [{{name: http, port: 8080}}, {{name: raw, port: 8080}}]\nendpoints:\n{all}"
            );
        }
        Ok(text)
    }

    /// What is called, and who has to answer.
    fn rows(&self) -> Result<Vec<Row>> {
        let services = self.cluster.json(&["-n", NAMESPACE, "get", "services"])?;
        let services: BTreeMap<&str, &Value> = services["items"]
            .as_array()
            .context("items")?
            .iter()
            .filter_map(|s| Some((s["metadata"]["name"].as_str()?, &s["spec"])))
            .collect();
        let spec = |name: &str| services.get(name).copied().with_context(|| format!("no Service {name}"));
        let row = |what, url, expected| Row { what, url, expected: Some(expected), in_clear: false };
        let mut rows = Vec::new();
        for (name, what, expected) in AT_CLUSTER_IPS {
            let ip = host(spec(name)?["clusterIP"].as_str().context("clusterIP")?);
            rows.push(row(what, format!("http://{ip}/"), *expected));
            rows.push(row("the same, not as HTTP", format!("http://{ip}:81/"), *expected));
        }
        for (ip, what, expected) in OUTSIDE {
            rows.push(row(what, format!("http://{}/", host(&self.outside(ip))), *expected));
        }
        let ip = host(&self.pod_ip("a-1")?);
        rows.push(row("a pod's own address", format!("http://{ip}:8080/"), ["a-1"; 2]));
        let address = "jsonpath={.status.addresses[?(@.type==\"InternalIP\")].address}";
        let address = host(&self.own_of(&["get", "node", &self.nodes[0], "-o", address])?);
        for (name, what, expected) in [
            ("node-port", "NodePort at the first node", Some(ALL)),
            ("node-port-local", "NodePort at the first node, externalTrafficPolicy: Local", None),
        ] {
            let port = spec(name)?["ports"][0]["nodePort"].as_u64().context("nodePort")?;
            rows.push(Row { what, url: format!("http://{address}:{port}/"), expected, in_clear: true });
        }
        Ok(rows)
    }

    fn compare(&self) -> Result<()> {
        let rows = self.rows()?;
        let mut columns: Vec<Vec<Seen>> = Vec::new();
        let result = ["kube-proxy", "joined", "strict"].into_iter().try_for_each(|phase| {
            self.enter(phase)?;
            let (seen, wrong) = self.look(&rows, columns.first().map(Vec::as_slice), phase == "strict");
            columns.push(seen);
            ensure!(wrong.is_empty(), "{phase}:\n{}", wrong.join("\n"));
            self.sticky().with_context(|| phase.to_owned())
        });
        println!("{}", self.printed(&rows, &columns));
        result
    }

    fn enter(&self, phase: &str) -> Result<()> {
        match phase {
            "joined" => {
                self.cluster.kubectl(&["label", "namespace", NAMESPACE, "weft.dev/mesh=enabled"])?;
                self.cluster.captured(NAMESPACE)
            }
            "strict" => {
                self.cluster.kubectl(&["label", "namespace", NAMESPACE, "weft.dev/mtls=strict"]).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Calls every row from both nodes until it is as expected, and says what is not.
    fn look(&self, rows: &[Row], outside: Option<&[Seen]>, strict: bool) -> (Vec<Seen>, Vec<String>) {
        let next = AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let (Some(row), client) = (rows.get(at / 2), at % 2) else { return done };
                let before = outside.map(|o| o[at / 2][client].as_str());
                let expected = match row.expected {
                    _ if strict && row.in_clear => Some("nobody"),
                    Some(expected) => Some(expected[client]),
                    None => before,
                };
                let mut last = String::new();
                let result = self.cluster.wait("the endpoints", || {
                    last = self.reached(CLIENTS[client], &row.url)?;
                    ensure!(expected.is_none_or(|e| e == last), "{last}");
                    Ok(())
                });
                let wrong = result.err().map(|e| {
                    format!("{} {} from {}: expected {expected:?}: {e:#}", row.what, row.url, CLIENTS[client])
                });
                done.push((at, last, wrong));
            }
        };
        let mut done: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
            threads.into_iter().flat_map(|t| t.join().expect("a thread that calls")).collect()
        });
        done.sort_by_key(|(at, ..)| *at);
        let wrong = done.iter().filter_map(|(.., wrong)| wrong.clone()).collect();
        let mut seen = done.into_iter().map(|(_, seen, _)| seen);
        let pairs = std::iter::from_fn(|| Some([seen.next()?, seen.next()?])).collect();
        (pairs, wrong)
    }

    /// Who answers new connections of a pod to this address.
    fn reached(&self, client: &str, url: &str) -> Result<String> {
        let pod = format!("{NAMESPACE}/{client}");
        // Alone first, and then all at once: whoever is dropped waits long.
        let first = self.cluster.call(&pod, &[url, "--count=1", "--connections=1", "--no-keepalive"])?;
        if first.good() == 0 {
            return Ok("nobody".to_owned());
        }
        let tally = self.cluster.call(&pod, &[url, "--count=40", "--connections=40", "--no-keepalive"])?;
        ensure!(tally.bad() == 0, "{tally:?}");
        Ok(tally.services.into_keys().collect::<Vec<_>>().join(" "))
    }

    /// Clients stay at the endpoint that they were sent to first, when two others come.
    fn sticky(&self) -> Result<()> {
        let ip = self.kubectl(&["get", "service", "sticky", "-o", "jsonpath={.spec.clusterIP}"])?;
        let url = format!("http://{}/", host(&ip));
        let all_are = |url: &str, expected: &str| {
            self.cluster.wait(&format!("{url} to be {expected}"), || {
                for client in CLIENTS {
                    let seen = self.reached(client, url)?;
                    ensure!(seen == expected, "{client} reaches {seen}");
                }
                Ok(())
            })
        };
        self.kubectl(&["label", "pod", "b-1", "b-2", "seat-", "--overwrite"])?;
        all_are(&url, "a-1")?;
        self.kubectl(&["label", "pod", "b-1", "b-2", "seat=first"])?;
        // A Service over the same pods without affinity says when it serves all three.
        let ip = self.kubectl(&["get", "service", "seats", "-o", "jsonpath={.spec.clusterIP}"])?;
        all_are(&format!("http://{}/", host(&ip)), "a-1 b-1 b-2")?;
        all_are(&url, "a-1")
    }

    fn printed(&self, rows: &[Row], columns: &[Vec<Seen>]) -> String {
        let mut text =
            String::from("| address | client on | kube-proxy | joined | strict |\n|---|---|---|---|---|\n");
        for (i, row) in rows.iter().enumerate() {
            for (client, node) in self.nodes.iter().enumerate() {
                let cells: Vec<&str> =
                    columns.iter().map(|c| c.get(i).map_or("", |seen| seen[client].as_str())).collect();
                let what = if client == 0 { row.what } else { "" };
                let _ = writeln!(text, "| {what} | {node} | {} |", cells.join(" | "));
            }
        }
        text
    }

    fn clear(&self) -> Result<()> {
        self.cluster.kubectl(&["-n", NAMESPACE, "delete", "pods", "--all", "--force", "--grace-period=0"])?;
        self.cluster.kubectl(&["delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=110s"])?;
        for node in self.nodes {
            self.cluster.kubectl(&["label", "node", node, &format!("{ZONE}-")])?;
        }
        Ok(())
    }
}
