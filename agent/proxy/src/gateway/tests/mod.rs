//! Listeners on loopback addresses, through the whole path.

mod listeners;
mod support;
mod tls;
mod transport;
