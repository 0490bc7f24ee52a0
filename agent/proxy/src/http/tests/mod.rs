//! The HTTP path from a client's bytes to an upstream's and back, on loopback.

pub(crate) mod support;

mod faults;
mod routing;
mod streams;
