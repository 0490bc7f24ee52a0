//! How things are broken. Each returns when what was broken is whole again.

use super::{
    world::{NODES, World},
    yaml,
};
use crate::cluster::SYSTEM;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};
use weft::call::Tally;

/// Labels of Weft's pods.
const AGENT: &str = "app.kubernetes.io/component=agent";
const CONTROLLER: &str = "app.kubernetes.io/component=controller";
/// Editions of every route.
const EDITIONS: u32 = 5;

type Notes = Result<Vec<String>>;

/// Every route is changed a few times; those on Services appear and go.
pub(super) fn routes(world: &World<'_>) -> Notes {
    for edition in 1..=EDITIONS {
        world.cluster.apply(&yaml::gateway_routes(edition))?;
        world.cluster.apply(&yaml::mesh_routes(edition))?;
        accepted(world)?;
    }
    for kind in ["httproute", "grpcroute", "tcproute"] {
        let port = match kind {
            "httproute" => 80,
            "grpcroute" => 81,
            _ => 90,
        };
        let names = NODES.map(|node| format!("mesh-{node}-{port}"));
        world.kubectl(&["delete", kind, &names[0], &names[1]])?;
    }
    Ok(vec![format!("{EDITIONS} editions of 12 routes, 6 of which appear and go")])
}

/// Every route's status is of its last edition.
fn accepted(world: &World<'_>) -> Result<()> {
    world.cluster.wait("the routes to be accepted", || {
        let routes =
            world.cluster.json(&["-n", super::world::NAMESPACE, "get", "httproutes,grpcroutes,tcproutes"])?;
        for route in routes["items"].as_array().context("items")? {
            let generation = &route["metadata"]["generation"];
            let parents = route["status"]["parents"].as_array().context("no status")?;
            let conditions = parents.iter().filter_map(|parent| parent["conditions"].as_array()).flatten();
            let mut accepted = conditions.filter(|c| c["type"] == "Accepted").peekable();
            ensure!(accepted.peek().is_some(), "no status: {}", route["metadata"]["name"]);
            for condition in accepted {
                let good = condition["status"] == "True" && condition["observedGeneration"] == *generation;
                ensure!(good, "{}: {condition}", route["metadata"]["name"]);
            }
        }
        Ok(())
    })
}

/// The replica that leads is killed.
pub(super) fn kill_leader(world: &World<'_>) -> Notes {
    let lease = |path: &str| {
        world.system(&["get", "lease", "weft-controller", "-o", &format!("jsonpath={{.spec.{path}}}")])
    };
    let (leader, renewed) = (lease("holderIdentity")?, lease("renewTime")?);
    ensure!(!leader.is_empty(), "nobody leads");
    let before = count(world, &leader, "controller")?;
    let start = Instant::now();
    kill(world, &leader, "controller")?;
    world.cluster.wait("a leader", || {
        // Of one format, so that later is greater.
        ensure!(lease("renewTime")? > renewed, "the Lease is not renewed yet");
        ensure!(count(world, &leader, "controller")? > before, "the container is not back yet");
        Ok(())
    })?;
    all_ready(world, CONTROLLER)?;
    Ok(vec![format!("led and both ready again after {:.1} s", start.elapsed().as_secs_f64())])
}

/// Both replicas are replaced, as an upgrade does.
pub(super) fn replace_controllers(world: &World<'_>) -> Notes {
    world.system(&["rollout", "restart", "deployment/weft-controller"])?;
    world.wait_system(&["rollout", "status", "deployment/weft-controller"])?;
    only(world, CONTROLLER, NODES.len())?;
    Ok(Vec::new())
}

/// A part of the first node is stopped and started.
pub(super) fn restart_part(world: &World<'_>, part: &str) -> Notes {
    let before = restarts(world)?;
    world.cluster.ctl(&["restart", part, NODES[0]])?;
    world.cluster.kubectl(&[
        "wait",
        "--for=condition=Ready",
        &format!("node/{}", NODES[0]),
        "--timeout=110s",
    ])?;
    same_restarts(world, &before)
}

/// A container of the first node's agent is killed; the kubelet starts it again.
pub(super) fn kill_container(world: &World<'_>, container: &str) -> Notes {
    let pod = agent(world)?;
    let before = count(world, &pod, container)?;
    let start = Instant::now();
    kill(world, &pod, container)?;
    world.cluster.wait("the container to be back", || {
        ensure!(count(world, &pod, container)? > before, "not restarted yet");
        Ok(())
    })?;
    all_ready(world, AGENT)?;
    Ok(vec![format!("ready again after {:.1} s", start.elapsed().as_secs_f64())])
}

fn agent(world: &World<'_>) -> Result<String> {
    world.cluster.agents()?.remove(NODES[0]).context("no agent on the first node")
}

/// `kill -9` of a container's process, behind the kubelet's back.
fn kill(world: &World<'_>, pod: &str, container: &str) -> Result<()> {
    let pod = world.cluster.json(&["-n", SYSTEM, "get", "pod", pod])?;
    let node = pod["spec"]["nodeName"].as_str().context("nodeName")?;
    let id = status(&pod, container).and_then(|s| s["containerID"].as_str()).context("no container ID")?;
    let id = id.split_once("://").map_or(id, |(_, id)| id);
    world
        .cluster
        .on_node(node, &["ctr", "-n", "k8s.io", "tasks", "kill", "--signal", "SIGKILL", id])
        .map(drop)
}

fn status<'p>(pod: &'p Value, container: &str) -> Option<&'p Value> {
    pod["status"]["containerStatuses"].as_array()?.iter().find(|status| status["name"] == container)
}

fn count(world: &World<'_>, pod: &str, container: &str) -> Result<u64> {
    let pod = world.cluster.json(&["-n", SYSTEM, "get", "pod", pod])?;
    status(&pod, container).and_then(|s| s["restartCount"].as_u64()).context("no restart count")
}

/// The first node's agent is deleted with its pod, as a drain of the node does it.
pub(super) fn delete_agent(world: &World<'_>) -> Notes {
    let old = agent(world)?;
    let start = Instant::now();
    world.system(&["delete", "pod", &old, "--wait=false"])?;
    world.cluster.wait("the new agent", || {
        ensure!(agent(world)? != old, "still the old agent");
        Ok(())
    })?;
    only(world, AGENT, NODES.len())?;
    Ok(vec![format!("the next one was ready after {:.1} s", start.elapsed().as_secs_f64())])
}

/// All agents are replaced, as an upgrade does.
pub(super) fn replace_agents(world: &World<'_>) -> Notes {
    let start = Instant::now();
    world.system(&["rollout", "restart", "daemonset/weft-agent"])?;
    world.wait_system(&["rollout", "status", "daemonset/weft-agent"])?;
    // The old ones drain until then.
    only(world, AGENT, NODES.len())?;
    Ok(vec![format!("the last of the old ones had ended after {:.1} s", start.elapsed().as_secs_f64())])
}

/// The API server is away; right after it is back, a route is changed to a pod that is just being made.
pub(super) fn stop_api_server(world: &World<'_>, seconds: u64) -> Notes {
    let before = restarts(world)?;
    let canary = world.cluster_ip("canary")?;
    served_by(world, &canary, "canary-a")?;
    world.cluster.ctl(&["stop", "apiserver"])?;
    // What is measured, and no condition to be waited for.
    std::thread::sleep(Duration::from_secs(seconds));
    world.cluster.ctl(&["start", "apiserver"])?;
    let back = Instant::now();
    let mut served = Vec::new();
    for version in ["canary-b", "canary-a"] {
        world.cluster.wait("the API server to take changes", || {
            if version == "canary-a" {
                world.kubectl(&["delete", "pod", "-l", "app=canary-a", "--wait=false"])?;
            }
            world.cluster.apply(&yaml::canary_route(version))
        })?;
        served_by(world, &canary, version)?;
        served.push(back.elapsed().as_secs_f64());
    }
    all_ready(world, AGENT)?;
    let mut notes = vec![
        format!("away for {seconds} s"),
        format!(
            "a route changed as soon as it was back is in effect on both nodes {:.1} s after that",
            served[0]
        ),
        format!("one changed then, to a pod just made anew, {:.1} s after that", served[1]),
    ];
    notes.extend(same_restarts(world, &before)?);
    Ok(notes)
}

/// Clients on both nodes are answered by this version only.
fn served_by(world: &World<'_>, ip: &str, version: &str) -> Result<()> {
    let url = format!("http://{ip}/");
    for node in NODES {
        let pod = format!("from-{node}-to-{}", NODES[1]);
        world.cluster.wait(&format!("{version} to answer on {node}"), || {
            let exec =
                ["exec", &pod, "-c", "kept", "--", "weft", "call", &url, "--count=10", "--no-keepalive"];
            let tally: Tally = serde_json::from_str(&world.kubectl(&exec)?)?;
            ensure!(tally.bad() == 0 && tally.services.get(version) == Some(&10), "{tally:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// How often each container of Weft was restarted.
fn restarts(world: &World<'_>) -> Result<BTreeMap<String, u64>> {
    let pods = world.cluster.json(&["-n", SYSTEM, "get", "pods"])?;
    let mut restarts = BTreeMap::new();
    for pod in pods["items"].as_array().context("items")? {
        for status in pod["status"]["containerStatuses"].as_array().into_iter().flatten() {
            let name = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let key = format!("{}/{}", name(&pod["metadata"]["name"]), name(&status["name"]));
            restarts.insert(key, status["restartCount"].as_u64().unwrap_or_default());
        }
    }
    Ok(restarts)
}

fn same_restarts(world: &World<'_>, before: &BTreeMap<String, u64>) -> Notes {
    let after = restarts(world)?;
    ensure!(after == *before, "Weft's containers were restarted: {before:?}, then {after:?}");
    Ok(vec!["no container of Weft restarted".to_owned()])
}

/// Waits until just so many pods are there, all ready.
fn only(world: &World<'_>, label: &str, count: usize) -> Result<()> {
    world.cluster.wait("the old pods to end", || {
        let pods = world.cluster.json(&["-n", SYSTEM, "get", "pods", "-l", label])?;
        let names: Vec<_> =
            pods["items"].as_array().context("items")?.iter().map(|pod| &pod["metadata"]["name"]).collect();
        ensure!(names.len() == count, "{names:?}");
        ensure!(ready(world, label)?, "not ready");
        Ok(())
    })
}

fn all_ready(world: &World<'_>, label: &str) -> Result<()> {
    world.cluster.wait("Weft's pods to be ready", || {
        ensure!(ready(world, label)?, "not ready");
        Ok(())
    })
}

fn ready(world: &World<'_>, label: &str) -> Result<bool> {
    let path = "jsonpath={.items[*].status.containerStatuses[*].ready}";
    let said = world.system(&["get", "pods", "-l", label, "-o", path])?;
    Ok(!said.is_empty() && said.split_whitespace().all(|ready| ready == "true"))
}
