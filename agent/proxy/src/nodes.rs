//! Which nodes give no sign of life, as one worker knows from its tunnels and from what the other workers tell it.
//!
//! A node that loses power, is cut off, or whose agent is frozen goes silent on all of its pods' tunnels at once. One
//! that is silent on a single tunnel while another one answers has lost a pod, no more.

use crate::{
    telemetry::{Counter, WorkerTelemetry},
    transport::tunnel::Tunnel,
    worker::Peers,
};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::{Rc, Weak},
    sync::Arc,
    time::{Duration, Instant},
};
use weft_core::{
    balance::{Fault, Outlier, Standing},
    hash::FxBuild,
    model::Str,
};

/// How long a sign of life speaks for a node one of whose tunnels is silent.
const FRESH: Duration = Duration::from_secs(1);

/// The nodes that a worker has to do with.
#[derive(Debug)]
pub(crate) struct Nodes {
    nodes: RefCell<HashMap<Str, Rc<Node>, FxBuild>>,
    telemetry: Rc<WorkerTelemetry>,
    peers: Option<(Arc<Peers>, usize)>,
}

/// One node.
#[derive(Debug)]
pub(crate) struct Node {
    name: Str,
    health: Cell<Outlier>,
    /// When it last gave a sign of life that somebody had looked for.
    heard_at: Cell<Option<Instant>>,
    /// When its tunnels were last asked because one of them is silent.
    asked_at: Cell<Option<Instant>>,
    tunnels: RefCell<Vec<Weak<Tunnel>>>,
    telemetry: Rc<WorkerTelemetry>,
    peers: Option<(Arc<Peers>, usize)>,
}

/// What workers tell each other of a node.
#[derive(Clone, Copy, Debug)]
enum News {
    Silent,
    Heard,
}

impl Nodes {
    pub(crate) fn new(telemetry: Rc<WorkerTelemetry>, peers: Option<(Arc<Peers>, usize)>) -> Self {
        Self { nodes: RefCell::default(), telemetry, peers }
    }

    /// The node of this name.
    pub(crate) fn get(&self, name: &Str) -> Rc<Node> {
        if let Some(node) = self.nodes.borrow().get(name) {
            return Rc::clone(node);
        }
        let node = Rc::new(Node {
            name: name.clone(),
            health: Cell::default(),
            heard_at: Cell::default(),
            asked_at: Cell::default(),
            tunnels: RefCell::default(),
            telemetry: self.telemetry.clone(),
            peers: self.peers.clone(),
        });
        self.nodes.borrow_mut().insert(name.clone(), Rc::clone(&node));
        node
    }

    /// Forgets those that nothing refers to.
    pub(crate) fn sweep(&self) {
        self.nodes.borrow_mut().retain(|_, node| Rc::strong_count(node) > 1);
    }
}

impl Node {
    /// Whether requests may go there.
    pub(crate) fn standing(&self, now: Instant) -> Standing {
        self.health.get().standing(now)
    }

    /// A request is sent to find out whether it is back.
    pub(crate) fn probe(&self, now: Instant) {
        self.edit(|health| health.probe(now));
    }

    /// A connection that was begun at `began` came about.
    pub(crate) fn proved(&self, began: Instant, now: Instant) {
        if !self.health.get().is_in() && self.edit(|health| health.succeeded(began, now)) {
            self.tell(News::Heard);
        }
    }

    /// A request to a node that was out has failed, too.
    pub(crate) fn failed(&self, fault: Fault, began: Instant, now: Instant) {
        if !self.health.get().is_in() {
            self.edit(|health| health.failed(fault, began, now));
        }
    }

    /// A tunnel leads there.
    pub(crate) fn add(&self, tunnel: &Rc<Tunnel>) {
        let mut tunnels = self.tunnels.borrow_mut();
        tunnels.retain(|t| t.strong_count() > 0);
        tunnels.push(Rc::downgrade(tunnel));
    }

    /// One tunnel doubts: the others are asked, too.
    pub(crate) fn ask(&self) {
        let tunnels: Vec<_> = self.tunnels.borrow().iter().filter_map(Weak::upgrade).collect();
        tunnels.iter().for_each(|tunnel| tunnel.ask());
    }

    /// Something came in from there on a tunnel that was being watched.
    pub(crate) fn heard(&self, now: Instant) {
        self.heard_at.set(Some(now));
        if self.edit(|health| health.heard(now)) {
            tracing::debug!(node = %self.name, "a node answers again");
            self.tell(News::Heard);
        }
    }

    /// A tunnel has been silent since `since`. Unless another one has not, the node is suspected.
    pub(crate) fn silent(&self, since: Instant, now: Instant) {
        if let Some(heard) = self.heard_at.get().filter(|heard| *heard > since) {
            let age = now.saturating_duration_since(heard);
            // Not at each look: who asks is asked as well, and would look again at once.
            let is_asked = self.asked_at.get().is_some_and(|at| now.saturating_duration_since(at) < FRESH);
            if age > FRESH && !is_asked {
                // The node may have followed its pod.
                self.asked_at.set(Some(now));
                self.ask();
            }
            if age < FRESH * 2 {
                return;
            }
        }
        let was_in = self.health.get().is_in();
        if self.edit(|health| health.silent(now)) {
            if was_in {
                tracing::info!(node = %self.name, "a node gives no sign of life");
                self.telemetry.count(Counter::Suspicions);
            }
            self.tell(News::Silent);
        }
    }

    /// Another worker has found something out.
    fn told(&self, news: News, now: Instant) {
        match news {
            News::Heard => {
                self.heard_at.set(Some(now));
                self.edit(|health| health.heard(now));
            }
            News::Silent => {
                self.edit(|health| health.silent(now));
                // Ours may know better, and say so to all.
                self.ask();
            }
        }
    }

    fn tell(&self, news: News) {
        let Some((peers, own)) = &self.peers else { return };
        for worker in (0..peers.count()).filter(|worker| worker != own) {
            let name = self.name.clone();
            // A worker whose queue is full finds out by itself.
            let _ = peers
                .try_run(worker, Box::new(move |worker| worker.loads.node(&name).told(news, Instant::now())));
        }
    }

    fn edit<R>(&self, edit: impl FnOnce(&mut Outlier) -> R) -> R {
        let mut health = self.health.get();
        let result = edit(&mut health);
        self.health.set(health);
        result
    }
}
