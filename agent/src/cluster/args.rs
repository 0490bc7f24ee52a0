//! Arguments of the commands that speak to a cluster.

use clap::{Args, Subcommand, ValueEnum};
use std::{path::PathBuf, time::Duration};

/// Which cluster.
#[derive(Clone, Debug, Default, Args)]
pub struct ClusterArgs {
    /// kubeconfig file; KUBECONFIG, ~/.kube/config, or the pod's service account when left out
    #[arg(long, value_name = "FILE", global = true)]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig
    #[arg(long, value_name = "NAME", global = true)]
    pub context: Option<String>,
    /// What is printed; `json` is stable and for programs
    #[arg(long, short, value_enum, default_value_t, global = true)]
    pub output: Output,
}

/// For people or for programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Lines and tables.
    #[default]
    Table,
    /// One JSON document on standard output; progress goes to standard error.
    Json,
}

/// What comes along with Weft.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Addon {
    /// A Jaeger with its traces in memory, wired up.
    Jaeger,
    /// The controller takes weft.dev/agent-not-ready:NoSchedule from nodes that are born with it.
    NodeTaint,
}

/// `weft install`.
#[derive(Clone, Debug, Args)]
pub struct InstallArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub cluster: ClusterArgs,
    /// Image of agent and controller
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
    /// A setting, as in the Helm chart: config.trustDomain, config.mtls, config.tracing.endpoint, controller.replicas,
    /// agent.cniConfDir, agent.cniBinDir, agent.drainSeconds, agent.logFilter, controller.logFilter, jaeger.image
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
    /// What comes along
    #[arg(long = "addon", value_enum, value_name = "NAME")]
    pub addons: Vec<Addon>,
    /// Forget the settings of the last installation instead of keeping those that are not given now
    #[arg(long)]
    pub reset: bool,
    /// Wait until the controller and every agent are ready
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    pub wait: bool,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub timeout: Duration,
    /// Install although a check failed
    #[arg(long)]
    pub force: bool,
    /// Print the objects as YAML (`-o json`: as a List) and change nothing; needs no cluster
    #[arg(long)]
    pub dry_run: bool,
}

/// `weft uninstall`.
#[derive(Clone, Debug, Args)]
pub struct UninstallArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub cluster: ClusterArgs,
    /// Also remove the CA's key, Weft's CRDs with all their objects, and the namespace
    #[arg(long)]
    pub purge: bool,
    /// Go on although a node could not be left clean
    #[arg(long)]
    pub force: bool,
    /// How long connections that go through agents may still go on; what is left is ended then. At most the agents' own
    /// patience (agent.drainSeconds)
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub drain: Duration,
    /// Take pods, nodes and statuses out of the mesh and end the controller, but leave the installed objects: what the Helm
    /// chart's pre-delete hook runs. Asks agents by their page on the nodes' network (port 15020)
    #[arg(long, conflicts_with = "purge")]
    pub leave_only: bool,
    /// How long each step may take, beside the drain
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub timeout: Duration,
}

/// `weft join` and `weft leave`.
#[derive(Clone, Debug, Args)]
pub struct MembershipArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub cluster: ClusterArgs,
    /// A namespace, or pod/NAME
    #[arg(value_name = "NAMESPACE|pod/NAME")]
    pub target: String,
    /// Namespace of the pod
    #[arg(long, short, value_name = "NAMESPACE", default_value = "default")]
    pub namespace: String,
    /// How long to follow the pods; 0s: only set the label
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = duration)]
    pub timeout: Duration,
}

/// `weft check`.
#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub cluster: ClusterArgs,
    /// Only what must hold before an installation
    #[arg(long)]
    pub pre: bool,
    /// Only tell what each code means, and what is done about it; no cluster is asked
    #[arg(long)]
    pub codes: bool,
}

/// `weft status`.
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub cluster: ClusterArgs,
}

/// `weft node clean`.
#[derive(Clone, Debug, Args)]
pub struct CleanArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub cluster: ClusterArgs,
    /// The node, cleaned by a short-lived pod on it
    #[arg(value_name = "NODE", required_unless_present = "here", conflicts_with = "here")]
    pub node: Option<String>,
    /// Clean the node that this runs on, as its root; needs no cluster
    #[arg(long)]
    pub here: bool,
    /// Although an agent serves there (which would take the pods in again)
    #[arg(long)]
    pub force: bool,
    /// Image of the pod; the agents' when left out
    #[arg(long, value_name = "IMAGE", conflicts_with = "here")]
    pub image: Option<String>,
    /// With --here: the container runtime's network configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// With --here: the container runtime's plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,
    /// How long the pod may take
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = duration)]
    pub timeout: Duration,
}

/// `weft health`.
#[derive(Clone, Debug, Args)]
pub struct HealthArgs {
    /// The agent's Unix socket
    #[arg(long, env = "WEFT_ADMIN_SOCKET", value_name = "SOCKET")]
    pub socket: PathBuf,
    /// `healthz` (alive) or `readyz` (serving)
    #[arg(long, default_value = "readyz", value_parser = ["healthz", "readyz"])]
    pub page: String,
}

/// `weft admin`.
#[derive(Clone, Debug, Args)]
pub struct AdminArgs {
    /// The agent's Unix socket
    #[arg(
        long,
        env = "WEFT_ADMIN_SOCKET",
        value_name = "SOCKET",
        global = true,
        default_value = "/var/run/weft-pod/admin.sock"
    )]
    pub socket: PathBuf,
    #[command(subcommand)]
    #[allow(missing_docs)]
    pub command: AdminCommand,
}

/// `weft admin …`.
#[derive(Clone, Debug, Subcommand)]
pub enum AdminCommand {
    /// Print a page: /node, /status, /certificates, /metrics
    Get {
        /// The page's path
        #[arg(value_name = "PATH")]
        page: String,
    },
}

/// As the Gateway API writes durations: `90s`, `5m`, `1h30m`.
fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("`{text}` is no duration such as 90s, 5m or 1h30m");
    let (mut total, mut digits) = (Duration::ZERO, String::new());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c.is_ascii_digit() {
            digits.push(c);
            continue;
        }
        let count: u64 = std::mem::take(&mut digits).parse().map_err(|_| bad())?;
        let unit = match c {
            'm' if chars.next_if_eq(&'s').is_some() => Duration::from_millis(1),
            's' => Duration::from_secs(1),
            'm' => Duration::from_secs(60),
            'h' => Duration::from_secs(3600),
            _ => return Err(bad()),
        };
        let part = u32::try_from(count).ok().and_then(|n| unit.checked_mul(n)).ok_or_else(bad)?;
        total = total.checked_add(part).ok_or_else(bad)?;
    }
    if digits.is_empty() && !text.is_empty() { Ok(total) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_the_gateway_api_writes_them() {
        let check = |text, expected: Option<u64>| {
            assert_eq!(duration(text).ok().map(|d| d.as_millis()), expected.map(u128::from), "{text}");
        };
        check("90s", Some(90_000));
        check("1h30m", Some(5_400_000));
        check("250ms", Some(250));
        check("0s", Some(0));
        check("", None);
        check("5", None);
        check("m", None);
        check("99999999999999999999s", None);
        check("4294967295h1m", Some(4_294_967_295 * 3_600_000 + 60_000));
    }
}
