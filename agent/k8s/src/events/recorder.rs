//! Sends Events.

use super::{
    Transition,
    series::{Book, Key, Sent, Verdict},
};
use crate::{
    call::{CallError, call},
    lease::Leadership,
    status::Limiter,
};
use k8s_openapi::jiff::Timestamp;
use kube::{
    api::{Patch, PatchParams, PostParams},
    core::Request,
};
use serde_json::{Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval},
};
use tracing::{debug, warn};
use weft_core::model::{CONTROLLER_NAME, ObjectRef, Str};

/// How to record.
#[derive(Clone, Debug)]
pub struct RecorderConfig {
    /// `reportingInstance`: the pod's name.
    pub instance: String,
    /// Events a second on average.
    pub qps: u32,
}

/// Records Events in the background; cheap to clone. Ends when the last clone is dropped and what was recorded is sent.
#[derive(Clone, Debug)]
pub struct Recorder {
    queue: mpsc::Sender<Happening>,
    counts: Arc<EventCounts>,
}

/// For metrics.
#[derive(Debug, Default)]
pub struct EventCounts {
    sent: AtomicU64,
    counted: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
}

impl EventCounts {
    /// Events created or updated.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Counted in a series without a call.
    #[must_use]
    pub fn counted(&self) -> u64 {
        self.counted.load(Ordering::Relaxed)
    }

    /// Dropped: the queue was full, the object had too many, or we do not lead.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Refused by the API server, or it did not answer.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct Happening {
    object: ObjectRef,
    uid: Str,
    version: Str,
    transition: Transition,
}

/// Events wait here while the API server is slow; more are dropped.
const QUEUE: usize = 1024;
/// The API server takes no longer note (events.k8s.io/v1 validation).
const MAX_NOTE: usize = 1024;

impl Recorder {
    /// Starts a recorder that sends while we lead.
    #[must_use]
    pub fn start(
        client: kube::Client,
        config: RecorderConfig,
        leadership: watch::Receiver<Leadership>,
    ) -> Self {
        let (queue, happenings) = mpsc::channel(QUEUE);
        let counts = Arc::new(EventCounts::default());
        let limiter = Limiter::new(config.qps, 50);
        let sender = Sender {
            client,
            config,
            leadership,
            counts: counts.clone(),
            limiter,
            book: Book::default(),
            said: None,
        };
        tokio::spawn(sender.run(happenings));
        Self { queue, counts }
    }

    /// For metrics.
    #[must_use]
    pub fn counts(&self) -> Arc<EventCounts> {
        self.counts.clone()
    }

    /// Records that something about an object needs a person. Never waits.
    pub fn warn(&self, object: &ObjectRef, uid: &Str, version: &str, (reason, note): (&str, String)) {
        let transition = Transition { warning: true, reason: reason.to_owned(), note };
        self.record(object, uid, version, transition);
    }

    /// Never waits.
    pub(crate) fn record(&self, object: &ObjectRef, uid: &Str, version: &str, transition: Transition) {
        let happening =
            Happening { object: object.clone(), uid: uid.clone(), version: version.into(), transition };
        if self.queue.try_send(happening).is_err() {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Sender {
    client: kube::Client,
    config: RecorderConfig,
    leadership: watch::Receiver<Leadership>,
    counts: Arc<EventCounts>,
    limiter: Limiter,
    book: Book,
    said: Option<Instant>,
}

impl Sender {
    async fn run(mut self, mut happenings: mpsc::Receiver<Happening>) {
        let mut flush = interval(Duration::from_secs(30));
        flush.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                happening = happenings.recv() => match happening {
                    Some(happening) => self.take(happening).await,
                    None => return,
                },
                _ = flush.tick() => {
                    for (event, count) in self.book.due(Instant::now()) {
                        self.update(&event, count).await;
                    }
                }
            }
        }
    }

    async fn take(&mut self, happening: Happening) {
        let key = Key { uid: happening.uid.clone(), transition: happening.transition.clone() };
        let drop = |counter: &AtomicU64| {
            counter.fetch_add(1, Ordering::Relaxed);
        };
        if !self.leads() {
            return drop(&self.counts.dropped);
        }
        match self.book.record(&key, Instant::now()) {
            Verdict::Create => self.create(key, &happening).await,
            Verdict::Update(event, count) => self.update(&event, count).await,
            Verdict::Counted => drop(&self.counts.counted),
            Verdict::Drop => drop(&self.counts.dropped),
        }
    }

    async fn create(&mut self, key: Key, happening: &Happening) {
        let (event, body) = event(happening, &self.config.instance, Timestamp::now());
        let request = events(&event.namespace).create(&PostParams::default(), body.to_string().into_bytes());
        if self.send(request).await.is_ok() {
            self.book.created(key, event, Instant::now());
        }
    }

    async fn update(&mut self, event: &Sent, count: i32) {
        let series = json!({"series": {"count": count, "lastObservedTime": micro(Timestamp::now())}});
        let request =
            events(&event.namespace).patch(&event.name, &PatchParams::default(), &Patch::Merge(series));
        if let Err(CallError::Gone) = self.send(request).await {
            // It has expired: the next one is a new Event.
            self.book.gone(event);
        }
    }

    async fn send(
        &mut self,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<(), CallError> {
        let request = request.map_err(|e| CallError::Refused { code: 0, message: e.to_string() })?;
        self.limiter.acquire().await;
        let answer = if self.leads() {
            call(&self.client, request).await
        } else {
            Err(CallError::Refused { code: 0, message: "we do not lead".to_owned() })
        };
        match &answer {
            Ok(_) => {
                self.counts.sent.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                self.counts.failed.fetch_add(1, Ordering::Relaxed);
                self.say(error);
            }
        }
        answer.map(|_| ())
    }

    fn say(&mut self, error: &CallError) {
        if let CallError::Throttled(wait) = error {
            self.limiter.pause(*wait);
        }
        let now = Instant::now();
        let quiet = self.said.is_some_and(|at| now - at < Duration::from_secs(60));
        match error {
            CallError::Gone => {}
            _ if quiet => debug!(%error, "an Event was not recorded"),
            _ => {
                self.said = Some(now);
                warn!(%error, "an Event was not recorded (needs create, patch on events of events.k8s.io)");
            }
        }
    }

    fn leads(&self) -> bool {
        self.leadership.borrow().leads()
    }
}

fn events(namespace: &str) -> Request {
    Request::new(format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events"))
}

fn event(happening: &Happening, instance: &str, at: Timestamp) -> (Sent, Value) {
    let Happening { object, uid, version, transition } = happening;
    // Events of cluster-scoped objects are in `default` (events.k8s.io/v1 validation).
    let namespace: Str = match &*object.key.namespace {
        "" => "default".into(),
        _ => object.key.namespace.clone(),
    };
    // As client-go names them: the object and the time.
    let mut prefix = &*object.key.name;
    prefix = &prefix[..prefix.floor_char_boundary(230)];
    let name = format!("{}.{:x}", prefix.trim_end_matches(['.', '-']), at.as_nanosecond());
    let mut regarding = json!({
        "apiVersion": match object.kind.group() {
            "" => version.to_string(),
            group => format!("{group}/{version}"),
        },
        "kind": object.kind.as_str(),
        "name": *object.key.name,
        "uid": **uid,
    });
    if !object.key.namespace.is_empty() {
        regarding["namespace"] = json!(*object.key.namespace);
    }
    let body = json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": *namespace},
        "eventTime": micro(at),
        "reportingController": CONTROLLER_NAME,
        "reportingInstance": &instance[..instance.floor_char_boundary(128)],
        "action": if transition.warning { "Reject" } else { "Program" },
        "reason": transition.reason,
        "type": if transition.warning { "Warning" } else { "Normal" },
        "note": shortened(&transition.note),
        "regarding": regarding,
    });
    (Sent { namespace, name }, body)
}

fn shortened(note: &str) -> String {
    if note.len() <= MAX_NOTE {
        return note.to_owned();
    }
    format!("{}…", &note[..note.floor_char_boundary(MAX_NOTE - "…".len())])
}

/// `metav1.MicroTime`.
fn micro(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}
