//! Where applications have redirected a probe to: a kubelet asks there next, on the same host only.

use super::{
    Asked,
    head::{Declared, Scheme},
};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};
use weft_core::model::ObjectKey;

/// A kubelet follows at once, and asks the declared path anew each time.
const REMEMBERED: Duration = Duration::from_secs(30);
/// Redirects that a kubelet follows (`net/http` stops after 10 requests).
const DEPTH_MAX: u8 = 10;
/// Of one pod.
const PER_POD: usize = 32;
/// Pods of a node that redirect probes.
const PODS_MAX: usize = 1024;

/// Redirects that were answered lately. One lock for each probe of a strict pod.
#[derive(Debug, Default)]
pub(crate) struct Redirects(Mutex<HashMap<ObjectKey, Vec<Redirect>>>);

#[derive(Debug)]
struct Redirect {
    port: u16,
    asked: Asked,
    until: Instant,
}

impl Redirects {
    /// What a pod has redirected probes to, on this port.
    pub(crate) fn of(&self, pod: &ObjectKey, port: u16, now: Instant) -> Vec<Asked> {
        let pods = self.0.lock();
        let all = pods.get(pod).into_iter().flatten();
        all.filter(|r| r.port == port && r.until > now).map(|r| r.asked.clone()).collect()
    }

    /// The application has answered with a redirect. What was not said for longest goes when there is no room.
    pub(super) fn learn(&self, pod: &ObjectKey, port: u16, asked: Asked, now: Instant) {
        if asked.depth > DEPTH_MAX {
            return;
        }
        let mut pods = self.0.lock();
        pods.retain(|_, all| {
            all.retain(|r| r.until > now);
            !all.is_empty()
        });
        if pods.len() >= PODS_MAX && !pods.contains_key(pod) {
            return;
        }
        let all = pods.entry(pod.clone()).or_default();
        // The shortest way to it counts.
        let known = all.iter().position(|r| r.port == port && r.asked.ask == asked.ask);
        let depth = known.map_or(asked.depth, |at| all.remove(at).asked.depth.min(asked.depth));
        if all.len() >= PER_POD {
            all.remove(0);
        }
        all.push(Redirect { port, asked: Asked { depth, ..asked }, until: now + REMEMBERED });
    }
}

/// What a kubelet asks of this pod after an answer that begins like this: port and question. `None` when it is no redirect,
/// or leads elsewhere.
pub(super) fn follow(answer: &[u8], to: SocketAddr, request: &Declared) -> Option<(u16, Asked)> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let text = std::str::from_utf8(&answer[..end]).ok()?;
    let mut lines = text.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.")?.get(2..5)?;
    if !["301", "302", "303", "307", "308"].contains(&status) {
        return None;
    }
    let location = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("location").then(|| value.trim_matches([' ', '\t']))
    })?;
    let (scheme, port, target) = resolve(location, request.scheme, to, &request.target)?;
    let ask = scheme.ask(&target, &request.headers);
    Some((port, Asked { ask, depth: request.depth.checked_add(1)? }))
}

/// A reference (RFC 3986 §5.2) against the request, which `scheme` and `base` are of: scheme, port, target. Only plain ones:
/// what a client would have to write otherwise is not followed.
fn resolve(location: &str, scheme: Scheme, to: SocketAddr, base: &str) -> Option<(Scheme, u16, String)> {
    if !location.bytes().all(|b| b.is_ascii_graphic()) {
        return None;
    }
    let location = location.split('#').next()?;
    let (scheme, rest) = match location.split_once("://") {
        Some((named, rest)) if named.eq_ignore_ascii_case("http") => (Scheme::Http, Some(rest)),
        Some((named, rest)) if named.eq_ignore_ascii_case("https") => (Scheme::Https, Some(rest)),
        _ => (scheme, location.strip_prefix("//")),
    };
    if let Some(rest) = rest {
        let at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(at);
        let bare = authority.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(authority);
        let host = match authority.parse::<SocketAddr>() {
            Ok(host) => host,
            Err(_) => SocketAddr::new(bare.parse().ok()?, scheme.port()),
        };
        return (host.ip() == to.ip()).then(|| (scheme, host.port(), without_dots(path)));
    }
    if location.split(['/', '?']).next()?.contains(':') {
        return None; // another scheme
    }
    let path = base.split('?').next()?;
    let whole = match location {
        "" => base.to_owned(),
        query if query.starts_with('?') => format!("{path}{query}"),
        absolute if absolute.starts_with('/') => absolute.to_owned(),
        relative => format!("{}{relative}", &path[..=path.rfind('/')?]),
    };
    Some((scheme, to.port(), without_dots(&whole)))
}

/// A target whose path has no dot segments (RFC 3986 §5.2.4).
fn without_dots(target: &str) -> String {
    let (path, query) = target.split_once('?').map_or((target, None), |(p, q)| (p, Some(q)));
    let mut out: Vec<&str> = Vec::new();
    let mut segments = path.trim_start_matches('/').split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    out.pop();
                }
                if last {
                    out.push("");
                }
            }
            segment => out.push(segment),
        }
    }
    let query = query.map(|q| format!("?{q}")).unwrap_or_default();
    format!("/{}{query}", out.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Scheme::{Http, Https};

    #[test]
    fn redirects_lead_to_this_pod_only() {
        let resolved = |location: &str, scheme, want: Option<(Scheme, u16, &str)>| {
            let got = resolve(location, scheme, ([10, 0, 0, 1], 8080).into(), "/a/b?x=1");
            assert_eq!(got.as_ref().map(|(s, p, t)| (*s, *p, t.as_str())), want, "{location}");
        };
        let check = |location: &str, want| resolved(location, Http, want);
        check("/c", Some((Http, 8080, "/c")));
        check("c?y", Some((Http, 8080, "/a/c?y")));
        check("../c/./d/..", Some((Http, 8080, "/c/")));
        check("?z=2", Some((Http, 8080, "/a/b?z=2")));
        check("", Some((Http, 8080, "/a/b?x=1")));
        check("/c#part", Some((Http, 8080, "/c")));
        check("http://10.0.0.1:9090/c", Some((Http, 9090, "/c")));
        check("http://10.0.0.1", Some((Http, 80, "/")));
        check("https://10.0.0.1/c", Some((Https, 443, "/c")));
        check("//10.0.0.1:81/c", Some((Http, 81, "/c")));
        check("http://10.0.0.2:8080/c", None);
        check("http://localhost:8080/c", None);
        check("http://10.0.0.1:8080@evil/c", None);
        check("ftp://10.0.0.1/c", None);
        check("mailto:x", None);
        check("/c d", None);
        check("/\u{e9}", None);
        // A kubelet goes on by the scheme that it asked by, unless it is told another.
        resolved("/c", Https, Some((Https, 8080, "/c")));
        resolved("?z=2", Https, Some((Https, 8080, "/a/b?z=2")));
        resolved("//10.0.0.1/c", Https, Some((Https, 443, "/c")));
        resolved("https://10.0.0.1:8080/c", Https, Some((Https, 8080, "/c")));
        resolved("http://10.0.0.1/c", Https, Some((Http, 80, "/c")));
        resolved("https://10.0.0.2/c", Https, None);
    }

    #[test]
    fn answers_are_read_for_their_location() {
        let to = ([10, 0, 0, 1], 80).into();
        let headers = vec![("X".into(), "y".into())];
        let check = |answer: &str, want: Option<&str>| {
            for scheme in [Http, Https] {
                let request = Declared {
                    scheme,
                    forward: Vec::new(),
                    in_clear: None,
                    target: "/a".to_owned(),
                    headers: headers.clone(),
                    depth: 0,
                };
                let got = follow(answer.as_bytes(), to, &request).map(|(_, asked)| asked);
                let want = want.map(|target| Asked { ask: scheme.ask(target, &headers), depth: 1 });
                assert_eq!(got, want, "{scheme:?} {answer:?}");
            }
        };
        check("HTTP/1.1 302 Found\r\nlocation:  /b \r\n\r\nbody", Some("/b"));
        check("HTTP/1.0 308 Permanent Redirect\r\nA: b\r\nLOCATION: /b\r\n\r\n", Some("/b"));
        check("HTTP/1.1 200 OK\r\nLocation: /b\r\n\r\n", None);
        check("HTTP/1.1 304 Not Modified\r\nLocation: /b\r\n\r\n", None);
        check("HTTP/1.1 302 Found\r\n\r\nLocation: /b\r\n\r\n", None);
        check("HTTP/1.1 302 Found\r\nLocation: /b\r\n", None);
        check("", None);
    }

    #[test]
    fn what_is_remembered_ends_and_is_bounded() {
        let (redirects, pod, start) = (Redirects::default(), ObjectKey::new("shop", "a"), Instant::now());
        let asked = |n: usize, depth| Asked { ask: Http.ask(&format!("/{n}"), &[]), depth };
        redirects.learn(&pod, 80, asked(0, 3), start);
        redirects.learn(&pod, 80, asked(0, 2), start);
        redirects.learn(&pod, 80, asked(0, 5), start);
        assert_eq!(redirects.of(&pod, 80, start), [asked(0, 2)]);
        assert_eq!(redirects.of(&pod, 81, start), []);
        assert_eq!(redirects.of(&ObjectKey::new("shop", "b"), 80, start), []);
        redirects.learn(&pod, 80, asked(1, DEPTH_MAX + 1), start);
        assert_eq!(redirects.of(&pod, 80, start).len(), 1, "too many redirects");
        (0..2 * PER_POD).for_each(|n| redirects.learn(&pod, 80, asked(n, 1), start));
        let kept = (PER_POD..2 * PER_POD).map(|n| asked(n, 1)).collect::<Vec<_>>();
        assert_eq!(redirects.of(&pod, 80, start), kept);
        // Said again, the oldest becomes the newest, and the next one goes instead.
        redirects.learn(&pod, 80, asked(PER_POD, 1), start);
        redirects.learn(&pod, 80, asked(0, 1), start);
        let kept = [&kept[2..], &[asked(PER_POD, 1), asked(0, 1)]].concat();
        assert_eq!(redirects.of(&pod, 80, start), kept);
        assert_eq!(redirects.of(&pod, 80, start + REMEMBERED), []);
        for n in 0..2 * PODS_MAX {
            redirects.learn(&ObjectKey::new("shop", format!("p{n}")), 80, asked(n, 1), start);
        }
        assert_eq!(redirects.0.lock().len(), PODS_MAX);
    }
}
