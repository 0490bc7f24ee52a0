//! Where a program runs: a network namespace and a set of CPUs.

use anyhow::{Context as _, Result};
use std::{path::Path, time::Duration};
use weft::sandbox::{Netns, Output, Process, Sandbox, run};

/// A namespace and CPUs; every program of the benchmarks runs in one.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Namespace.
    pub netns: Netns,
    /// CPU list as `taskset` takes it, e.g. `0` or `0-1`.
    pub cpus: String,
    /// Against whom it yields the CPU.
    pub class: Class,
}

/// What the kernel's scheduler thinks of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// As everything usually runs.
    Usual,
    /// Only what nobody else wants (`SCHED_IDLE`), and off the CPU at once when somebody does.
    Background,
    /// Before everything else (niceness −20): an instrument, whose own waiting for the CPU is not to be measured.
    Instrument,
}

impl Place {
    /// Programs of `netns` on `cpus`.
    #[must_use]
    pub(super) fn new(netns: &Netns, cpus: &str) -> Self {
        Self { netns: netns.clone(), cpus: cpus.into(), class: Class::Usual }
    }

    /// The same in another class.
    #[must_use]
    pub(super) const fn class(mut self, class: Class) -> Self {
        self.class = class;
        self
    }

    fn wrap(&self, argv: &[String]) -> Vec<String> {
        let mut all: Vec<String> = ["taskset", "--cpu-list", &self.cpus].map(str::to_owned).into();
        let class: &[&str] = match self.class {
            Class::Usual => &[],
            Class::Background => &["chrt", "--idle", "0"],
            Class::Instrument => &["nice", "-n", "-20"],
        };
        all.extend(class.iter().map(|w| (*w).to_owned()));
        all.extend_from_slice(argv);
        all
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    /// When it cannot be started or runs longer than `limit`.
    pub(super) fn run(&self, argv: &[String], limit: Duration) -> Result<Output> {
        let argv = self.wrap(argv);
        run(&self.netns, None, &argv.iter().map(String::as_str).collect::<Vec<_>>(), limit)
    }

    /// Starts a program; its output goes to `log`. The process id is the program's own.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(super) fn spawn(&self, argv: &[String], log: &Path) -> Result<Process> {
        let argv = self.wrap(argv);
        Process::start(&self.netns, None, &argv.iter().map(String::as_str).collect::<Vec<_>>(), &[], log)
    }

    /// Starts a server and waits until it accepts connections on `port`.
    ///
    /// # Errors
    /// When it ends or does not listen within 60 s; the error carries the end of its log.
    pub(super) fn serve(&self, argv: &[String], port: u16, log: &Path) -> Result<Process> {
        let mut process = self.spawn(argv, log)?;
        let query = ["ss".to_owned(), "-Htln".to_owned(), format!("sport = :{port}")];
        let listening =
            || self.run(&query, Duration::from_secs(10)).is_ok_and(|o| !o.stdout.trim().is_empty());
        let waited =
            Sandbox::wait_until(&format!("port {port} of {}", argv[0]), Duration::from_secs(60), || {
                !process.is_running() || listening()
            });
        if waited.is_err() || !process.is_running() {
            waited.with_context(|| process.log_tail())?;
            anyhow::bail!("{} ended: {}", argv[0], process.log_tail());
        }
        Ok(process)
    }
}

/// Words to an argument vector.
#[must_use]
pub(super) fn argv(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}
