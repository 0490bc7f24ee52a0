//! Field paths as text: `spec.rules[0].filters[1].type`, `metadata.labels[app.kubernetes.io/name]`.

use std::fmt::Write;

pub(crate) use weft_core::spelling::closest;

/// Appends a key and returns the old length, to truncate to.
pub(crate) fn push_key(path: &mut String, key: &str) -> usize {
    let old = path.len();
    let plain = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if plain {
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(key);
    } else {
        path.push('[');
        path.push_str(key);
        path.push(']');
    }
    old
}

/// Appends an index and returns the old length, to truncate to.
pub(crate) fn push_index(path: &mut String, index: usize) -> usize {
    let old = path.len();
    // Writing to a String cannot fail.
    let _ = write!(path, "[{index}]");
    old
}

/// `path` with a key appended.
pub(crate) fn key(path: &str, key: &str) -> String {
    let mut out = path.to_owned();
    push_key(&mut out, key);
    out
}

/// `path` with an index appended.
pub(crate) fn index(path: &str, index: usize) -> String {
    format!("{path}[{index}]")
}

/// The steps of a path, keys and indices alike as text.
pub(crate) fn steps(path: &str) -> impl Iterator<Item = &str> {
    let mut rest = path;
    std::iter::from_fn(move || {
        rest = rest.strip_prefix('.').unwrap_or(rest);
        if rest.is_empty() {
            return None;
        }
        let (step, tail) = match rest.strip_prefix('[') {
            Some(inner) => inner.split_once(']').unwrap_or((inner, "")),
            None => rest.split_at(rest.find(['.', '[']).unwrap_or(rest.len())),
        };
        rest = tail;
        Some(step)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_steps() {
        let mut path = String::new();
        for k in ["spec", "rules"] {
            push_key(&mut path, k);
        }
        push_index(&mut path, 3);
        push_key(&mut path, "a.b/c");
        assert_eq!(path, "spec.rules[3][a.b/c]");
        assert_eq!(steps(&path).collect::<Vec<_>>(), ["spec", "rules", "3", "a.b/c"]);
    }

    #[test]
    fn typos_are_understood() {
        let fields = ["backendRefs", "filters", "matches", "name", "timeouts", "gatewayClassName"];
        for (typo, meant) in [
            ("backendRef", Some("backendRefs")),
            ("backendrefs", Some("backendRefs")),
            ("fliters", Some("filters")),
            ("gatewayClass", Some("gatewayClassName")),
            ("timeout", Some("timeouts")),
            ("colour", None),
            ("", None),
        ] {
            assert_eq!(closest(typo, fields), meant, "{typo}");
        }
    }
}
