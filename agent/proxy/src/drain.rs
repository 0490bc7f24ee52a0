//! Ending in order: first "finish what you have begun", a little later "wait for no more", then, after a grace time,
//! "end now".
//!
//! Everything that lives long (a connection, a tunnel, an accept loop) holds a [`Drain`]. HTTP/2 sends GOAWAY, HTTP/1.1
//! tells its client with the next answer and closes idle connections after a linger, tunnels are replaced, opaque streams
//! go on until they end or the deadline passes.

use std::{pin::pin, time::Duration};
use tokio_util::sync::CancellationToken;

/// How long an idle HTTP/1.1 connection of a drain waits for one more request, to be answered with `Connection: close`.
/// HTTP/1.1 cannot tell a client beforehand: closed at once, it fails the request that is on its way. Clients that are
/// in use ask again within seconds; more would only hold up the drain.
pub const LINGER_MAX: Duration = Duration::from_secs(5);

/// A signal in three steps. Clones share it; a [`Drain::child`] also ends by itself (a pod that leaves).
#[derive(Clone, Debug, Default)]
pub struct Drain {
    soft: CancellationToken,
    late: CancellationToken,
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
        Self { soft: self.soft.child_token(), late: self.late.child_token(), hard: self.hard.child_token() }
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

    /// Third step: end now.
    pub fn end_now(&self) {
        self.end_idle();
        self.hard.cancel();
    }

    /// Begins, waits until `done` or for `grace`, then ends what is left; what lies idle ends after half of that, or
    /// [`LINGER_MAX`]. True if `done` came in time.
    pub async fn run(&self, grace: Duration, done: impl Future<Output = ()>) -> bool {
        self.begin();
        let mut done = pin!(done);
        let ended = async {
            tokio::select! {
                biased;
                () = &mut done => return,
                () = tokio::time::sleep(LINGER_MAX.min(grace / 2)) => self.end_idle(),
            }
            done.await;
        };
        let in_time = tokio::time::timeout(grace, ended).await.is_ok();
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

    /// Waits for the second step: idle connections have waited for long enough.
    pub async fn lingered(&self) {
        self.late.cancelled().await;
    }

    /// Waits for the third step: the deadline has passed.
    pub async fn expired(&self) {
        self.hard.cancelled().await;
    }
}
