//! Field paths as text: `spec.rules[0].filters[1].type`, `metadata.labels[app.kubernetes.io/name]`.

use std::fmt::Write;

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

/// The candidate that `word` most likely means: equal but for case, a prefix of it, or few edits away.
pub(crate) fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_ascii_lowercase();
    candidates
        .into_iter()
        .filter_map(|c| {
            let candidate = c.to_ascii_lowercase();
            let distance = edit_distance(&lower, &candidate);
            let prefix = lower.len() >= 4 && (candidate.starts_with(&lower) || lower.starts_with(&candidate));
            let near = distance <= (word.len() / 3).clamp(1, 3);
            (near || prefix).then_some((distance, c))
        })
        .min()
        .map(|(_, c)| c)
}

/// Damerau–Levenshtein (adjacent swaps count one), on bytes: field names are ASCII.
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len().abs_diff(b.len()) > 16 || a.len() > 64 {
        return usize::MAX;
    }
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let substitute = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = substitute.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
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
