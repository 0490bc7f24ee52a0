#!/usr/bin/env python3
"""Makes gateway-api.json from the CRDs of a Gateway API release (experimental channel).

usage: generate.py DIRECTORY_WITH_CRDS > gateway-api.json

The descriptions go; types, limits, defaults and the *names* of the CEL rules stay (`src/schema/rules.rs` implements
them by hand, because its messages must say what to do). Equal subschemas are stored once, so a node refers to its
children by number. An unnamed rule stops the script: a new release must not lose a check silently.
"""
import glob, json, sys, yaml

KINDS = "GatewayClass Gateway ListenerSet HTTPRoute GRPCRoute TLSRoute TCPRoute UDPRoute ReferenceGrant BackendTLSPolicy".split()
# First match wins: a piece of the rule's text, and the name of the function that checks it.
RULES = [
    ("self == oldSelf", None),  # immutability needs the previous object: the API server's business
    ("p1.sectionName) || p1.sectionName == '') == (!has(p2.sectionName) || p2.sectionName == '')) : true", "policy-targets"),
    ("p1.port", "parent-refs"),
    ("p1.sectionName", "policy-targets"),
    ("self.caCertificateRefs", "ca-source"),
    ("self.hostname == \"\"", "san-union"), ("self.uri", "san-union"), ("self.hostname != \"\"", "san-union"),
    ("a1.type", "addresses-unique"),
    ("self.type == 'Hostname'", "address-value"),
    ("self.all(key", "label-keys"),
    ("self.all(l, l.protocol", "listeners"), ("self.all(l, (l.protocol", "listeners"), ("l1.port", "listeners"),
    ("self.exists_one(l2, l1.name == l2.name)", "listeners"),
    ("size(self.certificateRefs)", "tls-terminate"),
    ("t1.port", "ports-unique"),
    ("self[0].matches", "total-matches"),
    ("has(l2.name)", "rule-names"),
    ("self.kind == 'Service'", "service-port"),
    ("self.filter(f", "filters"), ("self.exists(f", "filters"),
    ("self.type != 'RequestHeaderModifier'", "filter-union"),
    ("has(self.requestHeaderModifier)", "filter-union"), ("has(self.responseHeaderModifier)", "filter-union"),
    ("has(self.requestMirror)", "filter-union"), ("has(self.extensionRef)", "filter-union"), ("has(self.cors)", "filter-union"),
    ("has(self.requestRedirect)", "filter-union"), ("has(self.urlRewrite)", "filter-union"), ("has(self.externalAuth)", "filter-union"),
    ("has(self.percent)", "mirror-share"),
    ("self.numerator", "fraction"),
    ("has(self.service)", "grpc-method"), ("has(self.method)", "grpc-method"),
    ("has(self.cookieConfig)", "session"),
    ("has(self.backendRefs) && size", "redirect-or-backends"),
    ("ReplacePrefixMatch' && has(f", "prefix-needs-one-match"),
    ("'*' in self", "wildcard-alone"),
    ("self.protocol ==", "external-auth"),
    ("replaceFullPath", "path-modifier"), ("replacePrefixMatch", "path-modifier"),
    ("'Exact','PathPrefix'", "path-match"),
    ("duration(self.request)", "timeouts"),
    ("self.all(h", "tls-hostnames"),
]
LIMITS = "minLength maxLength minimum maximum minItems maxItems minProperties maxProperties pattern enum default".split()
nodes, index = [], {}


def rule_name(rule, at):
    for piece, name in RULES:
        if piece in rule:
            return name
    sys.exit(f"{at}: no name for the CEL rule {rule}")


def node(schema, at):
    out = {"type": schema.get("type", "any")}
    for key in LIMITS:
        if key in schema:
            out[key] = schema[key]
    if "properties" in schema:
        out["properties"] = {k: node(v, f"{at}.{k}") for k, v in sorted(schema["properties"].items())}
    if schema.get("required"):
        out["required"] = schema["required"]
    if isinstance(schema.get("items"), dict):
        out["items"] = node(schema["items"], at + "[]")
    if isinstance(schema.get("additionalProperties"), dict):
        out["additional"] = node(schema["additionalProperties"], at + "{}")
    if schema.get("x-kubernetes-list-type") == "map":
        out["keys"] = schema["x-kubernetes-list-map-keys"]
    if schema.get("x-kubernetes-list-type") == "set":
        out["set"] = True
    rules = {rule_name(r["rule"], at) for r in schema.get("x-kubernetes-validations", [])} - {None}
    if "oneOf" in schema:  # only Gateway.spec.addresses[] has one: an IPAddress has an IP as value
        rules.add("address-value")
    if rules:
        out["rules"] = sorted(rules)
    text = json.dumps(out, sort_keys=True)
    if text not in index:
        index[text] = len(nodes)
        nodes.append(out)
    return index[text]


kinds = {}
for path in sorted(glob.glob(sys.argv[1] + "/gateway.networking.k8s.io_*.yaml")):
    for crd in yaml.safe_load_all(open(path)):
        if crd["kind"] == "CustomResourceDefinition" and crd["spec"]["names"]["kind"] in KINDS:
            v1 = next(v for v in crd["spec"]["versions"] if v["name"] == "v1")["schema"]["openAPIV3Schema"]
            kind = crd["spec"]["names"]["kind"]
            root = {k: v for k, v in v1.items() if k in ("type", "required")}
            root["properties"] = {"spec": v1["properties"]["spec"]}
            kinds[kind] = node(root, kind)
print("{\"kinds\":" + json.dumps(kinds, sort_keys=True) + ",\"nodes\":[")
print(",\n".join(json.dumps(n, sort_keys=True, separators=(",", ":"), ensure_ascii=False) for n in nodes))
print("]}")
