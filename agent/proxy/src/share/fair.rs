//! Which share runs next: the one that has been served least. Pure: what was served is an argument, there is no clock.
//!
//! Start-time fair queueing. Each share has a virtual time: how much it has been served. The least goes first, pays for
//! what it ran (an overrun too, by waiting longer afterwards), and virtual time as a whole is that of whoever ran last.
//! A share that has slept comes back a little behind that time: before everybody who is being served, but without the
//! right to everything that it did not use.

use std::{cmp::Reverse, collections::BinaryHeap};

/// How far behind virtual time a share may come back from sleep, in nanoseconds. More than one turn, so that one that
/// needs little always goes before one that needs much, however often it wakes.
pub(super) const CREDIT_NS: u64 = 500_000;
/// Most that one turn is charged, in nanoseconds. What is measured is time that passed: a worker that the kernel or a
/// hypervisor took off its CPU must not make a share pay for it for long. The longest step of ours (a handshake's) is
/// below.
pub(super) const CHARGE_MAX_NS: u64 = 2_000_000;

/// Ready shares, least served first; equals in order of arrival.
#[derive(Debug)]
pub(super) struct Fair<T> {
    ready: BinaryHeap<Reverse<Entry<T>>>,
    /// Virtual time.
    now: u64,
    arrivals: u64,
}

#[derive(Debug)]
struct Entry<T> {
    served: u64,
    arrival: u64,
    share: T,
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.served, self.arrival).cmp(&(other.served, other.arrival))
    }
}

impl<T> Default for Fair<T> {
    fn default() -> Self {
        Self { ready: BinaryHeap::new(), now: 0, arrivals: 0 }
    }
}

impl<T> Fair<T> {
    /// A share that slept, and has been served up to `served`, is ready.
    pub(super) fn wake(&mut self, share: T, served: u64) {
        self.enter(share, served.max(self.now.saturating_sub(CREDIT_NS)));
    }

    /// A share that ran, and has been served up to `served` with that, is still ready.
    pub(super) fn enter(&mut self, share: T, served: u64) {
        self.arrivals += 1;
        self.ready.push(Reverse(Entry { served, arrival: self.arrivals, share }));
    }

    /// The share whose turn it is, and up to where it has been served.
    pub(super) fn next(&mut self) -> Option<(T, u64)> {
        let Reverse(first) = self.ready.pop()?;
        self.now = self.now.max(first.served);
        Some((first.share, first.served))
    }

    /// Up to where a share has been served after a turn of `ran` nanoseconds.
    pub(super) fn charged(served: u64, ran: u64) -> u64 {
        served + ran.min(CHARGE_MAX_NS)
    }
}

#[cfg(test)]
mod tests;
