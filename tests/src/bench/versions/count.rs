//! Instructions and allocations of the agents per request and per new connection, counted by callgrind: slow, but the same
//! whatever else the machine does, where there is no hardware counter.

use super::{NEW, OLD, Side};
use crate::bench::{
    place::argv,
    results::{Figures, Row},
};
use anyhow::{Context as _, Result, ensure};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

/// Name, title, arguments of `weft call`.
const LOADS: &[(&str, &str, &[&str])] = &[
    ("count-kept", "HTTP 1 KiB, kept connections", &["--connections=4"]),
    ("count-new", "HTTP 1 KiB, a new connection each", &["--connections=4", "--no-keepalive"]),
];
/// Requests that are counted, and those before them that are not: the first make what is made once.
const COUNT: u64 = 1000;
const WARM: u64 = 100;
/// Functions that hand out memory; a call from one to another is not a second allocation.
const ALLOCATORS: &[&str] = &[
    "mi_malloc",
    "mi_malloc_aligned",
    "mi_zalloc",
    "mi_zalloc_aligned",
    "mi_calloc",
    "mi_realloc",
    "mi_realloc_aligned",
    "malloc",
    "calloc",
    "realloc",
];
const LIMIT: Duration = Duration::from_secs(300);

/// A row for each load, with one sample of each build.
///
/// # Errors
/// When valgrind is missing, or an agent does not run in it.
pub(super) fn run(builds: &[PathBuf; 2]) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = LOADS.iter().map(|(name, title, _)| Row::new(name, title)).collect();
    for (build, who) in builds.iter().zip([OLD, NEW]) {
        let dir = tempfile::tempdir()?;
        let weft = under_valgrind(build, dir.path())?;
        // The plugin waits for an agent as long as a kubelet lets it, which valgrind on a busy machine may exceed.
        let again = |tried: Result<Side>| tried.or_else(|_| Side::new(&weft, LIMIT));
        let side = again(again(Side::new(&weft, LIMIT)))?;
        for ((_, title, args), row) in LOADS.iter().zip(&mut rows) {
            eprintln!("count {who}: {title}");
            let figures = one(&side, build, args, dir.path())?;
            eprintln!("  {figures:?}");
            row.add(who, figures);
        }
    }
    Ok(rows)
}

/// A directory with a `weft` that runs the build in callgrind, and its plugin as it is. Without its line tables, which
/// valgrind would read at every start; names of functions stay.
fn under_valgrind(build: &Path, dir: &Path) -> Result<PathBuf> {
    let program = dir.join("program");
    let stripped =
        Command::new("strip").arg("--strip-debug").arg("-o").args([program.as_path(), build]).status()?;
    ensure!(stripped.success(), "cannot strip {}", build.display());
    let script = dir.join("weft");
    let text = format!(
        "#!/bin/sh\nexec valgrind --quiet --tool=callgrind --instr-atstart=no --callgrind-out-file={}/out.%p {} \"$@\"\n",
        dir.display(),
        program.display()
    );
    fs::write(&script, text)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    symlink(build.with_file_name("weft-cni"), dir.join("weft-cni"))?;
    Ok(script)
}

fn one(side: &Side, build: &Path, args: &[&str], dir: &Path) -> Result<Figures> {
    let url = format!("http://{}:{}/1k", side.path.ip, side.path.http);
    let call = |count: u64| -> Result<()> {
        let count = format!("--count={count}");
        let words = [&[build.to_str().context("path")?, "call", &url, &count][..], args].concat();
        let text = side.path.client.run(&argv(&words), LIMIT)?.ok()?;
        let tally: weft::call::Tally = serde_json::from_str(&text)?;
        ensure!(tally.bad() == 0, "requests failed: {text}");
        Ok(())
    };
    let each = |flags: &[&str]| side.rig.agents.iter().try_for_each(|pid| control(*pid, flags));
    each(&["-i", "on"])?;
    call(WARM)?;
    each(&["-z"])?;
    call(COUNT)?;
    each(&["-d"])?;
    each(&["-i", "off"])?;
    let mut figures = Figures::new();
    for (pid, part) in side.rig.agents.iter().zip(["client", "server"]) {
        let counted = read(&newest(dir, *pid)?)?;
        for (what, number) in [("instructions", counted.instructions), ("allocations", counted.allocations)] {
            let each = number as f64 / COUNT as f64;
            *figures.entry(what.to_owned()).or_default() += each;
            figures.insert(format!("{what}@{part}"), each);
        }
    }
    Ok(figures)
}

fn control(pid: u32, flags: &[&str]) -> Result<()> {
    let mut command = Command::new("callgrind_control");
    let output = command.args(flags).arg(pid.to_string()).stdin(Stdio::null()).output();
    let output = output.context("cannot run callgrind_control (Debian package valgrind)")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && said.contains("OK"), "callgrind_control {flags:?} {pid}: {said}");
    Ok(())
}

/// The dump with the highest number: `out.PID.1`, `out.PID.2`…
fn newest(dir: &Path, pid: u32) -> Result<PathBuf> {
    let start = format!("out.{pid}.");
    let number =
        |path: &PathBuf| -> Option<u32> { path.file_name()?.to_str()?.strip_prefix(&start)?.parse().ok() };
    let files = fs::read_dir(dir)?.filter_map(|entry| Some(entry.ok()?.path()));
    files.filter(|path| number(path).is_some()).max_by_key(number).context("callgrind wrote nothing")
}

/// What a dump says.
#[derive(Debug, PartialEq, Eq)]
struct Counted {
    instructions: u64,
    allocations: u64,
}

fn read(file: &Path) -> Result<Counted> {
    parse(&fs::read_to_string(file)?).with_context(|| file.display().to_string())
}

/// The format of callgrind's manual: `fn=(ID) NAME` begins a function, `cfn=(ID)` names whom it calls, `calls=COUNT` how often;
/// a name is written once and then meant by its number.
fn parse(text: &str) -> Result<Counted> {
    let mut names: BTreeMap<&str, &str> = BTreeMap::new();
    let (mut caller, mut called) = (false, false);
    let (mut instructions, mut allocations) = (None, 0);
    for line in text.lines() {
        let mut known = |rest| {
            let (id, name) = split(rest);
            if !name.is_empty() {
                names.insert(id, name);
            }
            names.get(id).copied().unwrap_or_default()
        };
        if let Some(rest) = line.strip_prefix("fn=") {
            caller = is_allocator(known(rest));
        } else if let Some(rest) = line.strip_prefix("cfn=") {
            called = ALLOCATORS.contains(&plain(known(rest)));
        } else if let Some(rest) = line.strip_prefix("calls=") {
            let count: u64 = rest.split(' ').next().unwrap_or_default().parse()?;
            allocations += if called && !caller { count } else { 0 };
        } else if let Some(rest) = line.strip_prefix("totals: ").or_else(|| line.strip_prefix("summary: ")) {
            instructions = rest.split(' ').next().and_then(|number| number.parse().ok());
        }
    }
    Ok(Counted { instructions: instructions.context("no totals")?, allocations })
}

/// `(ID) NAME` or `(ID)`.
fn split(rest: &str) -> (&str, &str) {
    rest.split_once(") ").unwrap_or((rest.trim_end_matches(')'), ""))
}

/// Without the mark of a recursion (`name'2`).
fn plain(name: &str) -> &str {
    name.split('\'').next().unwrap_or(name)
}

fn is_allocator(name: &str) -> bool {
    ALLOCATORS.contains(&plain(name)) || name.starts_with("_mi_") || name.starts_with("mi_")
}

/// The counts in Markdown; empty without any.
pub(super) fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    for (what, title) in [("instructions", "Instructions"), ("allocations", "Allocations")] {
        let counted: Vec<_> = rows
            .iter()
            .filter_map(|row| Some((row, row.spread(OLD, what)?.median, row.spread(NEW, what)?.median)))
            .collect();
        if counted.is_empty() {
            continue;
        }
        let _ = writeln!(
            text,
            "\n### {title} of both agents per request, counted by callgrind\n\n| load | old | new | new ÷ old |\n|---|---:|---:|---:|"
        );
        for (row, old, new) in counted {
            let _ = writeln!(text, "| {} | {old:.1} | {new:.1} | **{:.3}** |", row.title, new / old);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_calls_into_allocators_from_outside_of_them() -> Result<()> {
        let text = "version: 1\nevents: Ir\nfn=(1) weft::serve\n16 400\ncfn=(2) mi_malloc_aligned\ncalls=7 0 \n16 700\n\
            cfn=(3) weft::other\ncalls=100 0\n16 9\nfn=(2)\n3 5\ncfn=(4) mi_malloc\ncalls=7 0\n3 1\n\
            fn=(3)\ncfn=(4)\ncalls=5 0\n3 1\ncfn=(5) malloc'2\ncalls=1 0\n3 1\ntotals: 123456\n";
        assert_eq!(parse(text)?, Counted { instructions: 123_456, allocations: 13 });
        assert!(parse("nothing").is_err());
        Ok(())
    }
}
