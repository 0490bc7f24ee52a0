//! Carries plans out: one task, only while this controller leads.
//!
//! Everything is decided in `plan` and `changes`; this file sends it, a bounded number at a time and each with a deadline,
//! and waits before it tries again what the API server refused.

use super::{
    changes::{Account, Accounts, Change, ObjectId, changes},
    names::{MANAGED_BY, MANAGER, is_managed, object_key},
    objects::{ObjectKind, Wanted},
    plan::{Assigned, Demands, Input, Serving, demands, plan},
};
use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{
    Api, Client, ResourceExt,
    api::{
        ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
        Preconditions,
    },
};
use parking_lot::Mutex;
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
use weft_core::{
    config::{Config, GatewayConfig},
    model::{Labels, ObjectKey, Snapshot, Str, fnv1a},
};

/// Times and bounds of a [`Provisioner`].
#[derive(Clone, Copy, Debug)]
pub struct ProvisionerOptions {
    /// Requests at once.
    pub concurrency: usize,
    /// Of one request.
    pub deadline: Duration,
    /// After this time as leader to whom agents come, the agents that serve are known. They come within ten seconds where all
    /// is well, and an address that is moved without need costs its connections.
    pub settle: Duration,
    /// The first wait after a refusal; doubled by each, up to a hundred times it.
    pub backoff: Duration,
    /// For this long a watch may not show yet what was written; doubled each time it is written again, up to a hundred
    /// times it.
    pub echo: Duration,
    /// ServiceAccounts are listed again this often.
    pub resync: Duration,
}

impl Default for ProvisionerOptions {
    fn default() -> Self {
        Self {
            concurrency: 8,
            deadline: Duration::from_secs(10),
            settle: Duration::from_secs(30),
            backoff: Duration::from_millis(500),
            echo: Duration::from_secs(5),
            resync: Duration::from_secs(600),
        }
    }
}

/// Keeps the objects of Gateways as planned. Ends its task when dropped.
#[derive(Debug)]
pub struct Provisioner {
    work: watch::Sender<Option<Arc<Work>>>,
    leader: watch::Sender<bool>,
    problems: watch::Receiver<Arc<BTreeMap<ObjectKey, Str>>>,
    published: Mutex<Option<Published>>,
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

/// What a [`Work`] was made of: the same again needs no second look.
#[derive(Debug)]
struct Published {
    world: Snapshot,
    gateways: Arc<BTreeMap<ObjectKey, Arc<GatewayConfig>>>,
    serving: Serving,
}

impl Published {
    fn is(&self, world: &Snapshot, config: &Config, serving: &Serving) -> bool {
        self.world.classes.is(&world.classes)
            && self.world.gateways.is(&world.gateways)
            && self.world.services.is(&world.services)
            && self.world.endpoint_slices.is(&world.endpoint_slices)
            && self.world.nodes.is(&world.nodes)
            && Arc::ptr_eq(&self.gateways, &config.gateways)
            && self.serving == *serving
    }
}

/// What was published last.
#[derive(Debug, PartialEq)]
struct Work {
    world: Snapshot,
    demands: Demands,
    serving: Serving,
}

impl Provisioner {
    /// Starts the task; it writes nothing before [`Provisioner::set_leader`].
    #[must_use]
    pub fn start(client: Client, options: ProvisionerOptions) -> Self {
        let (work, work_in) = watch::channel(None);
        let (leader, leader_in) = watch::channel(false);
        let (problems_out, problems) = watch::channel(Arc::default());
        let stop = CancellationToken::new();
        let runner = Runner { client, options, work: work_in, leader: leader_in, problems: problems_out };
        let task = tokio::spawn(runner.run(stop.clone()));
        Self { work, leader, problems, published: Mutex::default(), stop, task: Some(task) }
    }

    /// Whether this controller leads. A loser's requests under way are dropped.
    pub fn set_leader(&self, leads: bool) {
        self.leader.send_if_modified(|l| std::mem::replace(l, leads) != leads);
    }

    /// The world, what was compiled of it, and who serves. Costs the Gateways, Services and slices; nothing is done when
    /// nothing that counts has changed.
    pub fn publish(&self, world: &Snapshot, config: &Config, serving: &Serving) {
        let mut published = self.published.lock();
        if published.as_ref().is_some_and(|last| last.is(world, config, serving)) {
            return;
        }
        // Only what counts: the rest need not be kept alive.
        let of = Snapshot {
            classes: world.classes.clone(),
            gateways: world.gateways.clone(),
            services: world.services.clone(),
            endpoint_slices: world.endpoint_slices.clone(),
            nodes: world.nodes.clone(),
            ..Snapshot::default()
        };
        *published =
            Some(Published { world: of, gateways: config.gateways.clone(), serving: serving.clone() });
        drop(published);
        let work = Work { world: relevant(world), demands: demands(config), serving: serving.clone() };
        self.work.send_if_modified(|last| {
            let new = last.as_ref().is_none_or(|last| **last != work);
            if new {
                *last = Some(Arc::new(work));
            }
            new
        });
    }

    /// Gateways whose objects cannot be written, with why ("Service infra/web-weft: forbidden"): not programmed until
    /// they can.
    #[must_use]
    pub fn problems(&self) -> watch::Receiver<Arc<BTreeMap<ObjectKey, Str>>> {
        self.problems.clone()
    }

    /// Ends the task and waits for it.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if let Some(task) = self.task.take()
            && task.await.is_err()
        {
            tracing::error!("the provisioner ended with a panic");
        }
    }
}

impl Drop for Provisioner {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The part of the world that plans are made of.
fn relevant(world: &Snapshot) -> Snapshot {
    let services = world.gateways.keys().map(object_key);
    let services = services.filter_map(|key| Some((key.clone(), world.services.get(&key)?.clone())));
    let slices = world.endpoint_slices.iter().filter(|(_, s)| is_managed(&s.meta.labels));
    Snapshot {
        classes: world.classes.clone(),
        gateways: world.gateways.clone(),
        services: services.collect(),
        endpoint_slices: slices.map(|(k, s)| (k.clone(), s.clone())).collect(),
        nodes: world.nodes.clone(),
        ..Snapshot::default()
    }
}

struct Runner {
    client: Client,
    options: ProvisionerOptions,
    work: watch::Receiver<Option<Arc<Work>>>,
    leader: watch::Receiver<bool>,
    problems: watch::Sender<Arc<BTreeMap<ObjectKey, Str>>>,
}

/// What is remembered while leading.
struct Reign {
    since: Instant,
    assigned: Assigned,
    accounts: Accounts,
    /// When the accounts are to be listed next.
    list_at: Instant,
    list_failures: u32,
    /// What was written, while the watch does not show it.
    written: BTreeMap<ObjectId, Written>,
    refused: BTreeMap<ObjectId, Refusal>,
}

/// A change that was made: its fingerprint, and when it is made again if the object still differs.
struct Written {
    change: u64,
    again: Instant,
    /// How often it was made: somebody undoes it, or the API server never shows it as sent.
    times: u32,
}

/// Why something could not be done, and when it is tried again.
struct Refusal {
    gateway: ObjectKey,
    change: u64,
    failures: u32,
    again: Instant,
    why: Str,
}

/// What became of a change.
enum Outcome {
    Done,
    /// An object of this name is somebody else's.
    Foreign,
    Applied(Account),
}

impl Reign {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            assigned: Assigned::default(),
            accounts: Accounts::new(),
            list_at: now,
            list_failures: 0,
            written: BTreeMap::new(),
            refused: BTreeMap::new(),
        }
    }

    /// Changes that may be made now, with their fingerprints.
    fn due(&mut self, changes: Vec<Change>, now: Instant) -> Vec<(u64, Change)> {
        let ids: BTreeSet<ObjectId> = changes.iter().map(Change::id).collect();
        self.written.retain(|id, _| ids.contains(id));
        self.refused.retain(|id, _| ids.contains(id));
        let marked = changes.into_iter().map(|c| (fingerprint(&c), c));
        marked
            .filter(|(mark, change)| {
                let id = change.id();
                let echoes = self.written.get(&id).is_some_and(|w| w.change == *mark && w.again > now);
                let waits = self.refused.get(&id).is_some_and(|r| r.change == *mark && r.again > now);
                !echoes && !waits
            })
            .collect()
    }

    /// When all agents that serve have come: not while none has, since it is the leader that cannot be reached then.
    fn settles(&self, serving: &Serving, options: &ProvisionerOptions) -> Option<Instant> {
        serving.heard.map(|heard| heard.max(self.since) + options.settle)
    }

    /// When there is something to do without news.
    fn wake(&self, settles: Option<Instant>, now: Instant) -> Instant {
        if self.list_failures > 0 {
            return self.list_at;
        }
        let settled = settles.filter(|at| *at > now);
        let again = self.refused.values().map(|r| r.again);
        let echoes = self.written.values().map(|w| w.again);
        again.chain(echoes).chain(settled).min().map_or(self.list_at, |at| at.min(self.list_at))
    }

    fn problems(&self) -> BTreeMap<ObjectKey, Str> {
        // One failure is worth no word: the next attempt is half a second away.
        let lasting = self.refused.values().filter(|r| r.failures > 0);
        lasting.map(|r| (r.gateway.clone(), r.why.clone())).collect()
    }

    fn record(
        &mut self,
        mark: u64,
        change: &Change,
        result: Result<Outcome, String>,
        o: &ProvisionerOptions,
    ) {
        let (id, now) = (change.id(), Instant::now());
        let why = match result {
            Ok(Outcome::Foreign) => format!("{} is there already and not Weft's", name(&id)),
            Err(error) => format!("{}: {error}", name(&id)),
            Ok(done) => {
                self.refused.remove(&id);
                let old = self.written.get(&id).filter(|w| w.change == mark);
                let times = old.map_or(0, |w| w.times.saturating_add(1));
                let again = now + backoff(o.echo, times);
                self.written.insert(id.clone(), Written { change: mark, again, times });
                match done {
                    Outcome::Applied(account) => drop(self.accounts.insert(id.1, account)),
                    _ if id.0 == ObjectKind::ServiceAccount => drop(self.accounts.remove(&id.1)),
                    _ => {}
                }
                return;
            }
        };
        self.written.remove(&id);
        let old = self.refused.get(&id).filter(|r| r.change == mark);
        let failures = old.map_or(0, |r| r.failures.saturating_add(1));
        if old.is_none_or(|r| *r.why != *why) {
            tracing::warn!(gateway = %change.gateway(), "cannot provision: {why}");
        }
        let again = now + backoff(o.backoff, failures);
        let refusal = Refusal { gateway: change.gateway(), change: mark, failures, again, why: why.into() };
        self.refused.insert(id, refusal);
    }
}

impl Runner {
    async fn run(mut self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.reigns() => {}
        }
    }

    /// Reign after reign; ends with the handle.
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
            self.problems.send_replace(Arc::default());
        }
    }

    async fn reign(&mut self) {
        let mut reign = Reign::new(Instant::now());
        self.work.mark_changed();
        loop {
            let more = self.round(&mut reign).await;
            let problems = reign.problems();
            self.problems.send_if_modified(|p| {
                let new = **p != problems;
                if new {
                    *p = Arc::new(problems);
                }
                new
            });
            if more {
                continue;
            }
            let settles = self.work.borrow().as_ref().and_then(|w| reign.settles(&w.serving, &self.options));
            let wake = reign.wake(settles, Instant::now());
            tokio::select! {
                changed = self.work.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = sleep_until(wake) => {}
            }
        }
    }

    /// Plans, and makes some of the changes; whether more are left.
    async fn round(&mut self, reign: &mut Reign) -> bool {
        /// Few enough that news need not wait long.
        const BATCH: usize = 256;
        if reign.list_at <= Instant::now() && !self.list_accounts(reign).await {
            return false;
        }
        let Some(work) = self.work.borrow_and_update().clone() else { return false };
        let now = Instant::now();
        let planned = plan(&Input {
            world: &work.world,
            demands: &work.demands,
            serving: &work.serving,
            settled: reign.settles(&work.serving, &self.options).is_some_and(|at| at <= now),
            before: &reign.assigned,
        });
        let all = changes(&planned, &work.world, &reign.accounts);
        reign.assigned = planned.assigned;
        let mut due = reign.due(all, now);
        let more = due.len() > BATCH;
        due.truncate(BATCH);
        let (client, deadline) = (&self.client, self.options.deadline);
        let mut results = stream::iter(due)
            .map(|(mark, change)| async move {
                let result = match timeout(deadline, carry_out(client, &change)).await {
                    Ok(result) => result.map_err(|e| in_words(&e)),
                    Err(_) => Err(format!("no answer within {deadline:?}")),
                };
                (mark, change, result)
            })
            .buffer_unordered(self.options.concurrency.max(1));
        while let Some((mark, change, result)) = results.next().await {
            reign.record(mark, &change, result, &self.options);
        }
        more
    }

    /// Without the list nothing is planned: what has gone astray could not be told from what is not there.
    async fn list_accounts(&self, reign: &mut Reign) -> bool {
        let api: Api<ServiceAccount> = Api::all(self.client.clone());
        let params = ListParams::default().labels(&format!("{MANAGED_BY}={MANAGER}"));
        let listed = timeout(self.options.deadline, api.list_metadata(&params)).await;
        let now = Instant::now();
        match listed {
            Ok(Ok(list)) => {
                let one = |meta: kube::core::PartialObjectMeta<ServiceAccount>| {
                    let key = ObjectKey::new(meta.namespace().unwrap_or_default(), meta.name_any());
                    (key, account(&meta))
                };
                reign.accounts = list.items.into_iter().map(one).collect();
                (reign.list_at, reign.list_failures) = (now + self.options.resync, 0);
                true
            }
            failed => {
                let why = failed.map_or_else(
                    |_| "no answer".to_owned(),
                    |r| r.err().map(|e| in_words(&e)).unwrap_or_default(),
                );
                tracing::warn!("cannot list ServiceAccounts: {why}");
                reign.list_at = now + backoff(self.options.backoff, reign.list_failures);
                reign.list_failures = reign.list_failures.saturating_add(1);
                false
            }
        }
    }
}

async fn carry_out(client: &Client, change: &Change) -> Result<Outcome, kube::Error> {
    let (kind, key) = change.id();
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &key.namespace, &resource(kind));
    match change {
        Change::Apply { wanted, uid } => apply(&api, wanted, uid.as_deref()).await,
        Change::Delete { uid, .. } => {
            let preconditions = Some(Preconditions { uid: Some(uid.to_string()), resource_version: None });
            let params = DeleteParams { preconditions, ..DeleteParams::default() };
            match api.delete(&key.name, &params).await {
                Ok(_) => Ok(Outcome::Done),
                // Gone, or another one by now.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(Outcome::Done),
                Err(error) => Err(error),
            }
        }
    }
}

/// Accounts are listed seldom: one that went with an earlier Gateway of the same name is still remembered by its uid.
async fn apply(api: &Api<DynamicObject>, wanted: &Wanted, uid: Option<&str>) -> Result<Outcome, kube::Error> {
    match apply_to(api, wanted, uid).await {
        Err(kube::Error::Api(status))
            if status.code == 409 && uid.is_some() && wanted.kind() == ObjectKind::ServiceAccount =>
        {
            apply_to(api, wanted, None).await
        }
        outcome => outcome,
    }
}

async fn apply_to(
    api: &Api<DynamicObject>,
    wanted: &Wanted,
    uid: Option<&str>,
) -> Result<Outcome, kube::Error> {
    let name = &*wanted.key.name;
    let mut uid = uid.map(str::to_owned);
    // A forced apply would take over an object that the watch has not shown yet, or that it does not show at all.
    if uid.is_none()
        && let Some(there) = api.get_metadata_opt(name).await?
    {
        if there.labels().get(MANAGED_BY).map(String::as_str) != Some(MANAGER) {
            // An account is only a name to hand out an identity by: anybody's will do.
            let account = wanted.kind() == ObjectKind::ServiceAccount;
            return Ok(if account { Outcome::Done } else { Outcome::Foreign });
        }
        uid = there.uid();
    }
    let body = wanted.render(uid.as_deref());
    // Forced: nobody else has a say in these fields.
    let params = PatchParams::apply(MANAGER).force();
    let applied = api.patch(name, &params, &Patch::Apply(&body)).await?;
    Ok(match wanted.kind() {
        ObjectKind::ServiceAccount => Outcome::Applied(account(&applied)),
        _ => Outcome::Done,
    })
}

fn account(object: &impl ResourceExt) -> Account {
    let annotations: Labels =
        object.annotations().iter().map(|(k, v)| (Str::from(k.as_str()), Str::from(v.as_str()))).collect();
    Account { uid: object.uid().unwrap_or_default().into(), annotations }
}

fn resource(kind: ObjectKind) -> ApiResource {
    let (group, kind, plural) = match kind {
        ObjectKind::ServiceAccount => ("", "ServiceAccount", "serviceaccounts"),
        ObjectKind::EndpointSlice => ("discovery.k8s.io", "EndpointSlice", "endpointslices"),
        ObjectKind::Service => ("", "Service", "services"),
    };
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, "v1", kind), plural)
}

fn name((kind, key): &ObjectId) -> String {
    format!("{kind:?} {key}")
}

/// What a change would do, to know it again.
fn fingerprint(change: &Change) -> u64 {
    match change {
        Change::Apply { wanted, uid } => fnv1a(wanted.render(uid.as_deref()).to_string().as_bytes()),
        Change::Delete { uid, .. } => fnv1a(uid.as_bytes()),
    }
}

fn backoff(first: Duration, failures: u32) -> Duration {
    first * 2u32.saturating_pow(failures.min(16)).min(100)
}

/// kube's message without its debug dump.
pub(crate) fn in_words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        other => other.to_string(),
    }
}
