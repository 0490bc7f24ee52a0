//! Identity is proved or absent: what an enrolled pod's application says is never on the wire in clear, whatever is told of
//! addresses. Each test looks at the packets between the nodes.

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use std::{fs, path::PathBuf, time::Duration};
use weft::sandbox::{Options, PodSpec, Process, Sandbox};
use weft_certs::Ca;
use weft_tests::{LIMIT, Mesh};

const HTTP: &[(&str, u16, u16, &str)] = &[("http", 80, 8080, "http")];

/// Every byte between the nodes, as node-a sees it.
struct Wire {
    process: Process,
    file: PathBuf,
}

impl Wire {
    fn start(mesh: &Mesh) -> Result<Self> {
        let (file, log) = (mesh.sandbox.dir().join("wire.pcap"), mesh.sandbox.dir().join("wire.log"));
        let path = file.to_str().context("path")?;
        let argv = ["tcpdump", "--immediate-mode", "-i", "eth0", "-nn", "-U", "-s", "0", "-w", path, "tcp"];
        let process = Process::start(&mesh.sandbox.nodes()[0].netns, None, &argv, &[], &log)?;
        let listening = || std::fs::read_to_string(&log).is_ok_and(|l| l.contains("listening on"));
        Sandbox::wait_until("tcpdump", LIMIT, listening)?;
        Ok(Self { process, file })
    }

    /// Whether these bytes were sent in clear.
    fn has(&self, text: &str) -> Result<bool> {
        let bytes = std::fs::read(&self.file)?;
        Ok(bytes.windows(text.len()).any(|window| window == text.as_bytes()))
    }

    /// Ends the capture; `secrets` must not be in it, `open` must: else nothing was looked at.
    fn finish(mut self, mesh: &Mesh, open: &str, secrets: &[&str]) -> Result<()> {
        Sandbox::wait_until(&format!("{open} on the wire"), LIMIT, || self.has(open).unwrap_or(false))?;
        self.process.stop(LIMIT)?;
        for secret in secrets {
            let dump = mesh.sandbox.dir().join("wire.pcap");
            ensure!(!self.has(secret)?, "{secret} went over the wire in clear: {}", dump.display());
        }
        Ok(())
    }
}

/// A Pod object that nobody has made a network namespace for.
fn forged(namespace: &str, name: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{namespace: {namespace}, name: {name}, uid: forged, \
         creationTimestamp: \"2036-01-01T00:00:00Z\"}}\nspec: {{nodeName: node-z, serviceAccountName: forged, containers: []}}\n\
         status: {{phase: Running, podIP: {ip}, podIPs: [{{ip: {ip}}}]}}\n"
    )
}

/// B1: a newer Pod object of another node repeated an enrolled pod's address, and its traffic went over the wire in clear while
/// the Service lost the endpoint.
#[test]
fn a_forged_pod_ip_makes_nothing_clear() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let web = mesh.pod(0, "web-1")?;
    let cart = mesh.echo_pod(1, "cart-v1")?;
    let stranger = mesh.pod_in(0, "outside", "stranger")?;
    let ip = mesh.service("cart", HTTP, &[&cart])?;
    mesh.wait_serving(&web, &format!("http://{ip}/"), &["cart-v1"])?;
    mesh.sandbox.apply("forged", &forged("outside", "forged", &cart.ip.to_string()))?;
    // What is applied after it is served: so the forged pod has been heard of.
    let later = mesh.service("later", HTTP, &[&cart])?;
    mesh.wait_serving(&web, &format!("http://{later}/"), &["cart-v1"])?;
    let wire = Wire::start(&mesh)?;
    for (url, secret) in [
        (format!("http://{ip}/secret-by-service"), "secret-by-service"),
        (format!("http://{}:8080/secret-by-address", cart.ip), "secret-by-address"),
    ] {
        let tally = mesh.call(&web, &url, &["--count", "50", "--no-keepalive"])?;
        ensure!(tally.bad() == 0 && tally.services.contains_key("cart-v1"), "{secret}: {tally:?}");
    }
    mesh.call(&stranger, &format!("http://{}:8080/said-in-clear", cart.ip), &[])?;
    wire.finish(&mesh, "said-in-clear", &["secret-by-service", "secret-by-address"])
}

/// B10: where nodes have no `spec.podCIDRs`, a call to a pod that nobody had told of went out in clear.
#[test]
fn without_pod_cidrs_an_unknown_pod_is_not_spoken_to_in_clear() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let web = mesh.pod(0, "web-1")?;
    let (stranger, external) = (mesh.pod_in(0, "outside", "stranger")?, mesh.external()?);
    let fresh = mesh.sandbox.create_pod(1, PodSpec::new("shop", "fresh", "fresh"))?;
    mesh.sandbox.delete("pod-shop-fresh")?;
    mesh.serve_echo(&fresh)?;
    mesh.serve_echo(&external)?;
    let wire = Wire::start(&mesh)?;
    let tally = mesh.call(&web, &format!("http://{}:8080/secret-to-unknown", fresh.ip), &[])?;
    ensure!(tally.good() == 0, "{tally:?}");
    let line = mesh.log_line(0, &["no_endpoint"])?;
    ensure!(line["reason"] == "no_endpoint", "{line}");
    // Machines outside the pods' networks are reached as before.
    let outside = mesh.call(&web, &format!("http://{}:8080/said-outside", external.ip), &[])?;
    ensure!(outside.bad() == 0, "{outside:?}");
    mesh.call(&stranger, &format!("http://{}:8080/said-in-clear", fresh.ip), &[])?;
    wire.finish(&mesh, "said-in-clear", &["secret-to-unknown"])
}

/// A client's agent begins nothing on a tunnel whose certificate ends within this time, which the other end would refuse.
const BEFORE_END: Duration = Duration::from_secs(5);

/// B5: tunnels outlived their certificates. Here nothing can be renewed, because the CA itself ends: what is in the mesh says
/// nothing then, rather than saying it in clear.
#[test]
fn an_expired_certificate_makes_nothing_clear() -> Result<()> {
    // As long as pods and their first calls may take on a busy machine.
    let end = Timestamp::now() + Duration::from_secs(30);
    let mut mesh = Mesh::prepared(Options::default(), |dir| {
        let life = Ca::create("cluster.local", end)?.validity().not_after.duration_since(end);
        fs::create_dir_all(dir.join("ca"))?;
        Ok(Ca::create("cluster.local", end - life)?.save(&dir.join("ca"))?)
    })?;
    let (web, stranger) = (mesh.pod(0, "web-1")?, mesh.pod_in(0, "outside", "stranger")?);
    let cart = mesh.echo_pod(1, "cart-v1")?;
    let service = mesh.service("cart", HTTP, &[&cart])?;
    mesh.wait_serving(&web, &format!("http://{service}/"), &["cart-v1"])?;
    let wire = Wire::start(&mesh)?;
    let ip = cart.ip.to_string();
    let kept = mesh.sandbox.spawn(&web, "kept", &["python3", "-c", TICKER, &ip, "secret-of-before"])?;
    Sandbox::wait_until("the kept connection to talk", LIMIT, || kept.log_tail().contains("tick 5\n"))?;
    ensure!(Timestamp::now() < end, "the machine is too slow for a certificate of 30 s");
    for url in [format!("http://{service}/secret-by-service"), format!("http://{ip}:8080/secret-by-address")]
    {
        Sandbox::wait_until(&format!("no answer from {url}"), LIMIT, || {
            mesh.call(&web, &url, &["--count", "5", "--no-keepalive"]).is_ok_and(|tally| tally.good() == 0)
        })?;
    }
    ensure!(Timestamp::now() + BEFORE_END >= end, "refused long before the certificate's end");
    let line = mesh.log_line(0, &["\"request\"", "secret-by-service", "no_certificate"])?;
    ensure!(line["code"] == 503, "{line}");
    // Who never was in the mesh is served by a permissive pod as before.
    mesh.call(&stranger, &format!("http://{ip}:8080/said-in-clear"), &[])?;
    wire.finish(&mesh, "said-in-clear", &["secret-of-before", "secret-by-service", "secret-by-address"])
}

/// A connection that says something all the time; ends when it is reset or nothing is answered.
const TICKER: &str = "import socket, sys, time\n\
    s = socket.create_connection((sys.argv[1], 9000), timeout=5)\n\
    i = 0\n\
    while True:\n\
    \ts.sendall(sys.argv[2].encode())\n\
    \tgot = s.recv(100)\n\
    \tif not got: sys.exit('end')\n\
    \ti += 1\n\
    \tprint('tick', i, flush=True)\n\
    \ttime.sleep(0.02)\n";

/// B4: connections in clear went on after the label said strict, those that the agent carried and those that are older than the join.
#[test]
fn a_flip_to_strict_ends_what_was_let_in_before() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let (web, stranger) = (mesh.pod(0, "web-1")?, mesh.pod_in(0, "outside", "stranger")?);
    let carried = mesh.echo_pod(1, "cart-v1")?;
    let older = mesh.sandbox.create_pod(1, PodSpec::new("shop", "cart-v2", "cart"))?;
    mesh.serve_echo(&older)?;
    let ticks = |pod: &weft::sandbox::Pod, word: &str| -> Result<Process> {
        let ip = pod.ip.to_string();
        let process = mesh.sandbox.spawn(&stranger, word, &["python3", "-c", TICKER, &ip, word])?;
        Sandbox::wait_until(&format!("{word} to talk"), LIMIT, || process.log_tail().contains("tick 5\n"))?;
        Ok(process)
    };
    let mut connections = vec![ticks(&carried, "carried-by-agent")?, ticks(&older, "older-than-join")?];
    mesh.sandbox.cni_add(&older)?;
    let before: Vec<String> = connections.iter().map(Process::log_tail).collect();
    Sandbox::wait_until("both to go on", LIMIT, || {
        connections.iter().zip(&before).all(|(now, before)| now.log_tail() != *before)
    })?;
    mesh.set_mode("strict")?;
    Sandbox::wait_until("both to end", LIMIT, || connections.iter_mut().all(|c| !c.is_running()))?;
    for ended in &connections {
        ensure!(ended.log_tail().contains("reset"), "{}", ended.log_tail());
    }
    let wire = Wire::start(&mesh)?;
    for pod in [&carried, &older] {
        let secret = format!("http://{}:8080/secret-in-strict", pod.ip);
        let tally = mesh.call(&web, &secret, &["--count", "20", "--no-keepalive"])?;
        ensure!(tally.bad() == 0, "{tally:?}");
    }
    let free = mesh.pod_in(1, "outside", "free")?;
    mesh.serve_echo(&free)?;
    mesh.call(&stranger, &format!("http://{}:8080/said-in-clear", free.ip), &[])?;
    wire.finish(&mesh, "said-in-clear", &["secret-in-strict", "carried-by-agent", "older-than-join"])
}
