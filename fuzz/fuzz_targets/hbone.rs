//! CONNECT heads of a tunnel: nothing leads anywhere but to a port of this pod.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::net::SocketAddr;
use weft_fuzz::{Bytes, frames, loopback, planted};
use weft_proxy::fuzzing::{LOCAL, connects};

fuzz_target!(|data: &[u8]| {
    let mut input = Bytes(data);
    let mode = input.byte();
    let only = (mode & 1 == 1).then_some(80);
    let bytes = if mode & 2 == 0 { frames::connection(input.0) } else { input.0.to_vec() };
    let asked = loopback::run(connects(&bytes, only));
    for one in &asked {
        let Ok(to) = one.to else { continue };
        assert_eq!(one.method, "CONNECT");
        assert_eq!(to.ip(), LOCAL, "{one:?}");
        assert!(to.port() != 0 && ![15001, 15006, 15008].contains(&to.port()), "{one:?}");
        assert!(only.is_none_or(|port| port == to.port()), "{one:?}");
        let written = one.authority.as_deref().and_then(|a| a.parse::<SocketAddr>().ok());
        assert_eq!(written.map(|a| (a.ip().to_canonical(), a.port())), Some((to.ip(), to.port())), "{one:?}");
    }
    let admitted = |port: u16| asked.iter().any(|one| one.to.is_ok_and(|to| to.port() == port));
    planted(admitted(80) && admitted(443), "streams to two ports on one tunnel");
});
