//! `weft install`: applies the manifests in an order in which each finds what it needs, and waits until all of it runs.

use super::{
    NAMESPACE,
    api::{Cluster, ClusterError, annotation, condition, key, label, list, number, text},
    args::InstallArgs,
    bundle::{self, Settings},
    check::{self, Level},
    facts::{self, Want},
    show::{Mark, Show, count},
};
use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    process::ExitCode,
    time::{Duration, Instant},
};

/// Where the configuration is.
pub(super) const CONFIG: &str = "/api/v1/namespaces/weft-system/configmaps/weft-config";
/// Where the agents' DaemonSet is.
pub(super) const AGENTS: &str = "/apis/apps/v1/namespaces/weft-system/daemonsets/weft-agent";
/// Where the controller's Deployment is.
pub(super) const CONTROLLER: &str = "/apis/apps/v1/namespaces/weft-system/deployments/weft-controller";

/// Prints what would be installed.
pub(super) fn dry_run(args: &InstallArgs, show: &Show) -> Result<ExitCode> {
    let objects = bundle::objects(&given(args)?, None);
    if show.json() {
        show.result(&json!({"apiVersion": "v1", "kind": "List", "items": objects}));
    } else {
        for object in &objects {
            show.plain(format!("---\n{}", bundle::yaml(object)).trim_end());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Installs, or brings an installation to this version and these settings.
pub(super) async fn run(cluster: &Cluster, args: &InstallArgs, show: &Show) -> Result<ExitCode> {
    let new = given(args)?;
    let config = cluster.get(CONFIG).await?;
    refuse_helm(config.as_ref())?;
    if !precheck(cluster, args.force, show).await? {
        return Ok(ExitCode::FAILURE);
    }
    let settings = if args.reset { new } else { new.over(saved(config.as_ref())) };
    // Those of the last installation were perhaps another version's.
    settings.review().map_err(|why| {
        anyhow::anyhow!("{why}; it is kept from the last installation (--reset forgets those)")
    })?;
    let changed = apply_all(cluster, &settings, show).await?;
    if !args.wait {
        show.result(&json!({"changed": changed, "ready": null}));
        return Ok(ExitCode::SUCCESS);
    }
    let waiting = wait(cluster, args.timeout, show).await?;
    show.result(&json!({"changed": changed, "ready": waiting.is_empty(), "waitingFor": waiting}));
    if !waiting.is_empty() {
        show.line(
            Mark::Bad,
            &format!("not ready after {} s; `weft check` says more", args.timeout.as_secs()),
        );
        return Ok(ExitCode::FAILURE);
    }
    next_steps(show, &settings);
    Ok(ExitCode::SUCCESS)
}

fn given(args: &InstallArgs) -> Result<Settings> {
    Settings::read(args.image.as_deref(), &args.settings, &args.addons).map_err(anyhow::Error::msg)
}

/// Two tools that each put back what the other changed would take turns.
fn refuse_helm(config: Option<&Value>) -> Result<()> {
    let Some(config) = config else { return Ok(()) };
    if label(config, "app.kubernetes.io/managed-by") == Some("Helm") {
        let release = annotation(config, "meta.helm.sh/release-name").unwrap_or("weft");
        let namespace = annotation(config, "meta.helm.sh/release-namespace").unwrap_or(NAMESPACE);
        bail!(
            "ConfigMap weft-system/weft-config: Weft was installed by Helm; use `helm upgrade {release} -n {namespace} …`"
        );
    }
    Ok(())
}

/// The settings of the last installation.
fn saved(config: Option<&Value>) -> Settings {
    let text = config.and_then(|c| annotation(c, bundle::SETTINGS)).unwrap_or_default();
    serde_json::from_str(text).unwrap_or_default() // another tool's installation has none
}

/// Runs the checks that must hold before; false when one fails.
async fn precheck(cluster: &Cluster, force: bool, show: &Show) -> Result<bool> {
    let findings = check::findings(&facts::gather(cluster, Want::Pre, NAMESPACE).await?, Want::Pre);
    for finding in findings.iter().filter(|f| f.level >= Level::Warning) {
        check::print(finding, show);
    }
    let errors = findings.iter().filter(|f| f.level == Level::Error).count();
    if errors == 0 {
        show.line(Mark::Good, &format!("{} before the installation", count(findings.len(), "check")));
    } else if !force {
        show.line(Mark::Bad, "nothing was changed; --force installs all the same");
        return Ok(false);
    }
    Ok(true)
}

/// Applies every object; returns the titles of those that are other than before.
async fn apply_all(cluster: &Cluster, settings: &Settings, show: &Show) -> Result<Vec<String>> {
    let mut changed = Vec::new();
    let mut objects = bundle::objects(settings, None);
    let mut done = BTreeSet::new();
    // The index is needed: a configuration that somebody edited changes the objects after it.
    let mut at = 0;
    while let Some(object) = objects.get(at).cloned() {
        let title = bundle::title(&object);
        let path = bundle::path(&object).with_context(|| format!("{title}: a kind without a path"))?;
        let is_config = path == CONFIG;
        let before = cluster.get(&path).await?.map(|o| text(&o, "/metadata/resourceVersion").to_owned());
        let after = match cluster.apply(&path, &object, !is_config).await {
            Err(ClusterError::Refused { code: 409, message, .. }) if is_config => {
                show.line(
                    Mark::Warn,
                    &format!("{title}: edited by somebody else and kept as it is ({message})"),
                );
                let kept = cluster.get(CONFIG).await?.unwrap_or_default();
                let text = text(&kept, "/data/config.yaml");
                for problem in weft_k8s::read_settings(text).1 {
                    show.line(Mark::Bad, &format!("{title}: {problem}"));
                }
                objects = bundle::objects(settings, Some(text));
                kept
            }
            Err(ClusterError::Refused { code: 404, .. }) if text(&object, "/kind") == "GatewayClass" => {
                show.line(Mark::Warn, "GatewayClass weft: left out, since the Gateway API's CRDs are not installed; run `weft install` again after them");
                at += 1;
                continue;
            }
            other => other?,
        };
        let now = text(&after, "/metadata/resourceVersion");
        if before.as_deref() != Some(now) {
            show.line(Mark::Good, &format!("{title} {}", if before.is_some() { "changed" } else { "made" }));
            changed.push(title.clone());
        }
        if text(&object, "/kind") == "CustomResourceDefinition" {
            established(cluster, &path).await?;
        }
        done.insert(title);
        at += 1;
    }
    // A merge patch, since `uninstall` was written by another manager: applying without it does not take it away.
    let config = cluster.get(CONFIG).await?.unwrap_or_default();
    if config.pointer("/data/uninstall").is_some() {
        cluster.merge(CONFIG, &json!({"data": {"uninstall": null, "drain": null}})).await?;
        changed.push("ConfigMap weft-system/weft-config".into());
    }
    show.line(
        Mark::Good,
        &format!("{} as they should be, {} of them new", count(done.len(), "object"), changed.len()),
    );
    Ok(changed)
}

/// Waits until the API server serves a definition's objects.
async fn established(cluster: &Cluster, path: &str) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let crd = cluster.get(path).await?.unwrap_or_default();
        if condition(&crd, "Established").is_some_and(|c| text(c, "/status") == "True") {
            return Ok(());
        }
        if Instant::now() > end {
            let why =
                condition(&crd, "NamesAccepted").map_or("no condition", |c| text(c, "/message")).to_owned();
            bail!("{path}: not established after 30 s: {why}");
        }
        tokio::time::sleep(cluster.pace).await;
    }
}

/// Waits until everything runs; returns what is still waited for, with the reason.
async fn wait(cluster: &Cluster, timeout: Duration, show: &Show) -> Result<Vec<String>> {
    let (end, mut said) = (Instant::now() + timeout, Vec::new());
    loop {
        let (agents, controller) = (cluster.get(AGENTS).await?, cluster.get(CONTROLLER).await?);
        let pods = cluster.list("/api/v1/namespaces/weft-system/pods").await?.unwrap_or_default();
        let waiting = waiting_for(&agents.unwrap_or_default(), &controller.unwrap_or_default(), &pods);
        if waiting.is_empty() {
            show.line(Mark::Good, "controller and all agents are ready");
            return Ok(waiting);
        }
        if waiting != said {
            for line in &waiting {
                show.line(Mark::Plain, &format!("waiting: {line}"));
            }
            said.clone_from(&waiting);
        }
        if Instant::now() > end {
            return Ok(waiting);
        }
        tokio::time::sleep(cluster.pace).await;
    }
}

/// What is not ready yet, and why as far as pods say.
pub(super) fn waiting_for(agents: &Value, controller: &Value, pods: &[Value]) -> Vec<String> {
    let mut waiting = Vec::new();
    let seen = |object: &Value| {
        number(object, "/status/observedGeneration") >= number(object, "/metadata/generation")
    };
    let (wanted, ready) = (number(controller, "/spec/replicas"), number(controller, "/status/readyReplicas"));
    let updated = number(controller, "/status/updatedReplicas");
    if !seen(controller)
        || ready < wanted
        || updated < wanted
        || number(controller, "/status/replicas") > wanted
    {
        waiting.push(format!("controller: {} of {wanted} ready", ready.min(updated)));
    }
    let (wanted, ready) =
        (number(agents, "/status/desiredNumberScheduled"), number(agents, "/status/numberReady"));
    let updated = number(agents, "/status/updatedNumberScheduled");
    // A DaemonSet that nobody has looked at yet wants 0 pods.
    if !seen(agents)
        || ready < wanted
        || updated < wanted
        || agents.pointer("/status/observedGeneration").is_none()
    {
        waiting.push(format!("agents: {} of {wanted} ready", ready.min(updated)));
    }
    if !waiting.is_empty() {
        waiting.extend(pods.iter().filter_map(trouble));
    }
    waiting
}

/// Why a pod does not run, if it says.
pub(super) fn trouble(pod: &Value) -> Option<String> {
    let (name, node) = (key(pod), text(pod, "/spec/nodeName"));
    let place = if node.is_empty() { String::new() } else { format!(" on {node}") };
    for status in
        list(pod, "/status/containerStatuses").iter().chain(list(pod, "/status/initContainerStatuses"))
    {
        let container = text(status, "/name");
        let (waiting, last) = (status.pointer("/state/waiting"), status.pointer("/lastState/terminated"));
        if let Some(ended) = last.or_else(|| status.pointer("/state/terminated")) {
            let (code, message) = (number(ended, "/exitCode"), text(ended, "/message"));
            let more = if message.is_empty() { text(ended, "/reason") } else { message };
            return Some(format!(
                "{name}{place}: container {container} ended with code {code} ({more}); \
                 kubectl -n {NAMESPACE} logs {} -c {container} --previous",
                text(pod, "/metadata/name")
            ));
        }
        let reason = waiting.map_or("", |w| text(w, "/reason"));
        if !matches!(reason, "" | "ContainerCreating" | "PodInitializing") {
            let message = waiting.map_or("", |w| text(w, "/message"));
            return Some(format!("{name}{place}: container {container}: {reason}: {message}"));
        }
    }
    let unscheduled = condition(pod, "PodScheduled").filter(|c| text(c, "/status") == "False")?;
    Some(format!("{name}: {}: {}", text(unscheduled, "/reason"), text(unscheduled, "/message")))
}

fn next_steps(show: &Show, settings: &Settings) {
    show.plain("\nNext:");
    show.plain("  weft check                  every check with an id and a remedy");
    show.plain("  weft join NAMESPACE         its pods join the mesh, running ones too, with no restart");
    show.plain("  weft status                 nodes, namespaces, pods, callers in clear");
    if settings.addons.contains("jaeger") {
        show.plain(
            "  kubectl -n weft-system port-forward service/jaeger 16686   traces: http://127.0.0.1:16686",
        );
    }
}
