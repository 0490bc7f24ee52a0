//! Who calls, and what it may have.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    ops::Bound,
    pin::Pin,
    sync::Arc,
};

use tokio::sync::watch;
use tonic::Status;
use weft_core::model::{MESH_LABEL, ObjectKey, Objects, Pod, Snapshot, SpiffeId, Str};

/// Who a token speaks for: a pod on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Namespace of the service account and the pod.
    pub namespace: Str,
    /// Service account.
    pub service_account: Str,
    /// The pod that the token is bound to.
    pub pod: Str,
    /// Its UID.
    pub pod_uid: Str,
    /// Its node.
    pub node: Str,
}

/// Why a token proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No `authorization: Bearer` in the call.
    #[error("the call carries no bearer token")]
    Missing,
    /// Too old: the caller must read its token anew.
    #[error("the token has expired; read it anew from its file")]
    Expired,
    /// Made for someone else.
    #[error("the token is not made for us: its audience is another ({0})")]
    WrongAudience(String),
    /// Not a token of this cluster, or its pod is gone.
    #[error("the token is not valid: {0}")]
    Invalid(String),
    /// Says no pod or no node, so that nothing can be bound to a node by it.
    #[error("the token is not bound to a pod on a node: {0}")]
    Unbound(String),
    /// More tokens of this address wait to be checked than may. Retry.
    #[error("too many tokens of this address are to be checked; try again")]
    TooMany,
    /// The API server could not be asked. Retry.
    #[error("tokens cannot be checked now: {0}")]
    Unavailable(String),
}

impl Denied {
    /// A stable word for metrics and logs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "token_missing",
            Self::Expired => "token_expired",
            Self::WrongAudience(_) => "token_wrong_audience",
            Self::Invalid(_) => "token_invalid",
            Self::Unbound(_) => "token_unbound",
            Self::TooMany => "token_review_too_many",
            Self::Unavailable(_) => "token_review_unavailable",
        }
    }
}

impl From<&Denied> for Status {
    fn from(denied: &Denied) -> Self {
        match denied {
            Denied::TooMany | Denied::Unavailable(_) => Self::unavailable(denied.to_string()),
            _ => Self::unauthenticated(denied.to_string()),
        }
    }
}

/// A pending authentication.
pub type AuthFuture<'a> = Pin<Box<dyn Future<Output = Result<Caller, Denied>> + Send + 'a>>;

/// Finds out who calls.
pub trait Authenticate: Send + Sync {
    /// What is known of a token without asking anybody: who it speaks for if that was heard lately, or that it cannot be
    /// one of ours. None: it must be asked about. Must not block.
    fn recall(&self, token: &str) -> Option<Result<Caller, Denied>>;

    /// Checks a bearer token. The server sets a deadline.
    fn authenticate<'a>(&'a self, token: &'a str) -> AuthFuture<'a>;
}

/// Why an authenticated caller does not get an identity, or may not act as a node's agent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Any pod can get a token for our audience; only agents may speak for others.
    #[error("{0} is not an agent of this mesh")]
    NotAnAgent(String),
    /// Speaks for another node than its token's.
    #[error("the token belongs to node {token}, not to {claimed}")]
    OtherNode {
        /// The token's node.
        token: Str,
        /// The node that it wants to be.
        claimed: String,
    },
    /// Not ours to sign.
    #[error("the mesh's trust domain is {0}")]
    OtherTrustDomain(Str),
    /// Nobody there has it.
    #[error("no running pod of this service account is on the caller's node, but one is on {0}")]
    PodElsewhere(Str),
    /// Nobody has it, or nobody that we know of yet.
    #[error("no running pod of this service account is known")]
    NoPod,
    /// A Gateway's own identity.
    #[error("Gateway {0} is not served on the caller's node")]
    GatewayNotServed(ObjectKey),
}

impl Refusal {
    /// A stable word for metrics and logs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotAnAgent(_) => "not_an_agent",
            Self::OtherNode { .. } => "other_node",
            Self::OtherTrustDomain(_) => "other_trust_domain",
            Self::PodElsewhere(_) => "pod_on_other_node",
            Self::NoPod => "no_such_pod",
            Self::GatewayNotServed(_) => "gateway_not_served",
        }
    }
}

impl From<&Refusal> for Status {
    fn from(refusal: &Refusal) -> Self {
        Self::permission_denied(refusal.to_string())
    }
}

/// Decides which identities a caller gets.
pub trait Authorize: Send + Sync {
    /// Whether `caller`, an agent, may have a certificate of `identity`. Must not block.
    ///
    /// # Errors
    /// Why not.
    fn may_have(&self, caller: &Caller, identity: &SpiffeId) -> Result<(), Refusal>;
}

/// On which nodes each Gateway is served.
pub type Serving = BTreeMap<ObjectKey, BTreeSet<Str>>;

/// The service account of a Gateway, by its name.
pub type GatewayAccount = fn(gateway: &str) -> Str;

/// By the watched world: the identities of the pods that run on the caller's node and of the Gateways served there.
pub struct WorldAuthorizer<W> {
    /// Worlds as they come, and where their Snapshot is.
    pub worlds: watch::Receiver<Arc<W>>,
    /// The Snapshot of a world.
    pub snapshot: fn(&W) -> &Snapshot,
    /// Where Gateways are served.
    pub serving: watch::Receiver<Arc<Serving>>,
    /// How a Gateway's service account is named.
    pub gateway_account: GatewayAccount,
    /// The mesh's.
    pub trust_domain: Str,
}

impl<W: Send + Sync> Authorize for WorldAuthorizer<W> {
    fn may_have(&self, caller: &Caller, identity: &SpiffeId) -> Result<(), Refusal> {
        if identity.trust_domain != self.trust_domain {
            return Err(Refusal::OtherTrustDomain(self.trust_domain.clone()));
        }
        let world = self.worlds.borrow().clone();
        let snapshot = (self.snapshot)(&world);
        let serving = self.serving.borrow().clone();
        may_have(snapshot, &serving, self.gateway_account, (caller, identity))
    }
}

/// The rule of [`WorldAuthorizer`], without the trust domain. Looks at the pods of one namespace.
fn may_have(
    snapshot: &Snapshot,
    serving: &Serving,
    gateway_account: GatewayAccount,
    (caller, identity): (&Caller, &SpiffeId),
) -> Result<(), Refusal> {
    let mut elsewhere = None;
    let runs = |pod: &&Arc<Pod>| {
        let out = pod.meta.labels.get(MESH_LABEL).is_some_and(|l| &**l == "disabled");
        pod.service_account == identity.service_account && !pod.finished && !pod.host_network && !out
    };
    for pod in in_namespace(&snapshot.pods, &identity.namespace).filter(runs) {
        match &pod.node {
            Some(node) if *node == caller.node => return Ok(()),
            Some(node) => elsewhere = Some(node.clone()),
            None => {}
        }
    }
    let mut gateways = in_namespace(&snapshot.gateways, &identity.namespace);
    if let Some(gateway) = gateways.find(|g| gateway_account(&g.meta.key.name) == identity.service_account) {
        let key = &gateway.meta.key;
        return match serving.get(key).is_some_and(|nodes| nodes.contains(&caller.node)) {
            true => Ok(()),
            false => Err(Refusal::GatewayNotServed(key.clone())),
        };
    }
    Err(elsewhere.map_or(Refusal::NoPod, Refusal::PodElsewhere))
}

/// The objects of one namespace: they stand together, because keys are ordered by the text `namespace/name`.
fn in_namespace<'a, T>(objects: &'a Objects<T>, namespace: &Str) -> impl Iterator<Item = &'a Arc<T>> {
    let first = ObjectKey::new(namespace.clone(), "");
    let namespace = namespace.clone();
    objects
        .range((Bound::Included(first), Bound::Unbounded))
        .take_while(move |(key, _)| key.namespace == namespace)
        .map(|(_, object)| object)
}
