//! Connections that lie idle for hours, through two nodes: what is left of each kind, as a table.
//!
//! What each timer does is tested under a paused clock (the table in ARCHITECTURE.md); here the kernel, its conntrack and
//! other people's clients have their say.

use crate::{LIMIT, Mesh, client_script, python};
use anyhow::{Context, Result, ensure};
use std::{collections::BTreeMap, fmt::Write as _, path::PathBuf, process::ExitCode, time::Duration};
use weft::sandbox::{Pod, Sandbox};

/// `weft-idle`.
#[derive(Debug, clap::Parser)]
pub struct Args {
    /// How long connections are left alone
    #[arg(long, default_value_t = 2.0)]
    hours: f64,
    /// The same in minutes, instead of --hours
    #[arg(long)]
    minutes: Option<f64>,
    /// Connections of each kind
    #[arg(long, default_value_t = 20)]
    each: u32,
    /// Commit to name in the table
    #[arg(long)]
    commit: String,
    /// Where the table goes
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/cluster/IDLE.md"))]
    out: PathBuf,
}

/// Ports of the quiet servers, and of those of `weft echo` beside them.
const WEBSOCKET: u16 = 8765;
const GRPC: u16 = 50_051;
const LATE: u16 = 8081;
/// What an HTTP connection between requests may last.
const KEPT: Duration = Duration::from_secs(600);

/// A kind of connection and how it is carried.
struct Kind {
    what: &'static str,
    way: &'static str,
    /// As `clients/idle.py` takes it.
    order: String,
    /// What must have become of every connection.
    expected: &'static str,
}

/// What became of the connections of one kind.
type Counts = BTreeMap<String, u32>;

/// Leaves connections alone and writes what became of them. Exit code 1 when one was lost that must not be.
///
/// # Errors
/// When the mesh cannot be made, or a connection does not work even before.
pub fn run(args: &Args) -> Result<ExitCode> {
    let quiet = Duration::from_secs_f64(args.minutes.map_or(args.hours * 3600.0, |minutes| minutes * 60.0));
    let mut mesh = Mesh::new()?;
    let (web, stranger) = (mesh.pod(0, "web-1")?, mesh.pod_in(0, "outside", "stranger")?);
    let (cart, external) = (mesh.echo_pod(1, "cart-1")?, mesh.external()?);
    serve(&mut mesh, &cart, quiet)?;
    mesh.serve_echo(&external)?;
    let kinds = kinds(&mut mesh, &cart, &external, quiet)?;
    let inbound = [Kind {
        what: "raw TCP, echoed once",
        way: "from a pod outside the mesh, in clear",
        order: format!("tcp,{},9000", cart.ip),
        expected: "works",
    }];
    ready(&mesh, &web, &kinds)?;
    ready(&mesh, &stranger, &inbound)?;
    println!("{} connections of each of {} kinds, quiet for {quiet:?}", args.each, kinds.len() + 1);
    let before = memory(&mut mesh)?;
    let (inside, outside) = std::thread::scope(|scope| {
        let outside = scope.spawn(|| used(&mesh, &stranger, &inbound, quiet, args.each));
        (used(&mesh, &web, &kinds, quiet, args.each), outside.join().expect("the stranger's thread"))
    });
    let (inside, outside) = (inside?, outside?);
    let after = memory(&mut mesh)?;
    let all: Vec<_> = kinds.iter().zip(inside).chain(inbound.iter().zip(outside)).collect();
    let report = report(args, quiet, &all, [before, after]);
    print!("{report}");
    std::fs::write(&args.out, report)?;
    let lost = all.iter().any(|(kind, counts)| counts.keys().any(|became| became != kind.expected));
    Ok(if lost { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn serve(mesh: &mut Mesh, pod: &Pod, quiet: Duration) -> Result<()> {
    let (python, script) = (python()?, client_script("idle.py"));
    let (ws, grpc) = (WEBSOCKET.to_string(), GRPC.to_string());
    mesh.serve(pod, "quiet", &[&python, &script, "serve", &ws, &grpc], GRPC)?;
    let weft = mesh.sandbox.weft()?;
    let (late, after) = (LATE.to_string(), quiet.as_millis().to_string());
    let argv =
        [weft.to_str().context("path")?, "echo", "--name", "late", "--http", &late, "--answer-after", &after];
    mesh.serve(pod, "late", &argv, LATE)
}

fn kinds(mesh: &mut Mesh, cart: &Pod, external: &Pod, quiet: Duration) -> Result<Vec<Kind>> {
    let ports = [
        ("tcp", 1, 9000, "tcp"),
        ("sniffed", 2, 9000, ""),
        ("http", 3, 8080, "http"),
        ("late", 4, LATE, "http"),
        ("ws", 5, WEBSOCKET, "kubernetes.io/ws"),
        ("grpc", 6, GRPC, "grpc"),
        ("bytes", 7, GRPC, "tcp"),
    ];
    let ip = mesh.service("cart", &ports, &[cart])?;
    let kind = |what, way, kind: &str, to: String| Kind {
        what,
        way,
        order: format!("{kind},{to}"),
        expected: "works",
    };
    let tunnel = "a Service's tunnel";
    let kept = if quiet < KEPT { "works" } else { "closed in order" };
    Ok(vec![
        kind("raw TCP, echoed once", "a Service's tunnel, declared opaque", "tcp", format!("{ip},1")),
        kind("raw TCP, echoed once", "a Service's tunnel, sniffed", "tcp", format!("{ip},2")),
        kind("raw TCP, echoed once", "a pod's tunnel", "tcp", format!("{},9000", cart.ip)),
        kind(
            "raw TCP, echoed once",
            "to an external machine, in clear",
            "tcp",
            format!("{},9000", external.ip),
        ),
        Kind { expected: kept, ..kind("HTTP/1.1 between requests", tunnel, "http", format!("{ip},3")) },
        kind("an HTTP request whose answer takes as long", tunnel, "late", format!("{ip},4")),
        kind("a WebSocket without pings", tunnel, "ws", format!("{ip},5")),
        kind("a gRPC stream without pings", tunnel, "grpc", format!("{ip},6")),
        kind("a gRPC stream without pings", "a Service's tunnel, declared opaque", "grpc", format!("{ip},7")),
    ])
}

/// Waits until everything is served. An order whose answer takes as long as the test is not tried.
fn ready(mesh: &Mesh, pod: &Pod, kinds: &[Kind]) -> Result<()> {
    let orders: Vec<_> = kinds.iter().map(|k| &*k.order).filter(|order| !order.starts_with("late")).collect();
    let (python, script) = (python()?, client_script("idle.py"));
    let argv = [&[&*python, &script, "use", "0", "1"][..], &orders].concat();
    let mut last = String::new();
    Sandbox::wait_until("everything to be served", LIMIT, || {
        let said = mesh.sandbox.exec(pod, &argv, LIMIT);
        last = format!("{said:?}");
        said.is_ok_and(|said| said.code == 0)
    })
    .with_context(|| last)
}

fn used(mesh: &Mesh, pod: &Pod, kinds: &[Kind], quiet: Duration, each: u32) -> Result<Vec<Counts>> {
    let (python, script) = (python()?, client_script("idle.py"));
    let (seconds, each) = (quiet.as_secs_f64().to_string(), each.to_string());
    let mut argv = vec![&*python, &script, "use", &seconds, &each];
    argv.extend(kinds.iter().map(|kind| &*kind.order));
    let said = mesh.sandbox.exec(pod, &argv, quiet + LIMIT * 10)?.ok()?;
    let counts: Vec<Counts> =
        serde_json::from_str(&said).with_context(|| format!("idle.py printed {said}"))?;
    ensure!(counts.len() == kinds.len(), "{} counts for {} kinds", counts.len(), kinds.len());
    Ok(counts)
}

/// Resident memory of both agents, in MiB.
fn memory(mesh: &mut Mesh) -> Result<[u64; 2]> {
    let mut of = |node: usize| -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", mesh.sandbox.agent(node)?.pid()))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS")).context("VmRSS")?;
        Ok(line.split_whitespace().nth(1).context("kB")?.parse::<u64>()? / 1024)
    };
    Ok([of(0)?, of(1)?])
}

fn report(args: &Args, quiet: Duration, all: &[(&Kind, Counts)], memory: [[u64; 2]; 2]) -> String {
    let [before, after] = memory;
    let minutes = quiet.as_secs_f64() / 60.0;
    let mut text = format!(
        "# Connections that lie idle\n\nWritten by `./dev soak idle`. Commit {}; {} connections of each kind between two nodes, used once, left alone \
         for {minutes:.0} minutes, used again.\nResident memory of the two agents: {} and {} MiB before, {} and {} MiB after.\n\n\
         | connection | way | expected | became |\n|---|---|---|---|\n",
        args.commit, args.each, before[0], before[1], after[0], after[1]
    );
    for (kind, counts) in all {
        let became: Vec<_> = counts.iter().map(|(became, count)| format!("{count} × {became}")).collect();
        let _ =
            writeln!(text, "| {} | {} | {} | {} |", kind.what, kind.way, kind.expected, became.join(", "));
    }
    text
}
