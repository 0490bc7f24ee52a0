//! Outlier ejection: an endpoint (or a node) that fails gets no requests for a short while, then one probing request,
//! whose outcome restores it or ejects it for longer.

use std::time::{Duration, Instant};

/// The first ejection. Short, because most failures are: a process that restarts is back within a second.
const BASE: Duration = Duration::from_millis(500);
/// The longest ejection. It bounds how long an endpoint that is well again goes without requests.
const MAX: Duration = Duration::from_secs(4);
/// How long a probing request may go without an outcome before another one is sent.
const PROBE_PATIENCE: Duration = Duration::from_secs(1);
/// An endpoint that did well for so long after an ejection starts from [`BASE`] again.
const FORGET: Duration = Duration::from_secs(10);
/// How long one sign of silence of a node counts; it is renewed for as long as the silence lasts.
const SILENCE: Duration = Duration::from_millis(1500);
/// Strikes that eject. See [`Fault`].
const STRIKES: u8 = 10;

/// What went wrong with a request or connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No connection came about: refused, unreachable, no answer, wrong identity. Ejects at once: whoever is there
    /// serves nobody.
    Unreached,
    /// A connection that was reset, or went silent, before the answer. Three in a row eject: one may be the request's
    /// own fault.
    Broken,
    /// The application itself answered 5xx (or gRPC `UNAVAILABLE`). Five in a row eject.
    ServerError,
}

impl Fault {
    const fn strikes(self) -> u8 {
        match self {
            Self::Unreached => STRIKES,
            Self::Broken => 4,
            Self::ServerError => 2,
        }
    }
}

/// Whether an endpoint takes requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It does.
    In,
    /// It is ejected.
    Out,
    /// Its time is over: the next request probes it.
    Due,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    In,
    /// `since` tells outcomes of requests that began before the ejection, which prove nothing, from those after it.
    Out {
        since: Instant,
        until: Instant,
    },
}

/// The failures of one endpoint or node, as one worker has seen them.
#[derive(Clone, Copy, Debug)]
pub struct Outlier {
    state: State,
    /// Of failures in a row.
    strikes: u8,
    /// Ejections in a row: the next one lasts 2^n times [`BASE`].
    ejections: u8,
    /// Of unreached endpoints: a connection is enough to restore them.
    unreached: bool,
    /// When it was restored last.
    restored: Option<Instant>,
}

impl Default for Outlier {
    fn default() -> Self {
        Self::new()
    }
}

impl Outlier {
    /// Nothing has failed.
    #[must_use]
    pub const fn new() -> Self {
        Self { state: State::In, strikes: 0, ejections: 0, unreached: false, restored: None }
    }

    /// Whether it takes requests now.
    #[must_use]
    pub fn standing(&self, now: Instant) -> Standing {
        match self.state {
            State::In => Standing::In,
            State::Out { until, .. } if now < until => Standing::Out,
            State::Out { .. } => Standing::Due,
        }
    }

    /// Whether it takes requests like any other, whatever the time.
    #[must_use]
    pub const fn is_in(&self) -> bool {
        matches!(self.state, State::In)
    }

    /// A probing request is sent: the only one until its outcome is known, or has not come for a while.
    pub fn probe(&mut self, now: Instant) {
        if let State::Out { until, .. } = &mut self.state {
            *until = now + PROBE_PATIENCE;
        }
    }

    /// A connection that was begun at `began` stands. True if this restores the endpoint.
    pub fn connected(&mut self, began: Instant, now: Instant) -> bool {
        self.unreached && self.restore(began, now)
    }

    /// A request that was begun at `began` has an answer that is no failure. True if this restores the endpoint.
    pub fn succeeded(&mut self, began: Instant, now: Instant) -> bool {
        self.strikes = 0;
        self.restore(began, now)
    }

    fn restore(&mut self, began: Instant, now: Instant) -> bool {
        match self.state {
            // A pod that shuts down refuses new connections while it answers what it has.
            State::Out { since, .. } if began >= since => {
                self.state = State::In;
                self.strikes = 0;
                self.restored = Some(now);
                true
            }
            _ => false,
        }
    }

    /// A request or connection that was begun at `began` has failed. Returns for how long it is ejected by this, if so.
    pub fn failed(&mut self, fault: Fault, began: Instant, now: Instant) -> Option<Duration> {
        match self.state {
            State::In => {
                self.strikes = self.strikes.saturating_add(fault.strikes());
                if self.strikes < STRIKES {
                    return None;
                }
                if self.restored.is_none_or(|at| now.saturating_duration_since(at) > FORGET) {
                    self.ejections = 0;
                }
            }
            // Sent before the ejection, or in spite of it because there was nobody else: says nothing new.
            State::Out { since, .. } if began < since || now < since + self.rest() => return None,
            State::Out { .. } => {}
        }
        self.ejections = self.ejections.saturating_add(1);
        self.unreached = fault == Fault::Unreached;
        self.strikes = 0;
        let rest = self.rest();
        self.state = State::Out { since: now, until: now + rest };
        Some(rest)
    }

    /// A node gives no sign of life: nothing goes there as long as this is said again and again. True if it was not
    /// known, or is about to be forgotten.
    pub fn silent(&mut self, now: Instant) -> bool {
        match self.state {
            State::Out { until, .. } if until > now + SILENCE / 2 => false,
            _ => {
                self.state = State::Out { since: now, until: now + SILENCE };
                true
            }
        }
    }

    /// A node has given a sign of life. True if it was out.
    pub fn heard(&mut self, now: Instant) -> bool {
        self.succeeded(now, now)
    }

    /// How long the ejection lasts that is under way.
    fn rest(&self) -> Duration {
        let growth = 1_u32.checked_shl(u32::from(self.ejections.saturating_sub(1))).unwrap_or(u32::MAX);
        BASE.saturating_mul(growth).min(MAX)
    }
}
