//! Tests of balancing.

mod affinity;
mod eject;
mod p2c;
mod sticky;
mod weighted;
