//! What is deployed.

use crate::NAMESPACES;
use weft_tests::family::host;

/// Namespaces and Services.
pub(crate) fn services() -> String {
    let namespaces =
        NAMESPACES.map(|n| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {n}}}\n"));
    let service = |namespace: &str, name: &str, selector: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{namespace: {namespace}, name: {name}}}\n\
             spec: {{selector: {{{selector}}}, ports: [{{name: http, port: 80, targetPort: 8080, appProtocol: http}}]}}\n"
        )
    };
    let services = [
        service("e2e-web", "web", "app: web"),
        service("e2e-shop", "cart", "app: cart"),
        service("e2e-shop", "cart-v1", "version: cart-v1"),
        service("e2e-shop", "cart-v2", "version: cart-v2"),
    ];
    [&namespaces[..], &services[..]].concat().join("---\n")
}

/// `web` calls on to `cart`, whose versions run on different nodes. `client` and `stranger` only call.
pub(crate) fn workloads(image: &str, nodes: &[String; 2], cart: &str) -> String {
    let forward = format!(", --forward, \"http://{}/\"", host(cart));
    let workload = |namespace: &str, app: &str, version: &str, node: &str, more: &str| {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{namespace: {namespace}, name: {version}}}\nspec:\n  \
             selector: {{matchLabels: {{version: {version}}}}}\n  template:\n    \
             metadata: {{labels: {{app: {app}, version: {version}}}}}\n    spec:\n      serviceAccountName: {app}\n      \
             nodeSelector: {{kubernetes.io/hostname: {node}}}\n      terminationGracePeriodSeconds: 0\n      containers:\n      \
             - {{name: app, image: \"{image}\", imagePullPolicy: IfNotPresent, args: [echo, --name, {version}, --http, \"8080\"{more}],\n         \
             readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 5}}}}\n"
        )
    };
    let account = |namespace: &str, name: &str| {
        format!("apiVersion: v1\nkind: ServiceAccount\nmetadata: {{namespace: {namespace}, name: {name}}}\n")
    };
    let [first, second] = nodes;
    [
        account("e2e-web", "client"),
        account("e2e-web", "web"),
        account("e2e-shop", "cart"),
        account("e2e-out", "stranger"),
        workload("e2e-web", "client", "client", first, ""),
        workload("e2e-web", "web", "web", second, &forward),
        workload("e2e-shop", "cart", "cart-v1", first, ""),
        workload("e2e-shop", "cart", "cart-v2", second, ""),
        workload("e2e-out", "stranger", "stranger", first, ""),
    ]
    .join("---\n")
}

/// On the test bed with an address of Weft's own; elsewhere the load balancer gives one.
pub(crate) fn gateway(pool: bool) -> String {
    let infrastructure = if pool {
        "  infrastructure: {parametersRef: {group: weft.dev, kind: WeftGatewayConfig, name: pool}}\n"
    } else {
        ""
    };
    let config = "apiVersion: weft.dev/v1alpha1\nkind: WeftGatewayConfig\nmetadata: {namespace: e2e-web, name: pool}\n\
                  spec: {addressMode: AddressPool, addressPool: {ranges: [10.90.129.1-10.90.129.9]}}\n---\n";
    format!(
        "{}apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{namespace: e2e-web, name: edge}}\nspec:\n  \
         gatewayClassName: weft\n{infrastructure}  listeners: [{{name: http, port: 80, protocol: HTTP}}]\n---\n\
         apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{namespace: e2e-web, name: web}}\nspec:\n  \
         parentRefs: [{{name: edge}}]\n  rules: [{{backendRefs: [{{name: web, port: 80}}]}}]\n",
        if pool { config } else { "" }
    )
}

/// 90/10 over the versions of `cart`.
pub(crate) const CANARY: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {namespace: e2e-shop, name: cart}\nspec:\n  \
                      parentRefs: [{group: \"\", kind: Service, name: cart, port: 80}]\n  \
                      rules: [{backendRefs: [{name: cart-v1, port: 80, weight: 90}, {name: cart-v2, port: 80, weight: 10}]}]\n";
