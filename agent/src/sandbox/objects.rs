//! YAML of the objects that a cluster would make by itself: Pods with addresses, Services with endpoints.

use super::Pod;
use std::{fmt::Write as _, net::Ipv4Addr};

/// A Pod object with its addresses.
#[must_use]
pub fn pod_yaml(pod: &Pod, node: &str) -> String {
    let map = |pairs: &[(String, String)]| {
        let mut text = String::from("{");
        for (key, value) in pairs {
            let _ = write!(text, "{key:?}: {value:?}, ");
        }
        text + "}"
    };
    let account = if pod.spec.service_account.is_empty() { "default" } else { &pod.spec.service_account };
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  namespace: {}\n  name: {}\n  uid: {}\n  labels: {}\n  annotations: {}\n\
         spec:\n  serviceAccountName: {account}\n  nodeName: {node}\n  containers: [{{name: app, image: none}}]\n\
         status:\n  phase: Running\n  podIP: {ip}\n  podIPs: [{{ip: {ip}}}, {{ip: \"{}\"}}]\n",
        pod.spec.namespace,
        pod.spec.name,
        pod.netns.name(),
        map(&pod.spec.labels),
        map(&pod.spec.annotations),
        pod.ip6,
        ip = pod.ip,
    )
}

/// A Service's ports and the pods behind it.
#[derive(Clone, Debug)]
pub struct EndpointsOf<'a> {
    /// Namespace.
    pub namespace: &'a str,
    /// Name.
    pub name: &'a str,
    /// ClusterIP.
    pub cluster_ip: Ipv4Addr,
    /// (port name, port, target port, appProtocol or "").
    pub ports: &'a [(&'a str, u16, u16, &'a str)],
    /// Pods.
    pub pods: &'a [&'a Pod],
}

/// A Service and its EndpointSlice.
#[must_use]
pub fn service_yaml(of: &EndpointsOf<'_>) -> String {
    let EndpointsOf { namespace, name, cluster_ip, ports, pods } = of;
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{namespace: {namespace}, name: {name}}}\nspec:\n  type: ClusterIP\n  \
         clusterIP: {cluster_ip}\n  clusterIPs: [{cluster_ip}]\n  ports:\n"
    );
    for (port_name, port, target, protocol) in *ports {
        let app = if protocol.is_empty() { String::new() } else { format!(", appProtocol: {protocol}") };
        let _ = writeln!(text, "  - {{name: {port_name}, port: {port}, targetPort: {target}{app}}}");
    }
    let _ = write!(
        text,
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  namespace: {namespace}\n  name: {name}-1\n  \
         labels: {{kubernetes.io/service-name: {name}}}\naddressType: IPv4\nports:\n"
    );
    for (port_name, _, target, _) in *ports {
        let _ = writeln!(text, "- {{name: {port_name}, port: {target}, protocol: TCP}}");
    }
    text.push_str(if pods.is_empty() { "endpoints: []\n" } else { "endpoints:\n" });
    for pod in *pods {
        let _ = writeln!(
            text,
            "- {{addresses: [{}], conditions: {{ready: true}}, targetRef: {{kind: Pod, namespace: {}, name: {}}}}}",
            pod.ip, pod.spec.namespace, pod.spec.name
        );
    }
    text
}
