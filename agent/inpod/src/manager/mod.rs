//! Drives [`crate::state`]: the CNI plugin's calls, the holder, the rules in pods, and the data plane.
//!
//! A pod is captured in this order: listeners (holder) → data plane accepts and has the certificate → rules.
//! A pod that runs already is thus redirected only when somebody answers; a new pod has not started yet, and
//! its ADD succeeds only after all three.

mod drive;
mod enrolment_file;
mod work;

use crate::{
    cni_server,
    holder::{GroupKey, HolderError, HolderLink, PodRecord, Request, RunError, bind, make_run_dir},
    netns::Netns,
    ns_thread::NetnsThread,
    ruleset::Mechanism,
    socket::Listeners,
    stash::PodSockets,
    sys::{raise_open_files_limit, since_boot_ns},
};
use drive::{Manager, Shown, Sources};
use enrolment_file::EnrolmentFile;
use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{
    net::UnixListener,
    sync::{mpsc, oneshot, watch},
};
use tokio_util::sync::CancellationToken;
use weft_cni::protocol::{Enrolled, socket_path};
use weft_core::model::{ObjectKey, TunnelPort};
use work::Kit;

pub use crate::state::Decision;

/// Bounds of the manager's queues.
const CALLS: usize = 512;
const EVENTS: usize = 1024;
const NAMESPACE_WORK: usize = 4096;

/// Who is in the mesh: implemented by the binary from its Snapshot.
pub trait Enrolment: Send + Sync + 'static {
    /// What is to be done with a pod. `Unknown` when the pod has not been seen and its namespace does not
    /// decide alone. Another pod of the same name (with another `uid`, where both are known) says nothing of this one.
    fn decide(&self, namespace: &str, name: &str, uid: &str) -> Decision;

    /// All that the CNI plugin should know while the agent is away. `None` while the world is not known yet:
    /// the file of an earlier agent is then left as it is.
    fn table(&self) -> Option<Enrolled>;

    /// Changes its value whenever an answer above may have changed.
    fn changed(&self) -> watch::Receiver<u64>;
}

/// Where the manager works and how patient it is.
#[derive(Clone, Debug)]
pub struct ManagerConfig {
    /// Directory of `holder.sock`, `cni.sock` and `enrolment.json`; `/run/weft`.
    pub run_dir: PathBuf,
    /// Where a copy of `enrolment.json` goes that outlives a reboot (`/var/lib/weft`); none is kept without it. One agent of
    /// a machine may use it.
    pub state_dir: Option<PathBuf>,
    /// How long the data plane may take to accept for a pod and get its certificate.
    pub ready_deadline: Duration,
    /// How long connections of a pod that leaves the mesh may go on.
    pub drain_deadline: Duration,
    /// How long a pod that leaves the mesh is served on, so that its peers hear of it before they find nobody there.
    pub linger: Duration,
    /// Whether to listen for the CNI plugin on `cni.sock`.
    pub serve_cni: bool,
}

impl ManagerConfig {
    /// The defaults for a run directory: no copy of the table, 10 s, 30 s, not at all, with CNI.
    #[must_use]
    pub fn new(run_dir: impl Into<PathBuf>) -> Self {
        Self {
            run_dir: run_dir.into(),
            state_dir: None,
            ready_deadline: Duration::from_secs(10),
            drain_deadline: Duration::from_secs(30),
            linger: Duration::ZERO,
            serve_cni: true,
        }
    }
}

/// A captured pod, handed to the data plane.
#[derive(Debug)]
pub struct CapturedPod {
    /// Which pod.
    pub record: PodRecord,
    /// Its listeners; duplicates of those that the holder keeps.
    pub listeners: Listeners,
    /// Client sockets inside the pod.
    pub sockets: PodSockets,
}

/// What the data plane has to act on.
#[derive(Debug)]
pub enum PodEvent {
    /// Serve this pod.
    Captured {
        /// The pod.
        pod: CapturedPod,
        /// Complete it with `Ok` when the pod is being served and its certificate is there. Dropping it, or an
        /// error, means that it is not served: the pod is offered again later.
        ready: oneshot::Sender<Result<(), String>>,
    },
    /// Stop serving this pod.
    Released {
        /// The pod.
        record: PodRecord,
        /// The sandbox is gone: nothing to drain.
        gone: bool,
        /// Complete (or drop) it when the pod's connections have ended.
        drained: oneshot::Sender<()>,
    },
    /// A newer agent serves from now on: drain, and end. Nothing comes after this.
    Superseded,
}

/// The manager could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A socket in the run directory.
    #[error(transparent)]
    Socket(#[from] RunError),
    /// A thread or descriptor.
    #[error("cannot start: {0}")]
    Io(#[from] io::Error),
}

/// Makes managers.
#[derive(Debug)]
pub struct PodManager;

impl PodManager {
    /// Starts a manager on the current tokio runtime. It connects to the holder by itself (and again when that
    /// restarts), adopts what the holder has, and emits events on the returned channel.
    ///
    /// # Errors
    /// When the run directory cannot be used.
    pub fn start(
        config: ManagerConfig,
        enrolment: Arc<dyn Enrolment>,
    ) -> Result<(ManagerHandle, mpsc::Receiver<PodEvent>), StartError> {
        raise_open_files_limit();
        make_run_dir(&config.run_dir)?;
        let (events, received) = mpsc::channel(EVENTS);
        let (from_holder, holder_events) = mpsc::channel(4);
        let link = HolderLink::start(config.run_dir.clone(), since_boot_ns(), from_holder)?;
        let (calls, called) = mpsc::channel(CALLS);
        let (asks, asked) = mpsc::channel(CALLS);
        let stop = CancellationToken::new();
        let groups: Groups = Arc::default();
        let (counts, seen_counts) = watch::channel(Counts::default());
        let (captured, seen_captured) = watch::channel(Arc::default());
        let (last_add, seen_add) = watch::channel(None);
        let (mechanism, seen_mechanism) = watch::channel(None);
        let kit = Kit {
            link: link.clone(),
            rules: NetnsThread::spawn("weft-rules", NAMESPACE_WORK)?,
            sockets: NetnsThread::spawn("weft-sockets", NAMESPACE_WORK)?,
            events,
            mechanism,
            ready_deadline: config.ready_deadline,
            drain_deadline: config.drain_deadline,
            linger: config.linger,
        };
        let server = if config.serve_cni {
            let listener = UnixListener::from_std(bind(&socket_path(&config.run_dir))?)?;
            Some(tokio::spawn(cni_server::serve(listener, calls, stop.clone())))
        } else {
            None
        };
        let table = EnrolmentFile::new(config.run_dir, config.state_dir);
        let shown = Shown { counts, captured, last_add };
        let manager = Manager::new(table, enrolment, kit, groups.clone(), shown);
        let sources = Sources { holder_events, called, asked, stop: stop.clone() };
        let task = tokio::spawn(async move {
            manager.run(sources).await;
            if let Some(server) = server {
                let _ = server.await; // a panic in it has been logged by tokio; nothing else to do
            }
        });
        let seen = Seen {
            counts: seen_counts,
            captured: seen_captured,
            last_add: seen_add,
            mechanism: seen_mechanism,
        };
        Ok((ManagerHandle { link, asks, stop, groups, task, seen }, received))
    }
}

type Groups = Arc<parking_lot::Mutex<BTreeMap<GroupKey, Vec<OwnedFd>>>>;

/// How many pods there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Captured and served.
    pub captured: usize,
    /// Being captured or released, among them those that an earlier agent served and this one does not yet.
    pub pending: usize,
    /// Known on this node.
    pub known: usize,
    /// Whether the holder is connected.
    pub holder: bool,
}

/// A pod whose capture stands: its rules are in place, and what connects to its port 15008 is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// `metadata.uid`; empty when the runtime did not say.
    pub uid: String,
    /// Its addresses, as they were read inside its network namespace; empty until this agent has captured it.
    pub addresses: Vec<IpAddr>,
    /// Where tunnels to it may come.
    pub tunnel: TunnelPort,
}

/// The manager's end is [`drive::Shown`].
#[derive(Debug)]
struct Seen {
    counts: watch::Receiver<Counts>,
    captured: watch::Receiver<Arc<BTreeMap<ObjectKey, Captured>>>,
    last_add: watch::Receiver<Option<SystemTime>>,
    mechanism: watch::Receiver<Option<Mechanism>>,
}

/// The way in for the binary.
#[derive(Debug)]
pub struct ManagerHandle {
    link: HolderLink,
    asks: mpsc::Sender<Ask>,
    stop: CancellationToken,
    groups: Groups,
    task: tokio::task::JoinHandle<()>,
    seen: Seen,
}

/// What the binary asks of the manager.
#[derive(Debug)]
enum Ask {
    Add(PodRecord, Netns, oneshot::Sender<Result<(), String>>),
    Records(oneshot::Sender<Vec<PodRecord>>),
    Forget(String),
}

impl ManagerHandle {
    /// Makes a sandbox known that no CNI ADD told of (it ran before Weft came). Like ADD: returns when the pod
    /// is captured, or at once when it is not enrolled.
    ///
    /// # Errors
    /// Why the pod is not protected yet; it is tried again by itself.
    pub async fn add(&self, record: PodRecord, netns: Netns) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        self.asks.try_send(Ask::Add(record, netns, reply)).map_err(|_| "the agent is busy".to_owned())?;
        answer.await.unwrap_or_else(|_| Err("the manager has ended".into()))
    }

    /// The sandboxes that are known, in no order. Some may be gone: their DEL came while no agent was there.
    pub async fn records(&self) -> Vec<PodRecord> {
        let (reply, answer) = oneshot::channel();
        if self.asks.send(Ask::Records(reply)).await.is_err() {
            return Vec::new();
        }
        answer.await.unwrap_or_default()
    }

    /// Whether the manager is over (a newer agent has taken over): then [`Self::records`] says nothing about the node.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.asks.is_closed()
    }

    /// Forgets a sandbox, as DEL does. For those of [`Self::records`] whose pod no longer exists.
    pub async fn forget(&self, container_id: String) {
        let _ = self.asks.send(Ask::Forget(container_id)).await; // a manager that has ended knows no sandbox
    }

    /// The sockets of a Gateway's group: opened by the holder with `members` members, or duplicates of the group
    /// that it has (which keeps the size it was opened with).
    ///
    /// # Errors
    /// When the address cannot be bound or the holder is away.
    pub async fn listen_group(&self, key: GroupKey, members: usize) -> Result<Vec<OwnedFd>, HolderError> {
        let sockets = self.link.ask(Request::ListenGroup(key.clone(), members)).await?;
        let kept: io::Result<Vec<OwnedFd>> = sockets.iter().map(OwnedFd::try_clone).collect();
        // Kept for a holder that crashes: it gets the same accept queues back.
        if let Ok(kept) = kept {
            self.groups.lock().insert(key, kept);
        }
        Ok(sockets)
    }

    /// Closes a group in the holder. Those who hold duplicates should close theirs.
    ///
    /// # Errors
    /// When the holder is away.
    pub async fn close_group(&self, key: GroupKey) -> Result<(), HolderError> {
        self.groups.lock().remove(&key);
        self.link.ask(Request::CloseGroup(key)).await.map(drop)
    }

    /// The groups that are open, by this agent or one before it.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupKey> {
        self.groups.lock().keys().cloned().collect()
    }

    /// How many pods are captured and known; for readiness and metrics. Changes can be waited for.
    #[must_use]
    pub fn counts(&self) -> watch::Receiver<Counts> {
        self.seen.counts.clone()
    }

    /// The pods of this node whose capture stands: what peers may speak HBONE to. A pod is in from the end of its capture
    /// until it begins to leave (its listeners still answer then, for as long as it drains). Pods that an earlier agent
    /// captured are in as soon as the holder is connected, a moment before this agent serves them: connections wait. Not
    /// complete before [`Counts::holder`].
    #[must_use]
    pub fn captured(&self) -> watch::Receiver<Arc<BTreeMap<ObjectKey, Captured>>> {
        self.seen.captured.clone()
    }

    /// When the plugin last brought an ADD: proof that the runtime calls it.
    #[must_use]
    pub fn last_add(&self) -> watch::Receiver<Option<SystemTime>> {
        self.seen.last_add.clone()
    }

    /// How the node's kernel lets pods be captured; `None` until the first one is.
    #[must_use]
    pub fn mechanism(&self) -> watch::Receiver<Option<Mechanism>> {
        self.seen.mechanism.clone()
    }

    /// Stops serving the plugin and driving pods. Pods stay captured, held by the holder.
    pub async fn stop(self) {
        self.stop.cancel();
        let _ = self.task.await; // a panic in it has been logged by tokio
    }
}
