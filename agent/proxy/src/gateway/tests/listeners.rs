//! What is opened and closed, who has a place, and that nobody else notices.

use super::support::{Bed, get, get_once, http_app, http_port, http1, key, tcp};
use crate::{
    context::Limits,
    gateway::{Place, plan, plan::Claim},
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};
use tokio::net::{TcpListener, TcpStream};
use weft_core::{
    config::{Config, GatewayConfig, PortConfig, Transport},
    model::ObjectKey,
};

/// Gateways by name, with addresses and TCP ports.
fn world(gateways: &[(&str, &[&str], &[u16])]) -> Config {
    let gateway = |(name, addresses, ports): &(&str, &[&str], &[u16])| {
        let gateway = GatewayConfig {
            key: key(name),
            identity: weft_core::model::SpiffeId::new("cluster.local", "infra", *name),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            parameters: Default::default(),
            targets: Default::default(),
            ports: ports.iter().map(|port| (tcp(*port), PortConfig::Tcp(None))).collect(),
            backend_client_certificate: None,
        };
        (key(name), Arc::new(gateway))
    };
    Config { gateways: Arc::new(gateways.iter().map(gateway).collect()), ..Config::default() }
}

fn check_plan(
    held: &[(&str, &str)],
    gateways: &[(&str, &[&str], &[u16])],
    expected: &[(&str, &str)],
    refused: &[&str],
) {
    let places = |entries: &[(&str, &str)]| -> BTreeMap<Place, _> {
        let place = |at: &str| Place { address: at.parse().unwrap(), transport: Transport::Tcp };
        let claim = |at: &str, gateway| Claim { gateway: key(gateway), port: place(at).address.port() };
        entries.iter().map(|(at, gateway)| (place(at), claim(at, gateway))).collect()
    };
    let (wanted, conflicts) = plan::plan(&world(gateways), &places(held), usize::MAX);
    assert_eq!(wanted, places(expected), "{gateways:?}");
    let said: Vec<String> = conflicts.iter().map(|c| format!("{}: {}", c.claim.gateway, c.why)).collect();
    assert_eq!(said, refused, "{gateways:?}");
}

#[test]
fn each_place_has_one_gateway() {
    check_plan(&[], &[], &[], &[]);
    check_plan(
        &[],
        &[("a", &["10.0.0.1", "::1"], &[80, 81])],
        &[("10.0.0.1:80", "a"), ("10.0.0.1:81", "a"), ("[::1]:80", "a"), ("[::1]:81", "a")],
        &[],
    );
    // The same port on another address is another place.
    check_plan(
        &[],
        &[("a", &["10.0.0.1"], &[80]), ("b", &["10.0.0.2"], &[80])],
        &[("10.0.0.1:80", "a"), ("10.0.0.2:80", "b")],
        &[],
    );
    check_plan(
        &[],
        &[("a", &["10.0.0.1"], &[80]), ("b", &["10.0.0.1"], &[80, 81])],
        &[("10.0.0.1:80", "a"), ("10.0.0.1:81", "b")],
        &["infra/b: TCP 10.0.0.1:80: already used by Gateway infra/a (TCP 10.0.0.1:80)"],
    );
    // Who has it, keeps it.
    check_plan(
        &[("10.0.0.1:80", "b")],
        &[("a", &["10.0.0.1"], &[80]), ("b", &["10.0.0.1"], &[80])],
        &[("10.0.0.1:80", "b")],
        &["infra/a: TCP 10.0.0.1:80: already used by Gateway infra/b (TCP 10.0.0.1:80)"],
    );
    // An exact address comes before every address, unless that one is open.
    check_plan(
        &[],
        &[("a", &["::"], &[80]), ("b", &["10.0.0.1"], &[80])],
        &[("10.0.0.1:80", "b")],
        &["infra/a: TCP [::]:80: already used by Gateway infra/b (TCP 10.0.0.1:80)"],
    );
    check_plan(
        &[("[::]:80", "a")],
        &[("a", &["::"], &[80]), ("b", &["10.0.0.1"], &[80])],
        &[("[::]:80", "a")],
        &["infra/b: TCP 10.0.0.1:80: already used by Gateway infra/a (TCP [::]:80)"],
    );
    // Every IPv4 address and one IPv6 address do not meet.
    check_plan(
        &[],
        &[("a", &["0.0.0.0"], &[80]), ("b", &["::1"], &[80])],
        &[("0.0.0.0:80", "a"), ("[::1]:80", "b")],
        &[],
    );
    // A Gateway's own wildcard makes its exact addresses needless.
    check_plan(&[], &[("a", &["0.0.0.0", "::", "10.0.0.1"], &[80])], &[("[::]:80", "a")], &[]);
}

#[test]
fn a_listeners_port_may_be_bound_as_another() {
    let mut config = world(&[("a", &["10.0.0.1"], &[80, 81])]);
    let gateways = Arc::make_mut(&mut config.gateways);
    let gateway = Arc::make_mut(gateways.get_mut(&key("a")).unwrap());
    gateway.targets.insert((80, Transport::Tcp), 20_001);
    let (wanted, conflicts) = plan::plan(&config, &BTreeMap::new(), usize::MAX);
    let shown: Vec<_> = wanted.iter().map(|(place, claim)| format!("{place} for {}", claim.port)).collect();
    assert_eq!(shown, ["TCP 10.0.0.1:81 for 81", "TCP 10.0.0.1:20001 for 80"]);
    assert!(conflicts.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listeners_follow_the_config() {
    let mut bed = Bed::new("127.20.1.1");
    let shop = http_app("shop").await;
    let backend = bed.service("shop", Transport::Tcp, &[shop]);
    let ok = Ok((200, "shop".to_owned()));
    bed.gateway("a", [(tcp(8080), http_port(&backend))]);
    bed.apply_well().await;
    assert_eq!(get_once(bed.at(8080), "any").await, ok);
    // Another port, and a port that nothing is attached to.
    bed.gateway("a", [(tcp(8081), http_port(&backend)), (tcp(8082), PortConfig::Tcp(None))]);
    bed.apply_well().await;
    assert_eq!(get_once(bed.at(8081), "any").await, ok);
    TcpStream::connect(bed.at(8080)).await.expect_err("a closed port");
    // A port changes hands.
    bed.gateway("a", [(tcp(8082), http_port(&backend))]);
    bed.gateway("b", [(tcp(8081), http_port(&backend))]);
    bed.apply_well().await;
    for port in [8081, 8082] {
        assert_eq!(get_once(bed.at(port), "any").await, ok);
    }
    bed.remove("a");
    bed.remove("b");
    bed.apply_well().await;
    assert_eq!(bed.places(), []);
    TcpStream::connect(bed.at(8081)).await.expect_err("a closed port");
    // The same again: nothing of the Gateway before is in the way, though its last connection may still be ending.
    for _ in 0..20 {
        bed.gateway("a", [(tcp(8080), http_port(&backend))]);
        bed.apply_well().await;
        let mut kept = http1(TcpStream::connect(bed.at(8080)).await.unwrap()).await;
        assert_eq!(get(&mut kept, "any").await.map_err(|e| e.to_string()), ok);
        bed.remove("a");
        bed.apply_well().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_cannot_be_bound_is_told_and_tried_again() {
    let mut bed = Bed::new("127.20.2.1");
    let shop = http_app("shop").await;
    let backend = bed.service("shop", Transport::Tcp, &[shop]);
    let other = TcpListener::bind(bed.at(8080)).await.unwrap();
    bed.gateway("a", [(tcp(8080), http_port(&backend)), (tcp(8081), http_port(&backend))]);
    let feedback = bed.apply().await;
    let said = |port| (key("a"), port, Transport::Tcp);
    let expected = [(said(8080), "127.20.2.1:8080: Address already in use".into())];
    assert_eq!(feedback.unbound, expected.into());
    assert!(feedback.unusable.is_empty());
    assert_eq!(get_once(bed.at(8081), "any").await, Ok((200, "shop".to_owned())));
    drop(other);
    bed.apply_well().await;
    assert_eq!(get_once(bed.at(8080), "any").await, Ok((200, "shop".to_owned())));
    // An address of another machine (TEST-NET-1) besides our own.
    let foreign: IpAddr = "192.0.2.77".parse().unwrap();
    bed.gateway_at("a", &[bed.ip, foreign], [(tcp(8080), http_port(&backend))]);
    let feedback = bed.apply().await;
    let words = "Cannot assign requested address";
    assert_eq!(feedback.unbound, [(said(8080), format!("192.0.2.77:8080: {words}").into())].into());
    assert_eq!(feedback.unusable, [((key("a"), foreign), words.into())].into());
    assert_eq!(get_once(bed.at(8080), "any").await, Ok((200, "shop".to_owned())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_gateways_on_one_port_the_second_is_told() {
    let mut bed = Bed::new("127.20.3.1");
    let (one, two) = (http_app("one").await, http_app("two").await);
    let one = bed.service("one", Transport::Tcp, &[one]);
    let two = bed.service("two", Transport::Tcp, &[two]);
    bed.gateway("b", [(tcp(8080), http_port(&one))]);
    bed.apply_well().await;
    bed.gateway("a", [(tcp(8080), http_port(&two))]);
    let why = "TCP 127.20.3.1:8080: already used by Gateway infra/b (TCP 127.20.3.1:8080)";
    let expected = [((key("a"), 8080, Transport::Tcp), why.into())].into();
    assert_eq!(bed.apply().await.unbound, expected);
    assert_eq!(get_once(bed.at(8080), "any").await, Ok((200, "one".to_owned())));
    bed.remove("b");
    bed.apply_well().await;
    assert_eq!(get_once(bed.at(8080), "any").await, Ok((200, "two".to_owned())));
}

/// Requests on kept and on new connections until told to stop; gives how many went well, and what went wrong.
async fn load(to: SocketAddr, done: Arc<AtomicU64>, stop: Arc<AtomicBool>) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut kept = http1(TcpStream::connect(to).await.unwrap()).await;
    while !stop.load(Ordering::Relaxed) {
        let answers = [get(&mut kept, "any").await.map_err(|e| e.to_string()), get_once(to, "any").await];
        for answer in answers {
            match answer {
                Ok((200, _)) => _ = done.fetch_add(1, Ordering::Relaxed),
                other => wrong.push(format!("{other:?}")),
            }
        }
    }
    wrong
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opening_and_closing_listeners_fails_no_request_of_another() {
    let mut bed = Bed::new("127.20.4.1");
    let shop = http_app("shop").await;
    let backend = bed.service("shop", Transport::Tcp, &[shop]);
    bed.gateway("a", [(tcp(8080), http_port(&backend))]);
    bed.apply_well().await;
    let (done, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let running = tokio::spawn(load(bed.at(8080), done.clone(), stop.clone()));
    for _ in 0..3 {
        let extra = (9000..9100).map(|port| (tcp(port), http_port(&backend)));
        bed.gateway("a", extra.chain([(tcp(8080), http_port(&backend))]));
        bed.gateway("b", [(tcp(7000), http_port(&backend))]);
        bed.apply_well().await;
        assert_eq!(get_once(bed.at(9099), "any").await, Ok((200, "shop".to_owned())));
        bed.gateway("a", [(tcp(8080), http_port(&backend))]);
        bed.remove("b");
        bed.apply_well().await;
        // Some requests while nothing changes.
        let before = done.load(Ordering::Relaxed);
        while done.load(Ordering::Relaxed) < before + 10 && !running.is_finished() {
            tokio::task::yield_now().await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    assert_eq!(running.await.unwrap(), Vec::<String>::new());
    assert_eq!(bed.places().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_leaves_what_is_established() {
    let mut bed = Bed::new("127.20.5.1");
    let shop = http_app("shop").await;
    let backend = bed.service("shop", Transport::Tcp, &[shop]);
    bed.gateway("a", [(tcp(8080), http_port(&backend))]);
    bed.apply_well().await;
    let mut kept = http1(TcpStream::connect(bed.at(8080)).await.unwrap()).await;
    let ok = (200, "shop".to_owned());
    assert_eq!(get(&mut kept, "any").await.unwrap(), ok);
    bed.listeners.stop_accepting().await;
    TcpStream::connect(bed.at(8080)).await.expect_err("a closed port");
    assert_eq!(get(&mut kept, "any").await.unwrap(), ok);
}

/// One namespace asks for ten times what all Gateways together may have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listeners_of_gateways_leave_descriptors_to_pods() {
    // A quarter of 200 sockets, on two workers.
    let (all, own) = (25, 13);
    let mut bed = Bed::with_limits("127.20.40.1", Limits { descriptors: 200, ..Limits::default() });
    let shop = http_app("shop").await;
    let backend = bed.service("shop", Transport::Tcp, &[shop]);
    bed.gateway("greedy", (0..10 * all).map(|i| (tcp(8000 + i), http_port(&backend))));
    // The one of another namespace comes later, by its ports too.
    let gateways = Arc::make_mut(&mut bed.config.gateways);
    let greedy = gateways.get(&key("greedy")).unwrap();
    let small = GatewayConfig {
        key: ObjectKey::new("modest", "small"),
        ports: [(tcp(9000), http_port(&backend))].into(),
        ..(**greedy).clone()
    };
    gateways.insert(small.key.clone(), Arc::new(small));
    for round in 0..2 {
        let feedback = bed.apply().await;
        let greedy = bed.places().iter().filter(|(_, gateway)| *gateway == key("greedy")).count();
        assert_eq!((bed.places().len(), greedy), (own + 1, own), "round {round}");
        assert_eq!(feedback.unbound.len(), usize::from(10 * all) - own);
        for ((gateway, port, _), why) in &feedback.unbound {
            assert_eq!(*gateway, key("greedy"));
            let words =
                "budget gateway-sockets: Gateways of namespace infra listen on 13 addresses and ports";
            assert!(why.starts_with(words), "{port}: {why}");
        }
        for port in [8000, 9000] {
            assert_eq!(get_once(bed.at(port), "any").await, Ok((200, "shop".to_owned())), "{port}");
        }
    }
}

/// Ten times the connections that one Gateway may have, held open. On one thread: where the client's connection ends on
/// another while a request is given to it, hyper's channel may keep that request, and nobody hears of it.
#[tokio::test]
async fn connections_to_gateways_leave_descriptors_to_pods() {
    // Half of a quarter.
    let own = 25;
    let mut bed = Bed::with_limits("127.20.41.1", Limits { descriptors: 200, ..Limits::default() });
    let shop = http_app("shop").await;
    let backend = bed.service("shop", Transport::Tcp, &[shop]);
    bed.gateway("greedy", [(tcp(8080), http_port(&backend))]);
    bed.gateway("small", [(tcp(8081), http_port(&backend))]);
    bed.apply_well().await;
    let mut open = Vec::new();
    for _ in 0..10 * own {
        let Ok(io) = TcpStream::connect(bed.at(8080)).await else { continue };
        let mut kept = http1(io).await;
        if get(&mut kept, "any").await.is_ok() {
            open.push(kept);
        }
    }
    let reached = bed.shared.budgets.list(None, std::time::Instant::now());
    let named: Vec<_> = reached.iter().map(|r| (r.budget.name, r.by.key.clone())).collect();
    assert_eq!((open.len(), named), (own, vec![("gateway-connections", key("greedy"))]));
    assert_eq!(get_once(bed.at(8081), "any").await, Ok((200, "shop".to_owned())), "another Gateway serves");
    drop(open);
    while get_once(bed.at(8080), "any").await.is_err() {
        tokio::task::yield_now().await;
    }
}
