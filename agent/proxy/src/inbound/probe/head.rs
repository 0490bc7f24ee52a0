//! What the first bytes of a probe ask, and whether that is declared. Pure.

use super::Asked;
use crate::l4::detect::{Detected, detect};
use std::net::SocketAddr;
use weft_core::model::{ProbeAsk, Str};

/// The head of a probe's request: no more than this, in bytes.
pub(super) const HEAD_MAX: usize = 16 * 1024;

/// Names of a kubelet's clients, before its version.
const CLIENTS: [&str; 2] = ["kube-probe/", LIFECYCLE_CLIENT];
const LIFECYCLE_CLIENT: &str = "kube-lifecycle/";

/// How an `httpGet` is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    /// In clear.
    Http,
    /// Inside TLS.
    Https,
}

impl Scheme {
    /// A question of this scheme.
    pub(super) fn ask(self, target: &str, headers: &[(Str, Str)]) -> ProbeAsk {
        let (target, headers) = (target.into(), headers.to_vec());
        match self {
            Self::Http => ProbeAsk::Http { target, headers },
            Self::Https => ProbeAsk::Https { target, headers },
        }
    }

    /// Target and headers of a question, if it is of this scheme.
    fn of(self, ask: &ProbeAsk) -> Option<(&str, &[(Str, Str)])> {
        match (self, ask) {
            (Self::Http, ProbeAsk::Http { target, headers })
            | (Self::Https, ProbeAsk::Https { target, headers }) => Some((&**target, &headers[..])),
            _ => None,
        }
    }

    /// The port that URLs leave out.
    pub(super) const fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// A request that is declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Declared {
    /// By which it came, and by which it is declared.
    pub(super) scheme: Scheme,
    /// As the application is to see it.
    pub(super) forward: Vec<u8>,
    /// The same for an application that turns out to speak no TLS, where kubelets would ask it again in clear.
    pub(super) in_clear: Option<Vec<u8>>,
    /// Its target.
    pub(super) target: String,
    /// Headers that the declaration has, for a request that the answer may lead to.
    pub(super) headers: Vec<(Str, Str)>,
    /// How many redirects it is away from the declaration.
    pub(super) depth: u8,
}

/// What the first bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// More of them must come.
    NeedMore,
    /// A TLS handshake, to a port of an HTTPS probe.
    Tls,
    /// HTTP/2, to a port of a gRPC probe.
    Grpc,
    /// A whole request that is declared.
    Get(Declared),
    /// Nothing that is declared: why.
    Refuse(String),
}

/// Decides over what has been read from a kubelet that is connected to `to`, in clear or inside TLS. More bytes
/// never change an answer other than
/// [`Verdict::NeedMore`], but for a request with something behind it, which is refused.
pub(super) fn judge(bytes: &[u8], scheme: Scheme, to: SocketAddr, asks: &[Asked]) -> Verdict {
    let is_health = |asked: &Asked| matches!(asked.ask, ProbeAsk::Grpc { .. });
    let gets = |scheme: Scheme| asks.iter().any(|asked| scheme.of(&asked.ask).is_some());
    let undeclared =
        |what: &str| Verdict::Refuse(format!("{what} to a port for which no such probe is declared"));
    if bytes.is_empty() {
        return Verdict::NeedMore;
    }
    match detect(bytes) {
        // Where HTTP/1.1 is all that was offered.
        Detected::Tls | Detected::Http2 if scheme == Scheme::Https => {
            Verdict::Refuse("something other than HTTP/1.1 inside TLS".to_owned())
        }
        Detected::Tls if gets(Scheme::Https) => Verdict::Tls,
        Detected::Tls => undeclared("TLS"),
        Detected::Http2 if asks.iter().any(is_health) => Verdict::Grpc,
        Detected::Http2 => undeclared("HTTP/2"),
        Detected::Opaque => Verdict::Refuse("neither HTTP nor TLS".to_owned()),
        Detected::Http1 | Detected::NeedMore if bytes.len() > HEAD_MAX => {
            Verdict::Refuse("a request head that is too long".to_owned())
        }
        Detected::NeedMore => Verdict::NeedMore,
        Detected::Http1 if !gets(scheme) => undeclared("plain HTTP"),
        Detected::Http1 => request(bytes, scheme, to, asks),
    }
}

fn request(bytes: &[u8], scheme: Scheme, to: SocketAddr, asks: &[Asked]) -> Verdict {
    let refuse = |why: String| Verdict::Refuse(why);
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Verdict::NeedMore };
    if bytes.len() > end + 4 {
        return refuse("something behind the request's head".to_owned());
    }
    let head = match parse(&bytes[..end]) {
        Ok(head) => head,
        Err(why) => return refuse(why.to_owned()),
    };
    let mut why = format!("undeclared path {}", shown(head.target));
    for Asked { ask, depth } in asks {
        let Some((target, headers)) = scheme.of(ask).filter(|(target, _)| *target == head.target) else {
            continue;
        };
        match undeclared_header(&head, scheme, to, headers, *depth > 0) {
            Some(name) => why = format!("undeclared header {}", shown(name)),
            None => {
                return Verdict::Get(Declared {
                    scheme,
                    forward: forwarded(&head, headers, &[]),
                    in_clear: falls_back(&head, scheme, headers, asks)
                        .then(|| forwarded(&head, headers, &["authorization"])),
                    target: target.to_owned(),
                    headers: headers.to_vec(),
                    depth: *depth,
                });
            }
        }
    }
    refuse(why)
}

/// Whether a kubelet would ask again in clear when the answer is no TLS: it does so for lifecycle handlers, without an
/// Authorization, and the spec declares it (as `ProbeAsk::Http`, too).
fn falls_back(head: &Head<'_>, scheme: Scheme, headers: &[(Str, Str)], asks: &[Asked]) -> bool {
    let is_handlers = |(name, value): &(&str, &str)| {
        name.eq_ignore_ascii_case("user-agent") && value.starts_with(LIFECYCLE_CLIENT)
    };
    let in_clear = Scheme::Http.ask(head.target, headers);
    scheme == Scheme::Https
        && head.headers.iter().any(is_handlers)
        && asks.iter().any(|asked| asked.ask == in_clear)
}

/// Words of a stranger for a log line.
fn shown(text: &str) -> &str {
    let mut end = text.len().min(200);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A request head.
struct Head<'a> {
    target: &'a str,
    headers: Vec<(&'a str, &'a str)>,
}

/// Reads a GET request as strictly as can be (RFC 9112): two readers of one head must not see different requests in it.
/// `head` ends before the empty line.
fn parse(head: &[u8]) -> Result<Head<'_>, &'static str> {
    let text = std::str::from_utf8(head).map_err(|_| "a request head that is not text")?;
    let mut lines = text.split("\r\n");
    let line = lines.next().unwrap_or_default();
    let words: Vec<&str> = line.split(' ').collect();
    let [method, target, version] = words[..] else { return Err("a malformed request line") };
    if method != "GET" {
        return Err("a method that is not GET");
    }
    if version != "HTTP/1.1" || !target.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("a malformed request line");
    }
    // Whole URLs, `*` and authorities are for proxies and servers as such.
    if !target.starts_with('/') {
        return Err("a request target that is no path");
    }
    let mut headers = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(':').ok_or("a malformed header")?;
        let value = value.trim_matches([' ', '\t']);
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        // A line that goes on with the one before begins with a space, and so has no name.
        if name.is_empty()
            || !name.bytes().all(token)
            || value.bytes().any(|b| b < 0x20 && b != b'\t' || b == 0x7f)
        {
            return Err("a malformed header");
        }
        headers.push((name, value));
    }
    let has = |name: &str| headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
    if ["transfer-encoding", "content-length", "trailer", "expect"].into_iter().any(has) {
        return Err("a request with a body");
    }
    if has("upgrade") || has("http2-settings") {
        return Err("an upgrade");
    }
    if headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("host")).count() != 1 {
        return Err("not exactly one Host");
    }
    Ok(Head { target, headers })
}

/// The first header that neither the declaration has nor a kubelet's client adds. Other tenants' probes may be aimed here
/// with headers of their own, and some servers let a header name another path or method.
fn undeclared_header<'a>(
    head: &Head<'a>,
    scheme: Scheme,
    to: SocketAddr,
    declared: &[(Str, Str)],
    redirected: bool,
) -> Option<&'a str> {
    let allowed = |name: &str, value: &str| {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        declared.iter().any(|(n, v)| is(n) && v.trim_matches([' ', '\t']) == value)
            || is_kubelets(name, value)
            || is("host") && is_own_host(value, scheme, to)
            || is("connection") && value.eq_ignore_ascii_case("close")
            // Go adds it to a request that a redirect led to. It is not passed on.
            || redirected && is("referer")
    };
    head.headers.iter().find(|(name, value)| !allowed(name, value)).map(|(name, _)| *name)
}

/// Whether it is a header that a kubelet writes by itself. Its value, too: a probe may name these as well, and what another
/// tenant has written must not come to the application.
fn is_kubelets(name: &str, value: &str) -> bool {
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    let version =
        |text: &str| text.len() <= 16 && text.bytes().all(|b| b.is_ascii_digit() || b".+".contains(&b));
    is("accept") && value == "*/*"
        || is("accept-encoding") && value == "gzip"
        || is("user-agent") && CLIENTS.iter().any(|client| value.strip_prefix(client).is_some_and(version))
}

/// The pod's own address, with the port unless it is the scheme's.
fn is_own_host(host: &str, scheme: Scheme, to: SocketAddr) -> bool {
    let with = |port: u16| host.parse().is_ok_and(|host: SocketAddr| host == SocketAddr::new(to.ip(), port));
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    with(to.port()) || to.port() == scheme.port() && bare.parse() == Ok(to.ip())
}

/// The same head, but that the application is told to end the connection after its answer: lifecycle handlers' client
/// would keep it, and only one request of a connection is let in. And without a Referer that is not declared: whoever aimed
/// the probe may have chosen it. And without `but`, in lower case.
fn forwarded(parsed: &Head<'_>, declared: &[(Str, Str)], but: &[&str]) -> Vec<u8> {
    let mut out = format!("GET {} HTTP/1.1\r\n", parsed.target);
    let is_declared = |name: &str| declared.iter().any(|(n, _)| name.eq_ignore_ascii_case(n));
    for (name, value) in &parsed.headers {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        if !is("connection") && (!is("referer") || is_declared(name)) && !but.iter().any(|but| is(but)) {
            out.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    out.push_str("Connection: close\r\n\r\n");
    out.into_bytes()
}

#[cfg(test)]
mod tests;
