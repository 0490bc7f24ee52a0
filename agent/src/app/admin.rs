//! Pages for people and probes: metrics, health, status, certificates. Small, on the control runtime.
//!
//! In a cluster all of them are on a Unix socket of the pod's own, where probes and `weft admin` ask; on the network are only
//! `/metrics`, for whom the API server lets read it, and `/leaving`, which names nobody.

mod listen;

pub(super) use self::listen::{serve, serve_socket, serve_when_free};

use super::{
    metrics,
    node::NodePage,
    report,
    world::{Seen, generations},
};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use parking_lot::Mutex;
use serde_json::json;
use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};
use weft_control::{Budgets, Denied};
use weft_core::budget;
use weft_k8s::{AccessDenied, AccessReviewer};
use weft_proxy::telemetry::Telemetry;

/// What the pages show.
pub(super) struct Pages {
    /// Counters.
    pub(super) telemetry: Arc<Telemetry>,
    /// Status and problems.
    pub(super) seen: Arc<Mutex<Seen>>,
    /// Certificates; none for a Gateway alone.
    pub(super) identities: Option<weft_certs::IdentityStore>,
    /// Whether the first full configuration is served and pods that were captured are served again.
    pub(super) ready: AtomicBool,
    /// The node, in a cluster; once it is served.
    pub(super) node: OnceLock<Arc<NodePage>>,
    /// Metrics beside the data plane's.
    pub(super) more: OnceLock<metrics::More>,
    /// Who may read what is on the network, in a cluster; once there is a way to its API server.
    pub(super) access: OnceLock<AccessReviewer>,
    /// Connections whose caller nobody knows.
    strangers: weft_control::Door,
    /// Readers about whom too much would have been asked.
    put_off: AtomicU64,
}

/// Whom an address is for: what anybody on the network may ask of the node is less than what its operator sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Door {
    /// Every page, for whoever reaches it: a Unix socket, the loopback.
    Admin,
    /// `/metrics`, for whoever reaches it: the loopback of a machine without a cluster.
    Metrics,
    /// A node's or a pod's network, by TLS: `/leaving`, and `/metrics` for whom the API server lets.
    Network,
}

impl Door {
    fn shows(self, path: &str) -> bool {
        match self {
            Self::Admin => true,
            Self::Metrics => path == "/metrics",
            Self::Network => matches!(path, "/metrics" | "/leaving"),
        }
    }

    /// Whether the page is small and for everybody on the network.
    fn tells_anybody(self, path: &str) -> bool {
        self == Self::Network && path == "/leaving"
    }
}

impl Pages {
    /// Pages of a process that is not ready yet.
    pub(super) fn new(
        telemetry: Arc<Telemetry>,
        seen: Arc<Mutex<Seen>>,
        identities: Option<weft_certs::IdentityStore>,
    ) -> Self {
        let strangers =
            Budgets { all: &budget::PAGE_STRANGERS, address: &budget::PAGE_STRANGERS_PER_ADDRESS };
        Self {
            telemetry,
            seen,
            identities,
            ready: AtomicBool::new(false),
            node: OnceLock::new(),
            more: OnceLock::new(),
            access: OnceLock::new(),
            strangers: weft_control::Door::new(strangers),
            put_off: AtomicU64::new(0),
        }
    }

    /// How often each budget of readers was reached, by its name.
    pub(super) fn reached(&self) -> BTreeMap<&'static str, u64> {
        let reviews = (budget::PAGE_REVIEWS.name, self.put_off.load(Ordering::Relaxed));
        self.strangers.reached().into_iter().chain([reviews]).collect()
    }

    /// Whether who asks may have the page; else the answer that it gets instead.
    async fn admit(&self, request: &Request<Incoming>, from: IpAddr) -> Result<(), Response<Full<Bytes>>> {
        let Some(access) = self.access.get() else {
            return Err(text(StatusCode::SERVICE_UNAVAILABLE, "no way to the API server yet\n"));
        };
        let token = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = token.and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
        });
        let denied = match token {
            None => AccessDenied::Unknown(Denied::Missing),
            Some(token) => match access.may_get(token, request.uri().path(), from).await {
                Ok(()) => return Ok(()),
                Err(denied) => denied,
            },
        };
        let status = match &denied {
            AccessDenied::Forbidden { .. } => StatusCode::FORBIDDEN,
            AccessDenied::Unknown(Denied::Unavailable(_)) => StatusCode::SERVICE_UNAVAILABLE,
            AccessDenied::Unknown(Denied::TooMany) => {
                self.put_off.fetch_add(1, Ordering::Relaxed);
                StatusCode::TOO_MANY_REQUESTS
            }
            AccessDenied::Unknown(_) => StatusCode::UNAUTHORIZED,
        };
        tracing::debug!(%from, page = request.uri().path(), %denied, "page refused");
        let mut response = Response::new(Full::new(Bytes::from(format!("{denied}\n"))));
        *response.status_mut() = status;
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        Err(response)
    }

    fn answer(&self, door: Door, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        match request.uri().path() {
            path if !door.shows(path) => text(StatusCode::NOT_FOUND, "no such page\n"),
            "/metrics" => self.metrics(request),
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/readyz" if self.ready.load(Ordering::Acquire) => text(StatusCode::OK, "ok\n"),
            "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "the first configuration is not served yet\n"),
            "/status" => self.status(),
            "/certificates" => page(json!(self.identities.as_ref().map(weft_certs::IdentityStore::infos))),
            "/node" | "/leaving" => match self.node.get() {
                Some(node) if request.uri().path() == "/leaving" => page(json!(node.leaving())),
                Some(node) => page(json!(node.report())),
                None => text(StatusCode::SERVICE_UNAVAILABLE, "no node of a cluster is served here (yet)\n"),
            },
            "/" => {
                text(StatusCode::OK, "/status  /node  /leaving  /certificates  /metrics  /healthz  /readyz\n")
            }
            _ => text(StatusCode::NOT_FOUND, "no such page; / lists them\n"),
        }
    }

    fn metrics(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let accept = request.headers().get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let kind = weft_proxy::telemetry::negotiate(accept);
        let mut body = self.telemetry.render_metrics(kind.is_openmetrics());
        if let Some(more) = self.more.get() {
            metrics::append(&mut body, kind.is_openmetrics(), more);
        }
        let mut response = Response::new(Full::new(Bytes::from(body)));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind.as_str()));
        response
    }

    fn status(&self) -> Response<Full<Bytes>> {
        // Not rendered under the lock: who takes changes in waits for it.
        let seen = self.seen.lock().clone();
        let generations = generations(&seen.world.snapshot);
        let objects: Vec<_> = seen
            .statuses
            .iter()
            .map(|(object, status)| {
                let mut value = report::json(object, status);
                value["generation"] = json!(generations.get(object));
                value
            })
            .collect();
        let problems: Vec<String> = seen.world.problems.iter().map(ToString::to_string).collect();
        page(json!({"configVersion": seen.config.version, "objects": objects, "problems": problems}))
    }
}

fn page(value: serde_json::Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string() + "\n")));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests;
