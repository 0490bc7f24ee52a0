//! Kubernetes objects to the core model.
//!
//! [`convert`] is the one door, for files and for watches: it knows no files, only [`Source`]. An object that an API
//! server would refuse gives no model; what an API server accepts but Weft cannot serve goes into `Rule.invalid`.

mod filter;
mod gateway;
mod kinds;
mod lint;
mod meta;
mod node;
mod policy;
mod probe;
mod route;
mod secret;
mod service;
mod slice;
mod workload;

#[cfg(test)]
mod tests;

pub use kinds::unroll;
pub(crate) use kinds::versions;
pub(crate) use node::convert_node;
pub(crate) use secret::DATA;
pub(crate) use slice::{WorkloadSlice, convert_workload_slice};
pub use workload::MIRROR;

use crate::{
    problem::{Finding, Problem, Report, Severity},
    provision::parameters,
    schema, tracked,
    yaml::Marks,
};
use kinds::Class;
use serde_json::Value;
use std::{fmt::Display, sync::Arc};
use weft_core::model::{
    BackendTlsPolicy, ConfigMap, EndpointSlice, Gateway, GatewayClass, GatewayConfig, Kind, ListenerSet,
    Meta, Namespace, ObjectKey, ObjectRef, Origin, Pod, ReferenceGrant, Route, Secret, Service, Snapshot,
};

/// Where an object comes from.
#[derive(Clone, Copy, Debug, Default)]
pub struct Source<'a> {
    /// The file, and the line where the object starts.
    pub origin: Option<&'a Origin>,
    /// The lines of its fields.
    pub marks: Option<&'a Marks>,
    /// An API server has accepted it already: what this version's schema refuses is a warning then, because the
    /// cluster's CRDs may be newer.
    pub admitted: bool,
}

/// One object of the model.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Object {
    GatewayClass(Arc<GatewayClass>),
    Gateway(Arc<Gateway>),
    ListenerSet(Arc<ListenerSet>),
    Route(Arc<Route>),
    ReferenceGrant(Arc<ReferenceGrant>),
    BackendTlsPolicy(Arc<BackendTlsPolicy>),
    Service(Arc<Service>),
    EndpointSlice(Arc<EndpointSlice>),
    Namespace(Arc<Namespace>),
    Pod(Arc<Pod>),
    Secret(Arc<Secret>),
    ConfigMap(Arc<ConfigMap>),
}

/// What became of one object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Converted {
    /// Which object it is, when that much is known.
    pub id: Option<ObjectRef>,
    /// The object, unless it is refused.
    pub object: Option<Object>,
    /// What to tell the user.
    pub problems: Vec<Problem>,
}

/// Converts one object of any kind. Lists are for [`unroll`] first.
#[must_use]
pub fn convert(value: Value, source: &Source<'_>) -> Converted {
    let label = kinds::label(&value);
    match kinds::classify(&value) {
        Class::Ours(kind) => ours(kind, value, source),
        Class::Foreign(remedy) => {
            let finding = finding(Severity::Ignored, "", "not a kind that Weft reads", remedy);
            Converted { problems: vec![problem(finding, &label, source)], ..Converted::default() }
        }
        Class::Wrong { path, reason, remedy } => {
            let finding = finding(Severity::Error, path, &reason, &remedy);
            Converted { problems: vec![problem(finding, &label, source)], ..Converted::default() }
        }
    }
}

/// Converts a `WeftGatewayConfig` (`weft.dev/v1alpha1`): one with a broken `spec` says so when it is used.
/// `None` for any other kind.
#[must_use]
pub fn convert_gateway_config(
    value: &Value,
    source: &Source<'_>,
) -> Option<(Option<GatewayConfig>, Vec<Problem>)> {
    if value["apiVersion"] != "weft.dev/v1alpha1" || value["kind"] != "WeftGatewayConfig" {
        return None;
    }
    let mut report = Report::default();
    let meta = meta::of_weft_kind(&mut Cx { value, source, report: &mut report });
    let meta = meta.filter(|_| report.rejections() == 0);
    let settings = parameters::read_spec(value, source, &mut report);
    let config = meta.map(|meta| GatewayConfig { meta, settings });
    Some((config, problems(report, &kinds::label(value), source)))
}

impl Object {
    /// Kind and key.
    #[must_use]
    pub fn id(&self) -> ObjectRef {
        let kind = match self {
            Self::GatewayClass(_) => Kind::GatewayClass,
            Self::Gateway(_) => Kind::Gateway,
            Self::ListenerSet(_) => Kind::ListenerSet,
            Self::Route(r) => r.kind.kind(),
            Self::ReferenceGrant(_) => Kind::ReferenceGrant,
            Self::BackendTlsPolicy(_) => Kind::BackendTlsPolicy,
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Namespace(_) => Kind::Namespace,
            Self::Pod(_) => Kind::Pod,
            Self::Secret(_) => Kind::Secret,
            Self::ConfigMap(_) => Kind::ConfigMap,
        };
        ObjectRef { kind, key: self.meta().key.clone() }
    }

    /// Metadata.
    #[must_use]
    pub fn meta(&self) -> &Meta {
        match self {
            Self::GatewayClass(o) => &o.meta,
            Self::Gateway(o) => &o.meta,
            Self::ListenerSet(o) => &o.meta,
            Self::Route(o) => &o.meta,
            Self::ReferenceGrant(o) => &o.meta,
            Self::BackendTlsPolicy(o) => &o.meta,
            Self::Service(o) => &o.meta,
            Self::EndpointSlice(o) => &o.meta,
            Self::Namespace(o) => &o.meta,
            Self::Pod(o) => &o.meta,
            Self::Secret(o) => &o.meta,
            Self::ConfigMap(o) => &o.meta,
        }
    }

    /// Whether both are the very same value in memory.
    #[must_use]
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        std::ptr::eq(self.meta(), other.meta())
    }

    /// Metadata, to edit (a provider counts generations). Copies the object if it is shared.
    pub fn meta_mut(&mut self) -> &mut Meta {
        match self {
            Self::GatewayClass(o) => &mut Arc::make_mut(o).meta,
            Self::Gateway(o) => &mut Arc::make_mut(o).meta,
            Self::ListenerSet(o) => &mut Arc::make_mut(o).meta,
            Self::Route(o) => &mut Arc::make_mut(o).meta,
            Self::ReferenceGrant(o) => &mut Arc::make_mut(o).meta,
            Self::BackendTlsPolicy(o) => &mut Arc::make_mut(o).meta,
            Self::Service(o) => &mut Arc::make_mut(o).meta,
            Self::EndpointSlice(o) => &mut Arc::make_mut(o).meta,
            Self::Namespace(o) => &mut Arc::make_mut(o).meta,
            Self::Pod(o) => &mut Arc::make_mut(o).meta,
            Self::Secret(o) => &mut Arc::make_mut(o).meta,
            Self::ConfigMap(o) => &mut Arc::make_mut(o).meta,
        }
    }

    /// Puts it into `snapshot`, in place of an object of the same kind and key.
    pub fn insert(self, snapshot: &mut Snapshot) {
        let key = self.meta().key.clone();
        match self {
            Self::GatewayClass(o) => drop(snapshot.classes.insert(key.name, o)),
            Self::Gateway(o) => drop(snapshot.gateways.insert(key, o)),
            Self::ListenerSet(o) => drop(snapshot.listener_sets.insert(key, o)),
            Self::Route(o) => drop(snapshot.routes.insert((o.kind, key), o)),
            Self::ReferenceGrant(o) => drop(snapshot.grants.insert(key, o)),
            Self::BackendTlsPolicy(o) => drop(snapshot.tls_policies.insert(key, o)),
            Self::Service(o) => drop(snapshot.services.insert(key, o)),
            Self::EndpointSlice(o) => drop(snapshot.endpoint_slices.insert(key, o)),
            Self::Namespace(o) => drop(snapshot.namespaces.insert(key.name, o)),
            Self::Pod(o) => drop(snapshot.pods.insert(key, o)),
            Self::Secret(o) => drop(snapshot.secrets.insert(key, o)),
            Self::ConfigMap(o) => drop(snapshot.config_maps.insert(key, o)),
        }
    }
}

fn ours(kind: Kind, mut value: Value, source: &Source<'_>) -> Converted {
    let mut report = Report::default();
    let key = kinds::key(kind, &value);
    let id = key.clone().map(|key| ObjectRef { kind, key });
    let label = match &key {
        Some(key) => format!("{kind} {key}"),
        None => format!("{kind} (without name)"),
    };
    lint::before_defaults(kind, &value, &mut report);
    if kind.group() == weft_core::model::GATEWAY_GROUP {
        schema::gateway_api().admit(kind.as_str(), &mut value, source.marks, &mut report);
    }
    let mut object = None;
    if report.rejections() == 0 || source.admitted {
        object = build(kind, &value, source, &mut report);
    }
    if report.rejections() > 0 && !source.admitted {
        object = None;
    }
    let mut problems = problems(report, &label, source);
    if kind == Kind::Secret {
        problems.iter_mut().for_each(redact);
    }
    if object.is_some() && source.admitted {
        for problem in problems.iter_mut().filter(|p| p.severity == Severity::Error) {
            problem.severity = Severity::Warning;
        }
    }
    Converted { id, problems, object }
}

/// A message about a Secret does not repeat what it holds.
fn redact(problem: &mut Problem) {
    if let Some((reason, _)) = problem.reason.split_once(", found ") {
        problem.reason = reason.into();
    }
}

/// The findings of an object, with their places.
pub(crate) fn problems(report: Report, label: &str, source: &Source<'_>) -> Vec<Problem> {
    report.into_findings().into_iter().map(|f| problem(f, label, source)).collect()
}

/// Defaulted and checked value to model. Adds findings; `None` only after a rejection.
fn build(kind: Kind, value: &Value, source: &Source<'_>, report: &mut Report) -> Option<Object> {
    let cx = &mut Cx { value, source, report };
    Some(match kind {
        Kind::GatewayClass => Object::GatewayClass(gateway::class(cx)?.into()),
        Kind::Gateway => Object::Gateway(gateway::gateway(cx)?.into()),
        Kind::ListenerSet => Object::ListenerSet(gateway::listener_set(cx)?.into()),
        Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute | Kind::UdpRoute => {
            Object::Route(route::route(kind, cx)?.into())
        }
        Kind::ReferenceGrant => Object::ReferenceGrant(policy::grant(cx)?.into()),
        Kind::BackendTlsPolicy => Object::BackendTlsPolicy(policy::backend_tls(cx)?.into()),
        Kind::Service => Object::Service(service::service(cx)?.into()),
        Kind::EndpointSlice => Object::EndpointSlice(service::endpoint_slice(cx)?.into()),
        Kind::Namespace => Object::Namespace(workload::namespace(cx)?.into()),
        Kind::Pod => Object::Pod(workload::pod(cx)?.into()),
        Kind::Secret => Object::Secret(secret::secret(cx)?.into()),
        Kind::ConfigMap => Object::ConfigMap(secret::config_map(cx)?.into()),
    })
}

/// One object under conversion.
struct Cx<'a> {
    value: &'a Value,
    source: &'a Source<'a>,
    report: &'a mut Report,
}

impl Cx<'_> {
    /// Reads the `spec` of a Gateway API kind.
    fn spec<T: serde::de::DeserializeOwned>(&mut self) -> Option<T> {
        self.read().map(|s: crate::api::Spec<T>| s.spec)
    }

    /// Reads a whole core object.
    fn object<T: serde::de::DeserializeOwned>(&mut self) -> Option<T> {
        if self.source.admitted {
            // The fields that this version does not know are those of a newer API server: nobody's mistake.
            return self.read();
        }
        tracked::read(self.value, self.source.marks, self.report)
    }

    fn read<T: serde::de::DeserializeOwned>(&mut self) -> Option<T> {
        let read: Result<T, _> = serde_path_to_error::deserialize(self.value);
        read.map_err(|e| {
            let path = e.path().to_string();
            self.report.reject(&path, e.into_inner().to_string(), "");
        })
        .ok()
    }

    /// `Ok`, or a rejection at `path`.
    fn accept<T, E: Display>(&mut self, path: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|e| self.report.reject(path, e.to_string(), "")).ok()
    }
}

fn finding(severity: Severity, path: &str, reason: &str, remedy: &str) -> Finding {
    Finding { severity, path: path.to_owned(), reason: reason.to_owned(), remedy: remedy.to_owned() }
}

fn problem(finding: Finding, label: &str, source: &Source<'_>) -> Problem {
    let origin = source.origin.map(|o| Origin {
        file: o.file.clone(),
        line: source.marks.map_or(o.line, |m| m.line_of(&finding.path)),
    });
    Problem {
        severity: finding.severity,
        origin,
        object: label.into(),
        path: finding.path.into(),
        reason: finding.reason.into(),
        remedy: finding.remedy.into(),
    }
}

/// `namespace` as written or the object's own.
fn key_in(namespace: Option<&str>, name: &str, own: &ObjectKey) -> ObjectKey {
    ObjectKey::new(namespace.unwrap_or(&own.namespace), name)
}
