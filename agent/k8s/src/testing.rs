//! An API server in the test's own process: list, watch, get, write, discovery, and everything that goes wrong with them.
//!
//! A `tower` service behind a real [`kube::Client`]: no socket, so nothing to collide and nothing to wait for. It keeps
//! objects as JSON, counts resourceVersion, uid and generation as a real one does, and records every request.
//!
//! Left out: admission, server-side apply's field ownership (an apply is a JSON merge that creates), finalizers,
//! garbage collection.

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::sync::{mpsc, watch};

/// A request as the server saw it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Recorded {
    pub(crate) method: String,
    pub(crate) path: String,
    /// Decoded `key=value` pairs.
    pub(crate) query: BTreeMap<String, String>,
    pub(crate) content_type: String,
    /// `Null` without a body.
    pub(crate) body: Value,
}

/// The server. Clones are handles of the same one.
#[derive(Clone)]
pub(crate) struct FakeApi {
    inner: Arc<Mutex<Inner>>,
    /// Counts writes and requests, so that tests wait instead of sleeping.
    moved: watch::Sender<u64>,
}

/// `(group, plural)`.
type Resource = (String, String);
/// `(resource, namespace, name)`.
type Key = (Resource, String, String);
type Line = Result<Bytes, String>;
type Answer = UnsyncBoxBody<Bytes, String>;

#[derive(Default)]
struct Inner {
    served: BTreeMap<Resource, Served>,
    objects: BTreeMap<Key, Value>,
    /// Every change since the last compaction.
    history: Vec<Change>,
    watchers: Vec<Watcher>,
    requests: Vec<Recorded>,
    version: u64,
    /// Watches from before this are 410.
    oldest: u64,
    away: bool,
    /// HTTP status for a plural.
    failing: BTreeMap<String, u16>,
    /// A field that no definition has; none when empty.
    undeclared: String,
    streaming: bool,
    page_size: usize,
}

#[derive(Clone)]
struct Served {
    kind: String,
    namespaced: bool,
    versions: Vec<String>,
}

#[derive(Clone)]
struct Change {
    version: u64,
    resource: Resource,
    old: Option<Value>,
    new: Option<Value>,
}

struct Watcher {
    scope: Scope,
    lines: mpsc::UnboundedSender<Line>,
}

/// What a list or watch asks for.
#[derive(Clone)]
struct Scope {
    resource: Resource,
    api_version: String,
    namespace: String,
    fields: String,
    labels: String,
    metadata_only: bool,
}

/// group, versions, plural, kind, namespaced.
const DEFAULT: &[(&str, &[&str], &str, &str, bool)] = &[
    ("", &["v1"], "services", "Service", true),
    ("", &["v1"], "serviceaccounts", "ServiceAccount", true),
    ("", &["v1"], "namespaces", "Namespace", false),
    ("", &["v1"], "nodes", "Node", false),
    ("", &["v1"], "pods", "Pod", true),
    ("", &["v1"], "secrets", "Secret", true),
    ("", &["v1"], "configmaps", "ConfigMap", true),
    ("", &["v1"], "events", "Event", true),
    ("events.k8s.io", &["v1"], "events", "Event", true),
    ("coordination.k8s.io", &["v1"], "leases", "Lease", true),
    ("discovery.k8s.io", &["v1"], "endpointslices", "EndpointSlice", true),
    ("apiextensions.k8s.io", &["v1"], "customresourcedefinitions", "CustomResourceDefinition", false),
    ("gateway.networking.k8s.io", &["v1", "v1beta1"], "gatewayclasses", "GatewayClass", false),
    ("gateway.networking.k8s.io", &["v1", "v1beta1"], "gateways", "Gateway", true),
    ("gateway.networking.k8s.io", &["v1"], "listenersets", "ListenerSet", true),
    ("gateway.networking.k8s.io", &["v1", "v1beta1"], "httproutes", "HTTPRoute", true),
    ("gateway.networking.k8s.io", &["v1"], "grpcroutes", "GRPCRoute", true),
    ("gateway.networking.k8s.io", &["v1", "v1alpha3", "v1alpha2"], "tlsroutes", "TLSRoute", true),
    ("gateway.networking.k8s.io", &["v1", "v1alpha2"], "tcproutes", "TCPRoute", true),
    ("gateway.networking.k8s.io", &["v1", "v1alpha2"], "udproutes", "UDPRoute", true),
    ("gateway.networking.k8s.io", &["v1", "v1beta1"], "referencegrants", "ReferenceGrant", true),
    ("gateway.networking.k8s.io", &["v1", "v1alpha3"], "backendtlspolicies", "BackendTLSPolicy", true),
    ("weft.dev", &["v1alpha1"], "workloadslices", "WorkloadSlice", true),
    ("weft.dev", &["v1alpha1"], "weftgatewayconfigs", "WeftGatewayConfig", true),
];

impl FakeApi {
    /// A server with every kind that Weft reads or writes, and no object.
    pub(crate) fn new() -> Self {
        let inner = Inner { streaming: true, page_size: 500, ..Inner::default() };
        let api = Self { inner: Arc::new(Mutex::new(inner)), moved: watch::Sender::new(0) };
        for (group, versions, plural, ..) in DEFAULT {
            api.serve(group, versions, plural);
        }
        api
    }

    /// A client of this server. Call it inside a tokio runtime.
    pub(crate) fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { api.answer(request).await }
        });
        kube::Client::new(service, "default")
    }

    /// Serves a kind (again), the preferred version first. CRDs get their CustomResourceDefinition object.
    pub(crate) fn serve(&self, group: &str, versions: &[&str], plural: &str) {
        let known = DEFAULT.iter().find(|(g, _, p, ..)| *g == group && *p == plural);
        let (.., kind, namespaced) = known.unwrap_or_else(|| panic!("add {plural} to DEFAULT"));
        let versions = versions.iter().map(ToString::to_string).collect();
        let served = Served { kind: (*kind).to_owned(), namespaced: *namespaced, versions };
        self.inner.lock().served.insert((group.to_owned(), plural.to_owned()), served);
        if matches!(group, "gateway.networking.k8s.io" | "weft.dev") {
            self.put(json!({
                "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
                "metadata": { "name": format!("{plural}.{group}"), "annotations": {
                    "gateway.networking.k8s.io/bundle-version": "v1.6.1",
                    "gateway.networking.k8s.io/channel": "experimental",
                } },
            }));
        }
        self.tick();
    }

    /// Removes a kind with its definition, its objects and its watches.
    pub(crate) fn unserve(&self, group: &str, plural: &str) {
        self.delete("customresourcedefinitions", "", &format!("{plural}.{group}"));
        let resource = (group.to_owned(), plural.to_owned());
        let mut inner = self.inner.lock();
        inner.served.remove(&resource);
        inner.objects.retain(|(r, ..), _| *r != resource);
        inner.watchers.retain(|w| w.scope.resource != resource);
        drop(inner);
        self.tick();
    }

    /// Stops serving a kind that is still defined, as a server that has just started; `serve` ends it.
    pub(crate) fn hide(&self, group: &str, plural: &str) {
        let resource = (group.to_owned(), plural.to_owned());
        let mut inner = self.inner.lock();
        inner.served.remove(&resource);
        inner.watchers.retain(|w| w.scope.resource != resource);
        drop(inner);
        self.tick();
    }

    /// Creates or replaces an object, status included; `metadata.namespace` as written. Gives it as stored.
    pub(crate) fn put(&self, object: Value) -> Value {
        let stored = self.inner.lock().put(object);
        self.tick();
        stored
    }

    /// Deletes an object; an empty namespace for cluster-scoped kinds.
    pub(crate) fn delete(&self, plural: &str, namespace: &str, name: &str) {
        let mut inner = self.inner.lock();
        let key =
            inner.objects.keys().find(|((_, p), n, o)| p == plural && n == namespace && o == name).cloned();
        if let Some(key) = key {
            inner.remove(&key);
        }
        drop(inner);
        self.tick();
    }

    /// An object as stored.
    pub(crate) fn object(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        self.objects(plural)
            .into_iter()
            .find(|o| text(o, "/metadata/namespace") == namespace && text(o, "/metadata/name") == name)
    }

    /// All objects of a kind, by namespace and name.
    pub(crate) fn objects(&self, plural: &str) -> Vec<Value> {
        let inner = self.inner.lock();
        inner.objects.iter().filter(|(((_, p), ..), _)| p == plural).map(|(_, o)| o.clone()).collect()
    }

    /// Every request so far, the oldest first.
    pub(crate) fn requests(&self) -> Vec<Recorded> {
        self.inner.lock().requests.clone()
    }

    /// Forgets the requests so far.
    pub(crate) fn forget_requests(&self) {
        self.inner.lock().requests.clear();
    }

    /// Away: every connection ends and none is answered.
    pub(crate) fn away(&self, away: bool) {
        self.inner.lock().away = away;
        self.cut();
    }

    /// Ends every watch in the middle of its stream.
    pub(crate) fn cut(&self) {
        for watcher in self.inner.lock().watchers.drain(..) {
            // Its client may have gone.
            let _ = watcher.lines.send(Err("connection reset".to_owned()));
        }
        self.tick();
    }

    /// Ends every watch as after `timeoutSeconds`.
    pub(crate) fn end_watches(&self) {
        self.inner.lock().watchers.clear();
        self.tick();
    }

    /// Forgets the past: watches from before now are answered 410 Gone.
    pub(crate) fn compact(&self) {
        let mut inner = self.inner.lock();
        inner.version += 1;
        inner.oldest = inner.version;
        inner.history.clear();
    }

    /// Sends a bookmark of the current version to every watch.
    pub(crate) fn bookmark(&self) {
        let inner = self.inner.lock();
        for watcher in &inner.watchers {
            let _ = watcher.lines.send(Ok(watcher.scope.bookmark(inner.version, false)));
        }
    }

    /// How many watches of a kind are open.
    pub(crate) fn watches(&self, plural: &str) -> usize {
        let mut inner = self.inner.lock();
        inner.watchers.retain(|w| !w.lines.is_closed());
        inner.watchers.iter().filter(|w| w.scope.resource.1 == plural).count()
    }

    /// Answers every request for a kind with this HTTP status, or as it should again.
    pub(crate) fn fail(&self, plural: &str, status: Option<u16>) {
        let mut inner = self.inner.lock();
        match status {
            Some(status) => drop(inner.failing.insert(plural.to_owned(), status)),
            None => drop(inner.failing.remove(plural)),
        }
    }

    /// From now on the definitions lack this field: whoever applies it is refused, in the API server's words.
    pub(crate) fn undeclare(&self, field: &str) {
        self.inner.lock().undeclared = field.to_owned();
    }

    /// Whether `sendInitialEvents` is granted (it is, at first), and the largest page of a list.
    pub(crate) fn lists(&self, streaming: bool, page_size: usize) {
        let mut inner = self.inner.lock();
        (inner.streaming, inner.page_size) = (streaming, page_size);
    }

    /// Waits until a condition of the server holds.
    ///
    /// # Panics
    /// After 30 s, with `what`.
    pub(crate) async fn until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let mut moved = self.moved.subscribe();
        let wait = async {
            while !holds(self) {
                if moved.changed().await.is_err() {
                    return;
                }
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(30), wait).await.is_ok(), "never came: {what}");
    }

    fn tick(&self) {
        self.moved.send_modify(|n| *n += 1);
    }

    async fn answer(&self, request: Request<Body>) -> Result<Response<Answer>, String> {
        let (parts, body) = request.into_parts();
        let body = body.collect_bytes().await.map_err(|e| e.to_string())?;
        let mut inner = self.inner.lock();
        if inner.away {
            return Err("connection refused".to_owned());
        }
        let header =
            |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        let recorded = Recorded {
            method: parts.method.to_string(),
            path: parts.uri.path().to_owned(),
            query: query(parts.uri.query().unwrap_or_default()),
            content_type: header("content-type"),
            body: serde_json::from_slice(&body).unwrap_or(Value::Null),
        };
        inner.requests.push(recorded.clone());
        let answer =
            inner.route(&parts.method, &recorded, header("accept").contains("PartialObjectMetadata"));
        drop(inner);
        self.tick();
        Ok(answer)
    }
}

impl Inner {
    fn route(&mut self, method: &Method, request: &Recorded, metadata_only: bool) -> Response<Answer> {
        let steps: Vec<&str> = request.path.trim_matches('/').split('/').collect();
        let (group, version, rest) = match steps.as_slice() {
            ["version"] => return ok(&json!({ "major": "1", "minor": "36", "gitVersion": "v1.36.0" })),
            ["apis"] => return ok(&self.groups()),
            ["api", version] => return self.resources("", version),
            ["apis", group, version] => return self.resources(group, version),
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return failure(404, "NotFound", "no such path"),
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            _ => ("", rest),
        };
        let plural = rest[0];
        if let Some(status) = self.failing.get(plural) {
            let reason = if *status == 403 { "Forbidden" } else { "InternalError" };
            return failure(*status, reason, &format!("{plural} is refused by the test"));
        }
        if !self.undeclared.is_empty()
            && request.body.to_string().contains(&format!("\"{}\":", self.undeclared))
        {
            let what = format!(
                "failed to create typed patch object: .{}: field not declared in schema",
                self.undeclared
            );
            return failure(500, "InternalError", &what);
        }
        let resource = (group.to_owned(), plural.to_owned());
        if self.served.get(&resource).is_none_or(|s| !s.versions.iter().any(|v| v == version)) {
            return failure(404, "NotFound", "the server could not find the requested resource");
        }
        let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
        let query = |name: &str| request.query.get(name).cloned().unwrap_or_default();
        let scope = Scope {
            resource,
            api_version,
            namespace: namespace.to_owned(),
            fields: query("fieldSelector"),
            labels: query("labelSelector"),
            metadata_only,
        };
        match (method, rest) {
            (&Method::GET, [_]) if query("watch") == "true" => self.watch(scope, request),
            (&Method::GET, [_]) => self.list(&scope, request),
            (&Method::POST, [_]) => self.create(&scope, request.body.clone()),
            (_, [_, name, sub @ ..]) => {
                self.one(method, &scope, (name, sub.first().copied().unwrap_or_default()), request)
            }
            _ => failure(405, "MethodNotAllowed", "not in this server"),
        }
    }

    fn groups(&self) -> Value {
        let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for ((group, _), served) in self.served.iter().filter(|((g, _), _)| !g.is_empty()) {
            let versions = groups.entry(group).or_default();
            let new = |v: &&String| !versions.contains(&v.as_str());
            let fresh: Vec<&str> = served.versions.iter().filter(new).map(String::as_str).collect();
            versions.extend(fresh);
        }
        let version = |g: &str, v: &str| json!({ "groupVersion": format!("{g}/{v}"), "version": v });
        let group = |(g, versions): (&str, Vec<&str>)| {
            let all: Vec<Value> = versions.iter().map(|v| version(g, v)).collect();
            json!({ "name": g, "versions": all, "preferredVersion": version(g, versions[0]) })
        };
        let groups: Vec<Value> = groups.into_iter().map(group).collect();
        json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
    }

    fn resources(&self, group: &str, version: &str) -> Response<Answer> {
        let here = |((g, _), s): &(&Resource, &Served)| g == group && s.versions.iter().any(|v| v == version);
        let resource = |((_, plural), s): (&Resource, &Served)| {
            json!({ "name": plural, "singularName": "", "namespaced": s.namespaced, "kind": s.kind,
                    "verbs": ["get", "list", "watch", "create", "update", "patch", "delete"] })
        };
        let resources: Vec<Value> = self.served.iter().filter(here).map(resource).collect();
        if resources.is_empty() {
            return failure(404, "NotFound", "no such group version");
        }
        let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
        ok(&json!({ "kind": "APIResourceList", "groupVersion": group_version, "resources": resources }))
    }

    fn list(&self, scope: &Scope, request: &Recorded) -> Response<Answer> {
        let all = self.objects.iter().filter(|((r, ..), o)| *r == scope.resource && scope.selects(o));
        let token = request.query.get("continue").cloned().unwrap_or_default();
        let name = |o: &Value| format!("{}/{}", text(o, "/metadata/namespace"), text(o, "/metadata/name"));
        let rest: Vec<&Value> = all.map(|(_, o)| o).filter(|o| name(o) > token).collect();
        let asked = request.query.get("limit").and_then(|l| l.parse().ok()).unwrap_or(usize::MAX);
        let limit = asked.min(if asked == usize::MAX { asked } else { self.page_size });
        let page: Vec<&Value> = rest.iter().take(limit).copied().collect();
        let more = if rest.len() > page.len() { page.last().map(|o| name(o)) } else { None };
        let items: Vec<Value> = page.iter().map(|o| scope.shown(o, false)).collect();
        let metadata =
            json!({ "resourceVersion": self.version.to_string(), "continue": more.unwrap_or_default() });
        ok(&json!({ "kind": "List", "apiVersion": scope.api_version, "metadata": metadata, "items": items }))
    }

    fn watch(&mut self, scope: Scope, request: &Recorded) -> Response<Answer> {
        let initial = request.query.get("sendInitialEvents").is_some_and(|v| v == "true");
        let from: u64 = request.query.get("resourceVersion").and_then(|v| v.parse().ok()).unwrap_or_default();
        let (lines, received) = mpsc::unbounded_channel();
        let send = |line: Bytes| drop(lines.send(Ok(line)));
        if initial && !self.streaming {
            // As a real one over an old etcd: an event, not a refusal.
            let message = "required storage feature RequestWatchProgress is disabled";
            send(event("ERROR", &status(500, "InternalError", message)));
            return stream_of(received);
        }
        if from == 0 {
            for ((r, ..), object) in &self.objects {
                if *r == scope.resource && scope.selects(object) {
                    send(event("ADDED", &scope.shown(object, true)));
                }
            }
            if initial {
                send(scope.bookmark(self.version, true));
            }
        } else if from < self.oldest {
            send(event("ERROR", &status(410, "Expired", "too old resource version")));
            return stream_of(received);
        } else {
            for change in self.history.iter().filter(|c| c.version > from) {
                scope.seen(change).into_iter().for_each(send);
            }
        }
        self.watchers.push(Watcher { scope, lines });
        stream_of(received)
    }

    fn create(&mut self, scope: &Scope, mut object: Value) -> Response<Answer> {
        if !scope.namespace.is_empty() {
            object["metadata"]["namespace"] = scope.namespace.clone().into();
        }
        let Some(key) = self.key(&object) else { return failure(400, "BadRequest", "unknown kind") };
        if self.objects.contains_key(&key) {
            return failure(409, "AlreadyExists", "already exists");
        }
        if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            meta.remove("resourceVersion");
            meta.remove("uid");
        }
        let stored = self.put(object);
        created(&scope.shown(&stored, true))
    }

    fn one(
        &mut self,
        method: &Method,
        scope: &Scope,
        (name, sub): (&str, &str),
        request: &Recorded,
    ) -> Response<Answer> {
        let key = (scope.resource.clone(), scope.namespace.clone(), name.to_owned());
        let old = self.objects.get(&key).cloned();
        let patch = *method == Method::PATCH;
        let apply = patch && request.content_type.contains("apply-patch");
        let Some(mut new) = old.clone().or_else(|| {
            // An apply creates; the status of what is not there cannot be applied.
            (apply && sub.is_empty()).then(|| json!({ "metadata": {} }))
        }) else {
            return failure(404, "NotFound", &format!("{} \"{name}\" not found", scope.resource.1));
        };
        let given = &request.body;
        let wanted = text(given, "/metadata/resourceVersion");
        if !wanted.is_empty() && wanted != text(&new, "/metadata/resourceVersion") {
            return failure(409, "Conflict", "the object has been modified");
        }
        // The real one says so even of an apply that would create.
        let wanted = text(given, "/metadata/uid");
        if !wanted.is_empty() && wanted != text(&new, "/metadata/uid") {
            return failure(409, "Conflict", "uid mismatch");
        }
        match *method {
            Method::GET => return ok(&scope.shown(&new, true)),
            Method::DELETE => {
                self.remove(&key);
                return ok(&json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" }));
            }
            Method::PUT if sub == "status" => new["status"] = given["status"].clone(),
            Method::PUT => {
                let status = new["status"].take();
                new = given.clone();
                if !status.is_null() {
                    new["status"] = status;
                }
            }
            _ if patch && sub == "status" => merge(&mut new["status"], &given["status"]),
            _ if patch => merge(&mut new, given),
            _ => return failure(405, "MethodNotAllowed", "not in this server"),
        }
        if let Some(map) = new.as_object_mut() {
            map.entry("apiVersion").or_insert_with(|| scope.api_version.clone().into());
            let kind = self.served[&scope.resource].kind.clone();
            map.entry("kind").or_insert_with(|| kind.into());
        }
        new["metadata"]["name"] = name.into();
        if !scope.namespace.is_empty() {
            new["metadata"]["namespace"] = scope.namespace.clone().into();
        }
        let stored = self.put(new);
        if old.is_some() { ok(&scope.shown(&stored, true)) } else { created(&scope.shown(&stored, true)) }
    }

    fn key(&self, object: &Value) -> Option<Key> {
        let api = text(object, "/apiVersion");
        let group = api.rsplit_once('/').map_or("", |(g, _)| g);
        let kind = text(object, "/kind");
        let resource = self.served.iter().find(|((g, _), s)| g == group && s.kind == kind)?.0.clone();
        Some((
            resource,
            text(object, "/metadata/namespace").to_owned(),
            text(object, "/metadata/name").to_owned(),
        ))
    }

    /// Stores what is different from before, with the metadata that a server fills in.
    fn put(&mut self, mut object: Value) -> Value {
        let key = self.key(&object).unwrap_or_else(|| panic!("not served: {object}"));
        let old = self.objects.get(&key).cloned();
        let before = old.as_ref().unwrap_or(&Value::Null);
        let generation = before.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(0);
        let changed = spec_of(before) != spec_of(&object);
        let number = self.version + 1;
        let meta = &mut object["metadata"];
        meta["uid"] = match before.pointer("/metadata/uid") {
            Some(uid) => uid.clone(),
            None => format!("00000000-0000-0000-0000-{number:012}").into(),
        };
        meta["generation"] = (generation + i64::from(changed)).into();
        if meta.get("creationTimestamp").is_none() {
            let created = before.pointer("/metadata/creationTimestamp").cloned();
            meta["creationTimestamp"] = created.unwrap_or_else(|| "2026-01-01T00:00:00Z".into());
        }
        meta["resourceVersion"] = before.pointer("/metadata/resourceVersion").cloned().unwrap_or(Value::Null);
        if *before == object {
            return object;
        }
        self.version = number;
        object["metadata"]["resourceVersion"] = number.to_string().into();
        self.objects.insert(key.clone(), object.clone());
        self.tell(Change { version: number, resource: key.0, old, new: Some(object.clone()) });
        object
    }

    fn remove(&mut self, key: &Key) {
        if let Some(mut old) = self.objects.remove(key) {
            self.version += 1;
            old["metadata"]["resourceVersion"] = self.version.to_string().into();
            self.tell(Change { version: self.version, resource: key.0.clone(), old: Some(old), new: None });
        }
    }

    fn tell(&mut self, change: Change) {
        for watcher in &self.watchers {
            if let Some(line) = watcher.scope.seen(&change) {
                let _ = watcher.lines.send(Ok(line));
            }
        }
        self.history.push(change);
    }
}

impl Scope {
    fn selects(&self, object: &Value) -> bool {
        (self.namespace.is_empty() || text(object, "/metadata/namespace") == self.namespace)
            && terms(&self.fields).all(|(path, equal, value)| {
                (text(object, &format!("/{}", path.replace('.', "/"))) == value) == equal
            })
            && terms(&self.labels).all(|(label, equal, value)| {
                let has = object["metadata"]["labels"].get(label).and_then(Value::as_str);
                (has == Some(value)) == equal
            })
    }

    /// A change as this watch sees it: an object that leaves the selection is deleted.
    fn seen(&self, change: &Change) -> Option<Bytes> {
        if change.resource != self.resource {
            return None;
        }
        let was = change.old.as_ref().filter(|o| self.selects(o));
        let is = change.new.as_ref().filter(|o| self.selects(o));
        Some(match (was, is) {
            (None, None) => return None,
            (None, Some(new)) => event("ADDED", &self.shown(new, true)),
            (Some(_), Some(new)) => event("MODIFIED", &self.shown(new, true)),
            (Some(old), None) => {
                let mut last = old.clone();
                last["metadata"]["resourceVersion"] = change.version.to_string().into();
                event("DELETED", &self.shown(&last, true))
            }
        })
    }

    /// An object in the version that was asked for. Items of a core list have no kind, as in a real answer.
    fn shown(&self, object: &Value, typed: bool) -> Value {
        let mut object = object.clone();
        object["apiVersion"] = self.api_version.clone().into();
        if self.metadata_only {
            let metadata = object["metadata"].clone();
            return json!({ "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata });
        }
        if let (false, "v1", Some(map)) = (typed, self.api_version.as_str(), object.as_object_mut()) {
            map.remove("kind");
            map.remove("apiVersion");
        }
        object
    }

    fn bookmark(&self, version: u64, initial_end: bool) -> Bytes {
        let annotations =
            if initial_end { json!({ "k8s.io/initial-events-end": "true" }) } else { json!({}) };
        let metadata = json!({ "resourceVersion": version.to_string(), "annotations": annotations });
        event(
            "BOOKMARK",
            &json!({ "apiVersion": self.api_version, "kind": "Bookmark", "metadata": metadata }),
        )
    }
}

/// `a=b,c!=d` as (key, must be equal, value).
fn terms(selector: &str) -> impl Iterator<Item = (&str, bool, &str)> {
    selector.split(',').filter(|t| !t.is_empty()).map(|term| match term.split_once("!=") {
        Some((key, value)) => (key, false, value),
        None => {
            let (key, value) = term.split_once('=').unwrap_or((term, ""));
            (key, true, value.trim_start_matches('='))
        }
    })
}

/// All but metadata and status: what `metadata.generation` counts.
fn spec_of(object: &Value) -> Value {
    let mut spec = object.clone();
    if let Some(map) = spec.as_object_mut() {
        map.retain(|k, _| !matches!(k.as_str(), "metadata" | "status" | "apiVersion" | "kind"));
    }
    spec
}

/// RFC 7386.
fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    let Some(map) = into.as_object_mut() else { return };
    for (key, value) in patch {
        if value.is_null() {
            map.remove(key);
        } else {
            merge(map.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

fn event(kind: &str, object: &Value) -> Bytes {
    let mut line = json!({ "type": kind, "object": object }).to_string();
    line.push('\n');
    line.into()
}

fn stream_of(lines: mpsc::UnboundedReceiver<Line>) -> Response<Answer> {
    let frames = stream::unfold(lines, |mut lines| async move {
        let line = lines.recv().await?;
        Some((line.map(Frame::data), lines))
    });
    Response::new(StreamBody::new(frames).boxed_unsync())
}

fn ok(value: &Value) -> Response<Answer> {
    Response::new(Full::from(value.to_string()).map_err(|never| match never {}).boxed_unsync())
}

fn created(value: &Value) -> Response<Answer> {
    let mut response = ok(value);
    *response.status_mut() = StatusCode::CREATED;
    response
}

fn failure(code: u16, reason: &str, message: &str) -> Response<Answer> {
    let mut response = ok(&status(code, reason, message));
    *response.status_mut() = StatusCode::from_u16(code).expect("a test names a real status");
    response
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure",
            "code": code, "reason": reason, "message": message })
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn query(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(k, v)| (decode(k), decode(v))).collect()
}

fn decode(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let hex: String = bytes.by_ref().take(2).map(char::from).collect();
                out.push(u8::from_str_radix(&hex, 16).unwrap_or(b'?'));
            }
            byte => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[tokio::test]
async fn a_real_client_reads_and_writes() {
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
    let api = FakeApi::new();
    let maps: Api<ConfigMap> = Api::namespaced(api.client(), "shop");
    let map = json!({ "metadata": { "name": "a" }, "data": { "k": "1" } });
    let map: ConfigMap = serde_json::from_value(map).expect("a ConfigMap");
    let made = maps.create(&PostParams::default(), &map).await.expect("created");
    assert_eq!(made.metadata.generation, Some(1));
    let again = maps.create(&PostParams::default(), &map).await.expect_err("is there");
    assert!(matches!(again, kube::Error::Api(s) if s.code == 409));
    let patch = json!({ "apiVersion": "v1", "kind": "ConfigMap", "data": { "k": "2" } });
    let applied = maps.patch("b", &PatchParams::apply("weft").force(), &Patch::Apply(&patch)).await;
    assert_eq!(applied.expect("applied").metadata.namespace.as_deref(), Some("shop"));
    let listed = maps.list(&ListParams::default().limit(1)).await.expect("listed");
    assert_eq!((listed.items.len(), listed.metadata.continue_.as_deref()), (1, Some("shop/a")));
    assert_eq!(api.objects("configmaps").len(), 2);
    api.away(true);
    assert!(maps.get("a").await.is_err());
}
