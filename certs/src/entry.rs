//! One identity's life: ask the issuer, check the answer, swap the configs in, sleep until the next try.

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
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    task::JoinSet,
};
use weft_core::model::SpiffeId;

use crate::{
    bundle::TrustBundle,
    clock::Clock,
    info::{IdentityInfo, IdentityState},
    issue::{IssueError, IssueRequest, IssuedCertificate, Issuer},
    key::SecretKey,
    leaf::LeafFacts,
    rotation::{self, Plan, Rotation, Validity},
    slots::Slots,
    store::{Held, StoreConfig},
    tls::{Credentials, Material, TlsSettings},
    verify::{check_chain, spiffe_id},
};

/// The longest sleep before the wall clock is read again: it may jump, and a suspended machine's timers stand
/// still.
const CLOCK_CHECK: Duration = Duration::from_secs(60);

/// What all identities share.
pub(crate) struct Shared {
    pub(crate) issuer: Arc<dyn Issuer>,
    pub(crate) config: StoreConfig,
    pub(crate) tls: TlsSettings,
    pub(crate) slots: Arc<Slots>,
    pub(crate) runtime: Handle,
    pub(crate) identities: Mutex<HashMap<SpiffeId, Weak<Held>>>,
    pub(crate) trust: Mutex<Trust>,
    pub(crate) counters: Counters,
    pub(crate) draws: RandomState,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) issued: AtomicU64,
    pub(crate) failed: AtomicU64,
    /// Issues begun: orders the bundles that come with them.
    pub(crate) begun: AtomicU64,
}

/// The bundle of every identity.
#[derive(Default)]
pub(crate) struct Trust {
    pub(crate) bundle: Option<TrustBundle>,
    /// The issue that brought it.
    pub(crate) brought_by: u64,
    /// Set by hand: the issuer's is ignored.
    pub(crate) fixed: bool,
}

impl Trust {
    /// Takes the issuer's bundle, unless one was set by hand or came with an issue that began later (an
    /// answer that was long on its way must not bring back old roots). True when the bundle changed.
    pub(crate) fn take(&mut self, bundle: TrustBundle, issue: u64) -> bool {
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
    pub(crate) fn new(issuer: Arc<dyn Issuer>, config: StoreConfig, runtime: Handle) -> Self {
        let tls = TlsSettings {
            trust_domain: config.trust_domain.clone(),
            clock: config.clock.clone(),
            client_configs: config.client_configs,
        };
        Self {
            issuer,
            tls,
            slots: Slots::new(config.concurrent_issues),
            config,
            runtime,
            identities: Mutex::default(),
            trust: Mutex::default(),
            counters: Counters::default(),
            draws: RandomState::new(),
        }
    }

    pub(crate) fn held(&self) -> Vec<Arc<Held>> {
        self.identities.lock().values().filter_map(Weak::upgrade).collect()
    }

    /// Builds the configs of every identity anew, with the same certificates.
    pub(crate) fn rebundle(&self) {
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

/// One identity.
pub(crate) struct Entry {
    pub(crate) identity: SpiffeId,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) current: ArcSwapOption<Credentials>,
    /// Serialises installs: of a new certificate by the task, of a new bundle by anyone.
    pub(crate) install: Mutex<()>,
    pub(crate) progress: Mutex<Progress>,
    /// Ticks when `current` or `progress` changed.
    pub(crate) changes: watch::Sender<()>,
    /// Asks the task to renew now.
    pub(crate) nudge: Notify,
}

#[derive(Default)]
pub(crate) struct Progress {
    pub(crate) next_attempt: Option<Timestamp>,
    pub(crate) failures: u32,
    pub(crate) last_error: Option<IssueError>,
}

impl Entry {
    pub(crate) fn new(identity: SpiffeId, clock: Arc<dyn Clock>) -> Self {
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

    pub(crate) fn validity(&self) -> Option<Validity> {
        Some(self.current.load().as_ref()?.material.facts.validity)
    }

    /// The credentials, if they are valid now.
    pub(crate) fn usable(&self) -> Option<Arc<Credentials>> {
        let current = self.current.load_full()?;
        current.material.facts.validity.contains(self.clock.now()).then_some(current)
    }

    /// Swaps in configs of `fresh`, or of the certificate held, with the store's bundle.
    fn install(&self, shared: &Shared, fresh: Option<Material>) -> Result<(), rustls::Error> {
        let _order = self.install.lock();
        let previous = self.current.load_full();
        // Read under the lock: whoever installs last has seen the newest bundle.
        let Some(bundle) = shared.bundle() else { return Ok(()) };
        let material = match (fresh, &previous) {
            (Some(fresh), _) => fresh,
            (None, Some(previous)) if previous.bundle != bundle => previous.material.clone(),
            (None, _) => return Ok(()), // nothing held yet, or nothing new
        };
        let credentials = Credentials::build(&shared.tls, material, bundle, previous.as_deref())?;
        self.current.store(Some(Arc::new(credentials)));
        self.changes.send_replace(());
        Ok(())
    }

    fn record(&self, plan: Plan, failures: u32, last_error: Option<IssueError>) {
        *self.progress.lock() = Progress { next_attempt: Some(plan.next_attempt), failures, last_error };
        self.changes.send_replace(());
    }

    pub(crate) fn info(&self) -> IdentityInfo {
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
pub(crate) async fn maintain(shared: Arc<Shared>, entry: Arc<Entry>) {
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
    let answer = ask(shared, request).await?;
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

/// Asks in a task of its own, which ends with this future: a panic in an issuer must not end the renewals, which
/// nobody would notice until the certificate runs out.
async fn ask(shared: &Shared, request: IssueRequest) -> Result<IssuedCertificate, IssueError> {
    let issuer = shared.issuer.clone();
    let mut task = JoinSet::new();
    task.spawn(async move { issuer.issue(request).await });
    let timeout = shared.config.issue_timeout;
    match tokio::time::timeout(timeout, task.join_next()).await {
        Err(_) => Err(IssueError::TimedOut(timeout)),
        Ok(Some(Ok(answer))) => answer,
        Ok(Some(Err(panicked))) => Err(IssueError::Local { reason: panicked.to_string() }),
        Ok(None) => Err(IssueError::Local { reason: "the issue was not started".into() }),
    }
}

/// Checks that the answer is what was asked for: our key, our identity, valid now, under the issuer's own
/// roots.
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
    check_chain(&answer, shared.tls.clock.now()).map_err(|e| bad(e.to_string()))?;
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
