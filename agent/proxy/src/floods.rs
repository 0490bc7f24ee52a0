//! One test for each budget of connections: ten times as much is asked for, no more than the budget is held, the tenant is
//! named, and nobody else notices.

use crate::{
    budgets::Reached,
    context::Limits,
    fixtures::{Mesh, TestPod, endpoint, identity, workload},
    share::Kind,
    tests::{PATIENCE, call, echo, exchange},
};
use std::{io, net::SocketAddr, time::Instant};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use weft_certs::{Alpn, PeerSet};
use weft_core::{
    budget::{self, Budget},
    config::AppProtocol,
    model::MtlsMode,
};

/// The end of a connection that is held open: it has been answered, or it was reset.
async fn held(to: SocketAddr) -> io::Result<TcpStream> {
    let work = async {
        let mut io = TcpStream::connect(to).await?;
        io.write_all(b"x").await?;
        io.read_exact(&mut [0; 1]).await?;
        Ok(io)
    };
    timeout(PATIENCE, work).await.expect("an end in time")
}

fn reached(mesh: &Mesh, budget: &'static Budget, pod: &TestPod) -> u64 {
    let list = mesh.shared.budgets.list(None, Instant::now());
    let by = |reached: &&Reached| reached.by.key == pod.workload.pod && reached.budget == budget;
    list.iter().find(by).map_or(0, |reached| reached.times)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_out_and_in_are_counted_apart() {
    const MAX: usize = 20;
    let mesh = Mesh::with_limits(1, Limits { connections_max: MAX, ..Limits::default() });
    let client = mesh.pod("a", "127.10.60.1", MtlsMode::Permissive).await;
    let server = mesh.pod("b", "127.10.60.2", MtlsMode::Permissive).await;
    let (own, _clients) = echo("127.10.60.2", "").await;
    let (other, _others) = echo("127.10.60.1", "").await;
    let to_server = mesh.service("db", AppProtocol::Opaque, &[endpoint(own, Some(&server.workload))]);
    let to_client = mesh.service("web", AppProtocol::Opaque, &[endpoint(other, Some(&client.workload))]);

    // In: by somebody who is not in the mesh.
    server.sockets.going_to(own);
    let mut open = Vec::new();
    for _ in 0..10 * MAX {
        open.extend(held(server.inbound).await);
    }
    assert_eq!(open.len(), MAX);
    assert_eq!(reached(&mesh, &budget::CONNECTIONS_IN, &server), 9 * MAX as u64);
    assert_eq!(
        exchange(call(&server, to_client).await, b"out").await.unwrap(),
        b"out",
        "its own calls go on"
    );
    drop(open);

    // Out: by itself.
    let mut open = Vec::new();
    for _ in 0..10 * MAX {
        server.sockets.going_to(to_client);
        open.extend(held(server.outbound).await);
    }
    assert_eq!(open.len(), MAX);
    assert_eq!(reached(&mesh, &budget::CONNECTIONS_OUT, &server), 9 * MAX as u64);
    assert_eq!(
        exchange(call(&client, to_server).await, b"in").await.unwrap(),
        b"in",
        "others still reach it"
    );
    assert_eq!(reached(&mesh, &budget::CONNECTIONS_OUT, &client), 0);
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_to_hbone_cost_a_pod_nothing() {
    let bound = budget::CONNECTIONS_UNPROVED.size();
    // Far fewer than the flood: none of it may count as a connection of the pod.
    let mesh = Mesh::with_limits(1, Limits { connections_max: 50, ..Limits::default() });
    let client = mesh.pod("a", "127.10.61.1", MtlsMode::Strict).await;
    let server = mesh.pod("b", "127.10.61.2", MtlsMode::Strict).await;
    let (own, _clients) = echo("127.10.61.2", "").await;
    let (other, _others) = echo("127.10.61.1", "").await;
    let to_server = mesh.service("db", AppProtocol::Opaque, &[endpoint(own, Some(&server.workload))]);
    let to_client = mesh.service("web", AppProtocol::Opaque, &[endpoint(other, Some(&client.workload))]);

    let mut silent = Vec::new();
    for round in 0..10 {
        for _ in 0..bound {
            silent.push(TcpStream::connect(("127.10.61.2", mesh.hbone_port)).await.unwrap());
        }
        let answer = exchange(call(&client, to_server).await, b"in").await;
        assert_eq!(answer.unwrap(), b"in", "a tunnel to the pod, round {round}");
        assert_eq!(exchange(call(&server, to_client).await, b"out").await.unwrap(), b"out", "round {round}");
    }
    // Those that had to give way see it at once.
    let mut ended = 0;
    for io in &mut silent[..9 * bound] {
        ended += usize::from(timeout(PATIENCE, io.read(&mut [0; 1])).await.is_ok());
    }
    assert_eq!(ended, 9 * bound);
    let waiting = mesh
        .plane
        .workers()
        .run(0, async |worker| worker.workloads().iter().map(|local| local.unproved.len()).max());
    assert_eq!(waiting.await.unwrap(), Some(bound));
    assert!(reached(&mesh, &budget::CONNECTIONS_UNPROVED, &server) >= 9 * bound as u64);
    assert_eq!(reached(&mesh, &budget::CONNECTIONS_UNPROVED, &client), 0);
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnels_to_a_pod_are_bounded_and_leave_it_its_own_calls() {
    const MAX: usize = 20;
    let mesh = Mesh::with_limits(1, Limits { connections_max: MAX, ..Limits::default() });
    let client = mesh.pod("a", "127.10.62.1", MtlsMode::Strict).await;
    let server = mesh.pod("b", "127.10.62.2", MtlsMode::Strict).await;
    let (other, _others) = echo("127.10.62.1", "").await;
    let to_client = mesh.service("web", AppProtocol::Opaque, &[endpoint(other, Some(&client.workload))]);
    let flooder =
        identity(&mesh.store, &workload("c", [127, 10, 62, 3].into(), true, MtlsMode::Strict).identity).await;
    let peers = PeerSet::one(server.workload.identity.clone());
    let config = flooder.client_config(&peers, Alpn::H2).expect("a certificate");

    let mut open = Vec::new();
    for _ in 0..10 * MAX {
        let io = TcpStream::connect(("127.10.62.2", mesh.hbone_port)).await.unwrap();
        let name = rustls::pki_types::ServerName::IpAddress(server.workload.ips[0].into());
        let tls = tokio_rustls::TlsConnector::from(config.clone()).connect(name, io).await.unwrap();
        let (sender, mut connection) = h2::client::handshake(tls).await.unwrap();
        let pinged = timeout(PATIENCE, async {
            let mut ping = connection.ping_pong().expect("the first to ask");
            tokio::select! {
                answer = ping.ping(h2::Ping::opaque()) => answer.is_ok(),
                _ = &mut connection => false,
            }
        });
        if pinged.await.expect("an end in time") {
            open.push((sender, connection));
        }
    }
    assert_eq!(open.len(), MAX);
    assert_eq!(reached(&mesh, &budget::TUNNELS_IN, &server), 9 * MAX as u64);
    assert_eq!(exchange(call(&server, to_client).await, b"out").await.unwrap(), b"out");
    mesh.stop().await;
}

/// An attacker opens ten times what the node has room for; another pod of the node is served all the while, and its
/// connection that is in use stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_workload_yields_when_the_nodes_memory_is_spent() {
    const MAX: usize = 256;
    let bound = MAX as u64 * Kind::Out.bytes();
    let mesh = Mesh::with_limits(2, Limits { traffic_bytes: bound, ..Limits::default() });
    let attacker = mesh.pod("a", "127.10.63.1", MtlsMode::Permissive).await;
    let victim = mesh.pod("v", "127.10.63.2", MtlsMode::Permissive).await;
    // Outside the mesh: no tunnels, only the connections themselves.
    let (to, _) = echo("127.10.63.3", "").await;
    victim.sockets.going_to(to);
    let mut kept = held(victim.outbound).await.unwrap();

    let mut open = Vec::new();
    let mut most = 0;
    for i in 0..10 * MAX {
        attacker.sockets.going_to(to);
        open.extend(held(attacker.outbound).await);
        most = most.max(mesh.shared.memory.used());
        if i % 64 == 0 {
            assert_eq!(exchange(call(&victim, to).await, b"out").await.unwrap(), b"out", "after {i}");
            kept.write_all(b"x").await.unwrap();
            kept.read_exact(&mut [0; 1]).await.unwrap();
        }
    }
    assert!(most <= bound + bound / 4, "{most} of {bound} bytes");
    assert!(reached(&mesh, &budget::TRAFFIC_MEMORY, &attacker) > 0);
    assert_eq!(reached(&mesh, &budget::TRAFFIC_MEMORY, &victim), 0);
    drop((open, kept));
    timeout(PATIENCE, async {
        while mesh.shared.memory.used() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("all is given back");
    mesh.stop().await;
}

/// Who has few connections gets one when somebody else has taken all there is, at the price of the largest's quietest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_workload_takes_room_from_the_largest() {
    const MAX: usize = 64;
    let bound = MAX as u64 * Kind::Out.bytes();
    let mesh = Mesh::with_limits(1, Limits { traffic_bytes: bound, ..Limits::default() });
    let attacker = mesh.pod("a", "127.10.64.1", MtlsMode::Permissive).await;
    let victim = mesh.pod("v", "127.10.64.2", MtlsMode::Permissive).await;
    let (to, _) = echo("127.10.64.3", "").await;
    attacker.sockets.going_to(to);
    let mut open = Vec::new();
    while let Ok(io) = held(attacker.outbound).await {
        open.push(io);
    }
    assert_eq!(open.len(), MAX);
    // All but the first are quiet from now on.
    let mut busy = open.remove(0);
    busy.write_all(b"x").await.unwrap();
    busy.read_exact(&mut [0; 1]).await.unwrap();
    victim.sockets.going_to(to);
    let _served = held(victim.outbound).await.expect("room");
    let mut byte = [0; 1];
    let oldest = open[0].read(&mut byte);
    assert!(
        matches!(timeout(PATIENCE, oldest).await.expect("an end"), Ok(0) | Err(_)),
        "the quietest is ended"
    );
    busy.write_all(b"x").await.unwrap();
    busy.read_exact(&mut [0; 1]).await.expect("the one that was in use goes on");
    mesh.stop().await;
}
