//! Rules: filters that can be applied, backends that can be reached.

use super::{
    Domain, Problem, Reader, ResolvedBackend, ResolvedRule, ResolvedRules, backends::Backends, reason,
};
use crate::{
    config::{Backend, FailReason},
    model::{Filter, Match, PathMatch, PathModifier, Route, RouteKind, Rule, ValueMatch},
    timing::retry::ATTEMPTS_MAX,
};
use std::sync::Arc;

/// Resolves every rule of a route as parents of `domain` serve it.
pub(super) fn resolve_rules(reader: &Reader<'_>, route: &Route, domain: Domain) -> ResolvedRules {
    let backends = Backends { reader, kind: route.kind, namespace: route.meta.key.namespace.clone(), domain };
    let mut out = Pass { backends, rules: ResolvedRules::default() };
    for (index, rule) in route.rules.iter().enumerate() {
        let resolved = out.rule(route.kind, index, rule);
        out.rules.rules.push(resolved);
    }
    out.rules
}

struct Pass<'r, 'w> {
    backends: Backends<'r, 'w>,
    rules: ResolvedRules,
}

impl Pass<'_, '_> {
    fn rule(&mut self, kind: RouteKind, index: usize, rule: &Rule) -> ResolvedRule {
        let http = matches!(kind, RouteKind::Http | RouteKind::Grpc);
        let mut fail = None;
        for invalid in &rule.invalid {
            fail = Some(FailReason::InvalidRule);
            let why = format!("{}: {}", invalid.path, invalid.message);
            self.drop(index, Problem::new(reason::UNSUPPORTED_VALUE, why));
        }
        for problem in rule_problems(rule) {
            fail = Some(FailReason::InvalidRule);
            self.drop(index, problem);
        }
        for problem in rule.filters.iter().filter_map(unsupported) {
            fail = Some(FailReason::InvalidFilter);
            self.drop(index, problem);
        }
        let redirects = rule.filters.iter().any(|f| matches!(f, Filter::RequestRedirect(_)));
        if http && rule.backends.is_empty() && !redirects && fail.is_none() {
            // T10, T11 of the pasted YAML.
            self.rules.notes.push(format!(
                "rules[{index}] has neither backendRefs nor a redirect: it answers 500. A rule's matches, filters \
                 and backendRefs belong into one list entry."
            ));
        }
        if rule.session.is_some() {
            self.rules.notes.push(format!(
                "rules[{index}].sessionPersistence is not served yet: its requests are balanced without it."
            ));
        }
        if let Some(asked) = rule.retry.as_ref().map(|r| r.attempts).filter(|n| *n > ATTEMPTS_MAX) {
            self.rules.notes.push(format!(
                "rules[{index}].retry.attempts is {asked}: a request is retried {ATTEMPTS_MAX} times at most."
            ));
        }
        self.rules
            .notes
            .extend(rule.matches.iter().enumerate().filter_map(|(i, m)| pattern_as_text(index, i, m)));
        let mirrors = self.mirrors(&rule.filters);
        let backends = rule
            .backends
            .iter()
            .map(|backend| {
                let found = self.lookup(&backend.object);
                let bad = backend.filters.iter().find_map(unsupported_on_backend);
                let target = match bad {
                    Some(problem) => {
                        self.drop(index, problem);
                        Err(FailReason::InvalidFilter)
                    }
                    None => found,
                };
                ResolvedBackend { target, mirrors: self.mirrors(&backend.filters) }
            })
            .collect();
        ResolvedRule { fail, mirrors, backends }
    }

    fn drop(&mut self, index: usize, problem: Problem) {
        self.rules.dropped.push((index, problem));
    }

    /// A mirror that cannot be resolved leaves the primary intact (GEP-3171): only `ResolvedRefs` tells.
    fn mirrors(&mut self, filters: &[Filter]) -> Vec<Option<Arc<Backend>>> {
        let mirrors = filters.iter().filter_map(|f| match f {
            Filter::RequestMirror(mirror) => Some(mirror),
            _ => None,
        });
        mirrors.map(|m| self.lookup(&m.backend).ok()).collect()
    }

    fn lookup(&mut self, object: &crate::model::BackendObjectRef) -> Result<Arc<Backend>, FailReason> {
        let found = self.backends.lookup(object);
        self.rules.services.extend(found.service);
        self.rules.refs.extend(found.problem);
        if let Some(note) = found.note.filter(|n| !self.rules.notes.contains(n)) {
            self.rules.notes.push(note);
        }
        found.target
    }
}

/// T2 of the pasted YAML: a pattern without `type: RegularExpression` is compared as text, and never matches.
fn pattern_as_text(rule: usize, index: usize, matcher: &Match) -> Option<String> {
    let pattern = |text: &[u8]| text.windows(2).any(|w| w == b".*" || w == b".+");
    let headers = matcher.headers.iter().filter_map(|h| match &h.value {
        ValueMatch::Exact(v) if pattern(v.as_bytes()) => Some(("header", h.name.as_str())),
        _ => None,
    });
    let query = matcher.query.iter().filter_map(|q| match &q.value {
        ValueMatch::Exact(v) if pattern(v.as_bytes()) => Some(("query parameter", &*q.name)),
        _ => None,
    });
    let (what, name) = headers.chain(query).next()?;
    Some(format!(
        "rules[{rule}].matches[{index}]: the value of {what} {name} looks like a pattern but is compared as text; for a \
         pattern say type: RegularExpression."
    ))
}

/// What makes a whole rule unservable, beside what could not be parsed.
fn rule_problems(rule: &Rule) -> impl Iterator<Item = Problem> {
    let has = |want: fn(&Filter) -> bool| rule.filters.iter().any(want);
    let redirect = has(|f| matches!(f, Filter::RequestRedirect(_)));
    let rewrite = has(|f| matches!(f, Filter::UrlRewrite(_)));
    let incompatible = (redirect && rewrite).then(|| {
        Problem::new(
            reason::INCOMPATIBLE_FILTERS,
            "RequestRedirect and URLRewrite cannot be in one rule; keep one of them",
        )
    });
    incompatible.into_iter().chain(prefix_without_prefix(rule))
}

/// `ReplacePrefixMatch` needs a prefix to replace: every match must be a PathPrefix (CEL rule of the CRD).
fn prefix_without_prefix(rule: &Rule) -> Option<Problem> {
    let replaces_prefix = rule.filters.iter().any(|f| {
        let path = match f {
            Filter::RequestRedirect(r) => r.path.as_ref(),
            Filter::UrlRewrite(r) => r.path.as_ref(),
            _ => None,
        };
        matches!(path, Some(PathModifier::ReplacePrefixMatch(_)))
    });
    let all_prefixes = rule.matches.iter().all(|m| matches!(m.path, None | Some(PathMatch::Prefix(_))));
    (replaces_prefix && !all_prefixes).then(|| {
        Problem::new(reason::UNSUPPORTED_VALUE, "ReplacePrefixMatch needs matches of type PathPrefix")
    })
}

/// Filters of a rule that cannot be applied: the rule fails closed.
fn unsupported(filter: &Filter) -> Option<Problem> {
    let why = match filter {
        Filter::ExtensionRef { group, kind, name } => {
            format!("ExtensionRef {group}/{kind} \"{name}\" is not known here; such requests answer 500")
        }
        Filter::ExternalAuth { .. } => {
            "filter ExternalAuth is not supported yet; such requests answer 500".to_owned()
        }
        Filter::Unknown(kind) => format!("filter type {kind} is not known; such requests answer 500"),
        _ => return None,
    };
    Some(Problem::new(reason::UNSUPPORTED_VALUE, why))
}

/// As [`unsupported`], for the filters of a backendRef.
fn unsupported_on_backend(filter: &Filter) -> Option<Problem> {
    let name = match filter {
        Filter::RequestRedirect(_) => "RequestRedirect",
        Filter::Cors(_) => "CORS",
        _ => return unsupported(filter),
    };
    let why = format!("filter {name} is not supported on a backendRef; its share answers 500");
    Some(Problem::new(reason::UNSUPPORTED_VALUE, why))
}
