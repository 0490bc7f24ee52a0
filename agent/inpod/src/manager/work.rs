//! What is done to one pod: each function is one piece of work, idempotent, with a deadline on every wait.

use super::{CapturedPod, PodEvent};
use crate::{
    apply::{apply, let_nobody_past, remove},
    capture_config::CaptureConfig,
    find::addresses_in,
    holder::{HeldPod, HolderError, HolderLink, PodRecord, Posted, Request},
    netns::Netns,
    ns_thread::NetnsThread,
    ruleset::{Mechanism, Mode},
    socket::Listeners,
    stash::PodSockets,
};
use std::{net::IpAddr, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

/// Addresses of one pod that are told.
const ADDRESSES_MAX: usize = 16;

/// How long the data plane may leave its event queue full.
const EVENT_DEADLINE: Duration = Duration::from_secs(5);

/// What work needs.
#[derive(Debug)]
pub(super) struct Kit {
    pub(super) link: HolderLink,
    /// Runs `nft`: slow, so apart from `sockets`.
    pub(super) rules: NetnsThread,
    /// Fills the stashes.
    pub(super) sockets: NetnsThread,
    pub(super) events: mpsc::Sender<PodEvent>,
    /// How the last pod was captured: the same for all pods of a kernel.
    pub(super) mechanism: watch::Sender<Option<Mechanism>>,
    pub(super) ready_deadline: Duration,
    pub(super) drain_deadline: Duration,
    pub(super) linger: Duration,
}

/// The agent's side of a pod. Work owns it while it runs.
#[derive(Debug)]
pub(super) struct Sandbox {
    pub(super) record: PodRecord,
    netns: Netns,
    /// Duplicates of the holder's, to give back if that crashes.
    listeners: Option<Listeners>,
    /// Whether rules may be in place.
    captured: bool,
    /// Whether they may be those of an agent before, and a holder may have let the node's kubelet past them.
    past_capture: bool,
    served: Served,
    /// What was read in its namespace when it was captured last.
    pub(super) addresses: Vec<IpAddr>,
}

/// What the data plane knows of the pod.
#[derive(Debug)]
enum Served {
    No,
    Asked(oneshot::Receiver<Result<(), String>>),
    Yes,
}

impl Sandbox {
    /// `runs`: it was there before, with a table perhaps, of which a holder that has ended with its agent tells nothing. One
    /// that is being made has none.
    pub(super) const fn new(record: PodRecord, netns: Netns, runs: bool) -> Self {
        Self {
            record,
            netns,
            listeners: None,
            captured: false,
            past_capture: runs,
            served: Served::No,
            addresses: Vec::new(),
        }
    }

    /// As the holder has it.
    pub(super) fn found(held: HeldPod) -> Self {
        let HeldPod { record, netns, listeners, captured, past_capture } = held;
        Self { record, netns, listeners, captured, past_capture, served: Served::No, addresses: Vec::new() }
    }

    /// A copy for the holder. Listeners that cannot be duplicated are left out: the holder opens its own.
    pub(super) fn held(&self) -> HeldPod {
        let listeners = self.listeners.as_ref().and_then(|l| l.try_clone().ok());
        let (record, netns) = (self.record.clone(), self.netns.clone());
        // The holder's own knowledge of it stays.
        HeldPod { record, netns, listeners, captured: self.captured, past_capture: false }
    }
}

/// Captures a pod or brings its rules up to date.
pub(super) async fn capture(kit: &Kit, sandbox: &mut Sandbox, config: &CaptureConfig) -> Result<(), String> {
    let id = sandbox.record.container_id.clone();
    // Again, in case the holder restarted or was away at ADD; an item that it has changes nothing.
    kit.link.ask(Request::Adopt(sandbox.held())).await.map_err(text)?;
    if sandbox.listeners.is_none() {
        sandbox.listeners = Some(kit.link.open(&id).await.map_err(text)?);
    }
    if let Some(listeners) = &sandbox.listeners {
        // A holder of an earlier version opened them, or an earlier agent left them.
        listeners.make_transparent().map_err(|e| format!("make listeners transparent: {e}"))?;
    }
    if sandbox.past_capture && config.while_away.is_nothing() {
        // It has become strict while no agent was there, and it may be long until it can be served: its certificate is
        // missing as long as no controller is there.
        let netns = sandbox.netns.clone();
        kit.rules.run(netns.clone(), move || let_nobody_past(&netns)).await.map_err(text)?.map_err(text)?;
        sandbox.past_capture = false;
    }
    serve(kit, sandbox).await?;
    sandbox.captured = true;
    set_rules(kit, sandbox, config.clone(), Mode::Capture).await?;
    read_addresses(kit, sandbox).await;
    kit.link.ask(Request::SetCaptured(id, true)).await.map(drop).map_err(text)
}

/// Reads which of the addresses that its network plugin gave it the pod has: what the mesh takes for proved. An address that the
/// pod's own program has added is none of them.
async fn read_addresses(kit: &Kit, sandbox: &mut Sandbox) {
    let netns = sandbox.netns.clone();
    let read = kit.rules.run(netns.clone(), move || addresses_in(&netns)).await;
    match read.map_err(text).and_then(|read| read.map_err(text)) {
        Ok(mut found) => {
            let given = &sandbox.record.ips;
            found.retain(|ip| if given.is_empty() { !ip.is_loopback() } else { given.contains(ip) });
            sandbox.addresses = found.into_iter().take(ADDRESSES_MAX).collect();
        }
        // Without proof the pod is served all the same: only who claims its address too is not told apart from it.
        Err(reason) => {
            tracing::warn!(sandbox = %sandbox.record.container_id, %reason, "cannot read a pod's addresses");
        }
    }
}

/// Hands the pod to the data plane, once, and waits until it is served.
async fn serve(kit: &Kit, sandbox: &mut Sandbox) -> Result<(), String> {
    if matches!(sandbox.served, Served::No) {
        let listeners = sandbox.listeners.as_ref().ok_or("no listeners")?;
        let listeners = listeners.try_clone().map_err(|e| format!("duplicate listeners: {e}"))?;
        let sockets = PodSockets::pod(sandbox.netns.clone(), kit.sockets.clone());
        let (ready, asked) = oneshot::channel();
        let pod = CapturedPod { record: sandbox.record.clone(), listeners, sockets };
        emit(kit, PodEvent::Captured { pod, ready }).await?;
        sandbox.served = Served::Asked(asked);
    }
    if let Served::Asked(ready) = &mut sandbox.served {
        match timeout(kit.ready_deadline, ready).await {
            Ok(Ok(Ok(()))) => sandbox.served = Served::Yes,
            // It may still come: the next try goes on waiting for the same answer.
            Err(_) => return Err("the data plane is not ready for it (certificate?)".into()),
            Ok(Ok(Err(reason))) => {
                sandbox.served = Served::No;
                return Err(reason);
            }
            Ok(Err(_)) => {
                sandbox.served = Served::No;
                return Err("the data plane gave the pod up".into());
            }
        }
    }
    Ok(())
}

/// Lets a pod out of the mesh. New connections go direct at once; those that go through us end first.
pub(super) async fn release(kit: &Kit, sandbox: &mut Sandbox) -> Result<(), String> {
    let id = sandbox.record.container_id.clone();
    set_rules(kit, sandbox, CaptureConfig::default(), Mode::Drain).await?;
    kit.link.ask(Request::SetCaptured(id.clone(), false)).await.map_err(text)?;
    if !matches!(std::mem::replace(&mut sandbox.served, Served::No), Served::No) {
        // That its capture does not stand any more is being told; until peers have heard it they come to its port 15008.
        tokio::time::sleep(kit.linger).await;
        let (drained, ended) = oneshot::channel();
        let record = sandbox.record.clone();
        emit(kit, PodEvent::Released { record, gone: false, drained }).await?;
        if timeout(kit.drain_deadline, ended).await.is_err() {
            tracing::warn!(sandbox = %id, "connections of a pod that left the mesh did not end in time");
        }
    }
    let netns = sandbox.netns.clone();
    kit.rules.run(netns.clone(), move || remove(&netns)).await.map_err(text)?.map_err(text)?;
    (sandbox.listeners, sandbox.captured) = (None, false);
    kit.link.ask(Request::Close(id)).await.map(drop).map_err(text)
}

/// What the data plane must hear of a sandbox that is gone, its rules with it.
pub(super) fn farewell(sandbox: Sandbox) -> Option<PodEvent> {
    let served = !matches!(sandbox.served, Served::No);
    let (drained, _) = oneshot::channel(); // nothing to wait for
    served.then_some(PodEvent::Released { record: sandbox.record, gone: true, drained })
}

/// Emits an event that found the queue full.
pub(super) async fn emit_late(kit: Arc<Kit>, event: PodEvent) {
    if let Err(reason) = emit(&kit, event).await {
        tracing::error!(%reason, "the data plane does not know that a pod is gone");
    }
}

/// Hears whether the holder took what it was told.
pub(super) async fn told(what: String, posted: Posted) {
    match posted.answer().await {
        Ok(_) => {}
        // After the reconnect the manager gives the holder all that it knows.
        Err(HolderError::Away | HolderError::Superseded) => {}
        Err(error) => tracing::warn!(what, %error, "the holder does not know of it"),
    }
}

async fn set_rules(kit: &Kit, sandbox: &Sandbox, config: CaptureConfig, mode: Mode) -> Result<(), String> {
    let netns = sandbox.netns.clone();
    let applied = kit.rules.run(netns.clone(), move || apply(&netns, &config, mode)).await;
    let mechanism = applied.map_err(text)?.map_err(text)?;
    kit.mechanism.send_if_modified(|shown| shown.replace(mechanism) != Some(mechanism));
    Ok(())
}

pub(super) async fn emit(kit: &Kit, event: PodEvent) -> Result<(), String> {
    match timeout(EVENT_DEADLINE, kit.events.send(event)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err("the data plane has ended".into()),
        Err(_) => Err("the data plane does not take events".into()),
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
