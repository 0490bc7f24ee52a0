//! What pods accept from outside the mesh, and by whose word: what `status`, `check` and `join` say of it.

use super::{
    NAMESPACE,
    api::{key, label, text},
    facts::Facts,
    install::CONFIG,
};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use weft_core::{
    model::{MTLS_LABEL, Mtls, MtlsMode, MtlsSource},
    remarks::{self, Remark, Weight, Words},
};
use weft_k8s::Problem;

/// Objects that are named where more are alike.
const NAMED: usize = 3;

/// The mesh's settings, as far as they may be read.
pub(super) struct Settings {
    /// What holds where no label speaks; `None`: not readable by this person.
    pub(super) default: Option<MtlsMode>,
    /// What is wrong with them.
    pub(super) problems: Vec<Problem>,
}

impl Settings {
    /// Of what was gathered.
    pub(super) fn of(facts: &Facts) -> Self {
        match &facts.config {
            None if facts.denied.contains(CONFIG) => Self { default: None, problems: Vec::new() },
            None => Self { default: Some(MtlsMode::default()), problems: Vec::new() },
            Some(config) => {
                let (settings, problems) = weft_k8s::read_settings(text(config, "/data/config.yaml"));
                Self { default: Some(settings.mtls), problems }
            }
        }
    }

    /// What a pod, or a namespace's pods without a label, accept.
    pub(super) fn effective(&self, pod: Option<&Value>, namespace: Option<&Value>) -> Effective {
        let value = |object: Option<&Value>| object.and_then(|o| label(o, MTLS_LABEL)).map(str::to_owned);
        let (own, around) = (value(pod), value(namespace));
        let decided = Mtls::decide(own.as_deref(), around.as_deref(), self.default.unwrap_or_default());
        let (written, from) = match decided.source {
            MtlsSource::Pod => (own, From::Pod),
            MtlsSource::Namespace => (around, From::Namespace),
            MtlsSource::Mesh => (None, From::Mesh),
        };
        let mode = match (decided.source, self.default) {
            (MtlsSource::Mesh, None) => None,
            _ => Some(decided.mode),
        };
        Effective { mode, from, written: written.filter(|w| MtlsMode::parse(w).is_none()) }
    }
}

/// Whose word it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum From {
    /// The pod's label.
    Pod,
    /// The namespace's label.
    Namespace,
    /// The mesh-wide setting.
    Mesh,
}

/// What holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Effective {
    /// `None`: the mesh-wide setting decides, and is not readable by this person.
    pub(super) mode: Option<MtlsMode>,
    /// By whose word.
    pub(super) from: From,
    /// What is written there, where that is no mode.
    pub(super) written: Option<String>,
}

impl Effective {
    /// `strict`, `permissive`, or `unknown`.
    pub(super) fn word(&self) -> &'static str {
        self.mode.map_or("unknown", MtlsMode::as_str)
    }

    /// Whether it is strict, as far as can be known.
    pub(super) fn is_strict(&self) -> bool {
        self.mode == Some(MtlsMode::Strict)
    }

    /// For people: the mode and where it comes from.
    pub(super) fn words(&self) -> String {
        let from = match (self.from, self.mode) {
            (From::Pod, _) => "pod's label",
            (From::Namespace, _) => "namespace's label",
            (From::Mesh, Some(_)) => "mesh-wide",
            (From::Mesh, None) => "mesh-wide setting, not readable by you",
        };
        match &self.written {
            Some(written) => format!("{} ({from} \"{written}\" is no mode)", self.word()),
            None => format!("{} ({from})", self.word()),
        }
    }
}

/// A remark on objects that are alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Said {
    /// `namespace shop`, `pod shop/web`.
    pub(super) objects: Vec<String>,
    /// What is so, and what to write.
    pub(super) message: String,
    /// The reason of the Events that say it.
    pub(super) reason: String,
    /// Whether what is written is not what holds.
    pub(super) fault: bool,
}

impl Said {
    /// One line; more objects than a few are counted.
    pub(super) fn line(&self) -> String {
        let named = self.objects.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
        match self.objects.len().saturating_sub(NAMED) {
            0 => format!("{named}: {}", self.message),
            more => format!("{named} and {more} more: {}", self.message),
        }
    }
}

/// What labels and annotations say that is not so, faults first. Pods of one namespace that are alike are said together.
pub(super) fn remarks(facts: &Facts) -> Vec<Said> {
    let spaces: BTreeMap<&str, &Value> =
        facts.namespaces.iter().map(|ns| (text(ns, "/metadata/name"), ns)).collect();
    let mut found: BTreeMap<(bool, String, &'static str, String), Vec<String>> = BTreeMap::new();
    let mut add = |space: &str, object: String, remark: Remark| {
        let at = (remark.weight != Weight::Fault, space.to_owned(), remark.reason, remark.message);
        found.entry(at).or_default().push(object);
    };
    for namespace in &facts.namespaces {
        for remark in remarks::of_namespace(&words(namespace)) {
            add(&key(namespace), format!("namespace {}", key(namespace)), remark);
        }
    }
    // Weft's own pods have annotations of their own.
    for pod in facts.pods.iter().filter(|pod| text(pod, "/metadata/namespace") != NAMESPACE) {
        let space = text(pod, "/metadata/namespace");
        let around = spaces.get(space).map(|ns| words(ns)).unwrap_or_default();
        for remark in remarks::of_pod(&words(pod), &around) {
            add(space, format!("pod {}", key(pod)), remark);
        }
    }
    let said = found.into_iter().map(|((hint, _, reason, message), objects)| Said {
        objects,
        message,
        reason: reason.to_owned(),
        fault: !hint,
    });
    said.collect()
}

/// An object's labels and annotations.
fn words(object: &Value) -> Words<'_> {
    let pairs = |pointer: &str| {
        let map = object.pointer(pointer).and_then(Value::as_object);
        map.into_iter().flatten().filter_map(|(k, v)| Some((k.as_str(), v.as_str()?))).collect::<Vec<_>>()
    };
    Words::new(pairs("/metadata/labels"), pairs("/metadata/annotations"))
}
