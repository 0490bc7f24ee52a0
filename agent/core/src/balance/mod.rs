//! Picking a backend by weight and an endpoint by load, health or affinity. Random draws and time are arguments.
//!
//! State here ([`Load`], [`Outliers`]) belongs to one worker: no locks, no atomics.

pub mod affinity;
mod eject;
mod p2c;
mod weighted;

pub use eject::{EjectPolicy, Outliers};
pub use p2c::{Load, pick, pick_by};
pub use weighted::Weighted;

#[cfg(test)]
mod tests;
