//! F3: captured connections keep their addresses and ports, and what follows from that. In real namespaces with the real
//! `nft`; needs root.
#![allow(clippy::unwrap_used)] // clippy knows #[test] functions, not the helpers of an integration test

mod support;

use socket2::{Domain, Socket, Type};
use std::{
    io::{self, Read},
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};
use support::*;
use weft_inpod::{
    CaptureConfig, Family, Listeners, Mechanism, Mode, NetnsThread, PodSockets, apply_by, open_listeners,
    original_dst,
};

/// Dropped packets show as a connect that does not end: this long is enough to tell.
const NO_ANSWER: Duration = Duration::from_millis(300);

fn captured_by(mechanism: Mechanism, net: &Net) -> Listeners {
    let listeners = open_listeners(&net.pod).unwrap();
    apply_by(mechanism, &net.pod, &CaptureConfig::default(), Mode::Capture).unwrap();
    listeners
}

/// The agent's connection to the application, from this address and port.
fn agent_connects(
    sockets: &PodSockets,
    from: SocketAddr,
    to: SocketAddr,
    patience: Duration,
) -> io::Result<TcpStream> {
    let socket = Socket::from(sockets.tcp(Family::of(to.ip()))?);
    socket.set_nonblocking(false)?;
    socket.set_reuse_address(true)?;
    socket.bind(&from.into())?;
    socket.connect_timeout(&to.into(), patience)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket.into())
}

/// The client's connection to the agent and the agent's to the application would be one to the kernel if they had the same
/// ports. The second does not come to be, and the first does not notice.
#[test]
fn the_agent_does_not_get_a_port_that_the_client_has() {
    for mechanism in Mechanism::ALL {
        for (client, pod) in [(CLIENT4, POD4), (CLIENT6, POD6)] {
            let net = Net::new();
            let listeners = captured_by(mechanism, &net);
            let sockets = PodSockets::pod(net.pod.clone(), NetnsThread::spawn("test-sockets", 8).unwrap());
            let (from, to) = (at(client, 40_000), at(pod, 8080));
            let app = serve(&net.pod, to);
            let mut outer = connect_as(&net.peer, from, to).unwrap();
            let mut agent = accept(&listeners.inbound).0;
            agent_connects(&sockets, from, to, NO_ANSWER).expect_err("the client has this port");

            let mut inner = agent_connects(&sockets, at(client, 61_000), to, PATIENCE).unwrap();
            let (mut accepted, seen) = accept(&app);
            assert_eq!(seen, at(client, 61_000));
            assert_talks(&mut inner, &mut accepted);
            assert_talks(&mut outer, &mut agent);

            if mechanism != Mechanism::Tproxy {
                continue; // conntrack holds on to a translation; the agent's next port does
            }
            // The agent closes first: TIME_WAIT has the client's port now, and stands in nobody's way.
            drop(agent);
            assert_eq!(outer.read(&mut [0]).unwrap(), 0);
            drop(outer);
            wait_until("no socket in TIME_WAIT", || !sockets_in(&net, "time-wait").is_empty());
            let resent = counter(&net.pod, "TCPSynRetrans");
            let mut inner = agent_connects(&sockets, from, to, PATIENCE).unwrap();
            let (mut accepted, seen) = accept(&app);
            assert_eq!(seen, from);
            assert_talks(&mut inner, &mut accepted);
            assert_eq!(counter(&net.pod, "TCPSynRetrans"), resent, "the answer came late");
        }
    }
}

/// A client that takes the port of the agent's connection in its name waits until that ends, and nobody else suffers.
#[test]
fn a_client_that_takes_the_agents_port_harms_nobody() {
    for mechanism in Mechanism::ALL {
        let net = Net::new();
        let listeners = captured_by(mechanism, &net);
        let sockets = PodSockets::pod(net.pod.clone(), NetnsThread::spawn("test-sockets", 8).unwrap());
        let (from, to) = (at(CLIENT4, 61_000), at(POD4, 8080));
        let app = serve(&net.pod, to);
        let mut inner = agent_connects(&sockets, from, to, PATIENCE).unwrap();
        let mut accepted = accept(&app).0;
        thread::scope(|scope| {
            let outer = scope.spawn(|| connect_as(&net.peer, from, to));
            wait_until("its SYN was not lost", || counter(&net.peer, "TCPSynRetrans") > 0);
            assert_talks(&mut inner, &mut accepted);
            drop((inner, accepted));
            outer.join().unwrap().expect("it comes through as soon as the port is free");
        });
        accept(&listeners.inbound);
        assert!(nobody_waits(&app));
    }
}

/// Whether any of many short connections to three destinations in turns, which the server closes first, had to send its
/// SYN twice. Few ports, so that they are soon used again.
fn a_syn_is_lost(mechanism: Mechanism) -> bool {
    const CONNECTIONS: usize = 12_000;
    let net = Net::new();
    net.in_pod("sysctl", &["-qw", "net.ipv4.ip_local_port_range=32768 33767"]);
    let listeners = captured_by(mechanism, &net);
    let destinations = [at(PEER4, 8080), at(PEER4, 8081), at("192.0.2.7", 8080)];
    thread::scope(|scope| {
        let outbound = listeners.outbound.try_clone().unwrap();
        scope.spawn(move || {
            outbound.set_nonblocking(false).unwrap();
            // The last one is the test's end.
            while original_dst(&outbound.accept().unwrap().0).unwrap() != at(PEER4, 9) {}
        });
        let lost = (0..CONNECTIONS).any(|turn| {
            let mut client = connect(&net.pod, destinations[turn % destinations.len()]).unwrap();
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
            turn % 100 == 99 && counter(&net.pod, "TCPSynRetrans") > 0
        });
        connect(&net.pod, at(PEER4, 9)).unwrap();
        lost
    })
}

/// F3: redirect folds all destinations into one address, where SYNs to one meet TIME_WAITs of another and are dropped.
#[test]
fn many_connections_to_several_destinations_do_not_disturb_each_other() {
    assert!(!a_syn_is_lost(Mechanism::Tproxy));
    assert!(a_syn_is_lost(Mechanism::Redirect), "the fault is no longer provoked: this test proves nothing");
}

/// The application calls itself by a Service: its own connection, captured, and the agent's to it, both within the pod.
#[test]
fn a_pod_that_calls_itself_by_a_service_is_served() {
    for (own, service) in [(POD4, "192.0.2.7"), (POD6, "2001:db8::7")] {
        let net = Net::new();
        let listeners = captured_by(Mechanism::Tproxy, &net);
        let sockets = PodSockets::pod(net.pod.clone(), NetnsThread::spawn("test-sockets", 8).unwrap());
        let app = serve(&net.pod, at(own, 8080));
        for port in 61_000..61_020 {
            let mut client = connect(&net.pod, at(service, 8080)).unwrap();
            let mut agent = accept(&listeners.outbound).0;
            let mut inner = agent_connects(&sockets, at(own, port), at(own, 8080), PATIENCE).unwrap();
            let mut accepted = accept(&app).0;
            assert_talks(&mut client, &mut agent);
            assert_talks(&mut inner, &mut accepted);
        }
    }
}

/// A wildcard listener of the application's takes any address: its own calls to somebody's same port must not end there.
#[test]
fn a_call_out_never_ends_at_the_applications_own_listener() {
    let net = Net::new();
    let listeners = captured_by(Mechanism::Tproxy, &net);
    let own = net.pod.run(|| Socket::new(Domain::IPV6, Type::STREAM, None)).unwrap().unwrap();
    own.bind(&at("::", 8080).into()).unwrap();
    own.listen(8).unwrap();
    let own = std::net::TcpListener::from(own);
    for to in [at(PEER4, 8080), at(PEER6, 8080)] {
        let _client = connect(&net.pod, to).unwrap();
        accept(&listeners.outbound);
        drop(connect(&net.pod, to));
        assert!(nobody_waits(&own));
    }
    drop(listeners);
    wait_until("somebody listens", || connect(&net.pod, at(PEER4, 8080)).is_err());
    assert!(nobody_waits(&own));
}
