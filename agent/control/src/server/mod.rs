//! The controller's side: agents' streams and the CA's issuing service, on one port.

mod agents;
mod certificate;
mod listen;
mod session;
mod sign;
mod standing;

use std::{collections::BTreeMap, convert::Infallible, fmt, io, net::IpAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Status, body::Body, metadata::MetadataMap};
use tonic_prost::ProstCodec;
use weft_certs::{Ca, Clock, SystemClock};
use weft_core::{
    budget,
    model::{SpiffeId, Str},
};

use self::{agents::Registry, certificate::Resolver, listen::Places, standing::Standing};
use crate::{
    auth::{Authenticate, Authorize, Caller, Denied, Refusal},
    delta::Bounds,
    door::{Budgets, Door},
    istio,
    quota::{Quota, Quotas},
    report::Materials,
    wire,
};

pub use self::agents::{AgentReport, Agents};

/// Bounds and times of a server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections of agents at once. 12,000. Those of strangers have budgets of their own.
    pub connections: usize,
    /// The same from one address: an agent needs one, and one more while it is replaced. 16.
    pub connections_per_address: usize,
    /// HTTP/2 streams at once on a connection. 64.
    pub streams: u32,
    /// For TLS and for the token check, each. 10 s.
    pub step: Duration,
    /// How long a connection may stand on which no call has shown a good token. 15 s.
    pub stranger: Duration,
    /// How long a request for a Gateway's identity may come before the world says that the node serves it. 2 s.
    pub early: Duration,
    /// For a stream's first message. 10 s.
    pub hello: Duration,
    /// How long a message may wait for a slow reader. 30 s.
    pub send: Duration,
    /// How long a stream may say nothing; agents say something every 10 s. 45 s.
    pub quiet: Duration,
    /// How long a stream lives before its token is checked anew. 30 min.
    pub stream_life: Duration,
    /// How long an agent counts after its stream has ended. 10 s.
    pub gone: Duration,
    /// What is kept of one agent's report.
    pub report: Bounds,
    /// Certificates signed at once for one node. 2.
    pub signing_per_node: usize,
    /// Requests of one node that may wait. 64.
    pub waiting_per_node: usize,
    /// Certificates for one node: so many at once... 512.
    pub burst_per_node: u32,
    /// ...and so many a second after that. 32.
    pub rate_per_node: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 12_000,
            connections_per_address: 16,
            streams: 64,
            step: Duration::from_secs(10),
            stranger: Duration::from_secs(15),
            early: Duration::from_secs(2),
            hello: Duration::from_secs(10),
            send: Duration::from_secs(30),
            quiet: Duration::from_secs(45),
            stream_life: Duration::from_secs(30 * 60),
            gone: Duration::from_secs(20),
            report: Bounds { entries: 20_000, bytes: 8 << 20 },
            signing_per_node: 2,
            waiting_per_node: 64,
            burst_per_node: 512,
            rate_per_node: 32,
        }
    }
}

/// What a server needs.
pub struct ServerConfig {
    /// The CA; none as long as there is none. A new one also changes the server's own certificate.
    pub ca: watch::Receiver<Option<Arc<Ca>>>,
    /// Who calls.
    pub authenticate: Arc<dyn Authenticate>,
    /// What it may have.
    pub authorize: Arc<dyn Authorize>,
    /// What each node's agent needs.
    pub materials: watch::Receiver<Arc<Materials>>,
    /// Service accounts (namespace, name) that may act as agents.
    pub agents: Vec<(Str, Str)>,
    /// The controller's own identity.
    pub identity: SpiffeId,
    /// DNS names of the server's certificate.
    pub names: Vec<String>,
    /// Version of this build, told to agents.
    pub version: String,
    /// Bounds and times.
    pub limits: Limits,
    /// Where the time of certificates comes from.
    pub clock: Arc<dyn Clock>,
}

impl ServerConfig {
    /// The installation's names: namespace `weft-system`, service accounts `weft-agent` and `weft-controller`.
    #[must_use]
    pub fn new(
        trust_domain: &str,
        ca: watch::Receiver<Option<Arc<Ca>>>,
        authenticate: Arc<dyn Authenticate>,
        authorize: Arc<dyn Authorize>,
        materials: watch::Receiver<Arc<Materials>>,
    ) -> Self {
        let name = "weft-controller.weft-system.svc";
        Self {
            ca,
            authenticate,
            authorize,
            materials,
            agents: vec![("weft-system".into(), "weft-agent".into())],
            identity: SpiffeId::new(trust_domain, "weft-system", "weft-controller"),
            names: vec![name.to_owned(), format!("{name}.cluster.local")],
            version: env!("CARGO_PKG_VERSION").to_owned(),
            limits: Limits::default(),
            clock: Arc::new(SystemClock),
        }
    }
}

/// Whether this replica answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leading {
    /// It does.
    pub leader: bool,
    /// Who does, if known.
    pub holder: Str,
}

/// The server. Cheap to clone; clones are the same server.
#[derive(Clone)]
pub struct ControlServer {
    shared: Arc<Shared>,
}

impl ControlServer {
    /// A server that does not lead yet: it answers UNAVAILABLE.
    #[must_use]
    pub fn new(config: ServerConfig) -> Self {
        let limits = config.limits;
        let shared = Shared {
            leading: watch::Sender::new(Leading::default()),
            registry: Registry::new(limits.gone),
            quotas: Quotas::new(Quota {
                at_once: limits.signing_per_node,
                waiting: limits.waiting_per_node,
                burst: limits.burst_per_node,
                rate: limits.rate_per_node,
            }),
            door: Door::new(Budgets {
                all: &budget::AGENT_STRANGERS,
                address: &budget::AGENT_STRANGERS_PER_ADDRESS,
            }),
            places: Places::new(limits.connections, limits.connections_per_address),
            reviews: Quotas::new(REVIEWS),
            authentications: Semaphore::new(AUTHENTICATIONS),
            counters: Counters::default(),
            logged: Quotas::new(LOGGED),
            resolver: Arc::new(Resolver::default()),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            config,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Says whether this replica answers. When it ceases to lead, every stream ends.
    pub fn set_leading(&self, leading: Leading) {
        self.shared.leading.send_if_modified(|now| {
            let changed = *now != leading;
            *now = leading;
            changed
        });
    }

    /// The agents that are connected, or were less than [`Limits::gone`] ago.
    #[must_use]
    pub fn agents(&self) -> watch::Receiver<Arc<Agents>> {
        self.shared.registry.subscribe()
    }

    /// What has happened so far, by word: `signed`, `refused_<reason>`, `streams`, `dropped_<reason>`.
    #[must_use]
    pub fn counters(&self) -> BTreeMap<String, u64> {
        self.shared.counters.0.lock().clone()
    }

    /// Strangers, and tokens that are asked about now.
    #[cfg(test)]
    pub(crate) fn under_way(&self) -> (usize, usize) {
        (self.shared.door.strangers(), AUTHENTICATIONS - self.shared.authentications.available_permits())
    }

    /// How often each budget of strangers was reached, by its name.
    #[must_use]
    pub fn reached(&self) -> BTreeMap<&'static str, u64> {
        let refused = self.shared.counters.0.lock().get("refused_token_review_too_many").copied();
        let reviews = (budget::AGENT_REVIEWS.name, refused.unwrap_or_default());
        self.shared.door.reached().into_iter().chain([reviews]).collect()
    }

    /// Serves until `stop`, then ends every stream and waits up to [`Limits::step`] for connections to close.
    /// To be called once.
    ///
    /// # Errors
    /// When the listener fails or TLS cannot be set up.
    pub async fn serve(&self, listener: TcpListener, stop: CancellationToken) -> io::Result<()> {
        let shared = &self.shared;
        let limits = shared.config.limits;
        let tls = certificate::tls_config(shared.resolver.clone()).map_err(io::Error::other)?;
        let mut helpers = JoinSet::new();
        helpers.spawn(certificate::keep(shared.clone()));
        helpers.spawn({
            let shared = shared.clone();
            async move { shared.registry.publish().await }
        });
        let connections = listen::accept(&mut helpers, shared.clone(), listener, tls);
        let service = tower::service_fn({
            let shared = shared.clone();
            move |request| {
                let shared = shared.clone();
                async move { Ok::<_, Infallible>(dispatch(shared, request).await) }
            }
        });
        let serving = tonic::transport::Server::builder()
            .max_concurrent_streams(limits.streams)
            .http2_keepalive_interval(Some(Duration::from_secs(10)))
            .http2_keepalive_timeout(Some(Duration::from_secs(20)))
            .http2_max_header_list_size(16 * 1024)
            .serve_with_incoming_shutdown(service, connections, stop.clone().cancelled_owned());
        let drained = async {
            stop.cancelled().await;
            shared.stop.cancel();
            shared.tasks.close();
            tokio::time::sleep(limits.step).await;
        };
        let outcome = tokio::select! {
            outcome = serving => outcome.map_err(io::Error::other),
            () = drained => Ok(()),
        };
        shared.stop.cancel();
        shared.tasks.close();
        // Sessions end by `stop`; a bound all the same.
        let _ = timeout(limits.step, shared.tasks.wait()).await;
        helpers.shutdown().await;
        outcome
    }
}

impl fmt::Debug for ControlServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlServer").field("counters", &self.counters()).finish_non_exhaustive()
    }
}

/// Token checks at once: each costs a question to the API server.
const AUTHENTICATIONS: usize = 32;
/// Those of one address. An agent asks for many certificates at once with a token that nobody knows yet: all but the first
/// calls wait, and find it known.
const REVIEWS: Quota =
    Quota { at_once: 2, waiting: 128, burst: 64, rate: budget::AGENT_REVIEWS.size() as u32 };
/// Refusals of strangers that are logged one after another, and how many a second after that; all are counted.
const LOGGED: Quota = Quota { at_once: 0, waiting: 0, burst: 64, rate: 1 };
/// The largest message from an agent, in bytes: a chunk and one large entry.
const UP_MAX: usize = 2 << 20;
/// The largest certificate request, in bytes.
const REQUEST_MAX: usize = 64 * 1024;

struct Shared {
    config: ServerConfig,
    leading: watch::Sender<Leading>,
    registry: Registry,
    quotas: Quotas<Str>,
    door: Door,
    places: Places,
    reviews: Quotas<IpAddr>,
    authentications: Semaphore,
    counters: Counters,
    logged: Quotas<()>,
    resolver: Arc<Resolver>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// Counts by word.
#[derive(Default)]
struct Counters(Mutex<BTreeMap<String, u64>>);

impl Counters {
    fn count(&self, what: &str) {
        let mut all = self.0.lock();
        match all.get_mut(what) {
            Some(count) => *count += 1,
            None => {
                all.insert(what.to_owned(), 1);
            }
        }
    }
}

/// One call. Nothing of its body is read before the caller is known.
async fn dispatch(shared: Arc<Shared>, request: http::Request<Body>) -> http::Response<Body> {
    let path = request.uri().path();
    if path != wire::CONNECT && path != istio::CREATE_CERTIFICATE {
        return Status::unimplemented(format!("there is no {path}")).into_http();
    }
    // The server puts it there, for every connection that it has accepted.
    let Some(standing) = request.extensions().get::<Arc<Standing>>().cloned() else {
        return Status::internal("a call without a connection").into_http();
    };
    let caller = match admit(&shared, request.headers(), &standing).await {
        Ok(caller) => caller,
        Err(status) => return status.into_http(),
    };
    if path == wire::CONNECT {
        let mut grpc = tonic::server::Grpc::new(ProstCodec::<wire::Down, wire::Up>::default())
            .max_decoding_message_size(UP_MAX);
        let connect =
            tower::service_fn(move |request| session::connect(shared.clone(), caller.clone(), request));
        grpc.streaming::<_, Body>(connect, request).await
    } else {
        let codec = ProstCodec::<istio::IstioCertificateResponse, istio::IstioCertificateRequest>::default();
        let mut grpc = tonic::server::Grpc::new(codec).max_decoding_message_size(REQUEST_MAX);
        let create = tower::service_fn(move |request| sign::create(shared.clone(), caller.clone(), request));
        grpc.unary::<_, Body>(create, request).await
    }
}

/// The response stream of `Connect`.
type Downs = ReceiverStream<Result<wire::Down, Status>>;

/// Lets an agent in: we lead, its token is good, and its service account is one of agents.
async fn admit(shared: &Shared, headers: &http::HeaderMap, standing: &Standing) -> Result<Caller, Status> {
    let leading = shared.leading.borrow().clone();
    if !leading.leader {
        return Err(not_leading(&leading));
    }
    let caller = authenticate(shared, headers, standing.address()).await.map_err(|denied| {
        shared.counters.count(&format!("refused_{}", denied.reason()));
        if shared.logged.charge(&()) {
            tracing::warn!(reason = denied.reason(), from = %standing.address(), %denied, "call refused");
        }
        standing.refused();
        Status::from(&denied)
    })?;
    let account = (&caller.namespace, &caller.service_account);
    if !shared.config.agents.iter().any(|(namespace, name)| (namespace, name) == account) {
        let refusal = Refusal::NotAnAgent(format!("{}/{}", caller.namespace, caller.service_account));
        standing.refused();
        return Err(shared.refuse(&caller, None, &refusal));
    }
    standing.known(shared)?;
    Ok(caller)
}

/// Whose call it is: from memory, without waiting for anybody; else the API server is asked, which costs, so that one
/// address may have a few such questions only.
async fn authenticate(shared: &Shared, headers: &http::HeaderMap, from: IpAddr) -> Result<Caller, Denied> {
    let metadata = MetadataMap::from_headers(headers.clone());
    let token = metadata.get("authorization").and_then(|value| value.to_str().ok());
    let token = token.and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    let token = token.filter(|token| !token.is_empty()).ok_or(Denied::Missing)?;
    let who = &shared.config.authenticate;
    if let Some(known) = who.recall(token) {
        return known;
    }
    let late = |_| Denied::Unavailable("no answer in time".to_owned());
    let check = async {
        let _turn = shared.reviews.wait(&from).await.ok_or(Denied::TooMany)?;
        // Another call with this token may have been answered meanwhile.
        if let Some(known) = who.recall(token) {
            return known;
        }
        if !shared.reviews.charge(&from) {
            return Err(Denied::TooMany);
        }
        // The semaphore is never closed.
        let _slot = shared.authentications.acquire().await.ok();
        who.authenticate(token).await
    };
    timeout(shared.config.limits.step, check).await.map_err(late)?
}

fn not_leading(leading: &Leading) -> Status {
    let holder = if leading.holder.is_empty() { crate::NOBODY } else { &leading.holder };
    Status::unavailable(format!("{}: {holder} is", crate::NOT_THE_LEADER))
}

impl Shared {
    /// Logs and counts a refusal.
    fn refuse(&self, caller: &Caller, identity: Option<&SpiffeId>, refusal: &Refusal) -> Status {
        self.counters.count(&format!("refused_{}", refusal.reason()));
        tracing::warn!(
            node = %caller.node,
            pod = %format_args!("{}/{}", caller.namespace, caller.pod),
            service_account = %caller.service_account,
            identity = identity.map(tracing::field::display),
            reason = refusal.reason(),
            %refusal,
            "refused"
        );
        refusal.into()
    }
}
