//! North–south: listeners on real ports, handing traffic to strict pods with the Gateway's identity.

use anyhow::{Context, Result, ensure};
use weft::sandbox::{Netns, Options, Process, Sandbox};
use weft_tests::{LIMIT, Mesh, service_route};

const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: weft}\n\
spec: {controllerName: weft.dev/gateway-controller}\n---\n\
apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {namespace: shop, name: edge}\nspec:\n  gatewayClassName: weft\n  \
listeners:\n  - {name: http, port: 80, protocol: HTTP}\n  \
- {name: https, port: 443, protocol: HTTPS, hostname: shop.test, tls: {certificateRefs: [{name: shop-cert}]}}\n---\n\
apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {namespace: shop, name: edge}\nspec:\n  \
parentRefs: [{name: edge}]\n  rules:\n  - matches: [{path: {value: /cart}}]\n    \
filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]\n    \
backendRefs: [{name: cart, port: 80}]\n";

/// A client machine outside the cluster: a pod of the other node that no plugin knows.
fn curl(mesh: &Mesh, netns: &Netns, args: &[&str]) -> Result<weft::sandbox::Output> {
    let mut argv = vec!["curl", "-sS", "--noproxy", "*", "--max-time", "20"];
    argv.extend(args);
    let pod = mesh.sandbox.pod("outside/client")?;
    ensure!(pod.netns == *netns);
    mesh.sandbox.exec(pod, &argv, LIMIT)
}

#[test]
fn http_and_https_reach_a_strict_pod_with_the_gateways_identity() -> Result<()> {
    let mut mesh = Mesh::with(Options::default())?;
    mesh.set_mode("strict")?;
    let cart = mesh.echo_pod(1, "cart-v1")?;
    mesh.service("cart", &[("http", 80, 8080, "http")], &[&cart])?;
    let client = mesh.pod_in(1, "outside", "client")?;
    let certified = rcgen::generate_simple_self_signed(vec!["shop.test".into()])?;
    let ca = mesh.sandbox.dir().join("shop.crt");
    std::fs::write(&ca, certified.cert.pem())?;
    let indent = |pem: String| pem.lines().map(|l| format!("    {l}\n")).collect::<String>();
    let secret = format!(
        "---\napiVersion: v1\nkind: Secret\nmetadata: {{namespace: shop, name: shop-cert}}\ntype: kubernetes.io/tls\nstringData:\n  \
         tls.crt: |\n{}  tls.key: |\n{}",
        indent(certified.cert.pem()),
        indent(certified.signing_key.serialize_pem()),
    );
    let node_ip = mesh.sandbox.nodes()[0].ip;
    let agent = format!(
        "---\napiVersion: weft.dev/v1alpha1\nkind: AgentConfig\nmetadata: {{name: agent}}\n\
         gatewayAddresses: {{shop/edge: [\"{node_ip}\"]}}\n"
    );
    mesh.sandbox.apply("gateway", &format!("{GATEWAY}{secret}{agent}"))?;
    let http = format!("http://{node_ip}/cart/items?x=1");
    let get = |args: &[&str]| curl(&mesh, &client.netns, args);
    Sandbox::wait_until("the gateway to serve", LIMIT, || get(&["--fail", &http]).is_ok_and(|o| o.code == 0))
        .with_context(|| format!("{:?}", get(&[&http])))?;
    let echo: serde_json::Value = serde_json::from_str(&get(&[&http])?.ok()?)?;
    ensure!(echo["uri"] == "/items?x=1", "the prefix must be rewritten: {echo}");
    ensure!(
        echo["headers"]["x-forwarded-for"].as_str().unwrap_or("").contains(&client.ip.to_string()),
        "{echo}"
    );
    let https = [
        "--fail",
        "--cacert",
        ca.to_str().context("path")?,
        "--resolve",
        &format!("shop.test:443:{node_ip}"),
    ];
    for version in ["--http1.1", "--http2"] {
        let mut args = https.to_vec();
        args.extend([version, "https://shop.test/cart/a"]);
        let echo: serde_json::Value = serde_json::from_str(&get(&args)?.ok()?)?;
        ensure!(echo["headers"]["x-forwarded-proto"] == "https", "{echo}");
    }
    ensure!(
        get(&["-o", "/dev/null", "-w", "%{http_code}", &format!("http://{node_ip}/else")])?.stdout == "404"
    );
    let direct = get(&[&format!("http://{}:8080/", cart.ip)])?;
    ensure!(direct.code != 0, "strict must refuse the client itself: {direct:?}");
    // The server's side writes its line when a kept connection ends: end it.
    mesh.sandbox.agent(0)?.stop(LIMIT)?;
    let line = mesh.log_line(1, &["inbound", "edge-weft"])?;
    ensure!(line["source_identity"] == "spiffe://cluster.local/ns/shop/sa/edge-weft", "{line}");
    Ok(())
}

/// Editing one listener must not touch the connections of another.
#[test]
fn a_listener_edit_leaves_other_listeners_alone() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let cart = mesh.echo_pod(1, "cart-v1")?;
    mesh.service("cart", &[("http", 80, 8080, "http")], &[&cart])?;
    let client = mesh.pod_in(1, "outside", "client")?;
    let node_ip = mesh.sandbox.nodes()[0].ip;
    let world = |extra: &str| {
        let mut yaml = GATEWAY.replace(
            "  - {name: https, port: 443, protocol: HTTPS, hostname: shop.test, tls: {certificateRefs: [{name: shop-cert}]}}\n",
            extra,
        );
        yaml += &format!(
            "---\napiVersion: weft.dev/v1alpha1\nkind: AgentConfig\nmetadata: {{name: agent}}\n\
             gatewayAddresses: {{shop/edge: [\"{node_ip}\"]}}\n"
        );
        yaml
    };
    mesh.sandbox.apply("gateway", &world(""))?;
    let url = format!("http://{node_ip}/cart/a");
    mesh.wait_serving(&client, &url, &["cart-v1"])?;
    let tally = std::thread::scope(|scope| -> Result<_> {
        let load = scope
            .spawn(|| mesh.call(&client, &url, &["--count", "3000", "--rate", "1000", "--connections", "4"]));
        for port in [8081, 8082, 8083] {
            mesh.sandbox
                .apply("gateway", &world(&format!("  - {{name: extra, port: {port}, protocol: HTTP}}\n")))?;
            mesh.wait_serving(&client, &format!("http://{node_ip}:{port}/cart/a"), &["cart-v1"])?;
        }
        load.join().expect("the load's thread")
    })?;
    ensure!(tally.bad() == 0 && tally.good() == 3000, "{tally:?}");
    let gone = curl(&mesh, &client.netns, &[&format!("http://{node_ip}:8081/cart/a")])?;
    ensure!(gone.code == 7, "a removed listener must refuse connections: {gone:?}");
    Ok(())
}

/// The same binary without any mesh: a directory of YAML and loopback.
#[test]
fn a_gateway_alone_needs_no_holder_and_no_root_paths() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let pod = mesh.pod_in(0, "outside", "host")?;
    mesh.serve_echo(&pod)?;
    let dir = mesh.sandbox.dir().join("alone");
    std::fs::create_dir_all(&dir)?;
    let yaml = format!(
        "{}---\napiVersion: v1\nkind: Service\nmetadata: {{namespace: shop, name: cart}}\nspec: {{clusterIP: None, ports: [{{port: 80}}]}}\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{namespace: shop, name: cart-1, labels: \
         {{kubernetes.io/service-name: cart}}}}\naddressType: IPv4\nports: [{{port: 8080}}]\nendpoints: [{{addresses: [127.0.0.1]}}]\n",
        service_gateway()
    );
    std::fs::write(dir.join("all.yaml"), yaml)?;
    let weft = mesh.sandbox.weft()?;
    let argv = [weft.to_str().context("path")?, "run", "--config", dir.to_str().context("path")?];
    let mut agent: Process = mesh.sandbox.spawn(&pod, "alone", &argv)?;
    let get = || mesh.curl(&pod, &["--fail", "http://127.0.0.1:8000/x"]);
    Sandbox::wait_until("the gateway to serve", LIMIT, || {
        get().is_ok_and(|o| o.code == 0) || !agent.is_running()
    })
    .with_context(|| agent.log_tail())?;
    ensure!(get()?.ok()?.contains("\"service\":\"host\""));
    agent.stop(LIMIT)?;
    Ok(())
}

fn service_gateway() -> String {
    "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: weft}\n\
     spec: {controllerName: weft.dev/gateway-controller}\n---\n\
     apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {namespace: shop, name: edge}\nspec:\n  \
     gatewayClassName: weft\n  listeners: [{name: http, port: 8000, protocol: HTTP}]\n---\n"
        .to_owned()
        + &service_route("cart", "  - backendRefs: [{name: cart, port: 80}]\n")
            .replace("{group: \"\", kind: Service, name: cart, port: 80}", "{name: edge}")
}
