//! Tunnels in memory: what a stream promises, without TLS and sockets.

use super::*;
use crate::{
    drain::Drain,
    l4::{copy, pipe::Plain},
    share::buffers::Buffers,
    transport::{
        CONNECTION_WINDOW, DATA_FRAME_BUDGET, FRAME_SIZE, SEND_BUFFER, STREAM_WINDOW,
        tunnel::{OpenError, State, Tunnel},
    },
};
use http::{HeaderMap, Response, StatusCode};
use std::{net::SocketAddr, rc::Rc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, Interest, duplex},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::LocalSet,
};
use weft_core::model::SpiffeId;

type Accepted = (http::Request<RecvStream>, h2::server::SendResponse<Bytes>);

fn to() -> SocketAddr {
    "10.0.0.1:80".parse().unwrap()
}

/// A tunnel, and the CONNECTs that reach its other end.
async fn tunnel() -> (Rc<Tunnel>, mpsc::Receiver<Accepted>) {
    let (near, far) = duplex(1 << 20);
    let (accepted, accepts) = mpsc::channel(1000);
    tokio::task::spawn_local(async move {
        let mut server = h2::server::Builder::new();
        server
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_SIZE)
            .max_send_buffer_size(SEND_BUFFER)
            .data_frame_budget(DATA_FRAME_BUDGET);
        let mut server = server.handshake::<_, Bytes>(far).await.unwrap();
        while let Some(Ok(stream)) = server.accept().await {
            accepted.send(stream).await.unwrap();
        }
    });
    let identity = Rc::new(SpiffeId::new("cluster.local", "shop", "b"));
    let (tunnel, driver) = Tunnel::establish(near, identity, None, std::future::pending()).await.unwrap();
    tokio::task::spawn_local(driver);
    (tunnel, accepts)
}

/// One stream, both ends.
async fn stream() -> (TunnelStream, TunnelStream, Rc<Tunnel>) {
    let (tunnel, mut accepts) = tunnel().await;
    let headers = HeaderMap::new();
    let answering = async {
        let (request, mut respond) = accepts.recv().await.unwrap();
        let send = respond.send_response(Response::new(()), false).unwrap();
        TunnelStream::new(send, request.into_body(), None)
    };
    let (near, far) = tokio::join!(tunnel.reserve(false).open(to(), &headers), answering);
    // The connection is driven as long as somebody takes its streams.
    tokio::task::spawn_local(async move { while accepts.recv().await.is_some() {} });
    (near.unwrap(), far, tunnel)
}

async fn local<T>(work: impl Future<Output = T>) -> T {
    let local = LocalSet::new();
    local.run_until(tokio::time::timeout(Duration::from_secs(60), work)).await.expect("an end in time")
}

/// The application's answer and its end were two frames, so two records and two packets, of every connection.
#[tokio::test]
async fn the_end_of_a_server_that_answers_and_closes_is_in_its_last_frame() {
    local(async {
        let (mut near, far, _tunnel) = stream().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (app, accepted) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let (mut app, agents) = (app.unwrap(), accepted.unwrap().0);
        app.write_all(&[7; 300]).await.unwrap();
        app.shutdown().await.unwrap();
        // Both have come before the copy looks.
        while !agents.ready(Interest::READABLE).await.unwrap().is_read_closed() {
            tokio::task::yield_now().await;
        }
        let copying = tokio::task::spawn_local(async move {
            let (drain, buffers) = (Drain::new(), Buffers::new(usize::MAX, None));
            copy::bidirectional(far, agents, Bytes::new(), (&drain, &buffers)).await
        });
        let frame = std::future::poll_fn(|cx| near.poll_frame(cx)).await.unwrap();
        assert_eq!(frame.len(), 300);
        assert!(near.recv.is_end_stream(), "the end is still to come");
        near.shutdown().await.unwrap();
        assert!(matches!(copying.await.unwrap().end, copy::End::Clean));
        let mut rest = Vec::new();
        near.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty());
    })
    .await;
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    local(async {
        let (mut near, mut far, tunnel) = stream().await;
        assert_eq!(tunnel.streams(), 1);
        near.write_all(b"question").await.unwrap();
        near.shutdown().await.unwrap();
        let mut text = String::new();
        far.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "question");
        far.write_all(b"answer").await.unwrap();
        far.shutdown().await.unwrap();
        text.clear();
        near.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "answer");
        drop((near, far));
        assert_eq!(tunnel.streams(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_reset_and_a_drop_are_errors_at_the_other_end() {
    local(async {
        let (mut near, mut far, _tunnel) = stream().await;
        near.reset();
        assert_eq!(far.read(&mut [0; 1]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let (near, mut far, _tunnel) = stream().await;
        drop(near);
        assert!(far.read(&mut [0; 1]).await.is_err(), "a truncation must not look like an end");
    })
    .await;
}

#[tokio::test]
async fn a_writer_stops_when_its_reader_does() {
    local(async {
        let (mut near, mut far, _tunnel) = stream().await;
        let piece = vec![7_u8; 64 * 1024];
        let mut written = 0;
        // Stops at the stream's window and what the sender may hold; nothing more is taken.
        while let Ok(n) = tokio::time::timeout(Duration::from_millis(200), near.write(&piece)).await {
            written += n.unwrap();
        }
        let bound = STREAM_WINDOW as usize + SEND_BUFFER;
        assert!((STREAM_WINDOW as usize..=bound).contains(&written), "{written} bytes");
        let mut got = vec![0; written];
        far.read_exact(&mut got).await.unwrap();
        near.write_all(&piece).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_stalled_stream_does_not_stop_its_neighbour() {
    local(async {
        let (tunnel, mut accepts) = tunnel().await;
        let headers = HeaderMap::new();
        let mut ends = Vec::new();
        for _ in 0..2 {
            let answering = async {
                let (request, mut respond) = accepts.recv().await.unwrap();
                let send = respond.send_response(Response::new(()), false).unwrap();
                TunnelStream::new(send, request.into_body(), None)
            };
            let (near, far) = tokio::join!(tunnel.reserve(false).open(to(), &headers), answering);
            ends.push((near.unwrap(), far));
        }
        let (mut stalled, _unread) = ends.remove(0);
        let (mut near, mut far) = ends.remove(0);
        let piece = vec![7_u8; 64 * 1024];
        while tokio::time::timeout(Duration::from_millis(100), stalled.write(&piece)).await.is_ok() {}
        let sent = async { near.write_all(&vec![1; 8 << 20]).await.unwrap() };
        let mut got = vec![0; 8 << 20];
        let (_, read) = tokio::join!(sent, far.read_exact(&mut got));
        read.unwrap();
    })
    .await;
}

#[tokio::test]
async fn answers_other_than_200_are_told_apart() {
    local(async {
        let (tunnel, mut accepts) = tunnel().await;
        let headers = HeaderMap::new();
        for status in [StatusCode::BAD_REQUEST, StatusCode::UNAUTHORIZED, StatusCode::SERVICE_UNAVAILABLE] {
            let answering = async {
                let (_request, mut respond) = accepts.recv().await.unwrap();
                let mut response = Response::new(());
                *response.status_mut() = status;
                respond.send_response(response, true).unwrap();
            };
            let (opened, ()) = tokio::join!(tunnel.reserve(false).open(to(), &headers), answering);
            assert!(matches!(opened, Err(OpenError::Refused(s)) if s == status));
            assert_eq!(tunnel.streams(), 0);
        }
        assert_eq!(tunnel.state(), State::Open);
    })
    .await;
}

/// 10⁶ one-byte writes over 100 streams (`WEFT_SMALL_WRITES`; fewer in an ordinary run), each its own DATA frame, to
/// readers that take 64 bytes at a time.
#[tokio::test]
async fn many_one_byte_writes_to_slow_readers_lose_nothing_and_close_nothing() {
    let writes: usize =
        std::env::var("WEFT_SMALL_WRITES").ok().map_or(100_000, |n| n.parse().expect("a number"));
    let each = writes / 100;
    local(async {
        let (tunnel, mut accepts) = tunnel().await;
        tokio::task::spawn_local(async move {
            while let Some((request, mut respond)) = accepts.recv().await {
                let send = respond.send_response(Response::new(()), false).unwrap();
                let stream = TunnelStream::new(send, request.into_body(), None);
                tokio::task::spawn_local(copy_to_slow_echo(stream));
            }
        });
        let headers = HeaderMap::new();
        let mut clients = Vec::new();
        for _ in 0..100 {
            let near = tunnel.reserve(false).open(to(), &headers).await.unwrap();
            clients.push(tokio::task::spawn_local(one_by_one(near, each)));
        }
        for client in clients {
            assert_eq!(client.await.unwrap(), each);
        }
        assert_eq!(tunnel.state(), State::Open);
    })
    .await;
}

/// Writes all, unread frames piling up at the other end, then reads what comes back.
async fn one_by_one(stream: TunnelStream, count: usize) -> usize {
    let (mut read, mut write) = tokio::io::split(stream);
    let writing = async move {
        for i in 0..count {
            write.write_all(&[i as u8]).await.unwrap();
        }
        write.shutdown().await.unwrap();
    };
    let reading = async move {
        let mut got = Vec::new();
        read.read_to_end(&mut got).await.unwrap();
        assert!(got.iter().enumerate().all(|(i, b)| *b == i as u8));
        got.len()
    };
    tokio::join!(writing, reading).1
}

/// The server's side: a copy to an application that reads a little at a time.
async fn copy_to_slow_echo(stream: TunnelStream) {
    let (app, upstream) = duplex(64);
    let echo = async move {
        let (mut read, mut write): (tokio::io::ReadHalf<DuplexStream>, _) = tokio::io::split(app);
        tokio::io::copy(&mut read, &mut write).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let drain = Drain::new();
    let buffers = Buffers::new(usize::MAX, None);
    let copying = copy::bidirectional(stream, Plain(upstream), Bytes::new(), (&drain, &buffers));
    let (copied, ()) = tokio::join!(copying, echo);
    assert!(matches!(copied.end, copy::End::Clean), "{copied:?}");
}

/// How long `tunnel` lives: until its driver has ended, or a day.
async fn lives(tunnel: &Tunnel) -> Duration {
    let begin = tokio::time::Instant::now();
    while tunnel.state() == State::Open && begin.elapsed() < Duration::from_secs(24 * 3600) {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    begin.elapsed()
}

#[tokio::test(start_paused = true)]
async fn no_silence_of_a_stream_is_too_long() {
    LocalSet::new()
        .run_until(async {
            let (mut near, mut far, tunnel) = stream().await;
            for _ in 0..2 {
                assert_eq!(lives(&tunnel).await, Duration::from_secs(24 * 3600));
                near.write_all(b"ping").await.unwrap();
                let mut got = [0; 4];
                far.read_exact(&mut got).await.unwrap();
                far.write_all(b"pong").await.unwrap();
                near.read_exact(&mut got).await.unwrap();
                assert_eq!(&got, b"pong");
            }
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn an_unused_tunnel_is_retired_after_five_minutes() {
    LocalSet::new()
        .run_until(async {
            let (near, far, tunnel) = stream().await;
            tokio::time::sleep(Duration::from_secs(1000)).await;
            drop((near, far));
            let lived = lives(&tunnel).await.as_secs();
            assert!((300..=312).contains(&lived), "{lived} s");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_whose_other_end_is_no_more_is_given_up() {
    local(async {
        let (near, mut far) = duplex(1 << 20);
        let identity = Rc::new(SpiffeId::new("cluster.local", "shop", "b"));
        // Empty SETTINGS: it speaks HTTP/2, and then no more.
        far.write_all(b"\0\0\0\x04\0\0\0\0\0").await.unwrap();
        let (tunnel, driver) = Tunnel::establish(near, identity, None, std::future::pending()).await.unwrap();
        tokio::task::spawn_local(driver);
        // The first look, after 10 s, sees that it spoke; PING at the second; dead 20 s later.
        let lived = lives(&tunnel).await.as_secs();
        assert!((40..=41).contains(&lived), "{lived} s");
    })
    .await;
}
