//! Services and slices to placements.

use super::{super::placements, *};
use weft_core::model::{Placement, PlacementAddress};

/// `addresses | bind | ports | problem`, as one line.
fn line(placement: Option<&Arc<Placement>>) -> String {
    let Some(p) = placement else { return "none".to_owned() };
    let addresses: Vec<String> = p
        .addresses
        .iter()
        .map(|a| match a {
            PlacementAddress::Ip(ip) => ip.to_string(),
            PlacementAddress::Hostname(name) => name.to_string(),
        })
        .collect();
    let bind: Vec<String> = p.bind.iter().map(ToString::to_string).collect();
    let ports: Vec<String> = p.ports.iter().map(|((n, t), to)| format!("{n}/{t:?}>{to}")).collect();
    let problem = p.problem.as_ref().map(|(r, m)| format!("{r:?} {m}")).unwrap_or_default();
    [addresses.join(","), bind.join(","), ports.join(","), problem].join(" | ")
}

fn cluster(annotations: &str, spec: &str, status: &str, gateway: &str) -> Snapshot {
    let mut world = world(&format!(
        r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: web, namespace: infra}}
spec: {{gatewayClassName: weft, listeners: [{{name: http, port: 80, protocol: HTTP}}], {gateway}}}
---
apiVersion: v1
kind: Service
metadata:
  name: web-weft
  namespace: infra
  labels: {{weft.dev/managed-by: weft-controller}}
  annotations: {{{annotations}}}
spec: {{ports: [{{name: p80-tcp, port: 80}}], {spec}}}
status: {{{status}}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-weft-ipv4
  namespace: infra
  labels: {{weft.dev/managed-by: weft-controller, kubernetes.io/service-name: web-weft}}
addressType: IPv4
endpoints: [{{addresses: [192.0.2.9], nodeName: n2}}]
ports: [{{name: p80-tcp, port: 20123, protocol: TCP}}, {{name: p53-udp, port: 20124, protocol: UDP}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-weft-ipv4-foreign, namespace: infra, labels: {{kubernetes.io/service-name: web-weft}}}}
addressType: IPv4
endpoints: [{{addresses: [10.0.0.254], nodeName: n1}}]
ports: [{{name: p80-tcp, port: 22, protocol: TCP}}]
"#
    ));
    node(&mut world, "n1", &["10.0.0.1", "fd00::1"], &["pool=edge"]);
    node(&mut world, "n2", &["10.0.0.2"], &[]);
    world
}

#[test]
fn placements_follow_the_mode() {
    let ports = "53/Udp>20124,80/Tcp>20123";
    let lb = "type: LoadBalancer";
    let ingress = "loadBalancer: {ingress: [{ip: 192.0.2.7}, {hostname: lb.example}, {ip: 192.0.2.7}]}";
    let pool = r#"weft.dev/address-mode: AddressPool, weft.dev/addresses: '["192.0.2.9"]', weft.dev/address-owner: n2"#;
    let host = r#"weft.dev/address-mode: HostPort, weft.dev/addresses: '["10.0.0.1","10.0.0.2"]'"#;
    let refused = format!(
        r#"{host}, weft.dev/refused-nodes: '["n1"]', weft.dev/problem: "AddressNotUsable: port 80 of node n1 is taken""#
    );
    let taken = "AddressNotUsable port 80 of node n1 is taken";
    let wanted = "addresses: [{value: 192.0.2.8}]";
    let missed = "AddressNotUsable the load balancer did not give 192.0.2.8 (spec.addresses)";
    // E12: it names the Service that waits, and both ways out with an example that is there.
    let waits = "AddressNotAssigned Service infra/web-weft waits for the cluster's load balancer, which has given it no \
                 address. Where there is none, set addressMode to HostPort or AddressPool in a WeftGatewayConfig that the \
                 Gateway names in spec.infrastructure.parametersRef (example: manifests/examples/addresses/addresses.yaml)";
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../../manifests/examples/addresses/addresses.yaml");
    let example = std::fs::read_to_string(example).unwrap();
    assert!(["HostPort", "AddressPool"].iter().all(|mode| example.contains(&format!("addressMode: {mode}"))));
    for (case, annotations, spec, status, gateway, me, want) in [
        ("controller", "", lb, ingress, "", None, format!("192.0.2.7,lb.example |  | {ports} | ")),
        ("pending", "", lb, "", wanted, Some("n1"), format!(" | 10.0.0.1,fd00::1 | {ports} | {waits}")),
        (
            "other address",
            "",
            lb,
            ingress,
            wanted,
            None,
            format!("192.0.2.7,lb.example |  | {ports} | {missed}"),
        ),
        ("unknown node", "", lb, "", "", Some("n9"), format!(" |  | {ports} | {waits}")),
        (
            "selector",
            r#"weft.dev/node-selector: '{"pool":"edge"}'"#,
            lb,
            "",
            "",
            Some("n2"),
            format!(" |  | {ports} | {waits}"),
        ),
        ("pool, owner", pool, "", "", "", Some("n2"), format!("192.0.2.9 | 192.0.2.9 | {ports} | ")),
        ("pool, other", pool, "", "", "", Some("n1"), format!("192.0.2.9 |  | {ports} | ")),
        ("host", host, "", "", "", Some("n2"), format!("10.0.0.1,10.0.0.2 | 10.0.0.2 | {ports} | ")),
        ("refused", &refused, "", "", "", Some("n1"), format!("10.0.0.1,10.0.0.2 |  | {ports} | {taken}")),
        (
            "refused elsewhere",
            &refused,
            "",
            "",
            "",
            Some("n2"),
            format!("10.0.0.1,10.0.0.2 | 10.0.0.2 | {ports} | {taken}"),
        ),
    ] {
        let world = cluster(annotations, spec, status, gateway);
        assert_eq!(line(placements(&world, me).get(&key("infra/web"))), want, "{case}");
    }
}

/// Who may edit Services, as every tenant's `edit` role may, must not make a node take an address of its network.
#[test]
fn what_a_node_binds_of_a_pool_is_not_for_the_services_editor_to_say() {
    let edited = r#"weft.dev/address-mode: AddressPool, weft.dev/addresses: '["10.0.0.254"]', weft.dev/address-owner: n1"#;
    let world = cluster(edited, "", "", "");
    let bind = |me| placements(&world, Some(me))[&key("infra/web")].bind.clone();
    assert_eq!(bind("n1"), Vec::<std::net::IpAddr>::new());
    assert_eq!(bind("n2"), ["192.0.2.9".parse::<std::net::IpAddr>().unwrap()], "as its slices say");
}

#[test]
fn a_service_of_somebody_else_is_named() {
    let mut world = cluster("", "", "", "");
    add(
        &mut world,
        "apiVersion: v1\nkind: Service\nmetadata: {name: web-weft, namespace: infra}\nspec: {ports: [{port: 80}]}\n",
    );
    let text = line(placements(&world, Some("n1")).get(&key("infra/web")));
    assert!(text.starts_with(" |  |  | NoResources Service infra/web-weft is there already"), "{text}");
    world.services.clear();
    assert_eq!(line(placements(&world, None).get(&key("infra/web"))), "none");
}
