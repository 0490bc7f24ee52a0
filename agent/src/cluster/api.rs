//! The API server as the commands need it: objects as JSON, by path. What a command asks is then the same whatever versions
//! a cluster serves, and one small fake server tests them all.

use super::args::ClusterArgs;
use http::{Method, Request};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;
use std::{sync::Arc, time::Duration};

/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(30);
/// Objects of a list asked for at a time.
const PAGE: usize = 500;
/// Who writes: the field manager of everything that is applied.
pub(super) const MANAGER: &str = "weft-install";

/// What came between a command and its cluster.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The person's: no usable kubeconfig.
    #[error("no cluster to speak to: {0}; name one by KUBECONFIG, or --kubeconfig and --context")]
    Config(String),
    /// The network's or the API server's; trying again may help.
    #[error("the API server does not answer {what}: {reason}")]
    Unreachable {
        /// What was asked.
        what: String,
        /// Why there was no answer.
        reason: String,
    },
    /// The API server understood and refused.
    #[error("{what}: {message}{}", remedy(*code))]
    Refused {
        /// What was asked.
        what: String,
        /// HTTP status.
        code: u16,
        /// Its words.
        message: String,
    },
}

fn remedy(code: u16) -> &'static str {
    match code {
        401 => " (the kubeconfig's credentials are not accepted: renew them)",
        403 => " (ask for the right, or use a context that has it: --context)",
        _ => "",
    }
}

impl ClusterError {
    /// The status of a refusal.
    pub(super) fn code(&self) -> Option<u16> {
        if let Self::Refused { code, .. } = self { Some(*code) } else { None }
    }
}

/// Answers of agents' admin pages.
pub(super) trait AskAgent: Send + Sync {
    /// The page `path` of the agent in the pod `pod` of weft-system.
    fn ask<'a>(
        &'a self,
        pod: &'a str,
        path: &'a str,
    ) -> futures_util::future::BoxFuture<'a, Result<Value, String>>;
}

/// A cluster.
#[derive(Clone)]
pub(super) struct Cluster {
    client: kube::Client,
    /// How agents are asked.
    pub(super) agents: Arc<dyn AskAgent>,
    /// Time between two looks at something that is waited for.
    pub(super) pace: Duration,
    /// The context's namespace.
    namespace: String,
}

impl Cluster {
    /// The cluster that the arguments name; nothing is asked yet.
    pub(super) async fn connect(args: &ClusterArgs) -> Result<Self, ClusterError> {
        let bad = |e: &dyn std::fmt::Display| ClusterError::Config(e.to_string());
        let options = KubeConfigOptions { context: args.context.clone(), ..Default::default() };
        let mut config = match &args.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path).map_err(|e| bad(&e))?;
                kube::Config::from_custom_kubeconfig(file, &options).await.map_err(|e| bad(&e))?
            }
            None if args.context.is_some() => {
                kube::Config::from_kubeconfig(&options).await.map_err(|e| bad(&e))?
            }
            None => kube::Config::infer().await.map_err(|e| bad(&e))?,
        };
        config.connect_timeout = Some(Duration::from_secs(10));
        let namespace = config.default_namespace.clone();
        let client = kube::Client::try_from(config).map_err(|e| bad(&e))?;
        let agents = Arc::new(super::agents::ByExec(client.clone()));
        Ok(Self { client, agents, pace: Duration::from_millis(500), namespace })
    }

    /// The namespace that was given, else the context's.
    pub(super) fn namespace(&self, given: Option<&str>) -> String {
        given.unwrap_or(&self.namespace).to_owned()
    }

    /// The same, with agents asked by what they tell anybody on the nodes' network.
    pub(super) fn by_page(mut self) -> Self {
        self.agents = Arc::new(super::agents::ByPage(self.client.clone()));
        self
    }

    #[cfg(test)]
    pub(super) fn fake(client: kube::Client, agents: Arc<dyn AskAgent>) -> Self {
        Self { client, agents, pace: Duration::from_millis(1), namespace: "default".to_owned() }
    }

    /// An object; `None` when it, or its kind, is not there.
    pub(super) async fn get(&self, path: &str) -> Result<Option<Value>, ClusterError> {
        match self.send(Method::GET, path, None).await {
            Err(error) if error.code() == Some(404) => Ok(None),
            other => other.map(Some),
        }
    }

    /// All objects under `path` (which may have a query); `None` when the kind is not served.
    pub(super) async fn list(&self, path: &str) -> Result<Option<Vec<Value>>, ClusterError> {
        let (mut items, mut next) = (Vec::new(), String::new());
        loop {
            let mark = if path.contains('?') { '&' } else { '?' };
            let Some(mut page) = self.get(&format!("{path}{mark}limit={PAGE}{next}")).await? else {
                return Ok(None);
            };
            if let Value::Array(more) = page["items"].take() {
                items.extend(more);
            }
            match page["metadata"]["continue"].as_str().filter(|c| !c.is_empty()) {
                Some(token) => next = format!("&continue={}", escape(token)),
                None => return Ok(Some(items)),
            }
        }
    }

    /// Server-side apply. With `force` fields of other managers are taken over; without, a conflict is refused with 409.
    pub(super) async fn apply(&self, path: &str, object: &Value, force: bool) -> Result<Value, ClusterError> {
        let path = format!("{path}?fieldManager={MANAGER}&force={force}&fieldValidation=Strict");
        self.send(Method::PATCH, &path, Some(("application/apply-patch+yaml", object))).await
    }

    /// JSON merge patch; `null` removes a field.
    pub(super) async fn merge(&self, path: &str, patch: &Value) -> Result<Value, ClusterError> {
        let path = format!("{path}?fieldManager={MANAGER}");
        self.send(Method::PATCH, &path, Some(("application/merge-patch+json", patch))).await
    }

    /// Creates an object, or asks a question that is put as one.
    pub(super) async fn post(&self, path: &str, object: &Value) -> Result<Value, ClusterError> {
        self.send(Method::POST, path, Some(("application/json", object))).await
    }

    /// Deletes; false when it was not there.
    pub(super) async fn delete(&self, path: &str) -> Result<bool, ClusterError> {
        match self.send(Method::DELETE, &format!("{path}?propagationPolicy=Background"), None).await {
            Err(error) if error.code() == Some(404) => Ok(false),
            other => other.map(|_| true),
        }
    }

    /// A text that is no object: a log.
    pub(super) async fn text(&self, path: &str) -> Result<String, ClusterError> {
        let what = format!("GET {}", path.split('?').next().unwrap_or(path));
        let unreachable = |reason: String| ClusterError::Unreachable { what: what.clone(), reason };
        let request = Request::get(path).body(Vec::new()).map_err(|e| unreachable(e.to_string()))?;
        match tokio::time::timeout(ANSWER, self.client.request_text(request)).await {
            Err(_) => Err(unreachable(format!("nothing in {} s", ANSWER.as_secs()))),
            Ok(Ok(text)) => Ok(text),
            Ok(Err(kube::Error::Api(status))) => {
                Err(ClusterError::Refused { what, code: status.code, message: status.message })
            }
            Ok(Err(error)) => Err(unreachable(chain(&error))),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, &Value)>,
    ) -> Result<Value, ClusterError> {
        let what = format!("{method} {}", path.split('?').next().unwrap_or(path));
        let mut request = Request::builder().method(method).uri(path).header("accept", "application/json");
        if let Some((kind, _)) = body {
            request = request.header("content-type", kind);
        }
        let body = body.map(|(_, value)| value.to_string().into_bytes()).unwrap_or_default();
        let unreachable = |reason: String| ClusterError::Unreachable { what: what.clone(), reason };
        let request = request.body(body).map_err(|e| unreachable(e.to_string()))?;
        match tokio::time::timeout(ANSWER, self.client.request::<Value>(request)).await {
            Err(_) => Err(unreachable(format!("nothing in {} s", ANSWER.as_secs()))),
            Ok(Ok(value)) => Ok(value),
            Ok(Err(kube::Error::Api(status))) => {
                Err(ClusterError::Refused { what, code: status.code, message: status.message })
            }
            Ok(Err(error)) => Err(unreachable(chain(&error))),
        }
    }
}

/// An error with its causes: hyper's own words say only "client error".
fn chain(error: &dyn std::error::Error) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// A value of a query.
pub(super) fn escape(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(b).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}

/// The string at a JSON pointer; empty when there is none.
pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The number at a JSON pointer; 0 when there is none.
pub(super) fn number(value: &Value, pointer: &str) -> i64 {
    value.pointer(pointer).and_then(Value::as_i64).unwrap_or_default()
}

/// The list at a JSON pointer; empty when there is none.
pub(super) fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// A label; a JSON pointer would need its `/` escaped.
pub(super) fn label<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object.pointer("/metadata/labels")?.get(name)?.as_str()
}

/// An annotation.
pub(super) fn annotation<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object.pointer("/metadata/annotations")?.get(name)?.as_str()
}

/// `namespace/name`, or the name of what has no namespace.
pub(super) fn key(object: &Value) -> String {
    match (text(object, "/metadata/namespace"), text(object, "/metadata/name")) {
        ("", name) => name.to_owned(),
        (namespace, name) => format!("{namespace}/{name}"),
    }
}

/// The condition of a type.
pub(super) fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    list(object, "/status/conditions").iter().find(|c| text(c, "/type") == kind)
}
