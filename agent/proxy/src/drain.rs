//! Ending in order: first "finish what you have begun", then, after a grace time, "end now".
//!
//! Everything that lives long (a connection, a tunnel, an accept loop) holds a [`Drain`]. HTTP closes at a message
//! boundary or sends GOAWAY, tunnels are replaced, opaque streams go on until they end or the deadline passes.

use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A signal in two steps. Clones share it; a [`Drain::child`] also ends by itself (a pod that leaves).
#[derive(Clone, Debug, Default)]
pub struct Drain {
    soft: CancellationToken,
    hard: CancellationToken,
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
        Self { soft: self.soft.child_token(), hard: self.hard.child_token() }
    }

    /// First step: take nothing new, end at the next boundary.
    pub fn begin(&self) {
        self.soft.cancel();
    }

    /// Second step: end now.
    pub fn end_now(&self) {
        self.soft.cancel();
        self.hard.cancel();
    }

    /// Begins, waits until `done` or for `grace`, then ends what is left. True if `done` came in time.
    pub async fn run(&self, grace: Duration, done: impl Future<Output = ()>) -> bool {
        self.begin();
        let in_time = tokio::time::timeout(grace, done).await.is_ok();
        self.end_now();
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

    /// Waits for the second step: the deadline has passed.
    pub async fn expired(&self) {
        self.hard.cancelled().await;
    }
}
