//! The pipeline as one value: Snapshots in, Config and conditions out.

mod addresses;
mod certificates;
mod changes;
mod claims;
mod lint;
mod mesh;
mod networks;
mod overlap;
mod quota;
mod report;
mod state;
mod tables;

pub use self::{certificates::ListenerRemark, overlap::Overlap};
pub use crate::resolve::Settings;

use self::{changes::replace, state::State};
use crate::resolve::Unit;
use crate::{
    config::{Config, Transport},
    model::{ObjectKey, ObjectRef, Snapshot, Str},
    status::{AllStatuses, Statuses},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

/// What the data plane reports back, so that `Programmed` is true only for what serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Feedback {
    /// Ports that could not be bound, with the reason ("127.0.0.1:80: permission denied").
    pub unbound: BTreeMap<(ObjectKey, u16, Transport), Str>,
    /// Addresses of a Gateway that cannot be used at all, with the reason ("cannot assign requested address").
    pub unusable: BTreeMap<(ObjectKey, IpAddr), Str>,
    /// Gateways that are not served by every node yet, with what is awaited ("node n2 has not applied generation 3").
    pub pending: BTreeMap<ObjectKey, Str>,
}

/// What an [`Engine`] gives after a change.
#[derive(Clone, Debug)]
pub struct Update {
    /// What to serve.
    pub config: Arc<Config>,
    /// The status of every object of ours.
    pub statuses: Arc<AllStatuses>,
    /// Objects whose status differs from the update before, removed ones included.
    pub changed: Vec<ObjectRef>,
}

/// How much an [`Engine`] has done so far: units resolved and tables compiled. Grows with what changes, not with what
/// is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Work {
    pub gateways: u64,
    pub routes: u64,
    pub policies: u64,
    pub tables: u64,
    pub frontends: u64,
    pub endpoints: u64,
}

/// Holds the last Snapshot and what was made of it; each [`Engine::apply`] costs what changed.
#[derive(Debug)]
pub struct Engine {
    settings: Settings,
    /// The settings have changed: everything is to be made anew.
    stale: bool,
    feedback: Feedback,
    state: State,
    statuses: Statuses,
    config: Arc<Config>,
}

impl Engine {
    /// An engine over an empty world.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            stale: false,
            feedback: Feedback::default(),
            state: State::default(),
            statuses: Statuses::default(),
            config: Arc::default(),
        }
    }

    /// Resolves and compiles what differs from the Snapshot before.
    pub fn apply(&mut self, snapshot: Snapshot, feedback: &Feedback) -> Update {
        let started_anew = std::mem::take(&mut self.stale);
        if started_anew {
            let work = self.state.work;
            self.state = State::default();
            self.state.work = work;
        }
        let mut changes = replace(&mut self.state.world, snapshot, self.settings.node.as_deref());
        let replaced = std::mem::take(&mut changes.replaced);
        let mut touched = self.state.update(&self.settings, changes);
        if *feedback != self.feedback {
            touched.gateways.extend(self.concerned(feedback));
            self.feedback = feedback.clone();
        }
        self.report(&touched, started_anew);
        replaced.into_iter().for_each(|object| self.statuses.again(object));
        if touched.config || started_anew {
            let version = self.config.version + 1;
            self.config = Arc::new(Config { version, ..self.state.config.clone() });
        }
        Update {
            config: self.config.clone(),
            statuses: self.statuses.all(),
            changed: self.statuses.take_changed(),
        }
    }

    /// Replaces the settings; takes effect with the next [`Engine::apply`].
    pub fn set_settings(&mut self, settings: Settings) {
        self.stale |= settings != self.settings;
        self.settings = settings;
    }

    /// The Snapshot in effect: as applied last, with the last usable content of certificates and CAs that cannot be used.
    #[must_use]
    pub const fn snapshot(&self) -> &Snapshot {
        &self.state.world.snapshot
    }

    /// Secrets and ConfigMaps that whoever serves this Gateway needs, as far as references are permitted; also those that
    /// are not there.
    #[must_use]
    pub fn gateway_material(&self, key: &ObjectKey) -> BTreeSet<ObjectRef> {
        self.state.tracker.material(&Unit::Gateway(key.clone())).collect()
    }

    /// Secrets and ConfigMaps that everybody needs who calls backends: of BackendTLSPolicies.
    #[must_use]
    pub fn backend_material(&self) -> BTreeSet<ObjectRef> {
        let policies = self.state.policies.keys().map(|key| Unit::Policy(key.clone()));
        policies.flat_map(|unit| self.state.tracker.material(&unit).collect::<Vec<_>>()).collect()
    }

    /// What has been done so far.
    #[must_use]
    pub fn work(&self) -> Work {
        self.state.work
    }

    /// Gateways that the old or new feedback speaks of.
    fn concerned(&self, new: &Feedback) -> BTreeSet<ObjectKey> {
        let keys = |f: &Feedback| {
            let unbound = f.unbound.keys().map(|(key, _, _)| key.clone());
            let unusable = f.unusable.keys().map(|(key, _)| key.clone());
            unbound.chain(unusable).chain(f.pending.keys().cloned()).collect::<Vec<_>>()
        };
        keys(&self.feedback).into_iter().chain(keys(new)).collect()
    }
}

#[cfg(test)]
mod tests;
