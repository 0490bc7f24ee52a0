//! What becomes of a request: decided at once from its head and the Config of this moment, before anything is awaited.

use super::{
    backend_tls::BackendTlsClient,
    body::TrailerRules,
    conn::{Conn, Entrance},
    connect::Protocol,
    exchange::Exchange,
    filters::{self, Before},
    respond::{REASON_HEADER, error},
    route::{self, Found},
};
use crate::{
    dial::Dial,
    error::{ProxyError, Reason},
};
use http::{HeaderValue, Method, Response, StatusCode, Version, request::Parts};
use std::{rc::Rc, sync::Arc};
use weft_core::{
    config::{
        Action, AppProtocol, Backend, Config, FailReason, FilterChain, HttpBackend, HttpRule, MirrorTarget,
    },
    filter,
    message::{self, Refusal},
    model::{RouteKind, Timeouts},
    timing::Deadlines,
};

/// How to forward.
pub(crate) struct Plan {
    pub(crate) backend: Arc<Backend>,
    pub(crate) way: Way,
    /// The client asks for another protocol.
    pub(crate) upgrade: bool,
    pub(crate) mirrors: Vec<Arc<MirrorTarget>>,
    /// What a rule and its backendRef do with headers, where a rule was found: trailers must not undo it.
    pub(crate) trailers: Option<TrailerRules>,
    pub(crate) deadlines: Deadlines,
}

/// What is spoken to a backend.
#[derive(Clone)]
pub(crate) struct Way {
    pub(crate) protocol: Protocol,
    pub(crate) tls: Option<Rc<BackendTlsClient>>,
}

/// What to do.
pub(crate) enum Step {
    Forward(Plan),
    /// A filter answers.
    Answer(Response<()>),
}

/// Decides, and brings the head into the shape that the backend gets.
pub(crate) fn plan<D: Dial>(exchange: &mut Exchange<D>, parts: &mut Parts) -> Result<Step, ProxyError> {
    let conn = Rc::clone(&exchange.conn);
    let at_gateway = matches!(conn.entrance, Entrance::Gateway(_));
    if parts.method == Method::CONNECT {
        return Err(error(Reason::BadRequest, "CONNECT"));
    }
    message::check(parts).map_err(|why| refused(&conn, why))?;
    if at_gateway {
        message::check_authority(parts).map_err(|why| refused(&conn, why))?;
    }
    let config = conn.http.shared.config.load();
    let client = &conn.source.workload.pod.namespace;
    let (place, frontend) =
        route::find(&config, &conn.entrance, client, parts).map_err(|reason| error(reason, ""))?;
    exchange.frontend = frontend.cloned();
    if place.reads() && !at_gateway {
        message::check_authority(parts).map_err(|why| refused(&conn, why))?;
    } else if !route::well_formed(parts) {
        return Err(refused(&conn, Refusal::Authority));
    }
    let upgrade = exchange.tunnel.is_some() || filters::wants_upgrade(parts);
    filters::normalize(parts, upgrade);
    let (found, path) = place.select(parts)?;
    if let Some(path) = path
        && !route::replace_path(parts, path)
    {
        return Ok(Step::Answer(uri_too_long(exchange, Reason::BadRequest)));
    }
    filters::forwarded(&conn, parts);
    let (mut mirrors, mut trailers) = (Vec::new(), None);
    let (backend, timeouts) = match found {
        Found::Service(backend) => (Arc::clone(backend), Timeouts::default()),
        Found::Opaque(rule) => {
            let target = rule.backends.as_ref().map(|b| b.pick(conn.http.draw()));
            let target = target.ok_or(FailReason::NoBackend).and_then(|t| t.as_ref().map_err(|e| *e));
            (Arc::clone(target.map_err(invalid)?), Timeouts::default())
        }
        Found::Rule(rule, prefix) => {
            exchange.rule = Some(Arc::clone(rule));
            match apply(rule, prefix, exchange, parts)? {
                Applied::Answer(response) => return Ok(Step::Answer(response)),
                Applied::To(target) => {
                    mirrors = copies(&conn, rule, target);
                    let of = |filters: &FilterChain| filters.request_headers.clone();
                    trailers = Some(TrailerRules([of(&rule.filters), of(&target.filters)]));
                    (Arc::clone(target.target.as_ref().map_err(|e| invalid(*e))?), rule.timeouts)
                }
            }
        }
    };
    exchange.backend = Some(Arc::clone(&backend));
    let kind = exchange.rule.as_ref().map(|r| r.id.kind);
    let protocol = if upgrade { Protocol::Http1 } else { speak(&backend, kind, exchange, parts.version) };
    let way = Way { protocol, tls: tls(&config, &conn, &backend)? };
    let deadlines = Deadlines::start(&timeouts, exchange.started);
    Ok(Step::Forward(Plan { backend, way, upgrade, mirrors, trailers, deadlines }))
}

enum Applied<'r> {
    Answer(Response<()>),
    To(&'r HttpBackend),
}

/// Filters of the rule, then the backend by weight, then its filters.
fn apply<'r, D: Dial>(
    rule: &'r HttpRule,
    prefix: Option<&str>,
    exchange: &mut Exchange<D>,
    parts: &mut Parts,
) -> Result<Applied<'r>, ProxyError> {
    if let Action::Fail(reason) = rule.action {
        return Err(invalid(reason));
    }
    match filters::before(rule, prefix, exchange, parts) {
        Before::Forward => {}
        Before::Answer(response) => return Ok(Applied::Answer(response)),
        Before::Fail(reason) => return Ok(too_long(exchange, reason)),
    }
    let Action::Forward(backends) = &rule.action else {
        return Err(invalid(FailReason::NoBackend));
    };
    let target = backends.pick(exchange.conn.http.draw());
    if let Before::Fail(reason) = filters::edit(&target.filters, prefix, parts) {
        return Ok(too_long(exchange, reason));
    }
    exchange.backend_response.clone_from(&target.filters.response_headers);
    Ok(Applied::To(target))
}

/// What makes a message ambiguous makes its connection so: nobody knows where the next one begins.
fn refused<D: Dial>(conn: &Conn<D>, why: Refusal) -> ProxyError {
    if matches!(why, Refusal::Length | Refusal::Coding) {
        conn.closing.set(true);
    }
    let reason = if why == Refusal::Coding { Reason::UnknownCoding } else { Reason::BadRequest };
    error(reason, why.to_string())
}

fn too_long<'r, D: Dial>(exchange: &mut Exchange<D>, reason: Reason) -> Applied<'r> {
    Applied::Answer(uri_too_long(exchange, reason))
}

/// The rewritten target is no valid URI any more: the client's was too long already.
fn uri_too_long<D: Dial>(exchange: &mut Exchange<D>, reason: Reason) -> Response<()> {
    exchange.reason = Some(reason);
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::URI_TOO_LONG;
    response.headers_mut().insert(REASON_HEADER, HeaderValue::from_static(reason.as_str()));
    response
}

fn invalid(reason: FailReason) -> ProxyError {
    error(Reason::Invalid(reason), "")
}

/// The mirrors that this request goes to.
fn copies<D: Dial>(conn: &Conn<D>, rule: &HttpRule, target: &HttpBackend) -> Vec<Arc<MirrorTarget>> {
    rule.filters
        .mirrors
        .iter()
        .chain(&target.filters.mirrors)
        .filter(|m| filter::mirror::chosen(m.numerator, m.denominator, conn.http.draw()))
        .cloned()
        .collect()
}

/// HTTP/1.1 or HTTP/2 to this backend.
///
/// gRPC needs HTTP/2 whatever the port declares, and a GRPCRoute implies it. A port that declares nothing is spoken to
/// as the client's application chose to, in the mesh: it knows its peer. At a Gateway a browser's HTTP/2 says nothing
/// about the backend, so it is HTTP/1.1.
fn speak<D: Dial>(
    backend: &Backend,
    kind: Option<RouteKind>,
    exchange: &Exchange<D>,
    version: Version,
) -> Protocol {
    let in_mesh = matches!(exchange.conn.entrance, Entrance::Mesh { .. });
    match backend.protocol {
        AppProtocol::H2c | AppProtocol::Grpc => Protocol::Http2,
        AppProtocol::WebSocket => Protocol::Http1,
        _ if exchange.grpc || kind == Some(RouteKind::Grpc) => Protocol::Http2,
        AppProtocol::Unknown if in_mesh && version == Version::HTTP_2 => Protocol::Http2,
        _ => Protocol::Http1,
    }
}

/// What is spoken to a mirror.
pub(crate) fn mirror_way<D: Dial>(
    exchange: &Exchange<D>,
    backend: &Backend,
    version: Version,
) -> Result<Way, ProxyError> {
    let conn = &exchange.conn;
    let kind = exchange.rule.as_ref().map(|r| r.id.kind);
    let config = conn.http.shared.config.load();
    Ok(Way { protocol: speak(backend, kind, exchange, version), tls: tls(&config, conn, backend)? })
}

fn tls<D: Dial>(
    config: &Config,
    conn: &Conn<D>,
    backend: &Backend,
) -> Result<Option<Rc<BackendTlsClient>>, ProxyError> {
    let Some(policy) = &backend.tls else { return Ok(None) };
    // GEP-3155: the Gateway's own certificate for its backends.
    let certificate = match &conn.entrance {
        Entrance::Gateway(entrance) => {
            config.gateways.get(&entrance.gateway).and_then(|g| g.backend_client_certificate.as_ref())
        }
        Entrance::Mesh { .. } => None,
    };
    let client = conn.http.backend_tls.get(policy, certificate);
    client.map(Some).map_err(|why| error(Reason::Invalid(FailReason::InvalidBackend), why))
}
