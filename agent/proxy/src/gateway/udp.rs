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
use weft_core::{
    budget,
    config::{Backend, Config, Endpoint, L4Rule, PortConfig, Transport},
    model::UDP_SESSION,
    sessions::{Patience, Sessions},
};

/// Largest datagram.
const DATAGRAM_MAX: usize = 65_535;
/// Datagrams moved in one turn.
const BURST: usize = 32;
/// After a failed receive the loop waits this long.
const PAUSE: Duration = Duration::from_millis(50);

/// The sessions of one socket, and who of them yields. Each holds a descriptor.
#[derive(Default)]
struct Table {
    sessions: HashMap<SocketAddr, Rc<Session>>,
    places: Sessions,
}

impl Table {
    /// The session of this client, unless another has taken its place.
    fn end(&mut self, client: SocketAddr, session: &Rc<Session>) {
        if self.sessions.get(&client).is_some_and(|s| Rc::ptr_eq(s, session)) {
            self.sessions.remove(&client);
            self.places.end(client);
        }
    }
}

/// Receives on one socket, on one worker.
pub(super) struct Receiver {
    worker: Rc<Worker>,
    local: Rc<LocalWorkload>,
    socket: Rc<UdpSocket>,
    port: u16,
    ticket: Ticket,
    table: Rc<RefCell<Table>>,
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
    answers: Cell<u64>,
    patience: Patience,
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
        Self { worker, local, socket: Rc::new(socket), port, ticket, table: Rc::default() }
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
        let now = Instant::now();
        let session = match self.session(&config, peer) {
            Some(session) => {
                self.table.borrow_mut().places.asked(peer, now.into_std());
                session
            }
            None => match self.begin(&config, peer) {
                Some(session) => session,
                None => return,
            },
        };
        session.touched.set(now);
        session.questions.set(session.questions.get() + 1);
        // Not tokio's `try_send`, which refuses until the runtime has heard of the new socket. What does not fit is
        // lost, as anywhere on a datagram's way.
        if let Ok(n) = SockRef::from(&session.upstream).send(datagram) {
            session.received.set(session.received.get() + n as u64);
        }
    }

    /// The client's session, if the Config would still send it where it goes.
    fn session(&self, config: &Config, peer: SocketAddr) -> Option<Rc<Session>> {
        let session = self.table.borrow().sessions.get(&peer).cloned()?;
        if session.version.get() == config.version || self.fits(config, &session) {
            session.version.set(config.version);
            return Some(session);
        }
        self.table.borrow_mut().end(peer, &session);
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
        let Some(guard) = self.local.share.admit(Kind::Out) else {
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
            answers: Cell::new(0),
            patience: self.patience(config),
            received: Cell::new(0),
            sent: Cell::new(0),
            over: Notify::new(),
        });
        self.make_room(peer);
        self.table.borrow_mut().sessions.insert(peer, session.clone());
        self.local.share.spawn(self.answer(session.clone(), peer, ended, guard));
        Some(session)
    }

    /// A session that begins takes the place of one that yields, where there is no room.
    fn make_room(&self, peer: SocketAddr) {
        let mut table = self.table.borrow_mut();
        let Some(displaced) = table.places.begin(peer, Instant::now().into_std()) else { return };
        if let Some(session) = table.sessions.remove(&displaced.client) {
            session.over.notify_one();
        }
        let budget =
            if displaced.of_network { &budget::UDP_SESSIONS_OF_NETWORK } else { &budget::UDP_SESSIONS };
        self.worker.reached(budget, self.local.share.key().into());
    }

    fn patience(&self, config: &Config) -> Patience {
        let gateway = config.gateways.get(&self.local.source.workload.pod);
        let answered = gateway.map_or(UDP_SESSION, |g| g.parameters.udp_session);
        Patience { answered, well_known: self.port < 1024 }
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
        let (worker, socket, table) = (self.worker.clone(), self.socket.clone(), self.table.clone());
        let (ticket, drain) = (self.ticket.clone(), self.local.share.drain().clone());
        async move {
            let _open = worker.telemetry.connection_opened(Direction::Gateway);
            ended.reason = tokio::select! {
                biased;
                () = ticket.close.cancelled() => Some(Reason::NoRoute),
                () = drain.expired() => Some(Reason::Draining),
                () = session.over.notified() => None,
                failed = session.carry(&socket, peer, &table) => failed,
            };
            table.borrow_mut().end(peer, &session);
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
    async fn carry(&self, socket: &UdpSocket, peer: SocketAddr, table: &RefCell<Table>) -> Option<Reason> {
        loop {
            tokio::select! {
                readable = self.upstream.readable() => {
                    if readable.and_then(|()| self.copy(socket, peer)).is_err() {
                        return Some(Reason::ConnectFailed);
                    }
                    let now = Instant::now();
                    self.touched.set(now);
                    self.answers.set(self.answers.get() + 1);
                    table.borrow_mut().places.answered(peer, now.into_std());
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
        self.touched.get() + self.patience.of(self.questions.get(), self.answers.get())
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

    /// C15: a quiet client keeps its endpoint; DNS asks once from each port.
    #[tokio::test(start_paused = true)]
    async fn a_quiet_session_ends_after_five_seconds_or_two_minutes() {
        for (questions, answers, well_known, silence) in
            [(1, 0, false, 5), (1, 1, true, 5), (2, 0, false, 60), (1, 1, false, 120), (2, 1, true, 120)]
        {
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
                answers: Cell::new(answers),
                patience: Patience { answered: UDP_SESSION, well_known },
                received: Cell::new(0),
                sent: Cell::new(0),
                over: Notify::new(),
            };
            let begin = Instant::now();
            assert!(session.carry(&socket, addr, &RefCell::default()).await.is_none());
            let lived = begin.elapsed();
            let silence = Duration::from_secs(silence);
            assert!(lived >= silence && lived < silence + Duration::from_secs(1), "{questions}: {lived:?}");
        }
    }
}
