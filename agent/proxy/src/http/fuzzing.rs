//! The real server between pipes, for the fuzz targets `http1` and `http2`.

#[path = "tests/support.rs"]
#[allow(dead_code)] // the tests' own
mod support;

use super::{HttpConn, HttpVersion, serve};
use crate::{
    context::{Limits, Peer},
    dial::{Dial, Upstream, UpstreamInfo},
    error::ProxyError,
    workload::LocalWorkload,
};
use std::{cell::Cell, net::SocketAddr, rc::Rc, time::Duration};
use support::{Bed, World, at_gateway, prefix, rule, to};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::oneshot,
    time::{sleep, timeout},
};
use weft_core::{
    config::{AppProtocol, Config, Endpoint},
    model::{Match, PathMatch},
};

/// The endpoint behind the rule of `/`.
pub const PUBLIC: ([u8; 4], u16) = ([192, 0, 2, 1], 80);
/// The endpoint behind the prefix `/admin`.
pub const ADMIN: ([u8; 4], u16) = ([192, 0, 2, 2], 80);
/// The endpoint behind exactly `/exact`.
pub const EXACT: ([u8; 4], u16) = ([192, 0, 2, 3], 80);

/// Room in each pipe: most inputs go in at once.
const PIPE: usize = 16 * 1024;
/// After this time without a word the client goes away: longer than any answer takes, since the upstreams answer at once.
const PATIENCE: Duration = Duration::from_secs(45);
/// More than any deadline of a server with nobody at the other end. Time stands still while anything can go on.
const HANG: Duration = Duration::from_secs(3600);

/// What became of a connection.
#[derive(Clone, Debug, Default)]
pub struct Served {
    /// What the client got.
    pub answer: Vec<u8>,
    /// Requests that the server has counted, by telemetry.
    pub counted: u64,
    /// Connections to upstreams.
    pub dials: u32,
}

/// Gives one end of a pipe, and the other to the target's upstream.
struct Pipes<F> {
    upstream: F,
    dials: Rc<Cell<u32>>,
}

impl<F: Fn(SocketAddr, DuplexStream) + 'static> Dial for Pipes<F> {
    type Io = DuplexStream;

    async fn dial(
        &self,
        _: &Rc<LocalWorkload<DuplexStream>>,
        endpoint: &Endpoint,
        _: bool,
    ) -> Result<Upstream<DuplexStream>, ProxyError> {
        self.dials.set(self.dials.get() + 1);
        let (near, far) = duplex(PIPE);
        (self.upstream)(endpoint.addr, far);
        Ok(Upstream { io: near, info: UpstreamInfo::plain(endpoint.addr) })
    }
}

/// Sends `bytes` to a Gateway, in two pieces if `cut` is within them, and says what became of it. Run it on a local runtime
/// whose clock is paused.
pub async fn serve_bytes(
    bytes: &[u8],
    cut: usize,
    version: Option<HttpVersion>,
    upstream: impl Fn(SocketAddr, DuplexStream) + 'static,
) -> Served {
    let dials = Rc::<Cell<u32>>::default();
    let pipes = Pipes { upstream, dials: dials.clone() };
    let bed =
        Bed::around(Limits::default(), CONFIG.with(Config::clone), (pipes, dials.clone(), Rc::default()));
    let (mut client, io) = duplex(PIPE);
    let conn = HttpConn {
        http: bed.http.clone(),
        local: bed.local.clone(),
        peer: Peer { ip: [198, 51, 100, 7].into(), port: 40_000 },
        entrance: at_gateway(),
    };
    let (ended, end) = oneshot::channel::<()>();
    bed.share.spawn(async move {
        serve(io, version, conn).await;
        drop(ended);
    });
    let (first, second) = bytes.split_at(cut.min(bytes.len()));
    let mut answer = Vec::new();
    let talk = async {
        for piece in [first, second] {
            if client.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        // To the end of what is said, or of patience.
        while let Ok(Ok(1..)) = timeout(PATIENCE, client.read_buf(&mut answer)).await {}
        drop(client);
        // An error is the end that is waited for.
        let _ = end.await;
        // What the connection's end has cancelled is told to its tasks.
        sleep(PATIENCE).await;
    };
    timeout(HANG, talk).await.expect("the connection hangs");
    Served { answer, counted: counted(&bed.metrics()), dials: dials.get() }
}

/// All requests, whatever became of them.
fn counted(metrics: &str) -> u64 {
    let values = metrics.lines().filter(|line| line.starts_with("weft_requests_total{"));
    values.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

thread_local! {
    /// `/exact`, `/admin` and everything else have an endpoint each.
    static CONFIG: Config = {
        let mut world = World::default();
        let mut service = |name: &str, at: ([u8; 4], u16)| {
            world.service(support::backend(name, AppProtocol::Http), &[at.into()])
        };
        let (public, admin, exact) = (service("public", PUBLIC), service("admin", ADMIN), service("exact", EXACT));
        let exactly = Match { path: Some(PathMatch::Exact("/exact".into())), ..Match::default() };
        let routes =
            vec![(prefix("/"), rule(to(&public))), (prefix("/admin"), rule(to(&admin))), (exactly, rule(to(&exact)))];
        world.gateway(vec![(None, routes)])
    };
}
