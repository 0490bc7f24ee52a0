//! Servers and clients on both nodes, Gateways, and what the loads report.

use crate::cluster::{Cluster, LIMIT, SYSTEM};
use anyhow::{Context, Result, ensure};
use std::{
    collections::BTreeMap,
    fs::File,
    os::unix::fs::FileExt as _,
    process::{Child, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use weft::call::Tally;

/// Where all of it lives.
pub(super) const NAMESPACE: &str = "weft-faults";
/// The nodes of the test bed; faults of a node are done to the first.
pub(super) const NODES: [&str; 2] = ["n1", "n2"];
/// How long an ending agent lets connections finish.
pub(super) const DRAIN_SECONDS: u32 = 20;
/// Requests or messages a second of each load.
pub(super) const RATE: u32 = 20;
/// A load is steady after so many reports (one a second) without a failure. How fast it is answered says more of the machine
/// than of the mesh.
const STEADY: usize = 3;
/// The longest that a run may take.
const RUN_LIMIT: Duration = Duration::from_secs(3 * 3600);

/// What a load sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// HTTP/1.1 requests on one kept connection.
    Kept,
    /// HTTP/1.1 requests, each on a connection of its own.
    New,
    /// Messages of one bidirectional gRPC call.
    Grpc,
    /// Messages of one TCP connection.
    Tcp,
}

impl Class {
    pub(super) const ALL: [Self; 4] = [Self::Kept, Self::New, Self::Grpc, Self::Tcp];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::New => "new",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
    }

    fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.name() == name)
    }
}

/// Where traffic goes along.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Path {
    /// Name of the client's pod, or of the Gateway and the server's node.
    pub(super) name: String,
    /// The node of the client, or of the Gateway that a client outside calls.
    pub(super) from: String,
    /// The node of the server.
    pub(super) to: String,
    gateway: Option<String>,
}

impl Path {
    /// From a pod to a Service.
    pub(super) fn inside(name: &str, from: &str, to: &str) -> Self {
        Self { name: name.into(), from: from.into(), to: to.into(), gateway: None }
    }

    /// Whether an agent of this node is on the way.
    pub(super) fn crosses(&self, node: &str) -> bool {
        self.from == node || self.to == node
    }

    /// For the table.
    pub(super) fn title(&self) -> String {
        let gateway = if self.gateway.is_some() { "Gateway on " } else { "" };
        format!("{gateway}{} → {}", self.from, self.to)
    }
}

/// A client outside the cluster.
struct Outside {
    path: String,
    class: Class,
    child: Child,
    out: File,
}

impl Drop for Outside {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // `timeout` passes the signal on; what it runs ends with its standard input at the latest.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is measured in.
pub(super) struct World<'a> {
    pub(super) cluster: &'a Cluster,
    paths: Vec<Path>,
    outside: Vec<Outside>,
    since: u64,
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Takes Weft and the loads away.
pub(super) fn clear(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=110s"])?;
    cluster.weft(&["uninstall", "--purge", "--force", "--timeout=60s"])?;
    // The next run installs into it.
    cluster.kubectl(&["wait", "--for=delete", &format!("namespace/{SYSTEM}"), "--timeout=110s"]).map(drop)
}

impl<'a> World<'a> {
    /// Installs Weft, starts servers, clients and Gateways, and waits until all are captured and served.
    pub(super) fn build(cluster: &'a Cluster) -> Result<Self> {
        cluster.kubectl(&["delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=110s"])?;
        let drain = format!("agent.drainSeconds={DRAIN_SECONDS}");
        println!("{}", cluster.weft(&["install", "--image", &cluster.image, "--set", &drain])?);
        cluster.apply(&super::yaml::servers(&cluster.image))?;
        cluster.apply(&super::yaml::gateways())?;
        let mut world = Self { cluster, paths: Vec::new(), outside: Vec::new(), since: now_ms() };
        // First, so that the clients' first connections are known for what they are.
        world.kubectl(&["wait", "--for=condition=Available", "deployment", "--all", "--timeout=110s"])?;
        world.start_inside()?;
        world.start_outside()?;
        world.captured()?;
        world.since = now_ms();
        Ok(world)
    }

    pub(super) fn paths(&self) -> &[Path] {
        &self.paths
    }

    /// `kubectl` in the loads' namespace.
    pub(super) fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.cluster.kubectl(&[&["-n", NAMESPACE], args].concat())
    }

    /// `kubectl` in Weft's own namespace.
    pub(super) fn system(&self, args: &[&str]) -> Result<String> {
        self.cluster.kubectl(&[&["-n", SYSTEM], args].concat())
    }

    pub(super) fn cluster_ip(&self, service: &str) -> Result<String> {
        self.kubectl(&["get", "service", service, "-o", "jsonpath={.spec.clusterIP}"])
    }

    /// Clients in pods: each a container, so that none hangs on a connection to the API server.
    fn start_inside(&mut self) -> Result<()> {
        for (from, to) in [(0, 0), (0, 1), (1, 1)].map(|(a, b)| (NODES[a], NODES[b])) {
            let name = format!("from-{from}-to-{to}");
            let ip = self.cluster_ip(&format!("web-{to}"))?;
            self.cluster.apply(&super::yaml::client(&self.cluster.image, &name, from, &ip))?;
            self.paths.push(Path::inside(&name, from, to));
        }
        self.kubectl(&["wait", "--for=condition=Ready", "pod", "-l", "role=client", "--timeout=110s"])
            .map(drop)
    }

    /// Clients outside, through Gateways.
    fn start_outside(&mut self) -> Result<()> {
        for gateway in super::yaml::GATEWAYS {
            let programmed =
                ["wait", "--for=condition=Programmed", &format!("gateway/{gateway}"), "--timeout=110s"];
            self.kubectl(&programmed)?;
        }
        for (gateway, to) in [("edge-a", NODES[0]), ("edge-a", NODES[1]), ("edge-b", NODES[1])] {
            let address = "jsonpath={.status.addresses[0].value}";
            let ip = self.kubectl(&["get", "gateway", gateway, "-o", address])?;
            let from = self.owner(gateway)?;
            let name = format!("{gateway}-to-{to}");
            for class in Class::ALL {
                let load = self.outside_load(&name, class, &super::yaml::outside_call(class, &ip, to))?;
                self.outside.push(load);
            }
            self.paths.push(Path { name, from, to: to.into(), gateway: Some(gateway.into()) });
        }
        Ok(())
    }

    /// The node that holds a Gateway's address.
    fn owner(&self, gateway: &str) -> Result<String> {
        let of = format!("gateway.networking.k8s.io/gateway-name={gateway}");
        let path = "jsonpath={.items[0].metadata.annotations.weft\\.dev/address-owner}";
        let node = self.kubectl(&["get", "service", "-l", &of, "-o", path])?;
        ensure!(NODES.contains(&node.as_str()), "Gateway {gateway} is held by {node:?}");
        Ok(node)
    }

    fn outside_load(&self, path: &str, class: Class, args: &[String]) -> Result<Outside> {
        let weft = self.cluster.weft_program().to_str().context("path")?;
        let mut argv = vec![weft, "call", "--until-eof"];
        argv.extend(args.iter().map(String::as_str));
        let out = tempfile::tempfile()?;
        let mut command = self.cluster.command(RUN_LIMIT, &argv);
        let child = command.stdin(Stdio::piped()).stdout(out.try_clone()?).stderr(Stdio::null()).spawn()?;
        Ok(Outside { path: path.into(), class, child, out })
    }

    /// Every pod here is captured, as the agents say.
    fn captured(&self) -> Result<()> {
        self.cluster.wait("all pods to be captured", || {
            let slices = self.cluster.json(&["-n", NAMESPACE, "get", "workloadslices"])?;
            let slices = slices["items"].as_array().context("items")?.iter();
            let workloads: Vec<_> =
                slices.filter_map(|slice| slice["workloads"].as_array()).flatten().collect();
            let open: Vec<_> =
                workloads.iter().filter(|w| w["captured"] != true).map(|w| &w["name"]).collect();
            ensure!(workloads.len() >= 7 && open.is_empty(), "{} workloads, open: {open:?}", workloads.len());
            Ok(())
        })
    }

    /// Waits until every load has answers only, for a few seconds from `from` on.
    pub(super) fn steady(&self, from: u64) -> Result<()> {
        self.cluster.wait("steady traffic", || {
            let reports = self.reports(from)?;
            let mut bad = Vec::new();
            for (path, class) in self.loads() {
                let all = reports.get(&(path.to_owned(), class)).map_or(&[][..], Vec::as_slice);
                let last = &all[all.len().saturating_sub(STEADY)..];
                let well = last.iter().all(|t| t.bad() == 0) && last.iter().any(|t| t.good() > 0);
                if last.len() < STEADY || !well {
                    bad.push(format!(
                        "{path} {}: {}",
                        class.name(),
                        last.last().map_or_else(String::new, brief)
                    ));
                }
            }
            ensure!(bad.is_empty(), "{}", bad.join("; "));
            Ok(())
        })
    }

    /// What happened since `from`.
    pub(super) fn counted(&self, from: u64) -> Result<BTreeMap<(String, Class), Tally>> {
        let reports = self.reports(from)?;
        let sum = |reports: Vec<Tally>| {
            let mut sum = Tally::default();
            reports.iter().for_each(|report| sum.add(report));
            sum
        };
        Ok(reports.into_iter().map(|(load, reports)| (load, sum(reports))).collect())
    }

    fn loads(&self) -> impl Iterator<Item = (&str, Class)> {
        self.paths.iter().flat_map(|path| Class::ALL.map(|class| (path.name.as_str(), class)))
    }

    fn reports(&self, from: u64) -> Result<BTreeMap<(String, Class), Vec<Tally>>> {
        let mut reports: BTreeMap<(String, Class), Vec<Tally>> = BTreeMap::new();
        let from = from.max(self.since);
        let mut add = |path: &str, class: Class, line: &str| {
            // The line that is being written is read the next time.
            if let Ok(report) = serde_json::from_str::<Tally>(line)
                && report.at_ms >= from
            {
                reports.entry((path.to_owned(), class)).or_default().push(report);
            }
        };
        let since = format!("--since={}s", now_ms().saturating_sub(from) / 1000 + 3);
        let logs = [
            "logs",
            "-l",
            "role=client",
            "--all-containers",
            "--prefix",
            "--tail=-1",
            "--max-log-requests=20",
        ];
        for line in self.kubectl(&[&logs[..], &[&since]].concat())?.lines() {
            // [pod/NAME/CONTAINER] LINE
            let Some((place, line)) = line.split_once(' ') else { continue };
            let mut parts = place.trim_matches(['[', ']']).split('/').skip(1);
            if let (Some(path), Some(class)) = (parts.next(), parts.next().and_then(Class::of)) {
                add(path, class, line);
            }
        }
        for load in &self.outside {
            let mut bytes = vec![0; usize::try_from(load.out.metadata()?.len())?];
            load.out.read_exact_at(&mut bytes, 0)?;
            String::from_utf8_lossy(&bytes).lines().for_each(|line| add(&load.path, load.class, line));
        }
        Ok(reports)
    }

    /// Waits longer than a condition may take by itself.
    pub(super) fn wait_system(&self, args: &[&str]) -> Result<()> {
        let timeout = format!("--timeout={}s", LIMIT.as_secs() - 10);
        self.system(&[args, &[&timeout]].concat()).map(drop)
    }
}

/// One line.
pub(super) fn brief(tally: &Tally) -> String {
    format!(
        "{} answered, {} failed, {} resets, {} ms {:?}",
        tally.good(),
        tally.bad(),
        tally.resets,
        tally.gap_ms,
        tally.failures
    )
}
