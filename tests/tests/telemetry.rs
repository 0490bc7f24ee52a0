//! One trace in a real Jaeger, metrics that Prometheus can read, access logs that say why.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft::sandbox::{Options, Pod, Process, Sandbox};
use weft_tests::{LIMIT, Mesh, service_route};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// Jaeger in node-a's namespace: both agents reach it over the link between the nodes.
fn jaeger(mesh: &Mesh) -> Result<Process> {
    let binary = std::env::var("WEFT_TEST_JAEGER")
        .context("WEFT_TEST_JAEGER is not set: run the tests with ./dev e2e")?;
    let log = mesh.sandbox.dir().join("jaeger.log");
    let mut process = Process::start(
        &mesh.sandbox.nodes()[0].netns,
        None,
        &[&binary, "--collector.otlp.grpc.host-port=0.0.0.0:4317"],
        &[],
        &log,
    )?;
    let ready = || mesh.sandbox.agent_page(0, 16686, "/api/services").is_ok();
    Sandbox::wait_until("Jaeger", LIMIT, || ready() || !process.is_running())?;
    ensure!(process.is_running(), "{}", process.log_tail());
    Ok(process)
}

fn spans(mesh: &Mesh) -> Result<Vec<(String, String, Value)>> {
    let page: Value =
        serde_json::from_str(&mesh.sandbox.agent_page(0, 16686, &format!("/api/traces/{TRACE}"))?)?;
    let trace = &page["data"][0];
    let spans = trace["spans"].as_array().context("spans")?;
    let service = |span: &Value| {
        let process = span["processID"].as_str().unwrap_or_default();
        trace["processes"][process]["serviceName"].as_str().unwrap_or_default().to_owned()
    };
    Ok(spans
        .iter()
        .map(|s| (service(s), s["operationName"].as_str().unwrap_or_default().to_owned(), s.clone()))
        .collect())
}

fn tag<'a>(span: &'a Value, key: &str) -> Option<&'a Value> {
    span["tags"].as_array()?.iter().find(|t| t["key"] == key).map(|t| &t["value"])
}

fn world(mesh: &mut Mesh) -> Result<(Pod, String)> {
    let (web, cart) = (mesh.pod(0, "web-1")?, mesh.echo_pod(1, "cart-v1")?);
    let ip = mesh.service("cart", &[("http", 80, 8080, "http")], &[&cart])?;
    let rules = "  - name: items\n    matches: [{path: {value: /items}}]\n    backendRefs: [{name: cart, port: 80}]\n";
    mesh.sandbox.apply("route", &service_route("cart", rules))?;
    let url = format!("http://{ip}/items/7");
    mesh.wait_serving(&web, &url, &["cart-v1"])?;
    Ok((web, url))
}

#[test]
fn a_trace_in_jaeger_names_workloads_route_and_identities() -> Result<()> {
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), "http://10.77.0.1:4317".to_owned());
    let mut mesh = Mesh::with(Options { agent_env: vec![endpoint], ..Options::default() })?;
    let _jaeger = jaeger(&mesh)?;
    let (web, url) = world(&mut mesh)?;
    let traceparent = format!("traceparent: 00-{TRACE}-b7ad6b7169203331-01");
    let answer: Value =
        serde_json::from_str(&mesh.curl(&web, &["-H", &traceparent, "-H", "tracestate: a=1", &url])?.ok()?)?;
    let passed = answer["headers"]["traceparent"].as_str().unwrap_or_default();
    ensure!(passed.starts_with(&format!("00-{TRACE}-")) && !passed.contains("b7ad6b7169203331"), "{answer}");
    ensure!(answer["headers"]["tracestate"] == "a=1", "{answer}");
    Sandbox::wait_until("the spans in Jaeger", LIMIT, || spans(&mesh).is_ok_and(|s| s.len() >= 2))?;
    let spans = spans(&mesh)?;
    let client = spans
        .iter()
        .find(|(_, _, s)| tag(s, "span.kind") == Some(&"client".into()))
        .context("no CLIENT span")?;
    ensure!(client.0 == "web", "the resource must be the workload: {client:?}");
    ensure!(client.2.to_string().contains("spiffe://cluster.local/ns/shop/sa/cart"), "{client:?}");
    ensure!(
        spans.iter().any(|(_, name, _)| name == "GET /items/*"),
        "{:?}",
        spans.iter().map(|s| &s.1).collect::<Vec<_>>()
    );
    ensure!(
        passed.contains(client.2["spanID"].as_str().context("spanID")?),
        "the application must continue our span"
    );
    let line = mesh.log_line(0, &[TRACE])?;
    ensure!(line["route"] == "shop/cart" && line["rule"] == "items" && line["code"] == 200, "{line}");
    Ok(())
}

#[test]
fn metrics_name_route_backend_and_reason() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let (web, url) = world(&mut mesh)?;
    mesh.call(&web, &url, &["--count", "100"])?;
    mesh.call(&web, &url.replace("/items/7", "/none"), &["--count", "7"])?;
    let page = mesh.sandbox.agent_page(0, 15020, "/metrics")?;
    let sum = |needles: &[&str]| -> f64 {
        let lines = page.lines().filter(|l| needles.iter().all(|n| l.contains(n)));
        lines.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    };
    ensure!(sum(&["weft_requests_total{", "route_name=\"cart\"", "code=\"200\""]) >= 100.0, "{page}");
    ensure!(sum(&["weft_requests_total{", "reason=\"no_route\"", "code=\"404\""]) >= 7.0, "{page}");
    ensure!(sum(&["weft_request_duration_seconds_count{"]) >= 107.0, "{page}");
    for line in page.lines().filter(|l| !l.starts_with('#') && !l.is_empty()) {
        ensure!(line.rsplit(' ').next().is_some_and(|v| v.parse::<f64>().is_ok()), "not a sample: {line}");
    }
    Ok(())
}
