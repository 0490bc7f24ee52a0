//! What people have written: settings, labels, annotations, and what became of their Gateways and routes.

use super::*;
use crate::cluster::{
    conditions::{Weight, faulty},
    mtls::{self, Settings},
    overlap,
};
use weft_k8s::Severity;

pub(super) fn written(report: &mut Report<'_>) {
    settings(report);
    words(report);
    conditions(report);
    overlaps(report);
}

/// The mesh's settings.
fn settings(report: &mut Report<'_>) {
    for problem in Settings::of(report.facts).problems {
        let level = match problem.severity {
            Severity::Error => Level::Error,
            _ => Level::Warning,
        };
        let at = if problem.path.is_empty() { String::new() } else { format!(" {}:", problem.path) };
        let message = format!("ConfigMap weft-system/weft-config:{at} {}", problem.reason);
        let remedy = match &*problem.remedy {
            "" => "correct it: `weft install --set config.…`, or the chart's `config`".to_owned(),
            remedy => format!("{remedy}: `weft install --set config.…`, or the chart's `config`"),
        };
        report.add("WEFT-C051", level, message, remedy);
    }
}

/// Labels and annotations of namespaces and pods.
fn words(report: &mut Report<'_>) {
    for said in mtls::remarks(report.facts) {
        let (id, level) = match said.reason.as_str() {
            "MtlsOverruled" | "ExclusionOverruled" => ("WEFT-C053", Level::Warning),
            _ if said.fault => ("WEFT-C052", Level::Warning),
            _ => ("WEFT-C054", Level::Info),
        };
        let remedy = match id {
            "WEFT-C053" => "take it off the pod's template, or change the namespace",
            "WEFT-C052" => "correct it; of pods in their template",
            _ => "weft join NAMESPACE puts it into Weft's mesh",
        };
        report.add(id, level, said.line(), remedy);
    }
}

/// Conditions that are not as they should be.
fn conditions(report: &mut Report<'_>) {
    for one in faulty(report.facts) {
        let level = match one.weight {
            Weight::NotServed | Weight::PartlyServed => Level::Error,
            Weight::NotLookedAt | Weight::Served => Level::Warning,
        };
        let remedy =
            if level == Level::Error { "the message says what to correct in the object" } else { "" };
        report.add("WEFT-C055", level, one.line(), remedy);
    }
}

/// Routes of one namespace that take requests of another's.
fn overlaps(report: &mut Report<'_>) {
    for message in overlap::overlaps(report.facts) {
        report.add(
            "WEFT-C056",
            Level::Warning,
            message,
            "where it is not meant: bind hostnames to namespaces by the chart's `hostnamePolicy` (SECURITY.md)",
        );
    }
}
