//! `weft join` and `weft leave`: set the label, then follow until every pod is where it belongs. No pod is restarted.

use super::{
    NAMESPACE, STRICT,
    api::{Cluster, ClusterError, label, text},
    args::MembershipArgs,
    facts::{Facts, PODS, POLICIES, RUNTIME_CLASSES, SLICES, SYSTEM_PODS, ask_agents, never_joins},
    install::{AGENTS, CONFIG},
    members::{self, Member, Scene, State},
    mtls::{self, Settings},
    policies,
    show::{Mark, Show, count},
};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use std::{collections::BTreeMap, process::ExitCode, time::Instant};
use weft_core::model::MESH_LABEL;

/// What joins or leaves.
struct Target {
    namespace: String,
    pod: Option<String>,
}

impl Target {
    fn read(args: &MembershipArgs, namespace: String) -> Result<Self> {
        let target = match args.target.split_once('/') {
            None => Self { namespace: args.target.clone(), pod: None },
            Some(("ns" | "namespace", name)) => Self { namespace: name.to_owned(), pod: None },
            Some(("pod" | "pods", name)) => Self { namespace, pod: Some(name.to_owned()) },
            Some((kind, _)) => bail!("{kind}/…: only a NAMESPACE or pod/NAME can join or leave"),
        };
        ensure!(
            !target.namespace.is_empty() && target.pod.as_deref() != Some(""),
            "`{}` names nothing",
            args.target
        );
        Ok(target)
    }

    fn namespace_path(&self) -> String {
        format!("/api/v1/namespaces/{}", self.namespace)
    }

    fn path(&self) -> String {
        match &self.pod {
            None => self.namespace_path(),
            Some(pod) => format!("{}/pods/{pod}", self.namespace_path()),
        }
    }

    fn title(&self) -> String {
        match &self.pod {
            None => format!("namespace {}", self.namespace),
            Some(pod) => format!("pod {}/{pod}", self.namespace),
        }
    }
}

/// Joins (`enter`) or leaves.
pub(super) async fn run(
    cluster: &Cluster,
    args: &MembershipArgs,
    enter: bool,
    show: &Show,
) -> Result<ExitCode> {
    let target = Target::read(args, cluster.namespace(args.namespace.as_deref()))?;
    if never_joins(&target.namespace) && enter {
        bail!(
            "{}: the cluster's own namespaces and {NAMESPACE} never join: the mesh needs them to start",
            target.title()
        );
    }
    match readable(cluster.get(AGENTS).await)? {
        Some(agents) => ensure!(
            agents.is_some(),
            "DaemonSet {NAMESPACE}/weft-agent: not there, so nobody would capture a pod; `weft install` first"
        ),
        None => show.line(Mark::Plain, "whether agents run is not readable by you"),
    }
    // Who may write a pod and not read its namespace joins it all the same.
    let namespace = match readable(cluster.get(&target.namespace_path()).await)? {
        None if target.pod.is_some() => {
            show.line(Mark::Plain, &format!("namespace {}: not readable by you", target.namespace));
            Value::Null
        }
        None => bail!(
            "namespace {}: not readable by you; pods join one by one: {}",
            target.namespace,
            alone(&target)
        ),
        Some(found) => {
            found.with_context(|| format!("namespace {}: there is none of this name", target.namespace))?
        }
    };
    let object = match target.pod {
        None => namespace.clone(),
        Some(_) => {
            cluster.get(&target.path()).await?.with_context(|| format!("{}: not there", target.title()))?
        }
    };
    let wanted = wanted_label(&target, enter, &namespace);
    if label(&object, MESH_LABEL) == wanted {
        show.line(Mark::Good, &format!("{}: its label was as it should be", target.title()));
    } else {
        let patch = json!({"metadata": {"labels": {MESH_LABEL: wanted}}});
        if readable(cluster.merge(&target.path(), &patch).await)?.is_none() {
            match target.pod {
                None => bail!(
                    "namespace {}: you may not label it; whoever owns it may, and pods join one by one: {}",
                    target.namespace,
                    alone(&target)
                ),
                Some(_) => bail!("{}: you may not label it (the right to patch pods)", target.title()),
            }
        }
        show.line(Mark::Good, &format!("{}: {MESH_LABEL}={}", target.title(), wanted.unwrap_or("(none)")));
    }
    if enter {
        tell_mode(cluster, &target, (&object, &namespace), show).await?;
    }
    follow(cluster, args, &target, enter, show).await
}

/// How a person whose rights end at pods lets one join.
fn alone(target: &Target) -> String {
    format!(
        "weft join pod/NAME -n {}, or the label {MESH_LABEL}=enabled in a Deployment's pod template",
        target.namespace
    )
}

/// What the API server lets this person see or do; `None`: it refused.
fn readable<T>(answer: Result<T, ClusterError>) -> Result<Option<T>> {
    match answer {
        Err(error) if error.code() == Some(403) => Ok(None),
        other => Ok(Some(other?)),
    }
}

/// Says what whoever joins will accept from outside the mesh, where that is less than before, and what its labels say that is
/// not so.
async fn tell_mode(
    cluster: &Cluster,
    target: &Target,
    (object, namespace): (&Value, &Value),
    show: &Show,
) -> Result<()> {
    let mut facts = Facts { namespaces: vec![namespace.clone()], ..Facts::default() };
    match readable(cluster.get(CONFIG).await)? {
        Some(config) => facts.config = config,
        None => drop(facts.denied.insert(CONFIG.to_owned())),
    }
    if target.pod.is_some() {
        facts.pods.push(object.clone());
    }
    let effective = Settings::of(&facts).effective(target.pod.is_some().then_some(object), Some(namespace));
    if effective.is_strict() {
        show.line(Mark::Plain, &format!("{}: {STRICT}", effective.words()));
    } else if effective.mode.is_none() {
        show.line(Mark::Plain, &format!("what it accepts from outside the mesh: {}", effective.words()));
    }
    for said in mtls::remarks(&facts).iter().filter(|said| said.fault) {
        show.line(Mark::Warn, &said.line());
    }
    Ok(())
}

/// The label's value. A pod needs to say `disabled` only where its namespace says `enabled`.
fn wanted_label(target: &Target, enter: bool, namespace: &Value) -> Option<&'static str> {
    match (enter, &target.pod) {
        (true, _) => Some("enabled"),
        (false, Some(_)) if label(namespace, MESH_LABEL) == Some("enabled") => Some("disabled"),
        (false, _) => None,
    }
}

async fn follow(
    cluster: &Cluster,
    args: &MembershipArgs,
    target: &Target,
    enter: bool,
    show: &Show,
) -> Result<ExitCode> {
    let (end, mut told) = (Instant::now() + args.timeout, BTreeMap::new());
    loop {
        let Some(all) = look(cluster, target).await? else {
            show.result(&json!({"target": target.title(), "settled": null, "pods": []}));
            show.line(Mark::Warn, "the label is as it should be; whether pods are in the mesh is not readable by you (workloadslices of weft.dev)");
            return Ok(ExitCode::SUCCESS);
        };
        for member in &all {
            if told.insert(member.pod.clone(), member.state) != Some(member.state) {
                say(member, enter, show);
            }
        }
        let open: Vec<&Member> = all.iter().filter(|m| unsettled(m, enter)).collect();
        if open.is_empty() || Instant::now() > end {
            show.result(&json!({"target": target.title(), "settled": open.is_empty(), "pods": all}));
            let code = conclude(&all, &open, enter, show);
            if enter {
                tell_policies(cluster, target, show).await?;
            }
            return Ok(code);
        }
        tokio::time::sleep(cluster.pace).await;
    }
}

/// Names the NetworkPolicies that keep tunnels from or to the pods that have joined.
async fn tell_policies(cluster: &Cluster, target: &Target, show: &Show) -> Result<()> {
    let mut facts = Facts { namespace_seen: target.namespace.clone(), ..Facts::default() };
    facts.mesh(cluster).await?;
    for (message, remedy) in about_policies(&facts, &target.namespace) {
        show.line(Mark::Warn, &message);
        show.plain(&remedy);
    }
    Ok(())
}

/// What is wrong with policies of pods of a namespace, each with its remedy. Where something that decides it may not be read,
/// that is said: who is told nothing believes that every policy admits the mesh.
fn about_policies(facts: &Facts, namespace: &str) -> Vec<(String, String)> {
    let mut lines = Vec::new();
    let decides =
        |path: &&String| [POLICIES, SLICES, PODS].contains(&path.as_str()) || path.contains("/namespaces");
    let denied: Vec<&str> =
        facts.denied.iter().chain(&facts.narrowed).filter(decides).map(String::as_str).collect();
    if !denied.is_empty() {
        let denied = denied.join(", ");
        let message = format!(
            "{denied}: not readable by you in all namespaces, so NetworkPolicies that keep tunnels out may go unnamed"
        );
        lines.push((message, "use a context with more rights: --context".to_owned()));
    }
    let in_namespace = |pod: &String| pod.split('/').next() == Some(namespace);
    let missing = policies::missing(&policies::World::of(facts)).into_iter();
    let ours = missing.filter(|missing| missing.pods.iter().any(in_namespace));
    lines.extend(ours.map(|missing| (missing.message(), missing.remedy())));
    lines
}

/// Every pod that is concerned; `None` when it may not be seen whether they are captured. Agents are asked only about what
/// is open, for the reason.
async fn look(cluster: &Cluster, target: &Target) -> Result<Option<Vec<Member>>> {
    let namespace = readable(cluster.get(&target.namespace_path()).await)?.flatten().unwrap_or_default();
    let Some(pods) = readable(cluster.list(&format!("{}/pods", target.namespace_path())).await)? else {
        return Ok(None);
    };
    let mut pods = pods.unwrap_or_default();
    pods.retain(|pod| target.pod.as_deref().is_none_or(|name| text(pod, "/metadata/name") == name));
    for pod in &mut pods {
        pod["metadata"]["namespace"] = target.namespace.clone().into();
    }
    let path = format!("/apis/weft.dev/v1alpha1/namespaces/{}/workloadslices", target.namespace);
    let Some(slices) = readable(cluster.list(&path).await)? else { return Ok(None) };
    let slices = slices.unwrap_or_default();
    let namespaces = [namespace];
    let special = pods.iter().any(|pod| !text(pod, "/spec/runtimeClassName").is_empty());
    let runtimes = if special { runtimes(cluster).await? } else { Vec::new() };
    let scene = Scene { namespaces: &namespaces, slices: &slices, runtimes: &runtimes, ..Scene::default() };
    let mut all = members::members(&pods, &scene);
    if all.iter().any(|m| m.state == State::Bypassing) {
        all = match readable(cluster.list(SYSTEM_PODS).await)? {
            Some(system) => {
                let agents = ask_agents(cluster, &system.unwrap_or_default()).await;
                members::members(&pods, &Scene { agents: Some(&agents), ..scene })
            }
            None => members::members(&pods, &Scene { agents_unseen: true, ..scene }),
        };
    }
    Ok(Some(all))
}

/// RuntimeClasses, as far as they may be read.
async fn runtimes(cluster: &Cluster) -> Result<Vec<Value>> {
    match cluster.list(RUNTIME_CLASSES).await {
        Err(error) if error.code() == Some(403) => Ok(Vec::new()),
        other => Ok(other?.unwrap_or_default()),
    }
}

fn unsettled(member: &Member, enter: bool) -> bool {
    member.state == if enter { State::Bypassing } else { State::Leaving }
}

fn say(member: &Member, enter: bool, show: &Show) {
    let (pod, node, why) = (&member.pod, &member.node, &member.why);
    match (member.state, enter) {
        (State::Captured, true) => show.line(Mark::Good, &format!("{pod} on {node}: in the mesh")),
        (State::Outside, false) => show.line(Mark::Good, &format!("{pod} on {node}: out of the mesh")),
        (State::Excluded, true) => show.line(Mark::Warn, &format!("{pod} on {node}: cannot join: {why}")),
        (State::Outside, true) => {
            show.line(
                Mark::Warn,
                &format!("{pod} on {node}: stays out, its own label says {MESH_LABEL}=disabled"),
            );
        }
        (State::Captured, false) => {
            show.line(
                Mark::Warn,
                &format!("{pod} on {node}: stays in, its own label says {MESH_LABEL}=enabled"),
            );
        }
        (State::Bypassing | State::Leaving | State::Unserved, _) => {
            show.line(Mark::Plain, &format!("{pod} on {node}: waiting: {why}"))
        }
        (State::Excluded, false) => {}
    }
}

fn conclude(all: &[Member], open: &[&Member], enter: bool, show: &Show) -> ExitCode {
    let place = if enter { "in the mesh" } else { "out of the mesh" };
    let there = |m: &&Member| m.state == if enter { State::Captured } else { State::Outside };
    let settled = all.iter().filter(there).count();
    if open.is_empty() {
        show.line(Mark::Good, &format!("{} {place}", count(settled, "pod")));
        return ExitCode::SUCCESS;
    }
    for member in open {
        show.line(Mark::Bad, &format!("{}: {}", member.pod, member.why));
    }
    show.line(
        Mark::Bad,
        &format!("{} not {place} in time; `weft check` says more", count(open.len(), "pod")),
    );
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::fake::Fake;
    use std::sync::Arc;

    /// Review 10: who might not read NetworkPolicies was told nothing of them.
    #[tokio::test]
    async fn policies_that_may_not_be_read_are_said_to_be_unknown() {
        let policy = "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies/p";
        let namespace = json!({"metadata": {"name": "shop", "labels": {MESH_LABEL: "enabled"}}});
        let pod = |name: &str| json!({"metadata": {"namespace": "shop", "name": name}});
        let slice = json!({"metadata": {"namespace": "shop"}, "workloads": [{"name": "web", "captured": true}, {"name": "cart", "captured": true}]});
        let ports = json!([{"ports": [{"port": 8080}], "from": [{"podSelector": {}}]}]);
        let check = async |refused: &[&'static str], said: &[&str]| {
            let mut fake = Fake::default()
                .with("/api/v1/namespaces/shop", namespace.clone())
                .with("/api/v1/namespaces/shop/pods/web", pod("web"))
                .with("/api/v1/namespaces/shop/pods/cart", pod("cart"))
                .with("/apis/weft.dev/v1alpha1/namespaces/shop/workloadslices/weft-0", slice.clone())
                .with(
                    policy,
                    json!({"metadata": {"namespace": "shop", "name": "p"}, "spec": {"ingress": ports}}),
                );
            fake.refused.extend(refused.iter().map(|path| (*path, (403, "no"))));
            let mut facts = Facts { namespace_seen: "shop".into(), ..Facts::default() };
            facts.mesh(&Arc::new(fake).cluster()).await.unwrap();
            let lines = about_policies(&facts, "shop");
            assert_eq!(lines.len(), said.len(), "{lines:?}");
            said.iter().zip(&lines).for_each(|(part, (line, _))| assert!(line.contains(part), "{line}"));
        };
        check(&[], &["NetworkPolicy shop/p"]).await;
        // In their own namespace they are looked at all the same.
        check(&[POLICIES], &["networkpolicies: not readable by you in all", "NetworkPolicy shop/p"]).await;
        let here = "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies";
        check(&[POLICIES, here], &["networkpolicies: not readable by you"]).await;
        let here = "/apis/weft.dev/v1alpha1/namespaces/shop/workloadslices";
        check(&[SLICES, here], &["workloadslices: not readable by you"]).await;
    }
}
