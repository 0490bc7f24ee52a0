//! YAML in, problems or model out.

mod core_kinds;
mod gateway_kinds;
mod pasted;
mod rules;

use super::*;
use crate::yaml;
use proptest::prelude::*;

/// Everything that a file `t.yaml` gives.
fn convert_all(text: &str) -> (Vec<Object>, Vec<String>) {
    let (documents, errors) = yaml::read(text);
    let mut problems: Vec<String> =
        errors.iter().map(|e| format!("t.yaml:{}: {}; {}", e.line, e.reason, e.remedy)).collect();
    let mut objects = Vec::new();
    for document in documents {
        for (value, marks) in unroll(document.value, document.marks) {
            let origin = Origin { file: "t.yaml".into(), line: marks.line() };
            let source = Source { origin: Some(&origin), marks: Some(&marks), admitted: false };
            let converted = convert(value, &source);
            problems.extend(converted.problems.iter().map(ToString::to_string));
            objects.extend(converted.object);
        }
    }
    (objects, problems)
}

/// The problems of `text`, and how many objects load.
#[track_caller]
fn check(text: &str, loaded: usize, problems: &[&str]) {
    let (objects, found) = convert_all(text);
    assert_eq!(found, problems, "{text}");
    assert_eq!(objects.len(), loaded, "{text}");
}

/// The only object of `text`, which has no problem.
#[track_caller]
fn model(text: &str) -> Object {
    let (mut objects, problems) = convert_all(text);
    assert!(problems.is_empty(), "{problems:#?}");
    objects.pop().expect("one object")
}

/// An object of our group with this spec, in YAML flow style.
fn of(kind: &str, spec: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: x, namespace: shop}}\nspec: {spec}\n"
    )
}

#[test]
fn problems_have_the_line_of_the_field() {
    check(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: cart\n  namespace: shop\nspec:\n  \
         parentRefs: [{name: gw}]\n  rules:\n  - backendRefs:\n    - name: cart\n      port: 80\n      weigth: 5\n",
        1,
        &[
            "t.yaml:12: warning: HTTPRoute shop/cart: spec.rules[0].backendRefs[0].weigth: unknown field, it has no effect; did you mean \"weight\"?",
        ],
    );
}

#[test]
fn an_admitted_object_is_served_as_far_as_it_goes() {
    let text = of(
        "HTTPRoute",
        "{parentRefs: [{name: g}], rules: [{filters: [{type: Future}], backendRefs: [{name: a, port: 80}]}]}",
    );
    let (documents, _) = yaml::read(&text);
    let source = Source { admitted: true, ..Source::default() };
    let converted = convert(documents[0].value.clone(), &source);
    let Some(Object::Route(route)) = converted.object else { panic!("{converted:?}") };
    assert_eq!(route.rules[0].filters, [weft_core::model::Filter::Unknown("Future".into())]);
    assert_eq!(converted.problems[0].severity, Severity::Warning);
}

/// Documents of every kind that we read.
const CORPUS: &str = include_str!("corpus.yaml");

#[test]
fn the_corpus_is_good() {
    let (objects, problems) = convert_all(CORPUS);
    assert_eq!(problems, [""; 0]);
    let kinds: std::collections::BTreeSet<Kind> = objects.iter().map(|o| o.id().kind).collect();
    assert_eq!(kinds.len(), 16, "every kind is there: {kinds:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever a user does to good YAML: an answer, never a panic.
    #[test]
    fn damaged_yaml_is_survived(edits in prop::collection::vec((0..CORPUS.len(), "[ -~\n\t]{0,3}", 0..12_usize), 1..6)) {
        let mut text = CORPUS.to_owned();
        for (at, new, cut) in edits {
            let at = at.min(text.len());
            let end = (at + cut).min(text.len());
            text.replace_range(at..end, &new);
        }
        let _ = convert_all(&text);
    }
}
