//! The certificates that this agent holds: one per identity, for as long as someone holds a handle.
//!
//! Each identity has one task, which asks the issuer, swaps the new certificate in, and sleeps until the next
//! try ([`crate::rotation`] decides when). Connections that stand are never touched by a rotation or a new
//! bundle.

use std::{
    fmt,
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::CertificateDer;
use tokio::{runtime::Handle, task::AbortHandle, time::Instant};
use weft_core::model::{SpiffeId, Str};

use crate::{
    bond::{Bond, Unbound},
    bundle::TrustBundle,
    clock::{Clock, SystemClock},
    entry::{Entry, Shared, maintain},
    info::{IdentityInfo, Metrics},
    issue::{IssueError, Issuer},
    tls::Alpn,
    verify::PeerSet,
};

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
        Self { shared: Arc::new(Shared::new(issuer, config, Handle::current())) }
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

    /// Trusts `bundle` from now on, for every identity, instead of what the issuer says. Standing connections
    /// live on.
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

    /// For accepting: TLS 1.3, either [`Alpn`], a client certificate of the trust domain required.
    /// None without a valid certificate: nobody would accept ours.
    #[must_use]
    pub fn server_config(&self) -> Option<Arc<ServerConfig>> {
        Some(self.held.entry.usable()?.server.clone())
    }

    /// For connecting to an endpoint that may have one of `peers`: TLS 1.3, no SNI; the server name
    /// given to rustls is not compared and only keys session resumption: give the endpoint's address. None
    /// without a valid certificate.
    #[must_use]
    pub fn client_config(&self, peers: &PeerSet, alpn: Alpn) -> Option<Arc<ClientConfig>> {
        let credentials = self.held.entry.usable()?;
        credentials
            .client(peers, alpn)
            .inspect_err(|error| tracing::error!(%error, identity = %self.identity(), "no client config"))
            .ok()
    }

    /// How long a connection of this identity may begin something new, whose peer has shown `chain`; to be asked after each
    /// handshake, since a resumed one verifies nothing.
    ///
    /// # Errors
    /// When it may not any more.
    pub fn bond(&self, chain: &[CertificateDer<'_>]) -> Result<Bond, Unbound> {
        Bond::new(self.held.entry.clone(), chain)
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
#[error("no valid certificate for {identity}: {}", reason(cause.as_ref()))]
pub struct NotReady {
    /// Whose.
    pub identity: SpiffeId,
    /// The last failure, if the issuer failed.
    pub cause: Option<IssueError>,
}

fn reason(cause: Option<&IssueError>) -> String {
    cause.map_or_else(|| "the issuer has not answered yet".into(), ToString::to_string)
}

/// What a handle counts. The task must not hold it, else the count never ends.
pub(crate) struct Held {
    pub(crate) entry: Arc<Entry>,
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

#[cfg(test)]
mod tests;
