//! A paced HTTP client for the demo and the tests: sends requests over kept connections and tallies the answers.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, client::conn::http1::SendRequest};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::net::TcpStream;

/// What to call and how often.
#[derive(Clone, Debug, clap::Args)]
pub struct CallArgs {
    /// `http://ADDRESS[:PORT]/path`; the address must be an IP.
    pub url: http::Uri,
    /// Value of the Host header.
    #[arg(long)]
    pub host: Option<String>,
    /// `name: value` of another header; may be repeated.
    #[arg(long = "header")]
    pub headers: Vec<String>,
    /// Requests in all.
    #[arg(long, default_value_t = 1)]
    pub count: u64,
    /// Connections.
    #[arg(long, default_value_t = 4)]
    pub connections: u64,
    /// Requests a second over all connections; as fast as answers come when left out.
    #[arg(long)]
    pub rate: Option<u64>,
    /// A new connection for every request.
    #[arg(long)]
    pub no_keepalive: bool,
}

/// What came back. Printed as one JSON document.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Answers by status code.
    pub codes: BTreeMap<u16, u64>,
    /// Answers by the `x-service` header of the echo servers.
    pub services: BTreeMap<String, u64>,
    /// The same in tenths of a second since the start.
    pub timeline: BTreeMap<u64, BTreeMap<String, u64>>,
    /// Requests without an answer, by reason.
    pub failures: BTreeMap<String, u64>,
    /// Latencies in microseconds: median and 99th percentile.
    pub p50_us: u64,
    /// See `p50_us`.
    pub p99_us: u64,
    #[serde(skip)]
    latencies: Vec<u64>,
}

impl Tally {
    /// Answers with a status below 500.
    #[must_use]
    pub fn good(&self) -> u64 {
        self.codes.iter().filter(|(code, _)| **code < 500).map(|(_, n)| n).sum()
    }

    /// Everything else.
    #[must_use]
    pub fn bad(&self) -> u64 {
        self.failures.values().sum::<u64>()
            + self.codes.iter().filter(|(c, _)| **c >= 500).map(|(_, n)| n).sum::<u64>()
    }
}

/// Sends and tallies.
///
/// # Errors
/// For a URL without an IP address. Failed requests are counted, not errors.
pub async fn run(args: CallArgs) -> Result<Tally> {
    let authority = args.url.authority().context("the URL needs an address")?;
    let host = authority.host().trim_matches(['[', ']']);
    let Ok(ip) = host.parse() else { bail!("`{host}` is no IP address") };
    let target = SocketAddr::new(ip, authority.port_u16().unwrap_or(80));
    let (tally, start) = (Arc::new(Mutex::new(Tally::default())), Instant::now());
    let mut tasks = tokio::task::JoinSet::new();
    for connection in 0..args.connections.max(1) {
        tasks.spawn(one_connection(args.clone(), connection, target, start, tally.clone()));
    }
    while tasks.join_next().await.is_some() {}
    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner).clone();
    tally.latencies.sort_unstable();
    let at = |share: f64| {
        let index = (tally.latencies.len() as f64 * share) as usize;
        tally.latencies.get(index.min(tally.latencies.len().saturating_sub(1))).copied().unwrap_or(0)
    };
    (tally.p50_us, tally.p99_us) = (at(0.5), at(0.99));
    Ok(tally)
}

async fn one_connection(
    args: CallArgs,
    connection: u64,
    target: SocketAddr,
    start: Instant,
    tally: Arc<Mutex<Tally>>,
) {
    let connections = args.connections.max(1);
    let mut sender: Option<SendRequest<Empty<Bytes>>> = None;
    for number in (connection..args.count).step_by(usize::try_from(connections).unwrap_or(1)) {
        if let Some(rate) = args.rate {
            let due = Duration::from_secs_f64(number as f64 / rate.max(1) as f64);
            tokio::time::sleep_until((start + due).into()).await;
        }
        let sent = Instant::now();
        let result =
            tokio::time::timeout(Duration::from_secs(30), one_request(&args, target, &mut sender)).await;
        let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(Ok((code, service))) => {
                *tally.codes.entry(code).or_default() += 1;
                tally.latencies.push(u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX));
                let tenth = u64::try_from(start.elapsed().as_millis() / 100).unwrap_or(0);
                *tally.timeline.entry(tenth).or_default().entry(service.clone()).or_default() += 1;
                *tally.services.entry(service).or_default() += 1;
            }
            Ok(Err(error)) => {
                sender = None;
                *tally.failures.entry(format!("{error:#}")).or_default() += 1;
            }
            Err(_) => {
                sender = None;
                *tally.failures.entry("no answer in 30 s".into()).or_default() += 1;
            }
        }
        if args.no_keepalive {
            sender = None;
        }
    }
}

async fn one_request(
    args: &CallArgs,
    target: SocketAddr,
    sender: &mut Option<SendRequest<Empty<Bytes>>>,
) -> Result<(u16, String)> {
    let connection = match sender.as_mut().filter(|s| !s.is_closed()) {
        Some(connection) => connection,
        None => sender.insert(connect(target).await?),
    };
    connection.ready().await?;
    let mut request = Request::get(args.url.path_and_query().map_or("/", |p| p.as_str()))
        .header("host", args.host.clone().unwrap_or_else(|| target.to_string()))
        .header("user-agent", "weft-call");
    for header in &args.headers {
        let (name, value) = header.split_once(':').context("a header is `name: value`")?;
        request = request.header(name.trim(), value.trim());
    }
    let response = connection.send_request(request.body(Empty::new())?).await?;
    let service = response.headers().get("x-service").and_then(|v| v.to_str().ok()).unwrap_or("-").to_owned();
    let code = response.status().as_u16();
    response.into_body().collect().await?;
    Ok((code, service))
}

async fn connect(target: SocketAddr) -> Result<SendRequest<Empty<Bytes>>> {
    let stream = TcpStream::connect(target).await.with_context(|| format!("connect to {target}"))?;
    stream.set_nodelay(true)?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(sender)
}
