//! What to do about a value that the schema refuses. Only words: nothing here decides anything.

use crate::path::closest;

/// Reason and remedy for a value outside an enumeration.
pub(super) fn unknown_value(path: &str, value: &str, known: &[&str]) -> (String, String) {
    let filter =
        path.ends_with("].type") && path.rsplit_once('[').is_some_and(|(p, _)| p.ends_with("filters"));
    let all = format!("it must be one of {}", known.join(", "));
    if filter {
        let remedy = filter_type(value).map_or_else(|| meant(value, known, &all), str::to_owned);
        return (format!("unknown filter type \"{value}\""), remedy);
    }
    (format!("\"{value}\" is not known here"), meant(value, known, &all))
}

fn meant(value: &str, known: &[&str], otherwise: &str) -> String {
    closest(value, known.iter().copied())
        .map_or_else(|| otherwise.to_owned(), |c| format!("did you mean \"{c}\"? {otherwise}"))
}

/// Filters that blog posts show and no release ever had.
fn filter_type(value: &str) -> Option<&'static str> {
    Some(match value {
        "RequestTimeout" | "Timeout" | "BackendTimeout" => {
            "use the rule's \"timeouts: {request: 10s}\" instead (GEP-1742); it is no filter"
        }
        "RequestRetry" | "Retry" | "Retries" => {
            "use the rule's \"retry: {attempts: 3, backoff: 1s}\" instead (GEP-1731, experimental channel); it is no filter"
        }
        "RateLimit" | "RateLimiting" | "RequestRateLimit" => {
            "the Gateway API has no rate limit; remove the filter"
        }
        "RequestHeaderModification" | "HeaderModifier" => "use \"RequestHeaderModifier\"",
        "Rewrite" | "URLRewriter" | "PathRewrite" => "use \"URLRewrite\"",
        "Redirect" => "use \"RequestRedirect\"",
        "Mirror" => "use \"RequestMirror\"",
        _ => return None,
    })
}

/// Fields of every object beside its spec.
pub(super) const TOP_LEVEL: [&str; 4] = ["apiVersion", "kind", "metadata", "status"];

/// Fields that people put where they are not.
pub(super) fn unknown_field(parent: &str, name: &str) -> Option<&'static str> {
    let rule =
        parent.rsplit_once("rules[").is_some_and(|(_, tail)| tail.ends_with(']') && !tail.contains('.'));
    let listener =
        parent.rsplit_once("listeners[").is_some_and(|(_, t)| t.ends_with(']') && !t.contains('.'));
    Some(match name {
        "name" | "namespace" | "labels" | "annotations" if parent.is_empty() => {
            "indent it below \"metadata\""
        }
        "timeout" if rule => "write \"timeouts: {request: 10s}\" (GEP-1742)",
        "retries" if rule => "write \"retry: {attempts: 3}\" (GEP-1731, experimental channel)",
        "backends" | "forwardTo" | "backend" if rule => "did you mean \"backendRefs\"?",
        "weight" if rule => "a weight belongs to each entry of \"backendRefs\"",
        "parentRef" if parent == "spec" => "did you mean \"parentRefs\" (a list)?",
        "gateways" | "gatewayRefs" if parent == "spec" => "did you mean \"parentRefs\"?",
        "hostnames" | "hosts" if listener => "a listener has one \"hostname\"",
        "hosts" if parent == "spec" => "did you mean \"hostnames\"?",
        "http" | "https" if parent == "spec" => {
            "HTTPRoute has \"rules\" here (\"http\" is Istio's VirtualService)"
        }
        "selector" if parent == "spec" => "a Gateway API Gateway has no selector (that is Istio's Gateway)",
        "certificateRef" => "did you mean \"certificateRefs\" (a list)?",
        "requestTimeout" | "requestRetry" => "timeouts and retries are fields of the rule, not of a filter",
        _ => return None,
    })
}

/// What to write for a required field.
pub(super) fn required(path: &str) -> &'static str {
    let field = path.rsplit('.').next().unwrap_or(path);
    match field {
        "gatewayClassName" => "name a GatewayClass, for example \"gatewayClassName: weft\"",
        "protocol" => "write HTTP, HTTPS, TLS, TCP or UDP",
        "port" => "write a port from 1 to 65535",
        "hostnames" => "a TLSRoute selects by SNI: write at least one hostname",
        "controllerName" => "for Weft write \"controllerName: weft.dev/gateway-controller\"",
        "backendRefs" => "name the Service to send to: \"backendRefs: [{name: …, port: …}]\"",
        "spec" => "an object without spec does nothing",
        _ => "",
    }
}

/// What a pattern of the CRDs means in words.
pub(super) fn pattern(pattern: &str, text: &str) -> String {
    let dns = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
    let words = if pattern.starts_with("^([0-9]{1,5}(h|m|s|ms))") {
        "write a duration of h, m, s and ms in whole numbers, such as 500ms, 10s or 1m30s (GEP-2257)"
    } else if pattern.starts_with("^(\\*\\.)?") {
        if text.contains("://") {
            "write the host alone, without scheme and path"
        } else if text.contains(':') {
            "write the host alone, without a port"
        } else {
            "write a lower-case DNS name, with at most a \"*.\" in front"
        }
    } else if pattern.starts_with("(^\\*$)|") {
        "write an origin such as https://app.example.com, https://*.example.com:8443 or *"
    } else if pattern.contains("!#$%&'*+") {
        "write a header name: letters, digits and -"
    } else if pattern == "^[!-~]+([\\t ]?[!-~]+)*$" {
        "write printable ASCII with single blanks between words"
    } else if pattern.contains("\\/[A-Za-z0-9\\/") {
        "write DOMAIN/PATH, such as weft.dev/gateway-controller"
    } else if pattern.starts_with("^(([^:/?#]+):)") {
        "write an absolute URI, such as spiffe://cluster.local/ns/shop/sa/cart"
    } else if pattern.contains(dns) {
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            "use lower-case letters, digits, - and . only"
        } else {
            "use a DNS name: lower-case letters, digits, - and ."
        }
    } else {
        return format!("it must match {pattern}");
    };
    words.to_owned()
}
