//! Carries a ruleset into a pod: policy routes by netlink, then one transaction by the `nft` program.

use crate::{
    error_list::ErrorList,
    netns::{Netns, NetnsError},
    routes::{self, RouteError},
    ruleset::{CaptureConfig, Mode, TABLE, removal, ruleset},
    socket::ipv6_enabled,
};
use nftables::schema::Nftables;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    io::{self, Read, Write},
    os::fd::AsFd,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// `nft` takes milliseconds; one that hangs must not hold the namespace thread.
const NFT_DEADLINE: Duration = Duration::from_secs(5);
/// How much of nft's complaint is kept.
const COMPLAINT_BYTES: usize = 4096;

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

/// Puts the table in place, replacing one that is there. Blocking: call it on a [`crate::NetnsThread`] from
/// async code.
///
/// # Errors
/// See [`ApplyError`]; worth a retry, except where nft refuses.
pub fn apply(netns: &Netns, config: &CaptureConfig, mode: Mode) -> Result<(), ApplyError> {
    netns.run(|| {
        let ipv6 = ipv6_enabled();
        // Routes first: without a mark nobody uses them, without them marked packets leave by eth0.
        routes::add(ipv6)?;
        run_nft(&ruleset(config, mode, ipv6))
    })?
}

/// Whether a table of ours is in the pod, whatever its rules say. Blocking.
///
/// # Errors
/// When the pod cannot be entered or `nft` does not run.
pub fn is_captured(netns: &Netns) -> Result<bool, ApplyError> {
    let list = || Command::new("nft").args(["-j", "list", "tables"]).stdin(Stdio::null()).output();
    let output = netns.run(list)??;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(ApplyError::Refused(said.chars().take(COMPLAINT_BYTES).collect()));
    }
    let tables: serde_json::Value = serde_json::from_slice(&output.stdout).map_err(io::Error::from)?;
    let tables = tables["nftables"].as_array().into_iter().flatten();
    Ok(tables.filter_map(|entry| entry.get("table")).any(|t| t["family"] == "inet" && t["name"] == TABLE))
}

/// Takes everything of ours out of the pod. Tries all of it.
///
/// # Errors
/// All that went wrong; nothing when there was nothing.
pub fn remove(netns: &Netns) -> Result<(), ErrorList<ApplyError>> {
    let done = netns.run(|| {
        let rules = run_nft(&removal());
        let routes = routes::remove(ipv6_enabled()).map_err(ApplyError::from);
        ErrorList::collect([rules, routes])
    });
    done.unwrap_or_else(|e| ErrorList::collect([Err(e.into())]))
}

/// Runs `nft -j -f -` in the thread's current namespace: a child inherits it.
fn run_nft(transaction: &Nftables<'_>) -> Result<(), ApplyError> {
    let json = serde_json::to_vec(transaction).map_err(io::Error::from)?;
    let mut child = Command::new("nft")
        .args(["-j", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let ended = feed_and_wait(&mut child, &json);
    if ended.is_err() {
        let _ = child.kill(); // it may have ended by itself
    }
    let status = child.wait()?;
    let complaint = ended?;
    if status.success() { Ok(()) } else { Err(ApplyError::Refused(complaint)) }
}

/// Writes the transaction and reads stderr to its end, which is the program's end.
fn feed_and_wait(child: &mut Child, json: &[u8]) -> Result<String, ApplyError> {
    let missing = || ApplyError::Program(io::Error::other("no pipe"));
    let mut stdin = child.stdin.take().ok_or_else(missing)?;
    // nft reads all of its input before it says anything: no deadlock on two full pipes. It may end early
    // (EPIPE); what it then says on stderr is the better error.
    let _ = stdin.write_all(json);
    drop(stdin);
    let mut stderr = child.stderr.take().ok_or_else(missing)?;
    let deadline = Instant::now() + NFT_DEADLINE;
    let (mut said, mut chunk) = (Vec::new(), [0; 1024]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let ready = poll(&mut [PollFd::new(stderr.as_fd(), PollFlags::POLLIN)], timeout);
        match ready {
            Ok(0) => return Err(ApplyError::Hangs),
            Ok(_) => match stderr.read(&mut chunk)? {
                0 => return Ok(String::from_utf8_lossy(&said).trim().replace('\n', " ")),
                n => said.extend_from_slice(&chunk[..n.min(COMPLAINT_BYTES.saturating_sub(said.len()))]),
            },
            Err(nix::Error::EINTR) => {}
            Err(e) => return Err(io::Error::from(e).into()),
        }
    }
}
