//! Clients and servers that no one here wrote, through two agents: they must not notice.

use anyhow::{Result, ensure};
use weft::sandbox::Pod;
use weft_tests::{LIMIT, Mesh, client_script, python, service_route};

/// Runs a program in a pod and expects `needle` in what it prints.
fn expect(mesh: &Mesh, pod: &Pod, argv: &[&str], needle: &str) -> Result<()> {
    let output = mesh.sandbox.exec(pod, argv, LIMIT * 2)?;
    ensure!(output.code == 0 && output.stdout.contains(needle), "{argv:?}: {output:?}");
    Ok(())
}

#[test]
fn curl_and_h2load() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let (web, cart) = (mesh.pod(0, "web-1")?, mesh.echo_pod(1, "cart-v1")?);
    let ip = mesh.service(
        "cart",
        &[("http", 80, 8080, "http"), ("h2c", 81, 8080, "kubernetes.io/h2c")],
        &[&cart],
    )?;
    mesh.sandbox.apply("route", &service_route("cart", "  - backendRefs: [{name: cart, port: 80}]\n"))?;
    mesh.wait_serving(&web, &format!("http://{ip}/"), &["cart-v1"])?;
    let body = mesh.sandbox.dir().join("body");
    std::fs::write(&body, vec![b'x'; 3 << 20])?;
    let upload = format!("@{}", body.display());
    for (args, url) in [
        (&["--http1.1"][..], format!("http://{ip}/")),
        (&["--http2-prior-knowledge"], format!("http://{ip}:81/")),
        (&["-H", "Expect: 100-continue", "--data-binary", &upload], format!("http://{ip}/upload")),
        (&["-T", "-", "-H", "Transfer-Encoding: chunked"], format!("http://{ip}/chunked")),
        (&["-I"], format!("http://{ip}/head")),
    ] {
        let mut argv = args.to_vec();
        argv.extend(["--fail", &url]);
        let output = mesh.curl(&web, &argv)?;
        ensure!(output.code == 0, "{argv:?}: {output:?}");
        ensure!(
            !args.contains(&"--data-binary") || output.stdout.contains("\"bytes\":3145728"),
            "{output:?}"
        );
    }
    let h1 = ["h2load", "--h1", "-n", "2000", "-c", "8", &format!("http://{ip}/")];
    expect(&mesh, &web, &h1, "2000 succeeded, 0 failed")?;
    let h2 = ["h2load", "-n", "5000", "-c", "4", "-m", "25", &format!("http://{ip}:81/")];
    expect(&mesh, &web, &h2, "5000 succeeded, 0 failed")
}

#[test]
fn grpcio_with_trailers_and_a_hundred_streams() -> Result<()> {
    let (python, script) = (python()?, client_script("grpc_echo.py"));
    let mut mesh = Mesh::new()?;
    let (web, cart) = (mesh.pod(0, "web-1")?, mesh.pod(1, "cart-v1")?);
    mesh.serve(&cart, "grpc", &[&python, &script, "server", "50051"], 50051)?;
    let ports = &[("grpc", 80, 50051, "grpc"), ("plain", 81, 50051, "")];
    let ip = mesh.service("cart", ports, &[&cart])?;
    mesh.sandbox.apply(
        "route",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {namespace: shop, name: cart}\nspec:\n  \
         parentRefs: [{group: \"\", kind: Service, name: cart, port: 80}]\n  rules:\n  \
         - matches: [{method: {service: test.Echo}}]\n    backendRefs: [{name: cart, port: 80}]\n",
    )?;
    for port in [80, 81] {
        let target = format!("ipv4:{ip}:{port}");
        weft::sandbox::Sandbox::wait_until("the service to be known", LIMIT, || {
            mesh.sandbox
                .exec(&web, &[&python, &script, "unary", &target, "1"], LIMIT)
                .is_ok_and(|o| o.code == 0)
        })?;
        expect(&mesh, &web, &[&python, &script, "unary", &target, "50"], "ok 50 calls")?;
        let streams = [&*python, &script, "client", &target, "100", "50"];
        expect(&mesh, &web, &streams, "ok 100 streams x 50 messages")?;
    }
    Ok(())
}

#[test]
fn websockets() -> Result<()> {
    let (python, script) = (python()?, client_script("ws_echo.py"));
    let mut mesh = Mesh::new()?;
    let (web, cart) = (mesh.pod(0, "web-1")?, mesh.pod(1, "cart-v1")?);
    mesh.serve(&cart, "ws", &[&python, &script, "server", "8765"], 8765)?;
    let ip =
        mesh.service("cart", &[("ws", 80, 8765, "kubernetes.io/ws"), ("http", 81, 8765, "http")], &[&cart])?;
    mesh.sandbox.apply("route", &service_route("cart", "  - backendRefs: [{name: cart, port: 80}]\n"))?;
    for port in [80, 81] {
        let url = format!("ws://{ip}:{port}/");
        weft::sandbox::Sandbox::wait_until("the service to be known", LIMIT, || {
            mesh.sandbox
                .exec(&web, &[&python, &script, "client", &url, "1"], LIMIT)
                .is_ok_and(|o| o.code == 0)
        })?;
        expect(&mesh, &web, &[&python, &script, "client", &url, "200"], "ok 200 messages")?;
    }
    Ok(())
}
