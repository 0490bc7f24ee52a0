//! Which upstream gets what, and what the client gets.

use super::support::*;
use crate::http::REASON_HEADER;
use http::{HeaderName, HeaderValue, Request, StatusCode, Version};
use http_body_util::BodyExt;
use std::sync::Arc;
use weft_core::{
    config::{Action, AppProtocol, FailReason, HttpRule, MeshRoutes, MirrorTarget},
    model::{Cors, HeaderModifier, Hostname, PathModifier, Redirect, UrlRewrite},
};

/// A request through a mesh frontend with one rule: what the upstream saw of it, and what the client got.
struct Case {
    what: &'static str,
    rule: fn(&mut HttpRule),
    request: &'static str,
    /// `METHOD target`, and headers that must be there (`name: value`) or not (`!name`).
    upstream: Option<(&'static str, &'static [&'static str])>,
    code: u16,
    /// Lines of the answer's head that must be there, or not (`!start`).
    answer: &'static [&'static str],
}

const PLAIN: fn(&mut HttpRule) = |_| {};

fn check(case: &'static Case) {
    run(async move {
        let app = App::start(|_, _| {
            Box::pin(async {
                let mut reply = text(200, "hello");
                reply.headers_mut().insert("keep-alive", HeaderValue::from_static("timeout=5"));
                reply.headers_mut().insert("x-app", HeaderValue::from_static("1"));
                reply
            })
        })
        .await;
        let mut world = World::default();
        let backend = world.service(backend("app", AppProtocol::Http), &[app.addr]);
        let mut rule = rule(to(&backend));
        (case.rule)(&mut rule);
        let bed = Bed::new(world.frontend(&backend, Some(vec![(prefix("/"), rule)])));
        let answer = raw(bed.mesh().await, case.request).await;
        assert_eq!(parse(&answer).0, case.code, "{}: {answer}", case.what);
        let head = answer.split("\r\n\r\n").next().unwrap().to_ascii_lowercase();
        for line in case.answer {
            match line.strip_prefix('!') {
                Some(start) => assert!(!head.lines().any(|l| l.starts_with(start)), "{}: {head}", case.what),
                None => assert!(head.lines().any(|l| l == *line), "{}: {line} not in {head}", case.what),
            }
        }
        let Some((line, headers)) = case.upstream else {
            assert_eq!(app.count(), 0, "{}: {:?}", case.what, app.seen.borrow());
            return;
        };
        let seen = app.last();
        assert_eq!(format!("{} {}", seen.method, seen.uri), line, "{}", case.what);
        for header in headers {
            match (header.strip_prefix('!'), header.split_once(": ")) {
                (Some(name), _) => assert_eq!(seen.header(name), None, "{}", case.what),
                (None, Some((name, value))) => assert_eq!(seen.header(name), Some(value), "{}", case.what),
                _ => unreachable!("a header is `name: value`"),
            }
        }
    });
}

macro_rules! cases {
    ($($name:ident: $case:expr;)*) => {
        $(#[test] fn $name() { static CASE: Case = $case; check(&CASE); })*
    };
}

cases! {
    passes_a_plain_request: Case {
        what: "plain", rule: PLAIN,
        request: "GET /a?b=c HTTP/1.1\r\nHost: shop:80\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        upstream: Some(("GET /a?b=c", &["host: shop:80", "accept: */*", "!connection", "!x-forwarded-for"])),
        code: 200, answer: &["x-app: 1", "content-length: 5", "!keep-alive", "!via", "!server"],
    };
    strips_what_belongs_to_the_connection: Case {
        what: "hop-by-hop", rule: PLAIN,
        request: "GET / HTTP/1.1\r\nHost: a\r\nConnection: close, X-Mine, Host\r\nX-Mine: 1\r\nKeep-Alive: 1\r\nProxy-Connection: x\r\nTE: trailers, gzip\r\n\r\n",
        upstream: Some(("GET /", &["host: a", "!x-mine", "!keep-alive", "!proxy-connection", "te: trailers"])),
        code: 200, answer: &[],
    };
    takes_the_host_from_an_absolute_target: Case {
        what: "absolute form", rule: PLAIN,
        request: "GET http://real.example:81/x HTTP/1.1\r\nHost: REAL.example:81\r\nConnection: close\r\n\r\n",
        upstream: Some(("GET /x", &["host: real.example:81"])),
        code: 200, answer: &[],
    };
    passes_options_star: Case {
        what: "OPTIONS *", rule: PLAIN,
        request: "OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        upstream: Some(("OPTIONS *", &["host: a"])),
        code: 200, answer: &[],
    };
    passes_a_target_as_it_is_where_no_rule_asks_for_a_path: Case {
        what: "dots", rule: PLAIN,
        request: "GET /public/%2e%2e/%61//b;c\\d%2f?x=../y HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        upstream: Some(("GET /public/%2e%2e/%61//b;c\\d%2f?x=../y", &[])),
        code: 200, answer: &[],
    };
    serves_http_1_0_without_host: Case {
        what: "1.0", rule: PLAIN,
        request: "GET / HTTP/1.0\r\n\r\n",
        upstream: Some(("GET /", &[])),
        code: 200, answer: &["content-length: 5"],
    };
    refuses_http_1_1_without_host: Case {
        what: "no host", rule: PLAIN,
        request: "GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
        upstream: None, code: 400, answer: &["x-weft-reason: bad_request"],
    };
    refuses_two_hosts: Case {
        what: "two hosts", rule: PLAIN,
        request: "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n",
        upstream: None, code: 400, answer: &["x-weft-reason: bad_request"],
    };
    refuses_both_lengths: Case {
        what: "CL.TE", rule: PLAIN,
        request: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nContent-Length: 5\r\nConnection: close\r\n\r\nabcdef",
        upstream: None, code: 400, answer: &[],
    };
    refuses_an_obscured_transfer_encoding: Case {
        what: "TE.TE", rule: PLAIN,
        request: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\nConnection: close\r\n\r\n0\r\n\r\n",
        upstream: None, code: 400, answer: &[],
    };
    a_length_beside_chunks_is_not_passed_on: Case {
        what: "CL and TE", rule: PLAIN,
        request: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
                  5\r\nhello\r\n0\r\n\r\n",
        upstream: Some(("POST /", &["!content-length"])),
        code: 200, answer: &[],
    };
    keeps_the_length_of_head_answers: Case {
        what: "HEAD", rule: PLAIN,
        request: "HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        upstream: Some(("HEAD /", &[])), code: 200, answer: &["content-length: 5"],
    };
    modifies_headers_both_ways: Case {
        what: "modifiers",
        rule: |r| {
            let name = HeaderName::from_static;
            let value = HeaderValue::from_static;
            r.filters.request_headers = Some(Arc::new(HeaderModifier {
                set: vec![(name("x-set"), value("new"))],
                add: vec![(name("x-add"), value("2"))],
                remove: vec![name("x-remove")],
            }));
            r.filters.response_headers = Some(Arc::new(HeaderModifier {
                set: vec![(name("x-app"), value("2"))], add: vec![], remove: vec![],
            }));
        },
        request: "GET / HTTP/1.1\r\nHost: a\r\nX-Set: old\r\nX-Remove: 1\r\nConnection: close\r\n\r\n",
        upstream: Some(("GET /", &["x-set: new", "x-add: 2", "!x-remove"])),
        code: 200, answer: &["x-app: 2"],
    };
    rewrites_path_and_host: Case {
        what: "rewrite",
        rule: |r| r.filters.rewrite = Some(Arc::new(UrlRewrite {
            hostname: Some(Hostname::parse("inner.example").unwrap()),
            path: Some(PathModifier::ReplacePrefixMatch("/v2".into())),
        })),
        request: "GET /a/b?q HTTP/1.1\r\nHost: outer.example\r\nConnection: close\r\n\r\n",
        upstream: Some(("GET /v2/a/b?q", &["host: inner.example"])),
        code: 200, answer: &[],
    };
    redirects: Case {
        what: "redirect",
        rule: |r| r.action = Action::Redirect(Box::new(Redirect {
            scheme: Some("https".into()), hostname: None, path: None, port: None, status: StatusCode::MOVED_PERMANENTLY,
        })),
        request: "GET /a?b HTTP/1.1\r\nHost: shop.example:8080\r\nConnection: close\r\n\r\n",
        upstream: None, code: 301, answer: &["location: https://shop.example/a?b", "!x-weft-reason"],
    };
    answers_a_preflight: Case {
        what: "CORS",
        rule: |r| r.filters.cors = Some(Arc::new(Cors {
            allow_origins: vec!["https://*.example".into()], allow_methods: vec!["PUT".into()], ..Cors::default()
        })),
        request: "OPTIONS /a HTTP/1.1\r\nHost: a\r\nOrigin: https://www.example\r\nAccess-Control-Request-Method: PUT\r\nConnection: close\r\n\r\n",
        upstream: None, code: 200,
        answer: &["access-control-allow-origin: https://www.example", "access-control-allow-methods: put"],
    };
    tells_browsers_who_may_read: Case {
        what: "CORS answer",
        rule: |r| r.filters.cors = Some(Arc::new(Cors { allow_origins: vec!["*".into()], ..Cors::default() })),
        request: "GET /a HTTP/1.1\r\nHost: a\r\nOrigin: https://www.example\r\nConnection: close\r\n\r\n",
        upstream: Some(("GET /a", &[])), code: 200,
        answer: &["access-control-allow-origin: https://www.example", "vary: origin"],
    };
    fails_closed: Case {
        what: "invalid filter", rule: |r| r.action = Action::Fail(FailReason::InvalidFilter),
        request: "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        upstream: None, code: 500, answer: &["x-weft-reason: invalid_filter"],
    };
    tells_grpc_clients_in_their_way: Case {
        what: "gRPC error", rule: |r| r.action = Action::Fail(FailReason::InvalidBackend),
        request: "POST /pkg.Svc/M HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc+proto\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        upstream: None, code: 200, answer: &["grpc-status: 14", "content-type: application/grpc", "content-length: 0"],
    };
    passes_the_trace_context: Case {
        what: "trace", rule: PLAIN,
        request: "GET / HTTP/1.1\r\nHost: a\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00\r\ntracestate: a=b\r\nConnection: close\r\n\r\n",
        upstream: Some(("GET /", &["traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", "tracestate: a=b"])),
        code: 200, answer: &[],
    };
}

#[test]
fn routes_only_what_matches() {
    run(async {
        let app = App::named("app").await;
        let mut world = World::default();
        let app_backend = world.service(backend("app", AppProtocol::Http), &[app.addr]);
        let bed = Bed::new(world.frontend(&app_backend, Some(vec![(prefix("/in"), rule(to(&app_backend)))])));
        let mesh = bed.mesh().await;
        assert_eq!(get(mesh, "/in/side").await.0, 200);
        // Never the parent Service as a fall-back (facts §6.1).
        assert_eq!(get(mesh, "/inside").await.0, 404);
        assert_eq!(app.count(), 1);
        let metrics = bed.metrics();
        assert!(metrics.contains("no_route"), "{metrics}");
    });
}

#[test]
fn a_service_without_routes_is_balanced_for_each_request() {
    run(async {
        let (a, b) = (App::named("a").await, App::named("b").await);
        let mut world = World::default();
        let both = world.service(backend("app", AppProtocol::Http), &[a.addr, b.addr]);
        let bed = Bed::new(world.frontend(&both, None));
        let mut client = h1_client(bed.mesh().await).await;
        for _ in 0..40 {
            client.ready().await.unwrap();
            let request = Request::get("/").header("host", "app").body(body("")).unwrap();
            let answer = client.send_request(request).await.unwrap();
            answer.into_body().collect().await.unwrap();
        }
        assert!(a.count() > 5 && b.count() > 5, "{} {}", a.count(), b.count());
        // One kept connection each is enough for a client that asks one thing at a time.
        assert_eq!((a.connections.get(), b.connections.get()), (1, 1));
    });
}

#[test]
fn one_invalid_share_fails_exactly_that_share() {
    run(async {
        let app = App::named("app").await;
        let mut world = World::default();
        let good = world.service(backend("app", AppProtocol::Http), &[app.addr]);
        let shares = split(vec![(3, Ok(Arc::clone(&good))), (1, Err(FailReason::InvalidBackend))]);
        let bed = Bed::new(world.frontend(&good, Some(vec![(prefix("/"), rule(shares))])));
        let mesh = bed.mesh().await;
        let mut failed = 0;
        for _ in 0..400 {
            match get(mesh, "/").await.0 {
                200 => {}
                500 => failed += 1,
                other => panic!("{other}"),
            }
        }
        assert!((70..130).contains(&failed), "{failed} of 400, 100 expected");
        assert_eq!(app.count(), 400 - failed);
    });
}

#[test]
fn a_gateway_routes_by_the_most_specific_listener_and_says_who_asked() {
    run(async {
        let (exact, wild) = (App::named("exact").await, App::named("wild").await);
        let mut world = World::default();
        let exact_backend = world.service(backend("exact", AppProtocol::Http), &[exact.addr]);
        let wild_backend = world.service(backend("wild", AppProtocol::Http), &[wild.addr]);
        let bed = Bed::new(world.gateway(vec![
            (Some("*.example"), vec![(prefix("/"), rule(to(&wild_backend)))]),
            (Some("a.example"), vec![(prefix("/only"), rule(to(&exact_backend)))]),
        ]));
        let gateway = bed.gateway().await;
        let ask = |host: &str, path: &str| {
            let request = format!(
                "GET {path} HTTP/1.1\r\nhost: {host}\r\nx-forwarded-for: 192.0.2.1\r\nx-forwarded-proto: https\r\nconnection: close\r\n\r\n"
            );
            async move { parse(&raw(gateway, &request).await) }
        };
        assert_eq!(ask("a.example:8080", "/only").await, (200, "exact".into()));
        // Isolation: the wildcard listener must not take what the exact one has no rule for.
        assert_eq!(ask("a.example", "/").await.0, 404);
        assert_eq!(ask("B.Example", "/").await, (200, "wild".into()));
        assert_eq!(ask("other", "/").await.0, 404);
        let seen = exact.last();
        assert_eq!(seen.header("x-forwarded-for"), Some("192.0.2.1, 127.0.0.1"));
        assert_eq!(seen.header("x-forwarded-proto"), Some("http"));
        assert_eq!(seen.header("x-forwarded-host"), Some("a.example:8080"));
    });
}

#[test]
fn mirrors_its_share_and_nothing_waits_for_it() {
    run(async {
        let app = App::named("app").await;
        let copy = App::start(|_, _| Box::pin(async { text(500, "ignored") })).await;
        let mut world = World::default();
        let primary = world.service(backend("app", AppProtocol::Http), &[app.addr]);
        let mirror = world.service(backend("copy", AppProtocol::Http), &[copy.addr]);
        let mut rule = rule(to(&primary));
        rule.filters.mirrors =
            vec![Arc::new(MirrorTarget { backend: mirror, numerator: 25, denominator: 100 })];
        let bed = Bed::new(world.frontend(&primary, Some(vec![(prefix("/"), rule)])));
        let mesh = bed.mesh().await;
        for _ in 0..400 {
            let request = "POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\nconnection: close\r\n\r\nbody";
            assert_eq!(parse(&raw(mesh, request).await), (200, "app".into()));
        }
        while bed.http.mirrors.get() > 0 {
            tokio::task::yield_now().await;
        }
        assert!((65..140).contains(&copy.count()), "{} of 400, 100 expected", copy.count());
        assert!(copy.seen.borrow().iter().all(|s| &s.body[..] == b"body" && s.uri == "/x"));
        assert_eq!(app.count(), 400);
    });
}

#[test]
fn an_edit_takes_effect_on_kept_connections_without_a_failure() {
    run(async {
        let (a, b) = (App::named("a").await, App::named("b").await);
        let config = |app: &App| {
            let mut world = World::default();
            let only = world.service(backend("app", AppProtocol::Http), &[app.addr]);
            world.frontend(&only, Some(vec![(prefix("/"), rule(to(&only)))]))
        };
        let bed = Bed::new(config(&a));
        let mesh = bed.mesh().await;
        let mut clients = Vec::new();
        for _ in 0..8 {
            clients.push(h1_client(mesh).await);
        }
        for round in 0..60 {
            bed.swap(config(if round % 2 == 0 { &a } else { &b }));
            let expected = if round % 2 == 0 { "a" } else { "b" };
            for client in &mut clients {
                client.ready().await.unwrap();
                let request = Request::get("/").header("host", "app").body(body("")).unwrap();
                let answer = client.send_request(request).await.unwrap();
                assert_eq!(answer.status(), 200);
                assert_eq!(&answer.into_body().collect().await.unwrap().to_bytes()[..], expected.as_bytes());
            }
        }
    });
}

#[test]
fn http2_clients_reach_http1_backends_and_the_other_way_round() {
    run(async {
        let app = App::named("app").await;
        let mut world = World::default();
        let h1 = world.service(backend("h1", AppProtocol::Http), &[app.addr]);
        let h2 = world.service(backend("h2", AppProtocol::H2c), &[app.addr]);
        let unknown = world.service(backend("unknown", AppProtocol::Unknown), &[app.addr]);
        let bed = Bed::new(world.frontend(
            &h1,
            Some(vec![
                (prefix("/h1"), rule(to(&h1))),
                (prefix("/h2"), rule(to(&h2))),
                (prefix("/unknown"), rule(to(&unknown))),
            ]),
        ));
        let mesh = bed.mesh().await;
        let mut client = h2_client(mesh).await;
        let cases = [("/h1", Version::HTTP_11), ("/h2", Version::HTTP_2), ("/unknown", Version::HTTP_2)];
        for (path, version) in cases {
            let request = Request::get(format!("http://shop.example:80{path}?q"))
                .header("cookie", "a=1")
                .header("cookie", "b=2")
                .body(body(""))
                .unwrap();
            let answer = client.send_request(request).await.unwrap();
            assert_eq!(answer.status(), 200, "{:?}", answer.headers().get(REASON_HEADER));
            let seen = app.last();
            assert_eq!(seen.version, version, "{path}");
            match version {
                Version::HTTP_2 => assert_eq!(seen.uri, format!("http://shop.example:80{path}?q")),
                _ => {
                    assert_eq!((seen.uri.as_str(), seen.header("host")), ("/h1?q", Some("shop.example:80")));
                    assert_eq!(seen.header("cookie"), Some("a=1; b=2"));
                }
            }
        }
        assert_eq!(get(mesh, "/h2").await, (200, "app".into()));
        assert_eq!((app.last().version, app.last().uri.as_str()), (Version::HTTP_2, "http://shop/h2"));
    });
}

#[test]
fn consumer_routes_replace_the_producers_for_their_namespace_only() {
    run(async {
        let (producer, consumer) = (App::named("producer").await, App::named("consumer").await);
        for (namespace, answer, elsewhere) in [("client", "consumer", 404), ("other", "producer", 200)] {
            let mut world = World::default();
            let of_producer = world.service(backend("p", AppProtocol::Http), &[producer.addr]);
            let of_consumer = world.service(backend("c", AppProtocol::Http), &[consumer.addr]);
            let mut config = world.frontend(&of_producer, Some(vec![(prefix("/"), rule(to(&of_producer)))]));
            let mut frontend = (**config.frontends.get(&FRONTEND.into()).unwrap()).clone();
            let routes = MeshRoutes::Http(table(vec![(prefix("/only"), rule(to(&of_consumer)))]));
            frontend.consumers.insert(namespace.into(), routes);
            config.frontends.insert(FRONTEND.into(), Arc::new(frontend));
            let mesh = Bed::new(config).mesh().await;
            assert_eq!(get(mesh, "/only").await, (200, answer.into()));
            // Never merged with the producer's (GEP-1294).
            assert_eq!(get(mesh, "/else").await.0, elsewhere);
        }
    });
}
