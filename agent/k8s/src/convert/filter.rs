//! Filters of rules and backendRefs.

use super::route::Invalid;
use super::{gateway, route};
use crate::{api, path};
use http::{HeaderName, HeaderValue, StatusCode};
use weft_core::model::{
    Cors, Filter, HeaderModifier, Hostname, Mirror, PathModifier, Redirect, Str, UrlRewrite,
};

/// All filters in order. A filter that cannot be read leaves a note in `invalid`, so that its rule is not served.
pub(super) fn filters(filters: Vec<api::Filter>, at: &str, invalid: &mut Invalid) -> Vec<Filter> {
    let one = |(i, f)| filter(f, &path::index(at, i), invalid);
    filters.into_iter().enumerate().filter_map(one).collect()
}

fn filter(f: api::Filter, at: &str, invalid: &mut Invalid) -> Option<Filter> {
    let field = |name: &str| path::key(at, name);
    let known = match f.kind.as_str() {
        "RequestHeaderModifier" => f.request_header_modifier.map(|m| {
            modifier(m, &field("requestHeaderModifier"), invalid).map(Filter::RequestHeaderModifier)
        }),
        "ResponseHeaderModifier" => f.response_header_modifier.map(|m| {
            modifier(m, &field("responseHeaderModifier"), invalid).map(Filter::ResponseHeaderModifier)
        }),
        "RequestMirror" => f.request_mirror.map(|m| Some(Filter::RequestMirror(mirror(m)))),
        "RequestRedirect" => f
            .request_redirect
            .map(|r| redirect(r, &field("requestRedirect"), invalid).map(Filter::RequestRedirect)),
        "URLRewrite" => {
            f.url_rewrite.map(|r| rewrite(r, &field("urlRewrite"), invalid).map(Filter::UrlRewrite))
        }
        "CORS" => f.cors.map(|c| Some(Filter::Cors(cors(c)))),
        "ExternalAuth" => f
            .external_auth
            .map(|a| Some(Filter::ExternalAuth { backend: route::backend_object(a.backend_ref) })),
        "ExtensionRef" => f.extension_ref.map(|r| {
            let r = gateway::reference(r);
            Some(Filter::ExtensionRef { group: r.kind.group, kind: r.kind.kind, name: r.name })
        }),
        other => return Some(Filter::Unknown(other.into())),
    };
    // A known type without its field can only come from an API server without that rule.
    known.unwrap_or_else(|| {
        invalid.push(at, format!("a {} filter without its field", f.kind));
        None
    })
}

fn modifier(m: api::HeaderModifier, at: &str, invalid: &mut Invalid) -> Option<HeaderModifier> {
    let mut of = |headers: Vec<api::Header>, list: &str| -> Option<Vec<(HeaderName, HeaderValue)>> {
        let mut out = Vec::new();
        for (i, h) in headers.into_iter().enumerate() {
            let at = path::index(&path::key(at, list), i);
            let name = name(&h.name, &path::key(&at, "name"), invalid)?;
            let value = invalid.ok(&path::key(&at, "value"), HeaderValue::from_str(&h.value))?;
            out.push((name, value));
        }
        Some(out)
    };
    let (set, add) = (of(m.set, "set")?, of(m.add, "add")?);
    let mut remove = Vec::new();
    for (i, h) in m.remove.iter().enumerate() {
        remove.push(name(h, &path::index(&path::key(at, "remove"), i), invalid)?);
    }
    Some(HeaderModifier { set, add, remove })
}

fn name(text: &str, at: &str, invalid: &mut Invalid) -> Option<HeaderName> {
    let result = HeaderName::from_bytes(text.as_bytes());
    invalid.ok(at, result.map_err(|_| format!("\"{text}\" is no header name")))
}

fn mirror(m: api::Mirror) -> Mirror {
    let (numerator, denominator) = match (m.percent, m.fraction) {
        (Some(percent), _) => (percent, 100),
        (None, Some(f)) => (f.numerator, f.denominator),
        (None, None) => (100, 100),
    };
    Mirror { backend: route::backend_object(m.backend_ref), numerator, denominator }
}

fn redirect(r: api::Redirect, at: &str, invalid: &mut Invalid) -> Option<Redirect> {
    Some(Redirect {
        scheme: r.scheme.map(Str::from),
        hostname: hostname(r.hostname, at, invalid)?,
        path: path_modifier(r.path, at, invalid)?,
        port: r.port,
        status: invalid.ok(&path::key(at, "statusCode"), StatusCode::from_u16(r.status_code))?,
    })
}

fn rewrite(r: api::UrlRewrite, at: &str, invalid: &mut Invalid) -> Option<UrlRewrite> {
    Some(UrlRewrite {
        hostname: hostname(r.hostname, at, invalid)?,
        path: path_modifier(r.path, at, invalid)?,
    })
}

/// The outer `None` is for a hostname that cannot be used.
#[allow(clippy::option_option)] // "absent" and "unusable" are two things here
fn hostname(text: Option<String>, at: &str, invalid: &mut Invalid) -> Option<Option<Hostname>> {
    match text {
        Some(h) => invalid.ok(&path::key(at, "hostname"), Hostname::parse(&h)).map(Some),
        None => Some(None),
    }
}

#[allow(clippy::option_option)] // as above
fn path_modifier(
    p: Option<api::PathModifier>,
    at: &str,
    invalid: &mut Invalid,
) -> Option<Option<PathModifier>> {
    let Some(p) = p else { return Some(None) };
    match (p.kind.as_str(), p.replace_full_path, p.replace_prefix_match) {
        ("ReplaceFullPath", Some(path), _) => Some(Some(PathModifier::ReplaceFullPath(path.into()))),
        ("ReplacePrefixMatch", _, Some(path)) => Some(Some(PathModifier::ReplacePrefixMatch(path.into()))),
        (kind, ..) => {
            invalid.push(&format!("{at}.path.type"), format!("\"{kind}\" is not known to this version"));
            None
        }
    }
}

fn cors(c: api::Cors) -> Cors {
    let strs = |v: Vec<String>| v.into_iter().map(Str::from).collect();
    Cors {
        allow_origins: strs(c.allow_origins),
        allow_credentials: c.allow_credentials,
        allow_methods: strs(c.allow_methods),
        allow_headers: strs(c.allow_headers),
        expose_headers: strs(c.expose_headers),
        max_age: c.max_age,
    }
}
