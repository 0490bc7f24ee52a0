//! The one task that owns the state: takes events, starts and ends followers, publishes worlds.

use super::{
    ClusterInputs, ClusterOptions, Role, WatchState,
    admit::Body,
    discovery::{self, Served},
    doubt::Doubts,
    follow::{Event, Failure, Follower, What},
    kinds::{self, OPTIONAL_GROUPS, Watched},
    retry::{Backoff, jitter},
    state::{Fault, KindState},
    store::Store,
};
use crate::{status::Lives, world::World};
use kube::Client;
use std::{
    collections::{BTreeMap, BTreeSet},
    future,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, SystemTime},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;
use weft_core::model::{Doubt, Str};

/// Events on the way; a full queue holds the followers back.
const QUEUE: usize = 1024;
/// Events taken at once.
const BATCH: usize = 256;
/// A change takes effect after this at the latest, however long a World takes to make.
const LONGEST_DEBOUNCE: Duration = Duration::from_millis(200);
/// After a definition has changed the API server takes a moment to serve the kind: it is asked again after these.
const AFTER_DEFINITION: [Duration; 5] = [
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(8),
];
/// A kind whose definition cannot be looked up counts as gone after this long: an API server that starts does not know
/// its custom kinds for a moment.
const GONE_AFTER: Duration = Duration::from_secs(60);

/// Where results go.
pub(super) struct Outputs {
    pub(super) worlds: watch::Sender<Arc<World>>,
    pub(super) ready: watch::Sender<bool>,
    pub(super) state: watch::Sender<Arc<WatchState>>,
    pub(super) roots: watch::Sender<Option<Str>>,
}

/// A kind that is followed.
struct Following {
    version: &'static str,
    epoch: u64,
    _task: AbortOnDropHandle<()>,
    /// Everything has come at least once.
    listed: bool,
    forbidden_since: Option<Instant>,
    /// Discovery misses it since then.
    missing_since: Option<Instant>,
}

pub(super) struct Cluster {
    client: Client,
    options: ClusterOptions,
    inputs: ClusterInputs,
    outputs: Outputs,
    store: Store,
    /// Kinds for which nobody answers.
    away: BTreeSet<Watched>,
    doubts: Doubts,
    /// When there is less doubt by itself.
    doubt_until: Option<Instant>,
    state: WatchState,
    following: BTreeMap<Watched, Following>,
    epoch: u64,
    events: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    streaming: Arc<AtomicBool>,
    /// Whose watch was opened last, by its epoch: tells those who wait that the server answers.
    opened: watch::Sender<u64>,
    discovered: bool,
    discover_at: Instant,
    /// What is left of [`AFTER_DEFINITION`].
    again: std::slice::Iter<'static, Duration>,
    /// When to publish, if there is something to.
    flush_at: Option<Instant>,
    /// The world differs from what was published.
    changed: bool,
    /// How long the last world took to make.
    cost: Duration,
    material_ended: bool,
    captured_ended: bool,
}

impl Cluster {
    pub(super) fn new(
        client: Client,
        options: ClusterOptions,
        inputs: ClusterInputs,
        outputs: Outputs,
    ) -> Self {
        let mut store = Store::new(&options.role);
        store.material(&inputs.material.borrow());
        store.captured(inputs.captured.borrow().clone());
        let state = WatchState {
            kinds: kinds::of_role(&options.role).map(|k| (k, KindState::default())).collect(),
            ..WatchState::default()
        };
        Self {
            client,
            options,
            inputs,
            outputs,
            store,
            away: BTreeSet::new(),
            doubts: Doubts::default(),
            doubt_until: None,
            state,
            following: BTreeMap::new(),
            epoch: 0,
            events: mpsc::channel(QUEUE),
            streaming: Arc::new(AtomicBool::new(true)),
            opened: watch::Sender::new(0),
            discovered: false,
            discover_at: Instant::now(),
            again: [].iter(),
            flush_at: None,
            changed: false,
            cost: Duration::ZERO,
            material_ended: false,
            captured_ended: false,
        }
    }

    pub(super) fn lives(&self) -> Arc<Lives> {
        self.store.lives()
    }

    pub(super) async fn run(mut self) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut asking = None;
        let mut backoff = Backoff::new(self.options.retry);
        loop {
            tokio::select! {
                _ = self.events.1.recv_many(&mut batch, BATCH) => {
                    batch.drain(..).for_each(|event| self.take(event));
                }
                served = ask(&mut asking) => {
                    asking = None;
                    self.discovered(served, &mut backoff);
                }
                () = sleep_until(self.discover_at), if asking.is_none() => {
                    let client = self.client.clone();
                    let task = tokio::spawn(async move { discovery::discover(&client).await });
                    asking = Some(AbortOnDropHandle::new(task));
                }
                changed = self.inputs.material.changed(), if !self.material_ended => {
                    self.material_ended = changed.is_err();
                    let material = self.inputs.material.borrow_and_update().clone();
                    let changed = self.store.material(&material);
                    self.touch(changed);
                }
                changed = self.inputs.captured.changed(), if !self.captured_ended => {
                    self.captured_ended = changed.is_err();
                    let captured = self.inputs.captured.borrow_and_update().clone();
                    let changed = self.store.captured(captured);
                    self.touch(changed);
                }
                () = at(self.doubt_until) => self.doubt(),
                () = at(self.flush_at) => self.flush(),
            }
        }
    }

    /// Something is to be published: the state at least, and the world if it has changed.
    fn touch(&mut self, world_changed: bool) {
        self.changed |= world_changed;
        // While worlds are expensive they are made less often: a tenth of the time at most.
        let wait = (self.cost * 10).clamp(self.options.debounce, LONGEST_DEBOUNCE.max(self.options.debounce));
        self.flush_at.get_or_insert_with(|| Instant::now() + wait);
    }

    fn take(&mut self, event: Event) {
        let Some(following) = self.following.get_mut(&event.kind) else { return };
        if following.epoch != event.epoch {
            return;
        }
        let (kind, now) = (event.kind, Instant::now());
        let mut changed = false;
        match event.what {
            What::Put(item) => {
                if kind == Watched::Definition {
                    self.definition_moved(&item.key.name);
                }
                if let Some(Body::Node(node)) = &item.body {
                    let name = &item.key.name;
                    let was = self.store.node_ready(name);
                    self.doubts.node(name, was, node.ready, now.into_std());
                }
                changed = self.store.put(kind, *item);
            }
            What::Gone(key) => {
                changed = self.store.remove(kind, &key);
                if kind == Watched::Definition {
                    self.definition_moved(&key.name);
                }
                if kind == Watched::Node {
                    self.doubts.gone(&key.name);
                }
            }
            What::Listing => self.store.listing(kind),
            What::Listed => {
                following.listed = true;
                changed = self.store.listed(kind);
                if kind == Watched::Node {
                    let store = &self.store;
                    self.doubts.listed(|name| store.node_ready(name).is_some());
                }
                self.entry(kind, |s| s.lists += 1);
                if kind == Watched::Definition {
                    self.look_soon();
                }
            }
            What::Up => {
                if kind == Watched::Node {
                    self.doubts.found(now.into_std());
                }
                following.forbidden_since = None;
                self.entry(kind, |s| {
                    s.synced = true;
                    s.error = None;
                });
                if self.away.remove(&kind) && self.away.is_empty() {
                    tracing::info!("the API server answers again");
                }
            }
            What::Down(failure) => {
                // What is refused for long would be doubted for ever.
                if kind == Watched::Node && failure.unreachable {
                    self.doubts.lost();
                }
                self.down(kind, failure);
            }
        }
        self.touch(changed);
        if kind == Watched::Node {
            self.doubt();
        }
    }

    /// Which nodes' pods may be well though they are called not ready.
    fn doubt(&mut self) {
        let (doubt, until) = self.doubts.at(Instant::now().into_std());
        self.doubt_until = until.map(Instant::from_std);
        let said = match &doubt {
            Doubt::Everywhere => "all nodes".to_owned(),
            Doubt::Nodes(nodes) => nodes.iter().map(|n| &**n).collect::<Vec<_>>().join(", "),
        };
        if self.store.doubt(doubt) {
            match said.as_str() {
                "" => tracing::info!("nodes are ready: what is said of their pods' readiness counts again"),
                nodes => tracing::info!(
                    nodes,
                    "not heard of, or only just again: pods there that are called not ready are used where a \
                     Service has no other"
                ),
            }
            self.touch(true);
        }
    }

    fn down(&mut self, kind: Watched, failure: Failure) {
        if let Some(following) = self.following.get_mut(&kind) {
            following.forbidden_since =
                failure.forbidden.then(|| following.forbidden_since.unwrap_or_else(Instant::now));
        }
        if failure.missing {
            self.look_once();
        }
        let Fault { reason, remedy } = &failure.fault;
        let told = self.state.kinds.get(&kind).is_some_and(|s| s.error.as_ref() == Some(&failure.fault));
        if failure.unreachable {
            // Said once, and not for each kind, whose reasons differ by the moment.
            if self.away.is_empty() {
                tracing::warn!("the API server does not answer (watch of {kind}): {reason}; {remedy}");
            }
            self.away.insert(kind);
        } else {
            self.away.remove(&kind);
            if !told {
                tracing::warn!("watch of {kind}: {reason}; {remedy}");
            }
        }
        self.entry(kind, |s| {
            s.synced = false;
            s.failures += 1;
            s.error = Some(failure.fault);
        });
    }

    /// Edits the state of a kind, and its `since` when that means something else now.
    fn entry(&mut self, kind: Watched, edit: impl FnOnce(&mut KindState)) {
        let entry = self.state.kinds.entry(kind).or_default();
        let before = (entry.version, entry.synced, entry.error.clone());
        edit(entry);
        if before != (entry.version, entry.synced, entry.error.clone()) {
            entry.since = SystemTime::now();
        }
    }

    /// A definition has changed: if it is of a kind of ours, what is served may have.
    fn definition_moved(&mut self, name: &str) {
        if OPTIONAL_GROUPS.iter().any(|g| name.strip_suffix(g).is_some_and(|n| n.ends_with('.'))) {
            self.look_soon();
        }
    }

    /// Asks again a few times, from soon on.
    fn look_soon(&mut self) {
        self.again = AFTER_DEFINITION.iter();
        self.look_once();
    }

    /// Asks again soon. Never later than it would anyway: these come in streams.
    fn look_once(&mut self) {
        if self.discovered {
            self.discover_at = self.discover_at.min(Instant::now() + AFTER_DEFINITION[0]);
        }
    }

    /// When to ask next.
    fn look_again(&mut self) {
        let definitions = self.state.kinds.get(&Watched::Definition);
        let calm = definitions.is_some_and(|s| s.synced)
            && !self.following.values().any(|f| f.missing_since.is_some());
        let wait = match self.again.next() {
            Some(soon) => *soon,
            None if calm => jitter(self.options.discover_every * 30),
            None => jitter(self.options.discover_every * 2 / 3),
        };
        self.discover_at = Instant::now() + wait;
    }

    fn discovered(&mut self, served: Result<Served, Fault>, backoff: &mut Backoff) {
        match served {
            Ok(served) => {
                backoff.reset();
                self.discovered = true;
                self.state.kubernetes = Some(served.kubernetes.as_str().into());
                self.state.discovery = None;
                let mut changed = false;
                for kind in kinds::of_role(&self.options.role) {
                    changed |= self.reconcile(kind, served.version(kind));
                }
                self.look_again();
                self.touch(changed);
            }
            Err(fault) => {
                if self.away.is_empty() && self.state.discovery.as_ref() != Some(&fault) {
                    tracing::warn!("API discovery: {}; {}", fault.reason, fault.remedy);
                }
                self.state.discovery = Some(fault);
                self.discover_at = Instant::now() + backoff.next();
                self.touch(false);
            }
        }
    }

    /// Follows a kind in the version that is served now, or no longer. True when that changes the world.
    fn reconcile(&mut self, kind: Watched, version: Option<&'static str>) -> bool {
        let Some(following) = self.following.get_mut(&kind) else {
            if let Some(version) = version {
                self.follow(kind, version);
            }
            return false;
        };
        if let Some(version) = version {
            following.missing_since = None;
            if following.version != version {
                self.follow(kind, version);
            }
            return false;
        }
        let since = *following.missing_since.get_or_insert_with(Instant::now);
        let known = self.state.kinds.get(&Watched::Definition).is_some_and(|s| s.synced);
        let deleted = known && !self.store.defined(kind);
        if !deleted && since.elapsed() < GONE_AFTER {
            return false;
        }
        tracing::warn!("{kind} is not served any more: its objects are gone");
        self.following.remove(&kind);
        // Nobody asks for it any more: it must not keep the next outage from being said.
        self.away.remove(&kind);
        self.entry(kind, |s| (s.version, s.synced, s.error) = (None, false, None));
        self.store.clear(kind)
    }

    /// Starts a follower. One that ran in another version is replaced; its objects stay until the new list is in.
    fn follow(&mut self, kind: Watched, version: &'static str) {
        tracing::info!("watching {kind} {version}");
        self.epoch += 1;
        let follower = Follower {
            client: self.client.clone(),
            kind,
            version,
            path: kind.path(version, &self.options.system_namespace),
            fields: kind.fields(&self.options.role),
            statuses: self.options.role == Role::Controller,
            epoch: self.epoch,
            events: self.events.0.clone(),
            streaming: self.streaming.clone(),
            retry: self.options.retry,
            opened: self.opened.clone(),
        };
        let following = Following {
            version,
            epoch: self.epoch,
            _task: AbortOnDropHandle::new(tokio::spawn(follower.run())),
            listed: false,
            forbidden_since: None,
            missing_since: None,
        };
        self.following.insert(kind, following);
        self.entry(kind, |s| (s.version, s.synced, s.error) = (Some(version), false, None));
    }

    fn flush(&mut self) {
        self.flush_at = None;
        let first = !self.state.ready;
        match self.complete() {
            Ok(()) => {
                if self.changed || first {
                    let start = Instant::now();
                    self.outputs.worlds.send_replace(Arc::new(self.store.world()));
                    self.cost = start.elapsed();
                    self.changed = false;
                }
                self.state.ready = true;
            }
            // A kind that is forbidden is waited for a while.
            Err(Some(until)) => self.flush_at = Some(until),
            Err(None) => {}
        }
        self.publish_state();
        let ready = self.state.ready;
        self.outputs.ready.send_if_modified(|known| std::mem::replace(known, ready) != ready);
    }

    fn publish_state(&mut self) {
        for (kind, state) in &mut self.state.kinds {
            state.objects = self.store.count(*kind);
        }
        self.state.bundles = self.store.bundles();
        let roots = self.store.roots();
        self.outputs.roots.send_if_modified(|known| {
            let differs = known.as_ref() != roots;
            if differs {
                *known = roots.cloned();
            }
            differs
        });
        self.outputs.state.send_if_modified(|known| {
            let differs = **known != self.state;
            if differs {
                *known = Arc::new(self.state.clone());
            }
            differs
        });
    }

    /// Whether everything has come once, so that a world can be shown; else, when it is worth looking again.
    fn complete(&self) -> Result<(), Option<Instant>> {
        if self.state.ready {
            return Ok(());
        }
        if !self.discovered {
            return Err(None);
        }
        let mut until = None;
        for (kind, following) in &self.following {
            // Which kinds there are is known; the definitions only say when that changes.
            if following.listed || *kind == Watched::Definition {
                continue;
            }
            let since = following.forbidden_since.ok_or(None)?;
            let end = since + self.options.forbidden_grace;
            if end > Instant::now() {
                until = until.max(Some(end));
            }
        }
        until.map_or(Ok(()), |until| Err(Some(until)))
    }
}

type Asking = Option<AbortOnDropHandle<Result<Served, Fault>>>;

/// The answer of a running discovery; never, without one.
async fn ask(asking: &mut Asking) -> Result<Served, Fault> {
    match asking {
        Some(task) => task.await.unwrap_or_else(|error| {
            let reason = format!("asking for the served kinds failed: {error}");
            Err(super::state::fault(&reason, "it is tried again"))
        }),
        None => future::pending().await,
    }
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => future::pending().await,
    }
}
