//! Picking a backend by weight and an endpoint by load. Random draws are arguments.

mod weighted;

pub use weighted::Weighted;
