//! A worker's shares in turn: one task of the worker's runtime that runs the ready tasks of one share after the other.
//!
//! The share that was served least goes first ([`super::fair`]). Its turn ends with its tasks, its slice of time, or
//! the bytes that a turn may move ([`super::turn`]), whichever is first. At least every [`LOOK`] the sockets are looked
//! at, so that whoever has become ready meanwhile is found, and goes before those that keep the worker busy.

use super::{fair::Fair, timing::Timing, turn};
use async_task::Runnable;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

/// How long a share's ready tasks run before the next share's turn while several are served. A single poll may overrun
/// it; what moves bytes in a loop does not.
pub const SLICE: Duration = Duration::from_micros(50);
/// The same while nobody else is: fewer looks at the sockets.
const SLICE_ALONE: Duration = Duration::from_micros(100);
/// Sockets are looked at after this long at most, but for a single poll's overrun.
const LOOK: Duration = SLICE;
/// A worker is taken for crowded this long after its turn went from one share to another: as long as a pod that sends a
/// few hundred requests a second needs to show.
const CROWDED_FOR: Duration = Duration::from_millis(20);

/// Time since some moment. Given, so that tests can make it up.
pub(super) type Clock = Box<dyn Fn() -> Duration>;

/// Runs the shares of one worker, for as long as one of them or somebody else holds it.
#[derive(Debug)]
pub struct Scheduler {
    hub: Arc<Hub>,
}

impl Scheduler {
    /// Runs shares on this thread's runtime from now on; how long they wait is counted in `timing`.
    #[must_use]
    pub fn start(timing: Arc<Timing>) -> Rc<Self> {
        let start = Instant::now();
        Self::with_clock(timing, Box::new(move || start.elapsed()))
    }

    pub(super) fn with_clock(timing: Arc<Timing>, clock: Clock) -> Rc<Self> {
        let hub = Arc::new(Hub::default());
        let mut driver = Driver {
            hub: hub.clone(),
            fair: Fair::default(),
            clock,
            timing,
            last: 0,
            crowded_until: Duration::ZERO,
            woken: Vec::new(),
        };
        tokio::task::spawn_local(poll_fn(move |cx| driver.poll(cx)));
        Rc::new(Self { hub })
    }

    /// What a new share puts its ready tasks into.
    pub(super) fn queue(&self) -> Arc<Queue> {
        let id = self.hub.ids.fetch_add(1, Ordering::Relaxed) + 1;
        Arc::new(Queue { id, hub: self.hub.clone(), ready: Mutex::default(), counts: Counts::default() })
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.hub.closed.store(true, Ordering::Release);
        self.hub.waker.wake();
    }
}

/// Where shares that have become ready are put, from any thread.
#[derive(Debug, Default)]
struct Hub {
    woken: Mutex<Vec<Arc<Queue>>>,
    /// Whether the driver sleeps and wants to be woken.
    asleep: AtomicBool,
    waker: AtomicWaker,
    closed: AtomicBool,
    ids: AtomicU64,
}

impl Hub {
    fn put(&self, queue: Arc<Queue>) {
        self.woken.lock().push(queue);
        if self.asleep.swap(false, Ordering::AcqRel) {
            self.waker.wake();
        }
    }

    /// Goes to sleep, unless a share became ready meanwhile.
    fn sleep(&self, cx: &Context<'_>) -> bool {
        self.waker.register(cx.waker());
        self.asleep.store(true, Ordering::Release);
        // A share put there between the last look and the store has seen an awake driver: look again.
        let empty = self.woken.lock().is_empty();
        if !empty {
            self.asleep.store(false, Ordering::Release);
        }
        empty
    }
}

/// Ready tasks of one share, first come first served.
#[derive(Debug)]
pub(super) struct Queue {
    id: u64,
    hub: Arc<Hub>,
    ready: Mutex<Ready>,
    pub(super) counts: Counts,
}

#[derive(Debug, Default)]
struct Ready {
    tasks: VecDeque<Runnable>,
    /// Whether the driver knows that there are some.
    listed: bool,
}

/// Of one share, since it was made. Written by its worker only.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Virtual time, see [`Fair`].
    served: AtomicU64,
    pub(super) turns: AtomicU64,
    pub(super) turns_cut: AtomicU64,
    pub(super) busy_ns: AtomicU64,
}

impl Queue {
    /// A task is ready.
    pub(super) fn push(self: &Arc<Self>, task: Runnable) {
        let mut ready = self.ready.lock();
        ready.tasks.push_back(task);
        if !std::mem::replace(&mut ready.listed, true) {
            drop(ready);
            self.hub.put(self.clone());
        }
    }

    /// The next task; the driver forgets a share that has none.
    fn pop(&self) -> Option<Runnable> {
        let mut ready = self.ready.lock();
        let task = ready.tasks.pop_front();
        ready.listed = task.is_some();
        task
    }

    /// Whether there is another task; the driver forgets a share that has none.
    fn goes_on(&self) -> bool {
        let mut ready = self.ready.lock();
        ready.listed = !ready.tasks.is_empty();
        ready.listed
    }

    /// Drops every ready task unrun.
    pub(super) fn clear(&self) {
        loop {
            // Not under the lock: what is dropped may wake others of the share.
            let task = self.ready.lock().tasks.pop_front();
            if task.is_none() {
                return;
            }
        }
    }
}

/// The one task of the runtime that runs them all.
struct Driver {
    hub: Arc<Hub>,
    fair: Fair<(Arc<Queue>, Option<Duration>)>,
    clock: Clock,
    timing: Arc<Timing>,
    /// Whose turn it was.
    last: u64,
    crowded_until: Duration,
    /// Kept for its memory.
    woken: Vec<Arc<Queue>>,
}

impl Driver {
    /// Turns until nobody is ready or it is time to look at the sockets.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.hub.closed.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        let begin = (self.clock)();
        let mut now = begin;
        let look = loop {
            self.admit(now);
            let Some(((queue, since), served)) = self.fair.next() else {
                if self.hub.sleep(cx) {
                    break false;
                }
                continue;
            };
            if let Some(since) = since {
                self.timing.waits.add(now.saturating_sub(since));
            }
            let cut;
            (now, cut) = self.turn(queue, served, now);
            if cut || now.saturating_sub(begin) >= LOOK {
                break true;
            }
        };
        self.timing.stretches.add(now.saturating_sub(begin));
        if look {
            // tokio's own yield wakes only after a look at the sockets: woken at once, busy shares would keep events
            // of the others waiting for `EVENT_INTERVAL` stretches like this one.
            let _ = pin!(tokio::task::yield_now()).poll(cx);
        }
        Poll::Pending
    }

    /// Lists who has become ready.
    fn admit(&mut self, now: Duration) {
        std::mem::swap(&mut self.woken, &mut self.hub.woken.lock());
        for queue in self.woken.drain(..) {
            let served = queue.counts.served.load(Ordering::Relaxed);
            self.fair.wake((queue, Some(now)), served);
        }
    }

    /// One turn of a share. Gives the time of its end, and whether something cut it short.
    fn turn(&mut self, queue: Arc<Queue>, served: u64, begin: Duration) -> (Duration, bool) {
        let (slice, bytes) = self.bounds(queue.id, begin);
        turn::begin(bytes);
        let mut now = begin;
        let cut = loop {
            let Some(task) = queue.pop() else { break false };
            task.run();
            now = (self.clock)();
            // All shares are one task of tokio's: once its cooperative budget of this poll is spent, every socket
            // answers "pending" and wakes itself, so going on would only spin.
            let over = now.saturating_sub(begin) >= slice || turn::is_spent();
            if over || !tokio::task::coop::has_budget_remaining() {
                break true;
            }
        };
        turn::end();
        let more = cut && queue.goes_on();
        let ran = u64::try_from(now.saturating_sub(begin).as_nanos()).unwrap_or(u64::MAX);
        let counts = &queue.counts;
        add(&counts.turns, 1);
        add(&counts.turns_cut, u64::from(more));
        add(&counts.busy_ns, ran);
        let served = Fair::<()>::charged(served, ran);
        counts.served.store(served, Ordering::Relaxed);
        if more {
            self.fair.enter((queue, None), served);
        }
        (now, cut)
    }

    /// What a turn may take.
    fn bounds(&mut self, share: u64, now: Duration) -> (Duration, usize) {
        if self.last != share {
            self.crowded_until = if self.last == 0 { now } else { now + CROWDED_FOR };
            self.last = share;
        }
        if now < self.crowded_until { (SLICE, turn::CROWDED) } else { (SLICE_ALONE, turn::ALONE) }
    }
}

/// Adds to a number that only this thread writes.
fn add(number: &AtomicU64, n: u64) {
    number.store(number.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

#[cfg(test)]
mod tests;
