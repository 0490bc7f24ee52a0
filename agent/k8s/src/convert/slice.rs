//! `WorkloadSlice` of `weft.dev`: pods of other nodes, as the controller publishes them.

use super::{Cx, Source, kinds, meta};
use crate::{
    path,
    problem::{Problem, Report},
    workloads::ApplicationPorts,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
    sync::{Arc, LazyLock},
};
use weft_core::model::{Kind, Labels, MESH_LABEL, MTLS_LABEL, Meta, ObjectKey, Pod, Str, TunnelPort};

/// A slice, its entries as pods by name. All are in the slice's namespace.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct WorkloadSlice {
    pub(crate) meta: Meta,
    pub(crate) pods: BTreeMap<Str, Arc<Pod>>,
}

/// The top level of the object, its entries left to [`Entry`].
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code)] // named so that other top-level fields are found to be unknown
struct Envelope {
    api_version: IgnoredAny,
    kind: IgnoredAny,
    metadata: Option<ObjectMeta>,
    workloads: Option<IgnoredAny>,
}

/// An entry of `workloads`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    name: String,
    uid: String,
    ips: Vec<IpAddr>,
    service_account: String,
    #[serde(default)]
    node: String,
    #[serde(default)]
    enrolled: bool,
    #[serde(default)]
    captured: bool,
    #[serde(default)]
    application_ports: Option<ApplicationPorts>,
    #[serde(default, rename = "provedIPs")]
    proved_ips: Vec<IpAddr>,
    #[serde(default)]
    mtls: String,
    #[serde(default)]
    app: String,
    #[serde(default)]
    host_network: bool,
}

/// Converts a `WorkloadSlice`. An entry that cannot be read is left out and reported.
#[must_use]
pub(crate) fn convert_workload_slice(
    value: &Value,
    source: &Source<'_>,
) -> (Option<WorkloadSlice>, Vec<Problem>) {
    let mut report = Report::default();
    let slice = slice(&mut Cx { value, source, report: &mut report });
    (slice, super::problems(report, &kinds::label(value), source))
}

fn slice(cx: &mut Cx<'_>) -> Option<WorkloadSlice> {
    let envelope: Envelope = cx.object()?;
    // Named by the rules of a ConfigMap.
    let meta = meta::of(Kind::ConfigMap, envelope.metadata.unwrap_or_default(), cx)?;
    let entries = cx.value.get("workloads").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let mut names = Names::default();
    let mut pods = BTreeMap::new();
    for (i, entry) in entries.iter().enumerate() {
        match Entry::deserialize(entry) {
            Ok(entry) => {
                let pod = pod(entry, &meta.key.namespace, &mut names);
                pods.insert(pod.meta.key.name.clone(), Arc::new(pod));
            }
            Err(error) => {
                let remedy = "agents and controller should be of one version";
                cx.report.unserved(&path::index("workloads", i), error.to_string(), remedy);
            }
        }
    }
    Some(WorkloadSlice { meta, pods })
}

fn pod(entry: Entry, namespace: &Str, names: &mut Names) -> Pod {
    Pod {
        meta: Meta {
            key: ObjectKey::new(namespace.clone(), entry.name),
            uid: entry.uid.into(),
            generation: 0,
            created: 0,
            labels: labels(entry.enrolled, &entry.mtls, entry.app, names),
            annotations: Labels::new(),
            origin: None,
        },
        service_account: names.get(entry.service_account),
        node: (!entry.node.is_empty()).then(|| names.get(entry.node)),
        host_network: entry.host_network,
        captured: Some(entry.captured),
        // Of what the pod no longer has, nothing is proved.
        proved: entry.proved_ips.into_iter().filter(|ip| entry.ips.contains(ip)).collect(),
        ips: entry.ips,
        tunnel: entry
            .application_ports
            .map_or(TunnelPort::Hbone, |ports| TunnelPort::application(ports.except)),
        finished: false,
        probes: Arc::default(),
    }
}

/// The labels from which the model derives the same as the controller did. There may be 100,000 of these: one map, no
/// string of its own.
fn labels(enrolled: bool, mtls: &str, app: String, names: &mut Names) -> Labels {
    // First in the model's order after the annotation, which would be a second map.
    const APP: &str = "app.kubernetes.io/instance";
    static WORDS: LazyLock<[Str; 7]> = LazyLock::new(|| {
        [MESH_LABEL, MTLS_LABEL, APP, "enabled", "disabled", "strict", "permissive"].map(Str::from)
    });
    let [mesh, mode, instance, enabled, disabled, strict, permissive] = &*WORDS;
    let mut labels = Labels::new();
    labels.insert(mesh.clone(), if enrolled { enabled.clone() } else { disabled.clone() });
    match mtls {
        "strict" => drop(labels.insert(mode.clone(), strict.clone())),
        "permissive" => drop(labels.insert(mode.clone(), permissive.clone())),
        _ => {}
    }
    if !app.is_empty() {
        labels.insert(instance.clone(), names.get(app));
    }
    labels
}

/// Names that come again within a slice, held once.
#[derive(Default)]
struct Names(HashSet<Str>);

impl Names {
    fn get(&mut self, name: String) -> Str {
        if let Some(known) = self.0.get(name.as_str()) {
            return known.clone();
        }
        let name = Str::from(name);
        self.0.insert(name.clone());
        name
    }
}
