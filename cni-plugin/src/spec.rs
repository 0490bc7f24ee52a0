//! The words of the CNI specification (containernetworking/cni SPEC.md 1.1.0) that this plugin speaks.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::{net::IpAddr, path::PathBuf};

/// Versions of the specification that the plugin answers in, oldest first.
pub const SUPPORTED_VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The largest network configuration read from stdin.
pub const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// The version used for an answer when the configuration names none that we know.
const FALLBACK_VERSION: &str = "1.1.0";

/// Error codes (SPEC.md, "Error"). Codes 1–99 are the specification's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// The configuration's `cniVersion` is none of [`SUPPORTED_VERSIONS`].
    IncompatibleVersion = 1,
    /// A CNI_* variable is missing or malformed; the message names it.
    InvalidEnvironment = 4,
    /// The configuration (or a needed file) cannot be read as JSON.
    Undecodable = 6,
    /// The configuration is JSON but wrong.
    InvalidConfig = 7,
    /// Something transient: the runtime should try again.
    TryAgainLater = 11,
    /// STATUS: an ADD cannot be served now.
    NotAvailable = 50,
    /// Ours: the agent refused for a reason of its own.
    Refused = 100,
}

/// A CNI error, printed on stdout as JSON.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("CNI error {code}: {msg}")]
pub struct CniError {
    /// Numeric code; [`Code`], or whatever the agent answered.
    pub code: u32,
    /// One line for the operator: it ends up in the pod's events.
    pub msg: String,
    /// More, if there is more.
    pub details: String,
}

impl CniError {
    /// An error without details.
    #[must_use]
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { code: code as u32, msg: msg.into(), details: String::new() }
    }

    /// The same error with details.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The JSON of the specification, in `version`.
    #[must_use]
    pub fn to_json(&self, version: &str) -> Value {
        let mut value = json!({ "cniVersion": version, "code": self.code, "msg": self.msg });
        if !self.details.is_empty() {
            value["details"] = Value::String(self.details.clone());
        }
        value
    }
}

/// What the runtime asks for (`CNI_COMMAND`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Verb {
    Add,
    Del,
    Check,
    Status,
    Gc,
    Version,
}

impl Verb {
    /// Parses `CNI_COMMAND`.
    ///
    /// # Errors
    /// Code 4 for a word that the specification does not know.
    pub fn parse(word: &str) -> Result<Self, CniError> {
        Ok(match word {
            "ADD" => Self::Add,
            "DEL" => Self::Del,
            "CHECK" => Self::Check,
            "STATUS" => Self::Status,
            "GC" => Self::Gc,
            "VERSION" => Self::Version,
            other => {
                return Err(CniError::new(
                    Code::InvalidEnvironment,
                    format!("CNI_COMMAND={other} is not a command"),
                ));
            }
        })
    }
}

/// The network configuration of this plugin, as the runtime hands it over on stdin.
#[derive(Clone, Debug, PartialEq)]
pub struct NetConf {
    /// `cniVersion`, one of [`SUPPORTED_VERSIONS`]: every answer is in it.
    pub version: String,
    /// `name` of the network.
    pub name: String,
    /// `runDir`: where the agent's socket and table live; `/run/weft` when left out.
    pub run_dir: PathBuf,
    /// `stateDir`: where the table's copy for the time after a reboot lives; none when left out.
    pub state_dir: Option<PathBuf>,
    /// `statusFollowsAgent`: whether STATUS fails while the agent is away (then a runtime holds back every new pod of the
    /// node, and the node becomes not ready); true when left out.
    pub status_follows_agent: bool,
    /// `prevResult` of the plugin before us, kept whole.
    pub prev_result: Option<Map<String, Value>>,
    /// `cni.dev/valid-attachments` (GC only).
    pub valid_attachments: Option<Vec<ValidAttachment>>,
}

/// One entry of `cni.dev/valid-attachments`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValidAttachment {
    /// `containerID`.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// `ifname`.
    pub ifname: String,
}

/// The answer's version for a configuration that may be broken: what it asks for if we speak it.
#[must_use]
pub fn answer_version(stdin: &[u8]) -> String {
    serde_json::from_slice::<Value>(stdin)
        .ok()
        .and_then(|v| v.get("cniVersion").and_then(Value::as_str).map(str::to_owned))
        .filter(|v| SUPPORTED_VERSIONS.contains(&v.as_str()))
        .unwrap_or_else(|| FALLBACK_VERSION.to_owned())
}

impl NetConf {
    /// Parses and checks the configuration.
    ///
    /// # Errors
    /// Code 6 when it is not a JSON object (or too large), 1 for a version that we do not speak, 7 for a
    /// field of the wrong type.
    pub fn parse(stdin: &[u8]) -> Result<Self, CniError> {
        if stdin.len() as u64 > MAX_CONFIG_BYTES {
            return Err(CniError::new(Code::Undecodable, "network configuration is larger than 4 MiB"));
        }
        let value: Value = serde_json::from_slice(stdin).map_err(|e| {
            CniError::new(Code::Undecodable, "network configuration is not JSON").with_details(e.to_string())
        })?;
        let Value::Object(mut fields) = value else {
            return Err(CniError::new(Code::Undecodable, "network configuration is not a JSON object"));
        };
        let version = take_string(&mut fields, "cniVersion")?.unwrap_or_default();
        if !SUPPORTED_VERSIONS.contains(&version.as_str()) {
            return Err(CniError::new(
                Code::IncompatibleVersion,
                format!("cniVersion \"{version}\" is not one of {}", SUPPORTED_VERSIONS.join(", ")),
            ));
        }
        Ok(Self {
            version,
            name: take_string(&mut fields, "name")?.unwrap_or_default(),
            run_dir: take_dir(&mut fields, "runDir")?
                .unwrap_or_else(|| crate::protocol::DEFAULT_RUN_DIR.into()),
            state_dir: take_dir(&mut fields, "stateDir")?,
            status_follows_agent: take_bool(&mut fields, "statusFollowsAgent")?.unwrap_or(true),
            prev_result: prev_result(fields.remove("prevResult"))?,
            valid_attachments: valid_attachments(fields.remove("cni.dev/valid-attachments"))?,
        })
    }

    /// The successful result of ADD: `prevResult` as it came, in this configuration's version.
    #[must_use]
    pub fn result(&self) -> Value {
        let mut result = self.prev_result.clone().unwrap_or_default();
        let same = result.get("cniVersion").and_then(Value::as_str) == Some(self.version.as_str());
        if !same {
            // libcni hands `prevResult` over in the configuration's version already; this is for runtimes
            // that leave the key out. An address carries its family in versions before 1.0.0 only.
            result.insert("cniVersion".into(), Value::String(self.version.clone()));
            if self.version.starts_with("0.") {
                add_address_families(&mut result);
            }
        }
        Value::Object(result)
    }

    /// The pod's addresses by `prevResult.ips`. Entries that are no `address/length` are left out.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        let ips = self.prev_result.as_ref().and_then(|r| r.get("ips")).and_then(Value::as_array);
        ips.into_iter().flatten().filter_map(address_of).collect()
    }
}

/// `CNI_ARGS` as Kubernetes runtimes fill it: which pod this sandbox is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodArgs {
    /// `K8S_POD_NAMESPACE`.
    pub namespace: String,
    /// `K8S_POD_NAME`.
    pub name: String,
    /// `K8S_POD_UID`; empty with runtimes that do not pass it.
    pub uid: String,
}

impl PodArgs {
    /// Parses `K=V;K=V…`. `None`: the sandbox is no Kubernetes pod.
    ///
    /// # Errors
    /// Code 4 when an element has no `=`, or one of namespace and name is given without the other.
    pub fn parse(args: &str) -> Result<Option<Self>, CniError> {
        let mut pod = Self::default();
        for element in args.split(';').filter(|e| !e.is_empty()) {
            let Some((key, value)) = element.split_once('=') else {
                return Err(CniError::new(
                    Code::InvalidEnvironment,
                    format!("CNI_ARGS: \"{element}\" is not KEY=VALUE"),
                ));
            };
            match key {
                "K8S_POD_NAMESPACE" => value.clone_into(&mut pod.namespace),
                "K8S_POD_NAME" => value.clone_into(&mut pod.name),
                "K8S_POD_UID" => value.clone_into(&mut pod.uid),
                _ => {}
            }
        }
        match (pod.namespace.is_empty(), pod.name.is_empty()) {
            (true, true) => Ok(None),
            (false, false) => Ok(Some(pod)),
            _ => Err(CniError::new(
                Code::InvalidEnvironment,
                "CNI_ARGS names only one of K8S_POD_NAMESPACE and K8S_POD_NAME",
            )),
        }
    }
}

/// The answer to VERSION.
#[must_use]
pub fn version_answer(version: &str) -> Value {
    json!({ "cniVersion": version, "supportedVersions": SUPPORTED_VERSIONS })
}

/// Whether `id` is a container ID by the specification: alphanumeric first, then also `_`, `.` and `-`.
#[must_use]
pub fn is_container_id(id: &str) -> bool {
    id.starts_with(|c: char| c.is_ascii_alphanumeric())
        && id.len() <= 256
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// Whether `name` can be the name of a Linux interface (at most 15 bytes, no `/`, `:` or space).
#[must_use]
pub fn is_interface_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.bytes().any(|b| b == b'/' || b == b':' || b.is_ascii_whitespace())
}

fn take_string(fields: &mut Map<String, Value>, key: &str) -> Result<Option<String>, CniError> {
    match fields.remove(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(s)) => Ok(Some(s)),
        Some(other) => {
            Err(CniError::new(Code::InvalidConfig, format!("field {key}: want a string, found {other}")))
        }
    }
}

fn take_bool(fields: &mut Map<String, Value>, key: &str) -> Result<Option<bool>, CniError> {
    match fields.remove(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(b)) => Ok(Some(b)),
        Some(other) => {
            Err(CniError::new(Code::InvalidConfig, format!("field {key}: want true or false, found {other}")))
        }
    }
}

fn take_dir(fields: &mut Map<String, Value>, key: &str) -> Result<Option<PathBuf>, CniError> {
    let Some(path) = take_string(fields, key)?.map(PathBuf::from) else { return Ok(None) };
    if path.is_absolute() {
        Ok(Some(path))
    } else {
        let text = format!("field {key}: \"{}\" is not an absolute path", path.display());
        Err(CniError::new(Code::InvalidConfig, text))
    }
}

fn prev_result(value: Option<Value>) -> Result<Option<Map<String, Value>>, CniError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map)),
        Some(_) => Err(CniError::new(Code::InvalidConfig, "field prevResult: want an object")),
    }
}

fn valid_attachments(value: Option<Value>) -> Result<Option<Vec<ValidAttachment>>, CniError> {
    value.filter(|v| !v.is_null()).map(serde_json::from_value).transpose().map_err(|e| {
        CniError::new(Code::InvalidConfig, "field cni.dev/valid-attachments: want [{containerID, ifname}]")
            .with_details(e.to_string())
    })
}

fn address_of(entry: &Value) -> Option<IpAddr> {
    entry.get("address")?.as_str()?.split('/').next()?.parse().ok()
}

fn add_address_families(result: &mut Map<String, Value>) {
    let ips = result.get_mut("ips").and_then(Value::as_array_mut);
    for entry in ips.into_iter().flatten() {
        let family = match address_of(entry) {
            Some(IpAddr::V4(_)) => "4",
            Some(IpAddr::V6(_)) => "6",
            None => continue,
        };
        if let Some(fields) = entry.as_object_mut() {
            fields.entry("version").or_insert_with(|| Value::String(family.into()));
        }
    }
}
