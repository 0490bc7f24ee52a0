//! TCP and UDP listeners.

use super::support::{Bed, PATIENCE, exchange, l4_rule, tcp, tcp_app};
use std::{io, net::SocketAddr};
use tokio::{
    io::AsyncReadExt,
    net::{TcpStream, UdpSocket},
    time::timeout,
};
use weft_core::{
    budget,
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

/// Answers what begins with `?`, from whom and how often it came; is silent to all else.
async fn choosy_app() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let addr = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 64];
        while let Ok((n, peer)) = socket.recv_from(&mut buffer).await {
            if buffer[..n].starts_with(b"?") {
                let _ = socket.send_to(peer.to_string().as_bytes(), peer).await;
            }
        }
    });
    addr
}

/// Sends two datagrams from each of so many sources at a pace of 5,000 sources a second. Every fourth source is of one network.
fn flood(to: SocketAddr, sources: u32) {
    let begin = std::time::Instant::now();
    for n in 0..sources {
        let from = if n % 4 == 0 {
            [127, 99, 0, (n % 250) as u8 + 1]
        } else {
            [127, 100, (n / 250) as u8, (n % 250) as u8 + 1]
        };
        let socket = std::net::UdpSocket::bind(SocketAddr::from((from, 0))).unwrap();
        for _ in 0..2 {
            // What does not fit is lost, as anywhere on a datagram's way.
            let _ = socket.send_to(b"!", to);
        }
        let due = std::time::Duration::from_micros(200) * n;
        std::thread::sleep(due.saturating_sub(begin.elapsed()));
    }
}

/// Asks as a resolver does, which knows that datagrams get lost where there are too many: again after half a second, five times.
async fn insist(client: &UdpSocket) -> String {
    for _ in 0..5 {
        client.send(b"?").await.unwrap();
        let mut buffer = [0; 64];
        if let Ok(answer) = timeout(std::time::Duration::from_millis(500), client.recv(&mut buffer)).await {
            return String::from_utf8_lossy(&buffer[..answer.unwrap()]).into_owned();
        }
    }
    panic!("five questions and no answer");
}

/// A4: whoever is answered keeps his session, and whoever is new gets one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_udp_sources_a_second_silence_nobody() {
    const SOURCES: u32 = 40_000;
    let mut bed = Bed::new("127.22.7.1");
    let app = choosy_app().await;
    let app = bed.service("app", Transport::Udp, &[app]);
    let rule = l4_rule(RouteKind::Udp, [(1, Ok(app))]);
    bed.gateway("a", [((5300, Transport::Udp), PortConfig::Udp(Some(rule)))]);
    bed.apply_well().await;
    let to = bed.at(5300);
    // One who was there before, and a new one again and again.
    let before = udp_client(to).await;
    let session = say(&before, "?").await;
    let flood = tokio::task::spawn_blocking(move || flood(to, SOURCES));
    let mut asked = 0;
    while !flood.is_finished() {
        for (client, old) in [(&before, true), (&udp_client(to).await, false)] {
            let told = insist(client).await;
            assert!(!old || told == session, "the session of who was there before was taken away");
            asked += 1;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    flood.await.unwrap();
    assert!(asked >= 20, "{asked}");
    let reached = bed.shared.budgets.list(None, std::time::Instant::now());
    for budget in [&budget::UDP_SESSIONS_OF_NETWORK, &budget::UDP_SESSIONS] {
        assert!(reached.iter().any(|r| r.budget == budget), "{}: {reached:?}", budget.name);
    }
}
