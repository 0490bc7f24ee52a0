//! Routes of one namespace that take requests which a route of another would get. By the specification's precedence that is
//! right, so that no condition says it: a longer match wins, then the older route. Whether it is meant only people know.

use super::Engine;
use crate::{
    budget,
    engine::state::RouteState,
    model::{Hostname, Match, ObjectKey, ObjectRef, PathMatch},
    resolve::{Domain, RouteId, Slot},
};
use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
};

/// Overlaps that one route is told of.
const OF_ROUTE_MAX: usize = 3;
/// Namespaces that are looked at for one path of one host.
const NAMESPACES_MAX: usize = 4;
/// Comparisons for one look at everything: some tens of milliseconds. What is beyond it is not looked at.
const STEPS_MAX: usize = 200_000;

/// One route takes requests of another's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Overlap {
    /// Who gets them.
    pub taker: ObjectRef,
    /// Who would get them otherwise.
    pub loser: ObjectRef,
    /// Which requests, where.
    pub message: String,
}

/// One match of a route at a hostname of a listener.
struct Claim<'a> {
    id: &'a RouteId,
    created: i64,
    exact: bool,
    /// How much else it asks for: method, headers, query parameters.
    more: usize,
}

impl<'a> Claim<'a> {
    /// The order in which those of one path are asked.
    fn rank(&self) -> (bool, usize, i64, &'a ObjectKey) {
        (!self.exact, usize::MAX - self.more, self.created, &self.id.1)
    }
}

/// Of each path, the first claim of each namespace, in the order in which they are asked.
type Paths<'a> = BTreeMap<Cow<'a, str>, Vec<Claim<'a>>>;

impl Engine {
    /// Overlaps of routes of different namespaces on one listener, ascending, as many as people read. A route without a
    /// hostname on a listener without one asks for what nobody else names, so that nothing is taken from it by naming. Costs
    /// a walk over all routes of shared listeners: for people who ask, not for each apply.
    #[must_use]
    pub fn overlaps(&self) -> Vec<Overlap> {
        let mut finder = Finder::default();
        for (slot, routes) in &self.state.attached {
            let Slot::Listener { gateway, .. } = slot else { continue };
            let mut namespaces = routes.iter().map(|(_, key)| &key.namespace);
            let first = namespaces.next();
            if namespaces.all(|other| Some(other) == first) {
                continue;
            }
            let known = routes.iter().filter_map(|id| Some((id, self.state.routes.get(id)?)));
            finder.gateway = gateway.to_string();
            finder.slot(&hosts(slot, known));
        }
        finder.found.into_values().collect()
    }
}

/// What is asked for at a listener, by host ("" is every one) and path.
fn hosts<'a>(
    slot: &Slot,
    routes: impl Iterator<Item = (&'a RouteId, &'a RouteState)>,
) -> BTreeMap<&'a str, Paths<'a>> {
    let mut hosts: BTreeMap<&str, Paths<'_>> = BTreeMap::new();
    for (id, state) in routes {
        let parents = state.resolved.parents.iter().filter(|p| p.domain == Domain::Gateway);
        let here = parents.flat_map(|p| &p.attachments).filter(|a| a.slot == *slot);
        for host in here.flat_map(|a| &a.hostnames) {
            let paths = hosts.entry(host.as_ref().map_or("", Hostname::as_str)).or_default();
            for (path, claim) in claims(id, state) {
                paths.entry(path).or_default().push(claim);
            }
        }
    }
    for claims in hosts.values_mut().flat_map(BTreeMap::values_mut) {
        claims.sort_by(|a, b| a.rank().cmp(&b.rank()));
        let mut seen: Vec<&str> = Vec::new();
        claims.retain(|claim| {
            let namespace = &*claim.id.1.namespace;
            let new = !seen.contains(&namespace) && seen.len() < NAMESPACES_MAX;
            seen.extend(new.then_some(namespace));
            new
        });
    }
    hosts
}

#[derive(Default)]
struct Finder {
    /// Of the slot that is looked at.
    gateway: String,
    found: BTreeMap<(ObjectRef, ObjectRef), Overlap>,
    of_route: HashMap<ObjectRef, usize>,
    steps: usize,
}

/// A host, and a path there.
#[derive(Clone, Copy)]
struct At<'a>(&'a str, &'a str);

impl Finder {
    fn slot(&mut self, hosts: &BTreeMap<&str, Paths<'_>>) {
        for (host, paths) in hosts {
            for (path, claims) in paths {
                let at = At(host, path);
                // The first of a path takes from the others of it, and all of them from those of the prefixes above.
                if let [first, others @ ..] = &claims[..] {
                    self.take(std::slice::from_ref(first), at, others, at);
                }
                for prefix in above(path) {
                    self.take_at(claims, at, (paths, At(host, prefix)));
                }
                for wildcard in wildcards(host) {
                    let Some(wider) = hosts.get(wildcard.as_str()) else { continue };
                    for prefix in std::iter::once(&**path).chain(above(path)) {
                        self.take_at(claims, at, (wider, At(&wildcard, prefix)));
                    }
                }
                if self.steps > STEPS_MAX || self.found.len() >= budget::OVERLAPS.size() {
                    return;
                }
            }
            self.beneath(hosts, host);
        }
    }

    /// What the prefixes of a host take of longer paths at wildcards that cover it.
    fn beneath(&mut self, hosts: &BTreeMap<&str, Paths<'_>>, host: &str) {
        let Some(paths) = hosts.get(host) else { return };
        for wildcard in wildcards(host) {
            for (path, losers) in hosts.get(wildcard.as_str()).into_iter().flatten() {
                for prefix in above(path) {
                    let takers = paths.get(prefix).map_or(&[][..], Vec::as_slice);
                    if let Some(first) = takers.iter().find(|claim| !claim.exact) {
                        self.take(std::slice::from_ref(first), At(host, path), losers, At(&wildcard, path));
                    }
                }
                self.steps += 1;
                if self.steps > STEPS_MAX {
                    return;
                }
            }
        }
    }

    /// What is taken of those who ask for a prefix.
    fn take_at(&mut self, takers: &[Claim<'_>], at: At<'_>, (paths, of): (&Paths<'_>, At<'_>)) {
        self.steps += 1;
        let losers = paths.get(of.1).map_or(&[][..], Vec::as_slice);
        let covers = |claim: &&Claim<'_>| !claim.exact || of.1 == at.1;
        for loser in losers.iter().filter(covers) {
            self.take(takers, at, std::slice::from_ref(loser), of);
        }
    }

    fn take(&mut self, takers: &[Claim<'_>], at: At<'_>, losers: &[Claim<'_>], of: At<'_>) {
        for taker in takers {
            for loser in losers.iter().filter(|loser| loser.id.1.namespace != taker.id.1.namespace) {
                self.steps += 1;
                let object = |id: &RouteId| ObjectRef { kind: id.0.kind(), key: id.1.clone() };
                let (winner, other) = (object(taker.id), object(loser.id));
                let count = self.of_route.entry(winner.clone()).or_default();
                if *count >= OF_ROUTE_MAX || self.found.contains_key(&(winner.clone(), other.clone())) {
                    continue;
                }
                *count += 1;
                let host = if at.0.is_empty() { "every host, " } else { at.0 };
                let below = match (taker.exact, at.1.ends_with('/')) {
                    (true, _) => "",
                    (false, true) => "*",
                    (false, false) => "/*",
                };
                let message = format!(
                    "{winner} takes requests for {host}{}{below} on Gateway {} that {other} ({}{}) would get",
                    at.1, self.gateway, of.0, of.1
                );
                self.found.insert(
                    (winner.clone(), other.clone()),
                    Overlap { taker: winner, loser: other, message },
                );
            }
        }
    }
}

/// What a route asks for; of TLS routes, which have no paths, everything.
fn claims<'a>(id: &'a RouteId, state: &'a RouteState) -> Vec<(Cow<'a, str>, Claim<'a>)> {
    let route = &state.resolved.route;
    let of = |m: Option<&'a Match>| {
        let (path, exact) = m.and_then(|m| m.path.as_ref()).map_or((Cow::Borrowed("/"), false), asks);
        let more = m.map_or(0, |m| usize::from(m.method.is_some()) + m.headers.len() + m.query.len());
        (path, Claim { id, created: route.meta.created, exact, more })
    };
    let matches: Vec<&Match> = route.rules.iter().flat_map(|rule| &rule.matches).collect();
    if matches.is_empty() { vec![of(None)] } else { matches.into_iter().map(|m| of(Some(m))).collect() }
}

/// The path that a match asks for, and whether it is that one only. What a pattern asks for cannot be told: everything.
fn asks(path: &PathMatch) -> (Cow<'_, str>, bool) {
    match path {
        PathMatch::Exact(path) => (Cow::Borrowed(path), true),
        PathMatch::Prefix(prefix) if prefix.len() > 1 => (Cow::Borrowed(prefix.trim_end_matches('/')), false),
        PathMatch::Grpc { service: Some(service), method: Some(method) } => {
            (format!("/{service}/{method}").into(), true)
        }
        PathMatch::Grpc { service: Some(service), method: None } => (format!("/{service}").into(), false),
        _ => (Cow::Borrowed("/"), false),
    }
}

/// The prefixes, by segments, of which a path is a part: of `/a/b` those are `/a` and `/`.
fn above(path: &str) -> impl Iterator<Item = &str> {
    let ends = path.match_indices('/').map(|(at, _)| at).filter(|at| *at > 0);
    let root = (path.len() > 1).then_some("/");
    ends.map(|at| &path[..at]).chain(root)
}

/// The wildcards that cover a host or a narrower wildcard: of `a.b.c` those are `*.b.c` and `*.c`.
fn wildcards(host: &str) -> impl Iterator<Item = String> + '_ {
    let host = host.strip_prefix("*.").unwrap_or(host);
    host.match_indices('.').map(|(at, _)| format!("*{}", &host[at..]))
}
