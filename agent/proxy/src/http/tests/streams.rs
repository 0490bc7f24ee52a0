//! Bodies, trailers and upgrades: streamed both ways, in every pairing of versions.

use super::support::*;
use crate::http::Entrance;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use std::{io, rc::Rc, sync::Arc};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use weft_core::config::{AppProtocol, MirrorTarget};

/// A body fed by the test.
fn fed() -> (mpsc::Sender<Frame<Bytes>>, Body2) {
    let (feed, frames) = mpsc::channel::<Frame<Bytes>>(1);
    let frames = stream::unfold(frames, |mut f| async { f.recv().await.map(|x| (Ok::<_, io::Error>(x), f)) });
    (feed, StreamBody::new(frames).boxed_unsync())
}

fn trailers(name: &'static str, value: &'static str) -> HeaderMap {
    let mut map = HeaderMap::new();
    map.insert(name, HeaderValue::from_static(value));
    map
}

#[test]
fn grpc_passes_with_trailers_both_ways_on_a_port_that_declares_only_http() {
    run(async {
        let app = App::start(|seen, _| {
            Box::pin(async move {
                let frames = [Frame::data(seen.body), Frame::trailers(trailers("grpc-status", "5"))];
                let body = StreamBody::new(stream::iter(frames).map(Ok::<_, io::Error>)).boxed_unsync();
                Response::builder().header("content-type", "application/grpc").body(body).unwrap()
            })
        })
        .await;
        let mut world = World::default();
        let only = world.service(backend("grpc", AppProtocol::Http), &[app.addr]);
        let bed = Bed::new(world.frontend(&only, Some(vec![(prefix("/"), rule(to(&only)))])));
        let mut client = h2_client(bed.mesh().await).await;
        let (feed, sent) = fed();
        let request = Request::post("http://grpc/pkg.Svc/Method")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(sent)
            .unwrap();
        feed.send(Frame::data(Bytes::from_static(b"\0\0\0\0\x02hi"))).await.unwrap();
        let answer = client.send_request(request);
        tokio::task::spawn_local(async move {
            feed.send(Frame::trailers(trailers("x-checksum", "7"))).await.unwrap();
        });
        let collected = answer.await.unwrap().into_body().collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["grpc-status"], "5");
        assert_eq!(&collected.to_bytes()[..], b"\0\0\0\0\x02hi");
        let seen = app.last();
        assert_eq!(seen.version, Version::HTTP_2);
        assert_eq!(seen.header("te"), Some("trailers"));
        assert_eq!(seen.trailers.unwrap()["x-checksum"], "7");
        assert!(bed.metrics().contains("NOT_FOUND") || bed.metrics().contains("grpc"), "{}", bed.metrics());
    });
}

#[test]
fn a_hundred_grpc_streams_share_one_connection() {
    run(async {
        let app = App::start(|seen, _| {
            Box::pin(async move {
                tokio::task::yield_now().await;
                let frames = [Frame::data(seen.body), Frame::trailers(trailers("grpc-status", "0"))];
                let body = StreamBody::new(stream::iter(frames).map(Ok::<_, io::Error>)).boxed_unsync();
                Response::builder().body(body).unwrap()
            })
        })
        .await;
        let mut world = World::default();
        let only = world.service(backend("grpc", AppProtocol::Grpc), &[app.addr]);
        let bed = Bed::new(world.frontend(&only, None));
        let client = h2_client(bed.mesh().await).await;
        let calls = (0..100).map(|_| {
            let mut client = client.clone();
            async move {
                let request = Request::post("http://grpc/pkg.Svc/Method")
                    .header("content-type", "application/grpc")
                    .body(body("message"))
                    .unwrap();
                let answer = client.send_request(request).await.unwrap();
                assert_eq!(answer.status(), 200);
                answer.into_body().collect().await.unwrap().to_bytes()
            }
        });
        let answers = futures_util::future::join_all(calls).await;
        assert!(answers.iter().all(|a| &a[..] == b"message"));
        assert_eq!((app.count(), app.connections.get(), bed.dials.get()), (100, 1, 1));
    });
}

#[test]
fn a_mebibyte_flows_both_ways_in_every_pairing() {
    run(async {
        let app = App::start(|seen, _| {
            Box::pin(async move {
                Response::new(http_body_util::Full::new(seen.body).map_err(|e| match e {}).boxed_unsync())
            })
        })
        .await;
        let data: Bytes = (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect::<Vec<u8>>().into();
        for protocol in [AppProtocol::Http, AppProtocol::H2c] {
            let mut world = World::default();
            let only = world.service(backend("app", protocol), &[app.addr]);
            let bed = Bed::new(world.frontend(&only, None));
            let mesh = bed.mesh().await;
            let whole = || http_body_util::Full::new(data.clone()).map_err(|e| match e {}).boxed_unsync();
            let h2 = h2_client(mesh).await.send_request(Request::post("http://app/").body(whole()).unwrap());
            let answer = h2.await.unwrap().into_body().collect().await.unwrap().to_bytes();
            assert!(answer == data, "h2 to {protocol:?}");
            let request = Request::post("/").header("host", "app").body(whole()).unwrap();
            let h1 = h1_client(mesh).await.send_request(request).await.unwrap();
            assert!(h1.into_body().collect().await.unwrap().to_bytes() == data, "h1 to {protocol:?}");
        }
    });
}

/// An upstream for one connection: what it reads up to a mark, what it answers, and then the raw bytes.
async fn raw_upstream(listener: &TcpListener, until: &str) -> (TcpStream, String) {
    let (mut io, _) = listener.accept().await.unwrap();
    let text = read_until(&mut io, until).await;
    (io, text)
}

async fn read_until(io: &mut TcpStream, until: &str) -> String {
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains(until) {
        assert!(io.read_buf(&mut read).await.unwrap() > 0, "ended: {}", String::from_utf8_lossy(&read));
    }
    String::from_utf8(read).unwrap()
}

async fn bed_before(listener: &TcpListener) -> (Rc<Bed>, std::net::SocketAddr) {
    let mut world = World::default();
    let addr = listener.local_addr().unwrap();
    let only = world.service(backend("app", AppProtocol::Http), &[addr]);
    let bed = Bed::new(world.frontend(&only, None));
    let mesh = bed.listen(Entrance::Mesh { frontend: FRONTEND.into() }, None).await;
    (bed, mesh)
}

#[test]
fn nothing_is_buffered_in_either_direction() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (_bed, mesh) = bed_before(&listener).await;
        let mut client = TcpStream::connect(mesh).await.unwrap();
        client
            .write_all(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")
            .await
            .unwrap();
        let (mut upstream, _) = raw_upstream(&listener, "first").await;
        // An early answer, while the request still flows.
        upstream
            .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
            .await
            .unwrap();
        read_until(&mut client, "one").await;
        client.write_all(b"6\r\nsecond\r\n").await.unwrap();
        read_until(&mut upstream, "second").await;
        upstream.write_all(b"3\r\ntwo\r\n").await.unwrap();
        read_until(&mut client, "two").await;
        client.write_all(b"0\r\n\r\n").await.unwrap();
        read_until(&mut upstream, "0\r\n\r\n").await;
        upstream.write_all(b"0\r\n\r\n").await.unwrap();
        read_until(&mut client, "0\r\n\r\n").await;
    });
}

#[test]
fn a_client_that_waits_for_100_continue_gets_it() {
    run(async {
        let app = App::named("app").await;
        let mut world = World::default();
        let only = world.service(backend("app", AppProtocol::Http), &[app.addr]);
        let bed = Bed::new(world.frontend(&only, None));
        let mut client = TcpStream::connect(bed.mesh().await).await.unwrap();
        client
            .write_all(b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n")
            .await
            .unwrap();
        read_until(&mut client, "100 Continue\r\n\r\n").await;
        client.write_all(b"body").await.unwrap();
        read_until(&mut client, "app").await;
        assert_eq!(&app.last().body[..], b"body");
    });
}

#[test]
fn a_client_that_goes_away_takes_its_upstream_request_with_it() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (bed, mesh) = bed_before(&listener).await;
        let mut client = TcpStream::connect(mesh).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let (mut upstream, _) = raw_upstream(&listener, "\r\n\r\n").await;
        // With its FIN alone it might still read: see `who_sends_a_request_and_then_fin_is_answered`.
        socket2::SockRef::from(&client).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(client);
        assert_eq!(upstream.read(&mut [0; 16]).await.unwrap_or(0), 0, "the upstream connection ends");
        while !bed.metrics().contains("client_gone") {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn an_upstream_that_breaks_off_breaks_the_answer_off() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (bed, mesh) = bed_before(&listener).await;
        let mut client = TcpStream::connect(mesh).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let (mut upstream, _) = raw_upstream(&listener, "\r\n\r\n").await;
        upstream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await.unwrap();
        read_until(&mut client, "half").await;
        drop(upstream);
        // Not ten bytes, and an end: no client takes this for the whole.
        assert_eq!(client.read(&mut [0; 16]).await.unwrap_or(0), 0);
        while !bed.metrics().contains("upstream_reset") {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn websockets_pass_and_early_bytes_are_not_lost() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (bed, mesh) = bed_before(&listener).await;
        let mut client = TcpStream::connect(mesh).await.unwrap();
        let hello = "GET /chat HTTP/1.1\r\nhost: a\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: k\r\n\r\n";
        client.write_all(hello.as_bytes()).await.unwrap();
        let (mut upstream, request) = raw_upstream(&listener, "\r\n\r\n").await;
        let request = request.to_ascii_lowercase();
        assert!(
            request.contains("connection: upgrade\r\n") && request.contains("upgrade: websocket\r\n"),
            "{request}"
        );
        // The server's first frame comes in one piece with its 101.
        let reply =
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nbanner";
        upstream.write_all(reply.as_bytes()).await.unwrap();
        let head = read_until(&mut client, "banner").await.to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 101") && head.contains("upgrade: websocket\r\n"), "{head}");
        client.write_all(b"ping").await.unwrap();
        read_until(&mut upstream, "ping").await;
        upstream.write_all(b"pong").await.unwrap();
        read_until(&mut client, "pong").await;
        // Half-close is kept.
        client.shutdown().await.unwrap();
        assert_eq!(upstream.read(&mut [0; 4]).await.unwrap(), 0);
        upstream.write_all(b"bye").await.unwrap();
        drop(upstream);
        read_until(&mut client, "bye").await;
        assert_eq!(client.read(&mut [0; 4]).await.unwrap(), 0);
        while !bed.metrics().contains("101") {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn a_refused_upgrade_is_an_ordinary_answer() {
    run(async {
        let app = App::named("no").await;
        let mut world = World::default();
        let only = world.service(backend("app", AppProtocol::WebSocket), &[app.addr]);
        let bed = Bed::new(world.frontend(&only, None));
        let mut client = TcpStream::connect(bed.mesh().await).await.unwrap();
        let request = "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        for _ in 0..2 {
            client.write_all(request.as_bytes()).await.unwrap();
            read_until(&mut client, "\r\n\r\nno").await;
        }
    });
}

#[test]
fn an_upgrade_to_http2_is_not_smuggled_past_the_routes() {
    run(async {
        let upgrades = [
            "upgrade: h2c",
            "upgrade: H2C",
            "upgrade: websocket, h2c",
            "upgrade: websocket\r\nupgrade:\th2c",
            "upgrade: \u{fc}x,h2c",
            "upgrade: HTTP/2.0",
            "upgrade: foo/1, http/2",
        ];
        for upgrade in upgrades {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let (_bed, mesh) = bed_before(&listener).await;
            let mut client = TcpStream::connect(mesh).await.unwrap();
            let request = format!(
                "GET / HTTP/1.1\r\nhost: a\r\nconnection: Upgrade, HTTP2-Settings\r\n{upgrade}\r\nhttp2-settings: AAMAAABk\r\n\r\n"
            );
            client.write_all(request.as_bytes()).await.unwrap();
            let (mut upstream, request) = raw_upstream(&listener, "\r\n\r\n").await;
            let request = request.to_ascii_lowercase();
            for gone in ["upgrade", "http2-settings", "connection:"] {
                assert!(!request.contains(gone), "{upgrade}: {request}");
            }
            upstream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            let answer = read_until(&mut client, "\r\n\r\nok").await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{upgrade}: {answer}");
            // It is plain HTTP/1.1 from then on.
            client.write_all(b"GET /again HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            read_until(&mut upstream, "GET /again").await;
        }
    });
}

#[test]
fn switching_protocols_unasked_or_to_http2_is_a_bad_gateway() {
    run(async {
        let websocket = "connection: upgrade\r\nupgrade: websocket\r\n";
        for (asked, switched) in [("", "websocket"), ("", "h2c"), (websocket, "h2c")] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let (bed, mesh) = bed_before(&listener).await;
            let mut client = TcpStream::connect(mesh).await.unwrap();
            let request = format!("GET / HTTP/1.1\r\nhost: a\r\n{asked}\r\n");
            client.write_all(request.as_bytes()).await.unwrap();
            let (mut upstream, _) = raw_upstream(&listener, "\r\n\r\n").await;
            let reply =
                format!("HTTP/1.1 101 S\r\nconnection: upgrade\r\nupgrade: {switched}\r\n\r\nsmuggled");
            upstream.write_all(reply.as_bytes()).await.unwrap();
            let answer = read_until(&mut client, "trace: ").await;
            assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
            assert!(answer.contains("x-weft-reason: upstream_protocol\r\n"), "{answer}");
            assert!(!answer.contains("smuggled"), "{answer}");
            let mut rest = [0; 8];
            assert_eq!(upstream.read(&mut rest).await.unwrap_or(0), 0, "its connection is not used again");
            assert!(bed.metrics().contains("upstream_protocol"), "{}", bed.metrics());
        }
    });
}

#[test]
fn websockets_over_http2_reach_an_http1_server() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (_bed, mesh) = bed_before(&listener).await;
        let mut client = h2_client(mesh).await;
        // SETTINGS_ENABLE_CONNECT_PROTOCOL has come once something was answered.
        let plain = client.send_request(Request::connect("a:80").body(body("")).unwrap()).await.unwrap();
        assert_eq!(plain.status(), 400);
        let request = Request::connect("http://a/chat")
            .extension(hyper::ext::Protocol::from_static("websocket"))
            .body(body(""))
            .unwrap();
        let answer = client.send_request(request);
        let server = async {
            let (mut upstream, request) = raw_upstream(&listener, "\r\n\r\n").await;
            let request = request.to_ascii_lowercase();
            assert!(request.starts_with("get /chat http/1.1\r\n"), "{request}");
            assert!(
                request.contains("upgrade: websocket\r\n") && request.contains("sec-websocket-key: "),
                "{request}"
            );
            let reply = "HTTP/1.1 101 S\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: x\r\n\r\n";
            upstream.write_all(reply.as_bytes()).await.unwrap();
            upstream
        };
        let (answer, mut upstream) = tokio::join!(answer, server);
        let answer = answer.unwrap();
        assert_eq!(answer.status(), 200);
        assert!(!answer.headers().contains_key("sec-websocket-accept"));
        let mut io = hyper_util::rt::TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
        io.write_all(b"ping").await.unwrap();
        read_until(&mut upstream, "ping").await;
        upstream.write_all(b"pong").await.unwrap();
        let mut pong = [0; 4];
        io.read_exact(&mut pong).await.unwrap();
        assert_eq!(&pong, b"pong");
    });
}

#[test]
fn a_mirror_that_does_not_read_is_cut_and_delays_nothing() {
    run(async {
        let app = App::start(|seen, _| {
            Box::pin(async move { text(if seen.body.len() == 8 << 20 { 200 } else { 500 }, "all of it") })
        })
        .await;
        // Accepts in the kernel only: nobody ever reads.
        let deaf = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut world = World::default();
        let primary = world.service(backend("app", AppProtocol::Http), &[app.addr]);
        let mirror = world.service(backend("deaf", AppProtocol::Http), &[deaf.local_addr().unwrap()]);
        let mut rule = rule(to(&primary));
        rule.filters.mirrors = vec![Arc::new(MirrorTarget { backend: mirror, numerator: 1, denominator: 1 })];
        let bed = Bed::new(world.frontend(&primary, Some(vec![(prefix("/"), rule)])));
        // In many frames: a mirror may lag by a few.
        let frames =
            stream::iter((0..512).map(|_| Ok::<_, io::Error>(Frame::data(Bytes::from(vec![7; 16 << 10])))));
        let request =
            Request::post("/").header("host", "a").body(StreamBody::new(frames).boxed_unsync()).unwrap();
        let answer = h1_client(bed.mesh().await).await.send_request(request).await.unwrap();
        assert_eq!(answer.status(), 200);
        drop(deaf);
        while bed.http.mirrors.get() > 0 {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn mirrors_that_are_dropped_with_their_share_do_not_count_for_ever() {
    run(async {
        let app = App::start(|_, _| Box::pin(async move { text(200, "ok") })).await;
        let deaf = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut world = World::default();
        let primary = world.service(backend("app", AppProtocol::Http), &[app.addr]);
        let mirror = world.service(backend("deaf", AppProtocol::Http), &[deaf.local_addr().unwrap()]);
        let mut rule = rule(to(&primary));
        rule.filters.mirrors = vec![Arc::new(MirrorTarget { backend: mirror, numerator: 1, denominator: 1 })];
        let bed = Bed::new(world.frontend(&primary, Some(vec![(prefix("/"), rule)])));
        let request = Request::get("/").header("host", "a").body(body("")).unwrap();
        let answer = h1_client(bed.mesh().await).await.send_request(request).await.unwrap();
        assert_eq!((answer.status(), bed.http.mirrors.get()), (200.try_into().unwrap(), 1));
        bed.share.close();
        assert_eq!(bed.http.mirrors.get(), 0);
    });
}
