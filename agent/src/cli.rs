//! Arguments of the `weft` binary.

use crate::{
    call::CallArgs,
    cluster::{
        AdminArgs, CheckArgs, CleanArgs, EXIT_CODES, HealthArgs, InstallArgs, MembershipArgs, StatusArgs,
        UninstallArgs,
    },
    demo::DemoArgs,
    echo::EchoArgs,
};
use clap::{Parser, Subcommand};
use std::{net::SocketAddr, path::PathBuf};

/// Weft: a sidecarless service mesh. One agent per node, mutual TLS between pods, Gateway API routing at the
/// client's node and at the edge.
#[derive(Debug, Parser)]
#[command(name = "weft", version, max_term_width = 100, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the mesh at work on this machine: two nodes, four pods, a canary, mutual TLS (needs root)
    #[command(
        after_help = "Leaves nothing behind, also on Ctrl-C. With --keep it stays up and prints how to play with it."
    )]
    Demo(DemoArgs),
    /// Serve Gateways and, with --run-dir, a node's pods from a directory of YAML, reloaded on change
    #[command(after_help = RUN_HELP)]
    Run(RunArgs),
    /// Be the agent of a cluster's node: capture its pods, serve its Gateways
    Agent(Box<AgentArgs>),
    /// Write statuses, place Gateways, sign certificates: two replicas, one of which leads
    Controller(ControllerArgs),
    /// Own the listening sockets of a node's pods, so that they survive the agent
    Holder(HolderArgs),
    /// Install Weft into a cluster, or bring it to this version and these settings
    #[command(after_help = EXIT_CODES)]
    Install(InstallArgs),
    /// Take every pod out of the mesh, leave every node clean, then remove Weft
    #[command(after_help = EXIT_CODES)]
    Uninstall(UninstallArgs),
    /// Put a namespace or a pod into the mesh, and follow its pods; none is restarted
    #[command(after_help = EXIT_CODES)]
    Join(MembershipArgs),
    /// Take a namespace or a pod out of the mesh, and follow its pods; none is restarted
    #[command(after_help = EXIT_CODES)]
    Leave(MembershipArgs),
    /// Check cluster and installation: each check with an id, what was found, and the remedy
    #[command(after_help = EXIT_CODES)]
    Check(CheckArgs),
    /// Show nodes, namespaces, pods, callers in clear and what points nowhere, on one screen
    #[command(after_help = EXIT_CODES)]
    Status(StatusArgs),
    /// Heal a node whose agent is gone for good
    Node(NodeArgs),
    /// Ask an agent whether it is well, over its Unix socket (for probes)
    #[command(hide = true)]
    Health(HealthArgs),
    /// Ask an agent for a page, over its Unix socket
    #[command(hide = true)]
    Admin(AdminArgs),
    /// Echo servers of the demo and the tests
    #[command(hide = true)]
    Echo(EchoArgs),
    /// HTTP client of the demo and the tests
    #[command(hide = true)]
    Call(CallArgs),
}

const RUN_HELP: &str = "\
Examples:
  weft run --config ./gateway            serve the Gateways of ./gateway/*.yaml on this machine
  weft run --config ./gateway --dry-run  say what is wrong with the files, and end (exit code 1 if anything would not serve)
  weft run --config DIR --node node-a --run-dir /run/weft   be the agent of node-a (start `weft holder` first)

Kinds: GatewayClass (controllerName weft.dev/gateway-controller), Gateway, ListenerSet, HTTPRoute, GRPCRoute, TLSRoute,
TCPRoute, UDPRoute, ReferenceGrant, BackendTLSPolicy, Service, EndpointSlice, Namespace, Pod, Secret, ConfigMap, and
AgentConfig (weft.dev/v1alpha1) for addresses, tracing and limits.";

/// `weft node`.
#[derive(Clone, Debug, clap::Args)]
pub struct NodeArgs {
    /// What to do with a node.
    #[command(subcommand)]
    pub command: NodeCommand,
}

/// `weft node …`.
#[derive(Clone, Debug, Subcommand)]
pub enum NodeCommand {
    /// Take the mesh's rules out of a node's pods, the plugin out of its network configuration, and every file of an agent
    /// away: for a node whose agent is gone for good. Refused while an agent serves there; again does no harm
    #[command(after_help = EXIT_CODES)]
    Clean(CleanArgs),
}

/// `weft run`.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    /// Directory of YAML files, sub-directories included
    #[arg(long, value_name = "DIR")]
    pub config: PathBuf,
    /// Print problems and conditions, serve nothing
    #[arg(long)]
    pub dry_run: bool,
    /// This node's name, as in `spec.nodeName`
    #[arg(long, env = "NODE_NAME", default_value = "local")]
    pub node: String,
    /// Run directory shared with `weft holder` and `weft-cni`; without it only Gateways are served
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Directory of the mesh CA (`ca.crt`, `ca.key`), made if it is not there; with --run-dir /var/lib/weft/ca by default,
    /// else there is none
    #[arg(long, value_name = "DIR")]
    pub ca_dir: Option<PathBuf>,
    /// Data plane threads; the number of CPUs, at most 2, when left out
    #[arg(long, env = "WEFT_WORKERS")]
    pub workers: Option<usize>,
    /// Access log: a file, `-` for standard output, `off`
    #[arg(long, value_name = "FILE")]
    pub access_log: Option<String>,
    /// Admin address: configuration and certificates as JSON, `/healthz`, `/readyz`. Whoever reaches it may read everything
    #[arg(long, default_value = "127.0.0.1:15000")]
    pub admin: SocketAddr,
    /// Address of Prometheus metrics (`/metrics`), without TLS. Whoever reaches it may read them: they say who talks to whom
    #[arg(long, default_value = "127.0.0.1:15020")]
    pub metrics: SocketAddr,
    /// Longest time that connections are let finish after SIGTERM, in seconds
    #[arg(long, default_value_t = 25)]
    pub drain_seconds: u64,
}

/// `weft holder`.
#[derive(Clone, Debug, clap::Args)]
pub struct HolderArgs {
    /// Run directory shared with the agent
    #[arg(long, value_name = "DIR", default_value = "/run/weft")]
    pub run_dir: PathBuf,
}

/// `weft agent`.
#[derive(Clone, Debug, clap::Args)]
pub struct AgentArgs {
    /// This node's name, as in `spec.nodeName`
    #[arg(long, env = "NODE_NAME")]
    pub node: String,
    /// Namespace of Weft itself
    #[arg(long, env = "POD_NAMESPACE", default_value = "weft-system")]
    pub namespace: String,
    /// Name of this pod: tells it from another agent of the node
    #[arg(long, env = "POD_NAME", default_value = "")]
    pub pod_name: String,
    /// Run directory shared with `weft holder` and `weft-cni`; gone with a reboot
    #[arg(long, value_name = "DIR", default_value = "/run/weft")]
    pub run_dir: PathBuf,
    /// What must survive a reboot
    #[arg(long, value_name = "DIR", default_value = "/var/lib/weft")]
    pub state_dir: PathBuf,
    /// The container runtime's network configurations; without it the plugin is not installed
    #[arg(long, value_name = "DIR")]
    pub cni_conf_dir: Option<PathBuf>,
    /// The container runtime's plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,
    /// The plugin to install there
    #[arg(long, value_name = "FILE", default_value = "/usr/local/bin/weft-cni")]
    pub cni_plugin: PathBuf,
    /// Service account token for the controller (audience weft-controller)
    #[arg(long, value_name = "FILE", default_value = "/var/run/secrets/weft/token")]
    pub token_file: PathBuf,
    /// Data plane threads; the number of CPUs, at most 2, when left out
    #[arg(long, env = "WEFT_WORKERS")]
    pub workers: Option<usize>,
    /// Access log: a file, `-` for standard output, `off`
    #[arg(long, value_name = "FILE")]
    pub access_log: Option<String>,
    /// Unix socket of every page, for probes and `weft admin`
    #[arg(long, env = "WEFT_ADMIN_SOCKET", value_name = "SOCKET")]
    pub admin_socket: Option<PathBuf>,
    /// Address of Prometheus metrics (`/metrics`), by TLS, for bearers of a token that may `get` the nonResourceURL /metrics
    #[arg(long, default_value = "[::]:15020")]
    pub metrics: SocketAddr,
    /// Longest time that connections are let finish after SIGTERM, in seconds
    #[arg(long, env = "WEFT_DRAIN_SECONDS", default_value_t = 25)]
    pub drain_seconds: u64,
}

/// `weft controller`.
#[derive(Clone, Debug, clap::Args)]
pub struct ControllerArgs {
    /// Namespace of Weft itself
    #[arg(long, env = "POD_NAMESPACE", default_value = "weft-system")]
    pub namespace: String,
    /// Name of this replica, in the Lease
    #[arg(long, env = "POD_NAME")]
    pub pod_name: String,
    /// Address that agents call
    #[arg(long, default_value = "[::]:15012")]
    pub listen: SocketAddr,
    /// Unix socket of every page, for probes and `weft admin`
    #[arg(long, env = "WEFT_ADMIN_SOCKET", value_name = "SOCKET")]
    pub admin_socket: Option<PathBuf>,
    /// Address of Prometheus metrics (`/metrics`), by TLS, for bearers of a token that may `get` the nonResourceURL /metrics
    #[arg(long, default_value = "[::]:15020")]
    pub metrics: SocketAddr,
}
