//! `weft-bench mesh`: pod to pod over two nodes, through two agents and directly.
//!
//! Everything of node A (client, agent) runs on CPU 0 and everything of node B (agent, server) on CPU 1: two nodes of one
//! CPU each. `direct` is the same kind of pods on the same wires, outside the mesh and without any capture.

use super::{
    Options, gateway,
    load::{Load, Wrk, iperf, own},
    peers::Who,
    perf,
    place::argv,
    results::{Row, Shuffle, measure},
    rig::{IPERF, Path, Rig, add_iperf_log},
};
use anyhow::{Result, ensure};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bulk {
        args: &'static [&'static str],
    },
    Http {
        path: &'static str,
        connections: u32,
        close: bool,
        opaque: bool,
    },
    /// Idle connections held open.
    Held {
        opaque: bool,
    },
    /// Paced requests beside a transfer of 1 Gbit/s.
    PacedBeside,
}

/// What is measured.
pub(super) struct Scenario {
    name: &'static str,
    title: &'static str,
    kind: Kind,
}

const fn http(name: &'static str, title: &'static str, path: &'static str, connections: u32) -> Scenario {
    Scenario { name, title, kind: Kind::Http { path, connections, close: false, opaque: false } }
}

const fn new_connections(name: &'static str, title: &'static str, opaque: bool) -> Scenario {
    Scenario { name, title, kind: Kind::Http { path: "/1k", connections: 16, close: true, opaque } }
}

const fn bulk(name: &'static str, title: &'static str, args: &'static [&'static str]) -> Scenario {
    Scenario { name, title, kind: Kind::Bulk { args } }
}

const SCENARIOS: &[Scenario] = &[
    bulk("iperf-1", "iperf3, 1 stream", &["-P1"]),
    bulk("iperf-4", "iperf3, 4 streams", &["-P4"]),
    bulk("iperf-1-reverse", "iperf3, 1 stream, server → client", &["-P1", "-R"]),
    http("http-1k-1", "HTTP 1 KiB kept, c=1", "/1k", 1),
    http("http-1k-16", "HTTP 1 KiB kept, c=16", "/1k", 16),
    http("http-1k-64", "HTTP 1 KiB kept, c=64", "/1k", 64),
    http("http-64k-16", "HTTP 64 KiB kept, c=16", "/64k", 16),
    new_connections("newconn-16", "new HTTP connection per request, c=16", false),
    new_connections("newconn-opaque-16", "new opaque connection per request, c=16", true),
    Scenario { name: "held", title: "idle HTTP connection, 1,000 held", kind: Kind::Held { opaque: false } },
    Scenario {
        name: "held-opaque",
        title: "idle opaque connection, 1,000 held",
        kind: Kind::Held { opaque: true },
    },
    Scenario {
        name: "paced-beside-1g",
        title: "HTTP 1 KiB at 1,000/s, c=4, beside 1 Gbit/s",
        kind: Kind::PacedBeside,
    },
];

/// The scenario of this name.
pub(super) fn scenario(name: &str) -> Option<&'static Scenario> {
    SCENARIOS.iter().find(|s| s.name == name && !matches!(s.kind, Kind::Held { .. }))
}

impl Scenario {
    /// Its row in the tables.
    pub(super) fn row(&self) -> Row {
        Row::new(self.name, self.title)
    }
}

/// A way through two agents, or without.
pub(super) struct Party<'a> {
    /// What it is called in the row.
    pub(super) name: &'a str,
    pub(super) path: &'a Path,
    /// Process ids of the agents that are measured.
    pub(super) agents: &'a [u32],
}

/// Names and titles.
pub(super) fn list() -> Vec<(String, &'static str)> {
    SCENARIOS.iter().map(|s| (s.name.to_owned(), s.title)).collect()
}

/// Measures the scenarios named, all when none is.
///
/// # Errors
/// When the nodes, pods or servers cannot be made.
pub(super) fn run(options: &Options, names: &[String]) -> Result<Vec<Row>> {
    let chosen: Vec<&Scenario> = SCENARIOS.iter().filter(|s| Options::wants(names, s.name)).collect();
    if chosen.is_empty() {
        return Ok(Vec::new());
    }
    eprintln!("mesh: two nodes, {} agents", if options.takes_part(Who::Weft) { 2 } else { 0 });
    let mut rig = Rig::create(options)?;
    let mut paths = BTreeMap::new();
    for (who, namespace) in [(Who::Direct, "outside"), (Who::Weft, "shop")] {
        if options.takes_part(who) {
            let client = rig.pod(0, namespace, "client")?;
            paths.insert(who, rig.path(namespace, &client, "server")?);
        }
    }
    ensure!(!paths.is_empty(), "the mesh suite compares `direct` and `weft`");
    let mut shuffle = Shuffle(options.seed);
    let mut rows = Vec::new();
    for scenario in chosen {
        eprintln!("mesh {}: {}", scenario.name, scenario.title);
        let mut row = Row::new(scenario.name, scenario.title);
        run_scenario(&mut rig, &paths, scenario, options, (&mut row, &mut shuffle))?;
        rows.push(row);
    }
    Ok(rows)
}

fn run_scenario(
    rig: &mut Rig,
    paths: &BTreeMap<Who, Path>,
    scenario: &Scenario,
    options: &Options,
    (row, shuffle): (&mut Row, &mut Shuffle),
) -> Result<()> {
    let mut order: Vec<Who> = paths.keys().copied().collect();
    let rounds =
        if matches!(scenario.kind, Kind::Held { .. }) { options.rounds.min(3) } else { options.rounds };
    for round in 0..rounds {
        shuffle.shuffle(&mut order);
        for who in &order {
            let path = &paths[who];
            if round == 0 && !options.quick && !matches!(scenario.kind, Kind::Held { .. }) {
                let _ = send(rig, path, scenario.kind, 1);
            }
            match scenario.kind {
                Kind::Held { opaque } if *who == Who::Weft => held(rig, row, path, opaque, options.quick),
                Kind::Held { .. } => {}
                _ => {
                    let agents = if *who == Who::Weft { rig.agents.clone() } else { Vec::new() };
                    let party = Party { name: who.name(), path, agents: &agents };
                    once(rig, row, &party, scenario, options);
                }
            }
            rig.tidy(row);
        }
    }
    if let (true, "http-1k-64", Some(path)) = (options.profile_hot_path, scenario.name, paths.get(&Who::Weft))
    {
        for (name, agent) in ["client", "server"].iter().zip(rig.agents.clone()) {
            let load = || send(rig, path, scenario.kind, 8).map(|_| ());
            perf::record(&options.out, &format!("mesh-{}-{name}", scenario.name), &[agent], load)?;
            rig.tidy(row);
        }
    }
    Ok(())
}

/// One run.
pub(super) fn once(rig: &Rig, row: &mut Row, party: &Party<'_>, scenario: &Scenario, options: &Options) {
    let Party { name, path, agents } = *party;
    let mut beside = None;
    let parts = ["client", "server"];
    let figures = options.run_quiet(row, name, &parts, || {
        let sent = measure(agents, &rig.servers(), || {
            let (load, gbit) = send(rig, path, scenario.kind, options.seconds)?;
            beside = gbit;
            Ok(load)
        })?;
        Ok(sent)
    });
    if let (Some(_), Some(gbit), Some(last)) =
        (figures, beside, row.samples.get_mut(name).and_then(|s| s.last_mut()))
    {
        last.insert("beside_gbit".into(), gbit);
        last.remove("cpu_us"); // it would charge the transfer to the requests
        last.remove("cpu_us@client");
        last.remove("cpu_us@server");
    }
}

/// A second of load that is not measured.
pub(super) fn warm(rig: &Rig, path: &Path, scenario: &Scenario) {
    let _ = send(rig, path, scenario.kind, 1);
}

/// The load, and the rate of a transfer beside it.
fn send(rig: &Rig, path: &Path, kind: Kind, seconds: u64) -> Result<(Load, Option<f64>)> {
    let ip = path.ip.to_string();
    match kind {
        Kind::Bulk { args } => Ok((iperf(&path.client, &ip, IPERF, args, seconds)?, None)),
        Kind::Http { path: file, connections, close, opaque } => {
            let port = if opaque { path.opaque } else { path.http };
            let url = format!("http://{ip}:{port}{file}");
            let dir = rig.sandbox.dir();
            let load =
                Wrk { url, connections, threads: 1, seconds, close, mix: &[], dir }.run(&path.client)?;
            Ok((load, None))
        }
        Kind::PacedBeside => {
            let log = rig.sandbox.dir().join("beside.json");
            let _ = std::fs::remove_file(&log);
            let (port, time) = (IPERF.to_string(), (seconds + 2).to_string());
            let words = ["iperf3", "-J", "-c", &ip, "-p", &port, "-b", "1G", "-t", &time];
            let mut transfer = path.client.spawn(&argv(&words), &log)?;
            std::thread::sleep(Duration::from_secs(1));
            let load = paced(path, 1000, 4, seconds)?;
            let deadline = Instant::now() + Duration::from_secs(30);
            while transfer.is_running() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(20));
            }
            let mut figures = super::Figures::new();
            add_iperf_log(&mut figures, &log)?;
            Ok((load, figures.get("beside_gbit").copied()))
        }
        Kind::Held { .. } => anyhow::bail!("held connections are not sent"),
    }
}

/// Requests of 1 KiB on a fixed schedule.
///
/// # Errors
/// The tool's.
pub(super) fn paced(path: &Path, rate: u32, connections: u32, seconds: u64) -> Result<Load> {
    let target = format!("{}:{}", path.ip, path.http);
    let (rate, connections, time) = (rate.to_string(), connections.to_string(), seconds.to_string());
    let args = [
        "paced",
        "--target",
        &target,
        "--path",
        "/1k",
        "--rate",
        &rate,
        "--connections",
        &connections,
        "--seconds",
        &time,
    ];
    own(&path.client, &args, Duration::from_secs(seconds + 60))
}

/// Memory per held connection in each agent.
fn held(rig: &Rig, row: &mut Row, path: &Path, opaque: bool, quick: bool) {
    let count = if quick { 100 } else { 1000 };
    let target = format!("{}:{}", path.ip, if opaque { path.opaque } else { path.http });
    let idle = gateway::Idle { target: &target, tls: false, count };
    match gateway::idle_bytes(&path.client, &idle, rig.sandbox.dir(), &rig.agents) {
        Ok(figures) => {
            eprintln!("  weft     {}", super::report::one_line(&figures));
            row.add("weft", figures);
        }
        Err(error) => row.failures.push(format!("weft: {error:#}")),
    }
}
