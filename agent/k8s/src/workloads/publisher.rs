//! Carries slices out: one task, only while this controller leads. Each slice is written at most once in an interval, the
//! first change at once; many pods that change within it cost one write.

use super::{
    dispute::Disputes,
    plan::{Captured, Slice, SliceChange, Slices, plan_slices, read_slice, slice_body},
    proofs::conflicts,
};
use crate::{
    events::Recorder,
    provision::{MANAGED_BY, MANAGER, in_words},
};
use futures_util::{StreamExt, stream};
use kube::{
    Api, Client,
    api::{
        ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
        Preconditions,
    },
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use weft_core::model::{Objects, Pod, Snapshot, Str};

/// Times and bounds of a [`SlicePublisher`].
#[derive(Clone, Copy, Debug)]
pub struct SliceOptions {
    /// Requests at once.
    pub concurrency: usize,
    /// Of one request.
    pub deadline: Duration,
    /// Least time between two writes of one slice.
    pub interval: Duration,
    /// The first wait after a failure; doubled by each, up to thirty times it.
    pub backoff: Duration,
    /// The slices are listed again this often: somebody may have deleted one.
    pub resync: Duration,
}

impl Default for SliceOptions {
    fn default() -> Self {
        Self {
            concurrency: 8,
            deadline: Duration::from_secs(10),
            interval: Duration::from_secs(1),
            backoff: Duration::from_secs(1),
            resync: Duration::from_secs(600),
        }
    }
}

/// Keeps the WorkloadSlices as the pods are. Ends its task when dropped.
#[derive(Debug)]
pub struct SlicePublisher {
    work: watch::Sender<Option<Arc<Work>>>,
    leader: watch::Sender<bool>,
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

/// What was published last.
#[derive(Debug, PartialEq)]
struct Work {
    world: Snapshot,
    captured: Arc<Captured>,
}

impl SlicePublisher {
    /// Starts the task; it writes nothing before [`SlicePublisher::set_leader`].
    ///
    /// `events`: where pods are told that claim an address which another one has proved.
    #[must_use]
    pub fn start(client: Client, options: SliceOptions, events: Option<Recorder>) -> Self {
        let (work, work_in) = watch::channel(None);
        let (leader, leader_in) = watch::channel(false);
        let stop = CancellationToken::new();
        let runner = Runner { client, options, events, work: work_in, leader: leader_in };
        let task = tokio::spawn(runner.run(stop.clone()));
        Self { work, leader, stop, task: Some(task) }
    }

    /// Whether this controller leads. A loser's requests under way are dropped.
    pub fn set_leader(&self, leads: bool) {
        self.leader.send_if_modified(|l| std::mem::replace(l, leads) != leads);
    }

    /// The pods and namespaces of the world, and what the agents report. Nothing is done when nothing has changed.
    pub fn publish(&self, world: &Snapshot, captured: &Arc<Captured>) {
        let pods: Objects<Pod> = world.pods.clone();
        let world = Snapshot { pods, namespaces: world.namespaces.clone(), ..Snapshot::default() };
        let work = Work { world, captured: captured.clone() };
        self.work.send_if_modified(|last| {
            let new = last.as_ref().is_none_or(|last| **last != work);
            if new {
                *last = Some(Arc::new(work));
            }
            new
        });
    }

    /// Ends the task and waits for it.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if let Some(task) = self.task.take()
            && task.await.is_err()
        {
            tracing::error!("the publisher of WorkloadSlices ended with a panic");
        }
    }
}

impl Drop for SlicePublisher {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Runner {
    client: Client,
    options: SliceOptions,
    events: Option<Recorder>,
    work: watch::Receiver<Option<Arc<Work>>>,
    leader: watch::Receiver<bool>,
}

type SliceId = (Str, u32);

/// What is remembered while leading. The slices are ours, so what was written is what is there, until a write meets another
/// version or a node's agent is back: `weft node clean` says of a node without an agent that its pods are captured no more.
#[derive(Default)]
struct Reign {
    slices: Slices,
    /// A write of them may or may not have happened: they are written again, changed or not.
    unsure: BTreeSet<SliceId>,
    /// When a slice may be written again, and how often it has failed.
    next: BTreeMap<SliceId, (Instant, u32)>,
    /// When the slices are to be listed; at once at first.
    list_at: Option<Instant>,
    list_failures: u32,
    /// When they were listed last.
    listed: Option<Instant>,
    /// Nodes whose agents report.
    reporting: BTreeSet<Str>,
    disputes: Disputes,
}

impl Reign {
    /// A node that reports only now may have been cleaned before. Its agent captures the same pods again, which differs in nothing
    /// from what is remembered: so the slices are read, at most once in an `interval` however many agents come.
    fn hear(&mut self, captured: &Captured, interval: Duration) {
        let came = captured.keys().any(|node| !self.reporting.contains(node));
        self.reporting = captured.keys().cloned().collect();
        if came && self.list_failures == 0 {
            let soon = self.listed.map_or_else(Instant::now, |at| at + interval);
            self.list_at = self.list_at.map(|at| at.min(soon));
        }
    }

    fn changes(&mut self, work: &Work) -> Vec<SliceChange> {
        // They went with their namespace; one of the same name that comes later has none.
        self.slices.retain(|namespace, _| work.world.namespaces.contains_key(namespace));
        let mut out = plan_slices(&work.world, &work.captured, &self.slices);
        let known: BTreeSet<SliceId> = out.iter().map(id).collect();
        self.unsure.retain(|(namespace, _)| work.world.namespaces.contains_key(namespace));
        for (namespace, number) in self.unsure.iter().filter(|u| !known.contains(u)) {
            let slice = self.slices.get(namespace).and_then(|s| s.get(number));
            let workloads = slice.map(|s| s.workloads.clone()).unwrap_or_default();
            out.push(SliceChange { namespace: namespace.clone(), number: *number, workloads });
        }
        out
    }
}

impl Runner {
    async fn run(mut self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.reigns() => {}
        }
    }

    async fn reigns(&mut self) {
        loop {
            if self.leader.wait_for(|leads| *leads).await.is_err() {
                return;
            }
            let mut lost = self.leader.clone();
            tokio::select! {
                _ = lost.wait_for(|leads| !*leads) => {}
                () = self.reign() => return,
            }
        }
    }

    async fn reign(&mut self) {
        let mut reign = Reign::default();
        self.work.mark_changed();
        loop {
            let wake = self.round(&mut reign).await;
            tokio::select! {
                changed = self.work.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            }
        }
    }

    /// Writes what may be written now; gives the time when more may.
    async fn round(&self, reign: &mut Reign) -> Option<Instant> {
        let work = self.work.clone().borrow_and_update().clone()?;
        reign.hear(&work.captured, self.options.interval);
        if reign.list_at.is_none_or(|at| at <= Instant::now()) {
            self.list(reign).await;
        }
        if reign.list_failures > 0 {
            return reign.list_at;
        }
        let now = Instant::now();
        let changes = reign.changes(&work);
        reign.next.retain(|_, (at, failures)| *at > now || *failures > 0);
        let free = |c: &SliceChange| reign.next.get(&id(c)).is_none_or(|(at, _)| *at <= now);
        let (due, late): (Vec<_>, Vec<_>) = changes.into_iter().partition(free);
        let late = late.iter().filter_map(|c| reign.next.get(&id(c))).map(|(at, _)| *at);
        let mut wake = late.chain(reign.list_at).min();
        let known: Vec<_> = due.iter().map(|c| known(&reign.slices, c)).collect();
        let mut results = stream::iter(due.into_iter().zip(known))
            .map(|(change, known)| async move {
                let sent = timeout(self.options.deadline, write(&self.client, &change, &known)).await;
                (change, sent.unwrap_or_else(|_| Err(Refusal::Other("no answer".to_owned()))))
            })
            .buffer_unordered(self.options.concurrency.max(1));
        while let Some((change, result)) = results.next().await {
            let failures = match result {
                Ok(written) => {
                    reign.unsure.remove(&id(&change));
                    note(&mut reign.slices, &change, written);
                    0
                }
                // Somebody else has written: it is read before anything is written over it.
                Err(Refusal::Changed) => {
                    reign.list_at = None;
                    let at = Instant::now() + wait(&self.options, 0);
                    wake = Some(wake.map_or(at, |w| w.min(at)));
                    0
                }
                Err(Refusal::Other(why)) => {
                    tracing::warn!(namespace = %change.namespace, slice = change.number, "cannot write WorkloadSlice: {why}");
                    reign.unsure.insert(id(&change));
                    reign.next.get(&id(&change)).map_or(0, |(_, f)| *f).saturating_add(1)
                }
            };
            let at = Instant::now() + wait(&self.options, failures);
            if failures > 0 {
                wake = Some(wake.map_or(at, |w| w.min(at)));
            }
            reign.next.insert(id(&change), (at, failures));
        }
        let told = conflicts(&work.world, &reign.slices);
        let more = reign.disputes.hear(Instant::now(), told, self.events.as_ref());
        wake.into_iter().chain(more).min()
    }

    /// The slices as they are.
    async fn list(&self, reign: &mut Reign) {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource());
        let params = ListParams::default().labels(&format!("{MANAGED_BY}={MANAGER}"));
        let why = match timeout(self.options.deadline, api.list(&params)).await {
            Ok(Ok(list)) => {
                let mut slices = Slices::new();
                let values = list.items.iter().filter_map(|o| serde_json::to_value(o).ok());
                for (namespace, number, slice) in values.filter_map(|v| read_slice(&v)) {
                    slices.entry(namespace).or_default().insert(number, slice);
                }
                reign.slices = slices;
                reign.unsure.clear();
                let now = Instant::now();
                (reign.list_at, reign.list_failures) = (Some(now + self.options.resync), 0);
                reign.listed = Some(now);
                return;
            }
            Ok(Err(error)) => in_words(&error),
            Err(_) => "no answer".to_owned(),
        };
        tracing::warn!("cannot list WorkloadSlices: {why}");
        reign.list_failures = reign.list_failures.saturating_add(1);
        reign.list_at = Some(Instant::now() + wait(&self.options, reign.list_failures));
    }
}

fn id(change: &SliceChange) -> SliceId {
    (change.namespace.clone(), change.number)
}

/// Uid and version of a slice, as far as they are known.
#[derive(Debug, Default)]
struct Known {
    uid: Str,
    version: Str,
}

fn known(slices: &Slices, change: &SliceChange) -> Known {
    let slice = slices.get(&change.namespace).and_then(|s| s.get(&change.number));
    slice.map(|s| Known { uid: s.uid.clone(), version: s.version.clone() }).unwrap_or_default()
}

/// Why a slice was not written.
#[derive(Debug)]
enum Refusal {
    /// It is not what was known.
    Changed,
    /// For the log.
    Other(String),
}

/// Remembers what was written.
fn note(slices: &mut Slices, change: &SliceChange, written: Known) {
    let own = slices.entry(change.namespace.clone()).or_default();
    if change.workloads.is_empty() {
        own.remove(&change.number);
    } else {
        let Known { uid, version } = written;
        own.insert(change.number, Slice { uid, version, workloads: change.workloads.clone() });
    }
    if own.is_empty() {
        slices.remove(&change.namespace);
    }
}

fn wait(options: &SliceOptions, failures: u32) -> Duration {
    match failures {
        0 => options.interval,
        n => options.backoff * 2u32.saturating_pow(n.min(16) - 1).min(30),
    }
}

/// Applies or deletes; gives what is known then.
async fn write(client: &Client, change: &SliceChange, known: &Known) -> Result<Known, Refusal> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &change.namespace, &resource());
    let name = change.name();
    if !change.workloads.is_empty() {
        let params = PatchParams::apply(MANAGER).force();
        let mut body = slice_body(change, &known.version);
        let mut applied = api.patch(&name, &params, &Patch::Apply(&body)).await;
        if applied.as_ref().is_err_and(is_not_in_schema) && forget_what_is_new(&mut body) {
            applied = api.patch(&name, &params, &Patch::Apply(&body)).await;
        }
        return match applied {
            Ok(o) => Ok(Known {
                uid: o.metadata.uid.unwrap_or_default().into(),
                version: o.metadata.resource_version.unwrap_or_default().into(),
            }),
            // Forced, so that a conflict is none of fields. An object that is gone has no version either.
            Err(kube::Error::Api(status))
                if matches!(status.code, 400 | 404 | 409) && !known.version.is_empty() =>
            {
                tracing::info!(namespace = %change.namespace, slice = change.number, "changed by others: {}", status.message);
                Err(Refusal::Changed)
            }
            Err(error) => Err(Refusal::Other(in_words(&error))),
        };
    }
    let uid = Some(known.uid.to_string()).filter(|u| !u.is_empty());
    let preconditions = uid.map(|uid| Preconditions { uid: Some(uid), resource_version: None });
    match api.delete(&name, &DeleteParams { preconditions, ..DeleteParams::default() }).await {
        Ok(_) => Ok(Known::default()),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(Known::default()),
        Err(error) => Err(Refusal::Other(in_words(&error))),
    }
}

/// Whether the cluster's definition of the kind is older than this controller: an upgrade that left the CRDs behind.
fn is_not_in_schema(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.message.contains("field not declared in schema"))
}

/// Leaves out what earlier versions did not have: tunnels come to 15008 then, no address is proved, and of pods in their
/// node's network nothing is told. False if there was none.
fn forget_what_is_new(body: &mut Value) -> bool {
    let Some(entries) = body["workloads"].as_array_mut() else { return false };
    let all = entries.len();
    entries.retain(|entry| entry["hostNetwork"] != true);
    let fewer = entries.len() < all;
    let entries = entries.iter_mut().filter_map(Value::as_object_mut);
    let forget = |entry: &mut serde_json::Map<String, Value>| {
        ["applicationPorts", "provedIPs"].map(|field| entry.remove(field).is_some()).contains(&true)
    };
    let forgot = entries.map(forget).filter(|forgot| *forgot).count() > 0;
    forgot || fewer
}

fn resource() -> ApiResource {
    ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk("weft.dev", "v1alpha1", "WorkloadSlice"),
        "workloadslices",
    )
}
