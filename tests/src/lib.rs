//! What the end-to-end tests share: a mesh of two nodes in a [`Sandbox`], made anew for every test.
//!
//! The binaries under test come from `WEFT_BIN` (set by `./dev`), else from `target/release` or `target/debug`.
#![forbid(unsafe_code)]

pub mod bench;
pub mod cluster;
pub mod family;
pub mod faults;
pub mod idle;
pub mod policies;
pub mod rollouts;
pub mod scale;

use anyhow::{Context, Result, bail};
use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    time::Duration,
};
use weft::{
    call::Tally,
    sandbox::{EndpointsOf, Ip, Netns, Options, Output, Pod, PodSpec, Process, Sandbox, service_yaml},
};

/// How long a condition may take before a test fails. Generous: machines are shared.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Two nodes with agents; the namespace `shop` is enrolled, `outside` is not.
pub struct Mesh {
    /// The namespaces and processes.
    pub sandbox: Sandbox,
    servers: Vec<Process>,
    next_ip: u8,
}

impl Mesh {
    /// A mesh with both agents ready.
    ///
    /// # Errors
    /// What the sandbox says.
    pub fn new() -> Result<Self> {
        Self::with(Options::default())
    }

    /// A mesh made with other options.
    ///
    /// # Errors
    /// What the sandbox says.
    pub fn with(options: Options) -> Result<Self> {
        Self::prepared(options, |_| Ok(()))
    }

    /// As [`Self::with`], with something done in the sandbox's directory before the agents start.
    ///
    /// # Errors
    /// What the sandbox says, or `prepare`.
    pub fn prepared(mut options: Options, prepare: impl FnOnce(&Path) -> Result<()>) -> Result<Self> {
        options.weft = Some(weft_binary()?);
        let mut sandbox = Sandbox::create(options)?;
        prepare(sandbox.dir())?;
        sandbox.apply("namespaces", &namespaces("permissive"))?;
        for name in ["node-a", "node-b"] {
            let node = sandbox.add_node(name)?;
            sandbox.start_agent(node)?;
        }
        Ok(Self { sandbox, servers: Vec::new(), next_ip: 10 })
    }

    /// Adds an enrolled pod `shop/NAME`, whose service account is its name up to the first `-`.
    ///
    /// # Errors
    /// What the plugin answers.
    pub fn pod(&mut self, node: usize, name: &str) -> Result<Pod> {
        self.pod_in(node, "shop", name)
    }

    /// Adds a pod of any namespace.
    ///
    /// # Errors
    /// What the plugin answers.
    pub fn pod_in(&mut self, node: usize, namespace: &str, name: &str) -> Result<Pod> {
        let app = name.split('-').next().unwrap_or(name);
        self.sandbox.add_pod(node, PodSpec::new(namespace, name, app))
    }

    /// An enrolled pod with an echo server named after it: HTTP 8080, TCP 9000, banner 2525.
    ///
    /// # Errors
    /// What the sandbox says, or the server does not listen.
    pub fn echo_pod(&mut self, node: usize, name: &str) -> Result<Pod> {
        let pod = self.pod(node, name)?;
        self.serve_echo(&pod)?;
        Ok(pod)
    }

    /// Starts the echo server in a pod.
    ///
    /// # Errors
    /// When it does not listen.
    pub fn serve_echo(&mut self, pod: &Pod) -> Result<()> {
        let weft = self.sandbox.weft()?;
        let argv = [
            weft.to_str().context("path")?,
            "echo",
            "--name",
            &pod.spec.name,
            "--http",
            "8080",
            "--tcp",
            "9000",
            "--banner",
            "2525",
        ];
        self.serve(pod, "echo", &argv, 2525)
    }

    /// A node's own network, as if it were a pod: where its processes and pods with `hostNetwork` are.
    #[must_use]
    pub fn host(&self, node: usize) -> Pod {
        let host = &self.sandbox.nodes()[node];
        let number = u16::try_from(node + 1).unwrap_or(u16::MAX);
        Pod {
            key: format!("host/{}", host.name),
            netns: host.netns.clone(),
            ip: host.ip,
            ip6: Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number),
            node,
            spec: PodSpec::new("host", &host.name, "host"),
            host_veth: String::new(),
        }
    }

    /// A machine that is neither node nor pod, on the nodes' network, as if it were a pod. Removed with the sandbox.
    ///
    /// # Errors
    /// `ip`'s.
    pub fn external(&self) -> Result<Pod> {
        let node = &self.sandbox.nodes()[0];
        let prefix = node.netns.name().strip_suffix(&node.name).context("the sandbox's prefix")?;
        let (netns, switch) =
            (Netns::named(&format!("{prefix}external")), Netns::named(&format!("{prefix}switch")));
        let (ip, ip6) = (Ipv4Addr::new(10, 77, 0, 250), Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 250));
        Ip::new().line(&format!("netns add {}", netns.name())).run()?;
        Ip::inside(&switch)
            .line(&format!("link add external type veth peer name eth0 netns {}", netns.name()))
            .line("link set external master br0 up")
            .run()?;
        let mut own = Ip::inside(&netns)
            .line("link set lo up")
            .line(&format!("address add {ip}/24 dev eth0"))
            .line(&format!("address add {ip6}/64 dev eth0 nodad"))
            .line("link set eth0 up");
        for (index, node) in self.sandbox.nodes().iter().enumerate() {
            own = own
                .line(&format!("route add 10.88.{index}.0/24 via {}", node.ip))
                .line(&format!("route add fd88:{index}::/64 via fd77::{}", index + 1));
        }
        own.run()?;
        let spec = PodSpec::new("external", "external", "external");
        Ok(Pod { key: "external".into(), netns, ip, ip6, node: 0, spec, host_veth: String::new() })
    }

    /// Starts a server in a pod and waits until it listens on `port`.
    ///
    /// # Errors
    /// When it does not listen.
    pub fn serve(&mut self, pod: &Pod, name: &str, argv: &[&str], port: u16) -> Result<()> {
        let mut process = self.sandbox.spawn(pod, name, argv)?;
        let listening = || {
            let ports = self.sandbox.exec(pod, &["ss", "-Htln", &format!("sport = :{port}")], LIMIT);
            ports.is_ok_and(|o| !o.stdout.trim().is_empty())
        };
        Sandbox::wait_until(&format!("{name} to listen"), LIMIT, || listening() || !process.is_running())?;
        if !process.is_running() {
            bail!("{name} ended: {}", process.log_tail());
        }
        self.servers.push(process);
        Ok(())
    }

    /// Applies a Service over pods and gives its ClusterIP.
    ///
    /// # Errors
    /// File system.
    pub fn service(
        &mut self,
        name: &str,
        ports: &[(&str, u16, u16, &str)],
        pods: &[&Pod],
    ) -> Result<Ipv4Addr> {
        let cluster_ip = Ipv4Addr::new(10, 96, 0, self.next_ip);
        self.next_ip += 1;
        let of = EndpointsOf { namespace: "shop", name, cluster_ip, ports, pods };
        self.sandbox.apply(&format!("service-{name}"), &service_yaml(&of))?;
        Ok(cluster_ip)
    }

    /// `weft call` inside a pod.
    ///
    /// # Errors
    /// When it cannot run.
    pub fn call(&self, pod: &Pod, url: &str, args: &[&str]) -> Result<Tally> {
        let weft = self.sandbox.weft()?;
        let mut argv = vec![weft.to_str().context("path")?, "call", url];
        argv.extend(args);
        let output = self.sandbox.exec(pod, &argv, LIMIT * 3)?.ok()?;
        serde_json::from_str(&output).with_context(|| format!("`weft call` printed {output}"))
    }

    /// `curl` inside a pod.
    ///
    /// # Errors
    /// When it cannot run.
    pub fn curl(&self, pod: &Pod, args: &[&str]) -> Result<Output> {
        let mut argv = vec!["curl", "-sS", "--noproxy", "*", "--max-time", "20"];
        argv.extend(args);
        self.sandbox.exec(pod, &argv, LIMIT)
    }

    /// Waits until requests to `url` from `pod` all answer below 500, and from each of `services`.
    ///
    /// # Errors
    /// When they do not within [`LIMIT`].
    pub fn wait_serving(&self, pod: &Pod, url: &str, services: &[&str]) -> Result<()> {
        let what = format!("{url} to be served by {services:?}");
        let mut last = String::new();
        let done = Sandbox::wait_until(&what, LIMIT, || match self.call(pod, url, &["--count", "40"]) {
            Ok(tally) => {
                last = format!("{:?} {:?} {:?}", tally.codes, tally.services, tally.failures);
                tally.bad() == 0 && services.iter().all(|s| tally.services.contains_key(*s))
            }
            Err(error) => {
                last = format!("{error:#}");
                false
            }
        });
        done.with_context(|| last)
    }

    /// Waits until a request to `url` is answered with `code`.
    ///
    /// # Errors
    /// When it is not within [`LIMIT`].
    pub fn wait_code(&self, pod: &Pod, url: &str, args: &[&str], code: u16) -> Result<()> {
        let mut last = String::new();
        let done = Sandbox::wait_until(&format!("{url} to answer {code}"), LIMIT, || {
            let tally = self.call(pod, url, args);
            last = format!("{tally:?}");
            tally.is_ok_and(|t| t.codes.contains_key(&code))
        });
        done.with_context(|| last)
    }

    /// Sets what enrolled pods of `shop` accept from outside.
    ///
    /// # Errors
    /// File system.
    pub fn set_mode(&self, mode: &str) -> Result<()> {
        self.sandbox.apply("namespaces", &namespaces(mode))
    }

    /// A line of a node's access log that holds every needle, as JSON.
    ///
    /// # Errors
    /// When none appears within [`LIMIT`].
    pub fn log_line(&self, node: usize, needles: &[&str]) -> Result<serde_json::Value> {
        let find = || {
            let log = self.sandbox.access_log(node);
            let line = log.lines().rev().find(|l| needles.iter().all(|n| l.contains(n))).map(str::to_owned);
            line.and_then(|l| serde_json::from_str(&l).ok())
        };
        Sandbox::wait_until(&format!("an access log line with {needles:?}"), LIMIT, || find().is_some())
            .with_context(|| {
                self.sandbox.access_log(node).lines().rev().take(5).collect::<Vec<_>>().join("\n")
            })?;
        find().context("access log line")
    }
}

/// The YAML of both namespaces.
#[must_use]
pub fn namespaces(mode: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  labels: {{weft.dev/mesh: enabled, weft.dev/mtls: {mode}}}\n\
         ---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: outside}}\n"
    )
}

/// An HTTPRoute on a Service of `shop`.
#[must_use]
pub fn service_route(service: &str, rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{namespace: shop, name: {service}}}\nspec:\n  \
         parentRefs:\n  - {{group: \"\", kind: Service, name: {service}, port: 80}}\n  rules:\n{rules}"
    )
}

/// Path of a script in `tests/clients`.
#[must_use]
pub fn client_script(name: &str) -> String {
    format!("{}/clients/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// The Python with grpcio and websockets that `./dev` set up.
///
/// # Errors
/// When the tests are not run by `./dev`.
pub fn python() -> Result<String> {
    std::env::var("WEFT_TEST_PYTHON").context("WEFT_TEST_PYTHON is not set: run the tests with ./dev e2e")
}

/// The binary under test.
///
/// # Errors
/// When there is none.
pub fn weft_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("WEFT_BIN") {
        return Ok(path.into());
    }
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
    let candidates = [target.join("release/weft"), target.join("debug/weft")];
    candidates.into_iter().find(|p| p.exists()).context("no weft binary: run the tests with ./dev e2e")
}
