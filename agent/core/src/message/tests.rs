//! Tables of what is taken and what is refused, and properties of the path's one form.

use super::{
    PathAction, PathRules, Refusal, check, check_authority,
    head::{Admission, HeadLimits, admits},
    is_authority, keep_tokens, normal_path, trailers,
};
use crate::{
    matching::{Entry, Order, RequestHead, RouteTable},
    model::{Match, ObjectKey, PathMatch},
};
use http::{HeaderMap, Method, Request, Version, request::Parts};
use proptest::prelude::*;

const NORMALIZE: PathRules = PathRules {
    repeated_slashes: PathAction::Normalize,
    escaped_slashes: PathAction::Normalize,
    backslashes: PathAction::Normalize,
    parameters: PathAction::Normalize,
};
const REJECT: PathRules = PathRules {
    repeated_slashes: PathAction::Reject,
    escaped_slashes: PathAction::Reject,
    backslashes: PathAction::Reject,
    parameters: PathAction::Reject,
};

#[test]
fn a_path_is_written_in_one_way() {
    for (path, wanted, normalized) in [
        ("/a/b", "/a/b", "/a/b"),
        ("/a/../b", "/b", "/b"),
        ("/a/./b", "/a/b", "/a/b"),
        ("/a/%2E%2e/b", "/b", "/b"),
        ("/a/.%2e", "/", "/"),
        ("/a/b/..", "/a/", "/a/"),
        ("/a/.", "/a/", "/a/"),
        ("/../../x", "/x", "/x"),
        ("/..", "/", "/"),
        ("/a//../b", "/a/b", "/b"),
        ("/...", "/...", "/..."),
        ("/.a/b.", "/.a/b.", "/.a/b."),
        ("//a", "//a", "/a"),
        ("//", "//", "/"),
        ("/a//", "/a//", "/a/"),
        ("/%61dmin", "/admin", "/admin"),
        ("/%7e%2D%5f", "/~-_", "/~-_"),
        ("/caf%c3%a9", "/caf%C3%A9", "/caf%C3%A9"),
        ("/%2f..%2f", "/%2F..%2F", "/"),
        ("/a%2fb", "/a%2Fb", "/a/b"),
        ("/a\\b", "/a\\b", "/a/b"),
        ("/a%5c..%5Cb", "/a%5C..%5Cb", "/b"),
        ("/a;x=1/b", "/a;x=1/b", "/a/b"),
        ("/admin/..;/x", "/admin/..;/x", "/x"),
        // Decoded once, and never so that decoding once more gives a third thing.
        ("/%2561dmin", "/%2561dmin", "/%2561dmin"),
        ("/%%36%31dmin", "/%2561dmin", "/%2561dmin"),
        ("/100%", "/100%25", "/100%25"),
        ("/%zz", "/%25zz", "/%25zz"),
        ("*", "*", "*"),
        ("", "", ""),
    ] {
        for (rules, wanted) in [(PathRules::default(), wanted), (NORMALIZE, normalized)] {
            assert_eq!(normal_path(path, &rules).as_deref(), Ok(wanted), "{path}");
            assert_eq!(normal_path(wanted, &rules).as_deref(), Ok(wanted), "twice: {path}");
        }
    }
}

#[test]
fn a_gateway_can_refuse_what_servers_read_differently() {
    for (path, taken) in [
        ("/a/b", true),
        ("/%61", true),
        ("/a/", true),
        ("//a", false),
        ("/a//", false),
        ("/a%2fb", false),
        ("/a\\b", false),
        ("/a%5Cb", false),
        ("/a;b", false),
    ] {
        assert_eq!(normal_path(path, &REJECT).is_ok(), taken, "{path}");
    }
}

#[test]
fn authorities() {
    for good in [
        "a",
        "a.b-c_d",
        "A.example:80",
        "a:",
        "10.0.0.1",
        "[::1]",
        "[::1]:8080",
        "a%20b",
        "x~!$&'()*+,;=",
        "a:65535",
        "a.",
    ] {
        assert!(is_authority(good.as_bytes()), "{good}");
    }
    for bad in [
        "", ":80", "a b", "a\tb", "a/b", "a?b", "a#b", "<script>", "[::1", "::1", "a:b", "a:-1", "a:99999",
        "a@b", "u:p@a", "[a]", "[::1]x", "a%2", "a%zz", "[]", "a:80:80", "a\\b", "\u{e4}",
    ] {
        assert!(!is_authority(bad.as_bytes()), "{bad}");
    }
}

/// `GET target` with headers, `name: value`.
fn parts(version: Version, target: &str, headers: &[&str]) -> Parts {
    let (method, target) = target.split_once(' ').unwrap_or(("GET", target));
    let mut request = Request::builder().version(version).method(method).uri(target);
    for header in headers {
        let (name, value) = header.split_once(": ").unwrap();
        request = request.header(name, value);
    }
    request.body(()).unwrap().into_parts().0
}

#[test]
fn a_message_with_two_readings_is_refused() {
    use Refusal::{Authority, Coding, Length, Target, TwoAuthorities};
    const H1: Version = Version::HTTP_11;
    const H2: Version = Version::HTTP_2;
    let cases: &[(Version, &str, &[&str], Option<Refusal>)] = &[
        (H1, "/", &["host: a"], None),
        (H1, "http://a/x", &["host: a"], None),
        (H1, "http://a", &["host: A:80"], None),
        (H1, "OPTIONS *", &["host: a"], None),
        (Version::HTTP_10, "/", &[], None),
        (H2, "http://a/", &[], None),
        (H2, "https://a:443/", &["host: a"], None),
        // C9
        (H1, "x.test", &["host: a"], Some(Target)),
        (H1, "admin", &["host: a"], Some(Target)),
        (H1, "ftp://x/", &["host: x"], Some(Target)),
        (H1, "*", &["host: a"], Some(Target)),
        (H2, "http://a#x", &[], Some(Target)),
        (H2, "http://a?q", &[], Some(Target)),
        // C10
        (H1, "/", &[], Some(Authority)),
        (H1, "/", &["host: a", "host: a"], Some(Authority)),
        (H1, "/", &["host: a b"], Some(Authority)),
        (H1, "/", &["host: a@b"], Some(Authority)),
        (H1, "/", &["host: "], Some(Authority)),
        (H2, "http://u@a/", &[], Some(Authority)),
        // C11
        (H2, "http://a/", &["host: b"], Some(TwoAuthorities)),
        (H1, "http://a/", &["host: b"], Some(TwoAuthorities)),
        (H2, "https://a:80/", &["host: a"], Some(TwoAuthorities)),
        // C13
        (H1, "/", &["host: a", "transfer-encoding: Chunked"], None),
        (H1, "/", &["host: a", "transfer-encoding: gzip, chunked"], Some(Coding)),
        (H1, "/", &["host: a", "transfer-encoding: cow", "transfer-encoding: chunked"], Some(Coding)),
        (H1, "/", &["host: a", "transfer-encoding: identity, chunked"], Some(Coding)),
        (H1, "/", &["host: a", "transfer-encoding: chunked, chunked"], Some(Length)),
        (H2, "http://a/", &["content-length: 4"], None),
        (H2, "http://a/", &["content-length: 0"], None),
        (H2, "http://a/", &["content-length: 4", "content-length: 4"], Some(Length)),
        (H2, "http://a/", &["content-length: 04"], Some(Length)),
        (H2, "http://a/", &["content-length: +4"], Some(Length)),
        (H2, "http://a/", &["content-length: 4, 4"], Some(Length)),
    ];
    for (version, target, headers, wanted) in cases {
        let parts = parts(*version, target, headers);
        let found = check(&parts).and_then(|()| check_authority(&parts)).err();
        assert_eq!(found, *wanted, "{version:?} {target} {headers:?}");
    }
}

/// Found by fuzzing: a name that HTTP/1.1 has no room for would have been written into a head of HTTP/1.1.
#[test]
fn a_field_name_of_http2_that_is_no_token_goes_nowhere() {
    let odd = http::HeaderName::from_lowercase(b"a\"b").expect("as the HTTP/2 library makes it");
    let mut parts = parts(Version::HTTP_2, "http://a/", &["x-fine: 1"]);
    assert_eq!(check(&parts), Ok(()));
    parts.headers.insert(odd, http::HeaderValue::from_static("1"));
    assert_eq!(check(&parts), Err(Refusal::FieldName));
    keep_tokens(&mut parts.headers);
    assert_eq!(parts.headers.keys().map(http::HeaderName::as_str).collect::<Vec<_>>(), ["x-fine"]);
}

#[test]
fn a_trailer_frames_and_addresses_nothing() {
    let mut fields = HeaderMap::new();
    for name in [
        "host",
        "content-length",
        "transfer-encoding",
        "authorization",
        "cookie",
        "grpc-status",
        "x-checksum",
    ] {
        fields.insert(name, "1".parse().unwrap());
    }
    trailers(&mut fields);
    let mut left: Vec<_> = fields.keys().map(http::HeaderName::as_str).collect();
    left.sort_unstable();
    assert_eq!(left, ["grpc-status", "x-checksum"]);
}

const LIMITS: HeadLimits = HeadLimits { bytes: 200, fields: 3 };

#[test]
fn a_head_that_would_be_refused_is_bytes() {
    use Admission::{Bytes, Http};
    let get = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
    let with = |field: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n");
    let cases = [
        (get("/"), Http),
        (get("/a?b=%7b"), Http),
        (get("http://a/x"), Http),
        (get("http://x.test#a"), Bytes),
        (get("/a#b"), Bytes),
        (get("x.test"), Bytes),
        (get("admin"), Bytes),
        (get("?q"), Bytes),
        (get("mailto:a@b"), Bytes),
        (get("javascript:alert(1)"), Bytes),
        (get("ftp://x/"), Bytes),
        (get("*"), Bytes),
        (get("/ x"), Bytes),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n".into(), Http),
        ("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n".into(), Bytes),
        ("GET / HTTP/1.0\r\n\r\n".into(), Http),
        ("GET / HTTP/1.1\r\n\r\n".into(), Bytes),
        ("GET / RTSP/1.0\r\n\r\n".into(), Bytes),
        ("GET / HTTP/1.1\nHost: a\n\n".into(), Bytes),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n".into(), Bytes),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n".into(), Bytes),
        (with("Host: a"), Bytes),
        (with("Content-Length: 4"), Http),
        (with("Content-Length: 04"), Bytes),
        (with("Content-Length: 4\r\nContent-Length: 4"), Bytes),
        (with("Transfer-Encoding: chunked"), Http),
        (with("Transfer-Encoding: gzip, chunked"), Bytes),
        (with("Transfer-Encoding: chunked\r\nContent-Length: 4"), Bytes),
        (with("X Y: a"), Bytes),
        (with("X : a"), Bytes),
        (with(" folded"), Bytes),
        (with("X: \x01"), Bytes),
        (with("X: \u{fc}"), Http),
        (with("A: 1\r\nB: 2"), Http),
        // Too many, and too long.
        (with("A: 1\r\nB: 2\r\nC: 3"), Bytes),
        (with(&format!("A: {}", "x".repeat(200))), Bytes),
    ];
    for (head, wanted) in cases {
        assert_eq!(admits(head.as_bytes(), LIMITS), wanted, "{head}");
        // A word once given is kept: any beginning says the same, or asks for more.
        for n in 0..head.len() {
            let found = admits(&head.as_bytes()[..n], LIMITS);
            assert!(found == Admission::NeedMore || found == wanted, "{head} {n} {found:?}");
        }
        let body = format!("{head}body");
        assert_eq!(admits(body.as_bytes(), LIMITS), wanted, "with a body: {head}");
    }
}

/// Paths made of what is read in more than one way.
fn path() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        "/", "/", "//", ".", "..", "%2e", "%2E%2e", "%61", "%41", "a", "b", "%2f", "%2F", "\\", "%5c", ";",
        ";x=1", "%", "%2", "%25", "%36%31", "%c3%a9", "%zz", "%00", "admin",
    ]);
    prop::collection::vec(part, 0..12).prop_map(|parts| format!("/{}", parts.concat()))
}

fn action() -> impl Strategy<Value = PathAction> {
    prop::sample::select(vec![PathAction::Keep, PathAction::Normalize])
}

/// What a server makes of a path that decodes unreserved characters and resolves dots, as nearly all do: in either order, and
/// as often as it likes.
fn as_a_server_reads(path: &str) -> Vec<String> {
    let once = |path: &str| {
        let mut out = path.to_owned();
        for byte in 0x21..0x7f_u8 {
            let c = char::from(byte);
            if c.is_ascii_alphanumeric() || "-._~".contains(c) {
                out = out.replace(&format!("%{byte:02X}"), &c.to_string());
                out = out.replace(&format!("%{byte:02x}"), &c.to_string());
            }
        }
        out
    };
    let decoded = once(path);
    vec![once(&decoded), decoded]
}

proptest! {
    /// C12: the form that is matched is the form that is forwarded, because it is the only one there is.
    #[test]
    fn what_is_matched_is_what_any_server_reads(
        path in path(), repeated in action(), escaped in action(), back in action(), parameters in action()
    ) {
        let rules = PathRules {
            repeated_slashes: repeated, escaped_slashes: escaped, backslashes: back, parameters,
        };
        let matched = normal_path(&path, &rules).unwrap().into_owned();
        prop_assert_eq!(&*normal_path(&matched, &rules).unwrap(), &matched, "{}", path);
        for read in as_a_server_reads(&matched) {
            prop_assert_eq!(&read, &matched, "{}", path);
        }
        prop_assert!(!matched.split('/').any(|s| s == "." || s == ".."), "{} {}", path, matched);
        prop_assert!(matched.parse::<http::uri::PathAndQuery>().is_ok(), "{} {}", path, matched);
        if escaped == PathAction::Normalize {
            prop_assert!(!matched.contains("%2F"), "{} {}", path, matched);
        }
    }

    /// A rule is written in the same form: it finds its own path however that is written.
    #[test]
    fn a_rule_finds_its_path_however_either_is_written(path in path()) {
        let entry = |exact| Entry {
            hostname: None,
            matcher: Match { path: Some(exact), ..Match::default() },
            order: Order { created: 0, route: ObjectKey::new("a", "b"), rule: 0, matched: 0 },
            policy: (),
        };
        let table = RouteTable::build(vec![entry(PathMatch::Exact(path.as_str().into()))]);
        let normal = normal_path(&path, &PathRules::default()).unwrap();
        let headers = HeaderMap::new();
        let head = RequestHead {
            host: None, authority: None, method: &Method::GET, path: &normal, query: None, headers: &headers,
        };
        prop_assert!(table.reads_paths());
        prop_assert!(table.select(&head).is_some(), "{}", path);
    }
}
