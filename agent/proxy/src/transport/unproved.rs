//! Connections to a pod's HBONE port whose client has not shown a certificate yet.
//!
//! Anybody who reaches the pod can open them and say nothing. They have a small bound of their own, and a newer one takes
//! the place of an older one: of the address that has the most of them, so that a flood displaces itself.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    net::IpAddr,
    rc::Rc,
};
use tokio::sync::Notify;
use weft_core::budget::CONNECTIONS_UNPROVED;

/// Those of one pod on one worker, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Unproved {
    waiting: Rc<RefCell<VecDeque<Waiting>>>,
}

#[derive(Debug)]
struct Waiting {
    from: IpAddr,
    displaced: Rc<Notify>,
}

/// A place among them, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    waiting: Rc<RefCell<VecDeque<Waiting>>>,
    displaced: Rc<Notify>,
}

/// Another connection had to give way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Displaced;

impl Unproved {
    /// A place for a connection from `from`. With it, whether another had to give way.
    pub(crate) fn enter(&self, from: IpAddr) -> (Place, Option<Displaced>) {
        let mut waiting = self.waiting.borrow_mut();
        let full = waiting.len() >= CONNECTIONS_UNPROVED.size();
        let gone = full.then(|| oldest_of_the_most(&waiting)).flatten().and_then(|i| waiting.remove(i));
        let gone = gone.map(|gone| {
            gone.displaced.notify_one();
            Displaced
        });
        let displaced = Rc::new(Notify::new());
        waiting.push_back(Waiting { from, displaced: displaced.clone() });
        (Place { waiting: self.waiting.clone(), displaced }, gone)
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.waiting.borrow().len()
    }
}

fn oldest_of_the_most(waiting: &VecDeque<Waiting>) -> Option<usize> {
    let mut counts: HashMap<IpAddr, usize> = HashMap::new();
    for one in waiting {
        *counts.entry(one.from).or_default() += 1;
    }
    let most = counts.values().max().copied()?;
    waiting.iter().position(|one| counts.get(&one.from) == Some(&most))
}

impl Place {
    /// Until a newer connection has taken the place.
    pub(crate) async fn displaced(&self) {
        self.displaced.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.waiting.borrow_mut().retain(|one| !Rc::ptr_eq(&one.displaced, &self.displaced));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn ip(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn a_flood_displaces_itself() {
        let bound = CONNECTIONS_UNPROVED.size();
        let unproved = Unproved::default();
        let (honest, _) = unproved.enter(ip(1));
        let mut flood: VecDeque<(Place, Option<Displaced>)> =
            (0..10 * bound).map(|_| unproved.enter(ip(2))).collect();
        assert_eq!(unproved.len(), bound, "never more than the bound");
        assert_eq!(honest.displaced().now_or_never(), None, "who has one connection keeps it");
        let kept = flood.split_off(flood.len() - (bound - 1));
        assert!(
            flood.iter().all(|(place, _)| place.displaced().now_or_never().is_some()),
            "the oldest go first"
        );
        assert!(kept.iter().all(|(place, _)| place.displaced().now_or_never().is_none()));
        assert_eq!(kept.iter().filter(|(_, gone)| gone.is_some()).count(), bound - 1, "it is said");
        drop((honest, kept, flood));
        assert_eq!(unproved.len(), 0, "places are given back");
    }

    #[test]
    fn without_a_flood_nobody_gives_way() {
        let unproved = Unproved::default();
        for round in 0..3 {
            let places: Vec<_> = (0..CONNECTIONS_UNPROVED.size()).map(|_| unproved.enter(ip(1))).collect();
            assert!(places.iter().all(|(_, gone)| gone.is_none()), "round {round}");
        }
    }
}
