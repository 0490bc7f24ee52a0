//! A pod goes from an agent of commit b0e2a24, which redirects, to this one and back with its connections alive. In real
//! namespaces with the real `nft`; needs root.
#![allow(clippy::unwrap_used)] // clippy knows #[test] functions, not the helpers of an integration test

mod support;

use socket2::{SockRef, Socket};
use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
};
use support::*;
use weft_inpod::{
    CaptureConfig, Family, HBONE_PORT, INBOUND_PORT, Listeners, Mechanism, Mode, NetnsThread, OUTBOUND_PORT,
    PodSockets, apply, open_listeners, original_dst, remove,
};

/// The rules of the old agent. Its routes are the same as ours.
fn apply_old(net: &Net) {
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rules/b0e2a24.nft");
    net.in_pod("nft", &["-f", rules.to_str().unwrap()]);
}

/// As the old agent asks: only conntrack.
fn old_original_dst(socket: &TcpStream) -> SocketAddr {
    let socket = SockRef::from(socket);
    let ipv6 =
        socket.local_addr().unwrap().as_socket_ipv6().is_some_and(|a| a.ip().to_ipv4_mapped().is_none());
    let found = if ipv6 { socket.original_dst_v6() } else { socket.original_dst_v4() };
    found.unwrap().as_socket().unwrap()
}

/// As the old holder opened them.
fn old_listeners(net: &Net) -> Listeners {
    let open = |port| weft_inpod::listen(at("::", port), false).unwrap();
    net.pod
        .run(|| Listeners {
            outbound: open(OUTBOUND_PORT),
            inbound: open(INBOUND_PORT),
            hbone: open(HBONE_PORT),
        })
        .unwrap()
}

/// One connection of each kind, both ends, with what else must live for it.
struct Alive {
    pairs: Vec<(TcpStream, TcpStream)>,
    _listeners: Vec<TcpListener>,
}

impl Alive {
    fn new(net: &Net, listeners: &Listeners, port: u16) -> Self {
        let sockets = PodSockets::pod(net.pod.clone(), NetnsThread::spawn("test-sockets", 8).unwrap());
        let (mut pairs, mut apps) = (Vec::new(), Vec::new());
        for (pod, peer, client) in [(POD4, PEER4, CLIENT4), (POD6, PEER6, CLIENT6)] {
            let app = serve(&net.pod, at(pod, port));
            let out = connect(&net.pod, at(peer, port)).unwrap();
            pairs.push((out, accept(&listeners.outbound).0));
            let inward = connect(&net.peer, at(pod, port)).unwrap();
            pairs.push((inward, accept(&listeners.inbound).0));
            let socket = Socket::from(sockets.tcp(Family::of(at(pod, 0).ip())).unwrap());
            socket.set_nonblocking(false).unwrap();
            socket.bind(&at(client, 0).into()).unwrap();
            socket.connect_timeout(&at(pod, port).into(), PATIENCE).unwrap();
            pairs.push((socket.into(), accept(&app).0));
            apps.push(app);
        }
        let mut alive = Self { pairs, _listeners: apps };
        alive.assert_talk();
        alive
    }

    fn assert_talk(&mut self) {
        for (a, b) in &mut self.pairs {
            assert_talks(a, b);
        }
    }
}

fn state(net: &Net) -> [String; 3] {
    [("nft", &["list", "ruleset"][..]), ("ip", &["rule"]), ("ip", &["-4", "route", "show", "table", "all"])]
        .map(|(program, args)| net.in_pod(program, args))
}

#[test]
fn an_upgrade_keeps_redirected_connections() {
    let net = Net::new();
    let before = state(&net);
    let listeners = old_listeners(&net);
    // For the routes, which are the old agent's too.
    apply(&net.pod, &CaptureConfig::default(), Mode::Drain).unwrap();
    apply_old(&net);
    let mut old = Alive::new(&net, &listeners, 8080);
    // One that waits while the agents change.
    let waiting = connect(&net.pod, at(PEER4, 443)).unwrap();

    listeners.make_transparent().unwrap();
    assert_eq!(apply(&net.pod, &CaptureConfig::default(), Mode::Capture).unwrap(), Mechanism::Tproxy);
    old.assert_talk();
    let mut new = Alive::new_after(&net, &listeners, 8081, &waiting);
    for (_, agent) in new.pairs.iter().take(2) {
        assert_ne!(agent.local_addr().unwrap().port(), OUTBOUND_PORT, "captured as it is");
        assert_ne!(agent.local_addr().unwrap().port(), INBOUND_PORT, "captured as it is");
    }
    // Again, as each change of the pod's annotations does, and on its way out.
    for mode in [Mode::Capture, Mode::Drain] {
        apply(&net.pod, &CaptureConfig::default(), mode).unwrap();
        old.assert_talk();
        new.assert_talk();
    }
    drop((old, new, waiting));
    remove(&net.pod).unwrap();
    assert_eq!(state(&net), before);
}

impl Alive {
    /// Takes first what waits, and then as [`Self::new`].
    fn new_after(net: &Net, listeners: &Listeners, port: u16, waiting: &TcpStream) -> Self {
        let (accepted, peer) = accept(&listeners.outbound);
        assert_eq!(peer, waiting.local_addr().unwrap());
        assert_eq!(original_dst(&accepted).unwrap(), waiting.peer_addr().unwrap());
        Self::new(net, listeners, port)
    }
}

#[test]
fn a_rollback_keeps_connections_that_were_captured_as_they_are() {
    let net = Net::new();
    let before = state(&net);
    let listeners = open_listeners(&net.pod).unwrap();
    apply(&net.pod, &CaptureConfig::default(), Mode::Capture).unwrap();
    let mut new = Alive::new(&net, &listeners, 8080);
    let app = serve(&net.pod, at(POD4, 443));
    // They wait while the agents change: the old one asks conntrack where they went.
    let waiting = [
        (connect(&net.pod, at(PEER4, 443)).unwrap(), &listeners.outbound),
        (connect(&net.pod, at(PEER6, 443)).unwrap(), &listeners.outbound),
        (connect(&net.peer, at(POD4, 443)).unwrap(), &listeners.inbound),
    ];

    apply_old(&net);
    new.assert_talk();
    for (client, listener) in &waiting {
        let (accepted, peer) = accept(listener);
        assert_eq!(peer, client.local_addr().unwrap());
        assert_eq!(old_original_dst(&accepted), client.peer_addr().unwrap());
    }
    let mut old = Alive::new(&net, &listeners, 8081);
    assert_eq!(old.pairs[0].1.local_addr().unwrap().port(), OUTBOUND_PORT, "redirected");
    new.assert_talk();
    old.assert_talk();
    drop((old, new, waiting, app));
    // As the old agent leaves: its table and its routes, which have our names.
    remove(&net.pod).unwrap();
    assert_eq!(state(&net), before);
}
