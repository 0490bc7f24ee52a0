//! PURE: what happened to the pods of this node → what is to be done.
//!
//! [`Pods::on`] takes one event and returns actions; the manager carries them out and reports back with
//! another event. At most one piece of work runs per pod. An enrolled pod's ADD is answered with success only
//! when it is captured, and while it is not known whether a pod is enrolled, nothing about it changes.

use crate::{capture_config::CaptureConfig, holder::PodRecord};
use std::collections::{BTreeMap, BTreeSet};
use weft_core::model::TunnelPort;

/// Names a waiting caller.
pub type Ticket = u64;

/// Whether a pod is in the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Its traffic is to be captured, but for what the configuration leaves out.
    Enrolled(CaptureConfig),
    /// It is left alone.
    NotEnrolled,
    /// Not known yet (the pod has not been seen in the watch): ask again after a change.
    Unknown,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The holder knows this pod from an earlier agent.
    Found {
        /// The pod.
        record: PodRecord,
        /// Whether its rules are in place.
        captured: bool,
    },
    /// The table of a captured pod is not as this agent has put it in place.
    TableOutdated {
        /// Container ID.
        id: String,
    },
    /// A sandbox was made; the caller wants to know when its pod may start.
    Added {
        /// The pod.
        record: PodRecord,
        /// The caller.
        ticket: Ticket,
    },
    /// A sandbox is gone.
    Deleted {
        /// Its container ID.
        id: String,
    },
    /// Only these sandboxes exist.
    OnlyThese(BTreeSet<String>),
    /// Decisions may be others than before.
    EnrolmentChanged,
    /// Work of [`Action::Capture`] has ended.
    CaptureEnded {
        /// Container ID.
        id: String,
        /// What went wrong.
        result: Result<(), String>,
    },
    /// Work of [`Action::Release`] has ended.
    ReleaseEnded {
        /// Container ID.
        id: String,
        /// What went wrong; the pod stays captured then.
        result: Result<(), String>,
    },
    /// The time asked for by [`Action::RetryLater`] has come.
    Retry {
        /// Container ID.
        id: String,
    },
    /// The caller has waited long enough to learn whether the pod is enrolled.
    DecisionOverdue(Ticket),
    /// The caller has waited long enough altogether.
    Overdue(Ticket),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Capture the pod, or bring its rules up to date; ends with [`Event::CaptureEnded`].
    Capture {
        /// Container ID.
        id: String,
        /// What to leave out.
        config: CaptureConfig,
    },
    /// Take capture away, drained; ends with [`Event::ReleaseEnded`].
    Release {
        /// Container ID.
        id: String,
    },
    /// The pod is gone: let go of everything about it.
    Forget {
        /// Container ID.
        id: String,
    },
    /// Answer a caller.
    Reply {
        /// The caller.
        ticket: Ticket,
        /// The pod may start, or why not yet.
        result: Result<(), String>,
    },
    /// Send [`Event::Retry`] after a pause that grows with `attempt`.
    RetryLater {
        /// Container ID.
        id: String,
        /// 1 after the first failure.
        attempt: u32,
    },
}

/// The pods of this node.
#[derive(Debug, Default)]
pub struct Pods {
    pods: BTreeMap<String, Pod>,
}

#[derive(Debug)]
struct Pod {
    record: PodRecord,
    phase: Phase,
    waiting: Vec<Ticket>,
    failures: u32,
    /// Deleted while work was running: forgotten when that ends.
    gone: bool,
    /// Peers may count on its capture: from the first success (of this agent or one before it) until it is to end.
    /// A failed update of the rules changes nothing: the kernel has kept the old ones.
    stands: bool,
    /// What was last decided to leave out of its capture; `None` while nothing was.
    leaves_out: Option<CaptureConfig>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// Left alone.
    Idle,
    /// Captured by an earlier agent: rules and listeners are there, nobody accepts yet.
    Held,
    /// Work is running.
    Capturing(CaptureConfig),
    /// Captured.
    Captured(CaptureConfig),
    /// Work is running.
    Releasing,
}

/// Asks what a pod is to be.
pub type Decide<'a> = dyn Fn(&PodRecord) -> Decision + 'a;

impl Pods {
    /// Takes one event.
    pub fn on(&mut self, event: Event, decide: &Decide<'_>) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Found { record, captured } => self.found(record, captured, decide, &mut actions),
            Event::TableOutdated { id } => {
                if let Some(pod) = self.pods.get_mut(&id) {
                    if matches!(pod.phase, Phase::Captured(_)) {
                        pod.phase = Phase::Held;
                    }
                    pod.settle(&id, decide, &mut actions);
                }
            }
            Event::Added { record, ticket } => self.added(record, ticket, decide, &mut actions),
            Event::Deleted { id } => self.deleted(&id, &mut actions),
            Event::OnlyThese(valid) => {
                let gone: Vec<String> = self.pods.keys().filter(|id| !valid.contains(*id)).cloned().collect();
                gone.iter().for_each(|id| self.deleted(id, &mut actions));
            }
            Event::EnrolmentChanged => {
                self.pods.iter_mut().for_each(|(id, pod)| pod.settle(id, decide, &mut actions));
            }
            Event::CaptureEnded { id, result } => self.capture_ended(&id, result, decide, &mut actions),
            Event::ReleaseEnded { id, result } => self.release_ended(&id, result, decide, &mut actions),
            Event::Retry { id } => {
                if let Some(pod) = self.pods.get_mut(&id) {
                    pod.settle(&id, decide, &mut actions);
                }
            }
            Event::DecisionOverdue(ticket) => {
                let undecided = |pod: &Pod| !pod.is_busy() && decide(&pod.record) == Decision::Unknown;
                self.give_up(ticket, undecided, "not known yet whether this pod is enrolled", &mut actions);
            }
            Event::Overdue(ticket) => {
                self.give_up(ticket, |_| true, "the pod could not be protected in time", &mut actions);
            }
        }
        actions
    }

    /// Whether the pod is as it should be; `Err` says how not. A pod that is not known is as unknown to the mesh
    /// as it should be only when it is not enrolled.
    ///
    /// # Errors
    /// One line for the operator.
    pub fn check(&self, id: &str, record: &PodRecord, decide: &Decide<'_>) -> Result<(), String> {
        let phase = self.pods.get(id).map(|pod| &pod.phase);
        match (decide(record), phase) {
            (Decision::NotEnrolled, _) | (_, Some(Phase::Captured(_))) => Ok(()),
            (Decision::Unknown, _) => Err("not known yet whether this pod is enrolled".into()),
            (Decision::Enrolled(_), None) => Err("enrolled, but its network namespace is not known".into()),
            (Decision::Enrolled(_), Some(_)) => Err("enrolled, but not captured yet".into()),
        }
    }

    /// Every pod's record.
    pub fn records(&self) -> impl Iterator<Item = &PodRecord> {
        self.pods.values().map(|pod| &pod.record)
    }

    /// The pods whose capture stands, and where tunnels to them may come. What was decided last counts, not what the rules
    /// say: of an exclusion peers must hear before it is made, and an agent that starts must not take back for a moment
    /// what the one before it had said.
    pub fn standing(&self) -> impl Iterator<Item = (&PodRecord, TunnelPort)> {
        let standing = self.pods.values().filter(|pod| pod.stands && !pod.gone);
        standing.map(|pod| (&pod.record, pod.leaves_out.as_ref().map_or(TunnelPort::Hbone, tunnel_port)))
    }

    /// How many pods are captured, how many are on their way to be captured or released, and how many are known.
    #[must_use]
    pub fn counts(&self) -> (usize, usize, usize) {
        let captured = self.pods.values().filter(|p| matches!(p.phase, Phase::Captured(_))).count();
        let idle = self.pods.values().filter(|p| matches!(p.phase, Phase::Idle)).count();
        (captured, self.pods.len() - captured - idle, self.pods.len())
    }

    fn found(&mut self, record: PodRecord, captured: bool, decide: &Decide<'_>, actions: &mut Vec<Action>) {
        let id = record.container_id.clone();
        let phase = if captured { Phase::Held } else { Phase::Idle };
        let pod = self.pods.entry(id.clone()).or_insert_with(|| Pod::new(record, phase));
        pod.settle(&id, decide, actions);
    }

    fn added(&mut self, record: PodRecord, ticket: Ticket, decide: &Decide<'_>, actions: &mut Vec<Action>) {
        let id = record.container_id.clone();
        // A pod has one sandbox at a time: an older one has gone, and its DEL was missed or is late.
        let same_pod = |r: &PodRecord| r.namespace == record.namespace && r.name == record.name;
        let older = self.pods.iter().filter(|(other, pod)| **other != id && same_pod(&pod.record));
        let older: Vec<String> = older.map(|(other, _)| other.clone()).collect();
        older.iter().for_each(|other| self.deleted(other, actions));
        let pod = self.pods.entry(id.clone()).or_insert_with(|| Pod::new(record.clone(), Phase::Idle));
        pod.record = record;
        pod.waiting.push(ticket);
        pod.gone = false;
        pod.settle(&id, decide, actions);
    }

    fn deleted(&mut self, id: &str, actions: &mut Vec<Action>) {
        let Some(pod) = self.pods.get_mut(id) else { return };
        pod.reply(&Err("the sandbox was deleted".into()), actions);
        if pod.is_busy() {
            pod.gone = true;
        } else {
            self.pods.remove(id);
            actions.push(Action::Forget { id: id.to_owned() });
        }
    }

    fn capture_ended(
        &mut self,
        id: &str,
        result: Result<(), String>,
        decide: &Decide<'_>,
        actions: &mut Vec<Action>,
    ) {
        let Some(pod) = self.pods.get_mut(id) else { return };
        let Phase::Capturing(config) = &pod.phase else { return };
        if result.is_ok() {
            pod.phase = Phase::Captured(config.clone());
            pod.failures = 0;
            pod.stands = true;
        } else {
            // Held, not Idle: rules may be in place (an update failed), and a release must then take them away.
            pod.phase = Phase::Held;
        }
        self.ended(id, result, decide, actions);
    }

    fn release_ended(
        &mut self,
        id: &str,
        result: Result<(), String>,
        decide: &Decide<'_>,
        actions: &mut Vec<Action>,
    ) {
        let Some(pod) = self.pods.get_mut(id) else { return };
        if pod.phase != Phase::Releasing {
            return;
        }
        pod.phase = if result.is_ok() { Phase::Idle } else { Phase::Held };
        self.ended(id, result, decide, actions);
    }

    fn ended(
        &mut self,
        id: &str,
        result: Result<(), String>,
        decide: &Decide<'_>,
        actions: &mut Vec<Action>,
    ) {
        let Some(pod) = self.pods.get_mut(id) else { return };
        if pod.gone {
            self.pods.remove(id);
            actions.push(Action::Forget { id: id.to_owned() });
            return;
        }
        match result {
            Ok(()) => pod.settle(id, decide, actions),
            Err(_) => {
                // The runtime gives the sandbox up and makes another; a pod that runs is tried again.
                pod.reply(&result, actions);
                pod.failures = pod.failures.saturating_add(1);
                actions.push(Action::RetryLater { id: id.to_owned(), attempt: pod.failures });
            }
        }
    }

    fn give_up(&mut self, ticket: Ticket, when: impl Fn(&Pod) -> bool, why: &str, actions: &mut Vec<Action>) {
        let holder = self.pods.values_mut().find(|pod| pod.waiting.contains(&ticket));
        if let Some(pod) = holder.filter(|pod| when(pod)) {
            pod.waiting.retain(|t| *t != ticket);
            actions.push(Action::Reply { ticket, result: Err(why.into()) });
        }
    }
}

impl Pod {
    const fn new(record: PodRecord, phase: Phase) -> Self {
        let stands = matches!(phase, Phase::Held);
        Self { record, phase, waiting: Vec::new(), failures: 0, gone: false, stands, leaves_out: None }
    }

    const fn is_busy(&self) -> bool {
        matches!(self.phase, Phase::Capturing(_) | Phase::Releasing)
    }

    /// Compares what is with what should be, and starts the one piece of work that leads there.
    fn settle(&mut self, id: &str, decide: &Decide<'_>, actions: &mut Vec<Action>) {
        if self.is_busy() || self.gone {
            return;
        }
        let id = id.to_owned();
        let decision = decide(&self.record);
        if let Decision::Enrolled(config) = &decision {
            self.leaves_out = Some(config.clone());
        }
        match (decision, &self.phase) {
            // Fail closed: what is captured stays so until it is known that it should not be.
            (Decision::Unknown, Phase::Captured(_)) => self.reply(&Ok(()), actions),
            (Decision::Unknown, _) => {}
            (Decision::Enrolled(want), Phase::Captured(have)) if want == *have => {
                self.reply(&Ok(()), actions);
            }
            (Decision::Enrolled(config), _) => {
                self.phase = Phase::Capturing(config.clone());
                actions.push(Action::Capture { id, config });
            }
            (Decision::NotEnrolled, Phase::Idle) => self.reply(&Ok(()), actions),
            (Decision::NotEnrolled, _) => {
                self.phase = Phase::Releasing;
                self.stands = false;
                actions.push(Action::Release { id });
            }
        }
    }

    fn reply(&mut self, result: &Result<(), String>, actions: &mut Vec<Action>) {
        let replies = self.waiting.drain(..);
        actions.extend(replies.map(|ticket| Action::Reply { ticket, result: result.clone() }));
    }
}

/// A tunnel for a port that is not captured would meet the application. Peers that are left alone by their address cannot
/// know it: then all come to 15008, which is never captured.
fn tunnel_port(config: &CaptureConfig) -> TunnelPort {
    if config.inbound_cidrs.is_empty() {
        TunnelPort::application(config.inbound_ports.iter().copied())
    } else {
        TunnelPort::Hbone
    }
}

#[cfg(test)]
#[path = "state/tests.rs"]
mod tests;
