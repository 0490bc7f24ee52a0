//! The certificates that this agent holds: one per identity, for as long as someone holds a handle.
//!
//! Each identity has one task, which asks the issuer, swaps the new certificate in, and sleeps until the next try
//! ([`crate::rotation`] decides when). Connections that stand are never touched by a rotation or a new bundle.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use parking_lot::Mutex;
use rustls::{ClientConfig, ServerConfig};
use serde::Serialize;
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    task::AbortHandle,
    time::Instant,
};
use weft_core::model::{SpiffeId, Str};

use crate::{
    bundle::TrustBundle,
    clock::{Clock, SystemClock},
    issue::{IssueError, IssueRequest, IssuedCertificate, Issuer},
    key::SecretKey,
    leaf::{LeafFacts, RootInfo, as_text_opt},
    rotation::{self, Plan, Rotation, Validity},
    slots::Slots,
    tls::{Credentials, Material, TlsSettings},
    verify::{PeerSet, spiffe_id},
};

/// The longest sleep before the wall clock is read again: it may jump, and a suspended machine's timers stand still.
const CLOCK_CHECK: Duration = Duration::from_secs(60);

/// How a store works.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The mesh's trust domain: servers accept its members only.
    pub trust_domain: Str,
    /// The life to ask for. 24 h.
    pub ttl: Duration,
    /// How many issues may run at once. 8.
    pub concurrent_issues: usize,
    /// How long one issue may take. 10 s.
    pub issue_timeout: Duration,
    /// How many client configs (one per peer set) an identity keeps. 256.
    pub client_configs: usize,
    /// Where the time comes from.
    pub clock: Arc<dyn Clock>,
}

impl StoreConfig {
    /// The defaults for a trust domain.
    #[must_use]
    pub fn new(trust_domain: impl Into<Str>) -> Self {
        Self {
            trust_domain: trust_domain.into(),
            ttl: Duration::from_secs(24 * 3600),
            concurrent_issues: 8,
            issue_timeout: Duration::from_secs(10),
            client_configs: 256,
            clock: Arc::new(SystemClock),
        }
    }
}

/// Holds certificates. Cheap to clone; clones are the same store.
#[derive(Clone)]
pub struct IdentityStore {
    shared: Arc<Shared>,
}

impl IdentityStore {
    /// A store whose tasks run on the current tokio runtime, wherever [`IdentityStore::acquire`] is called.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn new(issuer: Arc<dyn Issuer>, config: StoreConfig) -> Self {
        let tls = TlsSettings {
            trust_domain: config.trust_domain.clone(),
            clock: config.clock.clone(),
            client_configs: config.client_configs,
        };
        let shared = Shared {
            issuer,
            tls,
            slots: Slots::new(config.concurrent_issues),
            config,
            runtime: Handle::current(),
            identities: Mutex::default(),
            trust: Mutex::default(),
            counters: Counters::default(),
            draws: RandomState::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// A handle to an identity. The first one starts the issue; all share it; the last drop forgets the key.
    #[must_use]
    pub fn acquire(&self, identity: SpiffeId) -> IdentityHandle {
        let shared = &self.shared;
        let mut identities = shared.identities.lock();
        if let Some(held) = identities.get(&identity).and_then(Weak::upgrade) {
            return IdentityHandle { held };
        }
        let entry = Arc::new(Entry::new(identity.clone(), shared.tls.clock.clone()));
        let task = shared.runtime.spawn(maintain(shared.clone(), entry.clone()));
        let held = Arc::new(Held { entry, task: task.abort_handle(), shared: shared.clone() });
        identities.insert(identity, Arc::downgrade(&held));
        IdentityHandle { held }
    }

    /// Trusts `bundle` from now on, for every identity, instead of what the issuer says. Standing connections live on.
    pub fn set_trust_bundle(&self, bundle: TrustBundle) {
        {
            let mut trust = self.shared.trust.lock();
            trust.fixed = true;
            trust.bundle = Some(bundle);
        }
        self.shared.rebundle();
    }

    /// Asks for a new certificate of every identity soon, e.g. because the CA has changed. At most
    /// [`StoreConfig::concurrent_issues`] run at once.
    pub fn renew_all(&self) {
        for held in self.shared.held() {
            held.entry.nudge.notify_one();
        }
    }

    /// Every identity held, for the admin page, ordered by identity. No keys.
    #[must_use]
    pub fn infos(&self) -> Vec<IdentityInfo> {
        let mut infos: Vec<_> = self.shared.held().iter().map(|held| held.entry.info()).collect();
        infos.sort_by(|a, b| a.identity.cmp(&b.identity));
        infos
    }

    /// Counters and gauges.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        let held = self.shared.held();
        let ends = held.iter().filter_map(|held| Some(held.entry.validity()?.not_after));
        Metrics {
            issued: self.shared.counters.issued.load(Ordering::Relaxed),
            failed: self.shared.counters.failed.load(Ordering::Relaxed),
            identities: held.len(),
            ready: held.iter().filter(|held| held.entry.usable().is_some()).count(),
            earliest_expiry: ends.min(),
        }
    }
}

impl fmt::Debug for IdentityStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentityStore").field("metrics", &self.metrics()).finish_non_exhaustive()
    }
}

/// Counters since the start, and the present state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// Certificates issued.
    pub issued: u64,
    /// Issues that failed.
    pub failed: u64,
    /// Identities held now.
    pub identities: usize,
    /// Of these, those with a valid certificate.
    pub ready: usize,
    /// When the first certificate held runs out; in the past if one has.
    pub earliest_expiry: Option<Timestamp>,
}

/// One identity, held. Clones share it. Gives configs, never the key.
#[derive(Clone)]
pub struct IdentityHandle {
    held: Arc<Held>,
}

impl IdentityHandle {
    /// Who this is.
    #[must_use]
    pub fn identity(&self) -> &SpiffeId {
        &self.held.entry.identity
    }

    /// Whether there is a valid certificate now.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.held.entry.usable().is_some()
    }

    /// Waits for a valid certificate.
    ///
    /// # Errors
    /// At the deadline, with the last failure of the issuer. The store goes on trying.
    pub async fn ready(&self, deadline: Instant) -> Result<(), NotReady> {
        let entry = &self.held.entry;
        let mut changes = entry.changes.subscribe();
        loop {
            changes.borrow_and_update();
            if self.is_ready() {
                return Ok(());
            }
            // The sender lives in the entry, which we hold: `changed` cannot fail.
            if tokio::time::timeout_at(deadline, changes.changed()).await.is_err() {
                let cause = entry.progress.lock().last_error.clone();
                return Err(NotReady { identity: entry.identity.clone(), cause });
            }
        }
    }

    /// For accepting: TLS 1.3, ALPN h2, a client certificate of the trust domain required.
    /// None without a valid certificate: nobody would accept ours.
    #[must_use]
    pub fn server_config(&self) -> Option<Arc<ServerConfig>> {
        Some(self.held.entry.usable()?.server.clone())
    }

    /// For connecting to an endpoint that may have one of `peers`: TLS 1.3, ALPN h2, no SNI; the server name given
    /// to rustls is not compared and only keys session resumption: give the endpoint's address.
    /// None without a valid certificate.
    #[must_use]
    pub fn client_config(&self, peers: &PeerSet) -> Option<Arc<ClientConfig>> {
        let credentials = self.held.entry.usable()?;
        credentials
            .client(peers)
            .inspect_err(|error| tracing::error!(%error, identity = %self.identity(), "no client config"))
            .ok()
    }

    /// Certificate and state for the admin page. No key.
    #[must_use]
    pub fn info(&self) -> IdentityInfo {
        self.held.entry.info()
    }
}

impl fmt::Debug for IdentityHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("IdentityHandle").field(&self.identity().to_string()).finish()
    }
}

/// No valid certificate in time. Retry: the store still tries.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no valid certificate for {identity}: {}", cause.as_ref().map_or("the issuer has not answered yet".into(), ToString::to_string))]
pub struct NotReady {
    /// Whose.
    pub identity: SpiffeId,
    /// The last failure, if the issuer failed.
    pub cause: Option<IssueError>,
}

/// How an identity stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum IdentityState {
    /// No certificate yet.
    Pending,
    /// A valid certificate, and the last issue succeeded.
    Ready,
    /// A valid certificate, but its renewal fails.
    RenewalFailing,
    /// The certificate has run out (or is not valid yet): connections fail.
    Expired,
}

/// Certificate and state of one identity. No key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IdentityInfo {
    /// SPIFFE ID.
    pub identity: String,
    /// How it stands.
    pub state: IdentityState,
    /// Serial number: hexadecimal, colons between bytes.
    pub serial: Option<String>,
    /// Distinguished name of the signer.
    pub issuer: Option<String>,
    /// First moment of validity.
    #[serde(serialize_with = "as_text_opt")]
    pub not_before: Option<Timestamp>,
    /// Last moment of validity.
    #[serde(serialize_with = "as_text_opt")]
    pub not_after: Option<Timestamp>,
    /// When the issuer is asked next; none while it is being asked the first time.
    #[serde(serialize_with = "as_text_opt")]
    pub next_renewal: Option<Timestamp>,
    /// Failures since the last success.
    pub failures: u32,
    /// The last failure, if the last issue failed.
    pub last_error: Option<String>,
    /// What peers must chain to.
    pub roots: Vec<RootInfo>,
}

/// What all identities share.
struct Shared {
    issuer: Arc<dyn Issuer>,
    config: StoreConfig,
    tls: TlsSettings,
    slots: Arc<Slots>,
    runtime: Handle,
    identities: Mutex<HashMap<SpiffeId, Weak<Held>>>,
    trust: Mutex<Trust>,
    counters: Counters,
    draws: RandomState,
}

#[derive(Default)]
struct Counters {
    issued: AtomicU64,
    failed: AtomicU64,
    /// Issues begun: orders the bundles that come with them.
    begun: AtomicU64,
}

/// The bundle of every identity.
#[derive(Default)]
struct Trust {
    bundle: Option<TrustBundle>,
    /// The issue that brought it.
    brought_by: u64,
    /// Set by hand: the issuer's is ignored.
    fixed: bool,
}

impl Trust {
    /// Takes the issuer's bundle, unless one was set by hand or came with an issue that began later (an answer that
    /// was long on its way must not bring back old roots). True when the bundle changed.
    fn take(&mut self, bundle: TrustBundle, issue: u64) -> bool {
        if self.fixed || issue < self.brought_by {
            return false;
        }
        self.brought_by = issue;
        let changed = self.bundle.as_ref() != Some(&bundle);
        self.bundle = Some(bundle);
        changed
    }
}

impl Shared {
    fn held(&self) -> Vec<Arc<Held>> {
        self.identities.lock().values().filter_map(Weak::upgrade).collect()
    }

    /// Builds the configs of every identity anew, with the same certificates.
    fn rebundle(&self) {
        for held in self.held() {
            if let Err(error) = held.entry.install(self, None) {
                tracing::error!(%error, identity = %held.entry.identity, "the new trust bundle is not in use");
            }
        }
    }

    fn bundle(&self) -> Option<TrustBundle> {
        self.trust.lock().bundle.clone()
    }

    /// A number for jitter. Not for secrets.
    fn draw(&self) -> u64 {
        self.draws.hash_one(self.counters.begun.load(Ordering::Relaxed)) ^ RandomState::new().hash_one(())
    }
}

/// What a handle counts. The task must not hold it, else the count never ends.
struct Held {
    entry: Arc<Entry>,
    task: AbortHandle,
    shared: Arc<Shared>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.task.abort();
        self.entry.current.store(None);
        let mut identities = self.shared.identities.lock();
        // Someone may have acquired the identity anew since the count fell to zero: that one stays.
        if identities.get(&self.entry.identity).is_some_and(|held| held.strong_count() == 0) {
            identities.remove(&self.entry.identity);
        }
    }
}

/// One identity.
struct Entry {
    identity: SpiffeId,
    clock: Arc<dyn Clock>,
    current: ArcSwapOption<Credentials>,
    /// Serialises installs: of a new certificate by the task, of a new bundle by anyone.
    install: Mutex<()>,
    progress: Mutex<Progress>,
    /// Ticks when `current` or `progress` changed.
    changes: watch::Sender<()>,
    /// Asks the task to renew now.
    nudge: Notify,
}

#[derive(Default)]
struct Progress {
    next_attempt: Option<Timestamp>,
    failures: u32,
    last_error: Option<IssueError>,
}

impl Entry {
    fn new(identity: SpiffeId, clock: Arc<dyn Clock>) -> Self {
        Self {
            identity,
            clock,
            current: ArcSwapOption::empty(),
            install: Mutex::default(),
            progress: Mutex::default(),
            changes: watch::Sender::new(()),
            nudge: Notify::new(),
        }
    }

    fn validity(&self) -> Option<Validity> {
        Some(self.current.load().as_ref()?.material.facts.validity)
    }

    /// The credentials, if they are valid now.
    fn usable(&self) -> Option<Arc<Credentials>> {
        let current = self.current.load_full()?;
        current.material.facts.validity.contains(self.clock.now()).then_some(current)
    }

    /// Swaps in configs of `fresh`, or of the certificate held, with the store's bundle.
    fn install(&self, shared: &Shared, fresh: Option<Material>) -> Result<(), rustls::Error> {
        let _order = self.install.lock();
        let previous = self.current.load_full();
        let material = fresh.or_else(|| previous.as_ref().map(|p| p.material.clone()));
        // Read under the lock: whoever installs last has seen the newest bundle.
        let (Some(material), Some(bundle)) = (material, shared.bundle()) else { return Ok(()) };
        let credentials = Credentials::build(&shared.tls, material, bundle, previous.as_deref())?;
        self.current.store(Some(Arc::new(credentials)));
        self.changes.send_replace(());
        Ok(())
    }

    fn record(&self, plan: Plan, failures: u32, last_error: Option<IssueError>) {
        *self.progress.lock() = Progress { next_attempt: Some(plan.next_attempt), failures, last_error };
        self.changes.send_replace(());
    }

    fn info(&self) -> IdentityInfo {
        let current = self.current.load_full();
        let facts = current.as_ref().map(|c| &c.material.facts);
        let progress = self.progress.lock();
        let state = match facts {
            None => IdentityState::Pending,
            Some(facts) if !facts.validity.contains(self.clock.now()) => IdentityState::Expired,
            Some(_) if progress.last_error.is_some() => IdentityState::RenewalFailing,
            Some(_) => IdentityState::Ready,
        };
        IdentityInfo {
            identity: self.identity.to_string(),
            state,
            serial: facts.map(|f| f.serial.clone()),
            issuer: facts.map(|f| f.issuer.clone()),
            not_before: facts.map(|f| f.validity.not_before),
            not_after: facts.map(|f| f.validity.not_after),
            next_renewal: progress.next_attempt,
            failures: progress.failures,
            last_error: progress.last_error.as_ref().map(ToString::to_string),
            roots: current.as_ref().map(|c| c.bundle.describe()).unwrap_or_default(),
        }
    }
}

/// The life of one identity: ask, install, sleep, again. Ends by being aborted when the last handle goes.
async fn maintain(shared: Arc<Shared>, entry: Arc<Entry>) {
    let mut rotation = Rotation::default();
    loop {
        let outcome = attempt(&shared, &entry).await;
        let (now, draw) = (entry.clock.now(), shared.draw());
        let plan = match &outcome {
            Ok(fresh) => {
                shared.counters.issued.fetch_add(1, Ordering::Relaxed);
                rotation.issued(*fresh, now, draw)
            }
            Err(error) => {
                shared.counters.failed.fetch_add(1, Ordering::Relaxed);
                rotation.failed(entry.validity(), now, error.retry(), draw)
            }
        };
        report(&entry.identity, &outcome, plan);
        entry.record(plan, rotation.failures(), outcome.err());
        tokio::select! {
            () = sleep_until(&*entry.clock, plan.next_attempt) => {}
            () = entry.nudge.notified() => {}
        }
    }
}

/// One issue: a new key each time, so that a leaked one ends with its certificate.
async fn attempt(shared: &Arc<Shared>, entry: &Entry) -> Result<Validity, IssueError> {
    let urgent = rotation::is_urgent(entry.validity(), entry.clock.now());
    let _slot = shared.slots.acquire(urgent).await;
    let local = |e: &dyn fmt::Display| IssueError::Local { reason: e.to_string() };
    let key = SecretKey::generate().map_err(|e| local(&e))?;
    let csr = key.csr(&entry.identity).map_err(|e| local(&e))?;
    let request = IssueRequest { csr, identity: entry.identity.clone(), ttl: shared.config.ttl };
    let number = shared.counters.begun.fetch_add(1, Ordering::Relaxed) + 1;
    let timeout = shared.config.issue_timeout;
    let issue = tokio::time::timeout(timeout, shared.issuer.issue(request)).await;
    let answer = issue.map_err(|_| IssueError::TimedOut(timeout))??;
    let bundle = answer.bundle.clone();
    let material = accept_answer(shared, &entry.identity, &key, answer)?;
    let validity = material.facts.validity;
    let changed = shared.trust.lock().take(bundle, number);
    entry.install(shared, Some(material)).map_err(|e| local(&e))?;
    if changed {
        shared.rebundle();
    }
    Ok(validity)
}

/// Checks that the answer is what was asked for: our key, our identity, valid now, under the issuer's own roots.
fn accept_answer(
    shared: &Shared,
    identity: &SpiffeId,
    key: &SecretKey,
    answer: IssuedCertificate,
) -> Result<Material, IssueError> {
    let bad = |reason: String| IssueError::BadAnswer { reason };
    let leaf = answer.chain.first().ok_or_else(|| bad("the chain is empty".into()))?;
    let named = spiffe_id(leaf).map_err(|e| bad(e.to_string()))?;
    if named != *identity {
        return Err(bad(format!("it names {named}, not {identity}")));
    }
    let facts = LeafFacts::read(leaf).ok_or_else(|| bad("the leaf cannot be read".into()))?;
    crate::verify::check_chain(&answer, shared.tls.clock.now()).map_err(|e| bad(e.to_string()))?;
    let tls_key = key.tls_key().map_err(|e| IssueError::Local { reason: e.to_string() })?;
    let key = rustls::sign::CertifiedKey::new(answer.chain, tls_key);
    key.keys_match().map_err(|_| bad("the leaf holds another public key".into()))?;
    Ok(Material { key: Arc::new(key), facts })
}

fn report(identity: &SpiffeId, outcome: &Result<Validity, IssueError>, plan: Plan) {
    let next = plan.next_attempt;
    match outcome {
        Ok(fresh) => tracing::info!(%identity, not_after = %fresh.not_after, %next, "certificate issued"),
        Err(error) if plan.serving => {
            tracing::warn!(%identity, %error, %next, "renewal failed; the certificate held is still valid");
        }
        Err(error) => tracing::error!(%identity, %error, %next, "no valid certificate"),
    }
}

async fn sleep_until(clock: &dyn Clock, at: Timestamp) {
    loop {
        let left = Duration::try_from(at.duration_since(clock.now())).unwrap_or(Duration::ZERO);
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(CLOCK_CHECK)).await;
    }
}

#[cfg(test)]
mod tests;
