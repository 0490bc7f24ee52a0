//! The long form: rounds until so many requests were made, and a table of what happened.

use super::{Backend, Counted, Way, World, sum, verdict};
use crate::cluster::Cluster;
use anyhow::{Result, ensure};
use std::{collections::BTreeMap, fmt::Write as _, path::PathBuf, process::ExitCode, time::Instant};
use weft::call::Tally;

/// `weft-soak`.
#[derive(Debug, clap::Parser)]
pub struct Args {
    /// What to do for long
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Rollouts, scaling and pod deletions under load, until so many requests were made in the mesh and through the Gateway
    Rollouts {
        /// Requests in all, with servers that finish what they have taken
        #[arg(long, default_value_t = 500_000)]
        requests: u64,
        /// Requests a second of each load
        #[arg(long, default_value_t = 250)]
        rate: u32,
        /// Commit to name in the table
        #[arg(long)]
        commit: String,
        /// Where the table goes, in the place of all that was there
        #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/cluster/SOAK.md"))]
        out: PathBuf,
    },
}

/// Runs in the cluster that `WEFT_TEST_CLUSTER` names, and writes the table. Exit code 1 when something failed that must not.
///
/// # Errors
/// When the cluster does not do what it is told.
pub fn run(args: &Args) -> Result<ExitCode> {
    let What::Rollouts { requests, rate, commit, out } = &args.what;
    let cluster = Cluster::from_env()?;
    ensure!(
        cluster.is_bed(),
        "rollouts are judged by logs on the nodes of a cluster of tests/cluster: ./dev soak"
    );
    println!("{}", cluster.install()?);
    let mut soak =
        Soak { start: Instant::now(), rounds: 0, sums: BTreeMap::new(), wrong: Vec::new(), ended: false };
    let mut world = World::build(&cluster, *rate)?;
    while soak.made() < *requests {
        // The comparison has rounds of its own: its servers answer slowly, and must not take the time of the others.
        for backends in [&[Backend::Finishes, Backend::PreStop][..], &[Backend::Exits], &[Backend::Late]] {
            let counted = world.round(backends)?;
            soak.note(&counted, verdict(&counted, &world.taken()?));
            println!("{} of {requests} requests after {} s", soak.made(), soak.start.elapsed().as_secs());
        }
        // After each round, so that a run that is ended has said what it found.
        soak.write(out, commit, *rate)?;
    }
    soak.ended = true;
    soak.write(out, commit, *rate)?;
    World::clear(&cluster)?;
    soak.wrong.iter().for_each(|wrong| println!("{wrong}"));
    println!("written: {}", out.display());
    Ok(if soak.wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Soak {
    start: Instant,
    rounds: u32,
    sums: BTreeMap<(Backend, Way), Tally>,
    wrong: Vec<String>,
    ended: bool,
}

impl Soak {
    /// Requests to servers that finish, in the mesh and through the Gateway.
    fn made(&self) -> u64 {
        let counts = |((backend, way), _): &(&(Backend, Way), &Tally)| {
            matches!(backend, Backend::Finishes | Backend::PreStop) && *way != Way::Outside
        };
        self.sums.iter().filter(counts).map(|(_, tally)| tally.good() + tally.bad()).sum()
    }

    fn note(&mut self, counted: &[Counted], wrong: Vec<String>) {
        self.rounds += 1;
        for backend in [Backend::Finishes, Backend::PreStop, Backend::Exits, Backend::Late] {
            for way in Way::ALL {
                let tally = sum(counted, backend, way);
                if tally.good() + tally.bad() > 0 {
                    self.sums.entry((backend, way)).or_default().add(&tally);
                }
            }
        }
        wrong.iter().for_each(|line| println!("WRONG: {line}"));
        self.wrong.extend(wrong);
    }

    fn write(&self, out: &std::path::Path, commit: &str, rate: u32) -> Result<()> {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC");
        let mut text = format!(
            "# Rollouts for long\n\nWritten by `./dev soak rollouts` ({now}, commit {commit}{}): a real Kubernetes with two nodes \
             (README.md beside this file).\nIn {} rounds, {} s together, each Deployment of three pods was restarted, grown to five, \
             shrunk to two, and had a pod deleted, under four loads of {rate} requests a second on each: in the mesh and through the \
             Gateway, on kept and on new connections; `exits` and `late` also outside the mesh, by kube-proxy.\n\n\
             - *finishes*: readiness tells the truth, and on SIGTERM it answers what it has taken. *prestop*: the same with a `preStop` \
             that waits 3 s. Nothing may fail.\n\
             - *exits*: ends at once on SIGTERM. Only what its own log says it had taken may fail, and no more than outside.\n\
             - *late*: listens ten seconds after its start, and its readiness is a `tcpSocket`; only restarted. Nothing may fail.\n\n\
             | server | way | requests | failed | longest gap, ms |\n|---|---|--:|--:|--:|\n",
            if self.ended { "" } else { "; it goes on, or was ended early" },
            self.rounds,
            self.start.elapsed().as_secs(),
        );
        for ((backend, way), tally) in &self.sums {
            let all = tally.good() + tally.bad();
            writeln!(
                text,
                "| {} | {} | {all} | {} | {} |",
                backend.name(),
                way.name(),
                tally.bad(),
                tally.gap_ms
            )?;
        }
        let verdict = if self.wrong.is_empty() {
            "Nothing failed that must not.".to_owned()
        } else {
            format!("**Failed where nothing may:**\n\n{}", self.wrong.join("\n\n"))
        };
        writeln!(text, "\n{verdict}")?;
        std::fs::write(out, text)?;
        Ok(())
    }
}
