//! From two statuses to what changed for a person.

use crate::status::passes;
use serde_json::Value;
use weft_core::model::{CONTROLLER_NAME, Kind};

/// Something that happened to an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Transition {
    /// Something needs a person: `Warning`, else `Normal`.
    pub(crate) warning: bool,
    /// The condition's reason.
    pub(crate) reason: String,
    /// What, and in which parent.
    pub(crate) note: String,
}

/// What changed between two `status`es (JSON), in what is ours in them.
pub(crate) fn transitions(kind: Kind, before: &Value, after: &Value) -> Vec<Transition> {
    let mut out = Vec::new();
    match kind {
        Kind::GatewayClass | Kind::Gateway | Kind::ListenerSet => {
            conditions("", &before["conditions"], &after["conditions"], &mut out);
            addresses(before, after, &mut out);
        }
        Kind::BackendTlsPolicy => entries("ancestors", "ancestorRef", (before, after), &mut out),
        _ => entries("parents", "parentRef", (before, after), &mut out),
    }
    // One cause in three parents is said once.
    let mut seen = std::collections::HashSet::new();
    out.retain(|t| seen.insert(t.clone()));
    out
}

fn entries(list: &str, reference: &str, (before, after): (&Value, &Value), out: &mut Vec<Transition>) {
    let ours = |status: &Value| {
        let all = status[list].as_array().cloned().unwrap_or_default();
        all.into_iter().filter(|e| e["controllerName"] == CONTROLLER_NAME).collect::<Vec<_>>()
    };
    let held = ours(before);
    for entry in ours(after) {
        let was = held.iter().find(|b| b[reference] == entry[reference]);
        let was = was.map_or(&Value::Null, |b| &b["conditions"]);
        conditions(&format!("{}: ", name(&entry[reference])), was, &entry["conditions"], out);
    }
}

/// `Gateway infra/web listener http`.
fn name(reference: &Value) -> String {
    let text = |field: &str| reference[field].as_str().unwrap_or_default();
    let mut name = format!("{} ", text("kind"));
    if !text("namespace").is_empty() {
        name.push_str(text("namespace"));
        name.push('/');
    }
    name.push_str(text("name"));
    if !text("sectionName").is_empty() {
        name.push_str(" section ");
        name.push_str(text("sectionName"));
    }
    if let Some(port) = reference["port"].as_u64() {
        name.push_str(&format!(" port {port}"));
    }
    name
}

fn conditions(prefix: &str, before: &Value, after: &Value, out: &mut Vec<Transition>) {
    let get = |list: &Value, kind: &str| {
        list.as_array().and_then(|l| l.iter().find(|c| c["type"] == kind)).cloned().unwrap_or_default()
    };
    for kind in ["Accepted", "ResolvedRefs", "Programmed"] {
        let (was, is) = (get(before, kind), get(after, kind));
        let text = |c: &Value, field: &str| c[field].as_str().unwrap_or_default().to_owned();
        let (status, reason) = (text(&is, "status"), text(&is, "reason"));
        let same = text(&was, "status") == status;
        let warning = match status.as_str() {
            "False" if same && text(&was, "reason") == reason => continue,
            // What is not accepted is not programmed either: said already.
            "False" if kind == "Programmed" && get(after, "Accepted")["status"] == "False" => continue,
            // Not served yet; that it was served before and is not any more is worth saying.
            "False" if passes(&reason) && text(&was, "status") != "True" => continue,
            "False" => true,
            "True" if same => continue,
            // The first acceptance is what everybody expects; being served is what everybody waits for.
            "True" if kind != "Programmed" && text(&was, "status") != "False" => continue,
            "True" => false,
            _ => continue,
        };
        out.push(Transition { warning, reason, note: format!("{prefix}{}", text(&is, "message")) });
    }
}

fn addresses(before: &Value, after: &Value, out: &mut Vec<Transition>) {
    let values = |status: &Value| {
        let all = status["addresses"].as_array().cloned().unwrap_or_default();
        all.iter().filter_map(|a| Some(a["value"].as_str()?.to_owned())).collect::<Vec<_>>()
    };
    let (was, is) = (values(before), values(after));
    if !is.is_empty() && was != is {
        let note = format!("Addresses: {}.", is.join(", "));
        out.push(Transition { warning: false, reason: "AddressAssigned".to_owned(), note });
    }
}
