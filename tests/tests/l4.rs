//! Opaque TCP: server-first protocols without delay, refusals as RST, streaming without buffering.

use anyhow::{Context, Result, ensure};
use weft::sandbox::Sandbox;
use weft_tests::{LIMIT, Mesh, client_script};

#[test]
fn a_server_that_speaks_first_is_not_delayed() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let (web, mail) = (mesh.pod(0, "web-1")?, mesh.echo_pod(1, "mail-1")?);
    let ip = mesh
        .service("mail", &[("sniffed", 25, 2525, ""), ("opaque", 26, 2525, "tcp")], &[&mail])?
        .to_string();
    let script = client_script("banner.py");
    let python = weft_tests::python()?;
    let argv = [&*python, &script, &ip, "25", "26", "300"];
    let run = || mesh.sandbox.exec(&web, &argv, LIMIT);
    Sandbox::wait_until("the banner", LIMIT, || run().is_ok_and(|o| o.code == 0))
        .with_context(|| format!("{:?}", run()))?;
    // Interleaved measurements in one process: a ratio of two ports, not an absolute time. Best of three, because the
    // machine is shared.
    let mut seen = String::new();
    for _ in 0..3 {
        seen = run()?.ok()?;
        let p99: serde_json::Value = serde_json::from_str(&seen)?;
        let (sniffed, opaque) = (p99["25"].as_f64().context("p99")?, p99["26"].as_f64().context("p99")?);
        eprintln!("banner p99: sniffed {sniffed:.2} ms, declared opaque {opaque:.2} ms");
        if sniffed - opaque <= 2.0 {
            return Ok(());
        }
    }
    anyhow::bail!("the banner of a sniffed port came more than 2 ms later than of an opaque one: {seen}")
}

#[test]
fn a_refused_upstream_is_a_reset_for_the_client() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let (web, mail) = (mesh.pod(0, "web-1")?, mesh.echo_pod(1, "mail-1")?);
    let ip = mesh.service("mail", &[("none", 25, 1, "tcp"), ("ok", 26, 2525, "tcp")], &[&mail])?.to_string();
    let python = weft_tests::python()?;
    let script = client_script("refused.py");
    let ask = |host: &str, port: &str| mesh.sandbox.exec(&web, &[&*python, &script, host, port], LIMIT);
    Sandbox::wait_until("the service", LIMIT, || ask(&ip, "26").is_ok_and(|o| o.stdout.trim() == "data"))?;
    for (host, port) in [(ip.as_str(), "25"), (&mail.ip.to_string(), "1")] {
        let seen = ask(host, port)?;
        ensure!(["reset", "refused"].contains(&seen.stdout.trim()), "{host}:{port}: {seen:?}");
    }
    let line = mesh.log_line(0, &["connect", "\"reason\""])?;
    ensure!(line["reason"].as_str().is_some_and(|r| r == "connect_failed" || r == "not_listening"), "{line}");
    Ok(())
}

#[test]
fn a_gigabyte_streams_through_without_being_buffered() -> Result<()> {
    let mib: u64 = std::env::var("WEFT_TEST_STREAM_MIB").ok().and_then(|v| v.parse().ok()).unwrap_or(1024);
    let mut mesh = Mesh::new()?;
    let (web, cart) = (mesh.pod(0, "web-1")?, mesh.echo_pod(1, "cart-v1")?);
    let ports = &[("http", 80, 8080, "http"), ("tcp", 90, 9000, "tcp")];
    let ip = mesh.service("cart", ports, &[&cart])?;
    let url = format!("http://{ip}/");
    mesh.wait_serving(&web, &url, &["cart-v1"])?;
    let send = |mib: u64| -> Result<()> {
        let upload = format!("head -c {}M /dev/zero | curl -sS --noproxy '*' --fail -T - {url}", mib);
        let answer = mesh.sandbox.exec(&web, &["sh", "-c", &upload], LIMIT * 3)?.ok()?;
        ensure!(answer.contains(&format!("\"bytes\":{}", mib << 20)), "{answer}");
        let echo = format!("head -c {}M /dev/zero | nc -N -w 60 {ip} 90 | wc -c", mib);
        let answer = mesh.sandbox.exec(&web, &["sh", "-c", &echo], LIMIT * 3)?.ok()?;
        ensure!(answer.trim() == (mib << 20).to_string(), "{answer}");
        Ok(())
    };
    // Several times: buffers and windows reach their bounds at moments that scheduling decides.
    for _ in 0..8 {
        send(64)?;
    }
    let rss = |mesh: &mut Mesh, node: usize| -> Result<u64> {
        let pid = mesh.sandbox.agent(node)?.pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        // The high-water mark: what was held at the worst moment.
        let line = status.lines().find(|l| l.starts_with("VmHWM")).context("VmHWM")?;
        Ok(line.split_whitespace().nth(1).context("kB")?.parse()?)
    };
    let before = [rss(&mut mesh, 0)?, rss(&mut mesh, 1)?];
    {
        let upload = format!("head -c {mib}M /dev/zero | curl -sS --noproxy '*' --fail -T - {url}");
        mesh.sandbox.exec(&web, &["sh", "-c", &upload], LIMIT * 3)?.ok()?;
        let echo = format!("head -c {mib}M /dev/zero | nc -N -w 60 {ip} 90 | wc -c");
        let answer = mesh.sandbox.exec(&web, &["sh", "-c", &echo], LIMIT * 3)?.ok()?;
        ensure!(answer.trim() == (mib << 20).to_string(), "{answer}");
    }
    let after = [rss(&mut mesh, 0)?, rss(&mut mesh, 1)?];
    eprintln!("high-water RSS in kB: {before:?} after 64 MiB, {after:?} after {mib} MiB");
    for (node, (before, after)) in before.iter().zip(after).enumerate() {
        ensure!(
            after.saturating_sub(*before) <= 8 * 1024,
            "node {node}: RSS grew from {before} to {after} kB"
        );
    }
    Ok(())
}

#[test]
fn a_million_one_byte_writes_over_a_hundred_streams_with_a_slow_reader() -> Result<()> {
    let writes: u64 =
        std::env::var("WEFT_TEST_WRITES").ok().and_then(|v| v.parse().ok()).unwrap_or(1_000_000);
    let mut mesh = Mesh::new()?;
    let (web, cart) = (mesh.pod(0, "web-1")?, mesh.echo_pod(1, "cart-v1")?);
    let script = client_script("small_writes.py");
    let python = weft_tests::python()?;
    mesh.serve(&cart, "slow", &[&python, &script, "server", "9100"], 9100)?;
    let ip = mesh.service("cart", &[("tcp", 91, 9100, "tcp")], &[&cart])?.to_string();
    let argv = [&*python, &script, "client", &ip, "91", "100", &(writes / 100).to_string()];
    let probe = [&*python, &script, "client", &ip, "91", "1", "10"];
    Sandbox::wait_until("the service", LIMIT, || {
        mesh.sandbox.exec(&web, &probe, LIMIT).is_ok_and(|o| o.code == 0)
    })?;
    let answer = mesh.sandbox.exec(&web, &argv, LIMIT * 5)?.ok()?;
    ensure!(answer.contains(&format!("ok {writes} bytes")), "{answer}");
    Ok(())
}

/// An application's keepalive ends at its agent, so that a peer that vanished, or NAT on the way that forgets what is quiet,
/// would be noticed by nobody.
#[test]
fn what_leaves_the_mesh_is_kept_alive() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let (web, free) = (mesh.pod(0, "web-1")?, mesh.pod_in(1, "outside", "free-1")?);
    mesh.serve_echo(&free)?;
    let to = free.ip.to_string();
    let _held = mesh.sandbox.spawn(&web, "held", &["nc", "-d", &to, "9000"])?;
    let sockets = || mesh.sandbox.exec(&web, &["ss", "-Htno", "state", "established", "dst", &to], LIMIT);
    // nc asks for none itself.
    Sandbox::wait_until("the agent's connection to be kept alive", LIMIT / 4, || {
        sockets().is_ok_and(|said| said.stdout.contains("timer:(keepalive,"))
    })
    .with_context(|| format!("{:?}", sockets()))
}
