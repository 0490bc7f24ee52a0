//! The weft-cni plugin as a library: what the binary does ([`plugin`]), the words of the CNI
//! specification ([`spec`]), the wire to the agent ([`protocol`], shared with `weft-inpod`), and how it gets
//! onto a node ([`install`], used by the agent).
//!
//! The plugin is thin on purpose: it holds no Kubernetes credentials, changes nothing in the kernel
//! and decides one thing only, from a table the agent left behind, when the agent cannot be asked.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod client;
pub mod install;
pub mod plugin;
pub mod protocol;
pub mod spec;
