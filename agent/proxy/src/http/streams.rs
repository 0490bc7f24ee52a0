//! The streams of one HTTP/2 client, so that a Gateway can end those that carry nothing.
//!
//! hyper does not look at a body while a client's window is closed, so neither body can end such a stream: its task must be
//! ended, which resets it. A stream of gRPC may be quiet for as long as its client answers PING, which hyper sees to.

use super::conn::Conn;
use crate::{dial::Dial, share::ShareExecutor};
use futures_util::task::AtomicWaker;
use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    pin::pin,
    rc::{Rc, Weak},
    task::Poll,
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
    task: AtomicWaker,
}

impl Activity {
    /// Something was carried, in either direction.
    pub(crate) fn moved(&self) {
        self.moved.set(true);
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
                stream.task.wake();
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
    fn execute(&self, stream: F) {
        if self.conn.edge.is_none() {
            return self.executor.execute(stream);
        }
        let (conn, activity) = (Rc::clone(&self.conn), self.conn.streams.begin());
        self.executor.execute(async move {
            let mut stream = pin!(stream);
            poll_fn(|cx| {
                activity.task.register(cx.waker());
                if activity.over.get() {
                    return Poll::Ready(());
                }
                *conn.streams.current.borrow_mut() = Some(Rc::clone(&activity));
                let polled = stream.as_mut().poll(cx).map(drop);
                *conn.streams.current.borrow_mut() = None;
                polled
            })
            .await;
        });
    }
}
