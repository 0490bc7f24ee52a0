//! `weft-bench`: the measurements behind `tests/bench/RESULTS.md`. Run it by `./dev bench`.
#![forbid(unsafe_code)]

use clap::Parser as _;
use std::process::ExitCode;
use weft_tests::bench::{Args, run};

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("weft-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
