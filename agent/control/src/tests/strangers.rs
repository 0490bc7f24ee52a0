//! Floods of those who have no right to be here, while an agent wants to be served.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, Ipv4Addr},
};

use parking_lot::Mutex;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::Instant,
};
use tonic::Code;
use weft_core::budget;

use super::{
    hostile::{hello, open},
    *,
};
use crate::client::over;

/// What an agent may wait while others flood. Alone it is served within milliseconds; before there were bounds it waited
/// ten seconds, which is also when it gives up.
const PATIENCE: Duration = Duration::from_secs(5);

/// An address of this machine's own that is not the agent's.
fn elsewhere(n: usize) -> IpAddr {
    let [high, low] = u16::try_from(n).unwrap().to_be_bytes();
    Ipv4Addr::new(127, 1, high, low).into()
}

async fn dial(bench: &Bench, from: IpAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(from, 0)).unwrap();
    socket.connect(bench.address()).await.unwrap()
}

/// The node's agent is served, as soon as if nobody else were there.
async fn served(bench: &Bench, node: &str) {
    let start = Instant::now();
    let client = bench.client(node);
    timeout(PATIENCE, connected(&client)).await.expect("the agent is served while others flood");
    assert!(start.elapsed() < PATIENCE);
}

/// Garbage is refused after a while, as by an API server that is asked. Says how many are asked about at once, by address:
/// the part of the token before the comma.
#[derive(Default)]
struct Slow {
    asked: Mutex<HashMap<String, (usize, usize)>>,
}

impl Authenticate for Slow {
    fn recall(&self, _token: &str) -> Option<Result<Caller, Denied>> {
        None
    }

    fn authenticate<'a>(&'a self, token: &'a str) -> AuthFuture<'a> {
        if let Some(account) = token.split_once('@') {
            return Box::pin(std::future::ready(Ok(caller(account))));
        }
        Box::pin(async move {
            let (address, _) = token.split_once(',').unwrap();
            let _asked = Asked::begin(self, address);
            tokio::time::sleep(Duration::from_millis(50)).await;
            Err(Denied::Invalid("garbage".into()))
        })
    }
}

/// One question, over when it is answered or nobody waits for it any more.
struct Asked<'a>(&'a Slow, &'a str);

impl<'a> Asked<'a> {
    fn begin(slow: &'a Slow, address: &'a str) -> Self {
        let mut asked = slow.asked.lock();
        let (now, most) = asked.entry(address.to_owned()).or_default();
        *now += 1;
        *most = (*most).max(*now);
        Self(slow, address)
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.0.asked.lock().get_mut(self.1).unwrap().0 -= 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_strangers_keep_no_agent_out() {
    let bench = Bench::new();
    let running = bench.serve(Limits::default());
    served(&bench, "n1").await;
    // Ten times as many as one address may have, and ten times as many as all may.
    let all = budget::AGENT_STRANGERS.size();
    let mut held = VecDeque::new();
    for _ in 0..10 * budget::AGENT_STRANGERS_PER_ADDRESS.size() {
        held.push_back(dial(&bench, elsewhere(0)).await);
    }
    running.until("one address has no more than its share", |r| r.strangers() <= 8).await;
    for n in 0..10 * all {
        let from = elsewhere(n % (all / 5));
        held.push_back(dial(&bench, from).await);
        if held.len() > 2 * all {
            held.pop_front(); // long displaced, and only our own descriptor
        }
        assert!(running.strangers() <= all);
        if n % all == all / 2 {
            served(&bench, &format!("n{n}")).await;
        }
    }
    running.until_counted("dropped_displaced", 8 * all as u64).await;
    let reached = running.server.reached();
    assert!(reached["agent-strangers"] > 0 && reached["agent-strangers-per-address"] > 0, "{reached:?}");
    served(&bench, "n2").await;
    drop(held);
    running.until("nobody stands there any more", |r| r.strangers() == 0).await;
    running.stop().await;
}

/// 128 connections of tokens that only the API server can tell from good ones, without end: the agent waited for all of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_tokens_keep_no_agent_waiting() {
    const ADDRESSES: usize = 16;
    let bench = Bench::new();
    let slow = Arc::new(Slow::default());
    let running = bench.serve_with(Limits::default(), slow.clone());
    let mut flood = tokio::task::JoinSet::new();
    for n in 0..128 {
        let (from, roots, address) = (elsewhere(n % ADDRESSES), bench.roots(), bench.address());
        let stream = dial(&bench, from).await;
        flood.spawn(async move {
            let channel = over((stream, address), &roots, "weft-controller.weft-system.svc", SOON).await;
            let Ok(channel) = channel else { return Vec::new() };
            let calls = (0..10).map(|i| {
                let (channel, token) = (channel.clone(), format!("{from},{n},{i}"));
                async move { open(&channel, &token, vec![hello("n1")]).await.err().map(|e| e.code()) }
            });
            futures_util::future::join_all(calls).await
        });
    }
    for n in 0..5 {
        served(&bench, &format!("n{n}")).await;
    }
    let mut refused = 0;
    while let Some(codes) = flood.join_next().await {
        for code in codes.unwrap() {
            // Some connections are gone by then: that of a stranger ends with its eighth refusal.
            assert!(code.is_some_and(|code| code != Code::Ok), "garbage is never let in");
            refused += 1;
        }
    }
    assert!(refused > 0);
    let asked = slow.asked.lock();
    assert_eq!(asked.len(), ADDRESSES);
    for (address, (_, most)) in asked.iter() {
        assert!(*most <= 2, "{address}: {most} of its tokens were asked about at once");
    }
    drop(asked);
    running.stop().await;
}

/// The same by number: an address gets its burst and its rate, and is told so by the name of the budget.
#[tokio::test]
async fn an_address_that_asks_on_and_on_is_put_off() {
    let bench = Bench::new();
    let slow = Arc::new(Slow::default());
    let running = bench.serve_with(Limits::default(), slow.clone());
    let from = elsewhere(1);
    let start = Instant::now();
    let mut codes = Vec::new();
    let total = 10 * budget::AGENT_REVIEWS.size() + 64;
    while codes.len() < total {
        let stream = dial(&bench, from).await;
        let roots = bench.roots();
        let name = "weft-controller.weft-system.svc";
        let channel = over((stream, bench.address()), &roots, name, SOON).await.unwrap();
        let calls = (0..7).map(|i| {
            let (channel, token) = (channel.clone(), format!("{from},{},{i}", codes.len()));
            async move { open(&channel, &token, vec![hello("n1")]).await.unwrap_err().code() }
        });
        codes.extend(futures_util::future::join_all(calls).await);
    }
    let asked = codes.iter().filter(|code| **code == Code::Unauthenticated).count();
    let put_off = codes.iter().filter(|code| **code == Code::Unavailable).count();
    let most = 64.0 + start.elapsed().as_secs_f64() * budget::AGENT_REVIEWS.bound as f64 + 1.0;
    assert!(asked as f64 <= most, "{asked} of {} were asked about, {most} at most", codes.len());
    assert_eq!(asked + put_off, codes.len(), "{codes:?}");
    assert_eq!(running.server.reached()["agent-reviews"], put_off as u64);
    served(&bench, "n1").await;
    running.stop().await;
}

/// Answers from memory do not wait for anybody.
#[tokio::test]
async fn a_token_that_is_remembered_waits_for_nobody() {
    struct Remembered;
    impl Authenticate for Remembered {
        fn recall(&self, token: &str) -> Option<Result<Caller, Denied>> {
            token.split_once('@').map(|account| Ok(caller(account)))
        }

        fn authenticate<'a>(&'a self, _token: &'a str) -> AuthFuture<'a> {
            Box::pin(std::future::pending())
        }
    }
    let bench = Bench::new();
    let running = bench.serve_with(Limits::default(), Arc::new(Remembered));
    let (channel, other) = (super::hostile::channel(&bench).await, super::hostile::channel(&bench).await);
    // From the same address, and more than all that is asked about at once.
    let stuck: Vec<_> = (0..60).map(|i| tokio::spawn(garbage(channel.clone(), i))).collect();
    running.until("questions are under way", |r| r.reviews_under_way() > 0).await;
    timeout(PATIENCE, open(&other, "agent@n1", vec![hello("n1")])).await.expect("no wait").unwrap();
    stuck.iter().for_each(tokio::task::JoinHandle::abort);
    drop((channel, other));
    running.stop().await;
}

async fn garbage(channel: tonic::transport::Channel, n: usize) {
    let _ = open(&channel, &format!("garbage-{n}"), vec![hello("n1")]).await;
}
