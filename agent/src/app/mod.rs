//! Wiring: which part talks to which.

mod admin;
mod agent;
mod clean;
mod cluster;
mod controller;
mod duties;
mod enrolment;
mod gateways;
mod joiner;
mod kubelet;
mod leave;
mod metrics;
mod node;
mod otlp;
mod plugin;
mod pods;
mod remarks;
mod report;
mod run;
mod serve;
mod world;

use crate::{
    call,
    cli::{Cli, Command, NodeCommand},
    cluster::{self as commands, ClusterCommand},
    demo, echo,
};
use anyhow::Result;
use std::process::ExitCode;

/// Runs the command.
///
/// # Errors
/// What the command says; printed by `main`.
pub fn dispatch(cli: Cli) -> Result<ExitCode> {
    install_crypto();
    match cli.command {
        Command::Demo(args) => demo::run(&args)?,
        Command::Run(args) => return run::run(args),
        Command::Agent(args) => return agent::run(*args),
        Command::Controller(args) => return controller::run(args),
        Command::Holder(args) => holder(args)?,
        Command::Install(args) => return commands::run(&ClusterCommand::Install(args)),
        Command::Uninstall(args) => return commands::run(&ClusterCommand::Uninstall(args)),
        Command::Join(args) => return commands::run(&ClusterCommand::Join(args)),
        Command::Leave(args) => return commands::run(&ClusterCommand::Leave(args)),
        Command::Check(args) => return commands::run(&ClusterCommand::Check(args)),
        Command::Status(args) => return commands::run(&ClusterCommand::Status(args)),
        Command::Node(args) => {
            let NodeCommand::Clean(args) = args.command;
            if args.here {
                return clean::run(&args);
            }
            return commands::run(&ClusterCommand::Clean(args));
        }
        Command::Health(args) => return commands::health(&args),
        Command::Admin(args) => return commands::admin(&args),
        Command::Echo(args) => simple_runtime()?.block_on(echo::run(args))?,
        Command::Call(args) => {
            let tally = simple_runtime()?.block_on(call::run(args))?;
            println!("{}", serde_json::to_string(&tally)?);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Ends on SIGTERM or SIGINT: then pods are captured with nobody behind their listeners, which is why the holder outlives
/// agents and hands everything to its successor first.
fn holder(args: crate::cli::HolderArgs) -> Result<()> {
    weft_inpod::holder::run_process(args.run_dir)?;
    Ok(())
}

/// What is logged: `WEFT_LOG`, else from `info` on. kube's client says every failed connection beside us, twice a second while
/// an API server is away, and not which.
fn log_filter(asked: Option<String>) -> String {
    let asked = asked.unwrap_or_else(|| "info".into());
    if asked.contains("kube_client") { asked } else { format!("{asked},kube_client::client::builder=off") }
}

fn simple_runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// One cryptography provider for everything that asks for the process's default (the Kubernetes client does).
fn install_crypto() {
    // An error says that there is one already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
