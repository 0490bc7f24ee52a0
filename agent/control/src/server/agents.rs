//! What agents have reported: kept while they are connected and a little longer.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use weft_core::model::Str;

use crate::report::{Applied, Captured, Reached};

/// The shortest time between two publications.
const PACE: Duration = Duration::from_millis(20);
/// Streams of one node at once: the agent's, and the next one's while it takes over.
const SESSIONS_PER_NODE: usize = 4;

/// Reports by node.
pub type Agents = BTreeMap<Str, Arc<AgentReport>>;

/// One agent, as it said last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentReport {
    /// Version of its build.
    pub version: Str,
    /// Tells two agents of one node apart.
    pub instance: Str,
    /// When its stream began.
    pub since: Timestamp,
    /// When it last said something new, or its stream ended.
    pub changed: Timestamp,
    /// When its stream ended, if it has: it may be back at once.
    pub gone: Option<Timestamp>,
    /// Whether it has said what it serves since the stream began. Until then `applied` and `captured` are what the
    /// node's agent said last: a restart must not make a Gateway or a captured pod blink.
    pub reported: bool,
    /// What it serves.
    pub applied: Arc<Applied>,
    /// Pods whose capture stands.
    pub captured: Arc<Captured>,
    /// Budgets that its workloads have reached lately.
    pub reached: Arc<Reached>,
}

/// Every agent.
pub(super) struct Registry {
    gone: Duration,
    state: Mutex<State>,
    dirty: Notify,
    sender: watch::Sender<Arc<Agents>>,
}

#[derive(Default)]
struct State {
    next: u64,
    nodes: BTreeMap<Str, BTreeMap<u64, Entry>>,
}

struct Entry {
    report: Arc<AgentReport>,
    forget: Option<Instant>,
    superseded: CancellationToken,
}

/// A stream's place in the registry; leaving it starts the time after which it is forgotten.
pub(super) struct Session {
    pub(super) node: Str,
    id: u64,
    shared: Arc<super::Shared>,
    /// Cancelled when too many newer streams of the node have come.
    pub(super) superseded: CancellationToken,
}

impl Registry {
    pub(super) fn new(gone: Duration) -> Self {
        let sender = watch::Sender::new(Arc::default());
        Self { gone, state: Mutex::default(), dirty: Notify::new(), sender }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<Agents>> {
        self.sender.subscribe()
    }

    /// Publishes changes, and forgets who has been gone for long. Never ends.
    pub(super) async fn publish(&self) {
        loop {
            let next = self.forget(Instant::now());
            let agents = self.current();
            self.sender.send_if_modified(|now| {
                let changed = **now != agents;
                if changed {
                    *now = Arc::new(agents);
                }
                changed
            });
            tokio::time::sleep(PACE).await;
            let idle = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.dirty.notified() => {}
                () = idle => {}
            }
        }
    }

    fn join(&self, node: &Str, mut report: AgentReport) -> (u64, CancellationToken) {
        let superseded = CancellationToken::new();
        let mut state = self.state.lock();
        state.next += 1;
        let id = state.next;
        let sessions = state.nodes.entry(node.clone()).or_default();
        if let Some(before) = best(sessions) {
            (report.applied, report.captured) = (before.applied.clone(), before.captured.clone());
        }
        let entry = Entry { report: Arc::new(report), forget: None, superseded: superseded.clone() };
        sessions.insert(id, entry);
        while sessions.len() > SESSIONS_PER_NODE {
            if let Some((_, oldest)) = sessions.pop_first() {
                oldest.superseded.cancel();
            }
        }
        drop(state);
        self.dirty.notify_one();
        (id, superseded)
    }

    fn edit(&self, node: &Str, id: u64, edit: impl FnOnce(&mut AgentReport)) {
        let mut state = self.state.lock();
        if let Some(entry) = state.nodes.get_mut(node).and_then(|sessions| sessions.get_mut(&id)) {
            let report = Arc::make_mut(&mut entry.report);
            edit(report);
            report.changed = Timestamp::now();
            entry.forget = report.gone.map(|_| Instant::now() + self.gone);
        }
        drop(state);
        self.dirty.notify_one();
    }

    /// Forgets whose time has come; says when the next one's comes.
    fn forget(&self, now: Instant) -> Option<Instant> {
        let mut state = self.state.lock();
        let mut next: Option<Instant> = None;
        state.nodes.retain(|_, sessions| {
            sessions.retain(|_, entry| entry.forget.is_none_or(|at| at > now));
            for at in sessions.values().filter_map(|entry| entry.forget) {
                next = Some(next.map_or(at, |next| next.min(at)));
            }
            !sessions.is_empty()
        });
        next
    }

    fn current(&self) -> Agents {
        let state = self.state.lock();
        let reports = state.nodes.iter().filter_map(|(node, sessions)| Some((node, best(sessions)?)));
        reports.map(|(node, report)| (node.clone(), report.clone())).collect()
    }
}

/// Of a node's streams the newest that stands and has reported, else the newest that stands, else the last to end:
/// while an agent is being replaced, the old one counts until the new one serves.
fn best(sessions: &BTreeMap<u64, Entry>) -> Option<&Arc<AgentReport>> {
    let rank = |(id, entry): &(&u64, &Entry)| {
        let report = &entry.report;
        (report.gone.is_none(), report.reported, report.gone, **id)
    };
    sessions.iter().max_by_key(rank).map(|(_, entry)| &entry.report)
}

impl Session {
    pub(super) fn join(shared: Arc<super::Shared>, node: Str, version: &str, instance: &str) -> Self {
        let now = Timestamp::now();
        let report = AgentReport {
            version: version.chars().take(64).collect::<String>().into(),
            instance: instance.chars().take(64).collect::<String>().into(),
            since: now,
            changed: now,
            gone: None,
            reported: false,
            applied: Arc::default(),
            captured: Arc::default(),
            reached: Arc::default(),
        };
        let (id, superseded) = shared.registry.join(&node, report);
        Self { node, id, shared, superseded }
    }

    pub(super) fn applied(&self, applied: Applied) {
        self.shared.registry.edit(&self.node, self.id, |report| {
            report.applied = Arc::new(applied);
            report.reported = true;
        });
    }

    pub(super) fn reached(&self, reached: Reached) {
        self.shared.registry.edit(&self.node, self.id, |report| report.reached = Arc::new(reached));
    }

    pub(super) fn captured(&self, captured: Captured) {
        self.shared.registry.edit(&self.node, self.id, |report| report.captured = Arc::new(captured));
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.registry.edit(&self.node, self.id, |report| report.gone = Some(Timestamp::now()));
    }
}
