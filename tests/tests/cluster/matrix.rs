//! The half of the capture matrix that needs a real Kubernetes: how pods are called by Services of every kind and from
//! outside, and every shape of pod that an application may have. What two namespaces can show is in `tests/matrix`.
//!
//! A cell is a line of [`CELLS`], run under both modes by one check, with Services and addresses of each family that the
//! cluster has; a cell that fails names its mechanism. `WEFT_TEST_CELLS` names part of those to run alone, when one is worked on.

mod objects;
mod world;

use crate::{Story, step};
use anyhow::{Context, Result, bail, ensure};
use weft_tests::family::Family;
use world::{Caller, World};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Permissive,
    Strict,
}

/// What strict makes of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strict {
    /// It works under both modes.
    Works,
    /// It comes from outside the mesh.
    Refuses,
}
use Strict::{Refuses, Works};

struct Cell {
    name: &'static str,
    mechanism: &'static str,
    strict: Strict,
    run: fn(&World<'_>) -> Result<()>,
}

const fn cell(
    name: &'static str,
    strict: Strict,
    run: fn(&World<'_>) -> Result<()>,
    mechanism: &'static str,
) -> Cell {
    Cell { name, mechanism, strict, run }
}

#[rustfmt::skip]
const CELLS: &[Cell] = &[
    cell("ClusterIP by name", Works, |w| w.both("server.mx-mesh"), "the agent sends it to an endpoint"),
    cell("headless Service by name", Works, |w| w.both("headless.mx-mesh:8080"), "DNS names pods, whose addresses are protected"),
    cell("ExternalName", Works, |w| w.both("external-name.mx-mesh"), "DNS names another Service, whose ClusterIP is known"),
    cell("ExternalName of a Service outside the mesh", Works, |w| w.client("external-plain.mx-mesh", "plain"), "DNS names a Service outside the mesh"),
    cell("pod's address, as HTTP and as bytes", Works, |w| w.pod_addresses(), "a protected address is tunnelled to, whatever is spoken"),
    cell("self-call by Service", Works, |w| w.call(Caller::Inside("own"), "own.mx-mesh").map(drop), "the caller is the endpoint"),
    cell("peer on the node's network, its node", Works, |w| w.node_peer(0), "pass-through to a node's address"),
    cell("peer on the node's network, another node", Works, |w| w.node_peer(1), "pass-through to a node's address"),
    cell("from a peer on the node's network", Refuses, |w| w.call(Caller::Host, "server.mx-mesh").map(drop), "plaintext from a node's address"),
    cell("from a pod outside the mesh", Refuses, |w| w.call(Caller::Stranger, "server.mx-mesh").map(drop), "plaintext from a pod"),
    cell("LoadBalancer's address from inside, policy Cluster", Works, |w| w.load_balancer_inside("balanced"), "a load balancer's address of an in-mesh Service is protected as its ClusterIP"),
    cell("LoadBalancer's address from inside, policy Local", Works, |w| w.load_balancer_inside("balanced-local"), "a load balancer's address of an in-mesh Service is protected as its ClusterIP"),
    cell("NodePort, policy Cluster, node with a pod", Refuses, |w| w.node_port("node-port", 0).map(drop), "kube-proxy forwards to a pod"),
    cell("NodePort, policy Cluster, node without the pod", Refuses, |w| w.node_port("node-port-b", 0).map(drop), "kube-proxy forwards to another node"),
    cell("NodePort, policy Local: the client's address", Refuses, |w| w.node_port_local(), "kube-proxy leaves the source as it is"),
    cell("LoadBalancer, policy Cluster", Refuses, |w| w.load_balancer("balanced").map(drop), "kube-proxy forwards the address that the balancer announces"),
    cell("LoadBalancer, policy Local: the client's address", Refuses, |w| w.load_balancer_local(), "kube-proxy leaves the source as it is"),
    cell("hostPort", Refuses, |w| w.host_port().map(drop), "portmap translates on the node"),
    cell("StatefulSet: stable names before readiness, quorum", Works, |w| w.ready("statefulset/quorum"), "peers that are not ready are reached by name"),
    cell("StatefulSet: a peer by its name", Works, |w| w.both("quorum-1.quorum.mx-mesh:8080"), "DNS names a pod, whose address is protected"),
    cell("Job ends", Works, |w| w.job("job"), "its calls are carried, and nothing of Weft keeps it alive"),
    cell("CronJob ends", Works, |w| w.cron_job(), "its calls are carried, and nothing of Weft keeps it alive"),
    cell("init container calls before readiness", Works, |w| w.ready("deployment/init"), "capture stands before the first container starts"),
    cell("native sidecar before other init containers", Works, |w| w.ready("deployment/sidecar"), "capture stands before the first container starts"),
    cell("preStop calls others, and a long drain is served", Works, |w| w.drains(), "a pod that ends is served until it has ended"),
    cell("shareProcessNamespace", Works, |w| w.shape("shared"), "the pod's namespace is found whoever runs in it"),
    cell("user namespace (hostUsers: false)", Works, |w| w.shape("userns"), "a network namespace that a user namespace owns is entered and ruled"),
    cell("read-only root file system", Works, |w| w.shape("readonly"), "nothing is written into the pod"),
    cell("restricted PodSecurity", Works, |w| w.shape("restricted"), "nothing is added to the pod's spec"),
    cell("port-forward", Works, |w| w.port_forward(), "CRI dials the pod's loopback"),
    cell("exec", Works, |w| w.exec(), "not by the network"),
    cell("logs", Works, |w| w.logs(), "not by the network"),
];

/// Where the cluster has both families.
#[rustfmt::skip]
const DUAL_STACK: &[Cell] = &[
    cell("dual-stack Service: either ClusterIP, and its name with either", Works, |w| w.both_families(), "each ClusterIP has the endpoints of its family"),
];

pub(crate) fn run(story: &Story<'_>) -> Result<()> {
    let only = std::env::var("WEFT_TEST_CELLS").unwrap_or_default();
    let families = story.cluster.families()?;
    let (mut failed, mut tried) = (Vec::new(), 0);
    for (place, &family) in families.iter().enumerate() {
        let name = format!("the matrix's pods, {}", family.name());
        let world = step(&name, || World::build(story.cluster, &story.nodes, family))?;
        // Once is enough: it looks at both.
        let of_both = if families.len() > 1 && place == 0 { DUAL_STACK } else { &[] };
        for mode in [Mode::Permissive, Mode::Strict] {
            world.set_mode(mode == Mode::Strict)?;
            for cell in CELLS.iter().chain(of_both).filter(|cell| cell.name.contains(&only)) {
                tried += 1;
                if let Err(error) = check(&world, cell, mode, family) {
                    let family = family.name();
                    let line = format!("{}, {family}, {mode:?}: {error:#} ({})", cell.name, cell.mechanism);
                    println!("cell FAILED: {line}");
                    failed.push(line);
                }
            }
        }
        if failed.is_empty() {
            world.clear()?;
        }
    }
    ensure!(failed.is_empty(), "{} of {tried} cells failed:\n{}", failed.len(), failed.join("\n"));
    Ok(())
}

/// The call itself must have been ended by the called pod's node: a broken name, tool or exec is no refusal.
fn must_be_refused<T: std::fmt::Debug>(result: Result<T>) -> Result<()> {
    match result {
        Ok(served) => bail!("strict must refuse it: {served:?}"),
        Err(error) => {
            ensure!(is_refusal(&format!("{error:#}")), "no refusal, but: {error:#}");
            Ok(())
        }
    }
}

/// What curl says of a connection that was ended without an answer: an empty reply, or a reset while it sent or received; or
/// that it could not connect, where the reset of an agent beside it comes before it has looked at the handshake's end. (The
/// same cell has connected a moment ago, permissive.)
fn is_refusal(said: &str) -> bool {
    ["curl: (7)", "curl: (52)", "curl: (55)", "curl: (56)"].iter().any(|code| said.contains(code))
}

fn check(world: &World<'_>, cell: &Cell, mode: Mode, family: Family) -> Result<()> {
    let start = std::time::Instant::now();
    let result = if mode == Mode::Strict && cell.strict == Refuses {
        must_be_refused((cell.run)(world))
    } else {
        world.anew(cell.name).and_then(|()| (cell.run)(world)).context("must work")
    };
    println!("cell {}, {mode:?}, {}: {:.1} s", family.name(), cell.name, start.elapsed().as_secs_f64());
    result
}

#[test]
fn a_broken_name_tool_or_exec_is_no_refusal() {
    let check = |said: &str, refused: bool| {
        let result = must_be_refused::<()>(Err(anyhow::anyhow!("{said}")));
        assert_eq!(result.is_ok(), refused, "{said}: {result:?}");
    };
    check("curl: (52) Empty reply from server\ncommand terminated with exit code 52", true);
    check("curl: (56) Recv failure: Connection reset by peer", true);
    check(
        "curl: (7) Failed to connect to 10.90.0.11 port 30848 after 0 ms: Couldn't connect to server",
        true,
    );
    check("curl: (6) Could not resolve host: server.mx-mesh", false);
    check("curl: (28) Connection timed out after 10001 milliseconds", false);
    check("Error from server (NotFound): deployments.apps \"stranger\" not found", false);
    assert!(must_be_refused(Ok(())).is_err());
}
