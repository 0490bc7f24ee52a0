//! Probes of the kubelet to a strict pod: from nobody else, what the pod's spec declares, and nothing more.
//!
//! ```text
//! a port for which something is declared ─▶ the kubelet's own connection? ─▶ first bytes
//!     none: the port is open, which is all that tcpSocket asks
//!     TLS: ended here; inside it one GET that is declared with scheme HTTPS
//!     HTTP/1: one declared GET          HTTP/2: one declared health check
//! ```

mod exchange;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod grpc;
mod head;
pub(crate) mod redirects;
mod tls;

use super::denied;
use crate::{
    entrance::Accepted,
    error::{ProxyError, Reason},
    l4::tcp::Ended,
    telemetry::Counter,
    transport::connect,
    worker::Worker,
    workload::LocalWorkload,
};
use bytes::{Bytes, BytesMut};
use head::{Scheme, Verdict, judge};
use std::{net::SocketAddr, rc::Rc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};
use weft_core::model::ProbeAsk;

/// For a kubelet to say what it wants; it does so at once.
const FIRST_WORDS: Duration = Duration::from_secs(10);
/// A client that has closed has done so before it is looked for; its FIN may be a little later than the look.
const FIN_PATIENCE: Duration = Duration::from_millis(100);
/// One read of a request's head.
const READ: usize = 4096;

/// A question that is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// What.
    pub(crate) ask: ProbeAsk,
    /// How many redirects of the application led to it; 0 for what the spec declares.
    pub(crate) depth: u8,
}

/// A connection of the kubelet.
struct Probing<'a> {
    worker: &'a Rc<Worker>,
    local: &'a Rc<LocalWorkload>,
    peer: SocketAddr,
    to: SocketAddr,
    asks: &'a [Asked],
    protocol: &'static str,
    received: u64,
    sent: u64,
}

impl Probing<'_> {
    /// A connection to the application, from the kubelet's address. Borrows nothing, so that both ends can be used.
    fn application(&self) -> impl Future<Output = Result<TcpStream, ProxyError>> + use<> {
        let (source, shared) = (self.local.source.clone(), self.worker.shared.clone());
        let (from, to) = (self.peer.ip(), self.to);
        async move { connect::to_application(&*source.sockets, from, to, &shared.limits).await }
    }
}

/// What a kubelet speaks over: TCP as it is, or TLS.
trait Line: AsyncRead + AsyncWrite + Unpin {
    /// Makes a close an RST.
    fn reset_on_close(&self);
}

impl Line for TcpStream {
    fn reset_on_close(&self) {
        connect::reset_on_close(self);
    }
}

/// Serves a connection to a port for which something may be asked.
pub(super) async fn serve(conn: Accepted, to: SocketAddr, asks: &[Asked], ended: &mut Ended) {
    let worker = conn.worker.clone();
    let served = match recognise(&conn, to).await {
        Ok(true) => answer(conn, to, asks, ended).await,
        Ok(false) => Ok(()),
        Err(error) => {
            conn.io.reset_on_close();
            Err(error)
        }
    };
    if let Err(error) = served {
        if error.reason == Reason::Denied {
            worker.telemetry.count(Counter::DeniedPlaintext);
        }
        ended.fail(&error);
        // Whoever wonders why a probe fails has nothing but this.
        ended.detail = Some(error.detail);
    }
}

/// Whether the connection is the kubelet's, and stands. `false`: it is over before anything was asked.
async fn recognise(conn: &Accepted, to: SocketAddr) -> Result<bool, ProxyError> {
    match conn.worker.shared.kubelet.recognise(conn.peer, to).await {
        // If it was reset meanwhile, its addresses may have been another connection's by the time of the look.
        Ok(()) => Ok(conn.io.peer_addr().is_ok()),
        Err(_) if has_closed(&conn.io).await => Ok(false),
        Err(why) => Err(denied(format!("plaintext from {} to {to}, which is strict: {why}", conn.peer))),
    }
}

/// Whether the client has closed without having sent anything: a `tcpSocket` probe is over as soon as it is connected.
/// It has been told that the port is open, by the handshake; nobody needs to know who it was.
async fn has_closed(io: &TcpStream) -> bool {
    let mut byte = [0];
    matches!(timeout(FIN_PATIENCE, io.peek(&mut byte)).await, Ok(Ok(0) | Err(_)))
}

/// Serves what the kubelet asks.
async fn answer(conn: Accepted, to: SocketAddr, asks: &[Asked], ended: &mut Ended) -> Result<(), ProxyError> {
    let Accepted { worker, local, mut io, peer, guard: _guard } = conn;
    let protocol = ended.protocol;
    let mut probing =
        Probing { worker: &worker, local: &local, peer, to, asks, protocol, received: 0, sent: 0 };
    let first = first_words(&probing, &mut io, Scheme::Http).await;
    let served = match first {
        Ok((Verdict::Tls, early)) => Box::pin(inside_tls(&mut probing, io, early.freeze())).await,
        first => {
            let served = in_clear(&mut probing, &mut io, first).await;
            if served.is_err() {
                io.reset_on_close();
            }
            served
        }
    };
    ended.protocol = probing.protocol;
    (ended.received, ended.sent) = (probing.received, probing.sent);
    served.map_err(|error| match error.reason {
        Reason::Denied => denied(format!("a probe of the kubelet to {to}: {}", error.detail)),
        _ => error,
    })
}

async fn in_clear(
    probing: &mut Probing<'_>,
    io: &mut TcpStream,
    first: Result<(Verdict, BytesMut), ProxyError>,
) -> Result<(), ProxyError> {
    let (verdict, early) = first?;
    if verdict == Verdict::Grpc {
        probing.protocol = "grpc";
        return Box::pin(grpc::serve(probing, io, early.freeze())).await;
    }
    get(probing, io, verdict).await
}

/// What is asked inside TLS is judged as in clear. The application hears of it only then.
async fn inside_tls(probing: &mut Probing<'_>, io: TcpStream, early: Bytes) -> Result<(), ProxyError> {
    probing.protocol = "tls";
    let mut io = tls::accept(probing, io, early).await?;
    let served = match first_words(probing, &mut io, Scheme::Https).await {
        Ok((verdict, _)) => get(probing, &mut io, verdict).await,
        Err(error) => Err(error),
    };
    if served.is_err() {
        io.reset_on_close();
    }
    served
}

/// One declared GET.
async fn get<D: Line>(probing: &mut Probing<'_>, io: &mut D, verdict: Verdict) -> Result<(), ProxyError> {
    match verdict {
        Verdict::NeedMore => Ok(()),
        Verdict::Get(request) => {
            probing.protocol = match request.scheme {
                Scheme::Http => "http",
                Scheme::Https => "https",
            };
            Box::pin(exchange::serve(probing, io, &request)).await
        }
        Verdict::Refuse(why) => Err(denied(why)),
        // Never of these here: they were looked for before, and are not offered inside TLS.
        Verdict::Tls | Verdict::Grpc => Err(denied("another protocol")),
    }
}

/// Reads until it is clear what is asked. [`Verdict::NeedMore`]: nothing, or a client that has stopped in between.
async fn first_words<D: Line>(
    probing: &Probing<'_>,
    io: &mut D,
    scheme: Scheme,
) -> Result<(Verdict, BytesMut), ProxyError> {
    let deadline = Instant::now() + FIRST_WORDS;
    let mut early = BytesMut::new();
    loop {
        early.reserve(READ);
        let n = match timeout_at(deadline, io.read_buf(&mut early)).await {
            Ok(Ok(n)) => n,
            Ok(Err(_)) => 0,
            // Silent, and open still: it is told to go.
            Err(_) => return Err(denied("it says nothing")),
        };
        match judge(&early, scheme, probing.to, probing.asks) {
            Verdict::NeedMore if n > 0 => {}
            verdict => return Ok((verdict, early)),
        }
    }
}

#[cfg(test)]
mod tests;
