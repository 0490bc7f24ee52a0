//! `allowedRoutes.namespaces` and `allowedListeners.namespaces`.

use super::Reader;
use crate::model::{FromNamespaces, Requirement, Selector, SelectorOp, Str};

/// Whether an object of `namespace` is let in by an object of `home`.
///
/// # Errors
/// What keeps it out, and what would let it in.
pub(super) fn from_namespace(
    reader: &Reader<'_>,
    from: &FromNamespaces,
    home: &Str,
    namespace: &Str,
) -> Result<(), String> {
    match from {
        FromNamespaces::All => Ok(()),
        FromNamespaces::Same if home == namespace => Ok(()),
        FromNamespaces::Same => Err(format!("only namespace {home} is allowed, not {namespace}")),
        FromNamespaces::None => Err("no namespace is allowed".to_owned()),
        FromNamespaces::Selector(selector) => {
            let Some(found) = reader.namespace(namespace) else {
                return Err(format!("namespace {namespace} is not known, so its labels cannot be matched"));
            };
            if selector.matches(&found.meta.labels) {
                return Ok(());
            }
            Err(format!("namespace {namespace} lacks {}", missing(selector, &found.meta.labels)))
        }
    }
}

/// The labels that a selector asks for and that are not there.
fn missing(selector: &Selector, labels: &crate::model::Labels) -> String {
    let by_value = selector
        .match_labels
        .iter()
        .filter(|(k, v)| labels.get(*k) != Some(v))
        .map(|(k, v)| format!("label {k}={v}"));
    let by_expression = selector
        .match_expressions
        .iter()
        .filter(|r| {
            let one = Selector { match_expressions: vec![(*r).clone()], ..Selector::default() };
            !one.matches(labels)
        })
        .map(requirement);
    by_value.chain(by_expression).collect::<Vec<_>>().join(", ")
}

fn requirement(r: &Requirement) -> String {
    let values = r.values.join("|");
    match r.operator {
        SelectorOp::In => format!("label {} in ({values})", r.key),
        SelectorOp::NotIn => format!("label {} not in ({values})", r.key),
        SelectorOp::Exists => format!("label {}", r.key),
        SelectorOp::DoesNotExist => format!("the absence of label {}", r.key),
    }
}
