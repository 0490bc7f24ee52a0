//! The machine's own holes: what a latency owes to programs that are no part of the run.
//!
//! A node is one CPU here. When somebody else's thread (a supervisor that reads all of `/proc` once a second, the
//! kernel's care of memory) holds it for milliseconds, all requests of that moment are late whatever an agent does, and a
//! few such holes a second are just about one request in a hundred: they decide the 99th percentile. So they are
//! recorded during a run ([`Watch`]), and the percentile is given without the requests that lived in one too
//! ([`apart`]).
//!
//! The watch looks every 6.7 ms at how long the foreign threads have run (`/proc/TID/schedstat`, in ns; the kernel brings
//! it up to date at every switch and tick), and at what the hypervisor took (`/proc/stat`, in steps of 10 ms). Only time
//! that a foreign thread *ran* or that was stolen is ever called foreign: a node that is late because of its agent, or of
//! the kernel's work for the traffic, shows no such time. (What the kernel delivers in the middle of a foreign thread's
//! time counts as that thread's, as everywhere in the kernel's accounts.) Two other ways were looked at and left: a
//! thread that notices when it wakes late does not see a program that gives way to it but not to the agents; and the
//! scheduler's trace events lack some, for a sandbox may hide those of its supervisor.
//!
//! Not seen, so left in the figures: programs that started after the watch, and those that hardly ever run.

use super::{
    proc,
    results::{Figures, percentile},
    tools::monotonic_ns,
};
use anyhow::{Context as _, Result};
use clap::Args;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::FileExt as _,
    thread,
    time::Duration,
};

/// From look to look, in ns: a look costs some 30 µs, mostly the timer's. No multiple of the time between two requests (2 ms), so that the
/// watch does not always run at the same moment of a request's life.
const LOOK: u64 = 6_700_000;
/// Less than this from one look to the next is no piece of a hole, in ns: a program that runs a little all the time makes
/// none.
const PIECE: u64 = 500_000;
/// Less than this is no hole, in ns.
const HOLE: u64 = 1_000_000;
/// Threads watched at most: each makes a look a microsecond or two longer.
const THREADS: usize = 16;
/// Threads that have used less than one part in so many of a CPU since they began are not watched.
const SELDOM: u64 = 2_000;
/// The kernel's threads that may work for the traffic (`ksoftirqd`, `kworker`, `rcu`, ..) are part of a run. These are not.
const HOUSEKEEPING: [&str; 4] = ["kdamond", "kcompactd", "khugepaged", "ksmd"];
/// A run is disturbed when more than this share of its requests are taken out.
const TAKEN: f64 = 0.10;
/// No watch is longer.
const MILLIS: u64 = 600_000;
/// What the kernel counts stolen time in, in ns.
const TICK: u64 = 10_000_000;

/// `watch`.
#[derive(Clone, Debug, Args)]
pub(super) struct Watch {
    /// Processes that are part of the run, with all that they start
    #[arg(long, value_delimiter = ',')]
    run: Vec<u32>,
    /// The nodes' CPUs
    #[arg(long, value_delimiter = ',')]
    cpus: Vec<usize>,
    /// How long
    #[arg(long)]
    millis: u64,
}

/// A span in which foreign threads held a node's CPU; instants in ns of `CLOCK_MONOTONIC`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hole {
    /// Not before this.
    from: u64,
    /// Over by then.
    to: u64,
    /// How long they ran in it.
    held: u64,
}

/// What a watch saw.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Watched {
    /// In order.
    holes: Vec<Hole>,
    /// Milliseconds by the thread's id and name.
    by: BTreeMap<String, f64>,
    /// Milliseconds that the hypervisor took from the nodes.
    stolen_ms: f64,
    /// Seconds that the watch lasted.
    seconds: f64,
    /// CPU seconds that it used itself.
    cost: f64,
}

/// Latency without the requests that lived in a hole.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Apart {
    /// 99th percentile of the others in µs, when they are more than half.
    pub p99_us: Option<f64>,
    /// Share of the requests taken out, 0 to 1.
    pub taken: f64,
}

/// A look at something foreign that had run since the look before.
#[derive(Clone, Copy, Debug)]
struct Piece {
    /// The look before.
    since: u64,
    /// This look.
    at: u64,
    /// How long it ran, up to here.
    ran: u64,
}

/// Pieces to holes. A piece says that a thread ran for `ran` at some time between the looks, or a little earlier: the
/// account of a thread that is still on another CPU is brought up to date by that CPU's tick only. So a piece reaches
/// back by as much as the thread ran; pieces that touch are one hole.
fn holes(pieces: &[Piece]) -> Vec<Hole> {
    let mut holes: Vec<Hole> = Vec::new();
    for Piece { since, at, ran } in pieces.iter().filter(|p| p.ran >= PIECE) {
        let from = since.saturating_sub(*ran);
        match holes.last_mut().filter(|h| from <= h.to) {
            Some(hole) => *hole = Hole { from: hole.from.min(from), to: *at, held: hole.held + ran },
            None => holes.push(Hole { from, to: *at, held: *ran }),
        }
    }
    holes.retain(|h| h.held >= HOLE);
    holes
}

/// Takes out the requests (`(due, latency)` in ns) that were under way during a hole, or during as long again after
/// it: until then the backlog is taken to be gone.
#[must_use]
pub(super) fn apart(requests: &[(u64, u64)], holes: &[Hole]) -> Apart {
    let in_hole = |(due, latency): &(u64, u64)| {
        holes.iter().any(|h| *due <= h.to.saturating_add(h.held) && due.saturating_add(*latency) >= h.from)
    };
    let mut left: Vec<u64> = requests.iter().filter(|r| !in_hole(r)).map(|(_, latency)| *latency).collect();
    left.sort_unstable();
    let taken = (requests.len() - left.len()) as f64 / requests.len().max(1) as f64;
    let p99 = percentile(&left, 0.99).filter(|_| taken < 0.5);
    Apart { p99_us: p99.map(|ns| ns as f64 / 1e3), taken }
}

impl Apart {
    /// Whether too much is missing for the rest to mean much.
    #[must_use]
    pub(super) fn is_disturbed(&self) -> bool {
        self.taken > TAKEN
    }
}

impl Watched {
    /// The requests' latency without the holes; see [`apart`].
    #[must_use]
    pub(super) fn apart(&self, requests: &[(u64, u64)]) -> Apart {
        apart(requests, &self.holes)
    }

    /// Adds the figures of a run, and tells of it on the terminal.
    pub(super) fn figures(&self, apart: &Apart, figures: &mut Figures) {
        let held_ms: f64 = self.holes.iter().map(|h| h.held as f64 / 1e6).sum();
        let mut set = |name: &str, value: f64| figures.insert(name.into(), value);
        set("taken_pct", apart.taken * 100.0);
        set("holes_ms", held_ms);
        set("stolen_ms", self.stolen_ms);
        let p99 = apart.p99_us.map_or_else(|| "-".to_owned(), |p99| format!("{p99:.0}"));
        if let Some(p99_us) = apart.p99_us {
            set("p99_apart_us", p99_us);
        }
        let by: Vec<String> = self.by.iter().map(|(name, ms)| format!("{name} {ms:.1}")).collect();
        eprintln!(
            "           without {} holes of {held_ms:.1} ms: p99_us {p99}, {:.1} % taken out; ms stolen {:.0}, by {}; the watch took {:.2} % of a CPU",
            self.holes.len(),
            apart.taken * 100.0,
            self.stolen_ms,
            by.join(", "),
            self.cost / self.seconds.max(0.001) * 100.0
        );
    }
}

/// A thread under watch.
struct Thread {
    tid: u32,
    name: String,
    schedstat: File,
    ran: u64,
}

impl Thread {
    /// `None` when it has ended.
    fn open(tid: u32) -> Option<Self> {
        let name = fs::read_to_string(format!("/proc/{tid}/comm")).ok()?.trim().to_owned();
        let schedstat = File::open(format!("/proc/{tid}/schedstat")).ok()?;
        let mut thread = Self { tid, name, schedstat, ran: 0 };
        thread.ran = thread.read()?;
        Some(thread)
    }

    /// How long it has run in ns; `None` when it has ended.
    fn read(&self) -> Option<u64> {
        let mut text = [0; 64];
        let n = self.schedstat.read_at(&mut text, 0).ok()?;
        std::str::from_utf8(&text[..n]).ok()?.split(' ').next()?.parse().ok()
    }

    /// How long it ran since the last look, when that is worth noting and was on one of `cpus`.
    fn look(&mut self, cpus: &[usize]) -> Option<u64> {
        let ran = self.read()?;
        let grown = ran.saturating_sub(std::mem::replace(&mut self.ran, ran));
        let here = || proc::thread(self.tid).is_some_and(|t| cpus.contains(&t.cpu));
        (grown >= PIECE && here()).then_some(grown)
    }

    /// One part in how many of a CPU it has used since it began.
    fn seldom(&self, uptime: f64) -> u64 {
        let began = proc::thread(self.tid).map_or(0.0, |t| t.began);
        ((uptime - began).max(0.0) * 1e9) as u64 / self.ran.max(1)
    }
}

/// What the hypervisor takes from the nodes.
struct Steal {
    stat: File,
    cpus: Vec<String>,
    ticks: u64,
}

impl Steal {
    fn open(cpus: &[usize]) -> Result<Self> {
        let cpus = cpus.iter().map(|n| format!("cpu{n}")).collect();
        let mut steal = Self { stat: File::open("/proc/stat")?, cpus, ticks: 0 };
        steal.ticks = steal.read()?;
        Ok(steal)
    }

    fn read(&self) -> Result<u64> {
        // The lines of CPUs come first; one cut off at the end is of none of the nodes.
        let mut text = [0; 4096];
        let n = self.stat.read_at(&mut text, 0)?;
        Ok(stolen(std::str::from_utf8(&text[..n])?, &self.cpus))
    }

    /// Stolen since the last look, in ns.
    fn look(&mut self) -> Result<u64> {
        let ticks = self.read()?;
        Ok(ticks.saturating_sub(std::mem::replace(&mut self.ticks, ticks)) * TICK)
    }
}

/// Ticks stolen from `cpus` so far: the eighth figure of their lines in `/proc/stat`.
fn stolen(stat: &str, cpus: &[String]) -> u64 {
    let of = |line: &str| -> Option<u64> {
        let mut words = line.split_whitespace();
        let name = words.next()?;
        words.nth(7)?.parse().ok().filter(|_| cpus.iter().any(|cpu| cpu == name))
    };
    stat.lines().take_while(|l| l.starts_with("cpu")).filter_map(of).sum()
}

/// The busiest threads that are no part of the run.
fn foreign(run: &[u32]) -> Result<Vec<Thread>> {
    let numbers = |dir: &str| -> Vec<u32> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
    };
    let uptime = fs::read_to_string("/proc/uptime")?;
    let uptime: f64 = uptime.split(' ').next().unwrap_or_default().parse()?;
    let pids = numbers("/proc");
    // After the list, so that what the run starts just now is not taken for foreign.
    let roots = run.iter().copied().chain([std::process::id()]);
    let ours: Vec<u32> = roots.flat_map(proc::tree).collect();
    let mut threads = Vec::new();
    for pid in pids.into_iter().filter(|pid| !ours.contains(pid)) {
        let kernel = pid == KTHREADD || proc::thread(pid).is_some_and(|t| t.parent == KTHREADD);
        let counts = |t: &Thread| !kernel || HOUSEKEEPING.iter().any(|name| t.name.starts_with(name));
        let tids = numbers(&format!("/proc/{pid}/task"));
        let found = tids.into_iter().filter_map(Thread::open).filter(counts);
        threads.extend(found.map(|t| (t.seldom(uptime), t)).filter(|(seldom, _)| *seldom < SELDOM));
    }
    threads.sort_by_key(|(seldom, _)| *seldom);
    Ok(threads.into_iter().map(|(_, thread)| thread).take(THREADS).collect())
}

/// Parent of the kernel's threads.
const KTHREADD: u32 = 2;

/// Runs the watch.
///
/// # Errors
/// When the kernel keeps no run times (`CONFIG_SCHED_INFO`).
pub(super) fn watch(args: &Watch) -> Result<Watched> {
    let own = Thread::open(std::process::id())
        .context("no /proc/PID/schedstat: foreign programs cannot be told from the run's")?;
    fs::write("/proc/self/timerslack_ns", "1").context("timer slack")?;
    let mut threads = foreign(&args.run)?;
    let mut steal = Steal::open(&args.cpus)?;
    let (mut pieces, mut by, mut stolen_ms) = (Vec::new(), BTreeMap::new(), 0.0);
    let (start, cost) = (monotonic_ns()?, own.read());
    let (mut since, mut next) = (start, start);
    // Bounded, and so are the pieces, whatever was asked for.
    let end = start + args.millis.min(MILLIS) * 1_000_000;
    while since < end {
        next = (next + LOOK).max(since);
        thread::sleep(Duration::from_nanos(next.saturating_sub(monotonic_ns()?)));
        let at = monotonic_ns()?;
        for thread in &mut threads {
            if let Some(ran) = thread.look(&args.cpus) {
                pieces.push(Piece { since, at, ran });
                *by.entry(format!("{} {}", thread.tid, thread.name)).or_default() += ran as f64 / 1e6;
            }
        }
        let ran = steal.look()?;
        pieces.extend((ran > 0).then_some(Piece { since, at, ran }));
        stolen_ms += ran as f64 / 1e6;
        since = at;
    }
    Ok(Watched {
        holes: holes(&pieces),
        by,
        stolen_ms,
        seconds: (since - start) as f64 / 1e9,
        cost: own.read().zip(cost).map_or(0.0, |(after, before)| (after - before) as f64 / 1e9),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// `(since, at, ran)` and `(from, to, held)` in tenths of a millisecond.
    #[test]
    fn pieces_make_holes() {
        type Spans = &'static [(u64, u64, u64)];
        let cases: [(&str, Spans, Spans); 7] = [
            ("nothing ran", &[], &[]),
            ("too short for a hole", &[(100, 119, 9)], &[]),
            ("one look, reaching back", &[(100, 119, 15)], &[(85, 119, 15)]),
            ("looks that follow each other", &[(100, 119, 15), (119, 138, 19)], &[(85, 138, 34)]),
            ("short ones that make a long one", &[(100, 119, 6), (119, 138, 6)], &[(94, 138, 12)]),
            ("two, apart", &[(100, 119, 15), (300, 350, 45)], &[(85, 119, 15), (255, 350, 45)]),
            ("a little all the time", &[(100, 119, 4), (119, 138, 4), (138, 157, 4)], &[]),
        ];
        for (case, pieces, expected) in cases {
            let ns = MS / 10;
            let piece =
                |(since, at, ran): &(u64, u64, u64)| Piece { since: since * ns, at: at * ns, ran: ran * ns };
            let hole =
                |(from, to, held): &(u64, u64, u64)| Hole { from: from * ns, to: to * ns, held: held * ns };
            let found = holes(&pieces.iter().map(piece).collect::<Vec<_>>());
            assert_eq!(found, expected.iter().map(hole).collect::<Vec<_>>(), "{case}");
        }
    }

    /// Requests `(due, latency)` and whether they are taken out; the hole is 100 to 110 ms and was held for 5.
    #[test]
    fn requests_that_met_a_hole_are_taken_out() {
        let hole = Hole { from: 100 * MS, to: 110 * MS, held: 5 * MS };
        for (due, latency, taken) in
            [(98, 1, false), (98, 2, true), (98, 40, true), (104, 1, true), (115, 1, true), (116, 1, false)]
        {
            let found = apart(&[(due * MS, latency * MS)], &[hole]);
            assert_eq!(found.taken > 0.0, taken, "due {due}, {latency} ms");
            assert_eq!(found.p99_us, (!taken).then_some(latency as f64 * 1e3), "due {due}");
        }
        assert_eq!(apart(&[], &[hole]), Apart::default());
        // Slow outside of any hole: stays in.
        let requests: Vec<(u64, u64)> =
            (0..100).map(|n| (n * 2 * MS, if n == 30 { 9 * MS } else { MS })).collect();
        let found = apart(&requests, &[hole]);
        assert_eq!(found, Apart { p99_us: Some(9000.0), taken: 0.08 });
    }

    #[test]
    fn steal_is_the_nodes_own() {
        let stat = "cpu  9 9 9 9 9 9 9 99 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\ncpu1 1 1 1 1 1 1 1 30 0 0\n\
            cpu10 1 1 1 1 1 1 1 500 0 0\nintr 1 2 3 4 5 6 7 8 9\n";
        for (cpus, expected) in
            [(&["cpu0"][..], 8), (&["cpu1"], 30), (&["cpu0", "cpu1"], 38), (&["cpu3"], 0), (&[], 0)]
        {
            let cpus: Vec<String> = cpus.iter().map(|c| (*c).to_owned()).collect();
            assert_eq!(stolen(stat, &cpus), expected, "{cpus:?}");
        }
    }

    #[test]
    fn what_belongs_to_the_run_is_not_foreign() -> Result<()> {
        let me = std::process::id();
        let ours = proc::tree(me);
        assert!(foreign(&[me])?.iter().all(|t| !ours.contains(&t.tid)));
        Ok(())
    }
}
