//! What labels and annotations of namespaces and pods say that is not so: words that mean nothing, words that are
//! overruled, words of other meshes. The controller makes Events of it, `weft check` and `weft status` show it. Pure.

use crate::{
    model::{MESH_LABEL, MTLS_LABEL, Mtls, MtlsMode, TUNNEL_PORT_ANNOTATION},
    spelling::closest,
};
use std::collections::BTreeMap;

/// Annotations that leave a pod's inbound traffic alone.
pub const EXCLUDE_INBOUND: [&str; 2] = ["weft.dev/exclude-inbound-ports", "weft.dev/exclude-inbound-cidrs"];

/// Labels of ours that people write.
const LABELS: [&str; 2] = [MESH_LABEL, MTLS_LABEL];
/// Annotations of ours that people write.
const ANNOTATIONS: [&str; 5] = [
    "weft.dev/exclude-inbound-ports",
    "weft.dev/exclude-inbound-cidrs",
    "weft.dev/exclude-outbound-ports",
    "weft.dev/exclude-outbound-cidrs",
    TUNNEL_PORT_ANNOTATION,
];
/// Longest name or value that is repeated in a message, in characters.
const SHOWN: usize = 80;

/// Labels and annotations of other meshes that ask for what `weft.dev/mesh=enabled` asks for: name, values that do (all
/// where none is listed), whose.
const PEERS: [(&str, &[&str], &str); 7] = [
    ("istio.io/dataplane-mode", &["ambient"], "Istio's"),
    ("istio-injection", &["enabled"], "Istio's"),
    ("istio.io/rev", &[], "Istio's"),
    ("sidecar.istio.io/inject", &["true"], "Istio's"),
    ("linkerd.io/inject", &["enabled", "ingress"], "Linkerd's"),
    ("kuma.io/sidecar-injection", &["enabled", "true"], "Kuma's"),
    ("consul.hashicorp.com/connect-inject", &["true"], "Consul's"),
];

/// How much a remark matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// It may be as somebody wants it.
    Hint,
    /// What is written is not what holds.
    Fault,
}

/// Something to say of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// How much it matters.
    pub weight: Weight,
    /// The Event's reason.
    pub reason: &'static str,
    /// What is so, and what to write.
    pub message: String,
}

/// Labels and annotations of an object.
#[derive(Clone, Debug, Default)]
pub struct Words<'a> {
    /// `metadata.labels`.
    pub labels: BTreeMap<&'a str, &'a str>,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<&'a str, &'a str>,
}

impl<'a> Words<'a> {
    /// From pairs of name and value.
    pub fn new<P: IntoIterator<Item = (&'a str, &'a str)>>(labels: P, annotations: P) -> Self {
        Self { labels: labels.into_iter().collect(), annotations: annotations.into_iter().collect() }
    }

    fn label(&self, name: &str) -> Option<&'a str> {
        self.labels.get(name).copied()
    }
}

/// Values of our labels that mean nothing: the label, what is so, what to write.
pub fn values<'a>(label: &mut dyn FnMut(&str) -> Option<&'a str>) -> Vec<(&'static str, String, String)> {
    let mut out = Vec::new();
    let mut say = |name, value: &str, allowed: [&str; 2], means: &str| {
        let remedy = match closest(value, allowed) {
            Some(meant) => format!("write \"{meant}\""),
            None => format!("write \"{}\" or \"{}\"", allowed[0], allowed[1]),
        };
        out.push((name, format!("\"{}\" {means}", shown(value)), remedy));
    };
    if let Some(value) = label(MESH_LABEL).filter(|v| !matches!(*v, "enabled" | "disabled")) {
        say(MESH_LABEL, value, ["enabled", "disabled"], "has no meaning");
    }
    if let Some(value) = label(MTLS_LABEL).filter(|v| MtlsMode::parse(v).is_none()) {
        say(MTLS_LABEL, value, ["strict", "permissive"], "is no mode and counts as strict");
    }
    out
}

/// What is to be said of a namespace.
#[must_use]
pub fn of_namespace(namespace: &Words<'_>) -> Vec<Remark> {
    let mut out = of_any(namespace);
    out.extend(peers(namespace, namespace.label(MESH_LABEL).is_some()));
    out
}

/// What is to be said of a pod.
#[must_use]
pub fn of_pod(pod: &Words<'_>, namespace: &Words<'_>) -> Vec<Remark> {
    let mut out = of_any(pod);
    let mtls = Mtls::decide(pod.label(MTLS_LABEL), namespace.label(MTLS_LABEL), MtlsMode::default());
    if mtls.overruled {
        let message = format!(
            "label {MTLS_LABEL}=permissive is ignored: the namespace is strict, and only its own label changes that"
        );
        out.push(Remark { weight: Weight::Fault, reason: "MtlsOverruled", message });
    }
    if mtls.is_namespaces() {
        let ignored = EXCLUDE_INBOUND.iter().filter(|name| pod.annotations.contains_key(*name));
        out.extend(ignored.map(|name| Remark {
            weight: Weight::Fault,
            reason: "ExclusionOverruled",
            message: format!(
                "annotation {name} is ignored: the namespace is strict; exclusions that are to hold there stand on the \
                 namespace"
            ),
        }));
    }
    let spoken = [pod, namespace].iter().any(|words| words.labels.contains_key(MESH_LABEL));
    out.extend(peers(pod, spoken));
    out
}

/// Values that mean nothing, and names that are none of ours though they look it.
fn of_any(words: &Words<'_>) -> Vec<Remark> {
    let fault = |reason, message| Remark { weight: Weight::Fault, reason, message };
    let values = values(&mut |name| words.label(name)).into_iter();
    let mut out: Vec<Remark> = values
        .map(|(name, is, remedy)| {
            let reason = if name == MTLS_LABEL { "UnknownMtls" } else { "UnknownMesh" };
            fault(reason, format!("label {name}: {is}; {remedy}"))
        })
        .collect();
    let mut names = |kind: &str, names: Vec<&str>, known: &[&str], (other_kind, other): (&str, &[&str])| {
        for name in names.into_iter().filter(|n| n.starts_with("weft.dev/") && !known.contains(n)) {
            let remedy = match closest(name, known.iter().copied()) {
                _ if other.contains(&name) => format!("it is {other_kind}"),
                Some(meant) => format!("did you mean {meant}?"),
                None => format!("there are {}", known.join(", ")),
            };
            out.push(fault("UnknownName", format!("{kind} {} has no meaning; {remedy}", shown(name))));
        }
    };
    let (labels, annotations) =
        (words.labels.keys().copied().collect(), words.annotations.keys().copied().collect());
    names("label", labels, &LABELS, ("an annotation, not a label", &ANNOTATIONS));
    names("annotation", annotations, &ANNOTATIONS, ("a label, not an annotation", &LABELS));
    out
}

/// Words of other meshes, where none of ours is `spoken`.
fn peers(words: &Words<'_>, spoken: bool) -> Option<Remark> {
    if spoken {
        return None;
    }
    let said = |name: &str| words.label(name).or_else(|| words.annotations.get(name).copied());
    let (name, value, whose) = PEERS.iter().find_map(|(name, values, whose)| {
        let value = said(name)?;
        (values.is_empty() || values.contains(&value)).then_some((name, value, whose))
    })?;
    let message = format!(
        "{name}={} is {whose} and says nothing to Weft; its label is {MESH_LABEL}=enabled",
        shown(value)
    );
    Some(Remark { weight: Weight::Hint, reason: "OtherMesh", message })
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pairs<'a> = &'a [(&'a str, &'a str)];

    fn words<'a>(labels: Pairs<'a>, annotations: Pairs<'a>) -> Words<'a> {
        Words::new(labels.iter().copied(), annotations.iter().copied())
    }

    fn check(found: &[Remark], expected: &[(&str, &str)]) {
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for ((reason, says), remark) in expected.iter().zip(found) {
            assert!(remark.reason == *reason && remark.message.contains(says), "{reason} {says}: {remark:?}");
        }
    }

    /// E3: wrong words were shown as if they held, and nothing said so.
    #[test]
    fn words_that_mean_nothing_are_said_with_the_nearest_right_one() {
        let label =
            |labels: Pairs<'_>, expected: Pairs<'_>| check(&of_namespace(&words(labels, &[])), expected);
        label(&[("weft.dev/mesh", "enabled"), ("weft.dev/mtls", "strict"), ("team", "a")], &[]);
        label(&[("weft.dev/mtls", "STRICT")], &[("UnknownMtls", "counts as strict; write \"strict\"")]);
        label(&[("weft.dev/mtls", "on")], &[("UnknownMtls", "write \"strict\" or \"permissive\"")]);
        label(&[("weft.dev/mesh", "true")], &[("UnknownMesh", "write \"enabled\" or \"disabled\"")]);
        label(&[("weft.dev/mesh", "enable")], &[("UnknownMesh", "write \"enabled\"")]);
        label(&[("weft.dev/mseh", "enabled")], &[("UnknownName", "did you mean weft.dev/mesh?")]);
        label(&[("weft.dev/exclude-inbound-ports", "1")], &[("UnknownName", "it is an annotation")]);
        label(
            &[("istio.io/dataplane-mode", "ambient")],
            &[("OtherMesh", "its label is weft.dev/mesh=enabled")],
        );
        label(&[("istio.io/dataplane-mode", "none")], &[]);
        label(&[("istio-injection", "enabled"), ("weft.dev/mesh", "enabled")], &[]);
        let annotation = |annotations: Pairs<'_>, expected: Pairs<'_>| {
            check(&of_namespace(&words(&[], annotations)), expected);
        };
        annotation(&[("weft.dev/mesh", "enabled")], &[("UnknownName", "it is a label, not an annotation")]);
        annotation(&[("linkerd.io/inject", "enabled")], &[("OtherMesh", "Linkerd's")]);
        annotation(
            &[("weft.dev/exclude-inbound-port", "1")],
            &[("UnknownName", "did you mean weft.dev/exclude-inbound-ports?")],
        );
        assert_eq!(of_namespace(&words(&[("istio.io/rev", "a")], &[]))[0].weight, Weight::Hint);
    }

    /// B6: nothing said that a pod's words count for nothing under its namespace's strict.
    #[test]
    fn words_that_a_namespaces_strict_overrules_are_said() {
        let pod = words(
            &[("weft.dev/mtls", "permissive")],
            &[("weft.dev/exclude-inbound-ports", "22"), ("weft.dev/exclude-outbound-ports", "22")],
        );
        let check = |namespace: Pairs<'_>, expected: Pairs<'_>| {
            super::tests::check(&of_pod(&pod, &words(namespace, &[])), expected);
        };
        check(&[], &[]);
        check(&[("weft.dev/mtls", "permissive")], &[]);
        for strict in ["strict", "Strict"] {
            check(
                &[("weft.dev/mtls", strict)],
                &[
                    ("MtlsOverruled", "the namespace is strict"),
                    ("ExclusionOverruled", "exclude-inbound-ports is ignored"),
                ],
            );
        }
    }
}
