//! What records are made of, for tests.

use super::{
    record::{Direction, RequestHead, RequestRecord},
    trace::{Draw, Sampler, TraceContext},
};
use http::{HeaderMap, Request};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use weft_core::{
    config::{
        Action, AppProtocol, Backend, BackendKey, Endpoint, FailReason, FilterChain, HttpRule, Reach, RuleId,
        Transport,
    },
    model::{MtlsMode, ObjectKey, RouteKind, SpiffeId, Timeouts, Workload},
};

/// Owns what a record borrows.
pub(super) struct Exchange {
    pub(super) parent: ObjectKey,
    pub(super) head: RequestHead,
    pub(super) trace: TraceContext,
    pub(super) source: Arc<Workload>,
    pub(super) rule: Arc<HttpRule>,
    pub(super) backend: Arc<Backend>,
    pub(super) endpoint: Endpoint,
}

pub(super) fn peer() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 7], 4711))
}

pub(super) fn workload(namespace: &str, pod: &str, app: &str) -> Arc<Workload> {
    Arc::new(Workload {
        pod: ObjectKey::new(namespace, pod),
        ips: Vec::new(),
        identity: SpiffeId::new("cluster.local", namespace, app),
        node: Some("node-1".into()),
        enrolled: true,
        labelled: true,
        tunnel: weft_core::model::TunnelPort::default(),
        mode: MtlsMode::Permissive,
        app: app.into(),
        probes: Arc::default(),
    })
}

pub(super) fn rule(name: &str, label: &str) -> Arc<HttpRule> {
    Arc::new(HttpRule {
        id: RuleId { kind: RouteKind::Http, route: ObjectKey::new("shop", name), index: 2, name: None },
        label: label.into(),
        filters: FilterChain::default(),
        action: Action::Fail(FailReason::NoBackend),
        timeouts: Timeouts::default(),
        retry: None,
        session: None,
    })
}

pub(super) fn backend(name: &str) -> Arc<Backend> {
    Arc::new(Backend {
        key: BackendKey {
            service: ObjectKey::new("shop", name),
            port: 80,
            transport: Transport::Tcp,
            reach: Reach::default(),
        },
        protocol: AppProtocol::Http,
        tls: None,
        client_ip_affinity: None,
    })
}

pub(super) fn head(request: Request<()>) -> RequestHead {
    RequestHead::of(&request.into_parts().0, false)
}

impl Exchange {
    pub(super) fn new() -> Self {
        let request = Request::builder()
            .uri("/cart/1?secret=x")
            .header("host", "shop.example:8080")
            .header("user-agent", "curl/8")
            .body(())
            .unwrap();
        let draw = Draw { trace: 0xabc, span: 0xdef };
        Self {
            parent: ObjectKey::new("shop", "cart"),
            head: head(request),
            trace: TraceContext::start(&HeaderMap::new(), draw, Some(Sampler::new(1.0, true))),
            source: workload("shop", "web-1", "web"),
            rule: rule("canary", "/cart/*"),
            backend: backend("cart-v2"),
            endpoint: Endpoint {
                addr: SocketAddr::from(([10, 0, 0, 9], 8080)),
                workload: Some(workload("shop", "cart-v2-1", "cart")),
                zone: None,
            },
        }
    }

    pub(super) fn record(&self) -> RequestRecord<'_> {
        RequestRecord {
            parent: Some(&self.parent),
            head: Some(&self.head),
            source: Some(&self.source),
            rule: Some(&self.rule),
            backend: Some(&self.backend),
            endpoint: Some(&self.endpoint),
            code: 200,
            request_bytes: 3,
            response_bytes: 5,
            duration: Duration::from_micros(1_234),
            tries: 1,
            ..RequestRecord::new(Direction::Mesh, &self.trace, peer())
        }
    }
}
