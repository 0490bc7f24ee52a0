//! Picking a backend by weight and an endpoint by load, health or affinity. Random draws and time are arguments.
//!
//! Latency and failure are kept apart: [`Load`] is what a request costs at an endpoint, [`Outlier`] whether it gets any,
//! [`SlowStart`] how much of its share a new one gets. State here belongs to one worker: no locks, no atomics. Only [`Sticky`]
//! is shared by all of them: a client's connections are not all one worker's.

pub mod affinity;
mod answer;
mod eject;
mod p2c;
mod slow_start;
mod sticky;
mod weighted;

pub use answer::Answer;
pub use eject::{Fault, Outlier, Standing};
pub use p2c::{Load, Picked, View, pick};
pub use slow_start::SlowStart;
pub use sticky::{Seeker, Sticky};
pub use weighted::Weighted;

#[cfg(test)]
mod tests;
