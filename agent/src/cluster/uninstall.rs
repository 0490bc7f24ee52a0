//! `weft uninstall`: first every pod leaves the mesh and every node is cleaned by its agent, then the agents go.

use super::{
    NAMESPACE,
    api::{Cluster, annotation, key, label, number, text},
    args::{Addon, UninstallArgs},
    bundle::{self, Settings},
    install::{AGENTS, CONFIG, CONTROLLER},
    show::{Mark, Show, count},
    words,
};
use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    process::ExitCode,
    time::{Duration, Instant},
};

pub(super) mod nodes;

/// What the controller made in other namespaces.
const PROVISIONED: [&str; 4] = [
    "/api/v1/services",
    "/apis/discovery.k8s.io/v1/endpointslices",
    "/api/v1/serviceaccounts",
    "/apis/weft.dev/v1alpha1/workloadslices",
];

/// How long statuses may take to be withdrawn: the controller writes hundreds a second.
pub const WITHDRAWAL: Duration = Duration::from_secs(60);
/// Pods that are named where more are left.
const NAMED: usize = 3;

/// Removes Weft.
pub(super) async fn run(cluster: &Cluster, args: &UninstallArgs, show: &Show) -> Result<ExitCode> {
    let config = cluster.get(CONFIG).await?;
    let unclean = nodes::leave(cluster, args, show).await?;
    for (node, why) in &unclean {
        show.line(Mark::Bad, &format!("{node}: {why}"));
    }
    if !unclean.is_empty() && !args.force {
        show.result(&json!({"uninstalled": false, "unclean": unclean}));
        show.line(Mark::Bad, "agents stay until every node is clean; `weft node clean NODE` heals one whose agent is gone for good, and --force removes Weft all the same");
        return Ok(ExitCode::FAILURE);
    }
    withdraw(cluster, show).await?;
    if args.leave_only {
        cluster.delete(CONTROLLER).await?;
        gone(cluster, args, &["controller"], show).await?;
        let removed = remove_provisioned(cluster, show).await?;
        show.result(&json!({"uninstalled": false, "left": true, "removed": removed}));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(config) = config.filter(|c| label(c, "app.kubernetes.io/managed-by") == Some("Helm")) {
        show.result(&json!({"uninstalled": false, "unclean": unclean}));
        to_helm(&config, &unclean).iter().for_each(|(mark, line)| show.line(*mark, line));
        return Ok(ExitCode::SUCCESS);
    }
    let mut removed = stop_workloads(cluster, args, show).await?;
    removed += remove_provisioned(cluster, show).await?;
    removed += remove_objects(cluster, args.purge, show).await?;
    conclude(args.purge, removed, show);
    Ok(ExitCode::SUCCESS)
}

/// What is said where Helm removes the rest: that every node is clean only if it is so, and not because of `--force`.
fn to_helm(config: &Value, unclean: &BTreeMap<String, String>) -> Vec<(Mark, String)> {
    let release = annotation(config, "meta.helm.sh/release-name").unwrap_or("weft");
    let namespace = annotation(config, "meta.helm.sh/release-namespace").unwrap_or(NAMESPACE);
    let clean = (Mark::Good, "no pod is in the mesh and every node is clean".to_owned());
    let rest = format!(
        "Weft was installed by Helm, which removes the rest: helm uninstall {release} -n {namespace}{}",
        if unclean.is_empty() { "" } else { " --no-hooks (its hook waits for every node to be clean)" }
    );
    unclean.is_empty().then_some(clean).into_iter().chain([(Mark::Plain, rest)]).collect()
}

/// Waits until the controller has taken back what it says of Gateways, routes and policies: it does so from the moment on at
/// which agents are asked to leave, and nobody else could later.
async fn withdraw(cluster: &Cluster, show: &Show) -> Result<()> {
    let begin = Instant::now();
    loop {
        let ours = words::ours(cluster).await?;
        if ours.is_empty() {
            show.line(Mark::Good, "no Gateway, route or policy says any more that Weft serves it");
            return Ok(());
        }
        let controller = cluster.get(CONTROLLER).await?.unwrap_or_default();
        let runs = number(&controller, "/status/readyReplicas") > 0;
        if !runs || begin.elapsed() > WITHDRAWAL {
            let (first, more) = (ours.iter().take(NAMED).cloned().collect::<Vec<_>>(), ours.len() > NAMED);
            let why = if runs {
                "the controller has not taken it back"
            } else {
                "no controller is ready to take it back"
            };
            show.line(
                Mark::Warn,
                &format!(
                    "{} still say that Weft serves them ({}{}): {why}",
                    count(ours.len(), "object"),
                    first.join(", "),
                    if more { ", …" } else { "" }
                ),
            );
            return Ok(());
        }
        tokio::time::sleep(cluster.pace).await;
    }
}

/// Removes agents and controller, and waits until their pods are gone: a controller that still runs would make its objects
/// anew.
async fn stop_workloads(cluster: &Cluster, args: &UninstallArgs, show: &Show) -> Result<usize> {
    let mut removed = 0;
    for path in [AGENTS, CONTROLLER] {
        removed += usize::from(cluster.delete(path).await?);
    }
    gone(cluster, args, &["agent", "controller"], show).await?;
    Ok(removed)
}

/// Waits until no pod of these components is there.
async fn gone(cluster: &Cluster, args: &UninstallArgs, components: &[&str], show: &Show) -> Result<()> {
    let end = Instant::now() + args.timeout;
    loop {
        let pods = cluster.list("/api/v1/namespaces/weft-system/pods").await?.unwrap_or_default();
        let ours = |pod: &&Value| {
            label(pod, "app.kubernetes.io/component").is_some_and(|c| components.contains(&c))
                && label(pod, "app.kubernetes.io/name") == Some("weft")
        };
        let running: Vec<String> = pods.iter().filter(ours).map(key).collect();
        if running.is_empty() {
            show.line(Mark::Good, &format!("{}: ended", components.join(" and ")));
            return Ok(());
        }
        if Instant::now() > end {
            bail!(
                "pods {}: still there after {} s; `kubectl describe` says why",
                running.join(", "),
                args.timeout.as_secs()
            );
        }
        tokio::time::sleep(cluster.pace).await;
    }
}

/// Removes what the controller made for Gateways and pods.
async fn remove_provisioned(cluster: &Cluster, show: &Show) -> Result<usize> {
    let mut removed = 0;
    let ours = super::api::escape("weft.dev/managed-by=weft-controller");
    for path in PROVISIONED {
        for object in cluster.list(&format!("{path}?labelSelector={ours}")).await?.unwrap_or_default() {
            let (root, plural) = path.rsplit_once('/').unwrap_or((path, ""));
            let (namespace, name) = (text(&object, "/metadata/namespace"), text(&object, "/metadata/name"));
            removed +=
                usize::from(cluster.delete(&format!("{root}/namespaces/{namespace}/{plural}/{name}")).await?);
        }
    }
    show.line(Mark::Good, &format!("{} of Gateways and pods removed", count(removed, "object")));
    Ok(removed)
}

/// Removes what was installed, last things first. What an add-on brought is in it too.
async fn remove_objects(cluster: &Cluster, purge: bool, show: &Show) -> Result<usize> {
    let everything = Settings::read(None, &[], &[Addon::Jaeger, Addon::NodeTaint, Addon::HostnamePolicy])
        .map_err(anyhow::Error::msg)?;
    let mut paths = vec![
        "/apis/coordination.k8s.io/v1/namespaces/weft-system/leases/weft-controller".to_owned(),
        "/api/v1/namespaces/weft-system/configmaps/weft-ca-root".to_owned(),
    ];
    let mut last = Vec::new();
    for object in bundle::objects(&everything, None).iter().rev() {
        let path = bundle::path(object).with_context(|| bundle::title(object))?;
        let kept = matches!(text(object, "/kind"), "CustomResourceDefinition" | "Namespace");
        if kept { last.push(path) } else { paths.push(path) }
    }
    if purge {
        paths.push("/api/v1/namespaces/weft-system/secrets/weft-ca".to_owned());
        paths.extend(last);
    }
    let mut removed = 0;
    for path in &paths {
        removed += usize::from(cluster.delete(path).await?);
    }
    show.line(Mark::Good, &format!("{} of the installation removed", count(removed, "object")));
    Ok(removed)
}

fn conclude(purge: bool, removed: usize, show: &Show) {
    show.result(&json!({"uninstalled": true, "removed": removed, "purged": purge}));
    if purge {
        show.plain("Labels weft.dev/mesh of namespaces and pods stay; they do nothing now.");
    } else {
        show.plain("Kept: namespace weft-system with the CA's Secret weft-ca, Weft's CRDs and WeftGatewayConfigs, labels of");
        show.plain("namespaces and pods. `weft uninstall --purge` removes all but the labels.");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Review 14: with `--force` every node was called clean right after unclean ones were named.
    #[test]
    fn only_clean_nodes_are_called_clean() {
        let notes =
            json!({"meta.helm.sh/release-name": "mesh", "meta.helm.sh/release-namespace": "weft-system"});
        let config = json!({"metadata": {"annotations": notes}});
        let check = |unclean: &[(&str, &str)], said: &[&str]| {
            let unclean = unclean.iter().map(|(node, why)| ((*node).into(), (*why).into())).collect();
            let lines = to_helm(&config, &unclean);
            let found: Vec<&str> = lines.iter().map(|(_, line)| line.as_str()).collect();
            assert_eq!(found.len(), said.len(), "{found:?}");
            said.iter().zip(&found).for_each(|(part, line)| assert!(line.contains(part), "{line}"));
        };
        check(&[], &["every node is clean", "helm uninstall mesh -n weft-system"]);
        check(&[("n2", "its agent does not run")], &["helm uninstall mesh -n weft-system --no-hooks"]);
    }
}
