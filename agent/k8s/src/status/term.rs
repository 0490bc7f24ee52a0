//! The writer during one term.

use super::{
    Counted, Desired, Inbox, Known, Limiter, Live, Progress, WriterConfig,
    hold::pending,
    job::{Done, End, Job, Shared},
    kinds::{KINDS, Requests, is_shared, plural},
    queue::{Ended, Queue},
    render::find,
    survey::{Found, survey},
};
use crate::{
    call::{CallError, jittered},
    events::Recorder,
    lease::Term,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use weft_core::{
    model::{Kind, ObjectKey, ObjectRef},
    status::ObjectStatus,
};

/// What does not change from term to term.
pub(super) struct Setup {
    pub(super) client: kube::Client,
    pub(super) config: WriterConfig,
    pub(super) inbox: Arc<Inbox>,
    pub(super) progress: Arc<Progress>,
    pub(super) events: Option<Recorder>,
}

/// One term's state; nothing of it outlives the term, because another leader may write next.
pub(super) struct Round<'a> {
    setup: &'a Setup,
    shared: Shared,
    began: Instant,
    desired: Option<Desired>,
    queue: Queue,
    cache: HashMap<ObjectRef, Cached>,
    jobs: JoinSet<Done>,
    surveys: JoinSet<Option<Result<Found, (Kind, CallError)>>>,
    /// The kinds that the cluster serves.
    kinds: BTreeMap<Kind, Listing>,
    /// Surveys that are not counted yet.
    compared: u32,
    /// When a failure of a kind was last said.
    said: BTreeMap<(Kind, &'static str), Instant>,
}

/// Where the lists of a kind stand.
struct Listing {
    /// When to list it next; None while it is being listed.
    next: Option<Instant>,
    /// Until the first list is in, what changes waits here: so it need not be read one by one.
    waiting: Option<BTreeSet<ObjectRef>>,
}

struct Cached {
    live: Live,
    written: Option<Instant>,
    stuck: Option<u64>,
}

/// A failure is said once in this time.
const QUIET: Duration = Duration::from_secs(60);
/// When a kind could not be listed.
const SURVEY_AGAIN: Duration = Duration::from_secs(30);
/// How long a newer status is waited for when the cluster has a newer generation.
const BEHIND: Duration = Duration::from_secs(1);

impl<'a> Round<'a> {
    pub(super) fn new(setup: &'a Setup, term: Arc<Term>) -> Self {
        let Setup { client, config, progress, .. } = setup;
        let shared = Shared {
            client: client.clone(),
            term,
            limiter: Arc::new(Limiter::new(config.qps, config.burst)),
            progress: progress.clone(),
            lacks: Arc::default(),
        };
        Self {
            setup,
            shared,
            began: Instant::now(),
            desired: None,
            queue: Queue::default(),
            cache: HashMap::new(),
            jobs: JoinSet::new(),
            surveys: JoinSet::new(),
            kinds: BTreeMap::new(),
            compared: 0,
            said: BTreeMap::new(),
        }
    }

    /// Until the term ends or the writer is stopped; what is being sent then is cancelled.
    pub(super) async fn run(mut self, stop: &CancellationToken) {
        let term = self.shared.term.clone();
        self.take_mail();
        loop {
            self.start_surveys();
            self.start_jobs();
            self.setup.progress.set_queue(self.queue.len(), self.jobs.len(), self.queue.oldest());
            // Only now: who sees the last survey counted must see what it has queued.
            for _ in 0..std::mem::take(&mut self.compared) {
                self.setup.progress.add(Counted::Surveys);
            }
            let wake = self.wake();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = term.ended() => break,
                Some(done) = self.jobs.join_next() => match done {
                    Ok(done) => self.finished(done),
                    // A panic in a job has been reported; its object waits for the next survey.
                    Err(error) => warn!(%error, "a status was not written"),
                },
                Some(found) = self.surveys.join_next() => match found {
                    Ok(Some(found)) => self.surveyed(found),
                    Ok(None) => {}
                    Err(error) => warn!(%error, "a kind was not compared"),
                },
                () = self.setup.inbox.arrived.notified() => self.take_mail(),
                () = sleep_until(wake) => {}
            }
        }
        self.jobs.shutdown().await;
        self.surveys.shutdown().await;
        self.setup.progress.set_queue(0, 0, None);
    }

    fn wake(&self) -> Instant {
        let far = Instant::now() + Duration::from_secs(3600);
        let free = self.jobs.len() < self.setup.config.concurrency;
        let due = self.queue.next_due().filter(|_| free);
        let survey = self.kinds.values().filter_map(|l| l.next).min();
        due.into_iter().chain(survey).min().unwrap_or(far)
    }

    fn take_mail(&mut self) {
        let (desired, changed) = {
            let mut mail = self.setup.inbox.mail.lock();
            (mail.desired.clone(), std::mem::take(&mut mail.changed))
        };
        let Some(desired) = desired else { return };
        // A kind that is served no more would stay due for ever.
        self.kinds.retain(|kind, _| desired.served.contains_key(kind));
        for kind in KINDS.into_iter().filter(|k| desired.served.contains_key(k)) {
            let now = || Listing { next: Some(Instant::now()), waiting: Some(BTreeSet::new()) };
            self.kinds.entry(kind).or_insert_with(now);
        }
        self.desired = Some(desired);
        for object in changed {
            match self.kinds.get_mut(&object.kind) {
                Some(Listing { waiting: Some(waiting), .. }) => {
                    waiting.insert(object);
                }
                Some(_) => self.push(&object),
                // Not served: there is nothing to write to.
                None => {}
            }
        }
    }

    fn start_surveys(&mut self) {
        let now = Instant::now();
        let due: Vec<_> = self
            .kinds
            .iter()
            .filter(|(_, l)| l.next.is_some_and(|at| at <= now))
            .map(|(kind, _)| *kind)
            .collect();
        for kind in due {
            let Some(requests) = self.requests(kind) else { continue };
            let (shared, inbox) = (self.shared.clone(), self.setup.inbox.clone());
            self.surveys.spawn(survey(kind, requests, shared, inbox));
            if let Some(listing) = self.kinds.get_mut(&kind) {
                listing.next = None;
            }
        }
    }

    fn surveyed(&mut self, found: Result<Found, (Kind, CallError)>) {
        let (kind, again, dirty) = match found {
            Ok(Found { kind, live, differs }) => {
                self.learn(kind, live);
                self.compared += 1;
                (kind, jittered(self.setup.config.survey), differs)
            }
            Err((kind, error)) => {
                self.say(kind, &error, "list");
                // Then objects are read one by one.
                let first = self.kinds.get(&kind).is_some_and(|l| l.waiting.is_some());
                (kind, jittered(SURVEY_AGAIN), if first { self.all(kind) } else { Vec::new() })
            }
        };
        let Some(listing) = self.kinds.get_mut(&kind) else { return };
        listing.next = Some(Instant::now() + again);
        let waited = listing.waiting.take().unwrap_or_default();
        for object in waited.into_iter().chain(dirty) {
            self.push(&object);
        }
    }

    /// A list is newer than what we know, except of what we have written since it was read.
    fn learn(&mut self, kind: Kind, live: BTreeMap<ObjectRef, Live>) {
        self.cache.retain(|object, _| object.kind != kind || live.contains_key(object));
        for (object, live) in live {
            match self.cache.get_mut(&object) {
                Some(cached) if cached.live.uid == live.uid && !live.is_newer_than(&cached.live) => {}
                Some(cached) => cached.live = live,
                None => {
                    self.cache.insert(object, Cached { live, written: None, stuck: None });
                }
            }
        }
    }

    fn all(&self, kind: Kind) -> Vec<ObjectRef> {
        let Some(desired) = &self.desired else { return Vec::new() };
        let first = ObjectRef { kind, key: ObjectKey::new("", "") };
        let of_kind = desired.statuses.range(first..).map(|(object, _)| object);
        of_kind.take_while(|o| o.kind == kind).cloned().collect()
    }

    fn requests(&self, kind: Kind) -> Option<Requests> {
        Requests::new(kind, self.desired.as_ref()?.served.get(&kind)?)
    }

    fn push(&mut self, object: &ObjectRef) {
        let Some(desired) = &self.desired else { return };
        let wanted = desired.statuses.get(object).map(|w| &**w);
        let cached = self.cache.get(object);
        let mut floor = cached.and_then(|c| c.written).map(|at| at + self.setup.config.holds.between);
        if cached.is_some_and(|c| wanted.is_some_and(|w| takes_back(w, &c.live))) {
            floor = floor.max(Some(self.began + self.setup.config.holds.settling));
        }
        self.queue.push(object, self.setup.config.holds.of(wanted), floor, Instant::now());
    }

    fn start_jobs(&mut self) {
        while self.jobs.len() < self.setup.config.concurrency && self.shared.term.stands() {
            let Some(object) = self.queue.pop(Instant::now()) else { return };
            match self.job(&object) {
                Some(job) => {
                    self.jobs.spawn(job.run(self.shared.clone()));
                }
                None => {
                    self.cache.remove(&object);
                    self.queue.done(&object);
                }
            }
        }
    }

    /// None: the object does not exist, as far as the watch has seen, or its kind is not served.
    fn job(&self, object: &ObjectRef) -> Option<Job> {
        let desired = self.desired.as_ref()?;
        let known = (desired.known)(object)?;
        let cached = self.cache.get(object);
        Some(Job {
            object: object.clone(),
            wanted: desired.statuses.get(object).cloned(),
            requests: self.requests(object.kind)?,
            live: freshest(object.kind, &known, cached.map(|c| &c.live)),
            known,
            stuck: cached.and_then(|c| c.stuck),
            impatient: self.queue.has_failed(object),
        })
    }

    fn finished(&mut self, done: Done) {
        let Done { object, live, wrote, stuck, transitions, end } = done;
        let now = Instant::now();
        if let (Some(events), Some(live)) = (&self.setup.events, &live) {
            let version = self.desired.as_ref().and_then(|d| d.served.get(&object.kind));
            for transition in transitions {
                events.record(&object, &live.uid, version.map_or("v1", |v| v), transition);
            }
        }
        match live {
            Some(live) => {
                let before = self.cache.remove(&object).and_then(|c| c.written);
                let written = if wrote { Some(now) } else { before };
                self.cache.insert(object.clone(), Cached { live, written, stuck });
            }
            None => {
                self.cache.remove(&object);
            }
        }
        match end {
            End::Settled | End::Replaced | End::Lost => self.done(&object),
            End::Gone => {
                self.setup.progress.add(Counted::Gone);
                self.done(&object);
            }
            End::Behind => self.queue.failed(&object, now, |_| BEHIND),
            End::Failed(error, verb) => {
                let counted = if matches!(error, CallError::Forbidden(_)) {
                    Counted::Forbidden
                } else {
                    Counted::Failures
                };
                self.setup.progress.add(counted);
                self.say(object.kind, &error, verb);
                self.queue.failed(&object, now, |failures| backoff(&error, failures));
            }
        }
    }

    fn done(&mut self, object: &ObjectRef) {
        if self.queue.done(object) == Ended::Again {
            self.push(object);
        }
    }

    /// Says a failure, once a minute for each kind and verb.
    fn say(&mut self, kind: Kind, error: &CallError, verb: &'static str) {
        let now = Instant::now();
        if self.said.get(&(kind, verb)).is_some_and(|at| now - *at < QUIET) {
            return;
        }
        self.said.insert((kind, verb), now);
        let resource = plural(kind).unwrap_or_default();
        let sub = if verb == "patch" { "/status" } else { "" };
        match error {
            CallError::Forbidden(_) => warn!(
                %error,
                "the controller's ClusterRole lacks verb {verb} on {resource}{sub} (apiGroup gateway.networking.k8s.io)"
            ),
            _ => warn!(%error, "cannot {verb} {resource}{sub}; trying again"),
        }
    }
}

/// What is known of an object in the generation that the status was made from, or a newer one; None: read it.
fn freshest(kind: Kind, known: &Known, cached: Option<&Live>) -> Option<Live> {
    let fits = |live: &&Live| live.uid == known.uid && live.generation >= known.generation;
    let watched = known.live.as_deref().filter(|_| is_shared(kind));
    let (cached, watched) = (cached.filter(fits), watched.filter(fits));
    match (cached, watched) {
        (Some(cached), Some(watched)) if watched.is_newer_than(cached) => Some(watched.clone()),
        (Some(live), _) | (None, Some(live)) => Some(live.clone()),
        (None, None) => None,
    }
}

/// Whether this status says that a Gateway waits to be served which the cluster shows as served in this generation.
fn takes_back(wanted: &ObjectStatus, live: &Live) -> bool {
    let Some(condition) = pending(wanted) else { return false };
    let status = live.status();
    find(&status["conditions"], "type", "Programmed")
        .is_some_and(|c| c["status"] == "True" && c["observedGeneration"] == condition.observed_generation)
}

/// How long to wait after so many failures in a row.
fn backoff(error: &CallError, failures: u32) -> Duration {
    let seconds = match error {
        // A rule is missing: somebody has to add it.
        CallError::Forbidden(_) => 30,
        // The same request will be refused again, until the status or the CRD changes.
        CallError::Refused { .. } => 30 << failures.min(4),
        _ => 1 << (failures - 1).min(5),
    };
    jittered(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(uid: &str, generation: i64, version: u32) -> Live {
        let metadata = serde_json::json!({
            "name": "a", "uid": uid, "generation": generation, "resourceVersion": version.to_string(),
        });
        Live::of(&serde_json::json!({ "metadata": metadata })).expect("an object")
    }

    /// The status was made from generation 2.
    #[test]
    fn the_newest_that_is_not_older_than_the_status() {
        let check = |kind, cached: Option<Live>, watched: Option<Live>, want: Option<&str>| {
            let known = Known { uid: "u".into(), generation: 2, live: watched.map(Arc::new) };
            let found = freshest(kind, &known, cached.as_ref());
            assert_eq!(
                found.map(|l| l.resource_version.to_string()).as_deref(),
                want,
                "{cached:?} {known:?}"
            );
        };
        let route = Kind::HttpRoute;
        check(route, None, None, None);
        check(route, None, Some(live("u", 2, 7)), Some("7"));
        check(route, Some(live("u", 2, 9)), Some(live("u", 2, 7)), Some("9"));
        check(route, Some(live("u", 1, 5)), Some(live("u", 2, 7)), Some("7"));
        // Ahead of the status: who writes waits for a newer one, and need not read to know.
        check(route, Some(live("u", 2, 5)), Some(live("u", 3, 7)), Some("7"));
        // Behind it, or another object: only a read can tell.
        check(route, Some(live("u", 1, 5)), Some(live("u", 1, 4)), None);
        check(route, Some(live("old", 2, 5)), None, None);
        // What is ours in it is not in the watch.
        check(Kind::Gateway, None, Some(live("u", 2, 7)), None);
    }
}
