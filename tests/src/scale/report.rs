//! What was found, as a page.

use super::{Args, effect::Times, pods::Sample, world::Sort, writes::Count};
use std::{collections::BTreeMap, fmt::Write as _, fs, time::Duration};

/// Everything that was measured.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) checks: Vec<Check>,
    /// A second.
    pub(super) alone_creates: f64,
    pub(super) alone_patches: f64,
    pub(super) services_created: Duration,
    /// After the last was created.
    pub(super) services_known: Duration,
    pub(super) cost_of_services: Vec<Cost>,
    pub(super) sorts: BTreeMap<Sort, usize>,
    pub(super) routes_created: Duration,
    /// Routes that were right when the last was created.
    pub(super) right_at_last: usize,
    /// After the last was created.
    pub(super) complete: Duration,
    pub(super) attached: Duration,
    pub(super) cost_of_routes: Vec<Cost>,
    /// MiB by pod while routes were created.
    pub(super) peaks: BTreeMap<String, f64>,
    pub(super) writes: BTreeMap<String, Count>,
    pub(super) effect_before: Times,
    pub(super) effect: Times,
    pub(super) effect_endpoints: Times,
    pub(super) restarted: Duration,
    pub(super) removed: Duration,
    pub(super) shrunk: Duration,
    pub(super) empty: Vec<Sample>,
    pub(super) loaded: Vec<Sample>,
    pub(super) full: Vec<Sample>,
    pub(super) removed_samples: Vec<Sample>,
}

/// Something that must hold.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) what: &'static str,
    pub(super) holds: bool,
    pub(super) found: String,
}

/// What one pod has spent.
#[derive(Clone, Debug)]
pub(super) struct Cost {
    who: String,
    /// Seconds of CPU, and of time.
    cpu: f64,
    wall: f64,
    updates: f64,
    /// Seconds by stage.
    stages: [f64; 3],
}

const STAGES: [&str; 3] = ["resolve", "tell", "serve"];

/// What every pod has spent between two samples.
pub(super) fn cost(before: &[Sample], after: &[Sample], wall: Duration) -> Vec<Cost> {
    let one = |now: &Sample| {
        let then = before.iter().find(|b| b.pod == now.pod)?;
        let spent = |series: &str| now.get(series) - then.get(series);
        let stage = |stage: &str| spent(&format!("weft_config_update_seconds_total{{stage=\"{stage}\"}}"));
        Some(Cost {
            who: now.who.clone(),
            cpu: now.cpu() - then.cpu(),
            wall: wall.as_secs_f64(),
            updates: spent("weft_config_updates_total"),
            stages: STAGES.map(stage),
        })
    };
    after.iter().filter_map(one).collect()
}

impl Figures {
    pub(super) fn found(&mut self, what: &'static str, holds: bool, found: String) {
        println!("   {}: {what}: {found}", if holds { "yes" } else { "NO" });
        self.checks.push(Check { what, holds, found });
    }

    pub(super) fn check(&mut self, what: &'static str, result: Result<(), String>) {
        let holds = result.is_ok();
        self.found(what, holds, result.err().unwrap_or_else(|| "all".to_owned()));
    }
}

/// The page.
pub(super) fn markdown(figures: &Figures, args: &Args) -> String {
    let mut out = String::new();
    let o = &mut out;
    let _ = writeln!(o, "# Scale\n\nWritten by `./dev scale`; see [what it does](#what-it-does).\n");
    let _ = writeln!(o, "{}\n", place(args));
    checks(figures, o);
    statuses(figures, args, o);
    effects(figures, o);
    costs(figures, o);
    let _ = writeln!(o, "{EXPLANATION}");
    out
}

fn checks(figures: &Figures, o: &mut String) {
    let _ = writeln!(o, "| must hold | | found |\n|---|---|---|");
    for check in &figures.checks {
        let found = if check.found.len() > 300 { "see below" } else { &check.found };
        let _ = writeln!(o, "| {} | {} | {found} |", check.what, if check.holds { "yes" } else { "**no**" });
    }
}

fn statuses(figures: &Figures, args: &Args, o: &mut String) {
    let _ = writeln!(o, "\n## Statuses\n\n| | |\n|---|---|");
    let mut row = |what: &str, value: String| {
        let _ = writeln!(o, "| {what} | {value} |");
    };
    if figures.alone_creates > 0.0 {
        row("the API server alone, creating routes", format!("{:.0} a second", figures.alone_creates));
        row("the API server alone, status writes", format!("{:.0} a second", figures.alone_patches));
    }
    let rate = |n: usize, took: Duration| {
        format!("{:.1} s ({:.0} a second)", took.as_secs_f64(), n as f64 / took.as_secs_f64())
    };
    row(
        &format!("{} Services and as many EndpointSlices created in", args.services),
        rate(args.services * 2, figures.services_created),
    );
    row("known to every agent and controller after the last", seconds(figures.services_known));
    row(&format!("{} routes created in", args.routes), rate(args.routes, figures.routes_created));
    row("right by then", figures.right_at_last.to_string());
    row("**all complete and correct after the last**", format!("**{}**", seconds(figures.complete)));
    row("attachedRoutes exact after the last", seconds(figures.attached));
    row("a new leader after `rollout restart`, everything compared", seconds(figures.restarted));
    row("everything deleted in", seconds(figures.removed));
    row("and gone from every Config after", seconds(figures.shrunk));
    let sorts: Vec<_> = figures.sorts.iter().map(|(sort, n)| format!("{n} {sort:?}")).collect();
    let _ = writeln!(o, "\nThe routes: {}.\n", sorts.join(", "));
    let _ = writeln!(
        o,
        "| status writes while routes were created | objects | writes | most of one |\n|---|---|---|---|"
    );
    for (resource, count) in &figures.writes {
        let _ = writeln!(o, "| {resource} | {} | {} | {} |", count.objects, count.writes, count.most);
    }
}

fn effects(figures: &Figures, o: &mut String) {
    let _ = writeln!(
        o,
        "\n## From change to effect\n\nMilliseconds until the first request that the new backend answers.\n"
    );
    let _ = writeln!(
        o,
        "| | changes | from | p50 | p90 | p99 | max | requests failed |\n|---|---|---|---|---|---|---|---|"
    );
    let rows = [
        ("a route's backends, without much else", &figures.effect_before),
        ("a route's backends, beside all", &figures.effect),
        ("a Service's endpoint, beside all", &figures.effect_endpoints),
    ];
    for (what, times) in rows {
        for (from, values) in
            [("the API's answer", &times.from_answer), ("the request to the API", &times.from_send)]
        {
            let [p50, p90, p99, max] = Times::spread(values);
            let n = values.len();
            let _ = writeln!(
                o,
                "| {what} | {n} | {from} | {p50:.1} | {p90:.1} | {p99:.1} | {max:.1} | {} |",
                times.bad
            );
        }
    }
}

fn costs(figures: &Figures, o: &mut String) {
    let _ = writeln!(
        o,
        "\n## Cost\n\n| memory, MiB | empty | peak | loaded | after the edits | all removed |\n|---|---|---|---|---|---|"
    );
    for sample in &figures.empty {
        let of = |all: &[Sample]| {
            all.iter().find(|s| s.who == sample.who).map_or("–".to_owned(), |s| format!("{:.0}", s.mib()))
        };
        let peak = figures.peaks.get(&sample.pod).map_or("–".to_owned(), |p| format!("{p:.0}"));
        let _ = writeln!(
            o,
            "| {} | {:.0} | {peak} | {} | {} | {} |",
            sample.who,
            sample.mib(),
            of(&figures.loaded),
            of(&figures.full),
            of(&figures.removed_samples)
        );
    }
    let _ = writeln!(
        o,
        "\n| while | who | CPU, s | of, s | updates | resolve, ms each | tell, ms each | serve, ms each |\n|---|---|---|---|---|---|---|---|"
    );
    for (what, costs) in [("Services", &figures.cost_of_services), ("routes", &figures.cost_of_routes)] {
        for cost in costs {
            let each = cost.stages.map(|s| s * 1e3 / cost.updates.max(1.0));
            let _ = writeln!(
                o,
                "| {what} | {} | {:.1} | {:.1} | {} | {:.2} | {:.2} | {:.2} |",
                cost.who, cost.cpu, cost.wall, cost.updates, each[0], each[1], each[2]
            );
        }
    }
}

fn seconds(took: Duration) -> String {
    format!("{:.1} s", took.as_secs_f64())
}

/// Machine, date, commit.
fn place(args: &Args) -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|l| l.strip_prefix("model name")).and_then(|l| l.split_once(':'));
    let cores = cpu.lines().filter(|l| l.starts_with("processor")).count();
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory
        .lines()
        .find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "{}, {cores} cores, {} GiB, Linux {}; {}; commit {}. Everything runs on this one machine: etcd, the API server and \
         its clients, two nodes with their kubelets and proxies, Weft, and the program that measures.",
        model.map_or("unknown processor", |(_, m)| m.trim()),
        kib.unwrap_or(0) / (1 << 20),
        kernel.trim(),
        jiff::Zoned::now().strftime("%Y-%m-%d %H:%M %Z"),
        if args.commit.is_empty() { "unknown" } else { &args.commit },
    )
}

const EXPLANATION: &str = "
## What it does

- Routes of nine sorts (`tests/src/scale/world.rs`), a sixth of them wrong on purpose, created 32 at a time after their
  Services. Each must have exactly the expected entries and conditions, with its generation; watched, and in the end listed.
- Status writes are counted in the API server's audit log: those that succeeded, by Weft's service accounts. A Gateway is
  written whenever `attachedRoutes` of a listener has changed, at most once a second.
- A client on one node calls a Service 500 times a second over one connection, two servers run on the other node. The
  client prints when another server answers than before, by the machine's one clock, so what is seen is up to 2 ms late.
  A negative time means that the agent knew before the API server's answer had reached the writer.
- `resolve` is what the engine does for a change (difference, resolution, tables, statuses), `tell` who is enrolled and
  remarks about the world, `serve` in an agent listeners and addresses, in a controller what is to be written.
";
