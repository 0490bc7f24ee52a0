//! The sandbox itself: pods of two nodes reach each other before any mesh is there.

use anyhow::{Result, ensure};
use weft::sandbox::{Options, PodSpec, Sandbox};
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
