//! The CEL rules of the CRDs, by the names that `schema/generate.py` gives them.
//!
//! Each sees a structurally sound, defaulted value, like CEL in the API server, and says what to do.

use super::hints;
use crate::{duration, path, path::index, problem::Report};
use regex::Regex;
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::LazyLock,
};

type Check = fn(&Value, &str, &mut Report);

/// Name and function of every rule.
pub(super) const RULES: &[(&str, Check)] = &[
    ("policy-targets", policy_targets),
    ("parent-refs", parent_refs),
    ("ca-source", ca_source),
    ("san-union", san_union),
    ("addresses-unique", addresses_unique),
    ("address-value", address_value),
    ("label-keys", label_keys),
    ("listeners", listeners),
    ("tls-terminate", tls_terminate),
    ("ports-unique", ports_unique),
    ("total-matches", total_matches),
    ("rule-names", rule_names),
    ("service-port", service_port),
    ("filters", filters),
    ("filter-union", filter_union),
    ("mirror-share", mirror_share),
    ("fraction", fraction),
    ("grpc-method", grpc_method),
    ("session", session),
    ("redirect-or-backends", redirect_or_backends),
    ("prefix-needs-one-match", prefix_needs_one_match),
    ("wildcard-alone", wildcard_alone),
    ("external-auth", external_auth),
    ("path-modifier", path_modifier),
    ("path-match", path_match),
    ("timeouts", timeouts),
    ("tls-hostnames", tls_hostnames),
];

pub(super) fn check(name: &str, value: &Value, at: &str, report: &mut Report) {
    // A linear search through a few dozen names, on configuration changes only.
    if let Some((_, check)) = RULES.iter().find(|(n, _)| *n == name) {
        check(value, at, report);
    }
}

/// A text field, "" when it is left out.
fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or("")
}

fn items(value: &Value) -> impl Iterator<Item = (usize, &Value)> {
    value.as_array().into_iter().flatten().enumerate()
}

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn has(value: &Value, field: &str) -> bool {
    value.get(field).is_some()
}

/// References to the same parent must be told apart: all by sectionName, or all by port, or by both.
fn parent_refs(refs: &Value, at: &str, report: &mut Report) {
    distinct(refs, at, report, &["group", "kind", "namespace", "name"], &["sectionName", "port"]);
}

fn policy_targets(refs: &Value, at: &str, report: &mut Report) {
    distinct(refs, at, report, &["group", "kind", "name"], &["sectionName"]);
}

fn distinct(refs: &Value, at: &str, report: &mut Report, identity: &[&str], parts: &[&str]) {
    let field =
        |r: &Value, f: &str| r.get(f).map(Value::to_string).filter(|s| s != "\"\"").unwrap_or_default();
    let mut seen: HashMap<Vec<String>, Vec<Vec<String>>> = HashMap::new();
    for (i, r) in items(refs) {
        let part: Vec<String> = parts.iter().map(|f| field(r, f)).collect();
        let others = seen.entry(identity.iter().map(|f| field(r, f)).collect()).or_default();
        let name = text(r, "name");
        let how = parts.join(" or ");
        if others.contains(&part) {
            let remedy = format!("remove it, or give each a {how} of its own");
            report.reject(&index(at, i), format!("refers to \"{name}\" a second time"), remedy);
        } else if others
            .first()
            .is_some_and(|o| o.iter().zip(&part).any(|(a, b)| a.is_empty() != b.is_empty()))
        {
            let remedy = format!("when \"{name}\" is named more than once, set {how} in all of them");
            report.reject(&index(at, i), format!("refers to \"{name}\" with and without {how}"), remedy);
        }
        others.push(part);
    }
}

fn ca_source(validation: &Value, at: &str, report: &mut Report) {
    let refs = !list(validation, "caCertificateRefs").is_empty();
    let known = !text(validation, "wellKnownCACertificates").is_empty();
    if refs == known {
        let reason = if refs {
            "has both caCertificateRefs and wellKnownCACertificates"
        } else {
            "has neither caCertificateRefs nor wellKnownCACertificates"
        };
        report.reject(
            at,
            reason,
            "give one: refs to ConfigMaps with ca.crt, or \"wellKnownCACertificates: System\"",
        );
    }
}

fn san_union(san: &Value, at: &str, report: &mut Report) {
    for (kind, field) in [("Hostname", "hostname"), ("URI", "uri")] {
        union_member(san, at, report, (kind, field));
    }
}

/// `type: KIND` and the field of that name come together.
fn union_member(value: &Value, at: &str, report: &mut Report, (kind, field): (&str, &str)) {
    let (named, given) = (text(value, "type") == kind, has(value, field));
    if named && !given {
        report.reject(at, format!("type is {kind} but \"{field}\" is missing"), format!("add \"{field}\""));
    } else if given && !named {
        let reason = format!("\"{field}\" is given but type is {}", text(value, "type"));
        report.reject(&path::key(at, field), reason, format!("set \"type: {kind}\" or remove \"{field}\""));
    }
}

fn addresses_unique(addresses: &Value, at: &str, report: &mut Report) {
    let mut seen = BTreeMap::new();
    for (i, a) in items(addresses) {
        let counted = matches!(text(a, "type"), "IPAddress" | "Hostname") && has(a, "value");
        if counted && seen.insert((text(a, "type"), text(a, "value")), i).is_some() {
            let reason = format!("\"{}\" is there already", text(a, "value"));
            report.reject(&index(at, i), reason, "give each address once");
        }
    }
}

fn address_value(address: &Value, at: &str, report: &mut Report) {
    let value = text(address, "value");
    if !has(address, "value") {
        return;
    }
    match text(address, "type") {
        "IPAddress" if value.parse::<IpAddr>().is_err() => {
            let reason = format!("\"{value}\" is no IP address");
            report.reject(&path::key(at, "value"), reason, "write one, or set \"type: Hostname\"");
        }
        "Hostname" if !DNS_WILDCARD.is_match(value) => {
            let reason = format!("\"{value}\" is no hostname");
            report.reject(&path::key(at, "value"), reason, "write a lower-case DNS name");
        }
        _ => {}
    }
}

fn label_keys(labels: &Value, at: &str, report: &mut Report) {
    static KEY: LazyLock<Regex> = LazyLock::new(|| {
        let prefix = r"([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?";
        regex(&format!("^{prefix}([A-Za-z0-9][-A-Za-z0-9_.]{{0,61}})?[A-Za-z0-9]$"))
    });
    for key in labels.as_object().into_iter().flat_map(|m| m.keys()) {
        let short = key.split('/').next().is_some_and(|prefix| prefix.len() < 253);
        if !KEY.is_match(key) || !short {
            let remedy = "write NAME or DNS.PREFIX/NAME with at most 63 characters in NAME";
            report.reject(&path::key(at, key), "is no label or annotation key", remedy);
        }
    }
}

/// The rules over `spec.listeners` of a Gateway or ListenerSet.
fn listeners(listeners: &Value, at: &str, report: &mut Report) {
    let mut seen: HashMap<(String, &str, &str), &str> = HashMap::new();
    for (i, l) in items(listeners) {
        let here = index(at, i);
        listener_tls(l, &here, report);
        let (protocol, hostname) = (text(l, "protocol"), text(l, "hostname"));
        if matches!(protocol, "TCP" | "UDP") && !hostname.is_empty() {
            let reason = format!("a {protocol} listener cannot tell hosts apart");
            report.reject(&path::key(&here, "hostname"), reason, "remove \"hostname\"");
        }
        // Equal names are found by the list-map key "name".
        let port = l.get("port").map(Value::to_string).unwrap_or_default();
        if let Some(other) = seen.insert((port, protocol, hostname), text(l, "name")) {
            let reason = format!("has the port, protocol and hostname of listener \"{other}\"");
            report.reject(&here, reason, "change one of the three, or merge the two listeners");
        }
    }
}

fn listener_tls(l: &Value, at: &str, report: &mut Report) {
    let (protocol, tls) = (text(l, "protocol"), l.get("tls"));
    let mode = tls.map_or("", |t| text(t, "mode"));
    let field = path::key(at, "tls");
    match protocol {
        "HTTP" | "TCP" | "UDP" if tls.is_some() => {
            let remedy = "use \"protocol: HTTPS\" (or TLS), or remove \"tls\"";
            report.reject(&field, format!("a {protocol} listener has no TLS"), remedy);
        }
        "HTTPS" if !matches!(mode, "" | "Terminate") => {
            let remedy = "use \"mode: Terminate\", or \"protocol: TLS\" with a TLSRoute to pass TLS through";
            report.reject(&path::key(&field, "mode"), format!("an HTTPS listener cannot {mode}"), remedy);
        }
        "TLS" if mode.is_empty() => {
            report.reject(
                &field,
                "a TLS listener needs tls.mode",
                "write \"tls: {mode: Passthrough}\" or Terminate with certificateRefs",
            );
        }
        _ => {}
    }
}

fn tls_terminate(tls: &Value, at: &str, report: &mut Report) {
    let options = tls.get("options").and_then(Value::as_object).is_some_and(|o| !o.is_empty());
    if text(tls, "mode") == "Terminate" && list(tls, "certificateRefs").is_empty() && !options {
        let remedy = "name a kubernetes.io/tls Secret: \"certificateRefs: [{name: …}]\"";
        report.reject(at, "mode Terminate needs certificateRefs or options", remedy);
    }
}

/// The list-map key "port" finds equal ports of `tls.frontend.perPort` already.
const fn ports_unique(_: &Value, _: &str, _: &mut Report) {}

fn total_matches(rules: &Value, at: &str, report: &mut Report) {
    let total: usize = items(rules).map(|(_, r)| list(r, "matches").len()).sum();
    if total > 128 {
        report.reject(
            at,
            format!("has {total} matches in all rules"),
            "at most 128 are allowed: split the route",
        );
    }
}

fn rule_names(rules: &Value, at: &str, report: &mut Report) {
    let mut seen = HashMap::new();
    for (i, r) in items(rules).filter(|(_, r)| has(r, "name")) {
        if seen.insert(text(r, "name"), i).is_some() {
            let reason = format!("another rule is named \"{}\"", text(r, "name"));
            report.reject(&path::key(&index(at, i), "name"), reason, "give each rule a name of its own");
        }
    }
}

fn service_port(backend: &Value, at: &str, report: &mut Report) {
    if text(backend, "group").is_empty() && text(backend, "kind") == "Service" && !has(backend, "port") {
        let reason = format!("Service \"{}\" is named without a port", text(backend, "name"));
        report.reject(
            &path::key(at, "port"),
            reason,
            "add \"port\": the Service's port, not the container's",
        );
    }
}

fn filters(filters: &Value, at: &str, report: &mut Report) {
    let mut seen = HashMap::new();
    for (i, f) in items(filters) {
        let kind = text(f, "type");
        let once = matches!(
            kind,
            "RequestHeaderModifier" | "ResponseHeaderModifier" | "RequestRedirect" | "URLRewrite" | "CORS"
        );
        if once && seen.insert(kind, i).is_some() {
            let reason = format!("a second {kind} filter");
            report.reject(
                &index(at, i),
                reason,
                "put everything into the first: it may be given once a rule",
            );
        }
    }
    if let (Some(_), Some(i)) = (seen.get("RequestRedirect"), seen.get("URLRewrite")) {
        let remedy = "keep one: a redirected request reaches no backend, so there is nothing to rewrite";
        report.reject(&index(at, *i), "URLRewrite beside RequestRedirect", remedy);
    }
}

fn filter_union(filter: &Value, at: &str, report: &mut Report) {
    for member in [
        ("RequestHeaderModifier", "requestHeaderModifier"),
        ("ResponseHeaderModifier", "responseHeaderModifier"),
        ("RequestMirror", "requestMirror"),
        ("RequestRedirect", "requestRedirect"),
        ("URLRewrite", "urlRewrite"),
        ("CORS", "cors"),
        ("ExternalAuth", "externalAuth"),
        ("ExtensionRef", "extensionRef"),
    ] {
        union_member(filter, at, report, member);
    }
}

fn mirror_share(mirror: &Value, at: &str, report: &mut Report) {
    if has(mirror, "percent") && has(mirror, "fraction") {
        report.reject(at, "has both percent and fraction", "keep one of the two");
    }
}

fn fraction(fraction: &Value, at: &str, report: &mut Report) {
    let number = |f| fraction.get(f).and_then(Value::as_i64).unwrap_or(100);
    let (numerator, denominator) = (number("numerator"), number("denominator"));
    if numerator > denominator {
        let reason = format!("{numerator}/{denominator} is more than one");
        report.reject(at, reason, "the numerator may be at most the denominator (100 by default)");
    }
}

fn grpc_method(method: &Value, at: &str, report: &mut Report) {
    static SERVICE: LazyLock<Regex> =
        LazyLock::new(|| regex(r"^(?i)\.?[a-z_][a-z_0-9]*(\.[a-z_][a-z_0-9]*)*$"));
    static METHOD: LazyLock<Regex> = LazyLock::new(|| regex(r"^[A-Za-z_][A-Za-z_0-9]*$"));
    if !has(method, "service") && !has(method, "method") {
        let remedy =
            "add \"service: pkg.Service\" or \"method: Name\", or remove \"method\" to match every call";
        report.reject(at, "has neither service nor method", remedy);
    }
    for (field, allowed) in [("service", &SERVICE), ("method", &METHOD)] {
        let value = text(method, field);
        if text(method, "type") == "Exact" && has(method, field) && !allowed.is_match(value) {
            let reason = format!("\"{value}\" is no gRPC {field} name");
            let remedy =
                "write a name as in the .proto file without slashes, or set \"type: RegularExpression\"";
            report.reject(&path::key(at, field), reason, remedy);
        }
    }
}

fn session(session: &Value, at: &str, report: &mut Report) {
    let Some(cookie) = session.get("cookieConfig") else { return };
    if text(cookie, "lifetimeType") == "Permanent" && !has(session, "absoluteTimeout") {
        let remedy = "add \"absoluteTimeout\": it says how long the cookie lives";
        report.reject(at, "a Permanent cookie needs absoluteTimeout", remedy);
    }
    if text(session, "type") != "Cookie" {
        let remedy = "remove it, or set \"type: Cookie\"";
        report.reject(&path::key(at, "cookieConfig"), "is for type Cookie only", remedy);
    }
}

fn redirect_or_backends(rule: &Value, at: &str, report: &mut Report) {
    let redirect = list(rule, "filters").iter().any(|f| has(f, "requestRedirect"));
    if redirect && !list(rule, "backendRefs").is_empty() {
        let remedy =
            "remove \"backendRefs\" (a redirected request reaches none) or the RequestRedirect filter";
        report.reject(&path::key(at, "backendRefs"), "stands beside a RequestRedirect filter", remedy);
    }
}

fn prefix_needs_one_match(rule: &Value, at: &str, report: &mut Report) {
    let replaces = |f: &Value| {
        ["requestRedirect", "urlRewrite"]
            .iter()
            .any(|k| f.get(*k).and_then(|m| m.get("path")).is_some_and(|p| has(p, "replacePrefixMatch")))
    };
    let backends = list(rule, "backendRefs").iter().flat_map(|b| list(b, "filters"));
    if !list(rule, "filters").iter().chain(backends).any(replaces) {
        return;
    }
    let one_prefix = match list(rule, "matches") {
        [m] => m.get("path").is_some_and(|p| text(p, "type") == "PathPrefix"),
        _ => false,
    };
    if !one_prefix {
        let remedy =
            "give the rule exactly one match, of type PathPrefix; put others into rules of their own";
        report.reject(at, "replacePrefixMatch cannot tell which prefix to replace", remedy);
    }
}

fn wildcard_alone(values: &Value, at: &str, report: &mut Report) {
    if values.as_array().is_some_and(|v| v.len() > 1 && v.iter().any(|s| s == "*")) {
        report.reject(at, "\"*\" stands beside other entries", "\"*\" means all: keep it alone or remove it");
    }
}

fn external_auth(auth: &Value, at: &str, report: &mut Report) {
    for (protocol, field) in [("GRPC", "grpc"), ("HTTP", "http")] {
        let (named, given) = (text(auth, "protocol") == protocol, has(auth, field));
        if named != given {
            let reason = format!("\"protocol: {protocol}\" and \"{field}\" go together");
            report.reject(
                &path::key(at, field),
                reason,
                format!("add \"{field}: {{}}\" or change the protocol"),
            );
        }
    }
}

fn path_modifier(modifier: &Value, at: &str, report: &mut Report) {
    for (kind, field) in
        [("ReplaceFullPath", "replaceFullPath"), ("ReplacePrefixMatch", "replacePrefixMatch")]
    {
        union_member(modifier, at, report, (kind, field));
    }
}

fn path_match(path_match: &Value, at: &str, report: &mut Report) {
    static CHARS: LazyLock<Regex> =
        LazyLock::new(|| regex(r"^(?:[-A-Za-z0-9/._~!$&'()*+,;=:@]|[%][0-9a-fA-F]{2})+$"));
    if !matches!(text(path_match, "type"), "Exact" | "PathPrefix") {
        return;
    }
    let (value, here) = (text(path_match, "value"), path::key(at, "value"));
    if !value.starts_with('/') {
        return report.reject(
            &here,
            format!("\"{value}\" does not start with /"),
            format!("write \"/{value}\""),
        );
    }
    for piece in ["//", "/./", "/../", "%2f", "%2F", "#"] {
        if value.contains(piece) {
            let reason = format!("\"{value}\" contains \"{piece}\"");
            return report.reject(&here, reason, "write the path as it is after normalisation");
        }
    }
    if value.ends_with("/..") || value.ends_with("/.") {
        return report.reject(
            &here,
            format!("\"{value}\" ends with a dot segment"),
            "write the path as it is after normalisation",
        );
    }
    if !CHARS.is_match(value) {
        let remedy = if value.contains('?') {
            "match the query with \"queryParams\""
        } else if value.contains(['[', '{', '^', '\\', '|']) {
            "for a pattern set \"type: RegularExpression\"; otherwise percent-encode the character"
        } else {
            "percent-encode it"
        };
        report.reject(&here, format!("\"{value}\" has a character that no path may have"), remedy);
    }
}

fn timeouts(timeouts: &Value, at: &str, report: &mut Report) {
    let of = |field| timeouts.get(field).and_then(Value::as_str).and_then(duration::parse);
    let (Some(request), Some(backend)) = (of("request"), of("backendRequest")) else { return };
    // 0s means "no timeout", so it bounds nothing.
    if !request.is_zero() && backend > request {
        let reason = format!("one try may take {backend:?} but the whole request only {request:?}");
        report.reject(
            &path::key(at, "backendRequest"),
            reason,
            "make backendRequest at most as long as request",
        );
    }
}

fn tls_hostnames(hostnames: &Value, at: &str, report: &mut Report) {
    for (i, h) in items(hostnames) {
        let host = h.as_str().unwrap_or("");
        if host.parse::<IpAddr>().is_ok() {
            let remedy = "TLS clients send no SNI for an address: use a DNS name";
            report.reject(&index(at, i), format!("\"{host}\" is an IP address"), remedy);
        } else if !DNS_WILDCARD.is_match(host) {
            report.reject(&index(at, i), format!("\"{host}\" is no hostname"), hints::required("hostnames"));
        }
    }
}

static DNS_WILDCARD: LazyLock<Regex> =
    LazyLock::new(|| regex(r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"));

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a pattern written in this file; the tests use each")
}
