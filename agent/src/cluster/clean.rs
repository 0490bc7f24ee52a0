//! `weft node clean NODE`: heals a node whose agent is gone for good, from outside. A pod on that node does it
//! (`weft node clean --here`), made of the agents' own template: where their folders are, and what they may do, stands there.

use super::{
    NAMESPACE,
    api::{Cluster, ClusterError, list, text},
    args::CleanArgs,
    bundle::{self, Settings},
    facts::{SLICES, agent_pods, ask_agents, is_ready},
    install::{AGENTS, CONFIG},
    show::{Mark, Show, count},
    uninstall::nodes::{CLEANED, cleaned, is_begun},
};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use std::{process::ExitCode, time::Instant};

/// Where the pod goes when Weft's own namespace is not there any more.
const ELSEWHERE: &str = "kube-system";
/// How often a slice is written again when somebody else was faster.
const TRIES: u32 = 5;
/// Volumes of the agents' template that cleaning needs.
const VOLUMES: [&str; 6] = ["run", "state", "netns", "cni-conf", "cni-bin", "cni-cache"];
/// A container that waits for one of these does not start by itself.
const HOPELESS: [&str; 7] = [
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CreateContainerError",
    "CreateContainerConfigError",
    "RunContainerError",
    "CrashLoopBackOff",
];

/// Cleans a node from outside.
pub(super) async fn run(cluster: &Cluster, args: &CleanArgs, show: &Show) -> Result<ExitCode> {
    let node = args.node.as_deref().context("which node?")?;
    let object = cluster.get(&format!("/api/v1/nodes/{node}")).await?;
    let object = object.with_context(|| format!("node {node}: there is none of this name"))?;
    refuse_served(cluster, args, node).await?;
    let agents = cluster.get(AGENTS).await?;
    let installed = cluster.get(&format!("/api/v1/namespaces/{NAMESPACE}")).await?.is_some();
    let namespace = if installed { NAMESPACE } else { ELSEWHERE };
    let template = agents.unwrap_or_else(built_in);
    let pod = pod(&template, args, node, namespace);
    let path = format!("/api/v1/namespaces/{namespace}/pods/{}", text(&pod, "/metadata/name"));
    if cluster.delete(&path).await? {
        vanished(cluster, &path, args).await?; // of a run that was interrupted
    }
    cluster.post(&format!("/api/v1/namespaces/{namespace}/pods"), &pod).await?;
    show.line(Mark::Good, &format!("{node}: a pod cleans it ({namespace}/{})", text(&pod, "/metadata/name")));
    let outcome = follow(cluster, &path, &object, args).await;
    let log = cluster.text(&format!("{path}/log")).await.unwrap_or_default();
    cluster.delete(&path).await?;
    let clean = match outcome {
        Ok(clean) => clean,
        Err(error) => bail!("{node}: not cleaned: {error:#}"),
    };
    for line in log.lines().filter(|line| !line.trim().is_empty()) {
        let mark =
            if line.starts_with("not done: ") || line.starts_with("weft: ") { Mark::Bad } else { Mark::Good };
        show.line(mark, &format!("{node}: {line}"));
    }
    show.result(&json!({"node": node, "clean": clean, "said": log.lines().collect::<Vec<_>>()}));
    if clean {
        tell(cluster, node, show).await?;
        note(cluster, node).await?;
        show.line(Mark::Good, &format!("{node}: clean"));
        return Ok(ExitCode::SUCCESS);
    }
    show.line(Mark::Bad, &format!("{node}: not clean; run it again when what is said above is mended"));
    Ok(ExitCode::FAILURE)
}

/// An agent that serves would take its pods in again, and lets them go more gently.
async fn refuse_served(cluster: &Cluster, args: &CleanArgs, node: &str) -> Result<()> {
    let pods = cluster.list(&format!("/api/v1/namespaces/{NAMESPACE}/pods")).await?.unwrap_or_default();
    let Some(agent) = agent_pods(&pods).remove(node).filter(|_| !args.force) else { return Ok(()) };
    let answers = matches!(ask_agents(cluster, &pods).await.get(node), Some(Ok(_)));
    let pod = pods.iter().find(|pod| text(pod, "/metadata/name") == agent);
    ensure!(
        !answers && !pod.is_some_and(is_ready),
        "{node}: an agent serves there ({agent}): `weft uninstall` and `weft leave` let pods go by it; to clean the node all the \
         same: --force"
    );
    Ok(())
}

/// The DaemonSet as this program would install it.
fn built_in() -> Value {
    let objects = bundle::objects(&Settings::default(), None);
    objects.into_iter().find(|object| text(object, "/kind") == "DaemonSet").unwrap_or_default()
}

/// The pod that cleans. It is given its node, not scheduled: a node that is cordoned or tainted is cleaned too.
fn pod(set: &Value, args: &CleanArgs, node: &str, namespace: &str) -> Value {
    let spec = &set["spec"]["template"]["spec"];
    let needed = |entry: &&Value| VOLUMES.contains(&text(entry, "/name"));
    let agent =
        list(spec, "/containers").iter().find(|c| text(c, "/name") == "agent").cloned().unwrap_or_default();
    let mut volumes: Vec<Value> = list(spec, "/volumes").iter().filter(needed).cloned().collect();
    let mut mounts: Vec<Value> = list(&agent, "/volumeMounts").iter().filter(needed).cloned().collect();
    if volumes.iter().all(|volume| text(volume, "/name") != "cni-cache") {
        // An agent of a version before had no need of it.
        volumes.push(
            json!({"name": "cni-cache", "hostPath": {"path": "/var/lib/cni", "type": "DirectoryOrCreate"}}),
        );
        mounts.push(json!({"name": "cni-cache", "mountPath": "/var/lib/cni"}));
    }
    let mut command = vec!["weft", "node", "clean", "--here"];
    if args.force {
        command.push("--force");
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": namespace,
            "name": format!("weft-clean-{node}"),
            "labels": {
                "app.kubernetes.io/name": "weft",
                "app.kubernetes.io/component": "clean",
                "app.kubernetes.io/part-of": "weft",
                "weft.dev/mesh": "disabled",
            },
        },
        "spec": {
            "nodeName": node,
            "restartPolicy": "Never",
            "hostNetwork": true,
            "hostPID": true,
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 0,
            "priorityClassName": "system-node-critical",
            "tolerations": [{"operator": "Exists"}],
            "imagePullSecrets": spec["imagePullSecrets"],
            "securityContext": spec["securityContext"],
            "volumes": volumes,
            "containers": [{
                "name": "clean",
                "image": args.image.as_deref().unwrap_or_else(|| text(&agent, "/image")),
                "imagePullPolicy": agent["imagePullPolicy"],
                "command": command,
                "securityContext": agent["securityContext"],
                "volumeMounts": mounts,
            }],
        },
    })
}

/// Waits until the pod has ended; whether it ended well.
async fn follow(cluster: &Cluster, path: &str, node: &Value, args: &CleanArgs) -> Result<bool> {
    let end = Instant::now() + args.timeout;
    loop {
        let pod = cluster.get(path).await?.context("the pod was deleted by somebody else")?;
        match text(&pod, "/status/phase") {
            "Succeeded" => return Ok(true),
            "Failed" if list(&pod, "/status/containerStatuses").is_empty() => {
                bail!(
                    "the pod was refused: {}: {}",
                    text(&pod, "/status/reason"),
                    text(&pod, "/status/message")
                )
            }
            "Failed" => return Ok(false),
            _ => {}
        }
        let waiting = pod.pointer("/status/containerStatuses/0/state/waiting").cloned().unwrap_or_default();
        let (reason, message) = (text(&waiting, "/reason"), text(&waiting, "/message"));
        if HOPELESS.contains(&reason) {
            bail!(
                "image {} does not run there: {reason}: {message}; name one that the node has or can pull: --image IMAGE",
                text(&pod, "/spec/containers/0/image")
            );
        }
        if Instant::now() > end {
            let why = match (is_ready(node), reason) {
                (false, _) => "the node is not ready, so that nobody starts it".to_owned(),
                (true, "") => format!("it is {}", text(&pod, "/status/phase")),
                (true, reason) => format!("{reason}: {message}"),
            };
            bail!("its pod has not ended after {} s: {why}", args.timeout.as_secs());
        }
        tokio::time::sleep(cluster.pace).await;
    }
}

/// Says in the WorkloadSlices that the node's pods are captured no more: their peers would look for the mesh there for ever,
/// since the agent that could say so is gone.
async fn tell(cluster: &Cluster, node: &str, show: &Show) -> Result<()> {
    let mut told = 0;
    for slice in cluster.list(SLICES).await?.unwrap_or_default() {
        let path = format!(
            "{}/namespaces/{}/workloadslices/{}",
            SLICES.trim_end_matches("/workloadslices"),
            text(&slice, "/metadata/namespace"),
            text(&slice, "/metadata/name")
        );
        told += release(cluster, &path, slice, node).await?;
    }
    if told > 0 {
        show.line(Mark::Good, &format!("{node}: {} no longer called captured", count(told, "pod")));
    }
    Ok(())
}

/// One slice; read again when somebody else was faster. Gives how many pods it was said of.
async fn release(cluster: &Cluster, path: &str, mut slice: Value, node: &str) -> Result<usize> {
    for _ in 0..TRIES {
        let mut workloads = list(&slice, "/workloads").to_vec();
        let mut changed = 0;
        for workload in workloads.iter_mut().filter(|w| text(w, "/node") == node && w["captured"] == true) {
            workload["captured"] = false.into();
            changed += 1;
        }
        if changed == 0 {
            return Ok(0);
        }
        let version = text(&slice, "/metadata/resourceVersion");
        let patch = json!({"metadata": {"resourceVersion": version}, "workloads": workloads});
        match cluster.merge(path, &patch).await {
            Err(error) if error.code() == Some(409) => {}
            done => return done.map(|_| changed).map_err(Into::into),
        }
        let Some(now) = cluster.get(path).await? else { return Ok(0) };
        slice = now;
    }
    bail!("{path}: changes all the time")
}

/// Notes for an uninstallation that is under way that this node has no need of an agent any more.
async fn note(cluster: &Cluster, node: &str) -> Result<()> {
    for _ in 0..TRIES {
        let Some(config) = cluster.get(CONFIG).await?.filter(is_begun) else { return Ok(()) };
        let mut nodes = cleaned(&config);
        if !nodes.insert(node.to_owned()) {
            return Ok(());
        }
        let nodes = nodes.into_iter().collect::<Vec<_>>().join(",");
        let version = text(&config, "/metadata/resourceVersion");
        let patch = json!({"metadata": {"resourceVersion": version, "annotations": {CLEANED: nodes}}});
        match cluster.merge(CONFIG, &patch).await {
            Err(error) if error.code() == Some(409) => {}
            done => return done.map(drop).map_err(Into::into),
        }
    }
    bail!("{CONFIG}: changes all the time")
}

async fn vanished(cluster: &Cluster, path: &str, args: &CleanArgs) -> Result<(), ClusterError> {
    let end = Instant::now() + args.timeout;
    while cluster.get(path).await?.is_some() && Instant::now() < end {
        tokio::time::sleep(cluster.pace).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
