//! Tables of a suite, and `RESULTS.md` from the raw results of all.

use super::{
    output,
    peers::versions,
    results::{Figures, Row, Spread, Suite},
};
use anyhow::{Result, ensure};
use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

/// The method, as the report tells it.
const METHOD: &str = include_str!("method.md");

/// Lines of a profile that the report shows; all of them are in `out/`.
const PROFILE_LINES: usize = 25;

/// One figure of one participant.
type Cell = (&'static str, &'static str);

/// A table: which figure of whom, and which ratios of medians.
struct Table {
    heading: &'static str,
    /// Header, what, multiplied by, digits.
    columns: &'static [(&'static str, Cell, f64, usize)],
    ratios: &'static [(&'static str, Cell, Cell)],
}

const GATEWAY: &[Table] = &[
    Table {
        heading: "CPU of the proxy per request, µs (the figure to trust; ratios below 1 are in Weft's favour)",
        columns: &[
            ("weft", ("weft", "cpu_us"), 1.0, 1),
            ("Envoy", ("envoy", "cpu_us"), 1.0, 1),
            ("nginx", ("nginx", "cpu_us"), 1.0, 1),
            ("HAProxy", ("haproxy", "cpu_us"), 1.0, 1),
        ],
        ratios: &[
            ("weft ÷ Envoy", ("weft", "cpu_us"), ("envoy", "cpu_us")),
            ("÷ nginx", ("weft", "cpu_us"), ("nginx", "cpu_us")),
            ("÷ HAProxy", ("weft", "cpu_us"), ("haproxy", "cpu_us")),
        ],
    },
    Table {
        heading: "Requests per second (load and backend share a CPU; ratios above 1 are in Weft's favour)",
        columns: &[
            ("direct", ("direct", "rate"), 1.0, 0),
            ("weft", ("weft", "rate"), 1.0, 0),
            ("Envoy", ("envoy", "rate"), 1.0, 0),
            ("nginx", ("nginx", "rate"), 1.0, 0),
            ("HAProxy", ("haproxy", "rate"), 1.0, 0),
        ],
        ratios: &[
            ("weft ÷ Envoy", ("weft", "rate"), ("envoy", "rate")),
            ("÷ nginx", ("weft", "rate"), ("nginx", "rate")),
            ("÷ HAProxy", ("weft", "rate"), ("haproxy", "rate")),
        ],
    },
    Table {
        heading: "Median latency, µs",
        columns: &[
            ("direct", ("direct", "p50_us"), 1.0, 0),
            ("weft", ("weft", "p50_us"), 1.0, 0),
            ("Envoy", ("envoy", "p50_us"), 1.0, 0),
            ("nginx", ("nginx", "p50_us"), 1.0, 0),
            ("HAProxy", ("haproxy", "p50_us"), 1.0, 0),
        ],
        ratios: &[
            ("weft ÷ Envoy", ("weft", "p50_us"), ("envoy", "p50_us")),
            ("÷ nginx", ("weft", "p50_us"), ("nginx", "p50_us")),
        ],
    },
    Table {
        heading: "p99 latency, µs (at a fixed rate it is the proxy's; at full speed it is mostly the queue before it)",
        columns: &[
            ("direct", ("direct", "p99_us"), 1.0, 0),
            ("weft", ("weft", "p99_us"), 1.0, 0),
            ("Envoy", ("envoy", "p99_us"), 1.0, 0),
            ("nginx", ("nginx", "p99_us"), 1.0, 0),
            ("HAProxy", ("haproxy", "p99_us"), 1.0, 0),
        ],
        ratios: &[
            ("weft ÷ Envoy", ("weft", "p99_us"), ("envoy", "p99_us")),
            ("÷ nginx", ("weft", "p99_us"), ("nginx", "p99_us")),
        ],
    },
    Table {
        heading: "Memory per idle connection, KiB",
        columns: &[
            ("weft", ("weft", "bytes_conn"), 1.0 / 1024.0, 1),
            ("Envoy", ("envoy", "bytes_conn"), 1.0 / 1024.0, 1),
            ("nginx", ("nginx", "bytes_conn"), 1.0 / 1024.0, 1),
            ("HAProxy", ("haproxy", "bytes_conn"), 1.0 / 1024.0, 1),
        ],
        ratios: &[
            ("weft ÷ Envoy", ("weft", "bytes_conn"), ("envoy", "bytes_conn")),
            ("÷ nginx", ("weft", "bytes_conn"), ("nginx", "bytes_conn")),
        ],
    },
    Table {
        heading: "Memory of the process tree after the run, MB (PSS)",
        columns: &[
            ("weft", ("weft", "pss_mb"), 1.0, 1),
            ("Envoy", ("envoy", "pss_mb"), 1.0, 1),
            ("nginx", ("nginx", "pss_mb"), 1.0, 1),
            ("HAProxy", ("haproxy", "pss_mb"), 1.0, 1),
        ],
        ratios: &[("weft ÷ Envoy", ("weft", "pss_mb"), ("envoy", "pss_mb"))],
    },
];

const MESH: &[Table] = &[
    Table {
        heading: "CPU of the two agents per request, µs",
        columns: &[
            ("both", ("weft", "cpu_us"), 1.0, 1),
            ("client's agent", ("weft", "cpu_us@client"), 1.0, 1),
            ("server's agent", ("weft", "cpu_us@server"), 1.0, 1),
        ],
        ratios: &[],
    },
    Table {
        heading: "CPU of the two agents per GB, s",
        columns: &[
            ("both", ("weft", "cpu_gb"), 1.0, 2),
            ("client's agent", ("weft", "cpu_gb@client"), 1.0, 2),
            ("server's agent", ("weft", "cpu_gb@server"), 1.0, 2),
        ],
        ratios: &[],
    },
    Table {
        heading: "Bulk, Gbit/s",
        columns: &[("direct", ("direct", "gbit"), 1.0, 1), ("mesh", ("weft", "gbit"), 1.0, 1)],
        ratios: &[("mesh ÷ direct", ("weft", "gbit"), ("direct", "gbit"))],
    },
    Table {
        heading: "Requests per second",
        columns: &[("direct", ("direct", "rate"), 1.0, 0), ("mesh", ("weft", "rate"), 1.0, 0)],
        ratios: &[("mesh ÷ direct", ("weft", "rate"), ("direct", "rate"))],
    },
    Table {
        heading: "Latency, µs (for a new connection per request wrk's clock starts after its connect)",
        columns: &[
            ("direct p50", ("direct", "p50_us"), 1.0, 0),
            ("mesh p50", ("weft", "p50_us"), 1.0, 0),
            ("direct p99", ("direct", "p99_us"), 1.0, 0),
            ("mesh p99", ("weft", "p99_us"), 1.0, 0),
        ],
        ratios: &[
            ("p50: mesh ÷ direct", ("weft", "p50_us"), ("direct", "p50_us")),
            ("p99: mesh ÷ direct", ("weft", "p99_us"), ("direct", "p99_us")),
        ],
    },
    Table {
        heading: "Memory per idle connection, KiB",
        columns: &[
            ("client's agent", ("weft", "bytes_conn@client"), 1.0 / 1024.0, 1),
            ("server's agent", ("weft", "bytes_conn@server"), 1.0 / 1024.0, 1),
            ("both agents' memory, MB", ("weft", "pss_mb"), 1.0, 1),
        ],
        ratios: &[],
    },
];

const FAIRNESS: &[Table] = &[
    Table {
        heading: "The victim's p99 at 500 requests/s, µs, without the requests that met one of the machine's own holes (control: the same attack among pods outside the mesh)",
        columns: &[
            ("alone", ("alone", "p99_apart_us"), 1.0, 0),
            ("beside the attack", ("beside", "p99_apart_us"), 1.0, 0),
            ("beside the control", ("control", "p99_apart_us"), 1.0, 0),
            ("attack, per second or Gbit/s", ("beside", "attack"), 1.0, 1),
            ("control", ("control", "attack"), 1.0, 1),
        ],
        ratios: &[
            ("attack ÷ alone", ("beside", "p99_apart_us"), ("alone", "p99_apart_us")),
            ("control ÷ alone", ("control", "p99_apart_us"), ("alone", "p99_apart_us")),
            ("attack ÷ control", ("beside", "p99_apart_us"), ("control", "p99_apart_us")),
        ],
    },
    Table {
        heading: "The same of all requests, holes included",
        columns: &[
            ("alone", ("alone", "p99_us"), 1.0, 0),
            ("beside the attack", ("beside", "p99_us"), 1.0, 0),
            ("beside the control", ("control", "p99_us"), 1.0, 0),
        ],
        ratios: &[
            ("attack ÷ alone", ("beside", "p99_us"), ("alone", "p99_us")),
            ("control ÷ alone", ("control", "p99_us"), ("alone", "p99_us")),
            ("attack ÷ control", ("beside", "p99_us"), ("control", "p99_us")),
        ],
    },
    Table {
        heading: "The machine's own holes: requests taken out, %; ms in holes in a run, and of these taken by the hypervisor",
        columns: &[
            ("taken out, alone", ("alone", "taken_pct"), 1.0, 1),
            ("beside the attack", ("beside", "taken_pct"), 1.0, 1),
            ("beside the control", ("control", "taken_pct"), 1.0, 1),
            ("in holes, alone", ("alone", "holes_ms"), 1.0, 0),
            ("beside the attack", ("beside", "holes_ms"), 1.0, 0),
            ("beside the control", ("control", "holes_ms"), 1.0, 0),
            ("stolen, alone", ("alone", "stolen_ms"), 1.0, 0),
            ("beside the attack", ("beside", "stolen_ms"), 1.0, 0),
            ("beside the control", ("control", "stolen_ms"), 1.0, 0),
        ],
        ratios: &[],
    },
    Table {
        heading: "The agents' own account, p99 in µs (bounds of histogram buckets): from ready to its turn; between two looks at the sockets",
        columns: &[
            ("wait, alone", ("alone", "wait_p99_us"), 1.0, 0),
            ("beside the attack", ("beside", "wait_p99_us"), 1.0, 0),
            ("beside the control", ("control", "wait_p99_us"), 1.0, 0),
            ("stretch, alone", ("alone", "stretch_p99_us"), 1.0, 0),
            ("beside the attack", ("beside", "stretch_p99_us"), 1.0, 0),
            ("beside the control", ("control", "stretch_p99_us"), 1.0, 0),
        ],
        ratios: &[],
    },
    Table {
        heading: "The victim's median, µs",
        columns: &[
            ("alone", ("alone", "p50_us"), 1.0, 0),
            ("beside the attack", ("beside", "p50_us"), 1.0, 0),
            ("beside the control", ("control", "p50_us"), 1.0, 0),
        ],
        ratios: &[("attack ÷ alone", ("beside", "p50_us"), ("alone", "p50_us"))],
    },
    Table {
        heading: "Both agents' memory, MB: before an attack, at its end, and afterwards (within 60 s)",
        columns: &[
            ("before", ("beside", "pss_before_mb"), 1.0, 1),
            ("at the end", ("beside", "pss_end_mb"), 1.0, 1),
            ("afterwards", ("beside", "pss_after_mb"), 1.0, 1),
            ("after, s", ("beside", "back_s"), 1.0, 0),
        ],
        ratios: &[],
    },
];

/// What must be reached: suite, row, words, the value, the most it may be.
struct Budget {
    place: (&'static str, &'static str),
    what: &'static str,
    of: Cell,
    to: Option<Cell>,
    most: f64,
    /// A second ratio, shown beside it: what it is, of, to.
    also: Option<(&'static str, Cell, Cell)>,
}

const fn budget(
    place: (&'static str, &'static str),
    what: &'static str,
    of: Cell,
    to: Option<Cell>,
    most: f64,
) -> Budget {
    Budget { place, what, of, to, most, also: None }
}

const fn fairness(scenario: &'static str) -> Budget {
    Budget {
        place: ("fairness", scenario),
        what: "p99 beside ÷ alone, without the machine's own holes (goal 1.2)",
        of: ("beside", "p99_apart_us"),
        to: Some(("alone", "p99_apart_us")),
        most: 1.5,
        also: Some(("holes included", ("beside", "p99_us"), ("alone", "p99_us"))),
    }
}

/// An attack that the kernel has work with too: what counts is what the agents add to it.
const fn flood(scenario: &'static str) -> Budget {
    Budget {
        place: ("fairness", scenario),
        what: "p99 beside the attack ÷ beside the control, without the machine's own holes",
        of: ("beside", "p99_apart_us"),
        to: Some(("control", "p99_apart_us")),
        most: 1.2,
        also: Some(("the agents' own wait", ("beside", "wait_p99_us"), ("control", "wait_p99_us"))),
    }
}

const BUDGETS: &[Budget] = &[
    budget(
        ("gateway", "h1-128-w1"),
        "CPU per request ÷ Envoy's",
        ("weft", "cpu_us"),
        Some(("envoy", "cpu_us")),
        0.55,
    ),
    budget(
        ("gateway", "h1-128-w1"),
        "CPU per request ÷ nginx's",
        ("weft", "cpu_us"),
        Some(("nginx", "cpu_us")),
        1.3,
    ),
    budget(
        ("gateway", "h1-128-log-w1"),
        "the same with access logs ÷ Envoy's",
        ("weft", "cpu_us"),
        Some(("envoy", "cpu_us")),
        0.55,
    ),
    budget(
        ("gateway", "h1-128-log-w1"),
        "the same with access logs ÷ nginx's",
        ("weft", "cpu_us"),
        Some(("nginx", "cpu_us")),
        1.3,
    ),
    budget(("mesh", "http-1k-64"), "CPU µs per request, both agents", ("weft", "cpu_us"), None, 45.0),
    budget(
        ("mesh", "newconn-16"),
        "CPU µs per new HTTP connection, both agents",
        ("weft", "cpu_us"),
        None,
        120.0,
    ),
    budget(("mesh", "iperf-1"), "CPU s per GB, both agents", ("weft", "cpu_gb"), None, 1.6),
    fairness("flood-connections"),
    fairness("flood-handshakes"),
    fairness("flood-bytes"),
    flood("half-sent"),
    flood("windows"),
    flood("resets-0"),
    flood("resets-1"),
    flood("resets-10"),
    flood("resets-100"),
    flood("edge-half-sent"),
    flood("edge-windows"),
    flood("edge-resets-0"),
    flood("edge-resets-1"),
    flood("edge-resets-10"),
    flood("edge-resets-100"),
    flood("edge-datagrams"),
];

/// A suite's tables in Markdown; readable in a terminal too.
pub(super) fn tables(name: &str, suite: &Suite) -> String {
    if name == "versions" {
        return super::versions::tables(suite);
    }
    let tables = match name {
        "gateway" => GATEWAY,
        "mesh" => MESH,
        _ => FAIRNESS,
    };
    let mut text = String::new();
    for table in tables {
        let rows: Vec<&Row> = suite
            .rows
            .iter()
            .filter(|r| table.columns.iter().any(|c| r.spread(c.1.0, c.1.1).is_some()))
            .collect();
        if rows.is_empty() {
            continue;
        }
        let _ = writeln!(text, "### {}\n", table.heading);
        let headers: Vec<&str> =
            table.columns.iter().map(|c| c.0).chain(table.ratios.iter().map(|r| r.0)).collect();
        let _ =
            writeln!(text, "| scenario | {} |\n|---|{}", headers.join(" | "), "---:|".repeat(headers.len()));
        for row in rows {
            let _ = writeln!(text, "| {} | {} |", row.title, cells(table, row).join(" | "));
        }
        text.push('\n');
    }
    let noisy: Vec<String> =
        suite.rows.iter().filter(|r| r.noisy > 0).map(|r| format!("{} ({})", r.name, r.noisy)).collect();
    if !noisy.is_empty() {
        let _ = writeln!(text, "Runs that other programs disturbed all the same: {}.\n", noisy.join(", "));
    }
    for row in &suite.rows {
        for failure in &row.failures {
            let _ =
                writeln!(text, "**Failed**, {}: {}\n", row.name, failure.lines().next().unwrap_or_default());
        }
    }
    text
}

fn cells(table: &Table, row: &Row) -> Vec<String> {
    let values = table.columns.iter().map(|(_, (who, figure), factor, digits)| {
        row.spread(who, figure).map_or_else(
            || "–".to_owned(),
            |Spread { median, min, max }| {
                let [median, min, max] = [median, min, max].map(|v| format!("{:.digits$}", v * factor));
                if min == max { median } else { format!("{median} ({min}–{max})") }
            },
        )
    });
    let ratios = table
        .ratios
        .iter()
        .map(|(_, of, to)| ratio(row, *of, *to).map_or_else(|| "–".to_owned(), |r| format!("**{r:.2}**")));
    values.chain(ratios).collect()
}

fn ratio(row: &Row, of: Cell, to: Cell) -> Option<f64> {
    let (of, to) = (row.spread(of.0, of.1)?.median, row.spread(to.0, to.1)?.median);
    (to > 0.0).then_some(of / to)
}

/// Figures of one run for the progress on the terminal.
pub(super) fn one_line(figures: &Figures) -> String {
    let parts: Vec<String> = figures
        .iter()
        .filter(|(name, value)| *name != "others" || **value > 0.05)
        .map(|(name, value)| format!("{name} {value:.*}", if *value < 10.0 { 2 } else { 0 }))
        .collect();
    parts.join("  ")
}

/// Writes the report from what the suites left in `out`.
///
/// # Errors
/// When there is nothing.
pub(super) fn write(out: &Path, file: &Path) -> Result<()> {
    let mut suites = BTreeMap::new();
    for name in ["gateway", "mesh", "fairness", "versions"] {
        if let Some(suite) = Suite::read(&out.join(format!("{name}.json")))? {
            suites.insert(name, suite);
        }
    }
    ensure!(!suites.is_empty(), "no results in {}: run `weft-bench all` first", out.display());
    let mut text = String::from("# Results\n\nWritten by `./dev bench`; do not edit.\n\n## Machine\n\n");
    text.push_str(&machine());
    for (name, suite) in &suites {
        let _ = writeln!(
            text,
            "- {name}: {} UTC, commit {}, {} rounds of {} s",
            suite.date, suite.commit, suite.rounds, suite.seconds
        );
    }
    let _ = writeln!(text, "\n## Method\n\n{METHOD}\n## Budgets\n\n{}", budgets(&suites));
    for (name, title) in [
        ("gateway", "Gateway: proxies in front of one backend"),
        ("mesh", "Mesh: pod to pod through two agents"),
        ("fairness", "Fairness: one pod beside another pod's flood"),
        ("versions", "Versions: an older build and this one"),
    ] {
        if let Some(suite) = suites.get(name) {
            let _ = writeln!(text, "## {title}\n\n{}", tables(name, suite).trim_end());
            text.push('\n');
        }
    }
    text.push_str(&profiles(out));
    fs::write(file, text)?;
    eprintln!("wrote {}", file.display());
    Ok(())
}

fn machine() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find(|l| l.starts_with("model name")).and_then(|l| l.split(": ").nth(1));
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let mut text =
        format!("- {cpus} CPUs, {}, Linux {}\n", model.unwrap_or("unknown"), output("uname", &["-r"]));
    let versions: Vec<String> = versions().into_iter().map(|(name, v)| format!("{name}: `{v}`")).collect();
    let _ = writeln!(text, "- {}", versions.join(" · "));
    text
}

fn budgets(suites: &BTreeMap<&str, Suite>) -> String {
    let mut text = String::from("| scenario | what | at most | measured | |\n|---|---|---:|---:|---|\n");
    for Budget { place: (suite, name), what, of, to, most, also } in BUDGETS {
        let row = suites.get(suite).and_then(|s| s.row(name));
        let value = row.and_then(|row| match to {
            Some(to) => ratio(row, *of, *to),
            None => row.spread(of.0, of.1).map(|s| s.median),
        });
        let (measured, verdict) = match value {
            Some(value) if value <= *most => (format!("{value:.2}"), "reached"),
            Some(value) => (format!("{value:.2}"), "**not reached**"),
            None => ("–".to_owned(), "not measured"),
        };
        let also = also
            .zip(row)
            .and_then(|((what, of, to), row)| Some(format!(" ({what}: {:.2})", ratio(row, of, to)?)))
            .unwrap_or_default();
        let _ = writeln!(text, "| {suite} {name} | {what} | {most} | {measured}{also} | {verdict} |");
    }
    text
}

/// The tops of the profiles of the last run with `--profile-hot-path`.
fn profiles(out: &Path) -> String {
    let mut files: Vec<_> = fs::read_dir(out)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "txt"))
        .collect();
    files.sort();
    let mut text = String::new();
    for file in files {
        let Ok(table) = fs::read_to_string(&file) else { continue };
        let name = file.file_stem().unwrap_or_default().to_string_lossy().replace("perf-", "");
        let top: Vec<&str> = table.lines().take(PROFILE_LINES).collect();
        if text.is_empty() {
            text.push_str(
                "## Where the time goes\n\nSelf time of the agent by function (`perf`, cpu-clock).\n",
            );
        }
        let _ = writeln!(text, "\n{name}:\n\n```\n{}\n```", top.join("\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(who: &str, row: &mut Row, cpu: &[f64]) {
        for value in cpu {
            row.add(who, Figures::from([("cpu_us".into(), *value)]));
        }
    }

    #[test]
    fn tables_show_medians_spread_and_ratios() {
        let mut row = Row::new("h1-128-w1", "HTTP/1.1");
        sample("weft", &mut row, &[20.0, 18.0, 19.0]);
        sample("envoy", &mut row, &[40.0]);
        row.failures.push("nginx: gone".into());
        let suite = Suite { rows: vec![row], ..Suite::default() };
        let text = tables("gateway", &suite);
        assert!(text.contains("| HTTP/1.1 | 19.0 (18.0–20.0) | 40.0 | – | – | **0.47** | – | – |"), "{text}");
        assert!(text.contains("**Failed**, h1-128-w1: nginx: gone"), "{text}");
        let text = budgets(&BTreeMap::from([("gateway", suite)]));
        assert!(text.contains("| 0.55 | 0.47 | reached |"), "{text}");
        assert!(text.contains("not measured"), "{text}");
    }

    #[test]
    fn fairness_is_judged_without_the_holes_and_shown_with_them() {
        let mut row = Row::new("flood-bytes", "bytes");
        for (who, apart, all) in [("alone", 500.0, 600.0), ("beside", 600.0, 1500.0)] {
            let figures = [("p99_apart_us", apart), ("p99_us", all), ("taken_pct", 2.0)];
            row.add(who, figures.map(|(name, value)| (name.to_owned(), value)).into());
        }
        let suite = Suite { rows: vec![row], ..Suite::default() };
        let text = budgets(&BTreeMap::from([("fairness", suite.clone())]));
        assert!(text.contains("| 1.5 | 1.20 (holes included: 2.50) | reached |"), "{text}");
        let text = tables("fairness", &suite);
        assert!(text.contains("| bytes | 500 | 600 | – | – | – | **1.20** | – | – |"), "{text}");
        assert!(text.contains("| bytes | 600 | 1500 | – | **2.50** | – | – |"), "{text}");
    }
}
