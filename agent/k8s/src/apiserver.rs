//! An API server for tests of writers: resourceVersions with preconditions, merge patch, and server-side apply with
//! field ownership, as far as statuses need them. No sockets; time is tokio's, so it can be paused.

use http::{Request, Response};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};

/// A request as it came in.
#[derive(Clone, Debug)]
pub(crate) struct Logged {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) body: Value,
    pub(crate) at: Instant,
}

/// Answers instead of the server.
type Fault = Box<dyn FnMut(&Logged) -> Option<Response<Body>> + Send>;
/// Runs before a request is handled, as another client would.
type Meddle = Box<dyn FnMut(&ApiServer, &Logged) + Send>;

#[derive(Clone)]
pub(crate) struct ApiServer {
    state: Arc<Mutex<State>>,
    fault: Arc<Mutex<Option<Fault>>>,
    meddle: Arc<Mutex<Option<Meddle>>>,
    requests: watch::Sender<usize>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    version: u64,
    log: Vec<Logged>,
    latency: Duration,
    lacks: Vec<&'static str>,
    running: usize,
    most: usize,
}

pub(crate) const GATEWAY_API: &str = "/apis/gateway.networking.k8s.io/v1";

impl ApiServer {
    pub(crate) fn new() -> Self {
        Self {
            state: Arc::default(),
            fault: Arc::default(),
            meddle: Arc::default(),
            requests: watch::Sender::new(0),
        }
    }

    pub(crate) fn client(&self) -> kube::Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.serve(request).await) }
        });
        kube::Client::new(service, "default")
    }

    pub(crate) fn set_latency(&self, latency: Duration) {
        self.state.lock().latency = latency;
    }

    /// Fields of `status` that server-side apply does not know.
    pub(crate) fn set_lacks(&self, fields: &[&'static str]) {
        self.state.lock().lacks = fields.to_vec();
    }

    pub(crate) fn set_fault(&self, fault: impl FnMut(&Logged) -> Option<Response<Body>> + Send + 'static) {
        *self.fault.lock() = Some(Box::new(fault));
    }

    pub(crate) fn no_fault(&self) {
        *self.fault.lock() = None;
    }

    pub(crate) fn set_meddle(&self, meddle: impl FnMut(&Self, &Logged) + Send + 'static) {
        *self.meddle.lock() = Some(Box::new(meddle));
    }

    /// Creates or replaces an object of the Gateway API.
    pub(crate) fn put(&self, plural: &str, namespace: &str, name: &str, object: Value) {
        self.state.lock().store(&path(plural, namespace, name), object);
    }

    /// Stores an object of any kind.
    pub(crate) fn store(&self, path: &str, object: Value) {
        self.state.lock().store(path, object);
    }

    pub(crate) fn remove(&self, plural: &str, namespace: &str, name: &str) {
        self.state.lock().objects.remove(&path(plural, namespace, name));
    }

    pub(crate) fn edit(&self, plural: &str, namespace: &str, name: &str, edit: impl FnOnce(&mut Value)) {
        let path = path(plural, namespace, name);
        let mut state = self.state.lock();
        let mut object = state.objects[&path].clone();
        edit(&mut object);
        state.store(&path, object);
    }

    pub(crate) fn object(&self, plural: &str, namespace: &str, name: &str) -> Value {
        self.state.lock().objects.get(&path(plural, namespace, name)).cloned().unwrap_or_default()
    }

    pub(crate) fn at(&self, path: &str) -> Option<Value> {
        self.state.lock().objects.get(path).cloned()
    }

    /// All objects whose path begins like this.
    pub(crate) fn under(&self, prefix: &str) -> Vec<Value> {
        let state = self.state.lock();
        state.objects.iter().filter(|(p, _)| p.starts_with(prefix)).map(|(_, o)| o.clone()).collect()
    }

    pub(crate) fn log(&self) -> Vec<Logged> {
        self.state.lock().log.clone()
    }

    pub(crate) fn forget_log(&self) {
        self.state.lock().log.clear();
    }

    /// Writes so far (whatever was answered).
    pub(crate) fn writes(&self) -> Vec<Logged> {
        self.log().into_iter().filter(|l| l.method != "GET").collect()
    }

    /// The most requests at once.
    pub(crate) fn most_at_once(&self) -> usize {
        self.state.lock().most
    }

    /// Until `done`, which is asked after every request. An hour of (paused) time at most.
    pub(crate) async fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let mut requests = self.requests.subscribe();
        let wait = async {
            while !done(self) {
                requests.changed().await.expect("the server lives");
            }
        };
        tokio::time::timeout(Duration::from_secs(3600), wait)
            .await
            .unwrap_or_else(|_| panic!("never: {what}"));
    }

    async fn serve(&self, request: Request<Body>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let body = body.collect_bytes().await.expect("a body");
        let logged = Logged {
            method: head.method.to_string(),
            path: head.uri.path().to_owned(),
            query: head.uri.query().unwrap_or_default().to_owned(),
            body: serde_json::from_slice(&body).unwrap_or_default(),
            at: Instant::now(),
        };
        let latency = {
            let mut state = self.state.lock();
            state.running += 1;
            state.most = state.most.max(state.running);
            state.latency
        };
        let running = Running(self);
        tokio::time::sleep(latency).await;
        if let Some(meddle) = &mut *self.meddle.lock() {
            meddle(self, &logged);
        }
        let fault = self.fault.lock().as_mut().and_then(|fault| fault(&logged));
        let kind =
            head.headers.get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        let answer = {
            let mut state = self.state.lock();
            state.log.push(logged.clone());
            fault.unwrap_or_else(|| state.answer(&logged, &kind))
        };
        drop(running);
        self.requests.send_modify(|n| *n += 1);
        answer
    }
}

/// Counts a request until it is answered or cancelled.
struct Running<'a>(&'a ApiServer);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.state.lock().running -= 1;
    }
}

pub(crate) fn path(plural: &str, namespace: &str, name: &str) -> String {
    match namespace {
        "" => format!("{GATEWAY_API}/{plural}/{name}"),
        _ => format!("{GATEWAY_API}/namespaces/{namespace}/{plural}/{name}"),
    }
}

pub(crate) fn answer(code: u16, body: &Value) -> Response<Body> {
    Response::builder().status(code).body(Body::from(body.to_string().into_bytes())).expect("a response")
}

pub(crate) fn refuse(code: u16, message: &str) -> Response<Body> {
    answer(code, &json!({"kind": "Status", "status": "Failure", "code": code, "message": message}))
}

impl State {
    fn store(&mut self, path: &str, mut object: Value) {
        if self.objects.get(path) == Some(&object) {
            return;
        }
        self.version += 1;
        let version = self.version;
        let (_, name) = path.rsplit_once('/').expect("a path");
        let metadata = &mut object["metadata"];
        metadata["name"] = json!(name);
        if let Some((_, rest)) = path.split_once("/namespaces/") {
            metadata["namespace"] = json!(rest.split('/').next().expect("a namespace"));
        }
        if metadata["uid"].is_null() {
            metadata["uid"] = json!(format!("uid-{name}"));
        }
        metadata["resourceVersion"] = json!(version.to_string());
        self.objects.insert(path.to_owned(), object);
    }

    fn answer(&mut self, request: &Logged, content_type: &str) -> Response<Body> {
        let segments = request.path.split('/').skip(1).count();
        let path = request.path.strip_suffix("/status").unwrap_or(&request.path);
        match request.method.as_str() {
            "GET" if segments == 4 || segments == 6 => self.list(request),
            "GET" => match self.objects.get(path) {
                Some(object) => answer(200, object),
                None => refuse(404, "not found"),
            },
            "POST" => {
                let name = request.body["metadata"]["name"].as_str().expect("a name");
                let path = format!("{path}/{name}");
                if self.objects.contains_key(&path) {
                    return refuse(409, "it exists");
                }
                self.store(&path, request.body.clone());
                answer(201, &self.objects[&path])
            }
            method => {
                let Some(live) = self.objects.get(path).cloned() else { return refuse(404, "not found") };
                let expected = &request.body["metadata"]["resourceVersion"];
                if !expected.is_null() && *expected != live["metadata"]["resourceVersion"] {
                    return refuse(409, "the object has been modified");
                }
                let new = match (method, content_type) {
                    ("PUT", _) => request.body.clone(),
                    (_, "application/merge-patch+json") => {
                        let mut new = live;
                        merge(&mut new, &request.body);
                        new
                    }
                    (_, "application/apply-patch+yaml") => {
                        let unknown = self.lacks.iter().find(|f| !request.body["status"][**f].is_null());
                        if let Some(field) = unknown {
                            return refuse(
                                500,
                                &format!(
                                    "failed to create typed patch object: .status.{field}: field not declared in schema"
                                ),
                            );
                        }
                        applied(live, &request.body)
                    }
                    (_, other) => panic!("unknown patch {other}"),
                };
                self.store(path, new);
                answer(200, &self.objects[path])
            }
        }
    }

    fn list(&self, request: &Logged) -> Response<Body> {
        let (base, plural) = request.path.rsplit_once('/').expect("a path");
        let here = |path: &&String| path.starts_with(base) && path.split('/').rev().nth(1) == Some(plural);
        let parameter = |name: &str| {
            request.query.split('&').find_map(|p| p.strip_prefix(&format!("{name}=")).map(str::to_owned))
        };
        let limit = parameter("limit").map_or(usize::MAX, |l| l.parse().expect("a number"));
        let from: usize = parameter("continue").map_or(0, |c| c.parse().expect("a number"));
        let all: Vec<_> = self.objects.keys().filter(here).collect();
        let items: Vec<_> =
            all.iter().skip(from).take(limit).map(|path| self.objects[*path].clone()).collect();
        let next = from + items.len();
        let token = if next < all.len() { next.to_string() } else { String::new() };
        answer(200, &json!({"kind": "List", "metadata": {"continue": token}, "items": items}))
    }
}

/// RFC 7396.
fn merge(into: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (field, value) in patch {
        if value.is_null() {
            into.as_object_mut().expect("an object").remove(field);
        } else {
            merge(&mut into[field.as_str()], value);
        }
    }
}

/// Server-side apply of a status by one manager, forced.
fn applied(mut live: Value, body: &Value) -> Value {
    let manager = "weft.dev/gateway-controller";
    let entries = live["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let (ours, mut others): (Vec<_>, Vec<_>) = entries.into_iter().partition(|e| e["manager"] == manager);
    let before = ours.first().map_or(Value::Null, |e| e["fieldsV1"]["f:status"].clone());
    let now = owned("status", &body["status"]);
    drop_owned(&mut live["status"], &before, &now);
    put(&mut live["status"], &body["status"], "status");
    if !body["status"].is_null() {
        others.push(json!({
            "manager": manager, "operation": "Apply", "subresource": "status", "fieldsV1": {"f:status": now},
        }));
    }
    live["metadata"]["managedFields"] = others.into();
    live
}

/// The key of a map list.
fn key_of(field: &str) -> Option<&'static str> {
    match field {
        "conditions" => Some("type"),
        "listeners" | "supportedFeatures" => Some("name"),
        _ => None,
    }
}

fn owned(field: &str, value: &Value) -> Value {
    match (value, key_of(field)) {
        (Value::Object(fields), _) => {
            Value::Object(fields.iter().map(|(f, v)| (format!("f:{f}"), owned(f, v))).collect())
        }
        (Value::Array(items), Some(key)) => {
            let item = |i: &Value| (format!("k:{}", json!({key: i[key]})), owned("", i));
            Value::Object(items.iter().map(item).collect())
        }
        _ => Value::Object(Map::new()),
    }
}

fn drop_owned(value: &mut Value, before: &Value, now: &Value) {
    let Some(before) = before.as_object() else { return };
    for (path, inner) in before {
        if let Some(field) = path.strip_prefix("f:") {
            match now.get(path) {
                Some(now) => drop_owned(&mut value[field], inner, now),
                None => drop(value.as_object_mut().and_then(|o| o.remove(field))),
            }
        } else if let (Some(keys), Some(items)) = (path.strip_prefix("k:"), value.as_array_mut()) {
            let keys: Map<String, Value> = serde_json::from_str(keys).expect("keys");
            let is = |item: &Value| keys.iter().all(|(k, v)| item[k] == *v);
            match now.get(path) {
                Some(now) => items.iter_mut().filter(|i| is(i)).for_each(|i| drop_owned(i, inner, now)),
                None => items.retain(|i| !is(i)),
            }
        }
    }
}

fn put(into: &mut Value, applied: &Value, field: &str) {
    match (applied, key_of(field)) {
        (Value::Null, _) => {}
        (Value::Object(fields), _) => {
            for (field, value) in fields {
                put(&mut into[field.as_str()], value, field);
            }
        }
        (Value::Array(items), Some(key)) => {
            let mut held = into.as_array().cloned().unwrap_or_default();
            for item in items {
                match held.iter_mut().find(|h| h[key] == item[key]) {
                    Some(held) => put(held, item, ""),
                    None => held.push(item.clone()),
                }
            }
            *into = held.into();
        }
        _ => *into = applied.clone(),
    }
}
