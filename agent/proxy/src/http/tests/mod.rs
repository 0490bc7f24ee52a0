//! The HTTP path from a client's bytes to an upstream's and back, on loopback.

pub(crate) mod support;

mod backend_tls;
mod endings;
mod faults;
mod floods;
mod idle;
mod messages;
mod routing;
mod streams;
