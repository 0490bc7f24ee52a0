//! The capture matrix: what an application may call, from where, how it ends, and by which mechanism Weft must carry it.
//!
//! A cell is one line of [`CELLS`], run in every place (same node, across nodes), family and mode by one [`check`]; a
//! cell that fails names its mechanism. What needs a real Kubernetes is in `cluster/matrix.rs`, real servers in `servers.rs`.

mod world;

use anyhow::{Result, ensure};
use weft_tests::Mesh;
use world::{Answer, World};

/// Who calls. Always on the first node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum From {
    /// An enrolled pod that also serves, and is the endpoint of Service `own`.
    Web,
    /// An enrolled pod whose annotations exclude port [`EXCLUDED`] and the external host's addresses.
    Excluding,
    /// An enrolled pod without IPv6.
    OnlyV4,
    /// A pod outside the mesh.
    Stranger,
    /// A process of the node, or a pod on its network.
    Host,
    /// A machine that is neither node nor pod.
    External,
}

/// What is called, at which port.
#[derive(Clone, Copy, Debug)]
enum To {
    /// A Service over an enrolled pod; where it has no port of this number, the port's own.
    Service(u16),
    /// An enrolled pod.
    Pod(u16),
    /// An enrolled pod whose annotations exclude inbound port [`EXCLUDED`] and the external host's addresses.
    Guarded(u16),
    /// A Service over a pod outside the mesh.
    PlainService(u16),
    /// A pod outside the mesh.
    Plain(u16),
    /// A server on a node's own network.
    Node(u16),
    /// A server on a machine that is neither node nor pod.
    External(u16),
    /// The Service whose only endpoint is the caller.
    Own(u16),
    /// The loopback address.
    Loopback(u16),
    /// The caller's own address.
    Itself(u16),
}

/// How it must be carried, or that it must be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// By mutual TLS: the caller's agent names the identity that answered.
    Tunnel,
    /// In clear, through the caller's agent.
    Clear,
    /// In clear, through the agent of the pod that is called.
    Inbound,
    /// By nobody: the server sees the caller's own port.
    Direct,
    /// Refused or reset, and never left open or closed in order.
    Refused,
    /// Nobody says.
    Untold,
}
use Seen::{Clear, Direct, Inbound, Refused, Tunnel};

/// Where the called is, seen from the caller's node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Same,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Permissive,
    Strict,
}

#[derive(Clone, Copy, Debug)]
struct Cell {
    from: From,
    to: To,
    /// A check of `clients/peer.py`.
    check: &'static str,
    /// What makes it work, named when it does not.
    mechanism: &'static str,
    permissive: Seen,
    strict: Seen,
}

/// Served with the port undeclared, declared `tcp`, by nobody, and by a group of sockets.
const PORT: u16 = 9000;
const OPAQUE: u16 = 90;
const DEAD: u16 = 9;
const DEAD_SERVICE: u16 = 99;
const GROUP: u16 = 9001;
/// As [`PORT`], but excluded by the annotations of those pods that have them.
const EXCLUDED: u16 = 9002;

const fn cell(from: From, to: To, check: &'static str, seen: Seen, mechanism: &'static str) -> Cell {
    Cell { from, to, check, mechanism, permissive: seen, strict: seen }
}

/// Strict pods refuse who is not in the mesh.
const fn outsider(from: From, to: To, check: &'static str, seen: Seen, mechanism: &'static str) -> Cell {
    Cell { from, to, check, mechanism, permissive: seen, strict: Refused }
}

#[rustfmt::skip]
const CELLS: &[Cell] = &[
    cell(From::Web, To::Service(PORT), "hello", Tunnel, "a ClusterIP's frontend, sniffed, into the endpoint's tunnel"),
    cell(From::Web, To::Service(OPAQUE), "hello", Tunnel, "a ClusterIP's frontend, declared opaque, into the endpoint's tunnel"),
    cell(From::OnlyV4, To::Service(OPAQUE), "hello", Tunnel, "capture of a pod that has no IPv6"),
    cell(From::Web, To::Pod(PORT), "hello", Tunnel, "a pod's address (as of a headless Service) is protected, never routed"),
    cell(From::Web, To::PlainService(OPAQUE), "hello", Clear, "a ClusterIP's frontend, to an endpoint outside the mesh"),
    cell(From::Web, To::Plain(PORT), "hello", Clear, "pass-through to a pod outside the mesh"),
    cell(From::Web, To::Node(PORT), "hello", Clear, "pass-through to a peer on the node's network"),
    cell(From::Web, To::External(PORT), "hello", Clear, "pass-through to an external destination"),
    cell(From::Web, To::Own(OPAQUE), "hello", Tunnel, "hairpin: the caller is the Service's endpoint"),
    cell(From::Web, To::Loopback(PORT), "hello", Direct, "what leaves by lo is exempt"),
    cell(From::Web, To::Itself(PORT), "hello", Direct, "the pod's own address leaves by lo"),
    cell(From::Web, To::Service(GROUP), "group", Tunnel, "the kernel spreads over a group of SO_REUSEPORT sockets"),
    outsider(From::Stranger, To::Pod(PORT), "hello", Inbound, "inbound plaintext from a pod outside the mesh"),
    outsider(From::Host, To::Pod(PORT), "hello", Inbound, "inbound plaintext from a peer on the node's network"),
    outsider(From::External, To::Pod(PORT), "hello", Inbound, "inbound plaintext from an external client"),
    outsider(From::Host, To::Pod(GROUP), "group", Inbound, "the kernel spreads over a group of SO_REUSEPORT sockets"),
    // Exclusions.
    cell(From::Excluding, To::Plain(EXCLUDED), "hello", Direct, "annotation exclude-outbound-ports"),
    outsider(From::Excluding, To::Pod(EXCLUDED), "hello", Inbound, "an excluded port goes in clear, so that strict refuses it"),
    cell(From::Excluding, To::Plain(PORT), "hello", Clear, "what no annotation names is captured"),
    cell(From::Excluding, To::External(PORT), "hello", Direct, "annotation exclude-outbound-cidrs"),
    // A namespace's strict is not opened by its pods' annotations.
    outsider(From::Stranger, To::Guarded(EXCLUDED), "hello", Direct, "annotation exclude-inbound-ports"),
    outsider(From::Stranger, To::Guarded(PORT), "hello", Inbound, "what no annotation names is captured"),
    outsider(From::External, To::Guarded(PORT), "hello", Direct, "annotation exclude-inbound-cidrs"),
    // Nobody listens.
    cell(From::Web, To::Service(DEAD_SERVICE), "hello", Refused, "a refused upstream is a refusal: a Service's endpoint"),
    cell(From::Web, To::Pod(DEAD), "hello", Refused, "a refused upstream is a refusal: a pod"),
    cell(From::Web, To::Plain(DEAD), "hello", Refused, "a refused upstream is a refusal: a pod outside the mesh"),
    cell(From::Web, To::Node(DEAD), "hello", Refused, "a refused upstream is a refusal: a peer on the node's network"),
    cell(From::Web, To::External(DEAD), "hello", Refused, "a refused upstream is a refusal: an external destination"),
    cell(From::Web, To::Own(DEAD_SERVICE), "hello", Refused, "a refused upstream is a refusal: hairpin"),
    cell(From::Web, To::Loopback(DEAD), "hello", Refused, "what leaves by lo is exempt"),
    cell(From::Web, To::Itself(DEAD), "hello", Refused, "the pod's own address leaves by lo"),
    cell(From::Stranger, To::Pod(DEAD), "hello", Refused, "a port that nobody listens on is refused: a pod outside the mesh"),
    cell(From::Host, To::Pod(DEAD), "hello", Refused, "a port that nobody listens on is refused: the node"),
    cell(From::Host, To::Pod(DEAD), "connect", Refused, "a port that nobody listens on is refused before the handshake"),
    cell(From::External, To::Pod(DEAD), "hello", Refused, "a port that nobody listens on is refused: an external client"),
    // How connections end.
    cell(From::Web, To::Service(OPAQUE), "end_by_client", Tunnel, "the end of a tunnel's stream is a FIN"),
    cell(From::Web, To::Service(OPAQUE), "half_close_by_client", Tunnel, "half-close inside a tunnel's stream"),
    cell(From::Web, To::Service(OPAQUE), "half_close_by_server", Tunnel, "half-close inside a tunnel's stream"),
    cell(From::Web, To::Service(OPAQUE), "reset_by_client", Tunnel, "a reset stream is a RST for the server"),
    cell(From::Web, To::Service(OPAQUE), "reset_by_server", Tunnel, "a reset stream is a RST for the client"),
    cell(From::Web, To::Service(PORT), "half_close_by_client", Tunnel, "half-close of a sniffed connection"),
    cell(From::Web, To::Service(PORT), "reset_by_client", Tunnel, "RST of a sniffed connection"),
    cell(From::Web, To::Pod(PORT), "half_close_by_server", Tunnel, "half-close inside a tunnel's stream"),
    cell(From::Web, To::Pod(PORT), "reset_by_server", Tunnel, "a reset stream is a RST for the client"),
    cell(From::Web, To::Own(OPAQUE), "half_close_by_client", Tunnel, "half-close of a hairpin"),
    cell(From::Web, To::Own(OPAQUE), "reset_by_server", Tunnel, "RST of a hairpin"),
    cell(From::Web, To::External(PORT), "end_by_client", Clear, "FIN passed through"),
    cell(From::Web, To::External(PORT), "half_close_by_client", Clear, "half-close passed through"),
    cell(From::Web, To::External(PORT), "half_close_by_server", Clear, "half-close passed through"),
    cell(From::Web, To::External(PORT), "reset_by_client", Clear, "RST passed through"),
    cell(From::Web, To::External(PORT), "reset_by_server", Clear, "RST passed through"),
    outsider(From::Stranger, To::Pod(PORT), "end_by_client", Inbound, "FIN of inbound plaintext"),
    outsider(From::Stranger, To::Pod(PORT), "half_close_by_client", Inbound, "half-close of inbound plaintext"),
    outsider(From::Stranger, To::Pod(PORT), "half_close_by_server", Inbound, "half-close of inbound plaintext"),
    outsider(From::Stranger, To::Pod(PORT), "reset_by_client", Inbound, "RST of inbound plaintext"),
    outsider(From::Stranger, To::Pod(PORT), "reset_by_server", Inbound, "RST of inbound plaintext"),
];

impl Mode {
    const fn name(self) -> &'static str {
        match self {
            Self::Permissive => "permissive",
            Self::Strict => "strict",
        }
    }
}

impl Cell {
    const fn expected(&self, mode: Mode) -> Seen {
        match mode {
            Mode::Permissive => self.permissive,
            Mode::Strict => self.strict,
        }
    }

    fn places(&self) -> &'static [Place] {
        match self.to {
            To::External(_) => &[Place::Other],
            To::Own(_) | To::Loopback(_) | To::Itself(_) => &[Place::Same],
            _ => &[Place::Same, Place::Other],
        }
    }

    fn families(&self) -> &'static [bool] {
        if self.from == From::OnlyV4 { &[false] } else { &[false, true] }
    }
}

/// A cell in one place and family.
#[derive(Clone, Copy, Debug)]
struct Case {
    cell: &'static Cell,
    place: Place,
    ipv6: bool,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for cell in CELLS {
        for &place in cell.places() {
            cases.extend(cell.families().iter().map(|&ipv6| Case { cell, place, ipv6 }));
        }
    }
    cases
}

/// Runs every case and names those that were not as expected, each with its mechanism.
fn check(mode: Mode) -> Result<()> {
    let mut world = World::new(mode)?;
    let cases = cases();
    let answers = world.ask(&cases, mode)?;
    let mut failed = Vec::new();
    for (case, answer) in cases.iter().zip(&answers) {
        if let Err(why) = judge(&world, case, mode, answer) {
            let Cell { from, to, check, mechanism, .. } = case.cell;
            let family = if case.ipv6 { "IPv6" } else { "IPv4" };
            failed.push(format!(
                "{from:?} → {to:?} {check}, {:?} node, {family}: {why} ({mechanism})",
                case.place
            ));
        }
    }
    println!("{} cases, {} failed", cases.len(), failed.len());
    ensure!(
        failed.is_empty(),
        "{} of {} cases under {}:\n{}",
        failed.len(),
        cases.len(),
        mode.name(),
        failed.join("\n")
    );
    Ok(())
}

fn judge(world: &World, case: &Case, mode: Mode, answer: &Answer) -> Result<(), String> {
    let expected = case.cell.expected(mode);
    let refused = matches!(&*answer.seen, "refused" | "reset");
    if expected == Refused {
        // A caller whose own agent has answered its SYN is reset; all others are refused before the handshake.
        return if refused { Ok(()) } else { Err(format!("must be refused, was: {}", answer.seen)) };
    }
    if !answer.seen.starts_with("ok") {
        return Err(format!("must work, was: {}", answer.seen));
    }
    let (caller, own) = (answer.caller(), world.own_address(case).to_string());
    if caller.is_some_and(|caller| caller != own) {
        return Err(format!("the server must see {own}, saw {caller:?}"));
    }
    let carried = world.carried(case, answer);
    if carried == expected { Ok(()) } else { Err(format!("must go {expected:?}, went {carried:?}")) }
}

#[test]
fn every_cell_permissive() -> Result<()> {
    check(Mode::Permissive)
}

#[test]
fn every_cell_strict() -> Result<()> {
    check(Mode::Strict)
}
