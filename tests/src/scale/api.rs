//! The API server, asked fast: many requests at once.

use crate::cluster::Cluster;
use anyhow::{Context, Result, bail, ensure};
use futures_util::{AsyncBufReadExt as _, StreamExt as _, TryStreamExt as _, stream};
use http::{Method, Request};
use serde_json::Value;
use std::time::{Duration, Instant};

/// Requests at once: as many as a busy GitOps controller has.
const AT_ONCE: usize = 32;
/// No request takes longer, or the API server is out of order.
const LIMIT: Duration = Duration::from_secs(60);
/// The path of the Gateway API's objects.
pub(super) const GATEWAY: &str = "/apis/gateway.networking.k8s.io/v1";

/// An object to create.
#[derive(Clone, Debug)]
pub(super) struct Object {
    /// Of its collection.
    pub(super) path: String,
    pub(super) body: Value,
}

impl Object {
    /// `kind` in its plural below `base`.
    pub(super) fn new(base: &str, plural: &str, body: Value) -> Self {
        let path = match body["metadata"]["namespace"].as_str() {
            Some(namespace) => format!("{base}/namespaces/{namespace}/{plural}"),
            None => format!("{base}/{plural}"),
        };
        Self { path, body }
    }

    pub(super) fn name(&self) -> &str {
        self.body["metadata"]["name"].as_str().unwrap_or_default()
    }
}

/// A client that may do everything.
#[derive(Clone)]
pub(super) struct Api(weft_k8s::Client, Cluster);

impl Api {
    /// From KUBECONFIG.
    pub(super) async fn new(cluster: Cluster) -> Result<Self> {
        Ok(Self(weft_k8s::client().await?, cluster))
    }

    /// What one of Weft's pods counts; none when it does not answer.
    pub(super) async fn metrics(&self, pod: &str) -> Option<String> {
        let (cluster, pod) = (self.1.clone(), pod.to_owned());
        tokio::task::spawn_blocking(move || cluster.page(&pod, "metrics").ok()).await.ok()?
    }

    /// Sends a request and gives the answer's text.
    pub(super) async fn text(&self, method: Method, path: &str, body: Option<&Value>) -> Result<String> {
        let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let what = format!("{method} {path}");
        let request = Request::builder().method(method).uri(path).header("content-type", kind);
        let body = body.map(|b| b.to_string().into_bytes()).unwrap_or_default();
        let answer = tokio::time::timeout(LIMIT, self.0.request_text(request.body(body)?));
        answer.await.with_context(|| format!("{what}: no answer in {LIMIT:?}"))?.context(what)
    }

    /// Like [`Self::text`], as JSON.
    pub(super) async fn json(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        Ok(serde_json::from_str(&self.text(method, path, body).await?)?)
    }

    /// Creates objects, many at once; when each was there does not matter, only when all were.
    pub(super) async fn create(&self, objects: &[Object]) -> Result<Duration> {
        let start = Instant::now();
        let one = |object: &Object| {
            let (api, object) = (self.clone(), object.clone());
            async move { api.text(Method::POST, &object.path, Some(&object.body)).await.map(drop) }
        };
        stream::iter(objects).map(Ok).try_for_each_concurrent(AT_ONCE, one).await?;
        Ok(start.elapsed())
    }

    /// Patches objects, many at once.
    pub(super) async fn patch(&self, patches: &[(String, Value)]) -> Result<Duration> {
        let start = Instant::now();
        let one = |(path, body): &(String, Value)| {
            let (api, path, body) = (self.clone(), path.clone(), body.clone());
            async move { api.text(Method::PATCH, &path, Some(&body)).await.map(drop) }
        };
        stream::iter(patches).map(Ok).try_for_each_concurrent(AT_ONCE, one).await?;
        Ok(start.elapsed())
    }

    /// Deletes objects, many at once.
    pub(super) async fn delete(&self, paths: &[String]) -> Result<()> {
        let one = |path: &String| {
            let (api, path) = (self.clone(), path.clone());
            async move { api.text(Method::DELETE, &path, None).await.map(drop) }
        };
        stream::iter(paths).map(Ok).try_for_each_concurrent(AT_ONCE, one).await
    }

    /// Deletes everything of these collections that is marked as ours.
    pub(super) async fn clear(&self, collections: &[String]) -> Result<()> {
        let one = |path: String| {
            let api = self.clone();
            async move { api.text(Method::DELETE, &path, None).await.map(drop) }
        };
        let marked = collections.iter().map(|c| format!("{c}?labelSelector={}", super::world::MARK));
        stream::iter(marked).map(Ok).try_for_each_concurrent(4, one).await
    }

    /// Everything of a collection, and then each change, until `take` is satisfied or the server ends the watch. The
    /// time is that of the line's arrival.
    pub(super) async fn follow(
        &self,
        path: &str,
        mut take: impl FnMut(&Value, Instant) -> bool,
    ) -> Result<()> {
        // Not a streaming list: an older etcd cannot.
        let list = self.json(Method::GET, path, None).await?;
        if list["items"].as_array().context("items")?.iter().any(|object| take(object, Instant::now())) {
            return Ok(());
        }
        let version = list["metadata"]["resourceVersion"].as_str().context("resourceVersion")?;
        let query = format!("watch=1&resourceVersion={version}&allowWatchBookmarks=true&timeoutSeconds=3600");
        let request = Request::get(format!("{path}?{query}")).body(Vec::new())?;
        let stream = self.0.request_stream(request).await.with_context(|| format!("watch {path}"))?;
        let mut lines = std::pin::pin!(stream.lines());
        while let Some(line) = lines.next().await {
            let event: Value = serde_json::from_str(&line?)?;
            ensure!(event["type"] != "ERROR", "watch {path}: {}", event["object"]);
            if event["type"] != "BOOKMARK" && take(&event["object"], Instant::now()) {
                return Ok(());
            }
        }
        bail!("the API server ended the watch of {path}")
    }
}
