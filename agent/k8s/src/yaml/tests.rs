use super::*;
use proptest::prelude::*;
use serde_json::json;

/// All documents, and errors as `line: reason; remedy`.
fn check(text: &str, documents: &[Value], errors: &[&str]) {
    let (got, errs) = read(text);
    assert_eq!(got.into_iter().map(|d| d.value).collect::<Vec<_>>(), documents, "{text}");
    let errs: Vec<String> = errs.iter().map(|e| format!("{}: {}; {}", e.line, e.reason, e.remedy)).collect();
    assert_eq!(errs, errors, "{text}");
}

#[test]
fn scalars_read_as_kubectl_does() {
    for (text, value) in [
        ("yes", json!(true)),
        ("off", json!(false)),
        ("'yes'", json!("yes")),
        ("80", json!(80)),
        ("-3", json!(-3)),
        ("0x1F", json!(31)),
        ("0755", json!(493)),
        ("08", json!(8)),
        ("1_000", json!(1000)),
        ("1e2", json!(100)),
        ("1.5", json!(1.5)),
        ("1.2.3.4", json!("1.2.3.4")),
        ("10s", json!("10s")),
        ("~", json!(null)),
        ("", json!(null)),
        ("!!str 80", json!("80")),
        ("2024-01-01T00:00:00Z", json!("2024-01-01T00:00:00Z")),
        ("-", json!(null)),
        (".", json!(".")),
        ("+", json!("+")),
        ("1e999", json!("1e999")),
        ("99999999999999999999", json!(1e20)),
    ] {
        let value = if text == "-" { json!([null]) } else { value };
        let text = if text == "-" { "a:\n- ".to_owned() } else { format!("a: {text}\n") };
        check(&text, &[json!({ "a": value })], &[]);
    }
}

#[test]
fn documents_split_and_errors_stay_in_theirs() {
    check("", &[], &[]);
    check("# only a comment\n", &[], &[]);
    check("---\n---\n# nothing\n---\n", &[], &[]);
    check("\u{feff}a: 1\r\nb: 2\r\n---\r\na: 3\r\n", &[json!({"a": 1, "b": 2}), json!({"a": 3})], &[]);
    check("%YAML 1.2\n---\na: 1\n", &[json!({"a": 1})], &[]);
    check("a: 1\n...\n---\nb: |\n  ---\n  x\n", &[json!({"a": 1}), json!({"b": "---\nx\n"})], &[]);
    check(
        "a: 1\n---\nb: [1\n---\nc: 3\n",
        &[json!({"a": 1}), json!({"c": 3})],
        &[
            "4: not valid YAML: while parsing a flow sequence, expected ',' or ']'; check the indentation and the quotes of this line and the one above",
        ],
    );
    check("a: 1\nb: 2\na: 3\n", &[], &["3: the key \"a\" is already set in line 1; keep one of the two"]);
    check("{\"a\":\t\"\\/x\"}", &[json!({"a": "/x"})], &[]);
}

#[test]
fn anchors_and_merges_are_followed() {
    check(
        "a: &x {p: 1, q: 2}\nb: *x\nc: {<<: *x, q: 3}\n",
        &[json!({"a": {"p": 1, "q": 2}, "b": {"p": 1, "q": 2}, "c": {"p": 1, "q": 3}})],
        &[],
    );
}

#[test]
fn lines_are_those_of_the_field() {
    let (docs, _) =
        read("# c\n---\nspec:\n  rules:\n  - name: x\n    filters:\n    - type: T\n      a.b: 1\n");
    let marks = &docs[0].marks;
    for (path, line) in [
        ("", 3),
        ("spec", 3),
        ("spec.rules", 4),
        ("spec.rules[0]", 5),
        ("spec.rules[0].filters", 6),
        ("spec.rules[0].filters[0].type", 7),
        ("spec.rules[0].filters[0][a.b]", 8),
        ("spec.rules[0].filters[0].none", 7),
        ("spec.rules[7].none", 4),
    ] {
        assert_eq!(marks.line_of(path), line, "{path}");
    }
}

#[test]
fn bombs_end_with_an_error() {
    let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for i in 1..9 {
        let refs = vec![format!("*a{}", i - 1); 10].join(", ");
        laughs.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
    }
    let deep_flow = "[".repeat(100_000);
    let deep_block = (0..2000).map(|i| format!("{}a:\n", " ".repeat(i))).collect::<String>();
    for text in [&laughs, &deep_flow, &deep_block] {
        let (docs, errors) = read(text);
        assert!(docs.is_empty() && errors.len() == 1, "{errors:?}");
    }
}

#[test]
fn a_large_file_is_read() {
    let doc = "kind: X\nspec:\n  rules:\n  - matches: [{path: {value: /a}}]\n    backendRefs: [{name: a, port: 80}]\n---\n";
    let text = doc.repeat((10 << 20) / doc.len());
    let (docs, errors) = read(&text);
    assert!(errors.is_empty());
    assert!(docs.len() > 90_000);
}

proptest! {
    #[test]
    fn any_text_is_survived(text in "(?s).{0,400}") {
        let _ = read(&text);
    }

    #[test]
    fn yaml_like_text_is_survived(text in "([-:?&*!|>%@`{}\\[\\]#,'\" \n\t\r]|---\n|a|b: |<<: |\\*a|&a|- ){0,80}") {
        let _ = read(&text);
    }
}
