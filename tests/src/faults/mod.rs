//! What restarts cost who is served: one fault after the other under load, counted by path and class of traffic.
//!
//! ```text
//! world: servers and clients on both nodes, Gateways ─▶ loads report what happened, once a second
//! faults: kill, restart, stop ─▶ wait until all is served again ─▶ the reports of that time ─▶ report: a table
//! ```

mod fault;
mod inject;
mod report;
mod world;
mod yaml;

use crate::cluster::Cluster;
use anyhow::{Result, ensure};
use fault::{Fault, faults};
use report::{Outcome, Row};
use std::{path::PathBuf, process::ExitCode, time::Instant};
use world::{World, now_ms};

/// `weft-faults`.
#[derive(Debug, clap::Parser)]
pub struct Args {
    /// How long the API server is away, in seconds
    #[arg(long, default_value_t = 60)]
    api_server_away: u64,
    /// Only the faults whose name contains this; may be repeated
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Where the table goes
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/cluster/FAULTS.md"))]
    out: PathBuf,
    /// Leave Weft and the load's pods in the cluster
    #[arg(long)]
    keep: bool,
}

/// Measures in the cluster that `WEFT_TEST_CLUSTER` names, and writes the table. Exit code 1 when something failed that must
/// not.
///
/// # Errors
/// When the cluster does not do what it is told, or does not come back.
pub fn run(args: &Args) -> Result<ExitCode> {
    let cluster = Cluster::from_env()?;
    ensure!(cluster.is_bed(), "faults are done to a cluster of tests/cluster only: ./dev faults");
    let result = measure(&cluster, args);
    match &result {
        Err(_) => eprintln!("{}", cluster.diagnosis()),
        Ok(_) if !args.keep => world::clear(&cluster)?,
        Ok(_) => {}
    }
    result
}

fn measure(cluster: &Cluster, args: &Args) -> Result<ExitCode> {
    let mut world = World::build(cluster)?;
    let chosen = |fault: &Fault| {
        args.only.is_empty() || args.only.iter().any(|text| fault.name.contains(text.as_str()))
    };
    // Now: the tree may have another commit by the end.
    let machine = report::Machine::here();
    let mut rows = Vec::new();
    for fault in faults(args.api_server_away).iter().filter(|fault| chosen(fault)) {
        let row = one(&mut world, fault)?;
        println!("{}", report::brief(&row));
        if row.outcome() == Outcome::Broken {
            let why = args.out.with_extension("log");
            std::fs::write(&why, cluster.diagnosis())?;
            println!("what the cluster said: {}", why.display());
        }
        rows.push(row);
        // After each, so that a run that breaks has said what it found.
        std::fs::write(&args.out, report::markdown(&rows, &machine, args.api_server_away))?;
    }
    let broken: Vec<&str> =
        rows.iter().filter(|row| row.outcome() == Outcome::Broken).map(|row| row.name).collect();
    println!("written: {}", args.out.display());
    if broken.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("failed where nothing may fail: {}", broken.join(", "));
    Ok(ExitCode::FAILURE)
}

/// One fault, from steady traffic to steady traffic.
fn one(world: &mut World<'_>, fault: &Fault) -> Result<Row> {
    world.steady(now_ms())?;
    let (begin, start) = (now_ms(), Instant::now());
    println!("== {}", fault.name);
    let notes = (fault.inject)(world)?;
    let settled = world.steady(now_ms());
    let cells = world.counted(begin)?;
    let mut row = Row::new(fault, world.paths(), cells);
    row.seconds = start.elapsed().as_secs();
    row.notes = notes;
    row.notes.extend(settled.err().map(|error| format!("not served again in time: {error:#}")));
    Ok(row)
}
