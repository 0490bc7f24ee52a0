//! What a Gateway needs in the cluster: its parameters, its Service, ServiceAccount and EndpointSlices, its addresses.

mod changes;
mod hosts;
mod names;
mod objects;
pub(crate) mod parameters;
mod placement;
mod plan;
mod pool;
mod provisioner;
mod targets;

pub use names::{ADDRESS_MODE, ADDRESSES, GATEWAY_NAME, MANAGED_BY, MANAGER, object_key};
pub use placement::{endpoint_nodes, placements};
pub use plan::{Assigned, Demand, Demands, Input, Plan, Serving, demands, plan};
pub(crate) use provisioner::in_words;
pub use provisioner::{Provisioner, ProvisionerOptions};

#[cfg(test)]
mod tests;
