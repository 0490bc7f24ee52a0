//! `AgentConfig`: settings of an agent that no Kubernetes kind holds.

use crate::{
    convert::{self, Source},
    duration, path,
    problem::{Problem, Report, Severity},
    tracked,
    yaml::{self, Marks},
};
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de::IgnoredAny};
use serde_json::Value;
use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::Duration};
use weft_core::{
    model::{DEFAULT_TRUST_DOMAIN, MtlsMode, ObjectKey, Origin, Str},
    spelling::closest,
};

/// `apiVersion: weft.dev/v1alpha1, kind: AgentConfig`. Every field may be left out.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentConfig {
    /// `gatewayAddresses: {"ns/name": ["127.0.0.2"]}`: where a Gateway's listeners bind, for several Gateways on one
    /// machine. A Gateway that is not listed binds all addresses.
    pub gateway_addresses: BTreeMap<ObjectKey, Vec<IpAddr>>,
    /// `trustDomain`; `cluster.local` by default.
    pub trust_domain: Str,
    /// `mtls`: what enrolled pods accept from outside the mesh unless their label says otherwise; `permissive` by
    /// default. Anything that is no mode counts as strict, and so does a setting whose name means this one.
    pub mtls: MtlsMode,
    /// `strictUdp`: `pass` (the default) or `drop`: whether strict pods take datagrams that they have not asked for. UDP is not
    /// encrypted in the mesh.
    pub drop_strict_udp: bool,
    /// `podCidrs`: the networks that pods have their addresses from, for clusters whose nodes have no `spec.podCIDRs`. An
    /// unknown address in them is waited for and then refused, since it may be a pod's that must not be spoken to in
    /// clear. Empty (the default): what nodes say, and what is learned from addresses that agents have read in pods.
    pub pod_cidrs: Vec<IpNet>,
    /// `tracing`.
    pub tracing: TracingConfig,
    /// `accessLog.output`.
    pub access_log: AccessLog,
    /// `limits`.
    pub limits: Limits,
}

/// `tracing`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TracingConfig {
    /// `endpoint`: an OTLP/gRPC URL such as `http://127.0.0.1:4317`; nothing is exported without one.
    pub endpoint: Option<String>,
    /// `samplingRatio`: share of traces started here that are recorded, 0–1; 1 by default. A caller's decision is kept.
    pub sampling_ratio: f64,
    /// `attributes`: added to every span's resource.
    pub attributes: BTreeMap<String, String>,
}

/// `accessLog.output`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AccessLog {
    /// `stdout` (the default): one JSON line a request.
    #[default]
    Stdout,
    /// `off`.
    Off,
    /// Anything else: a file that is appended to.
    File(PathBuf),
}

/// With less the agent would refuse what an ordinary node asks for.
const TRAFFIC_BYTES_MIN: u64 = 64 << 20;

/// `limits`: each is per pod (share) or per Gateway, but for `traffic_bytes`, so that tenants of a node
/// cannot starve each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Limits {
    /// `connections`: open at once; 16,384 by default.
    pub connections: u32,
    /// `handshakes`: TLS handshakes in progress at once; 64 by default.
    pub handshakes: u32,
    /// `requestHeadBytes`: method, path and headers of one request; 64 KiB by default.
    pub request_head_bytes: u32,
    /// `trafficBytes`: what the connections of all pods and Gateways of the node may hold together, at least 64 MiB;
    /// 512 MiB by default. The workload that holds most yields.
    pub traffic_bytes: u64,
    /// `connectTimeout`: to an endpoint; 5s by default.
    #[serde(deserialize_with = "time")]
    pub connect_timeout: Duration,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            gateway_addresses: BTreeMap::new(),
            trust_domain: DEFAULT_TRUST_DOMAIN.into(),
            mtls: MtlsMode::default(),
            drop_strict_udp: false,
            pod_cidrs: Vec::new(),
            tracing: TracingConfig::default(),
            access_log: AccessLog::default(),
            limits: Limits::default(),
        }
    }
}

impl Default for TracingConfig {
    fn default() -> Self {
        Self { endpoint: None, sampling_ratio: 1.0, attributes: BTreeMap::new() }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            handshakes: 64,
            request_head_bytes: 64 << 10,
            traffic_bytes: weft_core::budget::TRAFFIC_MEMORY.bound,
            connect_timeout: Duration::from_secs(5),
        }
    }
}

/// The document as written.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code)] // the first three are named so that other fields are found to be unknown
struct Written {
    api_version: IgnoredAny,
    kind: IgnoredAny,
    metadata: Option<IgnoredAny>,
    /// Read one by one: a broken entry must not cost the others.
    #[serde(default)]
    gateway_addresses: BTreeMap<String, Value>,
    trust_domain: Option<String>,
    mtls: Option<String>,
    strict_udp: Option<String>,
    #[serde(default)]
    pod_cidrs: Vec<String>,
    #[serde(default)]
    tracing: TracingConfig,
    #[serde(default)]
    access_log: WrittenAccessLog,
    #[serde(default)]
    limits: Limits,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WrittenAccessLog {
    output: Option<String>,
}

/// Whether a document is an `AgentConfig` of any version.
pub(crate) fn is_agent_config(value: &Value) -> bool {
    let api = value.get("apiVersion").and_then(Value::as_str).unwrap_or("");
    api.starts_with("weft.dev/") && value.get("kind").and_then(Value::as_str) == Some("AgentConfig")
}

/// A document as read: what is broken in it holds the default until [`Reading::over`] puts the last good value there.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    config: AgentConfig,
    /// Paths of what was refused.
    broken: Vec<String>,
    /// Gateways whose `gatewayAddresses` entry has no address that can be used.
    unaddressed: Vec<ObjectKey>,
}

impl Reading {
    /// The settings, with what `last` says for the fields that were refused.
    pub(crate) fn over(&self, last: &AgentConfig) -> AgentConfig {
        let mut out = self.config.clone();
        for path in &self.broken {
            out.take(path, last);
        }
        for key in &self.unaddressed {
            let ips = last.gateway_addresses.get(key);
            out.gateway_addresses.extend(ips.map(|ips| (key.clone(), ips.clone())));
        }
        out
    }

    /// The Gateways that have addresses.
    pub(crate) fn addressed(&self) -> impl Iterator<Item = &ObjectKey> {
        self.config.gateway_addresses.keys().chain(&self.unaddressed)
    }
}

impl AgentConfig {
    /// Takes one field over from another; a whole section for a path that names no field of it.
    fn take(&mut self, path: &str, from: &Self) {
        let mut steps = path::steps(path);
        match (steps.next().unwrap_or(""), steps.next().unwrap_or("")) {
            // Entry by entry: see `Reading::unaddressed`.
            ("gatewayAddresses", "") => self.gateway_addresses.clone_from(&from.gateway_addresses),
            ("trustDomain", _) => self.trust_domain = from.trust_domain.clone(),
            // The strictest meaning, not the last good one: somebody meant to protect something.
            ("mtls", _) => self.mtls = MtlsMode::Strict,
            ("strictUdp", _) => self.drop_strict_udp = true,
            ("podCidrs", _) => self.pod_cidrs.clone_from(&from.pod_cidrs),
            ("tracing", "endpoint") => self.tracing.endpoint.clone_from(&from.tracing.endpoint),
            ("tracing", "samplingRatio") => self.tracing.sampling_ratio = from.tracing.sampling_ratio,
            ("tracing", "attributes") => self.tracing.attributes.clone_from(&from.tracing.attributes),
            ("tracing", _) => self.tracing = from.tracing.clone(),
            ("accessLog", _) => self.access_log = from.access_log.clone(),
            ("limits", "connections") => self.limits.connections = from.limits.connections,
            ("limits", "handshakes") => self.limits.handshakes = from.limits.handshakes,
            ("limits", "requestHeadBytes") => self.limits.request_head_bytes = from.limits.request_head_bytes,
            ("limits", "trafficBytes") => self.limits.traffic_bytes = from.limits.traffic_bytes,
            ("limits", "connectTimeout") => self.limits.connect_timeout = from.limits.connect_timeout,
            ("limits", _) => self.limits = from.limits,
            _ => {}
        }
    }
}

/// The path in `gatewayAddresses` of a Gateway.
pub(crate) fn addresses_path(gateway: &ObjectKey) -> String {
    path::key("gatewayAddresses", &gateway.to_string())
}

/// Reads the document, without the fields that are refused; `None` when it is none that can be read at all.
pub(crate) fn read(value: &Value, marks: &Marks, report: &mut Report) -> Option<Reading> {
    if value["apiVersion"] != "weft.dev/v1alpha1" {
        report.reject(
            "apiVersion",
            "AgentConfig has no such version",
            "write \"apiVersion: weft.dev/v1alpha1\"",
        );
        return None;
    }
    let mut broken = Vec::new();
    let written = fields(value.clone(), marks, report, &mut broken)?;
    let mut config =
        AgentConfig { tracing: written.tracing, limits: written.limits, ..AgentConfig::default() };
    let mut refuse = |path: &str, reason: String, remedy: &str| {
        report.reject(path, reason, remedy);
        broken.push(path.to_owned());
    };
    out_of_range(&config, &mut refuse);
    let no_url = |e: &&String| e.parse::<http::Uri>().map_or(true, |u| u.host().is_none());
    if let Some(e) = config.tracing.endpoint.as_ref().filter(no_url) {
        let remedy = "write a URL such as http://127.0.0.1:4317";
        refuse("tracing.endpoint", format!("\"{e}\" is no URL"), remedy);
    }
    match written.mtls.as_deref().map(|word| (word, MtlsMode::parse(word))) {
        None => {}
        Some((_, Some(mode))) => config.mtls = mode,
        Some((other, None)) => {
            let meant = closest(other, ["permissive", "strict"]);
            let remedy = meant.map_or("write permissive or strict".to_owned(), |m| format!("write {m}"));
            refuse("mtls", format!("\"{other}\" is no mode and counts as strict"), &remedy);
        }
    }
    if let Some(name) = misspelt_mtls(value) {
        refuse("mtls", format!("\"{name}\" is likely meant for it, so it counts as strict"), "write mtls");
    }
    if let Some(domain) = written.trust_domain {
        let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b);
        if domain.is_empty() || !domain.bytes().all(ok) {
            let remedy = "use lower-case letters, digits, -, . and _ (SPIFFE)";
            refuse("trustDomain", format!("\"{domain}\" is no trust domain"), remedy);
        } else {
            config.trust_domain = domain.into();
        }
    }
    match written.strict_udp.as_deref() {
        Some("drop") => config.drop_strict_udp = true,
        None | Some("pass") => {}
        Some(other) => refuse("strictUdp", format!("\"{other}\" is neither"), "write pass or drop"),
    }
    match pod_cidrs(&written.pod_cidrs) {
        Ok(cidrs) => config.pod_cidrs = cidrs,
        Err(reason) => refuse("podCidrs", reason, "write a list such as [\"10.244.0.0/16\"]"),
    }
    config.access_log = match written.access_log.output.as_deref() {
        None | Some("stdout") => AccessLog::Stdout,
        Some("off") => AccessLog::Off,
        Some(file) => AccessLog::File(file.into()),
    };
    let unaddressed;
    (config.gateway_addresses, unaddressed) = addresses(&written.gateway_addresses, report);
    Some(Reading { config, broken, unaddressed })
}

/// Numbers that could not be served with, as the chart's schema has them.
fn out_of_range(config: &AgentConfig, refuse: &mut impl FnMut(&str, String, &str)) {
    let ratio = config.tracing.sampling_ratio;
    if !(0.0..=1.0).contains(&ratio) {
        refuse("tracing.samplingRatio", format!("{ratio} is out of range"), "it must be from 0 to 1");
    }
    let Limits { connections, handshakes, request_head_bytes, .. } = config.limits;
    for (path, value, least) in [
        ("limits.connections", connections, 1),
        ("limits.handshakes", handshakes, 1),
        ("limits.requestHeadBytes", request_head_bytes, 1024),
    ] {
        if value < least {
            refuse(path, format!("{value} is out of range"), &format!("it must be {least} at least"));
        }
    }
    let traffic = config.limits.traffic_bytes;
    if traffic < TRAFFIC_BYTES_MIN {
        let remedy = "it must be at least 67108864 (64 MiB), and well below the agent's memory limit";
        refuse("limits.trafficBytes", format!("{traffic} is too little"), remedy);
    }
}

/// More networks than these are no pods' networks but a list of pods.
const POD_CIDRS_MAX: usize = 64;

/// Networks as written; a single one that cannot be read makes the list a wrong one, since it would protect less than it
/// seems to.
fn pod_cidrs(written: &[String]) -> Result<Vec<IpNet>, String> {
    if written.len() > POD_CIDRS_MAX {
        return Err(format!("{} networks are more than {POD_CIDRS_MAX}", written.len()));
    }
    let parse = |text: &String| {
        text.parse::<IpNet>().map(|net| net.trunc()).map_err(|_| format!("\"{text}\" is no CIDR"))
    };
    let nets: Vec<IpNet> = written.iter().map(parse).collect::<Result<_, _>>()?;
    match nets.iter().find(|net| net.prefix_len() == 0) {
        Some(all) => Err(format!("{all} is every address, and nobody outside the cluster could be reached")),
        None => Ok(nets),
    }
}

/// A field that means `mtls` and is not spelt so, where there is no `mtls`.
fn misspelt_mtls(value: &Value) -> Option<&str> {
    const FIELDS: [&str; 10] = [
        "apiVersion",
        "kind",
        "metadata",
        "gatewayAddresses",
        "trustDomain",
        "mtls",
        "strictUdp",
        "podCidrs",
        "tracing",
        "limits",
    ];
    let fields = value.as_object().filter(|fields| !fields.contains_key("mtls"))?;
    let unknown = fields.keys().map(String::as_str).filter(|f| !FIELDS.contains(f) && *f != "accessLog");
    unknown.into_iter().find(|field| closest(field, FIELDS) == Some("mtls"))
}

/// Reads the text of a ConfigMap `weft-config`: the settings that hold where nothing was read before, and what is wrong with
/// them.
#[must_use]
pub fn read_settings(text: &str) -> (AgentConfig, Vec<Problem>) {
    settings("AgentConfig", text, None)
}

/// The settings of a document named `file`, over the last good ones if there are any. Where there are none and the document
/// cannot be read at all, nobody knows whether it said strict: then it did.
pub(crate) fn settings(file: &str, text: &str, last: Option<&AgentConfig>) -> (AgentConfig, Vec<Problem>) {
    let origin = |line| Origin { file: file.into(), line };
    let problem = |line, reason: &str, remedy: &str| Problem {
        severity: Severity::Error,
        origin: Some(origin(line)),
        object: "AgentConfig".into(),
        path: "".into(),
        reason: reason.into(),
        remedy: remedy.into(),
    };
    let stays = match last {
        Some(_) => "the last good settings stay in effect",
        None => "until it can be read, mtls counts as strict and all else has its default",
    };
    let unread =
        || last.cloned().unwrap_or_else(|| AgentConfig { mtls: MtlsMode::Strict, ..AgentConfig::default() });
    let (documents, errors) = yaml::read_within(text, &yaml::CLUSTER);
    let mut problems: Vec<Problem> = errors.iter().map(|e| problem(e.line, &e.reason, stays)).collect();
    let Some(document) = documents.into_iter().find(|d| is_agent_config(&d.value)) else {
        if problems.is_empty() && text.trim().is_empty() {
            return (last.cloned().unwrap_or_default(), problems);
        }
        if problems.is_empty() {
            let remedy =
                format!("write \"apiVersion: weft.dev/v1alpha1\" and \"kind: AgentConfig\"; {stays}");
            problems.push(problem(1, "no AgentConfig in it", &remedy));
        }
        return (unread(), problems);
    };
    let origin = origin(document.marks.line());
    let source = Source { origin: Some(&origin), marks: Some(&document.marks), admitted: false };
    let mut report = Report::default();
    let reading = read(&document.value, &document.marks, &mut report);
    problems.extend(convert::problems(report, "AgentConfig", &source));
    let default = AgentConfig::default();
    (reading.map_or_else(unread, |r| r.over(last.unwrap_or(&default))), problems)
}

/// The fields as written. One of a wrong type is refused and taken out, and the rest read again: serde stops at the
/// first.
fn fields(mut value: Value, marks: &Marks, report: &mut Report, broken: &mut Vec<String>) -> Option<Written> {
    loop {
        let mut attempt = Report::default();
        let written = tracked::read(&value, Some(marks), &mut attempt);
        let findings = attempt.into_findings();
        if let Some(written) = written {
            for f in findings {
                report.warn(&f.path, f.reason, f.remedy);
            }
            return Some(written);
        }
        // Warnings come again with the next attempt.
        let f = findings.into_iter().find(|f| f.severity == Severity::Error)?;
        let gone = remove(&mut value, &f.path).or_else(|| {
            let section = path::steps(&f.path).next()?.to_owned();
            remove(&mut value, &section)
        });
        report.reject(&f.path, f.reason, f.remedy);
        broken.push(gone?);
    }
}

/// Takes out what stands at a path of two steps at most, the depth of our fields; gives the path of what has gone.
fn remove(value: &mut Value, at: &str) -> Option<String> {
    let steps: Vec<&str> = path::steps(at).take(2).collect();
    let (last, parents) = steps.split_last()?;
    let parent = parents.iter().try_fold(value, |v, step| v.get_mut(step))?;
    parent.as_object_mut()?.remove(*last)?;
    Some(steps.join("."))
}

type Addresses = BTreeMap<ObjectKey, Vec<IpAddr>>;

/// Addresses by Gateway, and the Gateways for which none of theirs can be used.
fn addresses(written: &BTreeMap<String, Value>, report: &mut Report) -> (Addresses, Vec<ObjectKey>) {
    let (mut out, mut unaddressed) = (BTreeMap::new(), Vec::new());
    for (name, value) in written {
        let at = path::key("gatewayAddresses", name);
        let Some((namespace, gateway)) = name.split_once('/').filter(|(n, g)| !n.is_empty() && !g.is_empty())
        else {
            report.reject(&at, format!("\"{name}\" is no Gateway"), "write \"NAMESPACE/NAME\"");
            continue;
        };
        let key = ObjectKey::new(namespace, gateway);
        let texts: Vec<(String, &Value)> = match value {
            Value::Array(list) => list.iter().enumerate().map(|(i, v)| (path::index(&at, i), v)).collect(),
            // One address is meant by one address.
            single => vec![(at, single)],
        };
        let mut ips = Vec::new();
        for (at, text) in &texts {
            match text.as_str().and_then(|t| t.parse().ok()) {
                Some(ip) => ips.push(ip),
                None => report.reject(
                    at,
                    format!("{text} is no IP address"),
                    "write a list such as [\"127.0.0.2\"]",
                ),
            }
        }
        if ips.is_empty() && !texts.is_empty() {
            unaddressed.push(key);
        } else {
            out.insert(key, ips);
        }
    }
    (out, unaddressed)
}

fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    duration::parse(&text).ok_or_else(|| {
        serde::de::Error::custom(format!("\"{text}\" is no duration; write 500ms, 10s or 1m30s (GEP-2257)"))
    })
}
