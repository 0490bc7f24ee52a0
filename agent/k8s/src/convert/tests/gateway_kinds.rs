//! What the model holds: defaults, and every field carried over.

use super::*;
use std::time::Duration;
use weft_core::model::*;

fn route(kind: &str, spec: &str) -> Route {
    let Object::Route(route) = model(&of(kind, spec)) else { panic!("not a route") };
    Arc::unwrap_or_clone(route)
}

#[test]
fn defaults_are_those_of_the_crds() {
    let r = route("HTTPRoute", "{parentRefs: [{name: g}], rules: [{backendRefs: [{name: a, port: 80}]}]}");
    let gateway = GroupKind { group: GATEWAY_GROUP.into(), kind: "Gateway".into() };
    assert_eq!(r.parents[0].kind, gateway);
    let rule = &r.rules[0];
    assert_eq!(rule.matches, [Match { path: Some(PathMatch::Prefix("/".into())), ..Match::default() }]);
    assert_eq!(rule.backends[0].weight, 1);
    assert!(rule.backends[0].object.kind.is(Kind::Service));
    assert_eq!(rule.timeouts, Timeouts::default());
    assert_eq!(r.meta.key, ObjectKey::new("shop", "x"));

    let (objects, _) = convert_all(&of("HTTPRoute", "{parentRefs: [{name: g}]}"));
    let Object::Route(r) = &objects[0] else { panic!() };
    assert_eq!(r.rules.len(), 1, "no rules is one rule that matches everything");

    let r = route("GRPCRoute", "{parentRefs: [{name: g}], rules: [{backendRefs: [{name: a, port: 80}]}]}");
    assert_eq!(r.rules[0].matches, [Match::default()]);
    let r = route("TCPRoute", "{parentRefs: [{name: g}], rules: [{backendRefs: [{name: a, port: 80}]}]}");
    assert!(r.rules[0].matches.is_empty());

    let Object::Gateway(g) = model(&of(
        "Gateway",
        "{gatewayClassName: weft, addresses: [{value: 10.0.0.1}, {}], listeners: [{name: a, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: c}]}}]}",
    )) else {
        panic!()
    };
    assert_eq!(g.allowed_listeners, FromNamespaces::None);
    assert_eq!(g.listeners[0].allowed_namespaces, FromNamespaces::Same);
    let tls = g.listeners[0].tls.as_ref().expect("tls");
    assert_eq!(tls.mode, TlsMode::Terminate);
    assert!(tls.certificate_refs[0].kind.is(Kind::Secret));
    assert_eq!(
        g.addresses,
        [
            GatewayAddress { kind: AddressType::IpAddress, value: Some("10.0.0.1".into()) },
            GatewayAddress { kind: AddressType::IpAddress, value: None },
        ]
    );
}

const FULL_ROUTE: &str = r#"{
        parentRefs: [{group: "", kind: Service, namespace: other, name: s, sectionName: web, port: 80}],
        useDefaultGateways: All,
        hostnames: [a.example, "*.b.example"],
        rules: [{
          name: one,
          matches: [{path: {type: RegularExpression, value: "/a(b|c)+"}, method: POST,
                     headers: [{name: X-A, value: "1"}, {type: RegularExpression, name: b, value: "x+"}],
                     queryParams: [{name: q, value: v}]}],
          filters: [
            {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}], add: [{name: c, value: d}], remove: [E]}},
            {type: RequestMirror, requestMirror: {backendRef: {name: m, port: 1}, percent: 20}},
            {type: RequestMirror, requestMirror: {backendRef: {name: m, port: 1}, fraction: {numerator: 1, denominator: 3}}},
            {type: RequestMirror, requestMirror: {backendRef: {name: m, port: 1}}},
            {type: CORS, cors: {allowOrigins: ["https://a.example"], allowCredentials: true}},
            {type: URLRewrite, urlRewrite: {hostname: h.example, path: {type: ReplaceFullPath, replaceFullPath: /x}}}],
          backendRefs: [{name: b, namespace: other, port: 8080, weight: 0,
                         filters: [{type: ExtensionRef, extensionRef: {group: g.example, kind: K, name: e}}]}],
          timeouts: {request: 10s, backendRequest: 0s},
          retry: {codes: [503], attempts: 3, backoff: 100ms},
          sessionPersistence: {sessionName: s, type: Header, absoluteTimeout: 1h}}]}"#;

#[test]
fn every_field_of_an_http_rule_arrives() {
    let r = route("HTTPRoute", FULL_ROUTE);
    assert_eq!(
        r.parents,
        [ParentRef {
            kind: GroupKind { group: "".into(), kind: "Service".into() },
            namespace: Some("other".into()),
            name: "s".into(),
            section_name: Some("web".into()),
            port: Some(80),
        }]
    );
    assert_eq!(r.rules[0].name.as_deref(), Some("one"));
    assert!(matches!(&r.rules[0].matches[0].path, Some(PathMatch::Regex(p)) if p.is_match(b"/abcb")));
    let Filter::RequestHeaderModifier(headers) = &r.rules[0].filters[0] else { panic!() };
    assert_eq!((headers.set.len(), headers.add.len(), headers.remove[0].as_str()), (1, 1, "e"));
    let Filter::UrlRewrite(rewrite) = &r.rules[0].filters[5] else { panic!() };
    assert_eq!(rewrite.path, Some(PathModifier::ReplaceFullPath("/x".into())));
    assert_eq!(r.use_default_gateways.as_deref(), Some("All"));
    assert_eq!(r.hostnames.iter().map(Hostname::as_str).collect::<Vec<_>>(), ["a.example", "*.b.example"]);
    let rule = &r.rules[0];
    assert_eq!(rule.matches[0].method, Some(http::Method::POST));
    assert_eq!((rule.matches[0].headers.len(), rule.matches[0].query.len()), (2, 1));
    assert_eq!(rule.timeouts, Timeouts { request: Some(Duration::from_secs(10)), backend_request: None });
    assert_eq!(
        rule.retry,
        Some(Retry { codes: vec![503], attempts: 3, backoff: Some(Duration::from_millis(100)) })
    );
    let shares: Vec<(u32, u32)> = rule
        .filters
        .iter()
        .filter_map(|f| match f {
            Filter::RequestMirror(m) => Some((m.numerator, m.denominator)),
            _ => None,
        })
        .collect();
    assert_eq!(shares, [(20, 100), (1, 3), (100, 100)]);
    let Filter::Cors(cors) = &rule.filters[4] else { panic!() };
    assert_eq!((cors.max_age, cors.allow_credentials), (5, true));
    assert_eq!(
        rule.backends[0].filters,
        [Filter::ExtensionRef { group: "g.example".into(), kind: "K".into(), name: "e".into() }]
    );
    assert_eq!(
        rule.session,
        Some(SessionPersistence {
            name: Some("s".into()),
            header: true,
            absolute_timeout: Some(Duration::from_secs(3600)),
            idle_timeout: None,
            permanent: false,
        })
    );
}

#[test]
fn what_cannot_be_served_makes_its_rule_invalid_and_no_other() {
    let (objects, problems) = convert_all(&of(
        "HTTPRoute",
        "{parentRefs: [{name: g}], rules: [
           {matches: [{path: {type: RegularExpression, value: \"/(\"}}], backendRefs: [{name: a, port: 1}]},
           {matches: [{headers: [{type: RegularExpression, name: a, value: \"(?=x)\"}]}], backendRefs: [{name: a, port: 1}]},
           {backendRefs: [{name: a, port: 1}]}]}",
    ));
    let Object::Route(r) = &objects[0] else { panic!() };
    // Resolution judges patterns; the matches are all there, with what else they ask for.
    assert_eq!(r.rules.iter().map(|r| (r.invalid.len(), r.matches.len())).collect::<Vec<_>>(), [(0, 1); 3]);
    assert_eq!(r.patterns().map(|(at, _)| at.field()).collect::<Vec<_>>().len(), 2);
    assert_eq!(
        problems,
        [
            "t.yaml:5: HTTPRoute shop/x: spec.rules[0].matches[0].path.value: not a valid regular expression: unclosed group; correct it; until then requests that meet the rest of this match get 500",
            "t.yaml:6: HTTPRoute shop/x: spec.rules[1].matches[0].headers[0].value: not a valid regular expression: look-around, including look-ahead and look-behind, is not supported; correct it; until then requests that meet the rest of this match get 500",
        ]
    );
}

#[test]
fn a_gateway_arrives_with_every_field() {
    let Object::Gateway(g) = model(&of(
        "Gateway",
        r#"{
        gatewayClassName: weft, defaultScope: All,
        infrastructure: {labels: {a: b}, annotations: {c: d}, parametersRef: {group: weft.dev, kind: WeftGatewayConfig, name: p}},
        allowedListeners: {namespaces: {from: Selector, selector: {matchLabels: {a: b}, matchExpressions: [{key: k, operator: In, values: [v]}]}}},
        tls: {backend: {clientCertificateRef: {name: cc}}, frontend: {default: {validation: {caCertificateRefs: [{group: "", kind: ConfigMap, name: ca}]}}, perPort: [{port: 8443, tls: {validation: {mode: AllowInsecureFallback, caCertificateRefs: [{group: "", kind: ConfigMap, name: ca}]}}}]}},
        listeners: [{name: a, hostname: "*.a.example", port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}, kinds: [{kind: HTTPRoute}]}}]}"#,
    )) else {
        panic!()
    };
    let FromNamespaces::Selector(s) = &g.allowed_listeners else { panic!() };
    assert_eq!((s.match_labels.len(), s.match_expressions[0].operator), (1, SelectorOp::In));
    assert_eq!(g.listeners[0].allowed_namespaces, FromNamespaces::All);
    assert_eq!(
        g.listeners[0].allowed_kinds,
        [GroupKind { group: GATEWAY_GROUP.into(), kind: "HTTPRoute".into() }]
    );
    let tls = g.frontend_tls.as_ref().expect("frontend");
    assert!(!tls.default.as_ref().expect("default").insecure_fallback);
    assert_eq!(tls.per_port[0].0, 8443);
    assert!(tls.per_port[0].1.as_ref().expect("validation").insecure_fallback);
    assert_eq!(g.backend_client_certificate.as_ref().map(|r| &*r.name), Some("cc"));
    assert_eq!(
        g.infrastructure.as_ref().and_then(|i| i.parameters_ref.as_ref()).map(|p| &*p.name),
        Some("p")
    );

    let Object::ListenerSet(l) =
        model(&of("ListenerSet", "{parentRef: {name: g}, listeners: [{name: a, port: 80, protocol: HTTP}]}"))
    else {
        panic!()
    };
    assert_eq!(l.parent, ObjectKey::new("shop", "g"));
}

#[test]
fn a_broken_selector_lets_nobody_in() {
    let spec = |s: &str| {
        of(
            "Gateway",
            &format!(
                "{{gatewayClassName: weft, listeners: [{{name: a, port: 80, protocol: HTTP, allowedRoutes: {{namespaces: {{from: Selector{s}}}}}}}]}}"
            ),
        )
    };
    for (s, said) in [
        (
            "",
            "spec.listeners[0].allowedRoutes.namespaces: \"from: Selector\" needs a selector; add \"selector: {matchLabels: {…}}\"; until then no namespace is let in",
        ),
        (
            ", selector: {matchExpressions: [{key: a, operator: Near}]}",
            "spec.listeners[0].allowedRoutes.namespaces.selector.matchExpressions[0].operator: \"Near\" is no operator; write In, NotIn, Exists or DoesNotExist; until then no namespace is let in",
        ),
    ] {
        let (objects, problems) = convert_all(&spec(s));
        let Object::Gateway(g) = &objects[0] else { panic!() };
        assert_eq!(g.listeners[0].allowed_namespaces, FromNamespaces::None);
        assert_eq!(problems, [format!("t.yaml:4: Gateway shop/x: {said}")]);
    }
}

#[test]
fn policies_and_classes() {
    let Object::BackendTlsPolicy(p) = model(&of(
        "BackendTLSPolicy",
        r#"{targetRefs: [{group: "", kind: Service, name: s, sectionName: web}],
        validation: {hostname: a.example, wellKnownCACertificates: System, subjectAltNames: [{type: URI, uri: "spiffe://a/b"}]}, options: {x: z}}"#,
    )) else {
        panic!()
    };
    assert!(p.system_roots && p.ca_refs.is_empty());
    assert_eq!(p.targets[0].section_name.as_deref(), Some("web"));
    assert_eq!(p.subject_alt_names, [SubjectAltName::Uri("spiffe://a/b".into())]);
    let Object::GatewayClass(c) = model(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: weft}\nspec: {controllerName: weft.dev/gateway-controller}\n",
    ) else {
        panic!()
    };
    assert_eq!((&*c.controller, &*c.meta.key.namespace), (CONTROLLER_NAME, ""));
    let Object::ReferenceGrant(g) = model(&of(
        "ReferenceGrant",
        r#"{from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: a}], to: [{group: "", kind: Service}]}"#,
    )) else {
        panic!()
    };
    assert_eq!((&g.to[0].name, &*g.from[0].namespace), (&None, "a"));
}
