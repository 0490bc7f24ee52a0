use super::*;
use crate::context::ShareKey;
use tokio::runtime::LocalOptions;
use weft_core::model::ObjectKey;

fn on_a_worker<T>(work: impl AsyncFnOnce() -> T) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().event_interval(16).build_local(LocalOptions::default()).unwrap().block_on(work())
}

fn share(name: &str, limits: ShareLimits) -> Rc<Share> {
    let scheduler = Scheduler::start(Arc::default());
    Share::start(
        &scheduler,
        ShareKey::Pod(ObjectKey::new("shop", name)),
        limits,
        Drain::new(),
        Arc::default(),
    )
}

const LIMITS: ShareLimits = ShareLimits { connections_max: 2, handshakes_max: 1, buffered_max: 0 };

#[test]
fn a_panic_ends_one_task_only() {
    on_a_worker(async || {
        let share = share("a", LIMITS);
        let (done, wait) = tokio::sync::oneshot::channel();
        share.spawn(async { panic!("a test's own panic") });
        share.spawn(async move {
            tokio::task::yield_now().await;
            done.send(()).unwrap();
        });
        wait.await.unwrap();
        assert_eq!(share.counters().panics.get(), 1);
    });
}

#[test]
fn connections_and_handshakes_are_bounded() {
    on_a_worker(async || {
        let share = share("a", LIMITS);
        let first = share.admit(Kind::Out).unwrap();
        let second = share.admit(Kind::Out).unwrap();
        assert!(share.admit(Kind::Out).is_none());
        assert_eq!(share.counters().refused.get(), 1);
        let idle = share.idle();
        drop((first, second));
        idle.await;

        let permit = share.handshake().await;
        let waiting = share.handshake();
        let mut waiting = std::pin::pin!(waiting);
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        drop(permit);
        waiting.await;
        assert_eq!(share.counters().handshakes_queued.get(), 1);
    });
}

#[test]
fn a_handshake_that_stalls_gives_its_turn_to_others() {
    on_a_worker(async || {
        let share = share("a", LIMITS);
        let stalled = share.handshake().await.during(std::future::pending::<()>());
        let mut stalled = std::pin::pin!(stalled);
        let others = tokio::time::timeout(Duration::from_secs(10), share.handshake());
        tokio::select! {
            () = &mut stalled => unreachable!("it never ends"),
            others = others => drop(others.expect("a turn")),
        }
    });
}

#[test]
fn closing_drops_every_task() {
    on_a_worker(async || {
        let share = share("a", LIMITS);
        let alive = Rc::new(());
        for _ in 0..10 {
            let held = (alive.clone(), share.clone());
            share.spawn(async move {
                std::future::pending::<()>().await;
                drop(held);
            });
        }
        tokio::task::yield_now().await;
        share.close();
        assert_eq!(Rc::strong_count(&alive), 1);
        share.spawn(async move { drop(alive) });
        assert_eq!(Rc::strong_count(&share), 1);
    });
}

#[test]
fn sockets_and_timers_wake_a_share() {
    on_a_worker(async || {
        let share = share("a", LIMITS);
        let (done, wait) = tokio::sync::oneshot::channel();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        share.spawn(async move {
            let (accepted, _) = listener.accept().await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
            done.send(accepted).unwrap();
        });
        let _client = tokio::net::TcpStream::connect(addr).await.unwrap();
        wait.await.unwrap();
    });
}
