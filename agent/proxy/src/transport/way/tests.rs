use super::*;
use crate::fixtures::{TestSockets, workload};
use std::{cell::Cell, future::ready, sync::Arc};
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
    let pod = |n: u32| IpAddr::from(n.to_be_bytes());
    detours.note(pod(1), now);
    assert!(detours.has(pod(1), now) && !detours.has(pod(2), now));
    assert!(!detours.has(pod(1), now + REMEMBERED));
    (0..5000).for_each(|n| detours.note(pod(n), now));
    assert_eq!(detours.until.borrow().len(), REMEMBERED_MAX);
    detours.note(pod(9999), now + REMEMBERED);
    assert!(detours.has(pod(9999), now + REMEMBERED) && detours.until.borrow().len() == 1);
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
    let check = async |own: End, detour: End, expected: Result<bool, Reason>, asked: bool| {
        let was_asked = Cell::new(false);
        let other = async || {
            was_asked.set(true);
            end(detour).await
        };
        let got = either(end(own), other).await.map(|((), detoured)| detoured).map_err(|e| e.reason);
        assert_eq!((got, was_asked.get()), (expected, asked), "{own:?} {detour:?}");
    };
    let (bad, refused) = (Err(Reason::PeerIdentity), Err(Reason::ConnectFailed));
    check((900, Ok(())), (0, Ok(())), Ok(false), false).await;
    check((5, bad), (5, Ok(())), Ok(true), true).await;
    check((5, bad), (5, refused), Err(Reason::PeerIdentity), true).await;
    check((5, Err(Reason::NoCertificate)), (5, Ok(())), Err(Reason::NoCertificate), false).await;
    // Nobody answers: both are waited for.
    check((9000, Ok(())), (5, Ok(())), Ok(true), true).await;
    check((3000, Ok(())), (5000, Ok(())), Ok(false), true).await;
    check((3000, Ok(())), (5, refused), Ok(false), true).await;
    check((3000, bad), (5000, Ok(())), Ok(true), true).await;
    check((3000, bad), (5, refused), Err(Reason::PeerIdentity), true).await;
    let never = either(ready(Ok(1)), async || -> Result<i32, ProxyError> { unreachable!("not asked") });
    assert_eq!(never.await.unwrap(), (1, false));
}
