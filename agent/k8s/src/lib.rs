//! Kubernetes kinds to the core model, from files and from watches, and what the controller writes back.
//!
//! - [`convert`] is the border: an object in, a model and [`Problem`]s out; defaults and validation of the CRDs happen
//!   there, the same for every source.
//! - [`FileProvider`] reads a directory of YAML into a [`World`] and follows its changes.
//! - [`ClusterProvider`] watches a cluster and makes the same [`World`].
//! - [`status`] writes statuses to a cluster, [`events`] what changed in them, both while [`lease`] says that we lead.
//! - [`yaml`] reads text with the line of every field.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod api;
#[cfg(test)]
mod apiserver;
mod call;
mod config;
mod convert;
mod duration;
pub mod events;
mod file;
pub mod lease;
mod pack;
mod path;
mod problem;
pub mod provision;
mod schema;
pub mod status;
mod taint;
#[cfg(test)]
#[allow(dead_code)] // each test module uses its part
mod testing;
mod tokens;
mod tracked;
mod trust;
mod watch;
pub mod workloads;
mod world;
pub mod yaml;

pub use config::*;
pub use convert::{Converted, MIRROR, Object, Source, convert, convert_gateway_config, unroll};
pub use events::{Recorder, RecorderConfig};
pub use file::{FileError, FileProvider};
pub use kube::Client;
pub use lease::{Leadership, LeaseConfig, lead};
pub use problem::{Problem, Severity};
pub use provision::placements;
pub use status::{Desired, StatusWriter, WriterConfig, known_in};
pub use taint::keep_untainted;
pub use tokens::{AccessDenied, AccessReviewer, TokenReviewer};
pub use trust::{CaCraft, CaTexts, keep_ca};
pub use watch::*;
pub use world::World;

/// Why there is no way to an API server.
#[derive(Debug, thiserror::Error)]
#[error("no way to a Kubernetes API server: run in a pod with a service account, or set KUBECONFIG")]
pub struct NoCluster(#[source] kube::Error);

/// A client from the pod's service account, or from KUBECONFIG.
///
/// # Errors
/// When there is neither, or it cannot be read.
pub async fn client() -> Result<Client, NoCluster> {
    // What `Client::try_default` does, but for the time: kube waits 30 s for a connection.
    let inferred = kube::Config::infer().await;
    let mut config = inferred.map_err(|e| NoCluster(kube::Error::InferConfig(e)))?;
    config.connect_timeout = Some(CONNECT);
    Client::try_from(config).map_err(NoCluster)
}

/// For a connection to the API server. One that does not come in this time leads nowhere: while the server was away its
/// Service had no endpoints, and it takes a moment until every node knows the new ones.
const CONNECT: std::time::Duration = std::time::Duration::from_secs(5);
