//! Kubernetes kinds to the core model, from files now and from watches later.
//!
//! - [`convert`] is the border: an object in, a model and [`Problem`]s out; defaults and validation of the CRDs happen
//!   there, the same for every source.
//! - [`FileProvider`] reads a directory of YAML into a [`World`] and follows its changes.
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
mod path;
mod problem;
mod schema;
pub mod status;
mod tokens;
mod tracked;
pub mod yaml;

pub use config::*;
pub use convert::{Converted, Object, Source, convert, convert_gateway_config, unroll};
pub use file::{FileError, FileProvider, World};
pub use problem::{Problem, Severity};
pub use tokens::TokenReviewer;
