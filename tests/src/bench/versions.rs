//! `weft-bench versions`: an older build and this one, run in pairs, so that what the machine does by the way meets both alike.
//! Judged by the 95 % interval of the ratio, not by its middle; beside it instructions and allocations, counted.

mod count;
mod interval;

use super::{
    Options, finish,
    gateway::Bench,
    mesh::{self, Party},
    peers::Who,
    results::{Row, Suite},
    rig::{Path, Rig},
};
use anyhow::{Context as _, Result};
use interval::{Interval, interval};
use std::{fmt::Write as _, path::PathBuf, process::ExitCode};
use weft::sandbox::Process;

/// Names of the two in a row's samples.
const OLD: &str = "old";
const NEW: &str = "new";
/// The most that this build may cost of what the older one did, where it is to be the same.
const SAME: f64 = 1.03;
/// An interval that reaches further to each side says nothing.
const USEFUL: f64 = 0.03;
/// Kept connections, new ones, bytes; at a Gateway and in the mesh.
const SCENARIOS: &[&str] = &[
    "gateway/h1-128",
    "gateway/tls-handshake",
    "mesh/http-1k-64",
    "mesh/http-64k-16",
    "mesh/newconn-16",
    "mesh/newconn-opaque-16",
];

/// `weft-bench versions`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct VersionsArgs {
    /// Directory with the older build's `weft` and `weft-cni` (`./dev bench versions --old COMMIT` builds them)
    #[arg(long)]
    old: PathBuf,
    /// What the older build is called in the report
    #[arg(long, default_value = "-")]
    old_name: String,
    /// Pairs of runs; fewer than 15 seldom give a result
    #[arg(long, default_value_t = 15)]
    pairs: u32,
    /// Also count instructions and allocations of the agents by valgrind; slow, and the same on a busy machine
    #[arg(long)]
    count: bool,
    /// Measure no time: only count
    #[arg(long, requires = "count")]
    only_count: bool,
    /// Scenarios, as SUITE/NAME
    #[arg(default_values = SCENARIOS)]
    scenarios: Vec<String>,
}

/// Measures both builds. The exit code is 1 when a scenario failed, or this build surely costs more than the older one.
///
/// # Errors
/// When a build cannot be started, or a scenario is unknown.
pub(super) fn run(options: &Options, args: &VersionsArgs) -> Result<ExitCode> {
    let builds =
        [args.old.join("weft").canonicalize().context("--old")?, crate::weft_binary()?.canonicalize()?];
    let mut rows = Vec::new();
    if !args.only_count {
        let (mut gateway, mut meshes) = (Vec::new(), Vec::new());
        for name in &args.scenarios {
            match name.split_once('/') {
                Some(("gateway", name)) => gateway.push(name),
                Some(("mesh", name)) => {
                    meshes.push(mesh::scenario(name).with_context(|| format!("no scenario mesh/{name}"))?);
                }
                _ => anyhow::bail!("a scenario is gateway/NAME or mesh/NAME: see `weft-bench list`"),
            }
        }
        for name in gateway {
            rows.push(gateways(options, args.pairs, name, &builds)?);
        }
        if !meshes.is_empty() {
            let mut sides = [Side::new(&builds[0])?, Side::new(&builds[1])?];
            for scenario in meshes {
                rows.push(in_mesh(options, args.pairs, scenario, &mut sides));
            }
        }
    }
    if args.count {
        rows.extend(count::run(&builds)?);
    }
    let worse = rows.iter().filter_map(judged).any(|(_, _, interval)| interval.low > SAME);
    let options = Options { rounds: args.pairs, ..options.clone() };
    let code = finish(&options, ("versions", &args.old_name), rows)?;
    Ok(if worse { ExitCode::FAILURE } else { code })
}

/// The older first in one pair, second in the next: what grows or shrinks by itself meets both.
fn turns(pair: u32) -> [usize; 2] {
    if pair.is_multiple_of(2) { [0, 1] } else { [1, 0] }
}

fn gateways(options: &Options, pairs: u32, name: &str, builds: &[PathBuf; 2]) -> Result<Row> {
    let side = |build: &PathBuf| -> Result<(Bench<'_>, Process)> {
        let bench =
            Bench::of(name, options, build)?.with_context(|| format!("no scenario gateway/{name}"))?;
        let process = bench.start(Who::Weft)?.context("nothing to measure")?;
        Ok((bench, process))
    };
    // A process ends before the namespace that it is in: fields are dropped in order.
    let sides = [side(&builds[0])?, side(&builds[1])?].map(|(bench, process)| (process, bench));
    let mut row = sides[0].1.row();
    eprintln!("versions gateway/{name}: {}", row.title);
    for pair in 0..pairs {
        for index in turns(pair) {
            let (process, bench) = &sides[index];
            bench.once(&mut row, (Who::Weft, [OLD, NEW][index]), Some(process), pair == 0);
        }
        even(&mut row);
    }
    Ok(row)
}

/// A mesh of two nodes with agents of one build.
struct Side {
    path: Path,
    rig: Rig,
}

impl Side {
    fn new(build: &std::path::Path) -> Result<Self> {
        let mut rig = Rig::of(Some(build))?;
        let client = rig.pod(0, "shop", "client")?;
        let path = rig.path("shop", &client, "server")?;
        Ok(Self { path, rig })
    }
}

fn in_mesh(options: &Options, pairs: u32, scenario: &mesh::Scenario, sides: &mut [Side; 2]) -> Row {
    let mut row = scenario.row();
    eprintln!("versions mesh/{}: {}", row.name, row.title);
    for pair in 0..pairs {
        for index in turns(pair) {
            let Side { path, rig } = &mut sides[index];
            if pair == 0 && !options.quick {
                mesh::warm(rig, path, scenario);
            }
            let party = Party { name: [OLD, NEW][index], path, agents: &rig.agents };
            mesh::once(rig, &mut row, &party, scenario, options);
            rig.tidy(&mut row);
        }
        even(&mut row);
    }
    row
}

/// A run without its partner is no pair.
fn even(row: &mut Row) {
    let count = |row: &Row, who: &str| row.samples.get(who).map_or(0, Vec::len);
    let least = count(row, OLD).min(count(row, NEW));
    row.samples.values_mut().for_each(|samples| samples.truncate(least));
}

/// What the pairs say of a row: the figure, its unit, the interval.
fn judged(row: &Row) -> Option<(&'static str, &'static str, Interval)> {
    let (old, new) = (row.samples.get(OLD)?, row.samples.get(NEW)?);
    [("cpu_us", "CPU, µs"), ("cpu_gb", "CPU, s/GB")].into_iter().find_map(|(figure, unit)| {
        let pairs: Vec<(f64, f64)> =
            old.iter().zip(new).filter_map(|(o, n)| Some((*o.get(figure)?, *n.get(figure)?))).collect();
        Some((figure, unit, interval(&pairs)?))
    })
}

fn verdict(interval: &Interval) -> &'static str {
    if interval.half_width() > USEFUL {
        "no result"
    } else if interval.high <= 0.9 {
        "at least 10 % cheaper"
    } else if interval.high < 1.0 {
        "cheaper"
    } else if interval.high <= SAME {
        "within 3 %"
    } else if interval.low > SAME {
        "**dearer**"
    } else {
        "**not within 3 %**"
    }
}

/// The tables in Markdown.
pub(super) fn tables(suite: &Suite) -> String {
    let mut text = format!("The older build is {}.\n\n", suite.against);
    let timed: Vec<_> = suite.rows.iter().filter_map(|row| Some((row, judged(row)?))).collect();
    if !timed.is_empty() {
        text.push_str(
            "### CPU per request or connection (geometric mean of the pairs' ratios, with its 95 % interval)\n\n\
             | scenario | what | old | new | pairs | new ÷ old | 95 % | |\n|---|---|---:|---:|---:|---:|---:|---|\n",
        );
    }
    for (row, (figure, unit, interval)) in timed {
        let median = |who| row.spread(who, figure).map_or(0.0, |s| s.median);
        let _ = writeln!(
            text,
            "| {} | {unit} | {:.2} | {:.2} | {} | **{:.3}** | {:.3}–{:.3} | {} |",
            row.title,
            median(OLD),
            median(NEW),
            interval.pairs,
            interval.ratio,
            interval.low,
            interval.high,
            verdict(&interval)
        );
    }
    text.push_str(&count::table(&suite.rows));
    for row in &suite.rows {
        for failure in &row.failures {
            let _ =
                writeln!(text, "\n**Failed**, {}: {}", row.name, failure.lines().next().unwrap_or_default());
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::results::Figures;

    fn row(pairs: &[(f64, f64)]) -> Row {
        let mut row = Row::new("http-1k-64", "HTTP");
        for (old, new) in pairs {
            row.add(OLD, Figures::from([("cpu_us".into(), *old)]));
            row.add(NEW, Figures::from([("cpu_us".into(), *new)]));
        }
        row
    }

    fn check(ratio: f64, noise: f64, expected: &str) {
        let pairs: Vec<_> =
            (0..15).map(|n| (50.0, 50.0 * ratio * (1.0 + noise * (f64::from(n % 5) - 2.0)))).collect();
        let (_, _, interval) = judged(&row(&pairs)).expect("pairs");
        assert_eq!(verdict(&interval), expected, "{interval:?}");
    }

    #[test]
    fn a_version_is_judged_by_the_end_of_the_interval() {
        check(1.0, 0.01, "within 3 %");
        check(0.97, 0.01, "cheaper");
        check(0.85, 0.01, "at least 10 % cheaper");
        check(1.06, 0.01, "**dearer**");
        check(1.025, 0.01, "**not within 3 %**");
        check(0.8, 0.1, "no result");
    }

    #[test]
    fn a_run_without_its_partner_is_no_pair() {
        let mut row = row(&[(1.0, 1.0), (1.0, 1.0)]);
        row.add(NEW, Figures::from([("cpu_us".into(), 9.0)]));
        even(&mut row);
        assert_eq!((row.samples[OLD].len(), row.samples[NEW].len()), (2, 2));
        assert_eq!((turns(0), turns(1), turns(2)), ([0, 1], [1, 0], [0, 1]));
    }

    #[test]
    fn the_table_says_both_the_ratio_and_what_it_means() {
        let suite = Suite {
            against: "b0e2a24".into(),
            rows: vec![row(&[(50.0, 45.0), (50.2, 45.1), (49.9, 45.0)])],
            ..Suite::default()
        };
        let text = tables(&suite);
        assert!(text.contains("The older build is b0e2a24."), "{text}");
        assert!(text.contains("| HTTP | CPU, µs | 50.00 | 45.00 | 3 | **0.900** |"), "{text}");
    }
}
