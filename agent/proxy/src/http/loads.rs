//! What this worker knows about the load of endpoints.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};
use weft_core::{
    balance::{Load, pick_by},
    config::EndpointSet,
    hash::FxBuild,
};

/// Endpoints remembered before those without requests under way are forgotten.
const ENDPOINTS_MAX: usize = 8192;

/// Load by endpoint, whatever backend it belongs to: two Services may share their pods.
#[derive(Debug, Default)]
pub(crate) struct Loads(RefCell<HashMap<SocketAddr, Rc<Cell<Load>>, FxBuild>>);

/// One request under way at an endpoint, with when it began; ends when dropped.
#[derive(Debug)]
pub(crate) struct InFlight(Rc<Cell<Load>>, Instant);

impl InFlight {
    /// No connection, or no answer: the endpoint must not look quick because it refuses quickly.
    pub(crate) fn failed(&self, now: Instant) {
        update(&self.0, |load| load.failed(now));
    }

    /// The answer's head has come.
    pub(crate) fn answered(&self, latency: Duration, now: Instant) {
        // `begin` again, because `end` counts down and the body is still under way.
        update(&self.0, |load| {
            load.begin();
            load.end(Some(latency), now);
        });
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        // Without a latency to learn from no time is needed: any will do, and none is asked for.
        update(&self.0, |load| load.end(None, self.1));
    }
}

/// Latencies below this (4 ms, as a power of two of nanoseconds) are the same: differences are the scheduler's.
const FAST_LOG: u32 = 22;

/// What a request costs there, with latencies in steps of four: between endpoints that are about as fast and as busy,
/// chance decides. Else two idle ones would not share: all requests would go to the one that is faster by a hair.
fn coarse(load: Load, now: Instant) -> u64 {
    let cost = load.cost(now);
    let requests = u64::from(load.in_flight()) + 1;
    match (cost / requests).checked_ilog2() {
        // Not known yet, or asked once and silent so far.
        None => cost,
        Some(_) if cost >= u64::MAX / 2 => cost,
        Some(log) => (1_u64 << (log & !1).max(FAST_LOG)).saturating_mul(requests),
    }
}

fn update(cell: &Cell<Load>, edit: impl FnOnce(&mut Load)) {
    let mut load = cell.get();
    edit(&mut load);
    cell.set(load);
}

impl Loads {
    /// Picks an endpoint: the less loaded of two. One that is in `tried` is taken only if there is no other.
    pub(crate) fn pick(
        &self,
        set: &EndpointSet,
        tried: &[SocketAddr],
        (now, draw): (Instant, u64),
    ) -> Option<usize> {
        let ready = &set.ready;
        if let [only] = ready.as_slice() {
            let _ = only;
            return Some(0);
        }
        let fresh = |i: usize| !tried.contains(&ready[i].addr);
        let loads = self.0.borrow();
        let cost = |i: usize| loads.get(&ready[i].addr).map_or(0, |l| coarse(l.get(), now));
        let chosen = pick_by(ready.len(), draw, |i| fresh(i).then(|| cost(i)));
        // All were tried: any of them again.
        chosen.or_else(|| pick_by(ready.len(), draw, |_| Some(0)))
    }

    /// Counts a request at an endpoint.
    pub(crate) fn begin(&self, endpoint: SocketAddr, now: Instant) -> InFlight {
        let mut loads = self.0.borrow_mut();
        if loads.len() >= ENDPOINTS_MAX && !loads.contains_key(&endpoint) {
            loads.retain(|_, load| load.get().in_flight() > 0);
        }
        let load = loads.entry(endpoint).or_insert_with(|| Rc::new(Cell::new(Load::new(now))));
        update(load, Load::begin);
        InFlight(Rc::clone(load), now)
    }
}
