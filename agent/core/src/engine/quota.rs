//! What the routes of one namespace may hold together: which of them are served, and the programs of their patterns.
//!
//! Counted are routes with a parent of ours. Those that are left out are always the newest: the first that no longer fits,
//! and every one made after it. So it depends on the routes alone, and every engine comes to the same verdict. Messages
//! name the budget and what the route itself asks for, not what the others do: a route that comes or goes changes no
//! condition of another whose verdict stays.

use crate::{
    budget::{self, Budget, MATCHES, NAMESPACE_PATTERNS, ROUTE_PATTERNS, ROUTES},
    model::{Program, RouteKind, Str},
    resolve::{Problem, ResolvedRoute, RouteId, reason},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

/// What a text beside its program costs, or the reason why it has none, in bytes.
const TEXT: usize = 256;

/// Older first, then by name.
type Age = (i64, Str, RouteKind);

/// A program, or why there is none.
pub(super) type Compiled = Result<Arc<Program>, Str>;

/// What is against a route.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Denied {
    /// It is not served at all.
    LeftOut(Problem),
    /// Its patterns are not compiled: requests that it might match get 500.
    Patterns(Problem),
}

/// The accounts of all namespaces.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    accounts: HashMap<Str, Account>,
    ages: HashMap<RouteId, Age>,
    /// Namespaces whose routes have changed.
    changed: BTreeSet<Str>,
}

#[derive(Debug, Default)]
struct Account {
    routes: BTreeMap<Age, Demand>,
    matches: usize,
    /// A route with patterns has come, gone or changed.
    patterns_changed: bool,
    denied: BTreeMap<RouteId, Denied>,
    programs: BTreeMap<Str, Compiled>,
}

/// What a route asks for.
#[derive(Debug)]
struct Demand {
    id: RouteId,
    matches: usize,
    /// Each once.
    patterns: Vec<Str>,
}

impl Demand {
    fn of(id: &RouteId, route: &ResolvedRoute) -> Self {
        let rules = &route.route.rules;
        let patterns: BTreeSet<&Str> = route.route.patterns().map(|(_, p)| p.source()).collect();
        Self {
            id: id.clone(),
            matches: rules.iter().map(|r| r.matches.len().max(1)).sum(),
            patterns: patterns.into_iter().cloned().collect(),
        }
    }
}

impl Ledger {
    /// A route is there or has changed, or is gone. One without a parent of ours asks for nothing.
    pub(super) fn set(&mut self, id: &RouteId, route: Option<&ResolvedRoute>) {
        let namespace = &id.1.namespace;
        let account = self.accounts.entry(namespace.clone()).or_default();
        self.changed.insert(namespace.clone());
        if let Some(old) = self.ages.remove(id).and_then(|age| account.routes.remove(&age)) {
            account.matches -= old.matches;
            account.patterns_changed |= !old.patterns.is_empty();
        }
        let ours = |r: &&ResolvedRoute| r.gateway_rules.is_some() || r.mesh_rules.is_some();
        if let Some(route) = route.filter(ours) {
            let demand = Demand::of(id, route);
            let age = (route.route.meta.created, id.1.name.clone(), id.0);
            account.matches += demand.matches;
            account.patterns_changed |= !demand.patterns.is_empty();
            account.routes.insert(age.clone(), demand);
            self.ages.insert(id.clone(), age);
        }
    }

    /// Judges the namespaces that have changed. Gives the routes whose verdict is another one.
    pub(super) fn settle(&mut self) -> BTreeSet<RouteId> {
        let mut moved = BTreeSet::new();
        for namespace in std::mem::take(&mut self.changed) {
            let Some(account) = self.accounts.get_mut(&namespace) else { continue };
            account.settle(&namespace, &mut moved);
            if account.routes.is_empty() {
                self.accounts.remove(&namespace);
            }
        }
        moved
    }

    /// What is against a route.
    pub(super) fn denied(&self, id: &RouteId) -> Option<&Denied> {
        self.accounts.get(&id.1.namespace)?.denied.get(id)
    }

    /// The program of a pattern that a route of the namespace has.
    pub(super) fn program(&self, namespace: &Str, source: &Str) -> Option<&Compiled> {
        self.accounts.get(namespace)?.programs.get(source)
    }

    /// Bytes that the programs of a namespace take.
    #[cfg(test)]
    pub(super) fn held(&self, namespace: &str) -> usize {
        let account = self.accounts.get(namespace);
        account.map_or(0, |a| a.programs.iter().map(|(source, compiled)| cost(source, compiled)).sum())
    }
}

impl Account {
    fn settle(&mut self, namespace: &Str, moved: &mut BTreeSet<RouteId>) {
        let fits = self.routes.len() <= ROUTES.size() && self.matches <= MATCHES.size();
        if fits && self.denied.is_empty() && !self.patterns_changed {
            return;
        }
        self.patterns_changed = false;
        let before = std::mem::take(&mut self.denied);
        let mut walk = Walk { namespace, known: std::mem::take(&mut self.programs), ..Walk::new(namespace) };
        for demand in self.routes.values() {
            if let Some(denied) = walk.judge(demand) {
                self.denied.insert(demand.id.clone(), denied);
            }
        }
        self.programs = walk.programs;
        let ids = before.keys().chain(self.denied.keys());
        moved.extend(ids.filter(|id| before.get(id) != self.denied.get(id)).cloned());
    }
}

/// One look at all routes of a namespace, from the oldest.
struct Walk<'a> {
    namespace: &'a Str,
    /// Programs of before.
    known: BTreeMap<Str, Compiled>,
    programs: BTreeMap<Str, Compiled>,
    routes: usize,
    matches: usize,
    bytes: usize,
    /// The budget that is used up, for every route that follows.
    full: Option<&'static Budget>,
    /// As `full`, for routes with patterns.
    patterns_full: bool,
}

impl<'a> Walk<'a> {
    fn new(namespace: &'a Str) -> Self {
        Self {
            namespace,
            known: BTreeMap::new(),
            programs: BTreeMap::new(),
            routes: 0,
            matches: 0,
            bytes: 0,
            full: None,
            patterns_full: false,
        }
    }

    fn judge(&mut self, demand: &Demand) -> Option<Denied> {
        self.routes += 1;
        self.matches += demand.matches;
        if self.full.is_none() {
            self.full = [(&ROUTES, self.routes), (&MATCHES, self.matches)]
                .into_iter()
                .find_map(|(budget, used)| (used > budget.size()).then_some(budget));
        }
        if let Some(budget) = self.full {
            return Some(Denied::LeftOut(self.used_up(budget, demand, "it is not served")));
        }
        if demand.patterns.is_empty() {
            return None;
        }
        if !self.patterns_full {
            match self.compile(demand) {
                Ok(true) => return None,
                Ok(false) => self.patterns_full = true,
                Err(problem) => return Some(Denied::Patterns(problem)),
            }
        }
        let effect = "requests that it might match get 500";
        Some(Denied::Patterns(self.used_up(&NAMESPACE_PATTERNS, demand, effect)))
    }

    /// Whether all patterns of a route fit into what the namespace has left; an error when they are too much for any route.
    fn compile(&mut self, demand: &Demand) -> Result<bool, Problem> {
        let (mut own, mut new, mut fresh) = (0, 0, BTreeMap::new());
        for (index, source) in demand.patterns.iter().enumerate() {
            let compiled = match self.programs.get(source) {
                Some(shared) => shared.clone(),
                None => {
                    let compiled = self.known.get(source).cloned().unwrap_or_else(|| compile(source));
                    new += cost(source, &compiled);
                    fresh.insert(source.clone(), compiled.clone());
                    compiled
                }
            };
            own += cost(source, &compiled);
            if own > ROUTE_PATTERNS.size() {
                let (all, first) = (demand.patterns.len(), index + 1);
                return Err(Problem::new(
                    reason::UNSUPPORTED_VALUE,
                    format!(
                        "the route has {all} regular expressions, of which {first} take {} KiB compiled; the budget {} is \
                         {} for each route. Requests that it might match get 500.",
                        own >> 10,
                        ROUTE_PATTERNS.name,
                        budget::amount(&ROUTE_PATTERNS)
                    ),
                ));
            }
            if self.bytes + new > NAMESPACE_PATTERNS.size() {
                return Ok(false);
            }
        }
        self.bytes += new;
        self.programs.extend(fresh);
        Ok(true)
    }

    fn used_up(&self, budget: &Budget, demand: &Demand, effect: &str) -> Problem {
        let Demand { matches, patterns, .. } = demand;
        let regular = if patterns.is_empty() {
            String::new()
        } else {
            format!(" and {} regular expressions", patterns.len())
        };
        Problem::new(
            reason::UNSUPPORTED_VALUE,
            format!(
                "the older routes of namespace {} leave too little of its budget {} ({}) for this route, which has \
                 {matches} matches{regular}: {effect}.",
                self.namespace,
                budget.name,
                budget::amount(budget)
            ),
        )
    }
}

fn compile(source: &Str) -> Compiled {
    Program::new(source).map(Arc::new).map_err(Str::from)
}

fn cost(source: &Str, compiled: &Compiled) -> usize {
    TEXT + source.len() + compiled.as_ref().map_or(0, |program| program.size())
}

/// The route as it is served under its verdict; unchanged when nothing is against it.
pub(super) fn admit(id: &RouteId, raw: &ResolvedRoute, ledger: &Ledger) -> Option<ResolvedRoute> {
    let mut out = raw.clone();
    match ledger.denied(id) {
        Some(Denied::LeftOut(problem)) => {
            for parent in &mut out.parents {
                refuse(&mut parent.accepted, problem);
                parent.attachments.clear();
            }
        }
        Some(Denied::Patterns(problem)) => {
            for parent in &mut out.parents {
                refuse(&mut parent.accepted, problem);
            }
            out.fail_rules(|_| true);
        }
        None => {
            let broken = broken(raw, ledger);
            if broken.is_empty() {
                return None;
            }
            out.fail_rules(|index| broken.iter().any(|(rule, _)| *rule == index));
            out.drop_rules(&broken);
        }
    }
    Some(out)
}

fn refuse(accepted: &mut Result<(), Problem>, problem: &Problem) {
    if accepted.is_ok() {
        *accepted = Err(problem.clone());
    }
}

/// Patterns of a route that cannot be compiled: their rules, and what to say.
fn broken(raw: &ResolvedRoute, ledger: &Ledger) -> Vec<(usize, Problem)> {
    let namespace = &raw.route.meta.key.namespace;
    let patterns = raw.route.patterns();
    let bad = patterns.filter_map(|(at, pattern)| {
        let why = ledger.program(namespace, pattern.source())?.as_ref().err()?;
        let message = format!(
            "{}: {why}; requests that meet the rest of this match get 500, they do not go to a wider rule",
            at.field()
        );
        Some((at.rule, Problem::new(reason::UNSUPPORTED_VALUE, message)))
    });
    bad.collect()
}
