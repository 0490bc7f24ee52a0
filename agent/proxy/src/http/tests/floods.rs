//! Clients that ask for ten times as much as a budget gives.

use super::support::*;
use std::{cell::Cell, rc::Rc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use weft_core::{budget, config::AppProtocol};

/// HEADERS of `GET http://a/`, whole (RFC 7541 §6.1, §6.2.2).
fn headers(stream: u32) -> Vec<u8> {
    let mut frame = b"\0\0\x06\x01\x05".to_vec();
    frame.extend(stream.to_be_bytes());
    frame.extend(b"\x82\x86\x84\x01\x01a");
    frame
}

/// RST_STREAM, CANCEL.
fn reset(stream: u32) -> Vec<u8> {
    let mut frame = b"\0\0\x04\x03\0".to_vec();
    frame.extend(stream.to_be_bytes());
    frame.extend(8_u32.to_be_bytes());
    frame
}

/// Opens a hundred streams, waits, resets them, again and again; the streams opened until the connection was ended, and whether
/// that was said.
async fn flood(io: TcpStream, pause: Duration) -> (u32, bool) {
    let (mut read, mut write) = io.into_split();
    let ended = Rc::new(Cell::new(None));
    let told = Rc::clone(&ended);
    tokio::task::spawn_local(async move {
        let mut all = Vec::new();
        let _ = read.read_to_end(&mut all).await;
        told.set(Some(has_goaway(&all)));
    });
    write.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut next = 1;
    while ended.get().is_none() && next < 20_000 {
        let streams = (next..next + 200).step_by(2);
        next += 200;
        for frame in [headers, reset] {
            // Fails once the connection is ended.
            let _ = write.write_all(&streams.clone().flat_map(frame).collect::<Vec<_>>()).await;
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
        tokio::task::yield_now().await;
    }
    (next / 2, ended.get().unwrap_or(false))
}

fn has_goaway(mut frames: &[u8]) -> bool {
    while let [a, b, c, kind, rest @ ..] = frames {
        if *kind == 7 {
            return true;
        }
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        frames = rest.get(5 + length..).unwrap_or_default();
    }
    false
}

/// A6.
#[test]
fn a_flood_of_resets_ends_its_connection_whatever_its_pace() {
    run(async {
        for pause in [0, 1, 10, 100] {
            let quiet = App::start(|_, _| Box::pin(std::future::pending())).await;
            let app = App::named("app").await;
            let mut world = World::default();
            let victim = world.service(backend("quiet", AppProtocol::Http), &[quiet.addr]);
            let other = world.service(backend("app", AppProtocol::Http), &[app.addr]);
            let routes = vec![(prefix("/other"), rule(to(&other))), (prefix("/"), rule(to(&victim)))];
            let bed = Bed::new(world.gateway(vec![(None, routes)]));
            let gateway = bed.gateway().await;
            let flooding = Rc::new(Cell::new(true));
            let others = {
                let flooding = Rc::clone(&flooding);
                tokio::task::spawn_local(async move {
                    while flooding.get() {
                        assert_eq!(get(gateway, "/other").await, (200, "app".into()));
                    }
                })
            };
            let (streams, told) =
                flood(TcpStream::connect(gateway).await.unwrap(), Duration::from_millis(pause)).await;
            flooding.set(false);
            others.await.unwrap();
            // The bound, what was under way, and what came before the end was noticed.
            assert!(streams <= 1500, "{pause} ms: {streams} streams");
            assert!(told, "{pause} ms: no GOAWAY");
            // At most one for each.
            assert!(quiet.connections.get() <= 1500, "{pause} ms: {} connections", quiet.connections.get());
        }
    });
}

/// A6: each stream is a request under way before it is reset, so that nothing but the count over the connection's life sees it.
#[test]
fn resets_are_counted_over_the_life_of_a_connection_and_said() {
    run(async {
        let app = App::start(|_, _| Box::pin(std::future::pending())).await;
        let mut world = World::default();
        let only = world.service(backend("app", AppProtocol::Http), &[app.addr]);
        let bed = Bed::new(world.gateway(vec![(None, vec![(prefix("/"), rule(to(&only)))])]));
        let mut io = TcpStream::connect(bed.gateway().await).await.unwrap();
        io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        for n in 0..=budget::STREAM_RESETS.bound as u32 {
            io.write_all(&headers(2 * n + 1)).await.unwrap();
            while app.count() <= n as usize {
                tokio::task::yield_now().await;
            }
            io.write_all(&reset(2 * n + 1)).await.unwrap();
        }
        let mut all = Vec::new();
        let _ = io.read_to_end(&mut all).await;
        assert!(has_goaway(&all));
        let reached = bed.shared.budgets.list(None, std::time::Instant::now());
        assert!(reached.iter().any(|r| *r.budget == budget::STREAM_RESETS), "{reached:?}");
    });
}

/// HTTP/1.1 has no streams: whoever hangs up pays with a connection of its own each time.
#[test]
fn hanging_up_under_http1_is_no_flood_of_resets() {
    run(async {
        let app = App::start(|_, _| Box::pin(std::future::pending())).await;
        let mut world = World::default();
        let only = world.service(backend("app", AppProtocol::Http), &[app.addr]);
        let bed = Bed::new(world.gateway(vec![(None, vec![(prefix("/"), rule(to(&only)))])]));
        let gateway = bed.gateway().await;
        for n in 1..=20 {
            let mut io = TcpStream::connect(gateway).await.unwrap();
            io.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            while app.count() < n {
                tokio::task::yield_now().await;
            }
        }
        assert!(bed.shared.budgets.list(None, std::time::Instant::now()).is_empty());
    });
}
