//! Cases by hand: each sentence of the specification, and what others got wrong.

use super::world::{Request, check, entry, table};
use crate::{
    matching::{Entry, Order, RouteTable, host_of, split_port},
    model::ObjectKey,
};

#[test]
fn host_is_the_first_key_and_falls_through() {
    check(
        &["a.b.com /x", "*.b.com =/x", "*.com /", "- /", "*.a.b.com /"],
        &[
            ("GET a.b.com /x", Some(0)), // exact host beats the wildcard's better path
            ("GET a.b.com /y", Some(2)), // no rule in a.b.com nor *.b.com
            ("GET c.b.com /x", Some(1)),
            ("GET c.b.com /x/", Some(2)),
            ("GET x.y.com /", Some(2)),
            ("GET com /", Some(3)),
            ("GET - /", Some(3)),
            ("GET A.B.COM:8080 /x", Some(0)),
            ("GET a.b.com. /x", Some(0)),
            ("GET z.a.b.com /x", Some(4)),
            ("GET [::1]:80 /x", Some(3)),
        ],
    );
    check(&["a.com /x"], &[("GET a.com /y", None), ("GET b.com /x", None), ("GET - /x", None)]);
}

#[test]
fn paths() {
    check(
        &["- =/v2", "- /v2", "- /v2/long", "- ~/v[23].*", "- /", "- /s/"],
        &[
            ("GET h /v2", Some(0)),
            ("GET h /v2/", Some(1)),
            ("GET h /v2/x", Some(1)),
            ("GET h /v2/long/x", Some(2)),
            ("GET h /v2/longer", Some(1)),
            ("GET h /v2example", Some(3)), // not under the prefix; the pattern stands before `/`
            ("GET h /V2", Some(4)),
            ("GET h /s", Some(5)), // a trailing slash in a prefix does not count
            ("GET h /s/x", Some(5)),
            ("GET h /sx", Some(4)),
            ("GET h /v2//x", Some(1)),
            ("GET h //v2", Some(4)),
            ("GET h /v2%2Flong", Some(3)), // one segment: nothing is decoded
            ("OPTIONS h *", Some(4)),
        ],
    );
    check(&["- =/a/", "- /a"], &[("GET h /a", Some(1)), ("GET h /a/", Some(0))]);
}

#[test]
fn longest_pattern_first() {
    check(
        &["- ~/a.*", "- ~/a/b.*", "- ~/.*"],
        &[("GET h /a/bc", Some(1)), ("GET h /ax", Some(0)), ("GET h /x", Some(2)), ("GET h x", None)],
    );
}

#[test]
fn method_then_headers_then_query() {
    check(
        &["- /", "- / q:a=1 q:b=1", "- / h:x=1 q:a=1", "- / h:x=1 h:y=1", "- / GET"],
        &[
            ("GET h /?a=1&b=1 h:x=1 h:y=1", Some(4)),
            ("PUT h /?a=1&b=1 h:x=1 h:y=1", Some(3)),
            ("PUT h /?a=1&b=1 h:x=1", Some(2)),
            ("PUT h /?a=1&b=1", Some(1)),
            ("PUT h /?a=1", Some(0)),
        ],
    );
    check(
        &["- /a", "- / GET h:x=1"],
        &[("GET h /a h:x=1", Some(0)), ("GET h /b h:x=1", Some(1)), ("PUT h /b h:x=1", None)],
    );
}

#[test]
fn headers() {
    check(
        &["- / h:x=a,b", "- / h~x=c.*", "- / h:cookie=a"],
        &[
            ("GET h / h:x=a,b", Some(0)),
            ("GET h / h:X=a h:x=b", Some(0)), // one value over two lines
            ("GET h / h:x=a", None),
            ("GET h / h:x=a,b h:x=c", None),
            ("GET h / h:x=c h:x=d", Some(1)),
            ("GET h / h:x=ac", None), // patterns cover the whole value
            ("GET h / h:x=A,B", None),
        ],
    );
    check(&["- / h~cookie=a=1;.b=2"], &[("GET h / h:cookie=a=1 h:cookie=b=2", Some(0))]);
    // "only the first entry with an equivalent name MUST be considered", also for counting
    check(
        &["- / h:x=1 h:X=2", "- / h:x=1 h:y=1"],
        &[("GET h / h:x=1", Some(0)), ("GET h / h:x=1 h:y=1", Some(1))],
    );
}

#[test]
fn query() {
    check(
        &["- / q:a=x", "- / q~b=x+", "- / q:c=é"],
        &[
            ("GET h /?a=x", Some(0)),
            ("GET h /?a=y&a=x", None), // the first value counts
            ("GET h /?A=x", None),
            ("GET h /?%61=%78", Some(0)),
            ("GET h /?aa=x&z&a=x", Some(0)),
            ("GET h /?b=xxx", Some(1)),
            ("GET h /?b=%78x", Some(1)),
            ("GET h /?b=x%20x", None),
            ("GET h /?c=%C3%A9", Some(2)),
            ("GET h /?c=%C3%A", None),
            ("GET h /?c=%", None),
            ("GET h /", None),
        ],
    );
}

#[test]
fn grpc() {
    check(
        &[
            "- grpc:pkg.S/M",
            "- grpc:pkg.S/",
            "- grpc:/M",
            "- grpc~pkg\\..*/M.*",
            "- grpc~/N.*",
            "-",
            "- grpc:.q.S/M",
        ],
        &[
            ("POST h /pkg.S/M", Some(0)),
            ("POST h /pkg.S/N", Some(1)),
            ("POST h /pkg.T/M", Some(3)), // characters of the service come first, also for patterns
            ("POST h /other/M", Some(2)),
            ("POST h /other/N1", Some(4)),
            ("POST h /other/x", Some(5)),
            ("POST h /pkg.S/M/x", Some(5)),
            ("POST h /pkg.S", Some(5)),
        ],
    );
    check(&["- grpc:S/M", "- grpc:S/M h:x=1"], &[("POST h /S/M", Some(0)), ("POST h /S/M h:x=1", Some(1))]);
}

#[test]
fn a_leading_dot_of_a_service_does_not_count() {
    let table = table(&["- grpc:.q.S/M", "- grpc:.q.S/"]);
    for (path, wanted) in [("/q.S/M", 0), ("/q.S/N", 1)] {
        let request = Request::parse(&format!("POST h {path}"));
        assert_eq!(table.select(&request.head()).unwrap().entry.policy, wanted);
    }
}

#[test]
fn ties() {
    let order = |created, (namespace, name): (&str, &str), rule, matched| Order {
        created,
        route: ObjectKey::new(namespace, name),
        rule,
        matched,
    };
    // Each is better than the next.
    let ordered = [
        order(1, ("z", "z"), 9, 9),
        order(2, ("a-b", "x"), 9, 9), // the text `a-b/x` sorts before `a/x`
        order(2, ("a", "x"), 0, 9),
        order(2, ("a", "x"), 1, 0),
        order(2, ("a", "x"), 1, 1),
        order(2, ("a", "y"), 0, 0),
        order(2, ("b", "a"), 0, 0),
    ];
    let entries = ordered.iter().rev().map(|order| Entry { order: order.clone(), ..entry(0, "- /a") });
    let table = RouteTable::build(entries.collect());
    assert_eq!(table.iter().map(|e| &e.order).collect::<Vec<_>>(), ordered.iter().collect::<Vec<_>>());
}

#[test]
fn what_the_rewrite_needs() {
    for (entry, prefix) in
        [("- /a/b/", Some("/a/b")), ("- /", Some("")), ("-", Some("")), ("- =/a/b", None), ("- ~.*", None)]
    {
        let table = table(&[entry]);
        let request = Request::parse("GET h /a/b");
        assert_eq!(table.select(&request.head()).unwrap().prefix(), prefix, "{entry}");
    }
}

#[test]
fn shadowed() {
    type Case<'a> = (&'a [&'a str], &'a [(u16, u16)]);
    let cases: [Case<'_>; 6] = [
        (&["- /a", "- /a"], &[(1, 0)]),
        (&["- /a", "- /a/", "- =/a"], &[(1, 0)]),
        (&["- /", "-", "- / GET"], &[(1, 0)]),
        (&["- / h:x=1 h:y=2", "- / h:y=2 h:x=1", "- / h:x=1"], &[(1, 0)]),
        (&["- ~a", "- ~b", "- ~a", "- grpc~a/", "- grpc~a/"], &[(2, 0), (4, 3)]),
        (&["a.com /", "*.com /", "- /", "a.com /"], &[(3, 0)]),
    ];
    for (entries, wanted) in cases {
        let table = table(entries);
        let mut found: Vec<_> = table.shadowed().iter().map(|s| (s.entry.policy, s.by.policy)).collect();
        found.sort_unstable();
        assert_eq!(found, wanted, "{entries:?}");
    }
}

#[test]
fn authorities() {
    for (authority, host, port) in [
        ("a.com", "a.com", None),
        ("A.com:80", "a.com", Some(80)),
        ("a.com.:80", "a.com", Some(80)),
        ("a.com.", "a.com", None),
        ("[::1]:80", "[::1]", Some(80)),
        ("[::1]", "[::1]", None),
        ("10.0.0.1:8", "10.0.0.1", Some(8)),
        ("a.com:x", "a.com", None),
        ("u:p@a.com:80", "a.com", Some(80)),
        ("", "", None),
        (":80", "", Some(80)),
        ("[::1", "[::1", None),
    ] {
        assert_eq!(host_of(authority), host, "{authority}");
        assert_eq!(split_port(authority).1, port, "{authority}");
    }
}
