//! `weft agent`: the agent of a node in a cluster.
//!
//! ```text
//! API server ─▶ ClusterProvider ─▶ worlds ─▶ serve
//!                   ▲ material, captured pods   │ what is served, captured pods
//! controller ◀─▶ ControlClient ◀────────────────┘
//! ```

use super::{
    admin::Door,
    cluster::{Cluster, Task, controller_address, follow_material, follow_roots, follow_worlds},
    plugin::Plugin,
    serve::{Options, serve},
};
use crate::cli::AgentArgs;
use anyhow::{Context, Result};
use parking_lot::Mutex;
use std::{process::ExitCode, sync::Arc, time::Duration};
use tokio::sync::watch;
use weft_certs::{IdentityStore, StoreConfig};
use weft_cni::install::InstallConfig;
use weft_control::{ClientConfig, ControlClient};
use weft_inpod::Announcer;
use weft_k8s::{
    AccessReviewer, ClusterHandle, ClusterInputs, ClusterOptions, ClusterProvider, Role, WatchState,
};

/// Before the first world nothing can be served; the operator is told this often what is awaited.
const WAITING_NOTICE: Duration = Duration::from_secs(10);

/// Runs until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// What keeps it from starting: no way to an API server, an address in use.
pub(super) fn run(args: AgentArgs) -> Result<ExitCode> {
    super::install_crypto();
    // Beside the workers: watches, certificates, admin pages, export.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(in_cluster(args))?;
    Ok(ExitCode::SUCCESS)
}

async fn in_cluster(args: AgentArgs) -> Result<()> {
    let client = weft_k8s::client().await?;
    let (address_tx, address) = watch::channel(None);
    let (roots_tx, roots) = watch::channel(None);
    let control = ControlClient::start(ClientConfig {
        token: args.token_file.clone(),
        instance: args.pod_name.clone(),
        cache_dir: Some(args.run_dir.join("cache")),
        server_name: format!("weft-controller.{}.svc", args.namespace),
        ..ClientConfig::new(address, roots, args.node.clone())
    });
    let (material_tx, material) = watch::channel(Arc::default());
    let (captured, captured_rx) = watch::channel(Arc::default());
    let options = ClusterOptions {
        system_namespace: args.namespace.clone(),
        ..ClusterOptions::new(Role::Agent { node: args.node.as_str().into() })
    };
    let access = AccessReviewer::new(client.clone());
    let provider =
        ClusterProvider::start(client, options, ClusterInputs { material, captured: captured_rx })?;
    let worlds = first_world(&provider).await?;
    let trust_domain = worlds.borrow().agent.trust_domain.clone();
    let identities = IdentityStore::new(control.issuer(), StoreConfig::new(trust_domain));
    let namespace = args.namespace.clone();
    let (store, mut trusted) = (identities.clone(), None);
    let tasks: Vec<Task> = vec![
        follow_material(control.material(), material_tx),
        follow_worlds(worlds.clone(), address_tx, move |world| {
            controller_address(&world.snapshot, &namespace)
        }),
        follow_roots(provider.roots.clone(), roots_tx, move |bundle| {
            store.set_trust_bundle(bundle.clone());
            // Peers may trust the new roots only.
            if trusted.replace(bundle.clone()).is_some_and(|before| before != *bundle) {
                store.renew_all();
            }
        }),
    ];
    // In the configuration before pods are served: an ADD that comes early waits for us.
    let plugin = Plugin::new(args.cni_conf_dir.as_ref().map(|_| install_config(&args)));
    if !worlds.borrow().uninstall {
        plugin.start().context("the CNI plugin's installer cannot be started")?;
    }
    let cluster = Cluster {
        node: args.node.as_str().into(),
        announcer: Announcer::new(args.run_dir.join("addresses")),
        control,
        watched: provider.state.clone(),
        captured,
        tasks: Mutex::new(tasks),
    };
    let options = Options {
        what: "the cluster".to_owned(),
        node: args.node,
        run_dir: Some(args.run_dir),
        state_dir: Some(args.state_dir),
        plugin,
        workers: args.workers,
        access_log: args.access_log,
        doors: vec![(Door::Network, args.metrics)],
        access: Some(access),
        admin_socket: args.admin_socket,
        drain: Duration::from_secs(args.drain_seconds),
        identities: Some(identities),
        cluster: Some(cluster),
    };
    let served = serve(options, worlds).await;
    provider.stop().await;
    served
}

fn install_config(args: &AgentArgs) -> InstallConfig {
    let defaults = InstallConfig::default();
    InstallConfig {
        conf_dir: args.cni_conf_dir.clone().unwrap_or(defaults.conf_dir),
        bin_dir: args.cni_bin_dir.clone(),
        plugin_source: args.cni_plugin.clone(),
        run_dir: args.run_dir.clone(),
        state_dir: args.state_dir.clone(),
        ..defaults
    }
}

/// Waits for the first complete world; says what is awaited, on standard error: logging is set up by what it says.
async fn first_world(provider: &ClusterHandle) -> Result<watch::Receiver<Arc<weft_k8s::World>>> {
    let mut notice = tokio::time::interval(WAITING_NOTICE);
    notice.tick().await;
    let mut worlds = Box::pin(provider.worlds());
    loop {
        tokio::select! {
            worlds = &mut worlds => return worlds.context("the watches of the cluster ended"),
            _ = notice.tick() => eprintln!("weft: waiting for the cluster: {}", awaited(&provider.state.borrow())),
        }
    }
}

fn awaited(state: &WatchState) -> String {
    let findings: Vec<String> = state
        .findings()
        .iter()
        .map(|(what, fault)| format!("{what}: {} ({})", fault.reason, fault.remedy))
        .collect();
    if findings.is_empty() { "the first lists are not complete".to_owned() } else { findings.join("; ") }
}
