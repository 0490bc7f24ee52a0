//! Probes and lifecycle handlers under strict: real kubelets ask what the pods' specs declare, and nobody else and nothing
//! else gets in.

use crate::Story;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_tests::{cluster::Cluster, family::host};

/// How long pods must stay as they are: ten of their probes' periods, any of which alone would be enough to spoil them.
const STEADY: jiff::SignedDuration = jiff::SignedDuration::from_secs(20);
const SHOP: &str = "e2e-shop";
const OUT: &str = "e2e-out";

/// One step of the story, in a mesh whose namespace `e2e-shop` has joined. Leaves nothing behind.
pub(crate) fn run(story: &Story<'_>) -> Result<()> {
    let (cluster, node) = (story.cluster, &story.nodes[1]);
    let made = (|| {
        cluster.create(&[probed(cluster, node), permissive(cluster, node), answers_404(cluster, node)])?;
        let jaeger = grpc(cluster, node);
        if let Some(jaeger) = jaeger {
            cluster.create(&[jaeger])?;
            steady(cluster, "probed-grpc")?;
        }
        steady(cluster, "probed")?;
        steady(cluster, "permissive")?;
        never_ready(cluster, SHOP, "answers-404")?;
        quiet(cluster)?;
        let ips = ips(cluster, SHOP, "probed")?;
        hosted(cluster, node)?;
        for ip in &ips {
            forged(story, ip)?;
        }
        aimed(cluster, node, &ips[0])
    })();
    let mut delete = vec!["delete", "pod", "--ignore-not-found", "--timeout=60s"];
    cluster.kubectl(
        &[&delete[..], &["-n", SHOP, "probed", "permissive", "probed-grpc", "answers-404"]].concat(),
    )?;
    delete.extend(["-n", OUT, "aimed", "hosted"]);
    cluster.kubectl(&delete)?;
    made?;
    // Asked while it ended.
    no_event(cluster, "FailedPreStopHook")
}

/// A pod of `e2e-shop` that is strict by a label of its own.
fn strict(name: &str, node: &str, containers: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": SHOP, "name": name, "labels": {"weft.dev/mtls": "strict", "app": name}},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "terminationGracePeriodSeconds": 20,
            "containers": containers,
        },
    })
}

/// Fails at the first probe that is not answered.
fn at_once(mut probe: Value) -> Value {
    probe["periodSeconds"] = 2.into();
    probe["failureThreshold"] = 1.into();
    probe["timeoutSeconds"] = 5.into();
    probe
}

/// HTTP, TCP and exec, as readiness, liveness and startup probe, of a container and of a sidecar, and both handlers.
fn probed(cluster: &Cluster, node: &str) -> Value {
    let echo = |name: &str, args: &[&str]| {
        json!({"name": name, "image": cluster.image, "imagePullPolicy": "IfNotPresent",
            "args": ([&["echo", "--name", name], args].concat())})
    };
    let mut app = echo("app", &["--http", "8080", "--tcp", "8081"]);
    app["ports"] = json!([{"name": "web", "containerPort": 8080}]);
    let mut startup = json!({"httpGet": {"path": "/started", "port": "web", "httpHeaders": [{"name": "X-Probe", "value": "startup"}]}});
    startup["periodSeconds"] = 1.into();
    startup["failureThreshold"] = 60.into();
    app["startupProbe"] = startup;
    app["readinessProbe"] = at_once(json!({"httpGet": {"path": "/ready?full=1", "port": "web"}}));
    app["livenessProbe"] = at_once(json!({"tcpSocket": {"port": 8081}}));
    app["lifecycle"] = json!({
        // Of the sidecar, which serves by then: an application that has just been started does not yet.
        "postStart": {"httpGet": {"path": "/up", "port": 8082}},
        "preStop": {"httpGet": {"path": "/down", "port": "web"}},
    });
    let mut sidecar = echo("sidecar", &["--http", "8082"]);
    sidecar["restartPolicy"] = "Always".into();
    sidecar["startupProbe"] =
        json!({"tcpSocket": {"port": 8082}, "periodSeconds": 1, "failureThreshold": 60});
    sidecar["readinessProbe"] = at_once(json!({"httpGet": {"path": "/", "port": 8082}}));
    sidecar["livenessProbe"] = at_once(json!({"exec": {"command": ["weft", "--version"]}}));
    let mut pod = strict("probed", node, &json!([app]));
    pod["spec"]["initContainers"] = json!([sidecar]);
    pod
}

/// Everybody is let in; that the kubelet asks is nothing to list all the same.
fn permissive(cluster: &Cluster, node: &str) -> Value {
    let app = json!({"name": "app", "image": cluster.image, "imagePullPolicy": "IfNotPresent",
        "args": ["echo", "--name", "app", "--http", "8080"],
        "startupProbe": {"httpGet": {"path": "/started", "port": 8080}, "periodSeconds": 1, "failureThreshold": 60},
        "readinessProbe": at_once(json!({"httpGet": {"path": "/ready", "port": 8080}}))});
    let mut pod = strict("permissive", node, &json!([app]));
    pod["metadata"]["labels"]["weft.dev/mtls"] = "permissive".into();
    pod
}

/// Its declared path is let in, and its application says no.
fn answers_404(cluster: &Cluster, node: &str) -> Value {
    let app = json!({"name": "app", "image": cluster.image, "imagePullPolicy": "IfNotPresent",
        "args": ["echo", "--name", "app", "--http", "8080"],
        "readinessProbe": at_once(json!({"httpGet": {"path": "/status/404", "port": 8080}}))});
    strict("answers-404", node, &json!([app]))
}

/// A real gRPC server with a real health service, where the image of one is at hand.
fn grpc(cluster: &Cluster, node: &str) -> Option<Value> {
    let service = "jaeger.api_v2.QueryService";
    let app = json!({"name": "app", "image": cluster.jaeger()?, "imagePullPolicy": "IfNotPresent",
        "startupProbe": {"httpGet": {"path": "/", "port": 14269}, "periodSeconds": 1, "failureThreshold": 60},
        "readinessProbe": at_once(json!({"grpc": {"port": 16685, "service": service}})),
        "livenessProbe": at_once(json!({"grpc": {"port": 16685}}))});
    Some(strict("probed-grpc", node, &json!([app])))
}

pub(crate) fn pod(cluster: &Cluster, namespace: &str, name: &str) -> Result<Value> {
    cluster.json(&["-n", namespace, "get", "pod", name])
}

/// A pod's addresses, of each family; the kubelet asks at the first.
fn ips(cluster: &Cluster, namespace: &str, name: &str) -> Result<Vec<String>> {
    let pod = pod(cluster, namespace, name)?;
    let ips = pod["status"]["podIPs"].as_array().into_iter().flatten();
    let ips: Vec<_> = ips.filter_map(|ip| ip["ip"].as_str()).map(str::to_owned).collect();
    ensure!(!ips.is_empty(), "no address: {}", pod["status"]);
    Ok(ips)
}

/// Since when its condition Ready is as it is, if it is `status`.
pub(crate) fn ready_since(pod: &Value, status: &str) -> Option<jiff::Timestamp> {
    let conditions = pod["status"]["conditions"].as_array()?;
    let ready = conditions.iter().find(|c| c["type"] == "Ready" && c["status"] == status)?;
    ready["lastTransitionTime"].as_str()?.parse().ok()
}

/// It becomes ready and stays so, without a restart.
fn steady(cluster: &Cluster, name: &str) -> Result<()> {
    cluster.wait(&format!("pod {name} to be ready, and stay so"), || {
        let pod = pod(cluster, SHOP, name)?;
        let since = ready_since(&pod, "True").with_context(|| pod["status"].to_string())?;
        let lists = ["containerStatuses", "initContainerStatuses"];
        let mut statuses = lists.iter().filter_map(|list| pod["status"][list].as_array()).flatten();
        ensure!(statuses.all(|c| c["restartCount"] == 0), "restarted: {}", pod["status"]);
        ensure!(jiff::Timestamp::now().duration_since(since) >= STEADY, "ready since {since}");
        Ok(())
    })
}

/// It runs for long enough, and was never ready.
fn never_ready(cluster: &Cluster, namespace: &str, name: &str) -> Result<()> {
    cluster.wait(&format!("pod {name} to run, and not to be ready"), || {
        let pod = pod(cluster, namespace, name)?;
        let state = &pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"];
        let started: jiff::Timestamp = state.as_str().context("it does not run")?.parse()?;
        let since =
            ready_since(&pod, "False").with_context(|| format!("{name} is ready: {}", pod["status"]))?;
        ensure!(since <= started + STEADY / 2, "it was ready before {since}: {}", pod["status"]);
        ensure!(jiff::Timestamp::now().duration_since(started) >= STEADY, "running since {started}");
        Ok(())
    })
}

fn no_event(cluster: &Cluster, reason: &str) -> Result<()> {
    let selector = format!("--field-selector=reason={reason}");
    let events =
        cluster.kubectl(&["-n", SHOP, "get", "events", "--no-headers", "--ignore-not-found", &selector])?;
    ensure!(events.trim().is_empty(), "{events}");
    Ok(())
}

/// No handler failed, and nobody of the node's is listed among the callers that strict would refuse.
fn quiet(cluster: &Cluster) -> Result<()> {
    no_event(cluster, "FailedPostStartHook")?;
    let screen = crate::screens::status(cluster)?;
    let callers = screen["plaintext"].as_array().context("plaintext")?;
    // Those may have been called from a node by way of a NodePort, by the phase of Services.
    let others = |c: &&Value| !c["to"].as_str().is_some_and(|to| to.starts_with("e2e-services/"));
    let probes: Vec<_> =
        callers.iter().filter(others).filter(|c| c["from"].to_string().contains("(the node)")).collect();
    ensure!(probes.is_empty(), "probes are listed as callers in clear: {probes:?}");
    Ok(())
}

/// A pod in the node's network.
fn hosted(cluster: &Cluster, node: &str) -> Result<()> {
    let hosted = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": OUT, "name": "hosted"},
        "spec": {"hostNetwork": true, "nodeSelector": {"kubernetes.io/hostname": node}, "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "app", "image": cluster.image, "imagePullPolicy": "IfNotPresent",
                "args": ["echo", "--name", "hosted", "--tcp", "18081"]}]}});
    cluster.create(&[hosted])?;
    cluster.kubectl(&["-n", OUT, "wait", "--for=condition=Ready", "pod/hosted", "--timeout=110s"]).map(drop)
}

/// Somebody else asks what the kubelet may ask: a root process of the node, a pod in the node's network, another pod.
fn forged(story: &Story<'_>, ip: &str) -> Result<()> {
    let (cluster, node) = (story.cluster, &story.nodes[1]);
    let url = format!("http://{}:8080/ready?full=1", host(ip));
    for from in [crate::STRANGER.to_owned(), format!("{OUT}/pod/hosted")] {
        let tally = cluster.call(&from, &[&url, "--count=5", "--no-keepalive"])?;
        ensure!(tally.codes.is_empty() && tally.bad() > 0, "{from} was let in: {tally:?}");
    }
    if cluster.is_bed() {
        let curl = ["curl", "-sS", "--noproxy", "*", "--max-time", "10", &url];
        let forged = cluster.on_node(node, &curl);
        ensure!(forged.is_err(), "a root process of the node was let in: {forged:?}");
    }
    cluster.log_line(node, &["\"denied\"", "not the kubelet", ip]).map(drop)
}

/// Another tenant's pod aims the real kubelet at the strict one: an undeclared path, and a declared one with a header, among
/// them one that kubelets write by themselves.
fn aimed(cluster: &Cluster, node: &str, ip: &str) -> Result<()> {
    let app = |name: &str, port: &str, probe: Value| {
        json!({"name": name, "image": cluster.image, "imagePullPolicy": "IfNotPresent",
            "args": ["echo", "--name", name, "--http", port], "readinessProbe": at_once(probe)})
    };
    let path = json!({"httpGet": {"host": ip, "port": 8080, "path": "/admin"}});
    let header = |name: &str| {
        json!({"httpGet": {"host": ip, "port": 8080, "path": "/ready?full=1",
            "httpHeaders": [{"name": name, "value": "/admin"}]}})
    };
    cluster.create(&[
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": OUT, "name": "aimed"},
        "spec": {"nodeSelector": {"kubernetes.io/hostname": node}, "terminationGracePeriodSeconds": 0,
            "containers": [app("path", "8080", path), app("header", "8081", header("X-Original-URL")),
                app("own", "8082", header("User-Agent"))]}}),
    ])?;
    // Go writes names of headers in its own way.
    for why in ["undeclared path /admin", "undeclared header X-Original-Url", "undeclared header User-Agent"]
    {
        cluster.log_line(node, &["\"denied\"", why, ip])?;
    }
    let statuses = pod(cluster, OUT, "aimed")?["status"]["containerStatuses"].clone();
    let ready = statuses.as_array().context("containers")?.iter().filter(|c| c["ready"] == true).count();
    ensure!(ready == 0, "the kubelet was let in on behalf of another pod: {statuses}");
    Ok(())
}
