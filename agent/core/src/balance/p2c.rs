//! The better of two random endpoints.

use std::time::{Duration, Instant};

/// After how long without an answer an endpoint's latency has faded to 1/e: a slow one is asked again.
const DECAY: Duration = Duration::from_secs(10);

/// The latency that a failure stands for.
const FAILURE: Duration = Duration::from_secs(1);

/// What one worker knows of one endpoint: requests under way, and latency as a peak-sensitive moving average (it
/// jumps to a slow answer at once and forgets it over [`DECAY`]).
#[derive(Clone, Copy, Debug)]
pub struct Load {
    in_flight: u32,
    latency_ns: f64,
    updated: Instant,
}

impl Load {
    /// An endpoint that nothing is known of.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { in_flight: 0, latency_ns: 0.0, updated: now }
    }

    /// A request is sent.
    pub fn begin(&mut self) {
        self.in_flight = self.in_flight.saturating_add(1);
    }

    /// A request is over; `latency` is the time to the answer's head, unless [`Load::observe`] has been told before.
    pub fn end(&mut self, latency: Option<Duration>, now: Instant) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Some(latency) = latency {
            self.observe(latency, now);
        }
    }

    /// An answer's head came after `latency`; the request may still be under way.
    pub fn observe(&mut self, latency: Duration, now: Instant) {
        let sample = latency.as_secs_f64() * 1e9;
        let keep = self.keep(now);
        self.latency_ns = sample.max(self.latency_ns * keep + sample * (1.0 - keep));
        self.updated = self.updated.max(now);
    }

    /// No connection, or no answer. Counts as a slow answer: an endpoint that refuses at once would otherwise look like
    /// the quickest of all and draw every request.
    pub fn failed(&mut self, now: Instant) {
        self.observe(FAILURE, now);
    }

    /// Requests under way.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// What the next request here would wait for, in nanoseconds; comparable between endpoints.
    #[must_use]
    pub fn cost(&self, now: Instant) -> u64 {
        let latency = self.faded(now);
        if latency < 1.0 && self.in_flight > 0 {
            // Asked for the first time and silent so far: one request is enough of a probe.
            return u64::MAX / 2 + u64::from(self.in_flight);
        }
        (latency * (f64::from(self.in_flight) + 1.0)) as u64 // saturates
    }

    fn keep(&self, now: Instant) -> f64 {
        (-now.saturating_duration_since(self.updated).as_secs_f64() / DECAY.as_secs_f64()).exp()
    }

    fn faded(&self, now: Instant) -> f64 {
        self.latency_ns * self.keep(now)
    }
}

/// The less loaded of two endpoints drawn at random. `None` only without any endpoint.
#[must_use]
pub fn pick(loads: &[Load], now: Instant, draw: u64) -> Option<usize> {
    pick_by(loads.len(), draw, |i| Some(loads[i].cost(now)))
}

/// As [`pick`], among `len` endpoints of which `cost` tells the cost; `None` marks one that must not be taken
/// (ejected, or tried before). If both that are drawn must not, the next one that may is taken; `None` if none may.
#[must_use]
pub fn pick_by(len: usize, draw: u64, mut cost: impl FnMut(usize) -> Option<u64>) -> Option<usize> {
    if len <= 1 {
        return (len == 1 && cost(0).is_some()).then_some(0);
    }
    // Each half of the draw is uniform to 1/2^32.
    let scale = |half: u64, n: usize| ((half * n as u64) >> 32) as usize;
    let first = scale(draw >> 32, len);
    let mut second = scale(draw & 0xffff_ffff, len - 1);
    if second >= first {
        second += 1; // two different ones
    }
    match (cost(first), cost(second)) {
        (Some(a), Some(b)) => Some(if b < a { second } else { first }),
        (Some(_), None) => Some(first),
        (None, Some(_)) => Some(second),
        (None, None) => (1..len).map(|step| (second + step) % len).find(|i| cost(*i).is_some()),
    }
}
