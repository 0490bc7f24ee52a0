//! BackendTLSPolicy (GEP-1897).

use super::{
    Problem, Reader, ResolvedPolicy,
    certificates::{Found, still_used},
    reason,
};
use crate::{
    config::BackendTls,
    model::{BackendTlsPolicy, CaBundle, Kind, ObjectKey, ObjectReference, SecretData, Str, TlsSettings},
};
use std::sync::Arc;

/// Resolves a policy by itself.
pub(crate) fn resolve_policy(reader: &Reader<'_>, policy: &Arc<BackendTlsPolicy>) -> ResolvedPolicy {
    let (roots, refs, accepted) = if policy.ca_refs.is_empty() {
        let accepted = if policy.system_roots {
            Ok(())
        } else {
            let why = "validation needs caCertificateRefs or wellKnownCACertificates: System";
            Err(Problem::new(reason::INVALID, why))
        };
        (None, Ok(()), accepted)
    } else {
        let (bundle, refs) = bundle(reader, &policy.meta.key.namespace, &policy.ca_refs);
        let accepted = match (&bundle, &refs) {
            (None, Err(p)) => Err(Problem::new(reason::NO_VALID_CA, p.message.clone())),
            _ => Ok(()),
        };
        (bundle, refs, accepted)
    };
    let settings = TlsSettings::read(&policy.options).map_err(|why| Problem::new(reason::INVALID, why));
    let (settings, accepted) = match settings {
        Ok(settings) => (settings, accepted),
        Err(problem) => (TlsSettings::default(), accepted.and(Err(problem))),
    };
    let tls = accepted.is_ok().then(|| {
        Arc::new(BackendTls {
            hostname: policy.hostname.clone(),
            roots,
            subject_alt_names: policy.subject_alt_names.clone(),
            settings,
        })
    });
    ResolvedPolicy { policy: policy.clone(), accepted, refs, tls }
}

/// The policy of a Service port, of `policies` in the order of precedence: one that names the port beats one for the
/// whole Service; of equals the first.
pub(super) fn chosen_policy<'a>(
    policies: &[&'a Arc<ResolvedPolicy>],
    service: &ObjectKey,
    port_name: &str,
) -> Option<&'a Arc<ResolvedPolicy>> {
    let targets = |p: &ResolvedPolicy, section: Option<&str>| {
        let mut targets = p.policy.targets.iter();
        targets.any(|t| {
            t.kind.is(Kind::Service) && t.name == service.name && t.section_name.as_deref() == section
        })
    };
    let find = |section| policies.iter().find(|p| targets(p, section)).copied();
    find(Some(port_name)).or_else(|| find(None))
}

/// The CAs that can be used, and what is wrong with the others.
fn bundle(
    reader: &Reader<'_>,
    namespace: &Str,
    refs: &[ObjectReference],
) -> (Option<CaBundle>, Result<(), Problem>) {
    let (mut certificates, mut problems) = (Vec::new(), Vec::new());
    for reference in refs {
        match ca(reader, namespace, reference) {
            Ok(Found { value, stale }) => {
                certificates.extend(value.0.iter().cloned());
                problems.extend(stale);
            }
            Err(p) => problems.push(p),
        }
    }
    let bundle = (!certificates.is_empty()).then(|| CaBundle(Arc::new(certificates)));
    (bundle, Problem::join(problems))
}

fn ca(reader: &Reader<'_>, namespace: &Str, reference: &ObjectReference) -> Result<Found<CaBundle>, Problem> {
    let key = ObjectKey::new(namespace.clone(), reference.name.clone());
    if !reference.kind.is(Kind::ConfigMap) && !reference.kind.is(Kind::Secret) {
        let why = format!("caCertificateRef kind {} is not supported; use a ConfigMap", reference.kind);
        return Err(Problem::new(reason::INVALID_KIND, why));
    }
    ca_bundle(reader, reference.kind.is(Kind::Secret), &key, reason::INVALID_CA_REF)
}

/// `ca.crt` of a ConfigMap (or Secret). `invalid` is the reason for every failure.
pub(super) fn ca_bundle(
    reader: &Reader<'_>,
    secret: bool,
    key: &ObjectKey,
    invalid: &'static str,
) -> Result<Found<CaBundle>, Problem> {
    let kind = if secret { "Secret" } else { "ConfigMap" };
    let missing = || Problem::new(invalid, format!("{kind} {key} does not exist"));
    let (content, broken) = if secret {
        let found = reader.secret(key).ok_or_else(missing)?;
        let content = match &found.data {
            SecretData::Ca(bundle) => Ok(bundle.clone()),
            SecretData::Tls(_) => Err(format!("{kind} {key} has no ca.crt")),
            SecretData::Invalid(why) => Err(format!("{kind} {key}: {why}")),
        };
        (content, &found.broken)
    } else {
        let found = reader.config_map(key).ok_or_else(missing)?;
        let content = match &found.ca {
            Some(Ok(bundle)) => Ok(bundle.clone()),
            Some(Err(why)) => Err(format!("{kind} {key}: {why}")),
            None => Err(format!("{kind} {key} has no ca.crt")),
        };
        (content, &found.broken)
    };
    let stale = broken.as_ref().map(|why| still_used(invalid, &format!("{kind} {key}: {why}")));
    content.map(|value| Found { value, stale }).map_err(|why| Problem::new(invalid, why))
}
