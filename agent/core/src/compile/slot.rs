//! The table of one slot, from the routes attached to it; and what that means for each of them.

use super::rules::{CompiledRules, failing_tls, without_tls};
use crate::{
    config::{HttpRule, L4Rule, RuleId},
    matching::{Entry, HostMap, RouteTable},
    model::{Hostname, ObjectKey, RouteKind},
    resolve::{Problem, RouteId, reason},
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

/// What kind of table a slot has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotKind {
    /// HTTP and HTTPS listeners.
    Http,
    /// TLS listeners that terminate, and those that pass through.
    Tls { passthrough: bool },
    /// TCP and UDP listeners.
    L4,
    /// A Service port: the kind of highest precedence decides (GEP-1294).
    Port,
}

/// A route at a slot.
#[derive(Debug)]
pub(crate) struct SlotRoute<'a> {
    pub(crate) id: RouteId,
    pub(crate) created: i64,
    pub(crate) hostnames: Vec<Option<Hostname>>,
    pub(crate) rules: &'a CompiledRules,
    /// No rule of it can be served: it answers 500 and is not counted.
    pub(crate) broken: bool,
}

/// The compiled slot.
#[derive(Debug, Default)]
pub(crate) struct CompiledSlot {
    /// None when no route is left.
    pub(crate) table: Option<SlotTable>,
    /// Only of routes about which there is something to say.
    pub(crate) verdicts: BTreeMap<RouteId, Verdict>,
    /// `attachedRoutes`.
    pub(crate) attached: i32,
}

/// The table of a slot.
#[derive(Clone, Debug)]
pub(crate) enum SlotTable {
    Http(Arc<RouteTable<Arc<HttpRule>>>),
    Tls(HostMap<Arc<L4Rule>>),
    L4(Arc<L4Rule>),
}

/// What became of a route at a slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Not in the table: `Accepted=False`.
    pub(crate) rejected: Option<Problem>,
    /// Extra sentences for `Accepted`.
    pub(crate) notes: Vec<String>,
}

/// Builds a slot. The order of `routes` does not matter.
pub(crate) fn compile_slot(kind: SlotKind, mut routes: Vec<SlotRoute<'_>>) -> CompiledSlot {
    // Oldest first, then by name: the order in which ties are broken everywhere.
    routes.sort_by(|a, b| rank(a).cmp(&rank(b)));
    let mut out = CompiledSlot::default();
    let http = |r: &SlotRoute<'_>| matches!(r.id.0, RouteKind::Http | RouteKind::Grpc);
    match kind {
        SlotKind::Http => {
            cross_serving(&mut routes, &mut out);
            out.http(&routes);
        }
        SlotKind::Tls { passthrough } => out.tls(&routes, passthrough),
        SlotKind::L4 => out.l4(&routes),
        SlotKind::Port => {
            kind_precedence(&mut routes, &mut out);
            match routes.first() {
                Some(first) if http(first) => out.http(&routes),
                // The agent looks at the SNI and passes the bytes on.
                Some(first) if first.id.0 == RouteKind::Tls => out.tls(&routes, true),
                Some(_) => out.l4(&routes),
                None => {}
            }
        }
    }
    let counted = routes.iter().filter(|r| !r.broken).count();
    out.attached = i32::try_from(counted).unwrap_or(i32::MAX);
    out
}

/// Routes that cannot serve come last: a broken object never removes a good one.
fn rank<'r>(r: &'r SlotRoute<'_>) -> (bool, i64, &'r ObjectKey, RouteKind) {
    (r.broken, r.created, &r.id.1, r.id.0)
}

impl CompiledSlot {
    fn http(&mut self, routes: &[SlotRoute<'_>]) {
        let mut entries = Vec::new();
        for route in routes {
            for hostname in &route.hostnames {
                entries.extend(route.rules.http.iter().map(|m| Entry {
                    hostname: hostname.clone(),
                    matcher: m.matcher.clone(),
                    order: m.order.clone(),
                    policy: m.rule.clone(),
                }));
            }
        }
        if !routes.is_empty() {
            let table = RouteTable::build(entries);
            self.note_shadowed(&table);
            self.table = Some(SlotTable::Http(Arc::new(table)));
        }
    }

    /// Rules that no request ever reaches, because another has the same matches and comes first (GW#4303).
    fn note_shadowed(&mut self, table: &RouteTable<Arc<HttpRule>>) {
        // Comparing every match costs more than building the table: first see whether any two share host, path and
        // method at all. Equal paths have equal labels.
        let mut seen = HashSet::new();
        if table.iter().all(|e| seen.insert((&e.hostname, &e.policy.label, &e.matcher.method))) {
            return;
        }
        let shadowed = table.shadowed();
        if shadowed.is_empty() {
            return;
        }
        let mut reachable: HashMap<&RuleId, usize> = HashMap::new();
        for entry in table.iter() {
            *reachable.entry(&entry.policy.id).or_default() += 1;
        }
        let mut by: BTreeMap<(RouteId, u16), &RuleId> = BTreeMap::new();
        for pair in &shadowed {
            let rule = &pair.entry.policy.id;
            if let Some(left) = reachable.get_mut(rule) {
                *left -= 1;
            }
            by.entry(((rule.kind, rule.route.clone()), rule.index)).or_insert(&pair.by.policy.id);
        }
        let unreachable = |rule: &RuleId| reachable.get(rule) == Some(&0);
        for pair in &shadowed {
            let rule = &pair.entry.policy.id;
            let id = (rule.kind, rule.route.clone());
            // Once for each rule, with the rule that shadows its first match.
            if let Some(winner) = by.remove(&(id.clone(), rule.index)).filter(|_| unreachable(rule)) {
                let whose = if winner.kind == rule.kind && winner.route == rule.route {
                    format!("its own rules[{}]", winner.index)
                } else {
                    format!("{} {} rules[{}]", winner.kind.kind(), winner.route, winner.index)
                };
                self.verdicts.entry(id).or_default().notes.push(format!(
                    "rules[{}] is never reached: shadowed by {whose}, which has the same matches and comes first.",
                    rule.index
                ));
            }
        }
        for verdict in self.verdicts.values_mut() {
            verdict.notes.sort();
        }
    }

    fn tls(&mut self, routes: &[SlotRoute<'_>], passthrough: bool) {
        let mut taken: HashMap<&Option<Hostname>, &RouteId> = HashMap::new();
        let mut entries = Vec::new();
        for route in routes {
            let Some(rule) = &route.rules.l4 else { continue };
            let rule = if passthrough { without_tls(rule) } else { self.copied(&route.id, rule) };
            for hostname in &route.hostnames {
                if let Some(other) = taken.get(hostname) {
                    let name = hostname.as_ref().map_or("every hostname", |h| h.as_str());
                    let note = format!("{name} is served by the older {} {}.", other.0.kind(), other.1);
                    self.verdicts.entry(route.id.clone()).or_default().notes.push(note);
                } else {
                    taken.insert(hostname, &route.id);
                    entries.push((hostname.clone(), rule.clone()));
                }
            }
        }
        if !entries.is_empty() {
            self.table = Some(SlotTable::Tls(HostMap::build(entries)));
        }
    }

    /// Both routes are accepted, only the oldest serves (conformance TCPRouteMultipleRoutesAttachment).
    fn l4(&mut self, routes: &[SlotRoute<'_>]) {
        let mut serving = routes.iter().filter_map(|r| r.rules.l4.as_ref().map(|rule| (r, rule)));
        let Some((first, rule)) = serving.next() else { return };
        self.table = Some(SlotTable::L4(self.copied(&first.id, rule)));
        for (route, _) in serving {
            let note = format!("Gets no traffic: the older {} {} does.", first.id.0.kind(), first.id.1);
            self.verdicts.entry(route.id.clone()).or_default().notes.push(note);
        }
    }

    /// A rule whose connections are copied as they are; says so when that fails a backend.
    fn copied(&mut self, id: &RouteId, rule: &Arc<L4Rule>) -> Arc<L4Rule> {
        let Some(failing) = failing_tls(rule) else { return rule.clone() };
        let note = "Connections to backends under a BackendTLSPolicy fail: TLS to backends is spoken for HTTPRoutes and \
                    GRPCRoutes only.";
        self.verdicts.entry(id.clone()).or_default().notes.push(note.to_owned());
        failing
    }

    fn reject(&mut self, id: &RouteId, message: String) {
        let verdict = self.verdicts.entry(id.clone()).or_default();
        verdict.rejected = Some(Problem::new(reason::CONFLICTED, message));
    }
}

/// An HTTPRoute and a GRPCRoute of intersecting hostnames cannot share a listener: the older is accepted
/// (grpcroute_types.go, `hostnames`).
fn cross_serving(routes: &mut Vec<SlotRoute<'_>>, out: &mut CompiledSlot) {
    let kinds = |kind| routes.iter().any(|r| r.id.0 == kind);
    if !kinds(RouteKind::Http) || !kinds(RouteKind::Grpc) {
        return;
    }
    let mut kept: Vec<SlotRoute<'_>> = Vec::new();
    for route in routes.drain(..) {
        let hit = |a: &Option<Hostname>| route.hostnames.iter().any(|b| intersects(a, b));
        let rival = kept.iter().find(|k| k.id.0 != route.id.0 && k.hostnames.iter().any(hit));
        if let Some(rival) = rival {
            let message = format!(
                "the older {} {} has intersecting hostnames on this listener; HTTPRoutes and GRPCRoutes cannot share \
                 a hostname",
                rival.id.0.kind(),
                rival.id.1
            );
            out.reject(&route.id, message);
        } else {
            kept.push(route);
        }
    }
    *routes = kept;
}

fn intersects(a: &Option<Hostname>, b: &Option<Hostname>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => a.intersect(b).is_some(),
        _ => true,
    }
}

/// On one Service port GRPCRoute > HTTPRoute > TLSRoute > TCPRoute; the losers say so (GEP-1294).
fn kind_precedence(routes: &mut Vec<SlotRoute<'_>>, out: &mut CompiledSlot) {
    let best = |broken: bool| {
        let mut kinds = RouteKind::ALL.into_iter();
        kinds.find_map(|kind| routes.iter().find(|r| r.id.0 == kind && r.broken == broken))
    };
    let winner = best(false).or_else(|| best(true));
    let Some((kind, key)) = winner.map(|w| w.id.clone()) else { return };
    for loser in routes.iter().filter(|r| r.id.0 != kind) {
        let message = format!(
            "{} {key} is attached to the same Service port, and {} comes before {} there",
            kind.kind(),
            kind.kind(),
            loser.id.0.kind()
        );
        out.reject(&loser.id, message);
    }
    routes.retain(|r| r.id.0 == kind);
}
