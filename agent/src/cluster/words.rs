//! What the cluster's objects still say in our name: conditions of classes and Gateways, entries in routes and policies. The
//! controller takes it back when Weft is uninstalled; here is only looked.

use super::{
    api::{Cluster, ClusterError, condition, key, list, text},
    facts::{GATEWAY_API, ROUTES, VERSIONS},
};
use serde_json::Value;
use std::collections::BTreeSet;
use weft_core::model::CONTROLLER_NAME;

/// Names of the objects that still speak of us. Kinds that may not be read, or are not served, count as silent.
///
/// # Errors
/// When the API server does not answer.
pub(super) async fn ours(cluster: &Cluster) -> Result<Vec<String>, ClusterError> {
    let mut found = Vec::new();
    let classes = objects(cluster, "gatewayclasses").await?;
    let of_us = |class: &&Value| text(class, "/spec/controllerName") == CONTROLLER_NAME;
    let classes: Vec<&Value> = classes.iter().filter(of_us).collect();
    let names: BTreeSet<String> = classes.iter().map(|class| key(class)).collect();
    found.extend(
        classes.iter().filter(|class| says(class)).map(|class| format!("GatewayClass {}", key(class))),
    );

    let gateways = objects(cluster, "gateways").await?;
    let of_us = |gateway: &&Value| names.contains(text(gateway, "/spec/gatewayClassName"));
    let gateways: Vec<&Value> = gateways.iter().filter(of_us).collect();
    found.extend(gateways.iter().filter(|g| says(g)).map(|g| format!("Gateway {}", key(g))));
    let gateways: BTreeSet<String> = gateways.iter().map(|g| key(g)).collect();

    let sets = objects(cluster, "listenersets").await?;
    let of_us = |set: &&Value| gateways.contains(&parent(set));
    found.extend(sets.iter().filter(of_us).filter(|s| says(s)).map(|s| format!("ListenerSet {}", key(s))));

    let shared = ROUTES.into_iter().map(|(plural, kind)| (plural, kind, "/status/parents"));
    for (plural, kind, entries) in
        shared.chain([("backendtlspolicies", "BackendTLSPolicy", "/status/ancestors")])
    {
        let objects = objects(cluster, plural).await?;
        let ours = |object: &&Value| {
            list(object, entries).iter().any(|entry| text(entry, "/controllerName") == CONTROLLER_NAME)
        };
        found.extend(objects.iter().filter(ours).map(|object| format!("{kind} {}", key(object))));
    }
    Ok(found)
}

/// Objects of a kind in the best version that is served. That is tried: the chart's hook may not read definitions.
async fn objects(cluster: &Cluster, plural: &str) -> Result<Vec<Value>, ClusterError> {
    for version in VERSIONS {
        match cluster.list(&format!("/apis/{GATEWAY_API}/{version}/{plural}")).await {
            Ok(Some(objects)) => return Ok(objects),
            Ok(None) => {}
            Err(error) if error.code() == Some(403) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        }
    }
    Ok(Vec::new())
}

/// Whether somebody has said anything: `Unknown` is what the API's defaults say.
fn says(object: &Value) -> bool {
    let said = |kind| condition(object, kind).is_some_and(|c| text(c, "/status") != "Unknown");
    said("Accepted") || said("Programmed")
}

fn parent(set: &Value) -> String {
    let own = text(set, "/metadata/namespace");
    let namespace = set.pointer("/spec/parentRef/namespace").and_then(Value::as_str).unwrap_or(own);
    format!("{namespace}/{}", text(set, "/spec/parentRef/name"))
}
