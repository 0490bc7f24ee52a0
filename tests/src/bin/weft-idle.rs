//! `weft-idle`: connections that lie idle for hours. Run it by `./dev soak idle`.
#![forbid(unsafe_code)]

use clap::Parser as _;
use std::process::ExitCode;
use weft_tests::idle::{Args, run};

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("weft-idle: {error:#}");
            ExitCode::FAILURE
        }
    }
}
