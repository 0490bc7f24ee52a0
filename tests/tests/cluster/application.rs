//! An application as people have them: eight Services, each asking the next, with every kind of probe and handler, in the mesh
//! permissive and then strict, all of it rolled out under load. And a ninth that nobody can reach, which must never be ready.

use crate::{Story, brief, step};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_tests::cluster::{Cluster, Load};

const NAMESPACE: &str = "e2e-application";
const CLIENT: &str = "e2e-application/deploy/client";
const REPLICAS: usize = 2;

/// A probe: `http`, `https`, `tcp`, `grpc` or `exec`.
type Kind = &'static str;

/// Services in the order in which they ask each other; their readiness, liveness and startup probes, and `preStop`.
const SERVICES: [(&str, [Kind; 3], Kind); 8] = [
    ("web", ["http", "tcp", "http"], "http"),
    ("cart", ["tcp", "http", "tcp"], "sleep"),
    ("pay", ["grpc", "grpc", "grpc"], "http"),
    ("stock", ["https", "https", "https"], "https"),
    ("mail", ["exec", "exec", "exec"], "exec"),
    ("search", ["http", "grpc", "exec"], "sleep"),
    ("users", ["grpc", "exec", "https"], "https"),
    ("ads", ["exec", "https", "grpc"], "http"),
];
/// Its probe asks a port on which nobody listens.
const DEAD: &str = "dead";

pub(crate) fn run(story: &Story<'_>) -> Result<()> {
    let cluster = story.cluster;
    clear(cluster)?;
    let web = step("eight services", || deployed(cluster))?;
    step("in the mesh, permissive: everything rolled out", || in_mode(cluster, &web, "permissive"))?;
    step("strict: everything rolled out", || in_mode(cluster, &web, "strict"))?;
    clear(cluster)
}

fn clear(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=110s"]).map(drop)
}

/// Outside the mesh first: the address of the first Service.
fn deployed(cluster: &Cluster) -> Result<String> {
    let mut objects = vec![json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})];
    objects.extend(SERVICES.iter().map(|(name, ..)| service(name)));
    cluster.create(&objects)?;
    let mut next = None;
    let mut deployments =
        vec![client(cluster), deployment(cluster, (DEAD, ["dead", "exec", "exec"], "exec"), None)];
    for service in SERVICES.iter().rev() {
        deployments.push(deployment(cluster, *service, next.as_deref()));
        next = Some(url(cluster, service.0)?);
    }
    cluster.create(&deployments)?;
    ready(cluster)?;
    next.context("no service")
}

fn url(cluster: &Cluster, service: &str) -> Result<String> {
    let path = "jsonpath={.spec.clusterIP}";
    Ok(format!("http://{}/", cluster.kubectl(&["-n", NAMESPACE, "get", "service", service, "-o", path])?))
}

/// The whole application in the mesh in this mode, rolled out under load.
fn in_mode(cluster: &Cluster, web: &str, mode: &str) -> Result<()> {
    let labels = ["weft.dev/mesh=enabled".to_owned(), format!("weft.dev/mtls={mode}")];
    let [mesh, mtls] = labels.each_ref().map(String::as_str);
    cluster.kubectl(&["label", "--overwrite", "namespace", NAMESPACE, mesh, mtls])?;
    cluster.captured(NAMESPACE)?;
    let inside = |args: &[&str]| -> Result<Load> { cluster.load(CLIENT, &[&[web][..], args].concat()) };
    let loads = [
        ("kept connections", inside(&["--connections=4", "--rate=20"])?),
        ("new connections", inside(&["--connections=4", "--rate=20", "--no-keepalive"])?),
    ];
    for (name, ..) in SERVICES {
        cluster.kubectl(&["-n", NAMESPACE, "rollout", "restart", &format!("deployment/{name}")])?;
    }
    ready(cluster)?;
    cluster.captured(NAMESPACE)?;
    let mut failed = Vec::new();
    for (name, load) in loads {
        let tally = load.finish()?;
        println!("{mode}, {name}, each through eight services: {}", brief(&tally));
        if tally.bad() > 0 || tally.good() < 100 {
            failed.push(format!("{mode}, {name}: {tally:?}"));
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    unharmed(cluster)
}

/// Every Deployment has its pods, of the newest kind and ready; others are gone.
fn ready(cluster: &Cluster) -> Result<()> {
    for (name, ..) in SERVICES {
        let deployment = format!("deployment/{name}");
        cluster.kubectl(&["-n", NAMESPACE, "rollout", "status", &deployment, "--timeout=180s"])?;
    }
    cluster.wait("pods of before to be gone", || {
        let all = pods(cluster)?;
        // One of the client's, one that is never ready.
        ensure!(all.len() == SERVICES.len() * REPLICAS + 2, "{} pods", all.len());
        Ok(())
    })
}

fn pods(cluster: &Cluster) -> Result<Vec<Value>> {
    let pods = cluster.json(&["-n", NAMESPACE, "get", "pods"])?;
    Ok(pods["items"].as_array().context("items")?.clone())
}

/// No container was restarted, no handler failed, and what nobody can reach was never ready.
fn unharmed(cluster: &Cluster) -> Result<()> {
    for pod in pods(cluster)? {
        let statuses = pod["status"]["containerStatuses"].as_array().context("no statuses")?;
        let restarts: u64 = statuses.iter().filter_map(|status| status["restartCount"].as_u64()).sum();
        ensure!(restarts == 0, "{} was restarted: {}", pod["metadata"]["name"], pod["status"]);
        let is_ready = statuses.iter().all(|status| status["ready"] == true);
        let is_dead = pod["metadata"]["labels"]["app"] == DEAD;
        ensure!(is_ready != is_dead, "{}: ready is {is_ready}", pod["metadata"]["name"]);
    }
    for reason in ["FailedPostStartHook", "FailedPreStopHook"] {
        let selector = format!("--field-selector=reason={reason}");
        let said = cluster.kubectl(&["-n", NAMESPACE, "get", "events", "--no-headers", &selector])?;
        ensure!(said.trim().is_empty(), "{said}");
    }
    Ok(())
}

fn service(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": NAMESPACE, "name": name},
        "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": 8080, "appProtocol": "http"}]}})
}

fn client(cluster: &Cluster) -> Value {
    let app = json!({"name": "app", "image": cluster.image, "imagePullPolicy": "IfNotPresent", "args": ["echo", "--http", "8080"]});
    of_one_container("client", 1, &app)
}

/// What a container is asked; `dead`: on a port where nobody listens.
fn asked(kind: Kind) -> Value {
    match kind {
        "http" => json!({"httpGet": {"path": "/healthz?deep=1", "port": 8080}}),
        "https" => json!({"httpGet": {"path": "/healthz", "port": 8443, "scheme": "HTTPS"}}),
        "tcp" => json!({"tcpSocket": {"port": 8080}}),
        "grpc" => json!({"grpc": {"port": 8080, "service": "shop"}}),
        "sleep" => json!({"sleep": {"seconds": 2}}),
        "dead" => json!({"tcpSocket": {"port": 8099}}),
        _ => json!({"exec": {"command": ["weft", "--version"]}}),
    }
}

fn deployment(cluster: &Cluster, (name, probes, stop): (&str, [Kind; 3], Kind), next: Option<&str>) -> Value {
    let probe = |kind: Kind, failures: u32| {
        let mut probe = asked(kind);
        for (field, value) in [("periodSeconds", 2), ("timeoutSeconds", 5), ("failureThreshold", failures)] {
            probe[field] = value.into();
        }
        probe
    };
    let mut args = vec!["echo", "--name", name, "--http", "8080", "--https", "8443", "--on-term", "finish"];
    args.extend(next.iter().flat_map(|url| ["--forward", url]));
    let [readiness, liveness, startup] = probes;
    let app = json!({"name": "app", "image": cluster.image, "imagePullPolicy": "IfNotPresent", "args": args,
        "readinessProbe": probe(readiness, 1), "livenessProbe": probe(liveness, 2), "startupProbe": probe(startup, 60),
        "lifecycle": {"postStart": asked("exec"), "preStop": asked(stop)}});
    of_one_container(name, if name == DEAD { 1 } else { REPLICAS }, &app)
}

fn of_one_container(name: &str, replicas: usize, app: &Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": NAMESPACE, "name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {"metadata": {"labels": {"app": name}},
                "spec": {"terminationGracePeriodSeconds": 30, "containers": [app]}}}})
}
