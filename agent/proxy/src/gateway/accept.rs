//! Accept loops, one per listening socket, on the socket's worker; and what a worker knows of a Gateway.

use super::{bind::Place, plan::Claim, serve, tls_config::TlsConfigs, udp};
use crate::{
    context::Source,
    share::{ConnectionGuard, Share},
    telemetry::Counter,
    transport::connect::{canonical, reset_on_close},
    worker::Worker,
};
use std::{io, net::SocketAddr, os::fd::OwnedFd, rc::Rc, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;
use weft_core::{config::Transport, model::ObjectKey};

/// After a failed accept (no file descriptor left) the loop waits this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A Gateway as one worker serves it.
pub(crate) struct Tenant {
    /// `namespace/name`.
    pub(crate) key: ObjectKey,
    /// On whose behalf upstreams are called.
    pub(crate) source: Rc<Source>,
    /// Pays for its traffic.
    pub(crate) share: Rc<Share>,
    /// TLS settings of its listeners.
    pub(super) tls: Arc<TlsConfigs>,
}

/// Ends what uses a socket, and tells when it has ended.
#[derive(Clone, Debug)]
pub(super) struct Ticket {
    /// Take nothing new.
    pub(super) stop: CancellationToken,
    /// The place is given up: let go of the socket.
    pub(super) close: CancellationToken,
    /// Dropped with the last user of the socket.
    pub(super) _alive: mpsc::Sender<()>,
}

/// Starts accepting from `socket` on this worker, for a Gateway's port.
pub(super) fn adopt(
    worker: &Rc<Worker>,
    claim: &Claim,
    place: Place,
    socket: OwnedFd,
    ticket: Ticket,
) -> io::Result<()> {
    let tenant = worker.gateways.borrow().get(&claim.gateway).cloned();
    let tenant = tenant.ok_or_else(|| io::Error::other("the Gateway was removed meanwhile"))?;
    let port = claim.port;
    match place.transport {
        Transport::Tcp => {
            let listener = std::net::TcpListener::from(socket);
            listener.set_nonblocking(true)?;
            let listener = TcpListener::from_std(listener)?;
            let accepting = accept_loop(worker.clone(), tenant.clone(), listener, port);
            let stop = ticket.stop.clone();
            tenant.share.spawn(async move {
                stop.run_until_cancelled(accepting).await;
                drop(ticket);
            });
        }
        Transport::Udp => {
            let socket = std::net::UdpSocket::from(socket);
            socket.set_nonblocking(true)?;
            let socket = tokio::net::UdpSocket::from_std(socket)?;
            let receiver = udp::Receiver::new(worker.clone(), tenant.clone(), socket, port, ticket);
            tenant.share.spawn(receiver.run());
        }
    }
    Ok(())
}

async fn accept_loop(worker: Rc<Worker>, tenant: Rc<Tenant>, listener: TcpListener, port: u16) {
    let drain = tenant.share.drain().clone();
    loop {
        let accepted = tokio::select! {
            biased;
            () = drain.draining() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((io, peer)) => place(&worker, &tenant, io, port, canonical(peer)),
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(gateway = %tenant.key, port, %error, "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves a connection here, or hands it to a worker that is clearly less busy: the kernel spreads connections over
/// the group by a hash, which says nothing of how long they live.
fn place(worker: &Rc<Worker>, tenant: &Rc<Tenant>, io: TcpStream, port: u16, peer: SocketAddr) {
    let target = worker.peers.place(worker.id);
    if target == worker.id {
        begin(worker, tenant, io, port, peer);
        return;
    }
    let io = match io.into_std() {
        Ok(io) => io,
        Err(error) => return tracing::warn!(%error, "a connection could not be handed over"),
    };
    let key = tenant.key.clone();
    let command = Box::new(move |worker: &Rc<Worker>| {
        let tenant = worker.gateways.borrow().get(&key).cloned();
        // A Gateway that was removed meanwhile: the connection is closed.
        let Some(tenant) = tenant else { return };
        match TcpStream::from_std(io) {
            Ok(io) => begin(worker, &tenant, io, port, peer),
            Err(error) => tracing::warn!(%error, "a connection could not be taken over"),
        }
    });
    if let Err(command) = worker.peers.try_run(target, command) {
        command(worker);
    }
}

fn begin(worker: &Rc<Worker>, tenant: &Rc<Tenant>, io: TcpStream, port: u16, peer: SocketAddr) {
    let Some(guard) = tenant.share.admit() else {
        worker.telemetry.count(Counter::LimitRefused);
        reset_on_close(&io);
        return;
    };
    let conn = Accepted { worker: worker.clone(), tenant: tenant.clone(), io, peer, port, guard };
    tenant.share.spawn(serve::serve(conn));
}

/// A connection to one of a Gateway's ports.
pub(super) struct Accepted {
    pub(super) worker: Rc<Worker>,
    pub(super) tenant: Rc<Tenant>,
    pub(super) io: TcpStream,
    pub(super) peer: SocketAddr,
    pub(super) port: u16,
    pub(super) guard: ConnectionGuard,
}
