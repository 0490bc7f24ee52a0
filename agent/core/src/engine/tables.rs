//! The stages that make tables, and Gateways of them.

use super::{
    changes::Changes,
    state::{State, Touched},
};
use crate::{
    compile::{SlotKind, SlotRoute, compile_gateway, compile_slot},
    config::GatewayConfig,
    model::{Protocol, TlsMode},
    resolve::{Domain, ListenerId, RouteId, Settings, Slot},
};
use std::{collections::BTreeSet, sync::Arc};

impl State {
    pub(super) fn compile_slots(
        &mut self,
        slots: BTreeSet<Slot>,
        changes: &mut Changes,
        touched: &mut Touched,
    ) {
        for slot in slots {
            let new = self.slot_kind(&slot).and_then(|kind| {
                let routes = self.attached.get(&slot)?;
                let routes = routes.iter().filter_map(|id| self.slot_route(id, &slot)).collect();
                Some(compile_slot(kind, routes))
            });
            self.work.tables += 1;
            let old = self.slots.remove(&slot).unwrap_or_default();
            let verdicts = new.as_ref().map(|n| &n.verdicts);
            for (id, verdict) in &old.verdicts {
                if verdicts.and_then(|v| v.get(id)) != Some(verdict) {
                    touched.routes.insert(id.clone());
                }
            }
            for id in verdicts.into_iter().flat_map(|v| v.keys()) {
                if !old.verdicts.contains_key(id) {
                    touched.routes.insert(id.clone());
                }
            }
            match &slot {
                Slot::Listener { gateway, .. } => {
                    touched.gateways.insert(gateway.clone());
                }
                Slot::Port { service, .. } => {
                    changes.services.insert(service.clone());
                }
            }
            if let Some(new) = new {
                self.slots.insert(slot, new);
            }
        }
    }

    fn slot_kind(&self, slot: &Slot) -> Option<SlotKind> {
        let Slot::Listener { gateway, id } = slot else { return Some(SlotKind::Port) };
        let gateway = self.gateways.get(gateway)?;
        let listener = gateway.listeners.iter().find(|l| l.attach.id == *id)?;
        match listener.attach.protocol {
            Protocol::Http | Protocol::Https => Some(SlotKind::Http),
            Protocol::Tls => Some(SlotKind::Tls { passthrough: listener.mode == TlsMode::Passthrough }),
            Protocol::Tcp | Protocol::Udp => Some(SlotKind::L4),
            Protocol::Other(_) => None,
        }
    }

    fn slot_route(&self, id: &RouteId, slot: &Slot) -> Option<SlotRoute<'_>> {
        let state = self.routes.get(id)?;
        let domain = match slot {
            Slot::Listener { .. } => Domain::Gateway,
            Slot::Port { .. } => Domain::Mesh,
        };
        // Two parentRefs may lead to the same listener: its hostnames are there once.
        let attachments = state.resolved.parents.iter().flat_map(|p| &p.attachments);
        let mut hostnames: Vec<_> =
            attachments.filter(|a| a.slot == *slot).flat_map(|a| a.hostnames.iter().cloned()).collect();
        hostnames.sort();
        hostnames.dedup();
        Some(SlotRoute {
            id: id.clone(),
            created: state.resolved.route.meta.created,
            hostnames,
            rules: match domain {
                Domain::Gateway => &state.gateway,
                Domain::Mesh => &state.mesh,
            },
            broken: state.resolved.rules(domain).is_none_or(|r| r.all_dropped()),
        })
    }

    pub(super) fn compile_gateways(&mut self, settings: &Settings, touched: &mut Touched) {
        for key in &touched.gateways {
            let slot =
                |id: &ListenerId| self.slots.get(&Slot::Listener { gateway: key.clone(), id: id.clone() });
            let gateway = self.gateways.get(key);
            let compiled: Option<GatewayConfig> =
                gateway.and_then(|g| compile_gateway(g, &settings.trust_domain, slot));
            let all = Arc::make_mut(&mut self.config.gateways);
            touched.config |= match compiled {
                Some(new) => {
                    all.insert(key.clone(), Arc::new(new));
                    true
                }
                None => all.remove(key).is_some(),
            };
        }
    }
}
