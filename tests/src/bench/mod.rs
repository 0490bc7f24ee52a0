//! The measurements behind `tests/bench/RESULTS.md`: gateway, mesh and fairness, each against something in the same run.

mod fairness;
mod floods;
mod foreign;
mod gateway;
mod load;
mod mesh;
mod peers;
mod perf;
mod place;
mod proc;
mod report;
mod results;
mod rig;
mod tools;
mod versions;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use peers::Who;
use results::{Figures, Measured, Row, Suite};
use std::{
    path::PathBuf,
    process::{Command, ExitCode},
    time::Duration,
};

/// Measure Weft against direct connections, Envoy, nginx and HAProxy.
#[derive(Debug, Parser)]
#[command(
    name = "weft-bench",
    after_help = "Usually run by `./dev bench`, which builds and installs what is needed."
)]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    command: What,
    /// How to measure
    #[command(flatten)]
    options: Options,
}

/// How to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Rounds; participants take turns in a new shuffled order in each
    #[arg(long, global = true, default_value_t = 5)]
    rounds: u32,
    /// Seconds of each run
    #[arg(long, global = true, default_value_t = 4)]
    seconds: u64,
    /// Seed of the order
    #[arg(long, global = true, default_value_t = 1)]
    seed: u64,
    /// Who takes part; `direct` is the reference of the mesh suite too
    #[arg(long, global = true, value_delimiter = ',', default_values_t = Who::ALL)]
    who: Vec<Who>,
    /// A smoke run of about a minute: one round, one second, fewer scenarios, no waiting for quiet; the figures mean nothing
    #[arg(long, global = true)]
    quick: bool,
    /// Do not wait until other programs are quiet
    #[arg(long, global = true)]
    no_quiet: bool,
    /// Where raw results go
    #[arg(long, global = true, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/out"))]
    out: PathBuf,
    /// Also record where weft spends its time in h1-128 and mesh http-1k-64 (needs perf)
    #[arg(long, global = true)]
    profile_hot_path: bool,
}

#[derive(Clone, Debug, Subcommand)]
enum What {
    /// Everything, and the report
    All,
    /// Proxies in front of one backend
    Gateway {
        /// Scenarios; all when left out. A name without `-wN` means every number of workers
        scenarios: Vec<String>,
    },
    /// Two nodes with an agent each, against the same wires without
    Mesh {
        /// Scenarios; all when left out
        scenarios: Vec<String>,
    },
    /// One pod's latency beside another pod's flood
    Fairness {
        /// Scenarios; all when left out
        scenarios: Vec<String>,
    },
    /// An older build and this one in turns, judged by the interval of the ratio
    Versions(versions::VersionsArgs),
    /// Write RESULTS.md from the raw results
    Report {
        /// Where to
        #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/RESULTS.md"))]
        file: PathBuf,
    },
    /// Names and titles of all scenarios
    List,
    /// Our own load programs
    #[command(subcommand, hide = true)]
    Tool(tools::Tool),
}

/// Runs the command. The exit code is 1 when a scenario failed.
///
/// # Errors
/// When nothing could be measured.
pub fn run(args: Args) -> Result<ExitCode> {
    let mut options = args.options;
    if options.quick {
        (options.rounds, options.seconds, options.no_quiet) = (1, 1, true);
    }
    raise_file_limit()?;
    match args.command {
        What::Tool(tool) => tools::run(tool).map(|()| ExitCode::SUCCESS),
        What::List => {
            for (suite, list) in
                [("gateway", gateway::list()), ("mesh", mesh::list()), ("fairness", fairness::list())]
            {
                for (name, title) in list {
                    println!("{suite:9} {name:22} {title}");
                }
            }
            Ok(ExitCode::SUCCESS)
        }
        What::Report { file } => report::write(&options.out, &file).map(|()| ExitCode::SUCCESS),
        What::Gateway { scenarios } => finish(&options, ("gateway", ""), gateway::run(&options, &scenarios)?),
        What::Mesh { scenarios } => finish(&options, ("mesh", ""), mesh::run(&options, &scenarios)?),
        What::Fairness { scenarios } => {
            finish(&options, ("fairness", ""), fairness::run(&options, &scenarios)?)
        }
        What::Versions(args) => versions::run(&options, &args),
        What::All => {
            let codes = [
                finish(&options, ("gateway", ""), gateway::run(&options, &[])?)?,
                finish(&options, ("mesh", ""), mesh::run(&options, &[])?)?,
                finish(&options, ("fairness", ""), fairness::run(&options, &[])?)?,
            ];
            Ok(codes.into_iter().find(|c| *c != ExitCode::SUCCESS).unwrap_or(ExitCode::SUCCESS))
        }
    }
}

/// Prints a suite's tables, writes its raw results, and judges it: every participant must have figures, none failures.
fn finish(options: &Options, (name, against): (&str, &str), rows: Vec<Row>) -> Result<ExitCode> {
    ensure!(!rows.is_empty(), "no scenario of that name in {name}: see `weft-bench list`");
    let suite = Suite {
        date: output("date", &["-u", "+%Y-%m-%d %H:%M"]),
        commit: output("git", &["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty"]),
        against: against.into(),
        rounds: options.rounds,
        seconds: options.seconds,
        rows,
    };
    std::fs::create_dir_all(&options.out)?;
    suite.write(&options.out.join(format!("{name}.json")))?;
    println!("\n{}", report::tables(name, &suite));
    let failures: Vec<String> =
        suite.rows.iter().flat_map(|r| r.failures.iter().map(move |f| format!("{}: {f}", r.name))).collect();
    for failure in &failures {
        eprintln!("FAILED {name} {failure}");
    }
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Options {
    /// Whether the scenario `name` is asked for.
    fn wants(names: &[String], name: &str) -> bool {
        let stem = name.rsplit_once("-w").map_or(name, |(stem, _)| stem);
        names.is_empty() || names.iter().any(|n| n == name || n == stem)
    }

    fn takes_part(&self, who: Who) -> bool {
        self.who.contains(&who)
    }

    /// One measurement in quiet, repeated at most twice when other programs disturbed it all the same.
    fn run_quiet(
        &self,
        row: &mut Row,
        who: &str,
        parts: &[&str],
        mut run: impl FnMut() -> Result<Measured>,
    ) -> Option<Figures> {
        for attempt in 0..3 {
            let quiet = self.no_quiet || proc::wait_quiet(0.06, Duration::from_secs(60));
            let measured = match run() {
                Ok(measured) => measured,
                Err(error) => {
                    row.failures.push(format!("{who}: {error:#}"));
                    return None;
                }
            };
            let disturbed = !quiet || measured.disturbed || measured.others > 0.15;
            if disturbed && !self.no_quiet && attempt < 2 {
                continue;
            }
            row.noisy += u32::from(disturbed);
            let load = &measured.load;
            if load.errors > 0 || load.requests + load.bytes == 0 {
                row.failures.push(format!("{who}: {} good, {} errors", load.requests, load.errors));
            }
            let mut figures = measured.figures(parts);
            figures.insert("others".into(), measured.others);
            eprintln!("  {who:8} {}", report::one_line(&figures));
            row.add(who, figures.clone());
            return Some(figures);
        }
        None
    }
}

/// Thousands of idle connections need as many files. The limit is inherited by what we start.
fn raise_file_limit() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// First line that a program prints, or `-`.
fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().map(|o| o.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).lines().next().unwrap_or("-").to_owned()
}
