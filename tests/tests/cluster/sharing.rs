//! One route, three Gateways, two controllers: each writes its own entries, whatever the other does to the list. And two
//! classes of ours with parameters of their own.

use crate::Story;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use weft_tests::cluster::{Cluster, SYSTEM};

const OURS: &str = "weft.dev/gateway-controller";
const FOREIGN: &str = "example.test/foreign";
/// Made by the test, and removed.
pub(crate) const CLASSES: [&str; 3] = ["e2e-second", "e2e-wrong", "e2e-foreign"];
const NAMESPACE: &str = "e2e-web";
/// Kinds whose status is compared when a controller begins to lead.
const SURVEYS: u64 = 9;

/// Two controllers on one route.
pub(crate) fn run(story: &Story<'_>) -> Result<()> {
    let cluster = story.cluster;
    cluster.apply(&objects(cluster.is_bed()).to_string())?;
    classes(cluster)?;
    let route = Route { cluster };
    let all = ["edge", "second"];
    route.ours_are(&all)?;
    // A careful controller that applies: the list is atomic in the CRD, so it repeats the others' entries.
    route.write(How::Apply, |list| replace(list, "as applied"))?;
    route.settles(&all, Some("as applied"))?;
    // Our status follows the spec, and theirs stays what it was, old generation and all.
    route.patch(&json!({"hostnames": ["shared.test"]}))?;
    route.settles(&all, Some("as applied"))?;
    // Most controllers update.
    route.write(How::Update, |list| list.retain(|e| e["controllerName"] != FOREIGN))?;
    route.settles(&all, None)?;
    route.write(How::Update, |list| list.insert(0, entry("as updated, before ours")))?;
    route.settles(&all, Some("as updated, before ours"))?;
    // A careless one applies itself alone, which takes everybody else's entries away.
    route.write(How::Apply, |list| *list = vec![entry("allein, für sich")])?;
    route.settles(&all, Some("allein, für sich"))?;
    route.patch(&json!({"parentRefs": parents(&["edge", "foreign"])}))?;
    route.settles(&["edge"], Some("allein, für sich"))?;
    route.patch(&json!({"parentRefs": parents(&["foreign"])}))?;
    route.settles(&[], Some("allein, für sich"))?;
    route.patch(&json!({"parentRefs": parents(&["edge", "second", "foreign"])}))?;
    route.settles(&all, Some("allein, für sich"))?;
    route.a_restart_writes_nothing()?;
    route.settles(&all, Some("allein, für sich"))?;
    route.managers()?;
    clear(cluster)
}

/// Takes away what was made.
pub(crate) fn clear(cluster: &Cluster) -> Result<()> {
    let crd = ["get", "crd", "gatewayclasses.gateway.networking.k8s.io", "--ignore-not-found", "-o", "name"];
    if cluster.kubectl(&crd)?.trim().is_empty() {
        return Ok(());
    }
    let delete = ["-n", NAMESPACE, "delete", "--ignore-not-found", "--timeout=110s"];
    cluster.kubectl(&[&delete[..], &["httproute/shared", "gateway/second", "gateway/foreign"]].concat())?;
    cluster.kubectl(&[&["delete", "--ignore-not-found", "gatewayclass"][..], &CLASSES].concat()).map(drop)
}

/// On the test bed each class has a pool of addresses of its own.
fn objects(bed: bool) -> Value {
    let version = "gateway.networking.k8s.io/v1";
    let class = |name: &str, controller: &str, parameters: Option<&str>| {
        let parameters = parameters.map(|name| {
            json!({"group": "weft.dev", "kind": "WeftGatewayConfig", "namespace": NAMESPACE, "name": name})
        });
        json!({"apiVersion": version, "kind": "GatewayClass", "metadata": {"name": name},
            "spec": {"controllerName": controller, "parametersRef": parameters}})
    };
    let gateway = |name: &str, class: &str| {
        json!({"apiVersion": version, "kind": "Gateway", "metadata": {"namespace": NAMESPACE, "name": name},
            "spec": {"gatewayClassName": class, "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}]}})
    };
    let pool = if bed {
        json!({"addressMode": "AddressPool", "addressPool": {"ranges": ["10.90.130.1-10.90.130.9"]}})
    } else {
        json!({"addressMode": "LoadBalancer"})
    };
    let items = [
        json!({"apiVersion": "weft.dev/v1alpha1", "kind": "WeftGatewayConfig",
            "metadata": {"namespace": NAMESPACE, "name": "second"}, "spec": pool}),
        class("e2e-second", OURS, Some("second")),
        class("e2e-wrong", OURS, Some("absent")),
        class("e2e-foreign", FOREIGN, None),
        gateway("second", "e2e-second"),
        gateway("foreign", "e2e-foreign"),
        json!({"apiVersion": version, "kind": "HTTPRoute", "metadata": {"namespace": NAMESPACE, "name": "shared"},
            "spec": {"parentRefs": parents(&["edge", "second", "foreign"]), "hostnames": ["before.test"],
                "rules": [{"backendRefs": [{"name": "web", "port": 80}]}]}}),
    ];
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

fn parents(names: &[&str]) -> Value {
    names.iter().map(|name| json!({"name": name})).collect()
}

/// As another controller writes it: other words, an old time, a field that has a default spelled out.
fn entry(message: &str) -> Value {
    json!({
        "controllerName": FOREIGN,
        "parentRef": {"group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": NAMESPACE, "name": "foreign"},
        "conditions": [
            {"type": "Programmed", "status": "Unknown", "reason": "Later", "message": message,
                "observedGeneration": 1, "lastTransitionTime": "2020-01-01T00:00:00Z"},
            {"type": "Accepted", "status": "True", "reason": "Accepted", "message": "",
                "observedGeneration": 1, "lastTransitionTime": "2021-01-01T00:00:00Z"},
        ],
    })
}

fn replace(list: &mut Vec<Value>, message: &str) {
    list.retain(|e| e["controllerName"] != FOREIGN);
    list.push(entry(message));
}

/// Each class of ours by its own parameters; another's is left as it was born.
fn classes(cluster: &Cluster) -> Result<()> {
    let condition = |kind: &str, name: &str, wanted: [&str; 3]| {
        cluster.wait(&format!("{kind} {name}: {wanted:?}"), || {
            let object = cluster.json(&["-n", NAMESPACE, "get", kind, name])?;
            let conditions = object["status"]["conditions"].as_array().context("no conditions")?;
            let found = conditions.iter().find(|c| c["type"] == wanted[0]).context("not there")?;
            ensure!(found["status"] == wanted[1] && found["reason"] == wanted[2], "{found}");
            Ok(object)
        })
    };
    condition("gatewayclass", "e2e-second", ["Accepted", "True", "Accepted"])?;
    condition("gatewayclass", "e2e-wrong", ["Accepted", "False", "InvalidParameters"])?;
    condition("gatewayclass", "weft", ["Accepted", "True", "Accepted"])?;
    let second = condition("gateway", "second", ["Programmed", "True", "Programmed"])?;
    let edge = condition("gateway", "edge", ["Programmed", "True", "Programmed"])?;
    if cluster.is_bed() {
        for (gateway, network) in [(&second, "10.90.130."), (&edge, "10.90.129.")] {
            let address = gateway["status"]["addresses"][0]["value"].as_str().unwrap_or_default();
            ensure!(address.starts_with(network), "an address of {network}0/24, got {}", gateway["status"]);
        }
    }
    for (kind, name) in [("gatewayclass", "e2e-foreign"), ("gateway", "foreign")] {
        let object = cluster.json(&["-n", NAMESPACE, "get", kind, name, "--show-managed-fields"])?;
        let fields = object["metadata"]["managedFields"].to_string();
        ensure!(!fields.contains(OURS), "{kind} {name} is another's: {fields}");
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        ensure!(conditions.iter().all(|c| c["status"] == "Unknown"), "{kind} {name}: {conditions:?}");
    }
    let services = cluster.kubectl(&["-n", NAMESPACE, "get", "services", "-o", "name"])?;
    ensure!(services.contains("second-weft") && !services.contains("foreign"), "{services}");
    Ok(())
}

/// How the other controller writes.
#[derive(Clone, Copy)]
enum How {
    /// Server-side apply, by force.
    Apply,
    /// PUT of the whole object as it was read.
    Update,
}

/// The route `shared`.
struct Route<'a> {
    cluster: &'a Cluster,
}

impl Route<'_> {
    fn get(&self) -> Result<Value> {
        self.cluster.json(&["-n", NAMESPACE, "get", "httproute", "shared", "--show-managed-fields"])
    }

    fn patch(&self, spec: &Value) -> Result<()> {
        let patch = json!({ "spec": spec }).to_string();
        let args = ["-n", NAMESPACE, "patch", "httproute", "shared", "--type=merge", "-p", &patch];
        self.cluster.kubectl(&args).map(drop)
    }

    /// Reads, edits the list and writes; once more when somebody wrote in between, as every controller does.
    fn write(&self, how: How, edit: impl Fn(&mut Vec<Value>)) -> Result<()> {
        self.cluster.wait("the other controller's write", || {
            let mut route = self.get()?;
            let mut list = route["status"]["parents"].as_array().cloned().unwrap_or_default();
            edit(&mut list);
            let status = json!({ "parents": list });
            let file = tempfile::NamedTempFile::new()?;
            let args = match how {
                How::Apply => {
                    route = json!({"apiVersion": route["apiVersion"], "kind": "HTTPRoute",
                        "metadata": {"namespace": NAMESPACE, "name": "shared"}, "status": status});
                    &["apply", "--server-side", "--force-conflicts"][..]
                }
                How::Update => {
                    route["status"] = status;
                    &["replace"][..]
                }
            };
            serde_json::to_writer(&file, &route)?;
            let path = file.path().to_str().context("path")?;
            let more = ["--subresource=status", "--field-manager=foreign", "-f", path];
            self.cluster.kubectl(&[args, &more].concat()).map(drop)
        })
    }

    /// Our entries are those of these Gateways, and good.
    fn ours_are(&self, gateways: &[&str]) -> Result<Value> {
        self.cluster.wait(&format!("our entries to be {gateways:?}"), || {
            let route = self.get()?;
            let list = route["status"]["parents"].as_array().cloned().unwrap_or_default();
            let ours: Vec<&Value> = list.iter().filter(|e| e["controllerName"] == OURS).collect();
            let names: BTreeSet<_> = ours.iter().filter_map(|e| e["parentRef"]["name"].as_str()).collect();
            ensure!(ours.len() == gateways.len() && names == gateways.iter().copied().collect(), "{list:?}");
            for condition in ours.iter().flat_map(|e| e["conditions"].as_array().into_iter().flatten()) {
                ensure!(condition["status"] == "True", "{condition}");
                ensure!(condition["observedGeneration"] == route["metadata"]["generation"], "{condition}");
            }
            Ok(route)
        })
    }

    /// Ours are good, and the other's entry is what it wrote last, and nothing else is there.
    fn settles(&self, gateways: &[&str], theirs: Option<&str>) -> Result<()> {
        let route = self.ours_are(gateways)?;
        let list = route["status"]["parents"].as_array().cloned().unwrap_or_default();
        let others: Vec<&Value> = list.iter().filter(|e| e["controllerName"] != OURS).collect();
        let wanted = theirs.map(entry);
        ensure!(others == wanted.iter().collect::<Vec<_>>(), "their entries: {others:?}; wanted {wanted:?}");
        Ok(())
    }

    fn a_restart_writes_nothing(&self) -> Result<()> {
        let before = self.get()?;
        let old = self.cluster.leader()?;
        let rollout =
            |what: &str| self.cluster.kubectl(&["-n", SYSTEM, "rollout", what, "deployment/weft-controller"]);
        rollout("restart")?;
        rollout("status")?;
        self.cluster.wait("another leader that has compared every status", || {
            let leader = self.cluster.leader()?;
            ensure!(leader != old, "{old} leads");
            let page = self.cluster.page(&leader, "metrics")?;
            let surveys =
                page.lines().find_map(|l| l.strip_prefix("weft_status_work_total{what=\"surveys\"} "));
            let queued = page.lines().find_map(|l| l.strip_prefix("weft_status_queued "));
            let surveys: u64 = surveys.context("no surveys")?.parse()?;
            ensure!(surveys >= SURVEYS && queued == Some("0"), "{surveys} surveys, {queued:?} queued");
            Ok(())
        })?;
        let after = self.get()?;
        ensure!(before == after, "a restart changed the route: {before} {after}");
        Ok(())
    }

    /// Each of the two writers of the status is known by its name, once for each way of writing.
    fn managers(&self) -> Result<()> {
        let route = self.get()?;
        let fields = route["metadata"]["managedFields"].as_array().context("no managedFields")?;
        let status: Vec<_> = fields.iter().filter(|f| f["subresource"] == "status").collect();
        let names: BTreeSet<_> = status.iter().filter_map(|f| f["manager"].as_str()).collect();
        ensure!(names.contains(OURS) && status.len() <= 3, "{status:?}");
        Ok(())
    }
}
