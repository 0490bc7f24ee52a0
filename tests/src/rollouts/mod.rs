//! Rollouts, scaling and pod deletions under load: what they cost whoever calls, in the mesh, through a Gateway, and outside of
//! both in the same run.
//!
//! ```text
//! world: the same Deployment inside and outside the mesh, loads on each way ─▶ actions one after the other
//!    ─▶ tallies with the numbers of failed requests, the servers' logs of what they have taken ─▶ verdict
//! ```

mod soak;
mod verdict;
mod yaml;

pub use soak::{Args, run};
pub use verdict::{Counted, beyond_cuts, sum, verdict};

use crate::cluster::{Cluster, Load};
use anyhow::{Context, Result, ensure};
use std::{collections::HashSet, time::Instant};

/// The namespace in the mesh, and the one outside of it.
const NAMESPACES: [&str; 2] = ["weft-rollouts", "weft-rollouts-out"];
/// Where servers log, on every node.
const LOGS: &str = "/var/log/weft-rollouts";
/// Pods of a Deployment between actions.
const REPLICAS: usize = 3;

/// How a server behaves when it starts and when it is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backend {
    /// Its readiness tells the truth, and on SIGTERM it answers what it has taken.
    Finishes,
    /// The same, with a `preStop` that waits.
    PreStop,
    /// On SIGTERM it ends at once.
    Exits,
    /// It listens only ten seconds after its start, and its readiness is whether its port accepts (E1).
    Late,
}

impl Backend {
    /// Name of its Deployment and Service.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Finishes => "finishes",
            Self::PreStop => "prestop",
            Self::Exits => "exits",
            Self::Late => "late",
        }
    }

    /// Whether it runs outside the mesh too, to compare with. (Without a `preStop` nothing outside could be without failures:
    /// a server that listens no more is still in the rules of kube-proxy.)
    #[must_use]
    pub const fn compared(self) -> bool {
        matches!(self, Self::Exits | Self::Late)
    }

    /// How long it takes to answer, in milliseconds: so that an end finds requests that were taken.
    const fn answer_after(self) -> u64 {
        match self {
            Self::Finishes | Self::PreStop | Self::Late => 5,
            Self::Exits => 50,
        }
    }
}

/// The way that requests go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// From a pod of the mesh to the Service.
    Mesh,
    /// From outside the cluster through a Gateway.
    Gateway,
    /// From a pod outside the mesh to a Service outside the mesh.
    Outside,
}

impl Way {
    const ALL: [Self; 3] = [Self::Mesh, Self::Gateway, Self::Outside];

    /// For people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mesh => "mesh",
            Self::Gateway => "gateway",
            Self::Outside => "outside",
        }
    }
}

/// Where rollouts are tried.
pub struct World<'a> {
    cluster: &'a Cluster,
    nodes: Vec<String>,
    /// Requests a second of each load.
    rate: u32,
    rounds: u32,
}

impl<'a> World<'a> {
    /// Namespaces, clients and the Gateway, in a cluster with Weft.
    ///
    /// # Errors
    /// When they do not come up.
    pub fn build(cluster: &'a Cluster, rate: u32) -> Result<Self> {
        Self::clear(cluster)?;
        let nodes = cluster.json(&["get", "nodes"])?;
        let nodes = nodes["items"].as_array().context("nodes")?.iter();
        let nodes = nodes.filter_map(|node| node["metadata"]["name"].as_str()).map(str::to_owned).collect();
        cluster.apply(&yaml::base(&cluster.image))?;
        let world = Self { cluster, nodes, rate, rounds: 0 };
        world.available()?;
        Ok(world)
    }

    /// Takes all of it away.
    ///
    /// # Errors
    /// What `kubectl` says.
    pub fn clear(cluster: &Cluster) -> Result<()> {
        let delete = ["delete", "namespace", "--ignore-not-found", "--timeout=110s"];
        cluster.kubectl(&[&delete[..], &NAMESPACES].concat()).map(drop)
    }

    /// One round for Deployments of these kinds: restarted, grown, shrunk, and a pod of each deleted, with all loads on.
    ///
    /// # Errors
    /// When the cluster does not do what it is told.
    pub fn round(&mut self, backends: &[Backend]) -> Result<Vec<Counted>> {
        self.rounds += 1;
        self.logs("rm -f")?;
        for backend in backends {
            self.cluster.apply(&yaml::backend(&self.cluster.image, *backend))?;
        }
        self.available()?;
        self.cluster.captured(NAMESPACES[0])?;
        let mut loads = Vec::new();
        for backend in backends {
            for way in Way::ALL {
                if way != Way::Outside || backend.compared() {
                    loads.push((*backend, way, self.load(*backend, way, true)?));
                    loads.push((*backend, way, self.load(*backend, way, false)?));
                }
            }
        }
        self.act(backends)?;
        let mut counted = Vec::new();
        for (backend, way, (prefix, load)) in loads {
            counted.push(Counted { backend, way, prefix, tally: load.finish()? });
        }
        Ok(counted)
    }

    /// `PREFIX-NUMBER` of all requests that servers have taken in the last round.
    ///
    /// # Errors
    /// When a node does not show its logs.
    pub fn taken(&self) -> Result<HashSet<String>> {
        let logs = self.logs("cat")?;
        Ok(logs.lines().filter_map(|line| line.strip_prefix("taken ")).map(str::to_owned).collect())
    }

    fn logs(&self, command: &str) -> Result<String> {
        let script = format!("for log in {LOGS}/*; do [ ! -e \"$log\" ] || {command} \"$log\"; done");
        self.nodes.iter().map(|node| self.cluster.on_node(node, &["sh", "-c", &script])).collect()
    }

    fn load(&self, backend: Backend, way: Way, kept: bool) -> Result<(String, Load)> {
        let prefix = format!(
            "{}-{}-{}-{}",
            self.rounds,
            backend.name(),
            way.name(),
            if kept { "kept" } else { "new" }
        );
        let (host, rate) = (format!("{}.test", backend.name()), self.rate.to_string());
        let mut args = vec!["--connections=4", "--rate", &rate, "--number", &prefix, "--host", &host];
        if !kept {
            args.push("--no-keepalive");
        }
        let service = |namespace| {
            let address =
                ["-n", namespace, "get", "service", backend.name(), "-o", "jsonpath={.spec.clusterIP}"];
            Ok::<_, anyhow::Error>(format!("http://{}/", self.cluster.kubectl(&address)?))
        };
        let from = |namespace: &str, url: &str| {
            let client = format!("{namespace}/deploy/client");
            self.cluster.load(&client, &[&[url][..], &args].concat())
        };
        let load = match way {
            Way::Mesh => from(NAMESPACES[0], &service(NAMESPACES[0])?)?,
            Way::Outside => from(NAMESPACES[1], &service(NAMESPACES[1])?)?,
            Way::Gateway => {
                let url = self.edge(&host)?;
                self.cluster.load_beside(&[&[&*url][..], &args].concat())?
            }
        };
        Ok((prefix, load))
    }

    /// The Gateway's URL, when it serves this host.
    fn edge(&self, host: &str) -> Result<String> {
        let path = "jsonpath={.status.addresses[0].value}";
        self.cluster.wait(&format!("the Gateway to serve {host}"), || {
            let address =
                self.cluster.kubectl(&["-n", NAMESPACES[0], "get", "gateway", "edge", "-o", path])?;
            let (url, header) = (format!("http://{address}/"), format!("host: {host}"));
            self.cluster.run(&["curl", "-sSf", "--noproxy", "*", "--max-time", "5", "-H", &header, &url])?;
            Ok(url)
        })
    }

    /// One after the other, each when the one before is done.
    fn act(&self, backends: &[Backend]) -> Result<()> {
        self.each(backends, &["rollout", "restart"])?;
        self.settled(backends, REPLICAS)?;
        // A server that starts late has shown when it counts as ready.
        let backends: Vec<Backend> = backends.iter().copied().filter(|b| *b != Backend::Late).collect();
        if backends.is_empty() {
            return Ok(());
        }
        let backends = &*backends;
        for replicas in [REPLICAS + 2, REPLICAS - 1, REPLICAS] {
            self.each(backends, &["scale", &format!("--replicas={replicas}")])?;
            self.settled(backends, replicas)?;
        }
        for (namespace, backend) in Self::deployments(backends) {
            let app = format!("app={}", backend.name());
            let pods = self.cluster.json(&["-n", namespace, "get", "pods", "-l", &app])?;
            let pod = pods["items"][0]["metadata"]["name"].as_str().context("no pod")?;
            self.cluster.kubectl(&["-n", namespace, "delete", "pod", pod, "--wait=false"])?;
        }
        self.settled(backends, REPLICAS)
    }

    fn deployments(backends: &[Backend]) -> impl Iterator<Item = (&'static str, Backend)> {
        let places = |backend: &Backend| {
            let count = if backend.compared() { 2 } else { 1 };
            let backend = *backend;
            NAMESPACES.into_iter().take(count).map(move |namespace| (namespace, backend))
        };
        backends.iter().flat_map(places)
    }

    fn each(&self, backends: &[Backend], verb: &[&str]) -> Result<()> {
        for (namespace, backend) in Self::deployments(backends) {
            let deployment = format!("deployment/{}", backend.name());
            self.cluster.kubectl(&[&["-n", namespace][..], verb, &[&deployment]].concat())?;
        }
        Ok(())
    }

    /// So many pods of the newest kind are ready, and the others are gone.
    fn settled(&self, backends: &[Backend], replicas: usize) -> Result<()> {
        let start = Instant::now();
        for (namespace, backend) in Self::deployments(backends) {
            let name = backend.name();
            self.cluster.wait(&format!("{replicas} pods of {namespace}/{name}"), || {
                let deployment = format!("deployment/{name}");
                self.cluster.kubectl(&[
                    "-n",
                    namespace,
                    "rollout",
                    "status",
                    &deployment,
                    "--timeout=60s",
                ])?;
                let app = format!("app={name}");
                let pods = self.cluster.json(&["-n", namespace, "get", "pods", "-l", &app])?;
                let pods = pods["items"].as_array().context("items")?;
                let ending =
                    pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_string()).count();
                ensure!(pods.len() == replicas && ending == 0, "{} pods, {ending} ending", pods.len());
                Ok(())
            })?;
        }
        println!("{replicas} pods each after {:.1} s", start.elapsed().as_secs_f64());
        Ok(())
    }

    fn available(&self) -> Result<()> {
        for namespace in NAMESPACES {
            let wait = ["wait", "--for=condition=Available", "deployment", "--all", "--timeout=110s"];
            self.cluster.kubectl(&[&["-n", namespace][..], &wait].concat())?;
        }
        Ok(())
    }
}
