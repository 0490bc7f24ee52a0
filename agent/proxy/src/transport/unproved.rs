//! Connections to a pod's HBONE port whose client has not shown a certificate yet.
//!
//! Anybody who reaches the pod can open them and say nothing. They have a small bound of their own, and a newer one takes
//! the place of an older one, as at every door before which strangers stand: [`weft_core::lobby`].

use std::{cell::RefCell, net::IpAddr, rc::Rc};
use tokio::sync::Notify;
use weft_core::{
    budget::CONNECTIONS_UNPROVED,
    lobby::{Lobby, Ticket},
};

/// Those of one pod on one worker.
#[derive(Debug)]
pub(crate) struct Unproved(Rc<RefCell<Lobby<Rc<Notify>>>>);

impl Default for Unproved {
    fn default() -> Self {
        // All may be of one address: a node may hide those of its pods behind its own.
        let bound = CONNECTIONS_UNPROVED.size();
        Self(Rc::new(RefCell::new(Lobby::new(bound, bound))))
    }
}

/// A place among them, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    lobby: Rc<RefCell<Lobby<Rc<Notify>>>>,
    ticket: Ticket,
    displaced: Rc<Notify>,
}

/// Another connection had to give way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Displaced;

impl Unproved {
    /// A place for a connection from `from`. With it, whether another had to give way.
    pub(crate) fn enter(&self, from: IpAddr) -> (Place, Option<Displaced>) {
        let displaced = Rc::new(Notify::new());
        let (ticket, leaves) = self.0.borrow_mut().enter(from, displaced.clone());
        let gone = leaves.map(|(_, other)| {
            other.notify_one();
            Displaced
        });
        (Place { lobby: self.0.clone(), ticket, displaced }, gone)
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.borrow().len()
    }
}

impl Place {
    /// Until a newer connection has taken the place.
    pub(crate) async fn displaced(&self) {
        self.displaced.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // None when it had been taken.
        let _ = self.lobby.borrow_mut().leave(self.ticket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use std::collections::VecDeque;

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
