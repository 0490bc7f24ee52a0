//! Tests of matching: cases written by hand, and generated worlds against the specification's sorted list.

mod cases;
mod hosts;
mod oracle;
mod properties;
mod steps;
mod world;
