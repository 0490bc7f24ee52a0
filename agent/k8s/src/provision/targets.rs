//! Target ports: one for each (Gateway, port, transport) of mode LoadBalancer, since all bind the same node addresses.

use std::collections::{BTreeMap, BTreeSet};
use weft_core::{
    config::Transport,
    model::{ObjectKey, fnv1a},
};

/// Where target ports are taken from: below the node ports (30000–32767) and the ephemeral ports (from 32768).
const RANGE: std::ops::RangeInclusive<u16> = 20_000..=29_999;

/// Listener ports of one Gateway with their target ports.
pub(super) type Ports = BTreeMap<(u16, Transport), u16>;

/// The target ports of the Gateways in `wanted`, oldest first. What a Gateway had it keeps, unless an older one has it.
/// `taken` is used elsewhere. A port without a target is missing in the result: all are used.
///
/// A number belongs to one owner in both transports: whoever reads "20123" in a log knows the Gateway.
pub(super) fn assign(
    wanted: &[(&ObjectKey, BTreeSet<(u16, Transport)>)],
    before: &BTreeMap<ObjectKey, Ports>,
    mut taken: BTreeSet<u16>,
) -> BTreeMap<ObjectKey, Ports> {
    let mut out: BTreeMap<ObjectKey, Ports> = BTreeMap::new();
    for (gateway, ports) in wanted {
        let had = before.get(gateway);
        let kept = ports.iter().filter_map(|at| Some((*at, *had?.get(at)?)));
        let kept = kept.filter(|(_, target)| RANGE.contains(target) && taken.insert(*target)).collect();
        out.insert((*gateway).clone(), kept);
    }
    for (gateway, ports) in wanted {
        for at in ports {
            let assigned = out.entry((*gateway).clone()).or_default();
            if !assigned.contains_key(at)
                && let Some(target) = free(gateway, *at, &taken)
            {
                taken.insert(target);
                assigned.insert(*at, target);
            }
        }
    }
    out
}

/// The first free number from a place of the port's own on: a number that was just given up is not likely to be the next
/// one that is taken, while its sockets may still be open on some node.
fn free(gateway: &ObjectKey, at: (u16, Transport), taken: &BTreeSet<u16>) -> Option<u16> {
    let (first, count) = (u64::from(*RANGE.start()), RANGE.len() as u64);
    let hash = fnv1a(format!("{gateway}/{}/{:?}", at.0, at.1).as_bytes());
    (0..count)
        .filter_map(|i| u16::try_from(first + (hash.wrapping_add(i)) % count).ok())
        .find(|port| !taken.contains(port))
}
