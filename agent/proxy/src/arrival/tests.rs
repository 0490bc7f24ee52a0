//! Tunnels on the application's own port, on loopback addresses.

use super::*;
use crate::{
    fixtures::{Mesh, TestPod, endpoint, identity, workload},
    tests::{PATIENCE, assert_call_reset, assert_reset, call, echo, exchange},
    transport::tunnel::{OpenError, Tunnel},
};
use http::HeaderMap;
use std::{
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy, copy_bidirectional},
    net::{TcpListener, TcpSocket},
    time::Instant,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use weft_certs::{Alpn, PeerSet};
use weft_core::{
    config::AppProtocol,
    model::{MtlsMode, Workload},
};

#[test]
fn tunnels_come_from_the_mesh_and_from_nodes() {
    let mut config = Config { pod_cidrs: ["10.244.1.0/24".parse().unwrap()].into(), ..Config::default() };
    config.nodes.insert([192, 0, 2, 1].into(), ());
    for (ip, enrolled, labelled) in [(1, true, true), (2, false, true), (3, false, false), (4, true, false)] {
        let made = workload("pod", [10, 0, 0, ip].into(), enrolled, MtlsMode::Strict);
        config.workloads.insert(made.ips[0], Arc::new(Workload { labelled, ..(*made).clone() }));
    }
    let check = |ip: &str, expected: Origin| {
        assert_eq!(origin(&config, ip.parse().unwrap()), expected, "{ip}");
    };
    check("10.0.0.1", Origin::Mesh);
    check("10.0.0.2", Origin::Either);
    check("10.0.0.3", Origin::Outside);
    // On its way out, captured still.
    check("10.0.0.4", Origin::Mesh);
    check("192.0.2.1", Origin::Either);
    check("192.0.2.2", Origin::Outside);
    // The node on its pods' network, and a pod that we have not heard of.
    check("10.244.1.1", Origin::Either);
    check("10.244.1.77", Origin::Either);
    check("10.244.2.77", Origin::Outside);
}

/// How the bytes of a tunnel reach its pod.
#[derive(Clone, Copy, Debug)]
struct Path {
    /// Bytes of the first segment.
    first: usize,
    /// Before the first segment.
    late: Duration,
    /// Between the first and the rest.
    pause: Duration,
}

const PROMPT: Path = Path { first: 1 << 16, late: Duration::ZERO, pause: Duration::ZERO };

/// A port as capture makes it: what speaks TLS comes to the agent, what does not (the agent itself) to the application, which
/// echoes. Counts connections on which the application was told anything, and those on which it was not.
struct Port {
    addr: SocketAddr,
    told: Arc<AtomicUsize>,
    idle: Arc<AtomicUsize>,
}

async fn captured_port(pod: &TestPod, client: IpAddr, path: Path) -> Port {
    let listener = TcpListener::bind((pod.workload.ips[0], 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    pod.sockets.going_to(addr);
    let port = Port { addr, told: Arc::default(), idle: Arc::default() };
    let (told, idle, agent) = (port.told.clone(), port.idle.clone(), pod.inbound);
    tokio::spawn(async move {
        while let Ok((mut io, _)) = listener.accept().await {
            let (told, idle) = (told.clone(), idle.clone());
            tokio::spawn(async move {
                let mut first = [0; 1];
                match io.peek(&mut first).await {
                    Ok(1) if first[0] == 0x16 => relay(&mut io, agent, client, path).await,
                    Ok(1) => {
                        told.fetch_add(1, Ordering::Relaxed);
                        let (mut read, mut write) = io.split();
                        let _ = copy(&mut read, &mut write).await;
                        let _ = write.shutdown().await;
                    }
                    _ => drop(idle.fetch_add(1, Ordering::Relaxed)),
                }
            });
        }
    });
    port
}

async fn relay(io: &mut TcpStream, agent: SocketAddr, client: IpAddr, path: Path) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(client, 0)).unwrap();
    let mut onward = socket.connect(agent).await.unwrap();
    onward.set_nodelay(true).unwrap();
    sleep(path.late).await;
    let mut first = vec![0; path.first];
    let n = io.read(&mut first).await.unwrap();
    onward.write_all(&first[..n]).await.unwrap();
    sleep(path.pause).await;
    let _ = copy_bidirectional(io, &mut onward).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_comes_to_the_applications_own_port() {
    let check = async |at: u8, mode: MtlsMode, path: Path| {
        let mesh = Mesh::start(1);
        let client = mesh.pod("a", &format!("127.11.{at}.1"), MtlsMode::Strict).await;
        let server = mesh.pod("b", &format!("127.11.{at}.2"), mode).await;
        let announced = mesh.announce(&server);
        let port = captured_port(&server, client.workload.ips[0], path).await;
        let to = mesh.service("db", AppProtocol::Opaque, &[endpoint(port.addr, Some(&announced))]);
        for to in [to, port.addr] {
            let answer = exchange(call(&client, to).await, b"hello").await.unwrap();
            assert_eq!(answer, b"hello", "{mode:?} {path:?}");
        }
        // Both by the one tunnel for this port: the application was told of two connections, on none of them TLS.
        assert_eq!(port.told.load(Ordering::Relaxed), 2, "{mode:?} {path:?}");
        mesh.stop().await;
    };
    let ms = Duration::from_millis;
    check(1, MtlsMode::Strict, PROMPT).await;
    check(2, MtlsMode::Permissive, PROMPT).await;
    for (at, first) in [(3, 1), (4, 6), (5, 700)] {
        check(at, MtlsMode::Permissive, Path { first, pause: ms(30), ..PROMPT }).await;
    }
    // So late that the application has been called meanwhile, if it may be.
    for (at, mode) in [(6, MtlsMode::Permissive), (7, MtlsMode::Strict)] {
        check(at, mode, Path { late: ms(500), first: 300, pause: ms(30) }).await;
    }
}

/// A hello with our ALPN from outside is the application's business, and arrives whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_from_outside_is_not_looked_at() {
    let mesh = Mesh::start(1);
    let server = mesh.pod("b", "127.11.10.2", MtlsMode::Permissive).await;
    let (addr, _clients) = echo("127.11.10.2", "").await;
    server.sockets.going_to(addr);
    let hello = hello();
    let io = TcpStream::connect(server.inbound).await.unwrap();
    assert_eq!(origin(&mesh.shared.config.load(), io.local_addr().unwrap().ip()), Origin::Outside);
    assert_eq!(exchange(io, &hello).await.unwrap(), hello);
    let (mail, _clients) = echo("127.11.10.2", "220 ready").await;
    server.sockets.going_to(mail);
    let mut io = TcpStream::connect(server.inbound).await.unwrap();
    let mut banner = [0; 9];
    tokio::time::timeout(PATIENCE, io.read_exact(&mut banner)).await.unwrap().unwrap();
    assert_eq!(&banner, b"220 ready");
    mesh.stop().await;
}

/// Any number of connections may stop in the middle of a hello.
#[test]
fn half_a_hello_is_looked_at_ever_more_seldom() {
    let all: Vec<u128> = pauses().map(|pause| pause.as_millis()).collect();
    assert_eq!(all[..4], [1, 2, 4, 8], "its segments come in a row");
    assert!(all.len() < 50, "{} looks", all.len());
    let whole: u128 = all.iter().sum();
    assert!((1900..=2000).contains(&whole), "a lost segment may come again: {whole} ms");
}

/// A server that speaks first is late by this for whoever is silent.
#[tokio::test(start_paused = true)]
async fn nobody_outside_waits_and_who_speaks_in_clear_not_for_long() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (io, _) = listener.accept().await.unwrap();
    let check = async |origin: Origin, speaks_clear: bool, expected: Arrived, pause: Duration| {
        let began = Instant::now();
        assert_eq!(look(origin, &io, || speaks_clear).await, expected, "{origin:?} {speaks_clear}");
        // The clock's steps are of a millisecond, and there are two.
        let took = began.elapsed();
        assert!((pause..=pause + Duration::from_millis(2)).contains(&took), "{origin:?}: {took:?}");
    };
    check(Origin::Outside, false, Arrived::Plaintext, Duration::ZERO).await;
    check(Origin::Either, false, Arrived::Nothing, PATIENCE_DOUBT).await;
    check(Origin::Mesh, false, Arrived::Nothing, PATIENCE_MESH).await;
    check(Origin::Mesh, true, Arrived::Nothing, PATIENCE_DOUBT).await;
}

/// While a pod joins or leaves, and where it keeps a port from its capture, its plaintext passes as before, also where the
/// server speaks first or the client says something like TLS.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plaintext_of_an_enrolled_address_passes_whoever_speaks_first() {
    let mesh = Mesh::start(1);
    let server = mesh.pod("b", "127.11.11.2", MtlsMode::Permissive).await;
    // From this address, and known as a pod's.
    mesh.configure(|config| {
        config
            .workloads
            .insert([127, 0, 0, 1].into(), workload("a", [127, 0, 0, 1].into(), true, MtlsMode::Strict));
    });
    let from = || async {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        socket.connect(server.inbound).await.unwrap()
    };
    for banner in ["", "220 ready"] {
        let (addr, _clients) = echo("127.11.11.2", banner).await;
        server.sockets.going_to(addr);
        let mut io = from().await;
        let mut said = vec![0; banner.len()];
        tokio::time::timeout(PATIENCE, io.read_exact(&mut said)).await.unwrap().unwrap();
        assert_eq!(said, banner.as_bytes());
        assert_eq!(exchange(io, b"GET / HTTP/1.1\r\n\r\n").await.unwrap(), b"GET / HTTP/1.1\r\n\r\n");
        for request in [&hello()[..100], b"\x16\x03"] {
            let answer = exchange(from().await, request).await.unwrap();
            assert_eq!(answer, [banner.as_bytes(), request].concat());
        }
    }
    // It is known to speak in clear by now: a banner is not late by the time that a tunnel is given.
    let mut quickest = PATIENCE;
    for _ in 0..20 {
        let began = Instant::now();
        let mut io = from().await;
        tokio::time::timeout(PATIENCE, io.read_exact(&mut [0; 9])).await.unwrap().unwrap();
        quickest = quickest.min(began.elapsed());
    }
    assert!(quickest < PATIENCE_MESH, "{quickest:?}");
    mesh.stop().await;
}

/// A ClientHello with our ALPN, of nobody.
fn hello() -> Vec<u8> {
    let mut config = rustls::ClientConfig::builder_with_provider(weft_certs::crypto_provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_WEFT.to_vec()];
    let name = "127.0.0.1".try_into().unwrap();
    let mut client = rustls::ClientConnection::new(config.into(), name).unwrap();
    let mut out = Vec::new();
    client.write_tls(&mut out).unwrap();
    out
}

/// A handshake with the port of a pod as its peer.
async fn shake(mesh: &Mesh, client: &TestPod, server: &TestPod) -> TlsStream<TcpStream> {
    let own = identity(&mesh.store, &client.workload.identity).await;
    let config = own.client_config(&PeerSet::one(server.workload.identity.clone()), Alpn::Weft).unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(client.workload.ips[0], 0)).unwrap();
    let io = socket.connect(server.inbound).await.unwrap();
    let name = rustls_pki_types::ServerName::from(server.workload.ips[0]);
    TlsConnector::from(config).connect(name, io).await.unwrap()
}

/// What a NetworkPolicy admitted to one port must not reach another by it.
#[tokio::test]
async fn a_tunnel_leads_to_the_port_that_was_dialled() {
    let mesh = Mesh::start(1);
    let client = mesh.pod("a", "127.11.12.1", MtlsMode::Strict).await;
    let server = mesh.pod("b", "127.11.12.2", MtlsMode::Strict).await;
    let (dialled, _clients) = echo("127.11.12.2", "").await;
    let (other, mut others) = echo("127.11.12.2", "").await;
    server.sockets.going_to(dialled);
    let tls = shake(&mesh, &client, &server).await;
    let (tunnel, driver) =
        Tunnel::establish(tls, Rc::new(server.workload.identity.clone()), None, std::future::pending())
            .await
            .unwrap();
    let asking = async {
        let headers = HeaderMap::new();
        for (to, expected) in [(other, Some(400)), (dialled, None)] {
            let refused = match tunnel.reserve(false).open(to, &headers).await {
                Ok(_) => None,
                Err(OpenError::Refused(status)) => Some(status.as_u16()),
                Err(OpenError::Gone(error)) => panic!("{error}"),
                Err(OpenError::Silent) => panic!("silent"),
            };
            assert_eq!(refused, expected, "{to}");
        }
    };
    tokio::select! {
        () = asking => {}
        () = driver => panic!("the tunnel ended"),
    }
    assert!(others.try_recv().is_err(), "nobody came to the other port");
    mesh.stop().await;
}

/// An agent of the version before hands a tunnel on a port of the application to the application.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_agent_answers_on_the_applications_port_15008_does() {
    /// What the application does with a tunnel's first bytes.
    #[derive(Clone, Copy, Debug)]
    enum Garbled {
        /// As an agent of the version before does under strict: maybe before the client has had a look.
        Resets,
        Answers,
        HangsUp,
        Waits,
    }
    let check = async |at: u8, how: Garbled| {
        let mesh = Mesh::start(1);
        let client = mesh.pod("a", &format!("127.11.{at}.1"), MtlsMode::Strict).await;
        let server = mesh.pod("b", &format!("127.11.{at}.2"), MtlsMode::Strict).await;
        let announced = mesh.announce(&server);
        let listener = TcpListener::bind((server.workload.ips[0], 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let garbled = Arc::new(AtomicUsize::new(0));
        let seen = garbled.clone();
        tokio::spawn(async move {
            while let Ok((mut io, _)) = listener.accept().await {
                let seen = seen.clone();
                if matches!(how, Garbled::Resets) && seen.load(Ordering::Relaxed) == 0 {
                    seen.fetch_add(1, Ordering::Relaxed);
                    crate::transport::connect::reset_on_close(&io);
                    continue;
                }
                tokio::spawn(async move {
                    let mut first = [0; 1];
                    let is_tls = io.peek(&mut first).await.is_ok_and(|n| n == 1 && first[0] == 0x16);
                    seen.fetch_add(usize::from(is_tls), Ordering::Relaxed);
                    match how {
                        Garbled::HangsUp if is_tls => return,
                        Garbled::Waits if is_tls => sleep(PATIENCE).await,
                        _ => {}
                    }
                    let (mut read, mut write) = io.split();
                    let _ = copy(&mut read, &mut write).await;
                    let _ = write.shutdown().await;
                });
            }
        });
        let to = mesh.service("db", AppProtocol::Opaque, &[endpoint(addr, Some(&announced))]);
        for _ in 0..3 {
            assert_eq!(exchange(call(&client, to).await, b"hello").await.unwrap(), b"hello", "{how:?}");
        }
        assert_eq!(garbled.load(Ordering::Relaxed), 1, "{how:?}: it is asked once");
        mesh.stop().await;
    };
    check(19, Garbled::Resets).await;
    check(13, Garbled::Answers).await;
    check(14, Garbled::HangsUp).await;
    check(15, Garbled::Waits).await;
}

/// A policy that lets us in to the one and to 15008 may keep us from the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_detour_to_one_port_of_a_pod_is_none_to_another() {
    /// The application hangs up on a tunnel, and echoes anything else. Counts tunnels.
    async fn port(ip: IpAddr) -> (SocketAddr, Arc<AtomicUsize>) {
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let (addr, seen) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let asked = seen.clone();
        tokio::spawn(async move {
            while let Ok((mut io, _)) = listener.accept().await {
                let asked = asked.clone();
                tokio::spawn(async move {
                    let mut first = [0; 1];
                    if io.peek(&mut first).await.is_ok_and(|n| n == 1 && first[0] == 0x16) {
                        asked.fetch_add(1, Ordering::Relaxed);
                        return;
                    }
                    let (mut read, mut write) = io.split();
                    let _ = copy(&mut read, &mut write).await;
                    let _ = write.shutdown().await;
                });
            }
        });
        (addr, seen)
    }
    let mesh = Mesh::start(1);
    let client = mesh.pod("a", "127.11.20.1", MtlsMode::Strict).await;
    let server = mesh.pod("b", "127.11.20.2", MtlsMode::Strict).await;
    mesh.announce(&server);
    let ports = [port(server.workload.ips[0]).await, port(server.workload.ips[0]).await];
    for (addr, asked) in &ports {
        for _ in 0..2 {
            assert_eq!(exchange(call(&client, *addr).await, b"hello").await.unwrap(), b"hello");
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1, "each is asked by itself, once");
    }
    mesh.stop().await;
}

/// A port that is refused, as by a NetworkPolicy or where nothing listens, is not called by the back door.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_port_is_not_called_by_15008() {
    let mesh = Mesh::start(1);
    let client = mesh.pod("a", "127.11.16.1", MtlsMode::Strict).await;
    let hbone = TcpListener::bind(("127.11.16.2", mesh.hbone_port)).await.unwrap();
    let made = workload("b", [127, 11, 16, 2].into(), true, MtlsMode::Strict);
    let tunnel = weft_core::model::TunnelPort::application([]);
    let announced = Arc::new(Workload { tunnel, ..(*made).clone() });
    mesh.configure(|config| {
        config.workloads.insert(announced.ips[0], announced.clone());
    });
    let gone: SocketAddr = "127.11.16.2:1".parse().unwrap();
    let to = mesh.service("db", AppProtocol::Opaque, &[endpoint(gone, Some(&announced))]);
    for to in [to, gone] {
        assert_call_reset(&client, to).await;
    }
    let called = tokio::time::timeout(Duration::from_millis(1), hbone.accept()).await;
    assert!(called.is_err(), "somebody called 15008");
    mesh.stop().await;
}

/// Whoever has no certificate of the mesh gets nowhere by our ALPN.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_hello_ends_at_mutual_tls() {
    let mesh = Mesh::start(1);
    let server = mesh.pod("b", "127.11.17.2", MtlsMode::Strict).await;
    let (addr, mut clients) = echo("127.11.17.2", "").await;
    server.sockets.going_to(addr);
    mesh.configure(|config| {
        config
            .workloads
            .insert([127, 0, 0, 1].into(), workload("a", [127, 0, 0, 1].into(), true, MtlsMode::Strict));
    });
    let mut io = TcpStream::connect(server.inbound).await.unwrap();
    io.write_all(&hello()).await.unwrap();
    let mut answer = vec![0];
    tokio::time::timeout(PATIENCE, io.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, [0x16], "a ServerHello, and a request for a certificate");
    io.write_all(b"\x15\x03\x03\x00\x02\x02\x50").await.unwrap();
    let _ = tokio::time::timeout(PATIENCE, io.read_to_end(&mut answer)).await.unwrap();
    assert!(clients.try_recv().is_err(), "the application was called");
    mesh.configure(|config| drop(config.workloads.remove(&IpAddr::from([127, 0, 0, 1]))));
    assert_reset(server.inbound).await;
    mesh.stop().await;
}

/// A tunnel is kept for each port that is called; not for thousands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_calls_every_port_keeps_few_tunnels() {
    let mesh = Mesh::start(1);
    let client = mesh.pod("a", "127.11.18.1", MtlsMode::Strict).await;
    let server = mesh.pod("b", "127.11.18.2", MtlsMode::Strict).await;
    mesh.announce(&server);
    let mut most = 0;
    for _ in 0..40 {
        let port = captured_port(&server, client.workload.ips[0], PROMPT).await;
        assert_eq!(exchange(call(&client, port.addr).await, b"x").await.unwrap(), b"x");
        most = most.max(
            mesh.plane
                .workers()
                .run(0, async |worker| {
                    worker.workloads().iter().map(|local| local.tunnels.len()).sum::<usize>()
                })
                .await
                .unwrap(),
        );
    }
    assert!((20..=33).contains(&most), "{most} tunnels");
    mesh.stop().await;
}
