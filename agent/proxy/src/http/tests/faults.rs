//! What goes wrong behind us, and what the client sees of it.

use super::support::*;
use crate::{
    context::Limits,
    dial::{Dial, Upstream, UpstreamInfo},
    error::{ProxyError, Reason, Retryable},
    http::{REASON_HEADER, respond},
    share::Kind,
    workload::LocalWorkload,
};
use http::{HeaderValue, Request};
use http_body_util::BodyExt;
use std::{cell::Cell, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use weft_core::{
    config::{AppProtocol, Backend, Config, Endpoint, HttpRule, MirrorTarget},
    model::{Retry, RouteKind},
};

fn retry(attempts: u32, codes: &[u16]) -> Option<Arc<Retry>> {
    Some(Arc::new(Retry { codes: codes.to_vec(), attempts, backoff: Some(Duration::from_millis(1)) }))
}

/// A bed with one rule in front of `app`.
fn bed(app: &App, edit: impl FnOnce(&mut HttpRule)) -> Rc<Bed> {
    let mut world = World::default();
    let only = world.service(backend("app", AppProtocol::Http), &[app.addr]);
    let mut rule = rule(to(&only));
    edit(&mut rule);
    Bed::new(world.frontend(&only, Some(vec![(prefix("/"), rule)])))
}

#[test]
fn retries_listed_codes_exactly_as_often_as_asked() {
    run(async {
        for (fails, attempts, code, asked) in [(2, 2, 200, 3), (3, 2, 503, 3), (1, 0, 503, 1), (9, 5, 503, 6)]
        {
            let app = App::start(move |_, n| {
                Box::pin(async move { text(if n <= fails { 503 } else { 200 }, "x") })
            })
            .await;
            let bed = bed(&app, |r| r.retry = retry(attempts, &[503]));
            assert_eq!(get(bed.mesh().await, "/").await.0, code, "{fails} {attempts}");
            assert_eq!(app.count(), asked, "{fails} {attempts}");
        }
    });
}

#[test]
fn does_not_retry_other_codes_and_replays_small_bodies() {
    run(async {
        let app = App::start(|_, n| Box::pin(async move { text(if n == 1 { 503 } else { 500 }, "x") })).await;
        let bed = bed(&app, |r| r.retry = retry(5, &[503]));
        let request = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\nconnection: close\r\n\r\nbody";
        assert_eq!(parse(&raw(bed.mesh().await, request).await).0, 500);
        let bodies: Vec<_> = app.seen.borrow().iter().map(|s| s.body.clone()).collect();
        assert_eq!(bodies, ["body", "body"]);
    });
}

#[test]
fn does_not_replay_a_body_beyond_the_bound() {
    run(async {
        let app = App::start(|_, _| Box::pin(async { text(503, "x") })).await;
        let bed = bed(&app, |r| r.retry = retry(5, &[503]));
        let data = bytes::Bytes::from(vec![7; super::super::body::REPLAY_BYTES_MAX + 1]);
        let whole = http_body_util::Full::new(data).map_err(|e| match e {}).boxed_unsync();
        let request = Request::post("/").header("host", "a").body(whole).unwrap();
        let answer = h1_client(bed.mesh().await).await.send_request(request).await.unwrap();
        assert_eq!((answer.status().as_u16(), app.count()), (503, 1));
    });
}

#[test]
fn another_endpoint_is_tried_when_one_refuses() {
    run(async {
        let app = App::named("app").await;
        let dead = nobody().await;
        let mut world = World::default();
        let both = world.service(backend("app", AppProtocol::Http), &[dead, app.addr]);
        let bed = Bed::new(world.frontend(&both, None));
        let mesh = bed.mesh().await;
        for _ in 0..20 {
            assert_eq!(get(mesh, "/").await, (200, "app".into()));
        }
    });
}

/// A server that can end at once, as a process does: nobody listens any more, and a kept connection closes only when the next
/// request comes, so that nobody has noticed.
struct Mortal {
    addr: SocketAddr,
    /// Whether it is dead.
    dead: Rc<Cell<bool>>,
    listening: tokio::task::JoinHandle<()>,
}

impl Mortal {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, dead) = (listener.local_addr().unwrap(), Rc::new(Cell::new(false)));
        let is_dead = dead.clone();
        let listening = tokio::task::spawn_local(async move {
            loop {
                let (mut io, _) = listener.accept().await.unwrap();
                let is_dead = is_dead.clone();
                tokio::task::spawn_local(async move {
                    let mut head = [0; 4096];
                    while io.read(&mut head).await.is_ok_and(|n| n > 0) && !is_dead.get() {
                        io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nmortal").await.unwrap();
                    }
                });
            }
        });
        Self { addr, dead, listening }
    }

    async fn kill(self) {
        self.dead.set(true);
        self.listening.abort();
        let _ = self.listening.await; // with it goes the listener
    }
}

/// A Deployment is scaled down: several pods end at once, and nobody has told us yet.
#[test]
fn pods_that_end_together_fail_no_request() {
    run(async {
        let live = App::named("live").await;
        let mortals = [Mortal::start().await, Mortal::start().await, Mortal::start().await];
        let mut world = World::default();
        let all: Vec<SocketAddr> = mortals.iter().map(|m| m.addr).chain([live.addr]).collect();
        let service = world.service(backend("app", AppProtocol::Http), &all);
        let bed = Bed::new(world.frontend(&service, None));
        let mesh = bed.mesh().await;
        // Until a connection is kept to each.
        while bed.dials.get() < 4 {
            assert_eq!(get(mesh, "/").await.0, 200);
        }
        for mortal in mortals {
            mortal.kill().await;
        }
        for _ in 0..20 {
            assert_eq!(get(mesh, "/").await, (200, "live".into()));
        }
    });
}

/// A server that ends resets what waits in its accept queue, and nobody can tell that from a request that it had begun with.
#[test]
fn a_request_that_only_asks_survives_a_reset_and_others_do_not() {
    run(async {
        for (method, survives) in [("GET", true), ("DELETE", false), ("POST", false)] {
            let live = App::named("live").await;
            let ending = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let addr = ending.local_addr().unwrap();
            tokio::task::spawn_local(async move {
                while let Ok((mut io, _)) = ending.accept().await {
                    let _ = io.read(&mut [0; 1024]).await;
                }
            });
            let mut world = World::default();
            let both = world.service(backend("app", AppProtocol::Http), &[addr, live.addr]);
            let bed = Bed::new(world.frontend(&both, None));
            let mesh = bed.mesh().await;
            let request = format!("{method} / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
            let mut codes = Vec::new();
            for _ in 0..20 {
                codes.push(parse(&raw(mesh, &request).await).0);
            }
            assert_eq!(codes.iter().all(|code| *code == 200), survives, "{method}: {codes:?}");
        }
    });
}

/// A bed with two endpoints, of which the second answers with `code` and these headers.
async fn uneven(code: u16, header: (&'static str, &'static str)) -> (Rc<Bed>, App, App) {
    let good = App::named("good").await;
    let bad = App::start(move |_, _| {
        Box::pin(async move {
            let mut answer = text(code, "");
            answer.headers_mut().insert(header.0, HeaderValue::from_static(header.1));
            answer
        })
    })
    .await;
    let mut world = World::default();
    let both = world.service(backend("app", AppProtocol::Http), &[good.addr, bad.addr]);
    (Bed::new(world.frontend(&both, None)), good, bad)
}

#[test]
fn an_endpoint_that_only_fails_is_ejected_and_one_that_is_too_busy_gets_less() {
    run(async {
        let grpc = "content-type: application/grpc\r\n";
        let cases = [
            // Five in a row, and a probe each time that an ejection is over.
            (503, ("x", "y"), "", 5..=10, true),
            (200, ("grpc-status", "14"), grpc, 5..=10, true),
            (429, ("x", "y"), "", 1..=20, false),
            (200, ("grpc-status", "8"), grpc, 1..=20, false),
            // What the request is to blame for says nothing of the endpoint.
            (404, ("x", "y"), "", 20..=80, false),
            (200, ("grpc-status", "5"), grpc, 20..=80, false),
        ];
        for (code, header, request_header, expected, ejected) in cases {
            let (bed, good, bad) = uneven(code, header).await;
            let mesh = bed.mesh().await;
            for _ in 0..100 {
                let request = format!(
                    "POST / HTTP/1.1\r\nhost: a\r\n{request_header}content-length: 0\r\nconnection: close\r\n\r\n"
                );
                raw(mesh, &request).await;
            }
            assert_eq!(good.count() + bad.count(), 100);
            assert!(expected.contains(&bad.count()), "{code} {header:?}: {}", bad.count());
            assert_eq!(!bed.metrics().contains("weft_ejections_total 0"), ejected, "{}", bed.metrics());
        }
    });
}

/// Takes no connection to this endpoint, for this reason.
struct Without(SocketAddr, Reason);

impl Dial for Without {
    type Io = TcpStream;

    async fn dial(
        &self,
        _: &Rc<LocalWorkload<Self::Io>>,
        endpoint: &Endpoint,
        _: bool,
    ) -> Result<Upstream<TcpStream>, ProxyError> {
        if endpoint.addr == self.0 {
            return Err(ProxyError { retry: Retryable::Yes, ..respond::error(self.1, "") });
        }
        let io = TcpStream::connect(endpoint.addr).await.unwrap();
        Ok(Upstream { io, info: UpstreamInfo::plain(endpoint.addr) })
    }
}

/// Whether a request or a copy of one is sent there.
#[test]
fn an_endpoint_is_not_ejected_for_what_we_lack_ourselves() {
    run(async {
        let app = App::named("app").await;
        let other: SocketAddr = ([127, 0, 0, 1], 1).into();
        for (reason, ejected) in
            [(Reason::NoCertificate, false), (Reason::Limit, false), (Reason::ConnectFailed, true)]
        {
            for copied in [true, false] {
                let mut world = World::default();
                let good = world.service(backend("app", AppProtocol::Http), &[app.addr]);
                let bad = world.service(backend("bad", AppProtocol::Http), &[other]);
                let mut rule = rule(to(if copied { &good } else { &bad }));
                if copied {
                    rule.filters.mirrors =
                        vec![Arc::new(MirrorTarget { backend: bad, numerator: 1, denominator: 1 })];
                }
                let config = world.frontend(&good, Some(vec![(prefix("/"), rule)]));
                let dial = (Without(other, reason), Rc::default(), Rc::default());
                let bed = Bed::around(Limits::default(), config, dial);
                assert_eq!(get(bed.mesh().await, "/").await.0, if copied { 200 } else { 503 });
                while bed.http.mirrors.get() > 0 {
                    tokio::task::yield_now().await;
                }
                let seen = !bed.metrics().contains("weft_ejections_total 0");
                assert_eq!(seen, ejected, "{reason:?}, a copy: {copied}");
            }
        }
    });
}

#[test]
fn a_connection_that_does_not_come_about_in_a_second_is_tried_elsewhere_where_that_is_possible() {
    run(async {
        let app = App::named("app").await;
        let hanging: std::net::SocketAddr = ([127, 0, 0, 1], 1).into();
        for both in [true, false] {
            let mut world = World::default();
            let endpoints = if both { vec![hanging, app.addr] } else { vec![hanging] };
            let service = world.service(backend("app", AppProtocol::Http), &endpoints);
            let bed = Bed::new(world.frontend(&service, None));
            bed.hangs.set(Some(hanging));
            let mesh = bed.mesh().await;
            let asking = async {
                // Until the first request has drawn the one that hangs.
                while bed.metrics().contains("weft_retries_total 0") {
                    assert_eq!(get(mesh, "/").await, (200, "app".into()));
                }
            };
            let asked = tokio::time::timeout(Duration::from_secs(if both { 20 } else { 2 }), asking).await;
            assert_eq!(asked.is_ok(), both, "without another one it is waited for");
        }
    });
}

/// Two Services share an endpoint that takes no connection for now. Who has another one turns there, also when somebody
/// else is connecting; who has none is not failed by one who turned.
#[test]
fn who_waits_for_anothers_connection_has_patience_of_its_own() {
    run(async {
        let apps = [App::named("0").await, App::named("1").await];
        let bed = |late: usize| {
            let mut world = World::default();
            let only = world.service(backend("only", AppProtocol::H2c), &[apps[late].addr]);
            // A client of this one always asks the same endpoint first.
            let affinity = Some(Duration::from_secs(60));
            let both = Backend { client_ip_affinity: affinity, ..backend("both", AppProtocol::H2c) };
            let both = world.service(both, &[apps[0].addr, apps[1].addr]);
            let routes = vec![(prefix("/only"), rule(to(&only))), (prefix("/both"), rule(to(&both)))];
            Bed::new(world.frontend(&only, Some(routes)))
        };
        let first = get(bed(0).mesh().await, "/both").await.1;
        let late = usize::from(first == "1");
        let other = if late == 1 { "0" } else { "1" };
        let dialled = async |bed: &Bed| {
            while bed.dials.get() == 0 {
                tokio::task::yield_now().await;
            }
        };
        let asked = |mesh, path: &'static str| tokio::task::spawn_local(get(mesh, path));

        let waiting = bed(late);
        waiting.hangs.set(Some(apps[late].addr));
        let mesh = waiting.mesh().await;
        let alone = asked(mesh, "/only");
        dialled(&waiting).await;
        let turning = tokio::time::timeout(Duration::from_secs(4), asked(mesh, "/both")).await;
        assert_eq!(turning.expect("a second's wait").unwrap(), (200, other.into()));
        assert_eq!(waiting.dials.get(), 2, "the one that hangs is dialled once, for both");
        assert!(!alone.is_finished(), "without another one it is waited for");
        alone.abort();

        let turning = bed(late);
        turning.hangs.set(Some(apps[late].addr));
        let mesh = turning.mesh().await;
        let turned = asked(mesh, "/both");
        dialled(&turning).await;
        turning.hangs.set(None);
        assert_eq!(asked(mesh, "/only").await.unwrap(), (200, first), "it connects by itself");
        assert_eq!(turned.await.unwrap(), (200, other.into()));
    });
}

#[test]
fn says_why_there_is_no_answer() {
    run(async {
        let garbage = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let garbage_addr = garbage.local_addr().unwrap();
        tokio::task::spawn_local(async move {
            while let Ok((mut io, _)) = garbage.accept().await {
                let _ = io.read(&mut [0; 1024]).await;
                let _ = io.write_all(b"220 smtp.example ESMTP\r\n").await;
            }
        });
        let closes = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closes_addr = closes.local_addr().unwrap();
        tokio::task::spawn_local(async move {
            while let Ok((mut io, _)) = closes.accept().await {
                let _ = io.read(&mut [0; 1024]).await;
            }
        });
        let cases = [
            (vec![nobody().await], 503, "connect_failed", "14"),
            (vec![], 503, "no_endpoint", "14"),
            (vec![garbage_addr], 502, "upstream_protocol", "14"),
            (vec![closes_addr], 502, "upstream_reset", "14"),
        ];
        for (endpoints, code, reason, grpc) in cases {
            let mut world = World::default();
            let only = world.service(backend("app", AppProtocol::Http), &endpoints);
            let bed = Bed::new(world.frontend(&only, None));
            let mesh = bed.mesh().await;
            let answer =
                raw(mesh, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                    .await;
            assert_eq!(parse(&answer).0, code, "{answer}");
            assert!(answer.contains(&format!("x-weft-reason: {reason}\r\n")), "{answer}");
            assert!(parse(&answer).1.contains("trace: "), "{answer}");
            assert!(bed.metrics().contains(reason), "{}", bed.metrics());
            let request =
                Request::post("http://a/s/m").header("content-type", "application/grpc").body(body(""));
            let answer = h2_client(mesh).await.send_request(request.unwrap()).await.unwrap();
            assert_eq!(
                (answer.status().as_u16(), &answer.headers()["grpc-status"]),
                (200, &grpc.parse::<HeaderValue>().unwrap())
            );
            assert!(answer.headers().contains_key(REASON_HEADER));
        }
    });
}

/// E19: a policy that somebody wrote is why, so it is named, with the node.
#[test]
fn says_that_there_is_no_endpoint_on_the_clients_node() {
    run(async {
        let mut world = World(Config { node: Some("n1".into()), ..Config::default() });
        let mut local = backend("app", AppProtocol::Http);
        local.key.reach.local = true;
        // Others are there, on other nodes.
        world.service(backend("app", AppProtocol::Http), &[nobody().await]);
        let only = world.service(local, &[]);
        let bed = Bed::new(world.frontend(&only, None));
        let mesh = bed.mesh().await;
        let said = "shop/app port 80 has internalTrafficPolicy: Local and no ready endpoint on node n1";
        let answer = raw(mesh, "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        assert_eq!(parse(&answer).0, 503);
        assert!(answer.contains("x-weft-reason: no_local_endpoint\r\n"), "{answer}");
        assert!(parse(&answer).1.starts_with(&format!("no_local_endpoint: {said}\n")), "{answer}");
        assert!(bed.metrics().contains("no_local_endpoint"), "{}", bed.metrics());
        let request = Request::post("http://a/s/m").header("content-type", "application/grpc").body(body(""));
        let answer = h2_client(mesh).await.send_request(request.unwrap()).await.unwrap();
        assert_eq!(
            (&answer.headers()["grpc-status"], &answer.headers()["grpc-message"]),
            (&"14".parse().unwrap(), &said.parse::<HeaderValue>().unwrap())
        );
    });
}

#[test]
fn a_malformed_request_body_is_the_clients_bad_request() {
    run(async {
        let chunked = "transfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n";
        let cases = [
            (format!("{chunked}zz\r\n"), true, "bad_request"),
            (format!("{chunked}3\r\ntoo long\r\n"), true, "bad_request"),
            (format!("{chunked}fffffffffffffffff\r\n"), true, "bad_request"),
            (format!("{chunked}0\r\nno trailer\r\n\r\n"), true, "bad_request"),
            (format!("{chunked}5\r\nfi"), false, "client_gone"),
            ("content-length: 10\r\n\r\nhalf".into(), false, "client_gone"),
        ];
        for (sent, stays, reason) in cases {
            let app = App::named("app").await;
            let bed = bed(&app, |r| r.retry = retry(3, &[503]));
            let mut client = TcpStream::connect(bed.mesh().await).await.unwrap();
            client.write_all(format!("POST / HTTP/1.1\r\nhost: a\r\n{sent}").as_bytes()).await.unwrap();
            if stays {
                let mut answer = String::new();
                client.read_to_string(&mut answer).await.unwrap();
                assert_eq!(parse(&answer).0, 400, "{sent:?}: {answer}");
                assert!(answer.contains("x-weft-reason: bad_request\r\n"), "{sent:?}: {answer}");
                assert!(answer.contains("connection: close\r\n"), "{sent:?}: {answer}");
            }
            drop(client);
            while !bed.metrics().contains(reason) {
                tokio::task::yield_now().await;
            }
            let other = if stays { "client_gone" } else { "bad_request" };
            assert!(!bed.metrics().contains(other), "{sent:?}: {}", bed.metrics());
            assert_eq!(app.count(), 0, "{sent:?}: no whole request has come");
        }
    });
}

#[test]
fn a_body_that_turns_malformed_after_the_answer_began_is_still_a_bad_request() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut world = World::default();
        let only = world.service(backend("app", AppProtocol::Http), &[listener.local_addr().unwrap()]);
        let bed = Bed::new(world.frontend(&only, None));
        let mut client = TcpStream::connect(bed.mesh().await).await.unwrap();
        client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
        let (mut upstream, _) = listener.accept().await.unwrap();
        assert!(upstream.read(&mut [0; 1024]).await.unwrap() > 0);
        upstream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await.unwrap();
        assert!(client.read(&mut [0; 1024]).await.unwrap() > 0);
        client.write_all(b"not a size\r\n").await.unwrap();
        while !bed.metrics().contains("bad_request") {
            tokio::task::yield_now().await;
        }
        assert!(!bed.metrics().contains("client_gone"), "{}", bed.metrics());
    });
}

#[test]
fn grpc_without_a_route_is_unimplemented() {
    run(async {
        let app = App::named("app").await;
        let mut world = World::default();
        let only = world.service(backend("app", AppProtocol::Grpc), &[app.addr]);
        let mut grpc = rule(to(&only));
        grpc.id.kind = RouteKind::Grpc;
        let bed = Bed::new(world.frontend(&only, Some(vec![(prefix("/known"), grpc)])));
        let request =
            Request::post("http://a/un/known").header("content-type", "application/grpc").body(body(""));
        let answer = h2_client(bed.mesh().await).await.send_request(request.unwrap()).await.unwrap();
        assert_eq!(answer.headers()["grpc-status"], "12");
    });
}

/// Accepts, reads, and says nothing.
async fn stalled() -> (App, Rc<Cell<u32>>) {
    let closed = Rc::new(Cell::new(0));
    let count = Rc::clone(&closed);
    let app = App::start(move |_, _| {
        struct Gone(Rc<Cell<u32>>);
        impl Drop for Gone {
            fn drop(&mut self) {
                self.0.set(self.0.get() + 1);
            }
        }
        let gone = Gone(Rc::clone(&count));
        Box::pin(async move {
            let _gone = gone;
            std::future::pending().await
        })
    })
    .await;
    (app, closed)
}

#[test]
fn timeouts_answer_504_and_let_go_of_the_upstream() {
    run(async {
        let ms = Duration::from_millis;
        // request, backendRequest, attempts, requests that the upstream gets
        let cases = [
            (Some(ms(40)), None, 0, 1),
            (None, Some(ms(40)), 0, 1),
            (None, Some(ms(40)), 2, 3),
            // The request's timeout ends the retries.
            (Some(ms(100)), Some(ms(60)), 9, 2),
        ];
        for (request, backend_request, attempts, asked) in cases {
            let (app, closed) = stalled().await;
            let bed = bed(&app, |r| {
                r.timeouts.request = request;
                r.timeouts.backend_request = backend_request;
                r.retry = (attempts > 0).then(|| retry(attempts, &[]).unwrap());
            });
            let answer =
                raw(bed.mesh().await, "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
            assert_eq!(parse(&answer).0, 504, "{answer}");
            assert!(answer.contains("x-weft-reason: timeout"), "{answer}");
            assert_eq!(app.count(), asked, "{request:?} {backend_request:?} {attempts}");
            while closed.get() < asked as u32 {
                tokio::task::yield_now().await;
            }
        }
    });
}

#[test]
fn the_request_timeout_cuts_a_body_that_stalls() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut world = World::default();
        let only = world.service(backend("app", AppProtocol::Http), &[listener.local_addr().unwrap()]);
        let mut rule = rule(to(&only));
        rule.timeouts.request = Some(Duration::from_millis(50));
        let bed = Bed::new(world.frontend(&only, Some(vec![(prefix("/"), rule)])));
        tokio::task::spawn_local(async move {
            let (mut io, _) = listener.accept().await.unwrap();
            let _ = io.read(&mut [0; 1024]).await;
            io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await.unwrap();
            std::future::pending::<()>().await;
        });
        let answer = raw(bed.mesh().await, "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        assert_eq!(parse(&answer), (200, "half".into()));
        assert!(bed.metrics().contains("timeout"), "{}", bed.metrics());
    });
}

#[test]
fn a_kept_connection_that_the_server_closed_is_no_failure() {
    run(async {
        // Answers one request on each connection, then closes it without having said so.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut world = World::default();
        let only = world.service(backend("app", AppProtocol::Http), &[listener.local_addr().unwrap()]);
        let bed = Bed::new(world.frontend(&only, None));
        tokio::task::spawn_local(async move {
            while let Ok((mut io, _)) = listener.accept().await {
                tokio::task::spawn_local(async move {
                    if io.read(&mut [0; 1024]).await.is_ok_and(|n| n > 0) {
                        io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                    }
                    // The next request is read, and then cut off without a byte: the worst moment.
                    let _ = io.read(&mut [0; 1024]).await;
                });
            }
        });
        let mut client = h1_client(bed.mesh().await).await;
        for _ in 0..20 {
            client.ready().await.unwrap();
            let request = Request::get("/").header("host", "app").body(body("")).unwrap();
            let answer = client.send_request(request).await.unwrap();
            assert_eq!(answer.status(), 200);
            answer.into_body().collect().await.unwrap();
        }
    });
}

#[test]
fn a_draining_share_ends_http1_at_a_message_boundary() {
    run(async {
        let app = App::named("app").await;
        let bed = bed(&app, |_| {});
        let mesh = bed.mesh().await;
        let mut idle = TcpStream::connect(mesh).await.unwrap();
        idle.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut answer = [0; 1024];
        assert!(idle.read(&mut answer).await.unwrap() > 0);
        let mut h2 = h2_client(mesh).await;
        let request = || Request::get("http://a/").body(body("")).unwrap();
        assert_eq!(h2.send_request(request()).await.unwrap().status(), 200);
        bed.share.drain().begin();
        while h2.ready().await.is_ok() && !h2.is_closed() {
            tokio::task::yield_now().await;
        }
        bed.share.drain().end_idle();
        assert_eq!(idle.read(&mut answer).await.unwrap(), 0, "an idle connection ends");
    });
}

/// Reads one answer with the body "app".
async fn answer(io: &mut TcpStream) -> String {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\napp") {
        assert!(io.read_buf(&mut read).await.unwrap() > 0, "ended: {}", String::from_utf8_lossy(&read));
    }
    String::from_utf8(read).unwrap()
}

#[test]
fn a_drain_fails_no_request_on_an_idle_connection() {
    run(async {
        let app = App::named("app").await;
        let bed = bed(&app, |_| {});
        let mesh = bed.mesh().await;
        let request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        let mut kept = Vec::new();
        for _ in 0..16 {
            let mut io = TcpStream::connect(mesh).await.unwrap();
            io.write_all(request).await.unwrap();
            assert!(!answer(&mut io).await.contains("connection: close"));
            kept.push((io, bed.share.admit(Kind::Out).unwrap()));
        }
        // Nothing was asked on this one yet.
        kept.push((TcpStream::connect(mesh).await.unwrap(), bed.share.admit(Kind::Out).unwrap()));
        let (draining, clients) = (bed.share.drain().clone(), async {
            bed.share.drain().draining().await;
            for (mut io, open) in kept {
                io.write_all(request).await.unwrap();
                let answer = answer(&mut io).await;
                assert!(
                    answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close\r\n"),
                    "{answer}"
                );
                assert_eq!(io.read(&mut [0; 1]).await.unwrap(), 0);
                drop(open);
            }
        });
        // Far beyond the test's patience: the drain ends with the last connection.
        let (in_time, ()) = tokio::join!(draining.run(Duration::from_secs(600), bed.share.idle()), clients);
        assert!(in_time);
    });
}

#[test]
fn a_drain_closes_idle_connections_after_the_linger_and_tells_requests_under_way() {
    run(async {
        let (go, gone) = tokio::sync::watch::channel(false);
        let app = App::start(move |_, _| {
            let mut gone = gone.clone();
            Box::pin(async move {
                gone.wait_for(|go| *go).await.unwrap();
                text(200, "app")
            })
        })
        .await;
        let bed = bed(&app, |_| {});
        let mesh = bed.mesh().await;
        let mut busy = TcpStream::connect(mesh).await.unwrap();
        busy.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        while app.count() == 0 {
            tokio::task::yield_now().await;
        }
        let mut idle = TcpStream::connect(mesh).await.unwrap();
        let open = bed.share.admit(Kind::Out).unwrap();
        let drain = bed.share.drain().clone();
        let clients = async {
            // After half of the grace.
            assert_eq!(idle.read(&mut [0; 1]).await.unwrap(), 0);
            go.send(true).unwrap();
            let answer = answer(&mut busy).await;
            assert!(answer.contains("connection: close\r\n"), "{answer}");
            assert_eq!(busy.read(&mut [0; 1]).await.unwrap(), 0);
            drop(open);
        };
        let (in_time, ()) = tokio::join!(drain.run(Duration::from_secs(2), bed.share.idle()), clients);
        assert!(in_time, "the idle connection has ended long before the grace");
    });
}

#[test]
fn idle_connections_are_reused_and_bounded_by_need() {
    run(async {
        let app = App::named("app").await;
        let bed = bed(&app, |_| {});
        let mesh = bed.mesh().await;
        for _ in 0..30 {
            assert_eq!(get(mesh, "/").await.0, 200);
        }
        // Thirty client connections, one at a time: one upstream connection.
        assert_eq!((app.connections.get(), bed.local.pool.idle()), (1, 1));
    });
}

#[test]
fn a_request_head_that_comes_too_slowly_ends_the_connection() {
    run(async {
        let app = App::named("app").await;
        let mut world = World::default();
        let only = world.service(backend("app", AppProtocol::Http), &[app.addr]);
        let limits = Limits { handshake_timeout_ms: 30, ..Limits::default() };
        let bed = Bed::with(limits, world.frontend(&only, None));
        let mesh = bed.mesh().await;
        let mut answer = [0; 1024];
        for first in ["", "GET / HTTP/1.1\r\nhost: a\r\n\r\n"] {
            let mut client = TcpStream::connect(mesh).await.unwrap();
            if !first.is_empty() {
                client.write_all(first.as_bytes()).await.unwrap();
                assert!(client.read(&mut answer).await.unwrap() > 0);
            }
            client.write_all(b"GET / HTTP/1.1\r\nhost").await.unwrap();
            assert_eq!(client.read(&mut answer).await.unwrap_or(0), 0);
        }
        // An idle one stays, for many times that long.
        let mut client = h1_client(mesh).await;
        let ask = || Request::get("/").header("host", "a").body(body("")).unwrap();
        client.send_request(ask()).await.unwrap().into_body().collect().await.unwrap();
        let mut slow = TcpStream::connect(mesh).await.unwrap();
        for _ in 0..3 {
            slow.write_all(b"G").await.unwrap();
            assert_eq!(slow.read(&mut answer).await.unwrap_or(0), 0);
            slow = TcpStream::connect(mesh).await.unwrap();
        }
        assert_eq!(client.send_request(ask()).await.unwrap().status(), 200);
    });
}

/// An HTTP/2 server that ends each connection as nginx does after `keepalive_requests`: with GOAWAY, and not a look at what
/// comes after. It counts the requests that it has answered, the bytes of their bodies, and those that it has not looked at.
#[derive(Clone, Default)]
struct Ending {
    answered: Rc<Cell<usize>>,
    bytes: Rc<Cell<usize>>,
    ignored: Rc<Cell<usize>>,
    connections: Rc<Cell<usize>>,
}

impl Ending {
    async fn start(requests: u32) -> (SocketAddr, Self) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, server) = (listener.local_addr().unwrap(), Self::default());
        let of = server.clone();
        tokio::task::spawn_local(async move {
            while let Ok((io, _)) = listener.accept().await {
                of.connections.set(of.connections.get() + 1);
                let of = of.clone();
                tokio::task::spawn_local(async move {
                    // Whatever ends the connection ends it.
                    let _ = of.serve(io, requests).await;
                });
            }
        });
        (addr, server)
    }

    async fn serve(self, io: TcpStream, requests: u32) -> std::io::Result<()> {
        const END_STREAM: u8 = 1;
        let mut io = tokio::io::BufStream::new(io);
        io.read_exact(&mut [0; 24]).await?;
        io.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await?;
        let (mut begun, mut last, mut open) = (0, 0, 0_usize);
        loop {
            io.flush().await?;
            let mut head = [0; 9];
            io.read_exact(&mut head).await?;
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            io.read_exact(&mut payload).await?;
            let (kind, flags) = (head[3], head[4]);
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            match kind {
                1 if begun == requests => self.ignored.set(self.ignored.get() + 1),
                1 => {
                    (begun, last, open) = (begun + 1, stream, open + 1);
                    if begun == requests {
                        // GOAWAY, NO_ERROR.
                        io.write_all(&[0, 0, 8, 7, 0, 0, 0, 0, 0]).await?;
                        io.write_all(&last.to_be_bytes()).await?;
                        io.write_all(&[0; 4]).await?;
                    }
                }
                0 if stream <= last => self.bytes.set(self.bytes.get() + payload.len()),
                4 if flags == 0 => io.write_all(&[0, 0, 0, 4, 1, 0, 0, 0, 0]).await?,
                _ => {}
            }
            if matches!(kind, 0 | 1) && flags & END_STREAM != 0 && stream <= last {
                // `:status: 200` (RFC 7541 appendix A).
                io.write_all(&[0, 0, 1, 1, 5]).await?;
                io.write_all(&stream.to_be_bytes()).await?;
                io.write_all(&[0x88]).await?;
                self.answered.set(self.answered.get() + 1);
                open -= 1;
                if begun == requests && open == 0 {
                    return io.flush().await;
                }
            }
        }
    }
}

/// C7: what a server has not looked at is sent again, whatever its method, and is no retry.
#[test]
fn no_request_is_lost_when_an_http2_server_ends_its_connections() {
    run(async {
        for (method, text, policy) in
            [("GET", "", None), ("POST", "a small body", None), ("POST", "with no retries", retry(0, &[]))]
        {
            let (addr, server) = Ending::start(20).await;
            let mut world = World::default();
            let only = world.service(backend("app", AppProtocol::H2c), &[addr]);
            let mut rule = rule(to(&only));
            rule.retry = policy;
            let bed = Bed::new(world.gateway(vec![(None, vec![(prefix("/"), rule)])]));
            let gateway = bed.gateway().await;
            let clients = (0..8).map(|_| async {
                let mut client = h2_client(gateway).await;
                for _ in 0..50 {
                    let request =
                        Request::builder().method(method).uri("http://a/").body(body(text)).unwrap();
                    let answer = client.send_request(request).await.unwrap();
                    assert_eq!(answer.status(), 200, "{method}");
                }
            });
            futures_util::future::join_all(clients).await;
            assert_eq!(server.answered.get(), 400, "{method}");
            assert_eq!(server.bytes.get(), 400 * text.len(), "{method}: bodies arrive whole, and once");
            // A connection near its end is replaced before: once that was seen twice, nothing is refused any more.
            assert!(server.connections.get() >= 20, "{}", server.connections.get());
            assert!(server.ignored.get() <= 40, "{method}: {} were sent in vain", server.ignored.get());
        }
    });
}

/// C7: a body of which the peer has seen a part is sent from its beginning.
#[test]
fn a_body_under_way_is_sent_again_when_its_stream_was_refused() {
    run(async {
        let (addr, server) = Ending::start(1).await;
        let mut world = World::default();
        let only = world.service(backend("app", AppProtocol::H2c), &[addr]);
        let bed = Bed::new(world.frontend(&only, None));
        let mesh = bed.mesh().await;
        let (mut first, mut second) =
            (TcpStream::connect(mesh).await.unwrap(), TcpStream::connect(mesh).await.unwrap());
        let head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 8\r\nconnection: close\r\n\r\nhalf";
        // The first takes the connection's only place; the second is on its way when that is said.
        first.write_all(head).await.unwrap();
        second.write_all(head).await.unwrap();
        for client in [&mut first, &mut second] {
            client.write_all(b"half").await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            assert_eq!(parse(&answer).0, 200, "{answer}");
        }
        assert_eq!((server.answered.get(), server.bytes.get()), (2, 16));
    });
}
