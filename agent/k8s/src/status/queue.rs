//! Which object is next. No clock: `now` is an argument.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::Duration,
};
use tokio::time::Instant;
use weft_core::model::{Kind, ObjectRef, Str};

/// Holds each object once, so it is bounded by the number of objects. Kinds take turns, and within a kind namespaces:
/// five thousand routes of one namespace do not delay the one route of another.
#[derive(Debug, Default)]
pub(super) struct Queue {
    entries: HashMap<ObjectRef, Entry>,
    delayed: BTreeSet<(Instant, ObjectRef)>,
    ready: Turns,
    /// Everything that waits, by the time since when it does.
    waiting: BTreeSet<(Instant, ObjectRef)>,
}

#[derive(Debug)]
struct Entry {
    since: Instant,
    /// Not before this, whatever is asked: after a failure.
    floor: Option<Instant>,
    state: State,
    failures: u32,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Delayed(Instant),
    Ready,
    /// Taken out; `again` when it was pushed meanwhile.
    Running {
        again: bool,
    },
}

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Nothing is left to do.
    Done,
    /// It was pushed while it ran: push it again.
    Again,
}

impl Queue {
    /// Wants `object` to run `hold` after it began to wait, and not before `floor`. An object that waits already keeps
    /// its place and may only become due earlier or, for a longer `hold`, later.
    pub(super) fn push(&mut self, object: &ObjectRef, hold: Duration, floor: Option<Instant>, now: Instant) {
        let Some(entry) = self.entries.get_mut(object) else {
            let due = floor.map_or(now + hold, |f| f.max(now + hold));
            let entry = Entry { since: now, floor: None, state: State::Delayed(due), failures: 0 };
            self.entries.insert(object.clone(), entry);
            self.waiting.insert((now, object.clone()));
            self.delayed.insert((due, object.clone()));
            return;
        };
        match &mut entry.state {
            State::Ready => {}
            State::Running { again } => *again = true,
            State::Delayed(due) => {
                let floor = entry.floor.max(floor);
                let new = floor.map_or(entry.since + hold, |f| f.max(entry.since + hold));
                self.delayed.remove(&(*due, object.clone()));
                *due = new;
                self.delayed.insert((new, object.clone()));
            }
        }
    }

    /// The next object that is due, by turns.
    pub(super) fn pop(&mut self, now: Instant) -> Option<ObjectRef> {
        while self.delayed.first().is_some_and(|(due, _)| *due <= now) {
            if let Some((_, object)) = self.delayed.pop_first() {
                if let Some(entry) = self.entries.get_mut(&object) {
                    entry.state = State::Ready;
                }
                self.ready.push(object);
            }
        }
        let object = self.ready.pop()?;
        if let Some(entry) = self.entries.get_mut(&object) {
            entry.state = State::Running { again: false };
            self.waiting.remove(&(entry.since, object.clone()));
        }
        Some(object)
    }

    /// When something will be due. None while nothing is delayed; what is due already is not looked at.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.delayed.first().map(|(due, _)| *due)
    }

    /// The run of an object succeeded, or there is nothing to do for it.
    pub(super) fn done(&mut self, object: &ObjectRef) -> Ended {
        match self.entries.remove(object) {
            Some(Entry { state: State::Running { again: true }, .. }) => Ended::Again,
            _ => Ended::Done,
        }
    }

    /// The run failed: `wait` says how long to wait, by the number of failures in a row.
    pub(super) fn failed(&mut self, object: &ObjectRef, now: Instant, wait: impl Fn(u32) -> Duration) {
        let Some(entry) = self.entries.get_mut(object) else { return };
        entry.failures = entry.failures.saturating_add(1);
        let due = now + wait(entry.failures);
        entry.floor = Some(due);
        entry.state = State::Delayed(due);
        self.delayed.insert((due, object.clone()));
        self.waiting.insert((entry.since, object.clone()));
    }

    /// Whether the run before failed.
    pub(super) fn has_failed(&self, object: &ObjectRef) -> bool {
        self.entries.get(object).is_some_and(|e| e.failures > 0)
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Since when the oldest waits.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.waiting.first().map(|(since, _)| *since)
    }
}

/// Kinds in a ring, in each its namespaces in a ring, in each its objects in order.
#[derive(Debug, Default)]
struct Turns {
    kinds: VecDeque<Kind>,
    lanes: BTreeMap<Kind, Lane>,
}

#[derive(Debug, Default)]
struct Lane {
    ring: VecDeque<Str>,
    objects: HashMap<Str, VecDeque<ObjectRef>>,
}

impl Turns {
    fn push(&mut self, object: ObjectRef) {
        let lane = self.lanes.entry(object.kind).or_default();
        if lane.ring.is_empty() {
            self.kinds.push_back(object.kind);
        }
        let namespace = object.key.namespace.clone();
        let objects = lane.objects.entry(namespace.clone()).or_default();
        if objects.is_empty() {
            lane.ring.push_back(namespace);
        }
        objects.push_back(object);
    }

    fn pop(&mut self) -> Option<ObjectRef> {
        let kind = self.kinds.pop_front()?;
        let object = self.lanes.get_mut(&kind)?.pop();
        if self.lanes.get(&kind).is_some_and(|l| !l.ring.is_empty()) {
            self.kinds.push_back(kind);
        }
        object
    }
}

impl Lane {
    fn pop(&mut self) -> Option<ObjectRef> {
        let namespace = self.ring.pop_front()?;
        let objects = self.objects.get_mut(&namespace)?;
        let object = objects.pop_front();
        if objects.is_empty() {
            self.objects.remove(&namespace);
        } else {
            self.ring.push_back(namespace);
        }
        object
    }
}

#[cfg(test)]
mod tests;
