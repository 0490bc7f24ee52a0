//! Where a process spends its time: `perf record` beside a load, and the top of its self table.

use anyhow::{Context as _, Result, ensure};
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

/// Lines of the table.
const TOP: usize = 40;

/// Samples `pids` while `load` runs and writes the raw data and the top functions by self time to
/// `OUT/perf-NAME.{data,txt}`.
///
/// # Errors
/// When perf is missing or refuses, or the load fails.
pub(super) fn record(out: &Path, name: &str, pids: &[u32], load: impl FnOnce() -> Result<()>) -> Result<()> {
    fs::create_dir_all(out)?;
    let data = out.join(format!("perf-{name}.data"));
    let pids = pids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    // cpu-clock: virtual machines seldom have hardware counters.
    let mut perf = Command::new("perf")
        .args(["record", "-q", "-e", "cpu-clock", "-F", "1999", "-g", "-p", &pids, "-o"])
        .arg(&data)
        .stdin(Stdio::null())
        .spawn()
        .context("cannot run perf (Debian package linux-perf)")?;
    let loaded = load();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(perf.id())?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)?;
    perf.wait()?;
    loaded?;
    let report = Command::new("perf")
        .args(["report", "--stdio", "--no-children", "-g", "none", "--no-inline", "-s", "dso,symbol", "-i"])
        .arg(&data)
        .stdin(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&report.stdout);
    // perf pads names to the longest and adds empty columns.
    let tidy = |l: &str| l.trim_end_matches(|c: char| c == '-' || c.is_whitespace()).to_owned();
    let top: Vec<String> = text.lines().filter(|l| l.contains('%')).take(TOP).map(tidy).collect();
    ensure!(!top.is_empty(), "perf saw nothing: {}", String::from_utf8_lossy(&report.stderr));
    let file = out.join(format!("perf-{name}.txt"));
    fs::write(&file, top.join("\n") + "\n")?;
    eprintln!("  profile: {}", file.display());
    Ok(())
}
