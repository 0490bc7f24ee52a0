use super::*;
use crate::telemetry::{
    counters::Counter,
    fixtures::Exchange as Fixture,
    metrics::Handles,
    record::{ConnectionRecord, RequestRecord},
};
use std::{collections::HashMap, time::Duration};

fn text(format: ContentType) -> String {
    let registry = Arc::new(Registry::new(100, Duration::from_secs(60)));
    let handles = Handles::new(0, registry.clone());
    let mut fixture = Fixture::new();
    fixture.parent = ObjectKey::new("shop", "a\"b\\c\nd");
    handles.request(&fixture.record());
    handles.request(&RequestRecord { code: 503, direction: Direction::Gateway, ..fixture.record() });
    handles.connection(&ConnectionRecord::new(Direction::Inbound, "tcp", super::super::fixtures::peer()));
    let counters = Arc::<Counters>::default();
    counters.add(Counter::ConnectionsOpenedMesh, 3);
    counters.add(Counter::ConnectionsClosedMesh, 1);
    let own = [("weft_spans_dropped", "Dropped.", 4)];
    let view = View { workers: &[counters.clone(), counters], registry: &registry, own: &own };
    render(&view, format)
}

/// Samples by series, after checking the form: families announced once, before their samples and in one block.
fn parse(text: &str, format: ContentType) -> HashMap<String, f64> {
    let mut families: Vec<(String, String)> = Vec::new();
    let mut samples = HashMap::new();
    for line in text.lines().filter(|l| *l != "# EOF" && !l.starts_with("# HELP ")) {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(families.iter().all(|(n, _)| n != name), "{name} twice");
            families.push((name.to_owned(), kind.to_owned()));
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        let name = series.split('{').next().unwrap();
        let (family, kind) = families.last().unwrap();
        let suffixes: &[&str] = match (kind.as_str(), format) {
            ("counter", ContentType::OpenMetrics) => &["_total"],
            ("info", _) => &["_info"],
            ("histogram", _) => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        assert!(suffixes.iter().any(|s| name == format!("{family}{s}")), "{name} under {family} ({kind})");
        assert!(samples.insert(series.to_owned(), value.parse().unwrap()).is_none(), "{series} twice");
    }
    samples
}

fn one(samples: &HashMap<String, f64>, start: &str, holds: &[&str]) -> f64 {
    let found: Vec<_> = samples
        .iter()
        .filter(|(s, _)| s.starts_with(start) && holds.iter().all(|h| s.contains(h)))
        .map(|(_, v)| *v)
        .collect();
    assert_eq!(found.len(), 1, "{start} {holds:?}");
    found[0]
}

#[test]
fn both_formats_hold_the_same_samples() {
    let open = text(ContentType::OpenMetrics);
    let plain = text(ContentType::Text);
    assert!(open.ends_with("# EOF\n"));
    assert!(!plain.contains("# EOF"));
    assert_eq!(parse(&open, ContentType::OpenMetrics), parse(&plain, ContentType::Text));
    assert!(plain.contains("# TYPE weft_requests_total counter"));
    assert!(open.contains("# TYPE weft_requests counter"));
    assert!(open.contains("# TYPE weft_build info"));
    assert!(plain.contains("# TYPE weft_build_info gauge"));
}

#[test]
fn values_and_labels() {
    let samples = parse(&text(ContentType::Text), ContentType::Text);
    let check =
        |start: &str, holds: &[&str], value: f64| assert_eq!(one(&samples, start, holds), value, "{start}");
    check(
        "weft_requests_total{",
        &["direction=\"mesh\"", "code=\"200\"", "route_name=\"canary\"", "rule=\"2\""],
        1.0,
    );
    check("weft_requests_total{", &["parent_name=\"a\\\"b\\\\c\\nd\"", "code=\"503\""], 1.0);
    check("weft_request_duration_seconds_bucket{", &["direction=\"mesh\"", "le=\"0.001\""], 0.0);
    check("weft_request_duration_seconds_bucket{", &["direction=\"mesh\"", "le=\"0.0025\""], 1.0);
    check("weft_request_duration_seconds_bucket{", &["direction=\"mesh\"", "le=\"+Inf\""], 1.0);
    check("weft_request_duration_seconds_sum{", &["direction=\"mesh\""], 0.001_234);
    check("weft_response_bytes_total{", &["direction=\"mesh\"", "source_workload=\"web\""], 5.0);
    check("gateway_http_requests_total{", &["gateway_namespace=\"shop\"", "response_code=\"503\""], 1.0);
    check("gateway_http_request_duration_seconds_bucket{", &["le=\"10.0\""], 1.0);
    check("weft_connections_opened_total{", &["mesh"], 6.0);
    check("weft_connections_active{", &["mesh"], 4.0);
    check("weft_connections_ended_total{", &["direction=\"inbound\"", "protocol=\"tcp\""], 1.0);
    check("weft_spans_dropped_total", &[], 4.0);
}

#[test]
fn negotiation() {
    let cases = [
        ("", ContentType::Text),
        ("*/*", ContentType::Text),
        ("text/plain;version=0.0.4", ContentType::Text),
        (
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4",
            ContentType::OpenMetrics,
        ),
        ("Application/OpenMetrics-Text", ContentType::OpenMetrics),
        ("application/openmetrics-text; q=0, text/plain", ContentType::Text),
    ];
    for (accept, want) in cases {
        assert_eq!(negotiate(accept), want, "{accept}");
    }
}
