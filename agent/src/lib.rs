//! The `weft` binary's parts: arguments, wiring, what people see. Also the sandbox that the tests and benchmarks use.
#![forbid(unsafe_code)]

pub mod app;
pub mod call;
pub mod cli;
pub mod cluster;
pub mod demo;
pub mod echo;
pub mod sandbox;
