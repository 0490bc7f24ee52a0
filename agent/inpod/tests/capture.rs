//! Capture in real namespaces with the real `nft`. Needs root.
#![allow(clippy::unwrap_used)] // clippy knows #[test] functions, not the helpers of an integration test

mod support;

use socket2::{Domain, Socket, Type};
use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::OwnedFd,
    time::Duration,
};
use support::*;
use weft_inpod::{
    AGENT_MARK, CaptureConfig, Family, HBONE_PORT, INBOUND_PORT, Listeners, Mechanism, Mode, NetnsThread,
    OUTBOUND_PORT, PodSockets, apply, apply_by, open_listeners, original_dst, remove,
};

/// Dropped packets show as a connect that does not end: this long is enough to tell.
const NO_ANSWER: Duration = Duration::from_millis(300);

fn captured(net: &Net, config: &CaptureConfig) -> Listeners {
    captured_by(Mechanism::Tproxy, net, config)
}

fn captured_by(mechanism: Mechanism, net: &Net, config: &CaptureConfig) -> Listeners {
    let listeners = open_listeners(&net.pod).unwrap();
    apply_by(mechanism, &net.pod, config, Mode::Capture).unwrap();
    listeners
}

/// The tests' own kernel has everything.
#[test]
fn the_best_mechanism_is_taken() {
    let net = Net::new();
    assert_eq!(apply(&net.pod, &CaptureConfig::default(), Mode::Capture).unwrap(), Mechanism::Tproxy);
}

fn excluding(annotation: &str, value: &str) -> CaptureConfig {
    let (config, invalid) = CaptureConfig::from_annotations([(annotation, value)]);
    assert!(invalid.is_empty(), "{invalid:?}");
    config
}

fn sockets(net: &Net) -> PodSockets {
    PodSockets::pod(net.pod.clone(), NetnsThread::spawn("test-sockets", 8).unwrap())
}

/// A blocking connect with a socket that was made elsewhere.
fn connect_from(socket: OwnedFd, source: Option<SocketAddr>, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::from(socket);
    socket.set_nonblocking(false)?;
    if let Some(source) = source {
        socket.bind(&source.into())?;
    }
    socket.connect_timeout(&to.into(), PATIENCE)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// F3: four-tuples as the application made them.
#[test]
fn outbound_connections_are_captured_as_they_are() {
    for mechanism in Mechanism::ALL {
        let net = Net::new();
        strictest_filter(&net);
        let listeners = captured_by(mechanism, &net, &CaptureConfig::default());
        // Nobody listens there, and 192.0.2.7 does not even exist: capture comes first. Somebody's port 15006 is no other.
        for to in [
            at(PEER4, 80),
            at("192.0.2.7", 443),
            at(PEER6, 80),
            at("2001:db8::7", 443),
            at(PEER4, INBOUND_PORT),
        ] {
            let mut client = connect(&net.pod, to).unwrap();
            let (mut accepted, peer) = accept(&listeners.outbound);
            assert_eq!(original_dst(&accepted).unwrap(), to);
            assert_eq!(peer, client.local_addr().unwrap());
            if mechanism == Mechanism::Tproxy {
                assert_eq!(canonical(accepted.local_addr().unwrap()), to, "no address was rewritten");
            }
            assert!(accepted.nodelay().unwrap(), "inherited from the listener");
            assert_talks(&mut client, &mut accepted);
        }
    }
}

#[test]
fn inbound_connections_are_captured_as_they_are() {
    for mechanism in Mechanism::ALL {
        let net = Net::new();
        let listeners = captured_by(mechanism, &net, &CaptureConfig::default());
        for to in [at(POD4, 8080), at(POD6, 8080)] {
            let app = serve(&net.pod, to);
            let mut client = connect(&net.peer, to).unwrap();
            let (mut accepted, peer) = accept(&listeners.inbound);
            assert_eq!(original_dst(&accepted).unwrap(), to);
            assert_eq!(peer, client.local_addr().unwrap());
            assert_talks(&mut client, &mut accepted);
            assert!(nobody_waits(&app), "the application saw a plaintext connection");
        }
    }
}

/// Packets with foreign addresses over lo must pass all the same.
fn strictest_filter(net: &Net) {
    for interface in ["all", "default", "lo", "eth0"] {
        net.in_pod("sysctl", &["-qw", &format!("net.ipv4.conf.{interface}.rp_filter=1")]);
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[test]
fn hbone_is_not_captured() {
    let net = Net::new();
    let listeners = captured(&net, &CaptureConfig::default());
    for to in [at(POD4, HBONE_PORT), at(POD6, HBONE_PORT)] {
        let _client = connect(&net.peer, to).unwrap();
        let (accepted, _) = accept(&listeners.hbone);
        assert_eq!(original_dst(&accepted).unwrap(), to);
    }
}

#[test]
fn connections_that_exist_stay_as_they_are() {
    Mechanism::ALL.into_iter().for_each(connections_that_exist_stay_as_they_are_by);
}

fn connections_that_exist_stay_as_they_are_by(mechanism: Mechanism) {
    let net = Net::new();
    let (inside, outside) = (serve(&net.pod, at(POD4, 80)), serve(&net.peer, at(PEER4, 80)));
    let mut inbound = connect(&net.peer, at(POD4, 80)).unwrap();
    let mut inbound_app = accept(&inside).0;
    let mut outbound = connect(&net.pod, at(PEER4, 80)).unwrap();
    let mut outbound_server = accept(&outside).0;

    let _listeners = captured_by(mechanism, &net, &CaptureConfig::default());
    assert_talks(&mut inbound, &mut inbound_app);
    assert_talks(&mut outbound, &mut outbound_server);

    remove(&net.pod).unwrap();
    assert_talks(&mut inbound, &mut inbound_app);
    assert_talks(&mut outbound, &mut outbound_server);
}

#[test]
fn the_agents_own_sockets_are_skipped() {
    let net = Net::new();
    let listeners = captured(&net, &CaptureConfig::default());
    let stash = sockets(&net);
    for (to, family) in [(at(PEER4, 80), Family::V4), (at(PEER6, 80), Family::V6)] {
        let server = serve(&net.peer, to);
        let mut client = connect_from(stash.tcp(family).unwrap(), None, to).unwrap();
        let (mut accepted, _) = accept(&server);
        assert_talks(&mut client, &mut accepted);
    }
    assert!(nobody_waits(&listeners.outbound));
}

#[test]
fn the_application_sees_the_clients_address() {
    Mechanism::ALL.into_iter().for_each(the_application_sees_the_clients_address_by);
}

fn the_application_sees_the_clients_address_by(mechanism: Mechanism) {
    let net = Net::new();
    strictest_filter(&net);
    let listeners = captured_by(mechanism, &net, &CaptureConfig::default());
    let stash = sockets(&net);
    // The last pair: the pod calls itself through a Service.
    for (source, to) in
        [(CLIENT4, at(POD4, 80)), (CLIENT6, at(POD6, 80)), (POD4, at(POD4, 81)), (POD6, at(POD6, 81))]
    {
        let app = serve(&net.pod, to);
        let source = at(source, 0);
        let socket = stash.tcp(Family::of(to.ip())).unwrap();
        let mut agent = connect_from(socket, Some(source), to).unwrap();
        let (mut accepted, peer) = accept(&app);
        assert_eq!(peer.ip(), source.ip());
        for _ in 0..3 {
            assert_talks(&mut agent, &mut accepted);
        }
        drop(accepted);
        let refused =
            connect_from(stash.tcp(Family::of(to.ip())).unwrap(), Some(source), SocketAddr::new(to.ip(), 9));
        let error = refused.expect_err("nobody listens on port 9");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "the application's refusal is seen");
    }
    assert!(nobody_waits(&listeners.inbound) && nobody_waits(&listeners.outbound));
}

#[test]
fn a_pod_reaches_itself_directly() {
    let net = Net::new();
    let _listeners = captured(&net, &CaptureConfig::default());
    for to in [at("127.0.0.1", 80), at("127.8.8.8", 80), at(POD4, 80), at("::1", 80), at(POD6, 80)] {
        let app = serve(&net.pod, to);
        let mut client = connect(&net.pod, to).unwrap();
        let (mut accepted, _) = accept(&app);
        assert_talks(&mut client, &mut accepted);
    }
}

#[test]
fn exclusions_are_left_alone() {
    Mechanism::ALL.into_iter().for_each(exclusions_are_left_alone_by);
}

fn exclusions_are_left_alone_by(mechanism: Mechanism) {
    enum Way {
        In,
        Out,
    }
    let cases = [
        ("weft.dev/exclude-inbound-ports", "9090, 80", Way::In, at(POD4, 80)),
        ("weft.dev/exclude-inbound-ports", "80", Way::In, at(POD6, 80)),
        ("weft.dev/exclude-inbound-cidrs", "10.77.0.0/16", Way::In, at(POD4, 80)),
        ("weft.dev/exclude-inbound-cidrs", "fd77::1", Way::In, at(POD6, 80)),
        ("weft.dev/exclude-outbound-ports", "80", Way::Out, at(PEER4, 80)),
        ("weft.dev/exclude-outbound-ports", "80", Way::Out, at(PEER6, 80)),
        ("weft.dev/exclude-outbound-cidrs", "10.77.0.1", Way::Out, at(PEER4, 80)),
        ("weft.dev/exclude-outbound-cidrs", "fd77::/64,10.0.0.0/8", Way::Out, at(PEER6, 80)),
    ];
    let net = Net::new();
    let listeners = open_listeners(&net.pod).unwrap();
    for (annotation, value, way, to) in cases {
        apply_by(mechanism, &net.pod, &excluding(annotation, value), Mode::Capture).unwrap();
        let (from, server, ours) = match way {
            Way::In => (&net.peer, &net.pod, &listeners.inbound),
            Way::Out => (&net.pod, &net.peer, &listeners.outbound),
        };
        let app = serve(server, to);
        let mut client = connect(from, to).unwrap();
        let (mut accepted, _) = accept(&app);
        assert_talks(&mut client, &mut accepted);
        assert!(nobody_waits(ours), "{annotation}={value}");
        // Another port (or, for addresses, the other family) is captured as ever.
        let other = if annotation.ends_with("ports") { SocketAddr::new(to.ip(), 81) } else { continue };
        let _other_app = serve(server, other);
        let _client = connect(from, other).unwrap();
        ours.set_nonblocking(true).unwrap();
        assert_eq!(original_dst(&accept(ours).0).unwrap(), other);
        if let Way::In = way {
            drop(app);
            // An excluded port is the kernel's business, dead or not. Not at once: a child of another test may hold the listener until its exec.
            wait_until_refused(from, to);
        }
    }
}

#[test]
fn without_listeners_everything_is_refused() {
    Mechanism::ALL.into_iter().for_each(without_listeners_everything_is_refused_by);
}

fn without_listeners_everything_is_refused_by(mechanism: Mechanism) {
    let net = Net::new();
    drop(open_listeners(&net.pod).unwrap());
    for port in [OUTBOUND_PORT, INBOUND_PORT] {
        wait_until_refused(&net.pod, at("::1", port));
    }
    apply_by(mechanism, &net.pod, &CaptureConfig::default(), Mode::Capture).unwrap();
    for (from, server, to) in [
        (&net.pod, &net.peer, at(PEER4, 80)),
        (&net.pod, &net.peer, at(PEER6, 80)),
        (&net.peer, &net.pod, at(POD4, 80)),
        (&net.peer, &net.pod, at(POD6, 80)),
    ] {
        let app = serve(server, to);
        let error = connect(from, to).expect_err("nothing may pass in clear");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{to}");
        assert!(nobody_waits(&app), "{to} was reached in clear");
    }
}

#[test]
fn our_plaintext_ports_are_reached_by_capture_only() {
    Mechanism::ALL.into_iter().for_each(our_plaintext_ports_are_reached_by_capture_only_by);
}

fn our_plaintext_ports_are_reached_by_capture_only_by(mechanism: Mechanism) {
    let net = Net::new();
    let listeners = captured_by(mechanism, &net, &CaptureConfig::default());
    for to in
        [at(POD4, OUTBOUND_PORT), at(POD4, INBOUND_PORT), at(POD6, OUTBOUND_PORT), at(POD6, INBOUND_PORT)]
    {
        for from in [&net.peer, &net.pod] {
            let error = connect(from, to).expect_err("these ports are not for callers");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{to}");
        }
        let loopback =
            SocketAddr::new(if to.is_ipv4() { at("127.0.0.1", 0) } else { at("::1", 0) }.ip(), to.port());
        connect(&net.pod, loopback).expect_err("nor over loopback");
        let agent = sockets(&net).tcp(Family::of(to.ip())).unwrap();
        connect_from(agent, None, to).expect_err("nor for the agent: it would go in circles");
    }
    assert!(nobody_waits(&listeners.inbound) && nobody_waits(&listeners.outbound));
}

/// Nothing passes in clear by somebody else's rules. Outward the connection's packets are known by conntrack's mark, so
/// without conntrack it is dropped; inward capture needs no conntrack.
#[test]
fn what_conntrack_does_not_see_is_dropped() {
    for mechanism in Mechanism::ALL {
        let net = Net::new();
        let listeners = captured_by(mechanism, &net, &CaptureConfig::default());
        let notrack = "table inet foreign { \
            chain o { type filter hook output priority -300; notrack; }; \
            chain p { type filter hook prerouting priority -300; notrack; }; }";
        net.in_pod("nft", &[notrack]);
        for (from, server, to) in [
            (&net.pod, &net.peer, at(PEER4, 80)),
            (&net.pod, &net.peer, at(PEER6, 80)),
            (&net.peer, &net.pod, at(POD4, 80)),
            (&net.peer, &net.pod, at(POD6, 80)),
        ] {
            let app = serve(server, to);
            let connected = from.run(|| TcpStream::connect_timeout(&to, NO_ANSWER)).unwrap();
            if mechanism == Mechanism::Tproxy && from.inode() == net.peer.inode() {
                assert_eq!(original_dst(&accept(&listeners.inbound).0).unwrap(), to);
            } else {
                assert!(connected.is_err(), "{to} was reached in clear");
            }
            assert!(nobody_waits(&app), "{to} was reached in clear");
        }
        // It is the guards that drop: without them the same packets pass.
        apply_by(mechanism, &net.pod, &CaptureConfig::default(), Mode::Drain).unwrap();
        let app = serve(&net.peer, at(PEER4, 81));
        let _direct = connect(&net.pod, at(PEER4, 81)).unwrap();
        accept(&app);
    }
}

/// A kernel that answers with SYN cookies makes a connection of the client's ACK, at whatever listener that finds. One of the
/// application's that has sent cookies lately would take it, for any client, past the agent.
#[test]
fn who_answers_a_syn_cookie_is_captured() {
    for mechanism in Mechanism::ALL {
        let net = Net::new();
        let listeners = captured_by(mechanism, &net, &CaptureConfig::default());
        net.in_pod("sysctl", &["-qw", "net.ipv4.tcp_syncookies=2"]);
        for (any, pod, peer) in [("0.0.0.0", POD4, PEER4), ("::", POD6, PEER6)] {
            let app = serve(&net.pod, at(any, 80));
            let _itself = connect(&net.pod, at(pod, 80)).unwrap();
            accept(&app); // it has sent a cookie lately
            for (from, to, listener) in [
                (&net.peer, at(pod, 80), &listeners.inbound),
                // For its wildcard listener every address is as good as the pod's.
                (&net.pod, at(peer, 80), &listeners.outbound),
            ] {
                let sent = counter(&net.pod, "SyncookiesSent");
                let mut client = connect(from, to).unwrap();
                assert!(
                    counter(&net.pod, "SyncookiesSent") > sent,
                    "{to}: without a cookie this tells nothing"
                );
                let mut accepted = accept(listener).0;
                assert_eq!(original_dst(&accepted).unwrap(), to, "{mechanism:?}");
                assert_talks(&mut client, &mut accepted);
                assert!(nobody_waits(&app), "{mechanism:?}: {to} reached the application past the agent");
            }
        }
    }
}

/// A cookie is good for two minutes, and who sent it may be gone by then.
#[test]
fn who_answers_a_syn_cookie_of_an_agent_that_is_gone_is_refused() {
    for mechanism in Mechanism::ALL {
        for (any, pod) in [("0.0.0.0", POD4), ("::", POD4), ("::", POD6)] {
            let net = Net::new();
            let listeners = captured_by(mechanism, &net, &CaptureConfig::default());
            net.in_pod("sysctl", &["-qw", "net.ipv4.tcp_syncookies=2"]);
            let (app, to) = (serve(&net.pod, at(any, 80)), at(pod, 80));
            let _itself = connect(&net.pod, to).unwrap();
            accept(&app); // it has sent a cookie lately
            let hold_back = "table inet hold { chain o { type filter hook output priority 0; \
                tcp flags & (syn | ack) == ack drop; }; }";
            net.in_peer("nft", &[hold_back]);
            let mut client = connect(&net.peer, to).unwrap();
            drop(listeners);
            until_nobody_listens(&net, INBOUND_PORT);
            net.in_peer("nft", &["delete table inet hold"]);
            client.write_all(b"weft").unwrap();
            let answer = client.read(&mut [0]).map_err(|e| e.kind());
            assert_eq!(answer, Err(io::ErrorKind::ConnectionReset), "{mechanism:?} {any} {pod}");
            assert!(nobody_waits(&app), "{mechanism:?}: {to} reached the application in clear");
        }
    }
}

/// Connections that a pod forwards for containers of its own, masqueraded or not: both directions' packets after the first
/// SYN meet no socket in the pod, and must not be given one.
#[test]
fn what_a_pod_forwards_and_excludes_goes_on() {
    for mechanism in Mechanism::ALL {
        for masqueraded in [false, true] {
            let net = Net::new();
            let nested = Nested::new(&net);
            if masqueraded {
                let nat = "table ip nested { chain p { type nat hook postrouting priority 100; oifname eth0 masquerade; }; }";
                net.in_pod("nft", &[nat]);
            }
            let inbound = excluding("weft.dev/exclude-inbound-cidrs", "10.79.0.0/24");
            let outbound = excluding("weft.dev/exclude-outbound-cidrs", "10.77.0.0/24");
            let config = CaptureConfig { outbound_cidrs: outbound.outbound_cidrs, ..inbound };
            let _listeners = captured_by(mechanism, &net, &config);
            let server = serve(&net.peer, at(PEER4, 80));
            let mut client = connect(&nested.netns, at(PEER4, 80)).unwrap();
            let (mut accepted, from) = accept(&server);
            assert_eq!(from.ip().to_string(), if masqueraded { POD4 } else { NESTED4 });
            assert_talks(&mut client, &mut accepted);
        }
    }
}

/// A table of somebody else that takes our mark away turns a call neither outward nor to the pod's own listener, for
/// which 0.0.0.0 is as good an address as any.
#[test]
fn a_mark_that_is_taken_away_opens_nothing() {
    let net = Net::new();
    let _listeners = captured(&net, &CaptureConfig::default());
    let own = serve(&net.pod, at("0.0.0.0", 80));
    let server = serve(&net.peer, at(PEER4, 80));
    for hook in ["type route hook output priority 10", "type filter hook prerouting priority -400"] {
        net.in_pod("nft", &[&format!("table inet foreign {{ chain c {{ {hook}; meta mark set 0; }}; }}")]);
        let connected = net.pod.run(|| TcpStream::connect_timeout(&at(PEER4, 80), NO_ANSWER)).unwrap();
        let reached_us = hook.contains("prerouting");
        assert_eq!(connected.is_ok(), reached_us, "{hook}: conntrack's mark does in prerouting");
        assert!(nobody_waits(&own) && nobody_waits(&server), "{hook}");
        net.in_pod("nft", &["delete table inet foreign"]);
    }
}

#[test]
fn applying_again_keeps_captured_connections() {
    Mechanism::ALL.into_iter().for_each(applying_again_keeps_captured_connections_by);
}

fn applying_again_keeps_captured_connections_by(mechanism: Mechanism) {
    let net = Net::new();
    let listeners = captured_by(mechanism, &net, &CaptureConfig::default());
    let mut client = connect(&net.pod, at(PEER4, 80)).unwrap();
    let (mut accepted, _) = accept(&listeners.outbound);
    apply_by(mechanism, &net.pod, &excluding("weft.dev/exclude-outbound-ports", "80"), Mode::Capture)
        .unwrap();
    apply_by(mechanism, &net.pod, &CaptureConfig::default(), Mode::Capture).unwrap();
    assert_talks(&mut client, &mut accepted);
}

#[test]
fn leaving_drains_captured_connections_and_then_restores_the_pod() {
    Mechanism::ALL.into_iter().for_each(leaving_drains_captured_connections_and_then_restores_the_pod_by);
}

fn leaving_drains_captured_connections_and_then_restores_the_pod_by(mechanism: Mechanism) {
    let net = Net::new();
    let before = pod_state(&net);
    let listeners = captured_by(mechanism, &net, &CaptureConfig::default());
    let stash = sockets(&net);
    let (inside, outside) = (serve(&net.pod, at(POD4, 80)), serve(&net.peer, at(PEER4, 80)));
    let mut outbound = connect(&net.pod, at(PEER4, 80)).unwrap();
    let mut outbound_agent = accept(&listeners.outbound).0;
    let mut inbound = connect(&net.peer, at(POD4, 80)).unwrap();
    let mut inbound_agent = accept(&listeners.inbound).0;
    let mut to_app =
        connect_from(stash.tcp(Family::V4).unwrap(), Some(at(CLIENT4, 0)), at(POD4, 80)).unwrap();
    let mut app = accept(&inside).0;

    apply_by(mechanism, &net.pod, &CaptureConfig::default(), Mode::Drain).unwrap();
    assert_talks(&mut outbound, &mut outbound_agent);
    assert_talks(&mut inbound, &mut inbound_agent);
    assert_talks(&mut to_app, &mut app);
    let mut direct = connect(&net.pod, at(PEER4, 80)).unwrap();
    let mut direct_server = accept(&outside).0;
    assert_talks(&mut direct, &mut direct_server);

    remove(&net.pod).unwrap();
    assert_talks(&mut direct, &mut direct_server);
    assert_eq!(pod_state(&net), before);
    remove(&net.pod).expect("removing what is gone is no error");
}

fn pod_state(net: &Net) -> [String; 5] {
    [
        net.in_pod("nft", &["list", "ruleset"]),
        net.in_pod("ip", &["rule"]),
        net.in_pod("ip", &["-6", "rule"]),
        net.in_pod("ip", &["route", "show", "table", "all"]),
        // The IPv6 table lists cached entries too: only ours count.
        net.in_pod("sh", &["-c", "ip -6 route show table all | grep -c 'table 100' || true"]),
    ]
}

#[test]
fn a_pod_without_ipv6_is_captured_too() {
    for (mechanism, interfaces) in [
        (Mechanism::Tproxy, &["all", "default", "lo", "eth0"][..]),
        (Mechanism::Tproxy, &["lo"]), // what came by IPv6 would be refused
        (Mechanism::Redirect, &["all", "default", "lo", "eth0"]),
    ] {
        let net = Net::new();
        for interface in interfaces {
            net.in_pod("sysctl", &["-qw", &format!("net.ipv6.conf.{interface}.disable_ipv6=1")]);
        }
        let listeners =
            captured_by(mechanism, &net, &excluding("weft.dev/exclude-outbound-cidrs", "fd00::/8"));
        assert!(listeners.outbound.local_addr().unwrap().is_ipv4());
        let _client = connect(&net.pod, at(PEER4, 80)).unwrap();
        assert_eq!(original_dst(&accept(&listeners.outbound).0).unwrap(), at(PEER4, 80));
        assert!(nobody_waits(&listeners.inbound));
        remove(&net.pod).unwrap();
    }
}

#[test]
fn the_stash_fills_and_falls_back() {
    let net = Net::new();
    let stash = sockets(&net);
    let taken: Vec<OwnedFd> = (0..200).map(|_| stash.tcp(Family::V4).unwrap()).collect();
    for socket in taken {
        let socket = Socket::from(socket);
        assert_eq!(socket.mark().unwrap(), AGENT_MARK);
        assert!(socket.tcp_nodelay().unwrap());
    }
    let _v6 = stash.tcp(Family::V6).unwrap();
    assert!(stash.misses() > 0, "200 at once are more than any stash holds");
    let host = Socket::from(PodSockets::host().tcp(Family::V4).unwrap());
    assert_eq!(host.mark().unwrap(), 0);
}

#[test]
fn a_panic_inside_a_namespace_comes_back() {
    let net = Net::new();
    let here = weft_inpod::Netns::current().unwrap().inode();
    let panicked = std::panic::catch_unwind(|| net.pod.run(|| panic!("inside")));
    assert!(panicked.is_err());
    assert_eq!(weft_inpod::Netns::current().unwrap().inode(), here);
    assert_eq!(net.pod.run(|| weft_inpod::Netns::current().unwrap().inode()).unwrap(), net.pod.inode());
}

#[test]
fn only_a_network_namespace_is_taken_for_one() {
    for path in ["/proc/self/ns/mnt", "/dev/null"] {
        let opened = weft_inpod::Netns::open(std::path::Path::new(path));
        let entered = opened.and_then(|ns| ns.run(|| ()));
        assert!(entered.is_err(), "{path}");
    }
    assert!(Socket::new(Domain::IPV4, Type::STREAM, None).is_ok(), "still at home");
}

/// What is older than the capture, by which excluded from it, and what the agent carries: only the first ends.
#[test]
fn a_strict_pods_older_connections_end_and_nothing_else_does() {
    for mechanism in Mechanism::ALL {
        let net = Net::new();
        let excluded = excluding("weft.dev/exclude-inbound-ports", "9090");
        let (app, kept) = (serve(&net.pod, at(POD4, 8080)), serve(&net.pod, at("0.0.0.0", 9090)));
        let outside = serve(&net.peer, at(PEER4, 80));
        let connect_to = |to| (connect(&net.peer, to).unwrap(), ());
        let (mut old, ()) = connect_to(at(POD4, 8080));
        let (mut old_app, _) = accept(&app);
        let (mut listened, ()) = connect_to(at(POD4, 8080));
        let (mut pushing, _) = accept(&app);
        let (mut direct, ()) = connect_to(at(POD4, 9090));
        let (mut direct_app, _) = accept(&kept);
        let mut called = connect(&net.pod, at(PEER4, 80)).unwrap();
        let (mut called_peer, _) = accept(&outside);

        let listeners = captured_by(mechanism, &net, &excluded);
        for (a, b) in
            [(&mut old, &mut old_app), (&mut listened, &mut pushing), (&mut direct, &mut direct_app)]
        {
            assert_talks(a, b);
        }
        let mut new = connect(&net.peer, at(POD4, 8080)).unwrap();
        let (mut ours, _) = accept(&listeners.inbound);
        assert_talks(&mut new, &mut ours);

        apply_by(mechanism, &net.pod, &CaptureConfig { strict: true, ..excluded.clone() }, Mode::Capture)
            .unwrap();
        // The caller says something, and a server whose caller only listens does.
        old.write_all(b"x").unwrap();
        assert_reset(&mut old, mechanism);
        pushing.write_all(b"x").unwrap();
        assert_reset(&mut pushing, mechanism);
        listened.set_nonblocking(true).unwrap();
        let mut byte = [0];
        assert_eq!(
            listened.read(&mut byte).map_err(|e| e.kind()),
            Err(io::ErrorKind::WouldBlock),
            "{mechanism:?}"
        );
        // Captured, excluded, or the pod's own call.
        assert_talks(&mut new, &mut ours);
        assert_talks(&mut direct, &mut direct_app);
        assert_talks(&mut called, &mut called_peer);
        let mut newer = connect(&net.peer, at(POD4, 8080)).unwrap();
        let (mut ours, _) = accept(&listeners.inbound);
        assert_talks(&mut newer, &mut ours);
    }
}

fn assert_reset(stream: &mut TcpStream, mechanism: Mechanism) {
    let error = loop {
        match stream.read(&mut [0]).expect_err("nothing is answered").kind() {
            io::ErrorKind::Interrupted => {}
            kind => break kind,
        }
    };
    assert_eq!(error, io::ErrorKind::ConnectionReset, "{mechanism:?}");
}

/// B9: UDP is in clear whatever the mode.
#[test]
fn datagrams_that_nobody_asked_for_are_dropped_where_that_is_wanted() {
    let net = Net::new();
    let bind = |ns: &weft_inpod::Netns, to: SocketAddr| {
        let socket = ns.run(|| std::net::UdpSocket::bind(to)).unwrap().unwrap();
        socket.set_read_timeout(Some(NO_ANSWER)).unwrap();
        socket
    };
    let (pod, peer) = (bind(&net.pod, at(POD4, 5000)), bind(&net.peer, at(PEER4, 53)));
    let asks = bind(&net.pod, at(POD4, 0));
    let kept = bind(&net.pod, at(POD4, 9090));
    let mut bytes = [0; 8];
    for drops in [false, true] {
        let excluded = excluding("weft.dev/exclude-inbound-ports", "9090");
        let config = CaptureConfig { strict: true, drop_udp: drops, ..excluded };
        apply(&net.pod, &config, Mode::Capture).unwrap();
        peer.send_to(b"unasked", at(POD4, 5000)).unwrap();
        assert_eq!(pod.recv(&mut bytes).is_err(), drops);
        peer.send_to(b"direct", at(POD4, 9090)).unwrap();
        assert!(kept.recv(&mut bytes).is_ok(), "excluded");
        asks.send_to(b"a query", at(PEER4, 53)).unwrap();
        let (_, from) = peer.recv_from(&mut bytes).unwrap();
        peer.send_to(b"answer", from).unwrap();
        assert!(asks.recv(&mut bytes).is_ok(), "asked for");
    }
}
