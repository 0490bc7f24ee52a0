//! One port of a Gateway on one worker: accepts, and takes each connection where the Config of that moment says.

use super::tls::{TlsConfigs, TlsPipe};
use crate::{
    context::{Peer, Source},
    error::{Blame, ProxyError, Reason, Retryable},
    http::{self, DownstreamTls, Entrance, GatewayEntrance, HttpConn, HttpVersion, Prefixed},
    l4::{
        detect::{PEEK_MAX, Sni, server_name},
        pipe::Pipe,
        tcp::{self, Ended, L4Conn, L4Target},
    },
    share::{ConnectionGuard, Share},
    telemetry::{Counter, Direction},
    transport::connect::{canonical, reset_on_close},
    worker::Worker,
};
use bytes::{Bytes, BytesMut};
use std::{
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use weft_core::{
    config::{L4Rule, PortConfig, TlsListener, TlsTermination, Transport},
    model::{ObjectKey, Str},
};

/// After a failed accept (no file descriptor left) the loop waits this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A fatal alert `unrecognized_name` (RFC 6066 §3) before any handshake.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// A port that is being served.
pub(super) struct Port {
    pub(super) worker: Rc<Worker>,
    pub(super) share: Rc<Share>,
    pub(super) source: Rc<Source>,
    pub(super) gateway: ObjectKey,
    pub(super) port: u16,
    pub(super) tls: Arc<TlsConfigs>,
    pub(super) stop: CancellationToken,
}

/// Starts accepting.
pub(super) fn start(port: Rc<Port>, socket: std::net::TcpListener) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    let listener = TcpListener::from_std(socket)?;
    tokio::task::spawn_local(async move {
        tokio::select! {
            () = port.stop.cancelled() => {}
            () = port.worker.drain.draining() => {}
            () = accept(&port, &listener) => {}
        }
    });
    Ok(())
}

async fn accept(port: &Rc<Port>, listener: &TcpListener) {
    loop {
        match listener.accept().await {
            Ok((io, peer)) => match port.share.admit() {
                Some(guard) => port.share.spawn(Accepted::new(port, io, peer, guard).serve()),
                None => {
                    reset_on_close(&io);
                    port.worker.telemetry.count(Counter::LimitRefused);
                }
            },
            Err(error) => {
                tracing::warn!(gateway = %port.gateway, port = port.port, %error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A connection that was just accepted.
struct Accepted {
    port: Rc<Port>,
    io: TcpStream,
    peer: SocketAddr,
    begin: Instant,
    _guard: ConnectionGuard,
}

/// Where a connection goes, by the Config of this moment.
enum Way {
    Http,
    Tls,
    Rule(Arc<L4Rule>),
    Refuse,
}

impl Accepted {
    fn new(port: &Rc<Port>, io: TcpStream, peer: SocketAddr, guard: ConnectionGuard) -> Self {
        Self { port: Rc::clone(port), io, peer: canonical(peer), begin: Instant::now(), _guard: guard }
    }

    async fn serve(self) {
        match self.port.way() {
            Way::Http => {
                let conn = self.port.http_conn(self.peer, None);
                http::serve(self.io, None, conn).await;
            }
            Way::Tls => self.tls().await,
            Way::Rule(rule) => {
                let conn = self.port.l4(self.io, self.peer, self.begin, "tcp");
                tcp::serve(conn, L4Target::Rule(rule), Bytes::new()).await;
            }
            Way::Refuse => reset_on_close(&self.io),
        }
    }

    /// Waits for the ClientHello, then terminates TLS or passes it through, as the listener of its server name does.
    async fn tls(mut self) {
        let limit = Duration::from_millis(self.port.worker.shared.limits.handshake_timeout_ms);
        let hello = tokio::time::timeout(limit, read_hello(&mut self.io)).await;
        let Ok(Ok(Some((sni, early)))) = hello else {
            // Silent, gone, or not TLS: there is nothing to say to it.
            self.port.worker.telemetry.count(Counter::HandshakeListenerFailed);
            return reset_on_close(&self.io);
        };
        match self.port.listener(sni.as_deref()).as_deref() {
            None => {
                self.port.worker.telemetry.count(Counter::HandshakeListenerFailed);
                // The alert may not get through to a client that is gone.
                let _ = self.io.write_all(&UNRECOGNIZED_NAME).await;
                let _ = self.io.shutdown().await;
            }
            Some(TlsListener::Passthrough { routes }) => {
                let rule = routes.get(sni.as_deref()).cloned();
                let conn = self.port.l4(self.io, self.peer, self.begin, "tls");
                route(conn, rule, early).await;
            }
            Some(TlsListener::Terminate { tls, routes }) => {
                let rule = routes.get(sni.as_deref()).cloned();
                let (port, peer, begin) = (Rc::clone(&self.port), self.peer, self.begin);
                let Some((io, _guard)) = self.handshake(tls, early, limit).await else { return };
                route(port.l4(TlsPipe(io), peer, begin, "tls"), rule, Bytes::new()).await;
            }
            Some(TlsListener::Https { tls, .. }) => {
                let conn = self.port.http_conn(self.peer, Some(DownstreamTls { sni }));
                let Some((io, _guard)) = self.handshake(tls, early, limit).await else { return };
                let version = match io.get_ref().1.alpn_protocol() {
                    Some(b"h2") => Some(HttpVersion::Http2),
                    Some(_) => Some(HttpVersion::Http1),
                    // No ALPN: the client knows what it speaks.
                    None => None,
                };
                http::serve(io, version, conn).await;
            }
        }
    }

    /// The handshake waits for its share's turn, so that a flood of them delays only its own Gateway.
    async fn handshake(
        self,
        tls: &Arc<TlsTermination>,
        early: Bytes,
        limit: Duration,
    ) -> Option<(TlsStream<Prefixed<TcpStream>>, ConnectionGuard)> {
        let Self { port, io, peer, _guard: guard, .. } = self;
        let telemetry = &port.worker.telemetry;
        let accepted = match port.tls.get(tls) {
            Err(why) => Err(why),
            Ok(config) => {
                let accepting = async {
                    let permit = port.share.handshake().await;
                    let accepted = TlsAcceptor::from(config).accept(Prefixed::new(early, io)).await;
                    drop(permit);
                    accepted
                };
                match tokio::time::timeout(limit, accepting).await {
                    Ok(accepted) => accepted.map_err(|e| e.to_string()),
                    Err(_) => Err("the handshake took too long".to_owned()),
                }
            }
        };
        match accepted {
            Ok(io) => {
                telemetry.count(Counter::HandshakeListenerOk);
                Some((io, guard))
            }
            Err(why) => {
                tracing::debug!(gateway = %port.gateway, port = port.port, %peer, why, "TLS handshake failed");
                telemetry.count(Counter::HandshakeListenerFailed);
                None
            }
        }
    }
}

impl Port {
    /// The port's config, as `take` needs it.
    pub(super) fn config<T>(&self, transport: Transport, take: impl FnOnce(&PortConfig) -> T) -> Option<T> {
        let config = self.worker.shared.config.load();
        config.gateways.get(&self.gateway)?.ports.get(&(self.port, transport)).map(take)
    }

    fn way(&self) -> Way {
        let way = self.config(Transport::Tcp, |port| match port {
            PortConfig::Http(_) => Way::Http,
            PortConfig::Tls(_) => Way::Tls,
            PortConfig::Tcp(Some(rule)) => Way::Rule(Arc::clone(rule)),
            PortConfig::Tcp(None) | PortConfig::Udp(_) => Way::Refuse,
        });
        way.unwrap_or(Way::Refuse)
    }

    fn listener(&self, sni: Option<&str>) -> Option<Arc<TlsListener>> {
        let found = self.config(Transport::Tcp, |port| match port {
            PortConfig::Tls(hosts) => hosts.get(sni).cloned(),
            _ => None,
        });
        found.flatten()
    }

    fn http_conn(&self, peer: SocketAddr, tls: Option<DownstreamTls>) -> HttpConn<crate::dial::Dialer> {
        let entrance = GatewayEntrance { gateway: self.gateway.clone(), port: self.port, tls };
        HttpConn {
            http: self.worker.http(),
            share: Rc::clone(&self.share),
            source: Rc::clone(&self.source),
            peer: Peer { ip: peer.ip(), port: peer.port() },
            entrance: Entrance::Gateway(entrance),
        }
    }

    fn l4<S>(&self, downstream: S, peer: SocketAddr, begin: Instant, protocol: &'static str) -> L4Conn<S> {
        let mut ended = Ended::new(Direction::Gateway, protocol, peer, begin);
        ended.parent = Some(self.gateway.clone());
        L4Conn {
            worker: Rc::clone(&self.worker),
            share: Rc::clone(&self.share),
            source: Rc::clone(&self.source),
            downstream,
            ended,
        }
    }
}

async fn route<S: Pipe>(conn: L4Conn<S>, rule: Option<Arc<L4Rule>>, early: Bytes) {
    match rule {
        Some(rule) => tcp::serve(conn, L4Target::Rule(rule), early).await,
        None => {
            let error = ProxyError {
                reason: Reason::NoRoute,
                blame: Blame::Config,
                retry: Retryable::No,
                detail: "no TLSRoute for this server name".to_owned(),
            };
            tcp::refuse(conn, &error);
        }
    }
}

/// The server name, lower case, and everything read; `None` when it is not TLS.
async fn read_hello(io: &mut TcpStream) -> io::Result<Option<(Option<Str>, Bytes)>> {
    let mut early = BytesMut::new();
    loop {
        // Waits before it takes memory.
        io.readable().await?;
        early.reserve(2048);
        let n = io.read_buf(&mut early).await?;
        match server_name(&early) {
            Sni::NeedMore if n > 0 && early.len() < 2 * PEEK_MAX => {}
            Sni::NeedMore | Sni::Invalid => return Ok(None),
            Sni::Absent => return Ok(Some((None, early.freeze()))),
            Sni::Name(name) => return Ok(Some((Some(name.to_ascii_lowercase().into()), early.freeze()))),
        }
    }
}
