//! A paced client for the demo and the tests: sends requests or messages over kept connections and tallies the answers.

mod http1;
mod stream;
mod tally;

pub(crate) use http1::connect;
pub use tally::{LOST, Tally};

use anyhow::{Context, Result, bail};
use http1::Http1;
use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use stream::{Grpc, Tcp};

/// The longest that an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    /// HTTP/1.1 requests.
    #[default]
    Http,
    /// Messages of one call over HTTP/2 with prior knowledge, each echoed before the next.
    Grpc,
    /// Messages of eight bytes over TCP, each echoed before the next.
    Tcp,
}

/// What to call and how often.
#[derive(Clone, Debug, clap::Args)]
pub struct CallArgs {
    /// `http://ADDRESS[:PORT]/path`; the address must be an IP.
    pub url: http::Uri,
    /// What to send there; all but `http` are streams that stay open.
    #[arg(long, value_enum, default_value_t)]
    pub protocol: Protocol,
    /// Value of the Host header.
    #[arg(long)]
    pub host: Option<String>,
    /// `name: value` of another header; may be repeated.
    #[arg(long = "header")]
    pub headers: Vec<String>,
    /// Requests (or messages) in all.
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
    /// Number HTTP requests by a header, `x-call: PREFIX-NUMBER`; the numbers of those that failed are in the tally
    #[arg(long, value_name = "PREFIX")]
    pub number: Option<String>,
    /// Print what was counted every so many seconds, and begin counting anew
    #[arg(long, value_name = "SECONDS")]
    pub report: Option<u64>,
}

impl CallArgs {
    fn path(&self) -> &str {
        self.url.path_and_query().map_or("/", |p| p.as_str())
    }

    fn headers(&self) -> Result<Vec<(&str, &str)>> {
        let pairs = self.headers.iter().map(|header| {
            let (name, value) = header.split_once(':').context("a header is `name: value`")?;
            Ok((name.trim(), value.trim()))
        });
        pairs.collect()
    }
}

/// Sends and tallies.
///
/// # Errors
/// For a URL without an IP address. Failed requests are counted, not errors.
pub async fn run(args: CallArgs) -> Result<Tally> {
    let target = target(&args.url)?;
    args.headers()?;
    let ended = Arc::new(AtomicBool::new(false));
    if args.until_eof {
        let ended = ended.clone();
        // A thread that nobody waits for: a read of standard input cannot be taken back.
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            ended.store(true, Ordering::Relaxed);
        });
    }
    let counts = Counts { tally: Arc::default(), start: Instant::now(), changes: args.changes };
    let reporting = args.report.map(|seconds| tokio::spawn(report(counts.clone(), seconds)));
    let mut tasks = tokio::task::JoinSet::new();
    for connection in 0..args.connections.max(1) {
        let load = Load { args: args.clone(), target, ended: ended.clone(), counts: counts.clone() };
        tasks.spawn(load.one_connection(connection));
    }
    while tasks.join_next().await.is_some() {}
    let Some(reporting) = reporting else {
        let mut tally = counts.lock().clone();
        tally.finish();
        return Ok(tally);
    };
    reporting.abort();
    Ok(counts.lock().take())
}

async fn report(counts: Counts, seconds: u64) {
    let mut tick = tokio::time::interval(Duration::from_secs(seconds.max(1)));
    tick.tick().await;
    loop {
        tick.tick().await;
        let mut tally = counts.lock().take();
        tally.timeline.clear(); // told by the reports themselves
        match serde_json::to_string(&tally) {
            Ok(line) => println!("{line}"),
            Err(error) => eprintln!("{error}"),
        }
    }
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

/// A request or message that was answered.
enum Answer {
    Http { code: u16, service: String },
    Message,
}

/// One that was not.
struct Failed {
    reason: String,
    /// The connection had stood.
    stood: bool,
}

impl Failed {
    fn broken(error: impl Into<anyhow::Error>) -> Self {
        Self { reason: format!("{:#}", error.into()), stood: true }
    }

    fn unconnected(error: &anyhow::Error) -> Self {
        Self { reason: format!("{error:#}"), stood: false }
    }
}

/// A connection, in use.
enum Line {
    Http(Http1),
    Grpc(Grpc),
    Tcp(Tcp),
}

impl Line {
    async fn open(args: &CallArgs, target: SocketAddr) -> Result<Self> {
        Ok(match args.protocol {
            Protocol::Http => Self::Http(Http1::connect(target).await?),
            Protocol::Grpc => Self::Grpc(Grpc::open(args, target).await?),
            Protocol::Tcp => Self::Tcp(Tcp::connect(target).await?),
        })
    }

    async fn send(&mut self, args: &CallArgs, target: SocketAddr, number: u64) -> Result<Answer, Failed> {
        match self {
            Self::Http(line) => line.request(args, target, number).await,
            Self::Grpc(line) => line.message(number).await.map(|()| Answer::Message),
            Self::Tcp(line) => line.message(number).await.map(|()| Answer::Message),
        }
    }

    /// Whether it can be used no more: `Some(true)` when the other side ended it without a word.
    fn is_over(&self) -> Option<bool> {
        match self {
            Self::Http(line) => line.is_over(),
            Self::Grpc(_) | Self::Tcp(_) => None,
        }
    }
}

/// What is counted, by all connections.
#[derive(Clone)]
struct Counts {
    tally: Arc<Mutex<Tally>>,
    start: Instant,
    /// Whether to say who answers from now on.
    changes: bool,
}

impl Counts {
    fn lock(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True for the first answer of all.
    fn note(&self, result: Result<Answer, Failed>, sent: Instant, number: u64) -> bool {
        let mut tally = self.lock();
        if matches!(result, Err(_) | Ok(Answer::Http { code: 500.., .. })) {
            tally.lose(number);
        }
        let first = tally.is_fresh();
        match result {
            Ok(answer) => {
                tally.answered(sent.elapsed());
                match answer {
                    Answer::Message => tally.messages += 1,
                    Answer::Http { code, service } => {
                        *tally.codes.entry(code).or_default() += 1;
                        let tenth = u64::try_from(self.start.elapsed().as_millis() / 100).unwrap_or(0);
                        *tally.timeline.entry(tenth).or_default().entry(service.clone()).or_default() += 1;
                        if self.changes {
                            tally.tell_change(&service);
                        }
                        *tally.services.entry(service).or_default() += 1;
                    }
                }
                first
            }
            Err(failed) => {
                tally.resets += u64::from(failed.stood);
                *tally.failures.entry(failed.reason).or_default() += 1;
                false
            }
        }
    }
}

/// What every connection needs.
struct Load {
    args: CallArgs,
    target: SocketAddr,
    ended: Arc<AtomicBool>,
    counts: Counts,
}

impl Load {
    async fn one_connection(self, connection: u64) {
        let connections = self.args.connections.max(1);
        let count = if self.args.until_eof { u64::MAX } else { self.args.count };
        let mut line: Option<Line> = None;
        for number in (connection..count).step_by(usize::try_from(connections).unwrap_or(1)) {
            if let Some(rate) = self.args.rate {
                let due = Duration::from_secs_f64(number as f64 / rate.max(1) as f64);
                tokio::time::sleep_until((self.counts.start + due).into()).await;
            }
            if self.ended.load(Ordering::Relaxed) {
                return;
            }
            if let Some(untold) = line.as_ref().and_then(Line::is_over) {
                self.counts.lock().resets += u64::from(untold && !self.args.no_keepalive);
                line = None;
            }
            if self.args.no_keepalive {
                line = None;
            }
            let sent = Instant::now();
            let result = self.one(&mut line, number).await;
            if result.is_err() {
                line = None;
            }
            if self.counts.note(result, sent, number) && self.args.until_eof {
                eprintln!("calling");
            }
        }
    }

    async fn one(&self, line: &mut Option<Line>, number: u64) -> Result<Answer, Failed> {
        let mut stands = line.is_some();
        let exchange = async {
            let line = match line {
                Some(line) => line,
                None => {
                    self.counts.lock().opened += 1;
                    let opened = Line::open(&self.args, self.target).await;
                    line.insert(opened.map_err(|error| Failed::unconnected(&error))?)
                }
            };
            stands = true;
            line.send(&self.args, self.target, number).await
        };
        let answered = tokio::time::timeout(PATIENCE, exchange).await;
        answered
            .unwrap_or_else(|_| Err(Failed { reason: format!("no answer in {PATIENCE:?}"), stood: stands }))
    }
}

#[cfg(test)]
mod tests;
