//! The agent's side of a cluster: what it tells the controller, what it gets from it, and the addresses that it holds.

use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::watch, task::AbortHandle};
use weft_certs::TrustBundle;
use weft_control::{Applied, AppliedGateway, BudgetReached, ControlClient, watermarks};
use weft_core::{
    config::Config,
    engine::Feedback,
    model::{Capture, ObjectKey, Snapshot, Str},
};
use weft_inpod::Announcer;
use weft_k8s::{Captured, Material, WatchState, World};
use weft_proxy::{budgets::Reached, context::Shared};

/// The controller's port.
pub(super) const CONTROL_PORT: u16 = 15012;
/// The controller's Service.
pub(super) const CONTROL_SERVICE: &str = "weft-controller";

/// The agent's side of the cluster.
pub(super) struct Cluster {
    /// This node's name.
    pub(super) node: Str,
    /// Addresses of Gateways that this node holds.
    pub(super) announcer: Announcer,
    /// The way to the controller.
    pub(super) control: ControlClient,
    /// How the watches of the cluster stand.
    pub(super) watched: watch::Receiver<Arc<WatchState>>,
    /// To the provider: which of this node's pods are captured.
    pub(super) captured: watch::Sender<Arc<Captured>>,
    /// Tasks that end with this.
    pub(super) tasks: Mutex<Vec<Task>>,
}

/// How often it is looked whether budgets were reached.
const BUDGETS_LOOK: Duration = Duration::from_secs(5);
/// The controller is told of what was reached within this time.
const BUDGETS_LATELY: Duration = Duration::from_secs(60);

fn reached(reached: Reached) -> BudgetReached {
    let Reached { budget, by, times } = reached;
    BudgetReached { workload: by.key, gateway: by.kind == "Gateway", budget, times }
}

/// A task that ends with its owner.
pub(super) struct Task(AbortHandle);

impl Task {
    pub(super) fn spawn(work: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(work).abort_handle())
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Cluster {
    /// Tells the controller what is served now.
    pub(super) fn applied(&self, snapshot: &Snapshot, config: &Config, feedback: &Feedback) {
        let ours = |key: &ObjectKey| config.gateways.contains_key(key);
        let marks = watermarks(snapshot).into_iter().filter(|(key, _)| ours(key));
        let mut applied: Applied =
            marks.map(|(key, mark)| (key, AppliedGateway { mark, ..AppliedGateway::default() })).collect();
        for ((key, port, transport), why) in &feedback.unbound {
            if let Some(gateway) = applied.get_mut(key) {
                gateway.unbound.insert((*port, *transport), why.clone());
            }
        }
        for ((key, ip), why) in &feedback.unusable {
            if let Some(gateway) = applied.get_mut(key) {
                gateway.unusable.insert(*ip, why.clone());
            }
        }
        self.control.report(applied);
    }

    /// Tells everybody which pods of this node are captured, from now on.
    pub(super) fn follow_captured<C>(
        &self,
        mut captured: watch::Receiver<Arc<BTreeMap<ObjectKey, C>>>,
        capture: fn(&C) -> Capture,
    ) where
        C: Send + Sync + 'static,
    {
        let (control, provider) = (self.control.clone(), self.captured.clone());
        self.tasks.lock().push(Task::spawn(async move {
            loop {
                let now = captured.borrow_and_update().clone();
                let now: Captured = now.iter().map(|(key, pod)| (key.clone(), capture(pod))).collect();
                control.captured(now.clone());
                provider.send_replace(Arc::new(now));
                if captured.changed().await.is_err() {
                    return;
                }
            }
        }));
    }

    /// Tells the controller which budgets the node's workloads have reached lately.
    pub(super) fn follow_budgets(&self, shared: Arc<Shared>) {
        let control = self.control.clone();
        self.tasks.lock().push(Task::spawn(async move {
            let mut looks = tokio::time::interval(BUDGETS_LOOK);
            looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                looks.tick().await;
                let lately = shared.budgets.list(Some(BUDGETS_LATELY), Instant::now());
                control.reached(lately.into_iter().map(reached).collect());
            }
        }));
    }

    /// Holds and announces the addresses that Gateways have on this node, beside the node's own; none with no configuration.
    pub(super) async fn hold_addresses(&self, config: Option<&Config>, snapshot: &Snapshot) {
        let Some(node) = snapshot.nodes.get(&self.node) else { return };
        let bound =
            config.into_iter().flat_map(|c| c.gateways.values()).flat_map(|g| g.addresses.iter().copied());
        let wanted: BTreeSet<IpAddr> = bound.filter(|ip| !node.addresses.contains(ip)).collect();
        if let Err(error) = self.announcer.hold(&node.addresses, wanted).await {
            tracing::warn!("addresses of Gateways: {error}");
        }
    }
}

/// Where the controller is, as the world says: the Service's address needs no DNS.
pub(super) fn controller_address(snapshot: &Snapshot, namespace: &str) -> Option<SocketAddr> {
    let service = snapshot.services.get(&ObjectKey::new(namespace, CONTROL_SERVICE))?;
    Some(SocketAddr::new(*service.cluster_ips.first()?, CONTROL_PORT))
}

/// Sends what `pick` sees in each world, when it differs.
pub(super) fn follow_worlds<T: PartialEq + Send + Sync + 'static>(
    mut worlds: watch::Receiver<Arc<World>>,
    to: watch::Sender<T>,
    pick: impl Fn(&World) -> T + Send + 'static,
) -> Task {
    Task::spawn(async move {
        loop {
            let picked = pick(&worlds.borrow_and_update().clone());
            to.send_if_modified(|now| {
                let changed = *now != picked;
                if changed {
                    *now = picked;
                }
                changed
            });
            if worlds.changed().await.is_err() {
                return;
            }
        }
    })
}

/// Trust roots from PEM text, whenever it changes. A text that is no bundle leaves the last one.
pub(super) fn follow_roots(
    mut from: watch::Receiver<Option<Str>>,
    to: watch::Sender<Option<TrustBundle>>,
    mut changed: impl FnMut(&TrustBundle) + Send + 'static,
) -> Task {
    Task::spawn(async move {
        loop {
            let text = from.borrow_and_update().clone();
            match text.as_deref().map(|text| TrustBundle::from_pem(text.as_bytes())) {
                Some(Ok(bundle)) => {
                    changed(&bundle);
                    to.send_replace(Some(bundle));
                }
                Some(Err(error)) => tracing::warn!("ConfigMap weft-ca-root: {error}; the last roots stay"),
                None => {}
            }
            if from.changed().await.is_err() {
                return;
            }
        }
    })
}

/// The controller's material as the provider takes it.
pub(super) fn follow_material(
    mut from: watch::Receiver<Arc<weft_control::Material>>,
    to: watch::Sender<Arc<Material>>,
) -> Task {
    Task::spawn(async move {
        loop {
            let now = from.borrow_and_update().clone();
            let material = Material { secrets: now.secrets.clone(), config_maps: now.config_maps.clone() };
            to.send_replace(Arc::new(material));
            if from.changed().await.is_err() {
                return;
            }
        }
    })
}
