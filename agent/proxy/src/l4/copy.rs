//! Copies both directions of a connection until both have ended.
//!
//! Half-close is kept: the end of one direction is passed on, the other goes on. An error of either side resets the
//! other. After each burst the task yields, so that a bulk flow does not hold up the others of its share; the sides
//! themselves stop when the share's turn is over.
//!
//! During a drain it is learned how the client pauses, and in the last part of it both directions are ended where nothing
//! seems to be under way (`closing`). Before that only who spoke last is kept.

mod closing;

use super::{
    chunks::Chunks,
    pipe::{Pipe, READ_MAX, ReadSize},
};
use crate::{
    drain::Drain,
    share::buffers::{Buffers, Held},
};
use bytes::Bytes;
use std::{
    future::poll_fn,
    io,
    rc::Rc,
    task::{Context, Poll, ready},
};
use weft_core::timing::quiet::Talk;

/// Bytes moved in one turn of the task. One large connection's bursts are another one's waiting time.
const BURST: usize = READ_MAX;

/// What was copied, and how it ended.
#[derive(Debug)]
pub struct Copied {
    /// Bytes from the downstream.
    pub received: u64,
    /// Bytes to the downstream.
    pub sent: u64,
    /// How it ended.
    pub end: End,
}

/// How a copy ended.
#[derive(Debug)]
pub enum End {
    /// Both directions ended in order.
    Clean,
    /// The downstream's connection failed; the upstream's was reset.
    Downstream(io::Error),
    /// The upstream's connection failed; the downstream's was reset.
    Upstream(io::Error),
    /// We ended both directions in order: nothing seemed to be under way, and the drain's deadline was near.
    Quiet,
    /// The drain's deadline passed; both were reset.
    Expired,
    /// It is not admitted any more; both were reset.
    Revoked,
}

/// Copies until both directions have ended. `early` was read from the downstream before; what waits to be written
/// counts against `buffers`. Both sides are closed when this returns: in order, or by a reset.
pub async fn bidirectional<D: Pipe, U: Pipe>(
    downstream: D,
    upstream: U,
    early: Bytes,
    of_share: (&Drain, &Rc<Buffers>),
) -> Copied {
    bidirectional_while(downstream, upstream, early, of_share, std::future::pending()).await
}

/// The same, until `revoked` completes: then both sides are reset, whatever is under way.
pub async fn bidirectional_while<D: Pipe, U: Pipe>(
    downstream: D,
    upstream: U,
    early: Bytes,
    (drain, buffers): (&Drain, &Rc<Buffers>),
    revoked: impl Future<Output = ()>,
) -> Copied {
    let mut up = Flow::new(buffers);
    let mut talk = Talk::default();
    talk.heard(!early.is_empty(), false);
    up.moved = early.len() as u64;
    up.waiting.push(early);
    let mut both = Both { downstream, upstream, up, down: Flow::new(buffers), talk };
    let copied = tokio::select! {
        biased;
        end = poll_fn(|cx| both.poll(cx)) => Ok(end),
        () = revoked => Ok(End::Revoked),
        () = drain.draining() => Err(()),
    };
    let end = match copied {
        Ok(end) => end,
        // Boxed: its state is not held before.
        Err(()) => Box::pin(closing::close(&mut both, drain)).await,
    };
    if !matches!(end, End::Clean | End::Quiet) {
        both.downstream.abort();
        both.upstream.abort();
    }
    Copied { received: both.up.moved, sent: both.down.moved, end }
}

struct Both<D, U> {
    downstream: D,
    upstream: U,
    up: Flow,
    down: Flow,
    talk: Talk,
}

/// One direction.
#[derive(Debug)]
struct Flow {
    waiting: Chunks,
    /// The share's account of `waiting`.
    held: Held,
    size: ReadSize,
    moved: u64,
    state: FlowState,
    /// Why the source gives no more, which is told when what waits is written.
    failed: Option<io::Error>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FlowState {
    Open,
    /// The source has ended; what waits is still to be written.
    Ending,
    /// The end was passed on.
    Ended,
}

/// Which side failed.
enum Failed {
    Source(io::Error),
    Sink(io::Error),
}

impl<D: Pipe, U: Pipe> Both<D, U> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let before = (self.up.moved, self.down.moved);
        let polled = self.poll_flows(cx);
        self.talk.heard(self.up.moved != before.0, self.down.moved != before.1);
        polled
    }

    fn poll_flows(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let Self { downstream, upstream, up, down, talk: _ } = self;
        let a = match up.poll(downstream, upstream, cx) {
            Poll::Ready(Err(Failed::Source(error))) => return Poll::Ready(End::Downstream(error)),
            Poll::Ready(Err(Failed::Sink(error))) => return Poll::Ready(End::Upstream(error)),
            Poll::Ready(Ok(())) => true,
            Poll::Pending => false,
        };
        let b = match down.poll(upstream, downstream, cx) {
            Poll::Ready(Err(Failed::Source(error))) => return Poll::Ready(End::Upstream(error)),
            Poll::Ready(Err(Failed::Sink(error))) => return Poll::Ready(End::Downstream(error)),
            Poll::Ready(Ok(())) => true,
            Poll::Pending => false,
        };
        if a && b { Poll::Ready(End::Clean) } else { Poll::Pending }
    }
}

impl Flow {
    fn new(buffers: &Rc<Buffers>) -> Self {
        Self {
            waiting: Chunks::default(),
            held: Held::of(buffers),
            size: ReadSize::default(),
            moved: 0,
            state: FlowState::Open,
            failed: None,
        }
    }

    fn poll<S: Pipe, T: Pipe>(
        &mut self,
        source: &mut S,
        sink: &mut T,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Failed>> {
        let polled = self.poll_burst(source, sink, cx);
        self.held.set(self.waiting.len());
        polled
    }

    fn poll_burst<S: Pipe, T: Pipe>(
        &mut self,
        source: &mut S,
        sink: &mut T,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Failed>> {
        let mut burst = BURST;
        loop {
            if !self.waiting.is_empty()
                && self.poll_write(source, sink, cx).map_err(Failed::Sink)?.is_pending()
            {
                return self.poll_ahead(source, cx);
            }
            match self.state {
                FlowState::Open => {}
                FlowState::Ending => {
                    ready!(sink.poll_finish(cx)).map_err(Failed::Sink)?;
                    self.state = FlowState::Ended;
                }
                FlowState::Ended => return Poll::Ready(Ok(())),
            }
            if self.state == FlowState::Ended {
                return Poll::Ready(Ok(()));
            }
            if burst == 0 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if let Some(error) = self.failed.take() {
                return Poll::Ready(Err(Failed::Source(error)));
            }
            // Idle from here on if nothing has come: hold no memory.
            self.waiting = Chunks::default();
            if self.held.is_spent() {
                self.size = ReadSize::default();
            }
            let asked = self.size.get();
            let n =
                ready!(source.poll_fill(cx, &mut self.waiting, &mut self.size)).map_err(Failed::Source)?;
            self.took(n);
            if n > 0 && n < asked && sink.joins_end() {
                self.look_for_end(source, cx);
            }
            burst = burst.saturating_sub(n);
        }
    }

    /// After a read that emptied the source: it is ready once more only if it has ended (a server that answers and
    /// closes), or more has come just now.
    fn look_for_end<S: Pipe>(&mut self, source: &mut S, cx: &mut Context<'_>) {
        match source.poll_fill(cx, &mut self.waiting, &mut self.size) {
            Poll::Ready(Ok(n)) => self.took(n),
            // What came before it is passed on first.
            Poll::Ready(Err(error)) => self.failed = Some(error),
            Poll::Pending => {}
        }
    }

    fn poll_write<S: Pipe, T: Pipe>(
        &mut self,
        source: &mut S,
        sink: &mut T,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let before = self.waiting.len();
        let written = sink.poll_drain(cx, &mut self.waiting, self.state == FlowState::Ending);
        source.consumed(before - self.waiting.len());
        written
    }

    /// While the sink is slow.
    fn poll_ahead<S: Pipe>(&mut self, source: &mut S, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        while self.state == FlowState::Open && self.failed.is_none() {
            let n = ready!(source.poll_fill_ahead(cx, &mut self.waiting)).map_err(Failed::Source)?;
            self.took(n);
        }
        Poll::Pending
    }

    fn took(&mut self, n: usize) {
        self.moved += n as u64;
        if n == 0 {
            self.state = FlowState::Ending;
        }
    }
}

#[cfg(test)]
mod tests;
