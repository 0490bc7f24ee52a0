//! `weft-cni`: called by the container runtime with CNI_* variables and the network configuration on stdin.
#![forbid(unsafe_code)]

use std::{
    io::{self, Read, Write},
    process::ExitCode,
};
use weft_cni::{plugin, spec::MAX_CONFIG_BYTES};

fn main() -> ExitCode {
    let mut stdin = Vec::new();
    // A read error leaves what was read: it is then answered as an undecodable configuration (code 6).
    let _ = io::stdin().take(MAX_CONFIG_BYTES + 1).read_to_end(&mut stdin);
    let outcome = plugin::run(&|name| std::env::var(name).ok(), &stdin);
    let written = io::stdout().write_all(outcome.stdout.as_bytes()).and_then(|()| io::stdout().flush());
    match (outcome.success, written) {
        (true, Ok(())) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
