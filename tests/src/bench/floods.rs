//! What a hostile client sends, as `weft-bench tool flood KIND`: half heads, streams that nobody reads, resets, datagrams.
//!
//! A flood goes on for as long as it is told, opens again what the other side closes, and prints how much it did: opened
//! connections, streams or datagrams. It reads what comes, as a client must that wants to keep the other side busy.

use super::load::Load;
use anyhow::{Context as _, Result, ensure};
use clap::{Args, Subcommand};
use std::{
    cell::Cell,
    collections::VecDeque,
    net::{SocketAddr, UdpSocket},
    rc::Rc,
    thread,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    task::LocalSet,
    time::{sleep, sleep_until, timeout_at},
};

/// How long a client waits before it opens again what was closed or refused.
const AGAIN: Duration = Duration::from_millis(50);
/// Streams of one connection that wait for their reset.
const UNRESET_MAX: usize = 100;

/// Where a flood goes, and how long.
#[derive(Clone, Debug, Args)]
pub(super) struct Flood {
    /// Address of the server
    #[arg(long)]
    target: SocketAddr,
    /// Seconds
    #[arg(long)]
    seconds: u64,
    /// What
    #[command(subcommand)]
    kind: Kind,
}

#[derive(Clone, Debug, Subcommand)]
enum Kind {
    /// Heads of requests that never end
    HalfSent {
        /// Connections at once
        #[arg(long)]
        connections: u32,
    },
    /// HTTP/2 streams whose answers may not be sent
    Windows {
        /// Connections at once
        #[arg(long)]
        connections: u32,
        /// Streams on each
        #[arg(long)]
        streams: u32,
    },
    /// HTTP/2 streams that are reset
    Resets {
        /// Connections at once
        #[arg(long)]
        connections: u32,
        /// Milliseconds between a stream's HEADERS and its RST_STREAM
        #[arg(long)]
        pause_ms: u64,
    },
    /// Datagrams, each from a port of its own
    Datagrams {
        /// A second
        #[arg(long)]
        rate: u32,
    },
}

/// Floods.
///
/// # Errors
/// When nothing at all could be sent.
pub(super) fn flood(args: &Flood) -> Result<Load> {
    let start = Instant::now();
    let end = start + Duration::from_secs(args.seconds);
    let done = match args.kind {
        Kind::Datagrams { rate } => datagrams(args.target, rate, start, end)?,
        Kind::HalfSent { connections } => many(connections, end, |done| half_sent(args.target, done))?,
        Kind::Windows { connections, streams } => {
            many(connections, end, |done| windows(args.target, streams, done))?
        }
        Kind::Resets { connections, pause_ms } => {
            let pause = Duration::from_millis(pause_ms);
            many(connections, end, |done| resets(args.target, pause, done))?
        }
    };
    ensure!(done > 0, "the flood reached nothing at {}", args.target);
    Ok(Load { requests: done, seconds: start.elapsed().as_secs_f64(), ..Load::default() })
}

/// How much was done so far.
type Done = Rc<Cell<u64>>;

/// So many connections at once until the end, each opened again when it ended.
fn many<F: Future<Output = Result<()>> + 'static>(
    connections: u32,
    end: Instant,
    one: impl Fn(Done) -> F,
) -> Result<u64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = Done::default();
    let (one, counted) = (&one, done.clone());
    let all = async move {
        let each = (0..connections).map(|_| {
            let counted = counted.clone();
            async move {
                loop {
                    let _ = one(counted.clone()).await; // closed, refused: that is the answer
                    sleep(AGAIN).await;
                }
            }
        });
        futures_util::future::join_all(each).await
    };
    // Runs out by the clock; nothing of it ends by itself.
    let _ = LocalSet::new().block_on(&runtime, async { timeout_at(end.into(), all).await });
    Ok(done.get())
}

async fn connect(target: SocketAddr) -> Result<TcpStream> {
    let stream = TcpSocket::new_v4()?.connect(target).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn count(done: &Done, more: u64) {
    done.set(done.get() + more);
}

/// Reads until the other side closes.
async fn drain(mut from: impl tokio::io::AsyncRead + Unpin) -> Result<()> {
    let mut buffer = [0; 4096];
    while from.read(&mut buffer).await? > 0 {}
    Ok(())
}

async fn half_sent(target: SocketAddr, done: Done) -> Result<()> {
    let mut stream = connect(target).await?;
    stream.write_all(b"GET /1k HTTP/1.1\r\nhost: bench.test\r\nx-half: ").await?;
    count(&done, 1);
    drain(stream).await
}

/// The connection preface and SETTINGS that let each stream have so many bytes of data (RFC 9113 §3.4, §6.5.2).
fn preface(window: u32) -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let setting = [&4_u16.to_be_bytes()[..], &window.to_be_bytes()].concat();
    frame(&mut bytes, 4, 0, 0, &setting);
    // Ours to acknowledge whenever theirs come: an acknowledgement that is early says no less.
    frame(&mut bytes, 4, 1, 0, &[]);
    bytes
}

/// One frame (RFC 9113 §4.1).
fn frame(into: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or_default().to_be_bytes();
    into.extend_from_slice(&length[1..]);
    into.extend_from_slice(&[kind, flags]);
    into.extend_from_slice(&stream.to_be_bytes());
    into.extend_from_slice(payload);
}

/// HEADERS of `GET /64k`, which end the stream and the head. Static entries and two literals (RFC 7541 §6.1, §6.2.2).
fn headers(into: &mut Vec<u8>, stream: u32) {
    let mut block = vec![0x82, 0x86];
    for (index, value) in [(4, "/64k"), (1, "bench.test")] {
        block.extend_from_slice(&[index, u8::try_from(value.len()).unwrap_or_default()]);
        block.extend_from_slice(value.as_bytes());
    }
    frame(into, 1, 0x4 | 0x1, stream, &block);
}

async fn windows(target: SocketAddr, streams: u32, done: Done) -> Result<()> {
    let mut stream = connect(target).await?;
    let mut bytes = preface(0);
    for number in 0..streams {
        headers(&mut bytes, 2 * number + 1);
    }
    stream.write_all(&bytes).await?;
    count(&done, u64::from(streams));
    drain(stream).await
}

async fn resets(target: SocketAddr, pause: Duration, done: Done) -> Result<()> {
    let (read, mut write) = connect(target).await?.into_split();
    write.write_all(&preface(65_535)).await?;
    let reading = drain(read);
    let writing = async {
        let (mut next, mut open) = (1_u32, VecDeque::<(u32, tokio::time::Instant)>::new());
        loop {
            let mut bytes = Vec::new();
            // With no pause both frames go out together, in packets of many.
            while open.len() < UNRESET_MAX {
                headers(&mut bytes, next);
                if pause.is_zero() {
                    frame(&mut bytes, 3, 0, next, &8_u32.to_be_bytes());
                    count(&done, 1);
                    if bytes.len() > 4096 {
                        break;
                    }
                } else {
                    open.push_back((next, tokio::time::Instant::now() + pause));
                }
                next = next.checked_add(2).filter(|id| *id < 1 << 31).context("no more streams")?;
            }
            write.write_all(&bytes).await?;
            let Some((_, due)) = open.front().copied() else { continue };
            sleep_until(due).await;
            let mut bytes = Vec::new();
            while let Some((id, _)) = open.front().copied().filter(|(_, at)| *at <= due) {
                open.pop_front();
                frame(&mut bytes, 3, 0, id, &8_u32.to_be_bytes());
                count(&done, 1);
            }
            write.write_all(&bytes).await?;
        }
    };
    tokio::select! {
        ended = reading => ended,
        failed = writing => failed,
    }
}

/// Datagrams on a schedule, in bursts of five milliseconds' worth.
fn datagrams(target: SocketAddr, rate: u32, start: Instant, end: Instant) -> Result<u64> {
    let mut sent = 0;
    while Instant::now() < end {
        let due = (start.elapsed().as_secs_f64() * f64::from(rate)) as u64;
        for _ in sent..due {
            // A new socket has a new port: a source that was never there before.
            UdpSocket::bind("0.0.0.0:0")?.send_to(b"flood", target)?;
        }
        sent = sent.max(due);
        thread::sleep(Duration::from_millis(5));
    }
    Ok(sent)
}

/// Reads datagrams and answers none.
///
/// # Errors
/// When the port cannot be bound.
pub(super) fn sink(listen: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(listen)?;
    // Who starts servers waits for a TCP port.
    let _waited_for = std::net::TcpListener::bind(listen)?;
    let mut buffer = [0; 2048];
    loop {
        socket.recv(&mut buffer)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is sent is HTTP/2: another implementation reads all of it.
    #[tokio::test]
    async fn the_frames_are_what_a_server_understands() -> Result<()> {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let mut bytes = preface(0);
        headers(&mut bytes, 1);
        headers(&mut bytes, 3);
        frame(&mut bytes, 3, 0, 3, &8_u32.to_be_bytes());
        client.write_all(&bytes).await?;
        let mut server = h2::server::handshake(server).await?;
        let (request, _answer) = server.accept().await.context("no stream")??;
        ensure!(request.uri().path() == "/64k" && request.uri().authority().is_some(), "{request:?}");
        drop(client);
        // The second was reset before anybody took it, or is there and reset.
        if let Some(second) = server.accept().await {
            let body = second.map(|(request, _)| request.into_body());
            if let Ok(mut body) = body {
                ensure!(body.data().await.is_none_or(|d| d.is_err()));
            }
        }
        Ok(())
    }
}
