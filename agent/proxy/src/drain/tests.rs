//! The steps of a drain, and what copied connections see of it: two pods on loopback addresses, each with an agent of its own,
//! of which one is replaced.

use super::Drain;
use crate::{
    fixtures::{Held, Mesh, TestPod},
    pods::DataPlane,
    tests::{PATIENCE, call},
};
use futures_util::future::join_all;
use std::{
    cell::Cell,
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::{sleep, timeout},
};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[tokio::test(start_paused = true)]
async fn each_step_comes_in_its_time_to_who_follows_too() {
    let drain = Drain::new();
    let child = drain.child();
    let begin = tokio::time::Instant::now();
    let watching = async {
        child.draining().await;
        let draining = begin.elapsed();
        child.lingered().await;
        let lingered = begin.elapsed();
        let deadline = child.closing().await;
        let closing = begin.elapsed();
        child.expired().await;
        let seen = [draining, lingered, closing, begin.elapsed()];
        assert_eq!(seen.map(|at| at.as_millis()), [0, 5000, 20_000, 25_000]);
        assert_eq!(deadline - begin, ms(25_000));
    };
    let (in_time, ()) = tokio::join!(drain.run(ms(25_000), std::future::pending()), watching);
    assert!(!in_time);
}

#[tokio::test(start_paused = true)]
async fn the_earlier_deadline_counts() {
    let now = tokio::time::Instant::now();
    for (own, above, earlier) in [(1000, 2000, 1000), (2000, 1000, 1000)] {
        let drain = Drain::new();
        let child = drain.child();
        child.end_quiet(now + ms(own));
        drain.end_quiet(now + ms(above));
        assert_eq!(child.closing().await, now + ms(earlier));
    }
    let ended = Drain::new();
    ended.end_now();
    assert_eq!(ended.closing().await, now);
}

#[tokio::test(start_paused = true)]
async fn a_drain_without_end_can_be_asked_for() {
    assert!(Drain::new().run(Duration::MAX, async {}).await);
}

/// The grace; its last part begins two seconds before its end.
const GRACE: Duration = Duration::from_secs(10);
/// How long the application takes for a slow answer: until well into the last part.
const SLOW: Duration = Duration::from_millis(9200);
/// Between an answer and the next request. An end has two thirds of it to arrive: more than threads of a busy machine wait
/// for a processor. (`l4/copy/tests.rs` has shorter ones, with a clock that stands.)
const PAUSE: Duration = Duration::from_millis(200);

/// How the application saw a connection end: the last request, and whether the end was a reset.
type Seen = (u8, bool);

/// Answers `a` after 5 ms and `w` after [`SLOW`], never answers `n`, and to `s` says more than anybody takes.
async fn application(ip: &str) -> (SocketAddr, UnboundedReceiver<Seen>) {
    let listener = TcpListener::bind((ip, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (seen, ends) = unbounded_channel();
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            tokio::spawn(converse(io, seen.clone()));
        }
    });
    (addr, ends)
}

async fn converse(mut io: TcpStream, seen: UnboundedSender<Seen>) {
    let mut last = b'-';
    let end = loop {
        match io.read_u8().await {
            Ok(request) => last = request,
            Err(error) => break error,
        }
        let answered = match last {
            b'n' => Ok(()),
            b's' => loop {
                if let Err(error) = io.write_all(&[0; 64 * 1024]).await {
                    break Err(error);
                }
            },
            slow => {
                sleep(if slow == b'w' { SLOW } else { ms(5) }).await;
                io.write_all(&[last]).await
            }
        };
        if let Err(error) = answered {
            break error;
        }
    };
    let _ = seen.send((last, end.kind() != io::ErrorKind::UnexpectedEof));
}

/// Who goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    ClientsAgent,
    ServersAgent,
    ServersPod,
}

/// Two agents for two pods, and what holds their listeners.
struct Bed {
    mesh: Mesh,
    agents: [DataPlane; 2],
    pods: [TestPod; 2],
    held: [Held; 2],
    ips: [String; 2],
}

impl Bed {
    async fn new(net: &str, to: impl AsyncFnOnce(&str) -> SocketAddr) -> (Self, SocketAddr) {
        let mesh = Mesh::start(1);
        let ips = [1, 2].map(|last| format!("{net}.{last}"));
        let held = [mesh.listeners(&ips[0]), mesh.listeners(&ips[1])];
        let agents = [mesh.another(1), mesh.another(2)];
        let client = mesh.pod_on(&agents[0], "a", &ips[0], held[0].again()).await;
        let server = mesh.pod_on(&agents[1], "b", &ips[1], held[1].again()).await;
        let to = to(&ips[1]).await;
        client.sockets.going_to(to);
        (Self { mesh, agents, pods: [client, server], held, ips }, to)
    }

    /// Another agent takes up the listeners, and the one before has [`GRACE`] to go. Gives the new one.
    async fn replace(&self, leaving: Leaving, to: SocketAddr) -> DataPlane {
        let side = usize::from(leaving != Leaving::ClientsAgent);
        let new = self.mesh.another(1);
        let name = ["a", "b"][side];
        let pod = self.mesh.pod_on(&new, name, &self.ips[side], self.held[side].again()).await;
        pod.sockets.going_to(to);
        let old = &self.agents[side];
        match leaving {
            Leaving::ServersPod => old.remove_pod(&self.pods[side].workload.pod, GRACE).await.unwrap(),
            Leaving::ClientsAgent | Leaving::ServersAgent => old.drain(GRACE).await,
        }
        new
    }

    async fn stop(self, new: DataPlane) {
        let stop = move || {
            new.stop();
            self.agents.into_iter().for_each(DataPlane::stop);
            self.mesh
        };
        tokio::task::spawn_blocking(stop).await.unwrap().stop().await;
    }
}

async fn ask(io: &mut TcpStream, request: u8) -> io::Result<()> {
    io.write_all(&[request]).await?;
    let answer = timeout(PATIENCE, io.read_u8()).await.expect("an answer in time")?;
    assert_eq!(answer, request);
    Ok(())
}

/// What a client of a request/response protocol went through.
#[derive(Debug, Default)]
struct Requests {
    answered: u32,
    lost: Vec<io::Error>,
    /// Connections that ended between two requests.
    ended: u32,
}

/// Asks every [`PAUSE`] on a kept connection, on another one when that ends, until `over`.
async fn request_often(mut io: TcpStream, (pod, to): (&TestPod, SocketAddr), over: &Cell<bool>) -> Requests {
    let mut requests = Requests::default();
    while !over.get() {
        match ask(&mut io, b'a').await {
            Ok(()) => requests.answered += 1,
            Err(error) => {
                requests.lost.push(error);
                io = call(pod, to).await;
                continue;
            }
        }
        // A client notices the end of a connection that it keeps.
        if let Ok(end) = timeout(PAUSE, io.read_u8()).await {
            match end.unwrap_err() {
                error if error.kind() == io::ErrorKind::UnexpectedEof => requests.ended += 1,
                error => requests.lost.push(error),
            }
            io = call(pod, to).await;
        }
    }
    requests
}

/// A connection that has asked twice, and `request`.
async fn kept(pod: &TestPod, to: SocketAddr, request: Option<u8>) -> TcpStream {
    let mut io = call(pod, to).await;
    for _ in 0..2 {
        ask(&mut io, b'a').await.unwrap();
    }
    if let Some(request) = request {
        io.write_all(&[request]).await.unwrap();
    }
    io
}

/// Reads until the end, slowly, so that who has much to say is never done with it. When the end came, after how many
/// bytes, and whether it was a reset.
async fn end_of(mut io: TcpStream, begin: Instant) -> (Duration, usize, bool) {
    let mut buffer = vec![0; 64 * 1024];
    let mut read = 0;
    loop {
        if read > 1 && begin.elapsed() < GRACE {
            sleep(ms(50)).await;
        }
        match timeout(PATIENCE, io.read(&mut buffer)).await.expect("an end in time") {
            Ok(0) => return (begin.elapsed(), read, false),
            Ok(n) => read += n,
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
                return (begin.elapsed(), read, true);
            }
        }
    }
}

async fn copied_connections_end_well(leaving: Leaving, net: &str) {
    let mut ends = None;
    let start = async |ip: &str| {
        let (addr, seen) = application(ip).await;
        ends = Some(seen);
        addr
    };
    // A pod's own address: copied by the agents of both sides.
    let (bed, to) = Bed::new(net, start).await;
    let pod = &bed.pods[0];
    let idle = kept(pod, to, None).await;
    let unused = call(pod, to).await;
    let slow = kept(pod, to, Some(b'w')).await;
    let unanswered = kept(pod, to, Some(b'n')).await;
    let streaming = kept(pod, to, Some(b's')).await;
    let mut often = Vec::new();
    for _ in 0..4 {
        often.push(kept(pod, to, None).await);
    }
    let over = Cell::new(false);
    let begin = Instant::now();
    let leave = async {
        let new = timeout(PATIENCE, bed.replace(leaving, to)).await.unwrap();
        over.set(true);
        new
    };
    let requests = join_all(often.into_iter().map(|io| request_often(io, (pod, to), &over)));
    let others = async {
        let end = |io| end_of(io, begin);
        tokio::join!(end(idle), end(unused), end(slow), end(unanswered), end(streaming))
    };
    let (new, requests, (idle, unused, slow, unanswered, streaming)) = tokio::join!(leave, requests, others);

    for requests in requests {
        assert!(requests.lost.is_empty() && requests.answered > 10, "{leaving:?}: {requests:?}");
        assert_eq!(requests.ended, 1, "{leaving:?}: once, in order");
    }
    for (what, (at, read, reset), bytes) in [("idle", idle, 0), ("unused", unused, 0), ("slow", slow, 1)] {
        assert!(!reset && read == bytes && at < GRACE, "{leaving:?}, {what}: {at:?}, {read} bytes, {reset}");
        assert!(at > GRACE * 4 / 5, "{leaving:?}, {what}: before the last part, {at:?}");
    }
    for (what, (at, _, reset)) in [("unanswered", unanswered), ("streaming", streaming)] {
        assert!(reset && at >= GRACE, "{leaving:?}, {what}: {at:?}, {reset}");
    }
    let mut ends = ends.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 13 {
        seen.push(timeout(PATIENCE, ends.recv()).await.expect("every connection to end").unwrap());
    }
    for (request, reset) in seen {
        assert_eq!(reset, [b'n', b's'].contains(&request), "{leaving:?}: {}", char::from(request));
    }
    bed.stop(new).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_on_a_copied_connection_is_lost_when_the_clients_agent_is_replaced() {
    copied_connections_end_well(Leaving::ClientsAgent, "127.10.30").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_on_a_copied_connection_is_lost_when_the_servers_agent_is_replaced() {
    copied_connections_end_well(Leaving::ServersAgent, "127.10.31").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_on_a_copied_connection_is_lost_when_its_pod_leaves() {
    copied_connections_end_well(Leaving::ServersPod, "127.10.32").await;
}
