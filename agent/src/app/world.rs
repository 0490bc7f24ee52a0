//! From the directory to the data plane: World ─▶ Engine ─▶ Config, statuses, problems.

use super::{enrolment::WorldEnrolment, report};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use weft_core::{
    config::Config,
    engine::{Engine, Feedback, ListenerRemark, Overlap, Settings, Update},
    model::{Kind, ObjectKey, ObjectRef, Snapshot, Str},
    status::AllStatuses,
};
use weft_k8s::{AgentConfig, Problem, Severity, World};

/// What the admin pages show.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Status of every object of ours.
    pub(super) statuses: Arc<AllStatuses>,
    /// What they were made from.
    pub(super) world: Arc<World>,
    /// The Config in effect.
    pub(super) config: Arc<Config>,
    /// What keeping it up to date has cost.
    pub(super) cost: Cost,
}

/// What changes of the world have cost so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cost {
    /// How many were taken in.
    pub(super) updates: u64,
    /// Resolving and compiling.
    pub(super) resolving: Duration,
    /// Telling those who look at the world, and remarks about it.
    pub(super) telling: Duration,
    /// Putting it into effect: listeners in an agent, what is to be written in a controller.
    pub(super) serving: Duration,
}

/// The last world and what was made of it.
pub(super) struct Pipeline {
    engine: Engine,
    world: Arc<World>,
    feedback: Feedback,
    enrolment: Arc<WorldEnrolment>,
    seen: Arc<Mutex<Seen>>,
    placed: bool,
    node: Option<Str>,
    cost: Cost,
    /// What was said of references that lead nowhere and the like.
    lint: BTreeSet<(ObjectRef, String)>,
    /// The Snapshot that it is about.
    linted: Snapshot,
}

/// Without an address map a Gateway binds every address of the machine.
const EVERY_ADDRESS: IpAddr = IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED);

/// `placed`: a controller says where Gateways are served. `node`: whose clients are served.
pub(super) fn settings(agent: &AgentConfig, placed: bool, node: Option<Str>) -> Settings {
    Settings {
        trust_domain: agent.trust_domain.clone(),
        default_mode: agent.mtls,
        gateway_addresses: agent.gateway_addresses.clone(),
        default_addresses: vec![EVERY_ADDRESS],
        placed,
        node,
        pod_cidrs: agent.pod_cidrs.clone(),
    }
}

impl Pipeline {
    /// `node` is the one whose clients are served, if any are.
    pub(super) fn new(
        placed: bool,
        node: Option<Str>,
        enrolment: Arc<WorldEnrolment>,
        seen: Arc<Mutex<Seen>>,
    ) -> Self {
        let world = Arc::new(World::default());
        Self {
            engine: Engine::new(settings(&world.agent, placed, node.clone())),
            world,
            feedback: Feedback::default(),
            enrolment,
            seen,
            placed,
            node,
            cost: Cost::default(),
            lint: BTreeSet::new(),
            linted: Snapshot::default(),
        }
    }

    /// Takes a new world: resolves and compiles. What it came to is told by [`Self::show`].
    pub(super) fn world(&mut self, world: Arc<World>) -> Update {
        say_problems(&self.world.problems, &world.problems);
        if world.agent != self.world.agent {
            self.engine.set_settings(settings(&world.agent, self.placed, self.node.clone()));
        }
        self.world = world;
        let update = self.apply();
        let start = Instant::now();
        self.enrolment.set_leaving(self.world.uninstall, self.world.drain);
        self.enrolment.set_default_mode(self.world.agent.mtls);
        self.enrolment.set_drop_udp(self.world.agent.drop_strict_udp);
        self.enrolment.update(&self.world.snapshot);
        self.cost.telling += start.elapsed();
        update
    }

    /// Logs references that lead nowhere and the like, once. Looks at the whole world, so only when something has changed
    /// that refers or is referred to.
    fn say_lint(&mut self) {
        let (was, is) = (&self.linted, &self.world.snapshot);
        let same = was.classes.is(&is.classes)
            && was.gateways.is(&is.gateways)
            && was.listener_sets.is(&is.listener_sets)
            && was.routes.is(&is.routes)
            && was.grants.is(&is.grants)
            && was.tls_policies.is(&is.tls_policies)
            && was.services.is(&is.services);
        if same {
            return;
        }
        let start = Instant::now();
        self.linted = self.world.snapshot.clone();
        let now: BTreeSet<_> = self.engine.lint().into_iter().collect();
        for (object, message) in now.difference(&self.lint) {
            tracing::warn!("{object}: {message}");
        }
        self.lint = now;
        self.cost.telling += start.elapsed();
    }

    /// Takes what the data plane reports; `None` when nothing differs.
    pub(super) fn feedback(&mut self, feedback: Feedback) -> Option<Update> {
        if feedback == self.feedback {
            return None;
        }
        self.feedback = feedback;
        Some(self.apply())
    }

    /// The world in effect.
    pub(super) fn snapshot(&self) -> &Snapshot {
        self.engine.snapshot()
    }

    /// Whether Weft is being uninstalled.
    pub(super) fn leaving(&self) -> bool {
        self.world.uninstall
    }

    /// As [`Engine::overlaps`].
    pub(super) fn overlaps(&self) -> Vec<Overlap> {
        self.engine.overlaps()
    }

    /// As [`Engine::certificate_remarks`].
    pub(super) fn certificate_remarks(&self, now: i64) -> Vec<ListenerRemark> {
        self.engine.certificate_remarks(now)
    }

    /// As [`Engine::gateway_material`].
    pub(super) fn gateway_material(&self, key: &ObjectKey) -> BTreeSet<ObjectRef> {
        self.engine.gateway_material(key)
    }

    /// As [`Engine::backend_material`].
    pub(super) fn backend_material(&self) -> BTreeSet<ObjectRef> {
        self.engine.backend_material()
    }

    /// What the data plane has reported.
    pub(super) fn said(&self) -> &Feedback {
        &self.feedback
    }

    /// It took so long to put an update into effect.
    pub(super) fn served(&mut self, took: Duration) {
        self.cost.serving += took;
    }

    fn apply(&mut self) -> Update {
        let start = Instant::now();
        let update = self.engine.apply(self.world.snapshot.clone(), &self.feedback);
        self.cost.updates += 1;
        self.cost.resolving += start.elapsed();
        update
    }

    /// Shows the statuses of the last of these updates, and says what they changed. Call it when the data plane serves
    /// what they say.
    pub(super) fn show(&mut self, updates: impl Iterator<Item = Update>) {
        let (mut changed, mut last) = (BTreeSet::new(), None);
        for update in updates {
            changed.extend(update.changed.iter().cloned());
            last = Some(update);
        }
        let Some(update) = last else { return };
        self.say_lint();
        let before = self.seen.lock().statuses.clone();
        for object in &changed {
            let said = before.get(object).map(|status| report::summary(status));
            match update.statuses.get(object).map(|status| report::summary(status)) {
                // Numbers of routes are in the status, not in its summary.
                now if now == said && matches!(object.kind, Kind::Gateway | Kind::ListenerSet) => {}
                Some(now) => tracing::info!("{object}: {now}"),
                None => tracing::info!("{object}: removed"),
            }
        }
        let mut seen = self.seen.lock();
        seen.statuses = update.statuses.clone();
        seen.world = self.world.clone();
        seen.config = update.config.clone();
        seen.cost = self.cost;
    }
}

/// Logs problems that were not there before, and those that are gone.
fn say_problems(before: &[Problem], now: &[Problem]) {
    if before == now {
        return;
    }
    for problem in now.iter().filter(|p| !before.contains(p)) {
        match problem.severity {
            Severity::Error => tracing::error!("{problem}"),
            Severity::Warning => tracing::warn!("{problem}"),
            Severity::Ignored => tracing::info!("{problem}"),
        }
    }
    let gone = before.iter().filter(|p| !now.contains(p)).count();
    if gone > 0 {
        tracing::info!("{gone} earlier problems are gone");
    }
}

/// `metadata.generation` of everything that has a status.
pub(super) fn generations(snapshot: &Snapshot) -> BTreeMap<ObjectRef, i64> {
    let mut all = BTreeMap::new();
    let mut add = |kind, meta: &weft_core::model::Meta| {
        all.insert(ObjectRef { kind, key: meta.key.clone() }, meta.generation);
    };
    snapshot.classes.values().for_each(|o| add(Kind::GatewayClass, &o.meta));
    snapshot.gateways.values().for_each(|o| add(Kind::Gateway, &o.meta));
    snapshot.listener_sets.values().for_each(|o| add(Kind::ListenerSet, &o.meta));
    snapshot.routes.values().for_each(|o| add(o.kind.kind(), &o.meta));
    snapshot.tls_policies.values().for_each(|o| add(Kind::BackendTlsPolicy, &o.meta));
    all
}
