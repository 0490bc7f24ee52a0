//! What agents say of their node: their admin page `/node`, asked by `exec` in their pod, since the page is for the node only.

use super::api::{AskAgent, list, text};
use anyhow::Context as _;
use futures_util::{FutureExt as _, future::BoxFuture};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, api::AttachParams};
use rustls::crypto::aws_lc_rs;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{io::AsyncReadExt as _, net::TcpStream};
use tokio_rustls::TlsConnector;
use weft_certs::anonymous_client;

/// Longest wait for an agent's page.
const ANSWER: Duration = Duration::from_secs(10);
/// Longer pages are cut, in bytes.
const PAGE_MAX: u64 = 16 << 20;

/// The page `/node`. Every field may be left out: agents of another version know more or less.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeReport {
    /// `spec.nodeName`.
    pub node: String,
    /// Of the agent.
    pub version: String,
    /// `connected`, or why not.
    pub controller: String,
    /// `uname -r`.
    pub kernel: String,
    /// What `nft --version` says; empty when it does not run.
    pub nft: String,
    /// How pods are captured, as the kernel lets them: `tproxy`, or a redirect (`redirect-listening`, `redirect`), which
    /// slows down. Empty until one is.
    pub capture: String,
    /// Why the node's kubelet is not recognised, so that strict pods refuse its probes; empty when it is, or nobody has asked.
    pub kubelet: String,
    /// The plugin's place in the runtime's configuration.
    pub cni: CniReport,
    /// Pods of the node that are, or should be, in the mesh.
    pub pods: Vec<PodReport>,
    /// Connections from and to pods that go through the agent now.
    pub connections: u64,
    /// Connections from outside the mesh that pods accepted in clear: what `strict` would refuse.
    pub plaintext: Vec<PlaintextReport>,
    /// Budgets that workloads of the node have reached in the last ten minutes.
    pub budgets: Vec<BudgetReport>,
    /// Empty; `leaving` while pods are let go because of `uninstall: "true"` in weft-config; `done` when no pod is captured
    /// and the plugin and its configuration are gone.
    pub uninstall: String,
    /// What is wrong with the watches of the cluster, each with its remedy.
    pub findings: Vec<String>,
    /// Of the node's pods and Gateways.
    pub certificates: Vec<CertificateReport>,
    /// What is to be said of certificates of listeners that are served here.
    pub listeners: Vec<ListenerReport>,
}

/// A listener's certificate that has ended, ends soon, begins later, or is for other names.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListenerReport {
    /// `namespace/name` of the Gateway.
    pub gateway: String,
    /// The word of an Event's reason, e.g. `CertificateExpired`.
    pub fault: String,
    /// Whether clients are refused by it now.
    pub now: bool,
    /// What.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

/// A budget that was reached: `docs/budgets.md`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BudgetReport {
    /// Its name.
    pub budget: String,
    /// `Pod` or `Gateway`.
    pub kind: String,
    /// The tenant.
    pub namespace: String,
    /// Of the pod or Gateway.
    pub name: String,
    /// How often something was refused or displaced because of it, since the agent's start.
    pub times: u64,
}

/// An identity's certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CertificateReport {
    /// SPIFFE ID.
    pub identity: String,
    /// Last moment of validity (RFC 3339); empty while there is none.
    pub not_after: String,
    /// Why the last one could not be had.
    pub problem: String,
}

/// The plugin on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CniReport {
    /// `installed`, `waiting` (for another plugin's configuration), `removed` or `failed`.
    pub state: String,
    /// `dropIn` or `conflist`.
    pub way: String,
    /// The file that names our plugin.
    pub file: String,
    /// Whether an ADD has come since the installation.
    pub add_seen: bool,
    /// What is wrong.
    pub problem: String,
}

/// A pod as its node's agent sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodReport {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `captured`, `pending`, `leaving` or `failed`.
    pub state: String,
    /// Why it is not captured.
    pub why: String,
}

/// Callers in clear.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PlaintextReport {
    /// `namespace/pod`, or the address.
    pub from: String,
    /// `namespace/pod`.
    pub to: String,
    /// Connections since the agent's start.
    pub connections: u64,
    /// Seconds since the last one.
    pub last_seconds: u64,
}

/// Why the agent of this pod cannot be asked: its container does not run. `None` when it does, or nobody has said yet.
pub(super) fn not_running(pod: &Value) -> Option<String> {
    let agent = list(pod, "/status/containerStatuses").iter().find(|c| text(c, "/name") == "agent")?;
    if agent.pointer("/state/running").is_some() {
        return None;
    }
    let state = ["/state/waiting", "/state/terminated"].into_iter().find_map(|state| agent.pointer(state))?;
    Some(match (text(state, "/reason"), text(state, "/message")) {
        (reason, "") => reason.to_owned(),
        (reason, message) => format!("{reason}: {message}"),
    })
}

/// Asks by `kubectl exec`'s way.
pub(super) struct ByExec(pub(super) Client);

impl AskAgent for ByExec {
    fn ask<'a>(&'a self, pod: &'a str, path: &'a str) -> BoxFuture<'a, Result<Value, String>> {
        async move {
            tokio::time::timeout(ANSWER, exec(&self.0, pod, path))
                .await
                .unwrap_or_else(|_| Err(format!("no answer in {} s", ANSWER.as_secs())))
        }
        .boxed()
    }
}

/// Where an agent tells anybody on the node's network how far its leaving is.
const LEAVING_PORT: u16 = 15020;

/// Asks the agent's page `/leaving`, whatever page is asked for: from within the cluster that needs no right to run programs
/// in agents' pods, which would be a right to everything on every node.
pub(super) struct ByPage(pub(super) Client);

impl AskAgent for ByPage {
    fn ask<'a>(&'a self, pod: &'a str, _path: &'a str) -> BoxFuture<'a, Result<Value, String>> {
        async move {
            let page = async { leaving(&self.0, pod).await.map_err(|e| format!("{e:#}")) };
            tokio::time::timeout(ANSWER, page)
                .await
                .unwrap_or_else(|_| Err(format!("no answer in {} s", ANSWER.as_secs())))
        }
        .boxed()
    }
}

async fn leaving(client: &Client, pod: &str) -> anyhow::Result<Value> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), super::NAMESPACE);
    let address = pods.get(pod).await?.status.and_then(|s| s.pod_ip).context("it has no address yet")?;
    let at = SocketAddr::new(address.parse()?, LEAVING_PORT);
    let stream = TcpStream::connect(at).await.with_context(|| at.to_string())?;
    // The agent's certificate is its own: what is asked is no secret, and no token goes with the question.
    let tls = anonymous_client(Arc::new(aws_lc_rs::default_provider()), &[b"http/1.1"])?;
    let stream = TlsConnector::from(Arc::new(tls)).connect(at.ip().into(), stream).await?;
    Ok(serde_json::from_slice(&super::ask::page(stream, "/leaving").await?)?)
}

async fn exec(client: &Client, pod: &str, path: &str) -> Result<Value, String> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), super::NAMESPACE);
    let how = AttachParams::default().container("agent").stdin(false).stdout(true).stderr(true);
    let mut process =
        pods.exec(pod, ["weft", "admin", "get", path], &how).await.map_err(|e| e.to_string())?;
    let (mut page, mut trouble) = (Vec::new(), Vec::new());
    if let (Some(out), Some(err)) = (process.stdout(), process.stderr()) {
        let (mut out, mut err) = (out.take(PAGE_MAX), err.take(PAGE_MAX));
        let (first, second) = tokio::join!(out.read_to_end(&mut page), err.read_to_end(&mut trouble));
        first.and(second).map_err(|e| e.to_string())?;
    }
    serde_json::from_slice(&page).map_err(|_| {
        let said =
            String::from_utf8_lossy(if trouble.is_empty() { &page } else { &trouble }).trim().to_owned();
        if said.is_empty() { "the agent said nothing".into() } else { said }
    })
}
