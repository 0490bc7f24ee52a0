//! Addresses of Gateways on a node, in a namespace of its own. Needs root.
#![allow(clippy::unwrap_used)] // clippy knows #[test] functions, not the helpers of an integration test

use std::{collections::BTreeSet, net::IpAddr, process::Command};
use weft_inpod::Announcer;

const OWN: &str = "10.77.0.2";

fn run(line: &str) -> String {
    let mut words = line.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn addresses() -> BTreeSet<String> {
    let shown = run("ip -o -4 addr show dev eth7");
    shown.lines().filter_map(|l| l.split_whitespace().nth(3)).map(str::to_owned).collect()
}

async fn hold(announcer: &Announcer, wanted: &[&str]) {
    let wanted: BTreeSet<IpAddr> = wanted.iter().map(|ip| ip.parse().unwrap()).collect();
    announcer.hold(&[OWN.parse().unwrap()], wanted).await.unwrap();
}

fn check(expected: &[&str]) {
    let own = format!("{OWN}/24");
    let expected: BTreeSet<String> = expected.iter().map(|s| (*s).to_owned()).chain([own]).collect();
    assert_eq!(addresses(), expected);
}

#[test]
fn addresses_are_held_given_up_and_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("addresses");
    // A thread of its own ends with its namespace.
    std::thread::scope(|scope| {
        let in_namespace = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            run("ip link add eth7 type veth peer name eth8");
            run("ip addr add 10.77.0.2/24 dev eth7");
            run("ip link set eth7 up");
            run("ip link set eth8 up");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let announcer = Announcer::new(file.clone());
                hold(&announcer, &["10.77.0.50", "10.77.0.51"]).await;
                check(&["10.77.0.50/32", "10.77.0.51/32"]);
                hold(&announcer, &["10.77.0.51"]).await;
                check(&["10.77.0.51/32"]);
                // Its successor knows what to give up.
                let successor = Announcer::new(file.clone());
                hold(&successor, &["10.77.0.52"]).await;
                check(&["10.77.0.52/32"]);
                hold(&successor, &[]).await;
                check(&[]);
                let stranger = ["192.0.2.1".parse().unwrap()];
                let refused = successor.hold(&stranger, BTreeSet::from([OWN.parse().unwrap()])).await;
                let error = refused.unwrap_err().to_string();
                assert!(
                    error.contains("no interface has one of this node's own addresses (192.0.2.1)"),
                    "{error}"
                );
            });
        });
        in_namespace.join().unwrap();
    });
}
