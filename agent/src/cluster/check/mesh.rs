//! What must hold of an installed Weft: WEFT-C020 on.

use super::*;
use crate::cluster::{
    STRICT,
    agents::{BudgetReport, ListenerReport},
    facts::{CA_ROOT, POLICIES, SLICES, SYSTEM_PODS, is_served},
    install::{AGENTS, CONTROLLER},
    members::Member,
    missing::Missing,
    mtls::{Effective, From, Settings},
    policies,
};
use std::collections::{BTreeMap, BTreeSet};
use weft_core::model::MESH_LABEL;
use weft_inpod::CaptureConfig;

/// Pods that are named where more are concerned.
const NAMED: usize = 6;
/// A leader that has not renewed for so long has ended.
const LEASE_PATIENCE: jiff::SignedDuration = jiff::SignedDuration::from_secs(30);

/// False when Weft is not there. Who may not see whether it is, is told of all else that they may see.
pub(super) fn installed(report: &mut Report<'_>) -> bool {
    let facts = report.facts;
    let mut unseen = false;
    for path in [AGENTS, CONTROLLER] {
        unseen |= report.denied("WEFT-C020", path);
    }
    if facts.daemon_set.is_none() && facts.controller.is_none() && !unseen {
        report.add("WEFT-C020", Level::Error, "Weft is not installed", "weft install");
        return false;
    }
    narrowed(report);
    if !unseen {
        running(report);
    }
    leader(report, jiff::Timestamp::now());
    versions(report);
    agents(report);
    plugin(report);
    authority(report);
    class(report);
    taints(report);
    pods(report);
    policies(report);
    identity::addresses(report);
    true
}

/// What was looked at in one namespace only.
fn narrowed(report: &mut Report<'_>) {
    let Facts { narrowed, namespace_seen, .. } = report.facts;
    if narrowed.is_empty() {
        return;
    }
    let kinds: Vec<&str> = narrowed.iter().filter_map(|path| path.rsplit('/').next()).collect();
    report.add(
        "WEFT-C057",
        Level::Info,
        format!(
            "looked at in namespace {namespace_seen} only, since you may not list others: {}",
            kinds.join(", ")
        ),
        "-n NAMESPACE looks at another one; a context with more rights at all: --context",
    );
}

fn running(report: &mut Report<'_>) {
    let facts = report.facts;
    let none = Value::Null;
    let (agents, controller) =
        (facts.daemon_set.as_ref().unwrap_or(&none), facts.controller.as_ref().unwrap_or(&none));
    let mut waiting = waiting_for(agents, controller, &facts.system_pods);
    for (object, what) in [(agents, "DaemonSet weft-agent"), (controller, "Deployment weft-controller")] {
        if object.is_null() {
            waiting.push(format!("{what} is not there"));
        }
    }
    if waiting.is_empty() {
        report.ok("WEFT-C020", "controller and all agents are ready");
        return;
    }
    let image = facts.system_pods.iter().filter_map(trouble).any(|why| why.contains("ImagePull"));
    let remedy = if image {
        "the nodes cannot get the image: weft install --image IMAGE names another; a private registry needs imagePullSecrets of the chart"
    } else {
        "kubectl -n weft-system describe pods"
    };
    report.add("WEFT-C020", Level::Error, waiting.join("; "), remedy);
}

fn leader(report: &mut Report<'_>, now: jiff::Timestamp) {
    let Some(lease) = &report.facts.lease else {
        if !report
            .denied("WEFT-C021", "/apis/coordination.k8s.io/v1/namespaces/weft-system/leases/weft-controller")
        {
            report.add(
                "WEFT-C021",
                Level::Error,
                "Lease weft-system/weft-controller: no controller leads; status and addresses are not written",
                "kubectl -n weft-system logs deployment/weft-controller",
            );
        }
        return;
    };
    let holder = text(lease, "/spec/holderIdentity");
    let renewed: Option<jiff::Timestamp> = text(lease, "/spec/renewTime").parse().ok();
    let fresh = renewed.is_some_and(|at| now.duration_since(at) < LEASE_PATIENCE);
    if fresh && !holder.is_empty() {
        report.ok("WEFT-C021", format!("{holder} leads"));
    } else {
        report.add(
            "WEFT-C021",
            Level::Error,
            format!("Lease weft-system/weft-controller: `{holder}` has not renewed it since {}", text(lease, "/spec/renewTime")),
            "kubectl -n weft-system logs deployment/weft-controller; clocks that differ by more than 30 s look like this too",
        );
    }
}

fn versions(report: &mut Report<'_>) {
    let facts = report.facts;
    let images: Vec<&str> =
        [&facts.daemon_set, &facts.controller].into_iter().flatten().map(bundle::image).collect();
    if let [agent, controller] = images[..]
        && agent != controller
    {
        report.add(
            "WEFT-C022",
            Level::Warning,
            format!("agents run {agent}, the controller {controller}"),
            "weft install brings both to one version",
        );
    }
    let mine = env!("CARGO_PKG_VERSION");
    let others: Vec<String> = facts
        .agents
        .iter()
        .filter_map(|(node, report)| Some((node, report.as_ref().ok()?)))
        .filter(|(_, report)| !report.version.is_empty() && report.version != mine)
        .map(|(node, report)| format!("{node} {}", report.version))
        .collect();
    if !others.is_empty() {
        report.add(
            "WEFT-C022",
            Level::Info,
            format!("this program is {mine}; agents: {}", others.join(", ")),
            "use the program of the agents' version, or `weft install` to upgrade them",
        );
    }
}

fn agents(report: &mut Report<'_>) {
    let facts = report.facts;
    let missing = missing(facts);
    for (node, answer) in &facts.agents {
        match answer {
            Err(_) if missing.contains_key(node) => {} // said by WEFT-C033, with the cause
            Err(reason) => unanswered(report, node, reason),
            Ok(agent) if agent.nft.is_empty() && !agent.kernel.is_empty() => report.add(
                "WEFT-C024",
                Level::Error,
                format!("{node}: the program nft does not run there (kernel {})", agent.kernel),
                "load the kernel module nf_tables, or use the image as it is built, which has nft",
            ),
            Ok(agent) if !matches!(agent.controller.as_str(), "" | "connected") => report.add(
                "WEFT-C025",
                Level::Warning,
                format!("{node}: not connected to the controller: {}", agent.controller),
                "what is served stays served; new certificates and changes of Gateways wait: kubectl -n weft-system logs deployment/weft-controller",
            ),
            Ok(_) => {}
        }
    }
    let redirecting: Vec<&str> = facts
        .agents
        .iter()
        .filter(|(_, answer)| answer.as_ref().is_ok_and(|agent| agent.capture.starts_with("redirect")))
        .map(|(node, _)| node.as_str())
        .collect();
    if !redirecting.is_empty() {
        report.add(
            "WEFT-C040",
            Level::Warning,
            format!(
                "capture: redirect on {}: new connections of a pod to several destinations slow down above some 500 a second",
                redirecting.join(", ")
            ),
            "load the kernel modules nft_tproxy, nft_socket and nft_fib_inet there; pods are captured anew with the agent's next start",
        );
    }
}

/// An agent that does not answer, on a node of which WEFT-C033 says nothing: who may not read the DaemonSet is not told of
/// missing agents, and whether this one runs is seen by its pod alone.
fn unanswered(report: &mut Report<'_>, node: &str, reason: &str) {
    let (state, remedy) = if is_served(&report.facts.system_pods, node) {
        (
            "its agent is ready and does not answer you",
            "the question is an exec in the agent's pod: it needs the right pods/exec in weft-system",
        )
    } else {
        (
            "its agent is not ready and does not answer; whether it serves is unknown",
            "kubectl -n weft-system describe pods; the right to read daemonsets in weft-system lets `weft check` say why",
        )
    };
    report.add("WEFT-C023", Level::Warning, format!("{node}: {state}: {reason}"), remedy);
}

fn plugin(report: &mut Report<'_>) {
    let answers: Vec<(&String, &crate::cluster::agents::CniReport)> = report
        .facts
        .agents
        .iter()
        .filter_map(|(node, answer)| Some((node, &answer.as_ref().ok()?.cni)))
        .filter(|(_, cni)| !cni.state.is_empty())
        .collect();
    let mut fine = 0;
    for (node, cni) in answers {
        match (cni.state.as_str(), cni.problem.as_str()) {
            ("installed", "") => fine += 1,
            ("installed", problem) => report.add(
                "WEFT-C026",
                Level::Warning,
                format!("{node}: {}: {problem}", cni.file),
                "pods that run are captured all the same; a new one may start a moment before its capture",
            ),
            ("waiting", problem) => report.add(
                "WEFT-C026",
                Level::Error,
                format!("{node}: no CNI configuration to join yet ({problem})"),
                "install the cluster's own CNI plugin; where its files are elsewhere: weft install --set agent.cniConfDir=… --set agent.cniBinDir=…",
            ),
            (state, problem) => report.add(
                "WEFT-C026",
                Level::Error,
                format!("{node}: the CNI plugin is {state}: {problem}"),
                "kubectl -n weft-system logs daemonset/weft-agent -c agent",
            ),
        }
    }
    if fine > 0 {
        report.ok("WEFT-C026", format!("the CNI plugin is chained on {}", count(fine, "node")));
    }
}

fn authority(report: &mut Report<'_>) {
    let facts = report.facts;
    if facts.config.as_ref().is_some_and(|config| text(config, "/data/uninstall") == "true") {
        report.add(
            "WEFT-C028",
            Level::Error,
            "ConfigMap weft-system/weft-config: uninstall is `true`: agents let every pod go",
            "`weft uninstall`, or the hook of `helm uninstall`, was begun and not ended: run it again, or take it back: `weft install`, or for \
             Helm kubectl -n weft-system patch configmap weft-config --type merge -p '{\"data\":{\"uninstall\":null,\"drain\":null}}'",
        );
    }
    match &facts.ca_root {
        Some(root) if text(root, "/data/root.pem").contains("BEGIN CERTIFICATE") => {
            report.ok("WEFT-C027", "the mesh has its CA");
        }
        None if report.denied("WEFT-C027", CA_ROOT) => {}
        _ => report.add(
            "WEFT-C027",
            Level::Error,
            "ConfigMap weft-system/weft-ca-root: no root.pem, so no pod gets a certificate",
            "the leading controller makes it: kubectl -n weft-system logs deployment/weft-controller",
        ),
    }
}

fn class(report: &mut Report<'_>) {
    let facts = report.facts;
    if let Some(path) = facts.denied.iter().find(|path| path.ends_with("/gatewayclasses")) {
        report.denied("WEFT-C029", path);
        return;
    }
    if facts.served("gatewayclasses").is_none() && facts.classes.is_empty() {
        return;
    }
    let Some(class) = facts.classes.iter().find(|class| key(class) == "weft") else {
        report.add("WEFT-C029", Level::Info, "GatewayClass weft is not there", "weft install makes it; a class of your own with controllerName weft.dev/gateway-controller does as well");
        return;
    };
    match condition(class, "Accepted") {
        Some(accepted) if text(accepted, "/status") == "True" => {
            report.ok("WEFT-C029", "GatewayClass weft is accepted")
        }
        Some(other) => report.add(
            "WEFT-C029",
            Level::Error,
            format!(
                "GatewayClass weft: Accepted is {}: {}: {}",
                text(other, "/status"),
                text(other, "/reason"),
                text(other, "/message")
            ),
            "correct spec.parametersRef",
        ),
        None => report.add(
            "WEFT-C029",
            Level::Error,
            "GatewayClass weft: no controller has looked at it",
            "kubectl -n weft-system logs deployment/weft-controller",
        ),
    }
}

fn taints(report: &mut Report<'_>) {
    let facts = report.facts;
    let tainted = facts
        .nodes
        .iter()
        .filter(|node| list(node, "/spec/taints").iter().any(|t| text(t, "/key") == bundle::TAINT));
    let stuck: Vec<String> = tainted.map(key).filter(|node| facts.agents.contains_key(node)).collect();
    if !stuck.is_empty() {
        report.add(
            "WEFT-C030",
            Level::Warning,
            format!("taint {}: still on {}, where an agent runs", bundle::TAINT, stuck.join(", ")),
            "weft install --addon node-taint lets the controller take it away; by hand: kubectl taint node NAME weft.dev/agent-not-ready-",
        );
    }
}

fn policies(report: &mut Report<'_>) {
    let facts = report.facts;
    if report.denied("WEFT-C037", POLICIES) {
        return;
    }
    let missing = policies::missing(&policies::World::of(facts));
    for one in &missing {
        let (id, level) = match one.lacks {
            policies::Lacks::Hbone | policies::Lacks::Excluded => ("WEFT-C037", Level::Error),
            // It may be meant for callers of another mesh, whose tunnels all go there.
            policies::Lacks::Application => ("WEFT-C038", Level::Warning),
        };
        report.add(id, level, one.message(), one.remedy());
    }
    if missing.is_empty() && !facts.policies.is_empty() {
        let looked_at = count(facts.policies.len(), "NetworkPolicy");
        report.ok("WEFT-C037", format!("{looked_at}: each admits the tunnels of those that it admits"));
    }
}

fn pods(report: &mut Report<'_>) {
    let facts = report.facts;
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
    let unseen = report.denied("WEFT-C031", SLICES);
    let all = if unseen { Vec::new() } else { members(&facts.pods, &scene) };
    absent(report, &missing, &all);
    let captured = all.iter().filter(|m| m.state == State::Captured).count();
    for member in &all {
        match member.state {
            State::Bypassing if missing.contains_key(&member.node) => {} // said with its node
            State::Bypassing => report.add(
                "WEFT-C031",
                Level::Error,
                format!(
                    "pod {} on {}: its label wants it in the mesh, and it is not: {}",
                    member.pod, member.node, member.why
                ),
                "kubectl -n weft-system logs daemonset/weft-agent -c agent",
            ),
            State::Excluded => excluded(report, member),
            State::Captured | State::Unserved | State::Outside | State::Leaving => {}
        }
    }
    if captured > 0 {
        report.ok("WEFT-C031", format!("{} in the mesh", count(captured, "pod")));
    }
    strict(report, &all);
    exclusions(report, &all);
    budgets(report);
    listeners(report);
}

/// Says what strict leaves of the callers from outside, where a label asks for it, and where that lacks the kubelet.
fn strict(report: &mut Report<'_>, all: &[Member]) {
    let facts = report.facts;
    let captured = |pod: &&Value| {
        let name = key(pod);
        all.iter().any(|m| m.pod == name && m.state == State::Captured)
    };
    let settings = Settings::of(facts);
    let effective = |pod: &Value| {
        let namespace = facts.namespaces.iter().find(|ns| key(ns) == text(pod, "/metadata/namespace"));
        settings.effective(Some(pod), namespace)
    };
    let in_mesh: Vec<(&Value, Effective)> =
        facts.pods.iter().filter(captured).map(|pod| (pod, effective(pod))).collect();
    let pods: Vec<&Value> = in_mesh.iter().filter(|(_, e)| e.is_strict()).map(|(pod, _)| *pod).collect();
    let unknown = in_mesh.iter().filter(|(_, e)| e.mode.is_none()).count();
    if unknown > 0 {
        let message = format!(
            "what {} without a label accept is set for the whole mesh, and not readable by you",
            count(unknown, "pod")
        );
        report.add("WEFT-C036", Level::Info, message, "weft.dev/mtls on the namespace says it for its pods");
    }
    if !pods.is_empty() {
        let by = |from: From| in_mesh.iter().filter(|(_, e)| e.is_strict() && e.from == from).count();
        let words = [
            (From::Namespace, "by the namespace's label"),
            (From::Pod, "by the pod's label"),
            (From::Mesh, "mesh-wide"),
        ];
        let sources = words.into_iter().filter(|(from, _)| by(*from) > 0);
        let sources: Vec<String> = sources.map(|(from, words)| format!("{} {words}", by(from))).collect();
        report.add(
            "WEFT-C036",
            Level::Info,
            format!("{} strict ({}): {}", count(pods.len(), "pod"), sources.join(", "), STRICT),
            "`weft status` lists who calls permissive pods in clear; SECURITY.md says what else is kept out",
        );
    }
    for (node, agent) in facts.agents.iter().filter_map(|(node, answer)| Some((node, answer.as_ref().ok()?)))
    {
        let of_node = pods.iter().filter(|pod| text(pod, "/spec/nodeName") == node).count();
        // Without strict pods nobody misses it; and who asks seldom was told of it long ago, perhaps.
        if agent.kubelet.is_empty() || of_node == 0 {
            continue;
        }
        report.add(
            "WEFT-C042",
            Level::Error,
            format!(
                "{node}: its kubelet is not recognised: {}; probes of {} there fail",
                agent.kubelet,
                count(of_node, "strict pod")
            ),
            "end what holds the kubelet's port beside it; the agent needs hostPID and CAP_SYS_PTRACE",
        );
    }
}

/// Certificates that clients of a Gateway do not trust, or will not before long. Several nodes serve one Gateway.
fn listeners(report: &mut Report<'_>) {
    let agents = report.facts.agents.values().flat_map(|agent| agent.iter());
    let all: BTreeSet<ListenerReport> = agents.flat_map(|agent| agent.listeners.iter().cloned()).collect();
    for ListenerReport { gateway, now, message, remedy, .. } in all {
        let level = if now { Level::Error } else { Level::Warning };
        report.add("WEFT-C050", level, format!("Gateway {gateway}: {message}"), remedy);
    }
}

/// Who has used up a budget, and so is refused what is beyond it.
fn budgets(report: &mut Report<'_>) {
    for (node, agent) in report.facts.agents.iter() {
        for reached in agent.iter().flat_map(|agent| &agent.budgets) {
            let Some(budget) = weft_core::budget::named(&reached.budget) else { continue };
            let BudgetReport { kind, namespace, name, times, .. } = reached;
            report.add(
                "WEFT-C070",
                Level::Warning,
                format!(
                    "{kind} {namespace}/{name} on {node} has used up its budget {} ({} for each: {}); {times} times since \
                     the agent's start {}",
                    budget.name,
                    weft_core::budget::amount(budget),
                    budget.holds,
                    budget.when_reached
                ),
                budget.setting.map_or_else(
                    || "look at who asks for so much; docs/budgets.md lists all budgets".to_owned(),
                    |field| format!("look at who asks for so much, or raise `{field}` of the AgentConfig"),
                ),
            );
        }
    }
}

/// Entries of annotations that mean nothing, and so exclude nothing.
fn exclusions(report: &mut Report<'_>, all: &[Member]) {
    let facts = report.facts;
    let wanted: BTreeSet<&str> =
        all.iter().filter(|m| m.state != State::Outside).map(|m| m.pod.as_str()).collect();
    let pods = facts.pods.iter().filter(|pod| wanted.contains(key(pod).as_str()));
    let joined = facts.namespaces.iter().filter(|ns| label(ns, MESH_LABEL) == Some("enabled"));
    let objects = joined.map(|ns| ("namespace", ns)).chain(pods.map(|pod| ("pod", pod)));
    for (kind, object) in objects {
        let annotations = object.pointer("/metadata/annotations").and_then(Value::as_object);
        let texts = annotations.into_iter().flatten().filter_map(|(k, v)| Some((k.as_str(), v.as_str()?)));
        for problem in CaptureConfig::from_annotations(texts).1 {
            report.add(
                "WEFT-C041",
                Level::Warning,
                format!("{kind} {}: {problem}; what it meant is captured", key(object)),
                "correct it (of a pod in its template): ports from 1 to 65535 or CIDRs, separated by commas",
            );
        }
    }
}

fn excluded(report: &mut Report<'_>, member: &Member) {
    let message = format!("pod {}: cannot be in the mesh: {}", member.pod, member.why);
    let disabled = format!("{}=disabled", weft_core::model::MESH_LABEL);
    if member.why.contains("RuntimeClass") {
        report.add(
            "WEFT-C034",
            Level::Error,
            message,
            format!("kubectl label pod … {disabled}, so that its peers do not look for the mesh there; or run it without the RuntimeClass"),
        );
    } else {
        report.add(
            "WEFT-C032",
            Level::Info,
            message,
            format!("kubectl label pod … {disabled} says that it is known"),
        );
    }
}

/// Nodes whose agent is missing, with the pods that nobody answers for.
fn absent(report: &mut Report<'_>, missing: &BTreeMap<String, Missing>, all: &[Member]) {
    if report.denied("WEFT-C033", "/api/v1/namespaces/weft-system/pods") {
        return;
    }
    for (node, missing) in missing {
        let cut_off: Vec<&str> = all
            .iter()
            .filter(|m| m.node == *node && matches!(m.state, State::Unserved | State::Bypassing))
            .map(|m| m.pod.as_str())
            .collect();
        if missing.chosen && cut_off.is_empty() {
            continue; // as its administrator wants it
        }
        let named = cut_off.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
        let more = if cut_off.len() > NAMED { ", …" } else { "" };
        let pods = match cut_off.len() {
            0 => "no pod of the mesh is there".to_owned(),
            n => format!(
                "{} of the mesh there cannot be reached and reach nobody ({named}{more})",
                count(n, "pod")
            ),
        };
        report.add(
            "WEFT-C033",
            Level::Error,
            format!("{node}: no agent serves there: {}; {pods}", missing.cause),
            missing.remedy.clone(),
        );
    }
}
