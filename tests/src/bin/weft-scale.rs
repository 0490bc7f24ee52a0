//! `weft-scale`: thousands of routes and Services on a real cluster; writes `tests/cluster/SCALE.md`. Run it by `./dev scale`.
#![forbid(unsafe_code)]

use clap::Parser as _;
use std::process::ExitCode;
use weft_tests::scale::{Args, run};

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("weft-scale: {error:#}");
            ExitCode::FAILURE
        }
    }
}
