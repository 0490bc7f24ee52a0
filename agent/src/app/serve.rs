//! Serving a stream of worlds: the data plane, a node's pods, Gateways, pages. The same for files and for a cluster.

use super::{
    admin::{self, Door, Pages},
    cluster::{Cluster, Task},
    enrolment::WorldEnrolment,
    gateways::Gateways,
    joiner::{self, Joiner, Joining},
    kubelet::{self, NodeKubelet},
    leave::{self, Leaver, Leaving},
    metrics,
    node::{NodePage, OnNode},
    otlp,
    plugin::Plugin,
    pods::PodServing,
    world::{Pipeline, Seen},
};
use anyhow::{Context, Result};
use parking_lot::{Mutex, RwLock};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{oneshot, watch},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use weft_certs::IdentityStore;
use weft_core::{
    engine::{Feedback, Update},
    model::{Capture, ObjectKey, Snapshot},
};
use weft_inpod::{ManagerConfig, ManagerHandle, PodManager};
use weft_k8s::{AccessReviewer, AgentConfig, World};
use weft_proxy::{
    context::{Limits, Shared},
    pods::DataPlane,
    telemetry::{self, AccessLogOutput, Telemetry, TelemetryConfig},
    worker::Workers,
};

/// Readiness waits at most this long for pods that an earlier agent served.
const ADOPTION_PATIENCE: Duration = Duration::from_secs(15);

/// A pod that leaves is served on for so long: by way of the controller its peers hear of it within a second or two, on busy
/// machines later.
const LINGER: Duration = Duration::from_secs(10);

/// Connections that are still there when an agent without a successor ends.
const ALONE_GRACE: Duration = Duration::from_secs(5);

/// The kubelet kills what has not ended this long (and a little) after the drain that it was told of: see the DaemonSet.
const KILL_AFTER_DRAIN: Duration = Duration::from_secs(20);

/// Why an agent ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// It was told to.
    Stopped,
    /// It was told to, and served until its time was over.
    Alone,
    /// A newer one serves. This one may have been told to end before that, and was going to serve until then.
    Superseded(Option<Instant>),
}

/// Never, without an instant.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// How to serve.
pub(super) struct Options {
    /// This node's name.
    pub(super) node: String,
    /// Where the worlds come from, for the log.
    pub(super) what: String,
    /// Shared with `weft holder` and `weft-cni`; without it only Gateways are served.
    pub(super) run_dir: Option<PathBuf>,
    /// What must survive a reboot; with it the plugin knows who is enrolled before this agent runs.
    pub(super) state_dir: Option<PathBuf>,
    /// The plugin's installation, kept up while this agent is the node's.
    pub(super) plugin: Arc<Plugin>,
    /// Data plane threads.
    pub(super) workers: Option<usize>,
    /// A file, `-`, `off`; else as the configuration says.
    pub(super) access_log: Option<String>,
    /// Pages and where they are.
    pub(super) doors: Vec<(Door, SocketAddr)>,
    /// Who may read those on the network; in a cluster.
    pub(super) access: Option<AccessReviewer>,
    /// A Unix socket with every page, which no other agent of the node has.
    pub(super) admin_socket: Option<PathBuf>,
    /// Longest time that connections are let finish.
    pub(super) drain: Duration,
    /// Certificates; none without a mesh.
    pub(super) identities: Option<IdentityStore>,
    /// What a controller is told; none with files.
    pub(super) cluster: Option<Cluster>,
}

/// Everything that runs beside the pipeline.
struct Agent {
    options: Options,
    /// The settings that it was started with.
    started: AgentConfig,
    telemetry: Arc<Telemetry>,
    shared: Arc<Shared>,
    kubelet: NodeKubelet,
    plane: Arc<DataPlane>,
    mesh: Arc<RwLock<(weft_core::model::Str, weft_core::model::MtlsMode)>>,
    enrolment: Arc<WorldEnrolment>,
    pages: Arc<Pages>,
    /// Ends the pages on the node's addresses, for the next agent's.
    doors: CancellationToken,
    stop: CancellationToken,
}

/// The node's part: pods, by the holder and the plugin.
struct NodePart {
    manager: Arc<ManagerHandle>,
    serving: JoinHandle<()>,
    joining: Joining,
    superseded: oneshot::Receiver<()>,
    /// Watches the node's own addresses.
    addresses: Task,
}

/// Serves what the worlds say until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// What keeps it from starting: the CA, an address in use.
pub(super) async fn serve(options: Options, mut worlds: watch::Receiver<Arc<World>>) -> Result<()> {
    let first = worlds.borrow_and_update().clone();
    let agent = Agent::start(options, &first)?;
    agent.open_doors().await?;
    let placed = agent.options.cluster.is_some();
    let here = Some(agent.options.node.as_str().into());
    let mut pipeline = Pipeline::new(placed, here, agent.enrolment.clone(), agent.pages.seen.clone());
    let update = pipeline.world(first.clone());
    agent.shared.config.store(update.config.clone());
    let node = agent.options.run_dir.as_deref().map(|dir| agent.start_node(dir)).transpose()?;
    let manager = node.as_ref().map(|n| n.manager.clone());
    if let (Some(cluster), Some(manager)) = (&agent.options.cluster, &manager) {
        cluster.follow_budgets(agent.shared.clone());
        cluster.follow_captured(manager.captured(), |pod| Capture {
            uid: pod.uid.as_str().into(),
            tunnel: pod.tunnel.clone(),
            addresses: pod.addresses.clone(),
        });
    }
    let leaving = agent.tell_node(&worlds, node.as_ref());
    let mut gateways = Gateways::new(agent.plane.clone(), agent.pages.identities.clone(), manager);
    agent.publish(&mut pipeline, &mut gateways, update).await;
    tracing::info!(node = agent.options.node, "serving {}", agent.options.what);
    let mut term = signal(SignalKind::terminate())?;
    let in_pod = agent.options.cluster.is_some();
    let ended = agent.until_stopped((worlds, first), pipeline, gateways, (node, &mut term)).await?;
    let run_dir = agent.options.run_dir.clone();
    agent.shut_down(ended).await;
    if let (Leaving::Done, Some(run_dir)) = (*leaving.borrow(), run_dir) {
        leave::clear(&run_dir);
    }
    if ended == Ended::Superseded(None) && in_pod {
        // The kubelet would start a container that ends anew, and that one take over in turn.
        term.recv().await;
    }
    Ok(())
}

impl Agent {
    fn start(mut options: Options, world: &World) -> Result<Self> {
        let config = &world.agent;
        let (telemetry, unresolved) = telemetry_config(&options, world);
        let telemetry = telemetry::init(telemetry)?;
        if let Some(problem) = unresolved {
            tracing::error!(
                "no spans are exported: {problem}; the endpoint is read at the start: restart the agent then"
            );
        }
        let kubelet = NodeKubelet::start();
        kubelet.update(&world.snapshot, &options.node);
        let mut shared = Shared::new(limits(config), telemetry.clone());
        shared.kubelet = kubelet.shared();
        let shared = Arc::new(shared);
        let workers = options.workers.unwrap_or_else(default_workers);
        let plane = Arc::new(DataPlane::new(Workers::start(workers, shared.clone())?));
        let identities = options.identities.take();
        let enrolment = WorldEnrolment::new(&options.node);
        let pages = Pages::new(telemetry.clone(), Arc::new(Mutex::new(Seen::default())), identities);
        if let Some(access) = options.access.take() {
            let _ = pages.access.set(access); // set once, here
        }
        let pages = Arc::new(pages);
        Ok(Self {
            options,
            started: config.clone(),
            telemetry,
            shared,
            kubelet,
            plane,
            mesh: Arc::new(RwLock::new((config.trust_domain.clone(), config.mtls))),
            enrolment,
            pages,
            doors: CancellationToken::new(),
            stop: CancellationToken::new(),
        })
    }

    fn start_node(&self, run_dir: &Path) -> Result<NodePart> {
        let addresses = kubelet::tell_addresses(&self.enrolment);
        let (manager, events) = PodManager::start(
            ManagerConfig {
                state_dir: self.options.state_dir.clone(),
                // The data plane ends what is left by then.
                drain_deadline: self.options.drain + Duration::from_secs(5),
                linger: LINGER,
                ..ManagerConfig::new(run_dir)
            },
            self.enrolment.clone(),
        )?;
        let serving = PodServing {
            plane: self.plane.clone(),
            identities: self.pages.identities.clone().context("a mesh needs its CA")?,
            enrolment: self.enrolment.clone(),
            mesh: self.mesh.clone(),
            grace: self.options.drain,
            sandboxes: Arc::default(),
        };
        let (tell, superseded) = oneshot::channel();
        let serving = tokio::spawn(serving.run(events, tell));
        let manager = Arc::new(manager);
        let joiner = Joiner {
            proc_root: "/proc".into(),
            manager: manager.clone(),
            enrolment: self.enrolment.clone(),
            witness: self.options.plugin.witness(),
            gone_patience: joiner::GONE_PATIENCE,
        };
        Ok(NodePart { manager, serving, joining: joiner.start(), superseded, addresses })
    }

    /// What the node's page and the metrics show of this agent, and what leaves the node when Weft is uninstalled.
    fn tell_node(
        &self,
        worlds: &watch::Receiver<Arc<World>>,
        node: Option<&NodePart>,
    ) -> watch::Receiver<Leaving> {
        let (tell, leaving) = watch::channel(Leaving::No);
        let told = leaving.clone();
        let on_node = node.map(|node| OnNode {
            counts: node.manager.counts(),
            captured: node.manager.captured(),
            mechanism: node.manager.mechanism(),
            missing: node.joining.missing(),
            leaving,
        });
        let (Some(cluster), Some(on_node), Some(run_dir)) =
            (&self.options.cluster, on_node, &self.options.run_dir)
        else {
            return told;
        };
        let leaver = Leaver {
            worlds: worlds.clone(),
            counts: on_node.counts.clone(),
            captured: on_node.captured.clone(),
            plugin: self.options.plugin.clone(),
            // Sockets and the holder's state are in use until the processes end: see `leave::clear`.
            litter: vec![run_dir.join("cache")],
            tell,
        };
        cluster.tasks.lock().push(Task::spawn(leaver.run()));
        let page = Arc::new(NodePage {
            node: self.options.node.clone(),
            nft: NodePage::ask_nft(),
            controller: cluster.control.state(),
            watched: cluster.watched.clone(),
            plugin: self.options.plugin.clone(),
            enrolment: self.enrolment.clone(),
            identities: self.pages.identities.clone(),
            kubelet: self.kubelet.clone(),
            shared: self.shared.clone(),
            on_node,
        });
        let (shown, seen) = (page.clone(), self.pages.seen.clone());
        // The pages hold it.
        let pages = Arc::downgrade(&self.pages);
        let more: metrics::More = Box::new(move |out| {
            metrics::agent(&shown, out);
            metrics::certificates(
                &shown.identity_ends(),
                &shown.shared.config.load().certificate_ends(),
                out,
            );
            metrics::process(&seen.lock().clone(), out);
            let own = pages.upgrade().map(|p| p.reached()).unwrap_or_default();
            metrics::budgets(&own, &shown.shared.budgets.list(None, std::time::Instant::now()), out);
        });
        let _ = self.pages.more.set(more); // set once, here
        let _ = self.pages.node.set(page);
        told
    }

    /// Puts a Config into effect, opens and closes listeners, and reports what could not be bound.
    async fn publish(&self, pipeline: &mut Pipeline, gateways: &mut Gateways, update: Update) {
        let start = Instant::now();
        self.shared.config.store(update.config.clone());
        if self.plane.recheck().await.is_err() {
            tracing::debug!("the workers have ended: nothing is looked at again");
        }
        if let Some(cluster) = &self.options.cluster {
            let config = (!pipeline.leaving()).then_some(&*update.config);
            cluster.hold_addresses(config, pipeline.snapshot()).await;
        }
        let feedback = gateways.sync(&update.config).await;
        pipeline.served(start.elapsed());
        self.settle(pipeline, feedback, Some(update));
    }

    /// Takes what could not be bound into account, and only then shows what is served: a listener is not to be called
    /// programmed before it is.
    fn settle(&self, pipeline: &mut Pipeline, feedback: Feedback, update: Option<Update>) {
        let better = pipeline.feedback(feedback);
        if let Some(better) = &better {
            self.shared.config.store(better.config.clone());
        }
        let (first, last) = (update, better);
        if let Some(cluster) = &self.options.cluster {
            cluster.applied(pipeline.snapshot(), &self.shared.config.load(), pipeline.said());
        }
        pipeline.show(first.into_iter().chain(last));
    }

    async fn world(&self, pipeline: &mut Pipeline, gateways: &mut Gateways, world: Arc<World>) {
        let world = self.as_started(world);
        self.kubelet.update(&world.snapshot, &self.options.node);
        *self.mesh.write() = (world.agent.trust_domain.clone(), world.agent.mtls);
        let update = pipeline.world(world);
        self.publish(pipeline, gateways, update).await;
    }

    /// What is read at the start only stays as it was then: certificates of another trust domain would never come, and
    /// every connection of the mesh fail. Says so when the files ask for something else.
    fn as_started(&self, world: Arc<World>) -> Arc<World> {
        let fixed =
            |c: &AgentConfig| (c.trust_domain.clone(), c.tracing.clone(), c.access_log.clone(), c.limits);
        if fixed(&self.started) == fixed(&world.agent) {
            return world;
        }
        tracing::warn!(
            "AgentConfig: trustDomain, tracing, accessLog and limits are read at the start only; restart the agent"
        );
        let agent = AgentConfig { trust_domain: self.started.trust_domain.clone(), ..world.agent.clone() };
        Arc::new(World { agent, ..World::clone(&world) })
    }

    /// Takes over what an earlier agent served; then this one is ready.
    async fn adopt(&self, manager: Option<Arc<ManagerHandle>>, world: Arc<World>) {
        self.forget_gone(manager.as_deref(), &world.snapshot).await;
        self.wait_adopted(manager.as_deref()).await;
    }

    /// Forgets sandboxes whose pod went away while no agent was there to hear the plugin's DEL.
    async fn forget_gone(&self, manager: Option<&ManagerHandle>, world: &Snapshot) {
        let Some(manager) = manager else { return };
        let connected = manager.counts().wait_for(|c| c.holder).await.is_ok();
        for record in if connected { manager.records().await } else { Vec::new() } {
            let key = ObjectKey::new(record.namespace.as_str(), record.name.as_str());
            let lives = world.pods.get(&key).is_some_and(|pod| {
                pod.meta.uid.is_empty() || record.uid.is_empty() || *pod.meta.uid == *record.uid
            });
            if !lives {
                tracing::info!("pod {key}: gone while no agent was there");
                manager.forget(record.container_id).await;
            }
        }
    }

    /// Waits until pods that the holder knows from an earlier agent are served again.
    async fn wait_adopted(&self, manager: Option<&ManagerHandle>) {
        let Some(manager) = manager else { return };
        let mut counts = manager.counts();
        let adopted = counts.wait_for(|c| c.holder && c.pending == 0);
        if tokio::time::timeout_at(Instant::now() + ADOPTION_PATIENCE, adopted).await.is_err() {
            let counts = *manager.counts().borrow();
            tracing::warn!(?counts, "ready, although not all pods of an earlier agent are served yet");
        }
    }

    async fn until_stopped(
        &self,
        (mut worlds, first): (watch::Receiver<Arc<World>>, Arc<World>),
        mut pipeline: Pipeline,
        mut gateways: Gateways,
        (node, term): (Option<NodePart>, &mut Signal),
    ) -> Result<Ended> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let (mut adopted, mut leaving) = (false, None::<Instant>);
        let (manager, tasks, superseded) = match node {
            Some(NodePart { manager, serving, joining, superseded, addresses }) => {
                (Some(manager), Some((serving, joining, addresses)), superseded)
            }
            // Never told: `pending` below is what a closed channel must not be mistaken for.
            None => (None, None, oneshot::channel().1),
        };
        let superseded = async {
            if superseded.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::pin!(superseded);
        // Beside the loop: an edit or SIGTERM must not wait for a holder that is away.
        let mut ready = Box::pin(self.adopt(manager.clone(), first));
        let ended = loop {
            tokio::select! {
                () = &mut ready, if !adopted => {
                    adopted = true;
                    self.pages.ready.store(leaving.is_none(), Ordering::Release);
                    tracing::info!("ready");
                }
                changed = worlds.changed() => {
                    changed.context("the directory's watch ended")?;
                    let world = worlds.borrow_and_update().clone();
                    self.world(&mut pipeline, &mut gateways, world).await;
                }
                () = gateways.retry() => {
                    let config = self.shared.config.load_full();
                    let feedback = gateways.sync(&config).await;
                    self.settle(&mut pipeline, feedback, None);
                }
                // The access log is opened anew by telemetry; the directory is followed anyway.
                _ = hangup.recv() => tracing::info!("SIGHUP: files are followed without it"),
                _ = term.recv() => match self.leave(manager.as_deref(), &gateways) {
                    Some(until) if leaving.is_none() => leaving = Some(until),
                    Some(_) => {}
                    None => break Ended::Stopped,
                },
                _ = interrupt.recv() => break Ended::Stopped,
                () = sleep_until(leaving) => break Ended::Alone,
                () = &mut superseded => {
                    tracing::info!("a newer agent serves from now on");
                    break Ended::Superseded(leaving);
                }
            }
        };
        drop(ready);
        // The successor's is at work already; nothing is taken back.
        self.options.plugin.stop();
        // Stop taking new work; pods stay captured, and their listeners stay open in the holder.
        gateways.stop_accepting().await;
        drop(gateways);
        let serving = match tasks {
            Some((serving, joining, addresses)) => {
                drop(addresses);
                joining.stop().await; // it has a handle to the manager, which is to be the last here
                Some(serving)
            }
            None => None,
        };
        if let Some(manager) = manager.and_then(Arc::into_inner) {
            manager.stop().await;
        }
        if let Some(serving) = serving {
            serving.abort();
        }
        Ok(ended)
    }

    /// SIGTERM: until when to go on. In a cluster with something to serve, and nobody yet who does so instead, new
    /// connections would wait until the next agent comes, which is not before this one has ended.
    fn leave(&self, manager: Option<&ManagerHandle>, gateways: &Gateways) -> Option<Instant> {
        self.options.cluster.as_ref()?;
        let serves = manager.is_some_and(|m| m.counts().borrow().captured > 0) || gateways.any_open();
        if !serves {
            return None;
        }
        self.pages.ready.store(false, Ordering::Release);
        tracing::info!("told to end: serving until a newer agent does, at most {:?}", self.options.drain);
        Some(Instant::now() + self.options.drain)
    }

    async fn open_doors(&self) -> Result<()> {
        if let Some(path) = &self.options.admin_socket {
            admin::serve_socket(path, self.pages.clone(), self.stop.clone())?;
        }
        for at in self.options.doors.iter().copied() {
            if self.options.cluster.is_some() {
                admin::serve_when_free(at, self.pages.clone(), self.doors.clone())?;
            } else {
                admin::serve(at, self.pages.clone(), self.stop.clone()).await?;
            }
        }
        Ok(())
    }

    async fn shut_down(self, ended: Ended) {
        self.doors.cancel();
        let drain = self.options.drain;
        let grace = match ended {
            Ended::Alone => ALONE_GRACE,
            // The time that it waited for its successor is gone.
            Ended::Superseded(Some(until)) => {
                drain.min((until + KILL_AFTER_DRAIN).saturating_duration_since(Instant::now()))
            }
            Ended::Superseded(None) | Ended::Stopped => drain,
        };
        self.pages.ready.store(false, Ordering::Release);
        tracing::info!("draining for at most {grace:?}");
        self.plane.drain(grace).await;
        self.stop.cancel();
        self.telemetry.shutdown(Duration::from_secs(5)).await;
    }
}

fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(2, |n| n.get().min(2))
}

fn limits(config: &AgentConfig) -> Limits {
    let given = &config.limits;
    let size = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
    Limits {
        connections_max: size(given.connections),
        handshakes_max: size(given.handshakes),
        head_bytes_max: size(given.request_head_bytes),
        traffic_bytes: given.traffic_bytes,
        descriptors: weft_inpod::raise_open_files_limit()
            .map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX)),
        connect_timeout_ms: u64::try_from(given.connect_timeout.as_millis()).unwrap_or(u64::MAX),
        ..Limits::default()
    }
}

/// Also says why spans cannot be sent: before telemetry starts there is no log.
fn telemetry_config(options: &Options, world: &World) -> (TelemetryConfig, Option<String>) {
    let config = &world.agent;
    let mut telemetry = TelemetryConfig::default();
    telemetry.log.filter = super::log_filter(std::env::var("WEFT_LOG").ok());
    telemetry.access_log.output = match (options.access_log.as_deref(), &config.access_log) {
        (Some("off"), _) | (None, weft_k8s::AccessLog::Off) => AccessLogOutput::Off,
        (Some("-"), _) | (None, weft_k8s::AccessLog::Stdout) => AccessLogOutput::Stdout,
        (Some(path), _) => AccessLogOutput::File(path.into()),
        (None, weft_k8s::AccessLog::File(path)) => AccessLogOutput::File(path.clone()),
    };
    telemetry.trace.endpoint.clone_from(&config.tracing.endpoint);
    telemetry.trace.ratio = config.tracing.sampling_ratio;
    telemetry.trace.resource = config.tracing.attributes.clone().into_iter().collect();
    telemetry.trace.resource.push(("k8s.node.name".into(), options.node.clone()));
    let (trace, problems) = telemetry.trace.with_env(|name| std::env::var(name).ok());
    telemetry.trace = trace;
    for problem in problems {
        eprintln!("weft: {problem}");
    }
    // A process with files has the machine's DNS.
    let named = telemetry.trace.endpoint.as_deref().filter(|_| options.cluster.is_some());
    match named.map(|endpoint| otlp::resolve(endpoint, &world.snapshot)) {
        Some(Ok(endpoint)) => telemetry.trace.endpoint = Some(endpoint),
        Some(Err(problem)) => {
            telemetry.trace.endpoint = None;
            return (telemetry, Some(problem));
        }
        None => {}
    }
    (telemetry, None)
}
