//! Nodes that are born with a taint, so that no pod starts there before their agent does: the leader takes it away once the
//! agent has reported.

use crate::{
    call::{CallError, call, call_json},
    lease::Leadership,
};
use serde_json::{Value, json};
use std::{collections::BTreeSet, time::Duration};
use tokio::{sync::watch, time::sleep};
use weft_core::model::Str;

/// Nodes are looked at again this often: one may be registered anew under its old name.
const LOOK: Duration = Duration::from_secs(60);
/// At most this often, also after a failure.
const PACE: Duration = Duration::from_secs(1);

/// Takes the taint with this key from `ready` nodes while we lead. Ends with its inputs.
pub async fn keep_untainted(
    client: kube::Client,
    key: String,
    mut ready: watch::Receiver<BTreeSet<Str>>,
    mut leadership: watch::Receiver<Leadership>,
) {
    loop {
        let nodes = ready.borrow_and_update().clone();
        let leads = leadership.borrow_and_update().leads();
        let mut pause = LOOK;
        if leads && !nodes.is_empty() {
            if let Err(error) = untaint(&client, &key, &nodes).await {
                tracing::warn!("taint {key}: {error}; tried again");
                pause = PACE;
            }
            sleep(PACE).await;
        }
        tokio::select! {
            () = sleep(pause) => {}
            changed = ready.changed() => if changed.is_err() { return },
            changed = leadership.changed() => if changed.is_err() { return },
        }
    }
}

async fn untaint(client: &kube::Client, key: &str, ready: &BTreeSet<Str>) -> Result<(), CallError> {
    // From the API server's cache: what has changed since fails the patch's test.
    let list = request("GET", "/api/v1/nodes?resourceVersion=0", Vec::new());
    let nodes: Value = call_json(client, list).await?;
    for node in nodes["items"].as_array().into_iter().flatten() {
        let name = node["metadata"]["name"].as_str().unwrap_or_default();
        let Some(patch) = patch(node, key).filter(|_| ready.contains(name)) else { continue };
        let path = format!("/api/v1/nodes/{name}");
        match call(client, request("PATCH", &path, patch.to_string().into_bytes())).await {
            Ok(_) => tracing::info!("node {name}: its agent serves; taint {key} removed"),
            Err(CallError::Gone) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn request(method: &str, path: &str, body: Vec<u8>) -> http::Request<Vec<u8>> {
    let mut request = http::Request::new(body);
    *request.method_mut() = method.parse().unwrap_or_default();
    *request.uri_mut() = path.parse().unwrap_or_default();
    let patch = http::HeaderValue::from_static("application/json-patch+json");
    request.headers_mut().insert(http::header::CONTENT_TYPE, patch);
    request
}

/// Removes the first taint with the key, if the list is still as it was read; another with the key (one each effect is
/// allowed) goes the next time.
fn patch(node: &Value, key: &str) -> Option<Value> {
    let taints = node.pointer("/spec/taints")?.as_array()?;
    let at = taints.iter().position(|taint| taint["key"] == key)?;
    Some(json!([
        { "op": "test", "path": format!("/spec/taints/{at}/key"), "value": key },
        { "op": "remove", "path": format!("/spec/taints/{at}") },
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::{ApiServer, answer};

    #[tokio::test]
    async fn the_taint_goes_from_ready_nodes_only() {
        let node = |name: &str, taints: &[&str]| {
            let taints: Vec<Value> =
                taints.iter().map(|key| json!({ "key": key, "effect": "NoSchedule" })).collect();
            json!({ "metadata": { "name": name }, "spec": { "taints": taints } })
        };
        let list = json!({ "items": [node("ready", &["other", "ours"]), node("early", &["ours"]), node("free", &["other"])] });
        let api = ApiServer::new();
        api.set_fault(move |request| {
            Some(answer(200, if request.method == "GET" { &list } else { &Value::Null }))
        });
        let ready = ["ready", "free"].map(Str::from).into();
        untaint(&api.client(), "ours", &ready).await.unwrap();
        let patches: Vec<_> = api.log().into_iter().filter(|r| r.method == "PATCH").collect();
        assert_eq!(patches.iter().map(|p| p.path.as_str()).collect::<Vec<_>>(), ["/api/v1/nodes/ready"]);
        let expected = json!([
            { "op": "test", "path": "/spec/taints/1/key", "value": "ours" },
            { "op": "remove", "path": "/spec/taints/1" },
        ]);
        assert_eq!(patches[0].body, expected);
    }
}
