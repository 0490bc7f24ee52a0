//! Parameters, placements, plans and the provisioner.

mod parameters;
mod placement;
mod plans;
mod provisioner;

use crate::{convert, yaml};
use std::sync::Arc;
use weft_core::model::{KUBELET_PORT, Labels, Meta, Node, ObjectKey, Snapshot, Str};

/// A world from YAML; every problem is a fault of the test.
fn world(text: &str) -> Snapshot {
    let mut snapshot = Snapshot::default();
    add(&mut snapshot, text);
    snapshot
}

/// Puts objects into a world, in place of those of the same name.
fn add(snapshot: &mut Snapshot, text: &str) {
    let (documents, errors) = yaml::read(text);
    assert_eq!(errors, [], "{text}");
    for document in documents {
        let source = convert::Source::default();
        if let Some((config, problems)) = convert::convert_gateway_config(&document.value, &source) {
            assert_eq!(problems, []);
            let config = config.expect("a config");
            snapshot.gateway_configs.insert(config.meta.key.clone(), Arc::new(config));
            continue;
        }
        let converted = convert::convert(document.value, &source);
        converted.object.unwrap_or_else(|| panic!("{:?}", converted.problems)).insert(snapshot);
    }
}

fn key(name: &str) -> ObjectKey {
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    ObjectKey::new(namespace, name)
}

/// Puts a node into the world: its InternalIPs and labels (`a=b`).
fn node(snapshot: &mut Snapshot, name: &str, ips: &[&str], labels: &[&str]) {
    let labels: Labels =
        labels.iter().filter_map(|l| l.split_once('=')).map(|(k, v)| (Str::from(k), Str::from(v))).collect();
    let meta = Meta {
        key: key(name),
        uid: "".into(),
        generation: 1,
        created: 0,
        labels,
        annotations: Labels::new(),
        origin: None,
    };
    let addresses = ips.iter().map(|ip| ip.parse().expect("an address")).collect();
    let node = Node { meta, addresses, pod_cidrs: Vec::new(), ready: true, kubelet_port: KUBELET_PORT };
    snapshot.nodes.insert(name.into(), Arc::new(node));
}
