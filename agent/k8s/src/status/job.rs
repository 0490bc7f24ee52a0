//! One object: compare, write, compare again.

use super::{
    Counted, Known, Limiter, Live, Progress,
    kinds::{Requests, list_of_many},
    plan::{Context, Plan, plan},
    render,
};
use crate::{
    call::{CallError, call},
    events::{Transition, transitions},
    lease::Term,
};
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};
use tracing::warn;
use weft_core::{
    model::{CONTROLLER_NAME, Kind, ObjectRef},
    status::ObjectStatus,
};

/// What all jobs of a term share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) client: kube::Client,
    pub(super) term: Arc<Term>,
    pub(super) limiter: Arc<Limiter>,
    pub(super) progress: Arc<Progress>,
    /// Optional fields of `status` that the cluster's CRDs lack, learned from refusals.
    pub(super) lacks: Arc<Mutex<BTreeSet<(Kind, &'static str)>>>,
}

/// One object's work.
pub(super) struct Job {
    pub(super) object: ObjectRef,
    pub(super) wanted: Option<Arc<ObjectStatus>>,
    pub(super) known: Known,
    pub(super) requests: Requests,
    /// What the cluster held last, if that is not known to be old.
    pub(super) live: Option<Live>,
    /// A write with this hash changed nothing at this version of the object: see [`Done::stuck`].
    pub(super) stuck: Option<u64>,
    /// Write even if the cluster has a newer generation than the one that the status was made from.
    pub(super) impatient: bool,
}

/// How a job went.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) object: ObjectRef,
    pub(super) live: Option<Live>,
    pub(super) wrote: bool,
    /// The API server took a write and yet does not show it (it drops what it does not know). Not to be repeated.
    pub(super) stuck: Option<u64>,
    pub(super) transitions: Vec<Transition>,
    pub(super) end: End,
}

#[derive(Debug)]
pub(super) enum End {
    /// The cluster holds what it should.
    Settled,
    /// The object is not there.
    Gone,
    /// The object is a new one under the same name: the watch will tell.
    Replaced,
    /// The cluster has a newer generation: a newer status should come.
    Behind,
    /// We do not lead any more.
    Lost,
    /// A call failed; with the verb and resource that it needs.
    Failed(CallError, &'static str),
}

/// Fields that v1.6.1 has and some bundles since v1.2.0 have not.
const OPTIONAL: [(Kind, &str); 2] =
    [(Kind::Gateway, "attachedListenerSets"), (Kind::GatewayClass, "supportedFeatures")];

/// Calls for one object before others get their turn.
const ROUNDS: u32 = 6;

impl Job {
    pub(super) async fn run(mut self, shared: Shared) -> Done {
        let mut done = Done {
            object: self.object.clone(),
            live: None,
            wrote: false,
            stuck: self.stuck,
            transitions: Vec::new(),
            end: End::Settled,
        };
        done.end = self.settle(&shared, &mut done).await;
        done.live = self.live;
        done
    }

    async fn settle(&mut self, shared: &Shared, done: &mut Done) -> End {
        let mut last = (CallError::Conflict("it changes too fast".to_owned()), "get");
        for _ in 0..ROUNDS {
            let step = match self.live.take() {
                Some(live) => self.write(shared, live, done).await,
                None => self.read(shared).await,
            };
            match step {
                Ok(Some(end)) => return end,
                Ok(None) => {}
                Err((CallError::Gone, _)) => return End::Gone,
                Err((error, verb)) if self.again(shared, &error) => last = (error, verb),
                Err((error, verb)) => return End::Failed(error, verb),
            }
        }
        End::Failed(last.0, last.1)
    }

    async fn read(&mut self, shared: &Shared) -> Result<Option<End>, (CallError, &'static str)> {
        let get = |e| (e, "get");
        let request = self.requests.get(&self.object).map_err(get)?;
        let Some(answer) = send(shared, request).await else { return Ok(Some(End::Lost)) };
        shared.progress.add(Counted::Reads);
        self.live = Some(read(&answer.map_err(get)?).map_err(get)?);
        Ok(None)
    }

    /// Some: nothing is left to do.
    async fn write(
        &mut self,
        shared: &Shared,
        live: Live,
        done: &mut Done,
    ) -> Result<Option<End>, (CallError, &'static str)> {
        if live.uid != self.known.uid {
            return Ok(Some(End::Replaced));
        }
        if live.generation > self.known.generation && !self.impatient {
            self.live = Some(live);
            return Ok(Some(End::Behind));
        }
        let plan = self.plan(shared, &live);
        let hash = hash(&plan, &live);
        if plan == Plan::Nothing || done.stuck == Some(hash) {
            if !done.wrote {
                shared.progress.add(Counted::Unchanged);
            }
            self.live = Some(live);
            return Ok(Some(End::Settled));
        }
        let patch = |e| (e, "patch");
        let request = self.request(&plan, &live).map_err(patch)?;
        let Some(answer) = send(shared, request).await else { return Ok(Some(End::Lost)) };
        let after = match answer {
            Ok(body) => read(&body).map_err(patch)?,
            Err(error) => {
                // A conflict says that `live` is old; after other failures it is still the best that is known.
                self.live = Some(live).filter(|_| !matches!(error, CallError::Conflict(_)));
                return Err((error, "patch"));
            }
        };
        shared.progress.add(Counted::Writes);
        done.wrote = true;
        done.transitions.extend(transitions(self.object.kind, &live.status(), &after.status()));
        if !self.fits(&after) {
            shared.progress.add(Counted::Overflows);
            warn!(object = %self.object, "its status is full of other controllers' entries: ours does not fit");
        }
        let next = self.plan(shared, &after);
        let unheard = plan == next && next != Plan::Nothing;
        done.stuck = unheard.then(|| self::hash(&next, &after));
        self.live = Some(after);
        Ok((next == Plan::Nothing || unheard).then_some(End::Settled))
    }

    fn plan(&self, shared: &Shared, live: &Live) -> Plan {
        let lacks: Vec<_> = shared
            .lacks
            .lock()
            .iter()
            .filter(|(kind, _)| *kind == self.object.kind)
            .map(|(_, f)| *f)
            .collect();
        let context = Context { now: &now(), lacks: &lacks };
        plan(&self.object, self.wanted.as_deref(), live, context)
    }

    /// Whether all our entries found a place.
    fn fits(&self, after: &Live) -> bool {
        let Some((list, ..)) = list_of_many(self.object.kind) else { return true };
        let status = after.status();
        let held = status[list].as_array().map_or(&[][..], Vec::as_slice);
        let ours = held.iter().filter(|e| e["controllerName"] == CONTROLLER_NAME).count();
        ours >= render::entries(self.wanted.as_deref()).len()
    }

    /// The resourceVersion makes the API server refuse the write when the object is not the one that was compared.
    fn request(&self, plan: &Plan, live: &Live) -> Result<http::Request<Vec<u8>>, CallError> {
        match plan {
            Plan::Merge(status) => {
                let body = json!({"metadata": {"resourceVersion": *live.resource_version}, "status": status});
                self.requests.merge(&self.object, &body)
            }
            Plan::Apply(status) => {
                let mut body = json!({
                    "apiVersion": self.requests.api_version(),
                    "kind": self.object.kind.as_str(),
                    "metadata": {"name": *self.object.key.name, "resourceVersion": *live.resource_version},
                });
                if !self.object.key.namespace.is_empty() {
                    body["metadata"]["namespace"] = json!(*self.object.key.namespace);
                }
                if let Some(status) = status {
                    body["status"] = status.clone();
                }
                self.requests.apply(&self.object, &body)
            }
            Plan::Nothing => Err(CallError::Refused { code: 0, message: "nothing to write".to_owned() }),
        }
    }

    /// Whether it is worth trying at once (after what was asked to wait).
    fn again(&self, shared: &Shared, error: &CallError) -> bool {
        match error {
            CallError::Conflict(_) => {
                shared.progress.add(Counted::Conflicts);
                true
            }
            CallError::Throttled(wait) => {
                shared.progress.add(Counted::Throttled);
                shared.limiter.pause(*wait);
                true
            }
            // Server-side apply refuses fields that the CRD does not have ("field not declared in schema"), with a
            // code that depends on the version of the API server.
            CallError::Refused { message, .. } | CallError::Unavailable(message) => {
                let mut learned = false;
                for (kind, field) in OPTIONAL {
                    if kind == self.object.kind && message.contains(&format!(".status.{field}")) {
                        learned |= shared.lacks.lock().insert((kind, field));
                    }
                }
                learned
            }
            CallError::Gone | CallError::Forbidden(_) => false,
        }
    }
}

/// Sends while the term stands; None when it does not.
pub(super) async fn send(
    shared: &Shared,
    request: http::Request<Vec<u8>>,
) -> Option<Result<Vec<u8>, CallError>> {
    let term = &shared.term;
    tokio::select! {
        biased;
        () = term.ended() => None,
        answer = async {
            shared.limiter.acquire().await;
            // Right before sending: the task that ends the term may itself be late.
            if term.stands() { Some(call(&shared.client, request).await) } else { None }
        } => answer,
    }
}

fn read(body: &[u8]) -> Result<Live, CallError> {
    Live::read(body).ok_or_else(|| CallError::Unavailable("its answer is no object".to_owned()))
}

/// RFC 3339 in seconds, as `metav1.Time` is written.
pub(super) fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn hash(plan: &Plan, live: &Live) -> u64 {
    let body = match plan {
        Plan::Nothing => &Value::Null,
        Plan::Apply(status) => status.as_ref().unwrap_or(&Value::Null),
        Plan::Merge(status) => status,
    };
    let mut hasher = DefaultHasher::new();
    (body.to_string(), &live.resource_version).hash(&mut hasher);
    hasher.finish()
}
