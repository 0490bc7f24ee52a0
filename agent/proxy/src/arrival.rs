//! Tunnels on the application's own port: told from plaintext on arrival by who sends them and by their ALPN.
//!
//! Capture brings every port of a pod to 15006, so that a peer's agent need not connect to 15008, and a NetworkPolicy
//! decides about the port that is really meant. Only addresses from which tunnels may come are looked at; the bytes are
//! peeked at, since plaintext goes on to the application as it came.

use crate::l4::detect::{Offer, PEEK_MAX, offers};
use nix::sys::socket::{MsgFlags, recv};
use std::{io, iter, net::IpAddr, os::fd::AsRawFd, pin::pin, time::Duration};
use tokio::{
    io::Interest,
    net::TcpStream,
    time::{sleep, timeout},
};
use weft_certs::ALPN_WEFT;
use weft_core::config::Config;

/// A pod of the mesh sends a tunnel, late if its agent has many to open, and the first segment a second time if it was lost.
/// One that speaks in clear, because it joins or leaves or keeps some ports of others from its capture, waits for a server
/// that speaks first: once.
const PATIENCE_MESH: Duration = Duration::from_millis(200);
/// From where plaintext may as well come: programs on nodes, or a pod that has spoken in clear lately. Their servers may have
/// to speak first.
const PATIENCE_DOUBT: Duration = Duration::from_millis(10);
/// A ClientHello that has begun is looked at again after this time, and ever more seldom: its segments come in a row, or
/// one was lost.
const AGAIN: Duration = Duration::from_millis(1);
const AGAIN_MAX: Duration = Duration::from_millis(50);
/// One that is not whole by then is none.
const WHOLE_BY: Duration = Duration::from_secs(2);
/// First look. A hello with a post-quantum key share and a session ticket fits.
const FIRST_LOOK: usize = 4096;

/// What may come from an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Tunnels: a pod of the mesh.
    Mesh,
    /// Tunnels or plaintext: a node (Gateways, but also the kubelet), a pod that is joining, or one that we have not heard
    /// of yet.
    Either,
    /// Plaintext.
    Outside,
}

/// Decides.
pub(crate) fn origin(config: &Config, ip: IpAddr) -> Origin {
    match config.workloads.get(&ip) {
        Some(workload) if workload.enrolled => Origin::Mesh,
        Some(workload) if workload.labelled => Origin::Either,
        Some(_) => Origin::Outside,
        // A Gateway calls the pods of its own node from the node's address on their network, which is nowhere written down.
        None if config.nodes.get(&ip).is_some() || is_pod_network(config, ip) => Origin::Either,
        None => Origin::Outside,
    }
}

fn is_pod_network(config: &Config, ip: IpAddr) -> bool {
    config.pod_cidrs.iter().any(|cidr| cidr.contains(&ip))
}

/// What has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrived {
    /// A tunnel's ClientHello.
    Tunnel,
    /// Something else, or the end.
    Plaintext,
    /// Not enough to tell.
    Nothing,
}

/// Looks at what comes from there, for a moment at most: for less where a pod of the mesh `speaks_clear`. Never at what comes
/// from outside the mesh: its server may have to speak first.
pub(crate) async fn look(origin: Origin, io: &TcpStream, speaks_clear: impl FnOnce() -> bool) -> Arrived {
    if origin == Origin::Outside {
        return Arrived::Plaintext;
    }
    let mut telling = pin!(tell(io));
    match timeout(PATIENCE_DOUBT, &mut telling).await {
        Err(_) if origin == Origin::Mesh && !speaks_clear() => {
            timeout(PATIENCE_MESH - PATIENCE_DOUBT, telling).await.unwrap_or(Arrived::Nothing)
        }
        arrived => arrived.unwrap_or(Arrived::Nothing),
    }
}

/// Whether what comes within `patience` is a tunnel.
pub(crate) async fn is_tunnel(io: &TcpStream, patience: Duration) -> bool {
    timeout(patience, tell(io)).await == Ok(Arrived::Tunnel)
}

/// Whether a tunnel comes before the application says anything. Ends when either side has said something, or has ended.
pub(crate) async fn is_overtaken(io: &TcpStream, application: &TcpStream) -> bool {
    tokio::select! {
        biased;
        arrived = tell(io) => arrived == Arrived::Tunnel,
        _ = application.readable() => false,
    }
}

/// Waits until it is known; never [`Arrived::Nothing`].
async fn tell(io: &TcpStream) -> Arrived {
    if io.readable().await.is_err() {
        return Arrived::Plaintext;
    }
    let (mut pauses, mut known) = (pauses(), None);
    let mut bytes = vec![0; FIRST_LOOK];
    loop {
        let peeked = io.async_io(Interest::READABLE, || {
            recv(io.as_raw_fd(), &mut bytes, MsgFlags::MSG_PEEK).map_err(io::Error::from)
        });
        let Ok(n) = peeked.await else { return Arrived::Plaintext };
        // Not understood anew as long as no more has come.
        if known != Some(n) {
            match offers(&bytes[..n], ALPN_WEFT) {
                Offer::Yes => return Arrived::Tunnel,
                Offer::NeedMore if (1..PEEK_MAX).contains(&n) => known = Some(n),
                Offer::NeedMore | Offer::No => return Arrived::Plaintext,
            }
        }
        if n == bytes.len() {
            bytes.resize(PEEK_MAX, 0);
        }
        // Not waited for by the socket's readiness: that would have to be cleared, and who reads next would not be told of
        // the bytes that are there.
        let Some(pause) = pauses.next() else { return Arrived::Plaintext };
        sleep(pause).await;
    }
}

/// When to look again at a ClientHello that is not whole, until it is too late.
fn pauses() -> impl Iterator<Item = Duration> {
    let longer = |pause: &Duration| Some((*pause * 2).min(AGAIN_MAX));
    iter::successors(Some(AGAIN), longer).scan(Duration::ZERO, |sum, pause| {
        *sum += pause;
        (*sum <= WHOLE_BY).then_some(pause)
    })
}

#[cfg(test)]
mod tests;
