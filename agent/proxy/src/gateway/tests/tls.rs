//! HTTPS and TLS listeners: who is chosen by server name, which certificate is shown, which clients come in.

use super::support::{
    Bed, Certificate, client, client_of, connect, demanding, exchange, get, get_once, host, http_app,
    http_port, http1, https, l4_rule, opaque_termination, tcp, tcp_app, termination, tls_port,
};
use crate::context::Limits;
use rustls::HandshakeKind;
use std::{io, net::SocketAddr};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use weft_core::{
    config::{FailReason, TlsListener, Transport},
    matching::HostMap,
    model::{RouteKind, TlsSettings, TlsVersion},
};

/// Status and body of one request over TLS.
async fn ask(client: &TlsConnector, to: SocketAddr, name: &str) -> io::Result<(u16, String)> {
    let io = connect(client, to, name).await?;
    get(&mut http1(io).await, name).await.map_err(io::Error::other)
}

fn ok(body: &str) -> (u16, String) {
    (200, body.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_name_chooses_listener_and_certificate() {
    let mut bed = Bed::new("127.21.1.1");
    let (shop, other) = (http_app("shop").await, http_app("other").await);
    let shop = bed.service("shop", Transport::Tcp, &[shop]);
    let other = bed.service("other", Transport::Tcp, &[other]);
    let exact = Certificate::leaf(&["shop.test"]);
    let wild = Certificate::leaf(&["*.shop.test"]);
    let deep = Certificate::leaf(&["a.b.shop.test"]);
    let listeners = [
        ("shop.test", https("shop.test", &termination(&[&exact], None), &shop)),
        // The certificate by name, else the first.
        ("*.shop.test", https("*.shop.test", &termination(&[&wild, &deep], None), &other)),
    ];
    bed.gateway("a", [(tcp(8443), tls_port(listeners)), (tcp(8080), http_port(&shop))]);
    bed.apply_well().await;
    let to = bed.at(8443);
    assert_eq!(ask(&client(&[&exact], None, &["http/1.1"]), to, "shop.test").await.unwrap(), ok("shop"));
    assert_eq!(ask(&client(&[&wild], None, &[]), to, "WWW.shop.test").await.unwrap(), ok("other"));
    assert_eq!(ask(&client(&[&deep], None, &[]), to, "a.b.shop.test").await.unwrap(), ok("other"));
    let mut h2 = connect(&client(&[&exact], None, &["h2"]), to, "shop.test").await.unwrap();
    assert_eq!(h2.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    h2.shutdown().await.unwrap();
    // No listener has the name; no name at all has none either.
    for name in ["else.test", "127.21.1.1"] {
        let error = ask(&client(&[&exact], None, &[]), to, name).await.expect_err("no listener");
        assert!(error.to_string().contains("UnrecognisedName"), "{name}: {error}");
    }
    assert_eq!(get_once(bed.at(8080), "shop.test").await, Ok(ok("shop")));
    assert!(bed.metric(r#"weft_tls_handshakes_total{side="listener",result="ok"} 4"#));
    assert!(bed.metric(r#"weft_tls_handshakes_total{side="listener",result="failed"} 2"#));
}

/// B11: a minimum version was written down, and TLS 1.2 was spoken all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_speaks_no_less_than_its_options_say() {
    use rustls::CipherSuite as Suite;
    let mut bed = Bed::new("127.21.9.1");
    let app = http_app("app").await;
    let app = bed.service("app", Transport::Tcp, &[app]);
    let certificate = Certificate::leaf(&["any.test", "newest.test", "one.test"]);
    let listener = |name: &'static str, min_version, suites: &[&'static str]| {
        let settings = TlsSettings { min_version, suites: suites.to_vec() };
        (name, https(name, &demanding(&certificate, settings), &app))
    };
    let listeners = [
        listener("any.test", TlsVersion::V12, &[]),
        listener("newest.test", TlsVersion::V13, &[]),
        listener("one.test", TlsVersion::V12, &["TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"]),
    ];
    bed.gateway("a", [(tcp(8443), tls_port(listeners))]);
    bed.apply_well().await;
    for (suite, served) in [
        (Suite::TLS13_AES_128_GCM_SHA256, &["any.test", "newest.test"][..]),
        (Suite::TLS13_AES_256_GCM_SHA384, &["any.test", "newest.test"]),
        (Suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, &["any.test"]),
        (Suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, &["any.test", "one.test"]),
    ] {
        let client = client_of(&certificate, suite);
        for name in ["any.test", "newest.test", "one.test"] {
            let answer = ask(&client, bed.at(8443), name).await;
            assert_eq!(answer.is_ok(), served.contains(&name), "{suite:?} {name}: {answer:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_is_shown_while_kept_connections_go_on() {
    let mut bed = Bed::new("127.21.2.1");
    let shop = http_app("shop").await;
    let shop = bed.service("shop", Transport::Tcp, &[shop]);
    let (old, new) = (Certificate::leaf(&["shop.test"]), Certificate::leaf(&["shop.test"]));
    let mut rotate = async |certificate: &Certificate| {
        let listener = https("shop.test", &termination(&[certificate], None), &shop);
        bed.gateway("a", [(tcp(8443), tls_port([("shop.test", listener)]))]);
        bed.apply_well().await;
        bed.at(8443)
    };
    let to = rotate(&old).await;
    let mut kept = http1(connect(&client(&[&old], None, &[]), to, "shop.test").await.unwrap()).await;
    assert_eq!(get(&mut kept, "shop.test").await.unwrap(), ok("shop"));
    rotate(&new).await;
    assert_eq!(get(&mut kept, "shop.test").await.unwrap(), ok("shop"));
    assert_eq!(ask(&client(&[&new], None, &[]), to, "shop.test").await.unwrap(), ok("shop"));
    ask(&client(&[&old], None, &[]), to, "shop.test").await.expect_err("the old certificate is gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_show_certificates_as_the_listener_demands() {
    let mut bed = Bed::new("127.21.3.1");
    let shop = http_app("shop").await;
    let shop = bed.service("shop", Transport::Tcp, &[shop]);
    let server = Certificate::leaf(&["must.test", "may.test", "leaf.test"]);
    // The other CA has the same subject.
    let (ca, other_ca) = (Certificate::ca(), Certificate::ca());
    let anchor = Certificate::leaf(&[]);
    let own = Certificate::client_of(&ca);
    let foreign = Certificate::client_of(&other_ca);
    let must = https("must.test", &termination(&[&server], Some((&ca, false))), &shop);
    let leaf = https("leaf.test", &termination(&[&server], Some((&anchor, false))), &shop);
    let may = https("may.test", &termination(&[&server], Some((&ca, true))), &shop);
    bed.gateway("a", [(tcp(8443), tls_port([("must.test", must), ("may.test", may), ("leaf.test", leaf)]))]);
    bed.apply_well().await;
    let to = bed.at(8443);
    let table: [(&str, Option<&Certificate>, bool); 9] = [
        ("must.test", Some(&own), true),
        ("must.test", None, false),
        ("must.test", Some(&foreign), false),
        ("must.test", Some(&anchor), false),
        ("leaf.test", Some(&anchor), true),
        ("leaf.test", Some(&own), false),
        ("may.test", Some(&own), true),
        ("may.test", None, true),
        ("may.test", Some(&foreign), true),
    ];
    for (row, (name, certificate, admitted)) in table.into_iter().enumerate() {
        let answer = ask(&client(&[&server], certificate, &[]), to, name).await;
        assert_eq!(answer.is_ok_and(|a| a == ok("shop")), admitted, "row {row}: {name}");
    }
}

/// B9: a session ticket outlived the client's certificate, since a resumed session verifies nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_a_client_certificate_opened_is_not_resumed() {
    let mut bed = Bed::new("127.21.9.1");
    let shop = http_app("shop").await;
    let shop = bed.service("shop", Transport::Tcp, &[shop]);
    let server = Certificate::leaf(&["must.test", "may.test", "open.test"]);
    let ca = Certificate::ca();
    let own = Certificate::client_of(&ca);
    let listener = |name: &str, demand| https(name, &termination(&[&server], demand), &shop);
    let must = listener("must.test", Some((&ca, false)));
    let may = listener("may.test", Some((&ca, true)));
    let open = listener("open.test", None);
    bed.gateway("a", [(tcp(8443), tls_port([("must.test", must), ("may.test", may), ("open.test", open)]))]);
    bed.apply_well().await;
    for (name, resumes) in [("must.test", false), ("may.test", false), ("open.test", true)] {
        let client = client(&[&server], Some(&own), &[]);
        let mut kinds = Vec::new();
        for _ in 0..2 {
            let mut io = connect(&client, bed.at(8443), name).await.unwrap();
            // Tickets come after the handshake, before the answer.
            let request = format!("GET / HTTP/1.1\r\nhost: {name}\r\nconnection: close\r\n\r\n");
            io.write_all(request.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            io.read_to_end(&mut answer).await.unwrap();
            assert!(answer.starts_with(b"HTTP/1.1 200"), "{name}");
            kinds.push(io.get_ref().1.handshake_kind());
        }
        let expected = if resumes { HandshakeKind::Resumed } else { HandshakeKind::Full };
        assert_eq!(kinds, [Some(HandshakeKind::Full), Some(expected)], "{name}");
    }
}

/// What passes TLS on: a rule, no rule, a rule that cannot be served, no listener (TLSRouteHostnameIntersection).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passthrough_and_termination_reach_the_routes_of_the_server_name() {
    let mut bed = Bed::new("127.21.4.1");
    let inner = Certificate::leaf(&["pass.test"]);
    let outer = Certificate::rsa_leaf(&["end.test", "bad.test", "none.test"]);
    // The application of the passthrough route: another listener of ours, which ends TLS itself.
    let shop = http_app("shop").await;
    let shop = bed.service("shop", Transport::Tcp, &[shop]);
    let behind = bed.service("behind", Transport::Tcp, &[bed.at(9443)]);
    let echo = tcp_app("hi ").await;
    let echo = bed.service("echo", Transport::Tcp, &[echo]);
    let routes = |name: &str, target| HostMap::build([(host(name), l4_rule(RouteKind::Tls, [(1, target)]))]);
    let end = |name: &str, target| TlsListener::Terminate {
        tls: opaque_termination(&outer),
        routes: routes(name, target),
    };
    let listeners = [
        ("pass.test", TlsListener::Passthrough { routes: routes("pass.test", Ok(behind)) }),
        ("end.test", end("end.test", Ok(echo))),
        ("bad.test", end("bad.test", Err(FailReason::InvalidBackend))),
        ("none.test", TlsListener::Passthrough { routes: HostMap::default() }),
    ];
    let inner_port = tls_port([("pass.test", https("pass.test", &termination(&[&inner], None), &shop))]);
    bed.gateway("a", [(tcp(8443), tls_port(listeners)), (tcp(9443), inner_port)]);
    bed.apply_well().await;
    let to = bed.at(8443);
    assert_eq!(ask(&client(&[&inner], None, &[]), to, "pass.test").await.unwrap(), ok("shop"));
    let io = connect(&client(&[&outer], None, &["h2"]), to, "end.test").await.unwrap();
    assert_eq!(exchange(io, b"there").await.unwrap(), "hi there");
    for name in ["bad.test", "none.test", "nobody.test"] {
        let ended = async {
            let mut io = connect(&client(&[&outer], None, &[]), to, name).await?;
            io.read(&mut [0; 1]).await
        };
        assert_eq!(ended.await.expect_err(name).kind(), io::ErrorKind::ConnectionReset, "{name}");
    }
}

/// A ClientHello in pieces; bytes that are none; a client that says nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_hellos() {
    let mut bed = Bed::with_limits("127.21.5.1", Limits { handshake_timeout_ms: 1_000, ..Limits::default() });
    let shop = http_app("shop").await;
    let shop = bed.service("shop", Transport::Tcp, &[shop]);
    let certificate = Certificate::leaf(&["shop.test"]);
    let listener = https("shop.test", &termination(&[&certificate], None), &shop);
    bed.gateway("a", [(tcp(8443), tls_port([("shop.test", listener)]))]);
    bed.apply_well().await;
    let to = bed.at(8443);
    // Through a relay that hands on one byte at a time.
    let relay = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = relay.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut client, _) = relay.accept().await.unwrap();
        let mut server = TcpStream::connect(to).await.unwrap();
        server.set_nodelay(true).unwrap();
        let mut byte = [0; 1];
        for _ in 0..300 {
            client.read_exact(&mut byte).await.unwrap();
            server.write_all(&byte).await.unwrap();
            tokio::task::yield_now().await;
        }
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    });
    assert_eq!(ask(&client(&[&certificate], None, &[]), at, "shop.test").await.unwrap(), ok("shop"));
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x16\x03\x01", b""] {
        let mut io = TcpStream::connect(to).await.unwrap();
        io.write_all(bytes).await.unwrap();
        let end = tokio::time::timeout(super::support::PATIENCE, io.read(&mut [0; 1])).await.expect("an end");
        assert_eq!(end.expect_err("a reset").kind(), io::ErrorKind::ConnectionReset, "{bytes:?}");
    }
}
