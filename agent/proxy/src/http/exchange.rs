//! One request and its answer, from the head's arrival to the last byte: what telemetry will say about it, and what
//! must be given back at its end. Boxed once, moved along the path, ends when dropped, however that comes.

use super::{
    body::{RequestBody, Upload},
    conn::{Conn, Entrance},
    filters,
    io::MaybeTls,
    pool::{H1Conn, Key, Stream},
    spare::Spare,
    streams::Activity,
};
use crate::{
    dial::{Dial, UpstreamInfo},
    error::Reason,
    loads::InFlight,
    telemetry::{ActiveRequest, RequestHead, RequestRecord, RequestSpan, TraceContext, TryRecord, is_grpc},
};
use bytes::Bytes;
use futures_util::future::Either;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version, request::Parts};
use hyper::{body::Incoming, client::conn::TrySendError, upgrade::OnUpgrade};
use std::{net::SocketAddr, pin::Pin, rc::Rc, sync::Arc, time::Instant};
use tokio::{sync::oneshot, time::Sleep};
use weft_core::{
    balance::Answer,
    config::{Backend, Endpoint, EndpointSet, Frontend, HttpRule},
    model::{HeaderModifier, ObjectKey, SpiffeId},
};

/// An upstream connection in use.
pub(crate) enum Lease<Io: 'static> {
    /// All of it; goes back to the pool.
    H1(Key, H1Conn<Io>),
    /// One stream of it; counts down when dropped.
    H2(Stream),
}

impl<Io> Lease<Io> {
    /// Who is there.
    pub(crate) fn info(&self) -> &UpstreamInfo {
        match self {
            Self::H1(_, h1) => &h1.info,
            Self::H2(stream) => &stream.0.info,
        }
    }

    /// Whether HTTP/2 is spoken.
    pub(crate) const fn is_h2(&self) -> bool {
        matches!(self, Self::H2(_))
    }

    /// Whether it was used before, so that the peer may be closing it already.
    pub(crate) const fn is_kept(&self) -> bool {
        matches!(self, Self::H1(_, h1) if h1.reused)
    }

    /// The request that was sent has an answer, or a refusal.
    pub(crate) fn answered(&self) {
        if let Self::H2(stream) = self {
            stream.0.answered();
        }
    }

    /// The request that was sent was not looked at. `unsent`: it never left.
    pub(crate) fn refused(&self, unsent: bool) {
        if let Self::H2(stream) = self {
            stream.0.refused(unsent);
        }
    }

    /// Sends a request.
    pub(crate) fn send(
        &mut self,
        mut request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>> + use<Io> {
        if !self.is_h2() {
            filters::frame_h1(&mut request);
        }
        match self {
            Self::H1(_, h1) => Either::Left(h1.sender.try_send_request(request)),
            Self::H2(stream) => Either::Right(stream.0.sender.clone().try_send_request(request)),
        }
    }
}

/// State of one exchange.
pub(crate) struct Exchange<D: Dial> {
    pub(crate) conn: Rc<Conn<D>>,
    pub(crate) started: Instant,
    /// The stream of a Gateway's HTTP/2 client.
    pub(crate) activity: Option<Rc<Activity>>,
    /// Who asks: the client, or whom a trusted proxy names.
    pub(crate) client: SocketAddr,
    pub(crate) trace: TraceContext,
    /// What the client asked, for telemetry, when somebody wants it.
    head: Option<RequestHead>,
    span: RequestSpan,
    /// Of an HTTP/2 client.
    pub(crate) is_stream: bool,
    _active: ActiveRequest,
    /// Content is gRPC: errors are told in its way.
    pub(crate) grpc: bool,
    /// `Origin`, kept for CORS.
    pub(crate) origin: Option<HeaderValue>,

    pub(crate) frontend: Option<Arc<Frontend>>,
    pub(crate) rule: Option<Arc<HttpRule>>,
    pub(crate) backend: Option<Arc<Backend>>,
    /// Response filter of the backendRef that was picked.
    pub(crate) backend_response: Option<Arc<HeaderModifier>>,
    pub(crate) upload: Option<Rc<Upload>>,

    /// The client's side of an extended CONNECT.
    pub(crate) tunnel: Option<OnUpgrade>,
    /// The head once more, for another try, if one may be made.
    pub(crate) spare: Option<Spare>,
    /// The try under way, or the last one.
    pub(crate) attempt: Attempt<D>,
    pub(crate) tries: u32,
    /// Tries that were reset before an answer.
    pub(crate) resets: u32,
    /// Tries that the peer has not looked at.
    pub(crate) refusals: u32,

    pub(crate) code: u16,
    pub(crate) grpc_status: Option<u16>,
    pub(crate) reason: Option<Reason>,
    pub(crate) response_bytes: u64,
    /// Cuts the answer's body.
    pub(crate) deadline: Option<Pin<Box<Sleep>>>,
}

/// One try.
pub(crate) struct Attempt<D: Dial> {
    pub(crate) started: Instant,
    pub(crate) endpoint: Option<(Arc<EndpointSet>, usize)>,
    pub(crate) identity: Option<Rc<SpiffeId>>,
    pub(crate) span: RequestSpan,
    pub(crate) in_flight: Option<InFlight>,
    pub(crate) lease: Option<Lease<MaybeTls<D::Io>>>,
    /// Where the connection's bytes come to, if this is to be an upgrade. Asked for before the request is sent: the
    /// connection's task ends with the 101.
    pub(crate) handoff: Option<oneshot::Receiver<(MaybeTls<D::Io>, Bytes)>>,
}

impl<D: Dial> Attempt<D> {
    const fn new(started: Instant) -> Self {
        Self {
            started,
            endpoint: None,
            identity: None,
            span: RequestSpan::None,
            in_flight: None,
            lease: None,
            handoff: None,
        }
    }
}

impl<D: Dial> Attempt<D> {
    /// Where it goes.
    pub(crate) fn endpoint(&self) -> Option<&Endpoint> {
        self.endpoint.as_ref().and_then(|(set, i)| set.ready.get(*i))
    }
}

impl<D: Dial> Exchange<D> {
    /// Begins when the head has been read.
    pub(crate) fn begin(conn: &Rc<Conn<D>>, parts: &Parts) -> Box<Self> {
        let telemetry = &conn.http.telemetry;
        let trace = telemetry.start(&parts.headers, conn.decides_traces());
        let head = telemetry
            .wants_head(&trace)
            .then(|| RequestHead::of(parts, conn.forwarded_https(&parts.headers)));
        let span = telemetry.server_span(&trace, &conn.source.workload);
        conn.active.set(conn.active.get() + 1);
        conn.begun.set(conn.begun.get() + 1);
        let started = Instant::now();
        let activity = conn.streams.current();
        if let (Some(activity), true) = (&activity, is_grpc(&parts.headers)) {
            activity.exempt();
        }
        Box::new(Self {
            started,
            activity,
            client: conn.client(&parts.headers),
            trace,
            head,
            span,
            is_stream: parts.version == Version::HTTP_2,
            _active: telemetry.request_started(conn.direction()),
            grpc: is_grpc(&parts.headers),
            origin: None,
            frontend: None,
            rule: None,
            backend: None,
            backend_response: None,
            upload: None,
            tunnel: None,
            spare: None,
            attempt: Attempt::new(started),
            tries: 0,
            resets: 0,
            refusals: 0,
            code: 0,
            grpc_status: None,
            reason: None,
            response_bytes: 0,
            deadline: None,
            conn: Rc::clone(conn),
        })
    }

    /// Writes the trace headers that this try's upstream must see.
    pub(crate) fn inject_trace(&mut self, headers: &mut HeaderMap) {
        self.attempt.span = self.conn.http.telemetry.try_span(&self.span);
        self.attempt.span.inject(&self.trace, headers);
    }

    /// Tries that a peer may have looked at.
    pub(crate) const fn counted(&self) -> u32 {
        self.tries - self.refusals
    }

    /// A try has failed; the next one starts from nothing.
    pub(crate) fn try_failed(&mut self, reason: Reason, code: Option<u16>) {
        self.end_try_span(code, Some(reason));
        self.attempt.lease = None;
        self.attempt.in_flight = None;
        self.attempt.identity = None;
    }

    /// The trailers have come: what gRPC has to say of the endpoint.
    pub(crate) fn ended(&self) {
        if let (true, Some(in_flight)) = (self.grpc, &self.attempt.in_flight) {
            in_flight.ended(Answer::of(StatusCode::OK, false, self.grpc_status), Instant::now());
        }
    }

    /// The answer has been sent to its last byte: what was lent goes back.
    pub(crate) fn complete(mut self: Box<Self>) {
        let lease = self.attempt.lease.take();
        // A request that is still being sent keeps its connection: hyper reads the rest of it into nowhere.
        if let Some(Lease::H1(key, h1)) = lease {
            self.conn.pool.put_h1(&self.conn.share, key, h1);
        }
        self.end_try_span(Some(self.code), self.reason);
    }

    /// The answer broke off. A client's body that failed before is why, whatever came of it.
    pub(crate) fn broke(&mut self, reason: Reason) {
        self.reason = Some(self.upload_failed().unwrap_or(reason));
    }

    /// Why the client's body has failed, if it has.
    pub(crate) fn upload_failed(&self) -> Option<Reason> {
        self.upload.as_ref().and_then(|u| u.failed())
    }

    fn end_try_span(&mut self, code: Option<u16>, reason: Option<Reason>) {
        let span = std::mem::take(&mut self.attempt.span);
        if matches!(span, RequestSpan::None) {
            return;
        }
        let Some(endpoint) = self.attempt.endpoint().map(|e| e.addr) else { return };
        let outcome = TryRecord {
            endpoint,
            identity: self.attempt.identity.as_deref(),
            code: code.filter(|c| *c != 0),
            grpc_status: self.grpc_status,
            reason,
            resend: self.tries.saturating_sub(1),
        };
        span.finish_try(&self.record(), &outcome);
    }

    fn parent(&self) -> Option<&ObjectKey> {
        match &self.conn.entrance {
            Entrance::Gateway(gateway) => Some(&gateway.gateway),
            Entrance::Mesh { .. } => self.frontend.as_ref().map(|f| &f.service),
        }
    }

    fn record(&self) -> RequestRecord<'_> {
        RequestRecord {
            parent: self.parent(),
            head: self.head.as_ref(),
            source: match self.conn.entrance {
                Entrance::Mesh { .. } => Some(&self.conn.source.workload),
                Entrance::Gateway(_) => None,
            },
            rule: self.rule.as_ref(),
            backend: self.backend.as_ref(),
            endpoint: self.attempt.endpoint(),
            destination_identity: self.attempt.identity.as_deref(),
            code: self.code,
            grpc_status: self.grpc_status,
            reason: self.reason,
            request_bytes: self.upload.as_ref().map_or(0, |u| u.bytes()),
            response_bytes: self.response_bytes,
            duration: self.started.elapsed(),
            tries: self.tries,
            ..RequestRecord::new(self.conn.direction(), &self.trace, self.client)
        }
    }
}

impl<D: Dial> Drop for Exchange<D> {
    fn drop(&mut self) {
        if self.code == 0 && self.reason.is_none() {
            // Dropped before any answer: the client broke it off.
            self.broke(Reason::ClientGone);
        }
        self.end_try_span(Some(self.code), self.reason);
        let span = std::mem::take(&mut self.span);
        self.conn.http.telemetry.finish(&self.record(), span);
        if self.is_stream {
            self.conn.stream_ended(self.started.elapsed(), self.reason == Some(Reason::ClientGone));
        }
        self.conn.active.set(self.conn.active.get() - 1);
        // What it has remembered is not kept with an idle connection.
        self.conn.upload.take();
        self.conn.reads_done.set(self.conn.reads.get());
    }
}
