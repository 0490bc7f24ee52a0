//! NetworkPolicies hold as they stand: between agents a tunnel goes to the port that the application dialled. Here policies
//! are rules on the pods' host veths, where network plugins enforce them.

use anyhow::{Context, Result, ensure};
use weft::{
    call::Tally,
    sandbox::{Netns, Pod, PodSpec, Sandbox, run},
};
use weft_tests::{LIMIT, Mesh, client_script};

/// The ports of an echo pod: HTTP, and TCP that echoes.
const HTTP: u16 = 8080;
const OTHER: u16 = 9000;
const HBONE: u16 = 15008;

/// What a pod is sent: connections by port, counted on its host veth; those that no rule admits are dropped.
struct Policy {
    node: Netns,
    table: String,
}

impl Policy {
    /// Default deny but for these ports; `None` admits all and only counts.
    fn new(mesh: &Mesh, pod: &Pod, admitted: Option<&[u16]>) -> Result<Self> {
        let node = mesh.sandbox.nodes()[pod.node].netns.clone();
        let table = format!("policy_{}", pod.spec.name.replace('-', "_"));
        let policy = Self { node, table };
        let admitted = match admitted {
            None => "accept".to_owned(),
            Some(ports) => {
                let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
                format!("tcp dport {{ {} }} accept", ports.join(", "))
            }
        };
        policy.nft(&format!(
            "table netdev {table} {{\n\
             counter http {{ }}\ncounter hbone {{ }}\ncounter clear {{ }}\n\
             chain to_pod {{\n type filter hook egress device \"{veth}\" priority 0; policy accept;\n\
             tcp flags & (syn|ack) == syn tcp dport {HTTP} counter name http\n\
             tcp flags & (syn|ack) == syn tcp dport {HBONE} counter name hbone\n\
             tcp dport {HTTP} @ih,0,32 0x47455420 counter name clear\n\
             meta protocol arp accept\n tcp flags & (syn|ack) != syn accept\n meta l4proto != tcp accept\n {admitted}\n drop\n }}\n}}\n",
            table = policy.table,
            veth = pod.host_veth,
        ))?;
        Ok(policy)
    }

    fn nft(&self, rules: &str) -> Result<()> {
        run(&self.node, None, &["nft", rules], LIMIT)?.ok().map(drop)
    }

    /// Packets so far: first SYNs to the application's port and to 15008, and segments with a request in clear.
    fn seen(&self) -> Result<[u64; 3]> {
        let argv = ["nft", "-j", "list", "counters", "table", "netdev", &self.table];
        let listed = run(&self.node, None, &argv, LIMIT)?;
        let listed: serde_json::Value = serde_json::from_str(&listed.ok()?)?;
        let of = |name: &str| {
            let counters = listed["nftables"].as_array().into_iter().flatten();
            let mut counters = counters.map(|entry| &entry["counter"]);
            counters.find(|c| c["name"] == name).and_then(|c| c["packets"].as_u64()).context("a counter")
        };
        Ok([of("http")?, of("hbone")?, of("clear")?])
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        // With the sandbox it would go too.
        let _ = self.nft(&format!("delete table netdev {}", self.table));
    }
}

fn call(mesh: &Mesh, from: &Pod, to: &Pod, port: u16, args: &[&str]) -> Result<Tally> {
    mesh.call(from, &format!("http://{}:{port}/", to.ip), args)
}

/// E22: all tunnels came to 15008, so that a namespace whose policies admit ports of applications was cut off by joining,
/// and one whose policies admit 15008 had every port open.
#[test]
fn policies_hold_as_they_stand() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let (far, near) = (mesh.pod(0, "web-1")?, mesh.pod(1, "web-2")?);
    let cart = mesh.echo_pod(1, "cart-v1")?;
    let ip = mesh.service("cart", &[("http", 80, HTTP, "http")], &[&cart])?;
    let service = format!("http://{ip}/");
    for mode in ["permissive", "strict"] {
        mesh.set_mode(mode)?;
        mesh.wait_serving(&far, &service, &["cart-v1"])?;
        let policy = Policy::new(&mesh, &cart, Some(&[HTTP]))?;
        for client in [&far, &near] {
            let routed = mesh.call(client, &service, &["--count", "100", "--connections", "4"])?;
            ensure!(routed.bad() == 0, "{mode}: by the Service: {routed:?}");
            let anew = call(&mesh, client, &cart, HTTP, &["--count", "50", "--no-keepalive"])?;
            ensure!(anew.bad() == 0, "{mode}: to the pod: {anew:?}");
            let refused = call(&mesh, client, &cart, OTHER, &["--connections", "1"])?;
            ensure!(refused.good() == 0, "{mode}: a port that the policy does not admit: {refused:?}");
        }
        let [http, hbone, clear] = policy.seen()?;
        ensure!(clear == 0, "{mode}: {clear} requests in clear");
        ensure!(hbone == 0, "{mode}: {hbone} connections to 15008");
        // The first calls may have made theirs before the policy was there.
        ensure!(http <= 50, "{mode}: {http} connections for 300 requests: tunnels are not kept");
    }
    let line = mesh.log_line(1, &["inbound", "spiffe://"])?;
    ensure!(line["source_identity"] == "spiffe://cluster.local/ns/shop/sa/web", "{line}");
    Ok(())
}

#[test]
fn tunnels_are_told_from_plaintext_on_the_same_port() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let (web, stranger) = (mesh.pod(0, "web-1")?, mesh.pod_in(0, "outside", "stranger")?);
    let cart = mesh.echo_pod(1, "cart-v1")?;
    let url = format!("http://{}:{HTTP}/", cart.ip);
    mesh.wait_serving(&web, &url, &["cart-v1"])?;
    let policy = Policy::new(&mesh, &cart, None)?;
    let inside = call(&mesh, &web, &cart, HTTP, &["--count", "50", "--no-keepalive"])?;
    ensure!(inside.bad() == 0 && policy.seen()?[2] == 0, "in clear from the mesh: {inside:?}");
    let outside = call(&mesh, &stranger, &cart, HTTP, &["--count", "50", "--no-keepalive"])?;
    ensure!(outside.bad() == 0, "{outside:?}");
    let [http, hbone, clear] = policy.seen()?;
    ensure!(clear >= 50 && hbone == 0, "{http} {hbone} {clear}");
    // Whoever is outside the mesh is not looked at: a server that speaks first is not late. What is waited for is waited for
    // every time, so the shortest of ten tells, also on a machine that is shared.
    let (python, script) = (weft_tests::python()?, client_script("banner.py"));
    let mut shortest = f64::INFINITY;
    for _ in 0..10 {
        let argv = [&*python, &script, &cart.ip.to_string(), "2525", "2525", "1"];
        let seen: serde_json::Value =
            serde_json::from_str(&mesh.sandbox.exec(&stranger, &argv, LIMIT)?.ok()?)?;
        shortest = shortest.min(seen["2525"].as_f64().context("p99")?);
    }
    ensure!(shortest < 9.0, "a banner for a client outside the mesh came after {shortest} ms");
    Ok(())
}

/// Peers of other makes and of the version before are called on 15008, and whoever calls us there is served.
#[test]
fn a_pod_that_says_so_is_called_on_15008() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let web = mesh.pod(0, "web-1")?;
    let annotated = |name: &str, annotation: &str, value: &str| {
        let mut spec = PodSpec::new("shop", name, "cart");
        spec.annotations = vec![(annotation.into(), value.into())];
        spec
    };
    let old = mesh.sandbox.add_pod(1, annotated("cart-old", "weft.dev/tunnel-port", "15008"))?;
    // A tunnel to a port that is left alone would meet the application itself.
    let excluding =
        mesh.sandbox.add_pod(1, annotated("cart-out", "weft.dev/exclude-inbound-ports", "8080"))?;
    for pod in [&old, &excluding] {
        mesh.serve_echo(pod)?;
        let name = pod.spec.name.clone();
        mesh.wait_serving(&web, &format!("http://{}:{HTTP}/", pod.ip), &[&name])?;
        let policy = Policy::new(&mesh, pod, None)?;
        let tally = call(&mesh, &web, pod, HTTP, &["--count", "50", "--no-keepalive"])?;
        ensure!(tally.bad() == 0, "{name}: {tally:?}");
        let [http, _, clear] = policy.seen()?;
        ensure!(
            (http, clear) == (0, 0),
            "{name}: {http} connections to the application's port, {clear} in clear"
        );
    }
    // The pod itself: no packet leaves it.
    let itself = call(&mesh, &old, &old, HTTP, &["--count", "5", "--no-keepalive"])?;
    ensure!(itself.bad() == 0, "{itself:?}");
    Ok(())
}

/// A call of a pod to itself by its Service is not captured on its way in.
#[test]
fn a_pod_that_calls_itself_by_its_service_is_served() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let cart = mesh.echo_pod(1, "cart-v1")?;
    let ip = mesh.service("cart", &[("http", 80, HTTP, "http")], &[&cart])?;
    let url = format!("http://{ip}/");
    mesh.wait_serving(&cart, &url, &["cart-v1"])?;
    let tally = mesh.call(&cart, &url, &["--count", "20", "--no-keepalive"])?;
    ensure!(tally.bad() == 0, "{tally:?}");
    Ok(())
}

/// While the agent of the called pod is away its tunnels wait on the port that policies admit.
#[test]
fn an_agent_that_comes_back_serves_what_waited_on_the_applications_port() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let (web, cart) = (mesh.pod(0, "web-1")?, mesh.echo_pod(1, "cart-v1")?);
    let url = format!("http://{}:{HTTP}/", cart.ip);
    mesh.wait_serving(&web, &url, &["cart-v1"])?;
    let policy = Policy::new(&mesh, &cart, Some(&[HTTP]))?;
    mesh.sandbox.kill_agent(1)?;
    let argv = ["curl", "-sS", "--noproxy", "*", "--max-time", "60", &url];
    let mut waiting = mesh.sandbox.spawn(&web, "waiting", &argv)?;
    let before = policy.seen()?;
    Sandbox::wait_until("the tunnel's SYN", LIMIT, || policy.seen().is_ok_and(|seen| seen[0] > before[0]))?;
    ensure!(waiting.is_running(), "refused: {}", waiting.log_tail());
    mesh.sandbox.start_agent(1)?;
    Sandbox::wait_until("the answer", LIMIT, || !waiting.is_running())?;
    ensure!(waiting.log_tail().contains("\"service\":\"cart-v1\""), "{}", waiting.log_tail());
    Ok(())
}
