//! The five route kinds. One `RouteSpec`: a kind that lacks a field leaves it empty.

use super::{BackendObject, Reference};
use serde::Deserialize;

/// HTTPRoute (`M` = [`HttpMatch`]), GRPCRoute ([`GrpcMatch`]), TLSRoute, TCPRoute and UDPRoute ([`NoMatch`]).
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", bound(deserialize = "M: Deserialize<'de>"))]
pub(crate) struct RouteSpec<M> {
    #[serde(default)]
    pub(crate) parent_refs: Vec<ParentRef>,
    #[serde(default)]
    pub(crate) hostnames: Vec<String>,
    #[serde(default)]
    pub(crate) rules: Vec<Rule<M>>,
    pub(crate) use_default_gateways: Option<String>,
}

/// TLS, TCP and UDP rules have no matches.
#[derive(Debug, Deserialize)]
pub(crate) struct NoMatch {}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ParentRef {
    #[serde(default)]
    pub(crate) group: String,
    pub(crate) kind: String,
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
    pub(crate) section_name: Option<String>,
    pub(crate) port: Option<u16>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", bound(deserialize = "M: Deserialize<'de>"))]
pub(crate) struct Rule<M> {
    pub(crate) name: Option<String>,
    #[serde(default = "Vec::new")]
    pub(crate) matches: Vec<M>,
    #[serde(default)]
    pub(crate) filters: Vec<Filter>,
    #[serde(default)]
    pub(crate) backend_refs: Vec<BackendRef>,
    pub(crate) timeouts: Option<Timeouts>,
    pub(crate) retry: Option<Retry>,
    pub(crate) session_persistence: Option<SessionPersistence>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HttpMatch {
    pub(crate) path: Option<PathMatch>,
    pub(crate) method: Option<String>,
    #[serde(default)]
    pub(crate) headers: Vec<NamedMatch>,
    #[serde(default)]
    pub(crate) query_params: Vec<NamedMatch>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct PathMatch {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) value: String,
}

/// `HTTPHeaderMatch`, `HTTPQueryParamMatch`, `GRPCHeaderMatch`.
#[derive(Debug, Deserialize)]
pub(crate) struct NamedMatch {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) value: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct GrpcMatch {
    pub(crate) method: Option<MethodMatch>,
    #[serde(default)]
    pub(crate) headers: Vec<NamedMatch>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct MethodMatch {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) service: Option<String>,
    pub(crate) method: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct BackendRef {
    #[serde(flatten)]
    pub(crate) object: BackendObject,
    pub(crate) weight: u32,
    #[serde(default)]
    pub(crate) filters: Vec<Filter>,
}

/// `HTTPRouteFilter` and `GRPCRouteFilter`: `type` says which field is there.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Filter {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) request_header_modifier: Option<HeaderModifier>,
    pub(crate) response_header_modifier: Option<HeaderModifier>,
    pub(crate) request_mirror: Option<Mirror>,
    pub(crate) request_redirect: Option<Redirect>,
    pub(crate) url_rewrite: Option<UrlRewrite>,
    pub(crate) cors: Option<Cors>,
    pub(crate) external_auth: Option<ExternalAuth>,
    pub(crate) extension_ref: Option<Reference>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct HeaderModifier {
    #[serde(default)]
    pub(crate) set: Vec<Header>,
    #[serde(default)]
    pub(crate) add: Vec<Header>,
    #[serde(default)]
    pub(crate) remove: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Header {
    pub(crate) name: String,
    pub(crate) value: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Mirror {
    pub(crate) backend_ref: BackendObject,
    pub(crate) percent: Option<u32>,
    pub(crate) fraction: Option<Fraction>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Fraction {
    pub(crate) numerator: u32,
    pub(crate) denominator: u32,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Redirect {
    pub(crate) scheme: Option<String>,
    pub(crate) hostname: Option<String>,
    pub(crate) path: Option<PathModifier>,
    pub(crate) port: Option<u16>,
    pub(crate) status_code: u16,
}

#[derive(Debug, Deserialize)]
pub(crate) struct UrlRewrite {
    pub(crate) hostname: Option<String>,
    pub(crate) path: Option<PathModifier>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PathModifier {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) replace_full_path: Option<String>,
    pub(crate) replace_prefix_match: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Cors {
    #[serde(default)]
    pub(crate) allow_origins: Vec<String>,
    #[serde(default)]
    pub(crate) allow_credentials: bool,
    #[serde(default)]
    pub(crate) allow_methods: Vec<String>,
    #[serde(default)]
    pub(crate) allow_headers: Vec<String>,
    #[serde(default)]
    pub(crate) expose_headers: Vec<String>,
    pub(crate) max_age: u32,
}

/// `HTTPExternalAuthFilter` (GEP-1494). Only the backend is carried on: the filter is not acted on yet and fails closed.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ExternalAuth {
    pub(crate) backend_ref: BackendObject,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Timeouts {
    pub(crate) request: Option<String>,
    pub(crate) backend_request: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Retry {
    #[serde(default)]
    pub(crate) codes: Vec<u16>,
    pub(crate) attempts: Option<u32>,
    pub(crate) backoff: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SessionPersistence {
    pub(crate) session_name: Option<String>,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) absolute_timeout: Option<String>,
    pub(crate) cookie_config: Option<CookieConfig>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CookieConfig {
    pub(crate) lifetime_type: String,
}
