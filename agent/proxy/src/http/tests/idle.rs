//! What ends a quiet HTTP connection and when, under a paused clock: the table in ARCHITECTURE.md, row by row.

use super::support::*;
use crate::context::Limits;
use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use std::{io, net::SocketAddr, rc::Rc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::LocalOptions,
    time::{Instant, sleep},
};
use weft_core::config::AppProtocol;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// As [`run`], but days pass in no time: the clock moves on whenever nobody has anything to do.
fn run_paused(test: impl Future<Output = ()> + 'static) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build_local(LocalOptions::default()).unwrap();
    runtime.block_on(async {
        tokio::time::timeout(DAY * 10, test).await.expect("the test hangs");
    });
}

async fn mesh(upstream: SocketAddr) -> (Rc<Bed>, SocketAddr) {
    let mut world = World::default();
    let only = world.service(backend("app", AppProtocol::Http), &[upstream]);
    let bed = Bed::new(world.frontend(&only, None));
    let addr = bed.mesh().await;
    (bed, addr)
}

async fn gateway(upstream: SocketAddr) -> (Rc<Bed>, SocketAddr) {
    let mut world = World::default();
    let only = world.service(backend("app", AppProtocol::Http), &[upstream]);
    let bed = Bed::new(world.gateway(vec![(None, vec![(prefix("/"), rule(to(&only)))])]));
    let addr = bed.gateway().await;
    (bed, addr)
}

/// How long a connection lives on which the client says this and no more.
async fn lives(to: SocketAddr, says: &[u8]) -> Duration {
    let mut client = TcpStream::connect(to).await.unwrap();
    client.write_all(says).await.unwrap();
    let (begin, mut sink) = (Instant::now(), [0; 4096]);
    while client.read(&mut sink).await.is_ok_and(|n| n > 0) {}
    begin.elapsed()
}

fn check(what: &str, lived: Duration, from: u64, to: u64) {
    let seconds = lived.as_secs();
    assert!((from..=to).contains(&seconds), "{what}: lived for {seconds} s, expected {from} to {to}");
}

/// What HTTP/2 begins with: the preface and empty SETTINGS.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

#[test]
fn a_quiet_client_is_let_go_when_the_table_says() {
    run_paused(async {
        let app = App::named("app").await;
        let (_bed, mesh) = mesh(app.addr).await;
        let (_edge, gateway) = gateway(app.addr).await;
        // A pod may open connections ahead of need; a stranger at a Gateway may not hold them.
        check("mesh, before a first byte", lives(mesh, b"").await, 600, 610);
        check("gateway, before a first byte", lives(gateway, b"").await, 10, 11);
        for (entrance, to) in [("mesh", mesh), ("gateway", gateway)] {
            check(&format!("{entrance}, half a preface"), lives(to, &HTTP2[..9]).await, 10, 11);
            check(&format!("{entrance}, half a head"), lives(to, b"GET / HTTP/1.1\r\nho").await, 10, 20);
            check(&format!("{entrance}, between requests"), lives(to, REQUEST).await, 600, 620);
            // PING after 30 s, given up 10 s later.
            check(&format!("{entrance}, an HTTP/2 client that is no more"), lives(to, HTTP2).await, 40, 41);
        }
    });
}

#[test]
fn a_quiet_http2_client_that_lives_is_let_go_after_ten_minutes() {
    run_paused(async {
        let app = App::named("app").await;
        let (_bed, mesh) = mesh(app.addr).await;
        let mut client = h2_client(mesh).await;
        let ask = || Request::get("http://app/").body(body("")).unwrap();
        client.send_request(ask()).await.unwrap().into_body().collect().await.unwrap();
        sleep(Duration::from_secs(590)).await;
        client.send_request(ask()).await.unwrap().into_body().collect().await.unwrap();
        let begin = Instant::now();
        while !client.is_closed() {
            sleep(Duration::from_secs(1)).await;
        }
        check("HTTP/2 between requests", begin.elapsed(), 600, 620);
    });
}

/// The answer is a day away; both ends live.
#[test]
fn no_silence_of_an_exchange_is_too_long() {
    run_paused(async {
        let app = App::start(|_, _| {
            Box::pin(async {
                sleep(DAY).await;
                text(200, "late")
            })
        })
        .await;
        let (_bed, mesh) = mesh(app.addr).await;
        let ask = || Request::get("http://app/").header("host", "app").body(body("")).unwrap();
        let begin = Instant::now();
        let mut http1 = h1_client(mesh).await;
        assert_eq!(http1.send_request(ask()).await.unwrap().status(), 200);
        let mut http2 = h2_client(mesh).await;
        assert_eq!(http2.send_request(ask()).await.unwrap().status(), 200);
        assert!(begin.elapsed() >= DAY * 2, "{:?}", begin.elapsed());
    });
}

/// A stream as gRPC has them, with a day between two messages.
#[test]
fn no_silence_within_a_stream_is_too_long() {
    run_paused(async {
        let app = App::start(|_, _| {
            Box::pin(async {
                let frames = stream::unfold(0, |n| async move {
                    if n > 0 {
                        sleep(DAY).await;
                    }
                    (n < 2).then(|| (Ok::<_, io::Error>(Frame::data(Bytes::from_static(b"part"))), n + 1))
                });
                Response::builder()
                    .header("content-type", "application/grpc")
                    .body(StreamBody::new(frames).boxed_unsync())
                    .unwrap()
            })
        })
        .await;
        let mut world = World::default();
        let only = world.service(backend("grpc", AppProtocol::Grpc), &[app.addr]);
        let bed = Bed::new(world.frontend(&only, None));
        let mut client = h2_client(bed.mesh().await).await;
        let request = Request::post("http://grpc/pkg.Svc/Method").header("content-type", "application/grpc");
        let begin = Instant::now();
        let answer = client.send_request(request.body(body("")).unwrap()).await.unwrap();
        let whole = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!((&whole[..], begin.elapsed() >= DAY), (&b"partpart"[..], true));
    });
}

#[test]
fn no_silence_of_a_websocket_is_too_long() {
    run_paused(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (_bed, mesh) = mesh(listener.local_addr().unwrap()).await;
        let mut client = TcpStream::connect(mesh).await.unwrap();
        let hello = "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: k\r\n\r\n";
        client.write_all(hello.as_bytes()).await.unwrap();
        let (mut upstream, _) = listener.accept().await.unwrap();
        let mut buffer = [0; 4096];
        assert!(upstream.read(&mut buffer).await.unwrap() > 0);
        let reply = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        upstream.write_all(reply.as_bytes()).await.unwrap();
        assert!(client.read(&mut buffer).await.unwrap() > 0);
        for _ in 0..2 {
            sleep(DAY).await;
            client.write_all(b"ping").await.unwrap();
            upstream.read_exact(&mut buffer[..4]).await.unwrap();
            upstream.write_all(b"pong").await.unwrap();
            client.read_exact(&mut buffer[..4]).await.unwrap();
            assert_eq!(&buffer[..4], b"pong");
        }
    });
}

/// Not an exchange: what we keep for the next one.
#[test]
fn an_unused_upstream_connection_is_closed_after_a_minute() {
    run_paused(async {
        for preface in [false, true] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut world = World::default();
            let protocol = if preface { AppProtocol::H2c } else { AppProtocol::Http };
            let only = world.service(backend("app", protocol), &[listener.local_addr().unwrap()]);
            let bed = Bed::new(world.frontend(&only, None));
            let to = bed.mesh().await;
            let serving = async {
                let (io, _) = listener.accept().await.unwrap();
                let service = hyper::service::service_fn(|_| async {
                    Ok::<_, std::convert::Infallible>(text(200, "x"))
                });
                let io = hyper_util::rt::TokioIo::new(io);
                let ended = async {
                    if preface {
                        let _ = hyper::server::conn::http2::Builder::new(LocalExec)
                            .serve_connection(io, service)
                            .await;
                    } else {
                        let _ =
                            hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
                    }
                };
                ended.await;
                Instant::now()
            };
            let asking = async {
                let answer = get(to, "/").await;
                assert_eq!(answer.0, 200);
                Instant::now()
            };
            let (ended, asked) = tokio::join!(serving, asking);
            check("an unused upstream connection", ended - asked, 60, 71);
        }
    });
}

/// An upstream that is no more is noticed although nothing is due from it.
#[test]
fn an_http2_upstream_that_is_no_more_is_given_up() {
    run_paused(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut world = World::default();
        let only = world.service(backend("app", AppProtocol::H2c), &[listener.local_addr().unwrap()]);
        let limits = Limits::default();
        let bed = Bed::with(limits, world.frontend(&only, None));
        let to = bed.mesh().await;
        tokio::task::spawn_local(async move {
            let (mut io, _) = listener.accept().await.unwrap();
            // SETTINGS, and then nothing more: no answer to a PING.
            io.write_all(&HTTP2[24..]).await.unwrap();
            let mut sink = [0; 4096];
            while io.read(&mut sink).await.is_ok_and(|n| n > 0) {}
        });
        let begin = Instant::now();
        let (code, _) = get(to, "/").await;
        assert!(code >= 500, "{code}");
        check("a silent HTTP/2 upstream", begin.elapsed(), 40, 100);
    });
}
