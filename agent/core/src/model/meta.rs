//! Object metadata, label selectors and where an object came from.

use super::{ObjectKey, Str};
use std::collections::BTreeMap;

/// Labels or annotations.
pub type Labels = BTreeMap<Str, Str>;

/// The part of `metadata` that decides anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Namespace and name.
    pub key: ObjectKey,
    /// `metadata.uid`; empty in files.
    pub uid: Str,
    /// `metadata.generation`; counted by the provider for files.
    pub generation: i64,
    /// `metadata.creationTimestamp` in Unix seconds. For files without one: 0, so that ties break by name.
    pub created: i64,
    /// Labels.
    pub labels: Labels,
    /// Annotations.
    pub annotations: Labels,
    /// File and line, when the object came from one.
    pub origin: Option<Origin>,
}

/// Where a YAML document starts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    /// Path as given.
    pub file: Str,
    /// 1-based line of the document's first key.
    pub line: u32,
}

/// `metav1.LabelSelector`. An empty selector matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// `matchLabels`.
    pub match_labels: Labels,
    /// `matchExpressions`.
    pub match_expressions: Vec<Requirement>,
}

/// One `matchExpressions` entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// Label key.
    pub key: Str,
    /// Operator.
    pub operator: SelectorOp,
    /// Values; empty for Exists and DoesNotExist.
    pub values: Vec<Str>,
}

/// `metav1.LabelSelectorOperator`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum SelectorOp {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl Selector {
    /// Whether `labels` satisfy every requirement.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.match_labels.iter().all(|(k, v)| labels.get(k) == Some(v))
            && self.match_expressions.iter().all(|r| r.matches(labels))
    }
}

impl Requirement {
    fn matches(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            SelectorOp::In => value.is_some_and(|v| self.values.contains(v)),
            SelectorOp::NotIn => value.is_none_or(|v| !self.values.contains(v)),
            SelectorOp::Exists => value.is_some(),
            SelectorOp::DoesNotExist => value.is_none(),
        }
    }
}
