//! Signs of life of a tunnel's other end: who waits for them, and the task that looks for them.
//!
//! When to ask and what silence means is decided by [`Liveness`]; this carries it out. A tunnel that nobody waits on has
//! one timer of ten seconds.

use crate::nodes::Node;
use h2::{Ping, PingPong};
use std::{
    cell::{Cell, RefCell},
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
    time::Instant,
};
use weft_core::timing::{Liveness, Silence};

/// How often a tunnel in use is looked at.
const TICK: Duration = Duration::from_millis(100);
/// Looks without a new request after which a tunnel is not in use: one that is asked every few milliseconds must not be
/// woken for each.
const LINGER: u32 = 3;

/// What is known of the other end's signs of life.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    /// Counts up with what comes in.
    heard: Cell<u64>,
    silence: Cell<Silence>,
    /// Somebody wants to know, although nobody waits on this tunnel.
    asked: Cell<bool>,
    /// The task looks every [`TICK`].
    watched: Cell<bool>,
    /// Waits begun, ever.
    begun: Cell<u64>,
    waiting: RefCell<Waiting>,
    look: Notify,
}

/// Who waits for an answer.
#[derive(Debug, Default)]
struct Waiting {
    slots: Vec<Option<Waker>>,
    free: Vec<usize>,
}

impl Pulse {
    /// How silent the other end is.
    pub(crate) fn silence(&self) -> Silence {
        self.silence.get()
    }

    /// Ends when the other end is as silent as `limit`. As long as it lives, an answer is waited for.
    pub(crate) fn wait(self: &Rc<Self>, limit: Silence) -> Wait {
        let mut waiting = self.waiting.borrow_mut();
        let slot = waiting.free.pop().unwrap_or_else(|| {
            waiting.slots.push(None);
            waiting.slots.len() - 1
        });
        self.begun.set(self.begun.get() + 1);
        if !self.watched.replace(true) {
            self.look.notify_one();
        }
        Wait { pulse: Rc::clone(self), slot, limit }
    }

    /// Asks for a sign of life.
    pub(crate) fn ask(&self) {
        self.asked.set(true);
        self.look.notify_one();
    }

    /// How many waits were begun, if any goes on.
    fn waits(&self) -> Option<u64> {
        let waiting = self.waiting.borrow();
        (waiting.slots.len() > waiting.free.len()).then(|| self.begun.get())
    }

    fn set(&self, silence: Silence) {
        if self.silence.replace(silence) < silence {
            let wakers: Vec<_> =
                self.waiting.borrow_mut().slots.iter_mut().filter_map(Option::take).collect();
            wakers.into_iter().for_each(Waker::wake);
        }
    }
}

/// See [`Pulse::wait`].
#[derive(Debug)]
pub(crate) struct Wait {
    pulse: Rc<Pulse>,
    slot: usize,
    limit: Silence,
}

impl Future for Wait {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.pulse.silence.get() >= self.limit {
            return Poll::Ready(());
        }
        match &mut self.pulse.waiting.borrow_mut().slots[self.slot] {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            slot => *slot = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let mut waiting = self.pulse.waiting.borrow_mut();
        waiting.slots[self.slot] = None;
        waiting.free.push(self.slot);
    }
}

/// Looks for signs of life and asks for them, as long as there may be any. `node` is where the other end is.
pub(crate) async fn watch(ping: Option<PingPong>, pulse: &Pulse, node: Option<&Node>) {
    let Some(mut ping) = ping else {
        return std::future::pending().await;
    };
    let mut liveness = Liveness::new(Instant::now().into_std());
    let mut next = Liveness::FIRST_LOOK;
    let mut sent: Option<Instant> = None;
    let (mut begun, mut unused) = (0, 0);
    loop {
        tokio::select! {
            () = tokio::time::sleep(next) => {}
            () = pulse.look.notified() => {}
            pong = std::future::poll_fn(|cx| ping.poll_pong(cx)), if sent.is_some() => match (pong, sent.take()) {
                (Ok(_), Some(at)) => liveness.answered(at.elapsed()),
                _ => return,
            },
        }
        let now = Instant::now();
        let check = liveness.check(now.into_std(), pulse.heard.get(), pulse.waits(), pulse.asked.take());
        // One that is under way will be answered for both.
        if check.ping && sent.is_none() {
            if ping.send_ping(Ping::opaque()).is_err() {
                return;
            }
            sent = Some(now);
        }
        let before = pulse.silence();
        pulse.set(check.silence);
        if let Some(node) = node {
            if check.heard {
                node.heard(now.into_std());
            } else if check.silence >= Silence::Suspect {
                node.silent(check.quiet_since, now.into_std());
            } else if check.silence == Silence::Doubted && before < Silence::Doubted {
                node.ask();
            }
        }
        if check.silence == Silence::Dead {
            return;
        }
        unused = if pulse.begun.get() == begun { unused + 1 } else { 0 };
        begun = pulse.begun.get();
        let in_use = pulse.waits().is_some() || unused < LINGER;
        pulse.watched.set(in_use);
        next = if in_use { check.next.min(TICK) } else { check.next };
    }
}

/// A byte stream that tells a [`Pulse`] what comes in.
#[derive(Debug)]
pub(crate) struct Heard<Io> {
    io: Io,
    pulse: Rc<Pulse>,
}

impl<Io> Heard<Io> {
    pub(crate) const fn new(io: Io, pulse: Rc<Pulse>) -> Self {
        Self { io, pulse }
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Heard<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let pulse = &self.pulse;
        pulse.heard.set(pulse.heard.get() + 1);
        if pulse.silence.get() != Silence::None {
            pulse.look.notify_one();
        }
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Heard<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
