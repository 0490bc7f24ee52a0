//! `timeouts` of a rule (GEP-1742) as points in time.

use crate::model::Timeouts;
use std::time::{Duration, Instant};

/// The time limits of one exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    request: Option<Instant>,
    backend_request: Option<Duration>,
}

/// A point in time and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// When.
    pub at: Instant,
    /// Which timeout it is.
    pub kind: TimeoutKind,
}

/// Which timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeoutKind {
    /// `timeouts.request`: the whole exchange, tries and waits included. Answer 504; never retry.
    Request,
    /// `timeouts.backendRequest`: one try. May be retried ([`super::Outcome::TryTimeout`]), else 504.
    BackendRequest,
}

impl TimeoutKind {
    /// The label in logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request_timeout",
            Self::BackendRequest => "backend_request_timeout",
        }
    }
}

impl Deadlines {
    /// Starts the clock, when the request's head has been read. A duration too long for the clock is none.
    #[must_use]
    pub fn start(timeouts: &Timeouts, now: Instant) -> Self {
        let request = timeouts.request.and_then(|d| now.checked_add(d));
        Self { request, backend_request: timeouts.backend_request }
    }

    /// The deadline of the whole exchange.
    #[must_use]
    pub fn request(&self) -> Option<Deadline> {
        self.request.map(|at| Deadline { at, kind: TimeoutKind::Request })
    }

    /// The deadline of a try that begins now: the nearer of both; on a tie the request's, which ends retrying.
    #[must_use]
    pub fn of_try(&self, now: Instant) -> Option<Deadline> {
        let one = self.backend_request.and_then(|d| now.checked_add(d));
        match (self.request, one) {
            (Some(whole), Some(one)) if one < whole => {
                Some(Deadline { at: one, kind: TimeoutKind::BackendRequest })
            }
            (None, Some(at)) => Some(Deadline { at, kind: TimeoutKind::BackendRequest }),
            (Some(_), _) => self.request(),
            (None, None) => None,
        }
    }

    /// How much of the request's time is left; `None` is endless, zero is over.
    #[must_use]
    pub fn remaining(&self, now: Instant) -> Option<Duration> {
        self.request.map(|at| at.saturating_duration_since(now))
    }
}
