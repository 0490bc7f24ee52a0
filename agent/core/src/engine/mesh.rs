//! The stages that keep what is looked up by address: frontends, workloads, endpoints.

use super::{
    addresses::{Holder, PodRank, Standing, holder, rank},
    changes::Changes,
    networks::{PodNetworks, Told, block},
    state::{Claimed, EndpointKeys, State, Touched},
};
use crate::{
    compile::{EndpointSource, SlotOf, View, compile_endpoints, compile_frontends},
    model::{ObjectKey, Workload},
    resolve::{Settings, Slot},
};
use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    net::IpAddr,
    sync::Arc,
};

impl State {
    pub(super) fn compile_frontends(&mut self, services: &BTreeSet<ObjectKey>, touched: &mut Touched) {
        for key in services {
            self.work.frontends += 1;
            let mut dirty = BTreeSet::new();
            for (addr, rank) in self.frontend_keys.remove(key).unwrap_or_default() {
                self.frontends.withdraw(&addr, &rank);
                dirty.insert(addr);
            }
            if let Some(service) = self.world.snapshot.services.get(key) {
                let frontends = compile_frontends(service, &self.service_slots(key));
                let mut keys = Vec::with_capacity(frontends.len());
                for (addr, frontend) in frontends {
                    let right = match frontend.external {
                        None => Claimed::ClusterIp,
                        Some(_) => Claimed::External,
                    };
                    let rank = (right, service.meta.created, key.clone());
                    self.frontends.put(addr, rank.clone(), frontend);
                    dirty.insert(addr);
                    keys.push((addr, rank));
                }
                self.frontend_keys.insert(key.clone(), keys);
            }
            for addr in dirty {
                touched.config = true;
                match self.frontends.first(&addr) {
                    Some(frontend) => self.config.frontends.insert(addr, frontend.clone()),
                    None => self.config.frontends.remove(&addr),
                };
            }
        }
    }

    fn service_slots(&self, service: &ObjectKey) -> Vec<SlotOf<'_>> {
        let from = Slot::Port { service: service.clone(), port: 0, consumer: None };
        let slots = self.slots.range(from..);
        slots
            .map_while(|(slot, compiled)| match slot {
                Slot::Port { service: s, port, consumer } if s == service => {
                    Some(SlotOf { port: *port, consumer: consumer.clone(), slot: compiled })
                }
                _ => None,
            })
            .collect()
    }

    pub(super) fn note_nodes(&mut self, changes: &mut Changes, touched: &mut Touched) {
        for (ip, won) in std::mem::take(&mut changes.node_ips) {
            touched.config |= if won {
                self.config.nodes.insert(ip, ()).is_none()
            } else {
                self.config.nodes.remove(&ip).is_some()
            };
            changes.endpoints.extend(self.services_by_ip.get(&ip).into_iter().flatten().cloned());
        }
    }

    /// Says anew from which networks pods have their addresses, when what that depends on has changed.
    pub(super) fn note_networks(&mut self, settings: &Settings, stale: bool, touched: &mut Touched) {
        if !stale {
            return;
        }
        let nodes = || self.world.snapshot.nodes.values();
        let cidrs: BTreeSet<_> = nodes().flat_map(|n| n.pod_cidrs.iter().copied()).collect();
        let addresses: Vec<&[IpAddr]> = nodes().map(|n| &*n.addresses).collect();
        let PodNetworks { nets, nodes } = PodNetworks::new(Told {
            configured: &settings.pod_cidrs,
            cidrs: &cidrs,
            proved: &self.proved_blocks,
            nodes: &addresses,
        });
        if nets != self.config.pod_cidrs || nodes != self.config.nodes_among_pods {
            (self.config.pod_cidrs, self.config.nodes_among_pods) = (nets, nodes);
            touched.config = true;
        }
    }

    /// Counts the addresses of enrolled pods in each block (in files nobody says what was read); true when there is a block more or less.
    fn count_proof(&mut self, ip: IpAddr, rank: &PodRank, is: bool) -> bool {
        let Some(block) = block(ip).filter(|_| rank.0 <= Standing::Enrolled) else { return false };
        let count = self.proved_blocks.entry(block).or_default();
        *count = if is { *count + 1 } else { count.saturating_sub(1) };
        let (first, none) = (is && *count == 1, *count == 0);
        if none {
            self.proved_blocks.remove(&block);
        }
        first || none
    }

    pub(super) fn derive_workloads(
        &mut self,
        settings: &Settings,
        changes: &mut Changes,
        touched: &mut Touched,
    ) {
        let snapshot = self.world.snapshot.clone();
        let told = !self.host_pods.is_empty();
        for key in &changes.pods {
            let pod = snapshot.pods.get(key);
            if pod.is_some_and(|p| p.host_network && (settings.node.is_none() || p.node != settings.node)) {
                self.host_pods.insert(key.clone());
            } else {
                self.host_pods.remove(key);
            }
            let mut dirty: BTreeSet<IpAddr> = BTreeSet::new();
            for (ip, rank) in self.workload_keys.remove(key).unwrap_or_default() {
                self.workloads.withdraw(&ip, &rank);
                changes.networks |= self.count_proof(ip, &rank, false);
                dirty.insert(ip);
            }
            // Of finished pods the address may be another's; pods in their node's network share its address.
            if let Some(pod) = pod.filter(|p| !p.finished && !p.host_network) {
                let namespace = snapshot.namespaces.get(&key.namespace).map(|n| &**n);
                let workload =
                    Workload::derive(pod, namespace, &settings.trust_domain, settings.default_mode);
                let workload = Arc::new(workload);
                let mut keys = Vec::with_capacity(workload.ips.len());
                for ip in &workload.ips {
                    let rank = rank(pod, &workload, *ip, settings.node.as_ref());
                    self.workloads.put(*ip, rank.clone(), workload.clone());
                    changes.networks |= self.count_proof(*ip, &rank, true);
                    keys.push((*ip, rank));
                    dirty.insert(*ip);
                }
                self.workload_keys.insert(key.clone(), keys);
            }
            changes.endpoints.extend(self.services_by_pod.get(key).into_iter().flatten().cloned());
            for ip in dirty {
                let (new, disputed) = match holder(&self.workloads, ip) {
                    Holder::Pod(workload) => (Some(workload), false),
                    Holder::Disputed => (None, true),
                    Holder::Free => (None, false),
                };
                let was_disputed = self.config.disputed.get(&ip).is_some();
                if new == self.config.workloads.get(&ip) && disputed == was_disputed {
                    continue;
                }
                touched.config = true;
                if disputed {
                    self.config.disputed.insert(ip, ());
                } else if was_disputed {
                    self.config.disputed.remove(&ip);
                }
                match new.cloned() {
                    Some(workload) => self.config.workloads.insert(ip, workload),
                    None => self.config.workloads.remove(&ip),
                };
                changes.endpoints.extend(self.services_by_ip.get(&ip).into_iter().flatten().cloned());
            }
        }
        if told == self.host_pods.is_empty() {
            changes.endpoints.extend(self.services_by_pod.values().flatten().cloned());
        }
    }

    pub(super) fn compile_endpoints(
        &mut self,
        settings: &Settings,
        services: &BTreeSet<ObjectKey>,
        touched: &mut Touched,
    ) {
        for key in services {
            self.work.endpoints += 1;
            let old = self.endpoint_keys.remove(key).unwrap_or_default();
            let mut new = EndpointKeys::default();
            let mut sets = Vec::new();
            if let Some(service) = self.world.snapshot.services.get(key) {
                let keys = self.world.slices_of.get(key).into_iter().flatten();
                let slices: Vec<_> =
                    keys.filter_map(|k| self.world.snapshot.endpoint_slices.get(k)).collect();
                for endpoint in slices.iter().flat_map(|s| &s.endpoints) {
                    new.ips.extend(endpoint.addresses.first());
                    new.pods.extend(endpoint.pod.clone());
                }
                let slices = slices.iter().map(|s| &***s);
                sets = compile_endpoints(service, slices, self.view(settings), |ip, pod| self.find(ip, pod));
            }
            reindex(&mut self.services_by_ip, key, &old.ips, &new.ips);
            reindex(&mut self.services_by_pod, key, &old.pods, &new.pods);
            new.backends = sets.iter().map(|(k, _)| k.clone()).collect();
            for gone in old.backends.iter().filter(|k| !new.backends.contains(k)) {
                touched.config |= self.config.endpoints.remove(gone).is_some();
            }
            for (backend, set) in sets {
                if self.config.endpoints.get(&backend).is_none_or(|old| **old != set) {
                    self.config.endpoints.insert(backend, Arc::new(set));
                    touched.config = true;
                }
            }
            if !new.backends.is_empty() || !new.ips.is_empty() {
                self.endpoint_keys.insert(key.clone(), new);
            }
        }
    }

    /// From where clients look at Services.
    fn view<'a>(&'a self, settings: &'a Settings) -> View<'a> {
        let snapshot = &self.world.snapshot;
        let node = settings.node.as_deref();
        let zone = node.and_then(|name| snapshot.nodes.get(name)).and_then(|node| node.zone());
        View { node, zone: zone.map(|z| &**z), doubt: &snapshot.doubt }
    }

    fn find(&self, ip: IpAddr, pod: Option<&ObjectKey>) -> EndpointSource {
        let holder = holder(&self.workloads, ip);
        let Some(pod) = pod else {
            return match holder {
                Holder::Pod(workload) => EndpointSource::Workload(workload.clone()),
                Holder::Disputed => EndpointSource::Unknown,
                Holder::Free => EndpointSource::Plain,
            };
        };
        match holder {
            Holder::Pod(workload) if workload.pod == *pod => EndpointSource::Workload(workload.clone()),
            Holder::Pod(_) | Holder::Disputed => EndpointSource::Unknown,
            Holder::Free => match self.world.snapshot.pods.get(pod) {
                Some(pod) if pod.host_network => EndpointSource::Plain,
                // A controller of the version before tells of no pod in its node's network, which shares the node's address. What a
                // node says of its own addresses proves nothing, so it is not looked at where pods are told of.
                None if self.host_pods.is_empty() && self.config.nodes.get(&ip).is_some() => {
                    EndpointSource::Plain
                }
                _ => EndpointSource::Unknown,
            },
        }
    }
}

fn reindex<K: Hash + Eq + Ord + Clone>(
    index: &mut HashMap<K, Vec<ObjectKey>>,
    key: &ObjectKey,
    old: &BTreeSet<K>,
    new: &BTreeSet<K>,
) {
    for gone in old.difference(new) {
        if let Some(keys) = index.get_mut(gone) {
            keys.retain(|k| k != key);
            if keys.is_empty() {
                index.remove(gone);
            }
        }
    }
    for added in new.difference(old) {
        index.entry(added.clone()).or_default().push(key.clone());
    }
}
