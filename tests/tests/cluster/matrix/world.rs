//! The namespaces, pods and Services of the matrix, and what is asked of them.

use super::objects::{job, namespaces, services, workloads};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::process::Command;
use weft_tests::{
    cluster::Cluster,
    family::{Family, host},
};

/// curl and a shell for callers: Weft's own image has none.
pub(super) const TOOLS: &str = "weft.test/matrix-tools:1";
/// `mx-mesh` and `mx-restricted` are in the mesh, the latter under the restricted PodSecurity standard.
pub(super) const NAMESPACES: [&str; 3] = ["mx-mesh", "mx-restricted", "mx-out"];
/// What a load balancer of the cluster would announce, of each family, by Service.
const BALANCED: [(&str, [&str; 2], usize); 2] =
    [("balanced", ["10.90.140.1", "fd90::140:1"], 1), ("balanced-local", ["10.90.140.2", "fd90::140:2"], 0)];
pub(super) const HOST_PORT: u16 = 18_080;
pub(super) const NODE_PEER: u16 = 18_081;

/// A GET that fails unless it is answered with success.
const GET: [&str; 5] = ["--", "/usr/bin/curl", "-sSf", "-m", "10"];

/// Who calls.
#[derive(Clone, Copy, Debug)]
pub(super) enum Caller<'a> {
    /// A Deployment of `mx-mesh`.
    Inside(&'a str),
    /// A pod outside the mesh.
    Stranger,
    /// A pod on its node's network.
    Host,
}

pub(super) struct World<'a> {
    cluster: &'a Cluster,
    nodes: &'a [String; 2],
    /// Of the Services, and of the addresses that are called.
    family: Family,
}

impl<'a> World<'a> {
    pub(super) fn build(cluster: &'a Cluster, nodes: &'a [String; 2], family: Family) -> Result<Self> {
        let world = Self { cluster, nodes, family };
        world.clear()?;
        world.load_tools()?;
        cluster.apply(&namespaces())?;
        cluster.apply(&services(family, cluster.families()?.len() > 1))?;
        cluster.apply(&workloads(&cluster.image, nodes))?;
        for (name, addresses, node) in BALANCED {
            world.announce(name, family.pick(addresses[0], addresses[1]), &nodes[node])?;
        }
        for namespace in NAMESPACES {
            world.kubectl(&[
                "-n",
                namespace,
                "wait",
                "--for=condition=Available",
                "deployment",
                "-l",
                "late=no",
                "--timeout=110s",
            ])?;
        }
        Ok(world)
    }

    /// As the balancer's own controller and speaker do: the address into the status, and onto a node.
    fn announce(&self, service: &str, address: &str, node: &str) -> Result<()> {
        let patch = format!("{{\"status\":{{\"loadBalancer\":{{\"ingress\":[{{\"ip\":\"{address}\"}}]}}}}}}");
        self.kubectl(&[
            "-n",
            "mx-mesh",
            "patch",
            "service",
            service,
            "--subresource=status",
            "--type=merge",
            "-p",
            &patch,
        ])?;
        let mut held = vec!["ip", "address", "replace", address, "dev", "eth0"];
        if self.family == Family::Ipv6 {
            held.push("nodad"); // to have it at once
        }
        self.cluster.on_node(node, &held).map(drop)
    }

    fn load_tools(&self) -> Result<()> {
        let dir = tempfile::tempdir()?;
        let archive = dir.path().join("tools.tar");
        let script = format!("{}/cluster/image.py", env!("CARGO_MANIFEST_DIR"));
        let programs =
            ["--file", "/bin/dash:/bin/sh", "--program", "/usr/bin/curl", "--program", "/usr/bin/sleep"];
        let mut image = Command::new(script);
        image.arg(&archive).args(["--name", TOOLS, "--entrypoint", "/bin/sh"]).args(programs);
        let made = image.output()?;
        ensure!(made.status.success(), "image.py: {}", String::from_utf8_lossy(&made.stderr));
        self.cluster.ctl(&["load", archive.to_str().context("path")?]).map(drop)
    }

    pub(super) fn clear(&self) -> Result<()> {
        for (_, addresses, node) in BALANCED {
            for (address, length) in addresses.iter().zip([32, 128]) {
                let held = format!("{address}/{length}");
                let delete = ["ip", "address", "delete", &held, "dev", "eth0"];
                // Not there before the first run.
                let _ = self.cluster.on_node(&self.nodes[node], &delete);
            }
        }
        let delete = ["delete", "namespace", "--ignore-not-found", "--timeout=110s"];
        self.kubectl(&[&delete[..], &NAMESPACES].concat()).map(drop)
    }

    /// Labels the namespaces and waits until strict refuses a stranger, or permissive serves it.
    pub(super) fn set_mode(&self, strict: bool) -> Result<()> {
        let mode = if strict { "weft.dev/mtls=strict" } else { "weft.dev/mtls=permissive" };
        self.kubectl(&["label", "--overwrite", "namespace", "mx-mesh", "mx-restricted", mode])?;
        self.cluster.wait(&format!("{mode} to be in effect"), || {
            let called = self.call(Caller::Stranger, "server.mx-mesh");
            if strict { super::must_be_refused(called) } else { called.map(drop) }
        })
    }

    /// Makes anew, in the mode that is in effect, what a cell looks at from its birth to its end.
    pub(super) fn anew(&self, cell: &str) -> Result<()> {
        let (kind, name) = match cell {
            "StatefulSet: stable names before readiness, quorum" => ("statefulset", "quorum"),
            "init container calls before readiness" => ("deployment", "init"),
            "native sidecar before other init containers" => ("deployment", "sidecar"),
            "preStop calls others, and a long drain is served" => ("deployment", "draining"),
            _ => return Ok(()),
        };
        self.kubectl(&["-n", "mx-mesh", "rollout", "restart", &format!("{kind}/{name}")]).map(drop)
    }

    fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.cluster.kubectl(args)
    }

    /// The body of an answer to a GET of `http://HOST/`, by a program that knows nothing of Weft.
    pub(super) fn call(&self, caller: Caller<'_>, host: &str) -> Result<String> {
        let (namespace, name) = match caller {
            Caller::Inside(name) => ("mx-mesh", name),
            Caller::Stranger => ("mx-out", "stranger"),
            Caller::Host => ("mx-out", "host"),
        };
        let (of, url) = (format!("deploy/{name}"), format!("http://{host}/"));
        self.kubectl(&[&["-n", namespace, "exec", &of, "-c", "tools"][..], &GET, &[&url]].concat())
    }

    /// From outside the cluster.
    fn curl(&self, at: &str) -> Result<Value> {
        let url = format!("http://{at}/");
        let said = self.cluster.run(&["curl", "-sS", "--fail", "--noproxy", "*", "--max-time", "5", &url])?;
        Ok(serde_json::from_str(&said)?)
    }

    /// From each node, by a pod that the mesh's servers must see.
    pub(super) fn both(&self, host: &str) -> Result<()> {
        for client in ["client-a", "client-b"] {
            self.answered(client, host, "")?;
        }
        Ok(())
    }

    pub(super) fn client(&self, host: &str, by: &str) -> Result<()> {
        self.answered("client-a", host, by)
    }

    fn answered(&self, client: &str, host: &str, by: &str) -> Result<()> {
        let answer: Value = serde_json::from_str(&self.call(Caller::Inside(client), host)?)?;
        let own = self.ip_of(client)?;
        ensure!(answer["peer"] == own, "the server must see {own}: {answer}");
        ensure!(answer["service"].as_str().is_some_and(|name| name.starts_with(by)), "not {by}: {answer}");
        Ok(())
    }

    pub(super) fn node_peer(&self, node: usize) -> Result<()> {
        let at = format!("{}:{NODE_PEER}", host(&self.node_address(node)?));
        self.client(&at, "peer")
    }

    fn node_address(&self, node: usize) -> Result<String> {
        let path = "jsonpath={.status.addresses[?(@.type==\"InternalIP\")].address}";
        let addresses = self.kubectl(&["get", "node", &self.nodes[node], "-o", path])?;
        let own = addresses.split(' ').find(|address| Family::of(address) == self.family);
        Ok(own.with_context(|| format!("{} has {addresses}", self.nodes[node]))?.to_owned())
    }

    /// The address of a Deployment's pod.
    fn ip_of(&self, name: &str) -> Result<String> {
        let pod = self.cluster.json(&["-n", "mx-mesh", "get", "pod", &self.pod_of(name)?])?;
        Ok(self.family.pod_ip(&pod).with_context(|| pod["status"].to_string())?.to_owned())
    }

    /// A pod on each node by its address, as HTTP and as bytes of which nothing is known.
    pub(super) fn pod_addresses(&self) -> Result<()> {
        for server in ["server-a", "server-b"] {
            let ip = host(&self.ip_of(server)?);
            self.both(&format!("{ip}:8080"))?;
            let args = [&*format!("http://{ip}:9000/"), "--protocol=tcp", "--count=5", "--no-keepalive"];
            let tally = self.cluster.call("mx-mesh/deploy/caller", &args)?;
            ensure!(tally.good() == 5 && tally.bad() == 0, "{server}: {tally:?}");
        }
        Ok(())
    }

    /// Each ClusterIP of a Service that has two, and its name with either family.
    pub(super) fn both_families(&self) -> Result<()> {
        let service = self.cluster.json(&["-n", "mx-mesh", "get", "service", "dual"])?;
        let ips = service["spec"]["clusterIPs"].as_array().context("clusterIPs")?;
        ensure!(ips.len() == 2, "{service}");
        for ip in ips.iter().filter_map(Value::as_str) {
            let world = Self { family: Family::of(ip), ..*self };
            world.both(&host(ip))?;
            let url = ["http://dual.mx-mesh/", world.family.pick("-4", "-6")];
            let client = ["-n", "mx-mesh", "exec", "deploy/client-a", "-c", "tools"];
            let said = self.kubectl(&[&client[..], &GET, &url].concat())?;
            let answer: Value = serde_json::from_str(&said)?;
            ensure!(answer["peer"] == world.ip_of("client-a")?, "{}: {answer}", world.family.name());
        }
        Ok(())
    }

    fn port_of(&self, service: &str) -> Result<String> {
        self.kubectl(&[
            "-n",
            "mx-mesh",
            "get",
            "service",
            service,
            "-o",
            "jsonpath={.spec.ports[0].nodePort}",
        ])
    }

    pub(super) fn node_port(&self, service: &str, node: usize) -> Result<Value> {
        self.curl(&format!("{}:{}", host(&self.node_address(node)?), self.port_of(service)?))
    }

    /// Only the node of the pod answers, and the pod sees who calls.
    pub(super) fn node_port_local(&self) -> Result<()> {
        let answer = self.node_port("node-local", 0)?;
        self.saw_outsider(&answer)?;
        ensure!(self.node_port("node-local", 1).is_err(), "a node without the pod must not answer");
        Ok(())
    }

    pub(super) fn load_balancer(&self, service: &str) -> Result<Value> {
        self.curl(&self.balanced(service)?)
    }

    pub(super) fn load_balancer_local(&self) -> Result<()> {
        let answer = self.load_balancer("balanced-local")?;
        self.saw_outsider(&answer)
    }

    fn saw_outsider(&self, answer: &Value) -> Result<()> {
        let outsider = self.family.pick("10.90.0.1", "fd90::1");
        ensure!(answer["peer"] == outsider, "the source must be the caller, {outsider}: {answer}");
        Ok(())
    }

    pub(super) fn load_balancer_inside(&self, service: &str) -> Result<()> {
        self.both(&self.balanced(service)?)
    }

    pub(super) fn host_port(&self) -> Result<Value> {
        self.curl(&format!("{}:{HOST_PORT}", host(&self.node_address(0)?)))
    }

    /// A Deployment or StatefulSet is ready, all of it, as it is now, and none of its containers had to be started again.
    pub(super) fn ready(&self, of: &str) -> Result<()> {
        self.kubectl(&["-n", "mx-mesh", "rollout", "status", of, "--timeout=110s"])?;
        let label = format!("name={}", of.rsplit('/').next().unwrap_or(of));
        let pods = self.cluster.json(&["-n", "mx-mesh", "get", "pods", "-l", &label])?;
        let pods = pods["items"].as_array().context("items")?;
        // Those before it, which may not have ended yet, were made while nobody served.
        for pod in pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()) {
            let lists = ["initContainerStatuses", "containerStatuses"].map(|list| &pod["status"][list]);
            let mut statuses = lists.into_iter().filter_map(Value::as_array).flatten();
            ensure!(statuses.all(|c| c["restartCount"] == 0), "{of}: restarted: {}", pod["status"]);
        }
        Ok(())
    }

    pub(super) fn job(&self, name: &str) -> Result<()> {
        self.kubectl(&["-n", "mx-mesh", "delete", "job", name, "--ignore-not-found"])?;
        self.cluster.apply(&job(name))?;
        self.completes(name)
    }

    fn completes(&self, name: &str) -> Result<()> {
        let of = format!("job/{name}");
        self.kubectl(&["-n", "mx-mesh", "wait", "--for=condition=Complete", &of, "--timeout=60s"]).map(drop)
    }

    /// One that its schedule has made since now.
    pub(super) fn cron_job(&self) -> Result<()> {
        self.kubectl(&["-n", "mx-mesh", "delete", "job", "-l", "from=cron", "--ignore-not-found"])?;
        let job = self.cluster.wait("the schedule to make a Job", || {
            let name = self.kubectl(&[
                "-n",
                "mx-mesh",
                "get",
                "jobs",
                "-l",
                "from=cron",
                "-o",
                "jsonpath={.items[*].metadata.name}",
            ])?;
            let name = name.split(' ').next().filter(|name| !name.is_empty()).context("no Job yet")?;
            Ok(name.to_owned())
        })?;
        self.completes(&job)
    }

    /// A pod is deleted: its `preStop` calls a Service for eight seconds, and a connection that it has is served meanwhile.
    pub(super) fn drains(&self) -> Result<()> {
        self.kubectl(&["-n", "mx-mesh", "rollout", "status", "deployment/draining", "--timeout=110s"])?;
        let pods = self.cluster.json(&["-n", "mx-mesh", "get", "pods", "-l", "name=draining"])?;
        let live = pods["items"]
            .as_array()
            .context("items")?
            .iter()
            .find(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        let pod = live.context("no pod")?;
        let (name, ip) =
            (pod["metadata"]["name"].as_str().context("name")?, self.family.pod_ip(pod).context("IP")?);
        let url = format!("http://{}:9000/", host(ip));
        let kept = self
            .cluster
            .load("mx-mesh/deploy/caller", &[&url, "--protocol=tcp", "--connections=1", "--rate=20"])?;
        self.kubectl(&["-n", "mx-mesh", "delete", "pod", name, "--wait=false"])?;
        // The last of its calls; the first eight came before, or it would not have been made.
        let last = format!("/drained-{name}");
        let node = &self.nodes[0];
        let line = self.cluster.log_line(node, &[&last]);
        let tally = kept.finish()?;
        // It has shown what it was there for; its servers do not end before they are killed.
        self.kubectl(&["-n", "mx-mesh", "delete", "pod", name, "--force", "--grace-period=0"])?;
        ensure!(line?["code"] == 200, "the call of the preStop was not answered");
        ensure!(tally.bad() == 0 && tally.opened == 1 && tally.messages > 100, "{tally:?}");
        Ok(())
    }

    /// A pod of this shape is called, calls a Service itself, and is in the mesh: under strict both need that.
    pub(super) fn shape(&self, name: &str) -> Result<()> {
        let namespace = if name == "restricted" { "mx-restricted" } else { "mx-mesh" };
        self.client(&format!("{name}.{namespace}"), name)?;
        let of = format!("deploy/{name}");
        let own = ["-n", namespace, "exec", &of, "-c", "tools"];
        self.kubectl(&[&own[..], &GET, &["http://server.mx-mesh/"]].concat())?;
        let slices = self.cluster.json(&["-n", namespace, "get", "workloadslices"])?;
        let captured = slices["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|s| s["workloads"].as_array())
            .flatten();
        let captured = captured
            .filter(|w| w["captured"] == true)
            .any(|w| w["name"].as_str().is_some_and(|n| n.starts_with(name)));
        ensure!(captured, "{name} is not captured: {slices}");
        Ok(())
    }

    fn pod_of(&self, name: &str) -> Result<String> {
        self.kubectl(&[
            "-n",
            "mx-mesh",
            "get",
            "pods",
            "-l",
            &format!("name={name}"),
            "-o",
            "jsonpath={.items[0].metadata.name}",
        ])
    }

    pub(super) fn port_forward(&self) -> Result<()> {
        let forward = self.cluster.forward("mx-mesh", &self.pod_of("server-a")?, 8080)?;
        let answer = self.curl(&format!("127.0.0.1:{}", forward.port))?;
        ensure!(answer["service"] == "server-a", "{answer}");
        Ok(())
    }

    pub(super) fn exec(&self) -> Result<()> {
        let said = self.kubectl(&[
            "-n",
            "mx-mesh",
            "exec",
            "deploy/client-b",
            "-c",
            "tools",
            "--",
            "/bin/sh",
            "-c",
            "echo here",
        ])?;
        ensure!(said.trim() == "here", "{said}");
        Ok(())
    }

    pub(super) fn logs(&self) -> Result<()> {
        let said = self.kubectl(&["-n", "mx-mesh", "logs", "deploy/client-b", "-c", "tools"])?;
        ensure!(said.contains("tools are here"), "{said}");
        Ok(())
    }

    fn balanced(&self, service: &str) -> Result<String> {
        let found = BALANCED.iter().find(|(name, _, _)| *name == service).context("no such load balancer")?;
        Ok(host(self.family.pick(found.1[0], found.1[1])))
    }
}
