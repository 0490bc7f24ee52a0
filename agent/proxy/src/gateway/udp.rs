//! UDP ports of a Gateway: a session for each client address, to one endpoint of the oldest UDPRoute's rule.
//!
//! UDP leaves the agent in clear: the mesh carries TCP. Datagrams for which there is no room are dropped and counted, as
//! a network would.

use super::accept::Port;
use crate::{
    error::Reason,
    telemetry::{ConnectionRecord, Counter, Direction},
};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::net::UdpSocket;
use weft_core::{
    balance::{affinity, pick_by},
    config::{Endpoint, L4Rule, PortConfig, Transport},
};

/// A session without a datagram for this long is over.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Sessions of one port on one worker.
const SESSIONS_MAX: usize = 4096;
/// Datagrams moved in one turn.
const BURST: usize = 64;
/// The largest datagram there is.
const DATAGRAM_MAX: usize = 65_536;

/// A port's sessions, and the one buffer that all of them use in turn: nothing is held between two system calls.
struct Sessions {
    port: Rc<Port>,
    socket: UdpSocket,
    by_client: RefCell<HashMap<SocketAddr, Rc<Session>>>,
    buffer: RefCell<Vec<u8>>,
}

struct Session {
    upstream: UdpSocket,
    rule: Arc<L4Rule>,
    endpoint: SocketAddr,
    begin: Instant,
    used: Cell<Instant>,
    received: Cell<u64>,
    sent: Cell<u64>,
}

/// Starts serving.
pub(super) fn start(port: Rc<Port>, socket: std::net::UdpSocket) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    let socket = UdpSocket::from_std(socket)?;
    let buffer = RefCell::new(vec![0; DATAGRAM_MAX]);
    let sessions = Rc::new(Sessions { port, socket, by_client: RefCell::default(), buffer });
    tokio::task::spawn_local(async move {
        let port = Rc::clone(&sessions.port);
        tokio::select! {
            () = port.stop.cancelled() => {}
            () = port.worker.drain.expired() => {}
            () = receive(&sessions) => {}
        }
        // Dropping the last of them ends the sessions' tasks' work; each ends at its next look.
        sessions.by_client.borrow_mut().clear();
    });
    Ok(())
}

async fn receive(sessions: &Rc<Sessions>) {
    loop {
        if let Err(error) = sessions.socket.readable().await {
            tracing::warn!(gateway = %sessions.port.gateway, %error, "a UDP port failed");
            return;
        }
        for _ in 0..BURST {
            let mut buffer = sessions.buffer.borrow_mut();
            match sessions.socket.try_recv_from(&mut buffer) {
                Ok((n, client)) => sessions.forward(client, &buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // An ICMP error of an answer before: it concerns one client only.
                Err(_) => {}
            }
        }
        tokio::task::yield_now().await;
    }
}

impl Sessions {
    /// Hands a datagram to its session's endpoint.
    fn forward(self: &Rc<Self>, client: SocketAddr, datagram: &[u8]) {
        let known = self.by_client.borrow().get(&client).cloned();
        let Some(session) = known.or_else(|| self.begin(client)) else {
            self.port.worker.telemetry.count(Counter::LimitRefused);
            return;
        };
        session.used.set(Instant::now());
        // A full socket buffer drops, as any hop may.
        if session.upstream.try_send(datagram).is_ok() {
            session.received.set(session.received.get() + datagram.len() as u64);
        }
    }

    fn begin(self: &Rc<Self>, client: SocketAddr) -> Option<Rc<Session>> {
        if self.by_client.borrow().len() >= SESSIONS_MAX {
            return None;
        }
        let (rule, endpoint) = self.choose(client)?;
        let now = Instant::now();
        let session = Rc::new(Session {
            upstream: connect(endpoint.addr).ok()?,
            rule,
            endpoint: endpoint.addr,
            begin: now,
            used: Cell::new(now),
            received: Cell::new(0),
            sent: Cell::new(0),
        });
        self.by_client.borrow_mut().insert(client, Rc::clone(&session));
        let (sessions, answered) = (Rc::clone(self), Rc::clone(&session));
        self.port.share.spawn(async move { sessions.run(client, &answered).await });
        Some(session)
    }

    fn choose(&self, client: SocketAddr) -> Option<(Arc<L4Rule>, Endpoint)> {
        let draw = self.port.worker.draw();
        let rule = self.port.config(Transport::Udp, |port| match port {
            PortConfig::Udp(rule) => rule.clone(),
            _ => None,
        });
        let rule = rule.flatten()?;
        let backend = rule.backends.as_ref()?.pick(draw).as_ref().ok()?.clone();
        let config = self.port.worker.shared.config.load();
        let ready = &config.endpoints.get(&backend.key)?.ready;
        let index = if backend.client_ip_affinity {
            let seats = ready.iter().map(|e| Some(affinity::seat(&e.addr)));
            affinity::choose(affinity::client_key(client.ip()), seats)?
        } else {
            pick_by(ready.len(), self.port.worker.draw(), |_| Some(0))?
        };
        Some((rule, ready[index].clone()))
    }

    /// Sends the endpoint's datagrams back, until the session is idle or its port closes.
    async fn run(&self, client: SocketAddr, session: &Rc<Session>) {
        let reason = loop {
            let idle_at = session.used.get() + IDLE_MAX;
            tokio::select! {
                () = self.port.stop.cancelled() => break Some(Reason::Draining),
                () = self.port.share.drain().expired() => break Some(Reason::Draining),
                () = tokio::time::sleep_until(idle_at.into()) => {
                    if session.used.get() + IDLE_MAX <= Instant::now() {
                        break None;
                    }
                }
                ready = session.upstream.readable() => {
                    if ready.is_err() || self.answer(client, session).is_err() {
                        break Some(Reason::UpstreamReset);
                    }
                    tokio::task::yield_now().await;
                }
            }
        };
        self.by_client.borrow_mut().remove(&client);
        self.record(client, session, reason);
    }

    /// # Errors
    /// When the endpoint's port is closed (ICMP): the next datagram shall find another endpoint.
    fn answer(&self, client: SocketAddr, session: &Session) -> io::Result<()> {
        for _ in 0..BURST {
            let mut buffer = self.buffer.borrow_mut();
            match session.upstream.try_recv(&mut buffer) {
                Ok(n) => {
                    session.used.set(Instant::now());
                    if self.socket.try_send_to(&buffer[..n], client).is_ok() {
                        session.sent.set(session.sent.get() + n as u64);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn record(&self, client: SocketAddr, session: &Session, reason: Option<Reason>) {
        self.port.worker.telemetry.connection(&ConnectionRecord {
            parent: Some(&self.port.gateway),
            rule: Some(&session.rule.id),
            endpoint: Some(session.endpoint),
            reason,
            received_bytes: session.received.get(),
            sent_bytes: session.sent.get(),
            duration: session.begin.elapsed(),
            ..ConnectionRecord::new(Direction::Gateway, "udp", client)
        });
    }
}

fn connect(endpoint: SocketAddr) -> io::Result<UdpSocket> {
    let any = match endpoint {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = std::net::UdpSocket::bind(any)?;
    socket.connect(endpoint)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}
