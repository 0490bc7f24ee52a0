//! One tenant's share of a worker: a pod's or a Gateway's connections, served as fairly as those of the others.
//!
//! Every task of a connection is spawned through its [`Share`]. A worker runs its shares in turn ([`scheduler`]): the
//! one that was served least goes first, for one slice of time and of bytes. So a pod with ten thousand busy connections
//! gets no more than a pod with one, and a pod that needs little goes before one that takes all it can get.

use crate::{
    context::{Limits, ShareKey},
    drain::Drain,
};
use async_task::Task;
use buffers::Buffers;
use descriptors::Descriptors;
use futures_util::FutureExt;
use memory::{Account, Memory};
use scheduler::{Queue, Scheduler};
use slab::Slab;
use std::{
    cell::{Cell, RefCell},
    panic::AssertUnwindSafe,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use weft_core::timing::RetryBudget;

pub mod buffers;
pub mod descriptors;
mod fair;
pub mod memory;
pub mod scheduler;
pub mod timing;
pub(crate) mod turn;

/// A peer that answers slowly gives its handshake's turn to others after this time: else a few dozen that never
/// answer would keep everybody out.
const TURN_MAX: Duration = Duration::from_millis(250);

/// A share on one worker.
pub struct Share {
    key: ShareKey,
    /// Keeps it running.
    _scheduler: Rc<Scheduler>,
    /// Tasks ready to run. Shared with their wakers, which may be called on any thread.
    queue: Arc<Queue>,
    /// Every task that has not ended, so that [`Share::close`] can end it; `None` once closed.
    tasks: RefCell<Option<Slab<Running>>>,
    /// Polls of connections' tasks so far: when one ran last.
    polls: Rc<Cell<u64>>,
    limits: ShareLimits,
    handshakes: Arc<Semaphore>,
    /// By [`Kind`].
    connections: [Cell<usize>; 4],
    idle: Notify,
    load: Arc<Load>,
    account: Arc<Account>,
    drain: Drain,
    buffers: Rc<Buffers>,
    counters: Counters,
    retries: RefCell<RetryBudget>,
}

/// A task that has not ended.
#[derive(Debug)]
struct Running {
    _task: Task<()>,
    /// Of a connection: when it ran last, in polls of its share.
    ran: Option<Rc<Cell<u64>>>,
}

/// What a worker's shares count together.
#[derive(Debug, Default)]
pub struct Load {
    /// Open connections of the worker.
    pub connections: AtomicUsize,
    /// What the process's connections hold.
    pub memory: Arc<Memory>,
    /// Those of Gateways.
    pub descriptors: Arc<Descriptors>,
}

/// What bounds a share on one worker.
#[derive(Clone, Copy, Debug)]
pub struct ShareLimits {
    /// Open downstream connections of one [`Kind`].
    pub connections_max: usize,
    /// TLS handshakes under way.
    pub handshakes_max: usize,
    /// Bytes read and not yet written.
    pub buffered_max: usize,
}

impl From<&Limits> for ShareLimits {
    fn from(limits: &Limits) -> Self {
        Self {
            connections_max: limits.connections_max,
            handshakes_max: limits.handshakes_max,
            buffered_max: limits.buffered_max,
        }
    }
}

/// Counts since the share was made.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections admitted.
    pub connections: Cell<u64>,
    /// Connections refused because of `connections_max`.
    pub refused: Cell<u64>,
    /// Handshakes that had to wait for their turn.
    pub handshakes_queued: Cell<u64>,
    /// Tasks that ended by a panic.
    pub panics: Cell<u64>,
}

/// How a share has used its worker since it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Turns taken.
    pub turns: u64,
    /// Turns that ended with tasks still ready.
    pub turns_cut: u64,
    /// Time spent running.
    pub busy: Duration,
}

fn add(cell: &Cell<u64>, n: u64) {
    cell.set(cell.get().wrapping_add(n));
}

impl Share {
    /// A share whose tasks `scheduler` runs from now on. `load` counts the worker's open connections.
    #[must_use]
    pub fn start(
        scheduler: &Rc<Scheduler>,
        key: ShareKey,
        limits: ShareLimits,
        drain: Drain,
        load: Arc<Load>,
    ) -> Rc<Self> {
        let account = load.memory.account(&key);
        Rc::new(Self {
            key,
            _scheduler: scheduler.clone(),
            queue: scheduler.queue(),
            tasks: RefCell::new(Some(Slab::new())),
            polls: Rc::default(),
            limits,
            handshakes: Arc::new(Semaphore::new(limits.handshakes_max)),
            connections: Default::default(),
            idle: Notify::new(),
            load,
            drain,
            buffers: Buffers::new(limits.buffered_max, Some(account.clone())),
            account,
            counters: Counters::default(),
            retries: RefCell::default(),
        })
    }

    /// Whose it is.
    #[must_use]
    pub const fn key(&self) -> &ShareKey {
        &self.key
    }

    /// The signal for everything that runs in this share.
    #[must_use]
    pub const fn drain(&self) -> &Drain {
        &self.drain
    }

    /// Counts.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The retries that its requests may still ask for.
    #[must_use]
    pub(crate) const fn retries(&self) -> &RefCell<RetryBudget> {
        &self.retries
    }

    /// What its workload holds on all workers.
    #[must_use]
    pub const fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// What its copied connections hold.
    #[must_use]
    pub const fn buffers(&self) -> &Rc<Buffers> {
        &self.buffers
    }

    /// What a copied connection needs of its share.
    #[must_use]
    pub(crate) const fn copying(&self) -> (&Drain, &Rc<Buffers>) {
        (&self.drain, &self.buffers)
    }

    /// Its part of the worker's time.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let counts = &self.queue.counts;
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        Usage {
            turns: read(&counts.turns),
            turns_cut: read(&counts.turns_cut),
            busy: Duration::from_nanos(read(&counts.busy_ns)),
        }
    }

    /// Runs a task of one of the share's connections. A panic ends that task only. After [`Share::close`] the task
    /// is dropped unrun.
    pub fn spawn(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        self.start_task(task, None);
    }

    /// As [`Self::spawn`], of a connection that [`Self::shed`] may end.
    pub fn spawn_connection(self: &Rc<Self>, connection: impl Future<Output = ()> + 'static) {
        let ran = Rc::new(Cell::new(self.polls.get()));
        let task = Stamped { task: connection, polls: self.polls.clone(), ran: ran.clone() };
        self.start_task(task, Some(ran));
    }

    /// Ends connections that hold about `bytes`: those that ran least lately.
    pub fn shed(&self, bytes: u64) {
        let mut ended = Vec::new();
        if let Some(tasks) = self.tasks.borrow_mut().as_mut() {
            let mut connections: Vec<(u64, usize)> =
                tasks.iter().filter_map(|(id, running)| Some((running.ran.as_ref()?.get(), id))).collect();
            connections.sort_unstable();
            let count = usize::try_from(bytes / Kind::Out.bytes()).unwrap_or(usize::MAX).max(1);
            ended.extend(connections.into_iter().take(count).filter_map(|(_, id)| tasks.try_remove(id)));
        }
        // Dropped here, outside of the borrow: what they hold may look at the share.
        drop(ended);
    }

    fn start_task(self: &Rc<Self>, task: impl Future<Output = ()> + 'static, ran: Option<Rc<Cell<u64>>>) {
        let mut tasks = self.tasks.borrow_mut();
        let Some(tasks) = tasks.as_mut() else { return };
        let slot = tasks.vacant_entry();
        let id = slot.key();
        let share = self.clone();
        // Combinators, because an async block would hold the task twice: as given and as awaited.
        let guarded = AssertUnwindSafe(task).catch_unwind().map(move |ended| {
            if ended.is_err() {
                add(&share.counters.panics, 1);
                tracing::error!(share = ?share.key, "a connection's task panicked; the connection is closed");
            }
            share.forget(id);
        });
        let queue = self.queue.clone();
        let (runnable, task) = async_task::spawn_local(guarded, move |ready| queue.push(ready));
        slot.insert(Running { _task: task, ran });
        runnable.schedule();
    }

    fn forget(&self, id: usize) {
        let task = self.tasks.borrow_mut().as_mut().and_then(|tasks| tasks.try_remove(id));
        if let Some(Running { _task: task, .. }) = task {
            task.detach();
        }
    }

    /// For hyper: runs what it spawns in this share.
    #[must_use]
    pub fn executor(self: &Rc<Self>) -> ShareExecutor {
        ShareExecutor(self.clone())
    }

    /// Admits a connection, or `None` (counted) when there are too many of its kind. The guard counts it until dropped.
    #[must_use]
    pub fn admit(self: &Rc<Self>, kind: Kind) -> Option<ConnectionGuard> {
        if !self.take(kind) {
            return None;
        }
        self.load.connections.fetch_add(1, Ordering::Relaxed);
        if matches!(self.key, ShareKey::Gateway(_)) {
            self.load.descriptors.take();
        }
        add(&self.counters.connections, 1);
        Some(ConnectionGuard { share: self.clone(), kind })
    }

    /// Counts one more of a kind, if there may be.
    fn take(&self, kind: Kind) -> bool {
        let open = &self.connections[kind as usize];
        // Those without a certificate are bounded by [`crate::transport::unproved`], where an older one gives way.
        if kind != Kind::Unproved && open.get() >= self.limits.connections_max {
            add(&self.counters.refused, 1);
            return false;
        }
        open.set(open.get() + 1);
        self.account.take(kind.bytes());
        true
    }

    /// Open connections, of all kinds.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.iter().map(Cell::get).sum()
    }

    /// Waits for a handshake's turn: a flood queues behind its own share only.
    pub async fn handshake(&self) -> HandshakePermit {
        if let Ok(permit) = self.handshakes.clone().try_acquire_owned() {
            return HandshakePermit { _permit: Some(permit) };
        }
        add(&self.counters.handshakes_queued, 1);
        // An error would mean a closed semaphore; it is never closed.
        HandshakePermit { _permit: self.handshakes.clone().acquire_owned().await.ok() }
    }

    /// Waits until no connection is open.
    pub async fn idle(&self) {
        loop {
            let notified = self.idle.notified();
            if self.connections() == 0 {
                return;
            }
            notified.await;
        }
    }

    /// Ends every task of the share at once, wherever it stands.
    pub fn close(&self) {
        // Taken out first: what is dropped here may look at the share.
        let tasks = self.tasks.borrow_mut().take();
        // Cancelling puts each task in the queue a last time; dropped there, it drops its future.
        drop(tasks);
        self.queue.clear();
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.close();
    }
}

impl std::fmt::Debug for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Share")
            .field("key", &self.key)
            .field("connections", &self.connections())
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

/// Runs hyper's tasks (HTTP/2 streams) in a share.
#[derive(Clone, Debug)]
pub struct ShareExecutor(Rc<Share>);

impl<F: Future + 'static> hyper::rt::Executor<F> for ShareExecutor {
    fn execute(&self, task: F) {
        self.0.spawn(task.map(drop));
    }
}

/// What a connection is counted as. Each kind has its own bound, so that what others do to a pod does not keep it from
/// calling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The workload's own: a captured pod's, or a Gateway's client's.
    Out,
    /// Made to a pod by others: in plaintext, or as a stream of a tunnel.
    In,
    /// A tunnel to a pod; each of its streams is a connection [`Kind::In`].
    Tunnel,
    /// To a pod's HBONE port, by somebody who has not shown a certificate yet.
    Unproved,
}

impl Kind {
    /// What a connection is reckoned to hold, in bytes: its buffers and its tasks', and for a tunnel those of TLS and HTTP/2.
    /// Little of it is there while the connection lies idle.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Out | Self::In => 8 << 10,
            Self::Unproved => 16 << 10,
            Self::Tunnel => 48 << 10,
        }
    }
}

pin_project_lite::pin_project! {
    /// A connection's task that notes when it runs.
    struct Stamped<F> {
        #[pin]
        task: F,
        polls: Rc<Cell<u64>>,
        ran: Rc<Cell<u64>>,
    }
}

impl<F: Future<Output = ()>> Future for Stamped<F> {
    type Output = ();

    fn poll(self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<()> {
        let this = self.project();
        let now = this.polls.get() + 1;
        this.polls.set(now);
        this.ran.set(now);
        this.task.poll(cx)
    }
}

/// One open connection.
#[derive(Debug)]
pub struct ConnectionGuard {
    share: Rc<Share>,
    kind: Kind,
}

impl ConnectionGuard {
    /// Counts it as another kind from now on; `None` (counted) when there are too many of that kind.
    #[must_use]
    pub fn become_kind(mut self, kind: Kind) -> Option<Self> {
        if self.kind == kind {
            return Some(self);
        }
        if !self.share.take(kind) {
            return None;
        }
        let before = std::mem::replace(&mut self.kind, kind);
        let open = &self.share.connections[before as usize];
        open.set(open.get() - 1);
        self.share.account.give(before.bytes());
        Some(self)
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let open = &self.share.connections[self.kind as usize];
        open.set(open.get() - 1);
        self.share.account.give(self.kind.bytes());
        self.share.load.connections.fetch_sub(1, Ordering::Relaxed);
        if matches!(self.share.key, ShareKey::Gateway(_)) {
            self.share.load.descriptors.give();
        }
        if self.share.connections() == 0 {
            self.share.idle.notify_waiters();
        }
    }
}

/// The right to do one handshake; give it back as soon as the handshake is over.
#[derive(Debug)]
pub struct HandshakePermit {
    _permit: Option<OwnedSemaphorePermit>,
}

impl HandshakePermit {
    /// Does the handshake. A peer that answers slowly gives its turn to others after [`TURN_MAX`].
    pub async fn during<F: Future>(self, handshake: F) -> F::Output {
        let mut handshake = std::pin::pin!(handshake);
        if let Ok(done) = tokio::time::timeout(TURN_MAX, handshake.as_mut()).await {
            return done;
        }
        drop(self);
        handshake.await
    }
}

/// Lets the other tasks of the share go first: for loops that would otherwise run for as long as there is work.
pub(crate) async fn pause() {
    let mut paused = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut paused, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests;
