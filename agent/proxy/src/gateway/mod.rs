//! North–south: the listeners of Gateways, opened and closed as the Config says.
//!
//! ```text
//! Config ─▶ plan ─▶ sync: close, open ─▶ one socket per worker ─▶ accept loop ─▶ serve ─┬▶ http::serve
//!                                                                                      ├▶ TLS by SNI ─▶ http::serve, l4
//!                                                                                      ├▶ l4 (TCP)
//!                                                                                      └▶ sessions (UDP)
//! ```
//!
//! A socket belongs to an address and port only. What is spoken there is looked up for each connection (and each HTTP
//! request), so an edit takes effect without touching a socket, and one listener's edit never touches another's.
//! Each Gateway's connections run under that Gateway's share.

mod accept;
mod bind;
mod client_cert;
mod plan;
mod serve;
mod tls;
mod tls_config;
mod udp;

pub use bind::{Bind, DirectBind, Place, is_any_v6, is_missing};
pub use plan::clashes;
pub(crate) use serve::serve;
pub(crate) use tls_config::TlsConfigs;

use crate::{
    context::{ShareKey, Sockets, Source},
    pods::DataPlane,
    worker::{Worker, WorkerGone},
};
use accept::{Port, Ticket, adopt};
use plan::{Claim, Wanted, plan};
use std::{
    collections::{BTreeMap, BTreeSet},
    future::poll_fn,
    io,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::Duration,
};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use weft_certs::IdentityHandle;
use weft_core::{
    budget::GATEWAY_SOCKETS,
    config::{Config, GatewayConfig, Transport},
    engine::Feedback,
    model::{MtlsMode, ObjectKey, SpiffeId, Str, TunnelPort, Workload},
};

/// The connections of a Gateway that was removed may go on this long.
const GRACE: Duration = Duration::from_secs(30);
/// A new Gateway's certificate is waited for this long before its ports are opened, so that the first request to an
/// enrolled pod finds it…
const CERTIFICATE_PATIENCE: Duration = Duration::from_secs(5);
/// …and this long where an agent before this one opened them, which serves until we do: the controllers may be being
/// replaced too.
const SUCCESSOR_PATIENCE: Duration = Duration::from_secs(15);
/// Who opens sockets must answer within this time.
const BIND_PATIENCE: Duration = Duration::from_secs(5);

/// Gives the identity of a Gateway; `None` for a run without mesh, where everything is plaintext.
pub type Identities = Box<dyn Fn(&SpiffeId) -> Option<IdentityHandle> + Send + Sync>;

/// The open listeners of all Gateways.
pub struct GatewayListeners {
    plane: Arc<DataPlane>,
    bind: Arc<dyn Bind>,
    sockets: Arc<dyn Sockets>,
    identities: Identities,
    tls: Arc<TlsConfigs>,
    /// Gateways that the workers know, by whom they are.
    tenants: BTreeMap<ObjectKey, SpiffeId>,
    open: BTreeMap<Place, Open>,
    certificate_patience: Duration,
}

/// An open place.
struct Open {
    claim: Claim,
    stop: CancellationToken,
    close: CancellationToken,
    /// Closed when nobody uses the sockets any more.
    ended: mpsc::Receiver<()>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Why a place could not be opened.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error("{0}")]
    Bind(io::Error),
    #[error("no answer from who opens sockets within {BIND_PATIENCE:?}")]
    Silent,
    #[error(transparent)]
    Gone(#[from] WorkerGone),
}

impl GatewayListeners {
    /// None open yet. `sockets` makes the client sockets of the host.
    #[must_use]
    pub fn new(
        plane: Arc<DataPlane>,
        bind: Arc<dyn Bind>,
        sockets: Arc<dyn Sockets>,
        identities: Identities,
    ) -> Self {
        Self {
            plane,
            bind,
            sockets,
            identities,
            tls: Arc::default(),
            tenants: BTreeMap::new(),
            open: BTreeMap::new(),
            certificate_patience: CERTIFICATE_PATIENCE,
        }
    }

    /// Whether an agent before this one may be serving what is opened next.
    pub fn set_succeeds(&mut self, succeeds: bool) {
        self.certificate_patience = if succeeds { SUCCESSOR_PATIENCE } else { CERTIFICATE_PATIENCE };
    }

    /// Opens what the Config wants and is not open, closes what it does not want, leaves all else untouched. Reports
    /// what could not be opened; call again to try that again.
    pub async fn sync(&mut self, config: &Arc<Config>) -> Feedback {
        self.tls.refresh(config);
        let held = self.open.iter().map(|(place, open)| (*place, open.claim.clone())).collect();
        // A place takes a socket for each worker.
        let workers = self.plane.workers();
        let places_max = GATEWAY_SOCKETS.part_of(workers.limits().descriptors) / workers.count();
        let (wanted, conflicts) = plan(config, &held, places_max);
        self.close_unwanted(config, &wanted).await;
        self.retire_tenants(config).await;
        let mut feedback = Feedback::default();
        for conflict in conflicts {
            note(&mut feedback, &conflict.claim, conflict.place, conflict.why);
        }
        if let Err(error) = self.introduce(config, &wanted).await {
            tracing::warn!(%error, "Gateways cannot be served");
        }
        // All at once: one that nobody answers must not hold up the others.
        let new = wanted.into_iter().filter(|(place, _)| !self.open.contains_key(place));
        let opening = new.map(async |(place, claim)| (place, self.open(place, &claim).await, claim));
        for (place, opened, claim) in futures_util::future::join_all(opening).await {
            match opened {
                Ok(open) => {
                    tracing::info!(gateway = %claim.gateway, port = claim.port, "listening on {place}");
                    self.open.insert(place, open);
                }
                Err(error) => {
                    let words = plain_words(&error.to_string());
                    if matches!(&error, OpenError::Bind(error) if is_missing(error)) {
                        let at = (claim.gateway.clone(), place.address.ip());
                        feedback.unusable.insert(at, words.as_str().into());
                    }
                    note(&mut feedback, &claim, place, format!("{}: {words}", place.address));
                }
            }
        }
        feedback
    }

    /// Stops accepting everywhere, without giving up any place: sockets that others hold too stay open there. What is
    /// established goes on until its share is drained.
    pub async fn stop_accepting(&mut self) {
        for open in self.open.values() {
            open.stop.cancel();
        }
        for (place, mut open) in std::mem::take(&mut self.open) {
            // UDP sessions go on answering through the socket.
            if place.transport == Transport::Tcp {
                open.ended.recv().await;
            }
        }
    }

    /// The places that are open, for status pages and tests.
    pub fn places(&self) -> impl Iterator<Item = (&Place, &ObjectKey)> {
        self.open.iter().map(|(place, open)| (place, &open.claim.gateway))
    }

    async fn close_unwanted(&mut self, config: &Config, wanted: &Wanted) {
        let unchanged = |gateway: &ObjectKey| {
            let identity = config.gateways.get(gateway).map(|g| &g.identity);
            identity == self.tenants.get(gateway)
        };
        let keep = |place: &Place, open: &Open| {
            wanted.get(place) == Some(&open.claim) && unchanged(&open.claim.gateway)
        };
        let unwanted: Vec<Place> =
            self.open.iter().filter(|(place, open)| !keep(place, open)).map(|(place, _)| *place).collect();
        for place in unwanted {
            let Some(open) = self.open.remove(&place) else { continue };
            tracing::info!(gateway = %open.claim.gateway, "no longer listening on {place}");
            self.close(place, open).await;
        }
    }

    async fn close(&self, place: Place, mut open: Open) {
        open.stop.cancel();
        open.close.cancel();
        open.ended.recv().await;
        if tokio::time::timeout(BIND_PATIENCE, self.bind.close(place)).await.is_err() {
            tracing::warn!("{place}: nobody answered the wish to close it");
        }
    }

    /// Lets the connections of Gateways that are gone end. Not waited for: a slow client must not hold up the others'
    /// changes.
    async fn retire_tenants(&mut self, config: &Config) {
        let gone: Vec<ObjectKey> =
            self.tenants.keys().filter(|key| !config.gateways.contains_key(*key)).cloned().collect();
        for key in gone {
            self.tenants.remove(&key);
            let retire = move |worker: Rc<Worker>| async move {
                let mut retiring = Box::pin({
                    let worker = worker.clone();
                    async move { worker.retire(&ShareKey::Gateway(key), GRACE).await }
                });
                // Begun before this returns: a Gateway of the same name that comes next gets a share of its own.
                let begun = poll_fn(|cx| Poll::Ready(retiring.as_mut().poll(cx))).await;
                if begun.is_pending() {
                    tokio::task::spawn_local(retiring);
                }
            };
            // An ended worker has nothing to retire.
            let _ = self.plane.workers().run_all(retire).await;
        }
    }

    /// Makes new Gateways known to all workers.
    async fn introduce(&mut self, config: &Config, wanted: &Wanted) -> Result<(), WorkerGone> {
        let keys: BTreeSet<&ObjectKey> = wanted.values().map(|claim| &claim.gateway).collect();
        let gateways = keys.into_iter().filter_map(|key| config.gateways.get(key));
        let new = gateways.filter(|g| self.tenants.get(&g.key) != Some(&g.identity));
        let sources: Vec<Source> = new.map(|gateway| self.source(gateway)).collect();
        let deadline = Instant::now() + self.certificate_patience;
        let ready = sources.iter().filter_map(|source| source.identity.as_ref()).map(|identity| async move {
            if let Err(error) = identity.ready(deadline).await {
                tracing::warn!(%error, "enrolled pods cannot be reached yet");
            }
        });
        futures_util::future::join_all(ready).await;
        for source in sources {
            let (key, identity) = (source.workload.pod.clone(), source.workload.identity.clone());
            let register = move |worker: Rc<Worker>| async move { drop(worker.introduce(source)) };
            self.plane.workers().run_all(register).await?;
            self.tenants.insert(key, identity);
        }
        Ok(())
    }

    fn source(&self, gateway: &GatewayConfig) -> Source {
        let workload = Workload {
            pod: gateway.key.clone(),
            ips: Vec::new(),
            identity: gateway.identity.clone(),
            node: None,
            enrolled: true,
            labelled: true,
            tunnel: TunnelPort::default(),
            mode: MtlsMode::Permissive,
            app: gateway.key.name.clone(),
            probes: Arc::default(),
        };
        Source {
            share: ShareKey::Gateway(gateway.key.clone()),
            workload: Arc::new(workload),
            identity: (self.identities)(&gateway.identity),
            sockets: self.sockets.clone(),
        }
    }

    async fn open(&self, place: Place, claim: &Claim) -> Result<Open, OpenError> {
        let workers = self.plane.workers();
        let listening = tokio::time::timeout(BIND_PATIENCE, self.bind.listen(place, workers.count()));
        let sockets = listening.await.map_err(|_| OpenError::Silent)?.map_err(OpenError::Bind)?;
        let (alive, ended) = mpsc::channel(1);
        let ticket =
            Ticket { stop: CancellationToken::new(), close: CancellationToken::new(), _alive: alive };
        let open =
            Open { claim: claim.clone(), stop: ticket.stop.clone(), close: ticket.close.clone(), ended };
        let mut failed = None;
        for (member, socket) in sockets.into_iter().enumerate() {
            let port = Port { claim: claim.clone(), place, ticket: ticket.clone(), tls: self.tls.clone() };
            let adopting = move |worker: Rc<Worker>| async move { adopt(&worker, port, socket) };
            match workers.run(member % workers.count(), adopting).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => failed = Some(OpenError::Bind(error)),
                Err(gone) => failed = Some(gone.into()),
            }
        }
        drop(ticket);
        match failed {
            None => Ok(open),
            Some(error) => {
                self.close(place, open).await;
                Err(error)
            }
        }
    }
}

impl std::fmt::Debug for GatewayListeners {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GatewayListeners").field("places", &self.open.len()).finish_non_exhaustive()
    }
}

/// A port may fail on several addresses.
fn note(feedback: &mut Feedback, claim: &Claim, place: Place, why: String) {
    let at = (claim.gateway.clone(), claim.port, place.transport);
    let reason = feedback.unbound.entry(at).or_insert_with(|| Str::from(""));
    *reason = if reason.is_empty() { why.into() } else { format!("{reason}; {why}").into() };
}

/// `Permission denied (os error 13)` without the number.
fn plain_words(error: &str) -> String {
    match error.rfind(" (os error ") {
        Some(end) => error[..end].to_owned(),
        None => error.to_owned(),
    }
}

#[cfg(test)]
mod tests;
