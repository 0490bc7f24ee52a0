//! Small load programs where no existing tool fits; run as `weft-bench tool NAME` inside the place under test.
//!
//! * `paced`: requests on a fixed schedule; latency counts from the moment a request was due, so a stall that delays
//!   later requests shows (wrk and h2load count from the moment of sending).
//! * `handshakes`: a full TLS handshake for every request; wrk resumes sessions.
//! * `hold`: opens connections, one request on each, and holds them idle.
//! * `h2c`: a backend that answers like a unary gRPC server.
//! * `flood`: what a hostile client sends ([`super::floods`]); `sink` reads its datagrams.
//! * `watch`: what foreign programs take from the nodes meanwhile.

use super::{
    floods::{Flood, flood, sink},
    foreign::{Watch, watch},
    load::Load,
    results::percentile,
};
use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use clap::{Args, Subcommand};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, ClientConnection, StreamOwned,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// No answer within this time is an error.
const PATIENCE: Duration = Duration::from_secs(10);

/// Our own load programs.
#[derive(Clone, Debug, Subcommand)]
pub(super) enum Tool {
    /// Requests on a fixed schedule
    Paced(Paced),
    /// A full TLS handshake for every request
    Handshakes(Handshakes),
    /// Hold idle connections until killed
    Hold(Hold),
    /// A backend that answers like a unary gRPC server
    H2c {
        /// Address to listen on
        #[arg(long)]
        listen: SocketAddr,
    },
    /// What a hostile client sends
    Flood(Flood),
    /// Reads datagrams and answers none
    Sink {
        /// Address to listen on
        #[arg(long)]
        listen: SocketAddr,
    },
    /// What foreign programs take from the nodes
    Watch(Watch),
}

/// `paced`.
#[derive(Clone, Debug, Args)]
pub(super) struct Paced {
    /// Address of the server
    #[arg(long)]
    target: SocketAddr,
    /// Path
    #[arg(long, default_value = "/")]
    path: String,
    /// Requests a second in all
    #[arg(long)]
    rate: u32,
    /// Connections, one thread each
    #[arg(long)]
    connections: u32,
    /// Seconds
    #[arg(long)]
    seconds: u64,
}

/// `handshakes`.
#[derive(Clone, Debug, Args)]
pub(super) struct Handshakes {
    /// Address of the server
    #[arg(long)]
    target: SocketAddr,
    /// Threads
    #[arg(long)]
    connections: u32,
    /// Seconds
    #[arg(long)]
    seconds: u64,
    /// Send no request: for servers that want a client certificate, which this client has not
    #[arg(long)]
    no_request: bool,
}

/// `hold`.
#[derive(Clone, Debug, Args)]
pub(super) struct Hold {
    /// Address of the server
    #[arg(long)]
    target: SocketAddr,
    /// How many
    #[arg(long)]
    connections: u32,
    /// Over TLS
    #[arg(long)]
    tls: bool,
}

/// Runs a tool.
///
/// # Errors
/// When nothing at all can be reached, or a port cannot be bound.
pub(super) fn run(tool: Tool) -> Result<()> {
    match tool {
        Tool::Paced(args) => report(&paced(&args)?),
        Tool::Handshakes(args) => report(&handshakes(&args)?),
        Tool::Hold(args) => hold(&args),
        Tool::H2c { listen } => h2c(listen),
        Tool::Flood(args) => report(&flood(&args)?),
        Tool::Sink { listen } => sink(listen),
        Tool::Watch(args) => report(&watch(&args)?),
    }
}

fn report(load: &impl serde::Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(load)?);
    Ok(())
}

fn paced(args: &Paced) -> Result<Load> {
    // Timers may be late by 50 µs by default; threads inherit this.
    fs::write("/proc/self/timerslack_ns", "1").context("timer slack")?;
    let start = Instant::now() + Duration::from_millis(20);
    let start_ns = monotonic_ns()? + start.saturating_duration_since(Instant::now()).as_nanos() as u64;
    let threads: Vec<_> = (0..args.connections)
        .map(|number| {
            let args = args.clone();
            thread::spawn(move || paced_connection(&args, number, start))
        })
        .collect();
    let (mut each, mut errors) = (Vec::new(), 0);
    for thread in threads {
        let (mut some, bad) = thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?;
        each.append(&mut some);
        errors += bad;
    }
    let ns = |d: Duration| d.as_nanos() as u64;
    let each: Vec<(u64, u64)> = each.into_iter().map(|(due, late)| (start_ns + ns(due), ns(late))).collect();
    let mut latencies: Vec<u64> = each.iter().map(|(_, latency)| *latency).collect();
    latencies.sort_unstable();
    let at = |share: f64| percentile(&latencies, share).map_or(0.0, |ns| ns as f64 / 1e3);
    Ok(Load {
        requests: latencies.len() as u64,
        errors,
        seconds: args.seconds as f64,
        p50_us: at(0.5),
        p99_us: at(0.99),
        each,
        ..Load::default()
    })
}

/// The clock that all programs of a machine share, in ns.
pub(super) fn monotonic_ns() -> Result<u64> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?;
    Ok(u64::try_from(now.tv_sec())? * 1_000_000_000 + u64::try_from(now.tv_nsec())?)
}

/// Sends every `connections`-th request of the schedule, waiting for each answer. A late answer makes the following
/// requests late, and their latency says so. Gives when each was due, from `start`, and its latency.
fn paced_connection(args: &Paced, number: u32, start: Instant) -> (Vec<(Duration, Duration)>, u64) {
    let (mut latencies, mut errors, mut stream) = (Vec::new(), 0, None);
    let total = u64::from(args.rate) * args.seconds;
    for request in (u64::from(number)..total).step_by(args.connections.max(1) as usize) {
        let after = Duration::from_secs_f64(request as f64 / f64::from(args.rate));
        let due = start + after;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if due.elapsed() > PATIENCE {
            errors += (total - request) / u64::from(args.connections.max(1)); // hopelessly behind: the rest counts as failed
            break;
        }
        let mut once = || -> Result<()> {
            let stream = match &mut stream {
                Some(stream) => stream,
                none => none.insert(connect(args.target)?),
            };
            exchange(stream, &args.path, false)
        };
        match once() {
            Ok(()) => latencies.push((after, due.elapsed())),
            Err(_) => {
                errors += 1;
                stream = None;
            }
        }
    }
    (latencies, errors)
}

fn connect(target: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// One HTTP/1.1 request and its answer, which must be a 200 with a `content-length`.
fn exchange(stream: &mut (impl Read + Write), path: &str, close: bool) -> Result<()> {
    let connection = if close { "connection: close\r\n" } else { "" };
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: bench.test\r\n{connection}\r\n").as_bytes())?;
    stream.flush()?;
    let (mut buffer, mut filled) = ([0; 16 * 1024], 0);
    let head = loop {
        let n = stream.read(&mut buffer[filled..])?;
        filled += n;
        if let Some(at) = buffer[..filled].windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        if n == 0 || filled == buffer.len() {
            bail!("no complete response head");
        }
    };
    let text = std::str::from_utf8(&buffer[..head])?.to_ascii_lowercase();
    if !text.starts_with("http/1.1 200") {
        bail!("{}", text.lines().next().unwrap_or_default());
    }
    let length = text.lines().find_map(|l| l.strip_prefix("content-length:")).context("no content-length")?;
    let mut left = length.trim().parse::<usize>()?.saturating_sub(filled - head);
    while left > 0 {
        match stream.read(&mut buffer)? {
            0 => bail!("body cut short"),
            n => left = left.saturating_sub(n),
        }
    }
    Ok(())
}

fn handshakes(args: &Handshakes) -> Result<Load> {
    let config = tls_config()?;
    let start = Instant::now();
    let threads: Vec<_> = (0..args.connections)
        .map(|_| {
            let (args, config) = (args.clone(), config.clone());
            thread::spawn(move || {
                let (mut good, mut bad) = (0, 0);
                while start.elapsed() < Duration::from_secs(args.seconds) {
                    match one_handshake(&args, &config) {
                        Ok(()) => good += 1,
                        Err(_) => bad += 1,
                    }
                }
                (good, bad)
            })
        })
        .collect();
    let mut load = Load::default();
    for thread in threads {
        let (good, bad) = thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?;
        load.requests += good;
        load.errors += bad;
    }
    load.seconds = start.elapsed().as_secs_f64();
    Ok(load)
}

fn one_handshake(args: &Handshakes, config: &Arc<ClientConfig>) -> Result<()> {
    let mut stream = tls(connect(args.target)?, config)?;
    if args.no_request {
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        return Ok(());
    }
    exchange(&mut stream, "/", true)?;
    // The server closes first, so that the port in TIME_WAIT is its own and the client never runs out of them.
    let _ = stream.sock.read(&mut [0; 256]);
    Ok(())
}

fn tls(stream: TcpStream, config: &Arc<ClientConfig>) -> Result<StreamOwned<ClientConnection, TcpStream>> {
    let name = ServerName::try_from("bench.test")?;
    Ok(StreamOwned::new(ClientConnection::new(config.clone(), name)?, stream))
}

/// TLS 1.3 with X25519 (what every peer here speaks), no resumption, any certificate.
fn tls_config() -> Result<Arc<ClientConfig>> {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    let provider = Arc::new(provider);
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// Checks the handshake's signature, as every client does, but not who signed the certificate.
#[derive(Debug)]
struct AnyCertificate(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Prints `held N` when all are open, then waits to be killed.
fn hold(args: &Hold) -> Result<()> {
    let config = tls_config()?;
    let (mut plain, mut secure) = (Vec::new(), Vec::new());
    for number in 0..args.connections {
        let stream = connect(args.target).with_context(|| format!("connection {number}"))?;
        if args.tls {
            let mut stream = tls(stream, &config)?;
            exchange(&mut stream, "/", false).with_context(|| format!("connection {number}"))?;
            secure.push(stream);
        } else {
            let mut stream = stream;
            exchange(&mut stream, "/", false).with_context(|| format!("connection {number}"))?;
            plain.push(stream);
        }
    }
    println!("held {}", plain.len() + secure.len());
    loop {
        thread::park();
    }
}

fn h2c(listen: SocketAddr) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let listener = tokio::net::TcpListener::bind(listen).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let service = hyper::service::service_fn(unary);
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .max_concurrent_streams(1000)
                .serve_connection(TokioIo::new(stream), service);
            tokio::task::spawn_local(connection);
        }
    })
}

/// A message of 128 bytes, or of 64 KiB for `/64k`, and the trailers of a successful call.
async fn unary(
    request: hyper::Request<hyper::body::Incoming>,
) -> Result<hyper::Response<impl hyper::body::Body<Data = Bytes, Error = std::convert::Infallible>>> {
    static MESSAGE: [u8; 133] = {
        let mut message = [b'x'; 133];
        (message[0], message[1], message[2], message[3], message[4]) = (0, 0, 0, 0, 128);
        message
    };
    static LARGE: [u8; 64 << 10] = [0; 64 << 10];
    let body = if request.uri().path() == "/64k" { &LARGE[..] } else { &MESSAGE[..] };
    request.into_body().collect().await?;
    let trailers = async {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
        Some(Ok(trailers))
    };
    let body = Full::new(Bytes::from_static(body)).with_trailers(trailers);
    Ok(hyper::Response::builder().header("content-type", "application/grpc").body(body)?)
}
