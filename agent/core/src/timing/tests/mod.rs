//! Tests of timing.

mod durations;
mod limits;
mod retries;
