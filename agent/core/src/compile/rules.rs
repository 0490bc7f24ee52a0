//! Rules of one route, compiled once for all tables that it is in.

use super::label::route_label;
use crate::{
    balance::Weighted,
    config::{Action, Backend, FailReason, FilterChain, HttpBackend, HttpRule, L4Rule, MirrorTarget, RuleId},
    matching::Order,
    model::{Filter, Match, Pattern, Program, Route, RouteKind, Rule, Str},
    resolve::{ResolvedRule, ResolvedRules},
};
use std::{collections::BTreeMap, sync::Arc};

/// What a route adds to a table, whatever the hostname.
#[derive(Debug, Default)]
pub(crate) struct CompiledRules {
    /// HTTP and gRPC: one for each match.
    pub(super) http: Vec<CompiledMatch>,
    /// TLS, TCP, UDP: the one rule (the API allows no more).
    pub(super) l4: Option<Arc<L4Rule>>,
}

#[cfg(test)]
impl CompiledRules {
    /// How many entries it adds for each hostname.
    pub(crate) fn len(&self) -> usize {
        self.http.len()
    }
}

/// One match of one rule.
#[derive(Debug)]
pub(super) struct CompiledMatch {
    pub(super) matcher: Match,
    pub(super) order: Order,
    pub(super) rule: Arc<HttpRule>,
}

/// Compiles every rule of a route. `program` is what a pattern compiles to.
pub(crate) fn compile_rules(
    route: &Route,
    resolved: &ResolvedRules,
    program: &impl Fn(&Pattern) -> Option<Arc<Program>>,
) -> CompiledRules {
    let rules = route.rules.iter().zip(&resolved.rules).enumerate();
    if matches!(route.kind, RouteKind::Http | RouteKind::Grpc) {
        let http = rules.flat_map(|(index, (rule, found))| http_matches(route, index, rule, found));
        let with = |p: &Pattern| p.with(program(p));
        let http = http.map(|m| CompiledMatch { matcher: m.matcher.map_patterns(&with), ..m }).collect();
        return CompiledRules { http, l4: None };
    }
    let l4 = rules.map(|(index, (rule, found))| Arc::new(l4_rule(route, index, rule, found))).next();
    CompiledRules { http: Vec::new(), l4 }
}

fn http_matches(route: &Route, index: usize, rule: &Rule, found: &ResolvedRule) -> Vec<CompiledMatch> {
    let base = HttpRule {
        id: rule_id(route, index, rule),
        label: "".into(),
        filters: filter_chain(&rule.filters, &found.mirrors),
        action: action(rule, found),
        timeouts: rule.timeouts,
        retry: rule.retry.clone().map(Arc::new),
        session: rule.session.clone().map(Arc::new),
    };
    let mut by_label: BTreeMap<Str, Arc<HttpRule>> = BTreeMap::new();
    rule.matches
        .iter()
        .enumerate()
        .map(|(matched, matcher)| {
            let label = route_label(matcher);
            let rule = by_label
                .entry(label.clone())
                .or_insert_with(|| Arc::new(HttpRule { label, ..base.clone() }))
                .clone();
            CompiledMatch {
                matcher: matcher.clone(),
                order: Order {
                    created: route.meta.created,
                    route: route.meta.key.clone(),
                    rule: clamp(index),
                    matched: clamp(matched),
                },
                rule,
            }
        })
        .collect()
}

fn action(rule: &Rule, found: &ResolvedRule) -> Action {
    if let Some(reason) = found.fail {
        return Action::Fail(reason);
    }
    let redirect = rule.filters.iter().find_map(|f| match f {
        Filter::RequestRedirect(redirect) => Some(redirect),
        _ => None,
    });
    // Backends of a rule that redirects are never asked, so that bad ones change nothing.
    if let Some(redirect) = redirect {
        return Action::Redirect(Box::new(redirect.clone()));
    }
    let backends = rule.backends.iter().zip(&found.backends).map(|(backend, found)| {
        let filters = match found.target {
            Ok(_) => filter_chain(&backend.filters, &found.mirrors),
            Err(_) => FilterChain::default(),
        };
        (backend.weight, HttpBackend { target: found.target.clone(), filters })
    });
    Weighted::build(backends).map_or(Action::Fail(FailReason::NoBackend), Action::Forward)
}

fn l4_rule(route: &Route, index: usize, rule: &Rule, found: &ResolvedRule) -> L4Rule {
    let backends = rule.backends.iter().zip(&found.backends).map(|(backend, resolved)| {
        let target = found.fail.map_or_else(|| resolved.target.clone(), Err);
        (backend.weight, target)
    });
    L4Rule { id: rule_id(route, index, rule), backends: Weighted::build(backends) }
}

/// The same rule for connections whose bytes are TLS already: a BackendTLSPolicy would wrap them a second time.
pub(super) fn without_tls(rule: &Arc<L4Rule>) -> Arc<L4Rule> {
    map_wrapped(rule, |b| Ok(Arc::new(Backend { tls: None, ..b.clone() }))).unwrap_or_else(|| rule.clone())
}

/// The same rule for connections that are copied as they are: a backend to which a BackendTLSPolicy wants TLS fails,
/// because the copy does not speak it, and must not go on in clear. `None` when there is no such backend.
pub(super) fn failing_tls(rule: &Arc<L4Rule>) -> Option<Arc<L4Rule>> {
    map_wrapped(rule, |_| Err(FailReason::BackendTls))
}

/// Replaces backends that are to be spoken to in TLS; `None` when there is none.
fn map_wrapped(
    rule: &Arc<L4Rule>,
    replace: impl Fn(&Backend) -> Result<Arc<Backend>, FailReason>,
) -> Option<Arc<L4Rule>> {
    let backends = rule.backends.as_ref()?;
    let wraps = |b: &Result<Arc<Backend>, FailReason>| b.as_ref().is_ok_and(|b| b.tls.is_some());
    if !backends.iter().any(|(_, b)| wraps(b)) {
        return None;
    }
    let replaced = backends.iter().map(|(weight, backend)| {
        let backend = match backend {
            Ok(b) if b.tls.is_some() => replace(b),
            other => other.clone(),
        };
        (u32::try_from(weight).unwrap_or(u32::MAX), backend)
    });
    Some(Arc::new(L4Rule { id: rule.id.clone(), backends: Weighted::build(replaced) }))
}

fn rule_id(route: &Route, index: usize, rule: &Rule) -> RuleId {
    RuleId { kind: route.kind, route: route.meta.key.clone(), index: clamp(index), name: rule.name.clone() }
}

/// The API allows 16 rules of 64 matches; the model allows more.
fn clamp(index: usize) -> u16 {
    u16::try_from(index).unwrap_or(u16::MAX)
}

/// Sorts filters by when they act; of a kind that may be there once the first counts.
fn filter_chain(filters: &[Filter], mirrors: &[Option<Arc<Backend>>]) -> FilterChain {
    let mut chain = FilterChain::default();
    let mut mirrors = mirrors.iter();
    for filter in filters {
        match filter {
            Filter::Cors(cors) => put(&mut chain.cors, cors),
            Filter::RequestHeaderModifier(m) => put(&mut chain.request_headers, m),
            Filter::ResponseHeaderModifier(m) => put(&mut chain.response_headers, m),
            Filter::UrlRewrite(rewrite) => put(&mut chain.rewrite, rewrite),
            Filter::RequestMirror(mirror) => {
                if let Some(Some(backend)) = mirrors.next() {
                    chain.mirrors.push(Arc::new(MirrorTarget {
                        backend: backend.clone(),
                        numerator: mirror.numerator,
                        denominator: mirror.denominator.max(1),
                    }));
                }
            }
            // Redirects are actions; the others fail the rule.
            Filter::RequestRedirect(_)
            | Filter::ExtensionRef { .. }
            | Filter::ExternalAuth { .. }
            | Filter::Unknown(_) => {}
        }
    }
    chain
}

fn put<T: Clone>(slot: &mut Option<Arc<T>>, value: &T) {
    slot.get_or_insert_with(|| Arc::new(value.clone()));
}
