//! Where the status of a kind is.

use super::FIELD_MANAGER;
use crate::call::CallError;
use kube::{
    api::{ListParams, Patch, PatchParams},
    core::Request,
};
use serde_json::Value;
use weft_core::model::{GATEWAY_GROUP, Kind, ObjectRef};

/// The kinds whose status we write.
pub(super) const KINDS: [Kind; 9] = [
    Kind::GatewayClass,
    Kind::Gateway,
    Kind::ListenerSet,
    Kind::HttpRoute,
    Kind::GrpcRoute,
    Kind::TlsRoute,
    Kind::TcpRoute,
    Kind::UdpRoute,
    Kind::BackendTlsPolicy,
];

/// The resource's name in paths and RBAC rules.
pub(super) fn plural(kind: Kind) -> Option<&'static str> {
    Some(match kind {
        Kind::GatewayClass => "gatewayclasses",
        Kind::Gateway => "gateways",
        Kind::ListenerSet => "listenersets",
        Kind::HttpRoute => "httproutes",
        Kind::GrpcRoute => "grpcroutes",
        Kind::TlsRoute => "tlsroutes",
        Kind::TcpRoute => "tcproutes",
        Kind::UdpRoute => "udproutes",
        Kind::BackendTlsPolicy => "backendtlspolicies",
        _ => return None,
    })
}

/// `status.parents` and `status.ancestors` are lists of many controllers, and *atomic* in the CRDs: server-side apply
/// of ours would remove the others' entries.
pub(super) fn list_of_many(kind: Kind) -> Option<(&'static str, &'static str, usize)> {
    match kind {
        Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute | Kind::UdpRoute => {
            Some(("parents", "parentRef", 32))
        }
        Kind::BackendTlsPolicy => Some(("ancestors", "ancestorRef", 16)),
        _ => None,
    }
}

/// Whether other controllers may write the status of such an object too.
pub(crate) fn is_shared(kind: Kind) -> bool {
    list_of_many(kind).is_some()
}

/// The requests of one kind in one version.
pub(super) struct Requests {
    plural: &'static str,
    version: String,
}

impl Requests {
    /// None for a kind without status.
    pub(super) fn new(kind: Kind, version: &str) -> Option<Self> {
        Some(Self { plural: plural(kind)?, version: version.to_owned() })
    }

    pub(super) fn get(&self, object: &ObjectRef) -> Result<http::Request<Vec<u8>>, CallError> {
        built(self.of(&object.key.namespace).get(&object.key.name, &Default::default()))
    }

    /// One page of all objects in all namespaces.
    pub(super) fn list(&self, token: Option<&str>) -> Result<http::Request<Vec<u8>>, CallError> {
        let mut params = ListParams::default().limit(500);
        params.continue_token = token.map(str::to_owned);
        built(self.of("").list(&params))
    }

    /// Server-side apply of the status. Forced: nobody else has a say in the fields that we apply.
    pub(super) fn apply(
        &self,
        object: &ObjectRef,
        body: &Value,
    ) -> Result<http::Request<Vec<u8>>, CallError> {
        let params = PatchParams::apply(FIELD_MANAGER).force();
        built(self.of(&object.key.namespace).patch_subresource(
            "status",
            &object.key.name,
            &params,
            &Patch::Apply(body),
        ))
    }

    /// Merge patch of the status: lists are replaced.
    pub(super) fn merge(
        &self,
        object: &ObjectRef,
        body: &Value,
    ) -> Result<http::Request<Vec<u8>>, CallError> {
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        built(self.of(&object.key.namespace).patch_subresource(
            "status",
            &object.key.name,
            &params,
            &Patch::Merge(body),
        ))
    }

    /// `group/version`.
    pub(super) fn api_version(&self) -> String {
        format!("{GATEWAY_GROUP}/{}", self.version)
    }

    fn of(&self, namespace: &str) -> Request {
        let base = format!("/apis/{GATEWAY_GROUP}/{}", self.version);
        Request::new(match namespace {
            "" => format!("{base}/{}", self.plural),
            namespace => format!("{base}/namespaces/{namespace}/{}", self.plural),
        })
    }
}

fn built<T>(request: Result<T, kube::core::request::Error>) -> Result<T, CallError> {
    request.map_err(|e| CallError::Refused { code: 0, message: e.to_string() })
}
