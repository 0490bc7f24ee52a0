//! The register of findings: every code that `weft check` can print, with what it is about and what is done about it. The
//! finding itself names the object and the very command. `CHECKS.md` is this table.

use serde::Serialize;

/// A code.
#[derive(Debug, Serialize)]
pub(super) struct Code {
    /// `WEFT-C001`; never used for anything else.
    pub(super) id: &'static str,
    /// What was looked at, and what is wrong when it is not well.
    pub(super) about: &'static str,
    /// What to do when it is not well.
    pub(super) remedy: &'static str,
}

const fn code(id: &'static str, about: &'static str, remedy: &'static str) -> Code {
    Code { id, about, remedy }
}

/// All of them. C001 to C019 must hold whether or not Weft is installed; C020 on are about an installed Weft. C035 and C039
/// were never given.
#[rustfmt::skip]
pub(super) const CODES: &[Code] = &[
    code("WEFT-C001", "The cluster's version is older than Weft needs", "Upgrade Kubernetes"),
    code("WEFT-C002", "You lack rights that the installation gives, and nobody can give what they lack", "Use a context with `cluster-admin`, or let somebody with it install"),
    code("WEFT-C003", "A node's kernel is too old, or there is no Linux node", "Upgrade the node, or keep agents off it by `agent.nodeSelector`"),
    code("WEFT-C004", "A node is neither amd64 nor arm64", "Build an image for it"),
    code("WEFT-C005", "The Gateway API's CRDs are missing, too old, or newer than what is tested: without them there is mutual TLS and no route", "Install or upgrade the bundle of the Gateway API, then `weft install` again"),
    code("WEFT-C006", "The Gateway API's CRDs are of several bundles or channels, or lack a kind that Weft serves", "Apply one bundle and channel as a whole"),
    code("WEFT-C007", "Nothing keeps the Gateway API's CRDs from being replaced by older ones", "Apply the whole bundle, which has the policy `safe-upgrades` since v1.5"),
    code("WEFT-C008", "Pod Security refuses agents in `weft-system`", "Label the namespace `pod-security.kubernetes.io/enforce=privileged`"),
    code("WEFT-C009", "Cilium rewrites Service addresses when a pod connects, so that routes on Services never apply", "`socketLB.hostNamespaceOnly=true`, and restart the cilium DaemonSet"),
    code("WEFT-C010", "Calico rewrites Service addresses when a pod connects, so that routes on Services never apply", "`bpfConnectTimeLoadBalancing: Disabled` in the FelixConfiguration"),
    code("WEFT-C011", "kube-proxy's mode, which Kubernetes may have deprecated", "Mode nftables or iptables; Weft works with each"),
    code("WEFT-C012", "Cilium renames every other CNI configuration away, Weft's too", "`cni.exclusive=false`, and restart the cilium DaemonSet"),
    code("WEFT-C020", "Controller or agents are missing or not ready, or Weft is not installed", "`kubectl -n weft-system describe pods`; `weft install`"),
    code("WEFT-C021", "No controller leads: status, addresses and new certificates are not written", "`kubectl -n weft-system logs deployment/weft-controller`"),
    code("WEFT-C022", "Agents, controller and this program are of different versions", "`weft install` brings all to one"),
    code("WEFT-C023", "A node's agent does not answer the question of this program", "Get the right `pods/exec` in `weft-system`; where the agent is not ready, describe its pod"),
    code("WEFT-C024", "The program nft does not run on a node, so that no pod is captured there", "Load the kernel module `nf_tables`, or use the image as it is built"),
    code("WEFT-C025", "An agent is not connected to the controller: what is served stays, changes wait", "`kubectl -n weft-system logs deployment/weft-controller`"),
    code("WEFT-C026", "The CNI plugin is not chained on a node: a pod may start a moment before its capture", "Install the cluster's CNI plugin first, or set `agent.cniConfDir` and `agent.cniBinDir`"),
    code("WEFT-C027", "The mesh has no CA, so that no pod gets a certificate", "`kubectl -n weft-system logs deployment/weft-controller`"),
    code("WEFT-C028", "An uninstallation was begun and not ended: agents let every pod go", "`weft uninstall` again, or `weft install` to take it back"),
    code("WEFT-C029", "The GatewayClass `weft` is missing, refused, or looked at by nobody", "Correct its `parametersRef`; `weft install` makes it"),
    code("WEFT-C030", "A node keeps the taint `weft.dev/agent-not-ready` though its agent runs", "`weft install --addon node-taint`, or take the taint away by hand"),
    code("WEFT-C031", "A pod whose label wants it in the mesh speaks past it", "`kubectl -n weft-system logs daemonset/weft-agent -c agent`"),
    code("WEFT-C032", "A pod with the label cannot be in the mesh, since it is on the host's network", "Label it `weft.dev/mesh=disabled`, which says that it is known"),
    code("WEFT-C033", "No agent serves on a node: pods of the mesh there are cut off", "Mend the cause, which is named; `weft node clean NODE` where no agent comes back"),
    code("WEFT-C034", "A pod's RuntimeClass has a network stack of its own (gVisor, Kata, Firecracker), where capture does not reach", "Label the pod `weft.dev/mesh=disabled`, or run it without the RuntimeClass"),
    code("WEFT-C036", "Pods are strict: nobody outside the mesh is let in but the probes that they declare", "`weft status` lists who calls in clear; [SECURITY.md](SECURITY.md) says what else is kept out"),
    code("WEFT-C037", "A NetworkPolicy admits callers to the application and not to port 15008, where their tunnels go", "Add the rule that is printed"),
    code("WEFT-C038", "A NetworkPolicy's rule admits port 15008 and no port of an application, where tunnels of this version go", "Name the application's ports beside it, unless it is for another mesh's callers"),
    code("WEFT-C040", "Pods are captured by a redirect, which slows down many new connections; without `nft_socket` a probe of a dead port succeeds, too", "Load the kernel modules `nft_tproxy`, `nft_socket` and `nft_fib_inet`"),
    code("WEFT-C041", "An annotation that excludes traffic has an entry that cannot be read, which is captured", "Correct the entry in the pod's template: a port from 1 to 65535, or a CIDR"),
    code("WEFT-C042", "A node's kubelet is not recognised, so that the probes of strict pods there fail", "End what holds the kubelet's port beside it, which is named; the agent needs `hostPID` and CAP_SYS_PTRACE"),
    code("WEFT-C050", "A listener's certificate has ended, ends soon, begins later, or is for other names", "Renew the certificate in the Secret, or correct the listener's hostname"),
    code("WEFT-C051", "A setting of the mesh (`weft-config`) is wrong or unknown: the last good one holds, or, of `mtls`, strict", "Correct it by `weft install --set` or the chart's `config`"),
    code("WEFT-C052", "A label or annotation of Weft's says something that means nothing; of `weft.dev/mtls` it counts as strict", "Write what is named"),
    code("WEFT-C053", "A pod asks for less than its namespace's `weft.dev/mtls=strict`, and is ignored", "Take the label or annotation off the pod's template, or put the exclusion on the namespace"),
    code("WEFT-C054", "A namespace or pod has another mesh's label and none of Weft's", "`weft join`, if it is meant"),
    code("WEFT-C055", "A condition of a Gateway, ListenerSet, route or policy is not as it should be", "The condition's message says what to correct"),
    code("WEFT-C056", "A route takes requests that a route of another namespace would get", "Bind hostnames to namespaces by the chart's `hostnamePolicy`"),
    code("WEFT-C057", "You may not list all namespaces, so that only one was looked at", "`-n NAMESPACE` looks at another one; `--context` with more rights at all"),
    code("WEFT-C060", "A pod claims an address that another pod has proved to have: a kubelet that does not tell the truth, or a pod's end that was not noted", "Look at the node that is named; delete the pod"),
    code("WEFT-C061", "Nodes have no `spec.podCIDRs`, so that pods' networks are learned, and an unknown address near a pod's is refused", "`podCidrs` of the `AgentConfig`"),
    code("WEFT-C070", "A pod or Gateway has used up a budget on a node, which refuses what is beyond it", "Look at who asks for so much; `docs/budgets.md` lists all budgets, and which setting raises one"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_code_that_a_check_can_print_is_in_the_register_once() {
        let sources = [
            include_str!("../check.rs"),
            include_str!("mesh.rs"),
            include_str!("platform.rs"),
            include_str!("identity.rs"),
            include_str!("words.rs"),
        ];
        let printed: BTreeSet<&str> =
            sources.iter().flat_map(|source| source.split('"')).filter(|w| w.starts_with("WEFT-C")).collect();
        let listed: BTreeSet<&str> = CODES.iter().map(|code| code.id).collect();
        assert_eq!(printed, listed);
        assert_eq!(listed.len(), CODES.len(), "a code is there twice");
    }

    #[test]
    fn the_document_is_the_register() {
        let row = |code: &Code| format!("| `{}` | {} | {} |\n", code.id, code.about, code.remedy);
        let rows: String = CODES.iter().map(row).collect();
        let document = include_str!("../../../../CHECKS.md");
        let found: String =
            document.lines().filter(|l| l.starts_with("| `WEFT-")).map(|l| format!("{l}\n")).collect();
        assert_eq!(found, rows, "CHECKS.md must have these rows");
    }
}
