//! What an API server accepts and a reader did not mean. Works on the value as written: a default says nothing.

use crate::{path, problem::Report};
use serde_json::Value;
use weft_core::model::Kind;

/// Warnings for one object, before defaults are filled in.
pub(super) fn before_defaults(kind: Kind, value: &Value, report: &mut Report) {
    let spec = &value["spec"];
    if !spec.is_object()
        || !matches!(
            kind,
            Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute | Kind::UdpRoute
        )
    {
        return;
    }
    if list(spec, "parentRefs").is_empty() && spec.get("useDefaultGateways").is_none() {
        let remedy = "name the Gateway or Service that it belongs to: \"parentRefs: [{name: …}]\"";
        report.warn("spec.parentRefs", "the route has no parent and serves nothing", remedy);
    }
    if !matches!(kind, Kind::HttpRoute | Kind::GrpcRoute) {
        return;
    }
    let rules = list(spec, "rules");
    if rules.is_empty() && kind == Kind::GrpcRoute {
        report.warn("spec.rules", "the route has no rules and serves nothing", "");
    }
    for (i, rule) in rules.iter().enumerate() {
        let at = path::index("spec.rules", i);
        regex_without_type(rule, &at, report);
        wildcard_path(rule, &at, report);
        goes_nowhere(rule, rules, &at, report);
    }
}

/// `/api/*`, as other configuration languages have it: `*` is an ordinary character here.
fn wildcard_path(rule: &Value, at: &str, report: &mut Report) {
    for (i, m) in list(rule, "matches").iter().enumerate() {
        let path = &m["path"];
        let value = path.get("value").and_then(Value::as_str).unwrap_or("");
        let literal = path.get("type").is_none_or(|t| t == "PathPrefix" || t == "Exact");
        if literal && (value.ends_with("/*") || value.contains(".*")) {
            let reason = format!("\"{value}\": the * is taken literally");
            let remedy =
                "write the prefix alone (PathPrefix covers what follows), or set \"type: RegularExpression\"";
            report.warn(&format!("{at}.matches[{i}].path.value"), reason, remedy);
        }
    }
}

/// `value: ".*Mobile.*"` without a type is an exact match, and never true.
fn regex_without_type(rule: &Value, at: &str, report: &mut Report) {
    for (i, m) in list(rule, "matches").iter().enumerate() {
        for field in ["headers", "queryParams"] {
            for (j, h) in list(m, field).iter().enumerate() {
                warn_if_regex(h, &format!("{at}.matches[{i}].{field}[{j}]"), report);
            }
        }
        for field in ["service", "method"] {
            let value = m["method"].get(field).and_then(Value::as_str).unwrap_or("");
            if m["method"].get("type").is_none() && looks_like_regex(value) {
                // The schema refuses the value too; this says why.
                let remedy = "add \"type: RegularExpression\" beside it";
                report.warn(&format!("{at}.matches[{i}].method.{field}"), regex_reason(value), remedy);
            }
        }
    }
}

fn warn_if_regex(h: &Value, at: &str, report: &mut Report) {
    let value = h.get("value").and_then(Value::as_str).unwrap_or("");
    if h.get("type").is_none() && looks_like_regex(value) {
        let remedy = "add \"type: RegularExpression\" beside it, or \"type: Exact\" if it is meant literally";
        report.warn(&path::key(at, "value"), regex_reason(value), remedy);
    }
}

fn regex_reason(value: &str) -> String {
    format!("\"{value}\" looks like a regex, type is Exact (the default): it matches this very text only")
}

fn looks_like_regex(value: &str) -> bool {
    let pieces = [".*", ".+", "\\d", "\\w", "\\s", "\\.", "[a-z", "[0-9", "[A-Z", "[^", "(?"];
    pieces.iter().any(|p| value.contains(p))
        || (value.starts_with('^') && value.len() > 1)
        || (value.starts_with('(') && value.contains('|'))
}

/// A rule without backendRefs answers 500 unless a filter answers for it; often one rule was written as several.
fn goes_nowhere(rule: &Value, rules: &[Value], at: &str, report: &mut Report) {
    let answers = |f: &Value| {
        let kind = f.get("type").and_then(Value::as_str).unwrap_or("");
        // An ExtensionRef may answer by itself.
        matches!(kind, "RequestRedirect" | "ExtensionRef") || f.get("requestRedirect").is_some()
    };
    if !rule.is_object() || !list(rule, "backendRefs").is_empty() || list(rule, "filters").iter().any(answers)
    {
        return;
    }
    let pieces = rules.len() > 1
        && rules.iter().any(|r| r.get("matches").is_none() && !list(r, "backendRefs").is_empty());
    let remedy = if pieces {
        "if these rules are meant as one, keep the first \"- \" only: matches, filters and backendRefs are fields of one rule"
    } else {
        "add \"backendRefs\", or a RequestRedirect filter"
    };
    let reason = "rule has neither backendRefs nor redirect: it answers 500 (gRPC: UNAVAILABLE)";
    report.warn(at, reason, remedy);
}

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}
