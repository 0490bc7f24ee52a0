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
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};
use tokio::{net::TcpStream, time::error::Elapsed};

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
    /// Go on until standard input ends, instead of --count; says `calling` on standard error after the first answer
    #[arg(long)]
    pub until_eof: bool,
    /// Says on standard error when another service answers than before: `changed`, microseconds since the epoch, its name
    #[arg(long)]
    pub changes: bool,
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
    /// Connections that were opened, or tried to.
    #[serde(default)]
    pub opened: u64,
    /// Latencies in microseconds: median and 99th percentile.
    pub p50_us: u64,
    /// See `p50_us`.
    pub p99_us: u64,
    #[serde(skip)]
    latencies: Vec<u64>,
    /// Who answered last.
    #[serde(skip)]
    last: Option<String>,
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
    let target = target(&args.url)?;
    let ended = Arc::new(AtomicBool::new(false));
    if args.until_eof {
        let ended = ended.clone();
        // A thread that nobody waits for: a read of standard input cannot be taken back.
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            ended.store(true, Ordering::Relaxed);
        });
    }
    let (tally, start) = (Arc::new(Mutex::new(Tally::default())), Instant::now());
    let mut tasks = tokio::task::JoinSet::new();
    for connection in 0..args.connections.max(1) {
        let load = Load { args: args.clone(), target, start, ended: ended.clone(), tally: tally.clone() };
        tasks.spawn(load.one_connection(connection));
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

/// Where the URL points.
///
/// # Errors
/// For a URL without an IP address.
pub(crate) fn target(url: &http::Uri) -> Result<SocketAddr> {
    let authority = url.authority().context("the URL needs an address")?;
    let host = authority.host().trim_matches(['[', ']']);
    let Ok(ip) = host.parse() else { bail!("`{host}` is no IP address") };
    Ok(SocketAddr::new(ip, authority.port_u16().unwrap_or(80)))
}

/// What every connection needs.
struct Load {
    args: CallArgs,
    target: SocketAddr,
    start: Instant,
    ended: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
}

impl Load {
    async fn one_connection(self, connection: u64) {
        let connections = self.args.connections.max(1);
        let count = if self.args.until_eof { u64::MAX } else { self.args.count };
        let mut sender: Option<SendRequest<Empty<Bytes>>> = None;
        for number in (connection..count).step_by(usize::try_from(connections).unwrap_or(1)) {
            if let Some(rate) = self.args.rate {
                let due = Duration::from_secs_f64(number as f64 / rate.max(1) as f64);
                tokio::time::sleep_until((self.start + due).into()).await;
            }
            if self.ended.load(Ordering::Relaxed) {
                return;
            }
            if self.args.no_keepalive || sender.as_ref().is_some_and(SendRequest::is_closed) {
                sender = None;
            }
            let (sent, opens) = (Instant::now(), sender.is_none());
            let request = one_request(&self.args, self.target, &mut sender);
            let result = tokio::time::timeout(Duration::from_secs(30), request).await;
            if !matches!(result, Ok(Ok(_))) {
                sender = None;
            }
            self.note(result, sent, opens);
        }
    }

    fn note(&self, result: Result<Result<(u16, String)>, Elapsed>, sent: Instant, opens: bool) {
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.opened += u64::from(opens);
        match result {
            Ok(Ok((code, service))) => {
                if self.args.until_eof && tally.codes.is_empty() {
                    eprintln!("calling");
                }
                *tally.codes.entry(code).or_default() += 1;
                tally.latencies.push(u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX));
                if self.args.changes && tally.last.as_ref() != Some(&service) {
                    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                    eprintln!("changed {} {service}", now.as_micros());
                    tally.last = Some(service.clone());
                }
                let tenth = u64::try_from(self.start.elapsed().as_millis() / 100).unwrap_or(0);
                *tally.timeline.entry(tenth).or_default().entry(service.clone()).or_default() += 1;
                *tally.services.entry(service).or_default() += 1;
            }
            Ok(Err(error)) => *tally.failures.entry(format!("{error:#}")).or_default() += 1,
            Err(_) => *tally.failures.entry("no answer in 30 s".into()).or_default() += 1,
        }
    }
}

async fn one_request(
    args: &CallArgs,
    target: SocketAddr,
    sender: &mut Option<SendRequest<Empty<Bytes>>>,
) -> Result<(u16, String)> {
    let connection = match sender.as_mut() {
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

pub(crate) async fn connect(target: SocketAddr) -> Result<SendRequest<Empty<Bytes>>> {
    let stream = TcpStream::connect(target).await.with_context(|| format!("connect to {target}"))?;
    stream.set_nodelay(true)?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(sender)
}
