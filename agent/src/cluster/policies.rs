//! Which NetworkPolicies keep tunnels out that come to port 15008. Pure.
//!
//! Between agents of this version a tunnel goes to the port that the application dialled, so that policies hold as they
//! stand, and rules for 15008 that were written for older versions are not enough. It goes to 15008 where the pod's agent
//! does not look for tunnels elsewhere (an agent of an older version, an exclusion from capture): then a policy that admits
//! the application's port and not 15008 cuts the callers off.

use super::{
    api::{key, list, text},
    facts::Facts,
};
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// HBONE.
const PORT: u64 = 15008;

/// What a policy's rule does not admit of those whom it admits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lacks {
    /// Port 15008, by which tunnels come to pods whose agents are of an older version.
    Hbone,
    /// Port 15008, by which tunnels come for ports that are excluded from capture, whatever the agents' version.
    Excluded,
    /// Any port of an application: written for a version whose tunnels all came to 15008.
    Application,
}

/// A policy that keeps callers from pods of the mesh to which it means to admit them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Missing {
    /// `namespace/name` of the NetworkPolicy.
    pub(super) policy: String,
    /// `ingress` or `egress`.
    pub(super) direction: &'static str,
    /// What it does not admit.
    pub(super) lacks: Lacks,
    /// The pods that it keeps tunnels from (ingress), or whose tunnels it keeps in (egress).
    pub(super) pods: Vec<String>,
    /// To be added to the policy's `spec.ingress` or `spec.egress`; of [`Lacks::Application`], the rule that stands there.
    pub(super) rule: Value,
}

impl Missing {
    /// One line that names policy and pods.
    pub(super) fn message(&self) -> String {
        let (pods, policy) = (self.pods.join(", "), &self.policy);
        match (self.lacks, self.direction) {
            (Lacks::Hbone | Lacks::Excluded, "ingress") => format!(
                "NetworkPolicy {policy}: tunnels to {pods} come to port {PORT}, which it does not admit to those whom it \
                 admits to the application"
            ),
            (Lacks::Hbone | Lacks::Excluded, _) => format!(
                "NetworkPolicy {policy}: tunnels of {pods} go to port {PORT} of pods that it lets them call, and it does \
                 not admit that"
            ),
            (Lacks::Application, direction) => format!(
                "NetworkPolicy {policy}: an {direction} rule for {pods} admits port {PORT} and no port of an application, \
                 which is where tunnels go"
            ),
        }
    }

    /// What to do about it; the rule as YAML.
    pub(super) fn remedy(&self) -> String {
        let rule = serde_saphyr::to_string(&json!([self.rule])).unwrap_or_else(|_| self.rule.to_string());
        let what = match self.lacks {
            Lacks::Hbone => "until the called pods' agents are of this version, add to",
            Lacks::Excluded => "for as long as ports of the called pods are excluded from capture, add to",
            Lacks::Application => "name the applications' ports beside it in",
        };
        format!("{what} its spec.{}:\n{}", self.direction, rule.trim_end())
    }
}

/// What is looked at.
pub(super) struct World<'a> {
    /// NetworkPolicies.
    pub(super) policies: &'a [Value],
    /// Pods of the mesh.
    pub(super) pods: &'a [Value],
    /// Namespaces.
    pub(super) namespaces: &'a [Value],
    /// WorkloadSlices.
    pub(super) slices: &'a [Value],
}

impl<'a> World<'a> {
    /// Of what was gathered.
    pub(super) fn of(facts: &'a Facts) -> Self {
        let Facts { policies, pods, namespaces, slices, .. } = facts;
        Self { policies, pods, namespaces, slices }
    }
}

/// A captured pod.
struct Pod<'a> {
    object: &'a Value,
    namespace: &'a str,
    /// Ports for which tunnels come to 15008; `None`: all.
    by_hbone: Option<BTreeSet<u64>>,
}

/// Every rule that lacks something.
pub(super) fn missing(world: &World<'_>) -> Vec<Missing> {
    let namespaces: BTreeMap<&str, &Value> =
        world.namespaces.iter().map(|ns| (text(ns, "/metadata/name"), ns)).collect();
    let pods = captured(world);
    // Of each rule, the pods that it concerns.
    let mut found: BTreeMap<(&'static str, String, usize), Missing> = BTreeMap::new();
    for (direction, pod) in ["ingress", "egress"].into_iter().flat_map(|d| pods.iter().map(move |p| (d, p))) {
        let selecting: Vec<&Value> =
            world.policies.iter().filter(|policy| selects(policy, pod, direction)).collect();
        for policy in &selecting {
            let place = Place { policy, direction, namespaces: &namespaces, selecting: &selecting };
            for (number, rule) in list(policy, &format!("/spec/{direction}")).iter().enumerate() {
                let Some(lacks) = place.lacks(rule, pod, &pods) else { continue };
                let one = found.entry((direction, key(policy), number)).or_insert_with(|| Missing {
                    policy: key(policy),
                    direction,
                    lacks,
                    pods: Vec::new(),
                    rule: if lacks == Lacks::Application { rule.clone() } else { companion(rule, direction) },
                });
                // What stays for good outweighs what an upgrade ends.
                if lacks == Lacks::Excluded {
                    one.lacks = lacks;
                }
                one.pods.push(key(pod.object));
            }
        }
    }
    found.into_values().collect()
}

fn captured<'a>(world: &World<'a>) -> Vec<Pod<'a>> {
    let mut entries: BTreeMap<String, &Value> = BTreeMap::new();
    for slice in world.slices {
        for workload in list(slice, "/workloads").iter().filter(|w| w["captured"] == true) {
            entries.insert(
                format!("{}/{}", text(slice, "/metadata/namespace"), text(workload, "/name")),
                workload,
            );
        }
    }
    let known = |object: &'a Value| {
        let entry = entries.get(&key(object))?;
        let except = |ports: &Value| list(ports, "/except").iter().filter_map(Value::as_u64).collect();
        let by_hbone = entry.get("applicationPorts").map(except);
        Some(Pod { object, namespace: text(object, "/metadata/namespace"), by_hbone })
    };
    world.pods.iter().filter_map(known).collect()
}

/// Whether a policy decides about this direction of a pod's traffic.
fn selects(policy: &Value, pod: &Pod<'_>, direction: &str) -> bool {
    let types = list(policy, "/spec/policyTypes");
    let decides = match (types.is_empty(), direction) {
        (true, "ingress") => true,
        // Left out, it follows from whether there is a rule.
        (true, _) => policy.pointer("/spec/egress").is_some(),
        (false, _) => types.iter().any(|t| t.as_str().is_some_and(|t| t.eq_ignore_ascii_case(direction))),
    };
    decides
        && text(policy, "/metadata/namespace") == pod.namespace
        && matches(policy.pointer("/spec/podSelector"), pod.object)
}

/// Where a rule stands.
struct Place<'a> {
    policy: &'a Value,
    direction: &'static str,
    namespaces: &'a BTreeMap<&'a str, &'a Value>,
    /// All policies that decide about the pod: what one of them admits is admitted.
    selecting: &'a [&'a Value],
}

impl Place<'_> {
    /// What a rule about `pod` lacks.
    fn lacks(&self, rule: &Value, pod: &Pod<'_>, all: &[Pod<'_>]) -> Option<Lacks> {
        let hbone = |ports: &[Value]| admits(ports, PORT, pod);
        let application =
            |ports: &[Value]| ports.is_empty() || ports.iter().any(|p| is_tcp(p) && !is_hbone(p));
        let peers = self.peers(rule);
        let is_peer = |other: &Pod<'_>| {
            !std::ptr::eq(other.object, pod.object)
                && (peers.is_empty() || peers.iter().any(|peer| self.is_peer(peer, other)))
        };
        if !application(list(rule, "/ports")) {
            let concerns_the_mesh = || list(rule, "/ports").iter().any(is_hbone) && all.iter().any(is_peer);
            let all_admitted = || {
                let elsewhere = self.admitting(application);
                all.iter().filter(|other| is_peer(other)).all(|other| self.admits_peer(&elsewhere, other))
            };
            return (!self.is_admitted(rule, application) && concerns_the_mesh() && !all_admitted())
                .then_some(Lacks::Application);
        }
        // Peers last: there may be very many.
        if self.is_admitted(rule, hbone) {
            return None;
        }
        let lacks = self.needs_hbone(rule, (pod, all), is_peer)?;
        // Addresses, and everybody, are more than pods: Gateways call from nodes.
        let pods_only = !peers.is_empty() && peers.iter().all(|peer| peer.get("ipBlock").is_none());
        let elsewhere = self.admitting(hbone);
        let mut callers = all.iter().filter(|other| is_peer(other));
        (!pods_only || !callers.all(|other| self.admits_peer(&elsewhere, other))).then_some(lacks)
    }

    /// Why traffic of the mesh that a rule about `pod` admits comes to 15008; `None` when none does.
    fn needs_hbone(
        &self,
        rule: &Value,
        (pod, all): (&Pod<'_>, &[Pod<'_>]),
        is_peer: impl Fn(&Pod<'_>) -> bool,
    ) -> Option<Lacks> {
        let by_hbone = |called: &Pod<'_>| match (&called.by_hbone, list(rule, "/ports")) {
            (None, ports) => (ports.is_empty() || ports.iter().any(is_tcp)).then_some(Lacks::Hbone),
            (Some(except), ports) => {
                except.iter().any(|port| admits(ports, *port, called)).then_some(Lacks::Excluded)
            }
        };
        match self.direction {
            // From an address there may come a Gateway: those call from nodes.
            "ingress" => {
                let blocks = || self.peers(rule).iter().any(|peer| peer.get("ipBlock").is_some());
                by_hbone(pod).filter(|_| blocks() || all.iter().any(is_peer))
            }
            _ => {
                let mut called = all.iter().filter(|other| is_peer(other)).filter_map(by_hbone);
                let first = called.next()?;
                if first == Lacks::Excluded {
                    Some(first)
                } else {
                    called.find(|l| *l == Lacks::Excluded).or(Some(first))
                }
            }
        }
    }

    /// Whether the pod's policies together admit `wanted` ports to and from whomever this rule names, by the same words.
    fn is_admitted(&self, rule: &Value, wanted: impl Fn(&[Value]) -> bool) -> bool {
        let (peers, admitting) = (self.peers(rule), self.admitting(wanted));
        let everybody = admitting.iter().any(|peers| peers.is_empty());
        let covered = |peer: &Value| admitting.iter().any(|peers| peers.contains(peer));
        everybody || (!peers.is_empty() && peers.iter().all(covered))
    }

    /// The peers of each rule for the pod that has `wanted` ports.
    fn admitting(&self, wanted: impl Fn(&[Value]) -> bool) -> Vec<&[Value]> {
        let rules =
            self.selecting.iter().flat_map(|policy| list(policy, &format!("/spec/{}", self.direction)));
        rules.filter(|rule| wanted(list(rule, "/ports"))).map(|rule| self.peers(rule)).collect()
    }

    /// Whether one of these lists of peers has the pod, by whatever words.
    fn admits_peer(&self, lists: &[&[Value]], pod: &Pod<'_>) -> bool {
        lists.iter().any(|peers| peers.is_empty() || peers.iter().any(|peer| self.is_peer(peer, pod)))
    }

    fn peers<'v>(&self, rule: &'v Value) -> &'v [Value] {
        list(rule, if self.direction == "ingress" { "/from" } else { "/to" })
    }

    fn is_peer(&self, peer: &Value, pod: &Pod<'_>) -> bool {
        if let Some(block) = peer.get("ipBlock") {
            return addresses(pod.object).any(|ip| in_block(block, ip));
        }
        let is_near = match peer.get("namespaceSelector") {
            None => pod.namespace == text(self.policy, "/metadata/namespace"),
            Some(selector) => {
                self.namespaces.get(pod.namespace).is_some_and(|ns| matches(Some(selector), ns))
            }
        };
        is_near && matches(peer.get("podSelector"), pod.object)
    }
}

/// The rule for 15008 with the same peers.
fn companion(rule: &Value, direction: &str) -> Value {
    let side = if direction == "ingress" { "from" } else { "to" };
    let mut companion = Map::new();
    if let Some(peers) = rule.get(side) {
        companion.insert(side.to_owned(), peers.clone());
    }
    companion.insert("ports".to_owned(), json!([{"protocol": "TCP", "port": PORT}]));
    companion.into()
}

fn is_tcp(port: &Value) -> bool {
    matches!(text(port, "/protocol"), "" | "TCP")
}

/// Whether an entry names 15008 and nothing else.
fn is_hbone(port: &Value) -> bool {
    is_tcp(port) && port["port"] == PORT && port.get("endPort").is_none_or(|end| *end == PORT)
}

/// Whether a rule's ports have this one. A name is that of the called pod's container's port.
fn admits(ports: &[Value], wanted: u64, pod: &Pod<'_>) -> bool {
    let has = |port: &Value| match port.get("port") {
        None => true,
        Some(Value::Number(first)) => {
            let first = first.as_u64().unwrap_or_default();
            let last = port.get("endPort").and_then(Value::as_u64).unwrap_or(first);
            (first..=last).contains(&wanted)
        }
        Some(name) => containers(pod.object)
            .flat_map(|container| list(container, "/ports"))
            .any(|port| port.get("name") == Some(name) && port["containerPort"].as_u64() == Some(wanted)),
    };
    ports.is_empty() || ports.iter().any(|port| is_tcp(port) && has(port))
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    list(pod, "/spec/containers").iter().chain(list(pod, "/spec/initContainers"))
}

fn addresses(pod: &Value) -> impl Iterator<Item = IpAddr> {
    list(pod, "/status/podIPs").iter().filter_map(|ip| text(ip, "/ip").parse().ok())
}

fn in_block(block: &Value, ip: IpAddr) -> bool {
    let holds = |cidr: &Value| {
        cidr.as_str().and_then(|c| c.parse::<ipnet::IpNet>().ok()).is_some_and(|cidr| cidr.contains(&ip))
    };
    holds(&block["cidr"]) && !list(block, "/except").iter().any(holds)
}

/// A label selector; absent or empty, it selects everything.
fn matches(selector: Option<&Value>, object: &Value) -> bool {
    let Some(selector) = selector else { return true };
    let labels = object.pointer("/metadata/labels");
    let value = |name: &str| labels.and_then(|labels| labels.get(name)).and_then(Value::as_str);
    let equal = selector.get("matchLabels").and_then(Value::as_object);
    let equal = equal.is_none_or(|wanted| wanted.iter().all(|(name, is)| value(name) == is.as_str()));
    equal
        && list(selector, "/matchExpressions").iter().all(|expression| {
            let value = value(text(expression, "/key"));
            let among = || list(expression, "/values").iter().any(|v| v.as_str() == value);
            match text(expression, "/operator") {
                "In" => value.is_some() && among(),
                "NotIn" => value.is_none() || !among(),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests;
