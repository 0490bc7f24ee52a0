//! From a request's head to the rule that serves it. Pure: a Config and a head in, a reference or a reason out.

use super::conn::{Entrance, GatewayEntrance};
use crate::error::Reason;
use http::{HeaderMap, Uri, Version, header, request::Parts, uri::PathAndQuery};
use std::{borrow::Cow, net::SocketAddr, sync::Arc};
use weft_core::{
    config::{
        Backend, Config, Frontend, HttpListener, HttpRule, L4Rule, MeshRoutes, PortConfig, TlsListener,
        Transport,
    },
    matching::{HostMap, RequestHead, RouteTable, host_of, normal_path},
};

/// What serves a request.
pub(crate) enum Found<'c> {
    /// A rule of an HTTPRoute or GRPCRoute, and the path prefix that matched.
    Rule(&'c Arc<HttpRule>, Option<&'c str>),
    /// A Service without routes.
    Service(&'c Arc<Backend>),
    /// A Service with a TCPRoute: its backends, per request because HTTP is spoken.
    Opaque(&'c Arc<L4Rule>),
}

/// `Host` as the client sent it: `:authority` or an absolute target before the header (RFC 9112 §3.2.2, RFC 9113
/// §8.3.1).
pub(crate) fn authority(parts: &Parts) -> Option<&str> {
    match parts.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => parts.headers.get(header::HOST).and_then(|h| h.to_str().ok()),
    }
}

/// RFC 9112 §3.2: exactly one `Host` in HTTP/1.1, at most one in 1.0, and it is text.
pub(crate) fn well_formed(parts: &Parts) -> bool {
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => parts.version != Version::HTTP_11,
        (Some(host), None) => host.to_str().is_ok(),
        (Some(_), Some(_)) => false,
    }
}

/// Resolves dot segments, so that what is matched is what the backend sees.
pub(crate) fn resolve_dots(parts: &mut Parts) {
    let Cow::Owned(mut path) = normal_path(parts.uri.path()) else { return };
    if let Some(query) = parts.uri.query() {
        path.push('?');
        path.push_str(query);
    }
    let mut uri = parts.uri.clone().into_parts();
    uri.path_and_query = PathAndQuery::try_from(path).ok();
    if let Ok(uri) = Uri::from_parts(uri) {
        parts.uri = uri;
    }
}

/// Finds what serves the request. `client` is the namespace of the client's pod.
pub(crate) fn find<'c>(
    config: &'c Config,
    entrance: &Entrance,
    client: &str,
    parts: &Parts,
) -> Result<(Found<'c>, Option<&'c Arc<Frontend>>), Reason> {
    let host = authority(parts).map(host_of).filter(|h| !h.is_empty());
    let head = Request { host: host.as_deref(), uri: &parts.uri, headers: &parts.headers, parts };
    match entrance {
        Entrance::Mesh { frontend } => mesh(config, *frontend, client, &head),
        Entrance::Gateway(gateway) => Ok((self::gateway(config, gateway, &head)?, None)),
    }
}

struct Request<'a> {
    host: Option<&'a str>,
    uri: &'a Uri,
    headers: &'a HeaderMap,
    parts: &'a Parts,
}

impl Request<'_> {
    fn select<'c>(&self, table: &'c RouteTable<Arc<HttpRule>>) -> Result<Found<'c>, Reason> {
        let head = RequestHead {
            host: self.host,
            method: &self.parts.method,
            path: self.uri.path(),
            query: self.uri.query(),
            headers: self.headers,
        };
        let selected = table.select(&head).ok_or(Reason::NoRoute)?;
        Ok(Found::Rule(&selected.entry.policy, selected.prefix()))
    }
}

fn mesh<'c>(
    config: &'c Config,
    frontend: SocketAddr,
    client: &str,
    request: &Request<'_>,
) -> Result<(Found<'c>, Option<&'c Arc<Frontend>>), Reason> {
    // The Service was deleted while the connection stayed: nothing is behind its address any more.
    let frontend = config.frontends.get(&frontend).ok_or(Reason::NoEndpoint)?;
    let found = match frontend.routes_for(client) {
        None | Some(MeshRoutes::Tls(_)) => Found::Service(&frontend.default),
        Some(MeshRoutes::Tcp(rule)) => Found::Opaque(rule),
        Some(MeshRoutes::Http(table)) => request.select(table)?,
    };
    Ok((found, Some(frontend)))
}

fn gateway<'c>(
    config: &'c Config,
    entrance: &GatewayEntrance,
    request: &Request<'_>,
) -> Result<Found<'c>, Reason> {
    let gateway = config.gateways.get(&entrance.gateway).ok_or(Reason::NoRoute)?;
    let listener = match (gateway.ports.get(&(entrance.port, Transport::Tcp)), &entrance.tls) {
        (Some(PortConfig::Http(hosts)), None) => hosts.get(request.host).ok_or(Reason::NoRoute)?,
        (Some(PortConfig::Tls(hosts)), Some(tls)) => https(hosts, tls.sni.as_deref(), request)?,
        // The port has changed its protocol while the connection stayed.
        _ => return Err(Reason::NoRoute),
    };
    request.select(&listener.table)
}

/// The listener of a request inside TLS: the one that the handshake chose. A host of another listener is never served
/// over this connection, since its certificate and its demands on clients were not part of the handshake (GEP-3567).
fn https<'c>(
    hosts: &'c HostMap<Arc<TlsListener>>,
    sni: Option<&str>,
    request: &Request<'_>,
) -> Result<&'c Arc<HttpListener>, Reason> {
    let of = |host: Option<&str>| match hosts.get(host).map(|l| &**l) {
        Some(TlsListener::Https { http, .. }) => Some(http),
        _ => None,
    };
    let owner = of(request.host);
    match (of(sni), owner) {
        (Some(by_sni), Some(owner)) if Arc::ptr_eq(by_sni, owner) => Ok(owner),
        // Only an HTTP/2 client reuses connections for other hosts, and knows what to do about 421.
        (_, Some(_)) if request.parts.version == Version::HTTP_2 => Err(Reason::Misdirected),
        _ => Err(Reason::NoRoute),
    }
}
