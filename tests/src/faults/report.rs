//! The table.

use super::{
    fault::{Fault, Hits},
    world::{Class, DRAIN_SECONDS, Path, RATE},
};
use std::{collections::BTreeMap, fmt::Write as _, process::Command};
use weft::call::Tally;

/// How a fault went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing failed.
    Clean,
    /// What failed was expected to.
    Expected,
    /// Something failed that must not.
    Broken,
}

/// What one load counted during one fault.
struct Cell {
    path: String,
    class: Class,
    counted: Tally,
    cost: Option<&'static str>,
}

impl Cell {
    /// Nothing was lost.
    fn is_clean(&self) -> bool {
        self.counted.bad() == 0 && self.counted.resets == 0
    }

    fn outcome(&self) -> Outcome {
        match (self.counted.good(), self.is_clean(), self.cost) {
            // A load that was never answered has not shown anything.
            (0, _, _) | (_, false, None) => Outcome::Broken,
            (_, true, _) => Outcome::Clean,
            (_, false, Some(_)) => Outcome::Expected,
        }
    }
}

/// A fault's result.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) seconds: u64,
    pub(super) notes: Vec<String>,
    hits: Hits,
    cells: Vec<Cell>,
}

impl Row {
    pub(super) fn new(fault: &Fault, paths: &[Path], mut counted: BTreeMap<(String, Class), Tally>) -> Self {
        let mut cells = Vec::new();
        for path in paths {
            for class in Class::ALL {
                let counted = counted.remove(&(path.name.clone(), class)).unwrap_or_default();
                cells.push(Cell { path: path.title(), class, counted, cost: fault.cost(path, class) });
            }
        }
        Self { name: fault.name, seconds: 0, notes: Vec::new(), hits: fault.hits, cells }
    }

    pub(super) fn outcome(&self) -> Outcome {
        let outcomes = || self.cells.iter().map(Cell::outcome);
        if outcomes().any(|o| o == Outcome::Broken)
            || self.notes.iter().any(|note| note.starts_with("not served"))
        {
            Outcome::Broken
        } else if outcomes().all(|o| o == Outcome::Clean) {
            Outcome::Clean
        } else {
            Outcome::Expected
        }
    }

    fn sum(&self, of: impl Fn(&Cell) -> bool) -> Tally {
        let mut sum = Tally::default();
        self.cells.iter().filter(|cell| of(cell)).for_each(|cell| sum.add(&cell.counted));
        sum
    }
}

/// Where it was measured.
pub(super) struct Machine {
    cpus: usize,
    memory: String,
    kernel: String,
    date: String,
    commit: String,
}

impl Machine {
    pub(super) fn here() -> Self {
        let said = |program: &str, args: &[&str]| {
            let output = Command::new(program).args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output();
            output.map_or_else(|_| "?".into(), |o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
        };
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib = memory.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        Self {
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            memory: format!("{} GiB", kib / (1 << 20)),
            kernel: said("uname", &["-r"]),
            date: said("date", &["-u", "+%F %H:%M"]),
            commit: said("git", &["describe", "--always", "--dirty"]),
        }
    }
}

/// For the terminal.
pub(super) fn brief(row: &Row) -> String {
    let mut text = format!("   {:?} in {} s; {}", row.outcome(), row.seconds, row.notes.join("; "));
    for cell in row.cells.iter().filter(|cell| !cell.is_clean() || cell.counted.good() == 0) {
        let mark = if cell.outcome() == Outcome::Broken { "!!" } else { "  " };
        let _ = write!(
            text,
            "\n   {mark} {} {}: {}",
            cell.path,
            cell.class.name(),
            super::world::brief(&cell.counted)
        );
    }
    text
}

/// The whole file.
pub(super) fn markdown(rows: &[Row], machine: &Machine, away: u64) -> String {
    let mut text = head(machine, away);
    text += "\n## Summary\n\n| fault | s | kept HTTP/1.1 | new connections | gRPC stream | opaque TCP | |\n|---|---|---|---|---|---|---|\n";
    for row in rows {
        let classes = Class::ALL.map(|class| losses(&row.sum(|cell| cell.class == class))).join(" | ");
        let verdict = match row.outcome() {
            Outcome::Clean => "nothing lost",
            Outcome::Expected => "as expected",
            Outcome::Broken => "**BROKEN**",
        };
        let _ = writeln!(text, "| {} | {} | {classes} | {verdict} |", row.name, row.seconds);
    }
    text += "\n## By path\n\nAnswered · failed · resets · longest gap in ms.\n";
    for row in rows {
        text += &detail(row);
    }
    text
}

fn head(machine: &Machine, away: u64) -> String {
    let Machine { cpus, memory, kernel, date, commit } = machine;
    format!(
        "# What restarts cost who is served\n\n\
         Written by `./dev faults` ({date} UTC, commit {commit}, {cpus} CPUs, {memory}, Linux {kernel}): a real Kubernetes with two nodes \
         (README.md beside this file), Weft with `agent.drainSeconds={DRAIN_SECONDS}`, the API server away for {away} s.\n\n\
         Each of 24 loads sends {RATE} requests or messages a second, one after the other, all the time: on six paths (between pods of the mesh by \
         Services; from outside through Gateways) in four classes. *kept*: HTTP/1.1 on one connection. *new*: a connection for each request. \
         *gRPC*: messages of one bidirectional call, each echoed before the next. *TCP*: the same over opaque TCP. The client opens anew what \
         broke, and retries no request.\n\n\
         - *failed*: requests and messages without a good answer; a message lost with its stream is one.\n\
         - *resets*: connections and streams that stood and were ended without a word before (`Connection: close` is one). A request that \
         fails on a standing connection counts as both.\n\
         - *gap*: the longest time without an answer on that load, in ms; 50 is the pace itself. Connections that wait for an agent show here.\n\n\
         What is not on the way of a path must not touch it: a failure or reset there is BROKEN, and so is one that has no explanation below.\n"
    )
}

fn losses(tally: &Tally) -> String {
    format!("{} / {} · {} ms", tally.bad(), tally.resets, tally.gap_ms)
}

fn detail(row: &Row) -> String {
    let hits = match row.hits {
        Hits::Nothing => "no path crosses it",
        Hits::FirstNode => "crossed by paths that touch n1",
        Hits::EveryNode => "crossed by every path",
    };
    let mut text = format!(
        "\n### {}\n\n{}\n\n",
        row.name,
        [&[hits.to_owned()], &row.notes[..]].concat().join("; ") + "."
    );
    text += "| path | kept HTTP/1.1 | new connections | gRPC stream | opaque TCP |\n|---|---|---|---|---|\n";
    for cells in row.cells.chunks(Class::ALL.len()) {
        let cell = |cell: &Cell| {
            let Tally { resets, gap_ms, .. } = cell.counted;
            let text = format!("{} · {} · {resets} · {gap_ms}", cell.counted.good(), cell.counted.bad());
            if cell.outcome() == Outcome::Broken { format!("**{text}**") } else { text }
        };
        let _ = writeln!(
            text,
            "| {} | {} |",
            cells[0].path,
            cells.iter().map(cell).collect::<Vec<_>>().join(" | ")
        );
    }
    text += &explanations(row);
    text
}

/// Why, for each class that lost something; what the clients saw, where nobody expected it.
fn explanations(row: &Row) -> String {
    let mut text = String::new();
    for class in Class::ALL {
        let lost = |outcome| move |cell: &Cell| cell.class == class && cell.outcome() == outcome;
        if let Some(cell) = row.cells.iter().find(|cell| lost(Outcome::Expected)(cell)) {
            let _ = write!(text, "\n- {}: {}.", class.name(), cell.cost.unwrap_or_default());
        }
        let broken = row.sum(lost(Outcome::Broken));
        if broken.bad() + broken.resets > 0 {
            let _ = write!(text, "\n- {}: **not expected**: {:?}", class.name(), broken.failures);
        }
    }
    if text.is_empty() { text } else { text + "\n" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::{fault::faults, world::Path};

    /// A fault by name, one load with these counts, and how it is judged.
    fn check(fault: &str, from: &str, class: Class, counted: (u64, u64, u64), outcome: Outcome) {
        let faults = faults(60);
        let fault = faults.iter().find(|f| f.name.contains(fault)).unwrap();
        let path = Path::inside("p", from, from);
        let (good, bad, resets) = counted;
        let failures = if bad > 0 { [("reset".to_owned(), bad)].into() } else { BTreeMap::new() };
        let tally = |messages, resets, failures| {
            let mut tally = Tally::default();
            (tally.messages, tally.resets, tally.failures) = (messages, resets, failures);
            tally
        };
        let mut all: BTreeMap<_, _> =
            Class::ALL.map(|c| (("p".to_owned(), c), tally(1, 0, BTreeMap::new()))).into();
        all.insert(("p".into(), class), tally(good, resets, failures));
        let row = Row::new(fault, &[path], all);
        assert_eq!(row.outcome(), outcome, "{}", brief(&row));
        let bold = markdown(&[row], &Machine::here(), 60).contains("**");
        assert_eq!(bold, outcome == Outcome::Broken);
    }

    #[test]
    fn what_is_not_crossed_may_lose_nothing() {
        check("nothing", "n1", Class::Tcp, (9, 0, 0), Outcome::Clean);
        check("nothing", "n1", Class::Tcp, (0, 0, 0), Outcome::Broken);
        check("kubelet", "n1", Class::Tcp, (9, 1, 1), Outcome::Broken);
        check("agent of n1 killed", "n1", Class::Kept, (9, 1, 1), Outcome::Expected);
        check("agent of n1 killed", "n2", Class::Kept, (9, 1, 1), Outcome::Broken);
        check("agents upgraded", "n2", Class::Tcp, (9, 0, 1), Outcome::Expected);
        check("agents upgraded", "n2", Class::Kept, (9, 0, 1), Outcome::Broken);
        check("holder", "n1", Class::New, (9, 1, 0), Outcome::Broken);
    }
}
