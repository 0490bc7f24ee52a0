//! Wiring: which part talks to which.

mod report;

use crate::{
    call,
    cli::{Cli, Command},
    demo, echo,
};
use anyhow::Result;
use std::process::ExitCode;

/// Runs the command.
///
/// # Errors
/// What the command says; printed by `main`.
pub fn dispatch(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Demo(args) => demo::run(&args)?,
        Command::Run(_) => {}
        Command::Holder(_) => {}
        Command::Echo(args) => simple_runtime()?.block_on(echo::run(args))?,
        Command::Call(args) => {
            let tally = simple_runtime()?.block_on(call::run(args))?;
            println!("{}", serde_json::to_string(&tally)?);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn simple_runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}
