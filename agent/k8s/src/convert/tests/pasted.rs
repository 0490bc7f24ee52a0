//! YAML as blog posts show it, and the answer we owe. Numbers are those of the project's list.

use super::{check, of};

const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: store
spec:
  parentRefs:
  - name: gw
  rules:
";

#[test]
fn t1_filters_that_never_existed() {
    check(
        &format!(
            "{ROUTE}  - filters:
    - type: RequestTimeout
    - type: RequestRetry
    backendRefs:
    - name: store
      port: 80
"
        ),
        0,
        &[
            "t.yaml:10: HTTPRoute default/store: spec.rules[0].filters[0].type: unknown filter type \"RequestTimeout\"; use the rule's \"timeouts: {request: 10s}\" instead (GEP-1742); it is no filter",
            "t.yaml:11: HTTPRoute default/store: spec.rules[0].filters[1].type: unknown filter type \"RequestRetry\"; use the rule's \"retry: {attempts: 3, backoff: 1s}\" instead (GEP-1731, experimental channel); it is no filter",
        ],
    );
}

#[test]
fn t2_a_regex_without_type() {
    check(
        &format!(
            "{ROUTE}  - matches:
    - headers:
      - name: User-Agent
        value: \".*Mobile.*\"
      - {{name: a, value: \".*\", type: Exact}}
      - {{name: b, value: \"x/y;q=0.5\"}}
    backendRefs: [{{name: store, port: 80}}]
"
        ),
        1,
        &[
            "t.yaml:12: warning: HTTPRoute default/store: spec.rules[0].matches[0].headers[0].value: \".*Mobile.*\" looks like a regex, type is Exact (the default): it matches this very text only; add \"type: RegularExpression\" beside it, or \"type: Exact\" if it is meant literally",
        ],
    );
}

#[test]
fn t6_https_without_tls_is_accepted() {
    check(
        &of("Gateway", "{gatewayClassName: weft, listeners: [{name: a, port: 443, protocol: HTTPS}]}"),
        1,
        &[],
    );
}

#[test]
fn t10_one_rule_written_as_three() {
    let remedy = "if these rules are meant as one, keep the first \"- \" only: matches, filters and backendRefs are fields of one rule";
    let line = |n, i| {
        format!(
            "t.yaml:{n}: warning: HTTPRoute default/store: spec.rules[{i}]: rule has neither backendRefs nor redirect: it answers 500 (gRPC: UNAVAILABLE); {remedy}"
        )
    };
    check(
        &format!(
            "{ROUTE}  - matches:
    - path: {{value: /api}}
  - filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {{add: [{{name: x, value: z}}]}}
  - backendRefs:
    - {{name: store, port: 80}}
"
        ),
        1,
        &[&line(9, 0), &line(11, 1)],
    );
}

#[test]
fn t11_the_first_rule_lost_its_backend() {
    check(
        &format!(
            "{ROUTE}  - matches:
    - headers: [{{name: version, value: v2}}]
  - backendRefs: [{{name: v2, port: 80}}]
  - backendRefs: [{{name: v1, port: 80}}]
"
        ),
        1,
        &[
            "t.yaml:9: warning: HTTPRoute default/store: spec.rules[0]: rule has neither backendRefs nor redirect: it answers 500 (gRPC: UNAVAILABLE); if these rules are meant as one, keep the first \"- \" only: matches, filters and backendRefs are fields of one rule",
        ],
    );
}

#[test]
fn t12_an_old_grant() {
    check(
        "apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: g, namespace: my-app}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: infrastructure}]
  to: [{group: \"\", kind: Service}]
",
        1,
        &[
            "t.yaml:1: warning: ReferenceGrant my-app/g: apiVersion: v1beta1 is an old version; ReferenceGrant is v1 now",
        ],
    );
}

#[test]
fn t13_a_gateway_without_its_required_fields() {
    check(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: gw
spec:
  listeners:
  - name: https
    tls: {}
",
        0,
        &[
            "t.yaml:8: Gateway default/gw: spec.listeners[0].tls: mode Terminate needs certificateRefs or options; name a kubernetes.io/tls Secret: \"certificateRefs: [{name: …}]\"",
            "t.yaml:7: Gateway default/gw: spec.listeners[0].port: is required; write a port from 1 to 65535",
            "t.yaml:7: Gateway default/gw: spec.listeners[0].protocol: is required; write HTTP, HTTPS, TLS, TCP or UDP",
            "t.yaml:5: Gateway default/gw: spec.gatewayClassName: is required; name a GatewayClass, for example \"gatewayClassName: weft\"",
        ],
    );
}

#[test]
fn t14_lost_indentation() {
    check(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
name: store
spec:
  rules:
 - matches:
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
",
        1,
        &[
            "t.yaml:7: not valid YAML: while parsing a block mapping, did not find expected key; check the indentation and the quotes of this line and the one above",
        ],
    );
}

#[test]
fn t14_indentation_lost_altogether() {
    check(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\nname: store\nspec:\nrules:\n- matches: []\n",
        0,
        &[
            "t.yaml:4: warning: HTTPRoute (without name): name: unknown field, it has no effect; indent it below \"metadata\"",
            "t.yaml:6: warning: HTTPRoute (without name): rules: unknown field, it has no effect; indent it below \"spec\"",
            "t.yaml:5: HTTPRoute (without name): spec: is required; an object without spec does nothing",
        ],
    );
}

#[test]
fn other_peoples_kinds_are_ignored_with_a_word() {
    for (api, kind, help) in [
        ("networking.k8s.io/v1", "Ingress", "write a Gateway and an HTTPRoute instead"),
        (
            "cert-manager.io/v1",
            "Certificate",
            "cert-manager does not run here: add the kubernetes.io/tls Secret that it would make",
        ),
        (
            "apps/v1",
            "Deployment",
            "no pods are started here: describe them as Pod (status.podIPs) or EndpointSlice objects",
        ),
        (
            "networking.istio.io/v1",
            "Gateway",
            "this is Istio's Gateway: write one of gateway.networking.k8s.io/v1 instead",
        ),
        ("v1", "Endpoints", "write an EndpointSlice (discovery.k8s.io/v1) instead"),
    ] {
        let text = format!("apiVersion: {api}\nkind: {kind}\nmetadata: {{name: a, namespace: b}}\n");
        check(&text, 0, &[&format!("t.yaml:1: ignored: {kind} b/a: not a kind that Weft reads; {help}")]);
    }
    check(
        "apiVersion: example.com/v1\nkind: Widget\nmetadata: {name: a}\n",
        0,
        &["t.yaml:1: ignored: Widget a: not a kind that Weft reads"],
    );
    check(
        "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: a}\n",
        0,
        &[],
    );
}

#[test]
fn near_misses_are_mistakes() {
    for (text, problem) in [
        (
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HttpRoute\nmetadata: {name: a}\n",
            "t.yaml:2: HttpRoute a: kind: \"HttpRoute\" is no kind; did you mean \"HTTPRoute\"?",
        ),
        (
            "apiVersion: v1\nkind: HTTPRoute\nmetadata: {name: a}\n",
            "t.yaml:1: HTTPRoute a: apiVersion: \"v1\" has no HTTPRoute; write \"apiVersion: gateway.networking.k8s.io/v1\"",
        ),
        (
            "apiVersion: gateway.networking.k8s.io/v1alpha2\nkind: HTTPRoute\nmetadata: {name: a}\n",
            "t.yaml:1: HTTPRoute a: apiVersion: \"gateway.networking.k8s.io/v1alpha2\" has no HTTPRoute; write \"apiVersion: gateway.networking.k8s.io/v1\"",
        ),
        (
            "kind: Service\n",
            "t.yaml:1: Service: apiVersion: is required: this is no Kubernetes object; write \"apiVersion: v1\"",
        ),
        (
            "a: b\n",
            "t.yaml:1: kind: is required: this is no Kubernetes object; move files of other tools out of this directory",
        ),
        (
            "- a\n",
            "t.yaml:1: expected a Kubernetes object, found a list; move files of other tools out of this directory",
        ),
        (
            "a: {{ .Values.x }}\n",
            "t.yaml:1: a key must be text, not a list or mapping; this looks like a Helm template: render it first with \"helm template\"",
        ),
        (
            "a: x\n\tb: y\n",
            "t.yaml:2: not valid YAML: while scanning a plain scalar, found a tab; indent with spaces: YAML allows no tabs there",
        ),
    ] {
        check(text, 0, &[problem]);
    }
}

#[test]
fn lists_are_unrolled() {
    check(
        "apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Namespace
  metadata: {name: a}
- apiVersion: v1
  kind: Namespace
  metadata: {name: B}
",
        1,
        &[
            "t.yaml:9: Namespace B: metadata.name: \"B\" is not allowed as a name; use at most 63 lower-case letters, digits and -",
        ],
    );
    check(
        "apiVersion: v1\nkind: NamespaceList\nitems: [{metadata: {name: a}}, {metadata: {name: b}}]\n",
        2,
        &[],
    );
}

#[test]
fn words_that_are_booleans_for_kubectl() {
    check(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  labels:\n    team: no\n",
        1,
        &[
            "t.yaml:6: warning: Namespace a: metadata.labels.team: no is taken for text here; write \"no\" with quotes: kubectl reads the bare word as a boolean",
        ],
    );
    check(
        &of(
            "HTTPRoute",
            "{parentRefs: [{name: g}], rules: [{name: yes, backendRefs: [{name: on, port: 80}]}]}",
        ),
        1,
        &[
            "t.yaml:4: warning: HTTPRoute shop/x: spec.rules[0].backendRefs[0].name: on is taken for text here; write \"on\" with quotes: kubectl reads the bare word as a boolean",
            "t.yaml:4: warning: HTTPRoute shop/x: spec.rules[0].name: yes is taken for text here; write \"yes\" with quotes: kubectl reads the bare word as a boolean",
        ],
    );
}

#[test]
fn a_star_in_a_path_is_a_character() {
    check(
        &of(
            "HTTPRoute",
            "{parentRefs: [{name: g}], rules: [{matches: [{path: {value: /api/*}}], backendRefs: [{name: a, port: 80}]}]}",
        ),
        1,
        &[
            "t.yaml:4: warning: HTTPRoute shop/x: spec.rules[0].matches[0].path.value: \"/api/*\": the * is taken literally; write the prefix alone (PathPrefix covers what follows), or set \"type: RegularExpression\"",
        ],
    );
}

#[test]
fn routes_that_serve_nothing_are_told() {
    check(
        &of("GRPCRoute", "{}"),
        1,
        &[
            "t.yaml:4: warning: GRPCRoute shop/x: spec.parentRefs: the route has no parent and serves nothing; name the Gateway or Service that it belongs to: \"parentRefs: [{name: …}]\"",
            "t.yaml:4: warning: GRPCRoute shop/x: spec.rules: the route has no rules and serves nothing",
        ],
    );
}
