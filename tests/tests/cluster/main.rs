//! Weft on a real Kubernetes, from nothing to nothing, in phases that also run alone (`phases.rs` has the table). One test,
//! because they share the cluster: each stands on what the one before left, or brings the cluster to what it needs.
//! `WEFT_TEST_PHASES` names those to run.

mod application;
mod authority;
mod away;
mod leaving;
mod matrix;
mod nodes;
mod objects;
mod personas;
mod phases;
mod policies;
mod probes;
mod rollouts;
mod screens;
mod services;
mod sharing;
mod stolen_node;
mod upgrade;

use anyhow::{Context, Result, ensure};
use objects::{CANARY, gateway, services, workloads};
use serde_json::Value;
use std::cell::RefCell;
use weft::call::Tally;
use weft_tests::{
    cluster::{Cluster, Load, SYSTEM},
    family::host,
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
/// Made by the test, and removed. `e2e-out` stays outside the mesh.
const NAMESPACES: [&str; 3] = ["e2e-web", "e2e-shop", "e2e-out"];
const CLIENT: &str = "e2e-web/deploy/client";
const STRANGER: &str = "e2e-out/deploy/stranger";

#[test]
fn from_nothing_to_a_mesh_and_back() -> Result<()> {
    let names = std::env::var("WEFT_TEST_PHASES").unwrap_or_default();
    phases::run(&Cluster::from_env()?, &names)
}

/// What the steps share.
struct Story<'a> {
    cluster: &'a Cluster,
    /// Where clients and the first version run, and where the second does.
    nodes: [String; 2],
    /// ClusterIP of each Service.
    web: String,
    cart: String,
    /// A connection from before the mesh, in use since the pods joined.
    kept: RefCell<Option<Load>>,
}

impl<'a> Story<'a> {
    /// A cluster without Weft, with the demo application in it.
    fn begin(cluster: &'a Cluster) -> Result<Self> {
        clear(cluster)?;
        let nodes = cluster.json(&["get", "nodes"])?;
        let mut names =
            nodes["items"].as_array().context("nodes")?.iter().filter_map(|n| n["metadata"]["name"].as_str());
        let mut node = || names.next().map(str::to_owned).context("the test needs two nodes");
        let nodes = [node()?, node()?];
        cluster.apply(&services())?;
        let ip = |namespace: &str, name: &str| {
            cluster.kubectl(&["-n", namespace, "get", "service", name, "-o", "jsonpath={.spec.clusterIP}"])
        };
        let (web, cart) = (ip("e2e-web", "web")?, ip("e2e-shop", "cart")?);
        cluster.apply(&workloads(&cluster.image, &nodes, &cart))?;
        Ok(Self { cluster, nodes, web, cart, kept: RefCell::default() })
    }

    fn install(&self) -> Result<()> {
        println!("{}", self.cluster.install()?);
        self.settled()
    }

    /// The application runs, and is not in the mesh: what is tested later is the mesh's doing.
    fn settled(&self) -> Result<()> {
        for namespace in NAMESPACES {
            self.cluster.kubectl(&[
                "-n",
                namespace,
                "wait",
                "--for=condition=Available",
                "deployment",
                "--all",
                "--timeout=110s",
            ])?;
        }
        let tally = self.call(CLIENT, &self.web, &["--count", "20"])?;
        ensure!(tally.bad() == 0, "{tally:?}");
        Ok(())
    }

    /// Labels two namespaces while a connection is in use, which must go on: it is kept until [`Story::kept_lives_on`].
    fn join(&self) -> Result<()> {
        let enrolled =
            self.cluster.kubectl(&["get", "namespaces", "-l", "weft.dev/mesh=enabled", "-o", "name"])?;
        let is_ours = |line: &str| NAMESPACES.iter().any(|n| line == format!("namespace/{n}"));
        ensure!(!enrolled.lines().any(is_ours), "in the mesh already: {enrolled}");
        let pods = self.pod_uids()?;
        // To the pod itself, not to its Service: a route may be made for that one later, and then each request has its own way.
        let kept = self.cluster.load(CLIENT, &[&self.direct("cart-v1")?, "--connections=1", "--rate=20"])?;
        self.cluster.kubectl(&["label", "namespace", "e2e-web", "e2e-shop", "weft.dev/mesh=enabled"])?;
        for namespace in ["e2e-web", "e2e-shop"] {
            self.cluster.captured(namespace)?;
        }
        ensure!(self.pod_uids()? == pods, "pods were restarted");
        *self.kept.borrow_mut() = Some(kept);
        Ok(())
    }

    /// The connection from before the mesh has served every request; asked before its pods or their node are touched.
    fn kept_lives_on(&self) -> Result<()> {
        let Some(kept) = self.kept.borrow_mut().take() else { return Ok(()) };
        let tally = kept.finish()?;
        ensure!(
            tally.bad() == 0 && tally.opened == 1,
            "the connection from before the mesh must live on: {}",
            brief(&tally)
        );
        Ok(())
    }

    /// A new connection between the nodes is seen by both agents, with both identities.
    fn mutual_tls(&self) -> Result<()> {
        let url = self.direct("cart-v2")?;
        let tally = self.cluster.call(CLIENT, &[&url, "--count=20", "--no-keepalive"])?;
        ensure!(tally.bad() == 0, "{tally:?}");
        // A Service, and the application that calls on to another namespace.
        let tally = self.call(CLIENT, &self.web, &["--count", "20"])?;
        ensure!(tally.bad() == 0, "{tally:?}");
        let sides = [(&self.nodes[0], "\"mesh\""), (&self.nodes[1], "\"inbound\"")];
        for (node, side) in sides {
            let line = self.cluster.log_line(node, &[side, "sa/client", "sa/cart"])?;
            ensure!(line["source_identity"] == "spiffe://cluster.local/ns/e2e-web/sa/client", "{line}");
            ensure!(line["destination_identity"] == "spiffe://cluster.local/ns/e2e-shop/sa/cart", "{line}");
        }
        Ok(())
    }

    fn gateway(&self) -> Result<()> {
        self.cluster.apply(&gateway(self.cluster.is_bed()))?;
        self.programmed()?;
        self.accepted("e2e-web", "web")?;
        let url = self.edge_url()?;
        self.cluster.wait(&format!("{url} to answer"), || self.curl(&[&url])).map(drop)
    }

    /// gateway → web → cart, as a real Jaeger tells it.
    fn trace(&self) -> Result<()> {
        let header = format!("traceparent: 00-{TRACE}-b7ad6b7169203331-01");
        let answer = self.curl(&["-H", &header, &self.edge_url()?])?;
        ensure!(answer.contains("cart-v"), "web must have asked cart: {answer}");
        let path = format!("/api/v1/namespaces/{SYSTEM}/services/jaeger:16686/proxy/api/traces/{TRACE}");
        self.cluster.wait("the spans in Jaeger", || {
            let page: Value = serde_json::from_str(&self.cluster.kubectl(&["get", "--raw", &path])?)?;
            let text = page.to_string();
            // Each hop is made by the caller's node and names whom it reached.
            for needle in
                ["\"serviceName\":\"edge\"", "\"serviceName\":\"web\"", "e2e-web/sa/web", "e2e-shop/sa/cart"]
            {
                ensure!(text.contains(needle), "no {needle} in {text}");
            }
            Ok(())
        })
    }

    fn canary_route(&self) -> Result<()> {
        self.cluster.apply(CANARY)?;
        self.accepted("e2e-shop", "cart")
    }

    /// 90/10 by a route on the Service, seen from a pod of another namespace, over both nodes.
    fn canary(&self) -> Result<()> {
        self.canary_route()?;
        let split = self.cluster.wait("both versions in about 90/10", || {
            let tally = self.call(CLIENT, &self.cart, &["--count=1000", "--connections=8"])?;
            ensure!(tally.bad() == 0, "no request may fail: {tally:?}");
            let v2 = tally.services.get("cart-v2").copied().unwrap_or_default();
            // Five standard deviations.
            ensure!((50..=150).contains(&v2), "expected about 100 of 1,000 at cart-v2: {:?}", tally.services);
            Ok(tally.services)
        })?;
        println!("canary: {split:?}");
        let line = self.cluster.log_line(&self.nodes[0], &["\"cart-v2", "\"route\""])?;
        ensure!(line["source_identity"] == "spiffe://cluster.local/ns/e2e-web/sa/client", "{line}");
        Ok(())
    }

    /// A stranger is served in clear until the namespace is strict.
    fn strict(&self) -> Result<()> {
        // Strict ends what is older than the join, since it was never protected.
        self.kept_lives_on()?;
        let url = self.direct("cart-v2")?;
        let before = self.cluster.call(STRANGER, &[&url, "--count=10", "--no-keepalive"])?;
        ensure!(before.bad() == 0, "permissive must serve callers in clear: {before:?}");
        self.cluster.kubectl(&["label", "namespace", "e2e-shop", "weft.dev/mtls=strict"])?;
        self.cluster.wait("strict to refuse", || {
            let tally = self.cluster.call(STRANGER, &[&url, "--count=10", "--no-keepalive"])?;
            ensure!(tally.codes.is_empty(), "{tally:?}");
            Ok(())
        })?;
        self.cluster.log_line(&self.nodes[1], &["denied"])?;
        let inside = self.cluster.call(CLIENT, &[&url, "--count=50", "--no-keepalive"])?;
        ensure!(inside.bad() == 0, "{inside:?}");
        Ok(())
    }

    /// The agent of the clients' node is deleted under load: no new connection fails, the holder keeps the sockets.
    fn replace_agent(&self) -> Result<()> {
        let url = self.direct("cart-v2")?;
        let fresh = self.cluster.load(CLIENT, &[&url, "--no-keepalive", "--connections=4", "--rate=50"])?;
        let kept = self.cluster.load(CLIENT, &[&url, "--connections=4", "--rate=50"])?;
        let old = self.cluster.agents()?.remove(&self.nodes[0]).context("no agent")?;
        let token = authority::agent_token(self, &self.nodes[0])?;
        self.cluster.kubectl(&["-n", SYSTEM, "delete", "pod", &old, "--wait=false"])?;
        self.cluster.wait("the new agent", || {
            let new = self.cluster.agents()?.remove(&self.nodes[0]).context("no agent")?;
            ensure!(new != old, "still the old agent");
            let ready = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
            let ready = self.cluster.kubectl(&["-n", SYSTEM, "get", "pod", &new, "-o", ready])?;
            ensure!(ready == "True", "{new}: ready {ready}");
            Ok(())
        })?;
        let (fresh, kept) = (fresh.finish()?, kept.finish()?);
        println!("new connections: {}\nkept: {}", brief(&fresh), brief(&kept));
        ensure!(fresh.bad() == 0, "no new connection may fail: {}", brief(&fresh));
        authority::refused_when_gone(self, &old, &token)
    }

    fn uninstall(&self) -> Result<()> {
        self.kept_lives_on()?;
        let url = self.direct("cart-v2")?;
        let pods = self.pod_uids()?;
        println!("{}", self.cluster.weft(&["uninstall", "--purge"])?);
        ensure!(self.pod_uids()? == pods, "pods were restarted");
        for (pod, url) in
            [(CLIENT, url.clone()), (STRANGER, url), (CLIENT, format!("http://{}/", host(&self.web)))]
        {
            let tally = self.cluster.call(pod, &[&url, "--count=20", "--no-keepalive"])?;
            ensure!(tally.bad() == 0, "pods must talk without Weft: {tally:?}");
        }
        if self.cluster.is_bed() {
            for node in &self.nodes {
                self.clean(node)?;
            }
        }
        Ok(())
    }

    /// Nothing of Weft is left on a node.
    fn clean(&self, node: &str) -> Result<()> {
        // The directories that the kubelet made for the agent's mounts stay, empty.
        let find = ["find", "/etc/cni", "/opt/cni/bin", "/run", "/var/lib/weft", "-xdev"];
        let ours = ["(", "-iname", "*weft*", "-o", "-path", "*/weft/*", ")", "!", "-type", "d"];
        let files = self.cluster.on_node(node, &[&find[..], &ours].concat())?;
        ensure!(files.trim().is_empty(), "{node} has files left:\n{files}");
        let tables = self.cluster.on_node(node, &["nft", "list", "tables"])?;
        ensure!(!tables.contains("weft"), "{node} has tables left:\n{tables}");
        Ok(())
    }

    fn call(&self, pod: &str, ip: &str, args: &[&str]) -> Result<Tally> {
        self.cluster.call(pod, &[&[format!("http://{}/", host(ip)).as_str()], args].concat())
    }

    /// From outside the cluster.
    fn curl(&self, args: &[&str]) -> Result<String> {
        self.cluster
            .run(&[&["curl", "-sS", "--fail-with-body", "--noproxy", "*", "--max-time", "20"], args].concat())
    }

    /// The URL of the pod behind a Deployment of `e2e-shop`.
    fn direct(&self, app: &str) -> Result<String> {
        let ip = [
            "-n",
            "e2e-shop",
            "get",
            "pods",
            "-l",
            &format!("version={app}"),
            "-o",
            "jsonpath={.items[0].status.podIP}",
        ];
        Ok(format!("http://{}:8080/", host(&self.cluster.kubectl(&ip)?)))
    }

    /// The pod behind a Deployment of `e2e-shop`.
    fn pod_of(&self, app: &str) -> Result<String> {
        let version = format!("version={app}");
        let name = "jsonpath={.items[0].metadata.name}";
        self.cluster.kubectl(&["-n", "e2e-shop", "get", "pods", "-l", &version, "-o", name])
    }

    fn has_gateway(&self) -> Result<bool> {
        let found = self.cluster.kubectl(&[
            "-n",
            "e2e-web",
            "get",
            "gateway",
            "edge",
            "--ignore-not-found",
            "-o",
            "name",
        ])?;
        Ok(!found.trim().is_empty())
    }

    fn edge_url(&self) -> Result<String> {
        let address =
            ["-n", "e2e-web", "get", "gateway", "edge", "-o", "jsonpath={.status.addresses[0].value}"];
        Ok(format!("http://{}/", host(&self.cluster.kubectl(&address)?)))
    }

    fn pod_uids(&self) -> Result<String> {
        let mut uids = String::new();
        for namespace in NAMESPACES {
            let path = "jsonpath={range .items[*]}{.metadata.uid} {.status.containerStatuses[0].restartCount}\n{end}";
            uids += &self.cluster.kubectl(&[
                "-n",
                namespace,
                "get",
                "pods",
                "--sort-by=.metadata.name",
                "-o",
                path,
            ])?;
        }
        Ok(uids)
    }

    fn programmed(&self) -> Result<()> {
        let wait = |condition: &str| {
            let condition = format!("--for=condition={condition}");
            self.cluster.kubectl(&["-n", "e2e-web", "wait", &condition, "gateway/edge", "--timeout=110s"])
        };
        wait("Accepted").and_then(|_| wait("Programmed")).map(drop)
    }

    /// Every parent of a route says Accepted and ResolvedRefs, of the generation that there is.
    fn accepted(&self, namespace: &str, name: &str) -> Result<()> {
        self.cluster.wait(&format!("route {namespace}/{name} to be accepted"), || {
            let route = self.cluster.json(&["-n", namespace, "get", "httproute", name])?;
            let parents = route["status"]["parents"].as_array().context("no status")?;
            let holds = |parent: &Value, kind: &str| {
                let conditions = parent["conditions"].as_array();
                conditions.into_iter().flatten().any(|c| {
                    c["type"] == kind
                        && c["status"] == "True"
                        && c["observedGeneration"] == route["metadata"]["generation"]
                })
            };
            let all = parents.iter().all(|p| holds(p, "Accepted") && holds(p, "ResolvedRefs"));
            ensure!(all && !parents.is_empty(), "{}", route["status"]);
            Ok(())
        })
    }
}

/// Takes away what an earlier run may have left.
fn clear(cluster: &Cluster) -> Result<()> {
    let installed = !cluster.kubectl(&["get", "namespace", SYSTEM, "--ignore-not-found"])?.trim().is_empty();
    ensure!(!installed || cluster.is_bed(), "Weft is installed in this cluster already");
    if installed {
        cluster.weft(&["uninstall", "--purge", "--force", "--timeout=60s"])?;
    }
    sharing::clear(cluster)?;
    let mut delete = vec!["delete", "namespace", "--ignore-not-found", "--timeout=110s"];
    delete.extend(NAMESPACES);
    cluster.kubectl(&delete).map(drop)
}

fn step<T>(name: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = std::time::Instant::now();
    let result = run().with_context(|| format!("step: {name}"));
    println!(
        "== {name}: {} in {:.1} s",
        if result.is_ok() { "done" } else { "FAILED" },
        start.elapsed().as_secs_f64()
    );
    result
}

fn brief(tally: &Tally) -> String {
    format!(
        "{} good, {} bad, {} connections, {:?} {:?}",
        tally.good(),
        tally.bad(),
        tally.opened,
        tally.codes,
        tally.failures
    )
}
