//! ReferenceGrant.

use super::{GroupKind, Meta, Str};

/// `ReferenceGrant` (v1 and v1beta1): lets objects of other namespaces refer to objects of this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferenceGrant {
    /// Metadata; its namespace is the one opened.
    pub meta: Meta,
    /// `spec.from`.
    pub from: Vec<GrantFrom>,
    /// `spec.to`.
    pub to: Vec<GrantTo>,
}

/// `ReferenceGrantFrom`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantFrom {
    /// Group and kind of the referrer.
    pub kind: GroupKind,
    /// Its namespace.
    pub namespace: Str,
}

/// `ReferenceGrantTo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantTo {
    /// Group and kind that may be referred to.
    pub kind: GroupKind,
    /// Only this name, if given.
    pub name: Option<Str>,
}

impl ReferenceGrant {
    /// Whether this grant lets `from` in `from_namespace` refer to `to` named `to_name` (in this grant's namespace).
    #[must_use]
    pub fn allows(&self, from: &GroupKind, from_namespace: &str, to: &GroupKind, to_name: &str) -> bool {
        self.from.iter().any(|f| f.kind == *from && &*f.namespace == from_namespace)
            && self.to.iter().any(|t| t.kind == *to && t.name.as_deref().is_none_or(|n| n == to_name))
    }
}
