//! `RequestHeaderModifier` and `ResponseHeaderModifier`.

use crate::model::HeaderModifier;
use http::{
    HeaderMap, HeaderName,
    header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE},
};

/// Sets, then adds, then removes. Names that are not [`editable`] are left alone.
///
/// An added value becomes a field line of its own, which RFC 9110 §5.3 makes equal to `old,new`; `Set-Cookie` would not
/// survive being joined.
pub fn apply(modifier: &HeaderModifier, headers: &mut HeaderMap) {
    for (name, value) in modifier.set.iter().filter(|(n, _)| editable(n)) {
        headers.insert(name, value.clone());
    }
    for (name, value) in modifier.add.iter().filter(|(n, _)| editable(n)) {
        headers.append(name, value.clone());
    }
    for name in modifier.remove.iter().filter(|n| editable(n)) {
        headers.remove(name);
    }
}

/// Whether a filter may touch this header.
///
/// Not those that frame the message or belong to one connection (RFC 9110 §7.6.1): an edited `Transfer-Encoding` is
/// request smuggling. Not `Host`, which is `:authority` in HTTP/2: `URLRewrite.hostname` changes both.
#[must_use]
pub fn editable(name: &HeaderName) -> bool {
    ![CONNECTION, CONTENT_LENGTH, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE].contains(name)
        && name != "keep-alive"
        && name != "proxy-connection"
}
