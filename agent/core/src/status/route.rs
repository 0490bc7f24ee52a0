//! Routes: one entry for each parent of ours.

use super::{Condition, ObjectStatus, RouteParentStatus, observed};
use crate::{
    compile::Verdict,
    resolve::{Problem, ResolvedParent, ResolvedRoute, ResolvedRules, Slot, reason},
};
use std::collections::BTreeSet;

/// What else decides about a route than its own resolution.
pub(crate) trait Slots {
    /// What there is to say about the route at a slot.
    fn verdict(&self, slot: &Slot) -> Option<&Verdict>;
    /// Why a slot serves nobody at the moment, whoever is attached to it: a listener that cannot serve, a Service that nobody
    /// calls through the mesh.
    fn idle(&self, slot: &Slot) -> Option<String>;
}

/// The status of a route. `None` without a parent of ours.
pub(crate) fn route_status(route: &ResolvedRoute, slots: &impl Slots) -> Option<ObjectStatus> {
    let generation = route.route.meta.generation;
    let entry = |parent: &ResolvedParent| RouteParentStatus {
        parent: route.route.parents[parent.index].clone(),
        conditions: observed(generation, conditions(route, parent, slots)),
    };
    let parents: Vec<_> = route.parents.iter().map(entry).collect();
    (!parents.is_empty()).then_some(ObjectStatus::Route { parents })
}

fn conditions(route: &ResolvedRoute, parent: &ResolvedParent, slots: &impl Slots) -> Vec<Condition> {
    let Some(rules) = route.rules(parent.domain) else {
        // The parent is missing: there is nothing to say about references.
        let missing = parent.accepted.as_ref().err();
        return missing.map(|p| Condition::no("Accepted", p)).into_iter().collect();
    };
    let accepted = accepted(parent, rules, slots);
    let partially = accepted.is_ok() && !rules.dropped.is_empty();
    let accepted = match accepted {
        Ok(message) => Condition::yes("Accepted", reason::ACCEPTED, message),
        Err(problem) => Condition::no("Accepted", &problem),
    };
    let mut out = vec![accepted, Condition::refs(&Problem::join(rules.refs.clone()))];
    if partially {
        out.push(Condition::yes("PartiallyInvalid", reason::UNSUPPORTED_VALUE, dropped(rules)));
    }
    out
}

fn accepted(parent: &ResolvedParent, rules: &ResolvedRules, slots: &impl Slots) -> Result<String, Problem> {
    parent.accepted.clone()?;
    if rules.all_dropped() {
        // Fails closed: requests that it would match answer 500, they do not fall through to another route.
        let reason = rules.dropped.first().map_or(reason::UNSUPPORTED_VALUE, |(_, p)| p.reason);
        return Err(Problem::new(reason, dropped(rules)));
    }
    let verdicts: Vec<_> = parent.attachments.iter().filter_map(|a| slots.verdict(&a.slot)).collect();
    let rejections: Vec<_> = verdicts.iter().filter_map(|v| v.rejected.as_ref()).collect();
    let everywhere = !rejections.is_empty() && rejections.len() == parent.attachments.len();
    if let Some(problem) = rejections.first().filter(|_| everywhere) {
        return Err((*problem).clone());
    }
    let mut sentences = vec!["The route is attached.".to_owned()];
    sentences.extend(parent.notes.iter().cloned());
    sentences.extend(rules.notes.iter().cloned());
    sentences.extend(rejections.iter().map(|p| format!("Not on every listener or port: {}.", p.message)));
    sentences.extend(verdicts.iter().flat_map(|v| v.notes.iter().cloned()));
    let idle = parent.attachments.iter().map(|a| slots.idle(&a.slot)).collect::<Option<Vec<_>>>();
    if let Some(mut idle) = idle {
        // Each port of a Service says the same.
        idle.dedup();
        // Acceptance is not about serving; but who reads only this must not be led to think that it serves.
        sentences.push(format!("Gets no traffic now: {}.", idle.join("; ")));
    }
    let mut seen = BTreeSet::new();
    sentences.retain(|s| seen.insert(s.clone()));
    Ok(sentences.join(" "))
}

/// `PartiallyInvalid` must start with "Dropped Rule" (shared_types.go).
fn dropped(rules: &ResolvedRules) -> String {
    let one = |(index, problem): &(usize, Problem)| format!("rules[{index}]: {}", problem.message);
    let all: Vec<_> = rules.dropped.iter().map(one).collect();
    format!("Dropped Rule: {}", all.join("; "))
}
