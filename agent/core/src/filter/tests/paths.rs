//! Path replacement: the table of the API, the edges that others got wrong, redirects and rewrites.

use crate::{
    filter::{RedirectInput, path::modify, redirect, rewrite},
    model::{Hostname, PathModifier, Redirect, UrlRewrite},
};
use http::{Request, StatusCode, header::HOST, request::Parts};
use proptest::prelude::*;

fn prefix(to: &str) -> PathModifier {
    PathModifier::ReplacePrefixMatch(to.into())
}

fn full(to: &str) -> PathModifier {
    PathModifier::ReplaceFullPath(to.into())
}

#[test]
fn replace_prefix() {
    // Request path, prefix match, replacement, result.
    for (path, matched, to, wanted) in [
        // HTTPPathModifier.replacePrefixMatch, the table in the API's own text
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        // and what it does not say
        ("/foo/bar", "/foo", "/", "/bar"),
        ("/foo/bar/", "/foo", "/", "/bar/"),
        ("/foo//bar", "/foo", "/", "/bar"), // never `//bar`, which is a host in a Location
        ("/foo//bar", "/foo", "/x", "/x//bar"),
        ("/footest", "/foo", "/xyz", "/footest"), // not under the prefix
        ("/bar", "/", "/xyz", "/xyz/bar"),
        ("/", "/", "/xyz", "/xyz/"),
        ("/bar", "/", "/", "/bar"),
        ("/foo/bar", "/foo", "xyz", "/xyz/bar"),
        ("/foo/b%2Fr", "/foo", "/x", "/x/b%2Fr"),
        ("/foo/bar", "/foo", "/é\r\n", "/%C3%A9%0D%0A/bar"),
    ] {
        assert_eq!(modify(&prefix(to), Some(matched), path).path, wanted, "{path} {matched} {to}");
    }
    assert_eq!(modify(&prefix("/x"), None, "/a/b").path, "/a/b", "no prefix matched");
}

#[test]
fn replace_full() {
    for (to, wanted) in [
        ("/x", "/x"),
        ("/x/", "/x/"),
        ("", "/"),
        ("x", "/x"),
        ("//evil.example", "/evil.example"),
        ("/a b", "/a%20b"),
        ("/\\evil.example", "/%5Cevil.example"),
        ("/{x}`", "/%7Bx%7D%60"),
    ] {
        assert_eq!(modify(&full(to), Some("/foo"), "/foo/bar").path, wanted, "{to}");
    }
}

fn location(filter: &Redirect, input: &RedirectInput<'_>) -> String {
    let (status, location) = redirect(filter, input);
    assert_eq!(status, filter.status);
    location.to_str().unwrap().to_owned()
}

const FILTER: Redirect =
    Redirect { scheme: None, hostname: None, path: None, port: None, status: StatusCode::FOUND };
const INPUT: RedirectInput<'static> = RedirectInput {
    scheme: "http",
    authority: "a.com",
    path_and_query: "/foo/bar?q=1",
    matched_prefix: Some("/foo"),
    listener_port: 80,
};

#[test]
fn redirect_ports() {
    let scheme = |s: &str| Some(s.into());
    for (filter, input, wanted) in [
        (FILTER, INPUT, "http://a.com/foo/bar?q=1"),
        // scheme empty: the listener's port, whatever the client's Host says
        (FILTER, RedirectInput { listener_port: 8080, ..INPUT }, "http://a.com:8080/foo/bar?q=1"),
        (FILTER, RedirectInput { authority: "A.com:81", ..INPUT }, "http://A.com/foo/bar?q=1"),
        (FILTER, RedirectInput { scheme: "https", listener_port: 443, ..INPUT }, "https://a.com/foo/bar?q=1"),
        (FILTER, RedirectInput { scheme: "https", ..INPUT }, "https://a.com:80/foo/bar?q=1"),
        // scheme given: its well-known port, also when it is the request's own
        (Redirect { scheme: scheme("https"), ..FILTER }, INPUT, "https://a.com/foo/bar?q=1"),
        (
            Redirect { scheme: scheme("http"), ..FILTER },
            RedirectInput { listener_port: 8080, ..INPUT },
            "http://a.com/foo/bar?q=1",
        ),
        // port given
        (Redirect { port: Some(8443), ..FILTER }, INPUT, "http://a.com:8443/foo/bar?q=1"),
        (
            Redirect { port: Some(80), ..FILTER },
            RedirectInput { listener_port: 8080, ..INPUT },
            "http://a.com/foo/bar?q=1",
        ),
        (Redirect { port: Some(443), scheme: scheme("https"), ..FILTER }, INPUT, "https://a.com/foo/bar?q=1"),
        (Redirect { port: Some(443), ..FILTER }, INPUT, "http://a.com:443/foo/bar?q=1"),
        (
            Redirect { port: Some(80), scheme: scheme("https"), ..FILTER },
            INPUT,
            "https://a.com:80/foo/bar?q=1",
        ),
        (FILTER, RedirectInput { authority: "[::1]:99", ..INPUT }, "http://[::1]/foo/bar?q=1"),
    ] {
        assert_eq!(location(&filter, &input), wanted, "{filter:?} {input:?}");
    }
}

#[test]
fn redirect_targets() {
    let host = Hostname::parse("b.org").unwrap();
    for (filter, input, wanted) in [
        (
            Redirect { hostname: Some(host), status: StatusCode::PERMANENT_REDIRECT, ..FILTER },
            INPUT,
            "http://b.org/foo/bar?q=1",
        ),
        (Redirect { path: Some(full("/x/")), ..FILTER }, INPUT, "http://a.com/x/?q=1"),
        (Redirect { path: Some(prefix("/")), ..FILTER }, INPUT, "http://a.com/bar?q=1"),
        (Redirect { path: Some(full("/x?a=b#/login")), ..FILTER }, INPUT, "http://a.com/x?a=b&q=1#/login"),
        (
            Redirect { path: Some(full("/x")), ..FILTER },
            RedirectInput { path_and_query: "/foo", ..INPUT },
            "http://a.com/x",
        ),
        (
            Redirect { path: Some(full("/x\r\nSet-Cookie: a")), ..FILTER },
            INPUT,
            "http://a.com/x%0D%0ASet-Cookie:%20a?q=1",
        ),
        (FILTER, RedirectInput { authority: "", ..INPUT }, "/foo/bar?q=1"),
        (
            FILTER,
            RedirectInput { authority: "", path_and_query: "//evil.example/?q", ..INPUT },
            "/evil.example/?q",
        ),
        (FILTER, RedirectInput { path_and_query: "/?", ..INPUT }, "http://a.com/?"),
        (FILTER, RedirectInput { path_and_query: "/a?b?c", ..INPUT }, "http://a.com/a?b?c"),
    ] {
        assert_eq!(location(&filter, &input), wanted, "{filter:?} {input:?}");
    }
}

fn parts(uri: &str, host: Option<&str>) -> Parts {
    let builder = Request::builder().uri(uri);
    let builder = if let Some(host) = host { builder.header(HOST, host) } else { builder };
    builder.body(()).unwrap().into_parts().0
}

#[test]
fn rewrites() {
    let host = |h: &str| Some(Hostname::parse(h).unwrap());
    // URI, Host, filter, URI after, Host after.
    for (uri, before, filter, wanted, after) in [
        (
            "/foo/bar?q=1",
            Some("a.com"),
            UrlRewrite { hostname: None, path: Some(prefix("/x")) },
            "/x/bar?q=1",
            Some("a.com"),
        ),
        (
            "/foo/bar?q=1",
            Some("a.com"),
            UrlRewrite { hostname: None, path: Some(full("/x/")) },
            "/x/?q=1",
            Some("a.com"),
        ),
        (
            "/foo?q=1",
            Some("a.com"),
            UrlRewrite { hostname: None, path: Some(full("/x?a=b")) },
            "/x?a=b&q=1",
            Some("a.com"),
        ),
        (
            "/foo/bar",
            Some("a.com:80"),
            UrlRewrite { hostname: host("b.org"), path: None },
            "/foo/bar",
            Some("b.org"),
        ),
        ("/foo/bar", None, UrlRewrite { hostname: host("b.org"), path: None }, "/foo/bar", Some("b.org")),
        (
            "http://a.com:80/foo/bar?q",
            None,
            UrlRewrite { hostname: host("b.org"), path: Some(prefix("")) },
            "http://b.org/bar?q",
            None,
        ),
        (
            "https://a.com/foo",
            Some("a.com"),
            UrlRewrite { hostname: host("b.org"), path: None },
            "https://b.org/foo",
            Some("b.org"),
        ),
        ("/foo", Some("a.com"), UrlRewrite { hostname: None, path: Some(full("/x#y")) }, "/x", Some("a.com")),
    ] {
        let mut parts = parts(uri, before);
        rewrite::apply(&filter, Some("/foo"), &mut parts).unwrap();
        assert_eq!(parts.uri.to_string(), wanted, "{filter:?}");
        assert_eq!(parts.headers.get(HOST).map(|h| h.to_str().unwrap()), after, "{filter:?}");
    }
}

#[test]
fn a_target_that_grows_too_long_is_refused() {
    let filter = UrlRewrite { hostname: None, path: Some(prefix(&"/x".repeat(500))) };
    let mut parts = parts(&format!("/foo/{}", "a".repeat(65_000)), None);
    assert_eq!(rewrite::apply(&filter, Some("/foo"), &mut parts), Err(rewrite::InvalidTarget));
    assert!(parts.uri.path().starts_with("/foo/a"), "unchanged");
}

fn segments(least: usize) -> impl Strategy<Value = String> {
    prop::collection::vec("[a-c]{1,2}", least..4).prop_map(|s| s.iter().map(|s| format!("/{s}")).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn replacing_back_gives_the_path_again(from in segments(1), to in segments(1), rest in segments(0), slash in any::<bool>()) {
        let path = format!("{from}{rest}{}", if slash { "/" } else { "" });
        let there = modify(&prefix(&to), Some(&from), &path).path;
        prop_assert!(there.starts_with(&to));
        prop_assert_eq!(modify(&prefix(&from), Some(&to), &there).path, path);
    }

    #[test]
    fn a_location_is_always_safe(to in "\\PC{0,8}|[/?#%\r\n a]{0,8}", path in "/[a-c/]{0,6}", is_full in any::<bool>(), authority in "(a\\.com)?") {
        let modifier = if is_full { full(&to) } else { prefix(&to) };
        let new = modify(&modifier, Some("/a"), &path).path;
        prop_assert!(new.starts_with('/') && !new.starts_with("//"), "{}", new);
        let filter = Redirect { path: Some(modifier), ..FILTER };
        let location = location(&filter, &RedirectInput { path_and_query: &path, authority: &authority, ..INPUT });
        prop_assert!(location.bytes().all(|b| b.is_ascii_graphic()));
        let start = if authority.is_empty() { "/" } else { "http://a.com/" };
        prop_assert!(location.starts_with(start), "{}", location);
    }

    #[test]
    fn a_rewrite_keeps_the_query(to in "\\PC{0,8}|[/?#% a]{0,8}", path in "/[a-c/]{0,6}", query in "[a-c=&]{0,5}") {
        let mut parts = parts(&format!("{path}?{query}"), None);
        let filter = UrlRewrite { hostname: None, path: Some(prefix(&to)) };
        rewrite::apply(&filter, Some("/a"), &mut parts).unwrap();
        prop_assert!(parts.uri.query().unwrap().ends_with(&query));
        prop_assert!(parts.uri.path().starts_with('/'));
    }
}
