//! 15006: what a pod is sent on its own ports: plaintext by callers outside the mesh, and tunnels of peers.

use crate::{
    arrival::{self, Arrived},
    context::{HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT},
    error::{Blame, ProxyError, Reason, Retryable},
    l4::{copy, tcp::Ended},
    pods::Accepted,
    telemetry::{Counter, Direction},
    transport::{
        accept,
        connect::{self, canonical, reset_on_close},
    },
};
use bytes::Bytes;
use std::{
    net::SocketAddr,
    os::fd::AsFd,
    time::{Duration, Instant},
};
use tokio::net::TcpStream;
use weft_core::{
    config::Config,
    model::{MtlsMode, Workload},
};

/// What happens with a plaintext connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// To the application, from the client's own address.
    Pass,
    /// Reset.
    Refuse,
}

/// Decides. The pod's mode is the Config's of this moment; that with which it was captured only until the Config
/// knows the pod.
fn decide(config: &Config, pod: &Workload, to: SocketAddr) -> Action {
    let mode = config.workloads.get(&to.ip()).filter(|w| w.pod == pod.pod).map_or(pod.mode, |w| w.mode);
    // Straight to one of our own ports: passed on, it would come back for ever.
    let ours = [OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT].contains(&to.port());
    match mode {
        MtlsMode::Permissive if !ours => Action::Pass,
        MtlsMode::Permissive | MtlsMode::Strict => Action::Refuse,
    }
}

/// Where plaintext is refused, a tunnel has this long to say that it is one.
const LATE_TUNNEL: Duration = Duration::from_secs(2);

/// Where a connection leads.
enum Leads {
    /// To the application, which has accepted it.
    Application(TcpStream),
    /// It is a tunnel, for this address of the application.
    Tunnel(SocketAddr),
}

/// Serves one connection.
pub(crate) async fn serve(conn: Accepted) {
    let mut ended = Ended::new(Direction::Inbound, "tcp", conn.peer, Instant::now());
    let config = conn.worker.shared.config.load_full();
    ended.source = config.workloads.get(&conn.peer.ip()).cloned();
    ended.destination = Some(conn.pod.source.workload.clone());
    match connect(&conn, &config, &mut ended).await {
        Ok(Leads::Tunnel(to)) => {
            drop(config);
            return Box::pin(accept::serve(conn, Some(to))).await;
        }
        Ok(Leads::Application(application)) => {
            drop(config);
            let copied =
                copy::bidirectional(conn.io, application, Bytes::new(), conn.pod.share.copying()).await;
            ended.copied(&copied);
        }
        Err(error) => {
            reset_on_close(&conn.io);
            ended.fail(&error);
        }
    }
    ended.record(&conn.worker);
}

async fn connect(conn: &Accepted, config: &Config, ended: &mut Ended) -> Result<Leads, ProxyError> {
    let source = &conn.pod.source;
    let to = source.sockets.original_dst(conn.io.as_fd()).map(canonical);
    let to = to.map_err(|error| denied(format!("no original destination: {error}")))?;
    ended.endpoint = Some(to);
    // Traffic that the pod only forwards (a VM's, a nested container's) lands here too. We would connect on it from
    // inside the pod's namespace, past whatever the pod itself decides: fail closed.
    let ips = &source.workload.ips;
    if !ips.is_empty() && !ips.contains(&to.ip()) {
        return Err(denied(format!("{to} is not an address of pod {}", source.workload.pod)));
    }
    let limits = &conn.worker.shared.limits;
    let origin = arrival::origin(config, conn.peer.ip());
    let arrived = arrival::look(origin, &conn.io).await;
    if arrived == Arrived::Tunnel {
        return Ok(Leads::Tunnel(to));
    }
    if decide(config, &source.workload, to) == Action::Refuse {
        // Plaintext would be refused anyway: nobody is kept waiting.
        if arrived == Arrived::Nothing && arrival::is_tunnel(&conn.io, LATE_TUNNEL).await {
            return Ok(Leads::Tunnel(to));
        }
        conn.worker.telemetry.count(Counter::DeniedPlaintext);
        return Err(denied(format!("plaintext from {} to {to}, which is strict", conn.peer)));
    }
    let application = connect::tcp(&*source.sockets, Some(conn.peer.ip()), to, limits).await?;
    if arrived == Arrived::Nothing && arrival::is_overtaken(&conn.io, &application).await {
        return Ok(Leads::Tunnel(to));
    }
    let from = ended.source.as_ref().map(|source| &source.pod);
    conn.worker.shared.plaintext.saw(conn.peer.ip().to_canonical(), from, &source.workload.pod);
    Ok(Leads::Application(application))
}

fn denied(detail: String) -> ProxyError {
    ProxyError { reason: Reason::Denied, blame: Blame::Downstream, retry: Retryable::No, detail }
}

#[cfg(test)]
mod tests;
