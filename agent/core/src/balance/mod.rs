//! Picking a backend by weight and an endpoint by load, health or affinity. Random draws and time are arguments.
//!
//! State here ([`Load`], [`Outliers`]) belongs to one worker: no locks, no atomics. [`Sticky`] is shared by all of them: a
//! client's connections are not all one worker's.

pub mod affinity;
mod eject;
mod p2c;
mod sticky;
mod weighted;

pub use eject::{EjectPolicy, Outliers};
pub use p2c::{Load, pick, pick_by};
pub use sticky::Sticky;
pub use weighted::Weighted;

#[cfg(test)]
mod tests;
