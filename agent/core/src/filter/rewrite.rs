//! `URLRewrite`.

use super::path::modify;
use crate::model::UrlRewrite;
use http::{
    HeaderValue, Uri,
    header::HOST,
    request::Parts,
    uri::{Authority, PathAndQuery},
};

/// The request's target cannot be rewritten (it would be longer than 64 KiB). The client's fault; answer 414.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the rewritten request target is no valid URI (too long)")]
pub struct InvalidTarget;

/// Rewrites path and host in place. The query stays.
///
/// The new hostname has no port. It goes to `:authority` (the URI) if there is one, and to `Host` if there is one or
/// if there is no authority. `matched_prefix` is [`crate::matching::Selected::prefix`].
///
/// # Errors
/// [`InvalidTarget`]; `parts` is then unchanged.
pub fn apply(
    filter: &UrlRewrite,
    matched_prefix: Option<&str>,
    parts: &mut Parts,
) -> Result<(), InvalidTarget> {
    let mut uri = parts.uri.clone().into_parts();
    if let Some(modifier) = &filter.path {
        let new = modify(modifier, matched_prefix, parts.uri.path());
        let mut target = new.path;
        for (query, mark) in [(new.query.as_deref(), '?'), (parts.uri.query(), '?')] {
            let Some(query) = query else { continue };
            target.push(if target.contains('?') { '&' } else { mark });
            target.push_str(query);
        }
        uri.path_and_query = Some(PathAndQuery::try_from(target).map_err(|_| InvalidTarget)?);
    }
    let host = filter.hostname.as_ref().map(|h| h.as_str());
    if let (Some(host), true) = (host, uri.authority.is_some()) {
        uri.authority = Some(Authority::try_from(host).map_err(|_| InvalidTarget)?);
    }
    let has_authority = uri.authority.is_some();
    parts.uri = Uri::from_parts(uri).map_err(|_| InvalidTarget)?;
    if let Some(host) = host
        && (!has_authority || parts.headers.contains_key(HOST))
        && let Ok(value) = HeaderValue::from_str(host)
    {
        parts.headers.insert(HOST, value);
    }
    Ok(())
}
