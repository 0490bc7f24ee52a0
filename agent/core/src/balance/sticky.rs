//! What `sessionAffinity: ClientIP` remembers: which endpoint each client was sent to last.
//!
//! Hashing alone would move one client in n when the n-th endpoint comes; a session that lives at its endpoint would be
//! lost by every scale-up. So a client stays where it was, as with kube-proxy, until it was silent for the Service's
//! timeout or its endpoint is none any more. Only a client of whom nothing is remembered is given its seat by hash.

use super::affinity;
use crate::config::{Backend, BackendKey, Endpoint, Reach};
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::Instant,
};

/// A client that looks for its endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Seeker<'a> {
    /// Its address.
    pub client: IpAddr,
    /// What it calls; says how long it is remembered while it is silent.
    pub backend: &'a Backend,
}

/// Who is remembered: a client of a Service port, whichever of the Service's addresses it uses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Client {
    ip: IpAddr,
    service: BackendKey,
}

#[derive(Clone, Copy, Debug)]
struct Seat {
    endpoint: SocketAddr,
    used: Instant,
}

/// Clients and their endpoints. Holds twice `capacity` clients at most: when as many have come as there is room for, those
/// who were not heard of since the last time are forgotten, without a search.
#[derive(Debug)]
pub struct Sticky {
    capacity: usize,
    recent: HashMap<Client, Seat>,
    before: HashMap<Client, Seat>,
}

impl Sticky {
    /// Room for at least `capacity` clients.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), recent: HashMap::new(), before: HashMap::new() }
    }

    /// The index of the endpoint for a client, among those that may be taken (`fresh`); `None` when none may, and where the
    /// Service does not ask for affinity.
    pub fn pick(
        &mut self,
        seeker: Seeker<'_>,
        endpoints: &[Endpoint],
        fresh: impl Fn(usize) -> bool,
        now: Instant,
    ) -> Option<usize> {
        let timeout = seeker.backend.client_ip_affinity?;
        let key = BackendKey { reach: Reach::default(), ..seeker.backend.key.clone() };
        let client = Client { ip: seeker.client.to_canonical(), service: key };
        let seat = self.recent.get(&client).or_else(|| self.before.get(&client));
        let seat = seat.filter(|seat| now.saturating_duration_since(seat.used) < timeout);
        let known = seat.and_then(|seat| endpoints.iter().position(|e| e.addr == seat.endpoint));
        if let Some(index) = known.filter(|index| fresh(*index)) {
            self.remember(client, endpoints[index].addr, now);
            return Some(index);
        }
        let seats = endpoints.iter().enumerate().map(|(i, e)| fresh(i).then(|| affinity::seat(&e.addr)));
        let index = affinity::choose(affinity::client_key(client.ip), seats)?;
        // An endpoint that could not be reached just now is the client's own still: its session is there.
        if known.is_none() {
            self.remember(client, endpoints[index].addr, now);
        }
        Some(index)
    }

    fn remember(&mut self, client: Client, endpoint: SocketAddr, used: Instant) {
        if self.recent.len() >= self.capacity && !self.recent.contains_key(&client) {
            self.before = std::mem::take(&mut self.recent);
        }
        self.recent.insert(client, Seat { endpoint, used });
    }

    /// How many clients are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.recent.len() + self.before.keys().filter(|c| !self.recent.contains_key(c)).count()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.recent.is_empty() && self.before.is_empty()
    }
}
