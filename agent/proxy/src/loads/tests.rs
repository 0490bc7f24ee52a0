//! The balancer's memory: what it keeps, for how long, and what it makes of it.

use super::*;
use crate::telemetry::{Telemetry, TelemetryConfig};
use weft_core::{
    config::{AppProtocol, Reach, Transport},
    model::{MtlsMode, ObjectKey, SpiffeId, Workload},
};

fn loads() -> Rc<Loads> {
    Loads::new(Telemetry::detached(TelemetryConfig::default()).unwrap().worker(), Arc::default(), None)
}

fn backend(name: &str) -> Backend {
    let service = ObjectKey::new("shop", name);
    let key = BackendKey { service, port: 80, transport: Transport::Tcp, reach: Reach::default() };
    Backend { key, protocol: AppProtocol::Http, tls: None, client_ip_affinity: None }
}

fn addr(pod: u8) -> SocketAddr {
    SocketAddr::from(([10, 244, 0, pod], 8080))
}

/// A pod; every ten are on a node.
fn endpoint(pod: u8) -> Endpoint {
    let workload = Workload {
        pod: ObjectKey::new("shop", format!("pod-{pod}")),
        ips: vec![addr(pod).ip()],
        identity: SpiffeId::new("cluster.local", "shop", "default"),
        node: Some(format!("node-{}", pod / 10).into()),
        enrolled: true,
        mode: MtlsMode::Permissive,
        app: "app".into(),
        probes: Arc::default(),
        labelled: true,
        tunnel: weft_core::model::TunnelPort::Hbone,
    };
    Endpoint { addr: addr(pod), workload: Some(Arc::new(workload)), zone: None }
}

fn set(pods: &[u8]) -> Arc<EndpointSet> {
    Arc::new(EndpointSet { ready: pods.iter().map(|pod| endpoint(*pod)).collect() })
}

/// A clock, draws and requests that are answered at once.
struct Bed {
    loads: Rc<Loads>,
    backend: Backend,
    now: Instant,
    draws: u64,
}

impl Bed {
    fn new() -> Self {
        Self { loads: loads(), backend: backend("app"), now: Instant::now(), draws: 0 }
    }

    fn choose(&mut self, set: &Arc<EndpointSet>, tried: &[SocketAddr]) -> (u8, InFlight) {
        self.ask(set, tried, true)
    }

    /// `tells`: whether the outcome will be told.
    fn ask(&mut self, set: &Arc<EndpointSet>, tried: &[SocketAddr], tells: bool) -> (u8, InFlight) {
        self.draws += 1;
        let draw = self.draws.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let share = ShareKey::Pod(ObjectKey::new("shop", "client"));
        let client = [10, 1, 1, 1].into();
        let choice = Choice { backend: &self.backend, set, share: &share, client, tried };
        let choose = if tells { Loads::choose } else { Loads::choose_untold };
        let (index, in_flight) = choose(&self.loads, &choice, self.now, draw).unwrap();
        let SocketAddr::V4(addr) = set.ready[index].addr else { panic!("IPv4 only") };
        (addr.ip().octets()[3], in_flight)
    }

    /// Percent of a thousand requests that each pod gets; all are answered, but by those in `dead`.
    fn shares(&mut self, set: &Arc<EndpointSet>, dead: &[u8]) -> HashMap<u8, u32> {
        let mut counts = HashMap::new();
        for _ in 0..1000 {
            let (pod, in_flight) = self.choose(set, &[]);
            *counts.entry(pod).or_default() += 1;
            if dead.contains(&pod) {
                in_flight.failed(Fault::Unreached, self.now);
            } else {
                in_flight.answered(Answer::Good, Duration::from_millis(1), self.now);
            }
        }
        counts.values_mut().for_each(|count| *count /= 10);
        counts
    }

    fn pass(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
    }
}

fn between(share: Option<&u32>, low: u32, high: u32) -> bool {
    (low..=high).contains(share.unwrap_or(&0))
}

#[test]
fn f1_a_pod_that_answers_again_has_its_share_within_seconds() {
    let (mut bed, both) = (Bed::new(), set(&[1, 2]));
    assert!(between(bed.shares(&both, &[]).get(&1), 45, 55));
    assert_eq!(bed.shares(&both, &[1]).get(&1), Some(&0), "one failure, and it rests");
    // Away for a second, with a request each 10 ms.
    for _ in 0..100 {
        let (pod, in_flight) = bed.choose(&both, &[]);
        if pod == 1 {
            in_flight.failed(Fault::Unreached, bed.now);
        }
        drop(in_flight);
        bed.pass(10);
    }
    let mut waited = 0;
    while !between(bed.shares(&both, &[]).get(&1), 45, 55) {
        bed.pass(100);
        waited += 100;
        assert!(waited <= 1500, "it has not got its share back");
    }
}

#[test]
fn a_pod_that_joins_a_running_set_starts_slowly_and_the_first_do_not() {
    let (mut bed, before, after) = (Bed::new(), set(&[1, 2]), set(&[1, 2, 3]));
    let shares = bed.shares(&before, &[]);
    assert!(between(shares.get(&1), 45, 55) && between(shares.get(&2), 45, 55));
    assert!(between(bed.shares(&after, &[]).get(&3), 1, 6), "a tenth of a third");
    bed.pass(5000);
    assert!(between(bed.shares(&after, &[]).get(&3), 12, 22));
    bed.pass(5000);
    assert!(between(bed.shares(&after, &[]).get(&3), 30, 37));
    // Another Service over the same pods has nothing to learn; and one whose pods are all new starts at once.
    bed.backend = backend("other");
    assert!(between(bed.shares(&set(&[2, 3]), &[]).get(&3), 45, 55));
    bed.backend = backend("app");
    assert!(between(bed.shares(&set(&[7, 8]), &[]).get(&8), 45, 55));
}

#[test]
fn f4_all_pods_of_a_silent_node_are_left_alone_as_long_as_others_answer() {
    let (mut bed, all) = (Bed::new(), set(&[1, 11, 12, 13]));
    bed.shares(&all, &[]);
    let node = bed.loads.node(&"node-1".into());
    node.silent(bed.now, bed.now);
    assert_eq!(bed.shares(&all, &[]), HashMap::from([(1, 100)]), "though three of four are out");
    assert!(bed.choose(&all, &[addr(1)]).0 > 10, "a request that was there already has no other");
    let only = set(&[11, 12]);
    assert_eq!(bed.shares(&only, &[]).len(), 2, "without another they are used");
    node.heard(bed.now);
    assert!(between(bed.shares(&all, &[]).get(&1), 20, 30), "the first sign of life brings them back");
    // A tunnel that was silent while another one was not has lost its pod, not its node.
    node.silent(bed.now - Duration::from_millis(900), bed.now);
    assert!(between(bed.shares(&all, &[]).get(&1), 20, 30));
}

/// A frozen agent is no matter of pods that are called in clear: they are served as before, and prove nothing of it.
#[test]
fn f4_a_silent_node_keeps_its_pods_that_are_not_in_the_mesh() {
    let mut bed = Bed::new();
    let plain = |pod: u8| {
        let mut plain = endpoint(pod);
        Arc::make_mut(plain.workload.as_mut().unwrap()).enrolled = false;
        plain
    };
    let mixed = Arc::new(EndpointSet { ready: [endpoint(1), endpoint(11), plain(12)].into() });
    bed.shares(&mixed, &[]);
    bed.loads.node(&"node-1".into()).silent(bed.now, bed.now);
    let shares = bed.shares(&mixed, &[]);
    assert!(between(shares.get(&1), 45, 55) && between(shares.get(&12), 45, 55), "{shares:?}");
    // Its answers, and those of one that is alone in its Service, do not bring the frozen agent's pods back.
    bed.pass(1);
    let only = Arc::new(EndpointSet { ready: [plain(13)].into() });
    bed.shares(&only, &[]);
    assert_eq!(bed.shares(&mixed, &[]).get(&11), None);
    // Once it joins, it shares its node's fate.
    assert_eq!(bed.shares(&set(&[1, 11, 12]), &[]), HashMap::from([(1, 100)]));
}

#[test]
fn a_silent_node_that_nobody_watches_any_more_is_probed_by_one_request_at_a_time() {
    let (mut bed, both) = (Bed::new(), set(&[1, 11]));
    bed.loads.node(&"node-1".into()).silent(bed.now, bed.now);
    bed.pass(1500);
    let (pod, probe) = bed.choose(&both, &[]);
    assert_eq!(pod, 11);
    let (pod, in_flight) = bed.choose(&both, &[]);
    assert_eq!(pod, 1);
    drop(in_flight);
    probe.failed(Fault::Unreached, bed.now);
    drop(probe);
    assert_eq!(bed.choose(&both, &[]).0, 1);
    bed.pass(1000);
    let (pod, probe) = bed.choose(&both, &[]);
    assert_eq!(pod, 11);
    bed.pass(1);
    probe.connected(bed.now);
    probe.answered(Answer::Good, Duration::from_millis(1), bed.now);
    drop(probe);
    assert!(between(bed.shares(&both, &[]).get(&11), 45, 55));
}

#[test]
fn a_client_keeps_its_endpoint_but_for_the_time_of_an_ejection() {
    let (mut bed, all) = (Bed::new(), set(&[1, 2, 3, 4]));
    bed.backend.client_ip_affinity = Some(Duration::from_secs(10_800));
    let (own, in_flight) = bed.choose(&all, &[]);
    assert_eq!(bed.choose(&all, &[]).0, own);
    in_flight.failed(Fault::Unreached, bed.now);
    let (other, _) = bed.choose(&all, &[]);
    assert_ne!(other, own);
    assert_eq!(bed.choose(&all, &[]).0, other, "the same other one");
    bed.pass(500);
    assert_eq!(bed.choose(&all, &[]).0, own, "the probe");
}

#[test]
fn a_retry_goes_elsewhere_and_never_probes() {
    let (mut bed, all) = (Bed::new(), set(&[1, 2, 3]));
    while bed.shares(&all, &[2]).contains_key(&2) {}
    bed.pass(500);
    for _ in 0..100 {
        assert_eq!(bed.choose(&all, &[addr(1)]).0, 3);
    }
    assert!((0..100).any(|_| bed.choose(&all, &[]).0 == 2));
    let pods: HashSet<u8> = (0..100).map(|_| bed.choose(&all, &[1, 2, 3].map(addr)).0).collect();
    assert!(!pods.is_empty(), "all were tried: any of them again");
}

/// DNS by UDP and by TCP are one endpoint.
#[test]
fn who_tells_no_outcome_takes_no_probes_place() {
    for affinity in [None, Some(Duration::from_secs(10_800))] {
        let (mut bed, all) = (Bed::new(), set(&[1, 2, 3]));
        bed.backend.client_ip_affinity = affinity;
        bed.shares(&all, &[]);
        let (dead, in_flight) = bed.choose(&all, &[]);
        in_flight.failed(Fault::Unreached, bed.now);
        drop(in_flight);
        let datagrams = |bed: &mut Bed| (0..300).filter(|_| bed.ask(&all, &[], false).0 == dead).count();
        assert_eq!(datagrams(&mut bed), 0, "while it is ejected");
        bed.pass(500);
        // Nobody else may ever go there: it has its share, or its client, again.
        let expected = if affinity.is_some() { 300..=300 } else { 70..=130 };
        let sent = datagrams(&mut bed);
        assert!(expected.contains(&sent), "{sent}");
        let probe = (0..100).map(|_| bed.choose(&all, &[]).0).filter(|pod| *pod == dead).count();
        assert_eq!(probe, 1, "one that tells goes there, and only one until it has told");
    }
}

#[test]
fn what_is_gone_is_forgotten() {
    let mut bed = Bed::new();
    for round in 0..2000_u32 {
        bed.backend = backend(&format!("app-{round}"));
        let set = set(&[(round % 200) as u8, (round % 199) as u8]);
        bed.shares(&set, &[]);
    }
    let known = bed.loads.known.borrow();
    let kept = (known.sets.len(), known.backends.len(), known.endpoints.len());
    assert!(kept.0 <= SWEEP_MIN && kept.1 <= SWEEP_MIN && kept.2 <= SWEEP_MIN, "{kept:?}");
}
