//! A real Kubernetes to test in, reached by `kubectl` and `weft` as a user does.
//!
//! `WEFT_TEST_CLUSTER` names the state directory of a cluster of `tests/cluster` (`./dev test cluster` brings one up), or the
//! kubeconfig file of any cluster with two nodes, without Weft, with the experimental channel of the Gateway API, and with
//! images where it finds them (`WEFT_TEST_IMAGE`, `WEFT_TEST_JAEGER_IMAGE`). Not `KUBECONFIG`: who has that in the
//! environment for other work must not find Weft installed by `cargo test`.

use crate::{family::Family, weft_binary};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{Seek as _, Write as _},
    os::unix::fs::FileExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use weft::call::Tally;

/// How long a condition may take before the test fails. Generous: machines are shared.
pub const LIMIT: Duration = Duration::from_secs(120);
/// How often a condition is asked for: each asking is a `kubectl`, which is not free on two cores.
const PACE: Duration = Duration::from_millis(300);
/// Namespace of Weft's own pods.
pub const SYSTEM: &str = "weft-system";

/// The cluster under test.
#[derive(Clone)]
pub struct Cluster {
    place: PathBuf,
    bed: Option<PathBuf>,
    weft: PathBuf,
    /// The image of Weft, also of the demo application.
    pub image: String,
    jaeger: Option<String>,
}

impl Cluster {
    /// The cluster that the environment names.
    ///
    /// # Errors
    /// When it names none.
    pub fn from_env() -> Result<Self> {
        let place = std::env::var_os("WEFT_TEST_CLUSTER").map(PathBuf::from).context(
            "no cluster to test in: `./dev test cluster` brings one up; or set WEFT_TEST_CLUSTER to the state directory of one of \
             tests/cluster, or to a kubeconfig file",
        )?;
        let bed = place.is_dir().then(|| place.clone());
        let up = if bed.is_some() { place.join("ready").exists() } else { place.is_file() };
        ensure!(up, "no cluster is up in {}, which WEFT_TEST_CLUSTER names", place.display());
        let image = |name: &str| std::env::var(name).ok();
        let jaeger =
            image("WEFT_TEST_JAEGER_IMAGE").or_else(|| bed.as_ref().map(|_| "weft.test/jaeger:1.62".into()));
        Ok(Self {
            place,
            bed,
            weft: weft_binary()?.canonicalize()?,
            image: image("WEFT_TEST_IMAGE").unwrap_or_else(|| "weft.test/weft:dev".into()),
            jaeger,
        })
    }

    /// The same cluster, with another build of Weft: its program, and its image, which the nodes have.
    #[must_use]
    pub fn with_build(&self, program: PathBuf, image: &str) -> Self {
        Self { weft: program, image: image.into(), ..self.clone() }
    }

    /// The image of Jaeger, where there is one.
    #[must_use]
    pub fn jaeger(&self) -> Option<&str> {
        self.jaeger.as_deref()
    }

    /// The address families of the test bed's pods, and its Services' too; the first is what they have when nobody asks.
    ///
    /// # Errors
    /// When nodes do not say.
    pub fn families(&self) -> Result<Vec<Family>> {
        let ranges = self.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].spec.podCIDRs[*]}"])?;
        let families: Vec<_> = ranges.split_whitespace().map(Family::of).collect();
        ensure!(!families.is_empty(), "nodes have no ranges of pods' addresses");
        Ok(families)
    }

    /// Whether the cluster is that of `tests/cluster`, whose network and nodes tests may look into.
    #[must_use]
    pub fn is_bed(&self) -> bool {
        self.bed.is_some()
    }

    /// The API server's audit log; none of a cluster of the user's.
    #[must_use]
    pub fn audit_log(&self) -> Option<PathBuf> {
        self.bed.as_ref().map(|bed| bed.join("log/audit.log"))
    }

    /// A command beside the cluster, ended after `limit`.
    pub(crate) fn command(&self, limit: Duration, argv: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", &limit.as_secs().to_string()]);
        command.arg(format!("{}/cluster/inside", env!("CARGO_MANIFEST_DIR"))).args(argv);
        if self.is_bed() {
            command.env("WEFT_CLUSTER_DIR", &self.place).env_remove("KUBECONFIG");
        } else {
            command.env("KUBECONFIG", &self.place);
        }
        command
    }

    /// Runs a command beside the cluster and gives what it printed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn run(&self, argv: &[&str]) -> Result<String> {
        Self::output(self.command(LIMIT, argv), "", &argv.join(" "))
    }

    /// `kubectl`.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.run(&[&["kubectl"], args].concat())
    }

    /// `kubectl … -o json`.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&self.kubectl(&[args, &["-o", "json"]].concat())?)?)
    }

    /// `kubectl apply`.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        let command = self.command(LIMIT, &["kubectl", "apply", "-f", "-"]);
        Self::output(command, yaml, "kubectl apply").map(drop)
    }

    /// The `weft` under test, with up to five minutes.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn weft(&self, args: &[&str]) -> Result<String> {
        let weft = self.weft.to_str().context("path")?;
        Self::output(
            self.command(LIMIT * 3, &[&[weft], args].concat()),
            "",
            &format!("weft {}", args.join(" ")),
        )
    }

    /// The same where failing is an answer too, e.g. of `weft check`.
    ///
    /// # Errors
    /// When it cannot run, or does not end in time.
    pub fn weft_says(&self, args: &[&str]) -> Result<Said> {
        self.says(&[&[self.weft.to_str().context("path")?], args].concat())
    }

    /// A command beside the cluster whose failing is an answer too.
    ///
    /// # Errors
    /// When it cannot run, or does not end in time.
    pub fn says(&self, argv: &[&str]) -> Result<Said> {
        let output = self.command(LIMIT, argv).stdin(Stdio::null()).output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        // `timeout` ends with 124 when the time is up, and with 137 when it had to kill.
        match output.status.code() {
            Some(code @ 0..=100) => Ok(Said { code, out, err }),
            _ => bail!("`{}`: {}\n{out}{err}", argv.join(" "), output.status),
        }
    }

    /// `kubectl create`, which gives what the API server made of each object, and stores nothing of reviews.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn create(&self, objects: &[Value]) -> Result<Vec<Value>> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
        let command = self.command(LIMIT, &["kubectl", "create", "-f", "-", "-o", "json"]);
        let made = Self::output(command, &list, "kubectl create")?;
        let mut found = Vec::new();
        for document in serde_json::Deserializer::from_str(&made).into_iter::<Value>() {
            let mut document = document?;
            match document["items"].take() {
                Value::Array(items) => found.extend(items),
                _ => found.push(document),
            }
        }
        Ok(found)
    }

    /// A way to a port of a pod: an address where commands beside the cluster reach it.
    ///
    /// # Errors
    /// When there is none.
    pub fn forward(&self, namespace: &str, pod: &str, port: u16) -> Result<Forward> {
        let (pod, port) = (format!("pod/{pod}"), format!(":{port}"));
        let (out, err) = (tempfile::tempfile()?, tempfile::tempfile()?);
        let argv = ["kubectl", "-n", namespace, "port-forward", "--address=127.0.0.1", &pod, &port];
        let mut command = self.command(LIMIT * 5, &argv);
        let child = command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(err.try_clone()?).spawn()?;
        let mut forward = Forward { child, port: 0 };
        let (mut out, mut err) = (out, err);
        forward.port = self.wait("the way to a pod's port", || {
            let said = text_of(&mut out)?;
            let at = said.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next());
            at.and_then(|port| port.parse().ok()).with_context(|| text_of(&mut err).unwrap_or_default())
        })?;
        Ok(forward)
    }

    /// A page of an agent or a controller, on its Unix socket: what is on the network is for bearers of a right to it.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn page(&self, pod: &str, path: &str) -> Result<String> {
        self.kubectl(&["-n", SYSTEM, "exec", pod, "--", "weft", "admin", "get", path])
    }

    /// The pod of the controller that leads.
    ///
    /// # Errors
    /// When none does.
    pub fn leader(&self) -> Result<String> {
        let lease = self.json(&["-n", SYSTEM, "get", "lease", "weft-controller"])?;
        let holder = lease["spec"]["holderIdentity"].as_str().filter(|name| !name.is_empty());
        Ok(holder.context("no controller leads")?.to_owned())
    }

    /// A file of the test bed's own, e.g. `pki/sa.key`.
    ///
    /// # Errors
    /// When the cluster is another.
    pub fn bed_file(&self, path: &str) -> Result<PathBuf> {
        Ok(self.bed.as_ref().context("only the test bed shows its files")?.join(path))
    }

    /// `weft install` with Jaeger.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn install(&self) -> Result<String> {
        let jaeger = self.jaeger.as_ref().map(|image| format!("jaeger.image={image}"));
        // A deleted agent's pod is replaced only when it has ended, and kept connections are let finish for so long.
        let mut args =
            vec!["install", "--image", &self.image, "--addon", "jaeger", "--set", "agent.drainSeconds=10"];
        args.extend(jaeger.iter().flat_map(|setting| ["--set", setting]));
        self.weft(&args)
    }

    /// A command on a node of the test bed, as its root.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn on_node(&self, node: &str, argv: &[&str]) -> Result<String> {
        self.ctl(&[&["node", node], argv].concat())
    }

    /// A switch of the test bed: `ctl stop node n2`.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn ctl(&self, args: &[&str]) -> Result<String> {
        self.beside(&[&[&*Self::ctl_program()], args].concat())
    }

    /// The program that switches the parts of the test bed.
    #[must_use]
    pub fn ctl_program() -> String {
        format!("{}/cluster/ctl", env!("CARGO_MANIFEST_DIR"))
    }

    /// A command on this machine that knows the test bed, and may call its `ctl`.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn beside(&self, argv: &[&str]) -> Result<String> {
        let bed = self.bed.as_ref().context("only the test bed's nodes and parts can be reached so")?;
        let mut command = Command::new("timeout");
        command.arg((LIMIT * 2).as_secs().to_string()).args(argv).env("WEFT_CLUSTER_DIR", bed);
        Self::output(command, "", &argv.join(" "))
    }

    /// The program under test, to be run beside the cluster.
    pub(crate) fn weft_program(&self) -> &std::path::Path {
        &self.weft
    }

    fn output(mut command: Command, input: &str, what: &str) -> Result<String> {
        let mut stdin = tempfile::tempfile()?;
        stdin.write_all(input.as_bytes())?;
        stdin.rewind()?;
        let output = command.stdin(stdin).output().with_context(|| what.to_owned())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!("`{what}`: {}\n{text}{}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        Ok(text)
    }

    /// Asks until `done` gives a value. What it said last is told when it never does.
    ///
    /// # Errors
    /// When it does not within [`LIMIT`].
    pub fn wait<T>(&self, what: &str, mut done: impl FnMut() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        loop {
            match done() {
                Ok(value) => return Ok(value),
                Err(error) if start.elapsed() > LIMIT => {
                    return Err(error.context(format!("waited {LIMIT:?} for: {what}")));
                }
                Err(_) => std::thread::sleep(PACE),
            }
        }
    }

    /// Waits until the capture of every pod of a namespace stands.
    ///
    /// # Errors
    /// Which does not.
    pub fn captured(&self, namespace: &str) -> Result<()> {
        self.wait("all pods to be captured", || {
            let pods = self.json(&["-n", namespace, "get", "pods"])?;
            let slices = self.json(&["-n", namespace, "get", "workloadslices"])?;
            let lists = slices["items"].as_array().into_iter().flatten();
            let workloads = lists.filter_map(|slice| slice["workloads"].as_array()).flatten();
            let captured: BTreeMap<&str, &Value> =
                workloads.filter_map(|w| Some((w["uid"].as_str()?, &w["captured"]))).collect();
            let pods = pods["items"].as_array().context("items")?;
            ensure!(!pods.is_empty(), "{namespace} has no pod");
            for pod in pods {
                let uid = pod["metadata"]["uid"].as_str().context("uid")?;
                let stands = captured.get(uid).is_some_and(|captured| **captured == true);
                ensure!(stands, "{} is not captured", pod["metadata"]["name"]);
            }
            Ok(())
        })
    }

    /// Names of Weft's agents that are there, by node.
    ///
    /// # Errors
    /// What `kubectl` says.
    pub fn agents(&self) -> Result<BTreeMap<String, String>> {
        let pods = self.json(&["-n", SYSTEM, "get", "pods", "-l", "app.kubernetes.io/component=agent"])?;
        let pods = pods["items"].as_array().context("items")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(pods.iter().map(|pod| (text(&pod["spec"]["nodeName"]), text(&pod["metadata"]["name"]))).collect())
    }

    /// A line of a node's access log that holds every needle.
    ///
    /// # Errors
    /// When none appears within [`LIMIT`].
    pub fn log_line(&self, node: &str, needles: &[&str]) -> Result<Value> {
        self.wait(&format!("a line with {needles:?} in the access log of {node}"), || {
            let agent = self.agents()?.remove(node).context("no agent")?;
            let log = self.kubectl(&["-n", SYSTEM, "logs", &agent, "-c", "agent"])?;
            let line = log.lines().rev().find(|line| needles.iter().all(|needle| line.contains(needle)));
            Ok(serde_json::from_str(line.with_context(|| tail(&log, 5))?)?)
        })
    }

    /// `weft call` in a pod, given as `NAMESPACE/WORKLOAD`, e.g. `shop/deploy/web`.
    ///
    /// # Errors
    /// When it cannot run.
    pub fn call(&self, pod: &str, args: &[&str]) -> Result<Tally> {
        let text = self.run(&call_argv(pod, args)?)?;
        serde_json::from_str(&text).with_context(|| format!("`weft call` printed {text}"))
    }

    /// A `weft call` in a pod that has its first answer and goes on until it is told to end.
    ///
    /// # Errors
    /// When it cannot run.
    pub fn load(&self, pod: &str, args: &[&str]) -> Result<Load> {
        self.start_load(&call_argv(pod, args)?)
    }

    /// The same from beside the cluster, where its Gateways are reached.
    ///
    /// # Errors
    /// When it cannot run.
    pub fn load_beside(&self, args: &[&str]) -> Result<Load> {
        let weft = self.weft.to_str().context("path")?;
        self.start_load(&[&[weft, "call"], args].concat())
    }

    fn start_load(&self, argv: &[&str]) -> Result<Load> {
        let argv = [argv, &["--until-eof"]].concat();
        let (out, err) = (tempfile::tempfile()?, tempfile::tempfile()?);
        let mut command = self.command(LIMIT * 5, &argv);
        let child =
            command.stdin(Stdio::piped()).stdout(out.try_clone()?).stderr(err.try_clone()?).spawn()?;
        let mut load = Load { child, out, err };
        self.wait("the load's first answer", || {
            let said = text_of(&mut load.err)?;
            ensure!(said.contains("calling"), "{said}");
            Ok(())
        })?;
        Ok(load)
    }

    /// What a person would want to see after a failure.
    #[must_use]
    pub fn diagnosis(&self) -> String {
        let mut text = String::new();
        let mut add = |title: &str, args: &[&str], lines: usize| {
            let said = self.kubectl(args).unwrap_or_else(|error| format!("{error:#}"));
            // Access logs are JSON, and would leave no room for what is said.
            let said: Vec<&str> = said.lines().filter(|line| !line.starts_with('{')).collect();
            text += &format!("--- {title}\n{}\n", tail(&said.join("\n"), lines));
        };
        add("pods", &["get", "pods", "-A", "-o", "wide"], 60);
        add("events", &["get", "events", "-A", "--sort-by=.lastTimestamp"], 30);
        for agent in self.agents().unwrap_or_default().values() {
            for container in ["agent", "holder"] {
                add(&format!("{agent} {container}"), &["-n", SYSTEM, "logs", agent, "-c", container], 120);
            }
            add(
                &format!("{agent} before its restart"),
                &["-n", SYSTEM, "logs", agent, "-c", "agent", "--previous"],
                40,
            );
        }
        let controllers =
            ["-n", SYSTEM, "logs", "-l", "app.kubernetes.io/component=controller", "--prefix", "--tail=60"];
        add("controllers", &controllers, 120);
        text
    }
}

/// What a program said, and how it ended.
#[derive(Debug)]
pub struct Said {
    /// Its exit code.
    pub code: i32,
    /// On standard output.
    pub out: String,
    /// On standard error.
    pub err: String,
}

/// A way to a port of a pod. Ends when dropped.
pub struct Forward {
    child: Child,
    /// On 127.0.0.1, beside the cluster.
    pub port: u16,
}

impl Drop for Forward {
    fn drop(&mut self) {
        // Not killed: `timeout` hands a TERM on to what it runs.
        if let Ok(id) = i32::try_from(self.child.id()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGTERM);
        }
        let _ = self.child.wait();
    }
}

/// Load that runs in a pod. Ends when dropped: its standard input ends.
pub struct Load {
    child: Child,
    out: File,
    err: File,
}

impl Load {
    /// Ends it and gives what it counted.
    ///
    /// # Errors
    /// When it broke.
    pub fn finish(mut self) -> Result<Tally> {
        drop(self.child.stdin.take());
        let status = self.child.wait()?;
        let (out, err) = (text_of(&mut self.out)?, text_of(&mut self.err)?);
        ensure!(status.success(), "the load: {status}: {out}{err}");
        serde_json::from_str(&out).with_context(|| format!("`weft call` printed {out}{err}"))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn call_argv<'a>(pod: &'a str, args: &[&'a str]) -> Result<Vec<&'a str>> {
    let (namespace, pod) = pod.split_once('/').context("NAMESPACE/POD")?;
    let exec = ["kubectl", "-n", namespace, "exec", "-i", pod, "--", "weft", "call"];
    Ok([&exec, args].concat())
}

/// What a child has written so far. The file's position is shared with the child, which appends.
fn text_of(file: &mut File) -> Result<String> {
    let mut bytes = vec![0; usize::try_from(file.metadata()?.len())?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last lines.
fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
