use super::*;
use crate::{
    error::Reason,
    telemetry::fixtures::{Exchange, head},
};
use http::Request;
use std::collections::BTreeMap;

fn map(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    attributes.into_iter().map(|kv| (kv.key.to_string(), kv.value.to_string())).collect()
}

fn expect(attributes: Vec<KeyValue>, want: &[(&str, &str)]) {
    let want: BTreeMap<_, _> = want.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    assert_eq!(map(attributes), want);
}

fn attempt() -> TryRecord<'static> {
    TryRecord {
        endpoint: ([10, 0, 0, 9], 8080).into(),
        identity: None,
        code: Some(200),
        grpc_status: None,
        reason: None,
        resend: 0,
    }
}

#[test]
fn a_server_span_says_what_semconv_wants() {
    let exchange = Exchange::new();
    expect(
        server(&exchange.record()),
        &[
            ("url.path", "/cart/1"),
            ("url.scheme", "http"),
            ("server.address", "shop.example"),
            ("server.port", "8080"),
            ("user_agent.original", "curl/8"),
            ("network.protocol.version", "1.1"),
            ("network.peer.address", "10.0.0.7"),
            ("network.peer.port", "4711"),
            ("client.address", "10.0.0.7"),
            ("http.request.method", "GET"),
            ("http.route", "/cart/*"),
            ("http.response.status_code", "200"),
            ("weft.route", "shop/canary"),
            ("weft.rule", "2"),
            ("weft.backend", "shop/cart-v2:80"),
            ("weft.source.identity", "spiffe://cluster.local/ns/shop/sa/web"),
        ],
    );
}

#[test]
fn a_client_span_names_the_endpoint_and_the_resend() {
    let exchange = Exchange::new();
    let identity = weft_core::model::SpiffeId::new("cluster.local", "shop", "cart");
    let outcome = TryRecord {
        identity: Some(&identity),
        code: None,
        reason: Some(Reason::ConnectFailed),
        resend: 1,
        ..attempt()
    };
    expect(
        client(&exchange.record(), &outcome),
        &[
            ("url.full", "http://shop.example:8080/cart/1"),
            ("server.address", "10.0.0.9"),
            ("server.port", "8080"),
            ("network.peer.address", "10.0.0.9"),
            ("network.peer.port", "8080"),
            ("http.request.resend_count", "1"),
            ("http.request.method", "GET"),
            ("http.route", "/cart/*"),
            ("weft.route", "shop/canary"),
            ("weft.rule", "2"),
            ("weft.backend", "shop/cart-v2:80"),
            ("weft.source.identity", "spiffe://cluster.local/ns/shop/sa/web"),
            ("weft.destination.identity", "spiffe://cluster.local/ns/shop/sa/cart"),
            ("weft.reason", "connect_failed"),
            ("error.type", "connect_failed"),
        ],
    );
}

#[test]
fn names_never_hold_what_a_client_chose() {
    let mut exchange = Exchange::new();
    assert_eq!(name(&exchange.record()), "GET /cart/*");
    let strange = Request::builder().method("BREW").uri("/pot").body(()).unwrap();
    exchange.head = head(strange);
    assert_eq!(name(&exchange.record()), "HTTP /cart/*");
    let unmatched = RequestRecord { rule: None, ..exchange.record() };
    assert_eq!(name(&unmatched), "HTTP");
    let attributes = map(server(&unmatched));
    assert_eq!(attributes["http.request.method"], "_OTHER");
    assert_eq!(attributes["http.request.method_original"], "BREW");
}

#[test]
fn status_by_side() {
    let exchange = Exchange::new();
    // code, gRPC status, reason → error of the SERVER span, error of the CLIENT span
    let cases = [
        (200, None, None, None, None),
        (404, None, None, None, Some("404")),
        (404, None, Some(Reason::NoRoute), None, Some("no_route")),
        (500, None, None, Some("500"), Some("500")),
        (503, None, Some(Reason::NoEndpoint), Some("no_endpoint"), Some("no_endpoint")),
        (0, None, Some(Reason::ClientGone), Some("client_gone"), Some("client_gone")),
        (200, Some(0), None, None, None),
        (200, Some(5), None, None, Some("NOT_FOUND")),
        (200, Some(14), None, Some("UNAVAILABLE"), Some("UNAVAILABLE")),
        (200, Some(99), None, None, Some("UNKNOWN")),
    ];
    for (code, grpc_status, reason, server_side, client_side) in cases {
        let record = RequestRecord { code, grpc_status, reason, ..exchange.record() };
        assert_eq!(server_error(&record).as_deref(), server_side, "{code} {grpc_status:?} {reason:?}");
        let code = Some(code).filter(|c| *c != 0);
        let outcome = TryRecord { code, grpc_status, reason, ..attempt() };
        assert_eq!(client_error(&outcome).as_deref(), client_side, "{code:?} {grpc_status:?} {reason:?}");
    }
}

#[test]
fn grpc_has_its_own_attributes() {
    let mut exchange = Exchange::new();
    let call = Request::builder()
        .method("POST")
        .uri("http://u:p@[fd00::1]:50051/shop.Cart/Add")
        .header("content-type", "application/grpc+proto")
        .body(())
        .unwrap();
    exchange.head = head(call);
    let record = RequestRecord { grpc_status: Some(5), ..exchange.record() };
    let attributes = map(server(&record));
    assert_eq!(attributes["rpc.system.name"], "grpc");
    assert_eq!(attributes["rpc.method"], "shop.Cart/Add");
    assert_eq!(attributes["rpc.response.status_code"], "NOT_FOUND");
    // Credentials are gone, brackets too.
    assert_eq!((&*attributes["server.address"], &*attributes["server.port"]), ("fd00::1", "50051"));
    assert!(!map(client(&record, &attempt()))["url.full"].contains("u:p"));
}

#[test]
fn authorities() {
    let cases = [
        ("a.example", "a.example", "80"),
        ("a.example:81", "a.example", "81"),
        ("[::1]", "::1", "80"),
        ("[::1]:82", "::1", "82"),
        ("a:no", "a", "80"),
    ];
    for (authority, host, port) in cases {
        let mut out = Vec::new();
        address(&mut out, "server", authority, 80);
        expect(out, &[("server.address", host), ("server.port", port)]);
    }
}
