//! What the matrix deploys.

use super::world::{HOST_PORT, NAMESPACES, NODE_PEER, TOOLS};
use weft_tests::family::Family;

/// `mx-restricted` admits only pods that give up all that they could.
pub(super) fn namespaces() -> String {
    let [mesh, restricted, out] = NAMESPACES;
    let namespace = |name: &str, labels: &str| {
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n")
    };
    [
        namespace(mesh, "weft.dev/mesh: enabled"),
        namespace(restricted, "weft.dev/mesh: enabled, pod-security.kubernetes.io/enforce: restricted"),
        namespace(out, ""),
    ]
    .join("---\n")
}

/// Services of one family; and one of both, `dual`, where the cluster has both.
pub(super) fn services(family: Family, both: bool) -> String {
    let service = |namespace: &str, name: &str, selector: &str, port: &str, more: &str| {
        let families = match (name, both) {
            ("dual", true) => "ipFamilyPolicy: RequireDualStack".to_owned(),
            _ => format!("ipFamilies: [{}]", family.name()),
        };
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{namespace: {namespace}, name: {name}}}\n\
             spec: {{selector: {{{selector}}}, ports: [{{name: http, {port}}}], {families}{more}}}\n"
        )
    };
    let http = "port: 80, targetPort: 8080";
    let mesh = |name: &str, selector: &str, more: &str| service("mx-mesh", name, selector, http, more);
    let alias = |name: &str, of: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{namespace: mx-mesh, name: {name}}}\n\
             spec: {{type: ExternalName, externalName: {of}.svc.cluster.local}}\n"
        )
    };
    [
        mesh("server", "app: server", ""),
        mesh("dual", "app: server", ""),
        mesh("own", "name: own", ""),
        service("mx-mesh", "headless", "app: server", "port: 8080", ", clusterIP: None"),
        service(
            "mx-mesh",
            "quorum",
            "name: quorum",
            "port: 8080",
            ", clusterIP: None, publishNotReadyAddresses: true",
        ),
        mesh("node-port", "app: server", ", type: NodePort"),
        mesh("node-port-b", "name: server-b", ", type: NodePort"),
        mesh("node-local", "name: server-a", ", type: NodePort, externalTrafficPolicy: Local"),
        mesh("balanced", "app: server", ", type: LoadBalancer"),
        mesh("balanced-local", "name: server-a", ", type: LoadBalancer, externalTrafficPolicy: Local"),
        mesh("shared", "name: shared", ""),
        mesh("userns", "name: userns", ""),
        mesh("readonly", "name: readonly", ""),
        service("mx-restricted", "restricted", "name: restricted", http, ""),
        service("mx-out", "plain", "name: plain", http, ""),
        alias("external-name", "server.mx-mesh"),
        alias("external-plain", "plain.mx-out"),
    ]
    .join("---\n")
}

/// A shell command, in a YAML list; `get` in it is a GET that fails unless it is answered with success.
fn shell(script: &str) -> String {
    let script = script.replace("get http", "/usr/bin/curl -sSf -m 10 -o /dev/null http");
    format!("[/bin/sh, -c, {}]", serde_json::Value::from(script))
}

/// Weft's echo server under the name of its pod's Deployment.
fn app(image: &str, name: &str, more: &str) -> String {
    format!(
        "{{name: app, image: \"{image}\", imagePullPolicy: IfNotPresent, \
         args: [echo, --name, {name}, --http, \"8080\", --tcp, \"9000\"]{more}}}"
    )
}

/// curl and a shell, which are there to call.
fn tools(more: &str) -> String {
    let run = shell("echo tools are here; exec /usr/bin/sleep infinity");
    format!("{{name: tools, image: \"{TOOLS}\", imagePullPolicy: IfNotPresent, command: {run}{more}}}")
}

/// An init container that ends when its script does.
fn init(script: &str) -> String {
    format!("{{name: first, image: \"{TOOLS}\", imagePullPolicy: IfNotPresent, command: {}}}", shell(script))
}

struct Deployment<'a> {
    namespace: &'a str,
    name: &'a str,
    app: &'a str,
    node: &'a str,
    /// Of the pod's spec, beside the containers.
    spec: &'a str,
    containers: &'a [String],
}

impl Deployment<'_> {
    fn yaml(&self) -> String {
        let Self { namespace, name, app, node, spec, containers } = self;
        // Waited for by its own cell, if it is to be looked at from its birth or may not start at all.
        let late = if ["init", "sidecar", "userns"].contains(name) { "yes" } else { "no" };
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{namespace: {namespace}, name: {name}, labels: {{late: \"{late}\"}}}}\nspec:\n  \
             selector: {{matchLabels: {{name: {name}}}}}\n  template:\n    metadata: {{labels: {{name: {name}, app: {app}}}}}\n    \
             spec: {{nodeSelector: {{kubernetes.io/hostname: {node}}}, terminationGracePeriodSeconds: {grace}{spec},\n      containers: [{}]}}\n",
            containers.join(",\n        "),
            grace = if *name == "draining" { 60 } else { 1 },
        )
    }
}

pub(super) fn workloads(image: &str, [a, b]: &[String; 2]) -> String {
    let of = |namespace, name, node, spec, containers: &[String]| {
        let app = if name == "server-a" || name == "server-b" { "server" } else { name };
        Deployment { namespace, name, app, node, spec, containers }.yaml()
    };
    let mesh = |name, node, spec, containers: &[String]| of("mx-mesh", name, node, spec, containers);
    let both = |name| [app(image, name, ""), tools("")];
    let host_port = format!(", ports: [{{containerPort: 8080, hostPort: {HOST_PORT}}}]");
    let host_network = ", hostNetwork: true, dnsPolicy: ClusterFirstWithHostNet";
    let peer = format!(
        "{{name: app, image: \"{image}\", imagePullPolicy: IfNotPresent, args: [echo, --name, peer, --http, \"{NODE_PEER}\"]}}"
    );
    let own_root = ", securityContext: {readOnlyRootFilesystem: true}";
    let calls = "get http://server.mx-mesh/";
    let drains = format!(
        ", lifecycle: {{preStop: {{exec: {{command: {}}}}}}}",
        shell(
            "for i in 1 2 3 4 5 6 7 8; do get http://server.mx-mesh/draining || exit 1; /usr/bin/sleep 1; done; \
             get http://server.mx-mesh/drained-$HOSTNAME"
        )
    );
    let sidecar = format!(
        ", initContainers: [{{name: sidecar, image: \"{image}\", imagePullPolicy: IfNotPresent, restartPolicy: Always, \
         args: [echo, --name, sidecar, --http, \"8081\"]}}, {}]",
        init("until get http://127.0.0.1:8081/; do /usr/bin/sleep 0.2; done; get http://server.mx-mesh/")
    );
    [
        mesh("server-a", a, "", &[app(image, "server-a", "")]),
        mesh("server-b", b, "", &[app(image, "server-b", "")]),
        mesh("client-a", a, "", &[tools("")]),
        mesh("client-b", b, "", &[tools("")]),
        mesh("caller", a, "", &[app(image, "caller", "")]),
        mesh("own", a, "", &both("own")),
        mesh("host-port", a, "", &[app(image, "host-port", &host_port)]),
        mesh("draining", a, "", &[app(image, "draining", ""), tools(&drains)]),
        mesh("init", b, &format!(", initContainers: [{}]", init(calls)), &[app(image, "init", "")]),
        mesh("sidecar", b, &sidecar, &[app(image, "sidecar", "")]),
        mesh("shared", b, ", shareProcessNamespace: true", &both("shared")),
        mesh("userns", b, ", hostUsers: false", &both("userns")),
        mesh("readonly", b, "", &[app(image, "readonly", own_root), tools(own_root)]),
        restricted(image, b),
        of("mx-out", "stranger", a, "", &[tools("")]),
        of("mx-out", "plain", b, "", &[app(image, "plain", "")]),
        of("mx-out", "host", a, host_network, &[peer.clone(), tools("")]),
        of("mx-out", "host-b", b, host_network, &[peer]),
        quorum(image),
        cron_job(),
    ]
    .join("---\n")
}

/// As the restricted standard asks for.
fn restricted(image: &str, node: &str) -> String {
    let all = ", securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, readOnlyRootFilesystem: true}";
    Deployment {
        namespace: "mx-restricted",
        name: "restricted",
        app: "restricted",
        node,
        spec: ", securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}",
        containers: &[app(image, "restricted", all), tools(all)],
    }
    .yaml()
}

/// Three that are ready only when each reaches all by their stable names, as an etcd's members must before it serves.
fn quorum(image: &str) -> String {
    let all = "for i in 0 1 2; do get http://quorum-$i.quorum.mx-mesh:8080/ || exit 1; done";
    let probe = format!(
        ", readinessProbe: {{exec: {{command: {}}}, periodSeconds: 2, timeoutSeconds: 15, failureThreshold: 1}}",
        shell(all)
    );
    format!(
        "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {{namespace: mx-mesh, name: quorum}}\nspec:\n  serviceName: quorum\n  replicas: 3\n  \
         podManagementPolicy: Parallel\n  selector: {{matchLabels: {{name: quorum}}}}\n  template:\n    metadata: {{labels: {{name: quorum}}}}\n    \
         spec: {{terminationGracePeriodSeconds: 1, containers: [{}, {}]}}\n",
        app(image, "quorum", ""),
        tools(&probe)
    )
}

/// One call, one try.
fn job_spec() -> String {
    let call = shell("get http://server.mx-mesh/");
    format!(
        "{{backoffLimit: 0, template: {{spec: {{restartPolicy: Never, containers: [{{name: tools, image: \"{TOOLS}\", \
         imagePullPolicy: IfNotPresent, command: {call}}}]}}}}}}"
    )
}

pub(super) fn job(name: &str) -> String {
    format!(
        "apiVersion: batch/v1\nkind: Job\nmetadata: {{namespace: mx-mesh, name: {name}}}\nspec: {}\n",
        job_spec()
    )
}

fn cron_job() -> String {
    format!(
        "apiVersion: batch/v1\nkind: CronJob\nmetadata: {{namespace: mx-mesh, name: cron}}\nspec:\n  schedule: \"* * * * *\"\n  \
         concurrencyPolicy: Forbid\n  jobTemplate:\n    metadata: {{labels: {{from: cron}}}}\n    spec: {}\n",
        job_spec()
    )
}
