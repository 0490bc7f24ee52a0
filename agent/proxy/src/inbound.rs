//! 15006: what a pod is sent in plaintext, by callers outside the mesh.

use crate::{
    context::{HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT},
    error::{Blame, ProxyError, Reason, Retryable},
    kubelet::NotKubelet,
    l4::{copy, tcp::Ended},
    pods::Accepted,
    telemetry::{Counter, Direction},
    transport::connect::{self, canonical, reset_on_close},
};
use bytes::Bytes;
use probe::Asked;
use std::{net::SocketAddr, os::fd::AsFd, time::Instant};
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
    let known = config.workloads.get(&to.ip()).filter(|w| w.pod == pod.pod);
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

/// Serves one plaintext connection.
pub(crate) async fn serve(conn: Accepted) {
    let mut ended = Ended::new(Direction::Inbound, "tcp", conn.peer, Instant::now());
    let worker = conn.worker.clone();
    match admit(&conn, &mut ended) {
        Ok((to, Action::Probe(asks))) => Box::pin(probe::serve(conn, to, &asks, &mut ended)).await,
        Ok((to, Action::Pass { probed })) => pass(conn, to, probed, &mut ended).await,
        Ok((to, Action::Refuse)) => {
            worker.telemetry.count(Counter::DeniedPlaintext);
            let error = denied(format!("plaintext from {} to {to}, which is strict", conn.peer));
            refuse(&conn, &error, &mut ended);
        }
        Err(error) => refuse(&conn, &error, &mut ended),
    }
    ended.record(&worker);
}

/// Where it was going, and what is to happen with it.
fn admit(conn: &Accepted, ended: &mut Ended) -> Result<(SocketAddr, Action), ProxyError> {
    let config = conn.worker.shared.config.load();
    let source = &conn.pod.source;
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
    let redirected = conn.worker.shared.redirects.of(&source.workload.pod, to.port(), Instant::now());
    Ok((to, decide(&config, &source.workload, to, redirected)))
}

/// To the application.
async fn pass(conn: Accepted, to: SocketAddr, probed: bool, ended: &mut Ended) {
    note_caller(&conn, to, probed, ended);
    let sockets = conn.pod.source.sockets.clone();
    match connect::to_application(&*sockets, conn.peer.ip(), to, &conn.worker.shared.limits).await {
        Ok(application) => {
            let copied =
                copy::bidirectional(conn.io, application, Bytes::new(), conn.pod.share.copying()).await;
            ended.copied(&copied);
        }
        Err(error) => refuse(&conn, &error, ended),
    }
}

/// Remembers a caller that `strict` would refuse. Those whose probes it lets in are not of them, and would be nearly all.
fn note_caller(conn: &Accepted, to: SocketAddr, probed: bool, ended: &Ended) {
    let (shared, pod, address) = (&conn.worker.shared, &conn.pod.source.workload.pod, conn.peer.ip());
    let Some(client) = &ended.source else {
        if !probed {
            return shared.plaintext.saw(address, None, pod);
        }
        let (shared, pod, peer) = (shared.clone(), pod.clone(), conn.peer);
        return conn.pod.share.spawn(async move {
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
