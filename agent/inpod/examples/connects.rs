//! How many new connections a second a captured pod can make and take, and what CPU each costs: three destinations in
//! turns, the server closing first, as with `Connection: close`. In namespaces of its own; needs root.
//!
//!     cargo run --release -p weft-inpod --example connects -- (out|in) (tproxy|redirect|b0e2a24|none) SECONDS
#![allow(clippy::unwrap_used)] // a tool for developers, which may panic

#[path = "../tests/support/mod.rs"]
mod support;

use nix::sys::resource::{UsageWho, getrusage};
use std::{
    io::Read,
    net::TcpListener,
    thread,
    time::{Duration, Instant},
};
use support::*;
use weft_inpod::{CaptureConfig, Listeners, Mechanism, Mode, Netns, apply_by, open_listeners};

/// Rates are shown for each so long.
const WINDOW: Duration = Duration::from_secs(5);
const PORTS: [u16; 3] = [8080, 8081, 8082];

fn capture(net: &Net, how: &str) -> Option<Listeners> {
    let mechanism = match how {
        "none" => return None,
        "tproxy" => Mechanism::Tproxy,
        _ => Mechanism::Redirect,
    };
    let listeners = open_listeners(&net.pod).unwrap();
    apply_by(mechanism, &net.pod, &CaptureConfig::default(), Mode::Capture).unwrap();
    if how == "b0e2a24" {
        net.in_pod("nft", &["-f", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/rules/b0e2a24.nft")]);
    }
    Some(listeners)
}

/// Accepts and closes, for ever.
fn close_all(listener: &TcpListener) {
    let listener = listener.try_clone().unwrap();
    listener.set_nonblocking(false).unwrap();
    thread::spawn(move || while listener.accept().is_ok() {});
}

fn cpu() -> Duration {
    let used = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let of = |time: nix::sys::time::TimeVal| {
        Duration::new(u64::try_from(time.tv_sec()).unwrap(), u32::try_from(time.tv_usec()).unwrap() * 1000)
    };
    of(used.user_time()) + of(used.system_time())
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [direction, how, seconds] = &args[..] else {
        panic!("(out|in) (tproxy|redirect|b0e2a24|none) SECONDS")
    };
    let seconds = Duration::from_secs(seconds.parse().unwrap());
    let net = Net::new();
    let outward = direction == "out";
    let (client, server, address): (&Netns, &Netns, _) =
        if outward { (&net.pod, &net.peer, PEER4) } else { (&net.peer, &net.pod, POD4) };
    let servers = PORTS.map(|port| serve(server, at(address, port)));
    servers.iter().for_each(close_all);
    let listeners = capture(&net, how);
    if let Some(listeners) = &listeners {
        close_all(if outward { &listeners.outbound } else { &listeners.inbound });
    }
    let (start, mut window) = (Instant::now(), Instant::now());
    let (mut all, mut in_window, used) = (0_u32, 0_u32, cpu());
    while start.elapsed() < seconds {
        let to = at(address, PORTS[usize::try_from(all).unwrap() % PORTS.len()]);
        let mut stream = connect(client, to).unwrap();
        let _ = stream.read(&mut [0]); // its end
        (all, in_window) = (all + 1, in_window + 1);
        if window.elapsed() >= WINDOW {
            print!("{:.0} ", f64::from(in_window) / window.elapsed().as_secs_f64());
            (window, in_window) = (Instant::now(), 0);
        }
    }
    let each = (cpu() - used).as_secs_f64() * 1e6 / f64::from(all);
    println!(
        "\n{direction} {how}: {all} connections, {each:.1} µs of CPU each, {} SYNs sent again, {} entries of conntrack",
        counter(client, "TCPSynRetrans"),
        net.in_pod("cat", &["/proc/sys/net/netfilter/nf_conntrack_count"]).trim(),
    );
}
