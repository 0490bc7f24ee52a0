//! Which sockets the Gateways of a Config need, and which of them cannot be had because another Gateway has them.

use super::bind::Place;
use std::{collections::BTreeMap, net::SocketAddr};
use weft_core::{
    budget::GATEWAY_SOCKETS,
    config::Config,
    engine::Feedback,
    model::{ObjectKey, Str},
};

/// Every place that is wanted, with who wants it.
pub(super) type Wanted = BTreeMap<Place, Claim>;

/// The listeners of one port of a Gateway.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claim {
    pub(super) gateway: ObjectKey,
    /// The listeners' port; the place may have another.
    pub(super) port: u16,
}

/// A place that cannot be had: another Gateway has it, or there are too many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Conflict {
    pub(super) claim: Claim,
    pub(super) place: Place,
    pub(super) why: String,
}

/// Gives each place to one Gateway. `held` are those that are open: who has a place keeps it. Among newcomers exact
/// addresses come before `0.0.0.0` and `[::]`, then the smaller key wins. There are `max` places at most, and those of one
/// namespace's Gateways are half of it.
pub(super) fn plan(config: &Config, held: &Wanted, max: usize) -> (Wanted, Vec<Conflict>) {
    let mut claims: Vec<(Place, Claim)> = Vec::new();
    for (key, gateway) in config.gateways.iter() {
        for &(port, transport) in gateway.ports.keys() {
            for ip in &gateway.addresses {
                let covered = gateway.addresses.iter().any(|other| other != ip && covers(*other, *ip));
                let target = gateway.targets.get(&(port, transport)).copied().unwrap_or(port);
                let place = Place { address: SocketAddr::new(*ip, target), transport };
                let claim = (place, Claim { gateway: key.clone(), port });
                if !covered && !claims.contains(&claim) {
                    claims.push(claim);
                }
            }
        }
    }
    claims.sort_by_cached_key(|(place, claim)| {
        let newcomer = held.get(place).is_none_or(|holder| holder.gateway != claim.gateway);
        (newcomer, place.address.ip().is_unspecified(), *place, claim.clone())
    });
    let mut wanted = Wanted::new();
    let mut of_namespace: BTreeMap<Str, usize> = BTreeMap::new();
    let mut conflicts = Vec::new();
    for (place, claim) in claims {
        match taken(&wanted, place, &claim) {
            None => {
                let own = of_namespace.entry(claim.gateway.namespace.clone()).or_default();
                if wanted.len() < max && *own < max.div_ceil(2) {
                    *own += 1;
                    wanted.insert(place, claim);
                } else {
                    let why = too_many(&claim, *own, wanted.len(), max);
                    conflicts.push(Conflict { claim, place, why });
                }
            }
            Some((at, owner)) => {
                let why = format!("{place}: already used by Gateway {} ({at})", owner.gateway);
                conflicts.push(Conflict { claim, place, why });
            }
        }
    }
    (wanted, conflicts)
}

fn too_many(claim: &Claim, own: usize, all: usize, max: usize) -> String {
    format!(
        "budget {}: Gateways of namespace {} listen on {own} addresses and ports of this node, all Gateways on {all}; at most \
         {} and {max}, since each takes file descriptors that pods need",
        GATEWAY_SOCKETS.name,
        claim.gateway.namespace,
        max.div_ceil(2)
    )
}

/// What of a Config cannot be bound whatever the machine: two Gateways that want one socket. For a dry run.
#[must_use]
pub fn clashes(config: &Config) -> Feedback {
    let mut feedback = Feedback::default();
    for Conflict { claim, place, why } in plan(config, &Wanted::new(), usize::MAX).1 {
        feedback.unbound.insert((claim.gateway, claim.port, place.transport), why.into());
    }
    feedback
}

/// Whether a socket on `any` takes what is sent to `ip`, unless there is one on `ip` itself.
fn covers(any: std::net::IpAddr, ip: std::net::IpAddr) -> bool {
    // `[::]` is dual-stack.
    any.is_unspecified() && (any.is_ipv6() || ip.is_ipv4()) && any != ip
}

fn taken<'a>(wanted: &'a Wanted, place: Place, by: &Claim) -> Option<(Place, &'a Claim)> {
    let overlaps = |other: &Place| {
        let (a, b) = (other.address, place.address);
        other.transport == place.transport
            && a.port() == b.port()
            && (a == b || covers(a.ip(), b.ip()) || covers(b.ip(), a.ip()))
    };
    wanted.iter().find(|(at, owner)| *owner != by && overlaps(at)).map(|(at, owner)| (*at, owner))
}
