//! Probes of the kubelet to a strict pod: from nobody else, what the pod's spec declares, and nothing more.
//!
//! ```text
//! a port for which something is declared ─▶ the kubelet's own connection? ─▶ first bytes
//!     none: the port is open, which is all that tcpSocket asks
//!     TLS: passed on          HTTP/1: one declared GET          HTTP/2: one declared health check
//! ```

mod exchange;
mod grpc;
mod head;
pub(crate) mod redirects;

use super::denied;
use crate::{
    error::{ProxyError, Reason},
    l4::{copy, tcp::Ended},
    pods::{Accepted, Pod},
    telemetry::Counter,
    transport::connect,
    worker::Worker,
};
use bytes::{Bytes, BytesMut};
use head::{Verdict, judge};
use std::{io, net::SocketAddr, rc::Rc, time::Duration};
use tokio::{
    io::AsyncReadExt,
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
    pod: &'a Rc<Pod>,
    downstream: &'a mut TcpStream,
    peer: SocketAddr,
    to: SocketAddr,
    asks: &'a [Asked],
    received: u64,
    sent: u64,
}

impl Probing<'_> {
    /// A connection to the application, from the kubelet's address. Borrows nothing, so that both ends can be used.
    fn application(&self) -> impl Future<Output = Result<TcpStream, ProxyError>> + use<> {
        let (source, shared) = (self.pod.source.clone(), self.worker.shared.clone());
        let (from, to) = (self.peer.ip(), self.to);
        async move { connect::to_application(&*source.sockets, from, to, &shared.limits).await }
    }
}

/// Serves a connection to a port for which something may be asked.
pub(super) async fn serve(mut conn: Accepted, to: SocketAddr, asks: &[Asked], ended: &mut Ended) {
    let served = match recognise(&conn, to).await {
        Ok(true) => answer(&mut conn, to, asks, ended).await,
        Ok(false) => Ok(None),
        Err(error) => Err(error),
    };
    match served {
        Ok(None) => {}
        Ok(Some((application, early))) => {
            let Accepted { io, pod, _guard, .. } = conn;
            ended.copied(&copy::bidirectional(io, application, early, pod.share.copying()).await);
        }
        Err(error) => {
            if error.reason == Reason::Denied {
                conn.worker.telemetry.count(Counter::DeniedPlaintext);
            }
            connect::reset_on_close(&conn.io);
            ended.fail(&error);
        }
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

/// Serves what the kubelet asks. Gives the application and what is to be sent to it first where all else is copied.
async fn answer(
    conn: &mut Accepted,
    to: SocketAddr,
    asks: &[Asked],
    ended: &mut Ended,
) -> Result<Option<(TcpStream, Bytes)>, ProxyError> {
    let mut probing = Probing {
        worker: &conn.worker,
        pod: &conn.pod,
        downstream: &mut conn.io,
        peer: conn.peer,
        to,
        asks,
        received: 0,
        sent: 0,
    };
    let (verdict, early) = first_words(&mut probing).await?;
    let served = match verdict {
        Verdict::NeedMore => return Ok(None),
        Verdict::Refuse(why) => return Err(denied(format!("a probe of the kubelet to {to}: {why}"))),
        Verdict::Tls => return Ok(Some((probing.application().await?, early.freeze()))),
        Verdict::Grpc => {
            ended.protocol = "grpc";
            Box::pin(grpc::serve(&mut probing, early.freeze())).await
        }
        Verdict::Http { forward, target, headers, depth } => {
            ended.protocol = "http";
            let request = exchange::Declared { forward, target, headers, depth };
            Box::pin(exchange::serve(&mut probing, request)).await
        }
    };
    (ended.received, ended.sent) = (probing.received, probing.sent);
    served.map(|()| None).map_err(|error| match error.reason {
        Reason::Denied => denied(format!("a probe of the kubelet to {to}: {}", error.detail)),
        _ => error,
    })
}

/// Reads until it is clear what is asked. [`Verdict::NeedMore`]: nothing, or a client that has stopped in between.
async fn first_words(probing: &mut Probing<'_>) -> Result<(Verdict, BytesMut), ProxyError> {
    let deadline = Instant::now() + FIRST_WORDS;
    let mut early = BytesMut::new();
    loop {
        let read = timeout_at(deadline, read_some(probing.downstream, &mut early)).await;
        let n = match read {
            Ok(Ok(n)) => n,
            Ok(Err(_)) => 0,
            // Silent, and open still: it is told to go.
            Err(_) => return Err(denied(format!("a probe of the kubelet to {} says nothing", probing.to))),
        };
        match judge(&early, probing.to, probing.asks) {
            Verdict::NeedMore if n > 0 => {}
            verdict => return Ok((verdict, early)),
        }
    }
}

/// Waits before it takes memory.
async fn read_some(io: &mut TcpStream, into: &mut BytesMut) -> io::Result<usize> {
    io.readable().await?;
    into.reserve(READ);
    io.read_buf(into).await
}

#[cfg(test)]
mod tests;
