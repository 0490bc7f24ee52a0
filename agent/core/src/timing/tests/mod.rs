//! Tests of timing.

mod durations;
mod limits;
mod liveness;
mod quiet;
mod retries;
