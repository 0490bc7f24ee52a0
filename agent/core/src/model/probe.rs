//! What a pod's spec lets its kubelet ask over the network: probes and lifecycle handlers.

use super::Str;

/// One question of a probe (readiness, liveness, startup) or lifecycle handler (`postStart`, `preStop`) of one container.
/// Handlers of kind exec and sleep ask nothing over the network and are not here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DeclaredProbe {
    /// Port of the pod, a name resolved.
    pub port: u16,
    /// What is asked there.
    pub ask: ProbeAsk,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ProbeAsk {
    /// `httpGet` over plain HTTP.
    Http {
        /// The request target as a kubelet writes it: path and query.
        target: Str,
        /// `httpHeaders`: what it sends beside its own.
        headers: Vec<(Str, Str)>,
    },
    /// `httpGet` with `scheme: HTTPS`: the same inside TLS, without a look at the certificate.
    Https {
        /// As of [`ProbeAsk::Http`].
        target: Str,
        /// As of [`ProbeAsk::Http`].
        headers: Vec<(Str, Str)>,
    },
    /// `tcpSocket`: whether the port is open, and nothing more.
    Tcp,
    /// `grpc`: the health of this service; empty for the server as a whole.
    Grpc {
        /// The service.
        service: Str,
    },
}
