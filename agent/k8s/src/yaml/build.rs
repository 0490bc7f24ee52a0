//! Parser events to one [`Document`], with an explicit stack.
//!
//! What a value costs in memory is reckoned from its shape, by the constants below, and charged before the value is made or
//! copied: a mapping of one entry takes more than a kilobyte, whatever its text is.

use super::{
    Document, Limits, MAX_DEPTH, Marks, SyntaxError,
    scalar::{self, Plain},
};
use saphyr_parser::{Event, ScalarStyle, Span, Tag};
use serde_json::{Map, Value};
use std::collections::HashMap;

/// Bytes of any value and its mark, where they stand: in a list that has grown to twice what it holds.
const VALUE: usize = 2 * (size_of::<Value>() + size_of::<Marks>());
/// Bytes of a mapping with its first entries: a whole node of a B-tree, and the smallest table of marks.
const MAPPING: usize = 1536;
/// Bytes of an entry of a mapping beside its value: its key as text, twice, each with its own place.
const ENTRY: usize = 4 * (size_of::<String>() + size_of::<Value>() + size_of::<Marks>());

/// Bytes that the parser needs for each mark of flow style: it keeps the tokens of a whole collection, because what stands
/// behind its end may make it a key.
const TOKENS: usize = 320;

/// What the parser itself may need for a text.
pub(super) fn most_of_tokens(text: &str) -> usize {
    let marks = text.bytes().filter(|b| matches!(b, b'{' | b'}' | b'[' | b']' | b',' | b':'));
    marks.count() * TOKENS
}

/// Why a document is refused that would need more than `limits` grant.
pub(super) fn needs_more(limits: &Limits, line: u32) -> SyntaxError {
    let reason = format!("its values need more than {} KiB of memory", limits.document >> 10);
    fault(line, &reason, "split the document")
}

/// The most that a JSON text can cost, told from its marks alone.
pub(super) fn most_of_json(text: &str) -> usize {
    let one = |b: &u8| match b {
        b'{' => MAPPING + VALUE,
        b'[' | b',' => VALUE,
        b':' => ENTRY,
        _ => 0,
    };
    // A text is copied once, with room for as much again.
    text.as_bytes().iter().map(one).sum::<usize>().saturating_add(VALUE + 2 * text.len())
}

pub(super) struct Builder {
    first_line: u32,
    limits: Limits,
    stack: Vec<Frame>,
    root: Option<Node>,
    anchors: HashMap<usize, Node>,
    /// Bytes charged so far, and how many of them are copies that anchors and aliases make.
    spent: usize,
    copied: usize,
}

/// A finished value.
#[derive(Clone)]
struct Node {
    value: Value,
    marks: Marks,
    /// Bytes that it takes, with everything in it: what a copy of it costs.
    cost: usize,
}

/// A collection being read.
struct Frame {
    anchor: usize,
    line: u32,
    cost: usize,
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
    pub(super) fn new(first_line: u32, limits: Limits) -> Self {
        let (stack, anchors) = (Vec::new(), HashMap::new());
        Self { first_line, limits, stack, root: None, anchors, spent: 0, copied: 0 }
    }

    /// The document, unless it is empty; ready for the next one, which may cost what is left.
    pub(super) fn finish(&mut self) -> Option<Document> {
        let root = self.root.take();
        let spent = self.spent;
        *self = Self::new(self.first_line, self.limits);
        self.spent = spent;
        root.filter(|n| !n.value.is_null()).map(|n| Document { value: n.value, marks: n.marks })
    }

    pub(super) fn on_event(&mut self, event: Event<'_>, span: Span) -> Result<(), SyntaxError> {
        let line = self.first_line + u32::try_from(span.start.line()).unwrap_or(u32::MAX).saturating_sub(1);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                if self.wants_key() {
                    return self.key(text.into_owned(), line);
                }
                let cost = VALUE + text.len();
                self.charge(cost, line)?;
                let (value, marks) = read_scalar(&text, style, tag.as_deref(), line);
                self.add(Node { value, marks, cost }, anchor)
            }
            Event::SequenceStart(anchor, _) => {
                let kind = FrameKind::Seq { items: Vec::new(), marks: Vec::new() };
                self.open(kind, VALUE, (anchor, line))
            }
            Event::MappingStart(anchor, _) => {
                let kind = FrameKind::Map {
                    entries: Map::new(),
                    marks: HashMap::new(),
                    key: None,
                    merges: Vec::new(),
                };
                self.open(kind, VALUE + MAPPING, (anchor, line))
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(anchor) => {
                let known = self.anchors.get(&anchor).map(|node| node.cost);
                let cost = known.ok_or_else(|| {
                    fault(line, "the alias stands inside the value that it names", "write the value out")
                })?;
                self.charge_copy(cost, line)?;
                let Some(node) = self.anchors.get(&anchor).cloned() else { return Ok(()) };
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

    /// Takes `cost` bytes of what the document may need.
    fn charge(&mut self, cost: usize, line: u32) -> Result<(), SyntaxError> {
        self.spent = self.spent.saturating_add(cost);
        if self.spent <= self.limits.document {
            return Ok(());
        }
        Err(needs_more(&self.limits, line))
    }

    /// As [`Self::charge`], for a copy of a value.
    fn charge_copy(&mut self, cost: usize, line: u32) -> Result<(), SyntaxError> {
        self.copied = self.copied.saturating_add(cost);
        if self.copied <= self.limits.aliases {
            return self.charge(cost, line);
        }
        let remedy = "write the values out";
        if self.limits.aliases == 0 {
            return Err(fault(line, "anchors and aliases (& and *) are not read here", remedy));
        }
        let reason = format!("its anchors and aliases need more than {} KiB", self.limits.aliases >> 10);
        Err(fault(line, &reason, remedy))
    }

    fn key(&mut self, text: String, line: u32) -> Result<(), SyntaxError> {
        let cost = ENTRY + 2 * text.len();
        self.charge(cost, line)?;
        let Some(Frame { cost: whole, kind: FrameKind::Map { entries, marks, key, .. }, .. }) =
            self.stack.last_mut()
        else {
            return Ok(());
        };
        *whole += cost;
        if entries.contains_key(&text) {
            let before = marks.get(text.as_str()).map_or(0, Marks::line);
            let reason = format!("the key \"{text}\" is already set in line {before}");
            return Err(fault(line, &reason, "keep one of the two"));
        }
        *key = Some((text, line));
        Ok(())
    }

    fn open(
        &mut self,
        kind: FrameKind,
        cost: usize,
        (anchor, line): (usize, u32),
    ) -> Result<(), SyntaxError> {
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
        self.charge(cost, line)?;
        self.stack.push(Frame { anchor, line, cost, kind });
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
        self.add(Node { value, marks, cost: frame.cost }, frame.anchor)
    }

    /// Puts a finished node where it belongs.
    fn add(&mut self, node: Node, anchor: usize) -> Result<(), SyntaxError> {
        if anchor != 0 {
            self.charge_copy(node.cost, node.marks.line())?;
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
        self.cost = self.cost.saturating_add(node.cost);
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
                merges.push(Node { value, marks, cost: 0 });
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
