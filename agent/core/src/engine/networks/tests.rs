//! From which networks pods have their addresses.

use super::*;
use proptest::prelude::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn nets(list: &[&str]) -> Vec<IpNet> {
    list.iter().map(|n| n.parse().unwrap()).collect()
}

fn networks(configured: &[&str], cidrs: &[&str], proved: &[&str], nodes: &[&[&str]]) -> PodNetworks {
    let proved: BTreeMap<IpNet, usize> = proved.iter().filter_map(|a| Some((block(ip(a))?, 1))).collect();
    let nodes: Vec<Vec<IpAddr>> = nodes.iter().map(|node| node.iter().map(|a| ip(a)).collect()).collect();
    let nodes: Vec<&[IpAddr]> = nodes.iter().map(Vec::as_slice).collect();
    PodNetworks::new(Told {
        configured: &nets(configured),
        cidrs: &nets(cidrs).into_iter().collect(),
        proved: &proved,
        nodes: &nodes,
    })
}

#[test]
fn where_pods_are() {
    let check = |of: PodNetworks, pods: &[&str], others: &[&str]| {
        for address in pods {
            assert!(of.contains(ip(address)), "{address} in {of:?}");
        }
        for address in others {
            assert!(!of.contains(ip(address)), "{address} in {of:?}");
        }
    };
    let hosts: &[&[&str]] = &[&["172.18.0.2"], &["172.18.0.3"], &["172.18.0.4"]];
    check(networks(&[], &["10.244.1.0/24"], &[], hosts), &["10.244.1.7"], &["10.244.2.7", "172.18.0.2"]);
    // B10: nodes without podCIDRs. The first proved address tells, for the blocks of other nodes too.
    check(networks(&[], &[], &[], hosts), &[], &["10.244.1.7"]);
    let learned = networks(&[], &[], &["10.244.1.7", "fd00:10:244:1::7"], hosts);
    check(learned, &["10.244.9.9", "fd00:10:244:9::1"], &["10.96.0.1", "10.250.0.9", "172.18.0.2"]);
    // The network plugin gives addresses from elsewhere than the nodes say.
    check(networks(&[], &["10.244.1.0/24"], &["192.168.3.3"], hosts), &["192.168.77.1", "10.244.1.7"], &[]);
    // Pods share their network with the nodes, and so with databases.
    let flat: &[&[&str]] = &[&["10.0.1.2"], &["10.0.2.3"], &["10.0.3.4"]];
    check(networks(&[], &[], &["10.0.1.77"], flat), &["10.0.1.78"], &["10.0.1.2", "10.0.9.9", "10.0.2.3"]);
    // Said by the administrator: nothing else counts.
    check(
        networks(&["10.32.0.0/12"], &["10.244.1.0/24"], &["192.168.3.3"], hosts),
        &["10.33.0.1"],
        &["10.244.1.7", "192.168.3.3"],
    );
}

/// What one stolen node may say of itself.
#[test]
fn a_stolen_nodes_words_prove_nothing() {
    let hosts: &[&[&str]] = &[&["172.18.0.2"], &["172.18.0.3"], &["172.18.0.4", "10.244.7.7"]];
    let learned = networks(&[], &["0.0.0.0/0", "::/0"], &["10.244.1.7", "8.8.8.8"], hosts);
    assert!(learned.contains(ip("10.244.7.7")), "its own address, it says: it is a pod's all the same");
    assert!(learned.contains(ip("10.244.9.9")), "the network is no narrower for it");
    for outside in ["8.8.8.8", "93.184.216.34", "2001:db8::1"] {
        assert!(!learned.contains(ip(outside)), "{outside}");
    }
}

proptest! {
    /// Without a word from anybody, each proved address makes its own block a pods' network, whatever one node says.
    #[test]
    fn a_proved_addresses_neighbours_are_pods(
        proved in proptest::collection::vec(any::<[u8; 2]>(), 1..6),
        neighbour in 1u8..255,
        liar in any::<[u8; 2]>(),
    ) {
        let text: Vec<String> = proved.iter().map(|[b, c]| format!("10.{b}.{c}.200")).collect();
        let text: Vec<&str> = text.iter().map(String::as_str).collect();
        let own = format!("10.{}.{}.9", liar[0], liar[1]);
        let nodes: &[&[&str]] = &[&["172.18.0.2"], &["172.18.0.3"], &["172.18.0.4", own.as_str()]];
        let of = networks(&[], &[], &text, nodes);
        for [b, c] in &proved {
            let beside = format!("10.{b}.{c}.{neighbour}");
            prop_assert!(of.contains(ip(&beside)), "{}", beside);
        }
    }
}
