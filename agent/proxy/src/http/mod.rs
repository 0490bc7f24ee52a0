//! HTTP: one path for Gateways and for the mesh.
//!
//! ```text
//! serve ─▶ route ─▶ filters ─▶ forward ─┬▶ pool / connect ─▶ upstream
//!   ▲                    │        ▲     └▶ mirror
//!   └── respond ◀────────┘        └─ retry
//! ```
//!
//! [`serve_mesh`] and [`serve_gateway`] serve one downstream connection on the worker where it was accepted; all that
//! they share is [`HttpWorker`]. Each request looks up its route table in the Config of that moment, so an edit takes
//! effect on kept connections. Bodies are never buffered.

mod backend_tls;
mod body;
mod conn;
mod connect;
mod exchange;
mod filters;
mod forward;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod io;
mod mirror;
mod plan;
mod pool;
mod reply;
mod respond;
mod route;
mod serve;
mod spare;
mod streams;
mod upgrade;

pub use conn::{DownstreamTls, Entrance, GatewayEntrance, HttpConn};
pub use io::Prefixed;
pub use respond::REASON_HEADER;
pub use serve::{HttpVersion, serve};

use crate::{context::Shared, dial::Dial, loads::Loads, telemetry::WorkerTelemetry};
use backend_tls::BackendTlsCache;
use pool::Pool;
use std::{cell::Cell, rc::Rc, sync::Arc};

/// A workload's kept connections.
pub(crate) type HttpPool<Io> = Pool<io::MaybeTls<Io>>;

/// What all HTTP connections of one worker share: the balancer's view of endpoints, TLS settings of backends, telemetry.
pub struct HttpWorker<D: Dial> {
    pub(crate) shared: Arc<Shared>,
    pub(crate) dial: D,
    pub(crate) telemetry: Rc<WorkerTelemetry>,
    pub(crate) loads: Rc<Loads>,
    pub(crate) backend_tls: BackendTlsCache,
    /// Mirror copies under way.
    pub(crate) mirrors: Cell<usize>,
    random: Cell<u64>,
}

impl<D: Dial> HttpWorker<D> {
    /// An empty one. `seed` is any random number.
    #[must_use]
    pub fn new(
        shared: Arc<Shared>,
        dial: D,
        telemetry: Rc<WorkerTelemetry>,
        loads: Rc<Loads>,
        seed: u64,
    ) -> Rc<Self> {
        Rc::new(Self {
            shared,
            dial,
            telemetry,
            loads,
            backend_tls: BackendTlsCache::default(),
            mirrors: Cell::new(0),
            random: Cell::new(seed),
        })
    }

    /// A random number, uniform over all of `u64` (SplitMix64: for balancing, not for secrets).
    pub(crate) fn draw(&self) -> u64 {
        let state = self.random.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
        self.random.set(state);
        let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

impl<D: Dial> std::fmt::Debug for HttpWorker<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpWorker").finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests;
