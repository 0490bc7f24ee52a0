//! `weft-soak`: the long forms of what the cluster test tries shortly. Run it by `./dev soak`.
#![forbid(unsafe_code)]

use clap::Parser as _;
use std::process::ExitCode;
use weft_tests::rollouts::{Args, run};

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("weft-soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}
