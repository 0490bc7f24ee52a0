//! An API server for tests: keeps objects by path, applies, merges, lists and deletes as the real one does as far as the
//! commands can tell.

use super::api::{AskAgent, Cluster};
use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{collections::BTreeMap, convert::Infallible, sync::Arc};

/// Objects by path.
pub(super) type Objects = BTreeMap<String, Value>;
type Reaction = Box<dyn Fn(&Method, &str, &mut Objects) + Send + Sync>;
type Agent = Box<dyn Fn(&str) -> Result<Value, String> + Send + Sync>;

const PLURALS: [&str; 21] = [
    "networkpolicies",
    "nodes",
    "pods",
    "namespaces",
    "services",
    "serviceaccounts",
    "customresourcedefinitions",
    "workloadslices",
    "endpointslices",
    "gatewayclasses",
    "gateways",
    "listenersets",
    "httproutes",
    "grpcroutes",
    "tlsroutes",
    "tcproutes",
    "udproutes",
    "deployments",
    "backendtlspolicies",
    "events",
    "runtimeclasses",
];

/// The server, and the agents behind it.
pub(super) struct Fake {
    /// What is there.
    pub(super) objects: Mutex<Objects>,
    /// Every request: `METHOD path?query`.
    pub(super) calls: Mutex<Vec<String>>,
    /// Answers by path instead of the object's: a status and a message.
    pub(super) refused: BTreeMap<&'static str, (u16, &'static str)>,
    /// What others do after a request: the other controllers of a cluster.
    pub(super) reaction: Reaction,
    /// What an agent answers, by its pod.
    pub(super) agent: Agent,
    /// The last resourceVersion.
    pub(super) version: Mutex<u64>,
}

impl Default for Fake {
    fn default() -> Self {
        let objects = [
            ("/version", json!({"gitVersion": "v1.36.3"})),
            ("/api/v1/nodes/n1", node("n1")),
            ("/api/v1/nodes/n2", node("n2")),
        ];
        Self {
            objects: Mutex::new(objects.map(|(path, object)| (path.to_owned(), object)).into()),
            calls: Mutex::default(),
            refused: BTreeMap::new(),
            reaction: Box::new(|_, _, _| {}),
            agent: Box::new(|_| Ok(json!({}))),
            version: Mutex::new(1),
        }
    }
}

/// A node on which agents can be.
pub(super) fn node(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"podCIDRs": ["10.244.1.0/24"]}, "status": {"nodeInfo": {
        "operatingSystem": "linux", "kernelVersion": "6.1.0-18-amd64", "architecture": "amd64"}}})
}

/// A pod of an agent.
pub(super) fn agent_pod(node: &str) -> Value {
    json!({
        "metadata": {"namespace": "weft-system", "name": format!("weft-agent-{node}"), "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app.kubernetes.io/name": "weft", "app.kubernetes.io/component": "agent"}},
        "spec": {"nodeName": node},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

impl Fake {
    /// Adds an object.
    pub(super) fn with(self, path: &str, object: Value) -> Self {
        self.objects.lock().insert(path.to_owned(), object);
        self
    }

    /// Adds agents on both nodes, with their DaemonSet.
    pub(super) fn with_agents(self) -> Self {
        let pod = |node| (format!("/api/v1/namespaces/weft-system/pods/weft-agent-{node}"), agent_pod(node));
        self.objects.lock().extend([pod("n1"), pod("n2")]);
        self.with(super::install::AGENTS, json!({"metadata": {"name": "weft-agent"}, "status": {}}))
    }

    /// A client of it.
    pub(super) fn cluster(self: &Arc<Self>) -> Cluster {
        let fake = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let fake = fake.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
                let (status, value) = fake.answer(&head.method, &head.uri.to_string(), &body);
                let response = Response::builder().status(status).header("content-type", "application/json");
                Ok::<_, Infallible>(response.body(Full::new(Bytes::from(value.to_string()))).unwrap())
            }
        });
        Cluster::fake(kube::Client::new(service, "default"), self.clone())
    }

    /// Requests that change something, in order.
    pub(super) fn writes(&self) -> Vec<String> {
        let calls = self.calls.lock();
        let writes = calls.iter().filter(|c| !c.starts_with("GET") && !c.contains("accessreviews"));
        writes.map(|c| c.split('?').next().unwrap_or_default().to_owned()).collect()
    }

    fn answer(&self, method: &Method, uri: &str, body: &[u8]) -> (u16, Value) {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        self.calls.lock().push(format!("{method} {uri}"));
        let refused =
            self.refused.get(path).filter(|_| method != Method::GET || !path.ends_with("weft-config"));
        let answer = match refused {
            Some((code, message)) => failure(*code, message),
            None => self.serve(method, path, query, serde_json::from_slice(body).unwrap_or_default()),
        };
        (self.reaction)(method, path, &mut self.objects.lock());
        answer
    }

    fn serve(&self, method: &Method, path: &str, query: &str, body: Value) -> (u16, Value) {
        let mut objects = self.objects.lock();
        match *method {
            Method::GET if PLURALS.contains(&path.rsplit('/').next().unwrap_or_default()) => {
                (200, json!({"items": items(&objects, path, query), "metadata": {}}))
            }
            Method::GET => objects.get(path).map_or_else(|| failure(404, "not found"), |o| (200, o.clone())),
            Method::POST if path.ends_with("/pods") => (201, body),
            Method::POST => (201, json!({"status": {"allowed": true}})),
            Method::DELETE => match objects.remove(path) {
                Some(gone) => (200, gone),
                None => failure(404, "not found"),
            },
            _ => {
                let before = objects.get(path).cloned();
                let mut after = before.clone().unwrap_or_default();
                merge(&mut after, body);
                if Some(&after) != before.as_ref() {
                    *self.version.lock() += 1;
                    after["metadata"]["resourceVersion"] = self.version.lock().to_string().into();
                }
                objects.insert(path.to_owned(), after.clone());
                (200, after)
            }
        }
    }
}

impl AskAgent for Fake {
    fn ask<'a>(&'a self, pod: &'a str, _path: &'a str) -> BoxFuture<'a, Result<Value, String>> {
        let answer = (self.agent)(pod);
        async move { answer }.boxed()
    }
}

/// Objects of a collection, in one namespace or in all.
fn items(objects: &Objects, path: &str, query: &str) -> Vec<Value> {
    let (root, plural) = path.rsplit_once('/').unwrap_or_default();
    let selector = query.split('&').find_map(|part| part.strip_prefix("labelSelector="));
    let selector = selector.map(|text| text.replace("%2F", "/").replace("%3D", "="));
    let selected = |object: &Value| match selector.as_deref().and_then(|s| s.split_once('=')) {
        Some((name, value)) => super::api::label(object, name) == Some(value),
        None => true,
    };
    let within = |key: &str| key.starts_with(root) && key.rsplit('/').nth(1) == Some(plural);
    objects.iter().filter(|(key, object)| within(key) && selected(object)).map(|(_, o)| o.clone()).collect()
}

fn failure(code: u16, message: &str) -> (u16, Value) {
    (
        code,
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message, "reason": ""}),
    )
}

/// JSON merge patch, RFC 7386.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (field, value) in patch {
        match (value, target.as_object_mut()) {
            (Value::Null, Some(target)) => drop(target.remove(&field)),
            (value, _) => merge(&mut target[field.as_str()], value),
        }
    }
}
