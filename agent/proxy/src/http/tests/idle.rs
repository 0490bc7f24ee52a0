//! What ends a quiet HTTP connection and when, under a paused clock: the table in ARCHITECTURE.md, row by row.
//!
//! Everything is in memory: beside a socket, a paused clock moves on while bytes are on their way.

use super::support::*;
use crate::{
    context::Limits,
    dial::{Dial, Upstream, UpstreamInfo},
    error::ProxyError,
    http::Entrance,
    workload::LocalWorkload,
};
use bytes::Bytes;
use futures_util::{future::LocalBoxFuture, stream};
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::{body::Frame, server::conn, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{convert::Infallible, io, net::SocketAddr, rc::Rc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    runtime::LocalOptions,
    sync::mpsc,
    time::{Instant, sleep},
};
use weft_core::config::{AppProtocol, Config, Endpoint};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// What HTTP/2 begins with: the preface and empty SETTINGS.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

/// As [`run`], but days pass in no time: the clock moves on whenever nobody has anything to do.
fn run_paused(test: impl Future<Output = ()> + 'static) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build_local(LocalOptions::default()).unwrap();
    runtime.block_on(async {
        tokio::time::timeout(DAY * 10, test).await.expect("the test hangs");
    });
}

/// Gives the other end of each connection to the test.
struct Memory(mpsc::UnboundedSender<DuplexStream>);

impl Dial for Memory {
    type Io = DuplexStream;

    async fn dial(
        &self,
        _: &Rc<LocalWorkload<Self::Io>>,
        endpoint: &Endpoint,
        _: bool,
    ) -> Result<Upstream<DuplexStream>, ProxyError> {
        let (near, far) = duplex(1 << 16);
        self.0.send(far).expect("the test takes every connection");
        Ok(Upstream { io: near, info: UpstreamInfo::plain(endpoint.addr) })
    }
}

struct Quiet {
    bed: Rc<Bed<Memory>>,
    upstreams: mpsc::UnboundedReceiver<DuplexStream>,
}

impl Quiet {
    /// One Service with one endpoint, by itself and behind a Gateway.
    fn new(
        protocol: AppProtocol,
        at: fn(World, &std::sync::Arc<weft_core::config::Backend>) -> Config,
    ) -> Self {
        let mut world = World::default();
        let only = world.service(backend("app", protocol), &[peer()]);
        let (give, upstreams) = mpsc::unbounded_channel();
        Self {
            bed: Bed::around(
                Limits::default(),
                at(world, &only),
                (Memory(give), Rc::default(), Rc::default()),
            ),
            upstreams,
        }
    }

    fn mesh(protocol: AppProtocol) -> Self {
        Self::new(protocol, |world, only| world.frontend(only, None))
    }

    fn gateway() -> Self {
        Self::new(AppProtocol::Http, |world, only| {
            world.gateway(vec![(None, vec![(prefix("/"), rule(to(only)))])])
        })
    }

    /// A client's end of a new connection.
    fn connect(&self, entrance: Entrance) -> DuplexStream {
        connect(&self.bed, entrance)
    }

    /// Serves whatever is dialled by hyper, in the version that the client begins with.
    fn serve(self, answer: fn() -> LocalBoxFuture<'static, Reply>) -> Rc<Bed<Memory>> {
        let Self { bed, mut upstreams } = self;
        tokio::task::spawn_local(async move {
            while let Some(io) = upstreams.recv().await {
                let service = service_fn(move |request: Request<hyper::body::Incoming>| async move {
                    request.into_body().collect().await?;
                    Ok::<_, hyper::Error>(answer().await)
                });
                tokio::task::spawn_local(async move {
                    let auto = hyper_util::server::conn::auto::Builder::new(LocalExec);
                    let _ = auto.serve_connection(TokioIo::new(io), service).await;
                });
            }
        });
        bed
    }
}

fn connect(bed: &Bed<Memory>, entrance: Entrance) -> DuplexStream {
    let (client, server) = duplex(1 << 16);
    bed.serve(server, peer(), entrance, None);
    client
}

fn peer() -> SocketAddr {
    ([10, 0, 0, 9], 999).into()
}

fn in_mesh() -> Entrance {
    Entrance::Mesh { frontend: FRONTEND.into() }
}

fn at_once() -> LocalBoxFuture<'static, Reply> {
    Box::pin(async { text(200, "x") })
}

fn a_day_later() -> LocalBoxFuture<'static, Reply> {
    Box::pin(async {
        sleep(DAY).await;
        text(200, "late")
    })
}

fn ask() -> Request<Body2> {
    Request::get("http://app/").header("host", "app").body(body("")).unwrap()
}

/// How long a connection lives on which the client says this and no more.
async fn lives(mut client: DuplexStream, says: &[u8]) -> Duration {
    client.write_all(says).await.unwrap();
    let (begin, mut sink) = (Instant::now(), [0; 4096]);
    while client.read(&mut sink).await.is_ok_and(|n| n > 0) {}
    begin.elapsed()
}

fn check(what: &str, lived: Duration, from: u64, to: u64) {
    let seconds = lived.as_secs();
    assert!((from..=to).contains(&seconds), "{what}: lived for {seconds} s, expected {from} to {to}");
}

#[test]
fn a_quiet_client_is_let_go_when_the_table_says() {
    run_paused(async {
        let mesh = Quiet::mesh(AppProtocol::Http);
        // A pod may open connections ahead of need; a stranger at a Gateway may not hold them.
        check("mesh, before a first byte", lives(mesh.connect(in_mesh()), b"").await, 600, 600);
        let gateway = Quiet::gateway();
        check("gateway, before a first byte", lives(gateway.connect(at_gateway()), b"").await, 10, 10);
        for (quiet, entrance) in [(mesh, in_mesh()), (gateway, at_gateway())] {
            let what = if matches!(entrance, Entrance::Mesh { .. }) { "mesh" } else { "gateway" };
            let client = || quiet.connect(entrance.clone());
            check(&format!("{what}, half a preface"), lives(client(), &HTTP2[..9]).await, 10, 10);
            check(&format!("{what}, half a head"), lives(client(), b"GET / HTTP/1.1\r\nho").await, 10, 20);
            // PING after 30 s, given up 10 s later.
            check(&format!("{what}, HTTP/2 that is no more"), lives(client(), HTTP2).await, 40, 41);
            let (client, served) = (client(), quiet.serve(at_once));
            check(&format!("{what}, between requests"), lives(client, REQUEST).await, 600, 620);
            drop(served);
        }
    });
}

#[test]
fn a_quiet_http2_client_that_lives_is_let_go_after_ten_minutes() {
    run_paused(async {
        let quiet = Quiet::mesh(AppProtocol::Http);
        let mut client = h2_over(quiet.connect(in_mesh())).await;
        let _served = quiet.serve(at_once);
        client.send_request(ask()).await.unwrap().into_body().collect().await.unwrap();
        sleep(Duration::from_secs(590)).await;
        client.send_request(ask()).await.unwrap().into_body().collect().await.unwrap();
        let begin = Instant::now();
        while !client.is_closed() {
            sleep(Duration::from_secs(1)).await;
        }
        check("HTTP/2 between requests", begin.elapsed(), 600, 621);
    });
}

/// The answer is a day away; both ends live.
#[test]
fn no_silence_of_an_exchange_is_too_long() {
    run_paused(async {
        for protocol in [AppProtocol::Http, AppProtocol::H2c] {
            let (bed, begin) = (Quiet::mesh(protocol).serve(a_day_later), Instant::now());
            let mut http1 = h1_over(connect(&bed, in_mesh())).await;
            assert_eq!(http1.send_request(ask()).await.unwrap().status(), 200);
            let mut http2 = h2_over(connect(&bed, in_mesh())).await;
            assert_eq!(http2.send_request(ask()).await.unwrap().status(), 200);
            assert!(begin.elapsed() >= DAY * 2, "{protocol:?}: {:?}", begin.elapsed());
        }
    });
}

/// A stream as gRPC has them, with a day between two messages.
/// To TCP, who has given up is one who only sends nothing more.
#[test]
fn a_client_that_has_ended_its_side_and_takes_nothing_is_let_go_after_a_minute() {
    run_paused(async {
        let quiet = Quiet::mesh(AppProtocol::Http);
        let mut client = quiet.connect(in_mesh());
        let _served = quiet.serve(a_day_later);
        client.write_all(REQUEST).await.unwrap();
        client.shutdown().await.unwrap();
        let begin = Instant::now();
        assert_eq!(client.read(&mut [0; 16]).await.unwrap_or(0), 0);
        check("a client's FIN", begin.elapsed(), 60, 80);
    });
}

#[test]
fn no_silence_within_a_stream_is_too_long() {
    fn in_parts() -> LocalBoxFuture<'static, Reply> {
        let frames = stream::unfold(0, |n| async move {
            if n > 0 {
                sleep(DAY).await;
            }
            (n < 2).then(|| (Ok::<_, io::Error>(Frame::data(Bytes::from_static(b"part"))), n + 1))
        });
        let answer = Response::builder().header("content-type", "application/grpc");
        Box::pin(async move { answer.body(StreamBody::new(frames).boxed_unsync()).unwrap() })
    }
    run_paused(async {
        let quiet = Quiet::mesh(AppProtocol::Grpc);
        let mut client = h2_over(quiet.connect(in_mesh())).await;
        let _served = quiet.serve(in_parts);
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
        let mut quiet = Quiet::mesh(AppProtocol::Http);
        let mut client = quiet.connect(in_mesh());
        let hello = "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: k\r\n\r\n";
        client.write_all(hello.as_bytes()).await.unwrap();
        let mut upstream = quiet.upstreams.recv().await.unwrap();
        let mut buffer = [0; 4096];
        assert!(upstream.read(&mut buffer).await.unwrap() > 0);
        let reply = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        upstream.write_all(reply.as_bytes()).await.unwrap();
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let n = client.read(&mut buffer).await.unwrap();
            head += std::str::from_utf8(&buffer[..n]).unwrap();
        }
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
        for protocol in [AppProtocol::Http, AppProtocol::H2c] {
            let mut quiet = Quiet::mesh(protocol);
            let mut client = h1_over(quiet.connect(in_mesh())).await;
            let serving = async {
                let io = TokioIo::new(quiet.upstreams.recv().await.unwrap());
                let service = service_fn(|_| async { Ok::<_, Infallible>(text(200, "x")) });
                if protocol == AppProtocol::H2c {
                    let _ = conn::http2::Builder::new(LocalExec).serve_connection(io, service).await;
                } else {
                    let _ = conn::http1::Builder::new().serve_connection(io, service).await;
                }
                Instant::now()
            };
            let asking = async {
                client.send_request(ask()).await.unwrap().into_body().collect().await.unwrap();
                Instant::now()
            };
            let (ended, asked) = tokio::join!(serving, asking);
            check("an unused upstream connection", ended - asked, 60, 71);
        }
    });
}

/// gRPC's servers end a connection that is asked for a sign of life more often than every five minutes, and with it all
/// its streams.
#[test]
fn a_grpc_server_is_not_pinged_until_it_hangs_up() {
    const PING: u8 = 6;
    run_paused(async {
        let mut quiet = Quiet::mesh(AppProtocol::Grpc);
        let mut client = h2_over(quiet.connect(in_mesh())).await;
        tokio::task::spawn_local(async move {
            let request =
                Request::post("http://grpc/pkg.Svc/Method").header("content-type", "application/grpc");
            let _ = client.send_request(request.body(body("")).unwrap()).await;
        });
        let mut upstream = quiet.upstreams.recv().await.unwrap();
        upstream.write_all(&HTTP2[24..]).await.unwrap();
        upstream.read_exact(&mut [0; 24]).await.unwrap();
        let frames = async {
            let mut kinds = Vec::new();
            loop {
                let mut head = [0; 9];
                upstream.read_exact(&mut head).await.unwrap();
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
                upstream.read_exact(&mut vec![0; length as usize]).await.unwrap();
                kinds.push(head[3]);
                assert!(!kinds.contains(&PING), "a PING after {kinds:?}");
            }
        };
        tokio::time::timeout(DAY, frames).await.expect_err("the stream is open for a day");
    });
}

/// Where there is no tunnel nobody looks for signs of life. What waits for a peer that vanished goes on waiting, but new
/// requests do not join it; an answer to anybody shows that it lives, however slow the others are.
#[test]
fn no_new_request_goes_onto_an_http2_connection_that_answers_none() {
    run_paused(async {
        let mut quiet = Quiet::mesh(AppProtocol::H2c);
        let client = h2_over(quiet.connect(in_mesh())).await;
        let ask_in_vain = || {
            let mut client = client.clone();
            tokio::task::spawn_local(async move {
                let _ = client.send_request(ask()).await;
            });
            sleep(Duration::from_secs(4))
        };
        ask_in_vain().await;
        let mut gone = quiet.upstreams.recv().await.unwrap();
        gone.write_all(&HTTP2[24..]).await.unwrap();
        ask_in_vain().await;
        assert!(quiet.upstreams.try_recv().is_err(), "a slow answer is waited for");
        let mut third = client.clone();
        let asking =
            tokio::task::spawn_local(async move { third.send_request(ask()).await.unwrap().status() });
        let io = TokioIo::new(quiet.upstreams.recv().await.unwrap());
        let service = service_fn(|request: Request<hyper::body::Incoming>| async move {
            if request.uri().path() == "/slow" {
                sleep(DAY).await;
            }
            Ok::<_, Infallible>(text(200, "x"))
        });
        tokio::task::spawn_local(conn::http2::Builder::new(LocalExec).serve_connection(io, service));
        assert_eq!(asking.await.unwrap(), 200);
        let mut slow = client.clone();
        let request = Request::get("http://app/slow").header("host", "app").body(body("")).unwrap();
        tokio::task::spawn_local(async move { slow.send_request(request).await });
        for _ in 0..20 {
            sleep(Duration::from_secs(4)).await;
            assert_eq!(client.clone().send_request(ask()).await.unwrap().status(), 200);
        }
        assert!(quiet.upstreams.try_recv().is_err(), "it answers, if not everybody");
    });
}
