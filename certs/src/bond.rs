//! How long a verified connection may begin something new: a handshake verifies once, and a tunnel lives for days.

use std::{fmt, sync::Arc, time::Duration};

use jiff::Timestamp;
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;

use crate::{
    bundle::TrustBundle,
    entry::Entry,
    leaf::LeafFacts,
    verify::{check_client_chain, spiffe_id},
};

/// The longest sleep before the wall clock is read again: it may jump.
const CLOCK_CHECK: Duration = Duration::from_secs(60);

/// A verified connection's certificates. It holds until either has ended, or the peer's no longer chains to a root that is
/// trusted; a renewal or a root more changes nothing.
pub struct Bond {
    entry: Arc<Entry>,
    chain: Vec<CertificateDer<'static>>,
    until: Timestamp,
    /// By which roots the chain was verified last.
    verified: Mutex<Option<TrustBundle>>,
}

/// A peer's certificates that a new connection may not be begun with, resumed though it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unbound {
    /// Nothing can be read in them.
    #[error("the peer's certificate cannot be read")]
    Unreadable,
    /// One of both has ended, or is not trusted any more.
    #[error("the certificate of {0}, or our own, has ended or is not trusted any more")]
    Ended(String),
}

impl Bond {
    pub(crate) fn new(entry: Arc<Entry>, chain: &[CertificateDer<'_>]) -> Result<Self, Unbound> {
        let leaf = chain.first().ok_or(Unbound::Unreadable)?;
        let peer = LeafFacts::read(leaf).ok_or(Unbound::Unreadable)?.validity.not_after;
        let who = spiffe_id(leaf).map_or_else(|_| "the peer".to_owned(), |id| id.to_string());
        let own = entry.validity().map(|own| own.not_after);
        let until = own.map_or(peer, |own| own.min(peer));
        let chain = chain.iter().map(|der| der.clone().into_owned()).collect();
        let bond = Self { entry, chain, until, verified: Mutex::default() };
        if bond.holds() { Ok(bond) } else { Err(Unbound::Ended(who)) }
    }

    /// Whether something new may be begun.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.holds_for(Duration::ZERO)
    }

    fn holds_for(&self, margin: Duration) -> bool {
        let now = self.entry.clock.now();
        let Some(credentials) = self.entry.current.load_full() else { return false };
        if now.checked_add(margin).map_or(true, |then| then > self.until) {
            return false;
        }
        let mut verified = self.verified.lock();
        if verified.as_ref() != Some(&credentials.bundle) {
            if check_client_chain(&self.chain, &credentials.bundle, now).is_err() {
                return false;
            }
            *verified = Some(credentials.bundle.clone());
        }
        true
    }

    /// Completes when nothing new may be begun, or `margin` before a certificate ends: who begins stops a little earlier
    /// than who accepts, so that nothing under way is refused.
    pub async fn ended(&self, margin: Duration) {
        let mut changes = self.entry.changes.subscribe();
        loop {
            changes.borrow_and_update();
            if !self.holds_for(margin) {
                return;
            }
            let left = self.entry.clock.now().until(self.until).ok();
            let left = left.and_then(|left| Duration::try_from(left).ok()).unwrap_or_default();
            // A moment more, so that it is over then; the bound is for a clock that is set.
            let pause = (left.saturating_sub(margin) + Duration::from_millis(10)).min(CLOCK_CHECK);
            // The sender lives in the entry, which we hold: it does not end before.
            let _ = tokio::time::timeout(pause, changes.changed()).await;
        }
    }
}

impl fmt::Debug for Bond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bond").field("until", &self.until).finish_non_exhaustive()
    }
}
