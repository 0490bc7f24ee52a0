//! `weft-bench fairness`: what one pod's flood does to another pod's latency.
//!
//! The victim and the attacker are pods of node A, their servers pods of node B, one CPU a node. The victim sends 500
//! requests a second on a fixed schedule: alone, beside the attack, and beside the same attack among pods outside the
//! mesh (`control`), in turn in every round.
//!
//! What is asked is what the *agent* lets one tenant do to another. On nodes of one CPU the programs would answer
//! another question: an attacker that spins delays everybody by the kernel's time slices, with or without an agent. So
//! the three kinds of programs have three classes of the kernel's scheduler:
//!
//! - attackers (clients and their servers) are `SCHED_IDLE`: an agent that has anything to do takes the CPU from them at
//!   once. They still use all that is left, so what the agent does *for* them is as much as it can get;
//! - agents run as usual. Their time on an attacker's behalf is what the victim meets;
//! - the victim's client and server are instruments (niceness −20): when their answer is there they run, so that what is
//!   measured is the way of the request and not the end of somebody's time slice.
//!
//! What remains besides the agents is the kernel's own work for the attack (packets are delivered in whatever context
//! the CPU is in, and that cannot be interrupted): it is there in the control too, where no agent takes part in the
//! attack. And there are the machine's own holes, when a program that is no part of the run holds a node's CPU: they are
//! recorded meanwhile, and latency is given with and without the requests that met one ([`super::foreign`]). The agents'
//! own account of it, the time from "ready" to "its turn", is read from their metrics.

use super::{
    Options,
    foreign::{Apart, Watched},
    gateway::certificate,
    load::{Load, Wrk, iperf, own},
    mesh::paced,
    peers::Who,
    place::{Class, Place, argv},
    proc,
    results::{Figures, Row, measure},
    rig::{HTTP, IPERF, Path, Rig},
};
use anyhow::{Context as _, Result, bail};
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};
use weft::sandbox::Pod;

/// The agents' port for HBONE, and of the TLS server that stands for it outside the mesh.
const HBONE: u16 = 15008;
/// Victim: requests a second, connections.
const PACE: (u32, u32) = (500, 4);

/// The Gateway's ports: HTTP/1.1 to nginx, HTTP/2 in clear, UDP. Behind it and outside the mesh are [`H2C`] and [`SINK`].
const EDGE: (u16, u16, u16) = (8090, 8092, 8053);
const H2C: u16 = 8082;
const SINK: u16 = 8053;
/// Port of the Service whose pods speak HTTP/2 in clear.
const H2C_SERVICE: u16 = 82;

/// How much of its memory an agent may hold longer than before an attack: a share, and MB.
const LEFT_MAX: (f64, f64) = (0.1, 2.0);
/// When an attack's memory must be back.
const RETURN: Duration = Duration::from_secs(60);

/// What the flood's target is reached through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// A Service, from a pod in the mesh.
    Mesh,
    /// A Gateway of the victim's node, from outside the mesh.
    Edge,
}

#[derive(Clone, Copy, Debug)]
enum Attack {
    /// New HTTP connections, as many as go.
    Connections,
    /// TLS handshakes without a client certificate towards the agent's own port in a pod.
    Handshakes,
    /// Four streams at full speed.
    Bulk,
    /// 1,000 heads of requests that never end.
    HalfSent(At),
    /// 20 × 200 HTTP/2 streams whose answers may not be sent.
    Windows(At),
    /// Streams that are reset so many milliseconds after their HEADERS.
    Resets(At, u64),
    /// 5,000 sources a second.
    Datagrams,
}

const SCENARIOS: &[(&str, &str, Attack)] = &[
    ("flood-connections", "a pod floods new connections", Attack::Connections),
    ("flood-handshakes", "a pod floods TLS handshakes on 15008", Attack::Handshakes),
    ("flood-bytes", "a pod streams at full speed", Attack::Bulk),
    ("half-sent", "1,000 half-sent requests to a Service", Attack::HalfSent(At::Mesh)),
    ("windows", "20 × 200 zero-window streams to a Service", Attack::Windows(At::Mesh)),
    ("resets-0", "resets at once, to a Service", Attack::Resets(At::Mesh, 0)),
    ("resets-1", "resets after 1 ms, to a Service", Attack::Resets(At::Mesh, 1)),
    ("resets-10", "resets after 10 ms, to a Service", Attack::Resets(At::Mesh, 10)),
    ("resets-100", "resets after 100 ms, to a Service", Attack::Resets(At::Mesh, 100)),
    ("edge-half-sent", "1,000 half-sent requests to a Gateway", Attack::HalfSent(At::Edge)),
    ("edge-windows", "20 × 200 zero-window streams to a Gateway", Attack::Windows(At::Edge)),
    ("edge-resets-0", "resets at once, to a Gateway", Attack::Resets(At::Edge, 0)),
    ("edge-resets-1", "resets after 1 ms, to a Gateway", Attack::Resets(At::Edge, 1)),
    ("edge-resets-10", "resets after 10 ms, to a Gateway", Attack::Resets(At::Edge, 10)),
    ("edge-resets-100", "resets after 100 ms, to a Gateway", Attack::Resets(At::Edge, 100)),
    ("edge-datagrams", "5,000 UDP sources a second to a Gateway", Attack::Datagrams),
];

/// Names and titles.
pub(super) fn list() -> Vec<(String, &'static str)> {
    SCENARIOS.iter().map(|(name, title, _)| ((*name).to_owned(), *title)).collect()
}

/// Who attacks whom.
struct Lines {
    victim: Path,
    attack: Path,
    control: Path,
    /// The attacked pod itself.
    attacked: Ipv4Addr,
    /// The Service of its HTTP/2 server.
    h2c: Ipv4Addr,
    /// The Gateway's address.
    edge: Ipv4Addr,
}

/// Measures the scenarios named, all when none is. Nothing without Weft, since there is no agent to share.
///
/// # Errors
/// When the nodes, pods or servers cannot be made.
pub(super) fn run(options: &Options, names: &[String]) -> Result<Vec<Row>> {
    let chosen: Vec<_> = SCENARIOS.iter().filter(|(name, ..)| Options::wants(names, name)).collect();
    if chosen.is_empty() {
        return Ok(Vec::new());
    }
    let mut rig = Rig::create(options)?;
    let inside = if options.takes_part(Who::Weft) { "shop" } else { "outside" };
    let lines = lines(&mut rig, inside)?;
    let mut rows = Vec::new();
    for (name, title, attack) in chosen {
        eprintln!("fairness {name}: {title}");
        let mut row = Row::new(name, title);
        for round in 0..options.rounds {
            if round == 0 && !options.quick {
                let _ = paced(&lines.victim, PACE.0, PACE.1, 1);
            }
            once(&rig, &mut row, &lines, ("alone", None), options);
            let before = memory(&rig);
            once(&rig, &mut row, &lines, ("beside", Some((*attack, false))), options);
            returned(&rig, &mut row, before);
            once(&rig, &mut row, &lines, ("control", Some((*attack, true))), options);
            rig.tidy(&mut row);
        }
        rows.push(row);
    }
    Ok(rows)
}

fn lines(rig: &mut Rig, inside: &str) -> Result<Lines> {
    let victim = rig.pod(0, inside, "victim")?;
    let attacker = rig.pod(0, inside, "attacker")?;
    let outsider = rig.pod(0, "outside", "outsider")?;
    let victim = rig.path_in((inside, Class::Instrument), &victim, "web")?;
    let attack = rig.path_in((inside, Class::Background), &attacker, "target")?;
    let control = rig.path_in(("outside", Class::Background), &outsider, "apart")?;
    let target = rig.sandbox.pod(&format!("{inside}/target"))?.clone();
    let apart = rig.sandbox.pod("outside/apart")?.clone();
    let server = tls_server(&rig.sandbox.dir().join("tls-apart"))?;
    rig.serve(&rig.place(&apart).class(Class::Background), &server, HBONE, "tls-apart.log")?;
    for pod in [&target, &apart] {
        let place = rig.place(pod).class(Class::Background);
        for (tool, port) in [("h2c", H2C), ("sink", SINK)] {
            rig.serve(&place, &tool_argv(tool, port)?, port, &format!("{tool}-{}.log", pod.spec.name))?;
        }
    }
    let (h2c, edge) = (Ipv4Addr::new(10, 96, 0, 200), rig.sandbox.nodes()[0].ip);
    if !rig.agents.is_empty() {
        rig.sandbox.apply("floods", &attacked_yaml(&target, h2c, edge))?;
    }
    Ok(Lines { victim, attack, control, attacked: target.ip, h2c, edge })
}

fn tool_argv(tool: &str, port: u16) -> Result<Vec<String>> {
    let me = std::env::current_exe()?;
    Ok(argv(&[me.to_str().context("path")?, "tool", tool, "--listen", &format!("0.0.0.0:{port}")]))
}

/// A Service of the target's HTTP/2 and UDP servers, and a Gateway in front of all of its servers.
fn attacked_yaml(target: &Pod, h2c: Ipv4Addr, edge: Ipv4Addr) -> String {
    let (http, http2, udp) = EDGE;
    let version = "apiVersion: gateway.networking.k8s.io/v1";
    let route = |kind: &str, listener: &str, service: &str, port: u16| {
        format!(
            "---\n{version}\nkind: {kind}\nmetadata: {{namespace: shop, name: {listener}}}\nspec:\n  \
             parentRefs: [{{name: edge, sectionName: {listener}}}]\n  \
             rules: [{{backendRefs: [{{name: {service}, port: {port}}}]}}]\n"
        )
    };
    let ip = target.ip;
    [
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{namespace: shop, name: flooded}}\nspec:\n  clusterIP: {h2c}\n  ports:\n  \
             - {{name: h2c, port: {H2C_SERVICE}, targetPort: {H2C}, appProtocol: kubernetes.io/h2c}}\n  \
             - {{name: udp, port: {SINK}, protocol: UDP}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  namespace: shop\n  name: flooded-1\n  \
             labels: {{kubernetes.io/service-name: flooded}}\naddressType: IPv4\nports:\n\
             - {{name: h2c, port: {H2C}}}\n- {{name: udp, port: {SINK}, protocol: UDP}}\n\
             endpoints: [{{addresses: [{ip}], targetRef: {{kind: Pod, namespace: shop, name: target}}}}]\n"
        ),
        format!(
            "---\n{version}\nkind: GatewayClass\nmetadata: {{name: weft}}\n\
             spec: {{controllerName: weft.dev/gateway-controller}}\n---\n\
             {version}\nkind: Gateway\nmetadata: {{namespace: shop, name: edge}}\nspec:\n  gatewayClassName: weft\n  listeners:\n  \
             - {{name: http, port: {http}, protocol: HTTP}}\n  - {{name: http2, port: {http2}, protocol: HTTP}}\n  \
             - {{name: udp, port: {udp}, protocol: UDP}}\n---\n\
             apiVersion: weft.dev/v1alpha1\nkind: AgentConfig\nmetadata: {{name: agent}}\n\
             gatewayAddresses: {{shop/edge: [\"{edge}\"]}}\n"
        ),
        route("HTTPRoute", "http", "target", 80),
        route("HTTPRoute", "http2", "flooded", H2C_SERVICE),
        route("UDPRoute", "udp", "flooded", SINK),
    ]
    .concat()
}

/// Handshakes without an agent: nginx with a certificate of the same kind.
fn tls_server(dir: &std::path::Path) -> Result<Vec<String>> {
    fs::create_dir_all(dir)?;
    let (certificate, key) = certificate(dir)?;
    let config = format!(
        "daemon off;\npid {pid};\nworker_processes 1;\nevents {{ worker_connections 4096; }}\n\
         http {{\n  access_log off;\n  server {{\n    listen {HBONE} ssl backlog=4096;\n    ssl_protocols TLSv1.3;\n\
         ssl_certificate {};\n    ssl_certificate_key {};\n    return 200;\n  }}\n}}\n",
        certificate.display(),
        key.display(),
        pid = dir.join("nginx.pid").display(),
    );
    let path = dir.join("nginx.conf");
    fs::write(&path, config)?;
    let (dir, path) = (dir.to_str().context("path")?, path.to_str().context("path")?);
    Ok(argv(&["nginx", "-p", dir, "-e", "error.log", "-c", path]))
}

fn once(
    rig: &Rig,
    row: &mut Row,
    lines: &Lines,
    (who, attack): (&str, Option<(Attack, bool)>),
    options: &Options,
) {
    let seconds = options.seconds;
    let (mut strength, mut waited, mut watched) = (0.0, None, Watched::default());
    let mut apart = Apart::default();
    // Enough load on the victim's side for a p99, and the attack is there a second before and after. The watch needs
    // a moment to begin; requests that it does not see (before it, or later than its end) stay in.
    let lead = Duration::from_millis(if attack.is_some() { 1000 } else { 300 });
    let figures = options.run_quiet(row, who, &["client", "server"], || {
        let mut measured = measure(&[], &[rig.agents.clone(), rig.servers()].concat(), || {
            thread::scope(|scope| {
                let flood = attack.map(|(attack, apart)| {
                    scope.spawn(move || flood(rig, lines, attack, apart, seconds + 2))
                });
                let watch =
                    scope.spawn(move || watch(rig, lead + Duration::from_millis(seconds * 1000 + 500)));
                thread::sleep(lead);
                let before = Waits::read(rig)?;
                let load = paced(&lines.victim, PACE.0, PACE.1, seconds);
                waited = before.zip(Waits::read(rig)?);
                watched = watch.join().map_err(|_| anyhow::anyhow!("the watch panicked"))??;
                if let Some(flood) = flood {
                    strength = flood.join().map_err(|_| anyhow::anyhow!("the attack panicked"))??;
                }
                load
            })
        })?;
        apart = watched.apart(&measured.load.each);
        measured.disturbed = apart.is_disturbed();
        Ok(measured)
    });
    let last = row.samples.get_mut(who).and_then(|s| s.last_mut());
    let (Some(_), Some(last)) = (figures, last) else { return };
    watched.figures(&apart, last);
    if attack.is_some() {
        eprintln!("           attack: {strength:.1} a second (Gbit/s for bytes)");
        last.insert("attack".into(), strength);
    }
    if let Some((before, after)) = waited {
        after.since(&before, last);
    }
}

/// Both agents' memory in MB.
fn memory(rig: &Rig) -> f64 {
    rig.agents.iter().map(|pid| proc::pss_bytes(*pid) as f64 / 1e6).sum()
}

/// An attack that has ended holds nothing any more, after a minute at the latest.
fn returned(rig: &Rig, row: &mut Row, before: f64) {
    let (end, ended) = (memory(rig), Instant::now());
    let most = before * (1.0 + LEFT_MAX.0) + LEFT_MAX.1;
    let mut now = end;
    while now > most && ended.elapsed() < RETURN {
        thread::sleep(Duration::from_millis(500));
        now = memory(rig);
    }
    if now > most {
        row.failures.push(format!(
            "{now:.1} MB are held {} s after the attack, {before:.1} before",
            RETURN.as_secs()
        ));
    }
    if let Some(figures) = row.samples.get_mut("beside").and_then(|s| s.last_mut()) {
        let seconds = ended.elapsed().as_secs_f64();
        for (name, value) in
            [("pss_before_mb", before), ("pss_end_mb", end), ("pss_after_mb", now), ("back_s", seconds)]
        {
            figures.insert(name.into(), value);
        }
        eprintln!(
            "           memory: {before:.1} MB before, {end:.1} at its end, {now:.1} after {seconds:.0} s"
        );
    }
}

/// Watches the two nodes for what foreign programs take. On node A: the tail was found on B.
fn watch(rig: &Rig, time: Duration) -> Result<Watched> {
    let place = Place::new(&rig.sandbox.nodes()[0].netns, "0").class(Class::Instrument);
    let run: Vec<String> = [vec![std::process::id()], rig.agents.clone(), rig.servers()]
        .concat()
        .iter()
        .map(u32::to_string)
        .collect();
    let millis = time.as_millis().to_string();
    let args = ["watch", "--run", &run.join(","), "--cpus", "0,1", "--millis", &millis];
    own(&place, &args, time + Duration::from_secs(60))
}

/// The agents' histograms of how long work waits, both agents together.
struct Waits(Vec<(&'static str, Vec<(f64, f64)>)>);

impl Waits {
    const FAMILIES: [(&'static str, &'static str); 2] =
        [("wait_p99_us", "weft_share_wait_seconds"), ("stretch_p99_us", "weft_worker_stretch_seconds")];

    /// `None` without agents.
    fn read(rig: &Rig) -> Result<Option<Self>> {
        let texts: Vec<String> =
            (0..rig.agents.len()).map(|node| rig.metrics(node)).collect::<Result<_>>()?;
        let of = |family: &str| {
            let mut buckets: Vec<(f64, f64)> = Vec::new();
            for line in texts.iter().flat_map(|t| t.lines()) {
                let Some(rest) = line.strip_prefix(family).and_then(|l| l.strip_prefix("_bucket{le=\""))
                else {
                    continue;
                };
                let Some((bound, count)) = rest.split_once("\"} ") else { continue };
                let (Ok(bound), Ok(count)) = (bound.replace("+Inf", "inf").parse(), count.parse::<f64>())
                else {
                    continue;
                };
                match buckets.iter_mut().find(|(b, _)| *b == bound) {
                    Some((_, sum)) => *sum += count,
                    None => buckets.push((bound, count)),
                }
            }
            buckets
        };
        Ok((!texts.is_empty()).then(|| Self(Self::FAMILIES.iter().map(|(name, f)| (*name, of(f))).collect())))
    }

    /// The upper bound of the bucket in which the 99th percentile of what happened in between lies.
    fn since(&self, before: &Self, figures: &mut Figures) {
        for ((name, after), (_, before)) in self.0.iter().zip(&before.0) {
            let counts: Vec<(f64, f64)> =
                after.iter().zip(before).map(|((bound, a), (_, b))| (*bound, a - b)).collect();
            let all = counts.last().map_or(0.0, |(_, n)| *n);
            let bound = counts.iter().find(|(_, n)| *n >= all * 0.99).map(|(bound, _)| *bound);
            if let Some(bound) = bound.filter(|b| all > 0.0 && b.is_finite()) {
                figures.insert((*name).into(), bound * 1e6);
            }
        }
    }
}

/// Runs an attack and gives its strength: connections or handshakes a second, or Gbit/s.
fn flood(rig: &Rig, lines: &Lines, attack: Attack, apart: bool, seconds: u64) -> Result<f64> {
    let path = if apart { &lines.control } else { &lines.attack };
    let strength = match attack {
        Attack::Connections => {
            let url = format!("http://{}:{}/1k", path.ip, path.http);
            let dir = rig.sandbox.dir();
            let load = Wrk { url, connections: 64, threads: 1, seconds, close: true, mix: &[], dir }
                .run(&path.client)?;
            load.requests as f64 / load.seconds
        }
        Attack::Handshakes => {
            // From a pod outside the mesh in both cases: an enrolled pod's connections would be captured.
            let target = if apart { lines.control.ip } else { lines.attacked };
            handshakes(&lines.control.client, target, seconds)?
        }
        Attack::Bulk => {
            let load = iperf(&path.client, &path.ip.to_string(), IPERF, &["-P4"], seconds)?;
            load.bytes as f64 * 8.0 / 1e9 / load.seconds
        }
        Attack::HalfSent(at) => {
            let kind = ["half-sent", "--connections", "1000"];
            hostile(lines.target(at, apart, (80, EDGE.0, HTTP)), &kind, seconds)?
        }
        Attack::Windows(at) => {
            let kind = ["windows", "--connections", "20", "--streams", "200"];
            hostile(lines.target(at, apart, (H2C_SERVICE, EDGE.1, H2C)), &kind, seconds)?
        }
        Attack::Resets(at, pause) => {
            let kind = ["resets", "--connections", "8", "--pause-ms", &pause.to_string()];
            hostile(lines.target(at, apart, (H2C_SERVICE, EDGE.1, H2C)), &kind, seconds)?
        }
        Attack::Datagrams => {
            let to = lines.target(At::Edge, apart, (0, EDGE.2, SINK));
            hostile(to, &["datagrams", "--rate", "5000"], seconds)?
        }
    };
    if strength <= 0.0 {
        bail!("the attack reached nothing");
    }
    Ok(strength)
}

impl Lines {
    /// Whence and whereto a flood goes: a Service's port, the Gateway's, or the pod's that stands outside. What attacks a
    /// Gateway is outside the mesh, as the control is.
    fn target(&self, at: At, apart: bool, (service, edge, pod): (u16, u16, u16)) -> (&Place, SocketAddr) {
        let outside = &self.control.client;
        match (apart, at) {
            (true, _) => (outside, (self.control.ip, pod).into()),
            (false, At::Edge) => (outside, (self.edge, edge).into()),
            (false, At::Mesh) if service == H2C_SERVICE => (&self.attack.client, (self.h2c, service).into()),
            (false, At::Mesh) => (&self.attack.client, (self.attack.ip, service).into()),
        }
    }
}

/// A flood of our own, in units a second.
fn hostile((from, to): (&Place, SocketAddr), kind: &[&str], seconds: u64) -> Result<f64> {
    let (to, time) = (to.to_string(), seconds.to_string());
    let args = [&["flood", "--target", &to, "--seconds", &time][..], kind].concat();
    let load: Load = own(from, &args, Duration::from_secs(seconds + 60))?;
    Ok(load.requests as f64 / load.seconds)
}

fn handshakes(client: &Place, target: Ipv4Addr, seconds: u64) -> Result<f64> {
    let (target, time) = (format!("{target}:{HBONE}"), seconds.to_string());
    let args = ["handshakes", "--target", &target, "--connections", "32", "--seconds", &time, "--no-request"];
    let load: Load = own(client, &args, Duration::from_secs(seconds + 60))?;
    Ok(load.requests as f64 / load.seconds)
}
