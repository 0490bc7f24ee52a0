//! Worker threads: each a single-threaded runtime on which connections live and die.
//!
//! [`Workers::start`] makes the threads; [`Workers::run`] runs a closure on one of them, which is how everything
//! else (pods, Gateway listeners, drain) gets there.

use crate::{
    budgets::Tenant,
    context::{ShareKey, Shared, Source},
    dial::Dialer,
    drain::Drain,
    http::HttpWorker,
    loads::Loads,
    share::{Load, Share, ShareLimits, memory::Room, scheduler::Scheduler},
    telemetry::{Counter, WorkerTelemetry},
    transport::{handshakes::Handshakes, way::Detours},
    workload::LocalWorkload,
};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::{
    runtime::LocalOptions,
    sync::{mpsc, oneshot},
};
use tokio_util::sync::CancellationToken;
use weft_core::budget::{self, Budget};

/// Commands that may wait for a worker.
const COMMANDS_MAX: usize = 1024;
/// Tasks run between two looks at the sockets. A turn of a share takes up to its slice, so tokio's 61 would let
/// events wait for 6 ms.
const EVENT_INTERVAL: u32 = 16;

type Command = Box<dyn FnOnce(&Rc<Worker>) + Send>;

/// What the tasks of one worker reach. Never leaves its thread.
pub struct Worker {
    /// Index, from 0.
    pub id: usize,
    /// Process-wide state.
    pub shared: Arc<Shared>,
    /// Signal for everything on this worker.
    pub drain: Drain,
    /// Metrics, traces, access log.
    pub telemetry: Rc<WorkerTelemetry>,
    /// What the balancer knows of endpoints.
    pub loads: Rc<Loads>,
    /// Ports of pods whose agent takes tunnels on 15008 only.
    pub(crate) detours: Detours,
    /// What (Service, port)s without a declared protocol turned out to speak.
    pub learned: crate::l4::learn::Learned,
    /// Pods and Gateways, as this worker serves them.
    workloads: RefCell<HashMap<ShareKey, Rc<LocalWorkload>>>,
    /// All workers, for handing connections over.
    pub(crate) peers: Arc<Peers>,
    scheduler: Rc<Scheduler>,
    /// Made when first asked for, dropped with [`Worker::close`]: its dialer holds the worker.
    http: RefCell<Option<Rc<HttpWorker<Dialer>>>>,
    random: Cell<u64>,
}

impl Worker {
    fn new(id: usize, shared: Arc<Shared>, peers: Arc<Peers>) -> Rc<Self> {
        // The standard library's hasher is keyed at random: a seed without a dependency.
        let seed = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), id);
        let telemetry = shared.telemetry.worker();
        let scheduler = Scheduler::start(telemetry.timing());
        let loads = Loads::new(telemetry.clone(), shared.sticky.clone(), Some((peers.clone(), id)));
        Rc::new(Self {
            id,
            shared,
            telemetry,
            loads,
            drain: Drain::new(),
            detours: Detours::default(),
            learned: crate::l4::learn::Learned::default(),
            workloads: RefCell::default(),
            peers,
            scheduler,
            http: RefCell::default(),
            random: Cell::new(seed),
        })
    }

    /// Serves a workload from now on. One of that name that is here already passes its share on, with its connections:
    /// it is a Gateway whose identity has changed.
    pub(crate) fn introduce(&self, source: Source) -> Rc<LocalWorkload> {
        let key = source.share.clone();
        let share = match self.workload(&key) {
            Some(before) => {
                before.forget_upstreams();
                before.share.clone()
            }
            None => {
                let limits = ShareLimits::from(&self.shared.limits);
                let load = self.peers.handles[self.id].load.clone();
                Share::start(&self.scheduler, key.clone(), limits, self.drain.child(), load)
            }
        };
        let local = LocalWorkload::new(source, share);
        self.workloads.borrow_mut().insert(key, local.clone());
        local
    }

    /// A workload that this worker serves.
    pub(crate) fn workload(&self, key: &ShareKey) -> Option<Rc<LocalWorkload>> {
        self.workloads.borrow().get(key).cloned()
    }

    /// All of them.
    pub(crate) fn workloads(&self) -> Vec<Rc<LocalWorkload>> {
        self.workloads.borrow().values().cloned().collect()
    }

    /// Drains a workload on this worker and forgets it. Returns when its connections have ended or `grace` is over.
    pub async fn retire(&self, key: &ShareKey, grace: Duration) {
        // Taken out first: a pod of the same name that comes back meanwhile is another workload.
        let local = self.workloads.borrow_mut().remove(key);
        let Some(local) = local else { return };
        local.forget_upstreams();
        local.share.drain().run(grace, local.share.idle()).await;
        local.share.close();
        // What the drain's last requests have asked for.
        local.forget_upstreams();
    }

    /// Whether a workload may have another connection, as far as the node's memory goes. The workload that holds most of it
    /// yields, on every worker.
    pub(crate) fn has_room(&self, local: &LocalWorkload) -> bool {
        let account = local.share.account();
        match account.memory().room(account) {
            Room::Enough => return true,
            Room::None => {
                self.reached(&budget::TRAFFIC_MEMORY, Tenant::from(&local.source.share));
                return false;
            }
            Room::After(largest, bytes) => {
                self.reached(&budget::TRAFFIC_MEMORY, Tenant::from(&largest));
                let each = bytes / self.peers.count() as u64;
                for worker in 0..self.peers.count() {
                    let largest = largest.clone();
                    let shed = move |worker: &Rc<Self>| {
                        if let Some(local) = worker.workload(&largest) {
                            local.share.shed(each);
                        }
                    };
                    // A worker that has no room for the command will hear it the next time.
                    let _ = self.peers.try_run(worker, Box::new(shed));
                }
            }
        }
        true
    }

    /// Notes that a workload has reached one of its budgets.
    pub(crate) fn reached(&self, budget: &'static Budget, by: Tenant) {
        self.telemetry.count(Counter::LimitRefused);
        self.shared.budgets.reached(budget, by, Instant::now());
    }

    /// The HTTP side of this worker.
    pub fn http(self: &Rc<Self>) -> Rc<HttpWorker<Dialer>> {
        let make = || {
            let dialer = Dialer::new(self.clone());
            let loads = self.loads.clone();
            HttpWorker::new(self.shared.clone(), dialer, self.telemetry.clone(), loads, self.draw())
        };
        self.http.borrow_mut().get_or_insert_with(make).clone()
    }

    /// A random number, uniform over all of `u64` (SplitMix64: for balancing, not for secrets).
    pub fn draw(&self) -> u64 {
        let state = self.random.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
        self.random.set(state);
        let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Drains everything on this worker for at most `grace`.
    pub async fn drain(&self, grace: Duration) {
        let workloads = self.workloads();
        let idle = async {
            for local in &workloads {
                local.share.idle().await;
            }
        };
        self.drain.run(grace, idle).await;
    }

    fn close(&self) {
        self.drain.end_now();
        for local in self.workloads.take().into_values() {
            local.share.close();
        }
        self.http.take();
    }
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Ways to reach each worker.
#[derive(Debug)]
pub(crate) struct Peers {
    handles: Vec<Handle>,
    stop: CancellationToken,
    /// The thread for the tunnels' handshakes.
    pub(crate) handshakes: Handshakes,
}

#[derive(Debug)]
struct Handle {
    commands: mpsc::Sender<Command>,
    /// What its shares count together.
    load: Arc<Load>,
    /// Commands given back because the queue was full.
    refused: AtomicU64,
}

impl Peers {
    /// How many workers there are.
    pub(crate) const fn count(&self) -> usize {
        self.handles.len()
    }

    /// Runs `command` on a worker without waiting; gives it back when that worker's queue is full or it has ended.
    pub(crate) fn try_run(&self, worker: usize, command: Command) -> Result<(), Command> {
        let handle = &self.handles[worker];
        handle.commands.try_send(command).map_err(|error| {
            handle.refused.fetch_add(1, Ordering::Relaxed);
            error.into_inner()
        })
    }

    /// The worker that should take a connection accepted on `home`: another one only if it is clearly less busy,
    /// because handing over costs a wake-up.
    pub(crate) fn place(&self, home: usize) -> usize {
        let load = |i: usize| self.handles[i].load.connections.load(Ordering::Relaxed);
        let least = (0..self.handles.len()).min_by_key(|&i| load(i)).unwrap_or(home);
        if load(least) + 4 < load(home) { least } else { home }
    }
}

/// The worker threads.
#[derive(Debug)]
pub struct Workers {
    peers: Arc<Peers>,
    threads: Vec<JoinHandle<()>>,
}

/// The worker has ended.
#[derive(Debug, thiserror::Error)]
#[error("the worker has ended")]
pub struct WorkerGone;

impl Workers {
    /// Starts `count` threads (at least one).
    ///
    /// # Errors
    /// When the kernel gives no thread or no epoll instance.
    pub fn start(count: usize, shared: Arc<Shared>) -> io::Result<Self> {
        let mut handles = Vec::new();
        let mut queues = Vec::new();
        for _ in 0..count.max(1) {
            let (commands, queue) = mpsc::channel(COMMANDS_MAX);
            let load = Load {
                memory: shared.memory.clone(),
                descriptors: shared.descriptors.clone(),
                ..Load::default()
            };
            handles.push(Handle { commands, load: Arc::new(load), refused: AtomicU64::new(0) });
            queues.push(queue);
        }
        let stop = CancellationToken::new();
        let (handshakes, thread) = Handshakes::start(stop.clone())?;
        let peers = Arc::new(Peers { handles, stop, handshakes });
        let mut threads = vec![thread];
        for (id, queue) in queues.into_iter().enumerate() {
            let (shared, peers) = (shared.clone(), peers.clone());
            let (ready, started) = std::sync::mpsc::channel();
            let body = move || run_worker(|| Worker::new(id, shared, peers), queue, &ready);
            threads.push(std::thread::Builder::new().name(format!("weft-worker-{id}")).spawn(body)?);
            started.recv().map_err(io::Error::other)??;
        }
        Ok(Self { peers, threads })
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.peers.handles.len()
    }

    /// Open connections of each worker.
    #[must_use]
    pub fn loads(&self) -> Vec<usize> {
        self.peers.handles.iter().map(|h| h.load.connections.load(Ordering::Relaxed)).collect()
    }

    /// Hand-overs of connections that did not happen because a worker's queue was full; each was served where it was
    /// accepted instead.
    #[must_use]
    pub fn handovers_refused(&self) -> u64 {
        self.peers.handles.iter().map(|h| h.refused.load(Ordering::Relaxed)).sum()
    }

    /// Handshakes that were done on a worker because too many were waiting for their thread.
    #[must_use]
    pub fn handshakes_inline(&self) -> u64 {
        self.peers.handshakes.inline()
    }

    /// Runs an async closure on a worker and waits for its answer. The future may use what lives on that thread
    /// (`Rc`); its answer travels back.
    ///
    /// # Errors
    /// When the worker has ended.
    pub async fn run<T, F, Fut>(&self, worker: usize, work: F) -> Result<T, WorkerGone>
    where
        T: Send + 'static,
        F: FnOnce(Rc<Worker>) -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let command: Command = Box::new(move |worker| {
            let work = work(worker.clone());
            tokio::task::spawn_local(async move {
                // The caller may have stopped waiting; the work is done all the same.
                let _ = answer.send(work.await);
            });
        });
        let commands = &self.peers.handles.get(worker).ok_or(WorkerGone)?.commands;
        commands.send(command).await.map_err(|_| WorkerGone)?;
        answered.await.map_err(|_| WorkerGone)
    }

    /// Runs the same on every worker, and waits for all.
    ///
    /// # Errors
    /// When a worker has ended.
    pub async fn run_all<T, F, Fut>(&self, work: F) -> Result<Vec<T>, WorkerGone>
    where
        T: Send + 'static,
        F: FnOnce(Rc<Worker>) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = T> + 'static,
    {
        futures_util::future::try_join_all((0..self.count()).map(|i| self.run(i, work.clone()))).await
    }

    /// Lets everything on every worker end by itself for at most `grace`, then ends the rest.
    pub async fn drain(&self, grace: Duration) {
        // An ended worker has nothing to drain.
        let _ = self.run_all(move |worker| async move { worker.drain(grace).await }).await;
    }

    /// Ends all workers at once and waits for their threads.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.peers.stop.cancel();
        for thread in self.threads.drain(..) {
            // A worker's own panic was logged by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.end();
    }
}

/// A worker's thread: serves its commands until told to stop.
fn run_worker(
    make: impl FnOnce() -> Rc<Worker>,
    mut queue: mpsc::Receiver<Command>,
    ready: &std::sync::mpsc::Sender<io::Result<()>>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .event_interval(EVENT_INTERVAL)
        .build_local(LocalOptions::default());
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            // Nobody listens only if the starter is gone too.
            let _ = ready.send(Err(error));
            return;
        }
    };
    runtime.block_on(async move {
        let worker = make();
        let _ = ready.send(Ok(()));
        let stop = worker.peers.stop.clone();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                command = queue.recv() => match command {
                    Some(command) => command(&worker),
                    None => break,
                },
            }
        }
        worker.close();
    });
}
