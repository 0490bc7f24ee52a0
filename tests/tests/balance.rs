//! Balance under failure: a pod that comes back, an agent that freezes, a node that is cut off.

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};
use weft::{
    call::Tally,
    sandbox::{Pod, Process, Sandbox},
};
use weft_tests::{LIMIT, Mesh};

/// So long a request may take that comes while a node is silent: it goes elsewhere.
const NEW_MAX: Duration = Duration::from_secs(1);
/// So long one may take that was under way when the node fell silent.
const UNDER_WAY_MAX: Duration = Duration::from_secs(2);

/// A client on the first node, a pod of the same Service on each, and traffic all the time.
struct Bed {
    mesh: Mesh,
    client: Pod,
    far: Pod,
    ip: Ipv4Addr,
}

impl Bed {
    fn new() -> Result<Self> {
        let mut mesh = Mesh::new()?;
        let client = mesh.pod(0, "web-0")?;
        let (near, far) = (mesh.echo_pod(0, "cart-near")?, mesh.pod(1, "cart-far")?);
        let ports = [("http", 80, 8080, "http"), ("tcp", 90, 9000, "tcp")];
        let ip = mesh.service("cart", &ports, &[&near, &far])?;
        Ok(Self { mesh, client, far, ip })
    }

    fn url(&self) -> String {
        format!("http://{}/", self.ip)
    }

    /// Starts the far pod's server; it ends with what is returned.
    fn start_far(&self) -> Result<Process> {
        let weft = self.mesh.sandbox.weft()?;
        let argv =
            [weft.to_str().context("path")?, "echo", "--name", "cart-far", "--http", "8080", "--tcp", "9000"];
        let process = self.mesh.sandbox.spawn(&self.far, "echo", &argv)?;
        Sandbox::wait_until("the far pod to listen", LIMIT, || {
            let ports = self.mesh.sandbox.exec(&self.far, &["ss", "-Htln", "sport = :9000"], LIMIT);
            ports.is_ok_and(|o| !o.stdout.trim().is_empty())
        })?;
        Ok(process)
    }

    /// Requests all the time, from several connections.
    fn start_load(&self, count: &str) -> Result<Process> {
        let weft = self.mesh.sandbox.weft()?;
        let weft = weft.to_str().context("path")?;
        let url = self.url();
        let argv = [weft, "call", &url, "--count", count, "--rate", "100", "--connections", "8"];
        self.mesh.sandbox.spawn(&self.client, "load", &argv)
    }

    /// What a load counted.
    fn finish(mut load: Process) -> Result<Tally> {
        Sandbox::wait_until("the load's end", LIMIT * 2, || !load.is_running())?;
        Ok(serde_json::from_str(load.log_tail().trim())?)
    }

    /// Who answers now, of `count` requests at 200 a second; none may fail.
    fn ask(&self, count: &str) -> Result<Tally> {
        let args = ["--count", count, "--rate", "200", "--connections", "8"];
        let tally = self.mesh.call(&self.client, &self.url(), &args)?;
        ensure!(tally.bad() == 0, "{:?} {:?}", tally.codes, tally.failures);
        Ok(tally)
    }

    fn signal_far_agent(&mut self, signal: Signal) -> Result<()> {
        let agent = i32::try_from(self.mesh.sandbox.agent(1)?.pid())?;
        kill(Pid::from_raw(agent), signal).context("signal")
    }

    fn set_far_link(&self, state: &str) -> Result<()> {
        let netns = self.mesh.sandbox.nodes()[1].netns.name().to_owned();
        let argv = ["ip", "-n", &netns, "link", "set", "eth0", state];
        let status = std::process::Command::new(argv[0]).args(&argv[1..]).status()?;
        ensure!(status.success(), "{argv:?}");
        if state == "up" {
            // The kernel takes a link's routes and IPv6 addresses away with it; only IPv4 is used here.
            let route = ["ip", "-n", &netns, "route", "replace", "10.88.0.0/24", "via", "10.77.0.1"];
            ensure!(std::process::Command::new(route[0]).args(&route[1..]).status()?.success());
        }
        Ok(())
    }
}

fn share(tally: &Tally, service: &str) -> f64 {
    let of = |name: &str| tally.services.get(name).copied().unwrap_or(0) as f64;
    of(service) / tally.services.values().sum::<u64>().max(1) as f64
}

#[test]
fn f1_a_pod_that_answers_again_has_its_share_within_five_seconds() -> Result<()> {
    let bed = Bed::new()?;
    let mut server = bed.start_far()?;
    bed.mesh.wait_serving(&bed.client, &bed.url(), &["cart-near", "cart-far"])?;
    let load = bed.start_load("1500")?;
    server.kill();
    let killed = Instant::now();
    Sandbox::wait_until("a second", LIMIT, || killed.elapsed() > Duration::from_secs(1))?;
    let _server = bed.start_far()?;
    let back = Instant::now();
    Sandbox::wait_until("five seconds", LIMIT, || back.elapsed() > Duration::from_secs(5))?;
    let tally = bed.ask("1000")?;
    let far = share(&tally, "cart-far");
    eprintln!("share of the pod that came back: {far:.2}");
    ensure!(far >= 0.3, "{:?}", tally.services);
    let all = Bed::finish(load)?;
    // Requests that it had when it was killed are the only ones that may have failed.
    ensure!(all.bad() <= 8, "{:?} {:?}", all.codes, all.failures);
    Ok(())
}

/// Silences the far node under load, and expects its pods to be left alone and to be back afterwards.
fn silent_node(
    silence: impl FnOnce(&mut Bed) -> Result<()>,
    end: impl FnOnce(&mut Bed) -> Result<()>,
) -> Result<()> {
    let mut bed = Bed::new()?;
    let _server = bed.start_far()?;
    bed.mesh.wait_serving(&bed.client, &bed.url(), &["cart-near", "cart-far"])?;
    let before = bed.ask("400")?;
    ensure!(share(&before, "cart-far") >= 0.3, "{:?}", before.services);
    let load = bed.start_load("1200")?;
    let calling = Instant::now();
    Sandbox::wait_until("the load", LIMIT, || calling.elapsed() > Duration::from_secs(1))?;
    silence(&mut bed)?;
    let silent = Instant::now();
    Sandbox::wait_until("a second and a half", LIMIT, || silent.elapsed() > Duration::from_millis(1500))?;
    let during = bed.ask("800")?;
    ensure!(!during.services.contains_key("cart-far"), "{:?}", during.services);
    eprintln!("while it is silent: p99 {} us, max {} us", during.p99_us, during.max_us);
    ensure!(
        Duration::from_micros(during.max_us) < NEW_MAX,
        "new requests go elsewhere at once: {} us",
        during.max_us
    );
    let metrics = bed.mesh.sandbox.agent_page(0, 15020, "/metrics")?;
    let suspected =
        metrics.lines().any(|l| l.starts_with("weft_node_suspicions_total ") && !l.ends_with(" 0"));
    ensure!(suspected, "the suspicion is counted");
    end(&mut bed)?;
    let ended = Instant::now();
    Sandbox::wait_until("the pod to have its share again", LIMIT, || {
        bed.ask("200").is_ok_and(|tally| share(&tally, "cart-far") >= 0.3)
    })?;
    eprintln!("back after {:?}", ended.elapsed());
    let all = Bed::finish(load)?;
    eprintln!("from before until after: max {} us, {:?}", all.max_us, all.codes);
    ensure!(all.bad() == 0, "idempotent requests are sent again: {:?} {:?}", all.codes, all.failures);
    ensure!(Duration::from_micros(all.max_us) < UNDER_WAY_MAX, "{} us", all.max_us);
    Ok(())
}

#[test]
fn f4_a_frozen_agent_costs_its_nodes_pods_nothing_but_their_share() -> Result<()> {
    silent_node(|bed| bed.signal_far_agent(Signal::SIGSTOP), |bed| bed.signal_far_agent(Signal::SIGCONT))
}

#[test]
fn f4_a_node_that_is_cut_off_costs_its_pods_nothing_but_their_share() -> Result<()> {
    silent_node(|bed| bed.set_far_link("down"), |bed| bed.set_far_link("up"))
}

#[test]
fn f4_an_established_connection_outlives_a_frozen_agent() -> Result<()> {
    let mut bed = Bed::new()?;
    let _server = bed.start_far()?;
    let only = bed.mesh.service("queue", &[("tcp", 90, 9000, "tcp")], &[&bed.far])?;
    let url = format!("http://{only}:90");
    let weft = bed.mesh.sandbox.weft()?;
    let weft = weft.to_str().context("path")?;
    let argv =
        [weft, "call", &url, "--protocol", "tcp", "--count", "400", "--rate", "40", "--connections", "4"];
    // The agent may not have heard of the Service yet.
    Sandbox::wait_until("the Service to be served", LIMIT, || {
        let asked = bed.mesh.call(&bed.client, &url, &["--protocol", "tcp", "--count", "1"]);
        asked.is_ok_and(|tally| tally.messages == 1 && tally.bad() == 0)
    })?;
    let streams = bed.mesh.sandbox.spawn(&bed.client, "streams", &argv)?;
    let begin = Instant::now();
    Sandbox::wait_until("the streams", LIMIT, || begin.elapsed() > Duration::from_secs(2))?;
    bed.signal_far_agent(Signal::SIGSTOP)?;
    let frozen = Instant::now();
    Sandbox::wait_until("the freeze", LIMIT, || frozen.elapsed() > Duration::from_secs(5))?;
    bed.signal_far_agent(Signal::SIGCONT)?;
    let tally = Bed::finish(streams)?;
    let logs = [0, 1].map(|node| bed.mesh.sandbox.access_log(node));
    ensure!(
        tally.messages == 400 && tally.bad() == 0 && tally.resets == 0,
        "{tally:?}\nnode-a:\n{}node-b:\n{}",
        logs[0],
        logs[1]
    );
    Ok(())
}

#[test]
fn a_request_to_nobody_but_a_silent_node_ends_and_says_why() -> Result<()> {
    let mut bed = Bed::new()?;
    let _server = bed.start_far()?;
    let only = bed.mesh.service("queue", &[("http", 80, 8080, "http")], &[&bed.far])?;
    let url = format!("http://{only}/");
    bed.mesh.wait_serving(&bed.client, &url, &["cart-far"])?;
    bed.signal_far_agent(Signal::SIGSTOP)?;
    let begin = Instant::now();
    let answer = bed.mesh.curl(&bed.client, &["-i", &url])?;
    let took = begin.elapsed();
    bed.signal_far_agent(Signal::SIGCONT)?;
    ensure!(answer.stdout.contains("504") && answer.stdout.contains("peer_silent"), "{}", answer.stdout);
    eprintln!("over after {took:?}");
    ensure!(took < UNDER_WAY_MAX, "{took:?}");
    Ok(())
}
