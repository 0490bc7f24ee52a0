//! What happens on a node: another CNI rewrites its configuration, the agent is away, the namespace leaves and joins again,
//! the power fails, a new node comes.

use crate::{CLIENT, Story, away::Asked, screens};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_tests::{
    cluster::{Cluster, SYSTEM},
    family::host,
};

const TAINT: &str = "weft.dev/agent-not-ready";

/// Where the test bed's own CNI, plain or Flannel's, is configured.
pub(crate) fn conflist(cluster: &Cluster, node: &str) -> Result<String> {
    let found =
        cluster.on_node(node, &["find", "/etc/cni/net.d", "-maxdepth", "1", "-name", "*.conflist"])?;
    let mut files = found.lines();
    let file = files.next().context("no network configuration")?;
    ensure!(files.next().is_none(), "more than one network configuration: {found}");
    Ok(file.to_owned())
}

/// The agent's page about its node.
pub(crate) fn page(cluster: &Cluster, node: &str) -> Result<Value> {
    let agent = cluster.agents()?.remove(node).context("no agent")?;
    let ask = ["-n", SYSTEM, "exec", &agent, "-c", "agent", "--", "weft", "admin", "get", "node"];
    Ok(serde_json::from_str(&cluster.kubectl(&ask)?)?)
}

/// Makes a pod that serves, on a node.
pub(crate) fn make(cluster: &Cluster, namespace: &str, name: &str, node: &str) -> Result<()> {
    let image = &cluster.image;
    cluster.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{namespace: {namespace}, name: {name}}}\nspec:\n  \
         nodeSelector: {{kubernetes.io/hostname: {node}}}\n  terminationGracePeriodSeconds: 0\n  containers:\n  \
         - {{name: app, image: \"{image}\", imagePullPolicy: IfNotPresent, args: [echo, --name, {name}, --http, \"8080\"]}}\n"
    ))
}

pub(crate) fn ready(cluster: &Cluster, namespace: &str, name: &str) -> Result<()> {
    let pod = format!("pod/{name}");
    let wait = ["-n", namespace, "wait", "--for=condition=Ready", &pod, "--timeout=110s"];
    cluster.kubectl(&wait).map(drop)
}

pub(crate) fn delete(cluster: &Cluster, namespace: &str, name: &str) -> Result<()> {
    cluster.kubectl(&["-n", namespace, "delete", "pod", name, "--now", "--ignore-not-found"]).map(drop)
}

/// The pod's capture stands, and peers know it.
pub(crate) fn captured(cluster: &Cluster, namespace: &str, name: &str) -> Result<()> {
    cluster.wait(&format!("pod {namespace}/{name} to be captured"), || {
        let pod = cluster.json(&["-n", namespace, "get", "pod", name])?;
        let slices = cluster.json(&["-n", namespace, "get", "workloadslices"])?;
        let all = slices["items"].as_array().into_iter().flatten().filter_map(|s| s["workloads"].as_array());
        let own = all.flatten().find(|w| w["uid"] == pod["metadata"]["uid"]).context("not in a slice")?;
        ensure!(own["captured"] == true, "{own}");
        Ok(())
    })
}

/// Whether the pod was captured before its containers ran, by an ADD of the container runtime, and not found later.
fn by_add(cluster: &Cluster, node: &str, pod: &str) -> Result<bool> {
    let agent = cluster.agents()?.remove(node).context("no agent")?;
    let log = cluster.kubectl(&["-n", SYSTEM, "logs", &agent, "-c", "agent"])?;
    let has = |what: &str| log.contains(&format!("pod {pod}: {what}"));
    ensure!(has("captured"), "the agent of {node} does not say that it has captured {pod}");
    // Said before the capture of such a pod.
    Ok(!has("runs already"))
}

/// A new pod is captured by an ADD: the runtime really calls our plugin. (It loads a changed configuration a moment after
/// the change, so the first may come too early.)
fn a_new_pod_is_captured(cluster: &Cluster, node: &str) -> Result<()> {
    let mut number = 0;
    cluster.wait("a new pod that is captured by the runtime's ADD", || {
        number += 1;
        let name = format!("fresh-{}-{number}", std::process::id());
        make(cluster, "e2e-web", &name, node)?;
        ready(cluster, "e2e-web", &name)?;
        captured(cluster, "e2e-web", &name)?;
        let added = by_add(cluster, node, &format!("e2e-web/{name}"))?;
        delete(cluster, "e2e-web", &name)?;
        ensure!(added, "{name} was found while it ran");
        Ok(())
    })
}

/// A caller that holds a lock starts daemons and ends: the lock is free.
pub(crate) fn daemons_keep_nothing(story: &Story<'_>) -> Result<()> {
    let lock = tempfile::NamedTempFile::new()?;
    let path = lock.path().to_str().context("path")?;
    let script = "exec 7>\"$1\" && flock 7 && \"$2\" restart scheduler && \"$2\" restart kubelet n1";
    story.cluster.beside(&["sh", "-c", script, "sh", path, &Cluster::ctl_program()])?;
    let free = std::process::Command::new("flock").args(["-n", path, "true"]).status()?;
    ensure!(free.success(), "a daemon holds its starter's lock");
    Ok(())
}

/// Another CNI rewrites its configuration, in one way and in another: our entry is put back.
pub(crate) fn rewritten(story: &Story<'_>) -> Result<()> {
    let (cluster, node) = (story.cluster, &*story.nodes[1]);
    let conflist = conflist(cluster, node)?;
    let original = cluster.on_node(node, &["cat", &conflist])?;
    let mut inlined: Value = serde_json::from_str(&original)?;
    inlined["loadOnlyInlinedPlugins"] = true.into();
    let write = |text: &str| {
        let script = "printf %s \"$1\" >\"$2.tmp\" && mv \"$2.tmp\" \"$2\"";
        cluster.on_node(node, &["sh", "-c", script, "sh", text, &conflist])
    };
    let installed = |way: &str| {
        cluster.wait(&format!("the plugin to be in the configuration by {way}"), || {
            let cni = page(cluster, node)?["cni"].take();
            let now = cluster.on_node(node, &["cat", &conflist])?;
            ensure!(cni["state"] == "installed" && cni["way"] == way, "{cni}");
            ensure!(now.contains("weft-cni") == (way == "conflist"), "{cni}: {now}");
            Ok(())
        })
    };
    installed("dropIn")?;
    // From now on no drop-in counts: the file has to be edited.
    write(&inlined.to_string())?;
    installed("conflist")?;
    // And it is rewritten once more, as by a CNI that restarts.
    write(&format!("{inlined:#}"))?;
    installed("conflist")?;
    a_new_pod_is_captured(cluster, node)?;
    write(&original)?;
    installed("dropIn")?;
    a_new_pod_is_captured(cluster, node)?;
    let now = cluster.on_node(node, &["cat", &conflist])?;
    ensure!(now == original, "their file is theirs: {now}");
    Ok(())
}

/// Flannel is restarted, which writes its configuration over ours: nobody is cut off, and new pods are captured.
pub(crate) fn flannel_restarted(story: &Story<'_>) -> Result<()> {
    let (cluster, node) = (story.cluster, &*story.nodes[1]);
    let url = story.direct("cart-v2")?;
    let fresh = cluster.load(CLIENT, &[&url, "--no-keepalive", "--connections=2", "--rate=50"])?;
    let kept = cluster.load(CLIENT, &[&url, "--connections=2", "--rate=50"])?;
    cluster.ctl(&["restart", "flanneld", node])?;
    cluster.wait("the plugin to be in the configuration", || {
        let cni = page(cluster, node)?["cni"].take();
        ensure!(cni["state"] == "installed", "{cni}");
        Ok(())
    })?;
    a_new_pod_is_captured(cluster, node)?;
    let (fresh, kept) = (fresh.finish()?, kept.finish()?);
    println!("new connections: {}\nkept: {}", crate::brief(&fresh), crate::brief(&kept));
    ensure!(fresh.bad() == 0 && kept.bad() == 0, "requests failed");
    Ok(())
}

/// The image of the node's agent alone.
fn set_image(cluster: &Cluster, pod: &str, image: &str) -> Result<()> {
    let patch = json!({"spec": {"containers": [{"name": "agent", "image": image}]}}).to_string();
    cluster.kubectl(&["-n", SYSTEM, "patch", "pod", pod, "-p", &patch]).map(drop)
}

/// While a node's agent is away a pod outside the mesh starts there, and one inside waits for it.
pub(crate) fn agent_away(story: &Story<'_>) -> Result<()> {
    let (cluster, node) = (story.cluster, &*story.nodes[1]);
    let agent = cluster.agents()?.remove(node).context("no agent")?;
    let runs = |wanted: bool| {
        cluster.wait(&format!("the agent of {node}: ready {wanted}"), || {
            let pod = cluster.json(&["-n", SYSTEM, "get", "pod", &agent])?;
            let all = pod["status"]["containerStatuses"].as_array().context("no statuses")?;
            let own = all.iter().find(|c| c["name"] == "agent").context("no agent")?;
            let running = own["state"]["running"].is_object();
            ensure!(own["ready"] == wanted && running == wanted, "{own}");
            Ok(())
        })
    };
    let asked = Asked::begin(cluster, node)?;
    // An image that no node has: the kubelet ends the container and cannot start it again, and the pod stays.
    set_image(cluster, &agent, "weft.invalid/absent:1")?;
    runs(false)?;
    asked.look_on()?;
    make(cluster, "e2e-out", "open", node)?;
    make(cluster, "e2e-web", "closed", node)?;
    ready(cluster, "e2e-out", "open")?;
    cluster.wait("the kubelet to say why the pod in the mesh does not start", || {
        let about = "--field-selector=involvedObject.name=closed";
        let events = cluster.kubectl(&[
            "-n",
            "e2e-web",
            "get",
            "events",
            about,
            "-o",
            "jsonpath={.items[*].message}",
        ])?;
        ensure!(events.contains("not starting it unprotected"), "{events}");
        Ok(())
    })?;
    let closed = cluster.json(&["-n", "e2e-web", "get", "pod", "closed"])?;
    let started = &closed["status"]["containerStatuses"][0]["started"];
    ensure!(closed["status"]["phase"] == "Pending" && *started != true, "{}", closed["status"]);
    cluster.wait("a check that names the node", || {
        let wanted = [
            ("WEFT-C020", "error", "agents: ", "describe pods"),
            ("WEFT-C033", "error", node, "describe pod"),
        ];
        screens::check(cluster, &[], 1, &wanted)
    })?;
    set_image(cluster, &agent, &cluster.image)?;
    runs(true)?;
    asked.end()?;
    ready(cluster, "e2e-web", "closed")?;
    captured(cluster, "e2e-web", "closed")?;
    ensure!(by_add(cluster, node, "e2e-web/closed")?, "the pod ran before it was captured");
    delete(cluster, "e2e-web", "closed")?;
    delete(cluster, "e2e-out", "open")
}

/// A namespace leaves and joins again, with its pods running and their connections in use.
pub(crate) fn relabelled(story: &Story<'_>) -> Result<()> {
    let cluster = story.cluster;
    let url = story.direct("cart-v2")?;
    let pods = story.pod_uids()?;
    // Routed requests: each finds its own way. (What is copied to a pod that leaves ends with its agent's patience.)
    let service = format!("http://{}/", host(&story.cart));
    let load = cluster.load(CLIENT, &[&service, "--connections=2", "--rate=20"])?;
    let left = cluster.weft(&["leave", "e2e-shop"])?;
    println!("{left}");
    ensure!(left.contains("2 pods out of the mesh"), "{left}");
    let tally = cluster.call(CLIENT, &[&url, "--count=20", "--no-keepalive"])?;
    ensure!(tally.bad() == 0, "a pod in the mesh calls one that has left: {tally:?}");
    let outside = cluster.load(CLIENT, &[&url, "--connections=2", "--rate=20"])?;
    let joined = cluster.weft(&["join", "e2e-shop"])?;
    println!("{joined}");
    ensure!(joined.contains("2 pods in the mesh"), "{joined}");
    let tally = cluster.call(CLIENT, &[&url, "--count=20", "--no-keepalive"])?;
    ensure!(tally.bad() == 0, "{tally:?}");
    let (load, outside) = (load.finish()?, outside.finish()?);
    println!("through both: {}\nsince it left: {}", crate::brief(&load), crate::brief(&outside));
    ensure!(load.bad() == 0 && outside.bad() == 0, "requests failed");
    ensure!(story.pod_uids()? == pods, "pods were restarted");
    Ok(())
}

/// The new pod of a Deployment of `e2e-shop` is captured by ADD on this node, and serves over mutual TLS.
fn serves(story: &Story<'_>, version: &str, node: &str) -> Result<()> {
    let cluster = story.cluster;
    let deployment = format!("deployment/{version}");
    cluster.kubectl(&["-n", "e2e-shop", "rollout", "status", &deployment, "--timeout=110s"])?;
    let name = cluster.wait("one pod", || {
        let pods = cluster.json(&["-n", "e2e-shop", "get", "pods", "-l", &format!("version={version}")])?;
        let [pod] = &pods["items"].as_array().context("items")?[..] else {
            anyhow::bail!("{}", pods["items"])
        };
        Ok(pod["metadata"]["name"].as_str().context("name")?.to_owned())
    })?;
    ready(cluster, "e2e-shop", &name)?;
    captured(cluster, "e2e-shop", &name)?;
    ensure!(by_add(cluster, node, &format!("e2e-shop/{name}"))?, "{name} ran before it was captured");
    let url = story.direct(version)?;
    cluster.wait("mutual TLS with the pod", || {
        let tally = cluster.call(CLIENT, &[&url, "--count=10", "--no-keepalive"])?;
        ensure!(tally.bad() == 0, "{tally:?}");
        Ok(())
    })?;
    cluster.log_line(node, &["\"inbound\"", "sa/client", "sa/cart"]).map(drop)
}

fn node_ready(cluster: &Cluster, node: &str) -> Result<()> {
    let node = format!("node/{node}");
    cluster.kubectl(&["wait", "--for=condition=Ready", &node, "--timeout=110s"]).map(drop)
}

/// The power fails, and comes back: the node's pods are in the mesh again before they run.
pub(crate) fn rebooted(story: &Story<'_>) -> Result<()> {
    let (cluster, node) = (story.cluster, &*story.nodes[1]);
    let restarts = || {
        let path = "jsonpath={.items[0].status.containerStatuses[0].containerID}";
        cluster.kubectl(&["-n", "e2e-shop", "get", "pods", "-l", "version=cart-v2", "-o", path])
    };
    let before = restarts()?;
    cluster.ctl(&["restart", "node", node])?;
    node_ready(cluster, node)?;
    cluster.wait("the node's pods to be started anew", || {
        ensure!(restarts()? != before, "not yet");
        Ok(())
    })?;
    serves(story, "cart-v2", node)
}

/// A node that is born with the taint takes no pod before its agent serves.
pub(crate) fn new_node(story: &Story<'_>) -> Result<()> {
    let (cluster, node) = (story.cluster, &*story.nodes[1]);
    println!("{}", cluster.weft(&["install", "--addon", "jaeger", "--addon", "node-taint"])?);
    let old = cluster.json(&["get", "node", node])?;
    cluster.ctl(&["stop", "node", node])?;
    cluster.kubectl(&["delete", "node", node])?;
    // What the cluster's own garbage collection does a minute later.
    let on_it = format!("--field-selector=spec.nodeName={node}");
    cluster.kubectl(&["delete", "pods", "-A", &on_it, "--force", "--grace-period=0"])?;
    let taints = json!([{"key": TAINT, "effect": "NoSchedule"}]);
    let born = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "labels": old["metadata"]["labels"]},
        "spec": {"podCIDR": old["spec"]["podCIDR"], "podCIDRs": old["spec"]["podCIDRs"], "taints": taints}});
    cluster.create(&[born])?;
    cluster.ctl(&["start", "node", node])?;
    node_ready(cluster, node)?;
    cluster.wait("the taint to go", || {
        let now = cluster.json(&["get", "node", node])?;
        let taints = now["spec"]["taints"].to_string();
        ensure!(!taints.contains(TAINT), "{taints}");
        Ok(())
    })?;
    serves(story, "cart-v2", node)
}
