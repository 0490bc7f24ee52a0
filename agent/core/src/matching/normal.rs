//! Dot segments.

use std::borrow::Cow;

/// Resolves `.` and `..` segments, also written `%2e` (RFC 3986 §5.2.4; above the root there is the root). Anything else
/// stays as it is: no decoding, no merging of slashes. Allocates only if there is something to resolve.
///
/// Call it before matching and forward the result, so that what was matched is what the backend sees. Clients resolve
/// these themselves; who sends them tries to get past a rule.
#[must_use]
pub fn normal_path(path: &str) -> Cow<'_, str> {
    if !path.starts_with('/') || !path.split('/').any(|s| dots(s) > 0) {
        return Cow::Borrowed(path); // also `*` and the empty path of CONNECT
    }
    let mut out: Vec<&str> = Vec::new();
    let mut segments = path[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        match dots(segment) {
            0 => out.push(segment),
            1 => {}
            _ => {
                out.pop();
            }
        }
        // `/a/.` and `/a/b/..` end in a slash.
        if dots(segment) > 0 && segments.peek().is_none() {
            out.push("");
        }
    }
    Cow::Owned(format!("/{}", out.join("/")))
}

/// 1 for `.`, 2 for `..`, 0 for any other segment.
fn dots(segment: &str) -> usize {
    if segment.len() > 6 || !segment.starts_with(['.', '%']) {
        return 0;
    }
    let (mut rest, mut count) = (segment.as_bytes(), 0);
    while !rest.is_empty() {
        rest = match rest {
            [b'.', tail @ ..] | [b'%', b'2', b'e' | b'E', tail @ ..] => tail,
            _ => return 0,
        };
        count += 1;
    }
    if count <= 2 { count } else { 0 }
}
