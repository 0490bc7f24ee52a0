//! backendRefs: kinds, grants, Services, ports and TLS policies.

use super::{
    Domain, Problem, Reader,
    app_protocol::{declared, secure_websocket, spoken},
    grants::Referrer,
    reason,
    tls_policy::chosen_policy,
};
use crate::{
    config::{AppProtocol, Backend, BackendKey, FailReason, Reach, Transport},
    model::{
        BackendObjectRef, Kind, ObjectKey, RouteKind, Service, ServicePort, ServiceType, Str,
        TransportProtocol,
    },
};
use std::sync::Arc;

/// A backend reference looked up.
pub(super) struct Lookup {
    /// The Service that was named, whether or not it can be used.
    pub(super) service: Option<ObjectKey>,
    pub(super) target: Result<Arc<Backend>, FailReason>,
    /// For `ResolvedRefs`.
    pub(super) problem: Option<Problem>,
    /// An extra sentence for `Accepted`: the reference is fine, but requests will fail.
    pub(super) note: Option<String>,
}

/// Looks up backends for one route in one domain.
pub(super) struct Backends<'r, 'w> {
    pub(super) reader: &'r Reader<'w>,
    pub(super) kind: RouteKind,
    pub(super) namespace: Str,
    pub(super) domain: Domain,
}

impl Backends<'_, '_> {
    /// Looks one up; the error of the reference is part of the answer.
    pub(super) fn lookup(&self, object: &BackendObjectRef) -> Lookup {
        match self.find(object) {
            Ok((key, service, port)) => self.with_policy(key, service, port),
            Err((fail, problem)) => {
                Lookup { service: None, target: Err(fail), problem: Some(problem), note: None }
            }
        }
    }

    fn find(
        &self,
        object: &BackendObjectRef,
    ) -> Result<(ObjectKey, &Service, &ServicePort), (FailReason, Problem)> {
        let not_found = |fail, why: String| (fail, Problem::new(reason::BACKEND_NOT_FOUND, why));
        let invalid = |reason, why: String| (FailReason::InvalidBackend, Problem::new(reason, why));
        if !object.kind.is(Kind::Service) {
            let why = format!("backendRef kind {} is not supported; use a Service", object.kind);
            return Err(invalid(reason::INVALID_KIND, why));
        }
        let namespace = object.namespace.clone().unwrap_or_else(|| self.namespace.clone());
        let key = ObjectKey::new(namespace, object.name.clone());
        // Routes of a Service need no grant: the client could call the backend itself (GEP-1294).
        if self.domain == Domain::Gateway {
            let from = Referrer { kind: self.kind.kind(), namespace: self.namespace.clone() };
            from.check(self.reader, Kind::Service, &key).map_err(|p| (FailReason::BackendNotPermitted, p))?;
        }
        let missing = || not_found(FailReason::BackendNotFound, format!("Service {key} does not exist"));
        let service = self.reader.service(&key).ok_or_else(missing)?;
        if service.kind == ServiceType::ExternalName {
            // CVE-2021-25740: an ExternalName can point to anything, localhost included.
            let why = format!("Service {key} is of type ExternalName, which may not be a backend");
            return Err(invalid(reason::INVALID_KIND, why));
        }
        let portless = || {
            not_found(FailReason::BackendPortNotFound, format!("backendRef to Service {key} needs a port"))
        };
        let number = object.port.ok_or_else(portless)?;
        let port = self.find_port(&key, service, number)?;
        Ok((key, service, port))
    }

    fn find_port<'s>(
        &self,
        key: &ObjectKey,
        service: &'s Service,
        number: u16,
    ) -> Result<&'s ServicePort, (FailReason, Problem)> {
        let wanted = match self.kind {
            RouteKind::Udp => TransportProtocol::Udp,
            _ => TransportProtocol::Tcp,
        };
        let mut same_number = service.ports.iter().filter(|p| p.port == number).peekable();
        if same_number.peek().is_none() {
            let ports: Vec<_> = service.ports.iter().map(|p| p.port.to_string()).collect();
            let why = format!("Service {key} has no port {number}, only {}", ports.join(", "));
            return Err((FailReason::BackendPortNotFound, Problem::new(reason::BACKEND_NOT_FOUND, why)));
        }
        same_number.find(|p| p.protocol == wanted).ok_or_else(|| {
            let why =
                format!("port {number} of Service {key} is not {wanted:?}, as {} needs", self.kind.kind());
            (FailReason::InvalidBackend, Problem::new(reason::UNSUPPORTED_PROTOCOL, why))
        })
    }

    /// `internalTrafficPolicy` is for pods that call a Service of their node ("the proxy will assume that pods only want to
    /// talk to endpoints of the service on the same node as the pod"), whichever route of the mesh leads there. The clients
    /// of a Gateway are elsewhere, and it does not call the ClusterIP: the policy says nothing of it.
    fn reach(&self, service: &Service) -> Reach {
        Reach { local: service.internal_local && self.domain == Domain::Mesh, second_family: false }
    }

    fn with_policy(&self, key: ObjectKey, service: &Service, port: &ServicePort) -> Lookup {
        let policies = match self.kind {
            RouteKind::Udp => Vec::new(),
            _ => self.reader.policies(&key),
        };
        let policy = chosen_policy(&policies, &key, &port.name);
        if let (None, Some(problem)) = (policy, self.clear_to_tls(&key, port)) {
            let target = Err(FailReason::InvalidBackend);
            return Lookup { service: Some(key), target, problem: Some(problem), note: None };
        }
        let broken = policy.filter(|p| p.tls.is_none());
        let target = match broken {
            // Never in clear where TLS is asked for.
            Some(_) => Err(FailReason::BackendTls),
            None => Ok(Arc::new(Backend {
                key: BackendKey {
                    service: key.clone(),
                    port: port.port,
                    transport: if self.kind == RouteKind::Udp { Transport::Udp } else { Transport::Tcp },
                    reach: self.reach(service),
                },
                protocol: self.protocol(port),
                tls: policy.and_then(|p| p.tls.clone()),
                client_ip_affinity: service.client_ip_affinity,
            })),
        };
        let note = broken.map(|p| {
            let policy = &p.policy.meta.key;
            format!("Requests to Service {key} fail: BackendTLSPolicy {policy} is not valid.")
        });
        Lookup { service: Some(key), target, problem: None, note }
    }

    fn protocol(&self, port: &ServicePort) -> AppProtocol {
        let declared = if secure_websocket(port) && self.kind == RouteKind::Http {
            AppProtocol::WebSocket
        } else {
            declared(port)
        };
        spoken(self.kind, declared)
    }

    /// "If a Route is not able to send traffic to the backend using the specified protocol then the backend is considered
    /// invalid" (GEP-1911, which names wss). A port that declares `https` or `tls` understands clear text no better.
    fn clear_to_tls(&self, key: &ObjectKey, port: &ServicePort) -> Option<Problem> {
        let http = matches!(self.kind, RouteKind::Http | RouteKind::Grpc);
        if !http || declared(port) != AppProtocol::Tls {
            return None;
        }
        let (number, value) = (port.port, port.app_protocol.as_deref().unwrap_or_default());
        let why = format!(
            "port {number} of Service {key} declares appProtocol {value}, which is TLS, and no BackendTLSPolicy says how \
             its certificate is checked; attach one, or correct appProtocol"
        );
        Some(Problem::new(reason::UNSUPPORTED_PROTOCOL, why))
    }
}
