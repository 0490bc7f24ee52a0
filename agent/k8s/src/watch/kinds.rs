//! What is watched, by whom and in which versions: data. The watcher works from it, and so does the test of the RBAC
//! manifests.

use super::Role;
use crate::convert;
use std::fmt;
use weft_core::model::{GATEWAY_GROUP, Kind};

/// One thing that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Watched {
    /// A kind of the model.
    Model(Kind),
    /// `Node`.
    Node,
    /// `WorkloadSlice` of `weft.dev`: the pods of other nodes.
    WorkloadSlice,
    /// `WeftGatewayConfig` of `weft.dev`.
    GatewayConfig,
    /// The ConfigMap `weft-config` of the system namespace: settings.
    Settings,
    /// The ConfigMap `weft-ca-root` of the system namespace: the mesh's trust roots.
    TrustRoots,
    /// `CustomResourceDefinition`, its metadata only: which kinds the cluster has.
    Definition,
}

/// The ConfigMap of settings, and its key.
pub const SETTINGS: (&str, &str) = ("weft-config", "config.yaml");
/// Beside [`SETTINGS`]: `true` while Weft is being removed.
pub(super) const UNINSTALL: &str = "uninstall";
/// Beside [`UNINSTALL`]: how long connections of pods that leave may go on, as GEP-2257 writes durations.
pub(super) const DRAIN: &str = "drain";
/// The ConfigMap of trust roots, and its key.
pub const TRUST_ROOTS: (&str, &str) = ("weft-ca-root", "root.pem");

/// The oldest Kubernetes that Weft runs on, as (major, minor): from 1.30 on a service-account token says its node
/// (`ServiceAccountTokenPodNodeInfo`), which the CA's service relies on.
pub const MINIMUM_KUBERNETES: (u32, u32) = (1, 30);
/// The oldest bundle of Gateway API CRDs that Weft reads: GRPCRoute v1 is in it, and BackendTLSPolicy has today's shape.
pub const MINIMUM_BUNDLE: (u32, u32, u32) = (1, 2, 0);

/// Groups whose kinds may be missing from a cluster.
pub(super) const OPTIONAL_GROUPS: [&str; 2] = [GATEWAY_GROUP, WEFT_GROUP];
const WEFT_GROUP: &str = "weft.dev";

/// Secrets that can hold no certificate for a Gateway or policy, and are often many or large. The others are kept as
/// what they parse to: a missing and a useless Secret differ in what a user is told.
const SECRETS: &str = "type!=helm.sh/release.v1,type!=kubernetes.io/service-account-token,\
                       type!=kubernetes.io/dockerconfigjson,type!=kubernetes.io/dockercfg,\
                       type!=bootstrap.kubernetes.io/token,type!=kubernetes.io/basic-auth,\
                       type!=kubernetes.io/ssh-auth";

/// Everything that may be watched, in the order of messages.
const ALL: [Watched; 22] = [
    Watched::Settings,
    Watched::TrustRoots,
    Watched::Definition,
    Watched::Model(Kind::GatewayClass),
    Watched::Model(Kind::Gateway),
    Watched::Model(Kind::ListenerSet),
    Watched::Model(Kind::HttpRoute),
    Watched::Model(Kind::GrpcRoute),
    Watched::Model(Kind::TlsRoute),
    Watched::Model(Kind::TcpRoute),
    Watched::Model(Kind::UdpRoute),
    Watched::Model(Kind::ReferenceGrant),
    Watched::Model(Kind::BackendTlsPolicy),
    Watched::Model(Kind::Service),
    Watched::Model(Kind::EndpointSlice),
    Watched::Model(Kind::Namespace),
    Watched::Model(Kind::Pod),
    Watched::Model(Kind::Secret),
    Watched::Model(Kind::ConfigMap),
    Watched::Node,
    Watched::WorkloadSlice,
    Watched::GatewayConfig,
];

/// One entry of what a role must be allowed to do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Access {
    /// API group; "" is the core group.
    pub group: &'static str,
    /// Plural.
    pub resource: &'static str,
    /// Verbs.
    pub verbs: &'static [&'static str],
    /// Only these names, in the system namespace; everything in the cluster when empty.
    pub names: &'static [&'static str],
}

/// What a role watches, as RBAC has to grant it: nothing less, nothing more.
#[must_use]
pub fn watched_kinds(role: &Role) -> Vec<Access> {
    let access = |kind: Watched| Access {
        group: kind.group(),
        resource: kind.plural(),
        verbs: &["list", "watch"],
        names: kind.names(),
    };
    of_role(role).map(access).collect()
}

/// What a role watches.
pub(super) fn of_role(role: &Role) -> impl Iterator<Item = Watched> + use<> {
    let agent = matches!(role, Role::Agent { .. });
    ALL.into_iter().filter(move |kind| match kind {
        // An agent gets the few that it needs from the controller, and may not read them itself.
        Watched::Model(Kind::Secret | Kind::ConfigMap) => !agent,
        // The controller writes them.
        Watched::WorkloadSlice => agent,
        _ => true,
    })
}

impl Watched {
    /// The kind as written in YAML.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Model(kind) => kind.as_str(),
            Self::Node => "Node",
            Self::WorkloadSlice => "WorkloadSlice",
            Self::GatewayConfig => "WeftGatewayConfig",
            Self::Settings => "ConfigMap weft-config",
            Self::TrustRoots => "ConfigMap weft-ca-root",
            Self::Definition => "CustomResourceDefinition",
        }
    }

    /// The API group.
    #[must_use]
    pub const fn group(self) -> &'static str {
        match self {
            Self::Model(kind) => kind.group(),
            Self::Node | Self::Settings | Self::TrustRoots => "",
            Self::WorkloadSlice | Self::GatewayConfig => WEFT_GROUP,
            Self::Definition => "apiextensions.k8s.io",
        }
    }

    /// The plural, as in paths.
    #[must_use]
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Model(Kind::GatewayClass) => "gatewayclasses",
            Self::Model(Kind::Gateway) => "gateways",
            Self::Model(Kind::ListenerSet) => "listenersets",
            Self::Model(Kind::HttpRoute) => "httproutes",
            Self::Model(Kind::GrpcRoute) => "grpcroutes",
            Self::Model(Kind::TlsRoute) => "tlsroutes",
            Self::Model(Kind::TcpRoute) => "tcproutes",
            Self::Model(Kind::UdpRoute) => "udproutes",
            Self::Model(Kind::ReferenceGrant) => "referencegrants",
            Self::Model(Kind::BackendTlsPolicy) => "backendtlspolicies",
            Self::Model(Kind::Service) => "services",
            Self::Model(Kind::EndpointSlice) => "endpointslices",
            Self::Model(Kind::Namespace) => "namespaces",
            Self::Model(Kind::Pod) => "pods",
            Self::Model(Kind::Secret) => "secrets",
            Self::Model(Kind::ConfigMap) | Self::Settings | Self::TrustRoots => "configmaps",
            Self::Node => "nodes",
            Self::WorkloadSlice => "workloadslices",
            Self::GatewayConfig => "weftgatewayconfigs",
            Self::Definition => "customresourcedefinitions",
        }
    }

    /// The versions that can be read, the newest first.
    #[must_use]
    pub const fn versions(self) -> &'static [&'static str] {
        match self {
            Self::Model(kind) => convert::versions(kind),
            Self::WorkloadSlice | Self::GatewayConfig => &["v1alpha1"],
            _ => &["v1"],
        }
    }

    /// Whether a cluster may lack it.
    pub(super) fn optional(self) -> bool {
        OPTIONAL_GROUPS.contains(&self.group())
    }

    /// The names that are watched, when only some are.
    const fn names(self) -> &'static [&'static str] {
        match self {
            Self::Settings => &[SETTINGS.0],
            Self::TrustRoots => &[TRUST_ROOTS.0],
            _ => &[],
        }
    }

    /// The field selector of its watch.
    pub(super) fn fields(self, role: &Role) -> Option<String> {
        match (self, role) {
            (Self::Model(Kind::Pod), Role::Agent { node }) => Some(format!("spec.nodeName={node}")),
            (Self::Model(Kind::Secret), _) => Some(SECRETS.to_owned()),
            // With exactly this selector RBAC's resourceNames hold for list and watch too.
            _ => self.names().first().map(|name| format!("metadata.name={name}")),
        }
    }

    /// The path of its collection.
    pub(super) fn path(self, version: &str, system_namespace: &str) -> String {
        let root = match self.group() {
            "" => format!("/api/{version}"),
            group => format!("/apis/{group}/{version}"),
        };
        match self.names() {
            [] => format!("{root}/{}", self.plural()),
            _ => format!("{root}/namespaces/{system_namespace}/{}", self.plural()),
        }
    }
}

impl fmt::Display for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
