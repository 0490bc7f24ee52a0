use super::*;
use crate::{
    context::ShareKey,
    drain::Drain,
    share::{Share, ShareLimits, pause, turn},
};
use std::cell::{Cell, RefCell};
use tokio::{runtime::LocalOptions, sync::Notify};
use weft_core::model::ObjectKey;

/// A scheduler whose clock only the tasks move.
struct Bed {
    scheduler: Rc<Scheduler>,
    clock: Rc<Cell<Duration>>,
    timing: Arc<Timing>,
    /// Who ran, in order: share, when it began.
    log: Rc<RefCell<Vec<(&'static str, Duration)>>>,
}

fn on_a_worker(work: impl AsyncFnOnce(Bed)) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build_local(LocalOptions::default()).unwrap();
    runtime.block_on(async {
        let (clock, timing) = (Rc::new(Cell::new(Duration::ZERO)), Arc::<Timing>::default());
        let read = clock.clone();
        let scheduler = Scheduler::with_clock(timing.clone(), Box::new(move || read.get()));
        work(Bed { scheduler, clock, timing, log: Rc::default() }).await;
    });
}

impl Bed {
    fn share(&self, name: &str) -> Rc<Share> {
        let limits = ShareLimits { connections_max: 10, handshakes_max: 1, buffered_max: 0 };
        let key = ShareKey::Pod(ObjectKey::new("shop", name));
        Share::start(&self.scheduler, key, limits, Drain::new(), Arc::default())
    }

    /// Takes `step` each time, for ever.
    fn greedy(&self, share: &Rc<Share>, name: &'static str, step: Duration) {
        let (clock, log) = (self.clock.clone(), self.log.clone());
        share.spawn(async move {
            loop {
                log.borrow_mut().push((name, clock.get()));
                clock.set(clock.get() + step);
                pause().await;
            }
        });
    }

    /// Takes `step` once each time it is woken.
    fn woken(&self, share: &Rc<Share>, name: &'static str, step: Duration) -> Rc<Notify> {
        let (clock, log) = (self.clock.clone(), self.log.clone());
        let wake = Rc::new(Notify::new());
        let woken = wake.clone();
        share.spawn(async move {
            loop {
                woken.notified().await;
                log.borrow_mut().push((name, clock.get()));
                clock.set(clock.get() + step);
            }
        });
        wake
    }
}

const US: Duration = Duration::from_micros(1);

/// The measure of fairness: how long a pod that needs little waits for its turn while others take all they can get.
/// Whatever the attackers' number, tasks and steps are, it is the time to the next look at the sockets (a slice and what
/// the step under way overruns it by), and nothing behind that.
#[test]
fn a_paced_share_waits_for_the_step_under_way_only() {
    let check = |attackers: usize, tasks: usize, step: Duration| {
        on_a_worker(async |bed: Bed| {
            for _ in 0..attackers {
                let share = bed.share("attacker");
                for _ in 0..tasks {
                    bed.greedy(&share, "attacker", step);
                }
            }
            let victim = bed.share("victim");
            let wake = bed.woken(&victim, "victim", 20 * US);
            // Nobody knows of it before: turns are long for a share that is alone.
            wake.notify_one();
            while bed.log.borrow().iter().all(|(who, _)| *who != "victim") {
                tokio::task::yield_now().await;
            }
            let mut longest = Duration::ZERO;
            for round in 0..200_u32 {
                // The attackers keep the worker busy for a while: this task runs when the sockets are looked at.
                let due = bed.clock.get() + 1500 * US + 7 * round * US;
                while bed.clock.get() < due {
                    tokio::task::yield_now().await;
                }
                let ran = bed.log.borrow().len();
                wake.notify_one();
                // Counted from when it was due, as by a socket that became readable in the middle of a stretch.
                let served =
                    || bed.log.borrow()[ran..].iter().find(|(who, _)| *who == "victim").map(|(_, at)| *at);
                let at = loop {
                    match served() {
                        Some(at) => break at,
                        None => tokio::task::yield_now().await,
                    }
                };
                longest = longest.max(at - due);
            }
            let bound = LOOK + step;
            assert!(longest <= bound, "{attackers} × {tasks} tasks of {step:?}: waited {longest:?}");
        });
    };
    for attackers in [1, 3, 20] {
        for tasks in [1, 50] {
            for step in [5, 40, 200] {
                check(attackers, tasks, step * US);
            }
        }
    }
}

#[test]
fn a_crowded_share_gets_no_more_than_a_lonely_one() {
    on_a_worker(async |bed: Bed| {
        let (crowded, lonely) = (bed.share("crowded"), bed.share("lonely"));
        for _ in 0..200 {
            bed.greedy(&crowded, "crowded", 20 * US);
        }
        bed.greedy(&lonely, "lonely", 20 * US);
        while bed.log.borrow().len() < 4000 {
            tokio::task::yield_now().await;
        }
        let ran = |name| bed.log.borrow().iter().filter(|(who, _)| *who == name).count();
        let (many, one) = (ran("crowded"), ran("lonely"));
        assert!(many.abs_diff(one) <= 20, "{many} against {one}");
        assert_eq!(crowded.usage().busy.as_micros() / 200, lonely.usage().busy.as_micros() / 200);
    });
}

#[test]
fn a_turn_ends_when_its_bytes_are_spent() {
    on_a_worker(async |bed: Bed| {
        // Costs no time that the clock would show: only the bytes end the turn.
        let copied = Rc::new(Cell::new(0));
        let bulk = bed.share("bulk");
        let count = copied.clone();
        bulk.spawn(async move {
            loop {
                let n = std::future::poll_fn(|cx| turn::poll(cx)).await;
                turn::spend(n);
                count.set(count.get() + n);
            }
        });
        let turns = |n| {
            let (bed, bulk) = (&bed, &bulk);
            async move {
                let end = bulk.usage().turns + n;
                while bulk.usage().turns < end {
                    tokio::task::yield_now().await;
                    bed.clock.set(bed.clock.get() + US);
                }
            }
        };
        turns(1).await;
        let (before, taken) = (copied.get(), bulk.usage().turns);
        turns(10).await;
        let each = (copied.get() - before) / usize::try_from(bulk.usage().turns - taken).unwrap();
        assert_eq!(each, turn::ALONE);

        let paced = bed.share("paced");
        let wake = bed.woken(&paced, "paced", US);
        wake.notify_one();
        while bed.log.borrow().is_empty() {
            tokio::task::yield_now().await;
        }
        turns(1).await;
        let (before, taken) = (copied.get(), bulk.usage().turns);
        turns(10).await;
        let each = (copied.get() - before) / usize::try_from(bulk.usage().turns - taken).unwrap();
        assert_eq!(each, turn::CROWDED);
        bed.clock.set(bed.clock.get() + CROWDED_FOR);
        turns(1).await;
        let before = copied.get();
        turns(1).await;
        assert_eq!(copied.get() - before, turn::ALONE);
    });
}

#[test]
fn waits_and_stretches_are_counted() {
    on_a_worker(async |bed: Bed| {
        let share = bed.share("greedy");
        bed.greedy(&share, "greedy", 300 * US);
        let other = bed.share("other");
        let wake = bed.woken(&other, "other", US);
        wake.notify_one();
        while bed.log.borrow().iter().filter(|(who, _)| *who == "other").count() == 0 {
            tokio::task::yield_now().await;
        }
        let ((waits, _), (stretches, nanos)) = (bed.timing.waits.read(), bed.timing.stretches.read());
        assert!(waits.iter().sum::<u64>() >= 2, "{waits:?}");
        assert!(stretches[4] >= 1 && nanos >= 300_000, "{stretches:?} {nanos}");
    });
}

#[test]
fn tasks_are_woken_from_other_threads() {
    on_a_worker(async |bed: Bed| {
        let share = bed.share("a");
        let (send, receive) = tokio::sync::oneshot::channel::<u8>();
        let (done, wait) = tokio::sync::oneshot::channel();
        share.spawn(async move { done.send(receive.await).unwrap() });
        tokio::task::yield_now().await;
        let thread = std::thread::spawn(move || send.send(7));
        assert_eq!(wait.await.unwrap(), Ok(7));
        thread.join().unwrap().unwrap();
    });
}
