//! Finding the rule for a request: the index that must agree with the specification's sorted list.

mod authority;
mod host;
mod table;

pub use authority::{host_of, split_port};
pub use host::HostMap;
pub use table::{Entry, Order, RequestHead, RouteTable, Selected};
