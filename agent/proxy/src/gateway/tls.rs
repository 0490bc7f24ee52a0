//! A connection on a port where TLS is spoken: by its server name it belongs to one listener, which ends TLS here or
//! passes it on.

use super::serve::{Context, no_route};
use crate::{
    error::{Blame, ProxyError, Reason, Retryable},
    http::{DownstreamTls, HttpVersion, Prefixed},
    l4::{
        chunks::Chunks,
        detect::{Sni, server_name},
        pipe::{Pipe, Plain, ReadSize},
    },
    telemetry::Counter,
    transport::connect::reset_on_close,
};
use bytes::{Bytes, BytesMut};
use rustls::AlertDescription;
use std::{io, sync::Arc, task, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use weft_core::{
    config::{L4Rule, PortConfig, TlsListener, TlsTermination},
    model::Str,
};

/// First read of a connection's first bytes.
const FIRST_READ: usize = 4096;
/// Unsent bytes of one connection: a body's chunk and its head become one batch of records.
const TLS_BUFFER: usize = 256 * 1024;

type Tls = TlsStream<Prefixed<TcpStream>>;

/// The listener that a server name belongs to, as far as this connection needs it.
enum Chosen {
    /// No listener has the name; whether the port has HTTPS listeners only.
    Nobody(bool),
    Https(Arc<TlsTermination>),
    Terminate(Arc<TlsTermination>, Option<Arc<L4Rule>>),
    Passthrough(Option<Arc<L4Rule>>),
}

/// Serves a connection whose first bytes are still to come.
pub(super) async fn serve(context: Context, mut io: TcpStream) {
    let patience = Duration::from_millis(context.worker.shared.limits.handshake_timeout_ms);
    let deadline = tokio::time::Instant::now() + patience;
    let drain = context.local.share.drain().clone();
    let hello = tokio::select! {
        hello = tokio::time::timeout_at(deadline, read_hello(&mut io)) => hello,
        // Nothing was asked yet, but it may be on its way.
        () = drain.lingered() => return,
    };
    let (sni, early) = match hello {
        Ok(Ok((Sni::Name(name), early))) => (Some(Str::from(name)), early),
        Ok(Ok((Sni::Absent, early))) => (None, early),
        // A probe of a load balancer that only connects: nothing to tell.
        Ok(Ok((_, early))) if early.is_empty() => return,
        Ok(Ok(_)) => return failed(&context, io, "the client does not speak TLS"),
        Ok(Err(error)) => return failed(&context, io, &error.to_string()),
        Err(_) => return failed(&context, io, "no TLS ClientHello in time"),
    };
    match choose(&context, sni.as_deref()) {
        None | Some(Chosen::Nobody(true)) => unrecognized(&context, io, sni.as_deref()).await,
        // Nobody has said that TLS ends here, so no TLS is spoken: a TLSRoute's client meets a closed connection, as
        // the conformance suite demands (TLSRouteHostnameIntersection takes no alert for a refusal).
        Some(Chosen::Nobody(false)) => unrouted(&context, io, "listener", sni.as_deref()),
        Some(Chosen::Passthrough(None)) => unrouted(&context, io, "TLSRoute", sni.as_deref()),
        Some(Chosen::Passthrough(rule)) => context.opaque(io, "tls", rule, early).await,
        Some(Chosen::Https(tls)) => {
            let Some(io) = accept(&context, early, io, &tls, deadline).await else { return };
            let version = match io.get_ref().1.alpn_protocol() {
                Some(b"h2") => Some(HttpVersion::Http2),
                Some(_) => Some(HttpVersion::Http1),
                None => None,
            };
            context.http(io, version, Some(DownstreamTls { sni })).await;
        }
        Some(Chosen::Terminate(tls, rule)) => {
            let Some(io) = accept(&context, early, io, &tls, deadline).await else { return };
            context.opaque(Terminated(Plain(io)), "tls", rule, Bytes::new()).await;
        }
    }
}

fn choose(context: &Context, sni: Option<&str>) -> Option<Chosen> {
    let config = context.worker.shared.config.load();
    let (_, PortConfig::Tls(hosts)) = context.find(&config)? else { return None };
    let Some(listener) = hosts.get(sni) else {
        let https = |listener: &TlsListener| matches!(listener, TlsListener::Https { .. });
        return Some(Chosen::Nobody(hosts.iter().all(|(_, listener)| https(listener))));
    };
    Some(match &**listener {
        TlsListener::Https { tls, .. } => Chosen::Https(tls.clone()),
        TlsListener::Terminate { tls, routes } => Chosen::Terminate(tls.clone(), routes.get(sni).cloned()),
        TlsListener::Passthrough { routes } => Chosen::Passthrough(routes.get(sni).cloned()),
    })
}

async fn read_hello(io: &mut TcpStream) -> io::Result<(Sni, Bytes)> {
    let mut early = BytesMut::new();
    loop {
        // Waits before it takes memory: an idle connection holds none.
        io.readable().await?;
        early.reserve(FIRST_READ);
        let n = io.read_buf(&mut early).await?;
        match server_name(&early) {
            Sni::NeedMore if n > 0 => {}
            sni => return Ok((sni, early.freeze())),
        }
    }
}

/// Does the handshake; `None` when it failed, which was then told.
async fn accept(
    context: &Context,
    early: Bytes,
    io: TcpStream,
    tls: &Arc<TlsTermination>,
    deadline: tokio::time::Instant,
) -> Option<Tls> {
    let config = match context.tls.get(tls) {
        Ok(config) => config,
        Err(why) => {
            alert(io, AlertDescription::InternalError).await;
            record(context, &error(Blame::Config, format!("certificates: {why}")));
            return None;
        }
    };
    let accepting = async {
        let permit = context.local.share.handshake().await;
        permit.during(TlsAcceptor::from(config).accept(Prefixed::new(early, io))).await
    };
    match tokio::time::timeout_at(deadline, accepting).await {
        Ok(Ok(mut io)) => {
            context.worker.telemetry.count(Counter::HandshakeListenerOk);
            io.get_mut().1.set_buffer_limit(Some(TLS_BUFFER));
            Some(io)
        }
        Ok(Err(why)) => {
            record(context, &error(Blame::Downstream, why.to_string()));
            None
        }
        Err(_) => {
            record(context, &error(Blame::Downstream, "TLS handshake not done in time".to_owned()));
            None
        }
    }
}

fn error(blame: Blame, detail: String) -> ProxyError {
    ProxyError { reason: Reason::PeerIdentity, blame, retry: Retryable::No, detail }
}

fn record(context: &Context, error: &ProxyError) {
    context.worker.telemetry.count(Counter::HandshakeListenerFailed);
    let mut ended = context.ended("tls");
    ended.fail(error);
    ended.record(&context.worker);
}

/// No handshake has begun.
fn failed(context: &Context, io: TcpStream, detail: &str) {
    reset_on_close(&io);
    record(context, &error(Blame::Downstream, detail.to_owned()));
}

async fn unrecognized(context: &Context, io: TcpStream, sni: Option<&str>) {
    alert(io, AlertDescription::UnrecognisedName).await;
    record(context, &no_route(format!("no listener for server name {}", shown(sni))));
}

fn unrouted(context: &Context, io: TcpStream, missing: &str, sni: Option<&str>) {
    context.refuse(io, "tls", &no_route(format!("no {missing} for server name {}", shown(sni))));
}

fn shown(sni: Option<&str>) -> &str {
    sni.unwrap_or("(none)")
}

/// Tells the client why, in clear as RFC 8446 §6 allows before any key is agreed, and closes.
async fn alert(mut io: TcpStream, description: AlertDescription) {
    const ALERT: u8 = 21;
    const FATAL: u8 = 2;
    let record = [ALERT, 3, 3, 0, 2, FATAL, u8::from(description)];
    // Seven bytes always fit into a fresh socket; a client that is gone needs no telling.
    let _ = io.write_all(&record).await;
    let _ = io.shutdown().await;
}

/// The bytes inside TLS that was ended here.
struct Terminated(Plain<Tls>);

impl Pipe for Terminated {
    fn poll_fill(
        &mut self,
        cx: &mut task::Context<'_>,
        into: &mut Chunks,
        size: &mut ReadSize,
    ) -> task::Poll<io::Result<usize>> {
        self.0.poll_fill(cx, into, size)
    }

    fn poll_drain(
        &mut self,
        cx: &mut task::Context<'_>,
        from: &mut Chunks,
        last: bool,
    ) -> task::Poll<io::Result<()>> {
        self.0.poll_drain(cx, from, last)
    }

    fn poll_finish(&mut self, cx: &mut task::Context<'_>) -> task::Poll<io::Result<()>> {
        self.0.poll_finish(cx)
    }

    fn abort(&mut self) {
        reset_on_close(self.0.0.get_ref().0.get_ref());
    }
}
