//! An agent is killed: nothing leaks in clear, nothing is refused, all goes on when it is back.

use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};
use weft::sandbox::{Process, Sandbox};
use weft_tests::{LIMIT, Mesh};

/// Pods on the node whose agent dies; `WEFT_TEST_PODS` overrides it.
fn pods() -> usize {
    std::env::var("WEFT_TEST_PODS").ok().and_then(|v| v.parse().ok()).unwrap_or(100)
}

/// TCP packets on `link` of the node that match `filter`, counted until stopped.
struct Wire {
    process: Process,
    file: std::path::PathBuf,
}

impl Wire {
    fn start(mesh: &Mesh, node: usize, filter: &str) -> Result<Self> {
        let (file, log) = (mesh.sandbox.dir().join("wire.pcap"), mesh.sandbox.dir().join("wire.log"));
        let argv =
            ["tcpdump", "-i", "cni0", "-nn", "-U", "-s", "96", "-w", file.to_str().context("path")?, filter];
        let process = Process::start(&mesh.sandbox.nodes()[node].netns, None, &argv, &[], &log)?;
        let listening = || std::fs::read_to_string(&log).is_ok_and(|l| l.contains("listening on"));
        Sandbox::wait_until("tcpdump", LIMIT, listening)?;
        Ok(Self { process, file })
    }

    fn finish(mut self, mesh: &Mesh, node: usize) -> Result<String> {
        self.process.stop(LIMIT)?;
        let pod = mesh.sandbox.pod("shop/web-0")?;
        ensure!(pod.node == node);
        mesh.sandbox.exec(pod, &["tcpdump", "-nn", "-r", self.file.to_str().context("path")?], LIMIT)?.ok()
    }
}

/// Traffic from several pods all the time: a new connection for each request.
struct Busy {
    loads: Vec<Process>,
}

/// Connections of each load, and so the most that can be in the hands of the agent when it dies.
const CONNECTIONS: u64 = 4;

impl Busy {
    fn start(mesh: &Mesh, clients: &[weft::sandbox::Pod], url: &str) -> Result<Self> {
        let weft = mesh.sandbox.weft()?;
        let weft = weft.to_str().context("path")?;
        let connections = CONNECTIONS.to_string();
        let argv = [
            weft,
            "call",
            url,
            "--count",
            "1000",
            "--rate",
            "50",
            "--no-keepalive",
            "--connections",
            &connections,
        ];
        let loads: Result<_> =
            clients.iter().skip(1).step_by(20).map(|c| mesh.sandbox.spawn(c, "busy", &argv)).collect();
        Ok(Self { loads: loads? })
    }

    /// Only connections that the dead agent had accepted may have failed; none was refused.
    fn finish(mut self) -> Result<()> {
        Sandbox::wait_until("the load's end", LIMIT, || self.loads.iter_mut().all(|p| !p.is_running()))?;
        for load in &self.loads {
            let tally: weft::call::Tally = serde_json::from_str(load.log_tail().trim())?;
            ensure!(tally.bad() <= CONNECTIONS && tally.good() >= 1000 - CONNECTIONS, "{tally:?}");
            ensure!(!tally.failures.keys().any(|f| f.contains("refused")), "{tally:?}");
        }
        Ok(())
    }
}

#[test]
fn a_killed_agent_leaks_nothing_and_refuses_nobody() -> Result<()> {
    let mut mesh = Mesh::new()?;
    mesh.set_mode("strict")?;
    let cart = mesh.echo_pod(1, "cart-v1")?;
    let mut clients = Vec::new();
    for number in 0..pods() {
        clients.push(mesh.pod(0, &format!("web-{number}"))?);
    }
    let ip = mesh.service("cart", &[("http", 80, 8080, "http")], &[&cart])?;
    let url = format!("http://{ip}/");
    mesh.wait_serving(&clients[0], &url, &["cart-v1"])?;

    // Whatever leaves a pod of node-a must go to the application's port, and begin there with no request in clear.
    let request = "tcp[((tcp[12:1] & 0xf0) >> 2):4] = 0x47455420";
    let plain = format!(
        "tcp and src net 10.88.0.0/24 and dst net 10.88.1.0/24 and (not port 8080 or {request}) \
         or (tcp and dst host {ip})"
    );
    let wire = Wire::start(&mesh, 0, &plain)?;
    let away =
        Duration::from_secs(std::env::var("WEFT_TEST_AWAY").ok().and_then(|v| v.parse().ok()).unwrap_or(10));
    let busy = Busy::start(&mesh, &clients, &url)?;
    mesh.sandbox.kill_agent(0)?;
    let killed = Instant::now();
    // New connections made while it is away wait in the accept queue and are served afterwards.
    let mut waiting = Vec::new();
    for client in clients.iter().step_by(10) {
        let (argv, log) =
            (["curl", "-sS", "--noproxy", "*", "--max-time", "60", "-w", "%{http_code}", &url], "away");
        waiting.push(mesh.sandbox.spawn(client, log, &argv)?);
    }
    Sandbox::wait_until("the time away", LIMIT, || killed.elapsed() > away)?;
    ensure!(
        waiting.iter_mut().all(Process::is_running),
        "a connection made while the agent was away was refused"
    );
    mesh.sandbox.start_agent(0)?;
    let back = Instant::now();
    Sandbox::wait_until("every waiting request", LIMIT, || waiting.iter_mut().all(|p| !p.is_running()))?;
    for process in &waiting {
        let log = process.log_tail();
        ensure!(
            log.contains("\"service\":\"cart-v1\"") && log.ends_with("200"),
            "a waiting request failed: {log}"
        );
    }
    eprintln!("{} waiting requests answered {:?} after the agent was ready", waiting.len(), back.elapsed());
    let tally = mesh.call(&clients[0], &url, &["--count", "200", "--no-keepalive"])?;
    ensure!(tally.bad() == 0, "{tally:?}");
    busy.finish()?;
    let leaked = wire.finish(&mesh, 0)?;
    ensure!(leaked.trim().is_empty(), "packets in clear:\n{leaked}");
    Ok(())
}

#[test]
fn an_enrolled_pod_does_not_start_without_its_agent_and_others_do() -> Result<()> {
    let mut mesh = Mesh::new()?;
    mesh.pod(0, "web-0")?;
    mesh.sandbox.kill_agent(0)?;
    let error = mesh.pod(0, "web-1").expect_err("an enrolled pod must wait for the agent");
    let cni = error.downcast_ref::<weft::sandbox::CniError>().context("a CNI error")?;
    ensure!(cni.code == 11, "{cni}");
    mesh.pod_in(0, "outside", "free")?;
    mesh.sandbox.start_agent(0)?;
    mesh.sandbox.cni_add(&mesh.sandbox.pod("shop/web-1")?.clone())?;
    Ok(())
}
