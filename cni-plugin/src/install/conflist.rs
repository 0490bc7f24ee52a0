//! PURE: our entry in somebody else's network configuration, as an edit of its text.
//!
//! The text is edited, not the parsed value: fields that nobody knows, their order, numbers of any size and the author's
//! layout stay as they are, and taking the entry out again gives the very bytes back.

use crate::spec::SUPPORTED_VERSIONS;
use serde_json::Value;
use std::ops::Range;

/// `type` of our entry, and the name of our binary.
pub(super) const PLUGIN: &str = "weft-cni";
/// Field that marks a file of ours, made from another; its value names that one.
pub(super) const DERIVED_FROM: &str = "weft.dev/derivedFrom";

/// Why a configuration cannot take our entry. Each is said in the status; a later change of the file is looked at again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unusable {
    #[error("it is not a JSON object: {0}")]
    NotJson(String),
    #[error("it has no name")]
    NoName,
    #[error("its plugins are not a list of objects, or there are none")]
    NoPlugins,
    /// The runtime hands this version to every plugin of the list, and ours would have to refuse it.
    #[error("its cniVersion \"{0}\" is none of those that weft-cni speaks ({list})", list = SUPPORTED_VERSIONS.join(", "))]
    Version(String),
}

/// What a configuration says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Network {
    pub(super) name: String,
    /// `plugins` is there (libcni ≥ 1.3 also loads lists that have drop-ins only).
    pub(super) has_plugins: bool,
    /// `loadOnlyInlinedPlugins`: drop-ins are not read.
    pub(super) inlined_only: bool,
    /// How often our entry is in it.
    pub(super) ours: usize,
    /// [`DERIVED_FROM`], for a file of ours.
    pub(super) derived_from: Option<String>,
}

/// Reads a `.conflist`.
pub(super) fn network(text: &str) -> Result<Network, Unusable> {
    let value = object(text)?;
    let name = name(&value)?;
    check_versions(&value)?;
    let spans = plugins(text);
    let ours = spans.iter().flatten().filter(|span| is_ours(&text[(*span).clone()])).count();
    let only = value.get("loadOnlyInlinedPlugins");
    let inlined_only = only.is_some_and(|v| {
        // libcni takes the word too.
        v.as_bool() == Some(true) || v.as_str().is_some_and(|s| s.eq_ignore_ascii_case("true"))
    });
    let derived_from = value.get(DERIVED_FROM).and_then(Value::as_str).map(str::to_owned);
    Ok(Network { name, has_plugins: value.get("plugins").is_some(), inlined_only, ours, derived_from })
}

/// The text with exactly one entry of ours, behind the plugin that makes the network. `exact`: an entry of ours that
/// differs from `entry` is replaced, not just accepted.
pub(super) fn insert(text: &str, entry: &Value, exact: bool) -> Result<String, Unusable> {
    network(text)?;
    let spans = plugins(text).filter(|s| !s.is_empty()).ok_or(Unusable::NoPlugins)?;
    let ours: Vec<usize> = (0..spans.len()).filter(|i| is_ours(&text[spans[*i].clone()])).collect();
    if let [only] = ours[..]
        && only > 0
    {
        let span = spans[only].clone();
        let same = serde_json::from_str::<Value>(&text[span.clone()]).is_ok_and(|found| found == *entry);
        if same || !exact {
            return Ok(text.to_owned());
        }
        let rendered = render(entry, &layout_before(text, span.start));
        return Ok(format!("{}{rendered}{}", &text[..span.start], &text[span.end..]));
    }
    if !ours.is_empty() {
        return insert(&remove(text).ok_or(Unusable::NoPlugins)?, entry, exact);
    }
    let last = spans.last().ok_or(Unusable::NoPlugins)?;
    let layout = layout_before(text, last.start);
    let rendered = render(entry, &layout);
    Ok(format!("{},{layout}{rendered}{}", &text[..last.end], &text[last.end..]))
}

/// The text without our entries; `None` when there are none, or it is no configuration.
pub(super) fn remove(text: &str) -> Option<String> {
    object(text).ok()?;
    let spans = plugins(text)?;
    let index = (0..spans.len()).rev().find(|i| is_ours(&text[spans[*i].clone()]))?;
    let cut = match index.checked_sub(1) {
        Some(before) => spans[before].end..spans[index].end,
        None => spans[0].start..spans.get(1).map_or(spans[0].end, |next| next.start),
    };
    let without = format!("{}{}", &text[..cut.start], &text[cut.end..]);
    Some(remove(&without).unwrap_or(without))
}

/// A list of our own that does what the single plugin's configuration `text` did, with our entry behind it. As libcni
/// does it, name and version of the plugin become those of the list.
pub(super) fn derive_from_single(text: &str, from: &str, entry: &Value) -> Result<String, Unusable> {
    let value = object(text)?;
    let name = name(&value)?;
    check_versions(&value)?;
    if value.get("type").and_then(Value::as_str).is_none_or(str::is_empty) {
        return Err(Unusable::NoPlugins);
    }
    let quoted = |text: &str| Value::from(text).to_string();
    let version = value.get("cniVersion").map_or_else(|| quoted(""), ToString::to_string);
    Ok(format!(
        "{{\n  {mark}: {from},\n  \"cniVersion\": {version},\n  \"name\": {name},\n  \"plugins\": [\n    {single},\n    {ours}\n  ]\n}}\n",
        mark = quoted(DERIVED_FROM),
        from = quoted(from),
        name = quoted(&name),
        single = text.trim(),
        ours = render(entry, "\n    "),
    ))
}

/// The list `text` with our entry, marked as derived.
pub(super) fn derive_from_list(text: &str, from: &str, entry: &Value) -> Result<String, Unusable> {
    let inserted = insert(text, entry, true)?;
    let open = inserted.find('{').ok_or(Unusable::NoPlugins)? + 1;
    let mark = format!("{}: {},", Value::from(DERIVED_FROM), Value::from(from));
    Ok(format!("{}{mark}{}", &inserted[..open], &inserted[open..]))
}

fn object(text: &str) -> Result<Value, Unusable> {
    let value: Value = serde_json::from_str(text).map_err(|e| Unusable::NotJson(e.to_string()))?;
    if value.is_object() { Ok(value) } else { Err(Unusable::NotJson("another type".into())) }
}

fn name(value: &Value) -> Result<String, Unusable> {
    let name = value.get("name").and_then(Value::as_str).filter(|n| !n.is_empty());
    name.map(str::to_owned).ok_or(Unusable::NoName)
}

/// Both versions that a runtime may use are ones that we speak: an older libcni takes `cniVersion`, a newer one the
/// highest of `cniVersions` that it knows.
fn check_versions(value: &Value) -> Result<(), Unusable> {
    let single = value.get("cniVersion").and_then(Value::as_str);
    let listed = value.get("cniVersions").and_then(Value::as_array);
    let known =
        |v: &str| if SUPPORTED_VERSIONS.contains(&v) { Ok(()) } else { Err(Unusable::Version(v.into())) };
    if let Some(listed) = listed {
        let listed = listed.iter().filter_map(Value::as_str).chain(single);
        let newest = SUPPORTED_VERSIONS[SUPPORTED_VERSIONS.len() - 1];
        let highest = listed.filter(|v| number(v) <= number(newest)).max_by_key(|v| number(v));
        known(highest.unwrap_or_default())?;
        return single.map_or(Ok(()), known);
    }
    // Without one it is 0.1.0, whose results are of another shape.
    known(single.unwrap_or_default())
}

fn number(version: &str) -> Vec<u64> {
    version.split('.').map(|part| part.parse().unwrap_or(u64::MAX)).collect()
}

fn is_ours(element: &str) -> bool {
    let value = serde_json::from_str::<Value>(element).ok();
    value.is_some_and(|v| v.get("type").and_then(Value::as_str) == Some(PLUGIN))
}

/// The white space between the separator and a list's element: how the author lays lists out.
fn layout_before(text: &str, start: usize) -> String {
    let before = text[..start].trim_end_matches([' ', '\t', '\r', '\n']);
    let layout = &text[before.len()..start];
    if layout.contains('\n') { layout.to_owned() } else { " ".to_owned() }
}

/// The entry on one line, or indented as its neighbours are.
fn render(entry: &Value, layout: &str) -> String {
    match layout.rsplit_once('\n') {
        None => entry.to_string(),
        Some((_, indent)) => format!("{entry:#}").replace('\n', &format!("\n{indent}")),
    }
}

/// Where the value of a top-level key is, in the text of a JSON object. With the key given twice, the last counts, as for
/// libcni.
pub(super) fn member(text: &str, name: &str) -> Option<Range<usize>> {
    let start = skip_space(text.as_bytes(), 0);
    let is_it =
        |key: &Range<usize>| serde_json::from_str::<String>(&text[key.clone()]).is_ok_and(|key| key == name);
    children(text, start)?.into_iter().rfind(|(key, _)| is_it(key)).map(|(_, value)| value)
}

/// Where the elements of the top-level `plugins` are.
fn plugins(text: &str) -> Option<Vec<Range<usize>>> {
    let value = member(text, "plugins")?;
    if !text[value.clone()].starts_with('[') {
        return None;
    }
    Some(children(text, value.start)?.into_iter().map(|(_, element)| element).collect())
}

/// Keys and values of the object, or (with empty keys) elements of the array, that starts at `start`. `None` for text
/// that is not JSON; callers have parsed it before.
fn children(text: &str, start: usize) -> Option<Vec<(Range<usize>, Range<usize>)>> {
    let bytes = text.as_bytes();
    let close = match *bytes.get(start)? {
        b'{' => b'}',
        b'[' => b']',
        _ => return None,
    };
    let (mut found, mut at) = (Vec::new(), skip_space(bytes, start + 1));
    while *bytes.get(at)? != close {
        let mut key = at..at;
        if close == b'}' {
            key = at..value_end(bytes, at)?;
            at = skip_space(bytes, key.end) + 1; // the colon
            at = skip_space(bytes, at);
        }
        let value = at..value_end(bytes, at)?;
        at = skip_space(bytes, value.end);
        found.push((key, value));
        if *bytes.get(at)? == b',' {
            at = skip_space(bytes, at + 1);
        }
    }
    Some(found)
}

fn skip_space(bytes: &[u8], from: usize) -> usize {
    let rest = bytes.get(from..).unwrap_or_default();
    from + rest.iter().take_while(|b| matches!(b, b' ' | b'\t' | b'\r' | b'\n')).count()
}

/// Behind the JSON value that starts at `start`.
fn value_end(bytes: &[u8], start: usize) -> Option<usize> {
    let (mut depth, mut at) = (0_usize, start);
    loop {
        match *bytes.get(at)? {
            b'"' => at = string_end(bytes, at)?,
            b'{' | b'[' => {
                depth += 1;
                at += 1;
            }
            b'}' | b']' => {
                depth = depth.checked_sub(1)?;
                at += 1;
            }
            _ if depth > 0 => {
                at += 1;
                continue;
            }
            _ => {
                let rest = bytes.get(at..)?;
                let ends = |b: &u8| matches!(b, b',' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n');
                return Some(at + rest.iter().position(ends).unwrap_or(rest.len()));
            }
        }
        if depth == 0 {
            return Some(at);
        }
    }
}

fn string_end(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    loop {
        match *bytes.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

#[cfg(test)]
mod tests;
