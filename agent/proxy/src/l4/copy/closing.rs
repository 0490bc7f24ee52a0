//! A copied connection during a drain: its pauses are learned, in the last part it is ended in order at a quiet moment, and
//! at the deadline it is cut.

use super::{Both, Chunks, End, Flow, FlowState, Pipe};
use crate::drain::Drain;
use std::{
    future::poll_fn,
    pin::pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Instant, sleep_until};
use weft_core::timing::quiet::{Pauses, Verdict};

/// Between two looks that must both find a connection quiet. What came in before the first may still be on its way through
/// the kernel and the tunnel's task, which both have their turn in between.
const SECOND_LOOK: Duration = Duration::from_millis(1);

/// Copies on, and ends when the moment has come or `drain` says so.
pub(super) async fn close<D: Pipe, U: Pipe>(both: &mut Both<D, U>, drain: &Drain) -> End {
    let ended = tokio::select! {
        biased;
        ended = until_quiet(both, drain) => ended,
        () = drain.expired() => Some(End::Expired),
    };
    if let Some(end) = ended {
        return end;
    }
    // Both ends get the time that is left to answer with an end of their own: until then a tunnel has not passed on ours.
    tokio::select! {
        biased;
        () = finish(both) => {}
        () = drain.expired() => {}
    }
    End::Quiet
}

/// Copies until the connection is quiet in the last part of the drain (`None`), or has ended by itself.
async fn until_quiet<D: Pipe, U: Pipe>(both: &mut Both<D, U>, drain: &Drain) -> Option<End> {
    let mut pauses = Pauses::new(both.talk, Instant::now().into_std());
    let mut closing = pin!(drain.closing());
    let mut last_part = None;
    let mut timer = pin!(sleep_until(Instant::now()));
    let mut was_quiet = false;
    loop {
        let now = Instant::now();
        let verdict = match last_part {
            None => Verdict::Busy,
            Some((deadline, part)) => {
                let left = Instant::saturating_duration_since(&deadline, now);
                pauses.judge(both.is_empty(), now.into_std(), (left, part))
            }
        };
        let wait = match verdict {
            Verdict::End if was_quiet => return None,
            Verdict::End => Some(SECOND_LOOK),
            Verdict::Wait(rest) => Some(rest),
            Verdict::Busy => None,
        };
        was_quiet = verdict == Verdict::End;
        if let Some(wait) = wait {
            timer.as_mut().reset(now + wait);
        }
        let mut at = now;
        tokio::select! {
            biased;
            ended = poll_fn(|cx| {
                // Before the bytes are passed on: that wakes their reader, which may take the processor from us.
                at = Instant::now();
                both.poll_moved(cx)
            }) => {
                if ended.is_some() {
                    return ended;
                }
                pauses.moved(both.talk, at.into_std());
                was_quiet = false;
            }
            deadline = closing.as_mut(), if last_part.is_none() => {
                last_part = Some((deadline, deadline.saturating_duration_since(Instant::now())));
            }
            () = timer.as_mut(), if wait.is_some() => {}
        }
    }
}

/// Ends both directions, and waits until both sides have, too. The client comes first: what it sends until it knows is
/// lost.
async fn finish<D: Pipe, U: Pipe>(both: &mut Both<D, U>) {
    let Both { downstream, upstream, up, down, .. } = both;
    (up.state, down.state) = (FlowState::Ending, FlowState::Ending);
    let (mut up_over, mut down_over) = (false, false);
    poll_fn(|cx| {
        down_over = down_over || down.poll_finish(upstream, downstream, cx).is_ready();
        up_over = up_over || up.poll_finish(downstream, upstream, cx).is_ready();
        if up_over && down_over { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

impl<D: Pipe, U: Pipe> Both<D, U> {
    /// Whether both directions are open and nothing waits to be passed on.
    fn is_empty(&self) -> bool {
        [&self.up, &self.down].iter().all(|flow| flow.state == FlowState::Open && flow.waiting.is_empty())
    }

    /// Copies until something has moved (`None`) or all has ended.
    fn poll_moved(&mut self, cx: &mut Context<'_>) -> Poll<Option<End>> {
        let before = self.progress();
        match self.poll(cx) {
            Poll::Ready(end) => Poll::Ready(Some(end)),
            Poll::Pending if self.progress() != before => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Changes whenever bytes are taken or passed on.
    fn progress(&self) -> (u64, usize) {
        (self.up.moved + self.down.moved, self.up.waiting.len() + self.down.waiting.len())
    }
}

impl Flow {
    /// Passes the end on, then waits for the source's. What comes until then nobody can be told of any more; left
    /// unread, it would turn our end into a reset.
    fn poll_finish<S: Pipe, T: Pipe>(
        &mut self,
        source: &mut S,
        sink: &mut T,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        if self.state == FlowState::Ending {
            // A sink that fails has no use for an end.
            let _ = ready!(sink.poll_finish(cx));
            self.state = FlowState::Ended;
        }
        let mut late = Chunks::default();
        match ready!(source.poll_fill(cx, &mut late, &mut self.size)) {
            Ok(0) | Err(_) => Poll::Ready(()),
            Ok(n) => {
                source.consumed(n);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}
