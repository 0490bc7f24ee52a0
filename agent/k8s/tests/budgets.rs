//! What texts of tenants make the process need, as the kernel counts it. In a program of its own, one test at a time,
//! because memory is counted for the whole process.

use serde_json::json;
use std::sync::{Arc, Mutex, PoisonError};
use weft_core::{
    budget::{CONFIG_TEXT, CONFIG_VALUES},
    model::ConfigMap,
};
use weft_k8s::{Object, Source, convert, yaml};

/// What an allocator keeps and takes beside what it is asked for.
const SLACK: usize = 3 << 20;

static ALONE: Mutex<()> = Mutex::new(());

/// A field of `/proc/self/status`, in bytes.
fn status(field: &str) -> usize {
    let text = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = text.lines().find_map(|l| l.strip_prefix(field)).expect(field);
    line.trim_matches(|c: char| !c.is_ascii_digit()).parse::<usize>().expect("kilobytes") << 10
}

/// How far the process grew while `f` ran, at its highest. What was mapped of the program's own file meanwhile is no growth:
/// whichever test runs first has some 7 MB of that.
fn peak<T>(f: impl FnOnce() -> T) -> (T, usize) {
    // Lets the kernel forget the peak of before (proc(5)).
    std::fs::write("/proc/self/clear_refs", "5").expect("the process's own");
    let before = status("RssAnon:");
    let out = f();
    (out, status("VmHWM:").saturating_sub(status("RssFile:") + before))
}

fn config_map(text: &str) -> Arc<ConfigMap> {
    let value = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "flood", "namespace": "tenant"},
        "data": {"config.yaml": text},
    });
    let source = Source { admitted: true, ..Source::default() };
    match convert(value, &source).object {
        Some(Object::ConfigMap(map)) => map,
        other => panic!("{other:?}"),
    }
}

/// Ten times the text of fault A1: one long value, named again and again.
fn aliases() -> String {
    format!("a: &a \"{}\"\nb: [{}]\n", "x".repeat(400_000), vec!["*a"; 150_000].join(", "))
}

/// A short text that names mappings of mappings.
fn nested() -> String {
    let mut text = "a0: &a0 {k: v}\n".to_owned();
    for i in 1..40 {
        text.push_str(&format!("a{i}: &a{i} {{k: *a{0}, l: *a{0}}}\n", i - 1));
    }
    text
}

/// `part` as often as 64 KiB hold.
fn fill(open: &str, part: &str, close: &str) -> String {
    let times = (CONFIG_TEXT.size() - open.len() - close.len()) / part.len();
    format!("{open}{}{close}", part.repeat(times))
}

#[test]
fn config_maps_cost_no_more_than_their_text() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // As much as is let in, of the worst kind, and nobody names them: texts are kept, and none is read.
    let worst = fill("a: [", "{a: 1}, ", "]\n");
    let (maps, grown) = peak(|| (0..100).map(|_| config_map(&worst)).collect::<Vec<_>>());
    assert!(maps.iter().all(|m| m.parameters.as_ref().is_some_and(|p| !p.is_read())));
    assert!(grown <= 100 * CONFIG_TEXT.size() + SLACK, "{grown} bytes");
    // More than ten times as much: not even kept.
    let text = aliases();
    assert!(text.len() > 10 * CONFIG_TEXT.size());
    let (maps, grown) = peak(|| (0..100).map(|_| config_map(&text)).collect::<Vec<_>>());
    assert!(grown <= 4 * text.len() + SLACK, "{grown} bytes");
    for map in maps {
        let settings = map.parameters.as_ref().map(|p| p.settings().clone());
        let why = settings.expect("a config.yaml").expect_err("too long");
        assert_eq!(&*why, "config.yaml: the text has 976 KiB; at most 64 are read");
    }
}

#[test]
fn texts_from_the_cluster_need_no_more_than_their_budget() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let check = |text: &str, want: &str| {
        let map = config_map(text);
        let (settings, grown) = peak(|| map.parameters.as_ref().map(|p| p.settings().clone()));
        let why = settings.expect("a config.yaml").expect_err(want);
        assert!(why.contains(want), "{why}");
        assert!(grown <= CONFIG_VALUES.size() + SLACK, "{grown} bytes for {:.40}", text);
    };
    // Written out they would need more than 10 MiB each.
    let too_much = "its values need more than 1024 KiB of memory";
    check(&fill("a: [", "{a: 1}, ", "]\n"), too_much);
    check(&fill("a: [", "{}, ", "]\n"), too_much);
    check(&fill("a: [", "[],", "]\n"), too_much);
    check(&fill("", "- a:\n", ""), too_much);
    // The parser's own tokens count too; and what is no YAML but JSON gets a second try only if it is small.
    check(&fill("{\"a\":[", "{\"\\/\":1},", "1]}"), too_much);
    check(&fill("{\"a\":[", "{\"b\":\t1},", "1]}"), too_much);
    check(&nested(), "anchors and aliases (& and *) are not read here");
    check("a: &a b\nc: *a\n", "anchors and aliases (& and *) are not read here");
    // A neighbour's is read.
    assert!(config_map("addressMode: HostPort\n").parameters.as_ref().is_some_and(|p| p.settings().is_ok()));
}

/// Files are those of whoever runs Weft: what is bounded is what a mistake can cost.
#[test]
fn a_file_of_nested_aliases_ends_before_it_has_grown() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for text in [nested(), aliases()] {
        let ((documents, errors), grown) = peak(|| yaml::read(&text));
        assert!(documents.is_empty() && errors.len() == 1, "{errors:?}");
        assert_eq!(errors[0].reason, "its anchors and aliases need more than 16384 KiB");
        assert!(grown <= 2 * (16 << 20) + SLACK, "{grown} bytes");
    }
}
