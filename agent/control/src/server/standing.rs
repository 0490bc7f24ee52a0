//! How a connection stands: a stranger's until a call on it has shown a good token, then one of the known.

use std::{net::IpAddr, sync::Arc};

use parking_lot::Mutex;
use tokio::{sync::OwnedSemaphorePermit, time::Instant, time::sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;

use super::{Shared, listen::Place};
use crate::door::Stranger;

/// Calls of a stranger that are refused; with the last of them its connection ends.
const REFUSALS: u32 = 8;

/// One connection's standing, which its calls share.
pub(super) struct Standing {
    address: IpAddr,
    state: Mutex<State>,
    /// The connection is to end.
    closed: CancellationToken,
    /// It is no stranger any more.
    known: CancellationToken,
}

enum State {
    /// Nobody knows yet whose it is.
    Stranger { _place: Stranger, refused: u32 },
    /// An agent's.
    Known { _place: OwnedSemaphorePermit, _of_address: Place },
}

impl Standing {
    pub(super) fn of(stranger: Stranger) -> Arc<Self> {
        Arc::new(Self {
            address: stranger.address(),
            state: Mutex::new(State::Stranger { _place: stranger, refused: 0 }),
            closed: CancellationToken::new(),
            known: CancellationToken::new(),
        })
    }

    pub(super) fn address(&self) -> IpAddr {
        self.address
    }

    /// Ends when the connection is to end.
    pub(super) fn closing(&self) -> WaitForCancellationFutureOwned {
        self.closed.clone().cancelled_owned()
    }

    /// Ends the connection of a stranger that is displaced, or stays one until `until`.
    pub(super) async fn watch(&self, displaced: CancellationToken, until: Instant) -> Option<&'static str> {
        let why = tokio::select! {
            () = self.known.cancelled() => return None,
            () = self.closed.cancelled() => return None,
            () = displaced.cancelled() => "dropped_displaced",
            () = sleep_until(until) => "dropped_unknown",
        };
        self.closed.cancel();
        Some(why)
    }

    /// A call has shown a good token.
    ///
    /// # Errors
    /// When there are too many connections of agents, in all or of this address.
    pub(super) fn known(&self, shared: &Shared) -> Result<(), Status> {
        let mut state = self.state.lock();
        if matches!(*state, State::Known { .. }) {
            return Ok(());
        }
        let Some((place, of_address)) = shared.places.take(self.address) else {
            drop(state);
            shared.counters.count("dropped_too_many_connections");
            self.closed.cancel();
            return Err(Status::resource_exhausted("there are too many connections; try again later"));
        };
        *state = State::Known { _place: place, _of_address: of_address };
        self.known.cancel();
        Ok(())
    }

    /// A call was refused for its token.
    pub(super) fn refused(&self) {
        if let State::Stranger { refused, .. } = &mut *self.state.lock() {
            *refused += 1;
            if *refused >= REFUSALS {
                self.closed.cancel();
            }
        }
    }
}
