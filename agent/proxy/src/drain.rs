//! Ending in order: first "finish what you have begun", a little later "wait for no more", shortly before the grace time is
//! over "end when you are quiet", then "end now".
//!
//! Everything that lives long (a connection, a tunnel, an accept loop) holds a [`Drain`]. HTTP/2 sends GOAWAY, HTTP/1.1
//! tells its client with the next answer and closes idle connections after a linger, tunnels are replaced. Copied
//! connections go on until they end, and in the last part of the grace time end where nothing seems to be under way
//! ([`weft_core::timing::quiet`]), or at the deadline.

use std::{
    pin::pin,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use weft_core::timing::quiet;

/// How long an idle HTTP/1.1 connection of a drain waits for one more request, to be answered with `Connection: close`.
/// HTTP/1.1 cannot tell a client beforehand: closed at once, it fails the request that is on its way. Clients that are
/// in use ask again within seconds; more would only hold up the drain.
pub const LINGER_MAX: Duration = Duration::from_secs(5);

/// How long those that are cut have to tell their peers so. It takes each a turn; one that is dropped before would seem to
/// have ended in order.
const CUT_MAX: Duration = Duration::from_millis(250);
/// Longer than any drain: what is told to wait for longer waits for this.
const GRACE_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// A signal in four steps. Clones share it; a [`Drain::child`] also ends by itself (a pod that leaves).
#[derive(Clone, Debug, Default)]
pub struct Drain {
    soft: CancellationToken,
    late: CancellationToken,
    last: CancellationToken,
    hard: CancellationToken,
    deadline: Arc<Deadline>,
}

/// When the last step comes. Told with the third.
#[derive(Debug, Default)]
struct Deadline {
    at: OnceLock<Instant>,
    /// Of the signal that this one follows.
    parent: Option<Arc<Self>>,
}

impl Deadline {
    /// The earlier of its own and its parents'.
    fn earliest(&self) -> Option<Instant> {
        let above = self.parent.as_ref().and_then(|parent| parent.earliest());
        self.at.get().copied().into_iter().chain(above).min()
    }
}

impl Drain {
    /// A signal that nobody has given yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A signal that follows this one, and can be given alone.
    #[must_use]
    pub fn child(&self) -> Self {
        Self {
            soft: self.soft.child_token(),
            late: self.late.child_token(),
            last: self.last.child_token(),
            hard: self.hard.child_token(),
            deadline: Arc::new(Deadline { at: OnceLock::new(), parent: Some(self.deadline.clone()) }),
        }
    }

    /// First step: take nothing new, end at the next boundary.
    pub fn begin(&self) {
        self.soft.cancel();
    }

    /// Second step: who has nothing under way waits for no more.
    pub fn end_idle(&self) {
        self.soft.cancel();
        self.late.cancel();
    }

    /// Third step: who cannot know whether something is under way ends when it seems not to be, before `deadline`.
    pub fn end_quiet(&self, deadline: Instant) {
        self.end_idle();
        // Told before: the earlier word counts.
        let _ = self.deadline.at.set(deadline);
        self.last.cancel();
    }

    /// Fourth step: end now.
    pub fn end_now(&self) {
        self.end_quiet(Instant::now());
        self.hard.cancel();
    }

    /// Begins, waits until `done` or for `grace`, then ends what is left; what lies idle ends after half of that, or
    /// [`LINGER_MAX`], what is quiet in the last part of it. True if `done` came in time.
    pub async fn run(&self, grace: Duration, done: impl Future<Output = ()>) -> bool {
        self.begin();
        let (begin, grace) = (Instant::now(), grace.min(GRACE_MAX));
        let deadline = begin + grace;
        let steps = async {
            sleep_until(begin + LINGER_MAX.min(grace / 2)).await;
            self.end_idle();
            sleep_until(deadline - quiet::last_part(grace)).await;
            self.end_quiet(deadline);
            sleep_until(deadline).await;
        };
        let mut done = pin!(done);
        let in_time = tokio::select! {
            biased;
            () = &mut done => true,
            () = steps => false,
        };
        self.end_now();
        if !in_time {
            // Whoever takes longer is dropped by the caller.
            let _ = timeout(CUT_MAX, done).await;
        }
        in_time
    }

    /// Whether the first step was taken.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.soft.is_cancelled()
    }

    /// Waits for the first step.
    pub async fn draining(&self) {
        self.soft.cancelled().await;
    }

    /// Waits for the second step: idle connections have waited for long enough.
    pub async fn lingered(&self) {
        self.late.cancelled().await;
    }

    /// Waits for the third step: the last part of the grace time has begun. Gives its end.
    pub async fn closing(&self) -> Instant {
        self.last.cancelled().await;
        self.deadline.earliest().unwrap_or_else(Instant::now)
    }

    /// Waits for the fourth step: the deadline has passed.
    pub async fn expired(&self) {
        self.hard.cancelled().await;
    }
}

#[cfg(test)]
mod tests;
