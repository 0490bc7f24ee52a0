//! What goes wrong behind us, and what the client sees of it.

use super::support::*;
use crate::{
    context::Limits,
    dial::{Dial, Upstream, UpstreamInfo},
    error::{ProxyError, Reason, Retryable},
    http::{REASON_HEADER, respond},
    workload::LocalWorkload,
};
use http::{HeaderValue, Request};
use http_body_util::BodyExt;
use std::{
    cell::Cell,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use weft_core::{
    config::{AppProtocol, Backend, Config, Endpoint, HttpRule, MirrorTarget},
    model::{Retry, RouteKind},
};

pub(super) fn retry(attempts: u32, codes: &[u16]) -> Option<Arc<Retry>> {
    Some(Arc::new(Retry { codes: codes.to_vec(), attempts, backoff: Some(Duration::from_millis(1)) }))
}

/// A bed with one rule in front of `app`.
pub(super) fn bed(app: &App, edit: impl FnOnce(&mut HttpRule)) -> Rc<Bed> {
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

/// Ten requests, of which each asks for ten times the retries that a workload has saved up.
#[test]
fn retries_of_a_workload_do_not_multiply_its_requests() {
    run(async {
        let flaky = Cell::new(0);
        let app = App::start(move |seen, _| {
            let turn = flaky.get();
            flaky.set(turn + u32::from(seen.uri == "/flaky"));
            let fails = seen.uri == "/broken" || turn < 2;
            Box::pin(async move { text(if fails { 503 } else { 200 }, "the application's own") })
        })
        .await;
        let eager = Retry { codes: vec![503], attempts: 100_000, backoff: Some(Duration::ZERO) };
        let bed = bed(&app, |r| r.retry = Some(Arc::new(eager)));
        let (broken, started) = (bed.mesh().await, Instant::now());
        let neighbour = bed.neighbour();
        for _ in 0..10 {
            assert_eq!(get(broken, "/broken").await, (503, "the application's own".into()));
        }
        // Ten tries, those that are saved up, one for every five requests, and what time has earned.
        let earned = usize::try_from(10 * started.elapsed().as_millis() / 1000).unwrap();
        let (asked, most) = (app.count(), 10 + 100 + 2 + 1 + earned);
        assert!(asked >= 110 && asked <= most, "{asked} tries of at most {most}");
        assert_eq!(get(neighbour.mesh().await, "/flaky").await.0, 200, "a neighbour has its retries");
        let reached = bed.shared.budgets.list(None, Instant::now());
        let named: Vec<_> = reached.iter().map(|r| (r.budget.name, r.by.key.to_string())).collect();
        assert_eq!(named, [("retries", "client/curl".to_owned())]);
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
