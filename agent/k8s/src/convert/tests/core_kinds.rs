//! Service, EndpointSlice, Namespace, Pod, Secret, ConfigMap.

use super::*;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use std::time::Duration;
use weft_core::model::{ObjectKey, ProbeAsk, SecretData, ServiceType, Validity};

fn core(kind: &str, rest: &str) -> String {
    format!("apiVersion: v1\nkind: {kind}\nmetadata: {{name: x, namespace: shop}}\n{rest}\n")
}

#[test]
fn services() {
    let Object::Service(s) = model(&core(
        "Service",
        "spec: {clusterIP: 10.0.0.1, clusterIPs: [10.0.0.1, \"fd00::1\"], trafficDistribution: PreferClose, selector: {a: b}, sessionAffinity: ClientIP, ports: [{name: a, port: 80, targetPort: http, appProtocol: kubernetes.io/h2c}, {name: b, port: 80, protocol: UDP}]}",
    )) else {
        panic!()
    };
    assert_eq!(
        (s.kind, s.cluster_ips.len(), s.ports.len(), s.client_ip_affinity),
        (ServiceType::ClusterIp, 2, 2, Some(Duration::from_hours(3)))
    );
    assert_eq!(s.ports[0].app_protocol.as_deref(), Some("kubernetes.io/h2c"));
    let Object::Service(s) = model(&core("Service", "spec: {clusterIP: None}")) else { panic!() };
    assert_eq!((s.kind, s.cluster_ips.len()), (ServiceType::Headless, 0));

    for (spec, said) in [
        (
            "spec: {sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 90000}}, ports: [{port: 80}]}",
            "t.yaml:4: Service shop/x: spec.sessionAffinityConfig.clientIP.timeoutSeconds: 90000 is out of range; it must be from 1 to 86400",
        ),
        (
            "spec: {externalIPs: [127.0.0.1], ports: [{port: 80}]}",
            "t.yaml:4: Service shop/x: spec.externalIPs: 127.0.0.1 is no address of the network; write one that others can reach",
        ),
        (
            "spec: {loadBalancerSourceRanges: [all], ports: [{port: 80}]}",
            "t.yaml:4: Service shop/x: spec.loadBalancerSourceRanges: \"all\" is no address range; write one like 192.0.2.0/24",
        ),
        (
            "spec: {ports: [{port: 80}, {name: b, port: 81}]}",
            "t.yaml:4: Service shop/x: spec.ports[0].name: is required; name each port when there is more than one",
        ),
        (
            "spec: {ports: [{name: a, port: 80}, {name: b, port: 80}]}",
            "t.yaml:4: Service shop/x: spec.ports[1].port: 80 is there already; remove one of the two",
        ),
        (
            "spec: {ports: [{port: 70000}]}",
            "t.yaml:4: Service shop/x: spec.ports[0].port: 70000 is out of range; it must be from 1 to 65535",
        ),
        (
            "spec: {ports: [{port: \"80\"}]}",
            "t.yaml:4: Service shop/x: spec.ports[0].port: expected a whole number, found string \"80\"; remove the quotes",
        ),
        (
            "spec: {ports: [{port: 80, protocol: HTTP}]}",
            "t.yaml:4: Service shop/x: spec.ports[0].protocol: \"HTTP\" is no protocol; write TCP, UDP or SCTP; HTTP and the like go into appProtocol",
        ),
        (
            "spec: {type: External, ports: [{port: 80}]}",
            "t.yaml:4: Service shop/x: spec.type: \"External\" is no type of Service; write ClusterIP, NodePort, LoadBalancer or ExternalName",
        ),
        (
            "spec: {clusterIP: ten, ports: [{port: 80}]}",
            "t.yaml:4: Service shop/x: spec.clusterIP: \"ten\" is no IP address; write an IPv4 or IPv6 address",
        ),
        (
            "spec: {ports: [null]}",
            "t.yaml:4: Service shop/x: spec.ports[0]: expected a mapping, found nothing",
        ),
        ("spec: {}", "t.yaml:4: Service shop/x: spec.ports: is required; a Service needs at least one port"),
    ] {
        check(&core("Service", spec), 0, &[said]);
    }
    check(
        &core("Service", "spec: {prots: [{port: 80}], ports: [{appProtcol: x, port: 1}]}"),
        1,
        &[
            "t.yaml:4: warning: Service shop/x: spec.prots: unknown field, it has no effect",
            "t.yaml:4: warning: Service shop/x: spec.ports[0].appProtcol: unknown field, it has no effect; did you mean \"appProtocol\"?",
        ],
    );
}

/// What decides which of its endpoints a pod reaches.
#[test]
fn services_say_whom_they_reach() {
    let check = |spec: &str, status: &str, expected: &str| {
        let text = core("Service", &format!("spec: {{ports: [{{port: 80}}], {spec}}}\nstatus: {{{status}}}"));
        let Object::Service(s) = model(&text) else { panic!() };
        let external: Vec<String> =
            s.external_addresses().map(|(ip, from)| format!("{ip} from {from:?}")).collect();
        let local = if s.internal_local { "local " } else { "" };
        assert_eq!(format!("{local}{:?} {}", s.family, external.join(", ")), expected, "{spec} {status}");
    };
    let v4 = "clusterIP: 10.0.0.1";
    check("", "", "None ");
    check("ipFamilies: [IPv6, IPv4], clusterIP: None", "", "Some(V6) ");
    check("clusterIPs: [\"fd00::1\", 10.0.0.1]", "", "Some(V6) ");
    check(&format!("{v4}, internalTrafficPolicy: Local"), "", "local Some(V4) ");
    check(&format!("{v4}, internalTrafficPolicy: Cluster"), "", "Some(V4) ");
    check(&format!("{v4}, externalIPs: [192.0.2.1]"), "", "Some(V4) 192.0.2.1 from []");
    check("externalIPs: [192.0.2.1]", "", "None ");
    check(&format!("{v4}, externalIPs: [\"fd01::1\"]"), "", "Some(V4) ");
    let ingress = |one: &str| format!("loadBalancer: {{ingress: [{one}]}}");
    check(v4, &ingress("{ip: 192.0.2.2}"), "Some(V4) 192.0.2.2 from []");
    check(v4, &ingress("{ip: 192.0.2.2, ipMode: VIP}"), "Some(V4) 192.0.2.2 from []");
    check(v4, &ingress("{ip: 192.0.2.2, ipMode: Proxy}"), "Some(V4) ");
    check(v4, &ingress("{hostname: lb.example.com}"), "Some(V4) ");
    let ranges = |all: &str| format!("{v4}, loadBalancerSourceRanges: [{all}], externalIPs: [192.0.2.1]");
    check(
        &ranges("\" 10.1.0.9/16 \", \"fd00::/8\""),
        &ingress("{ip: 192.0.2.2}"),
        "Some(V4) 192.0.2.1 from [], 192.0.2.2 from [10.1.0.0/16]",
    );
    check(
        &ranges("10.1.0.0/16, 0.0.0.0/0"),
        &ingress("{ip: 192.0.2.2}"),
        "Some(V4) 192.0.2.1 from [], 192.0.2.2 from []",
    );
    check(
        &ranges("\"fd00::/8\""),
        &ingress("{ip: 192.0.2.2}"),
        "Some(V4) 192.0.2.1 from [], 192.0.2.2 from []",
    );
}

/// Kubelets may make mirror pods in any namespace: what they are called must give their node no identity there.
#[test]
fn static_pods_are_not_in_the_mesh() {
    let pod = |annotations: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: x, namespace: shop, labels: {{weft.dev/mesh: enabled}}, annotations: {{{annotations}}}}}\nspec: {{nodeName: n1, containers: []}}\n"
        );
        let Object::Pod(pod) = model(&text) else { panic!() };
        pod.meta.labels["weft.dev/mesh"].to_string()
    };
    assert_eq!(pod(""), "enabled");
    assert_eq!(pod("kubernetes.io/config.mirror: 0123abcd"), "disabled");
}

#[test]
fn endpoint_slices() {
    let slice = |labels: &str, rest: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: x, namespace: shop, labels: {{{labels}}}}}\n{rest}\n"
        )
    };
    let ours = "kubernetes.io/service-name: cart";
    let Object::EndpointSlice(s) = model(&slice(
        ours,
        "addressType: IPv4\nports: [{name: \"\", port: 8080}, {name: any}]\nendpoints:\n- {addresses: [10.0.0.1], nodeName: node-1, zone: z, hints: {forZones: [{name: z}, {name: w}], forNodes: [{name: node-1}]}, targetRef: {kind: Pod, name: p}}\n- {addresses: [10.0.0.2], conditions: {ready: false, terminating: true}}\n",
    )) else {
        panic!()
    };
    assert_eq!(s.service, ObjectKey::new("shop", "cart"));
    assert_eq!(s.ports.len(), 1, "a port without number is of no use");
    assert!(
        s.endpoints[0].ready
            && s.endpoints[0].serving
            && !s.endpoints[1].ready
            && s.endpoints[1].serving
            && s.endpoints[1].terminating
    );
    assert_eq!(
        (s.endpoints[0].for_zones.join(" "), s.endpoints[0].for_nodes.join(" ")),
        ("z w".into(), "node-1".into())
    );
    assert_eq!(s.endpoints[0].pod, Some(ObjectKey::new("shop", "p")));
    for (labels, rest, said) in [
        (
            ours,
            "addressType: FQDN\nendpoints: []",
            "t.yaml:4: EndpointSlice shop/x: addressType: slices of names (FQDN) are not served; list IP addresses instead (addressType IPv4 or IPv6)",
        ),
        (
            ours,
            "addressType: IPv6\nendpoints: [{addresses: [10.0.0.1]}]",
            "t.yaml:5: EndpointSlice shop/x: endpoints[0].addresses: 10.0.0.1 is in a slice of addressType IPv6; put each family into a slice of its own",
        ),
        (
            ours,
            "addressType: IPv4\nendpoints: [{addresses: [a]}]",
            "t.yaml:5: EndpointSlice shop/x: endpoints[0].addresses: \"a\" is no IP address; write an IPv4 or IPv6 address",
        ),
        (
            "",
            "addressType: IPv4\nendpoints: []",
            "t.yaml:3: warning: EndpointSlice shop/x: metadata.labels: the slice belongs to no Service and is left out; add the label \"kubernetes.io/service-name: SERVICE\"",
        ),
    ] {
        check(&slice(labels, rest), 0, &[said]);
    }
}

#[test]
fn pods_and_namespaces() {
    let Object::Pod(p) = model(&core(
        "Pod",
        "spec: {nodeName: node-1, serviceAccountName: sa, hostNetwork: true, containers: [{name: c}]}\nstatus: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: \"fd00::1\"}], phase: Succeeded}",
    )) else {
        panic!()
    };
    assert_eq!((p.ips.len(), &*p.service_account, p.host_network, p.finished), (2, "sa", true, true));
    let Object::Pod(p) = model(&core("Pod", "status: {podIP: 10.0.0.1}")) else { panic!() };
    assert_eq!((p.ips.len(), &*p.service_account, &p.node), (1, "default", &None));
    let (objects, problems) = convert_all(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, creationTimestamp: 2024-01-01T00:00:00Z, labels: {weft.dev/mesh: \"true\"}}\n",
    );
    assert_eq!(objects[0].meta().created, 1_704_067_200);
    assert_eq!(
        problems,
        [
            "t.yaml:3: warning: Namespace shop: metadata.labels[weft.dev/mesh]: \"true\" has no meaning; write \"enabled\" or \"disabled\""
        ]
    );
}

#[test]
fn metadata_is_checked_for_every_kind() {
    for (meta, said) in [
        (
            "{name: A_b}",
            "t.yaml:3: ConfigMap default/A_b: metadata.name: \"A_b\" is not allowed as a name; use at most 253 lower-case letters, digits, - and .",
        ),
        (
            "{generateName: a-}",
            "t.yaml:3: ConfigMap (without name): metadata.name: is required; generateName works in a cluster only",
        ),
        (
            "{name: a, namespace: B}",
            "t.yaml:3: ConfigMap B/a: metadata.namespace: \"B\" is no namespace name; use at most 63 lower-case letters, digits and -",
        ),
        (
            "{name: a, labels: {x: \"a b\"}}",
            "t.yaml:3: ConfigMap default/a: metadata.labels.x: \"a b\" is no label value; use at most 63 letters, digits, -, _ and .",
        ),
    ] {
        check(&format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {meta}\n"), 0, &[said]);
    }
    check(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, lables: {}}\n",
        1,
        &[
            "t.yaml:3: warning: ConfigMap default/a: metadata.lables: unknown field, it has no effect; did you mean \"labels\"?",
        ],
    );
}

fn tls(chain: &str, key: &str) -> String {
    let indent = |pem: &str| pem.lines().map(|l| format!("    {l}\n")).collect::<String>();
    core(
        "Secret",
        &format!(
            "type: kubernetes.io/tls\nstringData:\n  tls.crt: |\n{}  tls.key: |\n{}",
            indent(chain),
            indent(key)
        ),
    )
}

#[test]
fn a_secret_says_when_its_certificate_may_be_used() {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(["a.example".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2026, 1, 1);
    params.not_after = rcgen::date_time_ymd(2026, 3, 1);
    let cert = params.self_signed(&key).unwrap();
    let Object::Secret(s) = model(&tls(&cert.pem(), &key.serialize_pem())) else { panic!() };
    let SecretData::Tls(pair) = &s.data else { panic!("{s:?}") };
    assert_eq!(pair.validity, Validity { not_before: 1_767_225_600, not_after: 1_772_323_200 });
}

#[test]
fn secrets_hold_a_pair_that_belongs_together() {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["a.example".to_owned(), "10.0.0.1".to_owned()]).unwrap();
    let CertifiedKey { signing_key: other, .. } =
        generate_simple_self_signed(["b.example".to_owned()]).unwrap();
    let Object::Secret(s) = model(&tls(&cert.pem(), &signing_key.serialize_pem())) else { panic!() };
    let SecretData::Tls(pair) = &s.data else { panic!("{s:?}") };
    assert_eq!(pair.names.iter().map(|n| &**n).collect::<Vec<_>>(), ["a.example", "10.0.0.1"]);
    for (chain, key, said) in [
        (cert.pem(), other.serialize_pem(), "tls.key does not belong to the first certificate of tls.crt"),
        (
            cert.pem(),
            "x".into(),
            "tls.key: no PEM private key (PKCS#8, PKCS#1 or SEC1) found; is it encrypted?",
        ),
        ("x".into(), other.serialize_pem(), "tls.crt: no PEM certificate found"),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into(),
            other.serialize_pem(),
            "tls.crt: certificate 1 is no X.509",
        ),
    ] {
        check(
            &tls(&chain, &key),
            1,
            &[&format!(
                "t.yaml:1: Secret shop/x: data: {said}; listeners that use it serve TLS with what it held before, or not at all"
            )],
        );
    }
    check(
        &core("Secret", "type: kubernetes.io/tls\ndata: {tls.crt: \"\"}"),
        0,
        &[
            "t.yaml:5: Secret shop/x: data[tls.key]: is required; a Secret of type kubernetes.io/tls has tls.crt and tls.key",
        ],
    );
    check(
        &core("Secret", "data: {a: \"%\"}"),
        0,
        &[
            "t.yaml:4: Secret shop/x: data.a: is not base64; write plain text into \"stringData\" instead of \"data\"",
        ],
    );
    let said = "t.yaml:4: Secret shop/x: stringData.pin: expected text; put it in quotes";
    check(&core("Secret", "stringData: {pin: 1234}"), 0, &[said]);
    check(&core("Secret", "data: {password: aGVsbG8=}"), 1, &[]);
}

#[test]
fn ca_bundles() {
    let CertifiedKey { cert, .. } = generate_simple_self_signed(["ca".to_owned()]).unwrap();
    let pem: String = cert.pem().repeat(2).lines().map(|l| format!("    {l}\n")).collect();
    let Object::ConfigMap(c) = model(&core("ConfigMap", &format!("data:\n  ca.crt: |\n{pem}"))) else {
        panic!()
    };
    assert_eq!(c.ca.as_ref().expect("ca").as_ref().expect("good").0.len(), 2);
    check(
        &core("ConfigMap", "data: {ca.crt: x}"),
        1,
        &[
            "t.yaml:4: ConfigMap shop/x: data[ca.crt]: ca.crt: no PEM certificate found; policies that use it trust what it held before, or nothing",
        ],
    );
    check(&core("ConfigMap", "data: {other: x}"), 1, &[]);
}

#[test]
fn probes_are_what_the_kubelet_asks_of_this_pod() {
    let check = |containers: &str, want: &[(u16, ProbeAsk)]| {
        let text = core(
            "Pod",
            &format!("spec: {containers}\nstatus: {{podIPs: [{{ip: 10.0.0.1}}, {{ip: \"fd00::1\"}}]}}"),
        );
        let Object::Pod(pod) = model(&text) else { panic!() };
        let got: Vec<_> = pod.probes.iter().map(|p| (p.port, p.ask.clone())).collect();
        assert_eq!(got, want, "{containers}");
    };
    let http = |target: &str, headers: &[(&str, &str)]| ProbeAsk::Http {
        target: target.into(),
        headers: headers.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect(),
    };
    let https = |target: &str, headers: &[(&str, &str)]| ProbeAsk::Https {
        target: target.into(),
        headers: headers.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect(),
    };
    let grpc = |service: &str| ProbeAsk::Grpc { service: service.into() };
    let one = |rest: &str| {
        format!("{{containers: [{{name: c, ports: [{{name: web, containerPort: 8080}}], {rest}}}]}}")
    };
    check("{containers: [{name: c}]}", &[]);
    check(
        &one("readinessProbe: {exec: {command: [\"true\"]}}, lifecycle: {preStop: {sleep: {seconds: 1}}}"),
        &[],
    );
    check(&one("readinessProbe: {httpGet: {port: web}}"), &[(8080, http("/", &[]))]);
    check(
        &one("livenessProbe: {httpGet: {port: 81, path: \"/a?b\", httpHeaders: [{name: X, value: z}]}}"),
        &[(81, http("/a?b", &[("X", "z")]))],
    );
    check(
        &one(
            "startupProbe: {httpGet: {port: web, scheme: HTTPS, path: \"x?y\", httpHeaders: [{name: X, value: z}]}}",
        ),
        &[(8080, https("/x?y", &[("X", "z")]))],
    );
    check(&one("readinessProbe: {tcpSocket: {port: \"82\"}}"), &[(82, ProbeAsk::Tcp)]);
    check(&one("readinessProbe: {grpc: {port: 83}}"), &[(83, grpc(""))]);
    check(&one("readinessProbe: {grpc: {port: 83, service: shop}}"), &[(83, grpc("shop"))]);
    // Each once, whoever asks it.
    check(
        &one("readinessProbe: {tcpSocket: {port: web}}, livenessProbe: {tcpSocket: {port: 8080}}"),
        &[(8080, ProbeAsk::Tcp)],
    );
    // A name that this container does not have is nobody's port.
    check(&one("readinessProbe: {tcpSocket: {port: other}}"), &[]);
    for host in ["10.0.0.1", "\"fd00::1\"", "\"fd00:0::1\"", "\"\""] {
        check(
            &one(&format!("readinessProbe: {{tcpSocket: {{port: 1, host: {host}}}}}")),
            &[(1, ProbeAsk::Tcp)],
        );
    }
    // Aimed at somebody else: whoever that is has not declared it.
    for host in ["10.0.0.2", "127.0.0.1", "localhost", "x.shop.svc"] {
        check(&one(&format!("readinessProbe: {{tcpSocket: {{port: 1, host: {host}}}}}")), &[]);
        check(&one(&format!("readinessProbe: {{httpGet: {{port: 1, host: {host}}}}}")), &[]);
        check(&one(&format!("lifecycle: {{preStop: {{httpGet: {{port: 1, host: {host}}}}}}}")), &[]);
    }
    check(
        &one(
            "lifecycle: {postStart: {httpGet: {port: web, path: /up}}, preStop: {httpGet: {port: 84, path: /down, scheme: HTTPS}}}",
        ),
        // In clear too, once its server answers that it is HTTP.
        &[(8080, http("/up", &[])), (84, http("/down", &[])), (84, https("/down", &[]))],
    );
    check(
        "{initContainers: [{name: s, restartPolicy: Always, startupProbe: {tcpSocket: {port: 1}}}], containers: [{name: c, readinessProbe: {tcpSocket: {port: 2}}}]}",
        &[(1, ProbeAsk::Tcp), (2, ProbeAsk::Tcp)],
    );
}

#[test]
fn a_node_says_where_its_kubelet_listens() {
    for (status, port) in [
        ("{}", 10_250),
        ("{daemonEndpoints: {kubeletEndpoint: {Port: 10350}}}", 10_350),
        ("{daemonEndpoints: {kubeletEndpoint: {Port: 0}}}", 10_250),
        ("{daemonEndpoints: {kubeletEndpoint: {Port: 99999}}}", 10_250),
    ] {
        let text = format!("apiVersion: v1\nkind: Node\nmetadata: {{name: n1}}\nstatus: {status}\n");
        let (documents, errors) = crate::yaml::read(&text);
        assert_eq!(errors, [], "{text}");
        let (node, problems) = convert_node(&documents[0].value, &Source::default());
        assert_eq!((node.map(|node| node.kubelet_port), problems), (Some(port), Vec::new()), "{status}");
    }
}
