//! YAML text to documents, and documents to Kubernetes objects: bounded in memory, whatever a tenant writes.
#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use weft_fuzz::{planted, within_memory};
use weft_k8s::{Source, convert, yaml};

/// What a document may cost the process at most, in bytes: texts here are far below 64 KiB.
const MEMORY_MAX: u64 = 64 << 20;
/// What copies by anchors and aliases may come to, in bytes as `bytes` counts them. The reader grants files 16 MiB
/// (`weft_k8s::yaml::FILE`), and its own count is higher: a node takes more than `bytes` says.
const COPIED_MAX: usize = 16 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((mode, rest)) = data.split_first() else { return };
    if mode & 1 == 0 {
        let Ok(text) = std::str::from_utf8(rest) else { return };
        read(text);
    } else if let Ok(text) = written(&mut Unstructured::new(rest)) {
        read(&text);
    }
});

fn read(text: &str) {
    if text.len() > 64 << 10 {
        return;
    }
    let (documents, errors) = within_memory(MEMORY_MAX, || yaml::read(text));
    // At most where the text ends, behind its last line.
    let lines = text.matches(['\n', '\r']).count() as u32 + 2;
    assert!(errors.iter().all(|e| (1..=lines).contains(&e.line)), "{errors:?} of {lines} lines");
    let expanded: usize = documents.iter().map(|d| bytes(&d.value)).sum();
    assert!(expanded <= COPIED_MAX + 16 * text.len(), "{} bytes come to {expanded}", text.len());
    for document in documents {
        let name = document.value["metadata"]["name"].as_str().unwrap_or_default();
        let digit = name.bytes().any(|b| b.is_ascii_digit());
        within_memory(MEMORY_MAX, || {
            for admitted in [false, true] {
                let source = Source { marks: Some(&document.marks), admitted, ..Source::default() };
                let converted = convert(document.value.clone(), &source);
                let named = converted.object.is_some();
                planted(named && digit, "an object with a digit in its name");
            }
        });
    }
}

/// About as much memory as a value takes.
fn bytes(value: &Value) -> usize {
    let inside = match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(bytes).sum(),
        Value::Object(entries) => entries.iter().map(|(key, value)| key.len() + bytes(value)).sum(),
        _ => 0,
    };
    inside + 8
}

/// A line of a document that the fuzzer writes.
#[derive(Arbitrary, Debug)]
enum Line {
    /// `k: word`
    Text(u8, Word),
    /// `k: &kN "xxx…"`
    Anchor(u8, u16),
    /// `k: &kN [*a, *a…]`
    Aliases(u8, u8, u8),
    /// `k: [[[…`
    Deep(u8),
    /// `k: {<<: *a}`
    Merge(u8, u8),
    /// As it is.
    Raw(Word),
    /// `---`
    Next,
}

/// What objects are made of.
#[derive(Arbitrary, Debug)]
enum Word {
    Kind,
    ApiVersion,
    Metadata,
    Spec,
    Rules,
    Data,
    Own([u8; 3]),
}

impl Word {
    fn text(&self) -> String {
        let known = match self {
            Self::Kind => "kind: HTTPRoute",
            Self::ApiVersion => "apiVersion: gateway.networking.k8s.io/v1",
            Self::Metadata => "metadata: {name: a, namespace: b}",
            Self::Spec => {
                "spec: {parentRefs: [{name: g}], rules: [{matches: [{path: {type: RegularExpression, value: '/a+'}}]}]}"
            }
            Self::Rules => "rules: [{backendRefs: [{name: a, port: 80}]}]",
            Self::Data => "data: {config.yaml: \"a: &a x\\nb: *a\"}",
            Self::Own(bytes) => return String::from_utf8_lossy(bytes).into_owned(),
        };
        known.to_owned()
    }
}

/// A document out of bytes.
fn written(input: &mut Unstructured<'_>) -> arbitrary::Result<String> {
    let mut text = String::new();
    for line in input.arbitrary_iter::<Line>()?.take(24) {
        let line = match line? {
            Line::Text(key, word) => format!("k{}: {}", key % 8, word.text()),
            Line::Anchor(key, length) => {
                let length = usize::from(length % 8192);
                format!("k{0}: &k{0} \"{1}\"", key % 8, "x".repeat(length))
            }
            Line::Aliases(key, of, times) => {
                let aliases = vec![format!("*k{}", of % 8); usize::from(times) * 4];
                format!("k{0}: &k{0} [{1}]", key % 8, aliases.join(", "))
            }
            Line::Deep(levels) => format!("d: {}", "[".repeat(usize::from(levels))),
            Line::Merge(key, of) => format!("k{}: {{<<: *k{}}}", key % 8, of % 8),
            Line::Raw(word) => word.text(),
            Line::Next => "---".to_owned(),
        };
        text.push_str(&line);
        text.push('\n');
    }
    Ok(text)
}
