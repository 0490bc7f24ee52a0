//! Starts accepting from a Gateway's sockets, each on its worker.

use super::{TlsConfigs, bind::Place, plan::Claim, udp};
use crate::{
    context::ShareKey,
    entrance::{Entrance, accept_loop},
    worker::Worker,
};
use std::{io, os::fd::OwnedFd, rc::Rc, sync::Arc};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::sync::CancellationToken;
use weft_core::config::Transport;

/// A Gateway's port whose socket is handed to a worker.
#[derive(Clone, Debug)]
pub(super) struct Port {
    pub(super) claim: Claim,
    pub(super) place: Place,
    pub(super) ticket: Ticket,
    /// TLS settings of all listeners.
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

/// Starts accepting from `socket` on this worker.
pub(super) fn adopt(worker: &Rc<Worker>, port: Port, socket: OwnedFd) -> io::Result<()> {
    let Port { claim, place, ticket, tls } = port;
    let local = worker.workload(&ShareKey::Gateway(claim.gateway));
    let local = local.ok_or_else(|| io::Error::other("the Gateway was removed meanwhile"))?;
    let port = claim.port;
    match place.transport {
        Transport::Tcp => {
            let listener = std::net::TcpListener::from(socket);
            listener.set_nonblocking(true)?;
            let listener = TcpListener::from_std(listener)?;
            let entrance = Entrance::Gateway { port, tls };
            let accepting = accept_loop(worker.clone(), local.clone(), listener, entrance);
            let stop = ticket.stop.clone();
            local.share.spawn(async move {
                stop.run_until_cancelled(accepting).await;
                drop(ticket);
            });
        }
        Transport::Udp => {
            let socket = std::net::UdpSocket::from(socket);
            socket.set_nonblocking(true)?;
            let socket = tokio::net::UdpSocket::from_std(socket)?;
            let receiver = udp::Receiver::new(worker.clone(), local.clone(), socket, port, ticket);
            local.share.spawn(receiver.run());
        }
    }
    Ok(())
}
