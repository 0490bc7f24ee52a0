//! Messages arrive as they were sent, or are refused: never as something else.

use super::support::*;
use crate::http::Entrance;
use bytes::Bytes;
use futures_util::stream;
use http::Request;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use std::{io, net::SocketAddr, rc::Rc, sync::Arc};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use weft_core::{
    config::{AppProtocol, MirrorTarget},
    model::{ClientRules, GatewayParameters, HeaderMatch, HeaderModifier, Match, ValueMatch},
};

/// An upstream that answers everything.
async fn willing() -> App {
    // hyper's HTTP/2 server would send the body of an answer to HEAD.
    App::start(|seen, _| {
        Box::pin(async move { text(200, if seen.method == "HEAD" { "" } else { "answer" }) })
    })
    .await
}

/// `app` behind a Gateway, and as a Service without routes.
fn both(app: &App, protocol: AppProtocol) -> [(&'static str, Rc<Bed>, Entrance); 2] {
    let world = || {
        let mut world = World::default();
        let service = world.service(backend("app", protocol), &[app.addr]);
        (world, service)
    };
    let ((at_edge, edge), (in_mesh, mesh)) = (world(), world());
    let routes = vec![(None, vec![(prefix("/"), rule(to(&edge)))])];
    [
        ("gateway", Bed::new(at_edge.gateway(routes)), at_gateway()),
        ("mesh", Bed::new(in_mesh.frontend(&mesh, None)), Entrance::Mesh { frontend: FRONTEND.into() }),
    ]
}

/// Found by fuzzing: `"` in a name, which HTTP/2's library lets pass, made a head of HTTP/1.1 that is none.
#[test]
fn a_field_name_that_is_no_token_reaches_nobody() {
    run(async {
        let empty = || StreamBody::new(stream::empty::<Result<Frame<Bytes>, io::Error>>()).boxed_unsync();
        let odd = || http::HeaderName::from_lowercase(b"a\"b").expect("as HTTP/2's library makes it");
        let app = App::start(move |_, _| {
            Box::pin(async move {
                let mut answer = text(200, "answer");
                answer.headers_mut().insert(odd(), http::HeaderValue::from_static("1"));
                answer
            })
        })
        .await;
        for (place, bed, entrance) in both(&app, AppProtocol::H2c) {
            let addr = bed.listen(entrance, None).await;
            let answer = raw(addr, "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
            assert!(answer.starts_with("HTTP/1.1 200") && !answer.contains("a\"b"), "{place} {answer}");
            let calls = app.count();
            let request = Request::get("http://a/").header(odd(), "1").body(empty()).unwrap();
            let answer = h2_client(addr).await.send_request(request).await.expect("an answer");
            assert_eq!((answer.status().as_u16(), app.count()), (400, calls), "{place}");
        }
    });
}

/// C1: what has no length is a body all the same, whatever the method.
#[test]
fn a_body_of_get_and_head_without_a_length_arrives() {
    run(async {
        for protocol in [AppProtocol::Http, AppProtocol::H2c] {
            let app = willing().await;
            for (place, bed, entrance) in both(&app, protocol) {
                let addr = bed.listen(entrance, None).await;
                for method in ["GET", "HEAD", "POST"] {
                    let request = format!(
                        "{method} / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n4\r\nbody\r\n0\r\n\r\n"
                    );
                    assert_eq!(parse(&raw(addr, &request).await).0, 200, "{place} {method}");
                    let seen = app.last();
                    assert_eq!(
                        (&*seen.method, &seen.body[..]),
                        (method, &b"body"[..]),
                        "{place} {protocol:?}"
                    );
                    let data = stream::iter([Ok::<_, io::Error>(Frame::data(Bytes::from("of http/2")))]);
                    let request = Request::builder().method(method).uri("http://a/");
                    let request = request.body(StreamBody::new(data).boxed_unsync()).unwrap();
                    let answer = h2_client(addr).await.send_request(request).await;
                    let answer = answer.unwrap_or_else(|e| panic!("{place} {method} {protocol:?}: {e:?}"));
                    assert_eq!(answer.status(), 200, "{place} {method}");
                    let seen = app.last();
                    assert_eq!(
                        (&*seen.method, &seen.body[..]),
                        (method, &b"of http/2"[..]),
                        "{place} {protocol:?}"
                    );
                }
            }
        }
    });
}

/// C1: a copy is a message, too.
#[test]
fn a_mirrored_get_keeps_its_body() {
    run(async {
        let (app, copy) = (willing().await, willing().await);
        let mut world = World::default();
        let primary = world.service(backend("app", AppProtocol::Http), &[app.addr]);
        let mirror = world.service(backend("copy", AppProtocol::Http), &[copy.addr]);
        let mut rule = rule(to(&primary));
        rule.filters.mirrors = vec![Arc::new(MirrorTarget { backend: mirror, numerator: 1, denominator: 1 })];
        let bed = Bed::new(world.frontend(&primary, Some(vec![(prefix("/"), rule)])));
        let request = "GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n4\r\nbody\r\n0\r\n\r\n";
        assert_eq!(parse(&raw(bed.mesh().await, request).await).0, 200);
        while copy.count() == 0 {
            tokio::task::yield_now().await;
        }
        for app in [app, copy] {
            assert_eq!((&*app.last().method, &app.last().body[..]), ("GET", &b"body"[..]));
        }
    });
}

/// Sends, ends its side, and reads to the end.
async fn and_fin(addr: SocketAddr, request: &[u8]) -> String {
    let mut io = TcpStream::connect(addr).await.unwrap();
    io.write_all(request).await.unwrap();
    io.shutdown().await.unwrap();
    let mut answer = Vec::new();
    io.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// C2: `nc -N`, BusyBox's wget.
#[test]
fn who_sends_a_request_and_then_fin_is_answered() {
    run(async {
        // The answer begins well after the FIN has been seen.
        let app = App::start(|_, _| {
            Box::pin(async {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                text(200, "answer")
            })
        })
        .await;
        for (place, bed, entrance) in both(&app, AppProtocol::Http) {
            for version in [None, Some(crate::http::HttpVersion::Http1)] {
                let addr = bed.listen(entrance.clone(), version).await;
                for request in [
                    "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
                    "GET / HTTP/1.0\r\nhost: a\r\n\r\n",
                    "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody",
                ] {
                    let answer = and_fin(addr, request.as_bytes()).await;
                    assert_eq!(parse(&answer), (200, "answer".into()), "{place} {request}");
                }
                // Two at once: both are answered, in order.
                let two = "GET /1 HTTP/1.1\r\nhost: a\r\n\r\nGET /2 HTTP/1.1\r\nhost: a\r\n\r\n";
                let answer = and_fin(addr, two.as_bytes()).await;
                assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{place} {answer}");
                // Half a body is none: nobody is told that it came whole.
                let half = "POST /half HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nbody";
                let answer = and_fin(addr, half.as_bytes()).await;
                assert_ne!(parse(&answer).0, 200, "{place} {answer}");
                assert_ne!(app.last().uri, "/half", "{place}");
            }
        }
    });
}

/// `app` where a rule reads each request (at a Gateway and in the mesh), and where none does.
fn read_and_unread(app: &App) -> [(&'static str, Rc<Bed>, Entrance); 3] {
    let mut world = World::default();
    let service = world.service(backend("app", AppProtocol::Http), &[app.addr]);
    let routes = vec![(prefix("/"), rule(to(&service)))];
    let with_routes = Bed::new(world.frontend(&service, Some(routes)));
    let [gateway, mesh] = both(app, AppProtocol::Http);
    [gateway, ("mesh, with a route", with_routes, Entrance::Mesh { frontend: FRONTEND.into() }), mesh]
}

/// C9, C10, C11, C13 over HTTP/1.1: what is refused where somebody reads it, and what becomes of it elsewhere. (On a port
/// where nobody has said what is spoken it is not HTTP: `outbound::tests`.)
#[test]
fn a_message_with_two_readings_is_refused_where_it_is_read() {
    // Head, its status where it is read, and where it is not.
    let cases = [
        ("GET x.test HTTP/1.1\r\nhost: a\r\n", 400, 400),
        ("GET admin HTTP/1.1\r\nhost: a\r\n", 400, 400),
        ("GET * HTTP/1.1\r\nhost: a\r\n", 400, 400),
        ("GET ftp://x/ HTTP/1.1\r\nhost: x\r\n", 400, 400),
        ("GET / HTTP/1.1\r\nhost: a b\r\n", 400, 200),
        ("GET / HTTP/1.1\r\nhost: a/b\r\n", 400, 200),
        ("GET / HTTP/1.1\r\nhost: <script>\r\n", 400, 200),
        ("GET / HTTP/1.1\r\nhost: ::1\r\n", 400, 200),
        ("GET / HTTP/1.1\r\nhost: a:b\r\n", 400, 200),
        ("GET / HTTP/1.1\r\nhost: a@b\r\n", 400, 200),
        ("GET / HTTP/1.1\r\nhost:\r\n", 400, 200),
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n", 400, 400),
        ("GET http://b/ HTTP/1.1\r\nhost: a\r\n", 400, 200),
        ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n", 501, 501),
        ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: cow, chunked\r\n", 501, 501),
        ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, chunked\r\n", 400, 400),
    ];
    run(async move {
        let app = willing().await;
        for (n, (place, bed, entrance)) in read_and_unread(&app).into_iter().enumerate() {
            let addr = bed.listen(entrance, None).await;
            for (head, read, unread) in cases {
                let wanted = if n < 2 { read } else { unread };
                let before = app.count();
                let answer = raw(addr, &format!("{head}connection: close\r\n\r\n0\r\n\r\n")).await;
                assert_eq!(parse(&answer).0, wanted, "{place}: {head}: {answer}");
                assert_eq!(app.count() - before, usize::from(wanted == 200), "{place}: {head}");
                if wanted != 200 {
                    assert!(answer.contains("x-weft-reason: "), "{place}: {head}: {answer}");
                }
            }
        }
    });
}

/// C9, C11, C13 over HTTP/2: one stream is refused, and the connection serves on.
#[test]
fn a_malformed_http2_request_is_refused_alone() {
    run(async {
        let app = willing().await;
        for (n, (place, bed, entrance)) in read_and_unread(&app).into_iter().enumerate() {
            let mut client = h2_client(bed.listen(entrance, None).await).await;
            for (uri, headers, read, unread) in [
                ("http://a/", &[("host", "a")][..], 200, 200),
                ("http://a/", &[("host", "b")][..], 400, 200),
                ("http://u@a/", &[][..], 400, 200),
                ("http://a/", &[("content-length", "0"), ("content-length", "0")][..], 400, 400),
                ("http://a/", &[("content-length", "00")][..], 400, 400),
            ] {
                let mut request = Request::get(uri).version(http::Version::HTTP_2);
                for (name, value) in headers {
                    request = request.header(*name, *value);
                }
                let answer = client.send_request(request.body(body("")).unwrap()).await.unwrap();
                let wanted = if n < 2 { read } else { unread };
                assert_eq!(answer.status(), wanted, "{place}: {uri} {headers:?}");
            }
            let answer = client.send_request(Request::get("http://a/").body(body("")).unwrap()).await;
            assert_eq!(answer.unwrap().status(), 200, "{place}: afterwards");
        }
    });
}

/// C9: a path that is only a fragment; the client library would not send it.
#[test]
fn an_http2_path_that_is_a_fragment_is_refused() {
    // The preface and SETTINGS; HEADERS of stream 1: GET, http, a, `#x` (RFC 7541 §6.1, §6.2.2).
    let mut request = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    request.extend(b"\0\0\x09\x01\x05\0\0\0\x01\x82\x86\x01\x01a\x04\x02#x");
    run(async move {
        let app = willing().await;
        for (place, bed, entrance) in read_and_unread(&app) {
            let mut io = TcpStream::connect(bed.listen(entrance, None).await).await.unwrap();
            io.write_all(&request).await.unwrap();
            while !bed.metrics().contains("bad_request") {
                tokio::task::yield_now().await;
            }
            assert_eq!(app.count(), 0, "{place}");
        }
    });
}

fn host_match(host: &'static str) -> Match {
    let value = ValueMatch::Exact(http::HeaderValue::from_static(host));
    Match { headers: vec![HeaderMatch { name: http::header::HOST, value }], ..Match::default() }
}

/// C11: Weft's own condition advises a match on `Host`.
#[test]
fn a_match_on_host_sees_the_authority() {
    run(async {
        let (app, other) = (App::named("app").await, App::named("other").await);
        let mut world = World::default();
        let by_host = world.service(backend("app", AppProtocol::Http), &[app.addr]);
        let default = world.service(backend("other", AppProtocol::Http), &[other.addr]);
        let routes = vec![(host_match("app.example"), rule(to(&by_host))), (prefix("/"), rule(to(&default)))];
        let bed = Bed::new(world.gateway(vec![(None, routes)]));
        let addr = bed.gateway().await;
        for (host, wanted) in [("app.example", &app), ("x.example", &other)] {
            let before = wanted.count();
            let request = Request::get(format!("http://{host}/")).body(body("")).unwrap();
            assert_eq!(h2_client(addr).await.send_request(request).await.unwrap().status(), 200);
            for target in ["/", &format!("http://{host}/")] {
                let request = format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
                assert_eq!(parse(&raw(addr, &request).await).0, 200);
            }
            assert_eq!(wanted.count() - before, 3, "{host}");
            assert_eq!(wanted.last().header("host"), Some(host));
        }
    });
}

/// C12: what was matched is what the backend gets, whatever way it was written in.
#[test]
fn the_path_that_was_matched_is_the_path_that_is_forwarded() {
    run(async {
        let (admin, other) = (App::named("admin").await, App::named("other").await);
        for at_edge in [false, true] {
            let mut world = World::default();
            let only = world.service(backend("admin", AppProtocol::Http), &[admin.addr]);
            let default = world.service(backend("other", AppProtocol::Http), &[other.addr]);
            let routes = vec![(prefix("/admin"), rule(to(&only))), (prefix("/"), rule(to(&default)))];
            let (config, entrance) = if at_edge {
                (world.gateway(vec![(None, routes)]), at_gateway())
            } else {
                (world.frontend(&default, Some(routes)), Entrance::Mesh { frontend: FRONTEND.into() })
            };
            let addr = Bed::new(config).listen(entrance, None).await;
            for (path, app, forwarded) in [
                ("/admin/x", &admin, "/admin/x"),
                ("/%61dmin/x?y=%61", &admin, "/admin/x?y=%61"),
                ("/public/%2e%2E/admin", &admin, "/admin"),
                ("/public/../%61%64min/", &admin, "/admin/"),
                ("/%%36%31dmin", &other, "/%2561dmin"),
                ("/x/../b%2fc", &other, "/b%2Fc"),
                ("//admin", &other, "//admin"),
            ] {
                let name = if std::ptr::eq(app, &admin) { "admin" } else { "other" };
                assert_eq!(get(addr, path).await, (200, name.into()), "{path}");
                assert_eq!(app.last().uri, forwarded, "{path}");
            }
        }
    });
}

/// C12: the switch of a Gateway.
#[test]
fn a_gateway_decides_what_servers_read_differently() {
    use weft_core::message::{PathAction, PathRules};
    let all = |action| PathRules {
        repeated_slashes: action,
        escaped_slashes: action,
        backslashes: action,
        parameters: action,
    };
    run(async move {
        let app = App::named("app").await;
        for (action, code, forwarded) in [
            (PathAction::Keep, 404, ""),
            (PathAction::Normalize, 200, "/admin"),
            (PathAction::Reject, 400, ""),
        ] {
            let mut world = World::default();
            let only = world.service(backend("app", AppProtocol::Http), &[app.addr]);
            let routes = vec![(None, vec![(prefix("/admin"), rule(to(&only)))])];
            let parameters = GatewayParameters { paths: all(action), ..GatewayParameters::default() };
            let addr = Bed::new(with_parameters(world.gateway(routes), parameters)).gateway().await;
            for path in ["//admin", "/x%2f..%2fadmin", "/x\\..\\admin", "/;a/..;b/admin;c"] {
                assert_eq!(get(addr, path).await.0, code, "{action:?} {path}");
                if code == 200 {
                    assert_eq!(app.last().uri, forwarded, "{action:?} {path}");
                }
            }
        }
    });
}

/// C13: a trailer cannot put back what a rule has taken away.
#[test]
fn request_trailers_pass_the_rules_header_filters() {
    run(async {
        let app = willing().await;
        let mut world = World::default();
        let only = world.service(backend("app", AppProtocol::H2c), &[app.addr]);
        let mut rule = rule(to(&only));
        rule.filters.request_headers = Some(Arc::new(HeaderModifier {
            set: vec![("x-user".parse().unwrap(), "nobody".parse().unwrap())],
            add: vec![],
            remove: vec!["x-secret".parse().unwrap()],
        }));
        let bed = Bed::new(world.gateway(vec![(None, vec![(prefix("/"), rule)])]));
        let mut trailers = http::HeaderMap::new();
        for name in ["x-user", "x-secret", "content-length", "host", "x-checksum"] {
            trailers.insert(name, http::HeaderValue::from_static("1"));
        }
        let frames =
            stream::iter([Ok::<_, io::Error>(Frame::data(Bytes::from("x"))), Ok(Frame::trailers(trailers))]);
        let request = Request::post("http://a/").body(StreamBody::new(frames).boxed_unsync()).unwrap();
        let answer = h2_client(bed.gateway().await).await.send_request(request).await.unwrap();
        assert_eq!(answer.status(), 200);
        let seen = app.last().trailers.expect("trailers");
        assert_eq!(seen.keys().map(http::HeaderName::as_str).collect::<Vec<_>>(), ["x-checksum"]);
    });
}

/// C17: one octet that is not ASCII hides nothing.
#[test]
fn a_connection_line_removes_what_it_names_whatever_else_is_in_it() {
    run(async {
        let app = willing().await;
        for (_, bed, entrance) in both(&app, AppProtocol::Http) {
            let addr = bed.listen(entrance, None).await;
            let request = b"GET / HTTP/1.1\r\nhost: a\r\nx-gone: 1\r\nconnection: \xff, x-gone\r\n\r\n";
            assert_eq!(parse(&and_fin(addr, request).await).0, 200);
            assert_eq!(app.last().header("x-gone"), None);
        }
    });
}

fn trusting(trusted: &[&str]) -> GatewayParameters {
    let trusted = trusted.iter().map(|net| net.parse().unwrap()).collect();
    GatewayParameters {
        clients: ClientRules { trusted, ..ClientRules::default() },
        ..GatewayParameters::default()
    }
}

/// B7, B8: what somebody outside may say of himself, and what a proxy in front of us may say of others.
#[test]
fn a_gateway_believes_trusted_proxies_only() {
    run(async {
        // The client's lines, whether it is trusted, and what the backend gets.
        type Fields = &'static [(&'static str, Option<&'static str>)];
        let cases: &[(&str, bool, Fields)] = &[
            (
                "x-forwarded-client-cert: Hash=1\r\nl5d-client-id: me\r\nx-weft-reason: x\r\nx-weft-other: y\r\nx-mine: 1\r\n",
                false,
                &[
                    ("x-forwarded-client-cert", None),
                    ("l5d-client-id", None),
                    ("x-weft-reason", None),
                    ("x-weft-other", None),
                    ("x-mine", Some("1")),
                ],
            ),
            (
                "x-forwarded-client-cert: Hash=1\r\nl5d-client-id: me\r\n",
                true,
                &[("x-forwarded-client-cert", Some("Hash=1")), ("l5d-client-id", None)],
            ),
            (
                "x-forwarded-for: 192.0.2.1\r\nx-forwarded-proto: https\r\nx-forwarded-host: b\r\n",
                false,
                &[
                    ("x-forwarded-for", Some("192.0.2.1, 127.0.0.1")),
                    ("x-forwarded-proto", Some("http")),
                    ("x-forwarded-host", Some("a")),
                ],
            ),
            (
                "x-forwarded-for: 192.0.2.1\r\nx-forwarded-proto: https\r\nx-forwarded-host: b\r\n",
                true,
                &[
                    ("x-forwarded-for", Some("192.0.2.1, 127.0.0.1")),
                    ("x-forwarded-proto", Some("https")),
                    ("x-forwarded-host", Some("b")),
                ],
            ),
            ("", true, &[("x-forwarded-proto", Some("http")), ("x-forwarded-host", Some("a"))]),
        ];
        let app = App::named("app").await;
        for (lines, trusted, wanted) in cases {
            let mut world = World::default();
            let only = world.service(backend("app", AppProtocol::Http), &[app.addr]);
            let config = world.gateway(vec![(None, vec![(prefix("/"), rule(to(&only)))])]);
            let proxies: &[&str] = if *trusted { &["127.0.0.0/8"] } else { &["192.0.2.0/24"] };
            let gateway = Bed::new(with_parameters(config, trusting(proxies))).gateway().await;
            let request = format!("GET / HTTP/1.1\r\nhost: a\r\n{lines}connection: close\r\n\r\n");
            assert_eq!(parse(&raw(gateway, &request).await).0, 200);
            for (name, value) in *wanted {
                assert_eq!(app.last().header(name), *value, "{lines} {name}");
            }
        }
    });
}

/// B8: a redirect behind a load balancer that ends TLS leads to where the client is.
#[test]
fn a_redirect_behind_a_trusted_proxy_keeps_the_clients_scheme() {
    run(async {
        for (trusted, wanted) in [(true, "location: https://b/"), (false, "location: http://b:8080/")] {
            let mut world = World::default();
            let only = world.service(backend("app", AppProtocol::Http), &[]);
            let redirect = weft_core::model::Redirect {
                scheme: None,
                hostname: Some(weft_core::model::Hostname::parse("b").unwrap()),
                path: None,
                port: None,
                status: http::StatusCode::FOUND,
            };
            let _ = only;
            let to_b = rule(weft_core::config::Action::Redirect(Box::new(redirect)));
            let config = world.gateway(vec![(None, vec![(prefix("/"), to_b)])]);
            let proxies: &[&str] = if trusted { &["127.0.0.0/8"] } else { &[] };
            let gateway = Bed::new(with_parameters(config, trusting(proxies))).gateway().await;
            let request =
                "GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-proto: https\r\nconnection: close\r\n\r\n";
            let answer = raw(gateway, request).await.to_ascii_lowercase();
            assert!(answer.lines().any(|line| line.starts_with(wanted)), "{trusted}: {answer}");
        }
    });
}

/// B7: a word of ours is only ours.
#[test]
fn a_backends_own_reason_does_not_reach_the_client() {
    run(async {
        let app = App::start(|_, _| {
            Box::pin(async {
                let mut reply = text(503, "mine");
                reply.headers_mut().insert("x-weft-reason", http::HeaderValue::from_static("no_endpoint"));
                reply
            })
        })
        .await;
        for (place, bed, entrance) in both(&app, AppProtocol::Http) {
            let answer = raw(
                bed.listen(entrance, None).await,
                "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
            )
            .await;
            assert_eq!(parse(&answer), (503, "mine".into()), "{place}");
            assert!(!answer.contains("x-weft-reason"), "{place}: {answer}");
        }
    });
}
