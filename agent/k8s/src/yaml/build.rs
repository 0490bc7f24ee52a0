//! Parser events to one [`Document`], with an explicit stack.

use super::{
    Document, MAX_DEPTH, MAX_NODES, Marks, SyntaxError,
    scalar::{self, Plain},
};
use saphyr_parser::{Event, ScalarStyle, Span, Tag};
use serde_json::{Map, Value};
use std::collections::HashMap;

pub(super) struct Builder {
    first_line: u32,
    stack: Vec<Frame>,
    root: Option<Node>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
}

/// A finished value.
#[derive(Clone)]
struct Node {
    value: Value,
    marks: Marks,
    /// How many nodes it has, itself included: what an alias to it costs.
    size: usize,
}

/// A collection being read.
struct Frame {
    anchor: usize,
    line: u32,
    size: usize,
    kind: FrameKind,
}

enum FrameKind {
    Seq {
        items: Vec<Value>,
        marks: Vec<Marks>,
    },
    Map {
        entries: Map<String, Value>,
        marks: HashMap<Box<str>, Marks>,
        key: Option<(String, u32)>,
        merges: Vec<Node>,
    },
}

impl Builder {
    pub(super) fn new(first_line: u32) -> Self {
        Self { first_line, stack: Vec::new(), root: None, anchors: HashMap::new(), nodes: 0 }
    }

    /// The document, unless it is empty; ready for the next one.
    pub(super) fn finish(&mut self) -> Option<Document> {
        let root = self.root.take();
        *self = Self::new(self.first_line);
        root.filter(|n| !n.value.is_null()).map(|n| Document { value: n.value, marks: n.marks })
    }

    pub(super) fn on_event(&mut self, event: Event<'_>, span: Span) -> Result<(), SyntaxError> {
        let line = self.first_line + u32::try_from(span.start.line()).unwrap_or(u32::MAX).saturating_sub(1);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                if self.wants_key() {
                    return self.key(text.into_owned(), line);
                }
                let (value, marks) = read_scalar(&text, style, tag.as_deref(), line);
                self.add(Node { value, marks, size: 1 }, anchor)
            }
            Event::SequenceStart(anchor, _) => {
                self.open(FrameKind::Seq { items: Vec::new(), marks: Vec::new() }, anchor, line)
            }
            Event::MappingStart(anchor, _) => {
                let kind = FrameKind::Map {
                    entries: Map::new(),
                    marks: HashMap::new(),
                    key: None,
                    merges: Vec::new(),
                };
                self.open(kind, anchor, line)
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(anchor) => {
                let node = self.anchors.get(&anchor).cloned().ok_or_else(|| {
                    fault(line, "the alias stands inside the value that it names", "write the value out")
                })?;
                if self.wants_key() {
                    return match node.value {
                        Value::String(key) => self.key(key, line),
                        _ => Err(fault(line, "a key must be text", "")),
                    };
                }
                let marks = node.marks.at(line);
                self.add(Node { marks, ..node }, 0)
            }
            _ => Ok(()),
        }
    }

    fn wants_key(&self) -> bool {
        matches!(self.stack.last(), Some(Frame { kind: FrameKind::Map { key: None, .. }, .. }))
    }

    fn key(&mut self, text: String, line: u32) -> Result<(), SyntaxError> {
        let Some(Frame { kind: FrameKind::Map { entries, marks, key, .. }, .. }) = self.stack.last_mut()
        else {
            return Ok(());
        };
        if entries.contains_key(&text) {
            let before = marks.get(text.as_str()).map_or(0, Marks::line);
            let reason = format!("the key \"{text}\" is already set in line {before}");
            return Err(fault(line, &reason, "keep one of the two"));
        }
        *key = Some((text, line));
        Ok(())
    }

    fn open(&mut self, kind: FrameKind, anchor: usize, line: u32) -> Result<(), SyntaxError> {
        if self.wants_key() {
            return Err(fault(
                line,
                "a key must be text, not a list or mapping",
                "quote it if it starts with [ or {",
            ));
        }
        if self.stack.len() >= MAX_DEPTH {
            let reason = format!("nested deeper than {MAX_DEPTH} levels");
            return Err(fault(line, &reason, ""));
        }
        self.stack.push(Frame { anchor, line, size: 1, kind });
        Ok(())
    }

    fn close(&mut self) -> Result<(), SyntaxError> {
        let Some(frame) = self.stack.pop() else { return Ok(()) };
        let (value, marks) = match frame.kind {
            FrameKind::Seq { items, marks } => (Value::Array(items), Marks::seq(frame.line, marks)),
            FrameKind::Map { mut entries, mut marks, merges, .. } => {
                for merge in &merges {
                    merge_into(&mut entries, &mut marks, merge);
                }
                (Value::Object(entries), Marks::map(frame.line, marks))
            }
        };
        self.add(Node { value, marks, size: frame.size }, frame.anchor)
    }

    /// Puts a finished node where it belongs.
    fn add(&mut self, node: Node, anchor: usize) -> Result<(), SyntaxError> {
        // Counted when a leaf or alias arrives: a closed collection's children were counted one by one.
        self.nodes += if matches!(node.value, Value::Array(_) | Value::Object(_)) && anchor != 0 {
            1
        } else {
            node.size
        };
        if self.nodes > MAX_NODES {
            let reason = format!("more than {MAX_NODES} values, aliases expanded");
            return Err(fault(node.marks.line(), &reason, "split the document"));
        }
        if anchor != 0 {
            self.nodes += node.size;
            self.anchors.insert(anchor, node.clone());
        }
        match self.stack.last_mut() {
            None => self.root = Some(node),
            Some(frame) => frame.take(node)?,
        }
        Ok(())
    }
}

impl Frame {
    fn take(&mut self, node: Node) -> Result<(), SyntaxError> {
        self.size += node.size;
        match &mut self.kind {
            FrameKind::Seq { items, marks } => {
                items.push(node.value);
                marks.push(node.marks);
            }
            FrameKind::Map { entries, marks, key, merges } => {
                let Some((key, line)) = key.take() else { return Ok(()) };
                if key == "<<" {
                    return take_merge(merges, node, line);
                }
                marks.insert(key.as_str().into(), node.marks.at(line));
                entries.insert(key, node.value);
            }
        }
        Ok(())
    }
}

/// `<<: *a` or `<<: [*a, *b]`: the mappings whose entries fill what is not set.
fn take_merge(merges: &mut Vec<Node>, node: Node, line: u32) -> Result<(), SyntaxError> {
    let err = || fault(line, "\"<<\" merges mappings only", "give it an alias of a mapping");
    match node.value {
        Value::Object(_) => merges.push(node),
        Value::Array(items) => {
            for (i, value) in items.into_iter().enumerate() {
                let marks = node.marks.item(i).cloned().unwrap_or_else(|| Marks::leaf(line));
                value.is_object().then_some(()).ok_or_else(err)?;
                merges.push(Node { value, marks, size: 1 });
            }
        }
        _ => return Err(err()),
    }
    Ok(())
}

fn merge_into(entries: &mut Map<String, Value>, marks: &mut HashMap<Box<str>, Marks>, from: &Node) {
    let Value::Object(more) = &from.value else { return };
    for (key, value) in more {
        if !entries.contains_key(key) {
            entries.insert(key.clone(), value.clone());
            let mark = from.marks.entry(key).cloned().unwrap_or_else(|| Marks::leaf(from.marks.line()));
            marks.insert(key.as_str().into(), mark);
        }
    }
}

fn read_scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>, line: u32) -> (Value, Marks) {
    let string = |t: &str| (Value::String(t.to_owned()), Marks::leaf(line));
    let core_tag = tag.filter(|t| t.is_yaml_core_schema()).map(|t| t.suffix.as_str());
    if core_tag == Some("str") || (core_tag.is_none() && style != ScalarStyle::Plain) {
        return string(text);
    }
    match scalar::plain(text) {
        Plain::Value(value) => (value, Marks::leaf(line)),
        Plain::Word(b) => (Value::Bool(b), Marks::word(line, text)),
    }
}

fn fault(line: u32, reason: &str, remedy: &str) -> SyntaxError {
    SyntaxError { line, reason: reason.to_owned(), remedy: remedy.to_owned() }
}
