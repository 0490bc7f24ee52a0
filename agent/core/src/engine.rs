//! The pipeline as one value: Snapshots in, Config and conditions out.

use crate::{
    config::{Config, Transport},
    model::{MtlsMode, ObjectKey, ObjectRef, Snapshot, Str},
    status::ObjectStatus,
};
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

/// What resolution needs beside the Snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Trust domain of every identity.
    pub trust_domain: Str,
    /// The mesh's default for what enrolled pods accept from outside.
    pub default_mode: MtlsMode,
    /// Addresses that each Gateway binds: from the address map of a file config, or assigned by the controller.
    pub gateway_addresses: BTreeMap<ObjectKey, Vec<IpAddr>>,
    /// Addresses for a Gateway that is not in the map.
    pub default_addresses: Vec<IpAddr>,
}

/// What the data plane reports back, so that `Programmed` is true only for what serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Feedback {
    /// Ports that could not be bound, with the reason ("127.0.0.1:80: permission denied").
    pub unbound: BTreeMap<(ObjectKey, u16, TransportKey), Str>,
}

/// [`Transport`] as a map key.
pub type TransportKey = Transport;

/// What an [`Engine`] gives after a change.
#[derive(Clone, Debug)]
pub struct Update {
    /// What to serve.
    pub config: Arc<Config>,
    /// The status of every object of ours.
    pub statuses: Arc<BTreeMap<ObjectRef, ObjectStatus>>,
    /// Objects whose status differs from the update before, removed ones included.
    pub changed: Vec<ObjectRef>,
}

/// Holds the last Snapshot and what was made of it; each [`Engine::apply`] costs what changed.
#[derive(Debug)]
pub struct Engine {
    settings: Settings,
}

impl Engine {
    /// An engine over an empty world.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }

    /// Resolves and compiles what differs from the Snapshot before.
    pub fn apply(&mut self, _snapshot: Snapshot, _feedback: &Feedback) -> Update {
        let _ = &self.settings;
        Update { config: Arc::default(), statuses: Arc::default(), changed: Vec::new() }
    }

    /// Replaces the settings; takes effect with the next [`Engine::apply`].
    pub fn set_settings(&mut self, settings: Settings) {
        self.settings = settings;
    }
}
