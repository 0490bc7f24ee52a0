use super::*;

fn env(pairs: &'static [(&'static str, &'static str)]) -> impl Fn(&str) -> Option<String> {
    move |name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned())
}

fn check(
    pairs: &'static [(&'static str, &'static str)],
    want: impl FnOnce(TraceConfig) -> TraceConfig,
    problems: usize,
) {
    let base = TraceConfig { endpoint: Some("http://own:4317".into()), ..TraceConfig::default() };
    let (got, said) = base.clone().with_env(env(pairs));
    assert_eq!(got, want(base), "{pairs:?}");
    assert_eq!(said.len(), problems, "{said:?}");
}

#[test]
fn nothing_changes_without_variables() {
    check(&[], |c| c, 0);
    check(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " "), ("OTEL_TRACES_SAMPLER", "")], |c| c, 0);
}

#[test]
fn endpoints() {
    let other = |c| TraceConfig { endpoint: Some("http://b:4317".into()), ..c };
    check(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://b:4317")], other, 0);
    let both: &[_] = &[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:4317"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://b:4317"),
    ];
    check(both, other, 0);
    let off = |c| TraceConfig { endpoint: None, ..c };
    check(&[("OTEL_SDK_DISABLED", "True")], off, 0);
    check(&[("OTEL_TRACES_EXPORTER", "none")], off, 0);
    check(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")], off, 1);
    check(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")], |c| c, 0);
}

#[test]
fn samplers() {
    let with = |ratio, parent_based| move |c| TraceConfig { ratio, parent_based, ..c };
    check(&[("OTEL_TRACES_SAMPLER", "always_on")], with(1.0, false), 0);
    check(&[("OTEL_TRACES_SAMPLER", "parentbased_always_off")], with(0.0, true), 0);
    check(
        &[("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0.25")],
        with(0.25, true),
        0,
    );
    check(&[("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "7")], |c| c, 1);
    check(&[("OTEL_TRACES_SAMPLER", "xray")], |c| c, 1);
}

#[test]
fn limits_and_resource() {
    let batch: &[_] = &[
        ("OTEL_BSP_MAX_QUEUE_SIZE", "100"),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
        ("OTEL_RESOURCE_ATTRIBUTES", "k8s.cluster.name=east, team=a%20b%"),
    ];
    let resource = vec![("k8s.cluster.name".into(), "east".into()), ("team".into(), "a b%".into())];
    let interval = Duration::from_millis(50);
    check(batch, |c| TraceConfig { queue_max: 100, batch_max: 100, interval, resource, ..c }, 1);
}
