//! The objects of the measurement.

use super::world::{Class, NAMESPACE, NODES, RATE};

/// Each can be reached from outside; the controller puts them on different nodes.
pub(super) const GATEWAYS: [&str; 2] = ["edge-a", "edge-b"];
/// The gRPC method that is called; any would do.
const METHOD: &str = "/weft.faults.Echo/Mirror";

/// The namespace, in the mesh; a server on each node with a Service, and the two versions behind `canary`.
pub(super) fn servers(image: &str) -> String {
    let mut objects = vec![format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}, labels: {{weft.dev/mesh: enabled}}}}\n"
    )];
    for node in NODES {
        objects.push(service(&format!("web-{node}"), &format!("app: web-{node}")));
        objects.push(server(image, &format!("web-{node}"), node, "web"));
    }
    objects.push(service("canary", "role: canary"));
    for version in ["canary-a", "canary-b"] {
        objects.push(service(version, &format!("app: {version}")));
        objects.push(server(image, version, NODES[0], "canary"));
    }
    objects.push(canary_route("canary-a"));
    objects.join("---\n")
}

fn service(name: &str, selector: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{namespace: {NAMESPACE}, name: {name}}}\nspec:\n  selector: {{{selector}}}\n  \
         ports:\n  - {{name: http, port: 80, targetPort: 8080, appProtocol: http}}\n  \
         - {{name: grpc, port: 81, targetPort: 8080, appProtocol: kubernetes.io/h2c}}\n  \
         - {{name: tcp, port: 90, targetPort: 9000, appProtocol: tcp}}\n"
    )
}

fn server(image: &str, name: &str, node: &str, role: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{namespace: {NAMESPACE}, name: {name}}}\nspec:\n  \
         selector: {{matchLabels: {{app: {name}}}}}\n  template:\n    metadata: {{labels: {{app: {name}, role: {role}}}}}\n    spec:\n      \
         nodeSelector: {{kubernetes.io/hostname: {node}}}\n      terminationGracePeriodSeconds: 0\n      containers:\n      \
         - {{name: app, image: \"{image}\", imagePullPolicy: IfNotPresent, args: [echo, --name, {name}, --http, \"8080\", --tcp, \"9000\"],\n         \
         readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 5}}}}\n"
    )
}

/// All of `canary` to one version.
pub(super) fn canary_route(version: &str) -> String {
    route("HTTPRoute", "canary", &service_parent("canary", 80), &backend(version, 80, ""))
}

fn service_parent(name: &str, port: u16) -> String {
    format!("{{group: \"\", kind: Service, name: {name}, port: {port}}}")
}

fn backend(name: &str, port: u16, more: &str) -> String {
    format!("{{backendRefs: [{{name: {name}, port: {port}}}]{more}}}")
}

fn route(kind: &str, name: &str, parents: &str, rule: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{namespace: {NAMESPACE}, name: {name}}}\nspec:\n  \
         parentRefs: [{parents}]\n  rules: [{rule}]\n"
    )
}

/// Two Gateways with addresses of a pool, and their routes.
pub(super) fn gateways() -> String {
    let mut objects = vec![format!(
        "apiVersion: weft.dev/v1alpha1\nkind: WeftGatewayConfig\nmetadata: {{namespace: {NAMESPACE}, name: pool}}\n\
         spec: {{addressMode: AddressPool, addressPool: {{ranges: [10.90.129.11-10.90.129.19]}}}}\n"
    )];
    for name in GATEWAYS {
        objects.push(format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{namespace: {NAMESPACE}, name: {name}}}\nspec:\n  \
             gatewayClassName: weft\n  infrastructure: {{parametersRef: {{group: weft.dev, kind: WeftGatewayConfig, name: pool}}}}\n  \
             listeners:\n  - {{name: http, port: 80, protocol: HTTP}}\n  - {{name: tcp-n1, port: 9001, protocol: TCP}}\n  \
             - {{name: tcp-n2, port: 9002, protocol: TCP}}\n"
        ));
    }
    objects.push(gateway_routes(0));
    objects.join("---\n")
}

/// The Gateways' routes, in an edition that shows in a header of each answer.
pub(super) fn gateway_routes(edition: u32) -> String {
    let parents =
        |section: &str| GATEWAYS.map(|gw| format!("{{name: {gw}, sectionName: {section}}}")).join(", ");
    let mut objects = Vec::new();
    for node in NODES {
        let server = format!("web-{node}");
        let with_host = |kind: &str, name: &str, port: u16| {
            let rule = backend(&server, port, &edition_filter(edition));
            route(kind, name, &parents("http"), &rule) + &format!("  hostnames: [{name}.test]\n")
        };
        objects.push(with_host("HTTPRoute", &format!("web-{node}"), 80));
        objects.push(with_host("GRPCRoute", &format!("calls-{node}"), 81));
        let rule = backend(&server, 90, "");
        objects.push(route("TCPRoute", &format!("stream-{node}"), &parents(&format!("tcp-{node}")), &rule));
    }
    objects.join("---\n")
}

/// Routes on the Services that the clients in pods call.
pub(super) fn mesh_routes(edition: u32) -> String {
    let mut objects = Vec::new();
    for node in NODES {
        let server = format!("web-{node}");
        for (kind, port) in [("HTTPRoute", 80), ("GRPCRoute", 81), ("TCPRoute", 90)] {
            let more = if kind == "TCPRoute" { String::new() } else { edition_filter(edition) };
            let name = format!("mesh-{node}-{port}");
            objects.push(route(kind, &name, &service_parent(&server, port), &backend(&server, port, &more)));
        }
    }
    objects.join("---\n")
}

fn edition_filter(edition: u32) -> String {
    format!(
        ", filters: [{{type: ResponseHeaderModifier, responseHeaderModifier: {{set: [{{name: x-edition, value: \"{edition}\"}}]}}}}]"
    )
}

/// A pod with a load of each class, each in a container.
pub(super) fn client(image: &str, name: &str, node: &str, ip: &str) -> String {
    let mut containers = String::new();
    for class in Class::ALL {
        let port = match class {
            Class::Kept | Class::New => 80,
            Class::Grpc => 81,
            Class::Tcp => 90,
        };
        let args = call(class, &format!("http://{ip}:{port}{METHOD}"), &["--count=1000000000"]);
        let args = args.iter().map(|arg| format!("\"{arg}\"")).collect::<Vec<_>>().join(", ");
        containers += &format!(
            "  - {{name: {}, image: \"{image}\", imagePullPolicy: IfNotPresent, args: [call, {args}]}}\n",
            class.name()
        );
    }
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{namespace: {NAMESPACE}, name: {name}, labels: {{role: client}}}}\nspec:\n  \
         nodeName: {node}\n  terminationGracePeriodSeconds: 0\n  containers:\n{containers}"
    )
}

/// The arguments of a load outside, to a server's node through a Gateway.
pub(super) fn outside_call(class: Class, gateway: &str, node: &str) -> Vec<String> {
    let (port, host) = match class {
        Class::Kept | Class::New => (80, Some(format!("--host=web-{node}.test"))),
        Class::Grpc => (80, Some(format!("--host=calls-{node}.test"))),
        Class::Tcp if node == NODES[0] => (9001, None),
        Class::Tcp => (9002, None),
    };
    let mut args = call(class, &format!("http://{gateway}:{port}{METHOD}"), &[]);
    args.extend(host);
    args
}

fn call(class: Class, url: &str, more: &[&str]) -> Vec<String> {
    let rate = format!("--rate={RATE}");
    let mut args = vec![url, "--connections=1", "--report=1", &rate];
    match class {
        Class::Kept => {}
        Class::New => args.push("--no-keepalive"),
        Class::Grpc => args.push("--protocol=grpc"),
        Class::Tcp => args.push("--protocol=tcp"),
    }
    args.extend(more);
    args.into_iter().map(str::to_owned).collect()
}
