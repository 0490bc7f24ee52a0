//! `weft`: one binary, subcommands. See `weft --help`.

use clap::Parser as _;
use std::process::ExitCode;

/// Returns memory to the system and costs least on the request path (measured in tests/bench).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match weft::app::dispatch(weft::cli::Cli::parse()) {
        Ok(code) => code,
        // As a shell reports a program that ended on SIGINT.
        Err(error) if error.is::<weft::sandbox::Interrupted>() => ExitCode::from(130),
        Err(error) => {
            eprintln!("weft: {error:#}");
            ExitCode::FAILURE
        }
    }
}
