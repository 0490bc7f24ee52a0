//! Balancing.

mod affinity;
mod answer;
mod eject;
mod p2c;
mod slow_start;
mod sticky;
mod weighted;
