//! Where each field of a document stands in its file.

use crate::path;
use std::collections::HashMap;

/// A tree of line numbers beside a [`serde_json::Value`].
#[derive(Clone, Debug, Default)]
pub struct Marks {
    line: u32,
    /// A plain scalar such as `yes`, a boolean only for YAML 1.1: as written, for fields that want text.
    word: Option<Box<str>>,
    children: Children,
}

#[derive(Clone, Debug, Default)]
enum Children {
    #[default]
    None,
    Seq(Vec<Marks>),
    Map(HashMap<Box<str>, Marks>),
}

impl Marks {
    pub(super) const fn leaf(line: u32) -> Self {
        Self { line, word: None, children: Children::None }
    }

    pub(super) fn word(line: u32, word: &str) -> Self {
        Self { line, word: Some(word.into()), children: Children::None }
    }

    pub(super) const fn seq(line: u32, children: Vec<Self>) -> Self {
        Self { line, word: None, children: Children::Seq(children) }
    }

    pub(super) const fn map(line: u32, children: HashMap<Box<str>, Self>) -> Self {
        Self { line, word: None, children: Children::Map(children) }
    }

    /// The same marks, standing at `line`: a map entry stands where its key does.
    pub(super) fn at(mut self, line: u32) -> Self {
        self.line = line;
        self
    }

    pub(super) fn entries(&self) -> Option<&HashMap<Box<str>, Self>> {
        match &self.children {
            Children::Map(m) => Some(m),
            _ => None,
        }
    }

    /// 1-based line of the first key.
    #[must_use]
    pub const fn line(&self) -> u32 {
        self.line
    }

    /// The marks of the `index`th element.
    #[must_use]
    pub fn item(&self, index: usize) -> Option<&Self> {
        match &self.children {
            Children::Seq(items) => items.get(index),
            _ => None,
        }
    }

    /// The marks of an entry.
    #[must_use]
    pub fn entry(&self, key: &str) -> Option<&Self> {
        self.entries()?.get(key)
    }

    /// The line of the field at `path`, or of its nearest ancestor that is written.
    #[must_use]
    pub fn line_of(&self, path: &str) -> u32 {
        self.walk(path).0.line
    }

    /// The text of a YAML 1.1 boolean at `path`.
    pub(crate) fn word_at(&self, path: &str) -> Option<&str> {
        match self.walk(path) {
            (mark, true) => mark.word.as_deref(),
            _ => None,
        }
    }

    fn walk(&self, path: &str) -> (&Self, bool) {
        let mut here = self;
        for step in path::steps(path) {
            let next = match &here.children {
                Children::None => None,
                Children::Seq(items) => step.parse().ok().and_then(|i: usize| items.get(i)),
                Children::Map(m) => m.get(step),
            };
            match next {
                Some(next) => here = next,
                None => return (here, false),
            }
        }
        (here, true)
    }
}
