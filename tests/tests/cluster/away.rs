//! E20: an agent is away for long, and its node's kubelet goes on asking. `WEFT_TEST_AGENT_AWAY` says for how many seconds.

use crate::probes::{pod, ready_since};
use anyhow::{Context, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::{env, fmt, thread, time::Duration};
use weft_tests::cluster::Cluster;

const SHOP: &str = "e2e-shop";
/// Each is asked every two seconds, and given up after three failures: more than three times as long.
const AWAY_AT_LEAST: i64 = 20;
const PERMISSIVE: &str = "away-permissive";
const STRICT: &str = "away-strict";
const DEAD: &str = "away-dead";

/// Pods of one node that are asked all the time.
pub(crate) struct Asked<'a> {
    cluster: &'a Cluster,
    /// Since when the permissive one is ready.
    ready: Timestamp,
    /// When the agent was there for the last time.
    since: Timestamp,
    /// What the namespace's label said before.
    namespace_mode: String,
}

/// Every kind of probe that goes over the network; `http`, `tcp`: on which ports. The server listens on 8080 and 8081.
fn asked(cluster: &Cluster, node: &str, (name, mode): (&str, &str), (http, tcp): (u16, u16)) -> Value {
    let often = |mut probe: Value| {
        for (field, value) in [("periodSeconds", 2), ("timeoutSeconds", 1), ("failureThreshold", 3)] {
            probe[field] = value.into();
        }
        probe
    };
    let app = json!({"name": "app", "image": cluster.image, "imagePullPolicy": "IfNotPresent",
        "args": ["echo", "--name", name, "--http", "8080", "--tcp", "8081"],
        "readinessProbe": often(json!({"httpGet": {"path": "/ready", "port": http}})),
        "livenessProbe": often(json!({"tcpSocket": {"port": tcp}}))});
    let beside = json!({"name": "beside", "image": cluster.image, "imagePullPolicy": "IfNotPresent",
        "args": ["echo", "--name", "beside", "--http", "8082"],
        "readinessProbe": often(json!({"tcpSocket": {"port": 8082}})),
        "livenessProbe": often(json!({"httpGet": {"path": "/live", "port": 8082}}))});
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": SHOP, "name": name, "labels": {"weft.dev/mtls": mode, "app": name}},
        "spec": {"nodeSelector": {"kubernetes.io/hostname": node}, "terminationGracePeriodSeconds": 1,
            "containers": [app, beside]},
    })
}

impl<'a> Asked<'a> {
    /// While the agent is there.
    pub(crate) fn begin(cluster: &'a Cluster, node: &str) -> Result<Self> {
        // A pod of a strict namespace is strict, whatever its own label says.
        let label = "jsonpath={.metadata.labels.weft\\.dev/mtls}";
        let namespace_mode = cluster.kubectl(&["get", "namespace", SHOP, "-o", label])?;
        cluster.kubectl(&["label", "--overwrite", "namespace", SHOP, "weft.dev/mtls=permissive"])?;
        let live = (8080, 8081);
        let mut dead = asked(cluster, node, (DEAD, "permissive"), (8080, 8081));
        // Never ready: nobody listens there.
        dead["spec"]["containers"][0]["readinessProbe"] =
            json!({"tcpSocket": {"port": 8099}, "periodSeconds": 1});
        cluster.create(&[
            asked(cluster, node, (PERMISSIVE, "permissive"), live),
            asked(cluster, node, (STRICT, "strict"), live),
            dead,
        ])?;
        for name in [PERMISSIVE, STRICT] {
            let pod = format!("pod/{name}");
            cluster.kubectl(&["-n", SHOP, "wait", "--for=condition=Ready", &pod, "--timeout=110s"])?;
        }
        let permissive = pod(cluster, SHOP, PERMISSIVE)?;
        let ready = ready_since(&permissive, "True").context("not ready")?;
        Ok(Self { cluster, ready, since: Timestamp::now(), namespace_mode: namespace_mode.trim().to_owned() })
    }

    /// Looks on while the agent is away (it was told to go after `begin`), and says what that costs a strict pod.
    pub(crate) fn look_on(&self) -> Result<()> {
        let away = Timestamp::now();
        let seconds = match env::var("WEFT_TEST_AGENT_AWAY") {
            Ok(text) => text.parse().with_context(|| format!("WEFT_TEST_AGENT_AWAY={text}: seconds"))?,
            Err(_) => AWAY_AT_LEAST,
        }
        .max(AWAY_AT_LEAST);
        let mut strict = Price::default();
        while Timestamp::now().duration_since(away) < SignedDuration::from_secs(seconds) {
            let permissive = pod(self.cluster, SHOP, PERMISSIVE)?;
            let ready = ready_since(&permissive, "True");
            ensure!(
                ready == Some(self.ready) && restarts(&permissive) == 0,
                "a permissive pod was made unready or restarted while the agent was away: {}",
                permissive["status"]
            );
            let dead = pod(self.cluster, SHOP, DEAD)?;
            ensure!(ready_since(&dead, "True").is_none(), "a dead port is ready: {}", dead["status"]);
            strict.look(&pod(self.cluster, SHOP, STRICT)?, self.since);
            thread::sleep(Duration::from_millis(500));
        }
        println!(
            "agent away for {seconds} s, after it had ended in order: the permissive pod stayed ready; the strict one, probed \
             every 2 s and given up after 3 failures, since the agent was told to end: {strict}"
        );
        // Its probes cannot be told from anybody's without an agent: closed, as everything else.
        ensure!(strict.unready_after.is_some(), "a strict pod was probed without an agent");
        Ok(())
    }

    /// When the agent is back: what it has cost is over.
    pub(crate) fn end(self) -> Result<()> {
        let pod = format!("pod/{STRICT}");
        self.cluster.kubectl(&["-n", SHOP, "wait", "--for=condition=Ready", &pod, "--timeout=110s"])?;
        let names = [PERMISSIVE, STRICT, DEAD];
        self.cluster.kubectl(&[&["-n", SHOP, "delete", "pod", "--timeout=60s"][..], &names].concat())?;
        let before = match &*self.namespace_mode {
            "" => "weft.dev/mtls-".to_owned(),
            mode => format!("weft.dev/mtls={mode}"),
        };
        self.cluster.kubectl(&["label", "--overwrite", "namespace", SHOP, &before]).map(drop)
    }
}

/// What an agent's absence costs a strict pod.
#[derive(Debug, Default)]
struct Price {
    unready_after: Option<SignedDuration>,
    restarted_after: Option<SignedDuration>,
    restarts: u64,
}

impl Price {
    fn look(&mut self, pod: &Value, since: Timestamp) {
        if let Some(unready) = ready_since(pod, "False") {
            self.unready_after.get_or_insert(unready.duration_since(since));
        }
        self.restarts = restarts(pod);
        let statuses = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
        let ended =
            statuses.filter_map(|c| c["lastState"]["terminated"]["finishedAt"].as_str()?.parse().ok());
        if let Some(first) = ended.min() {
            self.restarted_after.get_or_insert(Timestamp::duration_since(first, since));
        }
    }
}

impl fmt::Display for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let after =
            |what: Option<SignedDuration>| what.map_or("never".to_owned(), |d| format!("{} s", d.as_secs()));
        let (unready, restarted) = (after(self.unready_after), after(self.restarted_after));
        write!(f, "unready after {unready}, restarted after {restarted}, {} restarts", self.restarts)
    }
}

fn restarts(pod: &Value) -> u64 {
    let statuses = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
    statuses.filter_map(|container| container["restartCount"].as_u64()).sum()
}
