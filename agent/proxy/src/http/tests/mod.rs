//! The HTTP path from a client's bytes to an upstream's and back, on loopback.

pub(crate) mod support;

mod backend_tls;
mod faults;
mod idle;
mod retries;
mod routing;
mod streams;
