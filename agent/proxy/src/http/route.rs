//! From a request's head to the rule that serves it. Pure: a Config and a head in, a reference or a reason out.

use super::{
    conn::{Entrance, GatewayEntrance},
    respond::error,
};
use crate::error::{ProxyError, Reason};
use http::{Uri, Version, header, request::Parts, uri::PathAndQuery};
use std::{borrow::Cow, net::SocketAddr, sync::Arc};
use weft_core::{
    config::{
        Backend, Config, Frontend, HttpListener, HttpRule, L4Rule, MeshRoutes, PortConfig, TlsListener,
        Transport,
    },
    matching::{HostMap, RequestHead, RouteTable, host_of},
    message::{PathRules, normal_path},
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

/// What is asked of a request that nobody reads (RFC 9112 §3.2): exactly one `Host` in HTTP/1.1, at most one in 1.0, and it is text.
pub(crate) fn well_formed(parts: &Parts) -> bool {
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => parts.version != Version::HTTP_11,
        (Some(host), None) => host.to_str().is_ok(),
        (Some(_), Some(_)) => false,
    }
}

/// What a request's connection leads to, before anything but its authority is looked at.
pub(crate) enum Place<'c> {
    /// Rules, and what is done with paths before they are asked.
    Rules(&'c RouteTable<Arc<HttpRule>>, PathRules),
    /// No rule: see [`Found`].
    Plain(Found<'c>),
}

impl<'c> Place<'c> {
    /// Whether anybody reads the request, so that it must have one reading only.
    pub(crate) const fn reads(&self) -> bool {
        matches!(self, Self::Rules(..))
    }

    /// The rule that serves the request, and the path in the form in which it was matched, if that is not the form in
    /// which it came.
    pub(crate) fn select(self, parts: &Parts) -> Result<(Found<'c>, Option<String>), ProxyError> {
        let (table, rules) = match self {
            Self::Plain(found) => return Ok((found, None)),
            Self::Rules(table, rules) => (table, rules),
        };
        let path = if table.reads_paths() || !rules.is_default() {
            normal_path(parts.uri.path(), &rules).map_err(|e| error(Reason::BadRequest, e.to_string()))?
        } else {
            Cow::Borrowed(parts.uri.path())
        };
        let authority = authority(parts);
        let host = authority.map(host_of).filter(|h| !h.is_empty());
        let head = RequestHead {
            host: host.as_deref(),
            authority,
            method: &parts.method,
            path: &path,
            query: parts.uri.query(),
            headers: &parts.headers,
        };
        let selected = table.select(&head).ok_or_else(|| error(Reason::NoRoute, ""))?;
        let found = Found::Rule(&selected.entry.policy, selected.prefix());
        Ok((found, if let Cow::Owned(path) = path { Some(path) } else { None }))
    }
}

/// Forwards the path that was matched, and no other. `false`: with it, the target is too long.
#[must_use]
pub(crate) fn replace_path(parts: &mut Parts, mut path: String) -> bool {
    if let Some(query) = parts.uri.query() {
        path.push('?');
        path.push_str(query);
    }
    let mut uri = parts.uri.clone().into_parts();
    let Ok(target) = PathAndQuery::try_from(path) else { return false };
    uri.path_and_query = Some(target);
    Uri::from_parts(uri).map(|uri| parts.uri = uri).is_ok()
}

/// Finds whose rules are asked. `client` is the namespace of the client's pod.
pub(crate) fn find<'c>(
    config: &'c Config,
    entrance: &Entrance,
    client: &str,
    parts: &Parts,
) -> Result<(Place<'c>, Option<&'c Arc<Frontend>>), Reason> {
    match entrance {
        Entrance::Mesh { frontend } => mesh(config, *frontend, client),
        Entrance::Gateway(gateway) => Ok((self::gateway(config, gateway, parts)?, None)),
    }
}

fn mesh<'c>(
    config: &'c Config,
    frontend: SocketAddr,
    client: &str,
) -> Result<(Place<'c>, Option<&'c Arc<Frontend>>), Reason> {
    // The Service was deleted while the connection stayed: nothing is behind its address any more.
    let frontend = config.frontends.get(&frontend).ok_or(Reason::NoEndpoint)?;
    let place = match frontend.routes_for(client) {
        None | Some(MeshRoutes::Tls(_)) => Place::Plain(Found::Service(&frontend.default)),
        Some(MeshRoutes::Tcp(rule)) => Place::Plain(Found::Opaque(rule)),
        Some(MeshRoutes::Http(table)) => Place::Rules(table, PathRules::default()),
    };
    Ok((place, Some(frontend)))
}

fn gateway<'c>(config: &'c Config, entrance: &GatewayEntrance, parts: &Parts) -> Result<Place<'c>, Reason> {
    let host = authority(parts).map(host_of).filter(|h| !h.is_empty());
    let host = host.as_deref();
    let gateway = config.gateways.get(&entrance.gateway).ok_or(Reason::NoRoute)?;
    let listener = match (gateway.ports.get(&(entrance.port, Transport::Tcp)), &entrance.tls) {
        (Some(PortConfig::Http(hosts)), None) => hosts.get(host).ok_or(Reason::NoRoute)?,
        (Some(PortConfig::Tls(hosts)), Some(tls)) => https(hosts, tls.sni.as_deref(), (host, parts.version))?,
        // The port has changed its protocol while the connection stayed.
        _ => return Err(Reason::NoRoute),
    };
    Ok(Place::Rules(&listener.table, gateway.parameters.paths))
}

/// The listener of a request inside TLS: the one that the handshake chose. A host of another listener is never served
/// over this connection, since its certificate and its demands on clients were not part of the handshake (GEP-3567).
fn https<'c>(
    hosts: &'c HostMap<Arc<TlsListener>>,
    sni: Option<&str>,
    (host, version): (Option<&str>, Version),
) -> Result<&'c Arc<HttpListener>, Reason> {
    let of = |host: Option<&str>| match hosts.get(host).map(|l| &**l) {
        Some(TlsListener::Https { http, .. }) => Some(http),
        _ => None,
    };
    let owner = of(host);
    match (of(sni), owner) {
        (Some(by_sni), Some(owner)) if Arc::ptr_eq(by_sni, owner) => Ok(owner),
        // Only an HTTP/2 client reuses connections for other hosts, and knows what to do about 421.
        (_, Some(_)) if version == Version::HTTP_2 => Err(Reason::Misdirected),
        _ => Err(Reason::NoRoute),
    }
}
