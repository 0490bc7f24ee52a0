//! From a change to its effect: a client calls all the time, and says when another backend answers.

use super::{
    api::{Api, GATEWAY, Object},
    world::MARK,
};
use crate::cluster::{Cluster, call_argv};
use anyhow::{Context, Result, ensure};
use http::Method;
use serde_json::{Value, json};
use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::{Duration, SystemTime},
};
use tokio::runtime::Runtime;

/// Where client and servers run.
pub(super) const LIVE: &str = "scale-live";
/// Requests a second: how finely the effect is seen.
const RATE: &str = "500";
/// A change without effect after this time is a failure.
const LIMIT: Duration = Duration::from_secs(30);
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/scale-live/endpointslices";

/// A client on one node; two servers on the other.
pub(super) struct Live<'a> {
    cluster: &'a Cluster,
    runtime: &'a Runtime,
    api: &'a Api,
    /// Each server's name, pod and address.
    servers: [(String, String, String); 2],
}

/// How long changes took, in milliseconds.
#[derive(Clone, Debug, Default)]
pub(super) struct Times {
    /// From the API server's answer to the first request that another backend answers.
    pub(super) from_answer: Vec<f64>,
    /// The same from when the write was sent.
    pub(super) from_send: Vec<f64>,
    /// Requests that failed meanwhile.
    pub(super) bad: u64,
}

impl Times {
    /// p50, p90, p99 and the most.
    pub(super) fn spread(times: &[f64]) -> [f64; 4] {
        let mut sorted = times.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| {
            // The smallest value that so many are not above.
            let rank = (sorted.len() as f64 * share).ceil() as usize;
            sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
        };
        [at(0.5), at(0.9), at(0.99), at(1.0)]
    }
}

impl<'a> Live<'a> {
    /// Makes the pods, Services and the route, and waits until they serve.
    pub(super) fn begin(cluster: &'a Cluster, runtime: &'a Runtime, api: &'a Api) -> Result<Self> {
        let nodes = runtime.block_on(api.json(Method::GET, "/api/v1/nodes", None))?;
        let nodes = nodes["items"].as_array().context("items")?;
        let node = |n: usize| {
            nodes.get(n).and_then(|n| n["metadata"]["name"].as_str()).context("two nodes are needed")
        };
        cluster.apply(&manifest(&cluster.image, [node(0)?, node(1)?]))?;
        let wait = ["-n", LIVE, "wait", "--for=condition=Available", "deployment", "--all", "--timeout=110s"];
        cluster.kubectl(&wait)?;
        let server = |version: &str| -> Result<(String, String, String)> {
            let pods = cluster.json(&["-n", LIVE, "get", "pods", "-l", &format!("version={version}")])?;
            let pod = &pods["items"][0];
            let text =
                |p: &str| pod.pointer(p).and_then(Value::as_str).map(str::to_owned).context("a pod's field");
            Ok((version.to_owned(), text("/metadata/name")?, text("/status/podIP")?))
        };
        let live = Self { cluster, runtime, api, servers: [server("v1")?, server("v2")?] };
        let slice = Object { path: SLICES.to_owned(), body: live.slice(0) };
        runtime.block_on(api.create(&[slice]))?;
        for name in ["live", "flip"] {
            let url = live.url(name)?;
            cluster.wait(&format!("{name} to be served by v1"), || {
                let tally = cluster.call("scale-live/deploy/client", &[&url, "--count=20"])?;
                ensure!(tally.bad() == 0 && tally.services.get("v1") == Some(&20), "{tally:?}");
                Ok(())
            })?;
        }
        Ok(live)
    }

    /// Edits the backends of a route so many times.
    pub(super) fn route_edits(&self, count: u64) -> Result<Times> {
        let path = format!("{GATEWAY}/namespaces/{LIVE}/httproutes/live");
        self.measure("live", count, |server| {
            let backends = [0, 1]
                .map(|n| json!({"name": self.servers[n].0, "port": 80, "weight": u8::from(n == server)}));
            (path.clone(), json!({"spec": {"rules": [{"backendRefs": backends}]}}))
        })
    }

    /// Moves the endpoint of a Service from one pod to another so many times.
    pub(super) fn endpoint_edits(&self, count: u64) -> Result<Times> {
        self.measure("flip", count, |server| {
            (format!("{SLICES}/flip"), json!({"endpoints": self.slice(server)["endpoints"]}))
        })
    }

    fn measure(&self, service: &str, count: u64, edit: impl Fn(usize) -> (String, Value)) -> Result<Times> {
        let caller = Caller::start(self.cluster, &self.url(service)?)?;
        let mut times = Times::default();
        let mut now = usize::from(caller.next(LIMIT)?.1 == "v2");
        for number in 0..count {
            now = 1 - now;
            let (path, body) = edit(now);
            let sent = micros();
            self.runtime.block_on(self.api.text(Method::PATCH, &path, Some(&body)))?;
            let answered = micros();
            let (at, who) = caller.next(LIMIT).with_context(|| format!("change {number} of {service}"))?;
            ensure!(who == self.servers[now].0, "change {number} of {service}: {who} answers");
            times.from_answer.push((at - answered) as f64 / 1e3);
            times.from_send.push((at - sent) as f64 / 1e3);
            // Not in step with anybody's own pace.
            std::thread::sleep(Duration::from_millis(100 + number * 37 % 100));
        }
        times.bad = caller.finish()?;
        Ok(times)
    }

    fn slice(&self, server: usize) -> Value {
        let (_, pod, address) = &self.servers[server];
        let labels = json!({
            MARK: "yes", "kubernetes.io/service-name": "flip",
            "endpointslice.kubernetes.io/managed-by": "weft-scale",
        });
        let target = json!({"kind": "Pod", "namespace": LIVE, "name": pod});
        json!({
            "metadata": {"namespace": LIVE, "name": "flip", "labels": labels},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP", "appProtocol": "http"}],
            "endpoints": [{"addresses": [address], "targetRef": target, "conditions": {"ready": true}}],
        })
    }

    fn url(&self, service: &str) -> Result<String> {
        let ip = ["-n", LIVE, "get", "service", service, "-o", "jsonpath={.spec.clusterIP}"];
        Ok(format!("http://{}/", self.cluster.kubectl(&ip)?))
    }
}

/// `weft call --changes` in the client's pod.
struct Caller {
    child: Child,
    changes: Receiver<(i64, String)>,
}

impl Caller {
    fn start(cluster: &Cluster, url: &str) -> Result<Self> {
        let args = [url, "--connections=1", "--rate", RATE, "--until-eof", "--changes"];
        let argv = call_argv("scale-live/deploy/client", &args)?;
        let mut command = cluster.command(Duration::from_secs(1800), &argv);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let said = BufReader::new(child.stderr.take().context("its standard error")?);
        let (tell, changes) = channel();
        // Ends with the child.
        std::thread::spawn(move || {
            for line in said.lines().map_while(Result::ok) {
                if let Some(change) = changed(&line) {
                    // Nobody asks any more.
                    if tell.send(change).is_err() {
                        return;
                    }
                } else if line != "calling" {
                    eprintln!("client: {line}");
                }
            }
        });
        Ok(Self { child, changes })
    }

    /// The next change: when, in microseconds since the epoch, and who answers.
    fn next(&self, limit: Duration) -> Result<(i64, String)> {
        self.changes.recv_timeout(limit).map_err(|error| match error {
            RecvTimeoutError::Timeout => anyhow::anyhow!("no effect in {limit:?}"),
            RecvTimeoutError::Disconnected => anyhow::anyhow!("the client has ended"),
        })
    }

    /// Ends it; gives how many requests failed.
    fn finish(mut self) -> Result<u64> {
        drop(self.child.stdin.take());
        let text = std::io::read_to_string(self.child.stdout.take().context("its standard output")?)?;
        ensure!(self.child.wait()?.success(), "the client failed: {text}");
        Ok(serde_json::from_str::<weft::call::Tally>(&text)?.bad())
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn changed(line: &str) -> Option<(i64, String)> {
    let (at, who) = line.strip_prefix("changed ")?.split_once(' ')?;
    Some((at.parse().ok()?, who.to_owned()))
}

/// Since the epoch: the pods' clock is that of their node. On the test bed all have the same.
fn micros() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_micros()).unwrap_or(i64::MAX)
}

/// Servers on the first node, the client on the second.
fn manifest(image: &str, [servers, client]: [&str; 2]) -> String {
    let workload = |name: &str, node: &str| {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{namespace: {LIVE}, name: {name}}}\nspec:\n  \
             selector: {{matchLabels: {{version: {name}}}}}\n  template:\n    metadata: {{labels: {{version: {name}}}}}\n    \
             spec:\n      nodeSelector: {{kubernetes.io/hostname: {node}}}\n      terminationGracePeriodSeconds: 0\n      \
             containers:\n      - {{name: app, image: \"{image}\", imagePullPolicy: IfNotPresent, \
             args: [echo, --name, {name}, --http, \"8080\"]}}\n"
        )
    };
    let service = |name: &str, selector: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{namespace: {LIVE}, name: {name}}}\n\
             spec: {{{selector}ports: [{{name: http, port: 80, targetPort: 8080, appProtocol: http}}]}}\n"
        )
    };
    let namespace = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {LIVE}, labels: {{{MARK}: \"yes\", weft.dev/mesh: enabled}}}}\n"
    );
    let route = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{namespace: {LIVE}, name: live}}\nspec:\n  \
         parentRefs: [{{group: \"\", kind: Service, name: live, port: 80}}]\n  \
         rules: [{{backendRefs: [{{name: v1, port: 80, weight: 1}}, {{name: v2, port: 80, weight: 0}}]}}]\n"
    );
    [
        namespace,
        workload("v1", servers),
        workload("v2", servers),
        workload("client", client),
        service("v1", "selector: {version: v1}, "),
        service("v2", "selector: {version: v2}, "),
        service("live", "selector: {version: v1}, "),
        service("flip", ""),
        route,
    ]
    .join("---\n")
}
