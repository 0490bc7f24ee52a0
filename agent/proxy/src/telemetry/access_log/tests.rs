use super::*;
use crate::{
    error::Reason,
    telemetry::{
        fixtures::{Exchange, peer, workload},
        record::Direction,
    },
};
use http::{HeaderValue, Method, Uri};
use proptest::prelude::*;
use serde_json::{Value, json};

fn parse(out: &[u8]) -> Value {
    assert_eq!(out.iter().filter(|b| **b == b'\n').count(), 1);
    assert_eq!(out.last(), Some(&b'\n'));
    serde_json::from_slice(out).unwrap()
}

fn line(record: &RequestRecord<'_>, query: bool) -> Value {
    let mut out = Vec::new();
    request(&mut out, record, SystemTime::UNIX_EPOCH + Duration::from_micros(1_500_000), query);
    parse(&out)
}

#[test]
fn a_request() {
    let exchange = Exchange::new();
    let want = json!({
        "time": "1970-01-01T00:00:01.500000Z", "kind": "request", "direction": "mesh",
        "source": "10.0.0.7:4711", "peer": "10.0.0.7:4711",
        "source_identity": "spiffe://cluster.local/ns/shop/sa/web",
        "source_namespace": "shop", "source_pod": "web-1", "source_workload": "web",
        "destination_namespace": "shop", "destination_pod": "cart-v2-1", "destination_workload": "cart",
        "method": "GET", "scheme": "http", "authority": "shop.example:8080", "path": "/cart/1", "user_agent": "curl/8",
        "protocol": "http", "version": "1.1", "code": 200, "bytes_in": 3, "bytes_out": 5, "duration_ms": 1.234,
        "parent": "shop/cart", "route_kind": "HTTPRoute", "route": "shop/canary", "rule": "2",
        "backend": "shop/cart-v2:80", "endpoint": "10.0.0.9:8080",
        "trace_id": "00000000000000000000000000000abc", "span_id": "0000000000000def", "tries": 1,
    });
    assert_eq!(line(&exchange.record(), false), want);
    assert_eq!(line(&exchange.record(), true)["path"], "/cart/1?secret=x");
}

#[test]
fn what_the_agent_answered_has_a_reason() {
    let exchange = Exchange::new();
    let record = RequestRecord {
        code: 503,
        grpc_status: Some(14),
        reason: Some(Reason::NoEndpoint),
        endpoint: None,
        ..exchange.record()
    };
    let got = line(&record, false);
    assert_eq!((&got["reason"], &got["grpc_status"]), (&json!("no_endpoint"), &json!(14)));
    assert_eq!(got.get("endpoint"), None);
}

#[test]
fn a_connection() {
    let (source, destination) = (workload("shop", "web-1", "web"), workload("db", "pg-0", "pg"));
    let exchange = Exchange::new();
    let record = ConnectionRecord {
        trace: Some(&exchange.trace),
        source: Some(&source),
        destination: Some(&destination),
        destination_identity: Some(&destination.identity),
        endpoint: Some(([10, 0, 0, 9], 5432).into()),
        received_bytes: 7,
        sent_bytes: 9,
        duration: Duration::from_millis(61_000),
        ..ConnectionRecord::new(Direction::Mesh, "tcp", peer())
    };
    let mut out = Vec::new();
    connection(&mut out, &record, SystemTime::UNIX_EPOCH);
    let got = parse(&out);
    assert_eq!(got["kind"], "connection");
    assert_eq!(got["destination_identity"], "spiffe://cluster.local/ns/db/sa/pg");
    assert_eq!((&got["bytes_in"], &got["bytes_out"]), (&json!(7), &json!(9)));
    assert_eq!(got["duration_ms"], json!(61_000.0));
    assert_eq!(got["protocol"], "tcp");
    assert_eq!(got["trace_id"], exchange.trace.trace_id.to_string());
    assert_eq!(got.get("detail"), None);
    out.clear();
    let denied = ConnectionRecord {
        reason: Some(crate::error::Reason::Denied),
        detail: Some("undeclared path /\"x"),
        ..record
    };
    connection(&mut out, &denied, SystemTime::UNIX_EPOCH);
    let got = parse(&out);
    assert_eq!((&got["reason"], &got["detail"]), (&json!("denied"), &json!("undeclared path /\"x")));
}

/// B3: a caller in clear was logged with the identity of the pod whose address it had.
#[test]
fn who_speaks_in_clear_has_no_identity() {
    let (source, destination) = (workload("shop", "web-1", "web"), workload("db", "pg-0", "pg"));
    let check = |direction, proved: Option<&SpiffeId>, expected: Value| {
        let record = ConnectionRecord {
            source: Some(&source),
            source_identity: proved,
            destination: Some(&destination),
            ..ConnectionRecord::new(direction, "tcp", peer())
        };
        let mut out = Vec::new();
        connection(&mut out, &record, SystemTime::UNIX_EPOCH);
        let got = parse(&out);
        let told: serde_json::Map<String, Value> = got
            .as_object()
            .unwrap()
            .iter()
            .filter(|(name, _)| name.starts_with("source_"))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        assert_eq!(Value::Object(told), expected, "{direction:?} {proved:?}");
    };
    let web = json!({"source_identity": "spiffe://cluster.local/ns/shop/sa/web", "source_namespace": "shop", "source_pod": "web-1",
        "source_workload": "web"});
    check(Direction::Inbound, None, json!({"source_by_address": "shop/web-1"}));
    check(Direction::Inbound, Some(&source.identity), web.clone());
    // A pod that this agent serves: its socket is in the captured namespace.
    check(Direction::Mesh, None, web);
}

proptest! {
    /// Whatever bytes a client sends where bytes are allowed, the line parses and tells them (or U+FFFD) back.
    #[test]
    fn hostile_bytes_stay_inside_their_string(agent in prop::collection::vec(any::<u8>(), 0..60), any_text in ".*") {
        let mut out = Vec::new();
        let mut line = Line::open(&mut out, SystemTime::UNIX_EPOCH);
        line.bytes("raw", &agent);
        line.text("text", &any_text);
        line.display("shown", &any_text);
        line.number("n", 7);
        line.close();
        let got = parse(&out);
        prop_assert_eq!(got["raw"].as_str().unwrap(), String::from_utf8_lossy(&agent));
        prop_assert_eq!(got["text"].as_str().unwrap(), &any_text);
        prop_assert_eq!(got["shown"].as_str().unwrap(), &any_text);
        prop_assert_eq!(&got["n"], &json!(7));
    }

    #[test]
    fn any_head_makes_one_line(agent in prop::collection::vec(any::<u8>(), 0..40), path in "/[ -~]{0,30}", method in "[!#-'A-Z]{1,9}") {
        let mut exchange = Exchange::new();
        exchange.head.user_agent = HeaderValue::from_bytes(&agent).ok();
        exchange.head.host = HeaderValue::from_bytes(&agent).ok();
        if let Ok(uri) = path.parse::<Uri>() {
            exchange.head.uri = uri;
        }
        if let Ok(method) = Method::from_bytes(method.as_bytes()) {
            exchange.head.method = method;
        }
        let got = line(&exchange.record(), true);
        prop_assert_eq!(got["method"].as_str().unwrap(), exchange.head.method.as_str());
        let sent = exchange.head.uri.path_and_query().map_or("", |p| p.as_str());
        prop_assert_eq!(got["path"].as_str().unwrap(), sent);
    }
}
