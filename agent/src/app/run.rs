//! `weft run`: the agent of a node, or a Gateway alone, from a directory of YAML.

use super::{
    admin::Door,
    plugin::Plugin,
    report,
    serve::{Options, serve},
    world::settings,
};
use crate::cli::RunArgs;
use anyhow::{Context, Result};
use jiff::Timestamp;
use std::{path::Path, process::ExitCode, sync::Arc, time::Duration};
use weft_certs::{Ca, IdentityStore, LocalIssuer, StoreConfig};
use weft_core::engine::{Engine, Feedback};
use weft_k8s::{AgentConfig, FileProvider, Severity};

/// Runs until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// What keeps it from starting: the directory, the CA, an address in use.
pub(super) fn run(args: RunArgs) -> Result<ExitCode> {
    if args.dry_run {
        return Ok(dry_run(&args));
    }
    // One thread beside the workers: watches, certificates, admin pages, export.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(from_files(args))?;
    Ok(ExitCode::SUCCESS)
}

async fn from_files(args: RunArgs) -> Result<()> {
    let worlds = FileProvider::new(&args.config).watch()?;
    let config = worlds.borrow().agent.clone();
    let options = Options {
        what: args.config.display().to_string(),
        identities: ca_dir(&args).map(|dir| identities(dir, &config)).transpose()?,
        node: args.node,
        run_dir: args.run_dir,
        state_dir: None,
        plugin: Plugin::new(None),
        workers: args.workers,
        access_log: args.access_log,
        doors: vec![(Door::Admin, args.admin), (Door::Metrics, args.metrics)],
        access: None,
        admin_socket: None,
        drain: Duration::from_secs(args.drain_seconds),
        cluster: None,
    };
    serve(options, worlds).await
}

/// Prints what is wrong and what would be served. Exit code 1 if anything would not be: for CI of routes.
fn dry_run(args: &RunArgs) -> ExitCode {
    let world = FileProvider::new(&args.config).load();
    for problem in &world.problems {
        println!("{problem}");
    }
    let mut engine = Engine::new(settings(&world.agent, false, Some(args.node.as_str().into())));
    let config = engine.apply(world.snapshot.clone(), &Feedback::default()).config;
    // What would clash when bound is known without binding.
    let update = engine.apply(world.snapshot, &weft_proxy::gateway::clashes(&config));
    print!("{}", report::table(&update.statuses));
    let lint = engine.lint();
    for (object, message) in &lint {
        println!("warning: {object}: {message}");
    }
    let count = |severity| world.problems.iter().filter(|p| p.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning) + lint.len());
    let failing = update.statuses.values().filter(|s| report::is_failing(s)).count();
    println!(
        "{} objects with a status, {failing} of them not fully served; {errors} errors, {warnings} warnings \
         (nothing was bound: whether ports and addresses are free shows when it runs)",
        update.statuses.len()
    );
    if errors + failing > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Where the mesh's CA is. A Gateway alone needs none: without a node's pods there is no mesh to speak to.
fn ca_dir(args: &RunArgs) -> Option<&Path> {
    let default = args.run_dir.is_some().then_some(Path::new("/var/lib/weft/ca"));
    args.ca_dir.as_deref().or(default)
}

fn identities(dir: &Path, config: &AgentConfig) -> Result<IdentityStore> {
    let ca = Ca::load_or_create(dir, &config.trust_domain, Timestamp::now())
        .context("the mesh CA cannot be used; --ca-dir names another directory")?;
    let issuer = Arc::new(LocalIssuer::new(ca, config.trust_domain.clone()));
    Ok(IdentityStore::new(issuer, StoreConfig::new(config.trust_domain.clone())))
}
