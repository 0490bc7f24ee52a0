//! The pure heart of Weft: objects in, route tables and conditions out.
//!
//! ```text
//! Snapshot ─▶ resolve ─▶ Resolution ─┬▶ compile ─▶ Config (what the data plane reads)
//!   model                            └▶ status  ─▶ conditions (what the user reads)
//! ```
//!
//! Both outputs come from the same `Resolution`, so what is reported is what runs.
//! Nothing in this crate does I/O, reads a clock or draws a random number: time and randomness
//! are arguments. `.ci/run` checks that its dependency tree has no async runtime, socket, TLS or
//! Kubernetes crate.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod balance;
pub mod budget;
mod compile;
pub mod config;
pub mod engine;
pub mod expiry;
pub mod filter;
pub mod hash;
pub mod lobby;
pub mod matching;
pub mod message;
pub mod model;
pub mod remarks;
mod resolve;
pub mod sessions;
pub mod shards;
pub mod sorted;
pub mod spelling;
pub mod status;
pub mod timing;
