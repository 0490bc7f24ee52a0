//! Paths and hosts: what was matched is what is forwarded, and no server reads another thing in it.
#![no_main]

use http::{HeaderMap, Method};
use libfuzzer_sys::fuzz_target;
use std::cell::OnceCell;
use weft_core::{
    matching::{Entry, Order, RequestHead, RouteTable, host_of, normal_path, split_port},
    model::{Hostname, Match, ObjectKey, PathMatch},
};
use weft_fuzz::{Bytes, planted};

fuzz_target!(|data: &[u8]| {
    let mut input = Bytes(data);
    let length = usize::from(input.byte());
    let (Ok(authority), Ok(path)) = (std::str::from_utf8(input.take(length)), std::str::from_utf8(input.0))
    else {
        return;
    };
    let host = host_of(authority);
    assert_eq!(host, host.to_ascii_lowercase());
    assert!(host.starts_with('[') || !host.contains(':'), "{authority} has the host {host}");
    let (kept, _) = split_port(authority);
    assert!(authority.contains(kept), "{authority} has no {kept}");
    let path = format!("/{path}");
    let normal = normal_path(&path);
    assert_eq!(normal, resolved(&path), "{path}");
    assert_eq!(normal_path(&normal), normal, "{path}");
    let found = select(&host, &normal);
    // A server that resolves dots in what it gets comes to what was matched.
    assert_eq!(select(&host, &resolved(&normal)), found, "{path}");
    let detour = path.len() > normal.len() + 3;
    planted(detour && found == "deep", "a rule of one host, reached by a detour");
});

/// RFC 3986 §5.2.4, step by step as it is written there; `%2e` is a dot.
fn resolved(path: &str) -> String {
    let dots = |segment: &str| match segment.replace("%2e", ".").replace("%2E", ".").as_str() {
        "." => ".".to_owned(),
        ".." => "..".to_owned(),
        _ => segment.to_owned(),
    };
    let mut input: String = path[1..].split('/').map(|s| format!("/{}", dots(s))).collect();
    let mut output = String::new();
    while !input.is_empty() {
        if input.starts_with("/./") {
            input.drain(..2);
        } else if input == "/." {
            input = "/".to_owned();
        } else if input.starts_with("/../") || input == "/.." {
            input = if input == "/.." { "/".to_owned() } else { input.split_off(3) };
            output.truncate(output.rfind('/').unwrap_or(0));
        } else {
            let end = input[1..].find('/').map_or(input.len(), |at| at + 1);
            output.push_str(&input[..end]);
            input.drain(..end);
        }
    }
    output
}

thread_local! {
    static TABLE: OnceCell<RouteTable<&'static str>> = const { OnceCell::new() };
}

/// The rule that serves it.
fn select(host: &str, path: &str) -> &'static str {
    TABLE.with(|table| {
        let (method, headers) = (Method::GET, HeaderMap::new());
        let head = RequestHead { host: Some(host), method: &method, path, query: None, headers: &headers };
        table.get_or_init(build).select(&head).map_or("none", |selected| selected.entry.policy)
    })
}

fn build() -> RouteTable<&'static str> {
    let rules = [
        (None, PathMatch::Prefix("/".into()), "rest"),
        (None, PathMatch::Prefix("/admin".into()), "admin"),
        (None, PathMatch::Exact("/admin/exact".into()), "exact"),
        (Some("*.example.com"), PathMatch::Prefix("/a/b".into()), "deep"),
        (Some("shop.example.com"), PathMatch::Exact("/".into()), "root"),
    ];
    let entry = |(rule, (hostname, path, policy)): (u16, (Option<&str>, PathMatch, &'static str))| Entry {
        hostname: hostname.map(|h| Hostname::parse(h).expect("a hostname")),
        matcher: Match { path: Some(path), ..Match::default() },
        order: Order { created: 0, route: ObjectKey::new("shop", "route"), rule, matched: 0 },
        policy,
    };
    RouteTable::build((0..).zip(rules).map(entry).collect())
}
