//! Two pods on loopback addresses, through the whole path: capture, decision, tunnel, application.

use crate::{
    context::Limits,
    fixtures::{Mesh, TestPod, endpoint, identity, workload},
    pods::DataPlane,
};
use std::{io, net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use weft_core::{config::AppProtocol, model::MtlsMode};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// An application that says `banner`, then echoes until its client ends; gives where, and who connected.
pub(crate) async fn echo(
    ip: &str,
    banner: &'static str,
) -> (SocketAddr, tokio::sync::mpsc::Receiver<SocketAddr>) {
    let listener = TcpListener::bind((ip, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (seen, clients) = tokio::sync::mpsc::channel(64);
    tokio::spawn(async move {
        while let Ok((mut io, peer)) = listener.accept().await {
            let seen = seen.clone();
            tokio::spawn(async move {
                let _ = seen.send(peer).await;
                let (mut read, mut write) = io.split();
                let _ = write.write_all(banner.as_bytes()).await;
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    (addr, clients)
}

/// Connects as the application in `pod` would to `to`.
pub(crate) async fn call(pod: &TestPod, to: SocketAddr) -> TcpStream {
    pod.sockets.going_to(to);
    TcpStream::connect(pod.outbound).await.unwrap()
}

/// Says `request`, ends its direction, and reads all.
pub(crate) async fn exchange(mut io: TcpStream, request: &[u8]) -> io::Result<Vec<u8>> {
    let work = async move {
        io.write_all(request).await?;
        io.shutdown().await?;
        let mut answer = Vec::new();
        io.read_to_end(&mut answer).await?;
        Ok(answer)
    };
    timeout(PATIENCE, work).await.expect("an answer in time")
}

/// The connection is reset; that may be seen by connect already.
pub(crate) async fn assert_reset(to: SocketAddr) {
    let end = async { TcpStream::connect(to).await?.read(&mut [0; 1]).await };
    let end = timeout(PATIENCE, end).await.expect("an end in time");
    assert_eq!(end.expect_err("a reset").kind(), io::ErrorKind::ConnectionReset);
}

/// What the application in `pod` calls is reset.
pub(crate) async fn assert_call_reset(pod: &TestPod, to: SocketAddr) {
    pod.sockets.going_to(to);
    assert_reset(pod.outbound).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opaque_bytes_cross_a_tunnel_and_keep_the_clients_address() {
    let mesh = Mesh::start(2);
    let client = mesh.pod("a", "127.10.1.1", MtlsMode::Strict).await;
    let server = mesh.pod("b", "127.10.1.2", MtlsMode::Strict).await;
    let (addr, mut clients) = echo("127.10.1.2", "").await;
    let opaque = mesh.service("db", AppProtocol::Opaque, &[endpoint(addr, Some(&server.workload))]);
    for to in [opaque, addr] {
        let answer = exchange(call(&client, to).await, b"hello").await.unwrap();
        assert_eq!(answer, b"hello");
        assert_eq!(clients.recv().await.unwrap().ip(), client.workload.ips[0]);
    }
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_transfer_arrives_whole() {
    let mesh = Mesh::start(1);
    let client = mesh.pod("a", "127.10.2.1", MtlsMode::Strict).await;
    let server = mesh.pod("b", "127.10.2.2", MtlsMode::Strict).await;
    let (addr, _clients) = echo("127.10.2.2", "").await;
    let to = mesh.service("db", AppProtocol::Opaque, &[endpoint(addr, Some(&server.workload))]);
    let sent: Vec<u8> = (0..8_000_000_u32).map(|i| (i % 251) as u8).collect();
    let (mut read, mut write) = call(&client, to).await.into_split();
    let copy = sent.clone();
    let writer = tokio::spawn(async move {
        write.write_all(&copy).await?;
        write.shutdown().await
    });
    let mut got = Vec::new();
    timeout(PATIENCE, read.read_to_end(&mut got)).await.unwrap().unwrap();
    writer.await.unwrap().unwrap();
    assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_banner_needs_no_word_of_the_client() {
    let mesh = Mesh::start(1);
    let client = mesh.pod("a", "127.10.3.1", MtlsMode::Strict).await;
    let server = mesh.pod("b", "127.10.3.2", MtlsMode::Strict).await;
    let (addr, _clients) = echo("127.10.3.2", "220 ready\r\n").await;
    let to = mesh.service("mail", AppProtocol::Unknown, &[endpoint(addr, Some(&server.workload))]);
    // The second connection knows that this port is not HTTP.
    for _ in 0..2 {
        let mut io = call(&client, to).await;
        let mut banner = [0; 11];
        timeout(PATIENCE, io.read_exact(&mut banner)).await.unwrap().unwrap();
        assert_eq!(&banner, b"220 ready\r\n");
        assert_eq!(exchange(io, b"QUIT\r\n").await.unwrap(), b"QUIT\r\n");
    }
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_speaks_first_is_passed_on() {
    let mesh = Mesh::start(1);
    let client = mesh.pod("a", "127.10.4.1", MtlsMode::Strict).await;
    let server = mesh.pod("b", "127.10.4.2", MtlsMode::Strict).await;
    let (addr, _clients) = echo("127.10.4.2", "").await;
    let to = mesh.service("redis", AppProtocol::Unknown, &[endpoint(addr, Some(&server.workload))]);
    for request in [&b"*1\r\n$4\r\nPING\r\n"[..], b"G", b""] {
        assert_eq!(exchange(call(&client, to).await, request).await.unwrap(), request);
    }
    mesh.stop().await;
}

/// C9, C10, C13, C17 on a port where nobody has said what is spoken: what the codec would refuse is bytes before anything is
/// answered, whole and as it came, and the port is not taken for another because of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_codec_would_refuse_is_bytes_where_nobody_declared_http() {
    let mesh = Mesh::start(1);
    let client = mesh.pod("a", "127.10.44.1", MtlsMode::Strict).await;
    let server = mesh.pod("b", "127.10.44.2", MtlsMode::Strict).await;
    let (addr, _clients) = echo("127.10.44.2", "").await;
    let to = mesh.service("any", AppProtocol::Unknown, &[endpoint(addr, Some(&server.workload))]);
    for request in [
        "GET http://x.test#a HTTP/1.1\r\nHost: x.test\r\n\r\n",
        "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET hxxp://x/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: <script>\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        "GET / HTTP/1.1\nHost: a\n\n",
        // Ends before it is a head.
        "GET / HTTP/1.1\r\nHost: a\r\n",
    ] {
        let answer = exchange(call(&client, to).await, request.as_bytes()).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&answer), request);
        // In two pieces, too: the verdict waits for the whole head.
        let mut io = call(&client, to).await;
        io.write_all(&request.as_bytes()[..9]).await.unwrap();
        tokio::task::yield_now().await;
        assert_eq!(exchange(io, &request.as_bytes()[9..]).await.unwrap(), request.as_bytes());
    }
    // And what it takes is HTTP as before: the echo is no answer to that.
    let answer = exchange(call(&client, to).await, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 502"), "{}", String::from_utf8_lossy(&answer));
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_a_reset() {
    let mesh = Mesh::start(1);
    let client = mesh.pod("a", "127.10.5.1", MtlsMode::Strict).await;
    let server = mesh.pod("b", "127.10.5.2", MtlsMode::Strict).await;
    let gone: SocketAddr = "127.10.5.2:1".parse().unwrap();
    let refusing = [endpoint(gone, Some(&server.workload))];
    let outside = [endpoint(gone, None)];
    let cases = [
        mesh.service("opaque", AppProtocol::Opaque, &refusing),
        mesh.service("unknown", AppProtocol::Unknown, &refusing),
        mesh.service("outside", AppProtocol::Opaque, &outside),
        mesh.service("empty", AppProtocol::Unknown, &[]),
        gone,
        SocketAddr::new(client.workload.ips[0], crate::context::HBONE_PORT),
    ];
    for to in cases {
        assert_call_reset(&client, to).await;
    }
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_endpoint_is_tried_when_one_refuses() {
    let mesh = Mesh::start(1);
    let client = mesh.pod("a", "127.10.6.1", MtlsMode::Strict).await;
    let server = mesh.pod("b", "127.10.6.2", MtlsMode::Strict).await;
    let (addr, _clients) = echo("127.10.6.2", "").await;
    let gone: SocketAddr = "127.10.6.2:1".parse().unwrap();
    let endpoints = [endpoint(gone, Some(&server.workload)), endpoint(addr, Some(&server.workload))];
    let to = mesh.service("db", AppProtocol::Opaque, &endpoints);
    for _ in 0..8 {
        assert_eq!(exchange(call(&client, to).await, b"x").await.unwrap(), b"x");
    }
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plaintext_is_let_in_or_reset_by_mode() {
    let mesh = Mesh::start(1);
    let (addr, mut clients) = echo("127.10.7.2", "").await;
    let server = mesh.pod("b", "127.10.7.2", MtlsMode::Permissive).await;
    server.sockets.going_to(addr);
    let io = TcpStream::connect(server.inbound).await.unwrap();
    let from = io.local_addr().unwrap().ip();
    assert_eq!(exchange(io, b"hi").await.unwrap(), b"hi");
    assert_eq!(clients.recv().await.unwrap().ip(), from);
    // An edit of the mode counts for the next connection.
    let mut strict = (*server.workload).clone();
    strict.mode = MtlsMode::Strict;
    let strict = std::sync::Arc::new(strict);
    mesh.configure(|config| {
        config.workloads.insert(strict.ips[0], strict.clone());
    });
    assert_reset(server.inbound).await;
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_who_he_should_be_is_not_called() {
    let mesh = Mesh::start(1);
    let client = mesh.pod("a", "127.10.8.1", MtlsMode::Strict).await;
    let server = mesh.pod("b", "127.10.8.2", MtlsMode::Strict).await;
    let (addr, _clients) = echo("127.10.8.2", "").await;
    let mut other = (*server.workload).clone();
    other.identity.service_account = "somebody-else".into();
    let to = mesh.service("db", AppProtocol::Opaque, &[endpoint(addr, Some(&std::sync::Arc::new(other)))]);
    assert_call_reset(&client, to).await;
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_pod_is_drained_and_its_name_free_again() {
    let mesh = Mesh::start(2);
    let client = mesh.pod("a", "127.10.9.1", MtlsMode::Strict).await;
    let server = mesh.pod("b", "127.10.9.2", MtlsMode::Strict).await;
    let (addr, _clients) = echo("127.10.9.2", "").await;
    let to = mesh.service("db", AppProtocol::Opaque, &[endpoint(addr, Some(&server.workload))]);
    let mut held = call(&client, to).await;
    held.write_all(b"x").await.unwrap();
    held.read_exact(&mut [0; 1]).await.unwrap();
    // It stays until the deadline, then it is reset: whether the one answer was whole nobody knows.
    let removed = mesh.plane.remove_pod(&server.workload.pod, Duration::from_millis(300));
    let (removed, end) = tokio::join!(removed, timeout(PATIENCE, held.read_u8()));
    removed.unwrap();
    assert!(end.unwrap().is_err());
    let again = mesh.pod("b", "127.10.9.2", MtlsMode::Strict).await;
    assert_eq!(again.workload.pod, server.workload.pod);
    assert_eq!(exchange(call(&client, to).await, b"z").await.unwrap(), b"z");
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sniffed_http_is_routed_and_learned() {
    let mesh = Mesh::start(1);
    let client = mesh.pod("a", "127.10.11.1", MtlsMode::Strict).await;
    let server = mesh.pod("b", "127.10.11.2", MtlsMode::Strict).await;
    let (addr, _clients) = echo("127.10.11.2", "").await;
    let to = mesh.service("web", AppProtocol::Unknown, &[endpoint(addr, Some(&server.workload))]);
    for _ in 0..2 {
        let mut io = call(&client, to).await;
        io.write_all(b"GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        timeout(PATIENCE, io.read_to_end(&mut answer)).await.unwrap().unwrap();
        // The echo is no HTTP answer, which only the HTTP path would mind.
        assert!(answer.starts_with(b"HTTP/1.1 502"), "{}", String::from_utf8_lossy(&answer));
    }
    mesh.stop().await;
}

/// A spare connection that the server gives up says nothing of what the port speaks.
#[tokio::test]
async fn a_server_that_hangs_up_on_a_silent_client_makes_no_port_opaque() {
    let mesh = Mesh::start(1);
    let client = mesh.pod("a", "127.10.11.3", MtlsMode::Strict).await;
    let server = mesh.pod("b", "127.10.11.4", MtlsMode::Strict).await;
    let listener = TcpListener::bind("127.10.11.4:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        drop(listener.accept().await.unwrap());
        let (mut io, _) = listener.accept().await.unwrap();
        let (mut read, mut write) = io.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    });
    let to = mesh.service("web", AppProtocol::Unknown, &[endpoint(addr, Some(&server.workload))]);
    let mut spare = call(&client, to).await;
    let mut nothing = Vec::new();
    assert_eq!(timeout(PATIENCE, spare.read_to_end(&mut nothing)).await.unwrap().unwrap(), 0);
    drop(spare);
    let mut io = call(&client, to).await;
    io.write_all(b"GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, io.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 502"), "copied: {}", String::from_utf8_lossy(&answer));
    mesh.stop().await;
}

/// An HTTP application; each answer says how many requests its connection has had.
async fn web(ip: &str) -> SocketAddr {
    let listener = TcpListener::bind((ip, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut io, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = Vec::new();
                for count in 1.. {
                    request.clear();
                    while !request.ends_with(b"\r\n\r\n") {
                        match io.read_u8().await {
                            Ok(byte) => request.push(byte),
                            Err(_) => return,
                        }
                    }
                    let body = format!("{count:03}");
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n{body}");
                    if io.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    addr
}

/// One request on a kept connection; gives the status line and the body's number.
async fn get(io: &mut TcpStream) -> (String, usize) {
    let (head, number) = ask(io).await;
    (head.lines().next().unwrap().to_owned(), number)
}

/// The same with the whole head.
async fn ask(io: &mut TcpStream) -> (String, usize) {
    io.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    while !answer.windows(4).any(|w| w == b"\r\n\r\n") {
        answer.push(timeout(PATIENCE, io.read_u8()).await.unwrap().unwrap());
    }
    let mut body = [0; 3];
    io.read_exact(&mut body).await.unwrap();
    let head = String::from_utf8(answer).unwrap();
    let number = std::str::from_utf8(&body).unwrap().parse();
    let number = number.unwrap_or_else(|_| panic!("{head}"));
    (head, number)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_requests_share_kept_tunnel_streams() {
    let mesh = Mesh::start(1);
    let client = mesh.pod("a", "127.10.12.1", MtlsMode::Strict).await;
    let server = mesh.pod("b", "127.10.12.2", MtlsMode::Strict).await;
    let addr = web("127.10.12.2").await;
    let endpoints = [endpoint(addr, Some(&server.workload))];
    let mut served = Vec::new();
    // Declared, and sniffed: the second connection of the latter is learned.
    for (name, protocol) in [("web", AppProtocol::Http), ("shop", AppProtocol::Unknown)] {
        let to = mesh.service(name, protocol, &endpoints);
        for _ in 0..3 {
            let mut io = call(&client, to).await;
            for _ in 0..2 {
                let (status, number) = get(&mut io).await;
                assert_eq!(status, "HTTP/1.1 200 OK");
                served.push(number);
            }
        }
    }
    assert_eq!(served, Vec::from_iter(1..=12), "one kept upstream connection for all");
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_is_replaced_without_a_failed_connection() {
    let mesh = Mesh::start(1);
    let client = mesh.pod("a", "127.10.13.1", MtlsMode::Strict).await;
    let (addr, _clients) = echo("127.10.13.2", "").await;
    let held = mesh.listeners("127.10.13.2");
    let old = mesh.another(1);
    let server = mesh.pod_on(&old, "b", "127.10.13.2", held.again()).await;
    let to = mesh.service("db", AppProtocol::Opaque, &[endpoint(addr, Some(&server.workload))]);
    let mut kept = call(&client, to).await;
    kept.write_all(b"x").await.unwrap();
    kept.read_exact(&mut [0; 1]).await.unwrap();

    let calls = async {
        for i in 0..60 {
            let io = call(&client, to).await;
            assert_eq!(exchange(io, b"new").await.unwrap(), b"new", "call {i}");
        }
    };
    let replace = async {
        let new = mesh.another(1);
        mesh.pod_on(&new, "b", "127.10.13.2", held.again()).await;
        old.drain(Duration::from_secs(5)).await;
        new
    };
    let goes_on = async {
        for _ in 0..20 {
            kept.write_all(b"y").await.unwrap();
            kept.read_exact(&mut [0; 1]).await.unwrap();
        }
        kept.shutdown().await.unwrap();
        assert_eq!(kept.read(&mut [0; 1]).await.unwrap(), 0);
    };
    let ((), new, ()) = tokio::join!(calls, replace, goes_on);
    assert_eq!(exchange(call(&client, to).await, b"after").await.unwrap(), b"after");
    tokio::task::spawn_blocking(move || [old, new].map(DataPlane::stop)).await.unwrap();
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_http_connection_outlives_the_servers_agent() {
    let mesh = Mesh::start(1);
    let client = mesh.pod("a", "127.10.17.1", MtlsMode::Strict).await;
    let addr = web("127.10.17.2").await;
    let held = mesh.listeners("127.10.17.2");
    let old = mesh.another(1);
    let server = mesh.pod_on(&old, "b", "127.10.17.2", held.again()).await;
    let to = mesh.service("web", AppProtocol::Http, &[endpoint(addr, Some(&server.workload))]);
    let mut kept = call(&client, to).await;
    get(&mut kept).await;

    let drained = std::cell::Cell::new(false);
    let requests = async {
        while !drained.get() {
            assert_eq!(get(&mut kept).await.0, "HTTP/1.1 200 OK");
        }
    };
    let replace = async {
        let new = mesh.another(1);
        mesh.pod_on(&new, "b", "127.10.17.2", held.again()).await;
        // Far beyond the test's own patience: only a connection that is given back lets this end.
        timeout(PATIENCE, old.drain(PATIENCE * 10)).await.expect("drained before the deadline");
        drained.set(true);
        new
    };
    let ((), new) = tokio::join!(requests, replace);
    assert_eq!(get(&mut kept).await.0, "HTTP/1.1 200 OK");
    tokio::task::spawn_blocking(move || [old, new].map(DataPlane::stop)).await.unwrap();
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_http_connections_are_served_once_more_when_their_pod_or_agent_leaves() {
    for whole_agent in [false, true] {
        let mesh = Mesh::start(1);
        let client = mesh.pod("a", "127.10.18.1", MtlsMode::Strict).await;
        // On another node: what leaves is the client's side alone.
        let node = mesh.another(1);
        let held = mesh.listeners("127.10.18.2");
        let server = mesh.pod_on(&node, "b", "127.10.18.2", held.again()).await;
        let addr = web("127.10.18.2").await;
        let to = mesh.service("web", AppProtocol::Http, &[endpoint(addr, Some(&server.workload))]);
        let mut kept = Vec::new();
        for _ in 0..8 {
            let mut io = call(&client, to).await;
            get(&mut io).await;
            kept.push(io);
        }
        let grace = PATIENCE * 10;
        let leave = async {
            if whole_agent {
                mesh.plane.drain(grace).await;
            } else {
                mesh.plane.remove_pod(&client.workload.pod, grace).await.unwrap();
            }
        };
        let requests = async {
            let mut probe = kept.pop().unwrap();
            let mut ended = [0; 1];
            // Answered until an answer says that it was the last: the drain has begun, and the others lie idle.
            loop {
                let head = ask(&mut probe).await.0;
                assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
                if head.contains("connection: close\r\n") {
                    break;
                }
            }
            for mut io in kept {
                assert_eq!(get(&mut io).await.0, "HTTP/1.1 200 OK");
                assert_eq!(timeout(PATIENCE, io.read(&mut ended)).await.unwrap().unwrap(), 0);
            }
        };
        let ((), ()) = tokio::join!(async { timeout(PATIENCE, leave).await.unwrap() }, requests);
        tokio::task::spawn_blocking(move || node.stop()).await.unwrap();
        mesh.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_agent_is_found_again() {
    let mesh = Mesh::start(1);
    let client = mesh.pod("a", "127.10.14.1", MtlsMode::Strict).await;
    let (addr, _clients) = echo("127.10.14.2", "").await;
    let held = mesh.listeners("127.10.14.2");
    let old = mesh.another(1);
    let server = mesh.pod_on(&old, "b", "127.10.14.2", held.again()).await;
    let to = mesh.service("db", AppProtocol::Opaque, &[endpoint(addr, Some(&server.workload))]);
    assert_eq!(exchange(call(&client, to).await, b"x").await.unwrap(), b"x");
    tokio::task::spawn_blocking(move || old.stop()).await.unwrap();
    // Waits in the holder's accept queue until the next agent takes it.
    let waiting = tokio::spawn(exchange(call(&client, to).await, b"waiting"));
    let new = mesh.another(1);
    mesh.pod_on(&new, "b", "127.10.14.2", held.again()).await;
    assert_eq!(waiting.await.unwrap().unwrap(), b"waiting");
    tokio::task::spawn_blocking(move || new.stop()).await.unwrap();
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_at_its_limit_is_refused_and_its_neighbour_is_not() {
    let mesh = Mesh::with_limits(1, Limits { connections_max: 3, ..Limits::default() });
    let greedy = mesh.pod("a", "127.10.15.1", MtlsMode::Strict).await;
    let modest = mesh.pod("c", "127.10.15.3", MtlsMode::Strict).await;
    // Outside the mesh, so that only the callers' own limits count.
    let (addr, _clients) = echo("127.10.15.2", "").await;
    let to = mesh.service("db", AppProtocol::Opaque, &[endpoint(addr, None)]);
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut io = call(&greedy, to).await;
        io.write_all(b"x").await.unwrap();
        io.read_exact(&mut [0; 1]).await.unwrap();
        held.push(io);
    }
    assert_call_reset(&greedy, to).await;
    assert_eq!(exchange(call(&modest, to).await, b"y").await.unwrap(), b"y");
    // One that ends makes room for one.
    let ended = held.pop().unwrap();
    assert_eq!(exchange(ended, b"").await.unwrap(), b"");
    assert_eq!(exchange(call(&greedy, to).await, b"z").await.unwrap(), b"z");
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_handed_to_the_less_busy_worker() {
    let mesh = Mesh::start(2);
    let client = mesh.pod("a", "127.10.16.1", MtlsMode::Strict).await;
    let (addr, _clients) = echo("127.10.16.2", "").await;
    let to = mesh.service("db", AppProtocol::Opaque, &[endpoint(addr, None)]);
    let mut held = Vec::new();
    for _ in 0..40 {
        let mut io = call(&client, to).await;
        io.write_all(b"x").await.unwrap();
        io.read_exact(&mut [0; 1]).await.unwrap();
        held.push(io);
    }
    let loads = mesh.plane.workers().loads();
    assert!(loads.iter().all(|&n| n >= 15), "{loads:?}");
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_does_not_answer_is_given_up() {
    let mesh = Mesh::with_limits(1, Limits { connect_timeout_ms: 200, ..Limits::default() });
    let client = mesh.pod("a", "127.10.19.1", MtlsMode::Strict).await;
    let silent = workload("b", "127.10.19.2".parse().unwrap(), true, MtlsMode::Strict);
    let config = identity(&mesh.store, &silent.identity).await.server_config().unwrap();
    let listener = TcpListener::bind(("127.10.19.2", mesh.shared.hbone_port)).await.unwrap();
    let (tunnel, mut tunnels) = tokio::sync::mpsc::channel(64);
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            let io = tokio_rustls::TlsAcceptor::from(config.clone()).accept(io).await.unwrap();
            tunnel.send(()).await.unwrap();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(io).await.unwrap();
                let mut unanswered = Vec::new();
                while let Some(Ok(stream)) = connection.accept().await {
                    unanswered.push(stream);
                }
            });
        }
    });
    let addr = SocketAddr::new(silent.ips[0], 80);
    let to = mesh.service("db", AppProtocol::Opaque, &[endpoint(addr, Some(&silent))]);
    assert_call_reset(&client, to).await;
    // Each try was made on a tunnel of its own.
    for _ in 0..3 {
        tunnels.try_recv().unwrap();
    }
    assert!(tunnels.try_recv().is_err());
    mesh.stop().await;
}

/// B5: with its root gone a tunnel takes nothing new; what runs on it goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_of_a_root_that_is_gone_takes_nothing_new() {
    let mesh = Mesh::start(1);
    let client = mesh.pod("a", "127.10.31.1", MtlsMode::Strict).await;
    let server = mesh.pod("b", "127.10.31.2", MtlsMode::Strict).await;
    let (addr, _clients) = echo("127.10.31.2", "").await;
    let to = mesh.service("db", AppProtocol::Opaque, &[endpoint(addr, Some(&server.workload))]);
    let mut running = call(&client, to).await;
    let mut talk = async || {
        let mut got = [0; 4];
        running.write_all(b"ping").await.unwrap();
        timeout(PATIENCE, running.read_exact(&mut got)).await.unwrap().unwrap();
    };
    talk().await;
    let other = weft_certs::Ca::create("cluster.local", jiff::Timestamp::now()).unwrap();
    mesh.store.set_trust_bundle(other.bundle().clone());
    assert_call_reset(&client, to).await;
    talk().await;
    mesh.stop().await;
}
