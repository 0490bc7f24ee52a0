//! Statuses to the cluster.
//!
//! [`StatusWriter`] takes the status that every object should have ([`Desired`]) and what to look at again, compares it
//! with what the cluster holds, and writes what differs: our entries, no others'. It writes only in a standing
//! [`crate::lease::Term`]. At the beginning of a term, and seldom after, everything is compared with one list of each
//! kind; so a restart writes nothing when all is right, and damage by others is mended.
//!
//! - GatewayClass, Gateway and ListenerSet have one controller: server-side apply of the whole status.
//! - `status.parents` of routes and `status.ancestors` of BackendTLSPolicies are atomic lists that controllers share:
//!   the list is read, our entries are replaced in it, and it is written only if the object is still what was read.

mod hold;
mod job;
mod kinds;
mod limit;
mod live;
mod plan;
mod progress;
mod queue;
mod render;
mod survey;
mod term;

pub use self::{
    hold::Holds,
    live::{Live, Lives},
    progress::{Counted, Progress},
};
pub(crate) use self::{hold::passes, kinds::is_shared, limit::Limiter};

use self::term::Round;
use crate::{events::Recorder, lease::Leadership};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use weft_core::{
    model::{CONTROLLER_NAME, Kind, ObjectRef, RouteKind, Snapshot, Str},
    status::AllStatuses,
};

/// Under this name the API server keeps which fields are ours.
pub(crate) const FIELD_MANAGER: &str = CONTROLLER_NAME;

/// How to write.
#[derive(Clone, Copy, Debug)]
pub struct WriterConfig {
    /// Objects at once.
    pub concurrency: usize,
    /// Calls a second on average, reads included.
    pub qps: u32,
    /// Calls at once after a quiet time.
    pub burst: u32,
    /// How long statuses wait for a better one.
    pub holds: Holds,
    /// How often everything is compared with the cluster anew.
    pub survey: Duration,
}

impl Default for WriterConfig {
    fn default() -> Self {
        Self {
            concurrency: 16,
            qps: 300,
            burst: 600,
            holds: Holds::default(),
            survey: Duration::from_secs(600),
        }
    }
}

/// What the watch knows about an object.
#[derive(Clone, Debug)]
pub struct Known {
    /// `metadata.uid`.
    pub uid: Str,
    /// `metadata.generation` that the status was made from.
    pub generation: i64,
    /// The object as the watch saw it last (see [`Lives`]), which may be newer than `generation`; it saves a read when a
    /// route or policy is new or its spec has changed. Not used for the other kinds: one that was deleted and made again
    /// may have an equal status, but not our fields.
    pub live: Option<Arc<Live>>,
}

/// Looks an object up.
pub type KnownFn = dyn Fn(&ObjectRef) -> Option<Known> + Send + Sync;

/// The status that every object should have.
#[derive(Clone)]
pub struct Desired {
    /// By object. What is not in here is none of ours: entries of ours in it are removed.
    pub statuses: Arc<AllStatuses>,
    /// What the watch knows about an object; None: it does not exist. See [`known_in`].
    pub known: Arc<KnownFn>,
    /// The version in which the cluster serves each kind; kinds that it does not serve are absent.
    pub served: Arc<BTreeMap<Kind, Str>>,
}

/// Uid and generation of an object of a Snapshot.
#[must_use]
pub fn known_in(snapshot: &Snapshot, object: &ObjectRef) -> Option<Known> {
    let route = |kind| snapshot.routes.get(&(kind, object.key.clone())).map(|r| &r.meta);
    let meta = match object.kind {
        Kind::GatewayClass => &snapshot.classes.get(&object.key.name)?.meta,
        Kind::Gateway => &snapshot.gateways.get(&object.key)?.meta,
        Kind::ListenerSet => &snapshot.listener_sets.get(&object.key)?.meta,
        Kind::HttpRoute => route(RouteKind::Http)?,
        Kind::GrpcRoute => route(RouteKind::Grpc)?,
        Kind::TlsRoute => route(RouteKind::Tls)?,
        Kind::TcpRoute => route(RouteKind::Tcp)?,
        Kind::UdpRoute => route(RouteKind::Udp)?,
        Kind::BackendTlsPolicy => &snapshot.tls_policies.get(&object.key)?.meta,
        _ => return None,
    };
    Some(Known { uid: meta.uid.clone(), generation: meta.generation, live: None })
}

/// Writes statuses while we lead.
#[derive(Debug)]
pub struct StatusWriter {
    inbox: Arc<Inbox>,
    progress: Arc<Progress>,
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
    mender: Option<JoinHandle<()>>,
}

impl StatusWriter {
    /// Starts a writer. Transitions that it has written are recorded as Events.
    #[must_use]
    pub fn start(
        client: kube::Client,
        config: WriterConfig,
        leadership: watch::Receiver<Leadership>,
        events: Option<Recorder>,
    ) -> Self {
        let inbox = Arc::new(Inbox::default());
        let progress = Arc::new(Progress::new());
        let stop = CancellationToken::new();
        let setup = term::Setup { client, config, inbox: inbox.clone(), progress: progress.clone(), events };
        let task = tokio::spawn(run(setup, leadership, stop.clone()));
        Self { inbox, progress, stop, task: Some(task), mender: None }
    }

    /// Replaces what should be, and says which objects to compare again: those whose status has changed, those that
    /// have none any more, and those that were made anew (another uid) or edited by others. One too many costs a
    /// comparison, no call. Never waits.
    pub fn publish(&self, desired: Desired, changed: &[ObjectRef]) {
        let mut mail = self.inbox.mail.lock();
        mail.desired = Some(desired);
        mail.changed.extend(changed.iter().cloned());
        drop(mail);
        self.inbox.arrived.notify_one();
    }

    /// Has every object compared again whose status somebody writes, so that entries of ours that another controller takes
    /// away are back at once and not with the next survey. Until the writer stops.
    #[must_use]
    pub fn mending(mut self, lives: Arc<Lives>) -> Self {
        let (inbox, stop) = (self.inbox.clone(), self.stop.clone());
        self.mender = Some(tokio::spawn(async move {
            while let Some(edited) = stop.run_until_cancelled(lives.edited()).await {
                inbox.mail.lock().changed.extend(edited);
                inbox.arrived.notify_one();
            }
        }));
        self
    }

    /// For metrics.
    #[must_use]
    pub fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }

    /// Stops, cancelling what is being written.
    pub async fn stop(mut self) {
        self.stop.cancel();
        for task in self.task.take().into_iter().chain(self.mender.take()) {
            // A panic in it has been reported by the runtime.
            let _ = task.await;
        }
    }
}

impl Drop for StatusWriter {
    fn drop(&mut self) {
        // The task sees it and ends what it started.
        self.stop.cancel();
    }
}

/// What was published and not yet taken in. Bounded by the number of objects: each is in it once.
#[derive(Default)]
struct Inbox {
    mail: Mutex<Mail>,
    arrived: Notify,
}

#[derive(Default)]
struct Mail {
    desired: Option<Desired>,
    changed: BTreeSet<ObjectRef>,
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox").field("changed", &self.mail.lock().changed.len()).finish_non_exhaustive()
    }
}

async fn run(setup: term::Setup, mut leadership: watch::Receiver<Leadership>, stop: CancellationToken) {
    loop {
        let term = leadership.borrow_and_update().term().cloned();
        if let Some(term) = term {
            setup.progress.set_leads(true);
            Round::new(&setup, term).run(&stop).await;
            setup.progress.set_leads(false);
        }
        if stop.is_cancelled()
            || stop.run_until_cancelled(leadership.changed()).await.is_none_or(|c| c.is_err())
        {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
