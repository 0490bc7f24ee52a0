use super::*;
use proptest::prelude::*;

/// A worker in small: shares that want to run, in steps that cannot be interrupted.
#[derive(Clone, Debug)]
struct Tenant {
    /// Nanoseconds of one step.
    step: u64,
    /// Nanoseconds that it sleeps after a step; 0 for one that always has more to do.
    sleep: u64,
}

struct Outcome {
    ran: Vec<u64>,
    /// Longest time from waking to running, by tenant.
    waited: Vec<u64>,
}

fn simulate(tenants: &[Tenant], until: u64) -> Outcome {
    let mut fair = Fair::default();
    let (mut served, mut ran) = (vec![0; tenants.len()], vec![0; tenants.len()]);
    let (mut waited, mut since) = (vec![0; tenants.len()], vec![0; tenants.len()]);
    let mut asleep: Vec<(u64, usize)> = Vec::new();
    let mut clock = 0;
    (0..tenants.len()).for_each(|i| fair.wake(i, 0));
    while clock < until {
        asleep.retain(|(at, i)| {
            let woke = *at <= clock;
            if woke {
                since[*i] = *at;
                fair.wake(*i, served[*i]);
            }
            !woke
        });
        let Some((i, before)) = fair.next() else {
            clock = asleep.iter().map(|(at, _)| *at).min().unwrap();
            continue;
        };
        waited[i] = waited[i].max(clock - since[i]);
        let Tenant { step, sleep } = tenants[i];
        clock += step;
        ran[i] += step;
        served[i] = Fair::<()>::charged(before, step);
        if sleep == 0 {
            since[i] = clock;
            fair.enter(i, served[i]);
        } else {
            asleep.push((clock + sleep, i));
        }
    }
    Outcome { ran, waited }
}

const SLICE: u64 = 50_000;

fn greedy() -> impl Strategy<Value = Tenant> {
    (1_000_u64..400_000).prop_map(|step| Tenant { step, sleep: 0 })
}

proptest! {
    /// However long their steps are: nobody gets more than the others for long.
    #[test]
    fn the_greedy_get_equal_parts(tenants in prop::collection::vec(greedy(), 2..12)) {
        let Outcome { ran, .. } = simulate(&tenants, 200_000_000);
        let longest = tenants.iter().map(|t| t.step).max().unwrap();
        let (least, most) = (ran.iter().min().unwrap(), ran.iter().max().unwrap());
        prop_assert!(most - least <= 2 * longest, "{least} against {most}, longest step {longest}");
    }

    /// One that needs little waits for the step under way and for nobody's queue, however many others there are.
    #[test]
    fn who_needs_little_goes_first(
        others in prop::collection::vec(greedy(), 1..20),
        step in 1_000_u64..SLICE,
        sleep in 1_000_000_u64..5_000_000,
    ) {
        let mut tenants = others;
        let longest = tenants.iter().map(|t| t.step).max().unwrap();
        // It asks for less than half of an equal part.
        let part = (step + sleep) / (tenants.len() as u64 + 1) / 2;
        prop_assume!(step < part);
        tenants.push(Tenant { step, sleep });
        let Outcome { waited, ran } = simulate(&tenants, 200_000_000);
        // At the very start all come at once; from then on it is ahead.
        let start: u64 = tenants.iter().map(|t| t.step).sum();
        prop_assert!(*waited.last().unwrap() <= longest.max(start), "{waited:?} longest {longest}");
        prop_assert!(*ran.last().unwrap() >= 200_000_000 / (step + sleep + longest) * step / 2);
    }

    /// A share that took much at once waits until the others have had as much.
    #[test]
    fn an_overrun_is_paid_for(overrun in 2_u64..30, others in 1_usize..6) {
        let mut fair = Fair::default();
        fair.enter(0, 0);
        let (_, served) = fair.next().unwrap();
        fair.enter(0, Fair::<()>::charged(served, overrun * SLICE));
        (1..=others).for_each(|i| fair.wake(i, 0));
        let mut turns = 0;
        loop {
            let (i, served) = fair.next().unwrap();
            if i == 0 {
                break;
            }
            turns += 1;
            fair.enter(i, Fair::<()>::charged(served, SLICE));
        }
        let owed = (overrun * SLICE).min(CHARGE_MAX_NS) / SLICE * others as u64;
        prop_assert!(turns >= owed && turns <= owed + others as u64, "{turns} turns, {owed} owed");
    }
}

#[test]
fn sleep_is_not_saved_up() {
    let mut fair = Fair::default();
    fair.enter("greedy", 0);
    for _ in 0..1000 {
        let served = Fair::<()>::charged(fair.next().unwrap().1, SLICE);
        fair.enter("greedy", served);
    }
    // Slept all the time, and goes first now: but for its credit only, not for 50 ms.
    fair.wake("sleeper", 0);
    let mut turns = 0;
    while let Some(("sleeper", served)) = fair.next() {
        turns += 1;
        fair.enter("sleeper", Fair::<()>::charged(served, SLICE));
    }
    assert!((1..=CREDIT_NS / SLICE + 1).contains(&turns), "{turns} turns");
}
