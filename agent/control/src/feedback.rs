//! From what agents report to what the engine needs to say `Programmed`: what is reported is what runs, on every node
//! that serves the Gateway.

use std::{collections::BTreeMap, hash::Hasher, time::Duration};

use jiff::Timestamp;
use weft_core::{
    engine::Feedback,
    model::{Gateway, ListenerSet, ObjectKey, Placement, PlacementAddress, Snapshot, Str},
};

use crate::{
    auth::Serving,
    report::Watermark,
    server::{AgentReport, Agents},
};

/// An agent whose stream ended longer ago than this no longer counts.
const GONE: Duration = Duration::from_secs(10);

/// What must be applied before a Gateway is `Programmed`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// On each node that serves it.
    pub mark: Watermark,
    /// A port that one node could not bind makes the whole Gateway unready (HostPort), instead of just taking that
    /// node out of its endpoints.
    pub every_node: bool,
}

impl Watermark {
    /// The mark of a Gateway with the ListenerSets that name it and its Placement.
    #[must_use]
    pub fn of<'a>(
        gateway: &Gateway,
        sets: impl IntoIterator<Item = &'a ListenerSet>,
        placement: Option<&Placement>,
    ) -> Self {
        Self {
            uid: gateway.meta.uid.clone(),
            generation: gateway.meta.generation,
            sets: sets.into_iter().map(|set| (set.meta.key.clone(), set.meta.generation)).collect(),
            placement: placement_hash(placement),
        }
    }

    /// Whether an agent at this mark serves `wanted`, or something newer: it may see a change before we do.
    #[must_use]
    pub fn reaches(&self, wanted: &Self) -> bool {
        let sets = self.sets.keys().eq(wanted.sets.keys())
            && wanted.sets.iter().all(|(key, generation)| self.sets.get(key) >= Some(generation));
        self.uid == wanted.uid
            && self.generation >= wanted.generation
            && self.placement == wanted.placement
            && sets
    }
}

/// The marks of every Gateway of a Snapshot, ours or not: computed alike by agents and the controller.
#[must_use]
pub fn watermarks(snapshot: &Snapshot) -> BTreeMap<ObjectKey, Watermark> {
    let mut sets: BTreeMap<&ObjectKey, Vec<&ListenerSet>> = BTreeMap::new();
    for set in snapshot.listener_sets.values() {
        sets.entry(&set.parent).or_default().push(set);
    }
    let mark = |(key, gateway): (&ObjectKey, &std::sync::Arc<Gateway>)| {
        let placement = snapshot.placements.get(key).map(|placement| &**placement);
        let sets = sets.remove(key).unwrap_or_default();
        (key.clone(), Watermark::of(gateway, sets, placement))
    };
    snapshot.gateways.iter().map(mark).collect()
}

/// A number for what a Placement tells agents to serve: addresses and ports. Where a process itself listens is left
/// out, because that differs from node to node. The same in every build: FNV-1a, 64 bits.
#[must_use]
pub fn placement_hash(placement: Option<&Placement>) -> u64 {
    let Some(placement) = placement else { return 0 };
    let mut hash = Fnv::default();
    for address in &placement.addresses {
        match address {
            PlacementAddress::Ip(ip) => hash.text(1, &ip.to_string()),
            PlacementAddress::Hostname(name) => hash.text(2, name),
        }
    }
    for ((port, transport), target) in &placement.ports {
        hash.text(3, &format!("{port}/{transport:?}/{target}"));
    }
    hash.finish()
}

struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn text(&mut self, kind: u8, text: &str) {
        self.write(&[kind]);
        self.write(text.as_bytes());
        self.write(&[0]);
    }
}

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

/// Compares what agents serve with what they should: `expected` by Gateway, `serving` says on which nodes.
///
/// To a controller that only just leads no agent has connected yet, so that every Gateway is pending: the status writer holds
/// `Programmed` as the cluster has it until agents had the time to.
#[must_use]
pub fn feedback(
    expected: &BTreeMap<ObjectKey, Expected>,
    serving: &Serving,
    agents: &Agents,
    now: Timestamp,
) -> Feedback {
    let counts = |report: &AgentReport| {
        report.gone.is_none_or(|gone| Duration::try_from(now.duration_since(gone)).is_ok_and(|d| d < GONE))
            // A clock that was set back: the registry forgets in time.
            || report.gone.is_some_and(|gone| gone > now)
    };
    let mut feedback = Feedback::default();
    for (gateway, expected) in expected {
        let nodes = serving.get(gateway).into_iter().flatten();
        let live: Vec<(&Str, &AgentReport)> = nodes
            .filter_map(|node| Some((node, &**agents.get(node)?)))
            .filter(|(_, report)| counts(report))
            .collect();
        if let Some(awaited) = awaited(gateway, &expected.mark, &live) {
            feedback.pending.insert(gateway.clone(), awaited.into());
        }
        failures(gateway, expected.every_node, &live, &mut feedback);
    }
    feedback
}

/// What is awaited before all of `live` serve `wanted`.
fn awaited(gateway: &ObjectKey, wanted: &Watermark, live: &[(&Str, &AgentReport)]) -> Option<String> {
    if live.is_empty() {
        return Some("no node serves it: no agent of its nodes is connected".to_owned());
    }
    let behind = |report: &AgentReport| {
        !report.applied.get(gateway).is_some_and(|applied| applied.mark.reaches(wanted))
    };
    let mut late = live.iter().filter(|(_, report)| behind(report));
    let (node, report) = late.next()?;
    let others = match late.count() {
        0 => String::new(),
        more => format!(", nor have {more} more"),
    };
    Some(match report.applied.get(gateway) {
        Some(applied) if applied.mark.generation >= wanted.generation => {
            format!("node {node} has not applied its addresses and listener sets{others}")
        }
        _ => format!("node {node} has not applied generation {}{others}", wanted.generation),
    })
}

/// Ports and addresses that no node could bind, or that one could not where each must.
fn failures(gateway: &ObjectKey, every_node: bool, live: &[(&Str, &AgentReport)], feedback: &mut Feedback) {
    let applied = live.iter().filter_map(|(node, report)| Some((*node, report.applied.get(gateway)?)));
    let (mut ports, mut addresses) = (BTreeMap::new(), BTreeMap::new());
    for (node, applied) in applied {
        for (port, reason) in &applied.unbound {
            ports.entry(*port).or_insert_with(Vec::new).push((node, reason));
        }
        for (address, reason) in &applied.unusable {
            addresses.entry(*address).or_insert_with(Vec::new).push((node, reason));
        }
    }
    let text = |failed: &[(&Str, &Str)]| -> Option<Str> {
        let (node, reason) = failed.first()?;
        (every_node || failed.len() == live.len()).then(|| format!("node {node}: {reason}").into())
    };
    for ((port, transport), failed) in ports {
        if let Some(text) = text(&failed) {
            feedback.unbound.insert((gateway.clone(), port, transport), text);
        }
    }
    for (address, failed) in addresses {
        if let Some(text) = text(&failed) {
            feedback.unusable.insert((gateway.clone(), address), text);
        }
    }
}
