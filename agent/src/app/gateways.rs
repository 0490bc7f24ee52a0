//! Gateways of this agent.

use std::sync::Arc;
use weft_certs::IdentityStore;
use weft_core::{config::Config, engine::Feedback};
use weft_inpod::ManagerHandle;
use weft_proxy::pods::DataPlane;

pub(super) struct Gateways;

impl Gateways {
    pub(super) fn new(_: Arc<DataPlane>, _: IdentityStore, _: Option<Arc<ManagerHandle>>) -> Self {
        Self
    }
    pub(super) async fn sync(&mut self, _: &Arc<Config>) -> Feedback {
        Feedback::default()
    }
    pub(super) async fn retry(&self) {
        std::future::pending().await
    }
    pub(super) async fn stop_accepting(&mut self) {}
}
