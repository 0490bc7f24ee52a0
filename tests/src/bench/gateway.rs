//! `weft-bench gateway`: every proxy in front of the same backend, one after the other.
//!
//! All live in one namespace and speak over its loopback. Load generator and backend share CPU 0 and the proxy has CPU 1
//! to itself; with two workers on a two-CPU machine nothing is pinned, since there is no CPU left.

use super::{
    Options,
    load::{Load, Wrk, h2load, own},
    peers::{self, Ports, Routes, Setup, Who},
    perf,
    place::{Place, argv},
    proc,
    results::{Figures, Row, Shuffle, measure},
};
use ::weft::sandbox::{self, Process, Sandbox};
use anyhow::{Context as _, Result};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// What a scenario sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// wrk over kept connections: path and connections.
    Kept { path: &'static str, tls: bool },
    /// A full handshake and one request a connection.
    Handshake,
    /// h2load: 4 connections × 25 streams.
    H2,
    /// The same with a POST of a gRPC message to the h2c backend.
    Grpc,
    /// The mix of the routes.
    Mix,
    /// Memory of idle connections.
    Idle { tls: bool },
    /// A fixed rate: latency.
    Paced { rate: u32 },
}

struct Scenario {
    name: &'static str,
    title: &'static str,
    kind: Kind,
    routes: Routes,
    log: bool,
    workers: &'static [usize],
    quick: bool,
}

const fn scenario(name: &'static str, title: &'static str, kind: Kind) -> Scenario {
    Scenario { name, title, kind, routes: Routes::One, log: false, workers: &[1, 2], quick: true }
}

const fn routes(name: &'static str, title: &'static str, routes: Routes, quick: bool) -> Scenario {
    Scenario { routes, workers: &[1], quick, ..scenario(name, title, Kind::Mix) }
}

const SCENARIOS: &[Scenario] = &[
    scenario("h1-128", "HTTP/1.1 keep-alive 128 B", Kind::Kept { path: "/", tls: false }),
    Scenario {
        log: true,
        workers: &[1],
        ..scenario(
            "h1-128-log",
            "the same, everyone writes an access log",
            Kind::Kept { path: "/", tls: false },
        )
    },
    scenario("h1-64k", "HTTP/1.1 keep-alive 64 KiB", Kind::Kept { path: "/64k", tls: false }),
    scenario("tls-128", "TLS 1.3 keep-alive 128 B", Kind::Kept { path: "/", tls: true }),
    scenario("tls-handshake", "TLS 1.3 full handshake per request", Kind::Handshake),
    scenario("h2-h1", "h2 (TLS) → h1, 4 × 25 streams", Kind::H2),
    scenario("grpc", "gRPC-shaped h2c → h2c, 4 × 25 streams", Kind::Grpc),
    Scenario {
        workers: &[1],
        ..scenario("paced-6000", "HTTP/1.1 128 B at 6,000 requests/s", Kind::Paced { rate: 6000 })
    },
    // Two hosts rather than none, so that the row differs from the next ones by the number of routes alone.
    routes("routes-1", "2 routes (2 hosts × 1)", Routes::Hosts(2, 1), false),
    routes("routes-1k-hosts", "1,000 routes (500 hosts × 2)", Routes::Hosts(500, 2), true),
    routes("routes-10k-hosts", "10,000 routes (500 hosts × 20)", Routes::Hosts(500, 20), false),
    routes("routes-1k-prefixes", "1 host × 1,000 prefixes", Routes::Prefixes(1000), true),
    routes("routes-10k-prefixes", "1 host × 10,000 prefixes", Routes::Prefixes(10_000), false),
    Scenario { workers: &[1], ..scenario("idle-h1", "idle HTTP/1.1 connection", Kind::Idle { tls: false }) },
    Scenario { workers: &[1], ..scenario("idle-tls", "idle TLS connection", Kind::Idle { tls: true }) },
];

/// Names and titles.
pub(super) fn list() -> Vec<(String, &'static str)> {
    SCENARIOS.iter().flat_map(|s| s.workers.iter().map(move |w| (full_name(s, *w), s.title))).collect()
}

fn full_name(scenario: &Scenario, workers: usize) -> String {
    format!("{}-w{workers}", scenario.name)
}

/// Measures the scenarios named, all when none is.
///
/// # Errors
/// When the namespace or the backend cannot be made.
pub(super) fn run(options: &Options, names: &[String]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut shuffle = Shuffle(options.seed);
    for scenario in SCENARIOS {
        for workers in scenario.workers {
            let name = full_name(scenario, *workers);
            let skipped = options.quick && names.is_empty() && (!scenario.quick || *workers > 1);
            if skipped || !Options::wants(names, &name) {
                continue;
            }
            let title = if scenario.workers.len() > 1 {
                format!("{}, {workers} worker{}", scenario.title, if *workers > 1 { "s" } else { "" })
            } else {
                scenario.title.to_owned()
            };
            eprintln!("gateway {name}: {title}");
            let bench = Bench::create(scenario, *workers, options, crate::weft_binary()?)?;
            rows.push(bench.run(Row::new(&name, &title), &mut shuffle)?);
        }
    }
    Ok(rows)
}

/// A scenario with its namespace, backend and participants, made anew for each.
pub(super) struct Bench<'a> {
    scenario: &'a Scenario,
    workers: usize,
    options: &'a Options,
    /// The build of Weft that takes part.
    weft: PathBuf,
    certificate: (PathBuf, PathBuf),
    dir: PathBuf,
    load: Place,
    proxy: Place,
    backends: Vec<Process>,
    /// Last, so that it removes the namespace after the processes ended.
    _sandbox: Sandbox,
}

impl<'a> Bench<'a> {
    /// A scenario with one worker and this build of Weft; `None` when there is no scenario of that name.
    ///
    /// # Errors
    /// When the namespace or the backend cannot be made.
    pub(super) fn of(name: &str, options: &'a Options, weft: &Path) -> Result<Option<Self>> {
        let scenario = SCENARIOS.iter().find(|s| s.name == name);
        scenario.map(|scenario| Self::create(scenario, 1, options, weft.to_owned())).transpose()
    }

    /// Its row in the tables.
    pub(super) fn row(&self) -> Row {
        Row::new(self.scenario.name, self.scenario.title)
    }

    fn create(scenario: &'a Scenario, workers: usize, options: &'a Options, weft: PathBuf) -> Result<Self> {
        let mut sandbox = Sandbox::create(sandbox::Options {
            weft: Some(std::env::current_exe()?),
            ..sandbox::Options::default()
        })?;
        let node = sandbox.add_node("gateway")?;
        let netns = sandbox.nodes()[node].netns.clone();
        let cpus = std::thread::available_parallelism()?.get();
        let (load, proxy) = match (workers, cpus) {
            (_, 1) => ("0", "0"),
            (1, _) => ("0", "1"),
            (_, 4..) => ("0-1", "2-3"),
            _ => ("0-1", "0-1"),
        };
        let (load, proxy) = (Place::new(&netns, load), Place::new(&netns, proxy));
        let sysctl =
            ["sysctl", "-q", "-w", "net.ipv4.tcp_tw_reuse=1", "net.ipv4.ip_local_port_range=20000 65000"];
        load.run(&argv(&sysctl), Duration::from_secs(10))?.ok()?;
        let dir = sandbox.dir().to_owned();
        let certificate = certificate(&dir)?;
        let mut bench = Self {
            scenario,
            workers,
            options,
            weft,
            certificate,
            dir,
            load,
            proxy,
            backends: Vec::new(),
            _sandbox: sandbox,
        };
        let setup = bench.setup("backend")?;
        bench.backends = peers::backend(&setup.borrow(&bench), &bench.load)?;
        Ok(bench)
    }

    fn run(self, mut row: Row, shuffle: &mut Shuffle) -> Result<Row> {
        let mut who: Vec<Who> = Who::ALL.into_iter().filter(|w| self.options.takes_part(*w)).collect();
        if matches!(self.scenario.kind, Kind::Idle { .. })
            || self.scenario.kind == Kind::Mix
            || self.scenario.log
        {
            who.retain(|w| *w != Who::Direct); // it has no memory, no routes and no log to compare
        }
        if let Kind::Idle { tls } = self.scenario.kind {
            for _ in 0..self.options.rounds.min(3) {
                shuffle.shuffle(&mut who);
                for who in &who {
                    self.idle_once(&mut row, *who, tls);
                }
            }
            return Ok(row);
        }
        let mut running = BTreeMap::new();
        for who in &who {
            match self.start(*who) {
                Ok(process) => drop(running.insert(*who, process)),
                Err(error) => row.failures.push(format!("{error:#}")),
            }
        }
        for round in 0..self.options.rounds {
            shuffle.shuffle(&mut who);
            for who in &who {
                if let Some(process) = running.get(who) {
                    self.once(&mut row, (*who, who.name()), process.as_ref(), round == 0);
                }
            }
        }
        if let (true, Some(Some(weft))) = (self.options.profile_hot_path, running.get(&Who::Weft))
            && self.scenario.name == "h1-128"
        {
            let load = || self.send(Who::Weft, 8).map(|_| ());
            perf::record(&self.options.out, &format!("gateway-{}", row.name), &[weft.pid()], load)?;
        }
        Ok(row)
    }

    /// Starts a participant.
    ///
    /// # Errors
    /// When it does not serve.
    pub(super) fn start(&self, who: Who) -> Result<Option<Process>> {
        let setup = self.setup(who.name())?;
        peers::start(who, &self.proxy, &setup.borrow(self))
    }

    /// One run of one participant, called so in the row, with a second of warm-up before the first.
    pub(super) fn once(
        &self,
        row: &mut Row,
        (who, name): (Who, &str),
        process: Option<&Process>,
        first: bool,
    ) {
        let (measured, known) = self.trees(process);
        if first && !self.options.quick {
            let _ = self.send(who, 1);
        }
        let send = || measure(&measured, &known, || self.send(who, self.options.seconds));
        let figures = self.options.run_quiet(row, name, &["proxy"], send);
        if let (Some(_), Some(pid)) = (figures, measured.first()) {
            let pss = proc::pss_bytes(*pid) as f64 / 1e6;
            if let Some(last) = row.samples.get_mut(name).and_then(|s| s.last_mut()) {
                last.insert("pss_mb".into(), pss);
            }
        }
    }

    fn trees(&self, process: Option<&Process>) -> (Vec<u32>, Vec<u32>) {
        (process.iter().map(|p| p.pid()).collect(), self.backends.iter().map(Process::pid).collect())
    }

    fn send(&self, who: Who, seconds: u64) -> Result<Load> {
        let ports = Ports::of(who);
        let (http, https) =
            (format!("http://127.0.0.1:{}", ports.http), format!("https://127.0.0.1:{}", ports.https));
        let mix = self.scenario.routes.mix();
        let threads = u32::try_from(self.workers)?;
        let wrk = |url: String, connections: u32| Wrk {
            url,
            connections,
            threads,
            seconds,
            close: false,
            mix: &mix,
            dir: &self.dir,
        };
        let (s, t) = (seconds.to_string(), format!("-t{threads}"));
        let limit = Duration::from_secs(seconds + 60);
        match self.scenario.kind {
            Kind::Kept { path, tls } => {
                wrk(format!("{}{path}", if tls { https } else { http }), 64).run(&self.load)
            }
            Kind::Mix => wrk(http, 64).run(&self.load),
            Kind::Handshake => {
                let target = format!("127.0.0.1:{}", ports.https);
                let args = ["handshakes", "--target", &target, "--connections", "16", "--seconds", &s];
                own(&self.load, &args, limit)
            }
            Kind::Paced { rate } => {
                let (target, rate) = (format!("127.0.0.1:{}", ports.http), rate.to_string());
                let args =
                    ["paced", "--target", &target, "--rate", &rate, "--connections", "16", "--seconds", &s];
                own(&self.load, &args, limit)
            }
            Kind::H2 => h2load(&self.load, &[&t, "-c4", "-m25"], seconds, &format!("{https}/")),
            Kind::Grpc => {
                let message = self.dir.join("message");
                fs::write(&message, [0, 0, 0, 0, 16].into_iter().chain([b'x'; 16]).collect::<Vec<u8>>())?;
                let message = message.to_str().context("path")?;
                let args = [
                    &t,
                    "-c4",
                    "-m25",
                    "-d",
                    message,
                    "-H",
                    "content-type: application/grpc",
                    "-H",
                    "te: trailers",
                ];
                h2load(
                    &self.load,
                    &args,
                    seconds,
                    &format!("http://127.0.0.1:{}/bench.Echo/Unary", ports.h2c),
                )
            }
            Kind::Idle { .. } => anyhow::bail!("idle connections are held, not sent"),
        }
    }

    /// Memory with and without idle connections, of a fresh process that has served some load before, so that what it
    /// allocates once is not counted as the connections'.
    fn idle_once(&self, row: &mut Row, who: Who, tls: bool) {
        let run = || -> Result<Figures> {
            let process = self.start(who)?.context("nothing to measure")?;
            let ports = Ports::of(who);
            let target = format!("127.0.0.1:{}", if tls { ports.https } else { ports.http });
            let url = format!("{}://{target}/", if tls { "https" } else { "http" });
            let (dir, mix) = (self.dir.as_path(), &[][..]);
            Wrk { url, connections: 64, threads: 1, seconds: 1, close: false, mix, dir }.run(&self.load)?;
            let count = if self.options.quick { 200 } else { 4000 };
            idle_bytes(&self.load, &Idle { target: &target, tls, count }, &self.dir, &[process.pid()])
        };
        match run() {
            Ok(figures) => {
                eprintln!("  {:8} {}", who.name(), super::report::one_line(&figures));
                row.add(who.name(), figures);
            }
            Err(error) => row.failures.push(format!("{}: {error:#}", who.name())),
        }
    }

    fn setup(&self, name: &str) -> Result<Directory> {
        let dir = self.dir.join(format!("peer-{name}"));
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir_all(&dir)?;
        Ok(Directory(dir))
    }
}

/// A participant's directory.
struct Directory(PathBuf);

impl Directory {
    fn borrow<'s>(&'s self, bench: &'s Bench<'_>) -> Setup<'s> {
        Setup {
            workers: bench.workers,
            routes: bench.scenario.routes,
            log: bench.scenario.log,
            certificate: (&bench.certificate.0, &bench.certificate.1),
            dir: &self.0,
            weft: &bench.weft,
        }
    }
}

/// Connections to hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Idle<'a> {
    /// `address:port`.
    pub(super) target: &'a str,
    /// Over TLS.
    pub(super) tls: bool,
    /// How many.
    pub(super) count: u32,
}

/// Holds connections and gives the bytes that each costs in every one of the processes `pids`.
///
/// # Errors
/// When they cannot all be opened.
pub(super) fn idle_bytes(place: &Place, idle: &Idle<'_>, dir: &Path, pids: &[u32]) -> Result<Figures> {
    let Idle { target, tls, count } = *idle;
    let pss = || pids.iter().map(|pid| proc::pss_bytes(*pid) as f64).collect::<Vec<_>>();
    let (me, count_text, log) = (std::env::current_exe()?, count.to_string(), dir.join("hold.log"));
    let _ = fs::remove_file(&log);
    let before = pss();
    let mut words =
        vec![me.to_str().context("path")?, "tool", "hold", "--target", target, "--connections", &count_text];
    if tls {
        words.push("--tls");
    }
    let mut holder = place.spawn(&argv(&words), &log)?;
    Sandbox::wait_until("the connections to be open", Duration::from_secs(120), || {
        !holder.is_running() || fs::read_to_string(&log).is_ok_and(|t| t.contains("held"))
    })?;
    anyhow::ensure!(holder.is_running(), "{}", holder.log_tail());
    // Idle means idle: buffers that are given back after a moment are not the connection's.
    std::thread::sleep(Duration::from_secs(2));
    let after = pss();
    let each: Vec<f64> = before.iter().zip(&after).map(|(b, a)| (a - b) / f64::from(count)).collect();
    let mut figures = Figures::from([("bytes_conn".to_owned(), each.iter().sum())]);
    figures.insert("pss_mb".into(), after.iter().sum::<f64>() / 1e6);
    if each.len() > 1 {
        for (part, bytes) in ["client", "server"].iter().zip(each) {
            figures.insert(format!("bytes_conn@{part}"), bytes);
        }
    }
    Ok(figures)
}

/// A self-signed certificate (ECDSA P-256) and its key, as PEM files in `dir`.
///
/// # Errors
/// File system.
pub(super) fn certificate(dir: &Path) -> Result<(PathBuf, PathBuf)> {
    let certified = rcgen::generate_simple_self_signed(vec!["bench.test".into()])?;
    let (certificate, key) = (dir.join("bench.crt"), dir.join("bench.key"));
    fs::write(&certificate, certified.cert.pem())?;
    fs::write(&key, certified.signing_key.serialize_pem())?;
    Ok((certificate, key))
}
