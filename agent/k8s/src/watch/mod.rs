//! A cluster as the watched world.
//!
//! [`ClusterProvider::start`] asks which kinds the cluster serves, follows each of them, and puts what comes together
//! into a [`World`] — the same that the file provider makes, through the same conversion. What breaks keeps its last
//! state: an API server that is away changes nothing, and when it is back the watches go on where they stood.

mod admit;
mod cluster;
mod discovery;
mod doubt;
mod follow;
mod kinds;
mod model;
mod raw;
mod retry;
mod state;
mod store;

#[cfg(test)]
mod tests;

pub use kinds::{Access, MINIMUM_BUNDLE, MINIMUM_KUBERNETES, SETTINGS, TRUST_ROOTS, Watched, watched_kinds};
pub use retry::Retry;
pub use state::{Bundle, Fault, KindState, WatchState};
pub use store::Captured;
/// The same on both ends of the agent's stream.
pub use weft_control::Material;

use crate::{status::Lives, world::World};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use weft_core::model::Str;

/// Who watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// An agent: no Secrets, no ConfigMaps but its settings and trust roots, Pods of its own node only.
    Agent {
        /// The node's name.
        node: Str,
    },
    /// The controller.
    Controller,
}

/// How to watch.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Who watches.
    pub role: Role,
    /// The namespace of Weft itself.
    pub system_namespace: String,
    /// From a change to the World with it. It grows up to ten times while making Worlds takes long.
    pub debounce: Duration,
    /// Waits between attempts.
    pub retry: Retry,
    /// How long the first World waits for a kind that the role may not watch: an API server that starts refuses what it
    /// will grant a moment later, and a World without routes is no good beginning.
    pub forbidden_grace: Duration,
    /// How often the served kinds are asked for when changes of CustomResourceDefinitions cannot be watched. While they
    /// can, every 30 times as long.
    pub discover_every: Duration,
}

/// What does not come from the API server. For the controller: [`ClusterInputs::none`].
#[derive(Clone, Debug)]
pub struct ClusterInputs {
    /// Secrets and ConfigMaps that the controller hands to this agent.
    pub material: watch::Receiver<Arc<Material>>,
    /// Pods of this node whose capture stands, with their uid.
    pub captured: watch::Receiver<Arc<Captured>>,
}

/// The watched cluster.
#[derive(Debug)]
pub struct ClusterProvider;

/// A running provider. Dropping it ends its tasks.
#[derive(Debug)]
pub struct ClusterHandle {
    worlds: watch::Receiver<Arc<World>>,
    ready: watch::Receiver<bool>,
    /// How the watches stand.
    pub state: watch::Receiver<Arc<WatchState>>,
    /// The mesh's trust roots (PEM), once they are there. A deleted ConfigMap takes none away.
    pub roots: watch::Receiver<Option<Str>>,
    /// For the controller: objects whose status other controllers may write too, as they came last.
    pub lives: Arc<Lives>,
    stop: CancellationToken,
    task: AbortOnDropHandle<()>,
}

/// Why a provider cannot be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    /// The caller's fault; not worth a retry.
    #[error("an agent needs the name of its node: set NODE_NAME from spec.nodeName (downward API)")]
    NoNode,
}

impl ClusterOptions {
    /// The defaults for a role.
    #[must_use]
    pub fn new(role: Role) -> Self {
        Self {
            role,
            system_namespace: "weft-system".to_owned(),
            debounce: Duration::from_millis(20),
            retry: Retry::default(),
            forbidden_grace: Duration::from_secs(10),
            discover_every: Duration::from_secs(10),
        }
    }
}

impl ClusterInputs {
    /// No input but the API server's.
    #[must_use]
    pub fn none() -> Self {
        // Their senders are gone: nothing will come.
        let (_, material) = watch::channel(Arc::default());
        let (_, captured) = watch::channel(Arc::default());
        Self { material, captured }
    }
}

impl ClusterProvider {
    /// Starts to watch, in tasks of this runtime. An API server that does not answer is no error: it is waited for, and
    /// [`ClusterHandle::state`] says so.
    ///
    /// # Errors
    /// When the options make no sense.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(
        client: kube::Client,
        options: ClusterOptions,
        inputs: ClusterInputs,
    ) -> Result<ClusterHandle, ClusterError> {
        if matches!(&options.role, Role::Agent { node } if node.is_empty()) {
            return Err(ClusterError::NoNode);
        }
        let (worlds_tx, worlds) = watch::channel(Arc::new(World::default()));
        let (ready_tx, ready) = watch::channel(false);
        let (state_tx, state) = watch::channel(Arc::default());
        let (roots_tx, roots) = watch::channel(None);
        let stop = CancellationToken::new();
        let outputs =
            cluster::Outputs { worlds: worlds_tx, ready: ready_tx, state: state_tx, roots: roots_tx };
        let cluster = cluster::Cluster::new(client, options, inputs, outputs);
        let lives = cluster.lives();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            // Its followers are aborted with it: they hold nothing but connections.
            stopped.run_until_cancelled_owned(cluster.run()).await;
        });
        Ok(ClusterHandle { worlds, ready, state, roots, lives, stop, task: AbortOnDropHandle::new(task) })
    }
}

impl ClusterHandle {
    /// The worlds, once the first one is complete: all kinds that the cluster serves have been listed. The receiver
    /// holds the newest; intermediate ones may be skipped. `None` when the provider has ended.
    pub async fn worlds(&self) -> Option<watch::Receiver<Arc<World>>> {
        self.ready.clone().wait_for(|ready| *ready).await.ok()?;
        Some(self.worlds.clone())
    }

    /// Ends all watches and waits for that.
    pub async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the watches of the cluster ended badly");
        }
    }
}
