//! The index agrees with the oracle on generated worlds, and precedence is a total order. Alphabets are small, so
//! that rules collide.

use super::{hosts, oracle, world::Request};
use crate::{
    matching::{Entry, Order, RouteTable, precedence::compare},
    model::{HeaderMatch, Match, ObjectKey, PathMatch, Pattern, QueryMatch, Str, ValueMatch},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use proptest::{collection::vec, option, prelude::*, sample::select};
use std::{cmp::Ordering, sync::LazyLock};

fn path() -> impl Strategy<Value = String> {
    vec(select(vec!["a", "b", "ab", ""]), 0..4).prop_map(|s| format!("/{}", s.join("/")))
}

/// Compiled once: a world has many.
static PATTERNS: LazyLock<Vec<Pattern>> = LazyLock::new(|| {
    let texts = ["/a.*", "/.*", "/(a|b)", "a", "a+", ".*", "[ab]*", "/a/b"];
    texts.iter().map(|p| Pattern::new(p).unwrap()).collect()
});

fn pattern() -> impl Strategy<Value = Pattern> {
    (0..PATTERNS.len()).prop_map(|i| PATTERNS[i].clone())
}

fn part() -> impl Strategy<Value = Option<Str>> {
    option::of(select(vec!["a", "b", "ab"]).prop_map(Str::from))
}

fn path_match() -> impl Strategy<Value = Option<PathMatch>> {
    let grpc = (part(), part()).prop_filter("at least one", |(s, m)| s.is_some() || m.is_some());
    let grpc_regex = (option::of(pattern()), option::of(pattern()))
        .prop_filter("at least one", |(s, m)| s.is_some() || m.is_some());
    option::weighted(
        0.9,
        prop_oneof![
            3 => path().prop_map(|p| PathMatch::Exact(p.into())),
            5 => path().prop_map(|p| PathMatch::Prefix(p.into())),
            2 => pattern().prop_map(PathMatch::Regex),
            2 => grpc.prop_map(|(service, method)| PathMatch::Grpc { service, method }),
            1 => grpc_regex.prop_map(|(service, method)| PathMatch::GrpcRegex { service, method }),
        ],
    )
}

fn header_match() -> impl Strategy<Value = HeaderMatch> {
    let exact =
        select(vec!["a", "b", "a,b", "a; b"]).prop_map(|v| ValueMatch::Exact(HeaderValue::from_static(v)));
    let value = prop_oneof![3 => exact, 1 => pattern().prop_map(ValueMatch::Regex)];
    (select(vec!["x", "y", "cookie"]), value)
        .prop_map(|(name, value)| HeaderMatch { name: HeaderName::from_static(name), value })
}

fn query_match() -> impl Strategy<Value = QueryMatch> {
    let exact = select(vec!["a", "b", "a b", "%"]).prop_map(|v| ValueMatch::Exact(v.into()));
    let value = prop_oneof![3 => exact, 1 => pattern().prop_map(ValueMatch::Regex)];
    (select(vec!["p", "q"]), value).prop_map(|(name, value)| QueryMatch { name: name.into(), value })
}

fn method() -> impl Strategy<Value = Method> {
    select(vec![Method::GET, Method::POST])
}

/// Entries whose places are all different.
fn entries() -> impl Strategy<Value = Vec<Entry<usize>>> {
    let matcher =
        (path_match(), option::weighted(0.3, method()), vec(header_match(), 0..3), vec(query_match(), 0..3))
            .prop_map(|(path, method, headers, query)| Match { path, method, headers, query });
    let order = (0..2_i64, select(vec![("a", "x"), ("a-b", "x"), ("a", "y")]), 0..2_u16);
    let entry = (option::weighted(0.7, hosts::hostname()), matcher, order);
    vec(entry, 0..24).prop_map(|all| {
        let numbered = all.into_iter().enumerate();
        let entry = |(index, (hostname, matcher, (created, (ns, name), rule)))| {
            let matched = u16::try_from(index).unwrap();
            let order = Order { created, route: ObjectKey::new(ns, name), rule, matched };
            Entry { hostname, matcher, order, policy: index }
        };
        numbered.map(entry).collect()
    })
}

fn request() -> impl Strategy<Value = Request> {
    let query = vec(select(vec!["p=a", "p=b", "q=a+b", "q=%61", "%71=b", "q", "p=%", "pq=a", ""]), 0..3);
    let headers =
        vec(select(vec![("x", "a"), ("x", "b"), ("y", "a"), ("cookie", "a"), ("cookie", "b")]), 0..4);
    let any_path = prop_oneof![12 => path(), 1 => Just("*".to_owned()), 1 => Just(String::new())];
    (option::weighted(0.9, hosts::host()), method(), any_path, option::of(query), headers).prop_map(
        |(host, method, path, query, lines)| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
            }
            Request { host, method, path, query: query.map(|q| q.join("&")), headers }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_index_is_the_sorted_list(entries in entries(), requests in vec(request(), 1..8)) {
        let table = RouteTable::build(entries.clone());
        for request in requests {
            let found = table.select(&request.head()).map(|s| s.entry.policy);
            let wanted = oracle::select(entries.iter(), &request.head()).map(|e| e.policy);
            prop_assert_eq!(found, wanted, "{:?}", request);
        }
    }

    #[test]
    fn insertion_order_does_not_count(entries in entries(), request in request(), turn in any::<prop::sample::Index>()) {
        let place = |table: &RouteTable<usize>| table.iter().map(|e| e.policy).collect::<Vec<_>>();
        let table = RouteTable::build(entries.clone());
        let mut turned = entries;
        if !turned.is_empty() {
            let at = turn.index(turned.len());
            turned.rotate_left(at);
            turned[at..].reverse();
        }
        let turned = RouteTable::build(turned);
        prop_assert_eq!(place(&table), place(&turned));
        let found = |t: &RouteTable<usize>| t.select(&request.head()).map(|s| s.entry.policy);
        prop_assert_eq!(found(&table), found(&turned));
    }

    #[test]
    fn precedence_is_a_total_order(entries in entries()) {
        // As in a table, where names are already unique.
        let table = RouteTable::build(entries);
        let all: Vec<_> = table.iter().collect();
        for (i, a) in all.iter().enumerate() {
            for (j, b) in all.iter().enumerate() {
                prop_assert_eq!(compare(a, b), i.cmp(&j), "antisymmetric and transitive: places in one list");
                let (ka, kb) = (oracle::key(a), oracle::key(b));
                prop_assert!(ka.cmp(&kb) != Ordering::Greater || i > j || !may_meet(a, b));
            }
        }
    }

    #[test]
    fn shadowed_entries_are_never_selected(entries in entries(), requests in vec(request(), 1..8)) {
        let table = RouteTable::build(entries);
        let dead: Vec<_> = table.shadowed().iter().map(|s| s.entry.policy).collect();
        for request in requests {
            if let Some(selected) = table.select(&request.head()) {
                prop_assert!(!dead.contains(&selected.entry.policy));
            }
        }
    }
}

/// Whether one request can match both: only then the order of the two matters. Exact values of one length that
/// differ never meet; all else is taken to.
fn may_meet(a: &Entry<usize>, b: &Entry<usize>) -> bool {
    let text = |e: &Entry<usize>| match &e.matcher.path {
        Some(PathMatch::Exact(p)) => Some(p.to_string()),
        Some(PathMatch::Prefix(p)) => Some(p.trim_end_matches('/').to_owned()),
        Some(PathMatch::Grpc { service, method }) => Some(format!("{service:?}/{method:?}")),
        _ => None,
    };
    let hosts = match (&a.hostname, &b.hostname) {
        (Some(x), Some(y)) => x.intersect(y).is_some(),
        _ => true,
    };
    hosts && text(a) == text(b)
}
