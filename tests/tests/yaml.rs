//! YAML as people paste it from blog posts: `weft run --dry-run` must say what is wrong and what to do.

use anyhow::{Result, ensure};
use std::process::Command;
use weft_tests::weft_binary;

const BASE: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: weft}
spec: {controllerName: weft.dev/gateway-controller}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {namespace: infra, name: edge}
spec:
  gatewayClassName: weft
  listeners:
  - {name: http, port: 80, protocol: HTTP, hostname: '*.apps.company.com', allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {network-access: 'true'}}}}}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {network-access: 'true'}}
---
apiVersion: v1
kind: Namespace
metadata: {name: unlabelled}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: app}
spec: {clusterIP: 10.96.0.7, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: other, name: app}
spec: {clusterIP: 10.96.0.8, ports: [{port: 80}]}
";

fn route(name: &str, spec: &str) -> String {
    let spec = spec.trim_end().replace('\n', "\n  ");
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{namespace: shop, name: {name}}}\nspec:\n  {spec}\n"
    )
}

const PARENT: &str = "parentRefs: [{namespace: infra, name: edge}]\n";

/// Runs `weft run --dry-run` over the base and `yaml`; everything in `expected` must be printed.
fn check(name: &str, yaml: &str, expected: &[&str]) -> Result<()> {
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("base.yaml"), BASE)?;
    std::fs::write(dir.path().join("pasted.yaml"), yaml.trim_start_matches("---\n"))?;
    let output =
        Command::new(weft_binary()?).args(["run", "--dry-run", "--config"]).arg(dir.path()).output()?;
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    for needle in expected {
        ensure!(said.contains(needle), "{name}: expected `{needle}` in:\n{said}");
    }
    ensure!(said.contains("Gateway infra/edge"), "{name}: the rest must keep working:\n{said}");
    Ok(())
}

#[test]
fn pasted_yaml_gets_the_answer_it_needs() -> Result<()> {
    let backend = "backendRefs: [{name: app, port: 80}]";
    let rules = |inner: &str| format!("{PARENT}rules:\n- {inner}\n  {backend}\n");
    let t1 = route("t1", &rules("filters: [{type: RequestTimeout, requestTimeout: 10s}]"));
    check("T1", &t1, &["pasted.yaml:", "shop/t1", "RequestTimeout", "timeouts"])?;
    let t2 = route("t2", &rules("matches: [{headers: [{name: User-Agent, value: '.*Mobile.*'}]}]"));
    check("T2", &t2, &["shop/t2", "Exact", "RegularExpression"])?;
    let hosts = "hostnames: [www.company.com, a.apps.company.com]\n";
    check("T3", &route("t3", &format!("{hosts}{}", rules("name: r"))), &["shop/t3", "www.company.com"])?;
    let none = "hostnames: [payments.company.com]\n";
    check("T3b", &route("t3b", &format!("{none}{}", rules("name: r"))), &["NoMatchingListenerHostname"])?;
    let t4 = route("t4", &rules("name: r")).replace("namespace: shop", "namespace: unlabelled");
    check("T4", &t4, &["NotAllowedByListeners", "network-access"])?;
    let t5 =
        route("t5", &format!("{PARENT}rules:\n- backendRefs: [{{name: app, namespace: other, port: 80}}]\n"));
    check("T5", &t5, &["RefNotPermitted", "ReferenceGrant"])?;
    let t6 = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {namespace: infra, name: tls}\nspec:\n  \
              gatewayClassName: weft\n  listeners: [{name: https, port: 443, protocol: HTTPS}]\n";
    check("T6", t6, &["Gateway infra/tls", "Programmed=False", "tls"])?;
    let t8 = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: alb}\nspec:\n  \
              controllerName: weft.dev/gateway-controller\n  parametersRef: {group: elbv2.k8s.aws, kind: ALBConfig, name: x}\n";
    check("T8", t8, &["GatewayClass alb", "InvalidParameters"])?;
    let store = "matches: [{path: {type: PathPrefix, value: /store}}]";
    let t9 = route("t9-a", &rules(store)) + &route("t9-b", &rules(store));
    check("T9", &t9, &["shadowed by HTTPRoute shop/t9-a"])?;
    let t10 = route("t10", &format!("{PARENT}rules:\n- matches: [{{path: {{value: /api}}}}]\n- {backend}\n"));
    check("T10", &t10, &["shop/t10", "neither backendRefs nor"])?;
    let t12 = "---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {namespace: shop, name: g}\nspec:\n  \
               from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: infrastructure}]\n  to: [{group: '', kind: Service}]\n";
    check("T12", t12, &["shop/g", "v1"])?;
    let t13 = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {namespace: infra, name: bare}\nspec:\n  \
               listeners: [{name: x, tls: {}}]\n";
    check("T13", t13, &["infra/bare", "gatewayClassName", "required"])?;
    let t14 = "---\napiVersion: v1\nkind: Service\nmetadata:\nname: x\n  namespace: y\n";
    check("T14", t14, &["pasted.yaml:"])?;
    let foreign =
        "---\napiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {namespace: shop, name: old}\n";
    check("foreign", foreign, &["Ingress", "ignored"])
}

/// CI of routes goes by the exit code: also what would be refused by status, not by syntax, must fail it.
#[test]
fn errors_make_the_exit_code_one() -> Result<()> {
    let lost = format!(
        "{BASE}{}",
        route("lost", &format!("{PARENT}rules:\n- backendRefs: [{{name: nowhere, port: 80}}]\n"))
    );
    let gateway = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {namespace: infra, name: twin}\nspec:\n  \
                   gatewayClassName: weft\n  listeners: [{name: http, port: 80, protocol: HTTP}]\n";
    let clash = format!("{BASE}{gateway}");
    for (yaml, code) in [(BASE, 0), ("kind: [", 1), (&*lost, 1), (&*clash, 1)] {
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("a.yaml"), yaml)?;
        let output =
            Command::new(weft_binary()?).args(["run", "--dry-run", "--config"]).arg(dir.path()).output()?;
        ensure!(output.status.code() == Some(code), "{yaml}: {output:?}");
    }
    Ok(())
}

/// What we ask people to copy must be right, and the README must show the very file.
#[test]
fn our_own_examples_are_clean() -> Result<()> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (example, kind) in [("gateway", "HTTPRoute"), ("mesh", "HTTPRoute"), ("addresses", "Gateway")] {
        let from = root.join("manifests/examples").join(example);
        // An installation brings its class along; files must have one.
        let with_class = tempfile::tempdir()?;
        let dir = if example == "addresses" {
            std::fs::copy(from.join("addresses.yaml"), with_class.path().join("addresses.yaml"))?;
            let class = "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: weft}\n\
                         spec: {controllerName: weft.dev/gateway-controller}\n";
            std::fs::write(with_class.path().join("class.yaml"), class)?;
            with_class.path().to_owned()
        } else {
            from
        };
        let output =
            Command::new(weft_binary()?).args(["run", "--dry-run", "--config"]).arg(&dir).output()?;
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let bad = said.lines().filter(|l| l.contains("=False") && !l.contains("Conflicted=False")).count();
        ensure!(
            output.status.success() && said.contains("0 errors, 0 warnings") && bad == 0,
            "{example}:\n{said}"
        );
        ensure!(said.contains(kind) && said.contains("Accepted=True"), "{example}:\n{said}");
    }
    // The settings' example names a Gateway: beside the one of the Gateway's example it must be clean too.
    let both = tempfile::tempdir()?;
    for file in ["gateway/all.yaml", "agent/agent-config.yaml"] {
        let to = both.path().join(file.replace('/', "-"));
        std::fs::copy(root.join("manifests/examples").join(file), to)?;
    }
    let output =
        Command::new(weft_binary()?).args(["run", "--dry-run", "--config"]).arg(both.path()).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && said.contains("127.0.0.2") && said.contains("0 errors, 0 warnings"),
        "{said}"
    );
    let readme = std::fs::read_to_string(root.join("README.md"))?;
    ensure!(
        readme.contains(&std::fs::read_to_string(root.join("manifests/examples/gateway/all.yaml"))?),
        "README differs"
    );
    Ok(())
}
