//! Whose an address is.

use super::*;
use crate::{
    engine::claims::Claims,
    model::{Labels, MESH_LABEL, Meta, MtlsMode, TunnelPort},
};
use proptest::prelude::*;

const IP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 0, 1));

/// A pod that claims [`IP`].
fn claimant(name: &str, node: &str, created: i64, standing: Standing) -> Pod {
    let label = if standing == Standing::Told { "disabled" } else { "enabled" };
    Pod {
        meta: Meta {
            key: ObjectKey::new("shop", name),
            uid: name.into(),
            generation: 1,
            created,
            labels: [(MESH_LABEL.into(), label.into())].into_iter().collect(),
            annotations: Labels::new(),
            origin: None,
        },
        ips: vec![IP],
        service_account: "sa".into(),
        node: Some(node.into()),
        host_network: false,
        captured: Some(standing <= Standing::Enrolled),
        proved: if standing == Standing::Proved { vec![IP] } else { Vec::new() },
        tunnel: TunnelPort::default(),
        finished: false,
        probes: Arc::default(),
    }
}

fn claims(pods: &[Pod], here: Option<&Str>) -> Addresses {
    let mut out = Claims::default();
    for pod in pods {
        let workload = Arc::new(Workload::derive(pod, None, "cluster.local", MtlsMode::Permissive));
        out.put(IP, rank(pod, &workload, IP, here), workload);
    }
    out
}

/// `pod enrolled`, `disputed` or `free`.
fn shown(pods: &[Pod], here: Option<&Str>) -> String {
    match holder(&claims(pods, here), IP) {
        Holder::Pod(w) => format!("{} {}", w.pod.name, if w.enrolled { "mTLS" } else { "clear" }),
        Holder::Disputed => "disputed".to_owned(),
        Holder::Free => "free".to_owned(),
    }
}

#[test]
fn whose_an_address_is() {
    use Standing::{Enrolled, Joining, Proved, Told};
    let check = |pods: &[(&str, &str, i64, Standing)], expected: &str| {
        let pods: Vec<Pod> = pods.iter().map(|(name, node, at, s)| claimant(name, node, *at, *s)).collect();
        assert_eq!(shown(&pods, Some(&"n1".into())), expected, "{pods:?}");
    };
    check(&[], "free");
    check(&[("a", "n2", 1, Told)], "a clear");
    check(&[("a", "n2", 1, Joining)], "a clear");
    check(&[("a", "n2", 1, Proved)], "a mTLS");
    // B1: a newer Pod object that repeats the address.
    check(&[("a", "n2", 1, Proved), ("forged", "n3", 9, Told)], "a mTLS");
    check(&[("a", "n2", 1, Proved), ("forged", "n3", 9, Joining)], "a mTLS");
    check(&[("a", "n2", 1, Proved), ("forged", "n3", 9, Enrolled)], "a mTLS");
    // An agent of the version before does not say what it read.
    check(&[("a", "n2", 1, Enrolled), ("forged", "n3", 9, Told)], "a mTLS");
    // Two proofs, while one is being withdrawn: what the own node's agent read counts.
    check(&[("a", "n1", 1, Proved), ("forged", "n3", 9, Proved)], "a mTLS");
    check(&[("a", "n2", 1, Joining), ("forged", "n3", 9, Told)], "disputed");
    // Reuse among pods outside the mesh.
    check(&[("old", "n2", 1, Told), ("new", "n2", 2, Told)], "new clear");
    check(&[("old", "n2", 1, Enrolled), ("new", "n2", 2, Proved)], "new mTLS");
}

fn any_standing() -> impl Strategy<Value = Standing> {
    use Standing::{Enrolled, Joining, Proved, Told};
    prop_oneof![Just(Proved), Just(Enrolled), Just(Joining), Just(Told)]
}

proptest! {
    /// Whatever is told by whoever, in whatever order: an address of which somebody is enrolled, or about to be beside others,
    /// is never spoken to in clear, and a proof outweighs all that is told.
    #[test]
    fn no_claim_makes_an_enrolled_pods_address_clear(
        told in proptest::collection::vec((any_standing(), 0i64..9, 1u8..4), 1..6),
        order in any::<u64>(),
    ) {
        let mut pods: Vec<Pod> = told
            .iter()
            .enumerate()
            .map(|(i, (standing, at, node))| claimant(&format!("p{i}"), &format!("n{node}"), *at, *standing))
            .collect();
        let here = Some(Str::from("n1"));
        let before = shown(&pods, here.as_ref());
        let by = usize::try_from(order % pods.len() as u64).unwrap();
        pods.rotate_left(by);
        prop_assert_eq!(&shown(&pods, here.as_ref()), &before, "the order in which they came");
        let any = |of: Standing| told.iter().any(|(standing, ..)| *standing == of);
        if any(Standing::Proved) || any(Standing::Enrolled) {
            prop_assert!(before.ends_with("mTLS"), "{}", before);
        } else if any(Standing::Joining) && told.len() > 1 {
            prop_assert_eq!(before.as_str(), "disputed");
        }
        if any(Standing::Proved) {
            let claims = claims(&pods, here.as_ref());
            let Holder::Pod(first) = holder(&claims, IP) else { panic!("it is somebody's") };
            let pod = pods.iter().find(|p| p.meta.key == first.pod).unwrap();
            prop_assert!(pod.proved.contains(&IP));
        }
    }
}
