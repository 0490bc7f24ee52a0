//! `weft status`: one screen. [`summary`] is a function of [`Facts`]; the rest prints it.

use super::{
    STRICT,
    api::{Cluster, condition, key, label, list, text},
    args::StatusArgs,
    bundle, check,
    conditions::{Faulty, Weight, faulty},
    facts::{self, Facts, GATEWAY_API, SLICES, SYSTEM_PODS, Want},
    install::AGENTS,
    members::{Member, Scene, State, members},
    missing::{Missing, missing},
    mtls::{self, From, Said, Settings},
    overlap,
    show::{Mark, Show, count, table},
};
use anyhow::Result;
use serde::Serialize;
use serde_json::Value;
use std::{collections::BTreeMap, process::ExitCode};
use weft_core::model::{MESH_LABEL, MTLS_LABEL};

/// Lines of a list that people see; programs get all.
const LINES_MAX: usize = 20;
/// What is our own class.
const CONTROLLER: &str = "weft.dev/gateway-controller";

/// The screen.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Summary {
    installed: bool,
    /// How that is known.
    seen: Seen,
    image: String,
    leader: String,
    nodes: Vec<NodeLine>,
    namespaces: Vec<NamespaceLine>,
    /// What capture cannot see in this cluster.
    blind_spots: Vec<String>,
    /// Pods that are not where their label wants them.
    pods: Vec<Member>,
    /// Pods whose own label says other than what holds for their namespace.
    mtls_of_pods: Vec<PodMtls>,
    /// What labels and annotations say that is not so.
    remarks: Vec<Said>,
    /// What is wrong with the mesh's settings.
    settings: Vec<String>,
    /// Conditions that are not as they should be, worst first.
    conditions: Vec<Faulty>,
    /// Routes that take requests of another namespace's.
    overlaps: Vec<String>,
    plaintext: Vec<super::agents::PlaintextReport>,
    dangling_parents: Vec<Dangling>,
    unowned_classes: Vec<Unowned>,
    /// What could not be read.
    not_readable: Vec<String>,
    /// What was looked at in one namespace only, and which.
    narrowed: Vec<String>,
    namespace_seen: String,
}

/// A pod that accepts other than its namespace's pods do.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PodMtls {
    pod: String,
    mtls: String,
    #[serde(skip)]
    words: String,
}

/// Whether Weft is there, as far as the person may see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Seen {
    /// The agents' DaemonSet is not there.
    #[default]
    Absent,
    /// Its kinds are served; agents and controller are not readable.
    Kinds,
    /// Nothing that would tell is readable.
    Unknown,
    /// The agents' DaemonSet is there.
    Agents,
}

impl Seen {
    fn of(facts: &Facts) -> Self {
        match (&facts.daemon_set, facts.denied.contains(AGENTS), facts.knows_weft) {
            (Some(_), ..) => Self::Agents,
            (None, false, _) => Self::Absent,
            (None, true, true) => Self::Kinds,
            (None, true, false) => Self::Unknown,
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeLine {
    node: String,
    ready: bool,
    agent: String,
    version: String,
    cni: String,
    captured: usize,
    wanted: usize,
    problem: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NamespaceLine {
    namespace: String,
    /// What holds for pods without a label of their own: `strict`, `permissive` or `unknown`.
    mtls: String,
    /// By whose word.
    mtls_from: From,
    /// The same for people.
    #[serde(skip)]
    mtls_words: String,
    captured: usize,
    unserved: usize,
    bypassing: usize,
    excluded: usize,
}

/// A parent that a route names and that is not there.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Dangling {
    route: String,
    parent: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    meant: Option<String>,
}

/// A class that nobody serves, or that there is not.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Unowned {
    class: String,
    why: String,
    gateways: Vec<String>,
}

/// Shows the screen.
pub(super) async fn run(cluster: &Cluster, args: &StatusArgs, show: &Show) -> Result<ExitCode> {
    let namespace = cluster.namespace(args.namespace.as_deref());
    let summary = summary(&facts::gather(cluster, Want::All, &namespace).await?);
    show.result(&serde_json::to_value(&summary)?);
    if !show.json() {
        print(&summary, show);
    }
    // Whether something is wrong is `check`'s to say; this shows, and fails only where there is nothing to show.
    Ok(if summary.seen == Seen::Absent { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The screen's content.
pub(super) fn summary(facts: &Facts) -> Summary {
    let missing = missing(facts);
    let scene = Scene {
        namespaces: &facts.namespaces,
        slices: &facts.slices,
        agents: Some(&facts.agents),
        missing: Some(&missing),
        runtimes: &facts.runtime_classes,
        agents_unseen: facts.denied.contains(SYSTEM_PODS),
    };
    // Who may not read slices cannot tell who is captured.
    let all = if facts.denied.contains(SLICES) { Vec::new() } else { members(&facts.pods, &scene) };
    let settings = Settings::of(facts);
    let seen = Seen::of(facts);
    Summary {
        installed: matches!(seen, Seen::Agents | Seen::Kinds),
        seen,
        image: facts.daemon_set.as_ref().map(bundle::image).unwrap_or_default().to_owned(),
        leader: facts.lease.as_ref().map(|l| text(l, "/spec/holderIdentity")).unwrap_or_default().to_owned(),
        nodes: nodes(facts, &all, &missing),
        namespaces: namespaces(facts, &all, &settings),
        mtls_of_pods: mtls_of_pods(facts, &settings),
        remarks: mtls::remarks(facts),
        settings: settings.problems.iter().map(ToString::to_string).collect(),
        conditions: faulty(facts),
        overlaps: overlap::overlaps(facts),
        plaintext: facts.agents.values().flatten().flat_map(|agent| agent.plaintext.clone()).collect(),
        pods: all.into_iter().filter(|m| !matches!(m.state, State::Captured | State::Outside)).collect(),
        blind_spots: check::blind_spots(facts)
            .into_iter()
            .map(|f| format!("{} {}", f.id, f.message))
            .collect(),
        dangling_parents: dangling_parents(facts),
        unowned_classes: unowned_classes(facts),
        not_readable: facts.denied.iter().cloned().collect(),
        narrowed: facts.narrowed.iter().cloned().collect(),
        namespace_seen: facts.namespace_seen.clone(),
    }
}

fn nodes(facts: &Facts, all: &[Member], missing: &BTreeMap<String, Missing>) -> Vec<NodeLine> {
    let pods = facts::agent_pods(&facts.system_pods);
    facts
        .nodes
        .iter()
        .map(|node| {
            let name = key(node);
            let pod = pods.get(&name);
            let answer = facts.agents.get(&name);
            let report = answer.and_then(|answer| answer.as_ref().ok());
            let problem = match (missing.get(&name), answer) {
                (Some(missing), _) => format!("no agent serves here: {}", missing.cause),
                (None, Some(Err(reason))) => reason.clone(),
                (None, _) => String::new(),
            };
            let of = |state| all.iter().filter(|m| m.node == name && m.state == state).count();
            let captured = of(State::Captured);
            NodeLine {
                ready: facts::is_served(&facts.system_pods, &name),
                agent: pod.cloned().unwrap_or_default(),
                version: report.map(|r| r.version.clone()).unwrap_or_default(),
                cni: report.map(|r| r.cni.state.clone()).unwrap_or_default(),
                captured,
                wanted: captured + of(State::Unserved) + of(State::Bypassing),
                problem,
                node: name,
            }
        })
        .collect()
}

fn namespaces(facts: &Facts, all: &[Member], settings: &Settings) -> Vec<NamespaceLine> {
    let mut found: BTreeMap<String, NamespaceLine> = BTreeMap::new();
    let line = |name: &str| {
        let object = facts.namespaces.iter().find(|ns| key(ns) == name);
        let effective = settings.effective(None, object);
        NamespaceLine {
            namespace: name.to_owned(),
            mtls: effective.word().to_owned(),
            mtls_from: effective.from,
            mtls_words: effective.words(),
            captured: 0,
            unserved: 0,
            bypassing: 0,
            excluded: 0,
        }
    };
    for namespace in facts.namespaces.iter().filter(|ns| label(ns, MESH_LABEL) == Some("enabled")) {
        let name = key(namespace);
        found.insert(name.clone(), line(&name));
    }
    for member in all {
        let namespace = member.pod.split('/').next().unwrap_or_default();
        if matches!(member.state, State::Outside | State::Leaving) {
            continue;
        }
        // Pods that joined by a label of their own, in a namespace that did not.
        let entry = found.entry(namespace.to_owned()).or_insert_with(|| line(namespace));
        match member.state {
            State::Captured => entry.captured += 1,
            State::Unserved => entry.unserved += 1,
            State::Bypassing => entry.bypassing += 1,
            _ => entry.excluded += 1,
        }
    }
    found.into_values().collect()
}

/// Pods whose own label decides, where it says other than their namespace's.
fn mtls_of_pods(facts: &Facts, settings: &Settings) -> Vec<PodMtls> {
    let around = |pod: &Value| facts.namespaces.iter().find(|ns| key(ns) == text(pod, "/metadata/namespace"));
    let own = facts.pods.iter().filter(|pod| label(pod, MTLS_LABEL).is_some()).filter_map(|pod| {
        let (effective, others) =
            (settings.effective(Some(pod), around(pod)), settings.effective(None, around(pod)));
        let differs = effective.from == From::Pod && effective.mode != others.mode;
        differs.then(|| PodMtls {
            pod: key(pod),
            mtls: effective.word().to_owned(),
            words: effective.words(),
        })
    });
    own.collect()
}

/// Parents that are not there. Where one of that name is in another namespace, that is probably the one that was meant.
fn dangling_parents(facts: &Facts) -> Vec<Dangling> {
    let mut found = Vec::new();
    for (kind, route) in &facts.routes {
        let own = text(route, "/metadata/namespace");
        for parent in list(route, "/spec/parentRefs") {
            let group = parent.get("group").and_then(Value::as_str).unwrap_or(GATEWAY_API);
            let parent_kind = parent.get("kind").and_then(Value::as_str).unwrap_or("Gateway");
            let objects = match (group, parent_kind) {
                (GATEWAY_API, "Gateway") => &facts.gateways,
                (GATEWAY_API, "ListenerSet") => &facts.listener_sets,
                ("" | "core", "Service") => &facts.services,
                _ => continue, // another implementation's
            };
            let (name, namespace) =
                (text(parent, "/name"), parent.get("namespace").and_then(Value::as_str).unwrap_or(own));
            let wanted = format!("{namespace}/{name}");
            if objects.iter().any(|o| key(o) == wanted) {
                continue;
            }
            let meant = objects.iter().find(|o| text(o, "/metadata/name") == name).map(key);
            found.push(Dangling {
                route: format!("{kind} {}", key(route)),
                parent: format!("{parent_kind} {wanted}"),
                meant,
            });
        }
    }
    found
}

/// Classes that no controller has accepted or refused, and names of classes that Gateways use and that are not there.
fn unowned_classes(facts: &Facts) -> Vec<Unowned> {
    let users = |class: &str| -> Vec<String> {
        let uses = |gateway: &&Value| text(gateway, "/spec/gatewayClassName") == class;
        facts.gateways.iter().filter(uses).map(key).collect()
    };
    let mut found = Vec::new();
    for class in &facts.classes {
        // `Unknown` with reason `Pending` is what the CRD's default says before anybody looked.
        let looked_at = condition(class, "Accepted").is_some_and(|c| text(c, "/status") != "Unknown");
        if !looked_at {
            let controller = text(class, "/spec/controllerName");
            let hint = if controller == CONTROLLER { "; is the weft-controller running?" } else { "" };
            let why = format!("no controller {controller} has looked at it{hint}");
            found.push(Unowned { class: key(class), why, gateways: users(&key(class)) });
        }
    }
    let mut missing: Vec<&str> = facts.gateways.iter().map(|g| text(g, "/spec/gatewayClassName")).collect();
    missing.sort_unstable();
    missing.dedup();
    for class in missing.into_iter().filter(|name| !facts.classes.iter().any(|c| key(c) == *name)) {
        found.push(Unowned {
            class: class.to_owned(),
            why: "there is no such GatewayClass".into(),
            gateways: users(class),
        });
    }
    found
}

/// What Weft is here, and how much of it could be seen. False: there is no more to show.
fn print_head(summary: &Summary, show: &Show) -> bool {
    let leader = if summary.leader.is_empty() { "nobody" } else { &summary.leader };
    match summary.seen {
        Seen::Absent => {
            show.line(Mark::Bad, "Weft is not installed: weft install");
            return false;
        }
        Seen::Agents => show.plain(&format!("{} · leader: {leader}", summary.image)),
        Seen::Kinds => show.plain("Weft is installed; its agents and controller are not readable by you"),
        Seen::Unknown => {
            let unknown =
                "whether Weft is installed is not readable by you; what follows is as far as you may see";
            show.line(Mark::Warn, unknown);
        }
    }
    if !summary.narrowed.is_empty() {
        let only = &summary.namespace_seen;
        show.plain(&format!(
            "Looked at in namespace {only} only, since you may not list others (another one: -n NAMESPACE): {}",
            kinds(&summary.narrowed)
        ));
    }
    true
}

fn print(summary: &Summary, show: &Show) {
    if !print_head(summary, show) {
        return;
    }
    print_nodes(summary, show);
    print_namespaces(summary, show);
    let lines = |mark: Mark, title: &str, lines: Vec<String>| {
        if lines.is_empty() {
            return;
        }
        show.title(&format!("\n{title}"));
        for line in lines.iter().take(LINES_MAX) {
            show.line(mark, line);
        }
        if lines.len() > LINES_MAX {
            show.plain(&format!("  … and {} more (-o json)", lines.len() - LINES_MAX));
        }
    };
    let of = |state| {
        let pods = summary.pods.iter().filter(move |m| m.state == state);
        pods.map(|m| format!("{} on {}: {}", m.pod, m.node, m.why)).collect::<Vec<_>>()
    };
    lines(Mark::Bad, "What capture cannot see in this cluster", summary.blind_spots.clone());
    lines(Mark::Bad, "Settings of the mesh that are wrong", summary.settings.clone());
    lines(Mark::Bad, "Pods that nobody serves: their node's agent is missing", of(State::Unserved));
    lines(Mark::Bad, "Pods that bypass the mesh", of(State::Bypassing));
    lines(Mark::Plain, "Pods that are leaving", of(State::Leaving));
    lines(Mark::Warn, "Pods that cannot join", of(State::Excluded));
    let remarks = |fault: bool| {
        let of = summary.remarks.iter().filter(move |said| said.fault == fault);
        of.map(Said::line).collect::<Vec<_>>()
    };
    lines(Mark::Warn, "Labels and annotations that say what is not so", remarks(true));
    lines(Mark::Plain, "Labels of other meshes", remarks(false));
    let (bad, worth): (Vec<&Faulty>, Vec<&Faulty>) =
        summary.conditions.iter().partition(|c| matches!(c.weight, Weight::NotServed | Weight::PartlyServed));
    let words = |of: Vec<&Faulty>| of.into_iter().map(Faulty::line).collect::<Vec<_>>();
    lines(Mark::Bad, "Not served as it is written", words(bad));
    lines(Mark::Warn, "Not looked at yet, or with something to know", words(worth));
    lines(Mark::Warn, "Routes that take requests of another namespace's", summary.overlaps.clone());
    let plaintext = summary.plaintext.iter().map(|p| {
        format!(
            "{} → {}: {}",
            p.from,
            p.to,
            count(usize::try_from(p.connections).unwrap_or(usize::MAX), "connection")
        )
    });
    lines(Mark::Warn, "Callers in clear, which strict would refuse", plaintext.collect());
    let dangling = summary.dangling_parents.iter().map(|d| match &d.meant {
        Some(meant) => {
            format!("{}: parent {} is not there; {meant} is: set parentRefs.namespace", d.route, d.parent)
        }
        None => format!("{}: parent {} is not there", d.route, d.parent),
    });
    lines(Mark::Warn, "Routes whose parent is not there", dangling.collect());
    let classes = summary.unowned_classes.iter().map(|c| {
        let users = if c.gateways.is_empty() {
            String::new()
        } else {
            format!(" (Gateways {})", c.gateways.join(", "))
        };
        format!("{}: {}{users}", c.class, c.why)
    });
    lines(Mark::Warn, "Classes that nobody serves", classes.collect());
    lines(Mark::Warn, "Not readable by you", summary.not_readable.clone());
}

/// Kinds by their paths: `pods, httproutes`.
fn kinds(paths: &[String]) -> String {
    paths.iter().filter_map(|path| path.rsplit('/').next()).collect::<Vec<_>>().join(", ")
}

fn print_nodes(summary: &Summary, show: &Show) {
    if summary.nodes.is_empty() {
        return; // said with what is not readable
    }
    show.title("\nNodes");
    let mut rows = vec![["NODE", "AGENT", "READY", "VERSION", "CNI", "PODS", ""].map(str::to_owned).to_vec()];
    for n in &summary.nodes {
        let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        rows.push(vec![
            n.node.clone(),
            or_dash(&n.agent),
            if n.ready { "yes" } else { "no" }.into(),
            or_dash(&n.version),
            or_dash(&n.cni),
            format!("{}/{}", n.captured, n.wanted),
            n.problem.clone(),
        ]);
    }
    show.plain(table(&rows).trim_end());
}

fn print_namespaces(summary: &Summary, show: &Show) {
    show.title("\nNamespaces in the mesh");
    if summary.namespaces.is_empty() {
        show.plain("  none yet: weft join NAMESPACE");
        return;
    }
    let mut rows = vec![
        ["NAMESPACE", "MTLS", "CAPTURED", "UNSERVED", "BYPASSING", "CANNOT JOIN"].map(str::to_owned).to_vec(),
    ];
    for n in &summary.namespaces {
        let cells = [n.captured, n.unserved, n.bypassing, n.excluded].map(|n| n.to_string());
        rows.push([vec![n.namespace.clone(), n.mtls_words.clone()], cells.to_vec()].concat());
    }
    show.plain(table(&rows).trim_end());
    let apart: Vec<String> = summary.mtls_of_pods.iter().map(|p| format!("{} {}", p.pod, p.words)).collect();
    if !apart.is_empty() {
        let (named, more) = (apart.iter().take(LINES_MAX), apart.len().saturating_sub(LINES_MAX));
        let named = named.cloned().collect::<Vec<_>>().join("; ");
        let more = if more > 0 { format!("; and {more} more (-o json)") } else { String::new() };
        show.plain(&format!("  but: {named}{more}"));
    }
    let namespaces = summary.namespaces.iter().map(|n| &n.mtls);
    if namespaces.chain(summary.mtls_of_pods.iter().map(|p| &p.mtls)).any(|mode| mode == "strict") {
        show.plain(&format!("  {STRICT}"));
    }
}

#[cfg(test)]
mod tests;
