//! East–west: routing at the client's node, mutual TLS, what strict refuses.

use anyhow::{Result, ensure};
use weft_tests::{LIMIT, Mesh, service_route};

const HTTP: &[(&str, u16, u16, &str)] = &[("http", 80, 8080, "http")];

#[test]
fn a_weighted_route_splits_and_both_sides_know_who_spoke() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let web = mesh.pod(0, "web-1")?;
    let (v1, v2) = (mesh.echo_pod(1, "cart-v1")?, mesh.echo_pod(1, "cart-v2")?);
    let cart = mesh.service("cart", HTTP, &[&v1, &v2])?;
    mesh.service("cart-v1", HTTP, &[&v1])?;
    mesh.service("cart-v2", HTTP, &[&v2])?;
    let rules =
        "  - backendRefs: [{name: cart-v1, port: 80, weight: 75}, {name: cart-v2, port: 80, weight: 25}]\n";
    mesh.sandbox.apply("route", &service_route("cart", rules))?;
    let url = format!("http://{cart}/a");
    mesh.wait_serving(&web, &url, &["cart-v1", "cart-v2"])?;
    let tally = mesh.call(&web, &url, &["--count", "2000", "--connections", "8"])?;
    ensure!(tally.bad() == 0, "{tally:?}");
    let v2_share = tally.services["cart-v2"];
    ensure!((400..=600).contains(&v2_share), "expected about 500 of 2000 at cart-v2, saw {v2_share}");

    let echo: serde_json::Value = serde_json::from_str(&mesh.curl(&web, &[&url])?.ok()?)?;
    ensure!(echo["peer"] == web.ip.to_string(), "the server must see the client pod's address: {echo}");
    // The server's side writes its line when a connection ends; connections that carry routed requests are kept.
    mesh.call(&web, &format!("http://{}:8080/", v1.ip), &[])?;
    for (node, needle) in [(0, "\"route\""), (1, "inbound")] {
        let line = mesh.log_line(node, &[needle, "spiffe://"])?;
        ensure!(line["source_identity"] == "spiffe://cluster.local/ns/shop/sa/web", "{line}");
        ensure!(line["destination_identity"] == "spiffe://cluster.local/ns/shop/sa/cart", "{line}");
    }
    Ok(())
}

#[test]
fn errors_are_exact_404_500_503() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let (web, v1) = (mesh.pod(0, "web-1")?, mesh.echo_pod(1, "cart-v1")?);
    let cart = mesh.service("cart", HTTP, &[&v1])?;
    mesh.service("empty", HTTP, &[])?;
    let rules = "  - matches: [{path: {value: /half}}]\n    backendRefs: [{name: cart, port: 80}, {name: missing, port: 80}]\n  \
                 - matches: [{path: {value: /empty}}]\n    backendRefs: [{name: empty, port: 80}]\n  \
                 - matches: [{path: {value: /none}}]\n    backendRefs: [{name: missing, port: 80}]\n";
    mesh.sandbox.apply("route", &service_route("cart", rules))?;
    let url = |path: &str| format!("http://{cart}{path}");
    mesh.wait_code(&web, &url("/elsewhere"), &[], 404)?;
    mesh.wait_code(&web, &url("/empty"), &[], 503)?;
    mesh.wait_code(&web, &url("/none"), &[], 500)?;
    let half = mesh.call(&web, &url("/half"), &["--count", "1000"])?;
    let (ok, failed) =
        (half.codes.get(&200).copied().unwrap_or(0), half.codes.get(&500).copied().unwrap_or(0));
    ensure!(ok + failed == 1000 && (400..=600).contains(&failed), "half of the requests must fail: {half:?}");
    let line = mesh.log_line(0, &["no_endpoint"])?;
    ensure!(line["reason"] == "no_endpoint", "{line}");
    Ok(())
}

#[test]
fn strict_refuses_plaintext_and_permissive_does_not() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let (web, stranger) = (mesh.pod(0, "web-1")?, mesh.pod_in(0, "outside", "stranger")?);
    let cart = mesh.echo_pod(1, "cart-v1")?;
    let ip = mesh.service("cart", HTTP, &[&cart])?;
    let direct = format!("http://{}:8080/", cart.ip);
    mesh.wait_serving(&stranger, &direct, &["cart-v1"])?;
    mesh.set_mode("strict")?;
    weft::sandbox::Sandbox::wait_until("strict to refuse", LIMIT, || {
        mesh.call(&stranger, &direct, &["--connections", "1"]).is_ok_and(|t| !t.failures.is_empty())
    })?;
    let refused = mesh.curl(&stranger, &[&direct])?;
    ensure!(refused.code == 56 || refused.code == 7 || refused.code == 52, "curl: {refused:?}");
    let line = mesh.log_line(1, &["denied"])?;
    ensure!(line["source"].as_str().is_some_and(|s| s.starts_with(&stranger.ip.to_string())), "{line}");
    let inside = mesh.call(&web, &format!("http://{ip}/"), &["--count", "50"])?;
    ensure!(inside.bad() == 0, "{inside:?}");
    Ok(())
}

#[test]
fn a_live_edit_fails_no_request() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let web = mesh.pod(0, "web-1")?;
    let (v1, v2) = (mesh.echo_pod(1, "cart-v1")?, mesh.echo_pod(0, "cart-v2")?);
    let cart = mesh.service("cart", HTTP, &[&v1, &v2])?;
    mesh.service("cart-v1", HTTP, &[&v1])?;
    mesh.service("cart-v2", HTTP, &[&v2])?;
    let rule = |name: &str| format!("  - backendRefs: [{{name: {name}, port: 80}}]\n");
    mesh.sandbox.apply("route", &service_route("cart", &rule("cart-v1")))?;
    let url = format!("http://{cart}/");
    mesh.wait_serving(&web, &url, &["cart-v1"])?;
    let tally = std::thread::scope(|scope| -> Result<_> {
        let load = scope
            .spawn(|| mesh.call(&web, &url, &["--count", "4000", "--rate", "800", "--connections", "8"]));
        // Each edit is seen to serve before the next is made.
        for (edit, name) in ["cart-v2", "cart-v1"].iter().cycle().enumerate() {
            mesh.sandbox.apply("route", &service_route("cart", &rule(name)))?;
            let (log, backend) =
                (mesh.sandbox.access_log(0).len(), format!("\"backend\":\"shop/{name}:80\""));
            let serves = || mesh.sandbox.access_log(0).get(log..).is_some_and(|new| new.contains(&backend));
            weft::sandbox::Sandbox::wait_until(&format!("edit {edit} to serve"), LIMIT, || {
                serves() || load.is_finished()
            })?;
            if load.is_finished() {
                ensure!(edit >= 4, "only {edit} edits served while 4,000 requests ran");
                break;
            }
        }
        load.join().expect("the load's thread")
    })?;
    ensure!(tally.bad() == 0 && tally.good() == 4000, "{tally:?}");
    ensure!(tally.services.len() == 2, "both versions must have served: {tally:?}");
    Ok(())
}

#[test]
fn a_consumer_route_changes_its_own_namespace_only() -> Result<()> {
    let mut mesh = Mesh::new()?;
    mesh.sandbox.apply(
        "consumer",
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: consumer, labels: {weft.dev/mesh: enabled}}\n",
    )?;
    let (web, other) = (mesh.pod(0, "web-1")?, mesh.pod_in(0, "consumer", "web-2")?);
    let cart = mesh.echo_pod(1, "cart-v1")?;
    let ip = mesh.service("cart", HTTP, &[&cart])?;
    mesh.sandbox.apply(
        "consumer-route",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {namespace: consumer, name: cart}\nspec:\n  \
         parentRefs: [{group: \"\", kind: Service, namespace: shop, name: cart}]\n  rules:\n  \
         - matches: [{path: {value: /only-this}}]\n    backendRefs: [{name: cart, namespace: shop, port: 80}]\n",
    )?;
    mesh.wait_code(&other, &format!("http://{ip}/else"), &[], 404)?;
    mesh.wait_code(&other, &format!("http://{ip}/only-this"), &[], 200)?;
    let producer = mesh.call(&web, &format!("http://{ip}/else"), &["--count", "20"])?;
    ensure!(producer.codes.get(&200) == Some(&20), "{producer:?}");
    Ok(())
}
