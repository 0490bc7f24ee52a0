//! A door to the network: strangers stand before it, few in all and few from one address, until they are known.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use weft_core::{
    budget::Budget,
    lobby::{Full, Lobby, Ticket},
};

/// A door that is flooded says so this often.
const NOTICE: Duration = Duration::from_secs(10);

/// The strangers before a door. Cheap to clone; clones are the same door.
#[derive(Clone, Debug)]
pub struct Door(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    lobby: Mutex<Lobby<CancellationToken>>,
    budgets: Budgets,
    noticed: Mutex<Option<Instant>>,
    reached: [AtomicU64; 2],
}

/// The rows that bound a door.
#[derive(Clone, Copy, Debug)]
pub struct Budgets {
    /// Strangers in all.
    pub all: &'static Budget,
    /// Strangers of one address.
    pub address: &'static Budget,
}

/// A stranger's place; given up on drop.
#[derive(Debug)]
pub struct Stranger {
    door: Door,
    ticket: Ticket,
    address: IpAddr,
    displaced: CancellationToken,
}

impl Door {
    /// A door with nobody before it.
    #[must_use]
    pub fn new(budgets: Budgets) -> Self {
        Self(Arc::new(Inner {
            lobby: Mutex::new(Lobby::new(budgets.all.size(), budgets.address.size())),
            budgets,
            noticed: Mutex::default(),
            reached: Default::default(),
        }))
    }

    /// Lets a stranger stand here. Somebody else may be displaced for it.
    #[must_use]
    pub fn enter(&self, address: IpAddr) -> Stranger {
        let displaced = CancellationToken::new();
        let (ticket, leaves) = self.0.lobby.lock().enter(address, displaced.clone());
        if let Some((full, leaves)) = leaves {
            leaves.cancel();
            self.tell(full, address);
        }
        Stranger { door: self.clone(), ticket, address, displaced }
    }

    /// How many stand here.
    #[must_use]
    pub fn strangers(&self) -> usize {
        self.0.lobby.lock().len()
    }

    /// How often each bound was reached, by the name of its budget.
    #[must_use]
    pub fn reached(&self) -> [(&'static str, u64); 2] {
        let Budgets { all, address } = self.0.budgets;
        let [of_all, of_address] = &self.0.reached;
        [(all.name, of_all.load(Ordering::Relaxed)), (address.name, of_address.load(Ordering::Relaxed))]
    }

    fn tell(&self, full: Full, address: IpAddr) {
        let Budgets { all, address: of_one } = self.0.budgets;
        let (budget, count) = match full {
            Full::Lobby => (all, &self.0.reached[0]),
            Full::Address => (of_one, &self.0.reached[1]),
        };
        count.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        let mut noticed = self.0.noticed.lock();
        if noticed.is_none_or(|last| now.duration_since(last) >= NOTICE) {
            *noticed = Some(now);
            drop(noticed);
            tracing::warn!(
                budget = budget.name,
                bound = budget.bound,
                %address,
                "more {} than that: {}",
                budget.holds,
                budget.when_reached
            );
        }
    }
}

impl Stranger {
    /// Where it comes from.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The same as a token, for who outlives this place.
    #[must_use]
    pub fn when_displaced(&self) -> CancellationToken {
        self.displaced.clone()
    }

    /// Ends when another one has its place.
    pub fn displaced(&self) -> WaitForCancellationFuture<'_> {
        self.displaced.cancelled()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.door.0.lobby.lock().leave(self.ticket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_core::budget;

    #[tokio::test(start_paused = true)]
    async fn who_is_displaced_is_told_and_counted_by_the_name_of_the_budget() {
        let budgets = Budgets { all: &budget::PAGE_STRANGERS, address: &budget::PAGE_STRANGERS_PER_ADDRESS };
        let door = Door::new(budgets);
        let from = |n: u8| IpAddr::from([192, 0, 2, n]);
        let alone = door.enter(from(0));
        let mut held: Vec<Stranger> = Vec::new();
        for _ in 0..10 * budget::PAGE_STRANGERS_PER_ADDRESS.size() {
            held.push(door.enter(from(1)));
        }
        let displaced = held.iter().filter(|stranger| stranger.displaced.is_cancelled()).count();
        assert_eq!(displaced, 36, "of 40 the last four stay");
        assert_eq!(door.strangers(), 5);
        for n in 2..=255 {
            held.push(door.enter(from(n)));
        }
        assert_eq!(door.strangers(), budget::PAGE_STRANGERS.size());
        assert_eq!(
            door.reached(),
            [("page-strangers", 255 + 4 - 64), ("page-strangers-per-address", 36)],
            "of 254 newcomers 59 found room"
        );
        assert!(alone.displaced.is_cancelled(), "at last every address has one, and it is the oldest");
        drop((alone, held));
        assert_eq!(door.strangers(), 0);
    }
}
