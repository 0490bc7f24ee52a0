//! Routes that take requests of another namespace's, as the engine that serves them sees it.

use super::facts::{Facts, GATEWAY_API};
use serde_json::Value;
use std::collections::BTreeMap;
use weft_core::{
    engine::{Engine, Feedback, Settings},
    model::{DEFAULT_TRUST_DOMAIN, MtlsMode, Snapshot},
};
use weft_k8s::Source;

/// What each overlap is, as far as routes of several namespaces may be read.
pub(super) fn overlaps(facts: &Facts) -> Vec<String> {
    let mut snapshot = Snapshot::default();
    let core = facts.namespaces.iter().map(|o| ("Namespace", "v1".to_owned(), o));
    let of_api = |kind: &'static str, objects: &'_ [Value]| -> Vec<(&'static str, String, Value)> {
        objects.iter().map(|o| (kind, format!("{GATEWAY_API}/v1"), o.clone())).collect()
    };
    let mut objects: Vec<(&str, String, Value)> = core.map(|(k, v, o)| (k, v, o.clone())).collect();
    objects.extend(of_api("GatewayClass", &facts.classes));
    objects.extend(of_api("Gateway", &facts.gateways));
    objects.extend(of_api("ListenerSet", &facts.listener_sets));
    objects.extend(facts.routes.iter().map(|(kind, o)| (*kind, format!("{GATEWAY_API}/v1"), o.clone())));
    let source = Source { origin: None, marks: None, admitted: true };
    for (kind, version, mut object) in objects {
        // Items of a list may come without their type.
        if object.get("kind").is_none() || object.get("apiVersion").is_none() {
            object["kind"] = kind.into();
            object["apiVersion"] = version.into();
        }
        if let Some(object) = weft_k8s::convert(object, &source).object {
            object.insert(&mut snapshot);
        }
    }
    let settings = Settings {
        pod_cidrs: Default::default(),
        trust_domain: DEFAULT_TRUST_DOMAIN.into(),
        default_mode: MtlsMode::default(),
        gateway_addresses: BTreeMap::new(),
        default_addresses: Vec::new(),
        placed: true,
        node: None,
    };
    let mut engine = Engine::new(settings);
    engine.apply(snapshot, &Feedback::default());
    engine.overlaps().into_iter().map(|overlap| overlap.message).collect()
}
