//! Leader election by a `coordination.k8s.io/v1` Lease.
//!
//! [`lead`] starts it; [`Leadership`] is what others follow, and [`Term`] is what they ask right before they write.
//! Nobody's clock is compared with another's: a follower waits until it has seen the same record for as long as the
//! lease lasts; the leader stops itself before anybody can have waited that long.

mod elector;
mod record;

use self::elector::Elector;
use parking_lot::Mutex;
use std::{fmt, sync::Arc, time::Duration};
use tokio::{sync::watch, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;
use weft_core::model::Str;

/// How to lead.
#[derive(Clone, Debug)]
pub struct LeaseConfig {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// Who we are, unique among replicas: the pod's name.
    pub identity: String,
    /// How long a record stands after it was seen last (`leaseDurationSeconds`; whole seconds).
    pub duration: Duration,
    /// How often the leader renews.
    pub renew: Duration,
    /// How often a follower looks.
    pub retry: Duration,
}

impl LeaseConfig {
    /// The defaults: a crashed leader is replaced within 13 s, one that stops by itself within 2.5 s.
    #[must_use]
    pub fn new(namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            identity: identity.to_owned(),
            duration: Duration::from_secs(10),
            renew: Duration::from_secs(3),
            retry: Duration::from_secs(2),
        }
    }

    /// How long after the start of a successful renewal the leader goes on without another: a fifth less than others
    /// wait, so that a write that was just sent has arrived before anybody else leads.
    fn stands(&self) -> Duration {
        self.duration * 4 / 5
    }
}

/// Who leads, as far as we know.
#[derive(Clone, Debug)]
pub enum Leadership {
    /// We do.
    Leader {
        /// Ask it right before writing.
        term: Arc<Term>,
    },
    /// Somebody else does, or nobody.
    Follower {
        /// The holder's identity, when the Lease names one.
        holder: Option<Str>,
    },
}

impl Leadership {
    /// The term that we lead in, while it stands.
    #[must_use]
    pub fn term(&self) -> Option<&Arc<Term>> {
        match self {
            Self::Leader { term } => Some(term).filter(|t| t.stands()),
            Self::Follower { .. } => None,
        }
    }

    /// Whether we lead at this moment.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.term().is_some()
    }

    /// A leadership that nobody contests, for one controller without a cluster's Lease, and for tests. It ends with
    /// [`Term::end`].
    #[must_use]
    pub fn alone() -> Self {
        Self::Leader { term: Arc::new(Term::new(0, None)) }
    }

    /// Following nobody in particular.
    #[must_use]
    pub fn none() -> Self {
        Self::Follower { holder: None }
    }
}

/// One stretch of leadership, from taking the Lease to losing it.
pub struct Term {
    number: i32,
    until: Mutex<Option<Instant>>,
    over: CancellationToken,
}

impl Term {
    fn new(number: i32, until: Option<Instant>) -> Self {
        Self { number, until: Mutex::new(until), over: CancellationToken::new() }
    }

    /// `leaseTransitions` of the Lease: grows with every change of the holder.
    #[must_use]
    pub fn number(&self) -> i32 {
        self.number
    }

    /// Whether this term has neither ended nor outlived its last renewal. The second holds even when the task that
    /// renews has not run for a while.
    #[must_use]
    pub fn stands(&self) -> bool {
        !self.over.is_cancelled() && self.until.lock().is_none_or(|until| Instant::now() < until)
    }

    /// Completes when the term has ended.
    pub async fn ended(&self) {
        self.over.cancelled().await;
    }

    /// Ends the term: nobody may write in it any more.
    pub fn end(&self) {
        self.over.cancel();
    }

    fn renewed(&self, until: Instant) {
        *self.until.lock() = Some(until);
    }
}

impl fmt::Debug for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Term").field("number", &self.number).field("stands", &self.stands()).finish()
    }
}

/// A running candidacy. Dropping it ends the term and lets the Lease expire; [`Election::release`] is kinder.
#[derive(Debug)]
pub struct Election {
    leadership: watch::Receiver<Leadership>,
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

/// Stands for election from now on.
#[must_use]
pub fn lead(client: kube::Client, config: LeaseConfig) -> Election {
    let (sender, leadership) = watch::channel(Leadership::none());
    let stop = CancellationToken::new();
    let elector = Elector::new(client, config, sender, stop.clone());
    Election { leadership, stop, task: Some(tokio::spawn(elector.run())) }
}

impl Election {
    /// Follow this.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// Ends our term, if we lead, and gives the Lease back so that another replica leads at once. Bounded by the
    /// deadline of one call.
    pub async fn release(mut self) {
        self.stop.cancel();
        if let Some(task) = self.task.take() {
            // A panic in the task has been reported by the runtime; there is nothing to give back then.
            let _ = task.await;
        }
    }
}

impl Drop for Election {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            if let Leadership::Leader { term } = &*self.leadership.borrow() {
                term.end();
            }
        }
    }
}

#[cfg(test)]
mod tests;
