//! The server side of HBONE: mutual TLS on the pod's own address, HTTP/2, one CONNECT per connection to the
//! application, which sees the client pod's address. On port 15008, and on the application's own ports where
//! `crate::arrival` has told it from plaintext.

use super::{
    CONNECTION_WINDOW, DATA_FRAME_BUDGET, FRAME_SIZE, SEND_BUFFER, STREAM_WINDOW,
    answer::Word,
    connect::{self, canonical},
    handshakes::Socket,
    metered::Metered,
    stream::TunnelStream,
    tls, tunnel,
};
use crate::{
    budgets::Tenant,
    entrance::Accepted,
    error::{Blame, ProxyError, Reason, Retryable},
    l4::{copy, tcp::Ended},
    share::{ConnectionGuard, Kind},
    telemetry::{Counter, Direction, TunnelSide},
    worker::Worker,
    workload::LocalWorkload,
};
use bytes::Bytes;
use h2::{
    RecvStream,
    server::{Connection, SendResponse},
};
use http::{Method, Request, Response, StatusCode};
use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::{Duration, Instant},
};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use weft_certs::Bond;
use weft_core::{budget, model::SpiffeId};

/// The bytes of a tunnel.
type TlsIo = Metered<TlsStream<Metered<Socket>>>;

/// What is known of a tunnel once its client has shown its certificate: how it is spoken, who it is, how long it takes new
/// streams.
type Proved = (Connection<TlsIo, Bytes>, Rc<SpiffeId>, Bond);

/// Streams that a peer may have open on one tunnel. Our own clients use 100, ztunnel's too.
const STREAMS_MAX: u32 = 200;

/// Serves one tunnel until it ends. `dialled` is the application's address that a tunnel captured on 15006 was going to: its
/// streams may go there only, because that is what NetworkPolicies have admitted. `None` on 15008: to any port of the pod.
pub(crate) async fn serve(conn: Accepted, dialled: Option<SocketAddr>) {
    let begin = Instant::now();
    let (worker, local, peer) = (conn.worker.clone(), conn.local.clone(), conn.peer);
    if let Err(error) = serve_tunnel(conn, dialled).await {
        worker.telemetry.count(Counter::HandshakeTunnelServerFailed);
        let mut ended = Ended::new(Direction::Inbound, "hbone", peer, begin);
        ended.destination = Some(local.source.workload.clone());
        ended.fail(&error);
        ended.record(&worker);
    }
}

async fn serve_tunnel(conn: Accepted, dialled: Option<SocketAddr>) -> Result<(), ProxyError> {
    let Accepted { worker, local, io, peer, guard } = conn;
    let address = match dialled {
        Some(to) => to.ip(),
        None => io.local_addr().map(canonical).map_err(|e| tunnel::broken(peer, &e))?.ip(),
    };
    let port = dialled.map(|to| to.port());
    let ((mut connection, client, bond), _guard) = Box::pin(prove(&worker, &local, io, peer, guard)).await?;
    worker.telemetry.count(Counter::HandshakeTunnelServerOk);
    let _open = worker.telemetry.tunnel_opened(TunnelSide::Server);
    let own = Rc::new(local.source.workload.identity.clone());
    let context = Rc::new(Tunnel { worker, local, client, own, bond, peer, address, port });
    accept_streams(&mut connection, &context).await;
    Ok(())
}

/// The client's handshakes, TLS and HTTP/2: from here on it is known who it is, and it counts as a tunnel to the pod.
async fn prove(
    worker: &Worker,
    local: &LocalWorkload,
    io: TcpStream,
    peer: SocketAddr,
    guard: ConnectionGuard,
) -> Result<(Proved, ConnectionGuard), ProxyError> {
    let (place, displaced) = local.unproved.enter(peer.ip());
    if displaced.is_some() {
        worker.reached(&budget::CONNECTIONS_UNPROVED, Tenant::from(&local.source.share));
    }
    let proved = tokio::select! {
        proved = handshakes(worker, local, io, peer) => proved?,
        () = place.displaced() => return Err(limit("too many connections say nothing; a newer one took its place")),
    };
    let Some(guard) = guard.become_kind(Kind::Tunnel) else {
        worker.reached(&budget::TUNNELS_IN, Tenant::from(&local.source.share));
        return Err(limit("too many tunnels to this pod"));
    };
    Ok((proved, guard))
}

fn limit(detail: &str) -> ProxyError {
    ProxyError {
        reason: Reason::Limit,
        blame: Blame::Downstream,
        retry: Retryable::No,
        detail: detail.to_owned(),
    }
}

async fn handshakes(
    worker: &Worker,
    local: &LocalWorkload,
    io: TcpStream,
    peer: SocketAddr,
) -> Result<Proved, ProxyError> {
    let source = &local.source;
    let identity = source.identity.as_ref().ok_or_else(|| tls::no_certificate(&source.workload.identity))?;
    let (tls, client, bond) = tls::accept(worker, identity, io, &local.share).await?;
    let handshake = http2().handshake::<_, Bytes>(Metered(tls));
    let deadline = Duration::from_millis(worker.shared.limits.handshake_timeout_ms);
    let connection = tokio::time::timeout(deadline, handshake).await;
    let connection =
        connection.map_err(|e| tunnel::broken(peer, &e))?.map_err(|e| tunnel::broken(peer, &e))?;
    Ok((connection, client, bond))
}

/// How a tunnel's HTTP/2 is spoken.
fn http2() -> h2::server::Builder {
    let mut http2 = h2::server::Builder::new();
    http2
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_SIZE)
        .max_header_list_size(64 * 1024)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_streams(STREAMS_MAX)
        .data_frame_budget(DATA_FRAME_BUDGET);
    http2
}

/// What all streams of one accepted tunnel have in common.
struct Tunnel {
    worker: Rc<Worker>,
    local: Rc<LocalWorkload>,
    client: Rc<SpiffeId>,
    /// Who the client verified us to be.
    own: Rc<SpiffeId>,
    /// How long it takes new streams.
    bond: Bond,
    peer: SocketAddr,
    /// The pod's address that it came to.
    address: IpAddr,
    /// The only port that its streams may go to, if there is one.
    port: Option<u16>,
}

async fn accept_streams<IO>(connection: &mut Connection<IO, Bytes>, context: &Rc<Tunnel>)
where
    IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let drain = context.local.share.drain();
    let lost = tunnel::peer_lost(connection.ping_pong());
    tokio::pin!(lost);
    let over = context.bond.ended(Duration::ZERO);
    tokio::pin!(over);
    let (mut going_away, mut is_over) = (false, false);
    loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                // Asked for before our GOAWAY was read: a new tunnel, if there can be one, takes it.
                Some(Ok((_, mut respond))) if is_over => answer(&mut respond, StatusCode::SERVICE_UNAVAILABLE, None),
                Some(Ok((request, respond))) => {
                    context.local.share.spawn(serve_stream(context.clone(), request, respond));
                }
                Some(Err(error)) => {
                    tracing::debug!(peer = %context.peer, %error, "an accepted tunnel broke");
                    return;
                }
                None => return,
            },
            () = drain.draining(), if !going_away => {
                // GOAWAY: the peer opens its next streams on a new tunnel, those of this one go on.
                connection.graceful_shutdown();
                going_away = true;
            }
            () = &mut over, if !is_over => {
                connection.graceful_shutdown();
                (going_away, is_over) = (true, true);
            }
            () = drain.expired() => return,
            () = &mut lost => return,
        }
    }
}

async fn serve_stream(context: Rc<Tunnel>, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let begin = Instant::now();
    let to = match destination(&request, context.address, context.port) {
        Ok(to) => to,
        Err(status) => return answer(&mut respond, status, None),
    };
    let mut ended = Ended::new(Direction::Inbound, "hbone", context.peer, begin);
    ended.source_identity = Some(context.client.clone());
    // By the address alone it would be anybody's word: the certificate must be that pod's.
    let known = context.worker.shared.config.load().workloads.get(&context.peer.ip()).cloned();
    ended.source = known.filter(|workload| workload.identity == *context.client);
    ended.destination_identity = Some(context.own.clone());
    ended.destination = Some(context.local.source.workload.clone());
    ended.endpoint = Some(to);
    serve_connect(&context, request, respond, &mut ended).await;
    ended.record(&context.worker);
}

async fn serve_connect(
    context: &Tunnel,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    ended: &mut Ended,
) {
    if !context.worker.has_room(&context.local) {
        ended.reason = Some(Reason::Limit);
        return answer(&mut respond, StatusCode::SERVICE_UNAVAILABLE, Some(Word::Limit));
    }
    let Some(_guard) = context.local.share.admit(Kind::In) else {
        context.worker.reached(&budget::CONNECTIONS_IN, Tenant::from(&context.local.source.share));
        ended.reason = Some(Reason::Limit);
        return answer(&mut respond, StatusCode::SERVICE_UNAVAILABLE, Some(Word::Limit));
    };
    let Some(to) = ended.endpoint else { return };
    let limits = &context.worker.shared.limits;
    // From the client's own address: the application and its NetworkPolicy see who calls.
    let connecting = connect::to_application(&*context.local.source.sockets, context.peer.ip(), to, limits);
    let connected = tokio::select! {
        connected = connecting => connected,
        _ = std::future::poll_fn(|cx| respond.poll_reset(cx)) => {
            ended.reason = Some(Reason::ClientGone);
            return;
        }
    };
    let application = match connected {
        Ok(application) => application,
        Err(error) => {
            let listening = match error.reason {
                Reason::NotListening => context.local.source.sockets.listening(to.port()).await,
                _ => None,
            };
            ended.fail(&error);
            let word = Word::of(&error, listening.as_deref());
            return answer(&mut respond, StatusCode::SERVICE_UNAVAILABLE, word);
        }
    };
    let Ok(send) = respond.send_response(Response::new(()), false) else {
        ended.reason = Some(Reason::ClientGone);
        return;
    };
    let stream = TunnelStream::new(send, request.into_body(), None);
    let copied = copy::bidirectional(stream, application, Bytes::new(), context.local.share.copying()).await;
    ended.copied(&copied);
}

/// Where a CONNECT wants to go: a port of this pod (the port that was dialled, if that was the application's), on the
/// address that the tunnel came to. Anything else would make the agent an open relay inside the pod's network namespace.
fn destination<B>(request: &Request<B>, local: IpAddr, only: Option<u16>) -> Result<SocketAddr, StatusCode> {
    if request.method() != Method::CONNECT || request.extensions().get::<h2::ext::Protocol>().is_some() {
        return Err(StatusCode::BAD_REQUEST);
    }
    let authority = request.uri().authority().ok_or(StatusCode::BAD_REQUEST)?;
    let to: SocketAddr = authority.as_str().parse().map_err(|_| StatusCode::BAD_REQUEST)?;
    let to = canonical(to);
    // The application must not be able to reach our own inbound ports through us.
    let ours = [crate::context::OUTBOUND_PORT, crate::context::INBOUND_PORT, crate::context::HBONE_PORT];
    let admitted = only.is_none_or(|port| to.port() == port);
    if to.ip() != local || to.port() == 0 || ours.contains(&to.port()) || !admitted {
        return Err(StatusCode::BAD_REQUEST);
    }
    Ok(to)
}

fn answer(respond: &mut SendResponse<Bytes>, status: StatusCode, word: Option<Word>) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    if let Some(word) = word {
        word.put(response.headers_mut());
    }
    // Fails only if the peer has gone.
    let _ = respond.send_response(response, true);
}

#[cfg(fuzzing)]
pub(crate) mod fuzzing;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connect_names_a_port_of_this_pod() {
        let to = |method: Method, uri: &str, only: Option<u16>| {
            let request = Request::builder().method(method).uri(uri).body(()).unwrap();
            destination(&request, [10, 0, 0, 1].into(), only).ok().map(|to| to.to_string())
        };
        let check = |method: Method, uri: &str, expected: Option<&str>| {
            assert_eq!(to(method, uri, None).as_deref(), expected, "{uri}");
        };
        check(Method::CONNECT, "10.0.0.1:80", Some("10.0.0.1:80"));
        check(Method::GET, "http://10.0.0.1:80/", None);
        check(Method::CONNECT, "10.0.0.2:80", None);
        check(Method::CONNECT, "127.0.0.1:80", None);
        check(Method::CONNECT, "10.0.0.1:0", None);
        check(Method::CONNECT, "10.0.0.1:15006", None);
        check(Method::CONNECT, "10.0.0.1:15008", None);
        check(Method::CONNECT, "web.shop:80", None);
        let on_80 = |uri: &str, expected: Option<&str>| {
            assert_eq!(
                to(Method::CONNECT, uri, Some(80)).as_deref(),
                expected,
                "{uri} by a tunnel on port 80"
            );
        };
        on_80("10.0.0.1:80", Some("10.0.0.1:80"));
        on_80("10.0.0.1:9000", None);
        on_80("10.0.0.2:80", None);
    }
}
