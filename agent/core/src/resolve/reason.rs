//! Reasons of conditions, as the API's enums spell them (apis/v1 at v1.6.1).

macro_rules! reasons {
    ($($name:ident = $text:literal;)*) => {
        $(pub(crate) const $name: &str = $text;)*
    };
}

reasons! {
    ACCEPTED = "Accepted";
    ADDRESS_NOT_ASSIGNED = "AddressNotAssigned";
    ADDRESS_NOT_USABLE = "AddressNotUsable";
    BACKEND_NOT_FOUND = "BackendNotFound";
    CONFIGURATION_CHANGED = "ConfigurationChanged";
    CONFLICTED = "Conflicted";
    HOSTNAME_CONFLICT = "HostnameConflict";
    INCOMPATIBLE_FILTERS = "IncompatibleFilters";
    INVALID = "Invalid";
    INVALID_CA_KIND = "InvalidCACertificateKind";
    INVALID_CA_REF = "InvalidCACertificateRef";
    INVALID_CERTIFICATE_REF = "InvalidCertificateRef";
    INVALID_CLIENT_CERTIFICATE_REF = "InvalidClientCertificateRef";
    INVALID_KIND = "InvalidKind";
    INVALID_PARAMETERS = "InvalidParameters";
    INVALID_ROUTE_KINDS = "InvalidRouteKinds";
    LISTENERS_NOT_RESOLVED = "ListenersNotResolved";
    LISTENERS_NOT_VALID = "ListenersNotValid";
    NOT_ALLOWED = "NotAllowed";
    NOT_ALLOWED_BY_LISTENERS = "NotAllowedByListeners";
    NO_CONFLICTS = "NoConflicts";
    NO_MATCHING_LISTENER_HOSTNAME = "NoMatchingListenerHostname";
    NO_MATCHING_PARENT = "NoMatchingParent";
    NO_RESOURCES = "NoResources";
    NO_VALID_CA = "NoValidCACertificate";
    OVERLAPPING_HOSTNAMES = "OverlappingHostnames";
    PARENT_NOT_ACCEPTED = "ParentNotAccepted";
    PENDING = "Pending";
    PROGRAMMED = "Programmed";
    PROTOCOL_CONFLICT = "ProtocolConflict";
    REF_NOT_PERMITTED = "RefNotPermitted";
    RESOLVED_REFS = "ResolvedRefs";
    SUPPORTED_VERSION = "SupportedVersion";
    UNSUPPORTED_ADDRESS = "UnsupportedAddress";
    UNSUPPORTED_PROTOCOL = "UnsupportedProtocol";
    UNSUPPORTED_VALUE = "UnsupportedValue";
}

/// Of a problem with where a Gateway is served.
pub(crate) const fn placement(reason: crate::model::PlacementReason) -> &'static str {
    use crate::model::PlacementReason;
    match reason {
        PlacementReason::AddressNotAssigned => ADDRESS_NOT_ASSIGNED,
        PlacementReason::AddressNotUsable => ADDRESS_NOT_USABLE,
        PlacementReason::NoResources => NO_RESOURCES,
    }
}
