//! Who stands at a door and has not yet said who they are.
//!
//! Strangers cost something before anybody knows whether they have a right to it: a descriptor, a handshake, a buffer. So
//! few of them are held, and few from one address. A newcomer always gets in; who makes room is the oldest of its own
//! address when that has its share, else the oldest of the address that holds the most. One address therefore never keeps
//! others out, and who stands alone at its address is sent away only when nobody holds more than one place.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

/// The places before a door. `T` is what is needed to send somebody away.
#[derive(Debug)]
pub struct Lobby<T> {
    bound: usize,
    per_address: usize,
    next: u64,
    guests: BTreeMap<Ticket, (IpAddr, T)>,
    addresses: HashMap<IpAddr, BTreeSet<Ticket>>,
}

/// Which bound made somebody leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// That of one address.
    Address,
    /// That of all.
    Lobby,
}

/// A place in a [`Lobby`]; later ones are larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

impl<T> Lobby<T> {
    /// Places: so many in all, so many for one address; at least one each.
    #[must_use]
    pub fn new(bound: usize, per_address: usize) -> Self {
        Self {
            bound: bound.max(1),
            per_address: per_address.max(1),
            next: 0,
            guests: BTreeMap::new(),
            addresses: HashMap::new(),
        }
    }

    /// Lets a newcomer in, and gives back whoever has to go for it, and for which bound.
    pub fn enter(&mut self, address: IpAddr, guest: T) -> (Ticket, Option<(Full, T)>) {
        let displaced = self.displaced_by(address);
        let leaves = displaced.and_then(|(full, ticket)| Some((full, self.leave(ticket)?)));
        let ticket = Ticket(self.next);
        self.next += 1;
        self.guests.insert(ticket, (address, guest));
        self.addresses.entry(address).or_default().insert(ticket);
        (ticket, leaves)
    }

    /// Gives a place up: its holder has gone, or is known now. None when it had been taken from it.
    pub fn leave(&mut self, ticket: Ticket) -> Option<T> {
        let (address, guest) = self.guests.remove(&ticket)?;
        if let Some(held) = self.addresses.get_mut(&address) {
            held.remove(&ticket);
            if held.is_empty() {
                self.addresses.remove(&address);
            }
        }
        Some(guest)
    }

    /// How many are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.guests.len()
    }

    /// Whether nobody is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.guests.is_empty()
    }

    fn displaced_by(&self, newcomer: IpAddr) -> Option<(Full, Ticket)> {
        let of_address = self.addresses.get(&newcomer).filter(|held| held.len() >= self.per_address);
        if let Some(held) = of_address {
            return held.first().map(|oldest| (Full::Address, *oldest));
        }
        if self.guests.len() < self.bound {
            return None;
        }
        // The most places; among equals the one that has waited longest.
        let most = self.addresses.values().max_by_key(|held| (held.len(), std::cmp::Reverse(held.first())));
        most.and_then(|held| held.first()).map(|oldest| (Full::Lobby, *oldest))
    }
}

#[cfg(test)]
mod tests {
    use super::{Full::*, *};

    fn address(n: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, n])
    }

    /// Newcomers by the last number of their address, and who had to go for each (by the order of coming).
    fn check(bound: usize, per_address: usize, arrivals: &[(u8, Option<(Full, usize)>)]) {
        let mut lobby = super::Lobby::new(bound, per_address);
        for (order, (from, expected)) in arrivals.iter().enumerate() {
            let (_, left) = lobby.enter(address(*from), order);
            assert_eq!(left, *expected, "arrival {order} from {from} of {arrivals:?}");
            assert!(lobby.len() <= bound, "{arrivals:?}");
        }
    }

    #[test]
    fn the_oldest_of_the_address_that_holds_the_most_makes_room() {
        check(4, 2, &[(1, None), (1, None), (2, None), (3, None)]);
        // Its own address has its share: nobody else's is touched, although there is room.
        check(4, 2, &[(2, None), (1, None), (1, None), (1, Some((Address, 1))), (1, Some((Address, 2)))]);
        // Full: address 1 holds the most.
        check(
            4,
            3,
            &[(2, None), (1, None), (1, None), (1, None), (3, Some((Lobby, 1))), (4, Some((Lobby, 2)))],
        );
        // Everybody holds one: the oldest.
        check(3, 3, &[(1, None), (2, None), (3, None), (4, Some((Lobby, 0))), (5, Some((Lobby, 1)))]);
        // No place at all is no door.
        check(1, 1, &[(1, None), (2, Some((Lobby, 0)))]);
    }

    #[test]
    fn a_place_is_given_up_once() {
        let mut lobby = super::Lobby::new(2, 1);
        let (first, _) = lobby.enter(address(1), 'a');
        let (second, left) = lobby.enter(address(1), 'b');
        assert_eq!((left, lobby.leave(first)), (Some((Address, 'a')), None));
        assert_eq!((lobby.leave(second), lobby.leave(second)), (Some('b'), None));
        assert!(lobby.is_empty() && lobby.addresses.is_empty(), "nothing of an address stays");
    }
}
