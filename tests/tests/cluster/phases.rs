//! The phases, in the order in which they are cheapest, and how each gets the cluster that it needs.
//!
//! To add one: write `pub(crate) fn run(story: &Story<'_>) -> Result<()>` in a module of its own and put one line into
//! [`ALL`]: `Phase::new("name", "what it proves", Installed, module::run)`. What a phase makes for itself (namespaces, labels, nodes'
//! tables) it takes away again when it succeeds; the demo application and Weft it leaves as it found them, or says what it left
//! with [`Phase::leaving`].

use crate::{
    Story, application, authority, clear, leaving, matrix, nodes, personas, policies, probes, rollouts,
    screens, services, sharing, step, stolen_node, upgrade,
};
use anyhow::{Context, Result, ensure};
use weft_tests::cluster::Cluster;

/// How far the cluster is. Each is also all that stands before it, so a phase that needs `Installed` may find pods joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    /// Nobody knows: at the start, after a failure, after an uninstallation. Everything is taken away first.
    Unknown,
    /// No Weft. The demo application runs.
    Absent,
    /// Weft runs.
    Installed,
    /// `e2e-web` and `e2e-shop` are in the mesh, permissive.
    Joined,
    /// Gateway `e2e-web/edge` with its route, and the canary's route on Service `e2e-shop/cart`.
    Routed,
    /// `e2e-shop` is strict. The only state that a phase which needs less does not find.
    Strict,
}

use State::{Absent, Installed, Joined, Routed, Strict, Unknown};

/// A part of the test that runs alone.
pub(crate) struct Phase {
    name: &'static str,
    about: &'static str,
    needs: State,
    /// What the cluster is afterwards; as it was before when left out.
    leaves: Option<State>,
    /// It looks into nodes, or switches parts of the cluster off.
    bed_only: bool,
    run: fn(&Story<'_>) -> Result<()>,
}

impl Phase {
    const fn new(
        name: &'static str,
        about: &'static str,
        needs: State,
        run: fn(&Story<'_>) -> Result<()>,
    ) -> Self {
        Self { name, about, needs, leaves: None, bed_only: false, run }
    }

    const fn leaving(self, leaves: State) -> Self {
        Self { leaves: Some(leaves), ..self }
    }

    /// Cannot run on a cluster of the user's.
    const fn on_the_bed(self) -> Self {
        Self { bed_only: true, ..self }
    }
}

// One line a phase: `./dev help` reads names and descriptions from here.
#[rustfmt::skip]
const ALL: &[Phase] = &[
    Phase::new("install", "screens before the installation, and the installation", Absent, install).leaving(Installed),
    Phase::new("services", "whom Services reach, with kube-proxy and with Weft", Installed, services::run).on_the_bed(),
    Phase::new("join", "running pods join with their connections in use; mutual TLS", Installed, join).leaving(Joined),
    Phase::new("routes", "a Gateway, one trace, a canary over two nodes", Joined, routes).leaving(Routed),
    Phase::new("rights", "who may do what, who gets which certificate, two controllers on one route", Routed, rights),
    Phase::new("stolen_node", "what a node's kubelet and agent may ask of the API server and get of the controller", Joined, stolen_node::run).on_the_bed(),
    Phase::new("screens", "check and status when all is well, and when something is wrong", Routed, screens),
    Phase::new("strict", "leaving and joining again; callers in clear are refused", Routed, strict).leaving(Strict),
    Phase::new("probes", "under strict the kubelet may ask what a pod declares, and nobody else may", Strict, probes::run),
    Phase::new("agents", "an agent is away; an agent is replaced under load", Strict, agents),
    Phase::new("nodes", "another CNI rewrites its configuration, the power fails, a new node comes", Strict, nodes).on_the_bed(),
    Phase::new("policies", "NetworkPolicies allow and refuse in the mesh what they did before", Installed, policies::run).on_the_bed(),
    Phase::new("rollouts", "Deployments are rolled out, scaled and lose pods under load", Installed, rollouts::run).on_the_bed(),
    Phase::new("application", "eight services with every kind of probe, permissive and strict, all rolled out under load", Installed, application::run),
    Phase::new("matrix", "Services of every kind and pods of every shape, permissive and strict", Installed, matrix::run).on_the_bed(),
    Phase::new("leaving", "an agent that is gone, a node cleaned, the chart's hook, pods that outlive Weft", Joined, leaving::run).leaving(Unknown).on_the_bed(),
    Phase::new("uninstall", "nothing of Weft is left, and pods talk on", Joined, uninstall).leaving(Unknown),
    Phase::new("upgrade", "from the build before to this one and back under load", Absent, upgrade::run).leaving(Unknown).on_the_bed(),
];

fn install(story: &Story<'_>) -> Result<()> {
    step("before the installation", || screens::before(story.cluster))?;
    step("install", || story.install())
}

fn join(story: &Story<'_>) -> Result<()> {
    step("join running pods", || story.join())?;
    step("mutual TLS", || story.mutual_tls())
}

fn routes(story: &Story<'_>) -> Result<()> {
    step("gateway", || story.gateway())?;
    step("one trace", || story.trace())?;
    step("canary", || story.canary())
}

fn rights(story: &Story<'_>) -> Result<()> {
    step("who may do what", || personas::run(story))?;
    step("who gets which certificate", || authority::run(story))?;
    step("two controllers on one route", || sharing::run(story))
}

fn screens(story: &Story<'_>) -> Result<()> {
    step("screens when all is well", || screens::good(story))?;
    step("screens when something is wrong", || screens::bad(story))
}

fn strict(story: &Story<'_>) -> Result<()> {
    step("leaving and joining again", || nodes::relabelled(story))?;
    step("strict", || story.strict())?;
    step("the connection from before the mesh", || story.kept_lives_on())
}

fn agents(story: &Story<'_>) -> Result<()> {
    story.kept_lives_on()?;
    step("agent away", || nodes::agent_away(story))?;
    step("agent replaced", || story.replace_agent())
}

fn nodes(story: &Story<'_>) -> Result<()> {
    story.kept_lives_on()?;
    step("daemons keep nothing of their starter's", || nodes::daemons_keep_nothing(story))?;
    step("another CNI rewrites its configuration", || nodes::rewritten(story))?;
    if story.cluster.bed_file("flannel")?.exists() {
        step("Flannel is restarted", || nodes::flannel_restarted(story))?;
    }
    step("the power of a node fails", || nodes::rebooted(story))?;
    step("a new node", || nodes::new_node(story))
}

fn uninstall(story: &Story<'_>) -> Result<()> {
    step("uninstall", || story.uninstall())
}

/// The phases of these names in the table's order; all when none is named.
fn chosen(names: &str) -> Result<Vec<&'static Phase>> {
    let names: Vec<&str> = names.split([' ', ',']).filter(|name| !name.is_empty()).collect();
    for name in &names {
        let known =
            || ALL.iter().map(|p| format!("  {:<10} {}", p.name, p.about)).collect::<Vec<_>>().join("\n");
        ensure!(ALL.iter().any(|phase| phase.name == *name), "no phase `{name}`; there are:\n{}", known());
    }
    Ok(ALL.iter().filter(|phase| names.is_empty() || names.contains(&phase.name)).collect())
}

/// Runs the phases of these names. One that fails does not keep the rest from being tried, on a cluster that is cleared.
///
/// # Errors
/// When any failed, or the last could not be cleared away.
pub(crate) fn run(cluster: &Cluster, names: &str) -> Result<()> {
    let mut stage = Stage { cluster, story: None, state: Unknown };
    let mut failed = Vec::new();
    for phase in chosen(names)? {
        if phase.bed_only && !cluster.is_bed() {
            println!("phase {}: only on the test bed, not here", phase.name);
            continue;
        }
        let start = std::time::Instant::now();
        println!("phase {}: {}", phase.name, phase.about);
        let result = stage.run(phase);
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "phase {}: {} in {seconds:.1} s",
            phase.name,
            if result.is_ok() { "done" } else { "FAILED" }
        );
        if let Err(error) = result {
            eprintln!("phase {}: {error:?}\n{}", phase.name, cluster.diagnosis());
            failed.push(format!("{}: {error:#}", phase.name));
            stage.story = None;
            stage.state = Unknown;
        }
    }
    if let Some(story) = &stage.story {
        story.kept_lives_on()?;
    }
    clear(cluster)?;
    ensure!(failed.is_empty(), "phases failed:\n{}", failed.join("\n"));
    Ok(())
}

/// The cluster, and what is known of it.
struct Stage<'a> {
    cluster: &'a Cluster,
    story: Option<Story<'a>>,
    state: State,
}

impl Stage<'_> {
    fn run(&mut self, phase: &Phase) -> Result<()> {
        self.bring(phase.needs).with_context(|| format!("bringing the cluster to {:?}", phase.needs))?;
        (phase.run)(self.story.as_ref().context("no story")?)?;
        // Not what it needs: namespaces that are joined do not join again.
        self.state = phase.leaves.unwrap_or(self.state);
        Ok(())
    }

    /// Takes the steps that lead to a state: those that phases prove, so what a phase stands on is proved once more.
    fn bring(&mut self, needs: State) -> Result<()> {
        let too_far = needs <= Absent && self.state > needs;
        if self.state == Unknown || too_far {
            self.story = None; // with its load
            self.story = Some(step("a fresh application", || Story::begin(self.cluster))?);
            self.state = Absent;
        }
        let story = self.story.as_ref().context("no story")?;
        if self.state == Strict && needs < Strict {
            self.cluster.kubectl(&["label", "namespace", "e2e-shop", "weft.dev/mtls-"])?;
            self.state = Routed;
        }
        while self.state < needs {
            self.state = match self.state {
                Unknown | Absent => step("install", || story.install()).map(|()| Installed),
                Installed => step("join", || story.join()).map(|()| Joined),
                Joined => {
                    step("routes", || story.gateway().and_then(|()| story.canary_route())).map(|()| Routed)
                }
                Routed | Strict => step("strict", || story.strict()).map(|()| Strict),
            }?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_chosen_by_name_in_the_order_of_the_table() -> Result<()> {
        let names = |list: &str| chosen(list).map(|all| all.iter().map(|p| p.name).collect::<Vec<_>>());
        ensure!(names("")?.len() == ALL.len());
        ensure!(names("strict, join")? == ["join", "strict"]);
        let error = names("joined").unwrap_err().to_string();
        ensure!(error.contains("no phase `joined`") && error.contains("uninstall"), "{error}");
        Ok(())
    }

    #[test]
    fn dev_help_reads_every_line_of_the_table() {
        let lines = include_str!("phases.rs").lines().filter(|line| line.starts_with("    Phase::new(\""));
        assert_eq!(lines.count(), ALL.len());
    }
}
