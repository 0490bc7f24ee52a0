//! Which endpoints a pod's calls to a Service reach: those that kube-proxy would have chosen on its node, and at every
//! address that the Service has.

use anyhow::{Result, ensure};
use std::fmt::Write as _;
use weft::sandbox::{Pod, Sandbox};
use weft_tests::{LIMIT, Mesh, client_script, service_route};

/// One endpoint: its pod, and more fields of it in YAML (`, hints: …`).
type Endpoint<'a> = (&'a Pod, &'a str);

/// A Service of `shop` with `spec` beside its port 80 (HTTP) and 90 (opaque), and `status`; behind port 90 is a server that speaks first.
fn service(mesh: &Mesh, name: &str, spec: &str, status: &str, endpoints: &[Endpoint<'_>]) -> Result<()> {
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{namespace: shop, name: {name}}}\nspec:\n  {spec}\n  ports:\n  \
         - {{name: http, port: 80, appProtocol: http}}\n  - {{name: tcp, port: 90, appProtocol: tcp}}\n\
         status: {{{status}}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  namespace: shop\n  name: {name}-1\n  \
         labels: {{kubernetes.io/service-name: {name}}}\naddressType: IPv4\n\
         ports: [{{name: http, port: 8080}}, {{name: tcp, port: 2525}}]\nendpoints:\n"
    );
    for (pod, more) in endpoints {
        let node = &mesh.sandbox.nodes()[pod.node].name;
        writeln!(
            text,
            "- {{addresses: [{}], nodeName: {node}, targetRef: {{kind: Pod, name: {}}}{more}}}",
            pod.ip, pod.spec.name
        )?;
    }
    if endpoints.is_empty() {
        text = text.replace("endpoints:\n", "endpoints: []\n");
    }
    mesh.sandbox.apply(&format!("service-{name}"), &text)
}

/// Waits until requests of `from` are all answered, and by exactly these pods.
fn reaches(mesh: &Mesh, from: &Pod, url: &str, expected: &[&str]) -> Result<()> {
    let mut last = String::new();
    let done = Sandbox::wait_until(&format!("{} to reach {expected:?}", from.key), LIMIT, || {
        let tally = mesh.call(from, url, &["--count", "60", "--no-keepalive"]);
        last = format!("{tally:?}");
        tally
            .is_ok_and(|t| t.bad() == 0 && t.services.keys().map(String::as_str).eq(expected.iter().copied()))
    });
    done.map_err(|e| e.context(last))
}

/// What a client that connects to `host:port` sees: `data`, `reset`, `refused`…
fn tries(mesh: &Mesh, from: &Pod, host: &str, port: &str) -> Result<String> {
    let python = weft_tests::python()?;
    let argv = [&*python, &client_script("refused.py"), host, port];
    Ok(mesh.sandbox.exec(from, &argv, LIMIT)?.stdout.trim().to_owned())
}

/// E19: a node-local Service must not be spread over all nodes by joining.
#[test]
fn e19_internal_traffic_policy_local_stays_on_the_node() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let (web_a, web_b) = (mesh.pod(0, "web-a")?, mesh.pod(1, "web-b")?);
    let (dns_a, dns_b) = (mesh.echo_pod(0, "dns-a")?, mesh.echo_pod(1, "dns-b")?);
    let local = "clusterIP: 10.96.0.50\n  internalTrafficPolicy: Local";
    service(&mesh, "dns", local, "", &[(&dns_a, ""), (&dns_b, "")])?;
    service(&mesh, "front", "clusterIP: 10.96.0.51", "", &[(&dns_a, ""), (&dns_b, "")])?;
    mesh.sandbox.apply("route", &service_route("front", "  - backendRefs: [{name: dns, port: 80}]\n"))?;
    // By the Service itself, and as the backend of a route.
    for url in ["http://10.96.0.50/", "http://10.96.0.51/"] {
        reaches(&mesh, &web_a, url, &["dns-a"])?;
        reaches(&mesh, &web_b, url, &["dns-b"])?;
    }
    ensure!(tries(&mesh, &web_a, "10.96.0.50", "90")? == "data");

    // None on the node: refused, never sent elsewhere.
    service(
        &mesh,
        "dns",
        local,
        "",
        &[(&dns_a, ", conditions: {ready: false, serving: false}"), (&dns_b, "")],
    )?;
    for url in ["http://10.96.0.50/", "http://10.96.0.51/"] {
        mesh.wait_code(&web_a, url, &[], 503)?;
        let answer = mesh.curl(&web_a, &["-i", url])?.ok()?;
        let said = "shop/dns port 80 has internalTrafficPolicy: Local and no ready endpoint on node node-a";
        ensure!(answer.contains(said) && answer.contains("x-weft-reason: no_local_endpoint"), "{answer}");
        reaches(&mesh, &web_b, url, &["dns-b"])?;
    }
    let seen = tries(&mesh, &web_a, "10.96.0.50", "90")?;
    ensure!(["reset", "refused"].contains(&&*seen), "a connection must be refused: {seen}");
    ensure!(tries(&mesh, &web_b, "10.96.0.50", "90")? == "data");
    Ok(())
}

/// What the EndpointSlice controller writes for `trafficDistribution`.
#[test]
fn e19_hints_keep_traffic_in_its_zone_and_on_its_node() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let (web_a, web_b) = (mesh.pod(0, "web-a")?, mesh.pod(1, "web-b")?);
    let (cart_a, cart_b) = (mesh.echo_pod(0, "cart-a")?, mesh.echo_pod(1, "cart-b")?);
    let zones = |a: &str, b: &str| {
        let node = |name: &str, zone: &str| {
            format!(
                "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{topology.kubernetes.io/zone: {zone}}}}}\n"
            )
        };
        mesh.sandbox.apply("nodes", &[node("node-a", a), node("node-b", b)].join("---\n"))
    };
    zones("one", "two")?;
    let hints = |zone: &str, node: &str| format!(", hints: {{forZones: [{{name: {zone}}}]{node}}}");
    service(
        &mesh,
        "cart",
        "clusterIP: 10.96.0.50",
        "",
        &[(&cart_a, &hints("one", "")), (&cart_b, &hints("two", ""))],
    )?;
    let url = "http://10.96.0.50/";
    reaches(&mesh, &web_a, url, &["cart-a"])?;
    reaches(&mesh, &web_b, url, &["cart-b"])?;
    zones("one", "one")?;
    reaches(&mesh, &web_b, url, &["cart-a"])?;
    zones("one", "three")?;
    reaches(&mesh, &web_b, url, &["cart-a", "cart-b"])?;
    let node = |name: &str| format!(", forNodes: [{{name: {name}}}]");
    service(
        &mesh,
        "cart",
        "clusterIP: 10.96.0.50",
        "",
        &[(&cart_a, &hints("one", &node("node-a"))), (&cart_b, &hints("two", &node("node-b")))],
    )?;
    reaches(&mesh, &web_b, url, &["cart-b"])?;
    Ok(())
}

/// A strict Service at the addresses that its clients outside use: as protected as at its ClusterIP. No pod reached
/// these addresses in this sandbox otherwise: nothing routes to them.
#[test]
fn e19_external_addresses_are_as_the_cluster_ip() -> Result<()> {
    let mut mesh = Mesh::new()?;
    mesh.set_mode("strict")?;
    let web = mesh.pod(0, "web-1")?;
    let (cart_a, cart_b) = (mesh.echo_pod(0, "cart-a")?, mesh.echo_pod(1, "cart-b")?);
    let other = mesh.echo_pod(1, "other-1")?;
    // One of the external addresses is another pod's.
    let spec = format!(
        "type: LoadBalancer\n  clusterIP: 10.96.0.50\n  internalTrafficPolicy: Local\n  externalTrafficPolicy: Local\n  \
         externalIPs: [192.0.2.50, {}]\n  loadBalancerSourceRanges: [{}/32]",
        other.ip, web.ip
    );
    let status = "loadBalancer: {ingress: [{ip: 192.0.2.51}, {ip: 192.0.2.52, ipMode: Proxy}]}";
    service(&mesh, "cart", &spec, status, &[(&cart_a, ""), (&cart_b, "")])?;
    // Whatever the policies are: what comes from a pod does not leave the cluster, and goes to all nodes.
    reaches(&mesh, &web, "http://192.0.2.50/", &["cart-a", "cart-b"])?;
    reaches(&mesh, &web, "http://192.0.2.51/", &["cart-a", "cart-b"])?;
    reaches(&mesh, &web, "http://10.96.0.50/", &["cart-a"])?;
    let line = mesh.log_line(1, &["inbound", "sa/cart", "spiffe://"])?;
    ensure!(line["source_identity"] == "spiffe://cluster.local/ns/shop/sa/web", "{line}");
    ensure!(tries(&mesh, &web, "192.0.2.51", "90")? == "data");
    // Not in loadBalancerSourceRanges, which are the load balancer's only.
    ensure!(["reset", "refused"].contains(&&*tries(&mesh, &other, "192.0.2.51", "90")?));
    ensure!(tries(&mesh, &other, "192.0.2.50", "90")? == "data");
    // Behind a proxy, which sees to it: passed on, to where nothing is here.
    ensure!(tries(&mesh, &web, "192.0.2.52", "90")? != "data");
    // The address of a pod stays the pod's.
    let direct = mesh.call(&web, &format!("http://{}:8080/", other.ip), &["--count", "10"])?;
    ensure!(direct.bad() == 0 && direct.services.keys().eq(["other-1"]), "{direct:?}");
    ensure!(
        tries(&mesh, &web, &other.ip.to_string(), "90")? != "data",
        "nobody listens on that port of the pod"
    );
    Ok(())
}

/// `sessionAffinity: ClientIP`: sessions that live at their endpoint outlast a scale-up.
#[test]
fn e19_session_affinity_outlasts_a_scale_up() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let clients: Vec<Pod> = (0..6).map(|n| mesh.pod(n % 2, &format!("web-{n}"))).collect::<Result<_>>()?;
    let names = ["cart-1", "cart-2", "cart-3", "cart-4"];
    let carts: Vec<Pod> =
        names.iter().enumerate().map(|(n, name)| mesh.echo_pod(n % 2, name)).collect::<Result<_>>()?;
    let spec = "clusterIP: 10.96.0.50\n  sessionAffinity: ClientIP";
    let scale = |to: usize| {
        let endpoints: Vec<Endpoint<'_>> = carts[..to].iter().map(|pod| (pod, "")).collect();
        service(&mesh, "cart", spec, "", &endpoints)
    };
    let url = "http://10.96.0.50/";
    scale(1)?;
    for client in &clients {
        reaches(&mesh, client, url, &["cart-1"])?;
    }
    // By hashing alone three of four clients would move. A client that comes first now tells when the edit serves.
    scale(4)?;
    mesh.sandbox.apply("probe", &probe(&carts))?;
    for node in [0, 1] {
        let late = mesh.pod(node, &format!("late-{node}"))?;
        reaches(&mesh, &late, "http://10.96.0.60/", &names)?;
    }
    for client in &clients {
        let tally = mesh.call(client, url, &["--count", "60", "--no-keepalive"])?;
        ensure!(tally.bad() == 0 && tally.services.keys().eq(["cart-1"]), "{}: {tally:?}", client.key);
    }
    // Its endpoint goes: elsewhere, and it stays there.
    let left: Vec<Endpoint<'_>> = carts[1..].iter().map(|pod| (pod, "")).collect();
    service(&mesh, "cart", spec, "", &left)?;
    let moved = |client: &Pod| -> Result<String> {
        let mut seat = String::new();
        Sandbox::wait_until("another endpoint", LIMIT, || {
            let tally = mesh.call(client, url, &["--count", "20", "--no-keepalive"]);
            let seats = tally.map(|t| t.services.into_keys().collect::<Vec<_>>()).unwrap_or_default();
            seat = seats.first().cloned().unwrap_or_default();
            seats.len() == 1 && seat != "cart-1"
        })?;
        Ok(seat)
    };
    let seats: Vec<String> = clients.iter().map(moved).collect::<Result<_>>()?;
    ensure!(
        seats.iter().any(|s| *s != seats[0]),
        "six clients of a lost endpoint all went to one: {seats:?}"
    );
    Ok(())
}

/// A Service without affinity, written after an edit: who reaches all of its endpoints has that edit.
fn probe(pods: &[Pod]) -> String {
    let mut text = "apiVersion: v1\nkind: Service\nmetadata: {namespace: shop, name: probe}\n\
         spec: {clusterIP: 10.96.0.60, ports: [{name: http, port: 80, appProtocol: http}]}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  namespace: shop\n  name: probe-1\n  \
         labels: {kubernetes.io/service-name: probe}\naddressType: IPv4\nports: [{name: http, port: 8080}]\nendpoints:\n"
        .to_owned();
    for pod in pods {
        let _ = writeln!(
            text,
            "- {{addresses: [{}], targetRef: {{kind: Pod, name: {}}}}}",
            pod.ip, pod.spec.name
        );
    }
    text
}
