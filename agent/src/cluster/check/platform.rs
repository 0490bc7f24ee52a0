//! What must hold whether or not Weft is installed: WEFT-C001 to C019.

use super::*;
use std::collections::BTreeSet;

pub(super) fn kubernetes(report: &mut Report<'_>) {
    let found = text(&report.facts.version, "/gitVersion").to_owned();
    let (major, minor) = KUBERNETES_MIN;
    match version(&found) {
        Some(at) if at >= KUBERNETES_MIN => report.ok("WEFT-C001", format!("Kubernetes {found}")),
        Some(_) => report.add(
            "WEFT-C001",
            Level::Error,
            format!("Kubernetes {found}: older than {major}.{minor}"),
            format!(
                "upgrade the cluster to {major}.{minor} or later: the CA relies on tokens that say their node"
            ),
        ),
        None => report.add(
            "WEFT-C001",
            Level::Warning,
            format!("Kubernetes `{found}`: version not understood"),
            "",
        ),
    }
}

pub(super) fn rights(report: &mut Report<'_>) {
    if report.facts.may_install {
        report.ok("WEFT-C002", "you may install: every right in the cluster");
    } else {
        report.add(
            "WEFT-C002",
            Level::Warning,
            "you do not have every right in the cluster: the installation gives rights, and nobody can give what they lack",
            "use a context with the ClusterRole cluster-admin, or let somebody with it run the installation",
        );
    }
}

pub(super) fn nodes(report: &mut Report<'_>) {
    if report.denied("WEFT-C003", "/api/v1/nodes") {
        return;
    }
    let nodes = &report.facts.nodes;
    let linux = |node: &&Value| text(node, "/status/nodeInfo/operatingSystem") == "linux";
    let (mut old, mut strange, mut fine) = (Vec::new(), Vec::new(), 0);
    for node in nodes.iter().filter(linux) {
        let kernel = text(node, "/status/nodeInfo/kernelVersion");
        match version(kernel) {
            Some(at) if at >= KERNEL_MIN => fine += 1,
            Some(_) => old.push(format!("{} ({kernel})", key(node))),
            None => strange.push(format!("{} (`{kernel}`)", key(node))),
        }
    }
    let arch: Vec<String> = nodes
        .iter()
        .filter(linux)
        .filter(|node| !matches!(text(node, "/status/nodeInfo/architecture"), "amd64" | "arm64"))
        .map(key)
        .collect();
    let (major, minor) = KERNEL_MIN;
    if !old.is_empty() {
        report.add(
            "WEFT-C003",
            Level::Error,
            format!("kernel older than {major}.{minor} on {}", old.join(", ")),
            "upgrade these nodes, or keep the agents off them by agent.nodeSelector of the chart",
        );
    } else if fine == 0 {
        report.add("WEFT-C003", Level::Error, "no Linux node", "agents run on Linux");
    } else {
        report.ok("WEFT-C003", format!("kernel {major}.{minor} or later on {}", count(fine, "node")));
    }
    if !strange.is_empty() {
        report.add(
            "WEFT-C003",
            Level::Warning,
            format!("kernel version not understood on {}", strange.join(", ")),
            "",
        );
    }
    if !arch.is_empty() {
        report.add(
            "WEFT-C004",
            Level::Warning,
            format!("neither amd64 nor arm64: {}", arch.join(", ")),
            "build an image for them",
        );
    }
}

pub(super) fn gateway_api(report: &mut Report<'_>) {
    if report.denied("WEFT-C005", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions") {
        return;
    }
    let facts = report.facts;
    let ours: Vec<&Value> = facts.crds.iter().filter(|crd| text(crd, "/spec/group") == GATEWAY_API).collect();
    let Some(gateways) = ours.iter().find(|crd| text(crd, "/spec/names/plural") == "gateways") else {
        report.add(
            "WEFT-C005",
            Level::Warning,
            "the Gateway API's CRDs are not installed: pods get mutual TLS, but there are no routes and no Gateways",
            "install the bundle v1.6.1 of the Gateway API, channel `standard` or `experimental` (Weft never installs it: other \
             controllers share it), then `weft install` again",
        );
        return;
    };
    let bundle = annotation(gateways, "gateway.networking.k8s.io/bundle-version").unwrap_or_default();
    let channel = annotation(gateways, "gateway.networking.k8s.io/channel").unwrap_or_default();
    bundle_version(report, bundle);
    one_channel(report, &ours, channel);
    if !facts.upgrade_guard && version(bundle).is_some_and(|at| at >= (1, 5)) {
        report.add(
            "WEFT-C007",
            Level::Warning,
            "ValidatingAdmissionPolicy safe-upgrades.gateway.networking.k8s.io is not there: nothing keeps another \
             installer from replacing the CRDs by older ones, or by the other channel",
            "apply the whole bundle of the Gateway API again, which has it since v1.5",
        );
    } else if facts.upgrade_guard {
        report.ok("WEFT-C007", "the Gateway API's CRDs are guarded against downgrades (safe-upgrades)");
    }
}

fn bundle_version(report: &mut Report<'_>, bundle: &str) {
    let text = |(major, minor)| format!("v{major}.{minor}");
    match version(bundle) {
        Some(at) if at < BUNDLE_MIN => report.add(
            "WEFT-C005",
            Level::Error,
            format!("the Gateway API's CRDs are of {bundle}, older than {}", text(BUNDLE_MIN)),
            "upgrade the bundle; v1.6.1 is what Weft is tested with",
        ),
        Some(at) if at > BUNDLE_TESTED => report.add(
            "WEFT-C005",
            Level::Info,
            format!("the Gateway API's CRDs are of {bundle}, newer than what Weft is tested with ({})", text(BUNDLE_TESTED)),
            "",
        ),
        Some(_) => report.ok("WEFT-C005", format!("Gateway API {bundle}")),
        None => report.add(
            "WEFT-C005",
            Level::Warning,
            format!("CustomResourceDefinition gateways.{GATEWAY_API}: annotation gateway.networking.k8s.io/bundle-version is `{bundle}`"),
            "install the bundle as published; the annotation says what the kinds can do",
        ),
    }
}

/// The kinds of both channels come from one bundle; a mixture validates by rules that belong to no version.
fn one_channel(report: &mut Report<'_>, crds: &[&Value], channel: &str) {
    let seen = |name: &str| -> BTreeSet<String> {
        crds.iter().filter_map(|crd| annotation(crd, name)).map(str::to_owned).collect()
    };
    let (channels, bundles) =
        (seen("gateway.networking.k8s.io/channel"), seen("gateway.networking.k8s.io/bundle-version"));
    if channels.len() > 1 || bundles.len() > 1 {
        let all: Vec<String> = channels.into_iter().chain(bundles).collect();
        report.add(
            "WEFT-C006",
            Level::Error,
            format!("the Gateway API's CRDs are mixed: {}", all.join(", ")),
            "apply one bundle, one channel, as a whole",
        );
        return;
    }
    let wanted = [
        "backendtlspolicies",
        "grpcroutes",
        "httproutes",
        "listenersets",
        "referencegrants",
        "tcproutes",
        "tlsroutes",
        "udproutes",
    ];
    let served = |plural: &&&str| report.facts.served(plural).is_none();
    let missing: Vec<&str> = wanted.iter().filter(served).copied().collect();
    if missing.is_empty() {
        report.ok("WEFT-C006", format!("channel {channel}: every kind that Weft serves"));
    } else {
        report.add(
            "WEFT-C006",
            Level::Info,
            format!("channel {channel}: without {}", missing.join(", ")),
            "a newer bundle or the channel `experimental` has them; Weft picks them up when they come",
        );
    }
}

pub(super) fn pod_security(report: &mut Report<'_>) {
    // Before the installation it is not there; the installation labels it.
    let Some(namespace) = &report.facts.namespace else { return };
    match label(namespace, "pod-security.kubernetes.io/enforce") {
        None | Some("privileged") => report.ok("WEFT-C008", "Pod Security lets agents run in weft-system"),
        Some(level) => report.add(
            "WEFT-C008",
            Level::Error,
            format!(
                "namespace weft-system: label pod-security.kubernetes.io/enforce={level} refuses the agents"
            ),
            "kubectl label --overwrite namespace weft-system pod-security.kubernetes.io/enforce=privileged",
        ),
    }
}

/// Whatever rewrites a Service's address in `connect` hides it from the capture rules: routes on Services then never apply,
/// and nothing says so.
pub(super) fn load_balancing(report: &mut Report<'_>) {
    let facts = report.facts;
    if let Some(cilium) = &facts.cilium {
        self::cilium(report, cilium);
    }
    if let Some(felix) = &facts.calico {
        calico(report, felix);
    }
    let proxy = facts.kube_proxy.as_ref().map(|map| text(map, "/data/config.conf"));
    let mode = proxy.and_then(|conf| {
        let line = conf.lines().find_map(|line| line.trim().strip_prefix("mode:"))?;
        Some(line.trim().trim_matches('"'))
    });
    match mode {
        Some("ipvs") => report.add(
            "WEFT-C011",
            Level::Info,
            "kube-proxy in mode ipvs, which Kubernetes has deprecated",
            "mode nftables or iptables; Weft works with each",
        ),
        Some("") => report.ok("WEFT-C011", "kube-proxy in its default mode"),
        Some(mode) => report.ok("WEFT-C011", format!("kube-proxy in mode {mode}")),
        None => {} // another program's work, or set by flags: nothing to say
    }
}

fn cilium(report: &mut Report<'_>, config: &Value) {
    let value = |name: &str| config.pointer("/data").and_then(|data| data.get(name)).and_then(Value::as_str);
    let on = |name: &str| value(name) == Some("true");
    let replaces = matches!(value("kube-proxy-replacement"), Some("true" | "strict"));
    // The replacement of kube-proxy brings it along, unless it is switched off by name.
    let at_connect = on("bpf-lb-sock") || (replaces && value("bpf-lb-sock") != Some("false"));
    if at_connect && !on("bpf-lb-sock-hostns-only") {
        report.add(
            "WEFT-C009",
            Level::Error,
            "ConfigMap kube-system/cilium-config: Cilium rewrites Service addresses when a pod connects (socketLB), so that \
             routes on Services never apply",
            "Helm value socketLB.hostNamespaceOnly=true (bpf-lb-sock-hostns-only: \"true\"), then restart the cilium DaemonSet",
        );
    } else {
        report.ok("WEFT-C009", "Cilium leaves Service addresses of pods' connections alone");
    }
    // Cilium's own default is to be alone.
    if value("cni-exclusive") == Some("false") {
        report.ok("WEFT-C012", "Cilium lets other CNI plugins be chained");
    } else {
        report.add(
            "WEFT-C012",
            Level::Error,
            "ConfigMap kube-system/cilium-config: cni-exclusive is not \"false\": Cilium renames every other CNI configuration away",
            "Helm value cni.exclusive=false, then restart the cilium DaemonSet",
        );
    }
}

fn calico(report: &mut Report<'_>, felix: &Value) {
    let spec = &felix["spec"];
    // Without eBPF kube-proxy does it, after the capture rules. `TCP` is the default of the newer field.
    let at_connect = match (
        spec["bpfConnectTimeLoadBalancing"].as_str(),
        spec["bpfConnectTimeLoadBalancingEnabled"].as_bool(),
    ) {
        (Some(mode), _) => mode != "Disabled",
        (None, Some(enabled)) => enabled,
        (None, None) => true,
    };
    if spec["bpfEnabled"] == true && at_connect {
        report.add(
            "WEFT-C010",
            Level::Error,
            "FelixConfiguration default: Calico rewrites Service addresses when a pod connects \
             (spec.bpfConnectTimeLoadBalancing), so that routes on Services never apply",
            "kubectl patch felixconfiguration default --type merge -p \
             '{\"spec\":{\"bpfConnectTimeLoadBalancing\":\"Disabled\",\"bpfHostNetworkedNATWithoutCTLB\":\"Enabled\"}}'",
        );
    } else {
        report.ok("WEFT-C010", "Calico leaves Service addresses of pods' connections alone");
    }
}
