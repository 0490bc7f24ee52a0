//! Clients and servers that no one here wrote, through two agents: they must not notice.

use anyhow::{Context, Result, ensure};
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

#[test]
fn psql_against_postgresql() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let (web, db) = (mesh.pod(0, "web-1")?, mesh.pod(1, "db-1")?);
    let data = mesh.sandbox.dir().join("pg");
    let setup = format!(
        "set -e; bin=$(ls -d /usr/lib/postgresql/*/bin | tail -1); install -d -o postgres {data}; \
         chmod 755 {parent}; su postgres -c \"$bin/initdb -D {data} -A trust >/dev/null\"; \
         echo 'host all all 0.0.0.0/0 trust' >> {data}/pg_hba.conf",
        data = data.display(),
        parent = mesh.sandbox.dir().display(),
    );
    mesh.sandbox.exec(&db, &["sh", "-c", &setup], LIMIT)?.ok()?;
    let start = format!(
        "bin=$(ls -d /usr/lib/postgresql/*/bin | tail -1); exec setpriv --reuid postgres --regid postgres --clear-groups \
         $bin/postgres -D {data} -c listen_addresses='*' -c unix_socket_directories={data} -c fsync=off",
        data = data.display(),
    );
    mesh.serve(&db, "postgres", &["sh", "-c", &start], 5432)?;
    let ip = mesh.service("db", &[("pg", 5432, 5432, "")], &[&db])?.to_string();
    let query = "select sum(n)||'-'||repeat('x', 70000) from generate_series(1,1000) n";
    let argv = ["psql", "-h", &ip, "-U", "postgres", "-At", "-c", query];
    weft::sandbox::Sandbox::wait_until("psql to answer", LIMIT, || {
        mesh.sandbox
            .exec(&web, &argv, LIMIT)
            .is_ok_and(|o| o.stdout.starts_with("500500-xxxx") && o.stdout.len() > 70_000)
    })
    .with_context(|| format!("{:?}", mesh.sandbox.exec(&web, &argv, LIMIT)))?;
    // A first try may have come before the agent knew the Service: that line names no destination.
    let line = mesh.log_line(0, &["5432", "spiffe://cluster.local/ns/shop/sa/db"])?;
    ensure!(line["destination_identity"] == "spiffe://cluster.local/ns/shop/sa/db", "{line}");
    Ok(())
}

#[test]
fn swaks_and_nc_against_a_server_that_speaks_first() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let (web, mail) = (mesh.pod(0, "web-1")?, mesh.echo_pod(1, "mail-1")?);
    let ip = mesh.service("mail", &[("smtp", 25, 2525, "")], &[&mail])?.to_string();
    let swaks = [
        "swaks",
        "--server",
        &ip,
        "--port",
        "25",
        "--quit-after",
        "RCPT",
        "--to",
        "a@b.test",
        "--from",
        "c@d.test",
    ];
    weft::sandbox::Sandbox::wait_until("swaks to see the banner", LIMIT, || {
        mesh.sandbox.exec(&web, &swaks, LIMIT).is_ok_and(|o| o.stdout.contains("220 mail-1 ready"))
    })
    .with_context(|| format!("{:?}", mesh.sandbox.exec(&web, &swaks, LIMIT)))?;
    let nc = format!("printf 'QUIT\\r\\n' | nc -w 5 {ip} 25");
    expect(&mesh, &web, &["sh", "-c", &nc], "221 bye")
}
