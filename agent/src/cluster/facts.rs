//! What is so in a cluster, gathered once; `check` and `status` then only decide.

use super::{
    NAMESPACE,
    agents::{self, NodeReport},
    api::{Cluster, ClusterError, condition, key, label, list, text},
    install::{AGENTS, CONFIG, CONTROLLER},
};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use weft_core::model::{MESH_LABEL, MTLS_LABEL};

/// Crashed agents whose log is read.
const CRASHES_MAX: usize = 16;
/// Agents asked at once.
const AGENTS_AT_ONCE: usize = 16;
/// The Gateway API's group.
pub(super) const GATEWAY_API: &str = "gateway.networking.k8s.io";

/// Versions in which its kinds may be served, the best first.
pub(super) const VERSIONS: [&str; 4] = ["v1", "v1beta1", "v1alpha3", "v1alpha2"];

/// Where definitions of kinds are.
pub(super) const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
/// Pods of all namespaces.
pub(super) const PODS: &str = "/api/v1/pods";
/// The CA's certificates.
pub(super) const CA_ROOT: &str = "/api/v1/namespaces/weft-system/configmaps/weft-ca-root";
/// Where RuntimeClasses are.
pub(super) const RUNTIME_CLASSES: &str = "/apis/node.k8s.io/v1/runtimeclasses";
/// Pods of Weft itself.
pub(super) const SYSTEM_PODS: &str = "/api/v1/namespaces/weft-system/pods";
/// WorkloadSlices of all namespaces.
pub(super) const SLICES: &str = "/apis/weft.dev/v1alpha1/workloadslices";
/// NetworkPolicies of all namespaces.
pub(super) const POLICIES: &str = "/apis/networking.k8s.io/v1/networkpolicies";

/// How much to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// What must hold before an installation.
    Pre,
    /// Everything.
    All,
}

/// The kinds of routes: plural, kind, and the version that every bundle since it has them serves.
pub(super) const ROUTES: [(&str, &str); 5] = [
    ("httproutes", "HTTPRoute"),
    ("grpcroutes", "GRPCRoute"),
    ("tlsroutes", "TLSRoute"),
    ("tcproutes", "TCPRoute"),
    ("udproutes", "UDPRoute"),
];

/// What was found. Objects as the API server gave them; a list is empty when its kind is not served. Of a kind that may be
/// listed in one namespace only, it has that namespace's.
#[derive(Default)]
pub(super) struct Facts {
    /// `/version`.
    pub(super) version: Value,
    /// Whether the person may do everything.
    pub(super) may_install: bool,
    /// Nodes.
    pub(super) nodes: Vec<Value>,
    /// Definitions of the Gateway API and of Weft.
    pub(super) crds: Vec<Value>,
    /// The policy that keeps CRDs from being replaced by older ones.
    pub(super) upgrade_guard: bool,
    /// Namespace weft-system.
    pub(super) namespace: Option<Value>,
    /// ConfigMap kube-system/cilium-config.
    pub(super) cilium: Option<Value>,
    /// FelixConfiguration default.
    pub(super) calico: Option<Value>,
    /// ConfigMap kube-system/kube-proxy.
    pub(super) kube_proxy: Option<Value>,
    /// What the person may not read, so that a check that saw nothing does not say "fine".
    pub(super) denied: BTreeSet<String>,
    /// Kinds (paths of all namespaces) that were looked at in [`Self::namespace_seen`] only.
    pub(super) narrowed: BTreeSet<String>,
    /// The namespace that is looked at where the person may not list all.
    pub(super) namespace_seen: String,
    /// Whether the cluster serves Weft's own kinds: somebody has installed it.
    pub(super) knows_weft: bool,

    /// DaemonSet weft-agent.
    pub(super) daemon_set: Option<Value>,
    /// Deployment weft-controller.
    pub(super) controller: Option<Value>,
    /// Lease weft-controller.
    pub(super) lease: Option<Value>,
    /// ConfigMap weft-config.
    pub(super) config: Option<Value>,
    /// ConfigMap weft-ca-root.
    pub(super) ca_root: Option<Value>,
    /// Pods of weft-system.
    pub(super) system_pods: Vec<Value>,
    /// Events of weft-system.
    pub(super) events: Vec<Value>,
    /// The last line that a crashed agent logged, by its pod.
    pub(super) last_words: BTreeMap<String, String>,
    /// What each agent says, by node.
    pub(super) agents: BTreeMap<String, Result<NodeReport, String>>,
    /// All namespaces.
    pub(super) namespaces: Vec<Value>,
    /// Pods of joined namespaces, and pods with a label of their own.
    pub(super) pods: Vec<Value>,
    /// RuntimeClasses; asked for only where a pod has one.
    pub(super) runtime_classes: Vec<Value>,
    /// WorkloadSlices.
    pub(super) slices: Vec<Value>,
    /// NetworkPolicies.
    pub(super) policies: Vec<Value>,
    /// GatewayClasses.
    pub(super) classes: Vec<Value>,
    /// Gateways.
    pub(super) gateways: Vec<Value>,
    /// ListenerSets.
    pub(super) listener_sets: Vec<Value>,
    /// Services.
    pub(super) services: Vec<Value>,
    /// Routes with their kind.
    pub(super) routes: Vec<(&'static str, Value)>,
    /// BackendTLSPolicies.
    pub(super) tls_policies: Vec<Value>,
}

/// Asks for everything that is wanted. What may not be listed in all namespaces is listed in `namespace`.
///
/// # Errors
/// When the API server does not answer. What it refuses to show is in `denied`.
pub(super) async fn gather(cluster: &Cluster, want: Want, namespace: &str) -> Result<Facts, ClusterError> {
    let mut facts = Facts { namespace_seen: namespace.to_owned(), ..Facts::default() };
    facts.version = cluster.get("/version").await?.unwrap_or_default();
    facts.before(cluster).await?;
    if want == Want::All {
        facts.installation(cluster).await?;
        facts.mesh(cluster).await?;
        facts.gateway_api(cluster).await?;
    }
    Ok(facts)
}

impl Facts {
    async fn before(&mut self, cluster: &Cluster) -> Result<(), ClusterError> {
        self.may_install = may_do_all(cluster).await?;
        self.nodes = self.list(cluster, "/api/v1/nodes").await?;
        let crds = self.list(cluster, DEFINITIONS).await?;
        self.crds = crds
            .into_iter()
            .filter(|crd| {
                [GATEWAY_API, "weft.dev", "gateway.networking.x-k8s.io"].contains(&text(crd, "/spec/group"))
            })
            .collect();
        let guard = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/safe-upgrades.gateway.networking.k8s.io";
        self.upgrade_guard = self.get(cluster, guard).await?.is_some();
        self.namespace = self.get(cluster, "/api/v1/namespaces/weft-system").await?;
        self.cilium = self.get(cluster, "/api/v1/namespaces/kube-system/configmaps/cilium-config").await?;
        self.calico = self.get(cluster, "/apis/crd.projectcalico.org/v1/felixconfigurations/default").await?;
        self.kube_proxy = self.get(cluster, "/api/v1/namespaces/kube-system/configmaps/kube-proxy").await?;
        Ok(())
    }

    async fn installation(&mut self, cluster: &Cluster) -> Result<(), ClusterError> {
        self.daemon_set = self.get(cluster, AGENTS).await?;
        self.controller = self.get(cluster, CONTROLLER).await?;
        self.config = self.get(cluster, CONFIG).await?;
        self.ca_root = self.get(cluster, CA_ROOT).await?;
        let lease = "/apis/coordination.k8s.io/v1/namespaces/weft-system/leases/weft-controller";
        self.lease = self.get(cluster, lease).await?;
        self.system_pods = self.list(cluster, SYSTEM_PODS).await?;
        self.events = self.list(cluster, "/api/v1/namespaces/weft-system/events").await?;
        self.agents = ask_agents(cluster, &self.system_pods).await;
        for pod in crashed(&self.system_pods) {
            // Who may not read logs is not told why it crashed; a container that is gone has left none.
            if let Some(line) = last_words(cluster, &pod).await {
                self.last_words.insert(pod, line);
            }
        }
        Ok(())
    }

    /// Namespaces, pods, slices and policies.
    ///
    /// # Errors
    /// As [`gather`].
    pub(super) async fn mesh(&mut self, cluster: &Cluster) -> Result<(), ClusterError> {
        self.namespaces = self.all_namespaces(cluster).await?;
        let slices = self.spread_if_served(cluster, SLICES, "").await?;
        self.knows_weft = slices.is_some();
        self.slices = slices.unwrap_or_default();
        self.policies = self.spread(cluster, POLICIES, "").await?;
        let joined: Vec<String> =
            self.namespaces.iter().filter(|ns| label(ns, MESH_LABEL) == Some("enabled")).map(key).collect();
        for namespace in joined {
            let pods = self.list(cluster, &format!("/api/v1/namespaces/{namespace}/pods")).await?;
            self.pods.extend(pods);
        }
        let mut known: BTreeSet<String> = self.pods.iter().map(key).collect();
        // Any value of theirs: one that means nothing is to be found too.
        for name in [MESH_LABEL, MTLS_LABEL] {
            let query = format!("?labelSelector={}", super::api::escape(name));
            let labelled = self.spread(cluster, PODS, &query).await?;
            self.pods.extend(labelled.into_iter().filter(|pod| known.insert(key(pod))));
        }
        if self.pods.iter().any(|pod| !text(pod, "/spec/runtimeClassName").is_empty()) {
            self.runtime_classes = self.list(cluster, RUNTIME_CLASSES).await?;
        }
        Ok(())
    }

    /// What tells which nodes have an agent, which have none and why, and where captured pods are.
    ///
    /// # Errors
    /// When the API server does not answer, or refuses pods or slices: without them nobody knows whom an agent left behind.
    pub(super) async fn of_nodes(cluster: &Cluster) -> Result<Self, ClusterError> {
        let mut facts = Self::default();
        facts.daemon_set = cluster.get(AGENTS).await?;
        facts.config = cluster.get(CONFIG).await?;
        facts.system_pods = cluster.list(SYSTEM_PODS).await?.unwrap_or_default();
        facts.slices = cluster.list(SLICES).await?.unwrap_or_default();
        facts.nodes = facts.list(cluster, "/api/v1/nodes").await?;
        facts.events = facts.list(cluster, "/api/v1/namespaces/weft-system/events").await?;
        Ok(facts)
    }

    async fn gateway_api(&mut self, cluster: &Cluster) -> Result<(), ClusterError> {
        self.services = self.spread(cluster, "/api/v1/services", "").await?;
        let others = ["gatewayclasses", "gateways", "listenersets", "backendtlspolicies"];
        for plural in others.into_iter().chain(ROUTES.map(|(plural, _)| plural)) {
            let objects = self.of_gateway_api(cluster, plural).await?;
            match plural {
                "gatewayclasses" => self.classes = objects,
                "gateways" => self.gateways = objects,
                "listenersets" => self.listener_sets = objects,
                "backendtlspolicies" => self.tls_policies = objects,
                _ => {
                    let kind = ROUTES.into_iter().find(|(p, _)| *p == plural).map_or("", |(_, kind)| kind);
                    self.routes.extend(objects.into_iter().map(|route| (kind, route)));
                }
            }
        }
        Ok(())
    }

    /// All objects of a kind. Which version is served depends on the bundle: the definition says, and who may not read
    /// definitions tries.
    async fn of_gateway_api(&mut self, cluster: &Cluster, plural: &str) -> Result<Vec<Value>, ClusterError> {
        let path = |version: &str| format!("/apis/{GATEWAY_API}/{version}/{plural}");
        if !self.denied.contains(DEFINITIONS) {
            return match self.served(plural) {
                Some(version) if plural == "gatewayclasses" => self.list(cluster, &path(version)).await,
                Some(version) => self.spread(cluster, &path(version), "").await,
                None => Ok(Vec::new()),
            };
        }
        for version in VERSIONS {
            let all = path(version);
            let answer = if plural == "gatewayclasses" {
                let answer = cluster.list(&all).await;
                self.unless_denied(&all, answer)?
            } else {
                self.spread_if_served(cluster, &all, "").await?
            };
            // Rights are the same for all versions: what is refused in one is refused in the next.
            if answer.is_some() || self.denied.contains(&all) {
                return Ok(answer.unwrap_or_default());
            }
        }
        Ok(Vec::new())
    }

    /// The best version that the cluster serves of a kind of the Gateway API.
    pub(super) fn served(&self, plural: &str) -> Option<&'static str> {
        let crd = self.crds.iter().find(|crd| {
            text(crd, "/spec/group") == GATEWAY_API && text(crd, "/spec/names/plural") == plural
        })?;
        let is_served = |version: &&str| {
            list(crd, "/spec/versions").iter().any(|v| v["served"] == true && text(v, "/name") == *version)
        };
        VERSIONS.into_iter().find(is_served)
    }

    /// All namespaces; where they may not be listed, the one that is looked at.
    async fn all_namespaces(&mut self, cluster: &Cluster) -> Result<Vec<Value>, ClusterError> {
        const PATH: &str = "/api/v1/namespaces";
        match cluster.list(PATH).await {
            Err(error) if error.code() == Some(403) => {
                let one = format!("{PATH}/{}", self.namespace_seen);
                let found = self.get(cluster, &one).await?;
                if !self.denied.contains(&one) {
                    self.narrowed.insert(PATH.to_owned());
                }
                Ok(found.into_iter().collect())
            }
            other => Ok(other?.unwrap_or_default()),
        }
    }

    /// Objects of a kind in all namespaces; where that is refused, in the one that is looked at.
    async fn spread(
        &mut self,
        cluster: &Cluster,
        path: &str,
        query: &str,
    ) -> Result<Vec<Value>, ClusterError> {
        Ok(self.spread_if_served(cluster, path, query).await?.unwrap_or_default())
    }

    /// As [`Self::spread`]; `None` when the kind is not served.
    async fn spread_if_served(
        &mut self,
        cluster: &Cluster,
        path: &str,
        query: &str,
    ) -> Result<Option<Vec<Value>>, ClusterError> {
        let answer = match cluster.list(&format!("{path}{query}")).await {
            Err(error) if error.code() == Some(403) => {
                let (root, plural) = path.rsplit_once('/').unwrap_or_default();
                let one = format!("{root}/namespaces/{}/{plural}{query}", self.namespace_seen);
                let answer = cluster.list(&one).await;
                if answer.is_ok() {
                    self.narrowed.insert(path.to_owned());
                }
                answer
            }
            other => other,
        };
        self.unless_denied(path, answer)
    }

    async fn get(&mut self, cluster: &Cluster, path: &str) -> Result<Option<Value>, ClusterError> {
        let answer = cluster.get(path).await;
        self.unless_denied(path, answer)
    }

    async fn list(&mut self, cluster: &Cluster, path: &str) -> Result<Vec<Value>, ClusterError> {
        let answer = cluster.list(path).await;
        Ok(self.unless_denied(path, answer)?.unwrap_or_default())
    }

    fn unless_denied<T>(
        &mut self,
        path: &str,
        answer: Result<Option<T>, ClusterError>,
    ) -> Result<Option<T>, ClusterError> {
        match answer {
            Err(error) if error.code() == Some(403) => {
                self.denied.insert(path.split('?').next().unwrap_or(path).to_owned());
                Ok(None)
            }
            other => other,
        }
    }
}

/// Agents' pods whose container has ended and does not run.
fn crashed(system_pods: &[Value]) -> Vec<String> {
    let agents = system_pods.iter().filter(|pod| is_agent(pod));
    let ended = |pod: &&Value| {
        let agent = list(pod, "/status/containerStatuses").iter().find(|c| text(c, "/name") == "agent");
        agent.is_some_and(|c| {
            c.pointer("/state/running").is_none()
                && (c.pointer("/state/terminated").is_some() || c.pointer("/lastState/terminated").is_some())
        })
    };
    agents.filter(ended).take(CRASHES_MAX).map(|pod| text(pod, "/metadata/name").to_owned()).collect()
}

async fn last_words(cluster: &Cluster, pod: &str) -> Option<String> {
    let path = format!("/api/v1/namespaces/weft-system/pods/{pod}/log?container=agent&tailLines=5");
    for which in ["&previous=true", ""] {
        if let Ok(log) = cluster.text(&format!("{path}{which}")).await
            && let Some(line) = log.lines().rev().find(|line| !line.trim().is_empty())
        {
            return Some(line.trim().to_owned());
        }
    }
    None
}

async fn may_do_all(cluster: &Cluster) -> Result<bool, ClusterError> {
    // To give a right one must have it; whoever installs gives rights on kinds of many groups.
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": "*", "group": "*", "resource": "*"}},
    });
    let answer = cluster.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &review).await?;
    Ok(answer.pointer("/status/allowed") == Some(&Value::Bool(true)))
}

/// Asks every running agent.
pub(super) async fn ask_agents(
    cluster: &Cluster,
    system_pods: &[Value],
) -> BTreeMap<String, Result<NodeReport, String>> {
    stream::iter(agent_pods(system_pods))
        .map(|(node, pod)| async move {
            let object = system_pods.iter().find(|object| text(object, "/metadata/name") == pod);
            if let Some(why) = object.and_then(agents::not_running) {
                return (node, Err(format!("it does not run: {why}")));
            }
            let answer = cluster.agents.ask(&pod, "/node").await;
            let report = answer.and_then(|page| serde_json::from_value(page).map_err(|e| e.to_string()));
            (node, report)
        })
        .buffer_unordered(AGENTS_AT_ONCE)
        .collect()
        .await
}

/// The agent's pod of each node that has one: the newest, of two while one replaces the other.
pub(super) fn agent_pods(system_pods: &[Value]) -> BTreeMap<String, String> {
    let mut found: BTreeMap<String, (&str, String)> = BTreeMap::new();
    for pod in system_pods {
        let running =
            text(pod, "/status/phase") == "Running" && pod.pointer("/metadata/deletionTimestamp").is_none();
        if !is_agent(pod) || !running {
            continue;
        }
        let (node, made) = (text(pod, "/spec/nodeName").to_owned(), text(pod, "/metadata/creationTimestamp"));
        let entry = found.entry(node).or_insert((made, String::new()));
        if made >= entry.0 {
            *entry = (made, text(pod, "/metadata/name").to_owned());
        }
    }
    found.into_iter().map(|(node, (_, pod))| (node, pod)).collect()
}

/// Whether a pod is one of the agents'.
pub(super) fn is_agent(pod: &Value) -> bool {
    label(pod, "app.kubernetes.io/component") == Some("agent")
}

/// Whether a pod's condition Ready is true.
pub(super) fn is_ready(pod: &Value) -> bool {
    condition(pod, "Ready").is_some_and(|c| text(c, "/status") == "True")
}

/// Whether an agent on this node is ready.
pub(super) fn is_served(system_pods: &[Value], node: &str) -> bool {
    system_pods.iter().any(|pod| is_agent(pod) && text(pod, "/spec/nodeName") == node && is_ready(pod))
}

/// Whether a namespace can be in the mesh at all.
pub(super) fn never_joins(namespace: &str) -> bool {
    matches!(namespace, "kube-system" | "kube-node-lease") || namespace == NAMESPACE
}
