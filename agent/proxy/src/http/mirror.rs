//! Mirrors: copies of a request to other backends, whose answers nobody waits for.
//!
//! A mirror runs in a task of its own with a deadline. Its body is teed from the client's as that goes upstream; a mirror
//! that lags is cut (see [`super::body`]), and never holds the request that it copies.

use super::{
    body::{MIRROR_FRAMES_MAX, RequestBody},
    conn::Conn,
    exchange::{Exchange, Lease},
    forward::{lease, shape},
    plan::{Way, mirror_way},
    respond::error,
};
use crate::{
    dial::Dial,
    error::{ProxyError, Reason},
    loads::Choice,
    telemetry::{Counter, RequestSpan},
};
use http::{Request, request::Parts};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::mpsc;
use weft_core::{
    balance::Fault,
    config::{Backend, MirrorTarget},
};

/// Time for one copy, from its connection to the end of its answer.
const TIME_MAX: Duration = Duration::from_secs(30);
/// Copies under way on one worker.
const ACTIVE_MAX: usize = 512;
/// An answer longer than this is not read to its end; its connection is closed.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Starts the copies of a request whose head is ready to be sent, and whose body has not begun to flow.
pub(crate) fn start<D: Dial>(exchange: &Exchange<D>, targets: &[Arc<MirrorTarget>], parts: &Parts) {
    let http = &exchange.conn.http;
    for target in targets {
        let way = mirror_way(exchange, &target.backend, parts.version);
        let (Ok(way), true) = (way, http.mirrors.get() < ACTIVE_MAX) else {
            http.telemetry.count(Counter::MirrorsDropped);
            continue;
        };
        let body = match &exchange.upload {
            None => RequestBody::Empty,
            Some(upload) => {
                let (tee, copy) = mpsc::channel(MIRROR_FRAMES_MAX);
                upload.tee(tee);
                RequestBody::Copy(copy)
            }
        };
        let mut parts = parts.clone();
        RequestSpan::None.inject(&exchange.trace, &mut parts.headers);
        let (conn, backend) = (Rc::clone(&exchange.conn), Arc::clone(&target.backend));
        let counted = UnderWay::begin(&conn);
        exchange.conn.share.spawn(async move {
            let _counted = counted;
            let http = Rc::clone(&conn.http);
            let copied = tokio::time::timeout(TIME_MAX, copy(&conn, &backend, &way, parts, body)).await;
            match copied {
                Ok(Ok(())) => http.telemetry.count(Counter::Mirrors),
                Ok(Err(error)) => {
                    tracing::debug!(backend = %backend.key.service, %error, "mirror failed");
                    http.telemetry.count(Counter::MirrorsDropped);
                }
                Err(_) => http.telemetry.count(Counter::MirrorsDropped),
            }
        });
    }
}

/// Counts a copy while it lives: a share that is closed drops its tasks wherever they stand.
struct UnderWay<D: Dial>(Rc<Conn<D>>);

impl<D: Dial> UnderWay<D> {
    fn begin(conn: &Rc<Conn<D>>) -> Self {
        let mirrors = &conn.http.mirrors;
        mirrors.set(mirrors.get() + 1);
        Self(Rc::clone(conn))
    }
}

impl<D: Dial> Drop for UnderWay<D> {
    fn drop(&mut self) {
        let mirrors = &self.0.http.mirrors;
        mirrors.set(mirrors.get() - 1);
    }
}

async fn copy<D: Dial>(
    conn: &Conn<D>,
    backend: &Backend,
    way: &Way,
    mut parts: Parts,
    body: RequestBody,
) -> Result<(), ProxyError> {
    let now = Instant::now();
    let http = &conn.http;
    let chosen = {
        let config = http.shared.config.load();
        let set = config.endpoints.get(&backend.key);
        set.and_then(|set| {
            let (share, client) = (conn.share.key(), conn.peer.ip());
            let choice = Choice { backend, set, share, client, tried: &[] };
            let (index, in_flight) = http.loads.choose_untold(&choice, now, http.draw())?;
            Some((set.ready.get(index)?.clone(), in_flight))
        })
    };
    let (endpoint, in_flight) = chosen.ok_or_else(|| error(Reason::NoEndpoint, ""))?;
    let leased = lease(conn, &endpoint, way, false, || false).await;
    match &leased {
        Ok(_) => in_flight.connected(Instant::now()),
        Err(error) => in_flight.blamed(error, Fault::Unreached, Instant::now()),
    }
    let mut lease = leased?;
    shape(&mut parts, &lease, way.tls.is_some());
    let sending = lease.send(Request::from_parts(parts, body));
    let sent = sending.await;
    lease.answered();
    let response = sent.map_err(|e| error(Reason::UpstreamReset, e.error().to_string()))?;
    if drain(response.into_body()).await
        && let Lease::H1(key, h1) = lease
    {
        conn.pool.put_h1(&conn.share, key, h1);
    }
    Ok(())
}

/// Reads an answer that nobody wants, so that its connection can be used again.
async fn drain(mut body: Incoming) -> bool {
    let mut seen = 0;
    while let Some(Ok(frame)) = body.frame().await {
        seen += frame.data_ref().map_or(0, bytes::Bytes::len);
        if seen > ANSWER_BYTES_MAX {
            return false;
        }
    }
    true
}
