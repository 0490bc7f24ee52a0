//! `AgentConfig`: settings of an agent that no Kubernetes kind holds.

use crate::{duration, path, problem::Report, tracked, yaml::Marks};
use serde::{Deserialize, Deserializer, de::IgnoredAny};
use serde_json::Value;
use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::Duration};
use weft_core::model::{DEFAULT_TRUST_DOMAIN, MtlsMode, ObjectKey, Str};

/// `apiVersion: weft.dev/v1alpha1, kind: AgentConfig`. Every field may be left out.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentConfig {
    /// `gatewayAddresses: {"ns/name": ["127.0.0.2"]}`: where a Gateway's listeners bind, for several Gateways on one
    /// machine. A Gateway that is not listed binds all addresses.
    pub gateway_addresses: BTreeMap<ObjectKey, Vec<IpAddr>>,
    /// `trustDomain`; `cluster.local` by default.
    pub trust_domain: Str,
    /// `mtls`: what enrolled pods accept from outside the mesh unless their label says otherwise; `permissive` by
    /// default.
    pub mtls: MtlsMode,
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

/// `limits`: each is per pod (share) or per Gateway, so that tenants of a node cannot starve each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Limits {
    /// `connections`: open at once; 16,384 by default.
    pub connections: u32,
    /// `handshakes`: TLS handshakes in progress at once; 64 by default.
    pub handshakes: u32,
    /// `requestHeadBytes`: method, path and headers of one request; 64 KiB by default.
    pub request_head_bytes: u32,
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
    #[serde(default)]
    gateway_addresses: BTreeMap<String, Vec<String>>,
    trust_domain: Option<String>,
    mtls: Option<String>,
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

/// Reads the document; `None` after a rejection.
pub(crate) fn read(value: &Value, marks: &Marks, report: &mut Report) -> Option<AgentConfig> {
    if value["apiVersion"] != "weft.dev/v1alpha1" {
        report.reject(
            "apiVersion",
            "AgentConfig has no such version",
            "write \"apiVersion: weft.dev/v1alpha1\"",
        );
    }
    let written: Written = tracked::read(value, Some(marks), report)?;
    let ratio = written.tracing.sampling_ratio;
    if !(0.0..=1.0).contains(&ratio) {
        report.reject("tracing.samplingRatio", format!("{ratio} is out of range"), "it must be from 0 to 1");
    }
    if let Some(e) = written
        .tracing
        .endpoint
        .as_ref()
        .filter(|e| e.parse::<http::Uri>().map_or(true, |u| u.host().is_none()))
    {
        let remedy = "write a URL such as http://127.0.0.1:4317";
        report.reject("tracing.endpoint", format!("\"{e}\" is no URL"), remedy);
    }
    let mtls = match written.mtls.as_deref() {
        Some("strict") => MtlsMode::Strict,
        None | Some("permissive") => MtlsMode::Permissive,
        Some(other) => {
            report.reject("mtls", format!("\"{other}\" is no mode"), "write permissive or strict");
            MtlsMode::Strict
        }
    };
    let trust_domain = written.trust_domain.unwrap_or_else(|| DEFAULT_TRUST_DOMAIN.to_owned());
    let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b);
    if trust_domain.is_empty() || !trust_domain.bytes().all(ok) {
        let remedy = "use lower-case letters, digits, -, . and _ (SPIFFE)";
        report.reject("trustDomain", format!("\"{trust_domain}\" is no trust domain"), remedy);
    }
    let gateway_addresses = addresses(written.gateway_addresses, report);
    let access_log = match written.access_log.output.as_deref() {
        None | Some("stdout") => AccessLog::Stdout,
        Some("off") => AccessLog::Off,
        Some(file) => AccessLog::File(file.into()),
    };
    (report.rejections() == 0).then(|| AgentConfig {
        gateway_addresses,
        trust_domain: trust_domain.into(),
        mtls,
        tracing: written.tracing,
        access_log,
        limits: written.limits,
    })
}

fn addresses(
    written: BTreeMap<String, Vec<String>>,
    report: &mut Report,
) -> BTreeMap<ObjectKey, Vec<IpAddr>> {
    let mut out = BTreeMap::new();
    for (name, texts) in written {
        let at = path::key("gatewayAddresses", &name);
        let Some((namespace, gateway)) = name.split_once('/').filter(|(n, g)| !n.is_empty() && !g.is_empty())
        else {
            report.reject(&at, format!("\"{name}\" is no Gateway"), "write \"NAMESPACE/NAME\"");
            continue;
        };
        let mut ips = Vec::new();
        for (i, text) in texts.iter().enumerate() {
            match text.parse() {
                Ok(ip) => ips.push(ip),
                Err(_) => report.reject(&path::index(&at, i), format!("\"{text}\" is no IP address"), ""),
            }
        }
        out.insert(ObjectKey::new(namespace, gateway), ips);
    }
    out
}

fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    duration::parse(&text).ok_or_else(|| {
        serde::de::Error::custom(format!("\"{text}\" is no duration; write 500ms, 10s or 1m30s (GEP-2257)"))
    })
}
