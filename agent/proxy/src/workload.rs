//! A workload of this node, a pod or a Gateway, as one worker serves it.
//!
//! Everything that a worker holds on a workload's behalf is in its [`LocalWorkload`], so that it can be bounded, shown
//! and dropped as a whole. Connections hold it, and what they ask for after the workload was retired (a tunnel for a
//! request of the drain's last seconds) is held there too, and ends with it.

use crate::{
    context::Source,
    dial::UpstreamIo,
    http::HttpPool,
    share::Share,
    transport::{pool::Tunnels, unproved::Unproved},
};
use std::{cell::Cell, rc::Rc};
use tokio::sync::Notify;
use weft_core::model::MtlsMode;

/// A pod or a Gateway on one worker. `Io` is what its upstream connections are made of; tests use another.
pub struct LocalWorkload<Io = UpstreamIo> {
    /// On whose behalf upstreams are called.
    pub(crate) source: Rc<Source>,
    /// Pays for its traffic, in and out.
    pub(crate) share: Rc<Share>,
    /// Kept tunnels to pods that it has called.
    pub(crate) tunnels: Tunnels,
    /// Kept HTTP connections to endpoints that it has called.
    pub(crate) pool: Rc<HttpPool<Io>>,
    /// Tunnels to it whose client has not shown a certificate yet.
    pub(crate) unproved: Unproved,
    /// What it accepted in clear when that was looked at last.
    pub(crate) mode: Cell<MtlsMode>,
    /// Told when that is another.
    pub(crate) policy: Notify,
}

impl<Io: 'static> LocalWorkload<Io> {
    /// One that holds nothing yet.
    #[must_use]
    pub fn new(source: Source, share: Rc<Share>) -> Rc<Self> {
        Rc::new(Self {
            mode: Cell::new(source.workload.mode),
            policy: Notify::new(),
            source: Rc::new(source),
            share,
            tunnels: Tunnels::default(),
            pool: HttpPool::new(),
            unproved: Unproved::default(),
        })
    }

    /// Kept connections and tunnels are not used again; what runs on them goes on.
    pub(crate) fn forget_upstreams(&self) {
        self.pool.clear();
        self.tunnels.retire();
    }
}

impl<Io> std::fmt::Debug for LocalWorkload<Io> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalWorkload").field("share", &self.share).finish_non_exhaustive()
    }
}
