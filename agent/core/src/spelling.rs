//! What a misspelt name most likely means.

/// The candidate that `word` most likely means: equal but for case, a prefix of it, or few edits away.
#[must_use]
pub fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
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

/// Damerau–Levenshtein (adjacent swaps count one), on bytes: names are ASCII.
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
