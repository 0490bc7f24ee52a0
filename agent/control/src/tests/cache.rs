//! What survives a restart of the agent.

use std::os::unix::fs::PermissionsExt;

use super::*;

fn offline(bench: &Bench, node: &str, dir: &str) -> ControlClient {
    let nowhere = watch::Sender::new(None).subscribe();
    let cache_dir = Some(bench.dir.path().join(dir));
    ControlClient::start(ClientConfig { address: nowhere, cache_dir, ..bench.config(node) })
}

fn contains(hay: &[u8], needle: &[u8]) -> bool {
    hay.windows(needle.len()).any(|window| window == needle)
}

#[tokio::test]
async fn material_survives_a_restart_without_the_controller() {
    let bench = Bench::new();
    bench.material("n1", material(&["infra/cert"], &["infra/ca"]));
    let running = bench.serve(Limits::default());
    let client = bench.client("n1");
    until(&mut client.material(), |m| m.secrets.len() == 1).await;
    let dir = bench.dir.path().join("cache-n1");
    let file = dir.join("material");
    until_stored(&file, true).await;
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&dir), mode(&file)), (0o700, 0o600));
    drop(client);

    let again = offline(&bench, "n1", "cache-n1");
    assert_eq!(**again.material().borrow(), material(&["infra/cert"], &["infra/ca"]));
    drop(again);
    let other_node = offline(&bench, "n2", "cache-n1");
    assert_eq!(**other_node.material().borrow(), Material::default());
    drop(other_node);

    let client = bench.client("n1");
    connected(&client).await;
    bench.material("n1", material(&[], &["infra/ca"]));
    until(&mut client.material(), |m| m.secrets.is_empty()).await;
    until_stored(&file, false).await;
    drop(client);
    let again = offline(&bench, "n1", "cache-n1");
    assert_eq!(**again.material().borrow(), material(&[], &["infra/ca"]));
    running.stop().await;
}

/// Until the file holds the key, or not.
async fn until_stored(file: &std::path::Path, key: bool) {
    let stored = async {
        while !std::fs::read(file).is_ok_and(|bytes| contains(&bytes, KEY_BYTES) == key) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, stored).await.expect("the cache follows");
}

#[tokio::test]
async fn a_cache_that_cannot_be_used_is_no_cache() {
    let bench = Bench::new();
    for (name, content) in [("garbage", &b"\xff\xff\xff garbage"[..]), ("empty", b"")] {
        let dir = bench.dir.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("material"), content).unwrap();
        let client = offline(&bench, "n1", name);
        assert_eq!(**client.material().borrow(), Material::default(), "{name}");
    }
}
