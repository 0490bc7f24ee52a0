//! Conditions that are not as they should be, worst first: [`faulty`] is a function of [`Facts`].

use super::{
    api::{key, list, number, text},
    facts::Facts,
};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeSet;
use weft_core::model::CONTROLLER_NAME;

/// Conditions that should be true, those that say the most first.
const WANTED: [&str; 3] = ["Accepted", "Programmed", "ResolvedRefs"];
/// Conditions that should not be true.
const UNWANTED: [&str; 4] =
    ["Conflicted", "PartiallyInvalid", "OverlappingTLSConfig", "InsecureFrontendValidationMode"];

/// How bad, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Weight {
    /// Nothing of it is served.
    NotServed,
    /// A part of it is not.
    PartlyServed,
    /// Nobody has looked at it, or not since it was changed.
    NotLookedAt,
    /// It is served, with something to know.
    Served,
}

/// A condition that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Faulty {
    /// How bad.
    pub(super) weight: Weight,
    /// `HTTPRoute shop/cart`.
    pub(super) object: String,
    /// The parent, listener or target that it is about; empty when the object as a whole is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) about: String,
    /// `ResolvedRefs=False`.
    pub(super) condition: String,
    /// Its reason.
    pub(super) reason: String,
    /// Its message.
    pub(super) message: String,
}

impl Faulty {
    /// One line for people.
    pub(super) fn line(&self) -> String {
        let Self { object, about, condition, reason, message, .. } = self;
        let about = if about.is_empty() { String::new() } else { format!(", {about}") };
        let reason = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
        format!("{object}{about}: {condition}{reason}: {message}")
    }
}

/// Everything of ours whose condition is not as it should be.
pub(super) fn faulty(facts: &Facts) -> Vec<Faulty> {
    let mut found = BTreeSet::new();
    let classes: Vec<&Value> =
        facts.classes.iter().filter(|c| text(c, "/spec/controllerName") == CONTROLLER_NAME).collect();
    for class in &classes {
        of_list(&Place::of("GatewayClass", class), &class["status"]["conditions"], &mut found);
    }
    let names: BTreeSet<String> = classes.iter().map(|class| key(class)).collect();
    // Who may not read classes cannot tell whose a Gateway is: what its status says is shown all the same.
    let known = !facts.denied.iter().any(|path| path.ends_with("/gatewayclasses"));
    let ours = |gateway: &&Value| !known || names.contains(text(gateway, "/spec/gatewayClassName"));
    let gateways: Vec<&Value> = facts.gateways.iter().filter(ours).collect();
    let keys: BTreeSet<String> = gateways.iter().map(|gateway| key(gateway)).collect();
    for gateway in &gateways {
        of_listeners("Gateway", gateway, known, &mut found);
    }
    for set in facts.listener_sets.iter().filter(|set| keys.contains(&parent_of_set(set))) {
        of_listeners("ListenerSet", set, known, &mut found);
    }
    for (kind, route) in &facts.routes {
        of_parents(kind, route, if known { Some(&keys) } else { None }, &mut found);
    }
    for policy in &facts.tls_policies {
        let place = Place::of("BackendTLSPolicy", policy);
        for entry in of_us(policy, "/status/ancestors") {
            let about = reference(&entry["ancestorRef"]);
            of_list(&Place { about, ..place.clone() }, &entry["conditions"], &mut found);
        }
    }
    found.into_iter().collect()
}

/// Which object, and what of it.
#[derive(Clone)]
struct Place {
    object: String,
    about: String,
    generation: i64,
}

impl Place {
    fn of(kind: &str, object: &Value) -> Self {
        let generation = number(object, "/metadata/generation");
        Self { object: format!("{kind} {}", key(object)), about: String::new(), generation }
    }

    fn faulty(&self, weight: Weight, condition: String, (reason, message): (&str, &str)) -> Faulty {
        Faulty {
            weight,
            object: self.object.clone(),
            about: self.about.clone(),
            condition,
            reason: reason.to_owned(),
            message: message.to_owned(),
        }
    }

    fn unseen(&self) -> Faulty {
        let message = "no controller has looked at it yet; `weft check` says whether one leads";
        self.faulty(Weight::NotLookedAt, "no condition".to_owned(), ("", message))
    }
}

/// A Gateway or ListenerSet and its listeners. Only who knows that it is ours misses a condition.
fn of_listeners(kind: &str, object: &Value, known: bool, found: &mut BTreeSet<Faulty>) {
    let place = Place::of(kind, object);
    let conditions = &object["status"]["conditions"];
    let looked_at =
        conditions.as_array().is_some_and(|all| all.iter().any(|c| text(c, "/status") != "Unknown"));
    if !looked_at {
        found.extend(known.then(|| place.unseen()));
        return;
    }
    of_list(&place, conditions, found);
    for listener in list(object, "/status/listeners") {
        let about = format!("listener {}", text(listener, "/name"));
        of_list(&Place { about, ..place.clone() }, &listener["conditions"], found);
    }
}

/// A route's parents of ours.
fn of_parents(kind: &str, route: &Value, gateways: Option<&BTreeSet<String>>, found: &mut BTreeSet<Faulty>) {
    let place = Place::of(kind, route);
    let mut entries = 0;
    for entry in of_us(route, "/status/parents") {
        entries += 1;
        let about = format!("parent {}", reference(&entry["parentRef"]));
        of_list(&Place { about, ..place.clone() }, &entry["conditions"], found);
    }
    let own = text(route, "/metadata/namespace");
    let is_ours = |parent: &&Value| {
        let named = |field: &str, default: &'static str| {
            parent.get(field).and_then(Value::as_str).map_or_else(|| default.to_owned(), str::to_owned)
        };
        let namespace = parent.get("namespace").and_then(Value::as_str).unwrap_or(own);
        named("kind", "Gateway") == "Gateway"
            && gateways.is_some_and(|keys| keys.contains(&format!("{namespace}/{}", text(parent, "/name"))))
    };
    if entries == 0 && list(route, "/spec/parentRefs").iter().any(|parent| is_ours(&parent)) {
        found.insert(place.unseen());
    }
}

fn of_us<'a>(object: &'a Value, entries: &str) -> impl Iterator<Item = &'a Value> {
    list(object, entries).iter().filter(|entry| text(entry, "/controllerName") == CONTROLLER_NAME)
}

/// The faulty ones of a list of conditions. What is not accepted is not programmed either: that is said once.
fn of_list(place: &Place, conditions: &Value, found: &mut BTreeSet<Faulty>) {
    let all = conditions.as_array().map(Vec::as_slice).unwrap_or_default();
    let get = |kind: &str| all.iter().find(|c| text(c, "/type") == kind);
    let is = |kind: &str, status: &str| get(kind).is_some_and(|c| text(c, "/status") == status);
    let words = |c| (text(c, "/reason"), text(c, "/message"));
    for kind in WANTED {
        let Some(c) = get(kind).filter(|c| text(c, "/status") == "False") else { continue };
        if kind != "Accepted" && is("Accepted", "False") && get("Accepted").map(words) == Some(words(c)) {
            continue;
        }
        let weight = match (kind, text(c, "/reason")) {
            ("Programmed", "Pending") => Weight::NotLookedAt,
            ("ResolvedRefs", _) => Weight::PartlyServed,
            _ => Weight::NotServed,
        };
        found.insert(place.faulty(weight, format!("{kind}=False"), words(c)));
    }
    for kind in UNWANTED {
        let Some(c) = get(kind).filter(|c| text(c, "/status") == "True") else { continue };
        let weight = match kind {
            "Conflicted" => Weight::NotServed,
            "PartiallyInvalid" => Weight::PartlyServed,
            _ => Weight::Served,
        };
        // The conflict is what its listener is not accepted for.
        if kind == "Conflicted" && is("Accepted", "False") {
            continue;
        }
        found.insert(place.faulty(weight, format!("{kind}=True"), words(c)));
    }
    let seen = all
        .iter()
        .filter(|c| WANTED.contains(&text(c, "/type")))
        .map(|c| number(c, "/observedGeneration"))
        .max();
    if let Some(seen) = seen.filter(|seen| *seen < place.generation) {
        let message = format!(
            "what is said is of generation {seen}, and it has been changed since (generation {})",
            place.generation
        );
        found.insert(place.faulty(Weight::NotLookedAt, "old conditions".to_owned(), ("", &message)));
    }
}

fn parent_of_set(set: &Value) -> String {
    let own = text(set, "/metadata/namespace");
    let namespace = set.pointer("/spec/parentRef/namespace").and_then(Value::as_str).unwrap_or(own);
    format!("{namespace}/{}", text(set, "/spec/parentRef/name"))
}

/// `Gateway infra/web section http`.
fn reference(reference: &Value) -> String {
    let kind = reference.get("kind").and_then(Value::as_str).unwrap_or("Gateway");
    let namespace = text(reference, "/namespace");
    let slash = if namespace.is_empty() { "" } else { "/" };
    let section = text(reference, "/sectionName");
    let section = if section.is_empty() { String::new() } else { format!(" section {section}") };
    let port =
        reference.get("port").and_then(Value::as_u64).map(|p| format!(" port {p}")).unwrap_or_default();
    format!("{kind} {namespace}{slash}{}{section}{port}", text(reference, "/name"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn condition(kind: &str, status: &str, reason: &str) -> Value {
        json!({"type": kind, "status": status, "reason": reason, "message": format!("why {reason}"), "observedGeneration": 1})
    }

    fn facts() -> Facts {
        let class = json!({"metadata": {"name": "weft"}, "spec": {"controllerName": CONTROLLER_NAME},
            "status": {"conditions": [condition("Accepted", "True", "Accepted")]}});
        Facts { classes: vec![class], ..Facts::default() }
    }

    fn gateway(conditions: Value, listeners: Value) -> Value {
        json!({"metadata": {"namespace": "infra", "name": "edge", "generation": 1}, "spec": {"gatewayClassName": "weft"},
            "status": {"conditions": conditions, "listeners": listeners}})
    }

    fn route(name: &str, controller: &str, conditions: Value) -> Value {
        json!({"metadata": {"namespace": "shop", "name": name, "generation": 1},
            "spec": {"parentRefs": [{"namespace": "infra", "name": "edge"}]},
            "status": {"parents": [{"controllerName": controller, "conditions": conditions,
                "parentRef": {"namespace": "infra", "name": "edge", "sectionName": "http"}}]}})
    }

    /// E6: five broken routes, an unprogrammed Gateway and a garbage Secret were on no screen.
    #[test]
    fn what_is_not_as_it_should_be_is_found_worst_first() {
        let good = || {
            json!([condition("Accepted", "True", "Accepted"), condition("Programmed", "True", "Programmed")])
        };
        let check = |facts: &Facts, expected: &[&str]| {
            let lines: Vec<_> = faulty(facts).iter().map(Faulty::line).collect();
            assert_eq!(lines, expected);
        };
        let mut f = facts();
        f.gateways = vec![gateway(good(), json!([{"name": "http", "conditions": good()}]))];
        f.routes = vec![(
            "HTTPRoute",
            route("fine", CONTROLLER_NAME, json!([condition("Accepted", "True", "Accepted")])),
        )];
        check(&f, &[]);

        let broken = json!([{"name": "tls", "conditions": [condition("Accepted", "True", "Accepted"),
            condition("ResolvedRefs", "False", "InvalidCertificateRef"), condition("Programmed", "False", "Invalid")]}]);
        f.gateways = vec![gateway(
            json!([
                condition("Accepted", "True", "Accepted"),
                condition("Programmed", "False", "AddressNotAssigned")
            ]),
            broken,
        )];
        let refs = json!([
            condition("Accepted", "True", "Accepted"),
            condition("ResolvedRefs", "False", "BackendNotFound")
        ]);
        let refused = json!([
            condition("Accepted", "False", "UnsupportedValue"),
            condition("ResolvedRefs", "True", "ResolvedRefs")
        ]);
        f.routes.push(("HTTPRoute", route("refs", CONTROLLER_NAME, refs)));
        f.routes.push(("GRPCRoute", route("refused", CONTROLLER_NAME, refused.clone())));
        f.routes.push(("HTTPRoute", route("theirs", "example.test/other", refused)));
        let partly = json!([
            condition("Accepted", "True", "Accepted"),
            condition("PartiallyInvalid", "True", "UnsupportedValue")
        ]);
        f.routes.push(("HTTPRoute", route("partly", CONTROLLER_NAME, partly)));
        let mut old = route("old", CONTROLLER_NAME, json!([condition("Accepted", "True", "Accepted")]));
        old["metadata"]["generation"] = 2.into();
        f.routes.push(("HTTPRoute", old));
        f.routes.push(("HTTPRoute", route("theirs-only", "example.test/other", json!([]))));
        check(
            &f,
            &[
                "GRPCRoute shop/refused, parent Gateway infra/edge section http: Accepted=False (UnsupportedValue): why UnsupportedValue",
                "Gateway infra/edge: Programmed=False (AddressNotAssigned): why AddressNotAssigned",
                "Gateway infra/edge, listener tls: Programmed=False (Invalid): why Invalid",
                "Gateway infra/edge, listener tls: ResolvedRefs=False (InvalidCertificateRef): why InvalidCertificateRef",
                "HTTPRoute shop/partly, parent Gateway infra/edge section http: PartiallyInvalid=True (UnsupportedValue): why UnsupportedValue",
                "HTTPRoute shop/refs, parent Gateway infra/edge section http: ResolvedRefs=False (BackendNotFound): why BackendNotFound",
                "HTTPRoute shop/old, parent Gateway infra/edge section http: old conditions: what is said is of generation 1, and it has been \
                 changed since (generation 2)",
                "HTTPRoute shop/theirs: no condition: no controller has looked at it yet; `weft check` says whether one leads",
                "HTTPRoute shop/theirs-only: no condition: no controller has looked at it yet; `weft check` says whether one leads",
            ],
        );
    }

    #[test]
    fn a_gateway_that_nobody_has_looked_at_is_said_only_where_it_is_known_to_be_ours() {
        let mut f = facts();
        f.gateways = vec![gateway(json!([condition("Accepted", "Unknown", "Pending")]), json!([]))];
        assert_eq!(faulty(&f).iter().map(|x| x.weight).collect::<Vec<_>>(), [Weight::NotLookedAt]);
        f.classes.clear();
        assert_eq!(faulty(&f), []);
        f.denied.insert("/apis/gateway.networking.k8s.io/v1/gatewayclasses".into());
        assert_eq!(faulty(&f), []);
        f.gateways[0]["status"]["conditions"] = json!([condition("Programmed", "False", "Invalid")]);
        assert_eq!(faulty(&f).len(), 1, "what it says is shown");
    }
}
