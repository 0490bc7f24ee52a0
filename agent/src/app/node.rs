//! The page `/node`: the node as its agent sees it. `weft status`, `check`, `leave` and `uninstall` read it.

use super::{
    enrolment::WorldEnrolment,
    joiner::Missing,
    kubelet::{NodeKubelet, is_ours},
    leave::Leaving,
    plugin::Plugin,
};
use crate::cluster::{
    BudgetReport, CertificateReport, CniReport, ListenerReport, NodeReport, PlaintextReport, PodReport,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};
use tokio::sync::watch;
use weft_certs::IdentityStore;
use weft_control::ClientState;
use weft_core::{config::Config, model::ObjectKey};
use weft_inpod::{Captured, Counts, Mechanism};
use weft_k8s::WatchState;
use weft_proxy::{budgets::Reached, context::Shared, plaintext::PlaintextCaller};

/// Budgets that were reached within this time are shown.
const BUDGETS_SHOWN: Duration = Duration::from_secs(600);
/// Where the kernel says its release.
const KERNEL: &str = "/proc/sys/kernel/osrelease";

/// What the page is made of.
pub(super) struct NodePage {
    pub(super) node: String,
    /// What `nft --version` says, once it was asked.
    pub(super) nft: Arc<OnceLock<String>>,
    pub(super) controller: watch::Receiver<ClientState>,
    pub(super) watched: watch::Receiver<Arc<WatchState>>,
    pub(super) plugin: Arc<Plugin>,
    pub(super) enrolment: Arc<WorldEnrolment>,
    pub(super) identities: Option<IdentityStore>,
    pub(super) shared: Arc<Shared>,
    pub(super) kubelet: NodeKubelet,
    pub(super) on_node: OnNode,
}

/// Pods of the node.
pub(super) struct OnNode {
    pub(super) counts: watch::Receiver<Counts>,
    pub(super) captured: watch::Receiver<Arc<BTreeMap<ObjectKey, Captured>>>,
    pub(super) mechanism: watch::Receiver<Option<Mechanism>>,
    pub(super) missing: watch::Receiver<Missing>,
    pub(super) leaving: watch::Receiver<Leaving>,
}

impl NodePage {
    /// Asks beside everything else: it is a program that is run.
    pub(super) fn ask_nft() -> Arc<OnceLock<String>> {
        let said = Arc::new(OnceLock::new());
        let tell = said.clone();
        tokio::task::spawn_blocking(move || {
            let output = Command::new("nft").arg("--version").output();
            let text = output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
            let _ = tell.set(text.unwrap_or_default()); // asked once
        });
        said
    }

    /// How far leaving is, for who may not see the whole page: no pod is named.
    pub(super) fn leaving(&self) -> NodeReport {
        let report = self.report();
        let nameless = |pod: PodReport| PodReport { state: pod.state, ..PodReport::default() };
        NodeReport {
            node: report.node,
            cni: CniReport { state: report.cni.state, problem: report.cni.problem, ..CniReport::default() },
            pods: report.pods.into_iter().map(nameless).collect(),
            connections: report.connections,
            uninstall: report.uninstall,
            ..NodeReport::default()
        }
    }

    /// When the certificate of each identity ends, in Unix seconds.
    pub(super) fn identity_ends(&self) -> Vec<(String, i64)> {
        let infos = self.identities.as_ref().map(IdentityStore::infos).unwrap_or_default();
        infos.into_iter().filter_map(|info| Some((info.identity, info.not_after?.as_second()))).collect()
    }

    /// The page.
    pub(super) fn report(&self) -> NodeReport {
        let captured: BTreeSet<ObjectKey> = self.on_node.captured.borrow().keys().cloned().collect();
        let pods = Pods {
            wanted: self.enrolment.running().unwrap_or_default().into_iter().map(|pod| pod.key).collect(),
            missing: self.on_node.missing.borrow().clone(),
            holder: self.on_node.counts.borrow().holder,
            captured,
        };
        let leaving = match *self.on_node.leaving.borrow() {
            Leaving::Done if !pods.captured.is_empty() => Leaving::Going,
            leaving => leaving,
        };
        NodeReport {
            node: self.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            controller: controller(&self.controller.borrow()),
            kernel: std::fs::read_to_string(KERNEL).unwrap_or_default().trim().to_owned(),
            nft: self.nft.get().cloned().unwrap_or_default(),
            capture: self.on_node.mechanism.borrow().map(|m| m.name().to_owned()).unwrap_or_default(),
            kubelet: self.kubelet.unknown(),
            cni: self.plugin.report(),
            pods: pods.reports(),
            connections: self.shared.telemetry.open_connections(),
            budgets: budgets(&self.shared),
            plaintext: self.shared.plaintext.list().into_iter().map(plaintext).collect(),
            uninstall: leaving.word().to_owned(),
            findings: findings(&self.watched.borrow()),
            certificates: self.identities.as_ref().map(certificates).unwrap_or_default(),
            listeners: listeners(&self.shared.config.load(), jiff::Timestamp::now().as_second()),
        }
    }
}

/// What is known of the node's pods.
struct Pods {
    /// In the mesh by their labels, and running.
    wanted: BTreeSet<ObjectKey>,
    captured: BTreeSet<ObjectKey>,
    /// Not found, and why.
    missing: Missing,
    holder: bool,
}

impl Pods {
    fn reports(&self) -> Vec<PodReport> {
        self.wanted.union(&self.captured).map(|key| self.report(key)).collect()
    }

    fn report(&self, key: &ObjectKey) -> PodReport {
        let (state, why) = match (self.wanted.contains(key), self.captured.contains(key)) {
            (true, true) => ("captured", String::new()),
            (false, _) => ("leaving", "its connections are being let go".to_owned()),
            (true, false) => match self.missing.get(key) {
                Some(reason) => ("failed", reason.clone()),
                None if !self.holder => ("pending", "the holder does not answer".to_owned()),
                None => ("pending", "being captured; the agent's log says what it waits for".to_owned()),
            },
        };
        PodReport {
            namespace: key.namespace.to_string(),
            name: key.name.to_string(),
            state: state.to_owned(),
            why,
        }
    }
}

fn controller(state: &ClientState) -> String {
    match (state.connected, &state.last_error) {
        (true, _) => "connected".to_owned(),
        (false, Some(error)) => error.clone(),
        (false, None) => "not connected yet".to_owned(),
    }
}

fn budgets(shared: &Shared) -> Vec<BudgetReport> {
    let one = |reached: Reached| BudgetReport {
        budget: reached.budget.name.to_owned(),
        kind: reached.by.kind.to_owned(),
        namespace: reached.by.key.namespace.to_string(),
        name: reached.by.key.name.to_string(),
        times: reached.times,
    };
    shared.budgets.list(Some(BUDGETS_SHOWN), Instant::now()).into_iter().map(one).collect()
}

fn plaintext(caller: PlaintextCaller) -> PlaintextReport {
    let of_the_node = caller.from.parse().is_ok_and(is_ours);
    PlaintextReport {
        from: if of_the_node { format!("{} (the node)", caller.from) } else { caller.from },
        to: caller.to.to_string(),
        connections: caller.connections,
        last_seconds: caller.last.elapsed().as_secs(),
    }
}

fn findings(watched: &WatchState) -> Vec<String> {
    let line = |(what, fault): &(weft_core::model::Str, weft_k8s::Fault)| match &*fault.remedy {
        "" => format!("{what}: {}", fault.reason),
        remedy => format!("{what}: {} ({remedy})", fault.reason),
    };
    watched.findings().iter().map(line).collect()
}

fn listeners(config: &Config, now: i64) -> Vec<ListenerReport> {
    let all = config.terminations().flat_map(|(gateway, hostname, tls)| {
        tls.remarks(hostname, now).into_iter().map(move |remark| ListenerReport {
            gateway: gateway.to_string(),
            fault: remark.fault.reason().to_owned(),
            now: remark.fault.is_now(),
            message: remark.message,
            remedy: remark.fault.remedy().to_owned(),
        })
    });
    all.collect::<BTreeSet<_>>().into_iter().collect()
}

fn certificates(identities: &IdentityStore) -> Vec<CertificateReport> {
    let one = |info: weft_certs::IdentityInfo| CertificateReport {
        identity: info.identity,
        not_after: info.not_after.map(|t| t.to_string()).unwrap_or_default(),
        problem: info.last_error.unwrap_or_default(),
    };
    identities.infos().into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pod_has_its_state_and_reason() {
        let key = |name: &str| ObjectKey::new("shop", name);
        let check = |holder, expected: [(&str, &str); 4]| {
            let pods = Pods {
                wanted: ["in", "lost", "new"].map(key).into(),
                captured: ["in", "out"].map(key).into(),
                missing: Arc::new(BTreeMap::from([(key("lost"), "no process".to_owned())])),
                holder,
            };
            let told: Vec<_> = pods.reports().into_iter().map(|p| (p.name, p.state)).collect();
            assert_eq!(told, expected.map(|(name, state)| (name.to_owned(), state.to_owned())));
            let why: Vec<_> = pods.reports().into_iter().map(|p| p.why.is_empty()).collect();
            assert_eq!(why, [true, false, false, false], "all that is not captured says why");
        };
        let expected = [("in", "captured"), ("lost", "failed"), ("new", "pending"), ("out", "leaving")];
        check(true, expected);
        check(false, expected);
    }

    #[test]
    fn the_controller_is_connected_or_there_is_a_reason() {
        let check = |connected, last_error: Option<&str>, expected: &str| {
            let since = jiff::Timestamp::UNIX_EPOCH;
            let last_error = last_error.map(str::to_owned);
            assert_eq!(controller(&ClientState { connected, since, failures: 0, last_error }), expected);
        };
        check(true, Some("an old one"), "connected");
        check(false, Some("refused"), "refused");
        check(false, None, "not connected yet");
    }
}
