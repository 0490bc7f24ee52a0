//! The sandbox itself: pods of two nodes reach each other before any mesh is there.

use anyhow::{Context as _, Result, ensure};
use std::process::Command;
use weft::sandbox::{Ip, Options, PodSpec, Sandbox};
use weft_tests::{LIMIT, weft_binary};

#[test]
fn pods_of_two_nodes_reach_each_other() -> Result<()> {
    let weft = weft_binary()?;
    let mut sandbox = Sandbox::create(Options { weft: Some(weft.clone()), ..Options::default() })?;
    let (a, b) = (sandbox.add_node("node-a")?, sandbox.add_node("node-b")?);
    let client = sandbox.create_pod(a, PodSpec::new("plain", "client", "client"))?;
    let server = sandbox.create_pod(b, PodSpec::new("plain", "server", "server"))?;
    let _echo =
        sandbox.spawn(&server, "echo", &[weft.to_str().unwrap(), "echo", "--name", "s", "--http", "8080"])?;
    for url in [format!("http://{}:8080/", server.ip), format!("http://[{}]:8080/", server.ip6)] {
        let argv = [
            "curl",
            "-sS",
            "--noproxy",
            "*",
            "--retry",
            "20",
            "--retry-connrefused",
            "--retry-delay",
            "0",
            &url,
        ];
        let answer = sandbox.exec(&client, &argv, LIMIT)?.ok()?;
        ensure!(answer.contains("\"service\":\"s\""), "{answer}");
    }
    Ok(())
}

/// A bridge without an address of its own takes the lowest of its ports': each new pod might change it, and for a second or
/// more the others would send what they have for other nodes to an address that nobody has.
#[test]
fn a_new_pod_leaves_the_gateway_of_the_others_where_it_is() -> Result<()> {
    let mut sandbox = Sandbox::create(Options { weft: Some(weft_binary()?), ..Options::default() })?;
    let node = sandbox.add_node("node-a")?;
    let netns = sandbox.nodes()[node].netns.clone();
    let gateway = || -> Result<String> {
        let shown = Command::new("ip").args(["-n", netns.name(), "-o", "link", "show", "cni0"]).output()?;
        let shown = String::from_utf8(shown.stdout)?;
        let address = shown.split_once("link/ether ").and_then(|(_, rest)| rest.split(' ').next());
        Ok(address.with_context(|| format!("no address in: {shown}"))?.to_owned())
    };
    let before = gateway()?;
    let pod = sandbox.create_pod(node, PodSpec::new("plain", "first", "first"))?;
    Ip::inside(&netns).line(&format!("link set {} address 00:00:00:00:00:01", pod.host_veth)).run()?;
    ensure!(gateway()? == before, "{} became {}", before, gateway()?);
    Ok(())
}
