//! Kubernetes Events (`events.k8s.io/v1`) for what a person should notice.
//!
//! A transition is what a written status changes; [`Recorder`] sends it: the same thing again is counted in the
//! series of one Event, and no object gets more than a few.

mod recorder;
mod series;
mod transition;

pub use self::recorder::{EventCounts, Recorder, RecorderConfig};
pub(crate) use self::transition::{Transition, transitions};

#[cfg(test)]
mod tests;
