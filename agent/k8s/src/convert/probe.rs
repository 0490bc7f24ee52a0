//! What a pod's spec lets its kubelet ask over the network.
//!
//! Works as the kubelet does (`pkg/kubelet/prober`, `pkg/probe/http`, `pkg/kubelet/lifecycle`): what it would not ask of
//! this pod is not declared.

use k8s_openapi::{
    api::core::v1::{Container, HTTPGetAction, HTTPHeader, LifecycleHandler, PodSpec, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use std::{collections::HashSet, net::IpAddr};
use weft_core::model::{DeclaredProbe, ProbeAsk, Str};

/// Every question that the probes and lifecycle handlers of a pod with these addresses ask, each once. Init containers
/// too: sidecars (`restartPolicy: Always`) have all of them.
pub(super) fn declared(spec: &PodSpec, ips: &[IpAddr]) -> Vec<DeclaredProbe> {
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let mut seen = HashSet::new();
    let all = containers.flat_map(|container| of_container(container, ips));
    all.filter(|probe| seen.insert(probe.clone())).collect()
}

fn of_container(container: &Container, ips: &[IpAddr]) -> Vec<DeclaredProbe> {
    let probes = [&container.readiness_probe, &container.liveness_probe, &container.startup_probe];
    let mut found: Vec<_> =
        probes.into_iter().flatten().filter_map(|probe| of_probe(probe, container, ips)).collect();
    let lifecycle = container.lifecycle.as_ref();
    let handlers = lifecycle.into_iter().flat_map(|l| [&l.post_start, &l.pre_stop]).flatten();
    found.extend(handlers.flat_map(|handler| of_handler(handler, container, ips)));
    found
}

fn of_probe(probe: &Probe, container: &Container, ips: &[IpAddr]) -> Option<DeclaredProbe> {
    if let Some(get) = &probe.http_get {
        let here = is_here(get.host.as_deref(), ips);
        let port = port(&get.port, container).filter(|_| here)?;
        return Some(DeclaredProbe { port, ask: if is_https(get) { https(get) } else { http(get) } });
    }
    if let Some(tcp) = &probe.tcp_socket {
        let here = is_here(tcp.host.as_deref(), ips);
        return Some(DeclaredProbe {
            port: port(&tcp.port, container).filter(|_| here)?,
            ask: ProbeAsk::Tcp,
        });
    }
    let grpc = probe.grpc.as_ref()?;
    let service = grpc.service.as_deref().unwrap_or_default().into();
    Some(DeclaredProbe { port: number(grpc.port)?, ask: ProbeAsk::Grpc { service } })
}

/// A handler with `scheme: HTTPS` whose server answers in clear is asked again in clear by kubelets, so it declares both.
/// `tcpSocket` is deprecated there and never asked.
fn of_handler(handler: &LifecycleHandler, container: &Container, ips: &[IpAddr]) -> Vec<DeclaredProbe> {
    let get = handler.http_get.as_ref().filter(|get| is_here(get.host.as_deref(), ips));
    let Some((get, port)) = get.and_then(|get| Some((get, port(&get.port, container)?))) else {
        return Vec::new();
    };
    let encrypted = is_https(get).then(|| https(get));
    let asks = [Some(http(get)), encrypted].into_iter().flatten();
    asks.map(|ask| DeclaredProbe { port, ask }).collect()
}

/// Whether it asks this pod: `host` aims a probe at anybody, the node's own loopback too.
fn is_here(host: Option<&str>, ips: &[IpAddr]) -> bool {
    let host = host.filter(|host| !host.is_empty());
    host.is_none_or(|host| host.parse().is_ok_and(|ip: IpAddr| ips.contains(&ip)))
}

fn is_https(get: &HTTPGetAction) -> bool {
    get.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"))
}

fn http(get: &HTTPGetAction) -> ProbeAsk {
    let (target, headers) = request(get);
    ProbeAsk::Http { target, headers }
}

fn https(get: &HTTPGetAction) -> ProbeAsk {
    let (target, headers) = request(get);
    ProbeAsk::Https { target, headers }
}

fn request(get: &HTTPGetAction) -> (Str, Vec<(Str, Str)>) {
    let header = |h: &HTTPHeader| (Str::from(h.name.as_str()), Str::from(h.value.as_str()));
    let headers = get.http_headers.iter().flatten().map(header).collect();
    (target(get.path.as_deref().unwrap_or_default()).into(), headers)
}

fn number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port > 0)
}

/// A name is one of the container's own ports, or a number that was written as a string.
fn port(port: &IntOrString, container: &Container) -> Option<u16> {
    match port {
        IntOrString::Int(port) => number(*port),
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name));
            named.map_or_else(|| name.parse().ok(), |p| Some(p.container_port)).and_then(number)
        }
    }
}

/// The request target that a kubelet makes of a declared path by Go's `url.Parse` and `RequestURI`: the fragment goes, the
/// query stays as written, and a path with bytes that no path may have is decoded and written anew.
fn target(path: &str) -> String {
    let whole = path.split_once('#').map_or(path, |(before, _)| before);
    let (before, query) = whole.split_once('?').map_or((whole, None), |(p, q)| (p, Some(q)));
    // What Go cannot parse is a path as it stands, percent signs and question marks too.
    let (mut written, query) = match decode(before) {
        Some(_) if before.bytes().all(is_path_byte) => (before.to_owned(), query),
        Some(decoded) => (encode(&decoded), query),
        None => (encode(path.as_bytes()), None),
    };
    if !written.starts_with('/') {
        written.insert(0, '/');
    }
    if let Some(query) = query {
        written.push('?');
        written.push_str(query);
    }
    written
}

/// What Go leaves alone in a path that came encoded (`validEncoded`).
fn is_path_byte(byte: u8) -> bool {
    is_plain(byte) || b"!'()*[]%".contains(&byte)
}

/// What Go does not escape in a path that it encodes itself (`shouldEscape`).
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&byte)
}

fn encode(bytes: &[u8]) -> String {
    let mut out = String::new();
    for &byte in bytes {
        if is_plain(byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// `None` when a percent sign is not followed by two hexadecimal digits.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
            let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
            out.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            out.push(byte);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_asked_as_go_writes_it() {
        for (path, want) in [
            ("", "/"),
            ("/", "/"),
            ("/healthz", "/healthz"),
            ("healthz", "/healthz"),
            ("/ready?verbose=1&x=a%20b", "/ready?verbose=1&x=a%20b"),
            ("?only=query", "/?only=query"),
            ("/a?", "/a?"),
            ("/a#fragment", "/a"),
            ("/a b", "/a%20b"),
            ("/a%2Fb", "/a%2Fb"),
            ("/a b%2Fc", "/a%20b/c"),
            ("/(x)*!", "/(x)*!"),
            ("/\u{e9}", "/%C3%A9"),
            ("/100%?x", "/100%25%3Fx"),
        ] {
            assert_eq!(target(path), want, "{path:?}");
        }
    }
}
