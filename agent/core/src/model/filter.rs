//! Filters as the user wrote them.

use super::{BackendObjectRef, Hostname, Str};
use http::{HeaderName, HeaderValue, StatusCode};

/// One filter of a rule or backendRef.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Filter {
    RequestHeaderModifier(HeaderModifier),
    ResponseHeaderModifier(HeaderModifier),
    RequestRedirect(Redirect),
    UrlRewrite(UrlRewrite),
    RequestMirror(Mirror),
    Cors(Cors),
    /// `ExtensionRef`: none is served yet, so the rule fails closed with a condition.
    ExtensionRef {
        group: Str,
        kind: Str,
        name: Str,
    },
    /// `ExternalAuth` (GEP-1494, experimental): parsed; not acted on yet, so the rule fails closed.
    ExternalAuth {
        backend: BackendObjectRef,
    },
    /// A type this version does not know: `Accepted=False/UnsupportedValue`, fails closed.
    Unknown(Str),
}

/// `HTTPHeaderFilter`. Names are unique across set, add and remove only within each list.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeaderModifier {
    /// Replace.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Append.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Remove.
    pub remove: Vec<HeaderName>,
}

/// `HTTPRequestRedirectFilter`.
#[derive(Clone, Debug, PartialEq)]
pub struct Redirect {
    /// `scheme`: `http` or `https`.
    pub scheme: Option<Str>,
    /// `hostname`.
    pub hostname: Option<Hostname>,
    /// `path`.
    pub path: Option<PathModifier>,
    /// `port`.
    pub port: Option<u16>,
    /// `statusCode`: 301, 302 (default), 303, 307, 308.
    pub status: StatusCode,
}

/// `HTTPURLRewriteFilter`.
#[derive(Clone, Debug, PartialEq)]
pub struct UrlRewrite {
    /// `hostname`.
    pub hostname: Option<Hostname>,
    /// `path`.
    pub path: Option<PathModifier>,
}

/// `HTTPPathModifier`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum PathModifier {
    ReplaceFullPath(Str),
    ReplacePrefixMatch(Str),
}

/// `HTTPRequestMirrorFilter`.
#[derive(Clone, Debug, PartialEq)]
pub struct Mirror {
    /// `backendRef`.
    pub backend: BackendObjectRef,
    /// Share of requests mirrored: numerator of [`Mirror::denominator`]. `percent: 20` is 20/100. Default 100/100.
    pub numerator: u32,
    /// `fraction.denominator`, 100 by default.
    pub denominator: u32,
}

/// `HTTPCORSFilter` (GEP-1767).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cors {
    /// `allowOrigins`: exact origins, `*`, or with a wildcard host (`https://*.example.com:8443`).
    pub allow_origins: Vec<Str>,
    /// `allowCredentials`.
    pub allow_credentials: bool,
    /// `allowMethods`; `*` alone means all.
    pub allow_methods: Vec<Str>,
    /// `allowHeaders`; `*` alone means all.
    pub allow_headers: Vec<Str>,
    /// `exposeHeaders`.
    pub expose_headers: Vec<Str>,
    /// `maxAge`, seconds; 5 by default.
    pub max_age: u32,
}
