//! The better of two random endpoints, among those that are well.

use super::{SlowStart, affinity::mix};
use std::time::{Duration, Instant};

/// After how long without an answer an endpoint's latency has faded to 1/e: a slow one is asked again.
const DECAY: Duration = Duration::from_secs(10);

/// After how long "too busy" has faded to 1/e. Short: it is about this moment.
const BUSY_DECAY: Duration = Duration::from_secs(1);
/// What the first "too busy" multiplies the cost by, and what many in a row may at most.
const BUSY_FIRST: f32 = 8.0;
const BUSY_MAX: f32 = 32.0;

/// Latencies below this (4 ms, as a power of two of nanoseconds) are the same: differences are the scheduler's.
const FAST_LOG: u32 = 22;

/// What one worker knows of the load of one endpoint: requests under way, latency as a peak-sensitive moving average (it
/// jumps to a slow answer at once and forgets it over [`DECAY`]), and whether it said that it is too busy.
///
/// Failures are not in here: see [`super::Outlier`].
#[derive(Clone, Copy, Debug)]
pub struct Load {
    in_flight: u32,
    busy: f32,
    latency_ns: f64,
    updated: Instant,
    busied: Instant,
}

impl Load {
    /// An endpoint that nothing is known of.
    #[must_use]
    pub const fn new(now: Instant) -> Self {
        Self { in_flight: 0, busy: 0.0, latency_ns: 0.0, updated: now, busied: now }
    }

    /// A request is sent.
    pub fn begin(&mut self) {
        self.in_flight = self.in_flight.saturating_add(1);
    }

    /// A request is over.
    pub fn end(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// An answer's head came after `latency`; the request may still be under way.
    pub fn observe(&mut self, latency: Duration, now: Instant) {
        let sample = latency.as_secs_f64() * 1e9;
        let keep = keep(self.updated, now, DECAY);
        self.latency_ns = sample.max(self.latency_ns * keep + sample * (1.0 - keep));
        self.updated = self.updated.max(now);
        if self.busy(now) < 1.0 {
            self.busy = 0.0;
        }
    }

    /// It was asked, and gave no answer that tells how fast it is: it is no longer one that nothing is known of, which
    /// would draw every request.
    pub fn known(&mut self) {
        self.latency_ns = self.latency_ns.max((1_u64 << FAST_LOG) as f64);
    }

    /// The answer was that it is too busy (429, `RESOURCE_EXHAUSTED`): more load, not a failure, and no sign of speed
    /// however quickly it came.
    pub fn too_busy(&mut self, now: Instant) {
        self.busy = (self.busy(now) * 2.0).clamp(BUSY_FIRST, BUSY_MAX);
        self.busied = self.busied.max(now);
        self.known();
    }

    /// Requests under way.
    #[must_use]
    pub const fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// What the next request here would wait for; comparable between endpoints. In steps of four: between endpoints that
    /// are about as fast and as busy, chance decides. Else two idle ones would not share: all requests would go to the
    /// one that is faster by a hair.
    #[must_use]
    pub fn cost(&self, now: Instant) -> u64 {
        let requests = u64::from(self.in_flight) + 1;
        if self.latency_ns < 1.0 && self.busy == 0.0 {
            // Asked for the first time and silent so far: one request is enough of a probe.
            return if self.in_flight > 0 { u64::MAX / 2 + requests } else { 0 };
        }
        let fast = 1_u64 << FAST_LOG;
        if self.latency_ns < fast as f64 && self.busy == 0.0 {
            return fast.saturating_mul(requests); // the usual case, without a look at the clock
        }
        let latency = (self.latency_ns * keep(self.updated, now, DECAY)).max(fast as f64);
        let weight = (latency * f64::from(self.busy(now)).max(1.0)) as u64; // saturates
        (1_u64 << (weight.max(1).ilog2() & !1)).saturating_mul(requests)
    }

    fn busy(&self, now: Instant) -> f32 {
        if self.busy == 0.0 { 0.0 } else { self.busy * keep(self.busied, now, BUSY_DECAY) as f32 }
    }
}

/// What is left of a value after some time.
fn keep(since: Instant, now: Instant, decay: Duration) -> f64 {
    (-now.saturating_duration_since(since).as_secs_f64() / decay.as_secs_f64()).exp()
}

/// What [`pick`] sees of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// It takes requests, at this cost; a new one only some of its share.
    Well(u64, Option<SlowStart>),
    /// Its ejection is over: it gets one request to show how it is.
    Due,
    /// It is ejected.
    Ejected,
    /// Its node gives no sign of life.
    Silent,
    /// It must not be taken: this request was there before.
    Tried,
}

/// What was picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Picked {
    /// Index of the endpoint.
    pub index: usize,
    /// This request probes it.
    pub probe: bool,
}

impl Picked {
    const fn well(index: usize) -> Self {
        Self { index, probe: false }
    }
}

/// The less loaded of two endpoints drawn at random from `len`. `None` only if all have been tried.
///
/// Those that are ejected are not taken, unless more than half of those on nodes that answer are (the panic threshold: the
/// rest would break under the load of all, and when most fail the fault is hardly theirs). Then the first try of a request
/// goes to any of them, and another one to those that are well. Those on silent nodes are taken when there is no other.
#[must_use]
pub fn pick(len: usize, now: Instant, draw: u64, view: impl Fn(usize) -> View) -> Option<Picked> {
    if len <= 1 {
        return (len == 1 && view(0) != View::Tried).then_some(Picked::well(0));
    }
    let (first, second) = two(len, draw);
    match (view(first), view(second)) {
        (View::Well(a, None), View::Well(b, None)) => Some(Picked::well(if b < a { second } else { first })),
        (a, b) => pick_slowly(len, now, draw, view, [(first, a), (second, b)]),
    }
}

/// Two different indexes. Each half of the draw is uniform to 1/2^32.
const fn two(len: usize, draw: u64) -> (usize, usize) {
    let first = scale(draw >> 32, len);
    let second = scale(draw & 0xffff_ffff, len - 1);
    (first, if second >= first { second + 1 } else { second })
}

const fn scale(half: u64, n: usize) -> usize {
    ((half * n as u64) >> 32) as usize
}

/// When one of the two that were drawn is not like the others.
#[cold]
fn pick_slowly(
    len: usize,
    now: Instant,
    draw: u64,
    view: impl Fn(usize) -> View,
    drawn: [(usize, View); 2],
) -> Option<Picked> {
    match drawn {
        [(index, View::Due), _] | [_, (index, View::Due)] => return Some(Picked { index, probe: true }),
        [(first, View::Well(a, young_a)), (second, View::Well(b, young_b))] => {
            return Some(Picked::well(better((first, a, young_a), (second, b, young_b), now, draw)));
        }
        _ => {}
    }
    let count = |wanted: fn(View) -> bool| (0..len).filter(|i| wanted(view(*i))).count();
    let well = |v: View| matches!(v, View::Well(..));
    let answering = |v: View| matches!(v, View::Well(..) | View::Due | View::Ejected);
    let (well_count, answering_count) = (count(well), count(answering));
    let panic = (answering_count - well_count) * 2 > answering_count && count(|v| v == View::Tried) == 0;
    let (among, n): (fn(View) -> bool, usize) = if well_count > 0 && !panic {
        (well, well_count)
    } else if answering_count > 0 {
        (answering, answering_count)
    } else {
        let silent = |v: View| v == View::Silent;
        (silent, count(silent))
    };
    let nth = |n: usize| (0..len).filter(|i| among(view(*i))).nth(n);
    // Drawn anew: what led here says which two were drawn.
    let draw = mix(draw);
    if n <= 1 {
        return nth(0).map(Picked::well);
    }
    let (a, b) = two(n, draw);
    let (a, b) = (nth(a)?, nth(b)?);
    Some(match (view(a), view(b)) {
        (View::Well(cost_a, young_a), View::Well(cost_b, young_b)) => {
            Picked::well(better((a, cost_a, young_a), (b, cost_b, young_b), now, draw))
        }
        (seen, _) => Picked { index: a, probe: seen == View::Due },
    })
}

type Candidate = (usize, u64, Option<SlowStart>);

/// The cheaper of two; but one that starts slowly competes with one that does not only as often as its share says.
fn better(a: Candidate, b: Candidate, now: Instant, draw: u64) -> usize {
    let share = |young: Option<SlowStart>| young.and_then(|y| y.share(now));
    let held_back = |share: u64| (mix(!draw) >> 32) >= share;
    match (share(a.2), share(b.2)) {
        (Some(part), None) if held_back(part) => b.0,
        (None, Some(part)) if held_back(part) => a.0,
        _ if b.1 < a.1 => b.0,
        _ => a.0,
    }
}
