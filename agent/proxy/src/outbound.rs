//! 15001: what a captured pod sends. Decides once per connection where it goes, and by which path.

use crate::{
    context::{HBONE_PORT, INBOUND_PORT, Limits, OUTBOUND_PORT, Peer},
    dial::{Upstream, UpstreamIo},
    entrance::Accepted,
    error::{Blame, ProxyError, Reason, Retryable},
    http::{self, Entrance, HttpConn, HttpVersion, Prefixed},
    l4::{
        detect::{Detected, PEEK_MAX, Sni, detect, server_name},
        learn::Class,
        tcp::{self, Ended, L4Conn, L4Target, SNIFFED},
    },
    share::ConnectionGuard,
    telemetry::{Counter, Direction},
    transport::{connect::canonical, metered::Metered},
};
use bytes::{Bytes, BytesMut};
use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    os::fd::AsFd,
    pin::{Pin, pin},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{io::AsyncReadExt, net::TcpStream, time::Sleep};
use weft_core::{
    config::{AppProtocol, BackendKey, Config, Endpoint, Frontend, MeshRoutes},
    message::head::{Admission, HeadLimits, admits},
    model::Workload,
};

/// On a port that has spoken HTTP before, the client gets this long to do so again before the upstream is called.
const HTTP_PATIENCE: Duration = Duration::from_millis(200);
/// First read of a connection's first bytes.
const FIRST_READ: usize = 4096;

/// Where a connection goes.
#[derive(Clone, Debug)]
enum Action {
    /// To the HTTP path: its requests are routed.
    Http,
    /// Copied.
    Opaque(L4Target),
    /// Copied, by the server name of its TLS ClientHello.
    ServerName,
    /// Found out from who speaks first, and how.
    Sniff {
        /// It was HTTP the last time.
        was_http: bool,
    },
    /// An address that a pod must have, and nobody has told of that pod yet.
    Stranger,
    /// Reset.
    Refuse(Reason),
}

/// A pod that has just started is called before every agent has heard of it; then it is either known within this time or
/// not called at all: it may be one that must not be spoken to in clear.
const STRANGER_PATIENCE: Duration = Duration::from_secs(2);
const STRANGER_LOOK: Duration = Duration::from_millis(20);

/// Decides, and names the Service if there is one.
fn decide(
    config: &Config,
    client: &Workload,
    to: SocketAddr,
    learned: impl Fn(&BackendKey) -> Option<Class>,
) -> (Action, Option<Arc<Frontend>>) {
    // What a Service calls its external address is a pod's all the same, if it is one.
    let taken = || config.workloads.get(&to.ip()).is_some() || config.is_pods(to.ip());
    let frontend = config.frontends.get(&to).filter(|f| f.external.is_none() || !taken());
    if let Some(frontend) = frontend {
        if frontend.external.as_ref().is_some_and(|e| !e.admits(&client.ips)) {
            return (Action::Refuse(Reason::Denied), Some(frontend.clone()));
        }
        return (decide_frontend(frontend, client, learned), Some(frontend.clone()));
    }
    let ours = [OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT].contains(&to.port());
    if ours && (to.ip().is_loopback() || client.ips.contains(&to.ip())) {
        // Straight to one of our own ports: passed on, it would come back for ever.
        return (Action::Refuse(Reason::Denied), None);
    }
    // A pod's own address is protected (HBONE if it is enrolled) but never routed; all else passes untouched.
    let workload = config.workloads.get(&to.ip()).cloned();
    if workload.is_none() && config.is_pods(to.ip()) {
        return (Action::Stranger, None);
    }
    let endpoint = Endpoint { addr: to, workload, zone: None };
    (Action::Opaque(L4Target::Endpoint(Box::new(endpoint))), None)
}

fn decide_frontend(
    frontend: &Frontend,
    client: &Workload,
    learned: impl Fn(&BackendKey) -> Option<Class>,
) -> Action {
    let opaque = || Action::Opaque(L4Target::Backend(frontend.default.clone()));
    match (frontend.routes_for(&client.pod.namespace), frontend.protocol) {
        // Bytes inside TLS cannot be routed as HTTP, whatever is attached: they pass as they would without it.
        (Some(MeshRoutes::Http(_)) | None, AppProtocol::Tls) => opaque(),
        (Some(MeshRoutes::Http(_)), _) => Action::Http,
        (Some(MeshRoutes::Tls(_)), _) => Action::ServerName,
        (Some(MeshRoutes::Tcp(rule)), _) => Action::Opaque(L4Target::Rule(rule.clone())),
        (None, AppProtocol::Http | AppProtocol::H2c | AppProtocol::Grpc | AppProtocol::WebSocket) => {
            Action::Http
        }
        (None, AppProtocol::Opaque) => opaque(),
        (None, AppProtocol::Unknown) => match learned(&frontend.default.key) {
            Some(Class::Opaque) => opaque(),
            class => Action::Sniff { was_http: class == Some(Class::Http) },
        },
    }
}

/// Serves one captured connection. What finds out and what then runs for long are boxed apart, so that a connection
/// that lies idle does not hold the state of finding out.
pub(crate) async fn serve(conn: Accepted) {
    let (captured, action) = begin(conn);
    match Box::pin(captured.find_out(action)).await {
        Next::Done => {}
        Next::Http(captured, early, version) => Box::pin(captured.http(early, version)).await,
        Next::Relay(relay) => {
            let Relay { conn, upstream, early, _guard } = *relay;
            Box::pin(tcp::relay(conn, upstream, early)).await;
        }
    }
}

fn begin(conn: Accepted) -> (Box<Captured>, Action) {
    let begin = Instant::now();
    let mut ended = Ended::new(Direction::Mesh, "tcp", conn.peer, begin);
    ended.source = Some(conn.local.source.workload.clone());
    let to = conn.local.source.sockets.original_dst(conn.io.as_fd()).map(canonical);
    let (action, frontend) = match &to {
        Ok(to) => {
            let config = conn.worker.shared.config.load();
            ended.endpoint = Some(*to);
            let learned = |key: &BackendKey| conn.worker.learned.get(key, begin);
            decide(&config, &conn.local.source.workload, *to, learned)
        }
        // Not redirected: somebody talks to our port itself.
        Err(_) => (Action::Refuse(Reason::Denied), None),
    };
    ended.parent = frontend.as_ref().map(|f| f.service.clone());
    let to = to.unwrap_or(conn.peer);
    (Box::new(Captured { conn, to, frontend, ended }), action)
}

/// What runs for the rest of the connection.
enum Next {
    /// It was refused.
    Done,
    /// The HTTP path, with what was read already.
    Http(Box<Captured>, Bytes, Detected),
    /// Copying.
    Relay(Box<Relay>),
}

struct Relay {
    conn: L4Conn<TcpStream>,
    upstream: Upstream<UpstreamIo>,
    early: Bytes,
    _guard: ConnectionGuard,
}

/// A connection with what was found out about it.
struct Captured {
    conn: Accepted,
    to: SocketAddr,
    frontend: Option<Arc<Frontend>>,
    ended: Ended,
}

/// Who spoke first.
enum First {
    /// The client, like this.
    Client(Detected),
    /// The server.
    Server(Upstream<UpstreamIo>),
    /// Nobody: the server has ended the connection, which says nothing of what it speaks.
    Nobody(Upstream<UpstreamIo>),
}

impl Captured {
    async fn find_out(self: Box<Self>, action: Action) -> Next {
        match action {
            Action::Http => Next::Http(self, Bytes::new(), Detected::NeedMore),
            Action::Opaque(target) => self.opaque(target, Bytes::new()).await,
            Action::ServerName => self.by_server_name().await,
            Action::Sniff { was_http } => self.sniff(was_http).await,
            Action::Stranger => self.stranger().await,
            Action::Refuse(reason) => self.refuse(reason, "may not be reached"),
        }
    }

    async fn opaque(mut self: Box<Self>, target: L4Target, early: Bytes) -> Next {
        let (worker, local) = (self.conn.worker.clone(), self.conn.local.clone());
        match tcp::connect(&worker, &local, target, &mut self.ended).await {
            Ok(upstream) => self.relay(upstream, early),
            Err(error) => self.end(&error),
        }
    }

    /// Waits until the pod is known.
    async fn stranger(self: Box<Self>) -> Next {
        let deadline = tokio::time::Instant::now() + STRANGER_PATIENCE;
        loop {
            let decided = {
                let config = self.conn.worker.shared.config.load();
                decide(&config, &self.conn.local.source.workload, self.to, |_| None).0
            };
            match decided {
                Action::Stranger if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(STRANGER_LOOK).await;
                }
                Action::Opaque(target) => return self.opaque(target, Bytes::new()).await,
                _ => {
                    return self
                        .refuse(Reason::NoEndpoint, "is a pod's address, but no pod is known to have it");
                }
            }
        }
    }

    fn relay(self: Box<Self>, upstream: Upstream<UpstreamIo>, early: Bytes) -> Next {
        let (conn, _guard) = self.into_l4();
        Next::Relay(Box::new(Relay { conn, upstream, early, _guard }))
    }

    fn refuse(self: Box<Self>, reason: Reason, detail: &str) -> Next {
        let error = refused(reason, format!("{}: {detail}", self.to));
        self.end(&error)
    }

    fn end(self: Box<Self>, error: &ProxyError) -> Next {
        tcp::refuse(self.into_l4().0, error);
        Next::Done
    }

    fn into_l4(self: Box<Self>) -> (L4Conn<TcpStream>, ConnectionGuard) {
        let Accepted { worker, local, io, peer: _, guard } = self.conn;
        let conn = L4Conn { worker, local, downstream: io, ended: self.ended };
        (conn, guard)
    }

    /// The HTTP path finds the routes by the address, for each request anew.
    async fn http(self: Box<Self>, early: Bytes, version: Detected) {
        let version = match version {
            Detected::Http1 => Some(HttpVersion::Http1),
            Detected::Http2 => Some(HttpVersion::Http2),
            _ => None,
        };
        let Accepted { worker, local, io, peer, guard: _guard } = self.conn;
        let conn = HttpConn {
            http: worker.http(),
            local,
            peer: Peer { ip: peer.ip(), port: peer.port() },
            entrance: Entrance::Mesh { frontend: self.to },
        };
        if early.is_empty() {
            http::serve(Metered(io), version, conn).await;
        } else {
            http::serve(Prefixed::new(early, Metered(io)), version, conn).await;
        }
    }

    /// TLSRoutes: waits for the ClientHello. A client that does not speak TLS has no route here.
    async fn by_server_name(mut self: Box<Self>) -> Next {
        self.ended.protocol = "tls";
        let patience = Duration::from_millis(self.conn.worker.shared.limits.handshake_timeout_ms);
        let hello = tokio::time::timeout(patience, read_hello(&mut self.conn.io)).await;
        let (sni, early) = match hello {
            Ok(Ok((Sni::Name(name), early))) => (Some(name), early),
            Ok(Ok((Sni::Absent, early))) => (None, early),
            Ok(Ok(_)) => return self.refuse(Reason::NoRoute, "the client does not speak TLS"),
            Ok(Err(_)) => return self.refuse(Reason::ClientGone, "the client went away"),
            Err(_) => return self.refuse(Reason::NoRoute, "no TLS ClientHello in time"),
        };
        let namespace = self.conn.local.source.workload.pod.namespace.clone();
        let rule = self.frontend.as_ref().and_then(|f| match f.routes_for(&namespace) {
            Some(MeshRoutes::Tls(routes)) => routes.get(sni.as_deref()).cloned(),
            _ => None,
        });
        match rule {
            Some(rule) => self.opaque(L4Target::Rule(rule), early).await,
            None => self.refuse(Reason::NoRoute, "no TLSRoute for this server name"),
        }
    }

    /// Nobody said what this port speaks. The upstream is called at once, so that a refusal is a refusal and a banner
    /// is not late; whoever speaks first tells.
    async fn sniff(mut self: Box<Self>, was_http: bool) -> Next {
        let Some(frontend) = self.frontend.clone() else { return Next::Done };
        self.ended.protocol = SNIFFED;
        let mut early = BytesMut::new();
        let first = self.race(&frontend, was_http, &mut early).await;
        self.ended.protocol = "tcp";
        let early = early.freeze();
        let (worker, key) = (self.conn.worker.clone(), &frontend.default.key);
        let now = Instant::now();
        match first {
            Err(error) => self.end(&error),
            Ok((First::Client(version @ (Detected::Http1 | Detected::Http2)), _)) => {
                worker.telemetry.count(match version {
                    Detected::Http1 => Counter::SniffHttp1,
                    _ => Counter::SniffHttp2,
                });
                worker.learned.set(key, Class::Http, now);
                Next::Http(self, early, version)
            }
            Ok((First::Client(detected), connecting)) => {
                worker.telemetry.count(match detected {
                    Detected::Tls => Counter::SniffTls,
                    _ => Counter::SniffOpaque,
                });
                // One head that is not fit to be read says nothing of what others send here.
                if !early.is_empty() && detect(&early) != Detected::Http1 {
                    worker.learned.set(key, Class::Opaque, now);
                }
                match connecting {
                    Some(upstream) => self.relay(upstream, early),
                    None => self.opaque(L4Target::Backend(frontend.default.clone()), early).await,
                }
            }
            Ok((First::Server(upstream), _)) => {
                worker.telemetry.count(Counter::SniffSilent);
                worker.learned.set(key, Class::Opaque, now);
                self.relay(upstream, early)
            }
            Ok((First::Nobody(upstream), _)) => self.relay(upstream, early),
        }
    }

    /// Reads what the client says while the upstream is being connected, and watches both then. With the client's
    /// answer comes the upstream if it stands already.
    async fn race(
        &mut self,
        frontend: &Frontend,
        was_http: bool,
        early: &mut BytesMut,
    ) -> Result<(First, Option<Upstream<UpstreamIo>>), ProxyError> {
        let Self { conn, ended, .. } = self;
        let (worker, local) = (conn.worker.clone(), conn.local.clone());
        let io = &mut conn.io;
        let target = L4Target::Backend(frontend.default.clone());
        let mut connecting = pin!(async {
            if was_http {
                tokio::time::sleep(HTTP_PATIENCE).await;
            }
            tcp::connect(&worker, &local, target, ended).await
        });
        let (mut upstream, mut slow) = (None, None);
        loop {
            tokio::select! {
                biased;
                read = read_some(io, early) => {
                    let ended = read.map_err(|e| refused(Reason::ClientGone, e.to_string()))? == 0;
                    match recognise(early, &worker.shared.limits) {
                        Detected::NeedMore if !ended => {
                            let patience = Duration::from_millis(worker.shared.limits.handshake_timeout_ms);
                            slow.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
                        }
                        detected @ (Detected::Http1 | Detected::Http2) => {
                            return Ok((First::Client(detected), None));
                        }
                        detected => {
                            if upstream.is_none() && !was_http {
                                upstream = Some(connecting.await?);
                            }
                            return Ok((First::Client(detected), upstream));
                        }
                    }
                }
                // Half a word of HTTP, and no more of it: whatever it is, nobody has asked us to wait for the rest.
                () = overdue(&mut slow), if slow.is_some() => {
                    if upstream.is_none() && !was_http {
                        upstream = Some(connecting.await?);
                    }
                    return Ok((First::Client(Detected::Opaque), upstream));
                }
                connected = &mut connecting, if upstream.is_none() => upstream = Some(connected?),
                spoke = readable(&mut upstream), if upstream.is_some() => {
                    return match upstream {
                        Some(upstream) if spoke => Ok((First::Server(upstream), None)),
                        Some(upstream) => Ok((First::Nobody(upstream), None)),
                        None => Err(refused(Reason::UpstreamReset, String::new())),
                    };
                }
            }
        }
    }
}

/// What the client's first bytes are. HTTP/1 is what its whole head says it is: a head that the codec would refuse is passed
/// on as bytes, since nobody has asked us to judge it.
fn recognise(early: &[u8], limits: &Limits) -> Detected {
    let limits = HeadLimits { bytes: limits.head_bytes_max, fields: limits.headers_max };
    match (detect(early), early.len() < PEEK_MAX) {
        (Detected::Http1, _) => match admits(early, limits) {
            Admission::Http => Detected::Http1,
            Admission::Bytes => Detected::Opaque,
            Admission::NeedMore => Detected::NeedMore,
        },
        (Detected::NeedMore, false) => Detected::Opaque,
        (detected, _) => detected,
    }
}

/// Until what has begun should have come to its end.
async fn overdue(slow: &mut Option<Pin<Box<Sleep>>>) {
    match slow {
        Some(slow) => slow.as_mut().await,
        None => std::future::pending().await,
    }
}

/// Whether it has said something, once it did or has ended.
async fn readable(upstream: &mut Option<Upstream<UpstreamIo>>) -> bool {
    match upstream {
        Some(upstream) => poll_fn(|cx| upstream.io.poll_readable(cx)).await,
        None => std::future::pending().await,
    }
}

/// Waits before it takes memory: an idle connection holds none.
async fn read_some(io: &mut TcpStream, into: &mut BytesMut) -> io::Result<usize> {
    io.readable().await?;
    into.reserve(FIRST_READ);
    io.read_buf(into).await
}

async fn read_hello(io: &mut TcpStream) -> io::Result<(Sni, Bytes)> {
    let mut early = BytesMut::new();
    loop {
        let n = read_some(io, &mut early).await?;
        match server_name(&early) {
            Sni::NeedMore if n > 0 => {}
            sni => return Ok((sni, early.freeze())),
        }
    }
}

fn refused(reason: Reason, detail: String) -> ProxyError {
    ProxyError { reason, blame: Blame::Downstream, retry: Retryable::No, detail }
}

#[cfg(test)]
mod tests;
