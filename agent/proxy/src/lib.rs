//! The data plane: three entrances, one path.
//!
//! ```text
//! gateway listener ─┐
//! pod 15001 ────────┼▶ detect ─▶ http::serve ─▶ select rule ─▶ filters ─▶ pick backend, endpoint ─▶ dial ─▶ upstream
//!                   └▶ l4 ──────────────────────────────────────────────────────────────────────▶ dial ─▶ upstream
//! pod 15006 (every port) ─▶ tunnel or plaintext? ─┐
//! pod 15008 (HBONE) ─────────────────────────────┴▶ the application, from the client's address
//! ```
//!
//! Threads: one control runtime elsewhere, and N [`worker`]s here, each a current-thread runtime. A connection lives
//! and dies on one worker; pools, balancer state and counters are per worker, without locks (`Rc`, `Cell`), but for what
//! `sessionAffinity` remembers ([`sticky`]).
//! Each pod's (or Gateway's) connections run under that pod's [`share`].
#![forbid(unsafe_code)]

mod arrival;
pub mod budgets;
pub mod context;
pub mod dial;
pub mod drain;
mod entrance;
pub mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod gateway;
pub mod http;
pub mod inbound;
pub mod kubelet;
pub mod l4;
pub mod loads;
mod nodes;
pub mod outbound;
pub mod plaintext;
pub mod pods;
pub mod share;
mod sticky;
pub mod telemetry;
mod tls_settings;
pub mod transport;
pub mod worker;
pub mod workload;

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod floods;
#[cfg(test)]
mod tests;
