//! The streams of one HTTP/2 client, so that a Gateway can end those that carry nothing.
//!
//! hyper does not look at a body while a client's window is closed, so neither body can end such a stream: its task must be
//! ended, which resets it. A stream of gRPC may be quiet for as long as its client answers PING, which hyper sees to.

use super::conn::Conn;
use crate::{dial::Dial, share::ShareExecutor};
use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    rc::{Rc, Weak},
    task::{Context, Poll, Waker},
    time::Duration,
};

/// What is known of one stream.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    /// Something was carried since the last look.
    moved: Cell<bool>,
    /// For so long nothing was.
    quiet: Cell<Duration>,
    /// It may be quiet.
    exempt: Cell<bool>,
    over: Cell<bool>,
    task: RefCell<Option<Waker>>,
}

impl Activity {
    /// Something was carried, in either direction.
    pub(crate) fn moved(&self) {
        self.moved.set(true);
    }

    fn register(&self, task: &Waker) {
        let mut known = self.task.borrow_mut();
        if !known.as_ref().is_some_and(|known| known.will_wake(task)) {
            *known = Some(task.clone());
        }
    }

    /// It may be quiet for as long as it likes.
    pub(crate) fn exempt(&self) {
        self.exempt.set(true);
    }
}

/// All streams of a connection.
#[derive(Debug, Default)]
pub(crate) struct All {
    streams: RefCell<Vec<Weak<Activity>>>,
    /// Whose task is being polled.
    current: RefCell<Option<Rc<Activity>>>,
}

impl All {
    /// The stream whose task asks.
    pub(crate) fn current(&self) -> Option<Rc<Activity>> {
        self.current.borrow().clone()
    }

    /// Ends what has carried nothing for `limit`, looked at every `tick`.
    pub(crate) fn end_quiet(&self, tick: Duration, limit: Duration) {
        self.streams.borrow_mut().retain(|stream| {
            let Some(stream) = stream.upgrade() else { return false };
            let moved = stream.moved.replace(false) || stream.exempt.get();
            stream.quiet.set(if moved { Duration::ZERO } else { stream.quiet.get() + tick });
            if stream.quiet.get() >= limit {
                stream.over.set(true);
                if let Some(task) = stream.task.take() {
                    task.wake();
                }
            }
            !stream.over.get()
        });
    }

    fn begin(&self) -> Rc<Activity> {
        let stream = Rc::new(Activity::default());
        let mut all = self.streams.borrow_mut();
        // Ended ones are forgotten at each look, and whenever there would be room for nobody else.
        if all.len() == all.capacity() {
            all.retain(|stream| stream.strong_count() > 0);
        }
        all.push(Rc::downgrade(&stream));
        stream
    }
}

/// Runs the tasks of a client's streams.
pub(crate) struct Streams<D: Dial> {
    conn: Rc<Conn<D>>,
    executor: ShareExecutor,
}

impl<D: Dial> Streams<D> {
    /// In the connection's share.
    pub(crate) fn new(conn: &Rc<Conn<D>>) -> Self {
        Self { conn: Rc::clone(conn), executor: conn.share.executor() }
    }
}

impl<D: Dial> Clone for Streams<D> {
    fn clone(&self) -> Self {
        Self { conn: Rc::clone(&self.conn), executor: self.executor.clone() }
    }
}

impl<D: Dial, F: Future + 'static> hyper::rt::Executor<F> for Streams<D> {
    fn execute(&self, task: F) {
        if self.conn.edge.is_none() {
            return self.executor.execute(task);
        }
        let (conn, activity) = (Rc::clone(&self.conn), self.conn.streams.begin());
        self.executor.execute(Stream { task, conn, activity });
    }
}

pin_project_lite::pin_project! {
    /// A stream's task. No `async` block: that would have room for hyper's task, which is large, twice.
    struct Stream<F, D: Dial> {
        #[pin]
        task: F,
        conn: Rc<Conn<D>>,
        activity: Rc<Activity>,
    }
}

impl<F: Future, D: Dial> Future for Stream<F, D> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        this.activity.register(cx.waker());
        if this.activity.over.get() {
            return Poll::Ready(());
        }
        let streams = &this.conn.streams;
        *streams.current.borrow_mut() = Some(Rc::clone(this.activity));
        let polled = this.task.poll(cx).map(drop);
        *streams.current.borrow_mut() = None;
        polled
    }
}
