//! E1: a port on which no socket of the application listens is refused before the handshake, by the pod's own rules. In
//! real namespaces with the real `nft`; needs root. Nobody accepts for the agent in these tests: the rules alone answer.
#![allow(clippy::unwrap_used)] // clippy knows #[test] functions, not the helpers of an integration test

mod support;

use socket2::{Domain, Socket, Type};
use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};
use support::*;
use weft_inpod::{CaptureConfig, Listeners, Mechanism, Mode, Netns, apply_by, open_listeners, original_dst};

const PORT: u16 = 8080;
/// Those that know who listens.
const KNOWING: [Mechanism; 2] = [Mechanism::Tproxy, Mechanism::RedirectListening];

fn captured_by(mechanism: Mechanism, net: &Net) -> Listeners {
    let listeners = open_listeners(&net.pod).unwrap();
    apply_by(mechanism, &net.pod, &CaptureConfig::default(), Mode::Capture).unwrap();
    listeners
}

/// How an application listens.
#[derive(Clone, Copy, Debug, Default)]
struct How {
    v6only: bool,
    reuse_port: bool,
    transparent: bool,
    /// Bound, and no more.
    silent: bool,
}

fn listen(ns: &Netns, address: &str, how: How) -> Socket {
    let address = at(address, PORT);
    let open = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(how.reuse_port)?;
        if address.is_ipv6() {
            socket.set_only_v6(how.v6only)?;
            socket.set_ip_transparent_v6(how.transparent)?;
        } else {
            socket.set_ip_transparent_v4(how.transparent)?;
        }
        socket.bind(&address.into())?;
        if !how.silent {
            socket.listen(16)?;
        }
        Ok(socket)
    };
    ns.run(open).unwrap().unwrap()
}

#[test]
fn a_dead_port_is_refused_before_the_handshake() {
    let plain = How::default();
    /// Who listens, and whether it is reached by IPv4 and IPv6.
    type Case<'a> = (&'a [(&'a str, How)], [bool; 2]);
    let cases: &[Case<'_>] = &[
        (&[], [false, false]),
        (&[("127.0.0.1", plain)], [false, false]),
        (&[("::1", plain)], [false, false]),
        (&[("0.0.0.0", plain)], [true, false]),
        (&[(POD4, plain)], [true, false]),
        (&[("::", plain)], [true, true]),
        (&[("::", How { v6only: true, ..plain })], [false, true]),
        (&[(POD6, plain)], [false, true]),
        (&[("0.0.0.0", plain), ("::", How { v6only: true, ..plain })], [true, true]),
        (&[("0.0.0.0", How { reuse_port: true, ..plain }); 3], [true, false]),
        (&[("0.0.0.0", How { transparent: true, ..plain })], [true, false]),
        (&[("::", How { transparent: true, ..plain })], [true, true]),
        (&[("0.0.0.0", How { silent: true, ..plain })], [false, false]),
    ];
    for mechanism in KNOWING {
        let net = Net::new();
        let listeners = captured_by(mechanism, &net);
        for (sockets, reached) in cases {
            let apps: Vec<Socket> = sockets.iter().map(|(to, how)| listen(&net.pod, to, *how)).collect();
            for (to, reached) in [POD4, POD6].map(|ip| at(ip, PORT)).into_iter().zip(*reached) {
                let case = format!("{mechanism:?}: {to} with {sockets:?}");
                let connected = connect(&net.peer, to);
                if reached {
                    connected.unwrap_or_else(|e| panic!("{case}: {e}"));
                    assert_eq!(original_dst(&accept(&listeners.inbound).0).unwrap(), to, "{case}");
                } else {
                    assert!(refused(connected), "{case}");
                    assert!(nobody_waits(&listeners.inbound), "{case}");
                }
            }
            for (app, _) in apps.into_iter().zip(*sockets).filter(|(_, (_, how))| !how.silent) {
                assert!(nobody_waits(&TcpListener::from(app)), "{mechanism:?} {sockets:?}: reached in clear");
            }
            until_nobody_listens(&net, PORT);
        }
    }
}

/// A connection from `from`, accepted at `listener`, which closes first: its socket is in TIME_WAIT in the pod then.
fn leave_time_wait(net: &Net, from: SocketAddr, to: SocketAddr, listener: &TcpListener) {
    let client = connect_as(&net.peer, from, to).unwrap();
    drop(accept(listener));
    let mut end = [0];
    assert_eq!(io::Read::read(&mut &client, &mut end).unwrap(), 0);
    drop(client);
    let shown = from.to_string().replace(['[', ']'], "");
    wait_until("no socket in TIME_WAIT", || {
        let [waits, lives] =
            ["time-wait", "synchronized"].map(|state| sockets_in(net, state).matches(&shown).count());
        waits == 1 && lives == 1
    });
}

/// The lookup that tells who listens finds a socket in TIME_WAIT instead, when one has just these addresses.
#[test]
fn twins_in_time_wait_change_nothing() {
    for (client, pod) in [(PEER4, POD4), (PEER6, POD6)] {
        let net = Net::new();
        let to = at(pod, PORT);
        let app = serve(&net.pod, to);
        // One of the application's own from before, and one of a captured connection.
        let (old, ours, other) = (at(client, 40_000), at(client, 40_001), at(client, 40_002));
        leave_time_wait(&net, old, to, &app);
        let listeners = captured_by(Mechanism::Tproxy, &net);
        leave_time_wait(&net, ours, to, &listeners.inbound);
        let resent = counter(&net.peer, "TCPSynRetrans");

        for from in [old, ours, other] {
            leave_time_wait(&net, from, to, &listeners.inbound);
            assert!(nobody_waits(&app), "{from}: TIME_WAIT handed the SYN to the application");
        }
        app.set_nonblocking(false).unwrap();
        close(&net, app);
        for from in [old, ours, other, at(client, 40_003)] {
            assert!(refused(connect_as(&net.peer, from, to)), "{from}: the port is dead");
        }
        assert!(nobody_waits(&listeners.inbound));
        assert_eq!(counter(&net.peer, "TCPSynRetrans"), resent, "an answer came late");
    }
}

/// With redirect, a twin may be taken for a listener; it is never let past us.
#[test]
fn twins_in_time_wait_open_nothing_with_redirect() {
    let net = Net::new();
    let (from, to) = (at(PEER4, 40_000), at(POD4, PORT));
    let app = serve(&net.pod, to);
    leave_time_wait(&net, from, to, &app);
    let listeners = captured_by(Mechanism::RedirectListening, &net);
    let _client = connect_as(&net.peer, from, to).unwrap();
    accept(&listeners.inbound);
    assert!(nobody_waits(&app));
    close(&net, app);
    assert!(refused(connect_as(&net.peer, at(PEER4, 40_001), to)), "the port is dead");
}

/// The rule rejects: it never lets a SYN on, to a listener that has come meanwhile.
#[test]
fn a_listener_that_appears_meanwhile_is_not_reached_in_clear() {
    const CONNECTS: usize = 3000;
    let net = Net::new();
    let listeners = captured_by(Mechanism::Tproxy, &net);
    let done = AtomicBool::new(false);
    let (mut captured, mut dead) = (0, 0);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // In use: a program that another test is just starting still has a copy of the last one.
                let app = net.pod.run(|| TcpListener::bind(at(POD4, PORT))).unwrap();
                thread::yield_now();
                assert!(app.is_err() || nobody_waits(&app.unwrap()), "reached in clear");
            }
        });
        for _ in 0..CONNECTS {
            match connect(&net.peer, at(POD4, PORT)) {
                Ok(_client) => {
                    accept(&listeners.inbound);
                    captured += 1;
                }
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
                    dead += 1;
                }
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(captured > 0 && dead > 0, "the race took place: {captured} captured, {dead} refused");
}
