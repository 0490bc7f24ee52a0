//! CORS: the cases of the conformance suite's HTTPRouteCORS tests, and the edges around them.

use crate::{
    filter::cors::{allows, preflight, respond},
    model::{Cors, Str},
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};

fn list(items: &[&str]) -> Vec<Str> {
    items.iter().map(|i| Str::from(*i)).collect()
}

fn filter(origins: &[&str]) -> Cors {
    Cors { allow_origins: list(origins), max_age: 5, ..Cors::default() }
}

/// The suite's route `cors-multiple-origins-methods-headers`.
fn several() -> Cors {
    Cors {
        allow_credentials: true,
        allow_methods: list(&["GET", "OPTIONS"]),
        allow_headers: list(&["x-header-1", "x-header-2"]),
        expose_headers: list(&["x-header-3", "x-header-4"]),
        max_age: 3600,
        ..filter(&["https://www.foo.com", "https://*.bar.com"])
    }
}

#[test]
fn origins() {
    for (allowed, origin, wanted) in [
        ("https://www.foo.com", "https://www.foo.com", true),
        ("https://www.foo.com", "https://WWW.foo.com", true),
        ("https://www.foo.com", "https://www.foo.com:443", true),
        ("http://www.foo.com:80", "http://www.foo.com", true),
        ("https://www.foo.com", "http://www.foo.com", false),
        ("https://www.foo.com", "https://www.foo.com:8443", false),
        ("https://www.foo.com", "https://foobar.com", false),
        ("https://www.foo.com", "https://www.foo.com.evil.org", false),
        ("https://*.bar.com", "https://www.bar.com", true),
        ("https://*.bar.com", "https://xpto.www.bar.com", true),
        ("https://*.bar.com", "https://bar.com", false),
        ("https://*.bar.com", "https://.bar.com", false),
        ("https://*.bar.com", "https://evilbar.com", false),
        ("https://*.bar.com", "https://www.bar.com:8443", false),
        ("https://*.bar.com:8443", "https://www.bar.com:8443", true),
        ("https://*.bar.com:8443", "https://www.bar.com", false),
        ("https://*", "https://any.org", true),
        ("https://*", "http://any.org", false),
        ("http://*:8080", "http://any.org:8080", true),
        ("*", "https://foobar.com:12345", true),
        ("*", "null", true),
        ("https://*", "null", false),
        ("https://*", "https://any.org:x", false),
        ("https://*", "", false),
    ] {
        let origin_value = HeaderValue::from_str(origin).unwrap();
        assert_eq!(allows(&filter(&[allowed]), &origin_value), wanted, "{allowed} {origin}");
    }
    let latin = HeaderValue::from_bytes(b"https://\xe9.com").unwrap();
    assert!(!allows(&filter(&["https://*"]), &latin));
    assert!(
        !allows(&filter(&[]), &HeaderValue::from_static("https://a.com")),
        "no origin listed, none allowed"
    );
}

/// Sorted `name: value` lines of the CORS headers.
fn lines(headers: &HeaderMap) -> Vec<String> {
    let mut lines: Vec<_> = headers
        .iter()
        .filter_map(|(n, v)| {
            let name = n.as_str().strip_prefix("access-control-")?;
            Some(format!("{name}: {}", v.to_str().unwrap()))
        })
        .collect();
    lines.sort();
    lines
}

/// Checks a preflight: origin, requested method and headers, the answer's CORS headers.
fn check(cors: &Cors, origin: &str, method: &str, headers: Option<&str>, wanted: &[&str]) {
    let mut request =
        Request::options("/x").header("origin", origin).header("access-control-request-method", method);
    if let Some(headers) = headers {
        request = request.header("access-control-request-headers", headers);
    }
    let answer = preflight(cors, &request.body(()).unwrap().into_parts().0).unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-length"], "0");
    assert!(answer.headers()["vary"].to_str().unwrap().starts_with("Origin"));
    assert_eq!(lines(answer.headers()), wanted, "{origin} {method}");
}

#[test]
fn preflights() {
    let both = Some("x-header-1, x-header-2");
    for origin in ["https://www.foo.com", "https://xpto.www.bar.com"] {
        check(
            &several(),
            origin,
            "GET",
            both,
            &[
                "allow-credentials: true",
                "allow-headers: x-header-1, x-header-2",
                "allow-methods: GET, OPTIONS",
                &format!("allow-origin: {origin}"),
                "expose-headers: x-header-3, x-header-4",
                "max-age: 3600",
            ],
        );
    }
    check(&several(), "https://foobar.com", "GET", both, &[]);
    let any = Cors { allow_methods: list(&["*"]), allow_headers: list(&["*"]), ..filter(&["*"]) };
    let o = "https://a.com";
    let echoed = [
        "allow-headers: x-header-1, x-header-2",
        "allow-methods: PUT",
        "allow-origin: https://a.com",
        "max-age: 5",
    ];
    check(&any, o, "PUT", both, &echoed);
    let trusted = Cors { allow_credentials: true, expose_headers: list(&["*"]), ..any.clone() };
    // never `*` beside credentials
    check(&trusted, o, "PUT", both, &[&["allow-credentials: true"], &echoed[..]].concat());
    check(&any, o, "PUT", None, &echoed[1..]);
    check(&filter(&["*"]), o, "PUT", both, &["allow-origin: https://a.com", "max-age: 5"]);
}

#[test]
fn only_a_preflight_is_answered() {
    let asked = "access-control-request-method";
    for (method, headers) in
        [("OPTIONS", &["origin"][..]), ("OPTIONS", &[asked]), ("GET", &["origin", asked]), ("OPTIONS", &[])]
    {
        let request = headers.iter().fold(Request::builder().method(method), |r, h| r.header(*h, "GET"));
        let parts = request.body(()).unwrap().into_parts().0;
        assert!(preflight(&several(), &parts).is_none(), "{method} {headers:?}");
    }
}

#[test]
fn answers() {
    let backend = [("access-control-allow-origin", "https://backend.org"), ("access-control-max-age", "9")];
    for (cors, origin, wanted) in [
        (
            several(),
            Some("https://www.foo.com"),
            &[
                "allow-credentials: true",
                "allow-origin: https://www.foo.com",
                "expose-headers: x-header-3, x-header-4",
            ][..],
        ),
        (several(), Some("https://foobar.com"), &[]), // the filter decides, not the backend
        (filter(&["*"]), Some("https://a.com"), &["allow-origin: https://a.com"]),
        (
            Cors { expose_headers: list(&["*"]), ..filter(&["*"]) },
            Some("https://a.com"),
            &["allow-origin: https://a.com", "expose-headers: *"],
        ),
        // no CORS request: left as it is
        (several(), None, &["allow-origin: https://backend.org", "max-age: 9"]),
    ] {
        let pairs = backend.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)));
        let mut headers: HeaderMap = pairs.collect();
        let origin = origin.map(HeaderValue::from_static);
        respond(&cors, origin.as_ref(), &mut headers);
        assert_eq!(lines(&headers), wanted, "{origin:?}");
        assert_eq!(headers["vary"], "Origin");
    }
}

#[test]
fn vary_is_said_once() {
    for (there, wanted) in [("Origin", 1), ("Accept, origin", 1), ("*", 1), ("Accept", 2)] {
        let mut headers = HeaderMap::new();
        headers.insert("vary", HeaderValue::from_static(there));
        respond(&several(), None, &mut headers);
        assert_eq!(headers.get_all("vary").iter().count(), wanted, "{there}");
    }
}
