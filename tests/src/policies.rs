//! NetworkPolicies as a CNI enforces them, for tests: at the edge of each pod's node, by nft, for packets of others than the
//! node itself, at each address that a pod has. Nothing watches: what stands when [`enforce`] is called counts until it is called again.
//!
//! Known of the API: label selectors by `matchLabels`, `ipBlock`, numbered ports and ranges. Anything else is refused, so that no
//! test passes because a policy was not understood.

use crate::{cluster::Cluster, family::Family};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::{collections::BTreeMap, fmt::Write as _};

/// The table, on every node.
const TABLE: &str = "inet weft-test-policies";

/// Reads policies, pods and namespaces, and makes every node enforce them.
///
/// # Errors
/// When a policy says what is not known here, or a node refuses.
pub fn enforce(cluster: &Cluster) -> Result<()> {
    let list = |kind: &str| -> Result<Vec<Value>> {
        let list = cluster.json(&["get", kind, "-A"])?;
        Ok(list["items"].as_array().context("items")?.clone())
    };
    let world = World {
        policies: list("networkpolicies")?,
        pods: list("pods")?.into_iter().filter(is_its_own).collect(),
        namespaces: list("namespaces")?,
    };
    for (node, rules) in world.rulesets()? {
        let script = "printf %s \"$1\" | nft -f -";
        cluster.on_node(&node, &["sh", "-c", script, "sh", &rules]).with_context(|| rules.clone())?;
    }
    Ok(())
}

/// Takes the rules away.
///
/// # Errors
/// When a node does not answer.
pub fn lift(cluster: &Cluster) -> Result<()> {
    let nodes = cluster.json(&["get", "nodes"])?;
    for node in nodes["items"].as_array().context("items")? {
        let node = node["metadata"]["name"].as_str().context("name")?;
        cluster.on_node(node, &["nft", &format!("table {TABLE}; delete table {TABLE}")])?;
    }
    Ok(())
}

/// A pod with an address that is nobody else's, which no policy of pods applies to otherwise.
fn is_its_own(pod: &Value) -> bool {
    pod["spec"]["hostNetwork"] != true
        && pod["status"]["podIP"].is_string()
        && !matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

struct World {
    policies: Vec<Value>,
    pods: Vec<Value>,
    namespaces: Vec<Value>,
}

/// Which way a policy looks.
#[derive(Clone, Copy)]
struct Direction {
    policy_type: &'static str,
    rules: &'static str,
    peers: &'static str,
    /// Where the pod's own address is, and the peer's.
    own: &'static str,
    other: &'static str,
}

const EGRESS: Direction =
    Direction { policy_type: "Egress", rules: "egress", peers: "to", own: "saddr", other: "daddr" };
const INGRESS: Direction =
    Direction { policy_type: "Ingress", rules: "ingress", peers: "from", own: "daddr", other: "saddr" };

impl World {
    /// By node.
    fn rulesets(&self) -> Result<BTreeMap<String, String>> {
        let mut nodes: BTreeMap<String, Vec<&Value>> = BTreeMap::new();
        for pod in &self.pods {
            let node = pod["spec"]["nodeName"].as_str().context("nodeName")?;
            nodes.entry(node.to_owned()).or_default().push(pod);
        }
        nodes.into_iter().map(|(node, pods)| Ok((node, self.ruleset(&pods)?))).collect()
    }

    fn ruleset(&self, pods: &[&Value]) -> Result<String> {
        // Declared first, so that there is something to delete; all in one transaction.
        let mut text = format!("table {TABLE} {{}}\ndelete table {TABLE}\ntable {TABLE} {{\n");
        let mut jumps = String::new();
        for direction in [EGRESS, INGRESS] {
            for pod in pods {
                let Some(accepted) = self.accepted(pod, direction)? else { continue };
                let own = ips(pod)?;
                let chain = format!("{}-{}", direction.rules, own[0].replace(['.', ':'], "-"));
                writeln!(text, "  chain {chain} {{")?;
                accepted.iter().try_for_each(|rule| writeln!(text, "    {rule} return"))?;
                writeln!(text, "    meta l4proto tcp reject with tcp reset\n    drop\n  }}")?;
                own.iter().try_for_each(|ip| writeln!(jumps, "    {}jump {chain}", at(direction.own, ip)))?;
            }
        }
        // What a pod of this node says to another is bridged, and comes by here as well (br_netfilter).
        writeln!(text, "  chain forward {{\n    type filter hook forward priority filter; policy accept;")?;
        // Neighbours of IPv6 look for each other in packets, of which no policy speaks.
        writeln!(text, "    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept")?;
        writeln!(text, "    ct state established,related accept\n{jumps}  }}\n}}")?;
        Ok(text)
    }

    /// What may pass to or from a pod; `None` when no policy is about it.
    fn accepted(&self, pod: &Value, direction: Direction) -> Result<Option<Vec<String>>> {
        let mut accepted = None;
        for policy in &self.policies {
            let spec = &policy["spec"];
            let types = spec["policyTypes"].as_array().context("policyTypes")?;
            let here = policy["metadata"]["namespace"] == pod["metadata"]["namespace"];
            if !here
                || !types.iter().any(|t| t == direction.policy_type)
                || !selects(&spec["podSelector"], &pod["metadata"])?
            {
                continue;
            }
            let rules: &mut Vec<String> = accepted.get_or_insert_default();
            for rule in spec[direction.rules].as_array().into_iter().flatten() {
                let ports = ports(&rule["ports"])?;
                for peer in self.peers(&rule[direction.peers], &policy["metadata"], direction)? {
                    rules.extend(ports.iter().map(|port| format!("{peer}{port}").trim().to_owned()));
                }
            }
        }
        Ok(accepted)
    }

    /// Matches for the addresses of a rule's peers; an empty one for everybody.
    fn peers(&self, peers: &Value, policy: &Value, direction: Direction) -> Result<Vec<String>> {
        let Some(peers) = peers.as_array().filter(|peers| !peers.is_empty()) else {
            return Ok(vec![String::new()]);
        };
        let mut matches = Vec::new();
        for peer in peers {
            if let Some(block) = peer["ipBlock"].as_object() {
                ensure!(!block.contains_key("except"), "ipBlock.except is not known here");
                matches.push(at(direction.other, text_of(&peer["ipBlock"], "cidr")?));
                continue;
            }
            for pod in &self.pods {
                let namespace = &pod["metadata"]["namespace"];
                let in_namespace = if peer["namespaceSelector"].is_object() {
                    let its = self.namespaces.iter().find(|n| n["metadata"]["name"] == *namespace);
                    selects(&peer["namespaceSelector"], &its.context("no such namespace")?["metadata"])?
                } else {
                    *namespace == policy["namespace"]
                };
                if in_namespace && selects(&peer["podSelector"], &pod["metadata"])? {
                    matches.extend(ips(pod)?.iter().map(|ip| at(direction.other, ip)));
                }
            }
        }
        Ok(matches)
    }
}

/// A match of an address, or of a range of some.
fn at(end: &str, address: &str) -> String {
    format!("{} {end} {address} ", Family::of(address).pick("ip", "ip6"))
}

/// A pod's addresses, of which there is one at least.
fn ips(pod: &Value) -> Result<Vec<&str>> {
    let ips = pod["status"]["podIPs"].as_array().into_iter().flatten();
    let ips: Vec<_> = ips.filter_map(|ip| ip["ip"].as_str()).collect();
    ensure!(!ips.is_empty(), "no address: {}", pod["status"]);
    Ok(ips)
}

/// Matches for a rule's ports; an empty one for all.
fn ports(ports: &Value) -> Result<Vec<String>> {
    let Some(ports) = ports.as_array().filter(|ports| !ports.is_empty()) else {
        return Ok(vec![String::new()]);
    };
    let one = |port: &Value| {
        let protocol = port["protocol"].as_str().unwrap_or("TCP").to_lowercase();
        ensure!(matches!(&*protocol, "tcp" | "udp"), "protocol {protocol} is not known here");
        Ok(match (&port["port"], &port["endPort"]) {
            (Value::Null, Value::Null) => format!("meta l4proto {protocol}"),
            (Value::Number(port), Value::Null) => format!("{protocol} dport {port}"),
            (Value::Number(from), Value::Number(to)) => format!("{protocol} dport {from}-{to}"),
            other => bail!("port {other:?} is not known here"),
        })
    };
    ports.iter().map(one).collect()
}

/// Whether a selector takes an object in; an absent or empty one takes all.
fn selects(selector: &Value, metadata: &Value) -> Result<bool> {
    ensure!(selector["matchExpressions"].is_null(), "matchExpressions are not known here");
    let wanted = selector["matchLabels"].as_object();
    Ok(wanted.into_iter().flatten().all(|(key, value)| metadata["labels"][key.as_str()] == *value))
}

fn text_of<'a>(value: &'a Value, field: &str) -> Result<&'a str> {
    value[field].as_str().with_context(|| format!("{field} of {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, ips: &Value, labels: &Value) -> Value {
        json!({"metadata": {"name": name, "namespace": "shop", "labels": labels},
            "spec": {"nodeName": "n1"}, "status": {"podIPs": ips, "phase": "Running"}})
    }

    /// The rules of the chain of pod 10.0.0.1, without its end; `None` when it has none.
    fn rules(spec: &Value, chain: &str) -> Result<Option<Vec<String>>> {
        let world = World {
            policies: vec![json!({"metadata": {"namespace": "shop"}, "spec": spec})],
            pods: vec![
                pod("cart", &json!([{"ip": "10.0.0.1"}]), &json!({"app": "cart"})),
                pod("web", &json!([{"ip": "10.0.0.2"}, {"ip": "fd00::2"}]), &json!({"app": "web"})),
            ],
            namespaces: vec![json!({"metadata": {"name": "shop", "labels": {"team": "a"}}})],
        };
        let text = world.rulesets()?.remove("n1").context("no ruleset")?;
        let Some(rest) = text.split(&format!("chain {chain}-10-0-0-1 {{\n")).nth(1) else { return Ok(None) };
        let own = rest.split("    meta l4proto tcp reject").next().unwrap_or_default();
        Ok(Some(own.lines().map(|line| line.trim().to_owned()).collect()))
    }

    fn check(spec: &Value, expected: Option<&[&str]>) {
        let found = rules(spec, "ingress").unwrap();
        assert_eq!(
            found,
            expected.map(|lines| lines.iter().map(|line| (*line).to_owned()).collect()),
            "{spec}"
        );
    }

    #[test]
    fn policies_become_rules_of_the_pods_that_they_select() {
        let of = |rules: Value| json!({"podSelector": {"matchLabels": {"app": "cart"}}, "policyTypes": ["Ingress"], "ingress": rules});
        check(&of(json!([])), Some(&[]));
        check(&of(json!([{}])), Some(&["return"]));
        check(&of(json!([{"ports": [{"port": 8080, "protocol": "TCP"}]}])), Some(&["tcp dport 8080 return"]));
        let web = json!([{"podSelector": {"matchLabels": {"app": "web"}}}]);
        check(&of(json!([{"from": web}])), Some(&["ip saddr 10.0.0.2 return", "ip6 saddr fd00::2 return"]));
        let team = json!([{"namespaceSelector": {"matchLabels": {"team": "a"}}}]);
        let all = [
            "ip saddr 10.0.0.1 udp dport 1-9 return",
            "ip saddr 10.0.0.2 udp dport 1-9 return",
            "ip6 saddr fd00::2 udp dport 1-9 return",
        ];
        check(
            &of(json!([{"from": team, "ports": [{"port": 1, "endPort": 9, "protocol": "UDP"}]}])),
            Some(&all),
        );
        let other = json!([{"namespaceSelector": {"matchLabels": {"team": "b"}}}]);
        check(&of(json!([{"from": other}])), Some(&[]));
        check(
            &of(json!([{"from": [{"ipBlock": {"cidr": "10.1.0.0/16"}}]}])),
            Some(&["ip saddr 10.1.0.0/16 return"]),
        );
        check(
            &of(json!([{"from": [{"ipBlock": {"cidr": "fd00::/64"}}]}])),
            Some(&["ip6 saddr fd00::/64 return"]),
        );
        check(&json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]}), None);
        check(&json!({"podSelector": {}, "policyTypes": ["Egress"]}), None);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for spec in [
            json!({"podSelector": {"matchExpressions": []}, "policyTypes": ["Ingress"]}),
            json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": "http"}]}]}),
            json!({"podSelector": {}, "policyTypes": ["Ingress"],
                "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": []}}]}]}),
        ] {
            assert!(rules(&spec, "ingress").is_err(), "{spec}");
        }
    }
}
