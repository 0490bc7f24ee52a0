//! Which workload has reached which of its budgets, for the log, the metrics and the reports to the controller.

use crate::context::ShareKey;
use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use weft_core::{
    budget::{Budget, amount},
    model::ObjectKey,
};

/// Pairs of budget and workload that are remembered: on one node there are at most some hundred workloads.
const PAIRS_MAX: usize = 4096;
/// A budget that goes on being reached is said again in the log after this time.
const SAID_AGAIN: Duration = Duration::from_secs(60);

/// Who has reached a budget.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tenant {
    /// `Pod` or `Gateway`.
    pub kind: &'static str,
    /// Its namespace and name.
    pub key: ObjectKey,
}

impl From<&ShareKey> for Tenant {
    fn from(key: &ShareKey) -> Self {
        match key {
            ShareKey::Pod(key) => Self { kind: "Pod", key: key.clone() },
            ShareKey::Gateway(key) => Self { kind: "Gateway", key: key.clone() },
        }
    }
}

/// A budget that was reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    /// Which.
    pub budget: &'static Budget,
    /// By whom.
    pub by: Tenant,
    /// How often something was refused or displaced because of it, since the agent's start.
    pub times: u64,
}

/// All that were reached since the agent's start.
#[derive(Debug, Default)]
pub struct Budgets {
    pairs: Mutex<BTreeMap<(Tenant, &'static str), Pair>>,
    /// Not remembered for want of room.
    forgotten: AtomicU64,
}

#[derive(Debug)]
struct Pair {
    budget: &'static Budget,
    times: u64,
    last: Instant,
    said: Instant,
}

impl Budgets {
    /// Notes that `by` has reached `budget`. Only called where something is refused or displaced.
    pub fn reached(&self, budget: &'static Budget, by: Tenant, now: Instant) {
        // Nothing in here panics half way.
        let mut pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (by, budget.name);
        if let Some(pair) = pairs.get_mut(&key) {
            pair.times = pair.times.saturating_add(1);
            pair.last = now;
            if now.saturating_duration_since(pair.said) >= SAID_AGAIN {
                pair.said = now;
                say(&key.0, pair);
            }
            return;
        }
        if pairs.len() >= PAIRS_MAX {
            // The one that was quiet for longest: its workload is gone, or behaves.
            let quiet = pairs.iter().min_by_key(|(_, pair)| pair.last).map(|(key, _)| key.clone());
            quiet.and_then(|quiet| pairs.remove(&quiet));
            self.forgotten.fetch_add(1, Ordering::Relaxed);
        }
        let pair = Pair { budget, times: 1, last: now, said: now };
        say(&key.0, &pair);
        pairs.insert(key, pair);
    }

    /// All of them, or those that were reached within `recent`.
    #[must_use]
    pub fn list(&self, recent: Option<Duration>, now: Instant) -> Vec<Reached> {
        let pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh =
            |pair: &Pair| recent.is_none_or(|recent| now.saturating_duration_since(pair.last) <= recent);
        let one = |((by, _), pair): (&(Tenant, &'static str), &Pair)| Reached {
            budget: pair.budget,
            by: by.clone(),
            times: pair.times,
        };
        pairs.iter().filter(|(_, pair)| fresh(pair)).map(one).collect()
    }
}

fn say(by: &Tenant, pair: &Pair) {
    let Budget { name, holds, when_reached, .. } = pair.budget;
    let bound = amount(pair.budget);
    tracing::warn!(
        budget = name,
        namespace = %by.key.namespace,
        workload = %by.key.name,
        kind = by.kind,
        times = pair.times,
        "a workload has reached its budget of {bound} ({holds}); beyond it: {when_reached}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_core::budget::{CONNECTIONS_IN, CONNECTIONS_OUT};

    fn pod(name: &str) -> Tenant {
        Tenant { kind: "Pod", key: ObjectKey::new("shop", name) }
    }

    #[test]
    fn counts_by_workload_and_budget() {
        let (budgets, now) = (Budgets::default(), Instant::now());
        for _ in 0..3 {
            budgets.reached(&CONNECTIONS_IN, pod("cart"), now);
        }
        budgets.reached(&CONNECTIONS_OUT, pod("cart"), now + Duration::from_secs(90));
        let times = |recent| -> Vec<(&str, u64)> {
            let list = budgets.list(recent, now + Duration::from_secs(100));
            list.iter().map(|reached| (reached.budget.name, reached.times)).collect()
        };
        assert_eq!(times(None), [("connections-in", 3), ("connections-out", 1)]);
        assert_eq!(times(Some(Duration::from_secs(60))), [("connections-out", 1)]);
    }

    #[test]
    fn ten_times_as_many_workloads_take_no_more_room() {
        let (budgets, now) = (Budgets::default(), Instant::now());
        for i in 0..10 * PAIRS_MAX {
            budgets.reached(&CONNECTIONS_IN, pod(&format!("pod-{i}")), now + Duration::from_millis(i as u64));
        }
        assert_eq!(budgets.list(None, now).len(), PAIRS_MAX);
    }
}
