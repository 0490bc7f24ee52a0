//! Paths and hosts: what was matched is what is forwarded, and no server reads another thing in it.
#![no_main]

use http::{HeaderMap, Method};
use libfuzzer_sys::fuzz_target;
use std::cell::OnceCell;
use weft_core::{
    matching::{Entry, Order, RequestHead, RouteTable, host_of, split_port},
    message::{PathAction, PathRules, is_authority, normal_path},
    model::{Hostname, Match, ObjectKey, PathMatch},
};
use weft_fuzz::{
    Bytes,
    paths::{decoded, resolved},
    planted,
};

fuzz_target!(|data: &[u8]| {
    let mut input = Bytes(data);
    let (rules, length) = (rules(input.byte()), usize::from(input.byte()));
    let (Ok(authority), Ok(path)) = (std::str::from_utf8(input.take(length)), std::str::from_utf8(input.0))
    else {
        return;
    };
    let host = host_of(authority);
    if is_authority(authority.as_bytes()) {
        assert!(!authority.contains(['@', '/', '?', '#', ' ', '\\']), "{authority}");
        assert!(host.starts_with('[') || !host.contains(':'), "{authority} has the host {host}");
        assert_eq!(host, host.to_ascii_lowercase());
        let (kept, port) = split_port(authority);
        let again = port.map_or(kept.to_owned(), |port| format!("{kept}:{port}"));
        assert_eq!(split_port(&again), (kept, port), "{authority}");
    }
    let path = format!("/{path}");
    let Ok(normal) = normal_path(&path, &rules) else { return };
    if rules.is_default() {
        assert_eq!(normal, resolved(&decoded(&path)), "{path}");
    }
    assert!(normal.starts_with('/'), "{path} becomes {normal}");
    assert_eq!(normal_path(&normal, &rules).as_deref(), Ok(&*normal), "{path}, again");
    // What is forwarded leads a server that decodes and resolves it to where it was matched.
    let read = resolved(&decoded(&normal));
    let found = select(&host, &normal);
    assert_eq!(select(&host, &read), found, "{path} is forwarded as {normal} and read as {read}");
    let detour = path.len() > normal.len() + 3;
    planted(detour && found == "deep", "a rule of one host, reached by a detour");
});

/// Four settings of three values each.
fn rules(mut byte: u8) -> PathRules {
    let mut action = || {
        let action = [PathAction::Keep, PathAction::Normalize, PathAction::Reject][usize::from(byte % 3)];
        byte /= 3;
        action
    };
    PathRules {
        repeated_slashes: action(),
        escaped_slashes: action(),
        backslashes: action(),
        parameters: action(),
    }
}

thread_local! {
    static TABLE: OnceCell<RouteTable<&'static str>> = const { OnceCell::new() };
}

/// The rule that serves it.
fn select(host: &str, path: &str) -> &'static str {
    TABLE.with(|table| {
        let (method, headers) = (Method::GET, HeaderMap::new());
        let head = RequestHead {
            host: Some(host),
            authority: Some(host),
            method: &method,
            path,
            query: None,
            headers: &headers,
        };
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
