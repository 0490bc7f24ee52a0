//! TCP and UDP listeners.

use super::support::{Bed, PATIENCE, exchange, l4_rule, tcp, tcp_app};
use std::{io, net::SocketAddr};
use tokio::{
    io::AsyncReadExt,
    net::{TcpStream, UdpSocket},
    time::timeout,
};
use weft_core::{
    config::{FailReason, PortConfig, Transport},
    model::RouteKind,
};

/// Whose name the application said; `None` for a reset.
async fn ask(to: SocketAddr) -> Option<String> {
    let end = async { exchange(TcpStream::connect(to).await?, b"!").await };
    match end.await {
        Ok(answer) => Some(answer),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => None,
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_split_by_weight_and_an_invalid_share_is_refused() {
    let mut bed = Bed::new("127.22.1.1");
    let (one, two) = (tcp_app("one").await, tcp_app("two").await);
    let one = bed.service("one", Transport::Tcp, &[one]);
    let two = bed.service("two", Transport::Tcp, &[two]);
    let rule =
        l4_rule(RouteKind::Tcp, [(2, Ok(one)), (1, Ok(two.clone())), (1, Err(FailReason::InvalidBackend))]);
    bed.gateway("a", [(tcp(5000), PortConfig::Tcp(Some(rule))), (tcp(5001), PortConfig::Tcp(None))]);
    bed.apply_well().await;
    let mut counts = [0_u32; 3];
    for _ in 0..400 {
        match ask(bed.at(5000)).await.as_deref() {
            Some("one!") => counts[0] += 1,
            Some("two!") => counts[1] += 1,
            None => counts[2] += 1,
            other => panic!("{other:?}"),
        }
    }
    // Five standard deviations of 400 draws.
    for (count, expected) in counts.into_iter().zip([200_u32, 100, 100]) {
        assert!(count.abs_diff(expected) < 50, "{counts:?}");
    }
    assert_eq!(ask(bed.at(5001)).await, None, "no route is a reset");
    // The next connection follows an edit; no socket was touched for it.
    bed.gateway("a", [(tcp(5001), PortConfig::Tcp(Some(l4_rule(RouteKind::Tcp, [(1, Ok(two))]))))]);
    bed.apply_well().await;
    assert_eq!(ask(bed.at(5001)).await.as_deref(), Some("two!"));
    let mut end = [0; 1];
    TcpStream::connect(bed.at(5001)).await.unwrap().read_exact(&mut end).await.unwrap();
}

/// A UDP application that answers with its name and what it got.
async fn udp_app(name: &'static str) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let addr = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((n, peer)) = socket.recv_from(&mut buffer).await {
            let answer = [name.as_bytes(), &buffer[..n]].concat();
            let _ = socket.send_to(&answer, peer).await;
        }
    });
    addr
}

/// A client bound to the listener: an answer from elsewhere would not reach it.
async fn udp_client(to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(to).await.unwrap();
    socket
}

async fn say(client: &UdpSocket, what: &str) -> String {
    client.send(what.as_bytes()).await.unwrap();
    let mut buffer = [0; 2048];
    let n = timeout(PATIENCE, client.recv(&mut buffer)).await.expect("an answer in time").unwrap();
    String::from_utf8_lossy(&buffer[..n]).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_go_and_come_back_and_follow_edits() {
    let mut bed = Bed::new("127.22.2.1");
    let (one, two) = (udp_app("one ").await, udp_app("two ").await);
    let one = bed.service("one", Transport::Udp, &[one]);
    let two = bed.service("two", Transport::Udp, &[two]);
    let port = |backend| {
        let rule = l4_rule(RouteKind::Udp, [(1, Ok(backend))]);
        [((5300, Transport::Udp), PortConfig::Udp(Some(rule)))]
    };
    bed.gateway("a", port(one.clone()));
    bed.apply_well().await;
    let clients = [udp_client(bed.at(5300)).await, udp_client(bed.at(5300)).await];
    for (client, what) in [(0, "a"), (1, "b"), (0, "c"), (1, "")] {
        assert_eq!(say(&clients[client], what).await, format!("one {what}"));
    }
    // An edit elsewhere leaves the sessions; one of the rule moves them; so does the end of an endpoint.
    bed.gateway("b", [(tcp(5301), PortConfig::Tcp(None))]);
    bed.apply_well().await;
    assert_eq!(say(&clients[0], "d").await, "one d");
    bed.gateway("a", port(two));
    bed.apply_well().await;
    assert_eq!(say(&clients[0], "e").await, "two e");
    bed.gateway("a", port(one));
    bed.service("one", Transport::Udp, &[udp_app("new ").await]);
    bed.apply_well().await;
    assert_eq!(say(&clients[1], "f").await, "new f");
    // The port closes with sessions on it, and is free again at once.
    bed.remove("a");
    bed.apply_well().await;
    UdpSocket::bind(bed.at(5300)).await.unwrap();
}
