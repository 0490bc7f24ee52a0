//! UDP: a session for each client address, with a socket of its own towards the endpoint. Answers go back from the
//! socket that the client sent to.

use super::accept::Ticket;
use crate::{
    error::{ProxyError, Reason},
    l4::tcp::{Ended, backend_of},
    loads::Choice,
    share::{ConnectionGuard, Kind},
    telemetry::{Counter, Direction},
    transport::connect::canonical,
    worker::Worker,
    workload::LocalWorkload,
};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::{net::UdpSocket, sync::Notify, time::Instant};
use weft_core::config::{Backend, Config, Endpoint, L4Rule, PortConfig, Transport};

/// Sessions of one socket. Each holds a descriptor.
const SESSIONS_MAX: usize = 8192;
/// A session with one question only ends after this silence: DNS clients ask each question from a new port.
const IDLE_SHORT: Duration = Duration::from_secs(5);
/// Any other session.
const IDLE_LONG: Duration = Duration::from_secs(60);
/// Largest datagram.
const DATAGRAM_MAX: usize = 65_535;
/// Datagrams moved in one turn.
const BURST: usize = 32;
/// After a failed receive the loop waits this long.
const PAUSE: Duration = Duration::from_millis(50);

type Sessions = Rc<RefCell<HashMap<SocketAddr, Rc<Session>>>>;

/// Receives on one socket, on one worker.
pub(super) struct Receiver {
    worker: Rc<Worker>,
    local: Rc<LocalWorkload>,
    socket: Rc<UdpSocket>,
    port: u16,
    ticket: Ticket,
    sessions: Sessions,
}

/// One client's datagrams.
struct Session {
    upstream: UdpSocket,
    endpoint: SocketAddr,
    backend: Arc<Backend>,
    /// Of the Config that it was last compared with.
    version: Cell<u64>,
    touched: Cell<Instant>,
    questions: Cell<u64>,
    received: Cell<u64>,
    sent: Cell<u64>,
    /// The configuration has moved on: another session takes its place.
    over: Notify,
}

impl Receiver {
    pub(super) fn new(
        worker: Rc<Worker>,
        local: Rc<LocalWorkload>,
        socket: UdpSocket,
        port: u16,
        ticket: Ticket,
    ) -> Self {
        Self { worker, local, socket: Rc::new(socket), port, ticket, sessions: Sessions::default() }
    }

    /// Until the ticket or the share's drain says stop; sessions go on.
    pub(super) async fn run(self) {
        let drain = self.local.share.drain().clone();
        loop {
            let readable = tokio::select! {
                biased;
                () = self.ticket.stop.cancelled() => return,
                () = drain.draining() => return,
                readable = self.socket.readable() => readable,
            };
            if let Err(error) = readable.and_then(|()| self.receive()) {
                tracing::warn!(gateway = %self.local.source.workload.pod, port = self.port, %error, "cannot receive");
                tokio::time::sleep(PAUSE).await;
            }
            // Others of the share have their turn.
            tokio::task::yield_now().await;
        }
    }

    fn receive(&self) -> io::Result<()> {
        // Taken only while there is something to read.
        let mut buffer = vec![0; DATAGRAM_MAX];
        for _ in 0..BURST {
            match self.socket.try_recv_from(&mut buffer) {
                Ok((n, peer)) => self.forward(peer, &buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn forward(&self, peer: SocketAddr, datagram: &[u8]) {
        let config = self.worker.shared.config.load();
        let session = self.session(&config, peer).or_else(|| self.begin(&config, peer));
        let Some(session) = session else { return };
        session.touched.set(Instant::now());
        session.questions.set(session.questions.get() + 1);
        // Not tokio's `try_send`, which refuses until the runtime has heard of the new socket. What does not fit is
        // lost, as anywhere on a datagram's way.
        if let Ok(n) = SockRef::from(&session.upstream).send(datagram) {
            session.received.set(session.received.get() + n as u64);
        }
    }

    /// The client's session, if the Config would still send it where it goes.
    fn session(&self, config: &Config, peer: SocketAddr) -> Option<Rc<Session>> {
        let session = self.sessions.borrow().get(&peer).cloned()?;
        if session.version.get() == config.version || self.fits(config, &session) {
            session.version.set(config.version);
            return Some(session);
        }
        self.sessions.borrow_mut().remove(&peer);
        session.over.notify_one();
        None
    }

    fn fits(&self, config: &Config, session: &Session) -> bool {
        let backends = self.rule(config).and_then(|rule| rule.backends.as_ref());
        let routed = backends.is_some_and(|all| {
            all.iter().any(|(_, backend)| backend.as_ref().is_ok_and(|b| b.key == session.backend.key))
        });
        let endpoints = config.endpoints.get(&session.backend.key);
        routed && endpoints.is_some_and(|all| all.ready.iter().any(|e| e.addr == session.endpoint))
    }

    fn rule<'c>(&self, config: &'c Config) -> Option<&'c Arc<L4Rule>> {
        match config.gateways.get(&self.local.source.workload.pod)?.ports.get(&(self.port, Transport::Udp))? {
            PortConfig::Udp(rule) => rule.as_ref(),
            _ => None,
        }
    }

    fn begin(&self, config: &Config, peer: SocketAddr) -> Option<Rc<Session>> {
        let rule = self.rule(config)?;
        let room = self.sessions.borrow().len() < SESSIONS_MAX && self.worker.has_room(&self.local);
        let Some(guard) = room.then(|| self.local.share.admit(Kind::Out)).flatten() else {
            self.worker.telemetry.count(Counter::LimitRefused);
            return None;
        };
        let now = std::time::Instant::now();
        let mut ended = Ended::new(Direction::Gateway, "udp", canonical(peer), now);
        ended.parent = Some(self.local.source.workload.pod.clone());
        ended.rule = Some(rule.clone());
        let chosen = self.choose(config, rule, &mut ended);
        let opened = chosen.and_then(|(backend, endpoint)| {
            let upstream = connected(endpoint.addr).map_err(|e| cannot_connect(endpoint, &e))?;
            Ok((backend, endpoint.addr, upstream))
        });
        let (backend, endpoint, upstream) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                ended.fail(&error);
                ended.record(&self.worker);
                return None;
            }
        };
        let session = Rc::new(Session {
            upstream,
            endpoint,
            backend,
            version: Cell::new(config.version),
            touched: Cell::new(Instant::now()),
            questions: Cell::new(0),
            received: Cell::new(0),
            sent: Cell::new(0),
            over: Notify::new(),
        });
        self.sessions.borrow_mut().insert(peer, session.clone());
        self.local.share.spawn(self.answer(session.clone(), peer, ended, guard));
        Some(session)
    }

    fn choose<'c>(
        &self,
        config: &'c Config,
        rule: &L4Rule,
        ended: &mut Ended,
    ) -> Result<(Arc<Backend>, &'c Endpoint), ProxyError> {
        let backend = backend_of(rule, self.worker.draw())?;
        ended.backend = Some(backend.clone());
        let nobody = || ProxyError::no_endpoint(config, &backend.key);
        let endpoints = config.endpoints.get(&backend.key).ok_or_else(nobody)?;
        let share = self.local.share.key();
        let choice = Choice { backend: &backend, set: endpoints, share, client: ended.peer.ip(), tried: &[] };
        let chosen = self.worker.loads.choose_untold(&choice, Instant::now().into_std(), self.worker.draw());
        let endpoint = chosen.and_then(|(i, _)| endpoints.ready.get(i)).ok_or_else(nobody)?;
        ended.note(endpoint);
        Ok((backend, endpoint))
    }

    /// Carries the endpoint's datagrams back until the session is over.
    fn answer(
        &self,
        session: Rc<Session>,
        peer: SocketAddr,
        mut ended: Ended,
        guard: ConnectionGuard,
    ) -> impl Future<Output = ()> + use<> {
        let (worker, socket, sessions) = (self.worker.clone(), self.socket.clone(), self.sessions.clone());
        let (ticket, drain) = (self.ticket.clone(), self.local.share.drain().clone());
        async move {
            let _open = worker.telemetry.connection_opened(Direction::Gateway);
            ended.reason = tokio::select! {
                biased;
                () = ticket.close.cancelled() => Some(Reason::NoRoute),
                () = drain.expired() => Some(Reason::Draining),
                () = session.over.notified() => None,
                failed = session.carry(&socket, peer) => failed,
            };
            let mut sessions = sessions.borrow_mut();
            if sessions.get(&peer).is_some_and(|s| Rc::ptr_eq(s, &session)) {
                sessions.remove(&peer);
            }
            ended.received = session.received.get();
            ended.sent = session.sent.get();
            ended.record(&worker);
            drop(guard);
            // In this order: who waits for the ticket binds the address anew.
            drop(socket);
            drop(ticket);
        }
    }
}

impl Session {
    /// Until silence (`None`) or a failure.
    async fn carry(&self, socket: &UdpSocket, peer: SocketAddr) -> Option<Reason> {
        loop {
            tokio::select! {
                readable = self.upstream.readable() => {
                    if readable.and_then(|()| self.copy(socket, peer)).is_err() {
                        return Some(Reason::ConnectFailed);
                    }
                    self.touched.set(Instant::now());
                    tokio::task::yield_now().await;
                }
                () = tokio::time::sleep_until(self.deadline()) => {
                    if self.deadline() <= Instant::now() {
                        return None;
                    }
                }
            }
        }
    }

    fn deadline(&self) -> Instant {
        self.touched.get() + if self.questions.get() > 1 { IDLE_LONG } else { IDLE_SHORT }
    }

    fn copy(&self, socket: &UdpSocket, peer: SocketAddr) -> io::Result<()> {
        let mut buffer = vec![0; DATAGRAM_MAX];
        for _ in 0..BURST {
            match self.upstream.try_recv(&mut buffer) {
                Ok(n) => {
                    // What does not fit is lost, as anywhere on a datagram's way.
                    if socket.try_send_to(&buffer[..n], peer).is_ok() {
                        self.sent.set(self.sent.get() + n as u64);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn connected(to: SocketAddr) -> io::Result<UdpSocket> {
    let socket =
        Socket::new(Domain::for_address(to), Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
    socket.connect(&to.into())?;
    UdpSocket::from_std(socket.into())
}

fn cannot_connect(endpoint: &Endpoint, error: &io::Error) -> ProxyError {
    ProxyError {
        reason: Reason::ConnectFailed,
        blame: crate::error::Blame::Upstream,
        retry: crate::error::Retryable::Yes,
        detail: format!("{}: {error}", endpoint.addr),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_core::{
        config::{AppProtocol, BackendKey, Reach},
        model::ObjectKey,
    };

    /// DNS asks once from each port; anything else goes on.
    #[tokio::test(start_paused = true)]
    async fn a_quiet_session_ends_after_five_seconds_or_a_minute() {
        for (questions, silence) in [(1, IDLE_SHORT), (2, IDLE_LONG)] {
            let bind = async || UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
            let (upstream, socket) = (bind().await, bind().await);
            let service = ObjectKey::new("shop", "dns");
            let key = BackendKey { service, port: 53, transport: Transport::Udp, reach: Reach::default() };
            let backend = Backend { key, protocol: AppProtocol::Opaque, tls: None, client_ip_affinity: None };
            let addr = socket.local_addr().expect("an address");
            let session = Session {
                upstream,
                endpoint: addr,
                backend: Arc::new(backend),
                version: Cell::new(0),
                touched: Cell::new(Instant::now()),
                questions: Cell::new(questions),
                received: Cell::new(0),
                sent: Cell::new(0),
                over: Notify::new(),
            };
            let begin = Instant::now();
            assert!(session.carry(&socket, addr).await.is_none());
            let lived = begin.elapsed();
            assert!(lived >= silence && lived < silence + Duration::from_secs(1), "{questions}: {lived:?}");
        }
    }
}
