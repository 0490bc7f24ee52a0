//! Connections that end while they are in use: because we are drained, or because the server ends them.

use super::{
    faults::{bed, retry},
    support::*,
};
use crate::share::Kind;
use http::Request;
use std::{cell::Cell, net::SocketAddr, rc::Rc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use weft_core::config::AppProtocol;

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
