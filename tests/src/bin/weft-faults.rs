//! `weft-faults`: what restarts cost who is served, on a real Kubernetes. Run it by `./dev faults`.
#![forbid(unsafe_code)]

use clap::Parser as _;
use std::process::ExitCode;
use weft_tests::faults::{Args, run};

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("weft-faults: {error:#}");
            ExitCode::FAILURE
        }
    }
}
