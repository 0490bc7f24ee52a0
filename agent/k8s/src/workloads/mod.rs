//! WorkloadSlices: what agents must know of every pod of the cluster, published by the leading controller.
//!
//! 5,000 agents cannot each watch 100,000 pods, and an EndpointSlice does not say a pod's service account.

mod dispute;
mod plan;
mod proofs;
mod publisher;

#[cfg(test)]
mod tests;

pub use plan::{
    ApplicationPorts, Captured, SLICE_CAPACITY, Slice, SliceChange, Slices, Workload, plan_slices,
    read_slice, slice_body,
};
pub use proofs::{Conflict, conflicts};
pub use publisher::{SliceOptions, SlicePublisher};
