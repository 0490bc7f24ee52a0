//! What must hold of an installed Weft: WEFT-C020 on.

use super::*;

/// A leader that has not renewed for so long has ended.
const LEASE_PATIENCE: jiff::SignedDuration = jiff::SignedDuration::from_secs(30);

pub(super) fn installed(report: &mut Report<'_>) {
    if report.facts.daemon_set.is_none() && report.facts.controller.is_none() {
        if !report.denied("WEFT-C020", crate::cluster::install::AGENTS) {
            report.add("WEFT-C020", Level::Error, "Weft is not installed", "weft install");
        }
        return;
    }
    running(report);
    leader(report, jiff::Timestamp::now());
    versions(report);
    agents(report);
    plugin(report);
    authority(report);
    class(report);
    taints(report);
    pods(report);
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
    for (node, answer) in &facts.agents {
        match answer {
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
            "load the kernel modules nft_tproxy and nft_socket there; pods are captured anew with the agent's next start",
        );
    }
}

fn unanswered(report: &mut Report<'_>, node: &str, reason: &str) {
    let pod = facts::agent_pods(&report.facts.system_pods).remove(node).unwrap_or_default();
    let object = report.facts.system_pods.iter().find(|object| text(object, "/metadata/name") == pod);
    let remedy = match object.and_then(crate::cluster::agents::not_running) {
        Some(_) => format!(
            "kubectl -n weft-system describe pod {pod}; until it runs, no pod in the mesh starts there"
        ),
        None => "the question is an exec in the agent's pod: it needs the right pods/exec in weft-system"
            .to_owned(),
    };
    report.add("WEFT-C023", Level::Warning, format!("{node}: its agent does not answer: {reason}"), remedy);
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
            "`weft uninstall` was begun and not ended: run it again, or take it back by `weft install`",
        );
    }
    match &facts.ca_root {
        Some(root) if text(root, "/data/root.pem").contains("BEGIN CERTIFICATE") => {
            report.ok("WEFT-C027", "the mesh has its CA");
        }
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
    if facts.served("gatewayclasses").is_none() {
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

fn pods(report: &mut Report<'_>) {
    let facts = report.facts;
    let all = members(&facts.pods, &facts.namespaces, &facts.slices, &facts.agents);
    let captured = all.iter().filter(|m| m.state == State::Captured).count();
    for member in &all {
        match member.state {
            State::Bypassing => report.add(
                "WEFT-C031",
                Level::Error,
                format!(
                    "pod {} on {}: its label wants it in the mesh, and it is not: {}",
                    member.pod, member.node, member.why
                ),
                "kubectl -n weft-system logs daemonset/weft-agent -c agent",
            ),
            State::Excluded => report.add(
                "WEFT-C032",
                Level::Info,
                format!("pod {}: cannot be in the mesh: {}", member.pod, member.why),
                format!(
                    "kubectl label pod … {}=disabled says that it is known",
                    weft_core::model::MESH_LABEL
                ),
            ),
            State::Captured | State::Outside | State::Leaving => {}
        }
    }
    if captured > 0 {
        report.ok("WEFT-C031", format!("{} in the mesh", count(captured, "pod")));
    }
}
