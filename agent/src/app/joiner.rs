//! Pods that run already join without a CNI ADD, and records of pods that are gone are forgotten.
//!
//! Reconciles what the world says is enrolled on this node with what the manager knows. Every failure is kept with its
//! reason for people to see, and tried again at growing intervals.

use super::enrolment::{Running, WorldEnrolment};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use weft_cni::install::Witness;
use weft_core::model::ObjectKey;
use weft_inpod::{Enrolment, ManagerHandle, Netns, Sandbox, find_sandbox, find_sandboxes, holder::PodRecord};

const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LAST: Duration = Duration::from_secs(60);
/// How often to look without being told.
const LOOK: Duration = Duration::from_secs(60);
/// The default of [`Joiner::gone_patience`].
pub(super) const GONE_PATIENCE: Duration = Duration::from_secs(30);

/// Pods of this node that are in the mesh, run, and are not captured because their sandbox was not found; and why not.
pub(super) type Missing = Arc<BTreeMap<ObjectKey, String>>;

/// What a joiner works with.
pub(super) struct Joiner {
    /// `/proc` of the host.
    pub(super) proc_root: PathBuf,
    pub(super) manager: Arc<ManagerHandle>,
    pub(super) enrolment: Arc<WorldEnrolment>,
    /// The plugin's installation is told whether ADDs come.
    pub(super) witness: Option<Witness>,
    /// A sandbox whose pod the world does not have is forgotten after this time: an ADD comes before the watch shows its pod,
    /// and a deleted pod's DEL comes a little after.
    pub(super) gone_patience: Duration,
}

/// A joiner at work.
pub(super) struct Joining {
    task: JoinHandle<()>,
    stop: CancellationToken,
    missing: watch::Receiver<Missing>,
}

impl Joining {
    /// Pods that should be captured and cannot be found; for status and metrics.
    pub(super) fn missing(&self) -> watch::Receiver<Missing> {
        self.missing.clone()
    }

    /// Ends the task and waits for that: then it has let go of the manager. What it has added goes on.
    pub(super) async fn stop(self) {
        self.stop.cancel();
        let _ = self.task.await; // a panic in it has been logged by tokio
    }
}

impl Joiner {
    /// Starts the task.
    pub(super) fn start(self) -> Joining {
        let (tell, missing) = watch::channel(Missing::default());
        let work = Work {
            joiner: Arc::new(self),
            tries: BTreeMap::new(),
            absent: BTreeMap::new(),
            adding: JoinSet::new(),
            missing: tell,
        };
        let stop = CancellationToken::new();
        Joining { task: tokio::spawn(work.run(stop.clone())), stop, missing }
    }
}

/// A pod that was not found.
struct Try {
    next: Instant,
    pause: Duration,
    reason: String,
}

struct Work {
    joiner: Arc<Joiner>,
    tries: BTreeMap<ObjectKey, Try>,
    /// Sandboxes whose pod the world does not have, and since when.
    absent: BTreeMap<String, Instant>,
    /// Pods on their way to the manager, which does the rest; bounded by the node's pods.
    adding: JoinSet<()>,
    missing: watch::Sender<Missing>,
}

impl Work {
    async fn run(mut self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.reconcile() => {}
        }
        self.adding.shutdown().await;
    }

    async fn reconcile(&mut self) {
        let mut changed = self.joiner.enrolment.changed();
        let mut added = self.joiner.manager.last_add();
        let mut counts = self.joiner.manager.counts();
        // Before, the manager does not know what an earlier agent knew.
        if counts.wait_for(|c| c.holder).await.is_err() {
            return;
        }
        loop {
            let next = self.pass().await;
            // What changes from here on is looked at next.
            tokio::select! {
                seen = changed.changed() => if seen.is_err() { return },
                seen = added.changed() => if seen.is_err() { return },
                () = sleep_until(next) => {}
            }
            let at = *added.borrow_and_update();
            if let (Some(witness), Some(at)) = (&self.joiner.witness, at) {
                witness.saw_add(at);
            }
        }
    }

    /// Looks once. Returns when to look again.
    async fn pass(&mut self) -> Instant {
        while self.adding.try_join_next().is_some() {}
        let now = Instant::now();
        let records = self.joiner.manager.records().await;
        let running = self.joiner.enrolment.running().filter(|_| !self.joiner.manager.has_ended());
        let Some(running) = running else { return now + LOOK };
        self.join(lacking(running, &records), now).await;
        self.forget_gone(&records, now).await;
        let retries = self.tries.values().map(|t| t.next);
        let forgets = self.absent.values().map(|since| *since + self.joiner.gone_patience);
        // Not at once again, whatever has become due meanwhile.
        let soon = Instant::now() + Duration::from_millis(100);
        retries.chain(forgets).min().map_or(now + LOOK, |due| due.clamp(soon, now + LOOK))
    }

    async fn join(&mut self, lacking: Vec<Running>, now: Instant) {
        let keys: BTreeSet<&ObjectKey> = lacking.iter().map(|pod| &pod.key).collect();
        self.tries.retain(|key, _| keys.contains(key));
        let is_due = |pod: &Running| self.tries.get(&pod.key).is_none_or(|t| t.next <= now);
        let due: Vec<Running> = lacking.into_iter().filter(is_due).collect();
        if !due.is_empty() {
            let root = self.joiner.proc_root.clone();
            // Reads all of /proc and enters namespaces: not on a runtime thread.
            let found = tokio::task::spawn_blocking(move || find_all(&root, due)).await;
            let found = found.inspect_err(|error| tracing::error!(%error, "looking for running pods failed"));
            for (pod, found) in found.unwrap_or_default() {
                match found {
                    Ok(sandbox) => self.add(pod, sandbox),
                    Err(reason) => self.not_found(pod.key, reason),
                }
            }
        }
        let missing: BTreeMap<_, _> = self.tries.iter().map(|(k, t)| (k.clone(), t.reason.clone())).collect();
        self.missing.send_if_modified(|shown| {
            let differs = **shown != missing;
            if differs {
                *shown = Arc::new(missing);
            }
            differs
        });
    }

    fn not_found(&mut self, key: ObjectKey, reason: String) {
        let before = self.tries.remove(&key);
        if before.as_ref().is_none_or(|t| t.reason != reason) {
            tracing::warn!("pod {key} runs, is enrolled and cannot be captured yet: {reason}");
        }
        let pause = before.map_or(RETRY_FIRST, |t| (t.pause * 2).min(RETRY_LAST));
        self.tries.insert(key, Try { next: Instant::now() + pause, pause, reason });
    }

    fn add(&mut self, pod: Running, sandbox: Sandbox) {
        self.tries.remove(&pod.key);
        let Running { key, uid, ips } = pod;
        if let (Some(witness), Some(started)) = (&self.joiner.witness, sandbox.started_at()) {
            witness.missed(&format!("pod {key}"), started);
        }
        let record = PodRecord {
            container_id: sandbox.container_id,
            namespace: key.namespace.to_string(),
            name: key.name.to_string(),
            uid,
            ips,
            annotations: BTreeMap::new(),
        };
        let joiner = self.joiner.clone();
        self.adding.spawn(async move { joiner.tell(key, record, sandbox.netns).await });
    }

    async fn forget_gone(&mut self, records: &[PodRecord], now: Instant) {
        let enrolment = &self.joiner.enrolment;
        let gone = |r: &&PodRecord| !enrolment.has(&key_of(r), &r.uid);
        let gone: Vec<&PodRecord> = records.iter().filter(gone).collect();
        self.absent.retain(|id, _| gone.iter().any(|r| r.container_id == *id));
        for record in gone {
            let since = *self.absent.entry(record.container_id.clone()).or_insert(now);
            if now < since + self.joiner.gone_patience {
                continue;
            }
            let (root, uid) = (self.joiner.proc_root.clone(), record.uid.clone());
            // A pod deleted by force runs on for a while, and its DEL comes.
            let runs = tokio::task::spawn_blocking(move || find_sandbox(&root, &uid).is_ok()).await;
            if runs.unwrap_or(true) {
                self.absent.insert(record.container_id.clone(), now);
                continue;
            }
            tracing::info!("pod {}: gone without a word of the container runtime", key_of(record));
            self.absent.remove(&record.container_id);
            self.joiner.manager.forget(record.container_id.clone()).await;
        }
    }
}

impl Joiner {
    async fn tell(&self, key: ObjectKey, record: PodRecord, netns: Netns) {
        // Before: whoever reads that a pod is captured has read then whether it ran in clear until now.
        tracing::info!("pod {key}: runs already, and joins");
        if let Err(reason) = self.manager.add(record, netns).await {
            tracing::warn!("pod {key} runs and is not captured yet: {reason}");
        }
    }
}

/// The pods that the manager knows no sandbox of. A pod of the same name with another UID was another pod.
fn lacking(running: Vec<Running>, records: &[PodRecord]) -> Vec<Running> {
    let known: BTreeMap<ObjectKey, Vec<&str>> = records.iter().fold(BTreeMap::new(), |mut known, record| {
        known.entry(key_of(record)).or_default().push(&record.uid);
        known
    });
    let is_known = |pod: &Running| {
        known.get(&pod.key).is_some_and(|uids| uids.iter().any(|uid| uid.is_empty() || **uid == *pod.uid))
    };
    running.into_iter().filter(|pod| !is_known(pod)).collect()
}

fn key_of(record: &PodRecord) -> ObjectKey {
    ObjectKey::new(record.namespace.as_str(), record.name.as_str())
}

type Found = Vec<(Running, Result<Sandbox, String>)>;

/// Looks for the pods' sandboxes. One that has none of the pod's addresses is not taken: rules in the wrong namespace would
/// cut off whoever lives there.
fn find_all(proc_root: &Path, pods: Vec<Running>) -> Found {
    let mut found = find_sandboxes(proc_root, &pods.iter().map(|pod| pod.uid.clone()).collect());
    let mut one = |pod: &Running| {
        let sandbox = found.remove(&pod.uid).ok_or("named twice")?.map_err(|e| e.to_string())?;
        match sandbox.has_address(&pod.ips) {
            Ok(true) => Ok(sandbox),
            Ok(false) => Err(format!("the network of process {} has none of its addresses", sandbox.pid)),
            Err(error) => Err(error.to_string()),
        }
    };
    pods.into_iter()
        .map(|pod| {
            let sandbox = one(&pod);
            (pod, sandbox)
        })
        .collect()
}

#[cfg(test)]
mod tests;
