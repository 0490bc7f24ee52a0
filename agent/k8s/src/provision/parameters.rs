//! `WeftGatewayConfig` and its ConfigMap form to [`GatewaySettings`]. What is wrong is said field by field; the text
//! becomes the message of `InvalidParameters`.

use crate::{
    convert::Source,
    path,
    problem::{Report, Severity},
    tracked, yaml,
};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::{collections::BTreeMap, net::IpAddr, time::Duration};
use weft_core::{
    message::{PathAction, PathRules},
    model::{
        AddressMode, ClientRules, GatewaySettings, IpRange, ProxyProtocol, ReadSettings, Str, TrafficPolicy,
        WrittenSettings,
    },
    timing::parse_duration,
};

/// The `spec` as written.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    address_mode: Option<String>,
    address_pool: Option<WrittenPool>,
    external_traffic_policy: Option<String>,
    load_balancer_class: Option<String>,
    source_ranges: Option<Vec<String>>,
    node_selector: Option<BTreeMap<String, String>>,
    paths: Option<WrittenPaths>,
    stream_idle_timeout: Option<String>,
    udp_session_timeout: Option<String>,
    clients: Option<WrittenClients>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenPaths {
    repeated_slashes: Option<String>,
    escaped_slashes: Option<String>,
    backslashes: Option<String>,
    parameters: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenClients {
    trusted_proxies: Option<Vec<String>>,
    proxy_protocol: Option<String>,
    trace_context: Option<String>,
}

#[derive(Deserialize)]
struct WrittenPool {
    #[serde(default)]
    cidrs: Vec<String>,
    #[serde(default)]
    ranges: Vec<String>,
}

/// The `spec` of a `WeftGatewayConfig`. What is wrong is also reported, as not served.
pub(crate) fn read_spec(
    value: &Value,
    source: &Source<'_>,
    report: &mut Report,
) -> Result<GatewaySettings, Str> {
    let empty = Value::Object(Map::new());
    let spec = value.get("spec").filter(|s| !s.is_null()).unwrap_or(&empty);
    let mut own = Report::default();
    let settings = read(spec, &mut own);
    // Fields that a newer CRD has are no fault of the object: the API server has let them in.
    finish(settings, own, !source.admitted, |path, reason, remedy| {
        let path = if path.is_empty() { "spec".to_owned() } else { format!("spec.{path}") };
        report.unserved(&path, reason, remedy);
    })
}

/// The `config.yaml` of a ConfigMap, to be read when it is named. A text that is too long is not even kept.
pub(crate) fn written(text: String) -> WrittenSettings {
    match yaml::too_long(&text, &yaml::CLUSTER) {
        Some(e) => WrittenSettings::from(Err(format!("config.yaml: {}", e.reason).into())),
        None => WrittenSettings::text(text.into(), read_text),
    }
}

/// A `config.yaml`: the fields of `spec`, or a whole `WeftGatewayConfig`.
pub(crate) fn read_text(text: &str) -> ReadSettings {
    let (documents, errors) = yaml::read_within(text, &yaml::CLUSTER);
    if let Some(e) = errors.first() {
        return Err(format!("config.yaml: line {}: {}", e.line, e.reason).into());
    }
    let [document] = documents.as_slice() else {
        return Err(format!("config.yaml: has {} YAML documents; write one", documents.len()).into());
    };
    let value = document.value.get("spec").unwrap_or(&document.value);
    let mut report = Report::default();
    let settings = read(value, &mut report);
    finish(settings, report, true, |_, _, _| {}).map_err(|why| format!("config.yaml: {why}").into())
}

/// The settings, unless something was found; `tell` hears of each finding.
fn finish(
    settings: Option<GatewaySettings>,
    report: Report,
    strict: bool,
    mut tell: impl FnMut(&str, &str, &str),
) -> Result<GatewaySettings, Str> {
    let mut texts = Vec::new();
    for f in report.into_findings().iter().filter(|f| strict || f.severity == Severity::Error) {
        tell(&f.path, &f.reason, &f.remedy);
        let mut text = if f.path.is_empty() { String::new() } else { format!("{}: ", f.path) };
        text.push_str(&f.reason);
        if !f.remedy.is_empty() {
            text.push_str(&format!("; {}", f.remedy));
        }
        texts.push(text);
    }
    match settings {
        Some(settings) if texts.is_empty() => Ok(settings),
        _ => Err(texts.join(". ").into()),
    }
}

fn read(spec: &Value, report: &mut Report) -> Option<GatewaySettings> {
    let written: Written = tracked::read(spec, None, report)?;
    let mode = written.address_mode.and_then(|text| {
        let remedy = "write LoadBalancer, AddressPool or HostPort";
        accept(AddressMode::parse(&text), "addressMode", &text, ("is no mode", remedy), report)
    });
    let traffic_policy = written.external_traffic_policy.and_then(|text| {
        let policy = match text.as_str() {
            "Local" => Some(TrafficPolicy::Local),
            "Cluster" => Some(TrafficPolicy::Cluster),
            _ => None,
        };
        let why = ("is no traffic policy", "write Local or Cluster");
        accept(policy, "externalTrafficPolicy", &text, why, report)
    });
    let sources = written.source_ranges.map(|all| networks(all, "sourceRanges", report));
    if written.load_balancer_class.as_deref() == Some("") {
        report.reject("loadBalancerClass", "is empty", "leave it out for the cluster's default");
    }
    Some(GatewaySettings {
        mode,
        pool: written.address_pool.map(|p| pool(p, report)),
        traffic_policy,
        load_balancer_class: written.load_balancer_class.map(Str::from),
        source_ranges: sources,
        node_selector: written
            .node_selector
            .map(|s| s.into_iter().map(|(k, v)| (Str::from(k), Str::from(v))).collect()),
        paths: written.paths.map(|p| paths(p, report)),
        stream_idle: written.stream_idle_timeout.and_then(|t| duration(&t, "streamIdleTimeout", report)),
        udp_session: written.udp_session_timeout.and_then(|t| {
            let session = duration(&t, "udpSessionTimeout", report)?;
            let why = ("is no time to live", "write a duration of a second or more such as 2m");
            let session = Some(session).filter(|s| *s >= Duration::from_secs(1));
            accept(session, "udpSessionTimeout", &t, why, report)
        }),
        clients: written.clients.map(|c| clients(c, report)),
    })
}

/// Networks, or addresses.
fn networks(all: Vec<String>, field: &str, report: &mut Report) -> Vec<IpNet> {
    let one = |(i, text): (usize, String)| {
        let why = ("is no network", "write a CIDR such as 192.0.2.0/24");
        accept(network(&text), &path::index(field, i), &text, why, report)
    };
    all.into_iter().enumerate().filter_map(one).collect()
}

fn duration(text: &str, field: &str, report: &mut Report) -> Option<Duration> {
    let why = ("is no duration", "write one such as 30s, 5m or 1h30m");
    accept(parse_duration(text).ok(), field, text, why, report)
}

/// What cannot be read is refused with its object, so its value here counts for nobody.
fn paths(written: WrittenPaths, report: &mut Report) -> PathRules {
    let mut action = |text: Option<String>, field: &str| {
        let why = ("is no action", "write Keep, Normalize or Reject");
        let read = |text: String| accept(PathAction::parse(&text), field, &text, why, report);
        text.and_then(read).unwrap_or_default()
    };
    PathRules {
        repeated_slashes: action(written.repeated_slashes, "paths.repeatedSlashes"),
        escaped_slashes: action(written.escaped_slashes, "paths.escapedSlashes"),
        backslashes: action(written.backslashes, "paths.backslashes"),
        parameters: action(written.parameters, "paths.parameters"),
    }
}

fn clients(written: WrittenClients, report: &mut Report) -> ClientRules {
    let proxy_protocol = written.proxy_protocol.and_then(|text| {
        let why = ("is no such choice", "write Off or Required");
        accept(ProxyProtocol::parse(&text), "clients.proxyProtocol", &text, why, report)
    });
    let trust_trace = written.trace_context.and_then(|text| {
        let trust = match text.as_str() {
            "Trust" => Some(true),
            "Sample" => Some(false),
            _ => None,
        };
        let why = ("is no such choice", "write Sample or Trust");
        accept(trust, "clients.traceContext", &text, why, report)
    });
    ClientRules {
        proxy_protocol: proxy_protocol.unwrap_or_default(),
        trusted: networks(written.trusted_proxies.unwrap_or_default(), "clients.trustedProxies", report),
        trust_trace: trust_trace.unwrap_or_default(),
    }
}

fn pool(written: WrittenPool, report: &mut Report) -> Vec<IpRange> {
    let mut out = Vec::new();
    if written.cidrs.is_empty() && written.ranges.is_empty() {
        report.reject("addressPool", "has no addresses", "give cidrs or ranges");
    }
    for (i, text) in written.cidrs.iter().enumerate() {
        let why = ("is no network", "write a CIDR such as 192.0.2.0/28");
        let at = path::index("addressPool.cidrs", i);
        out.extend(accept(network(text).map(IpRange::of), &at, text, why, report));
    }
    for (i, text) in written.ranges.iter().enumerate() {
        let why = ("is no range of addresses", "write the first and the last such as 192.0.2.10-192.0.2.20");
        out.extend(accept(range(text), &path::index("addressPool.ranges", i), text, why, report));
    }
    out
}

/// A network, or one address.
fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

fn range(text: &str) -> Option<IpRange> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    IpRange::new(first.trim().parse().ok()?, last.trim().parse().ok()?)
}

fn accept<T>(
    value: Option<T>,
    at: &str,
    text: &str,
    (reason, remedy): (&str, &str),
    report: &mut Report,
) -> Option<T> {
    if value.is_none() {
        report.reject(at, format!("\"{text}\" {reason}"), remedy);
    }
    value
}
