//! The commands that people run against a cluster: install, uninstall, join, leave, check, status, node clean.
//!
//! Each asks first (`facts`), decides in plain functions (`check`, `status`, `members`), and then acts. Nothing here writes
//! the spec of an object that somebody else made; `join` and `leave` set one label.

mod agents;
mod api;
mod args;
mod ask;
mod bundle;
mod check;
mod clean;
mod conditions;
mod facts;
mod install;
mod join;
mod members;
mod missing;
mod mtls;
mod overlap;
mod policies;
mod show;
mod status;
mod uninstall;
mod words;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_of_rights;

pub use agents::{
    BudgetReport, CertificateReport, CniReport, ListenerReport, NodeReport, PlaintextReport, PodReport,
};
pub use api::ClusterError;
pub use args::{
    AdminArgs, CheckArgs, CleanArgs, HealthArgs, InstallArgs, MembershipArgs, StatusArgs, UninstallArgs,
};
pub use ask::{admin, health};
pub(crate) use show::count;
pub use uninstall::WITHDRAWAL;

use anyhow::Result;
use api::Cluster;
use show::Show;
use std::process::ExitCode;

/// Where Weft is.
pub(crate) const NAMESPACE: &str = "weft-system";
/// What `join`, `check` and `status` say of strict pods: whoever switches it on must know what it leaves.
const STRICT: &str = "from outside the mesh, strict pods let in only the probes and lifecycle handlers that their own spec declares, asked by their node's kubelet";
/// Exit code when no cluster answers.
const NO_CLUSTER: u8 = 3;

/// The exit codes of all these commands, for their help.
pub const EXIT_CODES: &str = "\
Exit codes: 0 done, or nothing wrong; 1 something is wrong or not ready, and was said; 2 the arguments are wrong;
3 no cluster answers.";

/// A command with its arguments.
#[derive(Debug)]
pub enum ClusterCommand {
    /// `weft install`
    Install(InstallArgs),
    /// `weft uninstall`
    Uninstall(UninstallArgs),
    /// `weft join`
    Join(MembershipArgs),
    /// `weft leave`
    Leave(MembershipArgs),
    /// `weft check`
    Check(CheckArgs),
    /// `weft status`
    Status(StatusArgs),
    /// `weft node clean NODE`
    Clean(CleanArgs),
}

/// Runs a command.
///
/// # Errors
/// What the command says; printed by `main`.
pub fn run(command: &ClusterCommand) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match runtime.block_on(dispatch(command)) {
        Err(error) if no_cluster(&error) => {
            eprintln!("weft: {error:#}");
            Ok(ExitCode::from(NO_CLUSTER))
        }
        other => other,
    }
}

fn no_cluster(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(ClusterError::Config(_) | ClusterError::Unreachable { .. }))
}

async fn dispatch(command: &ClusterCommand) -> Result<ExitCode> {
    use ClusterCommand::{Check, Clean, Install, Join, Leave, Status, Uninstall};
    let args = match command {
        Install(args) => &args.cluster,
        Uninstall(args) => &args.cluster,
        Join(args) | Leave(args) => &args.cluster,
        Check(args) => &args.cluster,
        Status(args) => &args.cluster,
        Clean(args) => &args.cluster,
    };
    let show = Show::new(args.output);
    if let Install(args) = command
        && args.dry_run
    {
        return install::dry_run(args, &show);
    }
    if let Check(args) = command
        && args.codes
    {
        check::explain(&show);
        return Ok(ExitCode::SUCCESS);
    }
    let cluster = Cluster::connect(args).await?;
    let cluster = match command {
        Uninstall(args) if args.leave_only => cluster.by_page(),
        _ => cluster,
    };
    match command {
        Install(args) => install::run(&cluster, args, &show).await,
        Uninstall(args) => uninstall::run(&cluster, args, &show).await,
        Join(args) => join::run(&cluster, args, true, &show).await,
        Leave(args) => join::run(&cluster, args, false, &show).await,
        Check(args) => check::run(&cluster, args, &show).await,
        Status(args) => status::run(&cluster, args, &show).await,
        Clean(args) => clean::run(&cluster, args, &show).await,
    }
}
