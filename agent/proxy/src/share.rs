//! One tenant's share of a worker: a pod's or a Gateway's connections, run round-robin with those of the others.
//!
//! Every task of a connection is spawned through its [`Share`]. A share has an executor of its own, driven by one
//! task of the worker's runtime; that task runs what is ready for one time slice, then goes to the end of the
//! worker's queue. So a pod with ten thousand busy connections gets the same slice as a pod with one.

use crate::{
    context::{Limits, ShareKey},
    drain::Drain,
};
use async_task::{Runnable, Task};
use futures_util::{FutureExt, task::AtomicWaker};
use parking_lot::Mutex;
use slab::Slab;
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    panic::AssertUnwindSafe,
    rc::{Rc, Weak},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// How long a share's ready tasks run before the next share's turn. A single poll may overrun it: whatever moves
/// bytes in a loop yields by itself.
pub const SLICE: Duration = Duration::from_micros(100);
/// A peer that answers slowly gives its handshake's turn to others after this time: else a few dozen that never
/// answer would keep everybody out.
const TURN_MAX: Duration = Duration::from_millis(250);

/// A share on one worker.
pub struct Share {
    key: ShareKey,
    /// Tasks ready to run. Shared with their wakers, which may be called on any thread.
    queue: Arc<Queue>,
    /// Every task that has not ended, so that [`Share::close`] can end it; `None` once closed.
    tasks: RefCell<Option<Slab<Task<()>>>>,
    limits: ShareLimits,
    handshakes: Arc<Semaphore>,
    connections: Cell<usize>,
    idle: Notify,
    load: Arc<AtomicUsize>,
    drain: Drain,
    counters: Counters,
}

/// What bounds a share on one worker.
#[derive(Clone, Copy, Debug)]
pub struct ShareLimits {
    /// Open downstream connections.
    pub connections_max: usize,
    /// TLS handshakes under way.
    pub handshakes_max: usize,
    /// See [`SLICE`].
    pub slice: Duration,
}

impl From<&Limits> for ShareLimits {
    fn from(limits: &Limits) -> Self {
        Self { connections_max: limits.connections_max, handshakes_max: limits.handshakes_max, slice: SLICE }
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
    /// Turns taken.
    pub slices: Cell<u64>,
    /// Turns that ended with tasks still ready.
    pub slices_full: Cell<u64>,
    /// Time spent running, in nanoseconds.
    pub busy_ns: Cell<u64>,
}

fn add(cell: &Cell<u64>, n: u64) {
    cell.set(cell.get().wrapping_add(n));
}

impl Share {
    /// A share whose tasks run on this thread's runtime from now on. `load` counts the worker's open connections.
    #[must_use]
    pub fn start(key: ShareKey, limits: ShareLimits, drain: Drain, load: Arc<AtomicUsize>) -> Rc<Self> {
        let queue = Arc::new(Queue::default());
        let share = Rc::new(Self {
            key,
            queue: queue.clone(),
            tasks: RefCell::new(Some(Slab::new())),
            limits,
            handshakes: Arc::new(Semaphore::new(limits.handshakes_max)),
            connections: Cell::new(0),
            idle: Notify::new(),
            load,
            drain,
            counters: Counters::default(),
        });
        let weak = Rc::downgrade(&share);
        tokio::task::spawn_local(std::future::poll_fn(move |cx| drive(&queue, &weak, limits.slice, cx)));
        share
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

    /// Runs a task of one of the share's connections. A panic ends that task only. After [`Share::close`] the task
    /// is dropped unrun.
    pub fn spawn(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
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
        slot.insert(task);
        runnable.schedule();
    }

    fn forget(&self, id: usize) {
        let task = self.tasks.borrow_mut().as_mut().and_then(|tasks| tasks.try_remove(id));
        if let Some(task) = task {
            task.detach();
        }
    }

    /// For hyper: runs what it spawns in this share.
    #[must_use]
    pub fn executor(self: &Rc<Self>) -> ShareExecutor {
        ShareExecutor(self.clone())
    }

    /// Admits a connection, or `None` (counted) at the limit. The guard counts it until dropped.
    #[must_use]
    pub fn admit(self: &Rc<Self>) -> Option<ConnectionGuard> {
        if self.connections.get() >= self.limits.connections_max {
            add(&self.counters.refused, 1);
            return None;
        }
        self.connections.set(self.connections.get() + 1);
        self.load.fetch_add(1, Ordering::Relaxed);
        add(&self.counters.connections, 1);
        Some(ConnectionGuard { share: self.clone() })
    }

    /// Open connections.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.get()
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
            if self.connections.get() == 0 {
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
        loop {
            let ready = self.queue.ready.lock().pop_front();
            if ready.is_none() {
                break;
            }
        }
        self.queue.closed.store(true, Ordering::Release);
        self.queue.waker.wake();
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
            .field("connections", &self.connections)
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

/// One open connection.
#[derive(Debug)]
pub struct ConnectionGuard {
    share: Rc<Share>,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let left = self.share.connections.get() - 1;
        self.share.connections.set(left);
        self.share.load.fetch_sub(1, Ordering::Relaxed);
        if left == 0 {
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

/// Ready tasks of one share, first come first served.
#[derive(Default)]
struct Queue {
    ready: Mutex<VecDeque<Runnable>>,
    /// Whether the driver sleeps and wants to be woken by the next push.
    asleep: AtomicBool,
    waker: AtomicWaker,
    closed: AtomicBool,
}

impl Queue {
    fn push(&self, task: Runnable) {
        self.ready.lock().push_back(task);
        if self.asleep.swap(false, Ordering::AcqRel) {
            self.waker.wake();
        }
    }

    /// Runs what is ready until nothing is, or the slice is over. True if tasks are left.
    fn run(&self, begin: Instant, slice: Duration) -> bool {
        loop {
            let Some(task) = self.ready.lock().pop_front() else { return false };
            task.run();
            // The whole share is one tokio task: once tokio's cooperative budget of this poll is spent, every
            // socket in here answers "pending" and wakes itself, so going on would only spin.
            if begin.elapsed() >= slice || !tokio::task::coop::has_budget_remaining() {
                return !self.ready.lock().is_empty();
            }
        }
    }
}

/// One turn of the share. Sleeps at no cost while nothing is ready; ends when the share is closed or gone.
fn drive(queue: &Queue, share: &Weak<Share>, slice: Duration, cx: &mut Context<'_>) -> Poll<()> {
    if queue.closed.load(Ordering::Acquire) {
        return Poll::Ready(());
    }
    let begin = Instant::now();
    let mut more = queue.run(begin, slice);
    if !more {
        queue.waker.register(cx.waker());
        queue.asleep.store(true, Ordering::Release);
        // A push between the last look and the store has seen an awake driver: look again.
        more = !queue.ready.lock().is_empty();
    }
    if let Some(share) = share.upgrade() {
        add(&share.counters.slices, 1);
        add(&share.counters.slices_full, u64::from(more));
        add(&share.counters.busy_ns, begin.elapsed().as_nanos() as u64);
    }
    if more {
        // The other shares' turn. tokio's own yield wakes only after a look at the sockets: woken at once, a busy
        // share would keep events of the others waiting for `EVENT_INTERVAL` slices.
        queue.asleep.store(false, Ordering::Release);
        let _ = std::pin::pin!(tokio::task::yield_now()).poll(cx);
    }
    Poll::Pending
}

#[cfg(test)]
mod tests;
