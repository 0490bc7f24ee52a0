//! Which nodes' pods may be called not ready only because their node is, or was. Pure: the time is given.
//!
//! A node that has not renewed its lease is called not ready, and with it every pod on it, however well they serve: after
//! an API server that was away for a minute that is said of whole clusters. The pods are called ready again by their
//! kubelets, some seconds after their node; and what is heard of nodes and of endpoints comes by two watches, in any
//! order.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};
use weft_core::model::{Doubt, Str};

/// From a node's return until its pods' readiness is believed: kubelets look at their pods every 10 s.
const STEADY: Duration = Duration::from_secs(60);

/// What is known of nodes in this respect.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    /// Nodes that are not ready, or until when they are doubted.
    nodes: BTreeMap<Str, Option<Instant>>,
    /// The watch of nodes is broken.
    lost: bool,
    /// It was until a moment ago.
    everywhere_until: Option<Instant>,
}

impl Doubts {
    /// A node is there or has changed; `was` is the condition before, if the node was there.
    pub(super) fn node(&mut self, name: &Str, was: Option<bool>, ready: bool, now: Instant) {
        match (was, ready) {
            (_, false) => drop(self.nodes.insert(name.clone(), None)),
            (Some(false), true) => drop(self.nodes.insert(name.clone(), Some(now + STEADY))),
            // New, or made anew under its name: nothing is known against it.
            (None, true) => drop(self.nodes.remove(name)),
            (Some(true), true) => {}
        }
    }

    /// A node is no more.
    pub(super) fn gone(&mut self, name: &Str) {
        self.nodes.remove(name);
    }

    /// All nodes have been listed: of others nothing is to be kept.
    pub(super) fn listed(&mut self, is_there: impl Fn(&str) -> bool) {
        self.nodes.retain(|name, _| is_there(name));
    }

    /// Nothing is heard of nodes any more.
    pub(super) fn lost(&mut self) {
        self.lost = true;
    }

    /// The watch of nodes stands.
    pub(super) fn found(&mut self, now: Instant) {
        if std::mem::take(&mut self.lost) {
            self.everywhere_until = Some(now + STEADY);
        }
    }

    /// What is in doubt now, and when that will be less by itself.
    pub(super) fn at(&mut self, now: Instant) -> (Doubt, Option<Instant>) {
        let passed = |until: &Option<Instant>| until.is_some_and(|at| at <= now);
        self.nodes.retain(|_, until| !passed(until));
        self.everywhere_until = self.everywhere_until.filter(|at| *at > now);
        if self.lost {
            return (Doubt::Everywhere, None);
        }
        if let Some(until) = self.everywhere_until {
            return (Doubt::Everywhere, Some(until));
        }
        let next = self.nodes.values().flatten().min().copied();
        (Doubt::Nodes(Arc::new(self.nodes.keys().cloned().collect())), next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    enum Happens {
        Node(&'static str, Option<bool>, bool),
        Gone(&'static str),
        Listed(&'static str),
        Lost,
        Found,
    }
    use Happens::{Found, Gone, Listed, Lost, Node};

    /// What happens at which second, and what is in doubt at which: `*` is everywhere.
    fn check(what: &[(u64, Happens)], expected: &[(u64, &str)]) {
        let start = Instant::now();
        let mut doubts = Doubts::default();
        let mut events = what.iter().peekable();
        for (second, names) in expected {
            while let Some((at, event)) = events.next_if(|(at, _)| at <= second) {
                let now = start + Duration::from_secs(*at);
                match event {
                    Node(name, was, ready) => doubts.node(&(*name).into(), *was, *ready, now),
                    Gone(name) => doubts.gone(&(*name).into()),
                    Listed(names) => doubts.listed(|name| names.split(' ').any(|n| n == name)),
                    Lost => doubts.lost(),
                    Found => doubts.found(now),
                }
            }
            let text = match doubts.at(start + Duration::from_secs(*second)).0 {
                Doubt::Everywhere => "*".to_owned(),
                Doubt::Nodes(nodes) => nodes.iter().map(|n| &**n).collect::<Vec<_>>().join(" "),
            };
            assert_eq!(text, *names, "after {second} s");
        }
    }

    #[test]
    fn nodes_are_in_doubt_until_they_were_ready_for_a_minute() {
        check(&[(0, Node("a", None, true)), (1, Node("b", None, true))], &[(2, ""), (100, "")]);
        check(
            &[
                (0, Node("a", Some(true), false)),
                (5, Node("b", None, false)),
                (300, Node("a", Some(false), true)),
                (310, Node("a", Some(true), true)),
            ],
            &[(1, "a"), (299, "a b"), (301, "a b"), (359, "a b"), (361, "b")],
        );
        check(&[(0, Node("a", Some(true), false)), (3, Gone("a"))], &[(1, "a"), (4, "")]);
        // Gone while nothing was heard, and another one under its name.
        check(&[(0, Node("a", Some(true), false)), (3, Listed("b c"))], &[(1, "a"), (4, "")]);
        check(&[(0, Node("a", Some(true), false)), (3, Node("a", None, true))], &[(1, "a"), (4, "")]);
        // Back and away again: the first return's minute does not end the second absence.
        check(
            &[
                (0, Node("a", None, false)),
                (1, Node("a", Some(false), true)),
                (9, Node("a", Some(true), false)),
            ],
            &[(10, "a"), (100, "a")],
        );
    }

    #[test]
    fn all_are_in_doubt_while_nothing_is_heard_of_nodes_and_a_minute_longer() {
        check(&[(0, Found)], &[(1, "")]);
        check(
            &[(0, Node("a", None, false)), (10, Lost), (20, Lost), (400, Found), (430, Found)],
            &[(9, "a"), (11, "*"), (399, "*"), (459, "*"), (461, "a")],
        );
    }

    #[test]
    fn says_when_to_look_again() {
        let now = Instant::now();
        let mut doubts = Doubts::default();
        doubts.node(&"a".into(), Some(true), false, now);
        assert_eq!(doubts.at(now).1, None, "only the node's return ends it");
        doubts.node(&"a".into(), Some(false), true, now);
        doubts.node(&"b".into(), Some(false), true, now + Duration::from_secs(1));
        assert_eq!(doubts.at(now).1, Some(now + STEADY));
        doubts.lost();
        assert_eq!(doubts.at(now), (Doubt::Everywhere, None));
        doubts.found(now + Duration::from_secs(9));
        assert_eq!(doubts.at(now + STEADY).1, Some(now + STEADY + Duration::from_secs(9)));
    }
}
