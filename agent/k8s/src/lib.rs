//! Kubernetes kinds to the core model, from files and from a cluster.
//!
//! - [`convert`] is the border: an object in, a model and [`Problem`]s out; defaults and validation of the CRDs happen
//!   there, the same for every source.
//! - [`FileProvider`] reads a directory of YAML into a [`World`] and follows its changes.
//! - [`ClusterProvider`] watches a cluster and makes the same [`World`].
//! - [`yaml`] reads text with the line of every field.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod api;
mod config;
mod convert;
mod duration;
mod file;
mod path;
mod problem;
pub mod provision;
mod schema;
#[cfg(test)]
#[allow(dead_code)] // each test module uses its part
mod testing;
mod tokens;
mod tracked;
mod watch;
mod world;
pub mod yaml;

pub use config::*;
pub use convert::{Converted, Object, Source, convert, convert_gateway_config, unroll};
pub use file::{FileError, FileProvider};
pub use problem::{Problem, Severity};
pub use provision::placements;
pub use tokens::TokenReviewer;
pub use watch::*;
pub use world::World;
