//! What this worker knows about endpoints: their load, their failures, and whether their nodes answer. One balancer for
//! requests and for opaque connections.
//!
//! What is known is kept by address, since two Services may share their pods, and found by set: an [`EndpointSet`] never
//! changes, so its address in memory names it, and a pick looks up nothing but that.

use crate::{
    context::ShareKey,
    error::{Blame, ProxyError},
    nodes::{Node, Nodes},
    sticky::StickyClients,
    telemetry::{Counter, WorkerTelemetry},
    worker::Peers,
};
use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};
use weft_core::{
    balance::{Answer, Fault, Load, Outlier, Picked, SlowStart, Standing, View, pick},
    config::{Backend, BackendKey, Endpoint, EndpointSet},
    hash::FxBuild,
    model::Str,
};

/// Sets and endpoints that may be remembered before what is gone is looked for; then twice as many as are left.
const SWEEP_MIN: usize = 256;

/// The balancer's memory on one worker.
#[derive(Debug)]
pub struct Loads {
    known: RefCell<Known>,
    nodes: Nodes,
    sticky: Arc<StickyClients>,
    telemetry: Rc<WorkerTelemetry>,
}

#[derive(Debug, Default)]
struct Known {
    /// By the address of the set in memory, which `Seats::set` keeps from being used again.
    sets: HashMap<usize, Rc<Seats>, FxBuild>,
    /// Which set was a backend's last.
    backends: HashMap<BackendKey, usize, FxBuild>,
    endpoints: HashMap<SocketAddr, Rc<Seat>, FxBuild>,
    sweep_at: usize,
}

/// What is known of a set's endpoints, in their order.
#[derive(Debug)]
struct Seats {
    set: Weak<EndpointSet>,
    seats: Box<[Rc<Seat>]>,
}

/// What is known of one endpoint.
#[derive(Debug)]
struct Seat {
    addr: SocketAddr,
    load: Cell<Load>,
    health: Cell<Outlier>,
    /// It joined a running set, not long ago.
    young: Cell<Option<SlowStart>>,
    /// Where its pod is, if tunnels lead there.
    node: Option<Rc<Node>>,
}

/// A choice among a backend's endpoints.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// Whose endpoints.
    pub backend: &'a Backend,
    /// The endpoints.
    pub set: &'a Arc<EndpointSet>,
    /// Who pays for it: pods' clients and strangers at Gateways are remembered apart.
    pub share: &'a ShareKey,
    /// For whom: a Service may want each client to stay with one endpoint.
    pub client: IpAddr,
    /// Where this request was before: taken only when there is no other.
    pub tried: &'a [SocketAddr],
}

/// One request (or connection in the making) at an endpoint; ends when dropped.
#[derive(Debug)]
pub struct InFlight {
    seat: Rc<Seat>,
    began: Instant,
    telemetry: Rc<WorkerTelemetry>,
}

impl InFlight {
    /// A connection to it stands. An endpoint that refuses is well again when it takes one.
    pub fn connected(&self, now: Instant) {
        let seat = &self.seat;
        if !seat.health.get().is_in() {
            update(&seat.health, |h| h.connected(self.began, now));
        }
        if let Some(node) = &seat.node {
            node.proved(self.began, now);
        }
    }

    /// A try ended with `error`, which is `fault` of the endpoint's, if it is the endpoint's at all: that we have no
    /// certificate, or no room, says nothing of it.
    pub fn blamed(&self, error: &ProxyError, fault: Fault, now: Instant) {
        if error.blame == Blame::Upstream {
            self.failed(fault, now);
        }
    }

    /// No connection, or no answer.
    pub fn failed(&self, fault: Fault, now: Instant) {
        let seat = &self.seat;
        // It must not look quick because it refuses quickly.
        update(&seat.load, Load::known);
        if let Some(rest) = update(&seat.health, |h| h.failed(fault, self.began, now)) {
            tracing::debug!(endpoint = %seat.addr, ?fault, ?rest, "an endpoint is ejected");
            self.telemetry.count(Counter::Ejections);
        }
        if let Some(node) = &seat.node {
            node.failed(fault, self.began, now);
        }
    }

    /// The answer's head has come after `latency`.
    pub fn answered(&self, answer: Answer, latency: Duration, now: Instant) {
        self.connected(now);
        match answer {
            Answer::ServerError => return self.failed(Fault::ServerError, now),
            Answer::TooBusy => update(&self.seat.load, |load| load.too_busy(now)),
            Answer::Good | Answer::Open => update(&self.seat.load, |load| load.observe(latency, now)),
        }
        if answer != Answer::Open {
            update(&self.seat.health, |h| h.succeeded(self.began, now));
        }
    }

    /// An answer whose head said nothing has ended with this.
    pub fn ended(&self, answer: Answer, now: Instant) {
        match answer {
            Answer::ServerError => self.failed(Fault::ServerError, now),
            Answer::TooBusy => update(&self.seat.load, |load| load.too_busy(now)),
            Answer::Good | Answer::Open => {
                update(&self.seat.health, |h| h.succeeded(self.began, now));
            }
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        update(&self.seat.load, Load::end);
    }
}

fn update<T: Copy, R>(cell: &Cell<T>, edit: impl FnOnce(&mut T) -> R) -> R {
    let mut value = cell.get();
    let result = edit(&mut value);
    cell.set(value);
    result
}

impl Seat {
    fn new(endpoint: &Endpoint, young: bool, now: Instant, node: Option<Rc<Node>>) -> Rc<Self> {
        Rc::new(Self {
            addr: endpoint.addr,
            load: Cell::new(Load::new(now)),
            health: Cell::default(),
            young: Cell::new(young.then(|| SlowStart::new(now))),
            node,
        })
    }

    /// As the balancer sees it. A request that was elsewhere before does not probe: it has failed once already.
    fn view(&self, tried: &[SocketAddr], now: Instant) -> View {
        if tried.contains(&self.addr) {
            return View::Tried;
        }
        let probes = tried.is_empty();
        match self.node.as_ref().map_or(Standing::In, |node| node.standing(now)) {
            Standing::In => {}
            Standing::Due if probes => return View::Due,
            Standing::Due | Standing::Out => return View::Silent,
        }
        let health = self.health.get();
        if health.is_in() {
            return self.well(now);
        }
        if probes && health.standing(now) == Standing::Due { View::Due } else { View::Ejected }
    }

    /// The same for who tells nothing of the outcome. It must not take the place of a request that would; and since there
    /// may be none, what is due is as good to it as any.
    fn view_untold(&self, now: Instant) -> View {
        match self.view(&[], now) {
            View::Due => self.well(now),
            view => view,
        }
    }

    fn well(&self, now: Instant) -> View {
        View::Well(self.load.get().cost(now), self.young(now))
    }

    fn young(&self, now: Instant) -> Option<SlowStart> {
        let young = self.young.get()?;
        if young.share(now).is_none() {
            self.young.set(None);
        }
        self.young.get()
    }
}

impl Loads {
    /// Knows nothing. What it finds out about nodes is told to the other workers among `peers`; this is the worker of
    /// that index.
    /// Where clients with affinity are is known to all workers (`sticky`).
    pub(crate) fn new(
        telemetry: Rc<WorkerTelemetry>,
        sticky: Arc<StickyClients>,
        peers: Option<(Arc<Peers>, usize)>,
    ) -> Rc<Self> {
        let nodes = Nodes::new(telemetry.clone(), peers);
        Rc::new(Self { known: RefCell::default(), nodes, sticky, telemetry })
    }

    /// Picks an endpoint and counts a request there: by client address where the Service asks for affinity, else the
    /// less loaded of two. `None` without any endpoint.
    pub fn choose(&self, choice: &Choice<'_>, now: Instant, draw: u64) -> Option<(usize, InFlight)> {
        let seats = self.seats(choice, now);
        let seats = &seats.seats;
        let picked = self.pick(choice, now, draw, |i| seats[i].view(choice.tried, now));
        // All were tried: any of them again.
        let picked = picked.or_else(|| pick(seats.len(), now, draw, |i| seats[i].view(&[], now)))?;
        let seat = &seats[picked.index];
        if picked.probe {
            update(&seat.health, |health| health.probe(now));
            if let Some(node) = &seat.node {
                node.probe(now);
            }
        }
        Some((picked.index, self.begin(seat, now)))
    }

    /// The same for who will not tell whether there was an answer: datagrams, and copies of requests. Probes nobody.
    pub fn choose_untold(&self, choice: &Choice<'_>, now: Instant, draw: u64) -> Option<(usize, InFlight)> {
        let seats = self.seats(choice, now);
        let seats = &seats.seats;
        let picked = self.pick(choice, now, draw, |i| seats[i].view_untold(now))?;
        Some((picked.index, self.begin(&seats[picked.index], now)))
    }

    fn pick(
        &self,
        choice: &Choice<'_>,
        now: Instant,
        draw: u64,
        view: impl Fn(usize) -> View,
    ) -> Option<Picked> {
        if choice.backend.client_ip_affinity.is_none() {
            return pick(choice.set.ready.len(), now, draw, view);
        }
        let of = |wanted: &dyn Fn(View) -> bool| self.sticky.pick(choice, |i| wanted(view(i)), now);
        let well = of(&|view| matches!(view, View::Well(..) | View::Due));
        let index = well.or_else(|| of(&|view| view != View::Tried))?;
        Some(Picked { index, probe: view(index) == View::Due })
    }

    fn begin(&self, seat: &Rc<Seat>, now: Instant) -> InFlight {
        update(&seat.load, Load::begin);
        InFlight { seat: Rc::clone(seat), began: now, telemetry: Rc::clone(&self.telemetry) }
    }

    /// Whether a request that waits for `at` would find another endpoint that is well.
    pub fn has_other(&self, choice: &Choice<'_>, at: SocketAddr, now: Instant) -> bool {
        let seats = self.seats(choice, now);
        seats.seats.iter().any(|s| s.addr != at && matches!(s.view(choice.tried, now), View::Well(..)))
    }

    /// The node of this name.
    pub(crate) fn node(&self, name: &Str) -> Rc<Node> {
        self.nodes.get(name)
    }

    /// What is known of a set; all there is to know of one that was never seen.
    fn seats(&self, choice: &Choice<'_>, now: Instant) -> Rc<Seats> {
        let at = Arc::as_ptr(choice.set).addr();
        if let Some(seats) = self.known.borrow().sets.get(&at) {
            return Rc::clone(seats);
        }
        let mut known = self.known.borrow_mut();
        known.sweep(&self.nodes);
        known.meet(&self.nodes, choice, now)
    }
}

impl Known {
    #[cold]
    fn meet(&mut self, nodes: &Nodes, choice: &Choice<'_>, now: Instant) -> Rc<Seats> {
        let at = Arc::as_ptr(choice.set).addr();
        let before = self.backends.insert(choice.backend.key.clone(), at);
        let before = before.and_then(|old| self.sets.remove(&old));
        let old: HashSet<SocketAddr, FxBuild> =
            before.iter().flat_map(|b| b.seats.iter()).map(|s| s.addr).collect();
        // Among endpoints that are all new nobody could take the share that a new one does not get yet.
        let running = choice.set.ready.iter().any(|e| old.contains(&e.addr));
        let seats = choice.set.ready.iter().map(|endpoint| {
            // Only what is reached by tunnels shares their silence: a node whose agent is frozen still serves other pods,
            // and that they answer says nothing of its agent.
            let enrolled = endpoint.workload.as_ref().filter(|w| w.enrolled);
            let node = enrolled.and_then(|w| w.node.as_ref()).map(|n| nodes.get(n));
            let same = |seat: &&Rc<Seat>| match (&seat.node, &node) {
                (Some(a), Some(b)) => Rc::ptr_eq(a, b),
                (a, b) => a.is_none() && b.is_none(),
            };
            if let Some(seat) = self.endpoints.get(&endpoint.addr).filter(same) {
                return Rc::clone(seat);
            }
            let seat = Seat::new(endpoint, running && !old.contains(&endpoint.addr), now, node);
            self.endpoints.insert(endpoint.addr, Rc::clone(&seat));
            seat
        });
        let seats = Rc::new(Seats { seats: seats.collect(), set: Arc::downgrade(choice.set) });
        self.sets.insert(at, Rc::clone(&seats));
        seats
    }

    /// Forgets sets that no Config has any more, and endpoints of none, once there may be many of them.
    fn sweep(&mut self, nodes: &Nodes) {
        let size = |known: &Self| known.sets.len() + known.endpoints.len();
        if size(self) < self.sweep_at.max(SWEEP_MIN) {
            return;
        }
        self.sets.retain(|_, seats| seats.set.strong_count() > 0);
        let sets = &self.sets;
        self.backends.retain(|_, at| sets.contains_key(at));
        self.endpoints.retain(|_, seat| Rc::strong_count(seat) > 1);
        nodes.sweep();
        self.sweep_at = size(self) * 2;
    }
}

#[cfg(test)]
mod tests;
