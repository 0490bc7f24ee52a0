//! What was measured: samples in rows, kept as JSON between runs, with medians and spread.

use super::{load::Load, proc};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fs, path::Path, time::Instant};

/// Figures of one run, by name. Names are units: `rate` (a second), `cpu_us` (a request or connection), `cpu_gb`
/// (CPU seconds a GB), `gbit`, `p50_us`, `p99_us`, `bytes_conn`, `pss_mb`, `p99_ratio`;
/// `p99_apart_us` without the machine's own holes, `taken_pct` of the requests left out for it, `holes_ms` and `stolen_ms` in all; a suffix after `@` names a part (`cpu_us@client`).
pub(super) type Figures = BTreeMap<String, f64>;

/// One scenario of a suite.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Row {
    /// Name on the command line, with `-w2` for two workers.
    pub name: String,
    /// Title in the table.
    pub title: String,
    /// Figures of every round by participant.
    pub samples: BTreeMap<String, Vec<Figures>>,
    /// Failures, said in full.
    pub failures: Vec<String>,
    /// Runs in which other programs used the machine all the same.
    pub noisy: u32,
}

/// One suite's run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Suite {
    /// When, UTC.
    pub date: String,
    /// Commit of the tree.
    pub commit: String,
    /// The older build that was measured beside it, where one was.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub against: String,
    /// Rounds and seconds of each run.
    pub rounds: u32,
    /// See `rounds`.
    pub seconds: u64,
    /// Its scenarios.
    pub rows: Vec<Row>,
}

/// Median, smallest, largest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    /// Median.
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// Of at least one value.
    #[must_use]
    pub(super) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Self { median, min, max })
    }
}

/// The value at `share` (0 to 1) of the way through sorted values; `None` of none.
#[must_use]
pub(super) fn percentile(sorted: &[u64], share: f64) -> Option<u64> {
    let index = (sorted.len() as f64 * share) as usize;
    sorted.get(index.min(sorted.len().saturating_sub(1))).copied()
}

impl Row {
    /// An empty row.
    #[must_use]
    pub(super) fn new(name: &str, title: &str) -> Self {
        Self { name: name.into(), title: title.into(), ..Self::default() }
    }

    /// Adds one run's figures.
    pub(super) fn add(&mut self, who: &str, figures: Figures) {
        self.samples.entry(who.into()).or_default().push(figures);
    }

    /// The spread of one figure of one participant over the rounds.
    #[must_use]
    pub(super) fn spread(&self, who: &str, figure: &str) -> Option<Spread> {
        Spread::of(self.samples.get(who)?.iter().filter_map(|f| f.get(figure).copied()).collect())
    }
}

impl Suite {
    /// The row of a scenario.
    #[must_use]
    pub(super) fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|r| r.name == name)
    }

    /// Reads what an earlier run wrote.
    ///
    /// # Errors
    /// When the file is there but is not ours.
    pub(super) fn read(path: &Path) -> Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(path)?;
        Ok(Some(serde_json::from_str(&text).with_context(|| path.display().to_string())?))
    }

    /// Writes it; rows of an earlier run that this one did not measure are left out.
    ///
    /// # Errors
    /// File system.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        Ok(fs::write(path, serde_json::to_string_pretty(self)?)?)
    }
}

/// One run: what the load generator counted, and what the measured process trees used meanwhile.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    /// The load.
    pub load: Load,
    /// CPU seconds of each measured process tree.
    pub cpu: Vec<f64>,
    /// CPUs used by programs that are not part of the run.
    pub others: f64,
    /// Whether something else says that the figures mean little.
    pub disturbed: bool,
}

/// Runs `load` and takes the CPU time of the trees `measured`. `known` trees belong to the run as well (backends).
///
/// # Errors
/// The load's.
pub(super) fn measure(
    measured: &[u32],
    known: &[u32],
    load: impl FnOnce() -> Result<Load>,
) -> Result<Measured> {
    let me = std::process::id();
    let snapshot = || -> (Vec<f64>, f64, proc::Machine) {
        let each = measured.iter().map(|pid| proc::cpu_seconds(&[*pid])).collect();
        // Programs that ended are counted in the parent's own line; those that run are our children too.
        let mine: f64 = proc::cpu_seconds(&[me]);
        let apart: Vec<u32> =
            measured.iter().chain(known).copied().filter(|p| !proc::tree(me).contains(p)).collect();
        (each, mine + proc::cpu_seconds(&apart), proc::Machine::now())
    };
    let (before, ours_before, machine_before) = snapshot();
    let start = Instant::now();
    let load = load()?;
    let wall = start.elapsed().as_secs_f64();
    let (after, ours_after, machine_after) = snapshot();
    let cpu = before.iter().zip(&after).map(|(b, a)| a - b).collect();
    let busy = machine_after.busy - machine_before.busy + machine_after.stolen - machine_before.stolen;
    let others = (busy - (ours_after - ours_before)).max(0.0) / wall;
    Ok(Measured { load, cpu, others, disturbed: false })
}

impl Measured {
    /// The usual figures: rate, CPU a request, latencies where measured. `parts` names the measured trees.
    #[must_use]
    pub(super) fn figures(&self, parts: &[&str]) -> Figures {
        let mut figures = Figures::new();
        let (load, all): (_, f64) = (&self.load, self.cpu.iter().sum());
        let mut set = |name: &str, value: f64| figures.insert(name.into(), value);
        if load.requests > 0 {
            set("rate", load.requests as f64 / load.seconds);
            let each = |cpu: f64| cpu * 1e6 / load.requests as f64;
            if !self.cpu.is_empty() {
                set("cpu_us", each(all));
            }
            if self.cpu.len() > 1 {
                for (part, cpu) in parts.iter().zip(&self.cpu) {
                    set(&format!("cpu_us@{part}"), each(*cpu));
                }
            }
        } else if load.bytes > 0 {
            set("gbit", load.bytes as f64 * 8.0 / 1e9 / load.seconds);
            let gb = load.bytes as f64 / 1e9;
            if !self.cpu.is_empty() {
                set("cpu_gb", all / gb);
            }
            if self.cpu.len() > 1 {
                for (part, cpu) in parts.iter().zip(&self.cpu) {
                    set(&format!("cpu_gb@{part}"), cpu / gb);
                }
            }
        }
        if load.p99_us > 0.0 {
            set("p50_us", load.p50_us);
            set("p99_us", load.p99_us);
        }
        figures
    }
}

/// A small seeded generator (splitmix64), so that a shuffled order can be had again.
#[derive(Clone, Debug)]
pub(super) struct Shuffle(pub u64);

impl Shuffle {
    /// Puts `items` into a random order.
    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = usize::try_from(self.next() % (last as u64 + 1)).unwrap_or(0);
            items.swap(last, other);
        }
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_of_samples() {
        assert_eq!(Spread::of(vec![3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of(vec![4.0, 1.0]).map(|s| s.median), Some(2.5));
        assert_eq!(Spread::of(vec![]), None);
        let mut row = Row::new("x", "X");
        row.add("weft", Figures::from([("cpu_us".into(), 20.0)]));
        assert_eq!(row.spread("weft", "cpu_us").map(|s| s.median), Some(20.0));
        assert_eq!(row.spread("weft", "rate"), None);
    }

    #[test]
    fn shuffles_the_same_for_the_same_seed() {
        let order = |seed| {
            let mut items: Vec<u32> = (0..20).collect();
            Shuffle(seed).shuffle(&mut items);
            items
        };
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
    }

    #[test]
    fn percentiles() {
        let hundred: Vec<u64> = (1..=100).collect();
        for (values, share, expected) in [
            (&hundred[..], 0.5, Some(51)),
            (&hundred[..], 0.99, Some(100)),
            (&hundred[..99], 0.99, Some(99)),
            (&hundred[..1], 0.99, Some(1)),
            (&[], 0.99, None),
        ] {
            assert_eq!(percentile(values, share), expected, "{share} of {}", values.len());
        }
    }

    #[test]
    fn figures_of_requests_and_of_bytes() {
        let measured = |load, cpu| Measured { load, cpu, others: 0.0, disturbed: false };
        let load = Load { requests: 1000, seconds: 2.0, p99_us: 5.0, ..Load::default() };
        let figures = measured(load, vec![0.01, 0.03]).figures(&["client", "server"]);
        assert!((figures["cpu_us"] - 40.0).abs() < 1e-9 && (figures["cpu_us@server"] - 30.0).abs() < 1e-9);
        assert!((figures["rate"] - 500.0).abs() < 1e-9);
        let load = Load { bytes: 2_000_000_000, seconds: 1.0, ..Load::default() };
        let figures = measured(load, vec![3.0]).figures(&["agent"]);
        assert!((figures["cpu_gb"] - 1.5).abs() < 1e-9 && (figures["gbit"] - 16.0).abs() < 1e-9);
    }
}
