//! What a Gateway needs in the cluster: its parameters, its Service, ServiceAccount and EndpointSlices, its addresses.

mod hosts;
mod names;
mod objects;
pub(crate) mod parameters;
mod placement;
mod plan;
mod pool;
mod targets;

pub use names::{ADDRESS_MODE, ADDRESS_OWNER, ADDRESSES, GATEWAY_NAME, MANAGED_BY, MANAGER, object_key};
pub use placement::placements;
pub use plan::{Assigned, Input, Plan, Serving, plan};

#[cfg(test)]
mod tests;
