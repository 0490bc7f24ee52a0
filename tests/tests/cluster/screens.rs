//! `weft check` and `weft status` in good and bad states: ids and remedies for programs, and a line that says it to people.

use crate::Story;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_tests::cluster::{Cluster, Said};

/// Objects that are wrong in ways that a screen must show.
const WRONG: &str = "
{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {namespace: e2e-shop, name: e2e-dangling},
  spec: {parentRefs: [{name: edge}], rules: [{backendRefs: [{name: cart, port: 80}]}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {name: e2e-nobody},
  spec: {controllerName: example.test/nobody}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {namespace: e2e-web, name: unowned},
  spec: {gatewayClassName: e2e-nobody, listeners: [{name: http, port: 80, protocol: HTTP}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {namespace: e2e-web, name: mistyped},
  spec: {gatewayClassName: wefft, listeners: [{name: http, port: 80, protocol: HTTP}]}}
";

/// What a finding must be: its id, its level, words of its message, words of its remedy.
pub(crate) type Finding<'a> = (&'a str, &'a str, &'a str, &'a str);

/// Before anything of Weft is there.
pub(crate) fn before(cluster: &Cluster) -> Result<()> {
    if cluster.is_bed() {
        // One is enough to have no Gateways; to delete and apply them all takes half a minute.
        cluster.kubectl(&["delete", "crd", "gateways.gateway.networking.k8s.io"])?;
        check(
            cluster,
            &["--pre"],
            0,
            &[("WEFT-C005", "warning", "not installed", "install the bundle v1.6")],
        )?;
        cluster.ctl(&["crds", "experimental"])?;
    }
    let fine = ["WEFT-C001", "WEFT-C002", "WEFT-C003", "WEFT-C005", "WEFT-C006", "WEFT-C007"];
    let findings = check(cluster, &["--pre"], 0, &fine.map(|id| (id, "ok", "", "")))?;
    ensure!(findings.iter().all(|f| f["level"] == "ok"), "nothing is wrong with this cluster: {findings:?}");
    check(cluster, &[], 1, &[("WEFT-C020", "error", "not installed", "weft install")])?;
    let said = cluster.weft_says(&["status"])?;
    ensure!(said.code == 1 && said.out.contains("weft install"), "{said:?}");
    let nowhere = cluster.weft_says(&["status", "--kubeconfig", "/nonexistent/kubeconfig"])?;
    ensure!(nowhere.code == 3 && nowhere.err.contains("/nonexistent/kubeconfig"), "{nowhere:?}");
    Ok(())
}

/// With all pods in the mesh nothing is to be complained about.
pub(crate) fn good(story: &Story<'_>) -> Result<()> {
    let cluster = story.cluster;
    cluster.wait("a check without a complaint", || {
        let fine = [
            ("WEFT-C001", "ok", "Kubernetes", ""),
            ("WEFT-C020", "ok", "ready", ""),
            ("WEFT-C021", "ok", "leads", ""),
            ("WEFT-C026", "ok", "the CNI plugin is chained on", ""),
            ("WEFT-C027", "ok", "CA", ""),
            ("WEFT-C029", "ok", "accepted", ""),
            ("WEFT-C031", "ok", "pods in the mesh", ""),
        ];
        let findings = check(cluster, &[], 0, &fine)?;
        ensure!(findings.iter().all(|f| f["level"] == "ok"), "{findings:?}");
        Ok(())
    })?;
    let screen = status(cluster)?;
    ensure!(screen["installed"] == true && screen["leader"] == cluster.leader()?, "{screen}");
    for node in &story.nodes {
        let lines = screen["nodes"].as_array().context("nodes")?;
        let line = lines.iter().find(|n| n["node"] == **node).with_context(|| screen.to_string())?;
        ensure!(line["ready"] == true && line["cni"] == "installed" && line["problem"] == "", "{line}");
        ensure!(line["captured"] == line["wanted"] && line["captured"] != 0, "{line}");
    }
    for list in ["pods", "danglingParents", "unownedClasses", "notReadable"] {
        ensure!(screen[list].as_array().is_some_and(Vec::is_empty), "{list}: {screen}");
    }
    Ok(())
}

/// A dangling parent, classes that nobody serves, a caller in clear, a pod that cannot join.
pub(crate) fn bad(story: &Story<'_>) -> Result<()> {
    let cluster = story.cluster;
    cluster.apply(WRONG)?;
    cluster.apply(&hosted(&cluster.image, &story.nodes[1]))?;
    let url = story.direct("cart-v2")?;
    let tally = cluster.call(crate::STRANGER, &[&url, "--count=3", "--no-keepalive"])?;
    ensure!(tally.bad() == 0, "permissive must serve callers in clear: {tally:?}");
    let lines = [
        "HTTPRoute e2e-shop/e2e-dangling: parent Gateway e2e-shop/edge is not there; e2e-web/edge is: set parentRefs.namespace",
        "e2e-nobody: no controller example.test/nobody has looked at it (Gateways e2e-web/unowned)",
        "wefft: there is no such GatewayClass (Gateways e2e-web/mistyped)",
        "e2e-shop/hosted on",
    ];
    cluster.wait("a screen that shows what is wrong", || {
        let screen = status(cluster)?;
        let has = |list: &str, fields: &[(&str, &str)]| {
            let all = screen[list].as_array().into_iter().flatten();
            let found = all.filter(|line| fields.iter().all(|(field, value)| line[field] == *value)).count();
            ensure!(found == 1, "{list}: {fields:?}: {screen}");
            Ok(())
        };
        has("danglingParents", &[("route", "HTTPRoute e2e-shop/e2e-dangling"), ("meant", "e2e-web/edge")])?;
        has("unownedClasses", &[("class", "e2e-nobody")])?;
        has("unownedClasses", &[("class", "wefft")])?;
        has("pods", &[("pod", "e2e-shop/hosted"), ("state", "excluded")])?;
        let clear = screen["plaintext"].as_array().into_iter().flatten();
        let to_cart =
            |line: &&Value| line["to"].as_str().is_some_and(|to| to.starts_with("e2e-shop/cart-v2"));
        let caller = clear.filter(to_cart).find(|line| line["from"].to_string().contains("e2e-out/stranger"));
        ensure!(caller.is_some(), "no caller in clear: {screen}");
        let said = cluster.weft_says(&["status"])?;
        for line in lines {
            ensure!(said.code == 0 && said.out.contains(line), "no `{line}` in\n{}", said.out);
        }
        Ok(())
    })?;
    println!("{}", cluster.weft_says(&["status"])?.out);
    check(cluster, &[], 0, &[("WEFT-C032", "info", "e2e-shop/hosted", "weft.dev/mesh=disabled")])?;
    cluster.kubectl(&["-n", "e2e-shop", "delete", "pod/hosted", "httproute/e2e-dangling", "--now"])?;
    cluster.kubectl(&["-n", "e2e-web", "delete", "gateway/unowned", "gateway/mistyped"])?;
    cluster.kubectl(&["delete", "gatewayclass", "e2e-nobody"]).map(drop)
}

fn hosted(image: &str, node: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{namespace: e2e-shop, name: hosted}}\nspec:\n  hostNetwork: true\n  \
         nodeSelector: {{kubernetes.io/hostname: {node}}}\n  containers:\n  \
         - {{name: app, image: \"{image}\", imagePullPolicy: IfNotPresent, args: [echo, --name, hosted, --http, \"18080\"]}}\n"
    )
}

/// `weft status` for programs.
pub(crate) fn status(cluster: &Cluster) -> Result<Value> {
    let said = cluster.weft_says(&["status", "-o", "json"])?;
    ensure!(said.code == 0, "{said:?}");
    parsed(&said)
}

/// `weft check` ends with `code`, and each of these is among its findings.
pub(crate) fn check(
    cluster: &Cluster,
    args: &[&str],
    code: i32,
    wanted: &[Finding<'_>],
) -> Result<Vec<Value>> {
    let said = cluster.weft_says(&[&["check", "-o", "json"], args].concat())?;
    let report = parsed(&said)?;
    let findings = report["findings"].as_array().context("findings")?;
    ensure!(said.code == code && report["ok"] == (code == 0), "exit code {}: {report:#}", said.code);
    for (id, level, message, remedy) in wanted {
        let fits = |f: &&Value| {
            let has = |field: &str, words: &str| f[field].as_str().unwrap_or_default().contains(words);
            f["id"] == *id && f["level"] == *level && has("message", message) && has("remedy", remedy)
        };
        ensure!(findings.iter().any(|f| fits(&f)), "no {id} {level} `{message}` → `{remedy}` in {report:#}");
        // People are told the same.
        ensure!(said.err.contains(id), "{}", said.err);
    }
    Ok(findings.clone())
}

fn parsed(said: &Said) -> Result<Value> {
    serde_json::from_str(&said.out).with_context(|| format!("{said:?}"))
}
