//! Two nodes on two CPUs, pods inside the mesh and the same pods outside it.

use super::{
    Options,
    peers::{Who, file_server},
    place::{Class, Place, argv},
    results::{Figures, Row},
};
use anyhow::{Context as _, Result};
use std::{fs, net::Ipv4Addr, path::PathBuf, time::Duration};
use weft::sandbox::{self, EndpointsOf, Pod, PodSpec, Process, Sandbox, service_yaml};

use crate::{namespaces, service_route};

/// Port of the HTTP servers of the pods, and of iperf3.
pub(super) const HTTP: u16 = 8080;
/// See [`HTTP`].
pub(super) const IPERF: u16 = 5201;

/// A client's view of a server: through the mesh, or by the pod's own address without one.
#[derive(Clone, Debug)]
pub(super) struct Path {
    /// Where clients run.
    pub client: Place,
    /// Address of the Service or of the pod.
    pub ip: Ipv4Addr,
    /// Port for HTTP, detected or declared.
    pub http: u16,
    /// Port of the same server, declared opaque.
    pub opaque: u16,
}

/// The nodes with their agents.
pub(super) struct Rig {
    /// First, so that they end before their namespaces go.
    servers: Vec<Process>,
    services: u8,
    /// The nodes.
    pub sandbox: Sandbox,
    /// Process ids of the agents, client's node first; empty without Weft.
    pub agents: Vec<u32>,
}

impl Rig {
    /// Nodes, with agents when Weft takes part.
    ///
    /// # Errors
    /// What the sandbox says.
    pub(super) fn create(options: &Options) -> Result<Self> {
        let weft = options.takes_part(Who::Weft).then(crate::weft_binary).transpose()?;
        Self::of(weft.as_deref())
    }

    /// Nodes, with agents of this build when there is one.
    ///
    /// # Errors
    /// What the sandbox says.
    pub(super) fn of(weft: Option<&std::path::Path>) -> Result<Self> {
        let with_agents = weft.is_some();
        let mut sandbox = Sandbox::create(sandbox::Options {
            weft: Some(weft.map_or_else(std::env::current_exe, |weft| Ok(weft.to_owned()))?),
            pinned: true,
            agent_args: argv(&["--workers", "1"]),
            ..sandbox::Options::default()
        })?;
        sandbox.apply("namespaces", &namespaces("permissive"))?;
        let mut agents = Vec::new();
        for name in ["node-a", "node-b"] {
            let node = sandbox.add_node(name)?;
            if with_agents {
                sandbox.start_agent(node)?;
                agents.push(sandbox.agent(node)?.pid());
            }
        }
        Ok(Self { servers: Vec::new(), services: 10, sandbox, agents })
    }

    /// A pod on a node; in the mesh when its namespace is `shop`.
    ///
    /// # Errors
    /// What the plugin answers.
    pub(super) fn pod(&mut self, node: usize, namespace: &str, name: &str) -> Result<Pod> {
        let spec = PodSpec::new(namespace, name, name);
        let pod = if self.agents.is_empty() {
            self.sandbox.create_pod(node, spec)?
        } else {
            self.sandbox.add_pod(node, spec)?
        };
        // Load with a connection a request would otherwise run out of ports within seconds.
        let sysctl =
            ["sysctl", "-q", "-w", "net.ipv4.tcp_tw_reuse=1", "net.ipv4.ip_local_port_range=20000 65000"];
        self.place(&pod).run(&argv(&sysctl), Duration::from_secs(10))?.ok()?;
        Ok(pod)
    }

    /// Where a pod's programs run: pinned to its node's CPU.
    #[must_use]
    pub(super) fn place(&self, pod: &Pod) -> Place {
        Place::new(&pod.netns, &pod.node.to_string())
    }

    /// Process ids of the servers in pods.
    #[must_use]
    pub(super) fn servers(&self) -> Vec<u32> {
        self.servers.iter().map(Process::pid).collect()
    }

    /// A server pod on node B with nginx and iperf3 and a client pod's way to it. Inside the mesh the way is a Service
    /// with an HTTPRoute; outside it is the pod's address.
    ///
    /// # Errors
    /// When something does not listen, or does not serve within a minute.
    pub(super) fn path(&mut self, namespace: &str, client: &Pod, server: &str) -> Result<Path> {
        self.path_in((namespace, Class::Usual), client, server)
    }

    /// As [`Rig::path`], with client and server in a class of the scheduler's.
    ///
    /// # Errors
    /// See there.
    pub(super) fn path_in(
        &mut self,
        (namespace, class): (&str, Class),
        client: &Pod,
        server: &str,
    ) -> Result<Path> {
        let pod = self.pod(1, namespace, server)?;
        let (place, dir) =
            (self.place(&pod).class(class), self.sandbox.dir().join(format!("{namespace}-{server}")));
        self.servers.push(place.serve(&file_server(&dir, HTTP)?, HTTP, &dir.join("nginx.log"))?);
        let iperf = argv(&["iperf3", "-s", "-p", &IPERF.to_string()]);
        self.servers.push(place.serve(&iperf, IPERF, &dir.join("iperf.log"))?);
        let client = self.place(client).class(class);
        let path = if namespace == "shop" {
            let ip = self.service(server, &pod)?;
            Path { client, ip, http: 80, opaque: 81 }
        } else {
            Path { client, ip: pod.ip, http: HTTP, opaque: HTTP }
        };
        for port in [path.http, path.opaque] {
            let url = format!("http://{}:{port}/1k", path.ip);
            let query = argv(&["curl", "-s", "-f", "-o", "/dev/null", "--noproxy", "*", "-m", "5", &url]);
            let served = || path.client.run(&query, Duration::from_secs(10)).is_ok_and(|o| o.code == 0);
            Sandbox::wait_until(&format!("{url} to be served"), Duration::from_secs(60), served)?;
        }
        Ok(path)
    }

    fn service(&mut self, name: &str, pod: &Pod) -> Result<Ipv4Addr> {
        let cluster_ip = Ipv4Addr::new(10, 96, 0, self.services);
        self.services += 1;
        let ports = [("http", 80, HTTP, "http"), ("opaque", 81, HTTP, "tcp"), ("iperf", IPERF, IPERF, "tcp")];
        let of = EndpointsOf { namespace: "shop", name, cluster_ip, ports: &ports, pods: &[pod] };
        let route = service_route(name, &format!("  - backendRefs: [{{name: {name}, port: 80}}]\n"));
        self.sandbox.apply(&format!("service-{name}"), &format!("{}---\n{route}", service_yaml(&of)))?;
        Ok(cluster_ip)
    }

    /// A server that belongs to the rig: counted as part of a run, ended with it.
    ///
    /// # Errors
    /// When it does not listen within a minute.
    pub(super) fn serve(&mut self, place: &Place, argv: &[String], port: u16, log: &str) -> Result<()> {
        let log = self.sandbox.dir().join(log);
        self.servers.push(place.serve(argv, port, &log)?);
        Ok(())
    }

    /// What a node's agent says on `/metrics`.
    ///
    /// # Errors
    /// When it does not answer.
    pub(super) fn metrics(&self, node: usize) -> Result<String> {
        let place = Place::new(&self.sandbox.nodes()[node].netns, &node.to_string());
        let query =
            argv(&["curl", "-s", "-f", "--noproxy", "*", "-m", "5", "http://127.0.0.1:15020/metrics"]);
        place.run(&query, Duration::from_secs(10))?.ok()
    }

    /// Empties the agents' access logs, which grow by megabytes a second here, and gives up a row whose agent died.
    pub(super) fn tidy(&mut self, row: &mut Row) {
        for node in 0..self.agents.len() {
            let name = &self.sandbox.nodes()[node].name;
            let log: PathBuf = self.sandbox.dir().join(format!("{name}-access.log"));
            if let Ok(file) = fs::File::options().write(true).open(log) {
                let _ = file.set_len(0);
            }
            if let Ok(agent) = self.sandbox.agent(node)
                && !agent.is_running()
            {
                row.failures.push(format!("agent {node} ended: {}", agent.log_tail()));
            }
        }
    }
}

/// Adds the received rate of an iperf3 that ran beside another load, from its JSON log.
///
/// # Errors
/// When iperf3 failed.
pub(super) fn add_iperf_log(figures: &mut Figures, log: &std::path::Path) -> Result<()> {
    let text = fs::read_to_string(log)?;
    let json: serde_json::Value = serde_json::from_str(&text).with_context(|| format!("iperf3: {text}"))?;
    let rate = json["end"]["sum_received"]["bits_per_second"].as_f64();
    figures.insert("beside_gbit".into(), rate.with_context(|| format!("iperf3: {}", json["error"]))? / 1e9);
    Ok(())
}
