//! Sending a request to an endpoint of its backend, trying again where that is safe or asked for, and handing the
//! answer on.

use super::{
    body::{REFUSED_BYTES_MAX, REPLAY_BYTES_MAX, RequestBody},
    conn::{Conn, Upgraded},
    connect::{self, Protocol},
    exchange::{Exchange, Lease},
    filters,
    io::MaybeTls,
    mirror,
    plan::{Plan, Step, Way, plan},
    pool::{H2Turn, Key, Stream},
    reply::ResponseBody,
    respond::{self, error},
    spare::Spare,
    upgrade,
};
use crate::{
    budgets::Tenant,
    dial::{Dial, impatiently},
    error::{ProxyError, Reason},
    loads::Choice,
    telemetry::Counter,
    transport::pulse::Wait,
};
use http::{HeaderValue, Request, Response, StatusCode, Version, request::Parts};
use hyper::{body::Incoming, client::conn::TrySendError};
use std::{
    error::Error,
    future::poll_fn,
    net::SocketAddr,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::Instant,
};
use weft_core::{
    balance::{Answer, Fault},
    budget,
    config::{Backend, Endpoint},
    message,
    model::Retry,
    timing::{
        Attempt, Deadline, Decision, Outcome, TimeoutKind, decide,
        retry::{Repeat, has_tries, needs_budget},
    },
};

/// Serves one request.
pub(crate) async fn handle<D: Dial>(
    conn: Rc<Conn<D>>,
    request: Request<Incoming>,
) -> Response<ResponseBody<D>> {
    let (mut parts, body) = request.into_parts();
    let mut exchange = Exchange::begin(&conn, &parts);
    exchange.tunnel = upgrade::extended_connect(&mut parts, || conn.http.draw());
    drop(conn);
    match plan(&mut exchange, &mut parts) {
        Ok(Step::Forward(plan)) => forward(exchange, plan, parts, body).await,
        Ok(Step::Answer(head)) => respond::filtered(exchange, head),
        Err(error) => respond::failure(exchange, &error),
    }
}

/// A request in a form that can be sent, or sent again.
struct Outgoing {
    parts: Parts,
    body: RequestBody,
    /// Version the client speaks.
    version: Version,
    repeat: Repeat,
    /// Not on a kept connection: one had gone stale, and so may others be of pods that end together.
    afresh: bool,
}

/// How a try ended without an answer to hand on.
struct Failure {
    outcome: Outcome,
    error: ProxyError,
    /// The upstream's code, when that is why.
    code: Option<u16>,
    /// What another try would send, if that is possible.
    again: Option<(Parts, RequestBody)>,
}

async fn forward<D: Dial>(
    mut exchange: Box<Exchange<D>>,
    mut plan: Plan,
    mut parts: Parts,
    body: Incoming,
) -> Response<ResponseBody<D>> {
    let (body, upload) = RequestBody::new(body);
    // Of HTTP/2 many come at a time, and nobody looks at the last.
    *exchange.conn.upload.borrow_mut() = upload.clone();
    exchange.upload = upload;
    if let Some(upload) = &exchange.upload {
        upload.filter_trailers(plan.trailers.take());
        upload.tell(exchange.activity.clone());
    }
    parts.extensions.clear();
    let memory = match (retry_policy(&exchange), plan.way.protocol) {
        (Some(_), _) => Some(REPLAY_BYTES_MAX),
        // An HTTP/2 peer may say that it did not look at a request.
        (None, Protocol::Http2) => Some(REFUSED_BYTES_MAX),
        (None, Protocol::Http1) => None,
    };
    if let (Some(upload), Some(bytes_max)) = (&exchange.upload, memory) {
        upload.remember(bytes_max);
    }
    exchange.conn.share.requested();
    if !plan.mirrors.is_empty() {
        mirror::start(&exchange, &plan.mirrors, &parts);
    }
    let repeat = Repeat::of(&parts.method);
    let mut outgoing = Outgoing { version: parts.version, parts, body, repeat, afresh: false };
    let mut tried = Vec::new();
    loop {
        exchange.tries += 1;
        let failure = match send(&mut exchange, &plan, outgoing, &tried).await {
            Ok(response) => return answer(exchange, response),
            Err(failure) => *failure,
        };
        if let (Some(in_flight), Some(fault)) = (&exchange.attempt.in_flight, fault(&exchange, &failure)) {
            in_flight.blamed(&failure.error, fault, Instant::now());
        }
        exchange.resets += u32::from(failure.outcome == Outcome::Reset);
        exchange.refusals += u32::from(failure.outcome == Outcome::Refused);
        let decision = match failure.outcome {
            // Charged when its status came.
            Outcome::Status(_) => next(&exchange, &plan, &failure, repeat, &tried),
            _ => charged(&exchange, &plan, &failure, repeat, &tried),
        };
        exchange.try_failed(failure.error.reason, failure.code);
        let (Decision::Retry { after }, Some((parts, body))) = (decision, failure.again) else {
            return respond::failure(exchange, &failure.error);
        };
        exchange.conn.http.telemetry.count(Counter::Retries);
        if failure.outcome != Outcome::Refused {
            tried.extend(exchange.attempt.endpoint().map(|e| e.addr));
        }
        if !after.is_zero() {
            tokio::time::sleep(after).await;
        }
        let afresh = failure.outcome == Outcome::Stale;
        outgoing = Outgoing { version: parts.version, parts, body, repeat, afresh };
    }
}

/// What the failure of a try says of its endpoint, if that is to blame.
fn fault<D: Dial>(exchange: &Exchange<D>, failure: &Failure) -> Option<Fault> {
    if exchange.upload_failed().is_some() {
        return None;
    }
    match failure.outcome {
        Outcome::Unreached => Some(Fault::Unreached),
        Outcome::Reset | Outcome::TryTimeout | Outcome::Silent => Some(Fault::Broken),
        // A connection may go stale at any time, and a status was noted when it came.
        Outcome::Stale | Outcome::Refused | Outcome::Status(_) => None,
    }
}

fn retry_policy<D: Dial>(exchange: &Exchange<D>) -> Option<&Retry> {
    exchange.rule.as_ref().and_then(|r| r.retry.as_deref())
}

/// As [`next`], with a retry that only the policy wants charged to the workload's budget.
fn charged<D: Dial>(
    exchange: &Exchange<D>,
    plan: &Plan,
    failure: &Failure,
    repeat: Repeat,
    tried: &[SocketAddr],
) -> Decision {
    let decision = next(exchange, plan, failure, repeat, tried);
    let asked = attempt(exchange, plan, failure, repeat);
    if decision == Decision::Stop || !needs_budget(retry_policy(exchange), &asked) {
        return decision;
    }
    let (conn, now) = (&exchange.conn, Instant::now());
    if conn.share.may_retry(now) {
        return decision;
    }
    conn.http.shared.budgets.reached(&budget::RETRIES, Tenant::from(conn.share.key()), now);
    Decision::Stop
}

fn attempt<D: Dial>(exchange: &Exchange<D>, plan: &Plan, failure: &Failure, repeat: Repeat) -> Attempt {
    Attempt {
        tries: exchange.tries,
        outcome: failure.outcome,
        replayable: failure.again.is_some(),
        repeat,
        resets: exchange.resets,
        refusals: exchange.refusals,
        remaining: plan.deadlines.remaining(Instant::now()),
        draw: exchange.conn.http.draw(),
    }
}

fn next<D: Dial>(
    exchange: &Exchange<D>,
    plan: &Plan,
    failure: &Failure,
    repeat: Repeat,
    tried: &[SocketAddr],
) -> Decision {
    if exchange.upload_failed().is_some() {
        return Decision::Stop;
    }
    // Who answers, if not in HTTP, would do so again.
    if retry_policy(exchange).is_none() && failure.error.reason == Reason::UpstreamProtocol {
        return Decision::Stop;
    }
    // Where nobody else is, a silent one would only be waited for again, and whoever was not reached twice is not there.
    let asked_all = retry_policy(exchange).is_none() && exchange.counted() > 1;
    if failure.outcome == Outcome::Silent || (asked_all && failure.outcome != Outcome::Refused) {
        let at = exchange.attempt.endpoint().map(|e| e.addr);
        if !at.is_some_and(|at| may_turn(exchange, &plan.backend, at, tried)) {
            return Decision::Stop;
        }
    }
    decide(retry_policy(exchange), &attempt(exchange, plan, failure, repeat))
}

/// One try, within its deadline.
async fn send<D: Dial>(
    exchange: &mut Exchange<D>,
    plan: &Plan,
    outgoing: Outgoing,
    tried: &[SocketAddr],
) -> Result<Response<Incoming>, Box<Failure>> {
    let now = if exchange.tries == 1 { exchange.started } else { Instant::now() };
    let Some(endpoint) = choose(exchange, &plan.backend, tried, now) else {
        let config = exchange.conn.http.shared.config.load();
        let error = ProxyError::no_endpoint(&config, &plan.backend.key);
        // Another try would find none either.
        return Err(Failure { outcome: Outcome::Reset, error, code: None, again: None }.into());
    };
    let retried = retry_policy(exchange).is_some_and(|r| has_tries(Some(r), exchange.counted()));
    exchange.spare = retried.then(|| Spare::of(&outgoing.parts));
    let deadline = plan.deadlines.of_try(now);
    let mut sleep = deadline.map(|d| Box::pin(tokio::time::sleep_until(d.at.into())));
    let sent = {
        // One future for both cases: this code's state is held by every open connection.
        let mut sending = pin!(send_to(exchange, plan, &endpoint, tried, outgoing));
        poll_fn(|cx| match sending.as_mut().poll(cx) {
            Poll::Ready(sent) => Poll::Ready(Some(sent)),
            Poll::Pending => match sleep.as_mut().map(|s| s.as_mut().poll(cx)) {
                Some(Poll::Ready(())) => Poll::Ready(None),
                _ => Poll::Pending,
            },
        })
        .await
    };
    let Some(sent) = sent else { return Err(timed_out(exchange, deadline).into()) };
    // The deadline covers the answer's body too (GEP-1742).
    exchange.deadline = sleep;
    sent
}

fn timed_out<D: Dial>(exchange: &mut Exchange<D>, deadline: Option<Deadline>) -> Failure {
    let kind = deadline.map_or(TimeoutKind::Request, |d| d.kind);
    let error = error(Reason::Timeout, kind.as_str());
    match kind {
        TimeoutKind::Request => Failure { outcome: Outcome::Reset, error, code: None, again: None },
        TimeoutKind::BackendRequest => {
            Failure { outcome: Outcome::TryTimeout, error, code: None, again: remembered(exchange) }
        }
    }
}

/// What was being sent is gone with its try, but for a remembered copy.
fn remembered<D: Dial>(exchange: &mut Exchange<D>) -> Option<(Parts, RequestBody)> {
    let body = match &exchange.upload {
        None => Some(RequestBody::Empty),
        Some(upload) => upload.again(),
    };
    body.and_then(|body| Some((exchange.spare.take()?.into_parts(), body)))
}

/// Picks an endpoint and counts the request there.
fn choose<D: Dial>(
    exchange: &mut Exchange<D>,
    backend: &Backend,
    tried: &[SocketAddr],
    now: Instant,
) -> Option<Endpoint> {
    let http = &exchange.conn.http;
    let config = http.shared.config.load();
    let set = config.endpoints.get(&backend.key)?;
    let (share, client) = (exchange.conn.share.key(), exchange.client.ip());
    let choice = Choice { backend, set, share, client, tried };
    let (index, in_flight) = http.loads.choose(&choice, now, http.draw())?;
    let endpoint = set.ready.get(index)?.clone();
    exchange.attempt.in_flight = Some(in_flight);
    exchange.attempt.started = now;
    exchange.attempt.endpoint = Some((Arc::clone(set), index));
    Some(endpoint)
}

async fn send_to<D: Dial>(
    exchange: &mut Exchange<D>,
    plan: &Plan,
    endpoint: &Endpoint,
    tried: &[SocketAddr],
    outgoing: Outgoing,
) -> Result<Response<Incoming>, Box<Failure>> {
    let Outgoing { mut parts, body, version, repeat, afresh } = outgoing;
    let conn = Rc::clone(&exchange.conn);
    let may_turn = || may_turn(exchange, &plan.backend, endpoint.addr, tried);
    let mut lease = match lease(&conn, endpoint, &plan.way, afresh, may_turn).await {
        Ok(lease) => lease,
        Err(error) => {
            let again = Some((parts, body));
            return Err(Failure { outcome: Outcome::Unreached, error, code: None, again }.into());
        }
    };
    exchange.attempt.identity.clone_from(&lease.info().identity);
    if !lease.is_kept() {
        // What a new connection costs says nothing about how busy the endpoint is.
        let now = Instant::now();
        exchange.attempt.started = now;
        if let Some(in_flight) = &exchange.attempt.in_flight {
            in_flight.connected(now);
        }
    }
    parts.version = version;
    shape(&mut parts, &lease, plan.way.tls.is_some());
    exchange.inject_trace(&mut parts.headers);
    let kept = lease.is_kept();
    // A kept connection may have gone stale, a server or a node have ended, an HTTP/2 peer may refuse a stream: all may be sent
    // again.
    let safe = matches!(body, RequestBody::Empty) && (repeat.is_idempotent() || (!kept && lease.is_h2()));
    let again = lease.is_h2() || (safe && has_tries(retry_policy(exchange), exchange.counted()));
    if exchange.spare.is_none() && again {
        exchange.spare = Some(Spare::of(&parts));
    }
    if let (true, Lease::H1(_, h1)) = (plan.upgrade, &lease) {
        exchange.attempt.handoff = Some(h1.handoff.ask());
    }
    let sending = lease.send(Request::from_parts(parts, body));
    let lost = lease.info().tunnel.as_ref().map(|tunnel| tunnel.lost());
    exchange.attempt.lease = Some(lease);
    let sent = unless_lost(sending, lost).await;
    if let (Some(_), Some(lease)) = (&sent, &exchange.attempt.lease) {
        lease.answered();
    }
    match sent {
        Some(Ok(response)) => finish_try(exchange, plan, response, repeat),
        Some(Err(failed)) => {
            if let (true, Some(upload)) = (refused(failed.error()), &exchange.upload) {
                upload.given_back().await;
            }
            Err(broken(exchange, failed, kept).into())
        }
        None => {
            let error =
                error(Reason::PeerSilent, format!("no sign of life from the node of {}", endpoint.addr));
            let again = remembered(exchange);
            Err(Failure { outcome: Outcome::Silent, error, code: None, again }.into())
        }
    }
}

/// What is sent, or `None` once the tunnel's other end is given up.
async fn unless_lost<T>(sending: impl Future<Output = T>, mut lost: Option<Wait>) -> Option<T> {
    let mut sending = pin!(sending);
    poll_fn(|cx| match sending.as_mut().poll(cx) {
        Poll::Ready(sent) => Poll::Ready(Some(sent)),
        Poll::Pending => match lost.as_mut().map(|lost| Pin::new(lost).poll(cx)) {
            Some(Poll::Ready(())) => Poll::Ready(None),
            _ => Poll::Pending,
        },
    })
    .await
}

/// Whether a request that waits for a connection to `at` may turn to another endpoint.
fn may_turn<D: Dial>(
    exchange: &Exchange<D>,
    backend: &Backend,
    at: SocketAddr,
    tried: &[SocketAddr],
) -> bool {
    let http = &exchange.conn.http;
    let config = http.shared.config.load();
    has_tries(retry_policy(exchange), exchange.counted())
        && config.endpoints.get(&backend.key).is_some_and(|set| {
            let (share, client) = (exchange.conn.share.key(), exchange.client.ip());
            let choice = Choice { backend, set, share, client, tried };
            http.loads.has_other(&choice, at, Instant::now())
        })
}

/// Gives the request the form of what is spoken.
pub(crate) fn shape<Io>(parts: &mut Parts, lease: &Lease<Io>, tls: bool) {
    if lease.is_h2() {
        filters::for_h2(parts, tls);
    } else {
        filters::for_h1(parts, || HeaderValue::try_from(lease.info().addr.to_string()).ok());
    }
}

/// A kept connection to the endpoint, unless `afresh`, or a new one; not for long if the request `may_turn` to another endpoint.
pub(crate) async fn lease<D: Dial>(
    conn: &Conn<D>,
    endpoint: &Endpoint,
    way: &Way,
    afresh: bool,
    may_turn: impl Fn() -> bool,
) -> Result<Lease<MaybeTls<D::Io>>, ProxyError> {
    let key = Key::new(endpoint, way.tls.as_ref().map_or(0, |t| t.id));
    let telemetry = &conn.http.telemetry;
    match way.protocol {
        Protocol::Http1 => {
            if !afresh && let Some(kept) = conn.pool.take_h1(&key, endpoint) {
                telemetry.count(Counter::PoolHitHttp);
                return Ok(Lease::H1(key, kept));
            }
            telemetry.count(Counter::PoolMissHttp);
            // Boxed here and below: the way to a new connection is long, and rarely taken.
            let new = connect::http1(conn, endpoint, way.tls.as_deref());
            let new = Box::pin(impatiently(endpoint.addr, new, may_turn)).await?;
            Ok(Lease::H1(key, new))
        }
        Protocol::Http2 => match conn.pool.h2(&key, endpoint) {
            H2Turn::Stream(stream) => {
                telemetry.count(Counter::PoolHitHttp);
                Ok(Lease::H2(stream))
            }
            turn => {
                let new = lease_new(conn, key, turn, endpoint, way);
                Box::pin(impatiently(endpoint.addr, new, may_turn)).await.map(Lease::H2)
            }
        },
    }
}

/// A stream of an HTTP/2 connection that is being made, by us or by somebody whom we wait for. Whoever makes it may lose
/// patience and drop this: then those who wait are told nothing but that the turn is theirs, since they may have nowhere
/// else to go.
async fn lease_new<D: Dial>(
    conn: &Conn<D>,
    key: Key,
    mut turn: H2Turn,
    endpoint: &Endpoint,
    way: &Way,
) -> Result<Stream, ProxyError> {
    let telemetry = &conn.http.telemetry;
    loop {
        match turn {
            H2Turn::Stream(stream) => {
                telemetry.count(Counter::PoolHitHttp);
                return Ok(stream);
            }
            H2Turn::Wait(dialing) => dialing.done().await?,
            H2Turn::Dial(turn) => {
                telemetry.count(Counter::PoolMissHttp);
                return match connect::http2(conn, endpoint, way.tls.as_deref(), conn.pool.life(&key)).await {
                    Ok(new) => Ok(conn.pool.add_h2(&conn.share, key, &new)),
                    Err(error) => {
                        turn.fail(&error);
                        Err(error)
                    }
                };
            }
        }
        turn = conn.pool.h2(&key, endpoint);
    }
}

/// An answer's head has come: hand it on, or try again for its status.
fn finish_try<D: Dial>(
    exchange: &mut Exchange<D>,
    plan: &Plan,
    response: Response<Incoming>,
    repeat: Repeat,
) -> Result<Response<Incoming>, Box<Failure>> {
    let now = Instant::now();
    let attempt = &exchange.attempt;
    let status = response.status();
    if let Some(in_flight) = &attempt.in_flight {
        let grpc_status = if exchange.grpc { respond::grpc_status(response.headers()) } else { None };
        let answer = Answer::of(status, exchange.grpc, grpc_status);
        in_flight.answered(answer, now.saturating_duration_since(attempt.started), now);
    }
    if retry_policy(exchange).is_none_or(|r| !r.codes.contains(&status.as_u16())) {
        return Ok(response);
    }
    let failure = Failure {
        outcome: Outcome::Status(status),
        error: error(Reason::UpstreamReset, "retried for its status"),
        code: Some(status.as_u16()),
        again: remembered(exchange),
    };
    match charged(exchange, plan, &failure, repeat, &[]) {
        Decision::Retry { .. } => Err(failure.into()),
        Decision::Stop => Ok(response),
    }
}

/// What a failed send means.
fn broken<D: Dial>(
    exchange: &mut Exchange<D>,
    mut failed: TrySendError<Request<RequestBody>>,
    kept: bool,
) -> Failure {
    let unsent = failed.take_message().map(Request::into_parts);
    let cause = failed.error();
    let reason = if let Some(reason) = exchange.upload_failed() {
        reason
    } else if cause.is_parse() {
        Reason::UpstreamProtocol
    } else {
        Reason::UpstreamReset
    };
    let outcome = if unsent.is_some() || refused(cause) {
        // Not a byte of it was sent, or the peer says that it did not look at it.
        if let Some(lease) = &exchange.attempt.lease {
            lease.refused(unsent.is_some());
        }
        Outcome::Refused
    } else if kept && !cause.is_parse() {
        Outcome::Stale
    } else {
        Outcome::Reset
    };
    let error = error(reason, describe(cause));
    Failure { outcome, error, code: None, again: unsent.or_else(|| remembered(exchange)) }
}

/// Whether an HTTP/2 peer says that it did not process the request (RFC 9113 §8.7).
fn refused(error: &hyper::Error) -> bool {
    let Some(h2) = error.source().and_then(|e| e.downcast_ref::<h2::Error>()) else { return false };
    h2.reason() == Some(h2::Reason::REFUSED_STREAM)
        || (h2.is_go_away() && h2.is_remote() && h2.reason() == Some(h2::Reason::NO_ERROR))
}

fn describe(error: &hyper::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// Hands the upstream's answer on.
fn answer<D: Dial>(
    mut exchange: Box<Exchange<D>>,
    response: Response<Incoming>,
) -> Response<ResponseBody<D>> {
    let (mut head, body) = response.into_parts();
    if let Some(upload) = &exchange.upload {
        upload.forget();
    }
    exchange.spare = None;
    if head.status == StatusCode::SWITCHING_PROTOCOLS
        && (exchange.attempt.handoff.is_none() || filters::upgrades_to_http(&head.headers))
    {
        let error = error(Reason::UpstreamProtocol, "101 to what was not asked for");
        return respond::failure(exchange, &error);
    }
    exchange.code = head.status.as_u16();
    exchange.grpc_status = respond::grpc_status(&head.headers);
    if head.version == Version::HTTP_2 && !exchange.is_stream {
        message::keep_tokens(&mut head.headers);
    }
    head.version = Version::HTTP_11;
    filters::answer(head.status, &mut head.headers);
    filters::after(&exchange, &mut head.headers);
    let handoff = exchange.attempt.handoff.take();
    let (StatusCode::SWITCHING_PROTOCOLS, Some(upstream)) = (head.status, handoff) else {
        return Response::from_parts(head, ResponseBody::upstream(body, exchange));
    };
    // The timeouts are for requests; what follows is a connection.
    exchange.deadline = None;
    match exchange.tunnel.take() {
        Some(client) => upgrade::accept_connect(client, Upgraded { upstream, exchange }, &mut head),
        None => {
            let conn = Rc::clone(&exchange.conn);
            *conn.upgraded.borrow_mut() = Some(Upgraded { upstream, exchange });
        }
    }
    Response::from_parts(head, ResponseBody::empty())
}
