//! Certificates that listeners show, CAs that they ask for, and the certificate shown to backends.

use super::{Problem, Reader, grants::Referrer, reason, tls_policy::ca_bundle};
use crate::{
    config::{ClientValidation, TlsTermination},
    expiry::ListenerCertificate,
    model::{
        CaBundle, FrontendValidation, Gateway, KeyPair, Kind, Listener, ObjectKey, ObjectReference, Protocol,
        SecretData, TlsMode, TlsSettings,
    },
};
use std::sync::Arc;

/// How TLS ends at a listener, and what is wrong with it.
#[derive(Default)]
pub(super) struct Termination {
    pub(super) tls: Option<Arc<TlsTermination>>,
    pub(super) refs: Vec<Problem>,
    /// `Accepted=False`: no client could be let in.
    pub(super) rejected: Option<Problem>,
    /// Why no handshake could succeed.
    pub(super) unservable: Option<Problem>,
}

/// Resolves the TLS side of an HTTPS or TLS listener of `owner`, which belongs to `gateway`.
pub(super) fn termination(
    reader: &Reader<'_>,
    owner: &Referrer,
    gateway: &Gateway,
    listener: &Listener,
) -> Termination {
    let mode = listener.tls.as_ref().map_or(TlsMode::Terminate, |t| t.mode);
    match (&listener.protocol, mode) {
        (Protocol::Https | Protocol::Tls, TlsMode::Terminate) => {}
        (Protocol::Https, TlsMode::Passthrough) => {
            let why = "protocol HTTPS cannot have tls.mode Passthrough; use protocol TLS, or mode Terminate";
            return Termination {
                rejected: Some(Problem::new(reason::UNSUPPORTED_VALUE, why)),
                ..Termination::default()
            };
        }
        (Protocol::Tls, TlsMode::Passthrough) => return passed_through(listener),
        _ => return Termination::default(),
    }
    let settings =
        listener.tls.as_ref().map_or_else(|| Ok(TlsSettings::default()), |t| TlsSettings::read(&t.options));
    let refs = listener.tls.as_ref().map_or(&[][..], |t| &t.certificate_refs);
    let mut out = Termination::default();
    let mut certificates = Vec::new();
    for reference in refs {
        match certificate(reader, owner, reference, reason::INVALID_CERTIFICATE_REF) {
            Ok(Found { value: pair, stale }) => {
                certificates.push(ListenerCertificate { secret: target(owner, reference), pair });
                out.refs.extend(stale);
            }
            Err(p) => out.refs.push(p),
        }
    }
    if certificates.is_empty() {
        let why = if refs.is_empty() {
            format!(
                "protocol {} needs a certificate: set tls.certificateRefs to a Secret of type kubernetes.io/tls",
                listener.protocol
            )
        } else {
            "no certificateRef can be used, see ResolvedRefs".to_owned()
        };
        out.unservable = Some(Problem::new(reason::INVALID, why));
    }
    let client_ca = client_validation(reader, gateway, listener, &mut out);
    let settings = settings.unwrap_or_else(|why| {
        out.rejected.get_or_insert(Problem::new(reason::UNSUPPORTED_VALUE, format!("tls.{why}")));
        TlsSettings::default()
    });
    if out.unservable.is_none() && out.rejected.is_none() {
        let alpn = match listener.protocol {
            Protocol::Https => vec!["h2".into(), "http/1.1".into()],
            _ => Vec::new(),
        };
        out.tls = Some(Arc::new(TlsTermination { certificates, client_ca, alpn, settings }));
    }
    out
}

/// TLS that ends behind the listener: what of it may be spoken is decided there.
fn passed_through(listener: &Listener) -> Termination {
    let options = listener.tls.as_ref().map(|tls| &tls.options);
    let ours = options.and_then(|all| all.keys().find(|key| key.starts_with("weft.dev/")));
    let rejected = ours.map(|key| {
        let why = format!(
            "tls.options: {key} has no effect with mode Passthrough; use mode Terminate, or leave it out"
        );
        Problem::new(reason::UNSUPPORTED_VALUE, why)
    });
    Termination { rejected, ..Termination::default() }
}

/// `spec.tls.frontend` (GEP-91): the entry of the listener's port, else the default. HTTPS only.
fn client_validation(
    reader: &Reader<'_>,
    gateway: &Gateway,
    listener: &Listener,
    out: &mut Termination,
) -> Option<ClientValidation> {
    let validation = frontend_validation(gateway, listener)?;
    // The references are the Gateway's, also when the listener comes from a ListenerSet.
    let owner = Referrer { kind: Kind::Gateway, namespace: gateway.meta.key.namespace.clone() };
    let (mut roots, mut problems) = (Vec::new(), Vec::new());
    for reference in &validation.ca_refs {
        match client_ca(reader, &owner, reference) {
            Ok(Found { value, stale }) => {
                roots.extend(value.0.iter().cloned());
                problems.extend(stale);
            }
            Err(p) => problems.push(p),
        }
    }
    if roots.is_empty() {
        let why = problems.first().map_or("caCertificateRefs is empty", |p| &p.message);
        out.rejected = Some(Problem::new(reason::NO_VALID_CA, why));
    }
    out.refs.extend(problems);
    Some(ClientValidation { roots: CaBundle(Arc::new(roots)), optional: validation.insecure_fallback })
}

fn frontend_validation<'g>(gateway: &'g Gateway, listener: &Listener) -> Option<&'g FrontendValidation> {
    if listener.protocol != Protocol::Https {
        return None;
    }
    let frontend = gateway.frontend_tls.as_ref()?;
    match frontend.per_port.iter().find(|(port, _)| *port == listener.port) {
        Some((_, validation)) => validation.as_ref(),
        None => frontend.default.as_ref(),
    }
}

fn client_ca(
    reader: &Reader<'_>,
    owner: &Referrer,
    reference: &ObjectReference,
) -> Result<Found<CaBundle>, Problem> {
    let kind =
        [Kind::ConfigMap, Kind::Secret].into_iter().find(|k| reference.kind.is(*k)).ok_or_else(|| {
            let why = format!("caCertificateRef kind {} is not supported; use a ConfigMap", reference.kind);
            Problem::new(reason::INVALID_CA_KIND, why)
        })?;
    let key = target(owner, reference);
    owner.check(reader, kind, &key)?;
    ca_bundle(reader, kind == Kind::Secret, &key, reason::INVALID_CA_REF)
}

/// A Secret with a key pair. `invalid` is the reason for every failure but a missing grant.
pub(super) fn certificate(
    reader: &Reader<'_>,
    owner: &Referrer,
    reference: &ObjectReference,
    invalid: &'static str,
) -> Result<Found<Arc<KeyPair>>, Problem> {
    let key = target(owner, reference);
    if !reference.kind.is(Kind::Secret) {
        let why = format!("certificateRef kind {} is not supported; use a Secret", reference.kind);
        return Err(Problem::new(invalid, why));
    }
    owner.check(reader, Kind::Secret, &key)?;
    let secret =
        reader.secret(&key).ok_or_else(|| Problem::new(invalid, format!("Secret {key} does not exist")))?;
    match &secret.data {
        SecretData::Tls(pair) => {
            let stale =
                secret.broken.as_ref().map(|why| still_used(invalid, &format!("Secret {key}: {why}")));
            Ok(Found { value: pair.clone(), stale })
        }
        SecretData::Ca(_) => Err(Problem::new(invalid, format!("Secret {key} has no tls.crt and tls.key"))),
        SecretData::Invalid(why) => Err(Problem::new(invalid, format!("Secret {key}: {why}"))),
    }
}

/// Something that a reference leads to.
pub(super) struct Found<T> {
    pub(super) value: T,
    /// It is of before: what the object holds now cannot be used.
    pub(super) stale: Option<Problem>,
}

/// What was valid before is still in use.
pub(super) fn still_used(reason: &'static str, why: &str) -> Problem {
    Problem::new(reason, format!("{why}; what it held before stays in use until it is corrected"))
}

fn target(owner: &Referrer, reference: &ObjectReference) -> ObjectKey {
    let namespace = reference.namespace.as_ref().unwrap_or(&owner.namespace);
    ObjectKey::new(namespace.clone(), reference.name.clone())
}
