//! 15006: what a pod is sent on its own ports: plaintext by callers outside the mesh, and tunnels of peers.

use crate::{
    arrival::{self, Arrived, Origin},
    context::{HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT},
    entrance::Accepted,
    error::{Blame, ProxyError, Reason, Retryable},
    kubelet::NotKubelet,
    l4::{
        copy::{self, End},
        tcp::Ended,
    },
    telemetry::{Counter, Direction},
    transport::{
        accept,
        connect::{self, canonical, reset_on_close},
    },
    worker::Worker,
    workload::LocalWorkload,
};
use bytes::Bytes;
use probe::Asked;
use std::{
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};
use weft_core::{
    config::Config,
    model::{MtlsMode, Workload},
};

pub(crate) mod probe;

/// What happens with a plaintext connection.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    /// To the application, from the client's own address.
    Pass {
        /// The pod's spec has a probe on this port: the kubelet may be calling.
        probed: bool,
    },
    /// If it is the kubelet's: it may ask this.
    Probe(Vec<Asked>),
    /// Reset.
    Refuse,
}

/// Decides. The pod's mode is the Config's of this moment; that with which it was captured only until the Config
/// knows the pod.
///
/// `redirected`: where the application has lately sent probes that came to this port.
fn decide(config: &Config, pod: &Workload, to: SocketAddr, redirected: Vec<Asked>) -> Action {
    let known = known(config, pod, Some(to.ip()));
    let (mode, probes) = known.map_or((pod.mode, &pod.probes), |w| (w.mode, &w.probes));
    // Straight to one of our own ports: passed on, it would come back for ever.
    if [OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT].contains(&to.port()) {
        return Action::Refuse;
    }
    let declared = probes.iter().filter(|probe| probe.port == to.port());
    let mut asks: Vec<Asked> = declared.map(|p| Asked { ask: p.ask.clone(), depth: 0 }).collect();
    asks.extend(redirected);
    match mode {
        MtlsMode::Permissive => Action::Pass { probed: !asks.is_empty() },
        MtlsMode::Strict if asks.is_empty() => Action::Refuse,
        MtlsMode::Strict => Action::Probe(asks),
    }
}

/// What the Config knows of a pod. By any of its addresses: the network plugin may have given it more than Kubernetes lists, and
/// one may be in dispute.
fn known<'a>(config: &'a Config, pod: &Workload, called: Option<IpAddr>) -> Option<&'a Arc<Workload>> {
    let mut addresses = called.into_iter().chain(pod.ips.iter().copied());
    addresses.find_map(|ip| config.workloads.get(&ip).filter(|w| w.pod == pod.pod))
}

/// What a pod accepts from outside the mesh, at this moment.
pub(crate) fn mode(config: &Config, pod: &Workload) -> MtlsMode {
    known(config, pod, None).map_or(pod.mode, |known| known.mode)
}

/// Completes when a connection in clear that was let in would not be any more.
async fn revoked(worker: &Worker, local: &LocalWorkload, to: SocketAddr) {
    loop {
        let mut told = pin!(local.policy.notified());
        // Before the look, so that a change in between is not missed.
        told.as_mut().enable();
        let action = decide(&worker.shared.config.load(), &local.source.workload, to, Vec::new());
        if !matches!(action, Action::Pass { .. }) {
            return;
        }
        told.await;
    }
}

/// Where plaintext is not simply passed on, a tunnel has this long to say that it is one.
const LATE_TUNNEL: Duration = Duration::from_secs(2);

/// Serves one connection.
pub(crate) async fn serve(conn: Accepted) {
    let mut ended = Ended::new(Direction::Inbound, "tcp", conn.peer, Instant::now());
    let worker = conn.worker.clone();
    match admit(&conn, &mut ended) {
        Ok((to, origin)) => match arrival::look(origin, &conn.io, || speaks_clear(&conn, &ended)).await {
            Arrived::Tunnel => return tunnel(conn, to).await,
            arrived => {
                if let Served::Tunnel(conn) = plaintext(conn, to, arrived, &mut ended).await {
                    return tunnel(conn, to).await;
                }
            }
        },
        Err(error) => refuse(&conn, &error, &mut ended),
    }
    ended.record(&worker);
}

/// Whether the pod that calls has called this one in clear lately.
fn speaks_clear(conn: &Accepted, ended: &Ended) -> bool {
    let (callers, pod) = (&conn.worker.shared.plaintext, &conn.local.source.workload.pod);
    ended.source.as_ref().is_some_and(|client| callers.speaks_clear(&client.pod, pod, Instant::now()))
}

async fn tunnel(conn: Accepted, to: SocketAddr) {
    Box::pin(accept::serve(conn, Some(to))).await;
}

/// Where it was going, and what may come from there.
fn admit(conn: &Accepted, ended: &mut Ended) -> Result<(SocketAddr, Origin), ProxyError> {
    let config = conn.worker.shared.config.load();
    let source = &conn.local.source;
    ended.source = config.workloads.get(&conn.peer.ip()).cloned();
    ended.destination = Some(source.workload.clone());
    let to = source.sockets.original_dst(conn.io.as_fd()).map(canonical);
    let to = to.map_err(|error| denied(format!("no original destination: {error}")))?;
    ended.endpoint = Some(to);
    // Traffic that the pod only forwards (a VM's, a nested container's) lands here too. We would connect on it from
    // inside the pod's namespace, past whatever the pod itself decides: fail closed.
    let ips = &source.workload.ips;
    if !ips.is_empty() && !ips.contains(&to.ip()) {
        return Err(denied(format!("{to} is not an address of pod {}", source.workload.pod)));
    }
    Ok((to, arrival::origin(&config, conn.peer.ip())))
}

/// What became of a connection that did not say at once that it is a tunnel.
enum Served {
    /// It is over.
    Ended,
    /// It said so late, before anything was sent either way.
    Tunnel(Accepted),
}

/// Serves what has not said that it is a tunnel.
async fn plaintext(conn: Accepted, to: SocketAddr, arrived: Arrived, ended: &mut Ended) -> Served {
    let action = {
        let (shared, workload) = (&conn.worker.shared, &conn.local.source.workload);
        let redirected = shared.redirects.of(&workload.pod, to.port(), Instant::now());
        decide(&shared.config.load(), workload, to, redirected)
    };
    if let Action::Pass { probed } = action {
        return pass(conn, to, arrived, probed, ended).await;
    }
    // Plaintext that says nothing is refused anyway, or the kubelet's, which speaks at once: nobody is kept waiting.
    if arrived == Arrived::Nothing && arrival::is_tunnel(&conn.io, LATE_TUNNEL).await {
        return Served::Tunnel(conn);
    }
    if let Action::Probe(asks) = action {
        Box::pin(probe::serve(conn, to, &asks, ended)).await;
    } else {
        conn.worker.telemetry.count(Counter::DeniedPlaintext);
        let error = denied(format!("plaintext from {} to {to}, which is strict", conn.peer));
        refuse(&conn, &error, ended);
    }
    Served::Ended
}

/// To the application, unless it turns out to be a tunnel before the application has said anything.
async fn pass(conn: Accepted, to: SocketAddr, arrived: Arrived, probed: bool, ended: &mut Ended) -> Served {
    let sockets = conn.local.source.sockets.clone();
    let application =
        connect::to_application(&*sockets, conn.peer.ip(), to, &conn.worker.shared.limits).await;
    match application {
        Ok(application) => {
            if arrived == Arrived::Nothing && arrival::is_overtaken(&conn.io, &application).await {
                return Served::Tunnel(conn);
            }
            note_caller(&conn, to, probed, ended);
            let (local, worker) = (conn.local, conn.worker);
            let revoked = revoked(&worker, &local, to);
            let of_share = local.share.copying();
            let copied =
                copy::bidirectional_while(conn.io, application, Bytes::new(), of_share, revoked).await;
            if matches!(copied.end, End::Revoked) {
                worker.telemetry.count(Counter::DeniedPlaintext);
                let peer = conn.peer;
                ended.fail(&denied(format!("plaintext from {peer} to {to}, which has become strict")));
            }
            ended.copied(&copied);
        }
        Err(error) => {
            note_caller(&conn, to, probed, ended);
            refuse(&conn, &error, ended);
        }
    }
    Served::Ended
}

/// Remembers a caller that `strict` would refuse. Those whose probes it lets in are not of them, and would be nearly all.
fn note_caller(conn: &Accepted, to: SocketAddr, probed: bool, ended: &Ended) {
    let (shared, pod, address) = (&conn.worker.shared, &conn.local.source.workload.pod, conn.peer.ip());
    let Some(client) = &ended.source else {
        if !probed {
            return shared.plaintext.saw(address, None, pod);
        }
        let (shared, pod, peer) = (shared.clone(), pod.clone(), conn.peer);
        return conn.local.share.spawn(async move {
            if let Err(NotKubelet::Other(_)) = shared.kubelet.recognise(peer, to).await {
                shared.plaintext.saw(address, None, &pod);
            }
        });
    };
    shared.plaintext.saw(address, Some(&client.pod), pod);
}

fn refuse(conn: &Accepted, error: &ProxyError, ended: &mut Ended) {
    reset_on_close(&conn.io);
    ended.fail(error);
}

fn denied(detail: impl Into<String>) -> ProxyError {
    let detail = detail.into();
    ProxyError { reason: Reason::Denied, blame: Blame::Downstream, retry: Retryable::No, detail }
}

#[cfg(test)]
mod tests;
