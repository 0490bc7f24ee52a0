//! Index of gRPC matches of one hostname.

use super::{
    path::{Leaf, Leaves},
    precedence::Part,
    words::WordMap,
};
use crate::model::{PathMatch, Str};

/// By service, then by method; exact ones before patterns.
#[derive(Clone, Debug, Default)]
pub(super) struct GrpcIndex {
    /// Service and method, as `/service/method`.
    both: WordMap<Str, Leaf>,
    service: WordMap<Str, Leaf>,
    /// Patterns with a service.
    service_patterns: Leaf,
    method: WordMap<Str, Leaf>,
    /// Patterns with only a method.
    method_patterns: Leaf,
}

impl GrpcIndex {
    /// Adds entries of one rank.
    pub(super) fn insert(&mut self, service: Part<'_>, method: Part<'_>, leaf: Leaf) {
        match (service, method) {
            (Part::Exact(_, s), Part::Exact(_, m)) => {
                self.both.insert(format!("/{s}/{m}").into(), leaf);
            }
            (Part::Exact(_, s), _) => {
                self.service.insert(s.into(), leaf);
            }
            (Part::Any, Part::Exact(_, m)) => {
                self.method.insert(m.into(), leaf);
            }
            (Part::Regex(_), _) => self.service_patterns.extend(leaf),
            (Part::Any, _) => self.method_patterns.extend(leaf),
        }
    }

    /// Entries for a path, best first; those of patterns must still be asked.
    pub(super) fn leaves(&self, path: &str) -> Leaves<5> {
        let Some((service, method)) = split(path) else { return Leaves::default() };
        Leaves([
            self.both.get(path).copied(),
            self.service.get(service).copied(),
            Some(self.service_patterns),
            self.method.get(method).copied(),
            Some(self.method_patterns),
        ])
    }
}

/// Whether a pattern match holds for a path.
pub(super) fn holds(matcher: &PathMatch, path: &str) -> bool {
    let PathMatch::GrpcRegex { service, method } = matcher else { return true };
    split(path).is_some_and(|(s, m)| {
        let ok = |pattern: &Option<crate::model::Pattern>, text: &str| {
            pattern.as_ref().is_none_or(|p| p.as_str().is_empty() || p.is_match(text.as_bytes()))
        };
        ok(service, s) && ok(method, m)
    })
}

/// Service and method of `/service/method`; anything else is no gRPC request.
pub(super) fn split(path: &str) -> Option<(&str, &str)> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    (!service.is_empty() && !method.is_empty() && !method.contains('/')).then_some((service, method))
}
