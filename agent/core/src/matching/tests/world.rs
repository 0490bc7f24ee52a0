//! Entries and requests from short texts.
//!
//! Entry: `a.com =/exact`, `*.a.com /prefix`, `- ~/reg.*` (no hostname), then any of `GET`, `h:name=value`, `h~name=re`,
//! `q:name=value`, `q~name=re`; gRPC: `grpc:Service/Method`, `grpc~service/method` with either side left out.
//! Request: `GET a.com /path?query h:name=value`.

use crate::{
    matching::{Entry, Order, RequestHead, RouteTable, host_of},
    model::{HeaderMatch, Hostname, Match, ObjectKey, PathMatch, Pattern, QueryMatch, Str, ValueMatch},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

pub(super) fn entry(index: u16, text: &str) -> Entry<u16> {
    let mut words = text.split(' ');
    let hostname = words.next().filter(|h| *h != "-").map(|h| Hostname::parse(h).unwrap());
    let mut matcher = Match::default();
    words.for_each(|word| condition(&mut matcher, word));
    let order = Order { created: 0, route: ObjectKey::new("ns", "route"), rule: index, matched: 0 };
    Entry { hostname, matcher, order, policy: index }
}

fn condition(matcher: &mut Match, word: &str) {
    let named = |w: &str| w.split_once('=').map(|(n, v)| (n.to_owned(), v.to_owned())).unwrap();
    let pattern = |p: &str| Pattern::new(p).unwrap();
    let part = |p: &str| (!p.is_empty()).then(|| Str::from(p));
    match word {
        "" => {}
        w if w.starts_with("h:") || w.starts_with("h~") => {
            let (name, value) = named(&w[2..]);
            let value = match &w[..2] {
                "h:" => ValueMatch::Exact(HeaderValue::try_from(value).unwrap()),
                _ => ValueMatch::Regex(pattern(&value)),
            };
            matcher.headers.push(HeaderMatch { name: HeaderName::try_from(name).unwrap(), value });
        }
        w if w.starts_with("q:") || w.starts_with("q~") => {
            let (name, value) = named(&w[2..]);
            let value = match &w[..2] {
                "q:" => ValueMatch::Exact(value.into()),
                _ => ValueMatch::Regex(pattern(&value)),
            };
            matcher.query.push(QueryMatch { name: name.into(), value });
        }
        w if w.starts_with("grpc:") => {
            let (service, method) = w[5..].split_once('/').unwrap();
            matcher.path = Some(PathMatch::Grpc { service: part(service), method: part(method) });
        }
        w if w.starts_with("grpc~") => {
            let (service, method) = w[5..].split_once('/').unwrap();
            let part = |p| part(p).map(|p| pattern(&p));
            matcher.path = Some(PathMatch::GrpcRegex { service: part(service), method: part(method) });
        }
        w if w.starts_with('=') => matcher.path = Some(PathMatch::Exact(w[1..].into())),
        w if w.starts_with('~') => matcher.path = Some(PathMatch::Regex(pattern(&w[1..]))),
        w if w.starts_with('/') => matcher.path = Some(PathMatch::Prefix(w.into())),
        w => matcher.method = Some(w.parse().unwrap()),
    }
}

/// A request that owns its parts.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) host: Option<String>,
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: Option<String>,
    pub(super) headers: HeaderMap,
}

impl Request {
    pub(super) fn parse(text: &str) -> Self {
        let mut words = text.split(' ');
        let method = words.next().unwrap().parse().unwrap();
        let host = words.next().filter(|h| *h != "-").map(|h| host_of(h).into_owned());
        let target = words.next().unwrap();
        let (path, query) = target.split_once('?').map_or((target, None), |(p, q)| (p, Some(q.to_owned())));
        let mut headers = HeaderMap::new();
        for word in words {
            let (name, value) = word[2..].split_once('=').unwrap();
            headers.append(
                HeaderName::try_from(name).unwrap(),
                HeaderValue::try_from(value.replace('_', " ")).unwrap(),
            );
        }
        Self { host, method, path: path.to_owned(), query, headers }
    }

    pub(super) fn head(&self) -> RequestHead<'_> {
        RequestHead {
            host: self.host.as_deref(),
            authority: self.host.as_deref(),
            method: &self.method,
            path: &self.path,
            query: self.query.as_deref(),
            headers: &self.headers,
        }
    }
}

pub(super) fn table(entries: &[&str]) -> RouteTable<u16> {
    let numbered = entries.iter().zip(0..);
    RouteTable::build(numbered.map(|(text, index)| entry(index, text)).collect())
}

/// Checks which entry, by its place in `entries`, each request selects.
pub(super) fn check(entries: &[&str], requests: &[(&str, Option<u16>)]) {
    let table = table(entries);
    for (text, wanted) in requests {
        let request = Request::parse(text);
        let found = table.select(&request.head()).map(|s| s.entry.policy);
        assert_eq!(found, *wanted, "{text} in {entries:?}");
        let naive = super::oracle::select(table.iter(), &request.head()).map(|e| e.policy);
        assert_eq!(naive, *wanted, "oracle: {text} in {entries:?}");
    }
}
