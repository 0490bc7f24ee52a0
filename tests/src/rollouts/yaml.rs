//! The objects.

use super::{Backend, LOGS, NAMESPACES, REPLICAS};

/// Namespaces, clients, and a Gateway with an address of the test bed's.
pub(super) fn base(image: &str) -> String {
    let [mesh, outside] = NAMESPACES;
    let client = |namespace: &str| {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{namespace: {namespace}, name: client}}\nspec:\n  \
             selector: {{matchLabels: {{app: client}}}}\n  template:\n    metadata: {{labels: {{app: client}}}}\n    spec:\n      \
             terminationGracePeriodSeconds: 0\n      containers:\n      \
             - {{name: app, image: \"{image}\", imagePullPolicy: IfNotPresent, args: [echo, --http, \"8080\"]}}\n"
        )
    };
    [
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {mesh}, labels: {{weft.dev/mesh: enabled}}}}\n"),
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {outside}}}\n"),
        client(mesh),
        client(outside),
        format!(
            "apiVersion: weft.dev/v1alpha1\nkind: WeftGatewayConfig\nmetadata: {{namespace: {mesh}, name: pool}}\n\
             spec: {{addressMode: AddressPool, addressPool: {{ranges: [10.90.131.1-10.90.131.9]}}}}\n"
        ),
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{namespace: {mesh}, name: edge}}\nspec:\n  \
             gatewayClassName: weft\n  \
             infrastructure: {{parametersRef: {{group: weft.dev, kind: WeftGatewayConfig, name: pool}}}}\n  \
             listeners: [{{name: http, port: 80, protocol: HTTP}}]\n"
        ),
    ]
    .join("---\n")
}

/// A Deployment with its Service wherever it runs, and its route.
pub(super) fn backend(image: &str, backend: Backend) -> String {
    let (name, mesh) = (backend.name(), NAMESPACES[0]);
    let mut objects = vec![format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{namespace: {mesh}, name: {name}}}\nspec:\n  \
         parentRefs: [{{name: edge}}]\n  hostnames: [{name}.test]\n  rules: [{{backendRefs: [{{name: {name}, port: 80}}]}}]\n"
    )];
    let places = if backend.compared() { &NAMESPACES[..] } else { &NAMESPACES[..1] };
    for namespace in places {
        objects.push(format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{namespace: {namespace}, name: {name}}}\n\
             spec: {{selector: {{app: {name}}}, ports: [{{name: http, port: 80, targetPort: 8080, appProtocol: http}}]}}\n"
        ));
        objects.push(deployment(image, namespace, backend));
    }
    objects.join("---\n")
}

fn deployment(image: &str, namespace: &str, backend: Backend) -> String {
    let (name, delay) = (backend.name(), backend.answer_after());
    let end = match backend {
        Backend::Finishes | Backend::PreStop | Backend::Late => "finish",
        Backend::Exits => "exit",
    };
    let stop = match backend {
        Backend::PreStop | Backend::Late => "lifecycle: {preStop: {sleep: {seconds: 3}}}, ",
        Backend::Finishes | Backend::Exits => "",
    };
    // Only what ends at once is judged by its log.
    let log = if backend == Backend::Exits { ", --log, /log/$(POD)" } else { "" };
    let (probe, start, surge) = match backend {
        // All at once: one wait of ten seconds is enough to see a lie.
        Backend::Late => ("tcpSocket: {port: 8080}", ", --listen-after, \"10\"", "100%"),
        _ => ("httpGet: {path: /ready, port: 8080}", "", "25%"),
    };
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{namespace: {namespace}, name: {name}}}\nspec:\n  \
         strategy: {{rollingUpdate: {{maxUnavailable: 0, maxSurge: {surge}}}}}\n  replicas: {REPLICAS}\n  \
         selector: {{matchLabels: {{app: {name}}}}}\n  template:\n    metadata: {{labels: {{app: {name}}}}}\n    spec:\n      \
         terminationGracePeriodSeconds: 30\n      \
         volumes: [{{name: log, hostPath: {{path: {LOGS}, type: DirectoryOrCreate}}}}]\n      containers:\n      \
         - {{name: app, image: \"{image}\", imagePullPolicy: IfNotPresent,\n         \
         args: [echo, --name, {name}, --http, \"8080\", --answer-after, \"{delay}\", --on-term, {end}{log}{start}],\n         \
         env: [{{name: POD, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}],\n         \
         volumeMounts: [{{name: log, mountPath: /log}}], {stop}readinessProbe: {{{probe}, periodSeconds: 1}}}}\n"
    )
}
