//! What a Gateway needs in the cluster: its parameters, its Service, ServiceAccount and EndpointSlices, its addresses.

mod names;
pub(crate) mod parameters;
mod placement;

pub use names::{ADDRESS_MODE, ADDRESS_OWNER, ADDRESSES, GATEWAY_NAME, MANAGED_BY, MANAGER, object_key};
pub use placement::placements;

#[cfg(test)]
mod tests;
