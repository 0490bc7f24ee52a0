//! Carries a ruleset into a pod: policy routes by netlink, then one transaction by the `nft` program.

use crate::{
    capture_config::CaptureConfig,
    error_list::ErrorList,
    netns::{Netns, NetnsError},
    routes::{self, RouteError},
    ruleset::{
        self, HBONE_PORT, INBOUND_PORT, Mechanism, Mode, OUTBOUND_PORT, Surroundings, probe, removal, ruleset,
    },
    socket::ipv6_enabled,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    collections::BTreeSet,
    io::{self, PipeReader, Read, Write},
    os::fd::AsFd,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// `nft` takes milliseconds; one that hangs must not hold the namespace thread.
const NFT_DEADLINE: Duration = Duration::from_secs(5);
/// How much of nft's complaint, and of what it lists, is kept.
const OUTPUT_BYTES: usize = 64 * 1024;

/// Capture could not be put in place or taken away. The pod's rules are then as they were: a transaction
/// applies whole or not at all.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The namespace is gone or cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// Policy routing.
    #[error(transparent)]
    Routes(#[from] RouteError),
    /// Policy routing, on the way out.
    #[error(transparent)]
    RoutesLeft(#[from] ErrorList<RouteError>),
    /// The program could not be run; is it installed?
    #[error("nft: {0}")]
    Program(#[from] io::Error),
    /// The program refused the transaction.
    #[error("nft refused: {0}")]
    Refused(String),
    /// The program did not end in time and was killed.
    #[error("nft did not end within {NFT_DEADLINE:?}")]
    Hangs,
}

/// Puts the table in place, replacing one that is there, with the best mechanism that the kernel has; says which.
/// Blocking: call it on a [`crate::NetnsThread`] from async code.
///
/// # Errors
/// See [`ApplyError`]; worth a retry, except where nft refuses.
pub fn apply(netns: &Netns, config: &CaptureConfig, mode: Mode) -> Result<Mechanism, ApplyError> {
    netns.run(|| apply_best(&Nft::default(), config, mode))?
}

/// As [`apply`], by this mechanism only.
///
/// # Errors
/// See [`ApplyError`].
pub fn apply_by(
    mechanism: Mechanism,
    netns: &Netns,
    config: &CaptureConfig,
    mode: Mode,
) -> Result<(), ApplyError> {
    netns.run(|| apply_here(&Nft::default(), mechanism, config, mode))?
}

/// Inside the pod. A mechanism is tried by applying it. One that is refused is given up only if the kernel also refuses
/// its probe: another reason is an error, not a reason to capture worse.
fn apply_best(nft: &Nft, config: &CaptureConfig, mode: Mode) -> Result<Mechanism, ApplyError> {
    let [best @ .., last] = Mechanism::ALL;
    for mechanism in best {
        match apply_here(nft, mechanism, config, mode) {
            Err(ApplyError::Refused(_)) if !nft.has(mechanism)? => {}
            other => return other.map(|()| mechanism),
        }
    }
    apply_here(nft, last, config, mode).map(|()| last)
}

fn apply_here(nft: &Nft, mechanism: Mechanism, config: &CaptureConfig, mode: Mode) -> Result<(), ApplyError> {
    let ipv6 = ipv6_enabled();
    // Routes first: without a mark nobody uses them, without them marked packets leave by eth0.
    routes::add(ipv6)?;
    let listening = if config.strict { listening()? } else { BTreeSet::new() };
    let pod = Surroundings { mechanism, ipv6, translated: nft.translates()?, listening };
    nft.run(&[], &ruleset(config, mode, pod)).map(drop)
}

/// More ports than these are nobody's application; the rest of them is not looked for.
const LISTENING_MAX: usize = 4096;

/// TCP ports on which somebody listens in the thread's current namespace, but for ours.
fn listening() -> io::Result<BTreeSet<u16>> {
    let mut ports = BTreeSet::new();
    for table in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
        match std::fs::read_to_string(table) {
            Ok(text) => ports.extend(listening_in(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {} // without IPv6
            Err(error) => return Err(error),
        }
    }
    Ok(ports.into_iter().take(LISTENING_MAX).collect())
}

/// The ports in state LISTEN of a table as in /proc/net/tcp.
fn listening_in(table: &str) -> impl Iterator<Item = u16> + '_ {
    const LISTEN: &str = "0A";
    let ours = [OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT];
    let port = |line: &str| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (local, state) = (words.next()?, words.nth(1)?);
        let port = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
        (state == LISTEN).then_some(port)
    };
    table.lines().filter_map(port).filter(move |port| !ours.contains(port))
}

/// Lets the node's kubelet past a pod's capture until its table is replaced: see [`ruleset::while_away`]. Blocking.
///
/// # Errors
/// See [`ApplyError`]; refused where there is no table that knows of it.
pub(crate) fn let_past(netns: &Netns) -> Result<(), ApplyError> {
    netns.run(|| Nft::default().run(&[], &ruleset::while_away(ipv6_enabled())).map(drop))?
}

/// Takes back what [`let_past`] may have done; nothing where no table is. Blocking.
///
/// # Errors
/// See [`ApplyError`]; never refused.
pub(crate) fn let_nobody_past(netns: &Netns) -> Result<(), ApplyError> {
    match netns.run(|| Nft::default().run(&[], ruleset::NOBODY_PAST))? {
        // No table, or of a version that has no such chain.
        Err(ApplyError::Refused(_)) => Ok(()),
        done => done.map(drop),
    }
}

/// Whether a table of ours is in the pod, whatever its rules say. Blocking.
///
/// # Errors
/// When the pod cannot be entered or `nft` does not run.
pub fn is_captured(netns: &Netns) -> Result<bool, ApplyError> {
    let tables = netns.run(|| Nft::default().run(&[], "list tables inet\n"))??;
    Ok(tables.lines().any(|line| line.trim() == "table inet weft"))
}

/// Takes everything of ours out of the pod. Tries all of it.
///
/// # Errors
/// All that went wrong; nothing when there was nothing.
pub fn remove(netns: &Netns) -> Result<(), ErrorList<ApplyError>> {
    let done = netns.run(|| {
        let rules = Nft::default().run(&[], &removal()).map(drop);
        let routes = routes::remove(ipv6_enabled()).map_err(ApplyError::from);
        ErrorList::collect([rules, routes])
    });
    done.unwrap_or_else(|e| ErrorList::collect([Err(e.into())]))
}

/// The program, run in the thread's current namespace: a child inherits it.
#[derive(Debug)]
struct Nft {
    program: PathBuf,
}

impl Default for Nft {
    fn default() -> Self {
        Self { program: "nft".into() }
    }
}

impl Nft {
    /// Whether the kernel knows what `mechanism` needs.
    fn has(&self, mechanism: Mechanism) -> Result<bool, ApplyError> {
        let Some(probe) = probe(mechanism) else { return Ok(true) };
        match self.run(&["--check"], &probe) {
            Ok(_) => Ok(true),
            Err(ApplyError::Refused(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether our table, as it stands, has chains that translate addresses.
    fn translates(&self) -> Result<bool, ApplyError> {
        // `list table` would be an error where there is none.
        let chains = self.run(&[], "list chains inet\n")?;
        let ours = chains.split("table ").find(|table| table.starts_with("inet weft {"));
        Ok(ours.is_some_and(|table| table.contains("type nat ")))
    }

    /// Runs one transaction and returns what the program prints.
    fn run(&self, options: &[&str], transaction: &str) -> Result<String, ApplyError> {
        let (said, saying) = io::pipe()?;
        let mut child = Command::new(&self.program)
            .args(options)
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(saying.try_clone()?)
            .stderr(saying)
            .spawn()?;
        let ended = feed_and_wait(&mut child, transaction, said);
        if ended.is_err() {
            let _ = child.kill(); // it may have ended by itself
        }
        let status = child.wait()?;
        let said = ended?;
        if status.success() { Ok(said) } else { Err(ApplyError::Refused(said.trim().replace('\n', " "))) }
    }
}

/// Writes the transaction and reads what the program says to its end, which is the program's end.
fn feed_and_wait(child: &mut Child, transaction: &str, mut said: PipeReader) -> Result<String, ApplyError> {
    let mut stdin = child.stdin.take().ok_or_else(|| ApplyError::Program(io::Error::other("no pipe")))?;
    // nft reads all of its input before it says anything: no deadlock on two full pipes. It may end early
    // (EPIPE); what it then says is the better error.
    let _ = stdin.write_all(transaction.as_bytes());
    drop(stdin);
    let deadline = Instant::now() + NFT_DEADLINE;
    let (mut kept, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let ready = poll(&mut [PollFd::new(said.as_fd(), PollFlags::POLLIN)], timeout);
        match ready {
            Ok(0) => return Err(ApplyError::Hangs),
            Ok(_) => match said.read(&mut chunk)? {
                0 => return Ok(String::from_utf8_lossy(&kept).into_owned()),
                n => kept.extend_from_slice(&chunk[..n.min(OUTPUT_BYTES.saturating_sub(kept.len()))]),
            },
            Err(nix::Error::EINTR) => {}
            Err(e) => return Err(io::Error::from(e).into()),
        }
    }
}

#[cfg(test)]
#[path = "apply/tests.rs"]
mod tests;
