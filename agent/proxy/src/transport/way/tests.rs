use super::*;
use crate::fixtures::{TestSockets, workload};
use std::sync::Arc;
use tokio::time::sleep;
use weft_core::model::{MtlsMode, ObjectKey, TunnelPort};

fn pod(name: &str, ip: &str, tunnel: TunnelPort) -> Arc<Workload> {
    let made = workload(name, ip.parse().unwrap(), true, MtlsMode::Strict);
    Arc::new(Workload { tunnel, ..(*made).clone() })
}

fn source(share: ShareKey, workload: &Arc<Workload>) -> Source {
    let sockets = Arc::new(TestSockets::default());
    Source { share, workload: workload.clone(), identity: None, sockets }
}

#[test]
fn tunnels_go_to_the_applications_port_where_they_are_looked_for() {
    let client = pod("client", "10.0.0.1", TunnelPort::Hbone);
    let ours = pod("ours", "10.0.0.2", TunnelPort::application([9100]));
    let old = pod("old", "10.0.0.3", TunnelPort::Hbone);
    let mut config = Config::default();
    for workload in [&client, &ours, &old] {
        config.workloads.insert(workload.ips[0], workload.clone());
    }
    let from_pod = source(ShareKey::Pod(client.pod.clone()), &client);
    let check = |config: &Config, source: &Source, to: (&Workload, u16), expected: Way| {
        let addr = SocketAddr::new(to.0.ips[0], to.1);
        assert_eq!(way(config, source, to.0, addr), expected, "{:?} to {addr}", source.share);
    };
    check(&config, &from_pod, (&ours, 8080), Way::Application(8080));
    check(&config, &from_pod, (&ours, 9100), Way::Hbone);
    check(&config, &from_pod, (&old, 8080), Way::Hbone);
    // To itself: no packet leaves the pod, none is captured.
    let itself = source(ShareKey::Pod(ours.pod.clone()), &ours);
    check(&config, &itself, (&ours, 8080), Way::Hbone);
    // The peers know, or will in a moment, that this pod is leaving.
    let mut leaving = config.clone();
    leaving.workloads.insert(client.ips[0], Arc::new(Workload { enrolled: false, ..(*client).clone() }));
    check(&leaving, &from_pod, (&ours, 8080), Way::Hbone);
    leaving.workloads.remove(&client.ips[0]);
    check(&leaving, &from_pod, (&ours, 8080), Way::Hbone);
    // Gateways call from nodes. In files there may be none.
    let gateway = source(
        ShareKey::Gateway(ObjectKey::new("shop", "edge")),
        &pod("edge", "10.9.9.9", TunnelPort::Hbone),
    );
    check(&config, &gateway, (&ours, 8080), Way::Hbone);
    config.nodes.insert([192, 0, 2, 1].into(), ());
    check(&config, &gateway, (&ours, 8080), Way::Application(8080));
}

#[test]
fn detours_are_remembered_for_a_while_and_not_without_bound() {
    let detours = Detours::default();
    let now = Instant::now();
    let to = |n: u32, port| SocketAddr::new(n.to_be_bytes().into(), port);
    detours.note(to(1, 80), now);
    assert!(detours.has(to(1, 80), now) && !detours.has(to(2, 80), now));
    assert!(!detours.has(to(1, 81), now), "a policy may close it");
    assert!(!detours.has(to(1, 80), now + REMEMBERED));
    detours.note(to(1, 80), now);
    detours.note(to(2, 80), now);
    detours.forget(to(1, 80).ip());
    assert!(!detours.has(to(1, 80), now) && detours.has(to(2, 80), now), "15008 of the first is closed");
    (0..5000).for_each(|n| detours.note(to(n, 80), now));
    assert_eq!(detours.until.borrow().len(), REMEMBERED_MAX);
    detours.note(to(9999, 80), now + REMEMBERED);
    assert!(detours.has(to(9999, 80), now + REMEMBERED) && detours.until.borrow().len() == 1);
}

fn error(reason: Reason) -> ProxyError {
    use crate::error::{Blame, Retryable};
    ProxyError { reason, blame: Blame::Upstream, retry: Retryable::Yes, detail: "own".into() }
}

/// How each way ends, after how many milliseconds.
type End = (u64, Result<(), Reason>);

#[tokio::test(start_paused = true)]
async fn the_detour_is_taken_when_no_agent_answers_and_only_then() {
    async fn end((after, end): End) -> Result<(), ProxyError> {
        sleep(Duration::from_millis(after)).await;
        end.map_err(error)
    }
    let check = async |[own, again, detour]: [End; 3], expected: Result<bool, Reason>, asked: &str| {
        let was_asked = RefCell::new(String::new());
        let ask = async |what: &str, how: End| {
            was_asked.borrow_mut().push_str(what);
            end(how).await
        };
        let done =
            either(end(own), async || ask("again", again).await, async || ask("detour ", detour).await);
        let got = done.await.map(|((), detoured)| detoured).map_err(|e| e.reason);
        assert_eq!((got, was_asked.borrow().trim()), (expected, asked), "{own:?} {again:?} {detour:?}");
    };
    let (good, bad, refused) = (Ok(()), Err(Reason::PeerIdentity), Err(Reason::ConnectFailed));
    check([(900, good), (0, bad), (0, good)], Ok(false), "").await;
    check([(5, Err(Reason::NoCertificate)), (0, good), (5, good)], Err(Reason::NoCertificate), "").await;
    // An agent of the version before.
    check([(5, bad), (0, bad), (5, good)], Ok(true), "detour").await;
    check([(5, bad), (5, bad), (600, good)], Ok(true), "detour again").await;
    // An agent that is being restarted, behind a policy that refuses or drops 15008.
    check([(5, bad), (5, good), (5, refused)], Ok(false), "detour again").await;
    check([(5, bad), (5, good), (5000, refused)], Ok(false), "detour again").await;
    check([(5, bad), (5, refused), (5, refused)], Err(Reason::PeerIdentity), "detour again").await;
    // Nobody answers: all are waited for.
    check([(9000, good), (0, bad), (5, good)], Ok(true), "detour").await;
    check([(3000, good), (0, bad), (5000, good)], Ok(false), "detour").await;
    check([(3000, good), (0, bad), (5, refused)], Ok(false), "detour").await;
    check([(3000, bad), (5, bad), (5000, good)], Ok(true), "detour again").await;
    check([(3000, bad), (5, good), (5, refused)], Ok(false), "detour again").await;
}
