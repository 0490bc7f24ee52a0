//! Schema and CEL rules: one specimen that passes, one that is refused, and what is said of it.

use super::{convert_all, of};

/// Whether a spec loads, and the first problem without its head.
#[track_caller]
fn check(kind: &str, accepted: &str, refused: &str, said: &str) {
    let (objects, problems) = convert_all(&of(kind, accepted));
    let errors: Vec<_> = problems.iter().filter(|p| !p.contains(": warning: ")).collect();
    assert!(errors.is_empty() && objects.len() == 1, "{accepted}: {errors:#?}");
    let (objects, problems) = convert_all(&of(kind, refused));
    assert!(objects.is_empty(), "{refused} loads");
    let owner = if kind == "GatewayClass" { "x" } else { "shop/x" };
    let head = format!("t.yaml:4: {kind} {owner}: ");
    let first = problems.iter().find_map(|p| p.strip_prefix(&head)).unwrap_or("nothing");
    assert_eq!(first, said, "{refused}\n{problems:#?}");
}

/// An HTTPRoute with one rule.
#[track_caller]
fn check_rule(accepted: &str, refused: &str, said: &str) {
    let route = |rule: &str| format!("{{parentRefs: [{{name: g}}], rules: [{{{rule}}}]}}");
    check("HTTPRoute", &route(accepted), &route(refused), said);
}

/// A GRPCRoute with one rule.
#[track_caller]
fn check_grpc(accepted: &str, refused: &str, said: &str) {
    let route = |rule: &str| format!("{{parentRefs: [{{name: g}}], rules: [{{{rule}}}]}}");
    check("GRPCRoute", &route(accepted), &route(refused), said);
}

/// A Gateway with these listeners.
#[track_caller]
fn check_listeners(accepted: &str, refused: &str, said: &str) {
    for kind in ["Gateway", "ListenerSet"] {
        let own = if kind == "Gateway" { "gatewayClassName: weft" } else { "parentRef: {name: g}" };
        let spec = |l: &str| format!("{{{own}, listeners: [{l}]}}");
        check(kind, &spec(accepted), &spec(refused), said);
    }
}

#[test]
fn structure() {
    let b = "backendRefs: [{name: a, port: 80}]";
    for (accepted, refused, said) in [
        (
            b,
            "backendRefs: {name: a}",
            "spec.rules[0].backendRefs: expected a list, found a mapping; start each entry with \"- \"",
        ),
        (
            b,
            "backendRefs: [{name: a, port: \"80\"}]",
            "spec.rules[0].backendRefs[0].port: expected a whole number, found the text \"80\"; remove the quotes",
        ),
        (
            b,
            "backendRefs: [{name: 7, port: 80}]",
            "spec.rules[0].backendRefs[0].name: expected text, found the number 7; put it in quotes",
        ),
        (b, "backendRefs: [{port: 80}]", "spec.rules[0].backendRefs[0].name: is required"),
        (b, "backendRefs: [{name: \"\", port: 80}]", "spec.rules[0].backendRefs[0].name: may not be empty"),
        (
            b,
            "backendRefs: [{name: a, port: 0}]",
            "spec.rules[0].backendRefs[0].port: 0 is out of range; it must be from 1 to 65535",
        ),
        (
            "backendRefs: [{name: a, port: 80, weight: 1000000}]",
            "backendRefs: [{name: a, port: 80, weight: 1000001}]",
            "spec.rules[0].backendRefs[0].weight: 1000001 is out of range; it must be from 0 to 1000000",
        ),
    ] {
        check_rule(accepted, refused, said);
    }
}

#[test]
fn values() {
    for (accepted, refused, said) in [
        (
            "timeouts: {request: 1h30m}",
            "timeouts: {request: 1.5h}",
            "spec.rules[0].timeouts.request: \"1.5h\" is not allowed; write a duration of h, m, s and ms in whole numbers, such as 500ms, 10s or 1m30s (GEP-2257)",
        ),
        (
            "retry: {codes: [400, 599]}",
            "retry: {codes: [399]}",
            "spec.rules[0].retry.codes[0]: 399 is out of range; it must be from 400 to 599",
        ),
        (
            "retry: {codes: [500]}",
            "retry: {codes: [500, 500]}",
            "spec.rules[0].retry.codes[1]: 500 is there already; each may be given once",
        ),
        (
            "retry: {attempts: 1}",
            "retry: {attempts: 0}",
            "spec.rules[0].retry.attempts: 0 is out of range; it must be at least 1",
        ),
        (
            "matches: [{method: GET}]",
            "matches: [{method: get}]",
            "spec.rules[0].matches[0].method: \"get\" is not known here; did you mean \"GET\"? it must be one of GET, HEAD, POST, PUT, DELETE, CONNECT, OPTIONS, TRACE, PATCH",
        ),
        (
            "matches: [{headers: [{name: a, value: x}, {name: b, value: x}]}]",
            "matches: [{headers: [{name: a, value: x}, {name: a, value: y}]}]",
            "spec.rules[0].matches[0].headers[1]: name \"a\" is there already; each may be given once",
        ),
        (
            "matches: [{headers: [{name: X-a, value: x}]}]",
            "matches: [{headers: [{name: \"X a\", value: x}]}]",
            "spec.rules[0].matches[0].headers[0].name: \"X a\" is not allowed; write a header name: letters, digits and -",
        ),
        (
            "filters: [{type: RequestRedirect, requestRedirect: {statusCode: 307}}]",
            "filters: [{type: RequestRedirect, requestRedirect: {statusCode: 300}}]",
            "spec.rules[0].filters[0].requestRedirect.statusCode: 300 is not allowed; it must be one of 301, 302, 303, 307, 308",
        ),
    ] {
        check_rule(accepted, refused, said);
    }
}

#[test]
fn sizes_names_and_hosts() {
    let many = |n: usize| format!("backendRefs: [{}]", vec!["{name: a, port: 80}"; n].join(", "));
    check_rule(&many(16), &many(17), "spec.rules[0].backendRefs: has 17 entries; at most 16 are allowed");
    check(
        "HTTPRoute",
        "{rules: null}",
        "{rules: []}",
        "spec.rules: has 0 entries; give at least 1, or leave the field out where the API allows it",
    );
    check(
        "HTTPRoute",
        "{hostnames: [\"*.a.example\"]}",
        "{hostnames: [\"a.*.example\"]}",
        "spec.hostnames[0]: \"a.*.example\" is not allowed; write a lower-case DNS name, with at most a \"*.\" in front",
    );
    check(
        "HTTPRoute",
        "{hostnames: [a.example]}",
        "{hostnames: [\"https://a.example\"]}",
        "spec.hostnames[0]: \"https://a.example\" is not allowed; write the host alone, without scheme and path",
    );
    check(
        "HTTPRoute",
        "{hostnames: [a.example]}",
        "{hostnames: [10.0.0.1]}",
        "spec.hostnames[0]: \"10.0.0.1\" is not a DNS name, optionally with a leading \"*.\"",
    );
    check(
        "TCPRoute",
        "{rules: [{backendRefs: [{name: a, port: 1}]}]}",
        "{rules: [{backendRefs: [{name: a, port: 1}]}, {backendRefs: [{name: a, port: 1}]}]}",
        "spec.rules: has 2 entries; at most 1 are allowed",
    );
    check(
        "GatewayClass",
        "{controllerName: weft.dev/gateway-controller}",
        "{controllerName: weft}",
        "spec.controllerName: \"weft\" is not allowed; write DOMAIN/PATH, such as weft.dev/gateway-controller",
    );
}

#[test]
fn listeners() {
    for (accepted, refused, said) in [
        (
            "{name: a, port: 80, protocol: HTTP}, {name: b, port: 80, protocol: HTTP, hostname: b.example}",
            "{name: a, port: 80, protocol: HTTP}, {name: b, port: 80, protocol: HTTP}",
            "spec.listeners[1]: has the port, protocol and hostname of listener \"a\"; change one of the three, or merge the two listeners",
        ),
        (
            "{name: a, port: 80, protocol: HTTP}, {name: b, port: 81, protocol: HTTP}",
            "{name: a, port: 80, protocol: HTTP}, {name: a, port: 81, protocol: HTTP}",
            "spec.listeners[1]: name \"a\" is there already; each may be given once",
        ),
        (
            "{name: a, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: c}]}}",
            "{name: a, port: 443, protocol: HTTP, tls: {certificateRefs: [{name: c}]}}",
            "spec.listeners[0].tls: a HTTP listener has no TLS; use \"protocol: HTTPS\" (or TLS), or remove \"tls\"",
        ),
        (
            "{name: a, port: 443, protocol: TLS, tls: {mode: Passthrough}}",
            "{name: a, port: 443, protocol: HTTPS, tls: {mode: Passthrough}}",
            "spec.listeners[0].tls.mode: an HTTPS listener cannot Passthrough; use \"mode: Terminate\", or \"protocol: TLS\" with a TLSRoute to pass TLS through",
        ),
        (
            "{name: a, port: 443, protocol: TLS, tls: {mode: Passthrough}}",
            "{name: a, port: 443, protocol: TLS}",
            "spec.listeners[0].tls: a TLS listener needs tls.mode; write \"tls: {mode: Passthrough}\" or Terminate with certificateRefs",
        ),
        (
            "{name: a, port: 443, protocol: HTTPS, tls: {options: {x: y}}}",
            "{name: a, port: 443, protocol: HTTPS, tls: {}}",
            "spec.listeners[0].tls: mode Terminate needs certificateRefs or options; name a kubernetes.io/tls Secret: \"certificateRefs: [{name: …}]\"",
        ),
        (
            "{name: a, port: 53, protocol: UDP}",
            "{name: a, port: 53, protocol: UDP, hostname: a.example}",
            "spec.listeners[0].hostname: a UDP listener cannot tell hosts apart; remove \"hostname\"",
        ),
        (
            "{name: a, port: 80, protocol: example.com/x}",
            "{name: a, port: 80, protocol: \"a b\"}",
            "spec.listeners[0].protocol: \"a b\" is not allowed; use a DNS name: lower-case letters, digits, - and .",
        ),
    ] {
        check_listeners(accepted, refused, said);
    }
}

#[test]
fn gateways() {
    let spec = |s: &str| {
        format!("{{gatewayClassName: weft, listeners: [{{name: a, port: 80, protocol: HTTP}}], {s}}}")
    };
    for (accepted, refused, said) in [
        (
            "addresses: [{value: 10.0.0.1}, {value: \"::1\"}]",
            "addresses: [{value: 10.0.0.1}, {value: 10.0.0.1}]",
            "spec.addresses[1]: \"10.0.0.1\" is there already; give each address once",
        ),
        (
            "addresses: [{type: Hostname, value: a.example}]",
            "addresses: [{value: a.example}]",
            "spec.addresses[0].value: \"a.example\" is no IP address; write one, or set \"type: Hostname\"",
        ),
        (
            "addresses: [{type: Hostname}]",
            "addresses: [{type: Hostname, value: A_b}]",
            "spec.addresses[0].value: \"A_b\" is no hostname; write a lower-case DNS name",
        ),
        (
            "infrastructure: {labels: {a.example/b: c}}",
            "infrastructure: {labels: {\"a b\": c}}",
            "spec.infrastructure.labels[a b]: is no label or annotation key; write NAME or DNS.PREFIX/NAME with at most 63 characters in NAME",
        ),
        (
            "tls: {frontend: {default: {}, perPort: [{port: 1, tls: {}}, {port: 2, tls: {}}]}}",
            "tls: {frontend: {default: {}, perPort: [{port: 1, tls: {}}, {port: 1, tls: {}}]}}",
            "spec.tls.frontend.perPort[1]: port 1 is there already; each may be given once",
        ),
    ] {
        check("Gateway", &spec(accepted), &spec(refused), said);
    }
}

#[test]
fn parents_and_rule_names() {
    for (accepted, refused, said) in [
        (
            "{parentRefs: [{name: g, sectionName: a}, {name: g, sectionName: b}]}",
            "{parentRefs: [{name: g}, {name: g}]}",
            "spec.parentRefs[1]: refers to \"g\" a second time; remove it, or give each a sectionName or port of its own",
        ),
        (
            "{parentRefs: [{name: g, port: 1}, {name: g, port: 2}]}",
            "{parentRefs: [{name: g, port: 1}, {name: g, sectionName: a}]}",
            "spec.parentRefs[1]: refers to \"g\" with and without sectionName or port; when \"g\" is named more than once, set sectionName or port in all of them",
        ),
        (
            "{parentRefs: [{name: g}, {name: g, namespace: other}]}",
            "{parentRefs: [{name: g, sectionName: a}, {name: g}]}",
            "spec.parentRefs[1]: refers to \"g\" with and without sectionName or port; when \"g\" is named more than once, set sectionName or port in all of them",
        ),
        (
            "{rules: [{name: a}, {name: b}, {}, {}]}",
            "{rules: [{name: a}, {name: a}]}",
            "spec.rules[1].name: another rule is named \"a\"; give each rule a name of its own",
        ),
    ] {
        check("HTTPRoute", accepted, refused, said);
    }
    let rules = |n: usize| {
        format!(
            "{{rules: [{}]}}",
            vec![format!("{{matches: [{}]}}", vec!["{}"; 43].join(", ")); n].join(", ")
        )
    };
    check(
        "HTTPRoute",
        &rules(2),
        &rules(3),
        "spec.rules: has 129 matches in all rules; at most 128 are allowed: split the route",
    );
    check(
        "GRPCRoute",
        &rules(2),
        &rules(3),
        "spec.rules: has 129 matches in all rules; at most 128 are allowed: split the route",
    );
}

#[test]
fn filters() {
    let modifier = "{type: RequestHeaderModifier, requestHeaderModifier: {}}";
    let redirect = "{type: RequestRedirect, requestRedirect: {}}";
    let rewrite = "{type: URLRewrite, urlRewrite: {}}";
    let mirror = |m: &str| {
        format!(
            "filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{name: a, port: 1}}, {m}}}}}]"
        )
    };
    for (accepted, refused, said) in [
        (format!("filters: [{modifier}]"), format!("filters: [{modifier}, {modifier}]"), "spec.rules[0].filters[1]: a second RequestHeaderModifier filter; put everything into the first: it may be given once a rule"),
        (format!("filters: [{redirect}]"), format!("filters: [{rewrite}, {redirect}]"), "spec.rules[0].filters[0]: URLRewrite beside RequestRedirect; keep one: a redirected request reaches no backend, so there is nothing to rewrite"),
        (format!("filters: [{redirect}], backendRefs: []"), format!("filters: [{redirect}], backendRefs: [{{name: a, port: 1}}]"), "spec.rules[0].backendRefs: stands beside a RequestRedirect filter; remove \"backendRefs\" (a redirected request reaches none) or the RequestRedirect filter"),
        (format!("filters: [{modifier}]"), "filters: [{type: RequestHeaderModifier}]".into(), "spec.rules[0].filters[0]: type is RequestHeaderModifier but \"requestHeaderModifier\" is missing; add \"requestHeaderModifier\""),
        (format!("filters: [{modifier}]"), "filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {}, requestHeaderModifier: {}}]".into(), "spec.rules[0].filters[0].requestHeaderModifier: \"requestHeaderModifier\" is given but type is ResponseHeaderModifier; set \"type: RequestHeaderModifier\" or remove \"requestHeaderModifier\""),
        (mirror("percent: 5"), mirror("percent: 5, fraction: {numerator: 1}"), "spec.rules[0].filters[0].requestMirror: has both percent and fraction; keep one of the two"),
        (mirror("fraction: {numerator: 7, denominator: 7}"), mirror("fraction: {numerator: 101}"), "spec.rules[0].filters[0].requestMirror.fraction: 101/100 is more than one; the numerator may be at most the denominator (100 by default)"),
        (mirror("percent: 100"), mirror("percent: 101"), "spec.rules[0].filters[0].requestMirror.percent: 101 is out of range; it must be from 0 to 100"),
        ("filters: [{type: CORS, cors: {allowMethods: [\"*\"]}}]".into(), "filters: [{type: CORS, cors: {allowMethods: [\"*\", GET]}}]".into(), "spec.rules[0].filters[0].cors.allowMethods: \"*\" stands beside other entries; \"*\" means all: keep it alone or remove it"),
        ("filters: [{type: CORS, cors: {allowOrigins: [\"https://*.a.example:8443\"]}}]".into(), "filters: [{type: CORS, cors: {allowOrigins: [a.example]}}]".into(), "spec.rules[0].filters[0].cors.allowOrigins[0]: \"a.example\" is not allowed; write an origin such as https://app.example.com, https://*.example.com:8443 or *"),
        ("filters: [{type: ExternalAuth, externalAuth: {protocol: GRPC, grpc: {}, backendRef: {name: a, port: 1}}}]".into(), "filters: [{type: ExternalAuth, externalAuth: {protocol: GRPC, backendRef: {name: a, port: 1}}}]".into(), "spec.rules[0].filters[0].externalAuth.grpc: \"protocol: GRPC\" and \"grpc\" go together; add \"grpc: {}\" or change the protocol"),
        ("filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /a}}}]".into(), "filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath}}}]".into(), "spec.rules[0].filters[0].urlRewrite.path: type is ReplaceFullPath but \"replaceFullPath\" is missing; add \"replaceFullPath\""),
        ("filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /a}}}]".into(), "matches: [{path: {value: /a}}, {path: {value: /b}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /a}}}]".into(), "spec.rules[0]: replacePrefixMatch cannot tell which prefix to replace; give the rule exactly one match, of type PathPrefix; put others into rules of their own"),
        ("backendRefs: [{name: a, port: 1}]".into(), "backendRefs: [{name: a}]".into(), "spec.rules[0].backendRefs[0].port: Service \"a\" is named without a port; add \"port\": the Service's port, not the container's"),
    ] {
        check_rule(&accepted, &refused, said);
    }
}

#[test]
fn matches() {
    let path = |p: &str| format!("matches: [{{path: {{type: Exact, value: \"{p}\"}}}}]");
    for (refused, said) in [
        ("a", "\"a\" does not start with /; write \"/a\""),
        ("/a//b", "\"/a//b\" contains \"//\"; write the path as it is after normalisation"),
        ("/./a", "\"/./a\" contains \"/./\"; write the path as it is after normalisation"),
        ("/a/../b", "\"/a/../b\" contains \"/../\"; write the path as it is after normalisation"),
        ("/a%2fb", "\"/a%2fb\" contains \"%2f\"; write the path as it is after normalisation"),
        ("/a%2Fb", "\"/a%2Fb\" contains \"%2F\"; write the path as it is after normalisation"),
        ("/a#b", "\"/a#b\" contains \"#\"; write the path as it is after normalisation"),
        ("/a/..", "\"/a/..\" ends with a dot segment; write the path as it is after normalisation"),
        ("/a/.", "\"/a/.\" ends with a dot segment; write the path as it is after normalisation"),
        ("/a?b=c", "\"/a?b=c\" has a character that no path may have; match the query with \"queryParams\""),
        (
            "/[a-z]+",
            "\"/[a-z]+\" has a character that no path may have; for a pattern set \"type: RegularExpression\"; otherwise percent-encode the character",
        ),
        ("/a b", "\"/a b\" has a character that no path may have; percent-encode it"),
    ] {
        check_rule(
            &path("/a.b/..c/%20"),
            &path(refused),
            &format!("spec.rules[0].matches[0].path.value: {said}"),
        );
    }
    check_rule(
        "timeouts: {request: 0s, backendRequest: 2s}",
        "timeouts: {request: 1s, backendRequest: 2s}",
        "spec.rules[0].timeouts.backendRequest: one try may take 2s but the whole request only 1s; make backendRequest at most as long as request",
    );
    check_rule(
        "sessionPersistence: {cookieConfig: {lifetimeType: Permanent}, absoluteTimeout: 1h}",
        "sessionPersistence: {cookieConfig: {lifetimeType: Permanent}}",
        "spec.rules[0].sessionPersistence: a Permanent cookie needs absoluteTimeout; add \"absoluteTimeout\": it says how long the cookie lives",
    );
    check_rule(
        "sessionPersistence: {type: Header}",
        "sessionPersistence: {type: Header, cookieConfig: {}}",
        "spec.rules[0].sessionPersistence.cookieConfig: is for type Cookie only; remove it, or set \"type: Cookie\"",
    );
    let methods = "spec.rules[0].matches[0].method";
    check_grpc(
        "matches: [{method: {service: a.B}}]",
        "matches: [{method: {}}]",
        &format!(
            "{methods}: has neither service nor method; add \"service: pkg.Service\" or \"method: Name\", or remove \"method\" to match every call"
        ),
    );
    check_grpc(
        "matches: [{method: {service: a.B, method: C}}]",
        "matches: [{method: {service: /a.B}}]",
        &format!(
            "{methods}.service: \"/a.B\" is no gRPC service name; write a name as in the .proto file without slashes, or set \"type: RegularExpression\""
        ),
    );
    check_grpc(
        "matches: [{method: {method: \"A.*\", type: RegularExpression}}]",
        "matches: [{method: {method: \"A-\"}}]",
        &format!(
            "{methods}.method: \"A-\" is no gRPC method name; write a name as in the .proto file without slashes, or set \"type: RegularExpression\""
        ),
    );
}

#[test]
fn tls_routes_and_policies() {
    let tls = |h: &str| format!("{{hostnames: [\"{h}\"], rules: [{{backendRefs: [{{name: a, port: 1}}]}}]}}");
    check(
        "TLSRoute",
        &tls("*.a.example"),
        &tls("10.0.0.1"),
        "spec.hostnames[0]: \"10.0.0.1\" is an IP address; TLS clients send no SNI for an address: use a DNS name",
    );
    check(
        "TLSRoute",
        &tls("a.example"),
        "{rules: [{backendRefs: [{name: a, port: 1}]}]}",
        "spec.hostnames: is required; a TLSRoute selects by SNI: write at least one hostname",
    );
    let target = "{group: \"\", kind: Service, name: a}";
    let policy =
        |t: &str, v: &str| format!("{{targetRefs: [{t}], validation: {{hostname: a.example, {v}}}}}");
    let system = "wellKnownCACertificates: System";
    let refs = "caCertificateRefs: [{group: \"\", kind: ConfigMap, name: ca}]";
    for (accepted, refused, said) in [
        (
            policy(target, system),
            policy(target, ""),
            "spec.validation: has neither caCertificateRefs nor wellKnownCACertificates; give one: refs to ConfigMaps with ca.crt, or \"wellKnownCACertificates: System\"",
        ),
        (
            policy(target, refs),
            policy(target, &format!("{refs}, {system}")),
            "spec.validation: has both caCertificateRefs and wellKnownCACertificates; give one: refs to ConfigMaps with ca.crt, or \"wellKnownCACertificates: System\"",
        ),
        (
            policy(target, system),
            policy(&format!("{target}, {target}"), system),
            "spec.targetRefs[1]: refers to \"a\" a second time; remove it, or give each a sectionName of its own",
        ),
        (
            policy(&format!("{target}, {{group: \"\", kind: Service, name: b}}"), system),
            policy(&format!("{target}, {{group: \"\", kind: Service, name: a, sectionName: p}}"), system),
            "spec.targetRefs[1]: refers to \"a\" with and without sectionName; when \"a\" is named more than once, set sectionName in all of them",
        ),
        (
            policy(target, &format!("{system}, subjectAltNames: [{{type: URI, uri: \"spiffe://a/b\"}}]")),
            policy(target, &format!("{system}, subjectAltNames: [{{type: URI}}]")),
            "spec.validation.subjectAltNames[0]: type is URI but \"uri\" is missing; add \"uri\"",
        ),
        (
            policy(target, &format!("{system}, subjectAltNames: [{{type: Hostname, hostname: a.example}}]")),
            policy(
                target,
                &format!("{system}, subjectAltNames: [{{type: URI, uri: \"a://b\", hostname: a.example}}]"),
            ),
            "spec.validation.subjectAltNames[0].hostname: \"hostname\" is given but type is URI; set \"type: Hostname\" or remove \"hostname\"",
        ),
    ] {
        check("BackendTLSPolicy", &accepted, &refused, said);
    }
}
