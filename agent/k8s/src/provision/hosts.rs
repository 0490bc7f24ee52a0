//! HostPort Gateways on one node: a port has one holder, the oldest Gateway that wants it.

use super::targets::Ports;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use weft_core::{
    config::Transport,
    model::{Node, ObjectKey, Str},
};

/// What one Gateway wants.
pub(super) struct Host<'a> {
    pub(super) key: &'a ObjectKey,
    pub(super) ports: BTreeSet<(u16, Transport)>,
    pub(super) nodes: Vec<&'a Arc<Node>>,
}

/// Where a Gateway must not bind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) nodes: BTreeSet<Str>,
    /// Names the first node and port.
    pub(super) message: Option<String>,
}

/// Who is refused where; `wanted` is sorted, oldest first. A node is refused as a whole: a Gateway that serves half of its
/// ports there would be found by its clients on the wrong half.
pub(super) fn conflicts(
    wanted: &[Host<'_>],
    targets: &BTreeMap<ObjectKey, Ports>,
) -> BTreeMap<ObjectKey, Refused> {
    // Target ports of LoadBalancer Gateways are bound on every node.
    let mut everywhere: BTreeMap<(u16, Transport), &ObjectKey> = BTreeMap::new();
    for (gateway, ports) in targets {
        everywhere.extend(ports.iter().map(|((_, transport), target)| ((*target, *transport), gateway)));
    }
    let mut held: BTreeMap<(&Str, u16, Transport), &ObjectKey> = BTreeMap::new();
    let mut out = BTreeMap::new();
    for host in wanted {
        let mut refused = Refused::default();
        for node in &host.nodes {
            let name = &node.meta.key.name;
            let holder = |(port, transport): &(u16, Transport)| {
                let holder =
                    held.get(&(name, *port, *transport)).or_else(|| everywhere.get(&(*port, *transport)));
                holder.map(|holder| (*port, (*holder).clone()))
            };
            if let Some((port, holder)) = host.ports.iter().find_map(holder) {
                refused.nodes.insert(name.clone());
                refused
                    .message
                    .get_or_insert_with(|| format!("port {port} of node {name} is held by Gateway {holder}"));
            } else {
                held.extend(host.ports.iter().map(|(port, t)| ((name, *port, *t), host.key)));
            }
        }
        let others = refused.nodes.len().saturating_sub(1);
        if let (Some(message), true) = (&mut refused.message, others > 0) {
            message.push_str(&format!(", and so on {others} more nodes"));
        }
        if !refused.nodes.is_empty() {
            out.insert(host.key.clone(), refused);
        }
    }
    out
}
