//! Addresses from pools. No address is ever given to two Gateways, whatever their pools.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};
use weft_core::model::{IpRange, ObjectKey, next_address};

/// What one Gateway wants.
#[derive(Clone, Debug)]
pub(super) struct Wish<'a> {
    pub(super) gateway: &'a ObjectKey,
    pub(super) pool: &'a [IpRange],
    /// Addresses that it names (`spec.addresses`).
    pub(super) named: Vec<IpAddr>,
    /// How many of any kind it wants beside (`spec.addresses` without a value).
    pub(super) any: usize,
}

/// What became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Granted {
    pub(super) addresses: Vec<IpAddr>,
    /// Named addresses that it does not get, with why.
    pub(super) refused: Vec<(IpAddr, &'static str)>,
    /// The pool had fewer free addresses than wanted.
    pub(super) exhausted: bool,
}

/// Grants wishes, oldest Gateway first. What a Gateway had it keeps while it is in its pool and still wanted; an address
/// that another Gateway has is never taken away. `reserved` are addresses of the nodes themselves.
pub(super) fn assign(
    wishes: &[Wish<'_>],
    before: &BTreeMap<ObjectKey, Vec<IpAddr>>,
    reserved: &BTreeSet<IpAddr>,
) -> BTreeMap<ObjectKey, Granted> {
    let mut state = State { taken: reserved.clone(), out: BTreeMap::new() };
    for wish in wishes {
        state.keep(wish, before.get(wish.gateway).map_or(&[], Vec::as_slice));
    }
    for wish in wishes {
        state.name(wish, reserved);
    }
    for wish in wishes {
        state.fill(wish);
    }
    state.out
}

/// How many addresses a Gateway without `spec.addresses` gets: one of each family in its pool.
pub(super) fn families(pool: &[IpRange]) -> usize {
    let v6 = pool.iter().filter(|r| r.first().is_ipv6()).count();
    usize::from(v6 > 0) + usize::from(v6 < pool.len())
}

struct State {
    taken: BTreeSet<IpAddr>,
    out: BTreeMap<ObjectKey, Granted>,
}

impl State {
    fn keep(&mut self, wish: &Wish<'_>, had: &[IpAddr]) {
        let mut any = wish.any;
        let granted = self.out.entry(wish.gateway.clone()).or_default();
        for ip in had.iter().copied().filter(|ip| wish.pool.iter().any(|r| r.contains(*ip))) {
            let named = wish.named.contains(&ip);
            if (named || any > 0) && self.taken.insert(ip) {
                any -= usize::from(!named);
                granted.addresses.push(ip);
            }
        }
    }

    fn name(&mut self, wish: &Wish<'_>, reserved: &BTreeSet<IpAddr>) {
        let granted = self.out.entry(wish.gateway.clone()).or_default();
        for ip in &wish.named {
            if granted.addresses.contains(ip) {
                continue;
            }
            let why = if !wish.pool.iter().any(|r| r.contains(*ip)) {
                "not in the address pool"
            } else if reserved.contains(ip) {
                "a node's own address"
            } else if !self.taken.insert(*ip) {
                "another Gateway has it"
            } else {
                granted.addresses.push(*ip);
                continue;
            };
            granted.refused.push((*ip, why));
        }
    }

    fn fill(&mut self, wish: &Wish<'_>) {
        let granted = self.out.entry(wish.gateway.clone()).or_default();
        let dynamic = granted.addresses.iter().filter(|ip| !wish.named.contains(ip)).count();
        for _ in dynamic..wish.any {
            // A family that it has none of yet comes first.
            let has = |v6: bool| granted.addresses.iter().any(|ip| ip.is_ipv6() == v6);
            let (new, old): (Vec<_>, Vec<_>) = wish.pool.iter().partition(|r| !has(r.first().is_ipv6()));
            let Some(ip) = new.into_iter().chain(old).find_map(|range| free(range, &self.taken)) else {
                granted.exhausted = true;
                return;
            };
            self.taken.insert(ip);
            granted.addresses.push(ip);
        }
    }
}

/// The first address of a range that is not taken. Costs the taken ones before it, not the range.
fn free(range: &IpRange, taken: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    let mut candidate = range.first();
    for ip in taken.range(range.first()..=range.last()) {
        if *ip != candidate {
            break;
        }
        candidate = next_address(candidate)?;
    }
    range.contains(candidate).then_some(candidate)
}
