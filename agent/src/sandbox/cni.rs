//! Calling the plugin as a container runtime does: environment variables, JSON on standard input and output.

use super::Pod;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

/// The plugin's error document.
#[derive(Clone, Debug, thiserror::Error)]
#[error("CNI error {code}: {msg}{}{details}", if details.is_empty() { "" } else { ": " })]
pub struct CniError {
    /// Error code of the CNI specification; 11 is "try again later".
    pub code: u64,
    /// Short message.
    pub msg: String,
    /// Long message.
    pub details: String,
}

/// Calls `command` for `pod` with the result that a bridge plugin before ours would have given.
pub(super) fn call(plugin: &Path, command: &str, pod: &Pod, run_dir: &Path) -> Result<Value> {
    let netns = pod.netns.path();
    let config = json!({
        "cniVersion": "1.1.0",
        "name": "weft-sandbox",
        "type": "weft-cni",
        "runDir": run_dir,
        "prevResult": {
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "eth0", "sandbox": netns}],
            "ips": [
                {"address": format!("{}/24", pod.ip), "interface": 0},
                {"address": format!("{}/64", pod.ip6), "interface": 0},
            ],
        },
    });
    let args = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_UID={};K8S_POD_INFRA_CONTAINER_ID={}",
        pod.spec.namespace,
        pod.spec.name,
        pod.netns.name(),
        pod.netns.name(),
    );
    let mut child = Command::new(plugin)
        .env_clear()
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", pod.netns.name())
        .env("CNI_NETNS", netns)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", plugin.parent().unwrap_or(Path::new("/")))
        .env("CNI_ARGS", args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", plugin.display()))?;
    child.stdin.take().context("no stdin")?.write_all(config.to_string().as_bytes())?;
    let output = child.wait_with_output()?;
    let answer = || serde_json::from_slice::<Value>(&output.stdout);
    if output.status.success() {
        return Ok(if output.stdout.is_empty() { Value::Null } else { answer()? });
    }
    let error = answer().with_context(|| {
        format!("{} printed no CNI error: {}", plugin.display(), String::from_utf8_lossy(&output.stderr))
    })?;
    let text = |field: &str| error[field].as_str().unwrap_or_default().to_owned();
    Err(CniError { code: error["code"].as_u64().unwrap_or(0), msg: text("msg"), details: text("details") }
        .into())
}
