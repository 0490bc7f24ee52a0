use super::*;
use crate::fixtures::workload;
use MtlsMode::{Permissive, Strict};
use std::sync::Arc;
use weft_core::model::{DeclaredProbe, ProbeAsk};

#[test]
fn the_mode_of_the_moment_decides() {
    let check = |captured, known: Option<(&str, MtlsMode)>, port, expected| {
        let ip = [10, 0, 0, 1].into();
        let pod = workload("a", ip, true, captured);
        let mut config = Config::default();
        if let Some((name, mode)) = known {
            config.workloads.insert(ip, workload(name, ip, true, mode));
        }
        let action = decide(&config, &pod, SocketAddr::new(ip, port), Vec::new());
        assert_eq!(action, expected, "{captured:?} {known:?} {port}");
    };
    let pass = Action::Pass { probed: false };
    check(Permissive, None, 80, pass.clone());
    check(Strict, None, 80, Action::Refuse);
    check(Strict, Some(("a", Permissive)), 80, pass);
    check(Permissive, Some(("a", Strict)), 80, Action::Refuse);
    // The Config has not heard yet that the address has a new owner.
    check(Strict, Some(("before", Permissive)), 80, Action::Refuse);
    for port in [15001, 15006, 15008] {
        check(Permissive, None, port, Action::Refuse);
    }
}

/// A network plugin may give a pod more addresses than Kubernetes lists. On such a one a pod that became strict stayed what it
/// had been when it was captured.
#[test]
fn strict_counts_on_every_address_of_the_pod() {
    let (listed, unlisted) = ([10, 0, 0, 1].into(), [10, 0, 9, 1].into());
    let mut pod = (*workload("a", listed, true, Permissive)).clone();
    pod.ips.push(unlisted);
    let mut config = Config::default();
    config.workloads.insert(listed, workload("a", listed, true, Strict));
    let check = |config: &Config, what: &str| {
        for ip in [listed, unlisted] {
            let action = decide(config, &pod, SocketAddr::new(ip, 80), Vec::new());
            assert_eq!(action, Action::Refuse, "{ip} {what}");
        }
    };
    check(&config, "unlisted");
    config.workloads.insert(unlisted, workload("other", unlisted, true, Permissive));
    check(&config, "in dispute");
}

#[test]
fn a_strict_pod_may_be_asked_on_the_ports_of_its_own_probes() {
    let ip = [10, 0, 0, 1].into();
    let with = |name: &str, mode, ports: &[u16]| {
        let mut workload = (*workload(name, ip, true, mode)).clone();
        let tcp = |port: &u16| DeclaredProbe { port: *port, ask: ProbeAsk::Tcp };
        workload.probes = ports.iter().map(tcp).collect();
        Arc::new(workload)
    };
    let tcp = || Asked { ask: ProbeAsk::Tcp, depth: 0 };
    let moved = || Asked { ask: ProbeAsk::Https { target: "/".into(), headers: Vec::new() }, depth: 1 };
    let check =
        |pod: &Workload, known: Option<Arc<Workload>>, (port, redirected): (u16, Vec<Asked>), expected| {
            let mut config = Config::default();
            if let Some(known) = known {
                config.workloads.insert(ip, known);
            }
            let action = decide(&config, pod, SocketAddr::new(ip, port), redirected);
            assert_eq!(action, expected, "{port}");
        };
    let strict = with("a", Strict, &[80, 15008]);
    check(&strict, None, (80, vec![]), Action::Probe(vec![tcp()]));
    check(&strict, None, (81, vec![]), Action::Refuse);
    check(&strict, None, (81, vec![moved()]), Action::Probe(vec![moved()]));
    check(&strict, None, (15008, vec![]), Action::Refuse);
    check(&strict, Some(with("a", Strict, &[81])), (80, vec![]), Action::Refuse);
    check(&strict, Some(with("a", Strict, &[81])), (81, vec![]), Action::Probe(vec![tcp()]));
    check(&strict, Some(with("a", Permissive, &[81])), (81, vec![]), Action::Pass { probed: true });
    // Another pod's probes are not this one's.
    check(&strict, Some(with("before", Strict, &[81])), (81, vec![]), Action::Refuse);
}
