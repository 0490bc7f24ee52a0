//! `sessionAffinity: ClientIP` for all workers of the process: a client's connections are not all one worker's.

use crate::{context::ShareKey, loads::Choice};
use parking_lot::Mutex;
use std::time::Instant;
use weft_core::balance::{Seeker, Sticky, affinity};

/// Locks, so that workers seldom wait for each other.
const SHARDS: usize = 16;
/// Clients remembered in each of them, at least: of pods of this node, and of whoever comes to a Gateway. About 100 bytes
/// each, and only of Services that ask for it.
const CLIENTS: usize = 4096;

/// Endpoints of clients whose Service asks for affinity. Strangers at Gateways, who may come from any number of addresses,
/// do not make this node's pods forgotten.
#[derive(Debug)]
pub(crate) struct StickyClients {
    pods: [Mutex<Sticky>; SHARDS],
    strangers: [Mutex<Sticky>; SHARDS],
}

impl Default for StickyClients {
    fn default() -> Self {
        let shards = || std::array::from_fn(|_| Mutex::new(Sticky::new(CLIENTS)));
        Self { pods: shards(), strangers: shards() }
    }
}

impl StickyClients {
    /// The index of a client's own endpoint, if it may be taken (`fresh`); `None` as well where the Service does not ask for
    /// affinity.
    pub(crate) fn pick(
        &self,
        choice: &Choice<'_>,
        fresh: impl Fn(usize) -> bool,
        now: Instant,
    ) -> Option<usize> {
        let shards = match choice.share {
            ShareKey::Pod(_) => &self.pods,
            ShareKey::Gateway(_) => &self.strangers,
        };
        let shard = usize::try_from(affinity::client_key(choice.client) % SHARDS as u64).unwrap_or_default();
        let seeker = Seeker { client: choice.client, backend: choice.backend };
        shards[shard].lock().pick(seeker, &choice.set.ready, fresh, now)
    }
}
