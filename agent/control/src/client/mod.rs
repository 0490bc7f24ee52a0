//! The agent's side: one connection to the leading controller, kept up; what must outlive it is cached.

mod cache;
mod connect;
mod issuer;
mod session;

#[cfg(test)]
pub(crate) use self::connect::{connect, over};

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use tokio::{sync::watch, task::AbortHandle, time::Instant};
use tonic::transport::Channel;
use weft_certs::{Issuer, TrustBundle};

use self::{cache::Cache, issuer::RemoteIssuer, session::End};
use crate::report::{Applied, Captured, Material, Reached};

/// What a client needs.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Where the controller is; none as long as nobody knows.
    pub address: watch::Receiver<Option<SocketAddr>>,
    /// The mesh's roots; none as long as nobody knows.
    pub roots: watch::Receiver<Option<TrustBundle>>,
    /// The name in the server's certificate.
    pub server_name: String,
    /// The projected service-account token; read anew at every use.
    pub token: PathBuf,
    /// The node.
    pub node: String,
    /// Version of this build.
    pub version: String,
    /// Tells this process from another agent of the node: the pod's name, say.
    pub instance: String,
    /// A directory in a tmpfs for what must survive a restart; none: nothing is kept.
    pub cache_dir: Option<PathBuf>,
    /// Times.
    pub timing: Timing,
}

impl ClientConfig {
    /// The installation's names and times.
    #[must_use]
    pub fn new(
        address: watch::Receiver<Option<SocketAddr>>,
        roots: watch::Receiver<Option<TrustBundle>>,
        node: impl Into<String>,
    ) -> Self {
        Self {
            address,
            roots,
            server_name: "weft-controller.weft-system.svc".to_owned(),
            token: PathBuf::from("/var/run/secrets/weft/token"),
            node: node.into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: String::new(),
            cache_dir: None,
            timing: Timing::default(),
        }
    }
}

/// Times of a client.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// For TCP, for TLS, and for the first answer, each. 5 s.
    pub step: Duration,
    /// The first pause after a failure; doubles. 100 ms.
    pub pause_min: Duration,
    /// The longest pause. 5 s.
    pub pause_max: Duration,
    /// The shortest time between two reports of changes. 200 ms.
    pub report: Duration,
    /// Something is said at least this often. 10 s.
    pub heartbeat: Duration,
    /// How long a message may wait for a slow controller. 30 s.
    pub send: Duration,
    /// How long a certificate request waits for a connection. 5 s.
    pub connection: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            step: Duration::from_secs(5),
            pause_min: Duration::from_millis(100),
            pause_max: Duration::from_secs(5),
            report: Duration::from_millis(200),
            heartbeat: Duration::from_secs(10),
            send: Duration::from_secs(30),
            connection: Duration::from_secs(5),
        }
    }
}

/// How the connection stands, for the admin page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientState {
    /// A leading controller has welcomed us and the stream stands.
    pub connected: bool,
    /// Since when it is so.
    pub since: Timestamp,
    /// Failures since the last welcome.
    pub failures: u32,
    /// Why the last connection ended or could not be made.
    pub last_error: Option<String>,
}

/// The client. Its task ends when the last clone is dropped.
#[derive(Clone)]
pub struct ControlClient {
    inner: Arc<Inner>,
    _task: Arc<Task>,
}

/// What the task and the handles share.
struct Inner {
    config: ClientConfig,
    cache: Option<Cache>,
    material: watch::Sender<Arc<Material>>,
    /// None until it is said first: the controller then goes by what the last agent of the node said.
    applied: watch::Sender<Option<Arc<Applied>>>,
    /// As `applied`.
    captured: watch::Sender<Option<Arc<Captured>>>,
    reached: watch::Sender<Arc<Reached>>,
    channel: watch::Sender<Option<Channel>>,
    state: watch::Sender<ClientState>,
}

struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl ControlClient {
    /// Loads what is cached (blocks on a tmpfs, shortly) and begins to connect, on the current tokio runtime.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn start(config: ClientConfig) -> Self {
        let cache = config.cache_dir.clone().map(|dir| Cache::new(dir, config.node.clone()));
        let cached = cache.as_ref().map(Cache::load).unwrap_or_default();
        let state = ClientState { connected: false, since: Timestamp::now(), failures: 0, last_error: None };
        let inner = Arc::new(Inner {
            config,
            cache,
            material: watch::Sender::new(Arc::new(cached)),
            applied: watch::Sender::new(None),
            captured: watch::Sender::new(None),
            reached: watch::Sender::default(),
            channel: watch::Sender::new(None),
            state: watch::Sender::new(state),
        });
        let task = tokio::spawn(keep_connected(inner.clone()));
        Self { inner, _task: Arc::new(Task(task.abort_handle())) }
    }

    /// What the Gateways and policies of this node need; at first, what the last process had.
    #[must_use]
    pub fn material(&self) -> watch::Receiver<Arc<Material>> {
        self.inner.material.subscribe()
    }

    /// Says what is served now. At once if nothing was said for [`Timing::report`], else when that is over; what
    /// comes in between is said together. Not to be called before it is known: until the first call the controller goes
    /// by what the node's agent said last.
    pub fn report(&self, applied: Applied) {
        replace(&self.inner.applied, applied);
    }

    /// Says which pods of this node are captured now. Paced as [`ControlClient::report`].
    pub fn captured(&self, captured: Captured) {
        replace(&self.inner.captured, captured);
    }

    /// Says which budgets the workloads of this node have reached lately. Paced as [`ControlClient::report`].
    pub fn reached(&self, reached: Reached) {
        self.inner.reached.send_if_modified(|now| {
            let changed = **now != reached;
            if changed {
                *now = Arc::new(reached);
            }
            changed
        });
    }

    /// Asks the controller for certificates, over the same connection.
    #[must_use]
    pub fn issuer(&self) -> Arc<dyn Issuer> {
        let config = &self.inner.config;
        Arc::new(RemoteIssuer {
            channel: self.inner.channel.subscribe(),
            token: config.token.clone(),
            server_name: config.server_name.clone(),
            wait: config.timing.connection,
        })
    }

    /// How the connection stands.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<ClientState> {
        self.inner.state.subscribe()
    }
}

impl fmt::Debug for ControlClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlClient").field("state", &*self.inner.state.borrow()).finish_non_exhaustive()
    }
}

fn replace<T: PartialEq>(sender: &watch::Sender<Option<Arc<T>>>, value: T) {
    sender.send_if_modified(|now| {
        let changed = now.as_deref() != Some(&value);
        if changed {
            *now = Some(Arc::new(value));
        }
        changed
    });
}

/// Connects, serves the stream, connects again. Ends by being aborted.
async fn keep_connected(inner: Arc<Inner>) {
    let timing = inner.config.timing;
    let mut failures = 0u32;
    let mut quick = QUICK_TRIES;
    loop {
        let began = Instant::now();
        let end = session::run(&inner).await;
        inner.channel.send_replace(None);
        if inner.state.borrow().connected || began.elapsed() > timing.pause_max {
            (failures, quick) = (0, QUICK_TRIES);
        }
        // A replica that does not lead sent us away: the next connection may reach the one that does.
        let elsewhere = matches!(end, End::NotLeader(_)) && quick > 0;
        failures = failures.saturating_add(1);
        quick = if elsewhere { quick - 1 } else { quick.max(AFTER_A_PAUSE) };
        note(&inner, &end, failures);
        let pause = match (&end, elsewhere) {
            (End::Moved, _) => Duration::ZERO,
            (_, true) => timing.pause_min / 4,
            (_, false) => backoff(&timing, failures),
        };
        tokio::time::sleep(pause).await;
    }
}

/// Tries without a growing pause when a replica says that it does not lead. Connections are spread over replicas by
/// chance, and there are two.
const QUICK_TRIES: u32 = 8;
/// As many are granted again after each growing pause, or an agent that fell back to pauses while nobody led would meet
/// the new leader by chance only, every other time.
const AFTER_A_PAUSE: u32 = 2;

/// Doubling, half of it drawn.
fn backoff(timing: &Timing, failures: u32) -> Duration {
    let full = timing.pause_min.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(timing.pause_max);
    let draw = RandomState::new().hash_one(()) % 1000;
    full / 2 + full / 2000 * u32::try_from(draw).unwrap_or(0)
}

fn note(inner: &Inner, end: &End, failures: u32) {
    let error = end.to_string();
    match end {
        End::Moved => tracing::info!(%error, "connecting to the controller anew"),
        // The first of a series only, and then ever more seldom: an absent controller must not fill the log.
        _ if failures.is_power_of_two() => {
            tracing::warn!(%error, failures, "no connection to the controller; what is held stays in use");
        }
        _ => tracing::debug!(%error, failures, "no connection to the controller"),
    }
    inner.state.send_modify(|state| {
        if state.connected {
            state.since = Timestamp::now();
        }
        state.connected = false;
        state.failures = failures;
        state.last_error = Some(error);
    });
}
