//! `weft controller`: what only one may do for the whole cluster.
//!
//! ```text
//! ClusterProvider ─▶ worlds ─▶ Engine ─▶ statuses ─▶ StatusWriter ─▶ API server
//!                      │          ▲ feedback   └▶ demands ─▶ Provisioner ─▶ API server
//!                      │          └─ agents' reports ◀─ ControlServer ◀─▶ agents
//!                      └─ pods, captured ─▶ SlicePublisher ─▶ API server
//! ```
//!
//! Every replica watches and resolves, so that the next leader knows everything at once; only the leader writes, signs and
//! is talked to by agents.

use super::{
    admin::{self, Door, Pages},
    cluster::Task,
    duties::{self, Duties},
    metrics,
    world::{Pipeline, Seen},
};
use crate::cli::ControllerArgs;
use anyhow::{Context, Result};
use parking_lot::Mutex;
use std::{
    collections::BTreeSet,
    process::ExitCode,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use weft_certs::Ca;
use weft_control::{Agents, ControlServer, Leading, ServerConfig, WorldAuthorizer};
use weft_core::model::{Str, gateway_object_name};
use weft_k8s::{
    AccessReviewer, CaCraft, CaTexts, ClusterInputs, ClusterOptions, ClusterProvider, Leadership,
    LeaseConfig, Role, TokenReviewer, WatchState, World,
};
use weft_proxy::telemetry::{self, Telemetry, TelemetryConfig};

/// Agents that are away are looked at this often; everything else comes by itself.
const TICK: Duration = Duration::from_secs(1);

/// Names the key of the taint that nodes lose once their agent serves.
const NODE_TAINT: &str = "WEFT_REMOVE_NODE_TAINT";

/// How long a replica that was told to end still answers agents.
const LINGER: Duration = Duration::from_secs(3);

/// Runs until SIGTERM or SIGINT, then gives the Lease back.
///
/// # Errors
/// What keeps it from starting: no way to an API server, an address in use.
pub(super) fn run(args: ControllerArgs) -> Result<ExitCode> {
    super::install_crypto();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(control(args))?;
    Ok(ExitCode::SUCCESS)
}

/// The replica's parts that end with it.
struct Replica {
    args: ControllerArgs,
    telemetry: Arc<Telemetry>,
    pages: Arc<Pages>,
    stop: CancellationToken,
    server: ControlServer,
    watched: watch::Receiver<Arc<WatchState>>,
    _tasks: Vec<Task>,
}

async fn control(args: ControllerArgs) -> Result<()> {
    let telemetry = telemetry::init(telemetry_config())?;
    let stop = CancellationToken::new();
    let pages = open_pages(&args, &telemetry, &stop).await?;
    let client = weft_k8s::client().await?;
    let _ = pages.access.set(AccessReviewer::new(client.clone())); // set once, here
    let options =
        ClusterOptions { system_namespace: args.namespace.clone(), ..ClusterOptions::new(Role::Controller) };
    let provider = ClusterProvider::start(client.clone(), options, ClusterInputs::none())?;
    let election =
        weft_k8s::lead(client.clone(), LeaseConfig::new(&args.namespace, "weft-controller", &args.pod_name));
    let leadership = election.leadership();
    let mut worlds = provider.worlds().await.context("the watches of the cluster ended")?;
    let first = worlds.borrow_and_update().clone();
    let trust_domain = first.agent.trust_domain.clone();

    let (texts_tx, texts) = watch::channel(None);
    let (ca_tx, ca) = watch::channel(None);
    let (materials_tx, materials) = watch::channel(Arc::default());
    let (serving_tx, serving) = watch::channel(Arc::default());
    let authorize = authorizer(&worlds, serving, &trust_domain);
    let reviewer = Arc::new(TokenReviewer::new(client.clone()));
    let server = ControlServer::new(ServerConfig::new(&trust_domain, ca, reviewer, authorize, materials));
    let listener =
        TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    let mut tasks = vec![
        Task::spawn(weft_k8s::keep_ca(
            client.clone(),
            args.namespace.clone(),
            leadership.clone(),
            texts_tx,
            CaCraft { trust_domain: trust_domain.to_string(), make: make_ca, roots: roots_of },
        )),
        follow_ca(texts, ca_tx),
        follow_leadership(leadership.clone(), server.clone()),
        serve_agents(server.clone(), listener, stop.clone()),
    ];
    // The taint's key; a right of its own comes with the setting.
    if let Ok(key) = std::env::var(NODE_TAINT) {
        let (ready_tx, ready) = watch::channel(BTreeSet::new());
        tasks.push(follow_reported(server.agents(), ready_tx));
        tasks.push(Task::spawn(weft_k8s::keep_untainted(client.clone(), key, ready, leadership.clone())));
    }
    let duties = {
        let (leadership, lives) = (leadership.clone(), provider.lives.clone());
        Duties::start(client, &args.pod_name, leadership, lives, (materials_tx, serving_tx))
    };
    let watched = provider.state.clone();
    let (progress, events) = duties.counts();
    let counted = metrics::Controller { progress, events, server: server.clone(), watched: watched.clone() };
    let seen = pages.seen.clone();
    // The pages hold it.
    let shown = Arc::downgrade(&pages);
    let more: metrics::More = Box::new(move |out| {
        metrics::controller(&counted, out);
        metrics::process(&seen.lock().clone(), out);
        let mut reached = counted.server.reached();
        reached.extend(shown.upgrade().map(|pages| pages.reached()).unwrap_or_default());
        metrics::budgets(&reached, &[], out);
    });
    let _ = pages.more.set(more); // set once, here
    let replica = Replica { args, telemetry, pages, stop, server, watched, _tasks: tasks };
    let ended = replica.until_stopped((worlds, first), leadership, duties).await;
    election.release().await;
    // Nodes learn a moment later that this replica is gone: who comes until then is told at once who leads, rather than nothing.
    if ended.is_ok() {
        tokio::time::sleep(LINGER).await;
    }
    provider.stop().await;
    replica.stop.cancel();
    replica.telemetry.shutdown(Duration::from_secs(5)).await;
    ended
}

/// The replica's pages, which are there before anything else is.
async fn open_pages(
    args: &ControllerArgs,
    telemetry: &Arc<Telemetry>,
    stop: &CancellationToken,
) -> Result<Arc<Pages>> {
    let seen = Arc::new(Mutex::new(Seen::default()));
    let pages = Arc::new(Pages::new(telemetry.clone(), seen, None));
    if let Some(path) = &args.admin_socket {
        admin::serve_socket(path, pages.clone(), stop.clone())?;
    }
    admin::serve((Door::Network, args.metrics), pages.clone(), stop.clone()).await?;
    Ok(pages)
}

/// Who may have which identity, by the world.
fn authorizer(
    worlds: &watch::Receiver<Arc<World>>,
    serving: watch::Receiver<Arc<weft_control::Serving>>,
    trust_domain: &Str,
) -> Arc<WorldAuthorizer<World>> {
    Arc::new(WorldAuthorizer {
        worlds: worlds.clone(),
        snapshot: |world: &World| &world.snapshot,
        serving,
        gateway_account: |gateway| gateway_object_name(gateway).into(),
        trust_domain: trust_domain.clone(),
    })
}

impl Replica {
    async fn until_stopped(
        &self,
        (mut worlds, first): (watch::Receiver<Arc<World>>, Arc<World>),
        mut leadership: watch::Receiver<Leadership>,
        mut duties: Duties,
    ) -> Result<()> {
        let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut agents = self.server.agents();
        let mut pipeline = Pipeline::new(true, None, duties::nobody(), self.pages.seen.clone());
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut led_since = None;
        let mut update = Some(pipeline.world(first));
        tracing::info!(replica = self.args.pod_name, "watching the cluster");
        self.pages.ready.store(true, Ordering::Release);
        loop {
            if let Some(update) = update.take() {
                let start = Instant::now();
                duties.published(update.clone(), &pipeline, &self.watched.borrow());
                pipeline.served(start.elapsed());
                pipeline.show(std::iter::once(update));
            }
            let reports = agents.borrow_and_update().clone();
            let leads = leadership.borrow_and_update().leads();
            led_since = if leads { led_since.or(Some(Instant::now())) } else { None };
            duties.agents(&reports, &pipeline, led_since);
            if let Some(better) = pipeline.feedback(duties.feedback(&reports)) {
                update = Some(better);
                continue;
            }
            tokio::select! {
                changed = worlds.changed() => {
                    changed.context("the watches of the cluster ended")?;
                    let world = worlds.borrow_and_update().clone();
                    update = Some(pipeline.world(world));
                }
                changed = agents.changed() => changed.context("the agents' server ended")?,
                changed = leadership.changed() => changed.context("the election ended")?,
                _ = tick.tick() => {}
                _ = term.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        self.pages.ready.store(false, Ordering::Release);
        Ok(())
    }
}

fn telemetry_config() -> TelemetryConfig {
    let mut telemetry = TelemetryConfig::default();
    telemetry.log.filter = super::log_filter(std::env::var("WEFT_LOG").ok());
    telemetry.access_log.output = telemetry::AccessLogOutput::Off;
    telemetry
}

fn make_ca(trust_domain: &str) -> Result<CaTexts, String> {
    let ca = Ca::create(trust_domain, jiff::Timestamp::now()).map_err(|e| e.to_string())?;
    let pem = ca.to_pem();
    Ok(CaTexts { certificates: pem.certificates.clone(), key: pem.key.clone() })
}

fn read_ca(texts: &CaTexts) -> Result<Ca, String> {
    Ca::from_pem(texts.certificates.as_bytes(), texts.key.as_bytes()).map_err(|e| e.to_string())
}

fn roots_of(texts: &CaTexts) -> Option<String> {
    Some(read_ca(texts).ok()?.bundle().to_pem())
}

fn follow_ca(mut texts: watch::Receiver<Option<Arc<CaTexts>>>, to: watch::Sender<Option<Arc<Ca>>>) -> Task {
    Task::spawn(async move {
        loop {
            let now = texts.borrow_and_update().clone();
            match now.as_deref().map(read_ca) {
                Some(Ok(ca)) => drop(to.send_replace(Some(Arc::new(ca)))),
                Some(Err(error)) => {
                    tracing::error!("Secret weft-ca cannot be used: {error}; the last CA stays")
                }
                None => {}
            }
            if texts.changed().await.is_err() {
                return;
            }
        }
    })
}

fn follow_leadership(mut leadership: watch::Receiver<Leadership>, server: ControlServer) -> Task {
    Task::spawn(async move {
        loop {
            let leading = match &*leadership.borrow_and_update() {
                now @ Leadership::Leader { .. } => Leading { leader: now.leads(), holder: "".into() },
                Leadership::Follower { holder } => {
                    Leading { leader: false, holder: holder.clone().unwrap_or_else(|| "".into()) }
                }
            };
            tracing::info!(leader = leading.leader, holder = %leading.holder, "leadership");
            server.set_leading(leading);
            if leadership.changed().await.is_err() {
                return;
            }
        }
    })
}

/// Nodes whose agent is connected and has said what it serves.
fn follow_reported(mut agents: watch::Receiver<Arc<Agents>>, to: watch::Sender<BTreeSet<Str>>) -> Task {
    Task::spawn(async move {
        loop {
            let now = agents.borrow_and_update().clone();
            let ready = now.iter().filter(|(_, agent)| agent.reported && agent.gone.is_none());
            let ready: BTreeSet<Str> = ready.map(|(node, _)| node.clone()).collect();
            to.send_if_modified(|then| std::mem::replace(then, ready.clone()) != ready);
            if agents.changed().await.is_err() {
                return;
            }
        }
    })
}

fn serve_agents(server: ControlServer, listener: TcpListener, stop: CancellationToken) -> Task {
    Task::spawn(async move {
        if let Err(error) = server.serve(listener, stop).await {
            tracing::error!("agents cannot be served: {error}");
        }
    })
}
