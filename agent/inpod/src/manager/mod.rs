//! Drives [`crate::state`]: the CNI plugin's calls, the holder, the rules in pods, and the data plane.
//!
//! A pod is captured in this order: listeners (holder) → data plane accepts and has the certificate → rules.
//! A pod that runs already is thus redirected only when somebody answers; a new pod has not started yet, and
//! its ADD succeeds only after all three.

mod enrolment_file;
mod work;

use crate::{
    cni_server::{self, Call, refuse},
    holder::{
        GroupKey, Held, HeldPod, HolderError, HolderEvent, HolderLink, PodRecord, Request, RunError, bind,
        make_run_dir,
    },
    netns::Netns,
    ns_thread::NetnsThread,
    socket::Listeners,
    stash::PodSockets,
    state::{Action, Event, Pods, Ticket},
};
use std::{
    collections::{BTreeMap, HashMap},
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    net::UnixListener,
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use weft_cni::{
    protocol::{Attachment, Command, Enrolled, Response, socket_path},
    spec::Code,
};
use work::{Kit, Sandbox};

pub use crate::state::Decision;

/// How long an ADD waits to learn whether its pod is enrolled (the watch is behind the kubelet).
const DECISION_PATIENCE: Duration = Duration::from_secs(5);
/// How long an ADD waits altogether; less than the plugin's 20 s.
const ADD_PATIENCE: Duration = Duration::from_secs(15);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(30);
/// Bounds of the manager's queues.
const CALLS: usize = 512;
const EVENTS: usize = 1024;
const NAMESPACE_WORK: usize = 4096;

/// Who is in the mesh: implemented by the binary from its Snapshot.
pub trait Enrolment: Send + Sync + 'static {
    /// What is to be done with a pod. `Unknown` when the pod has not been seen and its namespace does not
    /// decide alone.
    fn decide(&self, namespace: &str, name: &str) -> Decision;

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
    /// How long the data plane may take to accept for a pod and get its certificate.
    pub ready_deadline: Duration,
    /// How long connections of a pod that leaves the mesh may go on.
    pub drain_deadline: Duration,
    /// Whether to listen for the CNI plugin on `cni.sock`.
    pub serve_cni: bool,
}

impl ManagerConfig {
    /// The defaults for a run directory: 10 s, 30 s, with CNI.
    #[must_use]
    pub fn new(run_dir: impl Into<PathBuf>) -> Self {
        Self {
            run_dir: run_dir.into(),
            ready_deadline: Duration::from_secs(10),
            drain_deadline: Duration::from_secs(30),
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
        make_run_dir(&config.run_dir)?;
        let (events, received) = mpsc::channel(EVENTS);
        let (from_holder, holder_events) = mpsc::channel(4);
        let link = HolderLink::start(config.run_dir.clone(), started_now(), from_holder)?;
        let (calls, called) = mpsc::channel(CALLS);
        let (adds, added) = mpsc::channel(CALLS);
        let stop = CancellationToken::new();
        let groups: Groups = Arc::default();
        let (counts, seen_counts) = watch::channel(Counts::default());
        let kit = Kit {
            link: link.clone(),
            rules: NetnsThread::spawn("weft-rules", NAMESPACE_WORK)?,
            sockets: NetnsThread::spawn("weft-sockets", NAMESPACE_WORK)?,
            events,
            ready_deadline: config.ready_deadline,
            drain_deadline: config.drain_deadline,
        };
        let server = if config.serve_cni {
            let listener = UnixListener::from_std(bind(&socket_path(&config.run_dir))?)?;
            Some(tokio::spawn(cni_server::serve(listener, calls, stop.clone())))
        } else {
            None
        };
        let manager = Manager {
            run_dir: config.run_dir,
            enrolment,
            kit: Arc::new(kit),
            pods: Pods::default(),
            sandboxes: HashMap::new(),
            waiting: HashMap::new(),
            next_ticket: 0,
            work: JoinSet::new(),
            groups: groups.clone(),
            connected: false,
            counts,
        };
        let sources = Sources { holder_events, called, added, stop: stop.clone() };
        let task = tokio::spawn(async move {
            manager.run(sources).await;
            if let Some(server) = server {
                let _ = server.await; // a panic in it has been logged by tokio; nothing else to do
            }
        });
        Ok((ManagerHandle { link, adds, stop, groups, task, counts: seen_counts }, received))
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

/// The way in for the binary.
#[derive(Debug)]
pub struct ManagerHandle {
    link: HolderLink,
    adds: mpsc::Sender<Add>,
    stop: CancellationToken,
    groups: Groups,
    task: tokio::task::JoinHandle<()>,
    counts: watch::Receiver<Counts>,
}

#[derive(Debug)]
struct Add {
    record: PodRecord,
    netns: Netns,
    reply: oneshot::Sender<Result<(), String>>,
}

impl ManagerHandle {
    /// Makes a sandbox known that no CNI ADD told of (it ran before Weft came). Like ADD: returns when the pod
    /// is captured, or at once when it is not enrolled.
    ///
    /// # Errors
    /// Why the pod is not protected yet; it is tried again by itself.
    pub async fn add(&self, record: PodRecord, netns: Netns) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        self.adds.try_send(Add { record, netns, reply }).map_err(|_| "the agent is busy".to_owned())?;
        answer.await.unwrap_or_else(|_| Err("the manager has ended".into()))
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
        self.counts.clone()
    }

    /// Stops serving the plugin and driving pods. Pods stay captured, held by the holder.
    pub async fn stop(self) {
        self.stop.cancel();
        let _ = self.task.await; // a panic in it has been logged by tokio
    }
}

struct Sources {
    holder_events: mpsc::Receiver<HolderEvent>,
    called: mpsc::Receiver<Call>,
    added: mpsc::Receiver<Add>,
    stop: CancellationToken,
}

struct Manager {
    run_dir: PathBuf,
    enrolment: Arc<dyn Enrolment>,
    kit: Arc<Kit>,
    pods: Pods,
    sandboxes: HashMap<String, Sandbox>,
    waiting: HashMap<Ticket, Waiting>,
    next_ticket: Ticket,
    work: JoinSet<Ended>,
    groups: Groups,
    connected: bool,
    counts: watch::Sender<Counts>,
}

/// Who waits for a ticket.
enum Waiting {
    Plugin(oneshot::Sender<Response>),
    Binary(oneshot::Sender<Result<(), String>>),
}

/// How a task ended: the sandbox that it had comes back, and the machine hears of it.
struct Ended {
    sandbox: Option<(String, Sandbox)>,
    event: Option<Event>,
}

impl Manager {
    async fn run(mut self, mut sources: Sources) {
        let mut changed = self.enrolment.changed();
        enrolment_file::write(&self.run_dir, self.enrolment.table());
        loop {
            tokio::select! {
                () = sources.stop.cancelled() => break,
                event = sources.holder_events.recv() => match event {
                    Some(HolderEvent::Connected(items)) => self.adopt(items),
                    Some(HolderEvent::Lost) => self.connected = false,
                    Some(HolderEvent::Superseded) | None => {
                        tracing::info!("a newer agent has taken over");
                        sources.stop.cancel();
                        let _ = self.kit.events.send(PodEvent::Superseded).await;
                        break;
                    }
                },
                Some(call) = sources.called.recv() => self.call(call),
                Some(add) = sources.added.recv() => self.add(add.record, add.netns, Waiting::Binary(add.reply)),
                Ok(()) = changed.changed() => {
                    changed.mark_unchanged();
                    enrolment_file::write(&self.run_dir, self.enrolment.table());
                    self.on(Event::EnrolmentChanged);
                }
                Some(ended) = self.work.join_next() => self.ended(ended),
            }
            let (captured, pending, known) = self.pods.counts();
            let now = Counts { captured, pending, known, holder: self.connected };
            self.counts.send_if_modified(|counts| std::mem::replace(counts, now) != now);
        }
        // Work is dropped, not awaited: each step is a transaction, and the next agent starts from the holder's
        // record of what is done.
        self.work.shutdown().await;
    }

    /// After a (re)connect: learn what the holder has, and give it what it lost.
    fn adopt(&mut self, items: Vec<Held>) {
        self.connected = true;
        let mut held = Vec::new();
        let mut groups = Vec::new();
        for item in items {
            match item {
                Held::Pod(pod) => {
                    held.push(pod.record.container_id.clone());
                    self.found(pod);
                }
                Held::Group { key, sockets } => {
                    groups.push(key.clone());
                    self.groups.lock().entry(key).or_insert(sockets);
                }
            }
        }
        self.give_back(&held, &groups);
    }

    fn found(&mut self, pod: HeldPod) {
        let HeldPod { record, netns, listeners, captured } = pod;
        let id = record.container_id.clone();
        // Listeners without rules: an agent died on the way. Either way there is something to take back.
        let captured = captured || listeners.is_some();
        if self.pods.records().any(|known| known.container_id == id) {
            return; // ours since before the connection broke
        }
        self.sandboxes.insert(id, Sandbox::found(record.clone(), netns, listeners, captured));
        self.on(Event::Found { record, captured });
    }

    /// A holder that crashed and came back empty gets the same sockets again: no accept queue is lost as long as
    /// one of the two lives. Those in work are given by their work's next step, which fails and is tried again.
    fn give_back(&mut self, held: &[String], groups: &[GroupKey]) {
        let missing = self.sandboxes.values().filter(|s| !held.contains(&s.record.container_id));
        for sandbox in missing {
            self.work.spawn(work::remember(self.kit.clone(), sandbox.held()));
        }
        let lost: Vec<(GroupKey, Vec<OwnedFd>)> = self
            .groups
            .lock()
            .iter()
            .filter(|(key, _)| !groups.contains(key))
            .filter_map(|(key, fds)| {
                let copies: io::Result<Vec<OwnedFd>> = fds.iter().map(OwnedFd::try_clone).collect();
                Some((key.clone(), copies.ok()?))
            })
            .collect();
        for (key, sockets) in lost {
            self.work.spawn(work::remember_group(self.kit.clone(), key, sockets));
        }
    }

    fn call(&mut self, call: Call) {
        match call.command {
            Command::Add(attachment) => match call.netns {
                Some(netns) => self.add(record(attachment), netns, Waiting::Plugin(call.reply)),
                None => answer(call.reply, refuse(Code::InvalidEnvironment, "no network namespace".into())),
            },
            Command::Check(attachment) => {
                let record = record(attachment);
                let checked = self
                    .pods
                    .check(&record.container_id, &record, &|r| self.enrolment.decide(&r.namespace, &r.name));
                answer(call.reply, response(checked));
            }
            Command::Del { container_id } => {
                self.on(Event::Deleted { id: container_id });
                answer(call.reply, Response::Ok);
            }
            Command::Gc { valid } => {
                self.on(Event::OnlyThese(valid.into_iter().map(|v| v.container_id).collect()));
                answer(call.reply, Response::Ok);
            }
            Command::Status => answer(call.reply, self.status()),
        }
    }

    fn status(&self) -> Response {
        let not_ready = |msg: &str| refuse(Code::NotAvailable, msg.into());
        match (self.connected, self.enrolment.table().is_some()) {
            (true, true) => Response::Ok,
            (false, _) => not_ready("the agent has no connection to its holder"),
            (_, false) => not_ready("the agent does not know yet which pods are enrolled"),
        }
    }

    fn add(&mut self, record: PodRecord, netns: Netns, waiting: Waiting) {
        let id = record.container_id.clone();
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.waiting.insert(ticket, waiting);
        for (patience, event) in
            [(DECISION_PATIENCE, Event::DecisionOverdue(ticket)), (ADD_PATIENCE, Event::Overdue(ticket))]
        {
            self.after(patience, event);
        }
        let known = self.pods.records().any(|r| r.container_id == id);
        if !known {
            let sandbox = Sandbox::new(record.clone(), netns);
            // So that the next agent knows the pod too, enrolled or not. Not waited for: capture asks again.
            self.work.spawn(work::remember(self.kit.clone(), sandbox.held()));
            self.sandboxes.insert(id, sandbox);
        }
        self.on(Event::Added { record, ticket });
    }

    fn on(&mut self, event: Event) {
        let enrolment = self.enrolment.clone();
        let actions = self.pods.on(event, &|record| enrolment.decide(&record.namespace, &record.name));
        for action in actions {
            self.perform(action);
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Capture { id, config } => {
                let lost = Event::CaptureEnded { id: id.clone(), result: Err("no network namespace".into()) };
                let Some(sandbox) = self.sandboxes.remove(&id) else { return self.after(RETRY_FIRST, lost) };
                let kit = self.kit.clone();
                self.work.spawn(async move {
                    let (sandbox, result) = work::capture(&kit, sandbox, &config).await;
                    let event = Some(Event::CaptureEnded { id: id.clone(), result });
                    Ended { sandbox: Some((id, sandbox)), event }
                });
            }
            Action::Release { id } => {
                let lost = Event::ReleaseEnded { id: id.clone(), result: Ok(()) };
                let Some(sandbox) = self.sandboxes.remove(&id) else { return self.after(RETRY_FIRST, lost) };
                let kit = self.kit.clone();
                self.work.spawn(async move {
                    let (sandbox, result) = work::release(&kit, sandbox).await;
                    let event = Some(Event::ReleaseEnded { id: id.clone(), result });
                    Ended { sandbox: Some((id, sandbox)), event }
                });
            }
            Action::Forget { id } => {
                let sandbox = self.sandboxes.remove(&id);
                let kit = self.kit.clone();
                self.work.spawn(async move {
                    work::forget(&kit, id, sandbox).await;
                    Ended { sandbox: None, event: None }
                });
            }
            Action::Reply { ticket, result } => match self.waiting.remove(&ticket) {
                Some(Waiting::Plugin(reply)) => answer(reply, response(result)),
                Some(Waiting::Binary(reply)) => drop(reply.send(result)),
                None => {}
            },
            Action::RetryLater { id, attempt } => {
                let pause = RETRY_FIRST.saturating_mul(1 << attempt.min(16)).min(RETRY_LAST);
                self.after(pause, Event::Retry { id });
            }
        }
    }

    fn after(&mut self, pause: Duration, event: Event) {
        self.work.spawn(async move {
            sleep(pause).await;
            Ended { sandbox: None, event: Some(event) }
        });
    }

    fn ended(&mut self, ended: Result<Ended, tokio::task::JoinError>) {
        let Ok(Ended { sandbox, event }) = ended else {
            tracing::error!("work on a pod panicked");
            return;
        };
        if let Some((id, sandbox)) = sandbox {
            self.sandboxes.insert(id, sandbox);
        }
        if let Some(
            Event::CaptureEnded { id, result: Err(reason) } | Event::ReleaseEnded { id, result: Err(reason) },
        ) = &event
        {
            tracing::warn!(sandbox = %id, %reason, "a pod is not as it should be; trying again");
        }
        if let Some(event) = event {
            self.on(event);
        }
    }
}

fn record(attachment: Attachment) -> PodRecord {
    PodRecord {
        container_id: attachment.container_id,
        namespace: attachment.pod.namespace,
        name: attachment.pod.name,
        uid: attachment.pod.uid,
        ips: attachment.ips,
        annotations: BTreeMap::new(),
    }
}

fn response(result: Result<(), String>) -> Response {
    match result {
        Ok(()) => Response::Ok,
        Err(reason) => refuse(Code::TryAgainLater, format!("weft: {reason}")),
    }
}

fn answer(reply: oneshot::Sender<Response>, response: Response) {
    let _ = reply.send(response); // a plugin that gave up needs no answer
}

/// Nanoseconds of the wall clock: orders agents on one node. Two that start in one instant cannot be.
fn started_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
