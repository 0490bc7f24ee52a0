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
    worker::Worker,
    workload::LocalWorkload,
};
use bytes::Bytes;
use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use weft_core::{
    config::{Config, GatewayConfig, L4Rule, PortConfig, Transport},
    model::ObjectKey,
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
    let Accepted { worker, local, io, peer, guard } = conn;
    let context = Context { worker, local, tls, peer, port, begin: Instant::now(), _guard: guard };
    match context.spoken() {
        Spoken::Http => context.http(io, None, None).await,
        Spoken::Tls => tls::serve(context, io).await,
        Spoken::Tcp(rule) => context.opaque(io, "tcp", rule, Bytes::new()).await,
        Spoken::Nothing => context.refuse(io, "tcp", &no_route("nothing is served on this port any more")),
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
