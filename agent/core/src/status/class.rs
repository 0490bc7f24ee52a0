//! GatewayClass.

use super::{Condition, ObjectStatus, observed};
use crate::{
    model::GatewayClass,
    resolve::{Problem, reason},
};

/// Features of v1.6.1 that this build serves, sorted. The mesh's names are left to XMesh.
const SUPPORTED_FEATURES: &[&str] = &[
    "BackendTLSPolicy",
    "BackendTLSPolicySANValidation",
    "GRPCRoute",
    "GRPCRouteNamedRouteRule",
    "Gateway",
    "GatewayAddressEmpty",
    "GatewayBackendClientCertificate",
    "GatewayFrontendClientCertificateValidation",
    "GatewayFrontendClientCertificateValidationInsecureFallback",
    "GatewayHTTPListenerIsolation",
    "GatewayHTTPSListenerDetectMisdirectedRequests",
    "GatewayInfrastructurePropagation",
    "GatewayPort8080",
    "GatewayStaticAddresses",
    "HTTPRoute",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteBackendProtocolH2C",
    "HTTPRouteBackendProtocolWebSocket",
    "HTTPRouteBackendRequestHeaderModification",
    "HTTPRouteBackendTimeout",
    "HTTPRouteCORS",
    "HTTPRouteDestinationPortMatching",
    "HTTPRouteHostRewrite",
    "HTTPRouteMethodMatching",
    "HTTPRouteNamedRouteRule",
    "HTTPRouteParentRefPort",
    "HTTPRoutePathRedirect",
    "HTTPRoutePathRewrite",
    "HTTPRoutePortRedirect",
    "HTTPRouteQueryParamMatching",
    "HTTPRouteRequestMirror",
    "HTTPRouteRequestMultipleMirrors",
    "HTTPRouteRequestPercentageMirror",
    "HTTPRouteRequestTimeout",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteRetry",
    "HTTPRouteSchemeRedirect",
    "ListenerSet",
    "ReferenceGrant",
    "TCPRoute",
    "TLSRoute",
    "TLSRouteModeMixed",
    "TLSRouteModeTerminate",
    "UDPRoute",
];

/// The status of a class of ours.
pub(crate) fn class_status(class: &GatewayClass, accepted: &Result<(), Problem>) -> ObjectStatus {
    let accepted = match accepted {
        Ok(()) => Condition::yes("Accepted", reason::ACCEPTED, "Gateways of this class are served by Weft."),
        Err(problem) => Condition::no("Accepted", problem),
    };
    // The provider refuses CRDs of a version that it cannot read; what reaches the core is readable.
    let version = Condition::yes("SupportedVersion", reason::SUPPORTED_VERSION, "Gateway API v1.6 is read.");
    ObjectStatus::GatewayClass {
        conditions: observed(class.meta.generation, vec![accepted, version]),
        supported_features: SUPPORTED_FEATURES.to_vec(),
    }
}
