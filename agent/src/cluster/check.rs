//! `weft check`: each check has an id that never changes its meaning, a result, and a remedy. Deciding is apart from asking:
//! [`findings`] is a function of [`Facts`].

use super::{
    api::{Cluster, annotation, condition, key, label, list, text},
    args::CheckArgs,
    bundle,
    facts::{self, Facts, GATEWAY_API, Want},
    install::{trouble, waiting_for},
    members::{Scene, State, members},
    missing::missing,
    show::{Mark, Show, count},
};
use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};
use std::process::ExitCode;

mod codes;
mod identity;
mod mesh;
mod platform;

#[cfg(test)]
mod tests;

/// The oldest Kubernetes, as (major, minor).
const KUBERNETES_MIN: (u32, u32) = weft_k8s::MINIMUM_KUBERNETES;
/// The oldest kernel: what the capture rules need is older; this is the oldest that is tested by anybody still.
const KERNEL_MIN: (u32, u32) = (5, 10);
/// The oldest bundle of the Gateway API, and the newest that is tested.
const BUNDLE_MIN: (u32, u32) = (weft_k8s::MINIMUM_BUNDLE.0, weft_k8s::MINIMUM_BUNDLE.1);
const BUNDLE_TESTED: (u32, u32) = (1, 6);

/// How bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Level {
    /// Holds.
    Ok,
    /// Worth knowing.
    Info,
    /// Works, but not as it could; or could not be looked at.
    Warning,
    /// Does not work.
    Error,
}

/// One result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// `WEFT-C001`; never used for anything else.
    pub(super) id: &'static str,
    /// How bad.
    pub(super) level: Level,
    /// What was looked at and found, naming object and field.
    pub(super) message: String,
    /// What to do; empty when nothing.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) remedy: String,
}

/// Collects findings.
struct Report<'a> {
    facts: &'a Facts,
    findings: Vec<Finding>,
}

impl Report<'_> {
    fn add(&mut self, id: &'static str, level: Level, message: impl Into<String>, remedy: impl Into<String>) {
        self.findings.push(Finding { id, level, message: message.into(), remedy: remedy.into() });
    }

    fn ok(&mut self, id: &'static str, message: impl Into<String>) {
        self.add(id, Level::Ok, message, "");
    }

    /// Whether a kind could not be looked at; says so.
    fn denied(&mut self, id: &'static str, path: &str) -> bool {
        let denied = self.facts.denied.contains(path);
        if denied {
            self.add(
                id,
                Level::Warning,
                format!("{path}: not readable by you, so not checked"),
                "use a context with more rights: --context",
            );
        }
        denied
    }
}

/// Prints what every code means; no cluster is asked.
pub(super) fn explain(show: &Show) {
    show.result(&json!(codes::CODES));
    for code in codes::CODES {
        show.line(Mark::Plain, &format!("{}  {}", code.id, code.about));
        show.plain(&format!("             → {}", code.remedy));
    }
}

/// Runs the checks.
pub(super) async fn run(cluster: &Cluster, args: &CheckArgs, show: &Show) -> Result<ExitCode> {
    let want = if args.pre { Want::Pre } else { Want::All };
    let findings = findings(&facts::gather(cluster, want).await?, want);
    for finding in &findings {
        print(finding, show);
    }
    let of = |level| findings.iter().filter(|f| f.level == level).count();
    let (errors, warnings) = (of(Level::Error), of(Level::Warning));
    show.result(&json!({"ok": errors == 0, "errors": errors, "warnings": warnings, "findings": findings}));
    let mark = if errors > 0 { Mark::Bad } else { Mark::Good };
    show.line(
        mark,
        &format!(
            "{}, {}, {}",
            count(findings.len(), "check"),
            count(errors, "error"),
            count(warnings, "warning")
        ),
    );
    Ok(if errors > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// One finding for people.
pub(super) fn print(finding: &Finding, show: &Show) {
    let mark = match finding.level {
        Level::Ok => Mark::Good,
        Level::Info => Mark::Plain,
        Level::Warning => Mark::Warn,
        Level::Error => Mark::Bad,
    };
    show.line(mark, &format!("{}  {}", finding.id, finding.message));
    if !finding.remedy.is_empty() {
        show.plain(&format!("             → {}", finding.remedy));
    }
}

/// Every check's result.
pub(super) fn findings(facts: &Facts, want: Want) -> Vec<Finding> {
    let mut report = Report { facts, findings: Vec::new() };
    platform::kubernetes(&mut report);
    if want == Want::Pre {
        platform::rights(&mut report);
    }
    platform::nodes(&mut report);
    platform::gateway_api(&mut report);
    platform::pod_security(&mut report);
    platform::load_balancing(&mut report);
    if want == Want::All {
        mesh::installed(&mut report);
    }
    report.findings
}

/// What capture cannot see in this cluster, whatever a pod's label says.
pub(super) fn blind_spots(facts: &Facts) -> Vec<Finding> {
    let mut report = Report { facts, findings: Vec::new() };
    platform::load_balancing(&mut report);
    report.findings.retain(|finding| finding.level == Level::Error && finding.id != "WEFT-C012");
    report.findings
}

/// The first two numbers of a version such as `v1.31.4-gke.1` or `6.1.0-18-amd64`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim_start_matches('v').split(['.', '-', '+']).map(|part| part.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}
