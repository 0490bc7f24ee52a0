//! Follows the routes and Gateways of a [`World`] until their statuses are complete and correct.

use super::{
    api::{Api, GATEWAY},
    world::{World, key},
};
use anyhow::{Context, Result, ensure};
use http::Method;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;

/// How long statuses may take before they count as never coming.
const LIMIT: Duration = Duration::from_secs(600);
/// How often progress is told.
const PACE: Duration = Duration::from_secs(2);

/// Follows routes from its making on.
pub(super) struct Tracker {
    state: Arc<Mutex<State>>,
    task: JoinHandle<Result<()>>,
}

/// What was seen.
#[derive(Default)]
struct State {
    /// Routes that are there.
    seen: usize,
    /// Routes that are not right yet, with why; those that were never seen too.
    wrong: BTreeMap<String, String>,
    /// When the last one became right.
    done: Option<Instant>,
}

impl Tracker {
    /// Starts to follow; called inside the runtime.
    pub(super) fn start(api: Api, world: Arc<World>) -> Self {
        let wrong = world.routes.keys().map(|k| (k.clone(), "not there".to_owned())).collect();
        let state = Arc::new(Mutex::new(State { wrong, ..State::default() }));
        let shared = state.clone();
        let task = tokio::spawn(async move {
            let mut seen = BTreeSet::new();
            let take = |object: &Value, at: Instant| {
                let key = key(object);
                let Some(route) = world.routes.get(&key) else { return false };
                let why = route.wrong(object);
                let mut state = shared.lock().unwrap_or_else(PoisonError::into_inner);
                seen.insert(key.clone());
                state.seen = seen.len();
                match why {
                    Some(why) => {
                        state.wrong.insert(key, why);
                        state.done = None;
                    }
                    None => {
                        state.wrong.remove(&key);
                        if state.wrong.is_empty() {
                            state.done.get_or_insert(at);
                        }
                    }
                }
                state.done.is_some()
            };
            api.follow(&format!("{GATEWAY}/httproutes"), take).await
        });
        Self { state, task }
    }

    /// Waits until all is right, and gives how long that took after `last`. Says how it stands.
    pub(super) async fn finish(mut self, last: Instant) -> Result<Duration> {
        loop {
            let ended = tokio::time::timeout(PACE, &mut self.task).await;
            let (wrong, example, done) = self.look();
            println!("  {:5.1} s after the last: {wrong} not right", last.elapsed().as_secs_f64());
            if let Some(done) = done {
                return Ok(done.saturating_duration_since(last));
            }
            if let Ok(ended) = ended {
                ended.context("the watch broke down")??;
            }
            ensure!(
                last.elapsed() < LIMIT,
                "{wrong} routes are not right after {LIMIT:?}, such as {example:?}"
            );
        }
    }

    /// How many are right.
    pub(super) fn right(&self) -> usize {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.seen.saturating_sub(state.wrong.values().filter(|why| *why != "not there").count())
    }

    fn look(&self) -> (usize, Option<(String, String)>, Option<Instant>) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let example = state.wrong.first_key_value().map(|(k, v)| (k.clone(), v.clone()));
        (state.wrong.len(), example, state.done)
    }
}

/// `attachedRoutes` of every listener, by Gateway, as the cluster shows it.
async fn attached(api: &Api, namespace: &str) -> Result<BTreeMap<String, BTreeMap<String, u64>>> {
    let list = api.json(Method::GET, &format!("{GATEWAY}/namespaces/{namespace}/gateways"), None).await?;
    let listeners = |gateway: &Value| {
        let all = gateway["status"]["listeners"].as_array().cloned().unwrap_or_default();
        let one = |l: &Value| Some((l["name"].as_str()?.to_owned(), l["attachedRoutes"].as_u64()?));
        all.iter().filter_map(one).collect()
    };
    let name = |gateway: &Value| gateway["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    Ok(list["items"].as_array().context("items")?.iter().map(|g| (name(g), listeners(g))).collect())
}

/// Waits until `attachedRoutes` is exact on every listener, and gives how long that took after `last`.
pub(super) async fn exact(api: &Api, world: &World, last: Instant) -> Result<Duration> {
    let wanted = world.attached();
    loop {
        let shown = attached(api, super::world::HOME).await?;
        let at = last.elapsed();
        if shown == wanted {
            return Ok(at);
        }
        ensure!(at < LIMIT, "attachedRoutes: {shown:?}, expected {wanted:?}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Waits until every Gateway says this of itself.
pub(super) async fn gateways(api: &Api, kind: &str) -> Result<()> {
    let start = Instant::now();
    loop {
        let path = format!("{GATEWAY}/namespaces/{}/gateways", super::world::HOME);
        let list = api.json(Method::GET, &path, None).await?;
        let all = list["items"].as_array().context("items")?;
        let holds = |gateway: &Value| {
            let conditions = gateway["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions.iter().any(|c| c["type"] == kind && c["status"] == "True")
        };
        if !all.is_empty() && all.iter().all(holds) {
            return Ok(());
        }
        ensure!(start.elapsed() < LIMIT, "Gateways are not {kind}: {list}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
