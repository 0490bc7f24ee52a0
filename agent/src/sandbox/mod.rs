//! Nodes and pods on one machine: network namespaces joined by veths, as a cluster would have them.
//!
//! Used by `weft demo`, by the end-to-end tests and by the benchmarks. Everything here is real except Kubernetes:
//! pods are network namespaces with an address of their node's range, the plugin is called with real CNI JSON, agents
//! and holders are separate processes inside their node's namespace, the objects are YAML files.
//!
//! A [`Sandbox`] owns all that it made and removes it on drop. Names carry the process id, so that sandboxes run side
//! by side and a later one can sweep what a killed one left ([`sweep`]).

mod cni;
mod net;
mod objects;
mod process;

pub use cni::CniError;
pub use net::{Ip, Netns};
pub use objects::{EndpointsOf, pod_yaml, service_yaml};
pub use process::{Output, Process, run};

use anyhow::{Context, Result, bail};
use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

/// The most nodes and pods a sandbox may have (addresses are one byte each).
const NODES_MAX: usize = 8;
const PODS_PER_NODE_MAX: usize = 250;

/// How long an agent may take to be ready.
pub const READY: Duration = Duration::from_secs(20);

/// A cluster's worth of namespaces.
#[derive(Debug)]
pub struct Sandbox {
    id: String,
    dir: PathBuf,
    nodes: Vec<Node>,
    pods: BTreeMap<String, Pod>,
    options: Options,
}

/// How a sandbox is made.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The `weft` binary; the running one when left out.
    pub weft: Option<PathBuf>,
    /// The `weft-cni` binary; beside `weft` when left out.
    pub weft_cni: Option<PathBuf>,
    /// Pin all processes of node *n* to CPU *n* (two one-core nodes on a two-core machine).
    pub pinned: bool,
    /// Do not remove anything on drop.
    pub keep: bool,
    /// Extra arguments for every agent.
    pub agent_args: Vec<String>,
    /// Environment of every agent.
    pub agent_env: Vec<(String, String)>,
    /// How long an agent may take to be ready; [`READY`] when left out.
    pub patience: Option<Duration>,
}

/// One node: a namespace with a bridge for its pods and a link to the other nodes.
#[derive(Debug)]
pub struct Node {
    /// Name, as in `spec.nodeName`.
    pub name: String,
    /// Its namespace.
    pub netns: Netns,
    /// Run directory of its agent and holder.
    pub run_dir: PathBuf,
    /// Address on the link between the nodes.
    pub ip: Ipv4Addr,
    index: usize,
    pods: usize,
    holder: Option<Process>,
    agent: Option<Process>,
}

/// One pod.
#[derive(Clone, Debug)]
pub struct Pod {
    /// `namespace/name`.
    pub key: String,
    /// Its namespace.
    pub netns: Netns,
    /// Addresses.
    pub ip: Ipv4Addr,
    /// The same, IPv6.
    pub ip6: Ipv6Addr,
    /// Index of its node.
    pub node: usize,
    /// What it was made from.
    pub spec: PodSpec,
    /// The pair's end on the node's bridge, where a capture sees what crosses the wire.
    pub host_veth: String,
}

/// What a pod is made from.
#[derive(Clone, Debug, Default)]
pub struct PodSpec {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Service account; `default` when empty.
    pub service_account: String,
    /// Labels.
    pub labels: Vec<(String, String)>,
    /// Annotations.
    pub annotations: Vec<(String, String)>,
}

impl PodSpec {
    /// A pod `namespace/name` whose label `app` is `app`.
    #[must_use]
    pub fn new(namespace: &str, name: &str, app: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            service_account: app.into(),
            labels: vec![("app".into(), app.into())],
            annotations: Vec::new(),
        }
    }
}

impl Sandbox {
    /// An empty sandbox with its working directory (`config/` for YAML, a run directory a node).
    ///
    /// # Errors
    /// Without root, `ip` or `nft`: said with what to install.
    pub fn create(options: Options) -> Result<Self> {
        net::require_tools()?;
        sweep();
        let id = net::unique_id();
        let dir = std::env::temp_dir().join(format!("weft-{id}"));
        fs::create_dir_all(dir.join("config"))?;
        let sandbox = Self { id, dir, nodes: Vec::new(), pods: BTreeMap::new(), options };
        net::create_switch(&sandbox.id)?;
        Ok(sandbox)
    }

    /// Directory with the YAML that every agent reads.
    #[must_use]
    pub fn config_dir(&self) -> PathBuf {
        self.dir.join("config")
    }

    /// The sandbox's own directory: logs, run directories.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes one YAML file atomically, as `kubectl apply` would change objects at once.
    ///
    /// # Errors
    /// File system.
    pub fn apply(&self, name: &str, yaml: &str) -> Result<()> {
        let path = self.config_dir().join(format!("{name}.yaml"));
        let temporary = self.config_dir().join(format!(".{name}.tmp"));
        fs::write(&temporary, yaml)?;
        fs::rename(temporary, path)?;
        Ok(())
    }

    /// Removes a file written by [`Sandbox::apply`].
    ///
    /// # Errors
    /// File system.
    pub fn delete(&self, name: &str) -> Result<()> {
        Ok(fs::remove_file(self.config_dir().join(format!("{name}.yaml")))?)
    }

    /// Adds a node. Its agent is started by [`Sandbox::start_agent`].
    ///
    /// # Errors
    /// `ip` failed, or too many nodes.
    pub fn add_node(&mut self, name: &str) -> Result<usize> {
        let index = self.nodes.len();
        if index == NODES_MAX {
            bail!("a sandbox has at most {NODES_MAX} nodes");
        }
        let netns = Netns::named(&format!("weft-{}-{name}", self.id));
        let ip = net::create_node(&self.id, index, &netns)?;
        let run_dir = self.dir.join(name);
        fs::create_dir_all(&run_dir)?;
        for (other, node) in self.nodes.iter().enumerate() {
            net::route_between((index, &netns), (other, &node.netns))?;
        }
        self.nodes.push(Node {
            name: name.into(),
            netns,
            run_dir,
            ip,
            index,
            pods: 0,
            holder: None,
            agent: None,
        });
        Ok(index)
    }

    /// The nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Makes a pod's namespace and address and writes its Pod object, without telling the plugin.
    ///
    /// # Errors
    /// `ip` failed, or too many pods.
    pub fn create_pod(&mut self, node: usize, spec: PodSpec) -> Result<Pod> {
        let host = &mut self.nodes[node];
        if host.pods == PODS_PER_NODE_MAX {
            bail!("a node has at most {PODS_PER_NODE_MAX} pods");
        }
        host.pods += 1;
        let number = host.pods + 1;
        let netns = Netns::named(&format!("weft-{}-{}-{}", self.id, spec.namespace, spec.name));
        let link = net::create_pod(&self.id, host.index, &host.netns, number, &netns)?;
        let pod = Pod {
            key: format!("{}/{}", spec.namespace, spec.name),
            netns,
            ip: link.ip,
            ip6: link.ip6,
            node,
            host_veth: link.host_veth,
            spec,
        };
        self.apply(
            &format!("pod-{}-{}", pod.spec.namespace, pod.spec.name),
            &pod_yaml(&pod, &self.nodes[node].name),
        )?;
        self.pods.insert(pod.key.clone(), pod.clone());
        Ok(pod)
    }

    /// Makes a pod and calls the plugin's ADD for it, as the container runtime would.
    ///
    /// # Errors
    /// As [`Sandbox::create_pod`], and what the plugin answers.
    pub fn add_pod(&mut self, node: usize, spec: PodSpec) -> Result<Pod> {
        let pod = self.create_pod(node, spec)?;
        self.cni_add(&pod).with_context(|| format!("CNI ADD of pod {}", pod.key))?;
        Ok(pod)
    }

    /// Calls the plugin's ADD and gives its result.
    ///
    /// # Errors
    /// The plugin's own error.
    pub fn cni_add(&self, pod: &Pod) -> Result<serde_json::Value> {
        cni::call(&self.weft_cni()?, "ADD", pod, &self.nodes[pod.node].run_dir)
    }

    /// Calls another command of the plugin (DEL, CHECK).
    ///
    /// # Errors
    /// The plugin's own error.
    pub fn cni(&self, command: &str, pod: &Pod) -> Result<serde_json::Value> {
        cni::call(&self.weft_cni()?, command, pod, &self.nodes[pod.node].run_dir)
    }

    /// A pod by `namespace/name`.
    ///
    /// # Errors
    /// When there is none.
    pub fn pod(&self, key: &str) -> Result<&Pod> {
        self.pods.get(key).with_context(|| format!("no pod {key} in the sandbox"))
    }

    /// Deletes a pod: the plugin's DEL, its object, its namespace.
    ///
    /// # Errors
    /// The plugin's or `ip`'s.
    pub fn remove_pod(&mut self, key: &str) -> Result<()> {
        let pod = self.pods.remove(key).with_context(|| format!("no pod {key} in the sandbox"))?;
        self.cni("DEL", &pod)?;
        self.delete(&format!("pod-{}-{}", pod.spec.namespace, pod.spec.name))?;
        pod.netns.delete()
    }

    /// Starts the node's holder (if it is not running) and its agent, and waits until the agent is ready.
    ///
    /// # Errors
    /// When a process ends or is not ready in time; the error carries the end of its log.
    pub fn start_agent(&mut self, node: usize) -> Result<()> {
        if self.nodes[node].holder.is_none() {
            let holder = self.spawn_weft(node, "holder", &["holder", "--run-dir"])?;
            self.nodes[node].holder = Some(holder);
        }
        let mut agent = self.spawn_agent(node)?;
        self.wait_ready(node, &mut agent)?;
        self.nodes[node].agent = Some(agent);
        Ok(())
    }

    /// The node's agent.
    ///
    /// # Errors
    /// When it was not started.
    pub fn agent(&mut self, node: usize) -> Result<&mut Process> {
        self.nodes[node].agent.as_mut().context("the agent of this node was not started")
    }

    /// Kills the node's agent with SIGKILL, as an OOM would.
    ///
    /// # Errors
    /// When it was not running.
    pub fn kill_agent(&mut self, node: usize) -> Result<()> {
        self.nodes[node].agent.take().context("the agent of this node is not running")?.kill();
        Ok(())
    }

    /// Runs a program inside a pod to its end.
    ///
    /// # Errors
    /// When it cannot be started or runs longer than `limit`.
    pub fn exec(&self, pod: &Pod, argv: &[&str], limit: Duration) -> Result<Output> {
        process::run(&pod.netns, self.cpu(pod.node), argv, limit)
    }

    /// Starts a program inside a pod; its output goes to a log file.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, pod: &Pod, name: &str, argv: &[&str]) -> Result<Process> {
        let log = self.dir.join(format!("{}-{}-{name}.log", pod.spec.namespace, pod.spec.name));
        Process::start(&pod.netns, self.cpu(pod.node), argv, &[], &log)
    }

    /// Path of the `weft` binary in use.
    ///
    /// # Errors
    /// When the running program's path cannot be read.
    pub fn weft(&self) -> Result<PathBuf> {
        match &self.options.weft {
            Some(path) => Ok(path.clone()),
            None => Ok(std::env::current_exe()?),
        }
    }

    /// Polls the agents' metrics, logs or the world until `done`, or fails after `limit` with `what`.
    ///
    /// # Errors
    /// When the limit passes.
    pub fn wait_until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) -> Result<()> {
        let start = Instant::now();
        while !done() {
            check_interrupt()?;
            if start.elapsed() > limit {
                bail!("waited {limit:?} for: {what}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Reads a page of a node's agent (`/metrics` on 15020, every page on 15000).
    ///
    /// # Errors
    /// When the agent does not answer 200.
    pub fn agent_page(&self, node: usize, port: u16, path: &str) -> Result<String> {
        net::http_get(&self.nodes[node].netns, port, path)
    }

    /// Text of the agent's access log so far.
    #[must_use]
    pub fn access_log(&self, node: usize) -> String {
        fs::read_to_string(self.access_log_path(node)).unwrap_or_default()
    }

    fn access_log_path(&self, node: usize) -> PathBuf {
        self.dir.join(format!("{}-access.log", self.nodes[node].name))
    }

    fn cpu(&self, node: usize) -> Option<usize> {
        self.options.pinned.then_some(node)
    }

    fn weft_cni(&self) -> Result<PathBuf> {
        match &self.options.weft_cni {
            Some(path) => Ok(path.clone()),
            None => Ok(self.weft()?.with_file_name("weft-cni")),
        }
    }

    fn spawn_weft(&self, node: usize, name: &str, args: &[&str]) -> Result<Process> {
        let host = &self.nodes[node];
        let weft = self.weft()?;
        let mut argv = vec![path_str(&weft)?];
        argv.extend(args);
        argv.push(path_str(&host.run_dir)?);
        let log = self.dir.join(format!("{}-{name}.log", host.name));
        Process::start(&host.netns, self.cpu(node), &argv, &[], &log)
    }

    fn spawn_agent(&self, node: usize) -> Result<Process> {
        let host = &self.nodes[node];
        let (weft, config, ca, access) =
            (self.weft()?, self.config_dir(), self.dir.join("ca"), self.access_log_path(node));
        let mut argv = vec![
            path_str(&weft)?,
            "run",
            "--config",
            path_str(&config)?,
            "--node",
            &host.name,
            "--run-dir",
            path_str(&host.run_dir)?,
            "--ca-dir",
            path_str(&ca)?,
            "--access-log",
            path_str(&access)?,
        ];
        argv.extend(self.options.agent_args.iter().map(String::as_str));
        let log = self.dir.join(format!("{}-agent.log", host.name));
        Process::start(&host.netns, self.cpu(node), &argv, &self.options.agent_env, &log)
    }

    fn wait_ready(&self, node: usize, agent: &mut Process) -> Result<()> {
        let start = Instant::now();
        loop {
            check_interrupt()?;
            if self.agent_page(node, 15000, "/readyz").is_ok() {
                return Ok(());
            }
            if !agent.is_running() || start.elapsed() > self.options.patience.unwrap_or(READY) {
                let name = &self.nodes[node].name;
                bail!("the agent of {name} is not ready; the end of its log:\n{}", agent.log_tail());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if self.options.keep {
            for node in &mut self.nodes {
                for process in [&mut node.agent, &mut node.holder].into_iter().flatten() {
                    process.detach();
                }
            }
            return;
        }
        for node in &mut self.nodes {
            node.agent = None;
            node.holder = None;
        }
        net::remove(&self.id);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Removes what sandboxes of dead processes left behind: namespaces with their processes, directories.
pub fn sweep() {
    for id in net::dead_ids() {
        net::remove(&id);
        let _ = fs::remove_dir_all(std::env::temp_dir().join(format!("weft-{id}")));
    }
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The person asked to stop: whatever waits in here ends with [`Interrupted`]. True if it was asked before.
pub fn interrupt() -> bool {
    INTERRUPTED.swap(true, Ordering::SeqCst)
}

/// Whether [`interrupt`] was called.
#[must_use]
pub fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// The person asked to stop.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Ends what was interrupted.
///
/// # Errors
/// [`Interrupted`] after [`interrupt`].
pub fn check_interrupt() -> Result<(), Interrupted> {
    if is_interrupted() { Err(Interrupted) } else { Ok(()) }
}

/// Removes every sandbox of this process, from another thread than its owner's: for the last moment before an exit.
pub fn remove_own() {
    for id in net::ids_of(std::process::id()) {
        net::remove(&id);
        let _ = fs::remove_dir_all(std::env::temp_dir().join(format!("weft-{id}")));
    }
}

/// Removes sandboxes that were kept on purpose.
///
/// # Errors
/// File system.
pub fn remove_kept() -> Result<()> {
    for entry in fs::read_dir(std::env::temp_dir())?.flatten() {
        let keep = entry.path().join("keep");
        if entry.file_name().to_string_lossy().starts_with("weft-") && keep.exists() {
            fs::remove_file(keep)?;
        }
    }
    sweep();
    Ok(())
}

fn path_str(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
