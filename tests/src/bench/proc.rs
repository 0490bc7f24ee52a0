//! What the kernel says: CPU of process trees, memory, load of the machine by others.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

/// Clock ticks a second; 100 on every Linux that Rust runs on.
const TICKS: f64 = 100.0;

/// Process ids of `root` and everything below it.
#[must_use]
pub(super) fn tree(root: u32) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for pid in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = pid.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        if let Some(parent) = stat_fields(pid).and_then(|f| f.get(1)?.parse().ok()) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut all = vec![root];
    let mut next = 0;
    while let Some(pid) = all.get(next) {
        all.extend(children.get(pid).into_iter().flatten());
        next += 1;
    }
    all
}

/// CPU seconds (user and system, ended children included) of process trees.
#[must_use]
pub(super) fn cpu_seconds(roots: &[u32]) -> f64 {
    let ticks = |pid| -> Option<f64> {
        let fields = stat_fields(pid)?;
        // utime, stime, cutime, cstime: fields 14 to 17 of proc(5), counted from 3 here
        Some((11..15).filter_map(|i| fields.get(i)?.parse::<f64>().ok()).sum())
    };
    roots.iter().flat_map(|root| tree(*root)).filter_map(ticks).sum::<f64>() / TICKS
}

/// Proportional set size of a process tree in bytes: shared pages are counted once.
#[must_use]
pub(super) fn pss_bytes(root: u32) -> u64 {
    let pss = |pid| -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let line = text.lines().find_map(|l| l.strip_prefix("Pss:"))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
    };
    tree(root).into_iter().filter_map(pss).sum()
}

/// The fields of `/proc/PID/stat` after the name, which may itself hold spaces: state first.
fn stat_fields(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// What the kernel says of one thread.
#[derive(Clone, Copy, Debug)]
pub(super) struct Thread {
    /// Its process's parent.
    pub parent: u32,
    /// Where it ran last.
    pub cpu: usize,
    /// When it began, in seconds since boot.
    pub began: f64,
}

/// A thread by its id; `None` when it has ended.
#[must_use]
pub(super) fn thread(tid: u32) -> Option<Thread> {
    // ppid, starttime and processor: fields 4, 22 and 39 of proc(5), counted from 3 here
    let fields = stat_fields(tid)?;
    let began = fields.get(19)?.parse::<f64>().ok()? / TICKS;
    Some(Thread { parent: fields.get(1)?.parse().ok()?, cpu: fields.get(36)?.parse().ok()?, began })
}

/// CPU seconds of the whole machine: by processes, and stolen by the hypervisor.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Machine {
    /// User, nice and system.
    pub busy: f64,
    /// Steal.
    pub stolen: f64,
}

impl Machine {
    /// Now, since boot.
    #[must_use]
    pub(super) fn now() -> Self {
        let text = fs::read_to_string("/proc/stat").unwrap_or_default();
        let fields: Vec<f64> = text
            .lines()
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .skip(1)
            .filter_map(|f| f.parse().ok())
            .collect();
        let at = |i: usize| fields.get(i).copied().unwrap_or(0.0) / TICKS;
        Self { busy: at(0) + at(1) + at(2), stolen: at(7) }
    }
}

/// Waits for half a second in which all processes together use less than `limit` CPUs; false after `patience`.
#[must_use]
pub(super) fn wait_quiet(limit: f64, patience: Duration) -> bool {
    let start = Instant::now();
    loop {
        let (before, at) = (Machine::now(), Instant::now());
        std::thread::sleep(Duration::from_millis(500));
        let now = Machine::now();
        let used = now.busy - before.busy + now.stolen - before.stolen;
        if used / at.elapsed().as_secs_f64() < limit {
            return true;
        }
        if start.elapsed() > patience {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_process_has_cpu_memory_and_a_tree() {
        let me = std::process::id();
        assert!(pss_bytes(me) > 100_000);
        assert_eq!(tree(me).first(), Some(&me));
        assert!(thread(me).is_some_and(|t| t.began > 0.0));
        let before = cpu_seconds(&[me]);
        while cpu_seconds(&[me]) - before < 0.02 {}
        assert!(Machine::now().busy > 0.0);
    }
}
