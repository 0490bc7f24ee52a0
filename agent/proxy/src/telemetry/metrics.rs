//! Labelled series. A worker resolves a series once and keeps the handle in a small cache of its own; after that a
//! request costs a few plain stores to memory that no other worker writes. Scraping sums over the workers.
//!
//! Bounds: a family has at most `series_max` series (the rest is counted under `overflow`), a worker's cache has at
//! most [`CACHE_MAX`] entries, and a series that did not move for `idle` is forgotten.

use super::{
    counters::add,
    record::{ConnectionRecord, Direction, RequestRecord},
};
use parking_lot::Mutex;
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    hash::{BuildHasherDefault, Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use weft_core::{
    config::{Backend, BackendKey, HttpRule, RuleId},
    model::{ObjectKey, Str, Workload},
};

/// Upper bounds of the duration histogram, in nanoseconds, with their text in seconds: semconv's 0.005…10 and finer
/// ones below, since a hop inside a cluster takes less than a millisecond.
pub(super) const BUCKETS: [(u64, &str); 19] = [
    (100_000, "0.0001"),
    (250_000, "0.00025"),
    (500_000, "0.0005"),
    (1_000_000, "0.001"),
    (2_500_000, "0.0025"),
    (5_000_000, "0.005"),
    (10_000_000, "0.01"),
    (25_000_000, "0.025"),
    (50_000_000, "0.05"),
    (75_000_000, "0.075"),
    (100_000_000, "0.1"),
    (250_000_000, "0.25"),
    (500_000_000, "0.5"),
    (750_000_000, "0.75"),
    (1_000_000_000, "1.0"),
    (2_500_000_000, "2.5"),
    (5_000_000_000, "5.0"),
    (7_500_000_000, "7.5"),
    (10_000_000_000, "10.0"),
];

/// Entries of a worker's cache. Each pins the rule, backend and workload it was made from, old ones too, until the
/// cache is full and starts anew.
const CACHE_MAX: usize = 1024;

/// The text of labels that were one too many.
pub(super) const OVERFLOW: &str = "overflow";

/// From whom, by what, to whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Edge {
    pub(super) direction: Direction,
    pub(super) parent: Option<ObjectKey>,
    pub(super) route: Option<RouteLabels>,
    pub(super) backend: Option<BackendKey>,
    /// Namespace and `Workload.app`: never the pod, whose names are without end.
    pub(super) source: Option<(Str, Str)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct RouteLabels {
    pub(super) kind: &'static str,
    pub(super) key: ObjectKey,
    /// Name or index.
    pub(super) rule: Str,
}

/// An outcome of an edge.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Outcome {
    pub(super) edge: Edge,
    pub(super) code: u16,
    pub(super) grpc_status: Option<u16>,
    pub(super) reason: Option<&'static str>,
}

/// A connection's edge, with the pod's side when there is no backend.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Link {
    pub(super) edge: Edge,
    pub(super) protocol: &'static str,
    pub(super) destination: Option<(Str, Str)>,
    pub(super) reason: Option<&'static str>,
}

/// Labels of a family.
pub(super) trait Labels: Clone + Eq + Hash + Ord {
    /// Where everything goes that is one too many. Keeps what has few values.
    fn overflow(&self) -> Self;
}

impl Edge {
    fn overflow(&self) -> Self {
        let parent = Some(ObjectKey::new(OVERFLOW, OVERFLOW));
        Self { direction: self.direction, parent, route: None, backend: None, source: None }
    }
}

impl Labels for Edge {
    fn overflow(&self) -> Self {
        Self::overflow(self)
    }
}

impl Labels for Outcome {
    fn overflow(&self) -> Self {
        // The class of a code has few values, and an alert on 5xx must not go blind.
        Self { edge: self.edge.overflow(), code: self.code / 100 * 100, grpc_status: None, reason: None }
    }
}

impl Labels for Link {
    fn overflow(&self) -> Self {
        Self { edge: self.edge.overflow(), protocol: self.protocol, destination: None, reason: None }
    }
}

/// What a series counts, one for each worker. Only that worker writes it.
pub(super) trait Slot: Default {
    /// Grows with every use.
    fn uses(&self) -> u64;
}

/// A counter.
#[derive(Debug, Default)]
pub(super) struct Total(pub(super) AtomicU64);

/// A histogram of durations and the bytes moved.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    /// The last is beyond all bounds. Not cumulative.
    pub(super) buckets: [AtomicU64; BUCKETS.len() + 1],
    pub(super) nanos: AtomicU64,
    pub(super) request_bytes: AtomicU64,
    pub(super) response_bytes: AtomicU64,
}

/// Connections and their bytes.
#[derive(Debug, Default)]
pub(super) struct Flow {
    pub(super) count: AtomicU64,
    pub(super) received: AtomicU64,
    pub(super) sent: AtomicU64,
}

impl Slot for Total {
    fn uses(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Slot for Exchange {
    fn uses(&self) -> u64 {
        self.buckets.iter().map(|b| b.load(Relaxed)).sum()
    }
}

impl Slot for Flow {
    fn uses(&self) -> u64 {
        self.count.load(Relaxed)
    }
}

impl Exchange {
    fn observe(&self, record: &RequestRecord<'_>) {
        let nanos = u64::try_from(record.duration.as_nanos()).unwrap_or(u64::MAX);
        let index = BUCKETS.iter().position(|(bound, _)| nanos <= *bound).unwrap_or(BUCKETS.len());
        add(&self.buckets[index], 1);
        add(&self.nanos, nanos);
        add(&self.request_bytes, record.request_bytes);
        add(&self.response_bytes, record.response_bytes);
    }
}

/// A series: what each worker that uses it counted.
#[derive(Debug)]
struct Series<S> {
    slots: Vec<(usize, Arc<S>)>,
    uses: u64,
    moved: Instant,
}

/// All series of one set of labels.
#[derive(Debug)]
pub(super) struct Family<L, S> {
    tables: Mutex<Tables<L, S>>,
    max: usize,
    /// Resolutions that ended in an overflow series.
    pub(super) overflows: AtomicU64,
}

/// Series as asked for, at most `max`, and the few that take what is beyond.
#[derive(Debug)]
struct Tables<L, S> {
    own: HashMap<L, Series<S>>,
    overflow: HashMap<L, Series<S>>,
}

impl<L: Labels, S: Slot> Family<L, S> {
    fn new(max: usize) -> Self {
        let tables = Tables { own: HashMap::new(), overflow: HashMap::new() };
        Self { tables: Mutex::new(tables), max, overflows: AtomicU64::new(0) }
    }

    /// The worker's slot of a series, made if need be. Takes the lock: rare.
    fn resolve(&self, worker: usize, labels: L) -> Arc<S> {
        let mut tables = self.tables.lock();
        let fresh = || Series { slots: Vec::new(), uses: 0, moved: Instant::now() };
        let series = if tables.own.len() < self.max || tables.own.contains_key(&labels) {
            tables.own.entry(labels).or_insert_with(fresh)
        } else {
            self.overflows.fetch_add(1, Relaxed);
            tables.overflow.entry(labels.overflow()).or_insert_with(fresh)
        };
        if let Some((_, slot)) = series.slots.iter().find(|(owner, _)| *owner == worker) {
            return slot.clone();
        }
        let slot = Arc::<S>::default();
        series.slots.push((worker, slot.clone()));
        slot
    }

    /// Every series and its slots, sorted by labels.
    pub(super) fn snapshot(&self) -> Vec<(L, Vec<Arc<S>>)> {
        let tables = self.tables.lock();
        let slots = |s: &Series<S>| s.slots.iter().map(|(_, slot)| slot.clone()).collect();
        let all = tables.own.iter().chain(&tables.overflow);
        let mut out: Vec<_> = all.map(|(labels, series)| (labels.clone(), slots(series))).collect();
        drop(tables);
        out.sort_by(|a, b| a.0.cmp(&b.0));
        out
    }

    /// Forgets series that did not move for `idle`. Whether there was any.
    fn sweep(&self, now: Instant, idle: Duration) -> bool {
        let mut tables = self.tables.lock();
        let before = tables.own.len() + tables.overflow.len();
        tables.own.retain(|_, series| series.live(now, idle));
        tables.overflow.retain(|_, series| series.live(now, idle));
        tables.own.len() + tables.overflow.len() != before
    }
}

impl<S: Slot> Series<S> {
    /// Whether it moved within `idle`.
    fn live(&mut self, now: Instant, idle: Duration) -> bool {
        let uses = self.slots.iter().map(|(_, slot)| slot.uses()).sum();
        if uses != self.uses {
            (self.uses, self.moved) = (uses, now);
        }
        now.saturating_duration_since(self.moved) < idle
    }
}

/// All labelled families.
#[derive(Debug)]
pub(super) struct Registry {
    pub(super) outcomes: Family<Outcome, Total>,
    pub(super) exchanges: Family<Edge, Exchange>,
    pub(super) flows: Family<Link, Flow>,
    idle: Duration,
    /// Counts up when a series was forgotten: every handle from before may be stale.
    generation: AtomicU64,
}

impl Registry {
    pub(super) fn new(series_max: usize, idle: Duration) -> Self {
        Self {
            outcomes: Family::new(series_max),
            exchanges: Family::new(series_max),
            flows: Family::new(series_max),
            idle,
            generation: AtomicU64::new(0),
        }
    }

    /// Forgets what is idle. A use by a worker that has not yet seen the new generation may be lost.
    pub(super) fn sweep(&self, now: Instant) {
        let idle = self.idle;
        let forgotten =
            [self.outcomes.sweep(now, idle), self.exchanges.sweep(now, idle), self.flows.sweep(now, idle)];
        if forgotten.contains(&true) {
            self.generation.fetch_add(1, Relaxed);
        }
    }
}

/// A worker's handles.
#[derive(Debug)]
pub(super) struct Handles {
    worker: usize,
    registry: Arc<Registry>,
    /// The registry's generation that these are of.
    generation: Cell<u64>,
    requests: RefCell<HashMap<Key, Entry, BuildHasherDefault<Mix>>>,
    flows: RefCell<HashMap<Link, Arc<Flow>>>,
}

impl Handles {
    pub(super) fn new(worker: usize, registry: Arc<Registry>) -> Self {
        let generation = Cell::new(registry.generation.load(Relaxed));
        Self { worker, registry, generation, requests: RefCell::default(), flows: RefCell::default() }
    }

    /// Drops handles that may be stale, and with them what they pin.
    fn refresh(&self) {
        let now = self.registry.generation.load(Relaxed);
        if self.generation.replace(now) != now {
            self.requests.borrow_mut().clear();
            self.flows.borrow_mut().clear();
        }
    }

    /// Counts a request.
    pub(super) fn request(&self, record: &RequestRecord<'_>) {
        self.refresh();
        let key = Key::of(record);
        let mut cache = self.requests.borrow_mut();
        if let Some(entry) = cache.get(&key) {
            return entry.count(record);
        }
        if cache.len() >= CACHE_MAX {
            cache.clear();
        }
        let entry = self.resolve(record);
        entry.count(record);
        cache.insert(key, entry);
    }

    fn resolve(&self, record: &RequestRecord<'_>) -> Entry {
        let edge = Edge {
            direction: record.direction,
            parent: record.parent.cloned(),
            route: record.rule.map(|rule| RouteLabels::of(&rule.id)),
            backend: record.backend.map(|b| b.key.clone()),
            source: record.source.map(|w| names(w)),
        };
        let outcome = Outcome {
            edge: edge.clone(),
            code: record.code,
            grpc_status: record.grpc_status,
            reason: record.reason.map(crate::error::Reason::as_str),
        };
        Entry {
            total: self.registry.outcomes.resolve(self.worker, outcome),
            exchange: self.registry.exchanges.resolve(self.worker, edge),
            _pins: Pins {
                _parent: record.parent.cloned(),
                _rule: record.rule.cloned(),
                _backend: record.backend.cloned(),
                _source: record.source.cloned(),
            },
        }
    }

    /// Counts a connection that is over.
    pub(super) fn connection(&self, record: &ConnectionRecord<'_>) {
        let link = Link {
            edge: Edge {
                direction: record.direction,
                parent: record.parent.cloned(),
                route: record.rule.map(RouteLabels::of),
                backend: record.backend.cloned(),
                source: record.source.map(|w| names(w)),
            },
            protocol: record.protocol,
            destination: record.destination.map(|w| names(w)),
            reason: record.reason.map(crate::error::Reason::as_str),
        };
        self.refresh();
        let mut cache = self.flows.borrow_mut();
        if cache.len() >= CACHE_MAX {
            cache.clear();
        }
        let flow = cache
            .entry(link)
            .or_insert_with_key(|link| self.registry.flows.resolve(self.worker, link.clone()));
        add(&flow.count, 1);
        add(&flow.received, record.received_bytes);
        add(&flow.sent, record.sent_bytes);
    }
}

impl RouteLabels {
    fn of(id: &RuleId) -> Self {
        let rule = id.name.clone().unwrap_or_else(|| id.index.to_string().into());
        Self { kind: id.kind.kind().as_str(), key: id.route.clone(), rule }
    }
}

fn names(workload: &Workload) -> (Str, Str) {
    (workload.pod.namespace.clone(), workload.app.clone())
}

/// A resolved combination.
#[derive(Debug)]
struct Entry {
    total: Arc<Total>,
    exchange: Arc<Exchange>,
    _pins: Pins,
}

/// Keeps alive what a [`Key`]'s addresses stand for, so that no other object can have them.
#[derive(Debug)]
struct Pins {
    _parent: Option<ObjectKey>,
    _rule: Option<Arc<HttpRule>>,
    _backend: Option<Arc<Backend>>,
    _source: Option<Arc<Workload>>,
}

impl Entry {
    fn count(&self, record: &RequestRecord<'_>) {
        add(&self.total.0, 1);
        self.exchange.observe(record);
    }
}

/// Addresses instead of names: quick to hash. The same names at another address (after a reload) miss once and then
/// find the same series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    parent: (usize, usize),
    rule: usize,
    backend: usize,
    source: usize,
    reason: usize,
    outcome: u64,
}

impl Key {
    fn of(record: &RequestRecord<'_>) -> Self {
        let name = |s: &Str| Arc::as_ptr(s).cast::<u8>() as usize;
        let grpc = record.grpc_status.map_or(0, |status| u64::from(status) + 1);
        Self {
            parent: record.parent.map_or((0, 0), |p| (name(&p.namespace), name(&p.name))),
            rule: record.rule.map_or(0, |r| Arc::as_ptr(r) as usize),
            backend: record.backend.map_or(0, |b| Arc::as_ptr(b) as usize),
            source: record.source.map_or(0, |s| Arc::as_ptr(s) as usize),
            reason: record.reason.map_or(0, |r| r.as_str().as_ptr() as usize),
            outcome: grpc << 32 | u64::from(record.code) << 8 | record.direction as u64,
        }
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let words = [
            self.parent.0,
            self.parent.1,
            self.rule,
            self.backend,
            self.source,
            self.reason,
            self.outcome as usize,
        ];
        words.into_iter().for_each(|word| state.write_usize(word));
    }
}

/// A multiplying hash for [`Key`]: its words are our own addresses, which no client chooses.
#[derive(Clone, Copy, Debug, Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_usize(usize::from(*byte)));
    }

    fn write_usize(&mut self, word: usize) {
        let mixed = (self.0 ^ word as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 29);
    }
}

#[cfg(test)]
mod tests;
