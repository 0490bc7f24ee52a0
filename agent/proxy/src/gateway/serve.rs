//! One accepted connection: the Config of this moment says what its port speaks.

use super::{TlsConfigs, tls};
use crate::{
    context::Peer,
    entrance::Accepted,
    error::{Blame, ProxyError, Reason, Retryable},
    http::{self, DownstreamTls, Entrance, GatewayEntrance, HttpConn, HttpVersion},
    l4::{
        pipe::Pipe,
        tcp::{self, Ended, L4Conn, L4Target},
    },
    share::ConnectionGuard,
    telemetry::Direction,
    transport::connect::canonical,
    worker::Worker,
    workload::LocalWorkload,
};
use bytes::Bytes;
use std::{
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    net::TcpStream,
};
use weft_core::{
    config::{Config, GatewayConfig, L4Rule, PortConfig, Transport},
    message::proxy,
    model::{ObjectKey, ProxyProtocol},
};

/// What the connection's port speaks now.
enum Spoken {
    Http,
    Tls,
    Tcp(Option<Arc<L4Rule>>),
    /// The port has just been removed.
    Nothing,
}

/// A connection without its socket.
pub(super) struct Context {
    pub(super) worker: Rc<Worker>,
    pub(super) local: Rc<LocalWorkload>,
    /// TLS settings of all listeners.
    pub(super) tls: Arc<TlsConfigs>,
    pub(super) peer: SocketAddr,
    pub(super) port: u16,
    pub(super) begin: Instant,
    _guard: ConnectionGuard,
}

/// Serves a connection until it ends.
pub(crate) async fn serve(conn: Accepted, port: u16, tls: Arc<TlsConfigs>) {
    let Accepted { worker, local, mut io, peer, guard } = conn;
    let mut context = Context { worker, local, tls, peer, port, begin: Instant::now(), _guard: guard };
    match context.introduced(&mut io).await {
        Ok(client) => context.peer = client.unwrap_or(context.peer),
        Err(error) => return context.refuse(io, "tcp", &error),
    }
    match context.spoken() {
        Spoken::Http => context.http(io, None, None).await,
        Spoken::Tls => tls::serve(context, io).await,
        Spoken::Tcp(rule) => context.opaque(io, "tcp", rule, Bytes::new()).await,
        Spoken::Nothing => context.refuse(io, "tcp", &no_route("nothing is served on this port any more")),
    }
}

/// Reads a header of the PROXY protocol and not a byte more; `None` if it is none.
async fn read_introduction(io: &mut TcpStream) -> io::Result<Option<Option<SocketAddr>>> {
    let mut header = Vec::new();
    loop {
        match proxy::read(&header) {
            proxy::Header::Whole(client) => return Ok(Some(client)),
            proxy::Header::Invalid => return Ok(None),
            proxy::Header::NeedMore(n) => {
                let begin = header.len();
                header.resize(begin + n, 0);
                io.read_exact(&mut header[begin..]).await?;
            }
        }
    }
}

/// A client that nothing is configured for.
pub(super) fn no_route(detail: impl Into<String>) -> ProxyError {
    ProxyError { reason: Reason::NoRoute, blame: Blame::Config, retry: Retryable::No, detail: detail.into() }
}

impl Context {
    /// The Gateway.
    pub(super) fn gateway(&self) -> &ObjectKey {
        &self.local.source.workload.pod
    }

    /// The Gateway and its port in a Config.
    pub(super) fn find<'c>(&self, config: &'c Config) -> Option<(&'c GatewayConfig, &'c PortConfig)> {
        let gateway = config.gateways.get(self.gateway())?;
        Some((gateway, gateway.ports.get(&(self.port, Transport::Tcp))?))
    }

    /// For whom the other end speaks, where proxies in front of the Gateway must say so.
    async fn introduced(&self, io: &mut TcpStream) -> Result<Option<SocketAddr>, ProxyError> {
        let denied = |detail: String| ProxyError {
            reason: Reason::Denied,
            blame: Blame::Downstream,
            retry: Retryable::No,
            detail,
        };
        let required = {
            let config = self.worker.shared.config.load();
            let gateway = config.gateways.get(self.gateway());
            let clients = gateway.map(|gateway| &gateway.parameters.clients);
            let required = clients.filter(|clients| clients.proxy_protocol == ProxyProtocol::Required);
            required.map(|clients| clients.trusts(self.peer.ip()))
        };
        match required {
            None => return Ok(None),
            Some(false) => return Err(denied("no trusted proxy".into())),
            Some(true) => {}
        }
        let patience = Duration::from_millis(self.worker.shared.limits.handshake_timeout_ms);
        match tokio::time::timeout(patience, read_introduction(io)).await {
            Ok(Ok(Some(client))) => Ok(client.map(canonical)),
            Ok(Ok(None)) => Err(denied("no header of the PROXY protocol".into())),
            Ok(Err(error)) => Err(denied(format!("before a header of the PROXY protocol: {error}"))),
            Err(_) => Err(denied("no header of the PROXY protocol in time".into())),
        }
    }

    fn spoken(&self) -> Spoken {
        let config = self.worker.shared.config.load();
        match self.find(&config) {
            Some((_, PortConfig::Http(_))) => Spoken::Http,
            Some((_, PortConfig::Tls(_))) => Spoken::Tls,
            Some((_, PortConfig::Tcp(rule))) => Spoken::Tcp(rule.clone()),
            Some((_, PortConfig::Udp(_))) | None => Spoken::Nothing,
        }
    }

    /// The HTTP path finds the listener and its routes for each request anew.
    pub(super) async fn http<S>(self, io: S, version: Option<HttpVersion>, tls: Option<DownstreamTls>)
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let entrance = GatewayEntrance { gateway: self.gateway().clone(), port: self.port, tls };
        let conn = HttpConn {
            http: self.worker.http(),
            local: self.local.clone(),
            peer: Peer { ip: self.peer.ip(), port: self.peer.port() },
            entrance: Entrance::Gateway(entrance),
        };
        http::serve(io, version, conn).await;
    }

    /// Copies to a backend of the rule. `early` was read before.
    pub(super) async fn opaque<D: Pipe>(
        self,
        io: D,
        protocol: &'static str,
        rule: Option<Arc<L4Rule>>,
        early: Bytes,
    ) {
        let Some(rule) = rule else {
            return self.refuse(io, protocol, &no_route("no route is attached to this listener"));
        };
        let _open = self.worker.telemetry.connection_opened(Direction::Gateway);
        tcp::serve(self.l4(io, protocol), L4Target::Rule(rule), early).await;
    }

    /// Resets the client, counted and logged.
    pub(super) fn refuse<D: Pipe>(&self, io: D, protocol: &'static str, error: &ProxyError) {
        tcp::refuse(self.l4(io, protocol), error);
    }

    fn l4<D>(&self, downstream: D, protocol: &'static str) -> L4Conn<D> {
        L4Conn {
            worker: self.worker.clone(),
            local: self.local.clone(),
            downstream,
            ended: self.ended(protocol),
        }
    }

    /// What is said of the connection at its end.
    pub(super) fn ended(&self, protocol: &'static str) -> Ended {
        let mut ended = Ended::new(Direction::Gateway, protocol, self.peer, self.begin);
        ended.parent = Some(self.gateway().clone());
        ended
    }
}
