//! A real Kubernetes to test in, reached by `kubectl` and `weft` as a user does.
//!
//! `WEFT_TEST_CLUSTER` names the state directory of a cluster of `tests/cluster` (`./dev cluster-test` brings one up), or the
//! kubeconfig file of any cluster with two nodes, without Weft, with the experimental channel of the Gateway API, and with
//! images where it finds them (`WEFT_TEST_IMAGE`, `WEFT_TEST_JAEGER_IMAGE`). Not `KUBECONFIG`: who has that in the
//! environment for other work must not find Weft installed by `cargo test`.

use crate::weft_binary;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
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
            "no cluster to test in: `./dev cluster-test` brings one up; or set WEFT_TEST_CLUSTER to the state directory of one of \
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
        let bed = self.bed.as_ref().context("only the test bed's nodes can be entered")?;
        let mut command = Command::new("timeout");
        command.arg(LIMIT.as_secs().to_string()).arg(format!("{}/cluster/ctl", env!("CARGO_MANIFEST_DIR")));
        command.args(["node", node]).args(argv).env("WEFT_CLUSTER_DIR", bed);
        Self::output(command, "", &argv.join(" "))
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
        let argv = call_argv(pod, &[args, &["--until-eof"]].concat())?;
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
            text += &format!("--- {title}\n{}\n", tail(&said, lines));
        };
        add("pods", &["get", "pods", "-A", "-o", "wide"], 60);
        add("events", &["get", "events", "-A", "--sort-by=.lastTimestamp"], 30);
        for agent in self.agents().unwrap_or_default().values() {
            for container in ["agent", "holder"] {
                add(&format!("{agent} {container}"), &["-n", SYSTEM, "logs", agent, "-c", container], 80);
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
