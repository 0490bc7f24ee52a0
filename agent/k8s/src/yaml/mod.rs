//! YAML text to JSON values with the line of every field, reading scalars as `kubectl` does.
//!
//! [`read`] splits a file into documents first, so that a syntax error spoils only its own document. Bounds ([`Limits`]):
//! nesting depth, bytes of text, bytes of what is made of it; nothing here recurses with the input. Bytes are reckoned
//! before they are taken ([`build`]'s costs), so a text that would need more is refused before it has got it.

mod build;
mod marks;
mod scalar;

#[cfg(test)]
mod tests;

pub use marks::Marks;

use build::Builder;
use saphyr_parser::{Event, Parser};
use serde_json::Value;
use weft_core::budget;

/// Deeper nesting is refused (no Kubernetes object comes near; `serde_json` itself stops at 128).
const MAX_DEPTH: usize = 100;

/// How much of a text is read, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Longer texts are refused.
    text: usize,
    /// A document whose values need more is refused.
    document: usize,
    /// So is one whose anchors and aliases alone need more ("billion laughs").
    aliases: usize,
}

/// For the files of whoever runs Weft: only mistakes are to be survived. Nobody writes out a snippet megabytes long.
pub(crate) const FILE: Limits = Limits { text: 64 << 20, document: 1 << 30, aliases: 16 << 20 };

/// For texts within objects of a cluster, where any tenant may have written them: no aliases, nor anchors.
pub(crate) const CLUSTER: Limits =
    Limits { text: budget::CONFIG_TEXT.size(), document: budget::CONFIG_VALUES.size(), aliases: 0 };

/// One document that parsed. Empty documents are left out.
#[derive(Clone, Debug)]
pub struct Document {
    /// The content.
    pub value: Value,
    /// Where each field stands.
    pub marks: Marks,
}

/// Why a piece of a file is no YAML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// 1-based line.
    pub line: u32,
    /// What is wrong.
    pub reason: String,
    /// What to do; may be empty.
    pub remedy: String,
}

/// Reads all documents of a file. Errors stand beside the documents that are fine.
#[must_use]
pub fn read(text: &str) -> (Vec<Document>, Vec<SyntaxError>) {
    read_within(text, &FILE)
}

/// As [`read`], within other limits.
pub(crate) fn read_within(text: &str, limits: &Limits) -> (Vec<Document>, Vec<SyntaxError>) {
    let (mut documents, mut errors) = (Vec::new(), Vec::new());
    if let Some(error) = too_long(text, limits) {
        return (documents, vec![error]);
    }
    for (first_line, chunk) in chunks(text) {
        let (more, error) = read_piece(first_line, chunk, limits);
        documents.extend(more);
        errors.extend(error);
    }
    (documents, errors)
}

/// Why a text is too long to be read.
pub(crate) fn too_long(text: &str, limits: &Limits) -> Option<SyntaxError> {
    (text.len() > limits.text).then(|| SyntaxError {
        line: 1,
        reason: format!("the text has {} KiB; at most {} are read", text.len() >> 10, limits.text >> 10),
        remedy: "split it into several files".to_owned(),
    })
}

/// The documents of one of [`chunks`], up to the first error.
pub(crate) fn read_piece(
    first_line: u32,
    chunk: &str,
    limits: &Limits,
) -> (Vec<Document>, Option<SyntaxError>) {
    if build::most_of_tokens(chunk) > limits.document {
        return (Vec::new(), Some(build::needs_more(limits, first_line)));
    }
    let mut documents = Vec::new();
    let Err(mut error) = read_chunk(chunk, first_line, limits, &mut documents) else {
        return (documents, None);
    };
    if build::most_of_json(chunk) <= limits.document
        && let Some(document) = json(chunk, first_line)
    {
        return (vec![document], None);
    }
    hint(chunk, first_line, &mut error);
    (documents, Some(error))
}

/// Splits at lines that start with `---`, which YAML allows as a document marker only, with the 1-based line of each.
pub(crate) fn chunks(text: &str) -> Vec<(u32, &str)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut out = Vec::new();
    let (mut start, mut first_line, mut offset, mut line) = (0, 1, 0, 1);
    for l in text.split_inclusive('\n') {
        let marker =
            l.strip_prefix("---").is_some_and(|r| r.is_empty() || r.starts_with([' ', '\t', '\r', '\n']));
        // A marker right after directives (`%YAML 1.2`) belongs to them.
        if marker && !only_directives(&text[start..offset]) {
            out.push((first_line, &text[start..offset]));
            (start, first_line) = (offset, line);
        }
        offset += l.len();
        line += 1;
    }
    out.push((first_line, &text[start..]));
    out
}

fn only_directives(chunk: &str) -> bool {
    let mut any = false;
    chunk.lines().all(|l| {
        any |= l.starts_with('%');
        l.starts_with('%') || l.trim().is_empty() || l.starts_with('#')
    }) && any
}

fn read_chunk(
    chunk: &str,
    first_line: u32,
    limits: &Limits,
    out: &mut Vec<Document>,
) -> Result<(), SyntaxError> {
    // An untouched builder for each chunk: anchors do not cross documents.
    let mut builder = Builder::new(first_line, *limits);
    let mut parser = Parser::new_from_str(chunk);
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|e| SyntaxError {
            line: first_line + u32::try_from(e.marker().line()).unwrap_or(u32::MAX).saturating_sub(1),
            reason: format!("not valid YAML: {}", e.info()),
            remedy: String::new(),
        })?;
        if let Event::DocumentEnd = event {
            out.extend(builder.finish());
        } else {
            builder.on_event(event, span)?;
        }
    }
    Ok(())
}

/// JSON is YAML but for details (tabs between tokens, `\/`, surrogate pairs): a chunk that looks like it gets a second try.
fn json(chunk: &str, line: u32) -> Option<Document> {
    let value: Value = chunk.trim_start().starts_with('{').then(|| serde_json::from_str(chunk).ok())??;
    Some(Document { value, marks: Marks::leaf(line) })
}

/// The usual reasons, found in the text around the error.
fn hint(chunk: &str, first_line: u32, error: &mut SyntaxError) {
    if chunk.contains("{{") && chunk.contains("}}") {
        "this looks like a Helm template: render it first with \"helm template\""
            .clone_into(&mut error.remedy);
        return;
    }
    if !error.remedy.is_empty() {
        return;
    }
    let tab = |l: &&str| l.trim_start_matches(' ').starts_with('\t');
    let lines = (first_line..).zip(chunk.lines());
    // The parser often notices a tab when it is still in the line above.
    let near = |n: u32| n >= error.line.saturating_sub(1) && n <= error.line + 1;
    if let Some((line, _)) = lines.filter(|(n, _)| near(*n)).find(|(_, l)| tab(l)) {
        error.line = line;
        "indent with spaces: YAML allows no tabs there".clone_into(&mut error.remedy);
        return;
    }
    "check the indentation and the quotes of this line and the one above".clone_into(&mut error.remedy);
}
