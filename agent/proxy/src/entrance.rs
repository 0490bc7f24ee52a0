//! Entrances: the accept loop of every listening socket, a captured pod's and a Gateway's, and who serves what came in.

use crate::{
    budgets::Tenant,
    gateway, inbound, outbound,
    share::{ConnectionGuard, Kind, pause},
    transport::{
        accept,
        connect::{canonical, reset_on_close},
    },
    worker::Worker,
    workload::LocalWorkload,
};
use std::{io, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};
use tokio::net::{TcpListener, TcpStream};
use weft_core::budget;

/// After a failed accept (no file descriptor left) the loop waits this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections that are accepted at once: a step of the workload's share should not take longer than its slice.
const ACCEPTS_IN_A_ROW: u32 = 8;

/// Which of a workload's listeners a connection came to.
#[derive(Clone, Debug)]
pub(crate) enum Entrance {
    /// A pod's 15001: what it sends.
    Outbound,
    /// A pod's 15006: what it is sent on its own ports.
    Inbound,
    /// A pod's 15008.
    Hbone,
    /// A Gateway's port.
    Gateway {
        /// The listener's port.
        port: u16,
        /// TLS settings of all listeners.
        tls: Arc<gateway::TlsConfigs>,
    },
}

impl Entrance {
    /// As which its connections are counted. One to HBONE's port is [`Kind::Unproved`] until its certificate is known.
    const fn kind(&self) -> Kind {
        match self {
            Self::Outbound | Self::Gateway { .. } => Kind::Out,
            Self::Inbound => Kind::In,
            Self::Hbone => Kind::Unproved,
        }
    }
}

/// A connection to one of a workload's listeners.
pub(crate) struct Accepted {
    /// Serves it.
    pub(crate) worker: Rc<Worker>,
    /// Whose listener it came to.
    pub(crate) local: Rc<LocalWorkload>,
    /// The connection.
    pub(crate) io: TcpStream,
    /// The other end.
    pub(crate) peer: SocketAddr,
    /// Counts it.
    pub(crate) guard: ConnectionGuard,
}

/// Accepts until the workload is drained. Runs in its own share: a flood of connections takes its own time.
pub(crate) async fn accept_loop(
    worker: Rc<Worker>,
    local: Rc<LocalWorkload>,
    listener: TcpListener,
    entrance: Entrance,
) {
    let drain = local.share.drain().clone();
    let mut in_a_row = 0_u32;
    loop {
        let accepted = tokio::select! {
            biased;
            // A pod's listener stays open at its holder: who comes now waits for the next agent.
            () = drain.draining() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((io, peer)) => {
                place(&worker, &local, io, &entrance, canonical(peer));
                in_a_row = in_a_row.wrapping_add(1);
                if in_a_row.is_multiple_of(ACCEPTS_IN_A_ROW) {
                    // What was accepted is served before more is.
                    pause().await;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(workload = ?local.source.share, ?entrance, %error, "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves a connection here, or hands it to a worker that is clearly less busy: where it was accepted (on the pod's home
/// worker; at a Gateway by the kernel's hash) says nothing of how long the others live.
fn place(
    worker: &Rc<Worker>,
    local: &Rc<LocalWorkload>,
    io: TcpStream,
    entrance: &Entrance,
    peer: SocketAddr,
) {
    let target = worker.peers.place(worker.id);
    if target == worker.id {
        begin(worker, local, io, entrance, peer);
        return;
    }
    let io = match io.into_std() {
        Ok(io) => io,
        Err(error) => return tracing::warn!(%error, "a connection could not be handed over"),
    };
    let (key, entrance) = (local.source.share.clone(), entrance.clone());
    let command = Box::new(move |worker: &Rc<Worker>| {
        // A workload that was removed meanwhile: the connection is closed.
        let Some(local) = worker.workload(&key) else { return };
        match TcpStream::from_std(io) {
            Ok(io) => begin(worker, &local, io, &entrance, peer),
            Err(error) => tracing::warn!(%error, "a connection could not be taken over"),
        }
    });
    if let Err(command) = worker.peers.try_run(target, command) {
        command(worker);
    }
}

fn begin(
    worker: &Rc<Worker>,
    local: &Rc<LocalWorkload>,
    io: TcpStream,
    entrance: &Entrance,
    peer: SocketAddr,
) {
    let kind = entrance.kind();
    if !worker.has_room(local) {
        reset_on_close(&io);
        return;
    }
    if matches!(entrance, Entrance::Gateway { .. }) && !worker.shared.descriptors.has_room() {
        worker.reached(&budget::GATEWAY_DESCRIPTORS, Tenant::from(&local.source.share));
        reset_on_close(&io);
        return;
    }
    let Some(guard) = local.share.admit(kind) else {
        let budget = if kind == Kind::In { &budget::CONNECTIONS_IN } else { &budget::CONNECTIONS_OUT };
        worker.reached(budget, Tenant::from(&local.source.share));
        reset_on_close(&io);
        return;
    };
    let conn = Accepted { worker: worker.clone(), local: local.clone(), io, peer, guard };
    match entrance {
        Entrance::Outbound => local.share.spawn_connection(outbound::serve(conn)),
        Entrance::Inbound => local.share.spawn_connection(inbound::serve(conn)),
        Entrance::Hbone => local.share.spawn_connection(accept::serve(conn, None)),
        Entrance::Gateway { port, tls } => {
            local.share.spawn_connection(gateway::serve(conn, *port, tls.clone()))
        }
    }
}
