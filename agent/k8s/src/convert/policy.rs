//! ReferenceGrant and BackendTLSPolicy.

use super::{Cx, gateway, meta};
use crate::{api, path};
use weft_core::model::{
    BackendTlsPolicy, GrantFrom, GrantTo, Hostname, Kind, PolicyTarget, ReferenceGrant, Str, SubjectAltName,
};

pub(super) fn grant(cx: &mut Cx<'_>) -> Option<ReferenceGrant> {
    let meta = meta::of_gateway_kind(Kind::ReferenceGrant, cx)?;
    let spec: api::ReferenceGrantSpec = cx.spec()?;
    let from = |f: api::GrantFrom| GrantFrom {
        kind: gateway::group_kind(f.group, f.kind),
        namespace: f.namespace.into(),
    };
    // An empty name means all, like none.
    let to = |t: api::GrantTo| GrantTo {
        kind: gateway::group_kind(t.group, t.kind),
        name: t.name.filter(|n| !n.is_empty()).map(Str::from),
    };
    Some(ReferenceGrant {
        meta,
        from: spec.from.into_iter().map(from).collect(),
        to: spec.to.into_iter().map(to).collect(),
    })
}

pub(super) fn backend_tls(cx: &mut Cx<'_>) -> Option<BackendTlsPolicy> {
    let meta = meta::of_gateway_kind(Kind::BackendTlsPolicy, cx)?;
    let spec: api::BackendTlsPolicySpec = cx.spec()?;
    let validation = spec.validation;
    let hostname = cx.accept("spec.validation.hostname", Hostname::parse(&validation.hostname))?;
    let well_known = validation.well_known_ca_certificates.as_deref().unwrap_or("");
    if !matches!(well_known, "" | "System") {
        // Without any root the policy fails closed; the resolution says so in its status.
        let reason = format!("\"{well_known}\" is no set of certificates that Weft knows");
        cx.report.unserved("spec.validation.wellKnownCACertificates", reason, "write \"System\"");
    }
    let target = |t: api::PolicyTarget| PolicyTarget {
        kind: gateway::group_kind(t.group, t.kind),
        name: t.name.into(),
        section_name: t.section_name.map(Str::from),
    };
    Some(BackendTlsPolicy {
        meta,
        targets: spec.target_refs.into_iter().map(target).collect(),
        hostname,
        ca_refs: validation.ca_certificate_refs.into_iter().map(gateway::reference).collect(),
        system_roots: well_known == "System",
        subject_alt_names: names(validation.subject_alt_names, cx)?,
        options: meta::strings(spec.options),
    })
}

fn names(names: Vec<api::SubjectAltName>, cx: &mut Cx<'_>) -> Option<Vec<SubjectAltName>> {
    let mut out = Vec::new();
    for (i, san) in names.into_iter().enumerate() {
        let at = path::index("spec.validation.subjectAltNames", i);
        match (san.hostname, san.uri) {
            (Some(h), _) if san.kind == "Hostname" => {
                out.push(SubjectAltName::Hostname(
                    cx.accept(&path::key(&at, "hostname"), Hostname::parse(&h))?,
                ));
            }
            (_, Some(uri)) if san.kind == "URI" => out.push(SubjectAltName::Uri(uri.into())),
            // Only from a newer API server: without the name the policy would accept too much.
            _ => {
                cx.report.reject(
                    &at,
                    format!("\"{}\" is no type of name", san.kind),
                    "write Hostname or URI",
                );
                return None;
            }
        }
    }
    Some(out)
}
