//! Pods of this node: from the manager's events to the data plane.

use super::enrolment::WorldEnrolment;
use futures_util::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::Instant,
};
use weft_certs::IdentityStore;
use weft_core::model::{MtlsMode, ObjectKey, Str, Workload};
use weft_inpod::{CapturedPod, Family, PodEvent, PodSockets, holder::PodRecord};
use weft_proxy::{
    context::Sockets,
    pods::{self, DataPlane},
};

/// A certificate should come at once from the local issuer; a remote one may take a little.
const CERTIFICATE_PATIENCE: Duration = Duration::from_secs(8);

/// `weft-inpod`'s sockets as the data plane asks for them.
#[derive(Debug)]
pub(super) struct InNamespace(pub(super) PodSockets);

impl Sockets for InNamespace {
    fn tcp(&self, ipv6: bool) -> io::Result<OwnedFd> {
        self.0.tcp(if ipv6 { Family::V6 } else { Family::V4 })
    }

    fn original_dst(&self, socket: BorrowedFd<'_>) -> io::Result<SocketAddr> {
        weft_inpod::original_dst(&socket)
    }

    fn listening(&self, port: u16) -> BoxFuture<'static, Option<Vec<IpAddr>>> {
        let sockets = self.0.clone();
        Box::pin(async move { sockets.listening(port).await })
    }
}

/// What is needed to serve a pod.
#[derive(Clone)]
pub(super) struct PodServing {
    pub(super) plane: Arc<DataPlane>,
    pub(super) identities: IdentityStore,
    pub(super) enrolment: Arc<WorldEnrolment>,
    /// Trust domain and the mesh's default mode; may change with a reload.
    pub(super) mesh: Arc<RwLock<(Str, MtlsMode)>>,
    /// The longest that a pod's connections may go on when it leaves.
    pub(super) grace: Duration,
    /// Which sandbox is served under each pod's name: the end of an old sandbox may be told after its successor's start.
    pub(super) sandboxes: Arc<Mutex<HashMap<ObjectKey, String>>>,
}

impl PodServing {
    /// Acts on events until the manager ends or a newer agent takes over; then completes `superseded`.
    pub(super) async fn run(self, mut events: mpsc::Receiver<PodEvent>, superseded: oneshot::Sender<()>) {
        let mut tasks = JoinSet::new();
        while let Some(event) = events.recv().await {
            while tasks.try_join_next().is_some() {}
            let serving = self.clone();
            match event {
                PodEvent::Captured { pod, ready } => {
                    tasks.spawn(async move {
                        // The manager may have given up waiting: it offers the pod again.
                        let _ = ready.send(serving.serve(pod).await);
                    });
                }
                PodEvent::Released { record, gone, drained } => {
                    tasks.spawn(async move {
                        serving.release(&record, gone).await;
                        let _ = drained.send(());
                    });
                }
                PodEvent::Superseded => {
                    let _ = superseded.send(());
                    break;
                }
            }
        }
        tasks.join_all().await;
    }

    async fn serve(&self, pod: CapturedPod) -> Result<(), String> {
        let workload = self.workload(&pod.record).ok_or("the pod is not known yet")?;
        let identity = self.identities.acquire(workload.identity.clone());
        identity.ready(Instant::now() + CERTIFICATE_PATIENCE).await.map_err(|e| e.to_string())?;
        let listeners = pods::Listeners {
            outbound: pod.listeners.outbound,
            inbound: pod.listeners.inbound,
            hbone: pod.listeners.hbone,
        };
        let captured = pods::CapturedPod {
            workload: Arc::new(workload),
            identity: Some(identity),
            sockets: Arc::new(InNamespace(pod.sockets)),
            listeners,
        };
        let key = ObjectKey::new(pod.record.namespace.as_str(), pod.record.name.as_str());
        self.sandboxes.lock().insert(key, pod.record.container_id.clone());
        self.plane.add_pod(captured).await.map_err(|e| e.to_string())?;
        tracing::info!("pod {}/{}: captured", pod.record.namespace, pod.record.name);
        Ok(())
    }

    async fn release(&self, record: &PodRecord, gone: bool) {
        let patience = self.enrolment.patience().map_or(self.grace, |patience| patience.min(self.grace));
        let grace = if gone { Duration::ZERO } else { patience };
        let key = ObjectKey::new(record.namespace.as_str(), record.name.as_str());
        let is_current = {
            let mut sandboxes = self.sandboxes.lock();
            let is_current = sandboxes.get(&key) == Some(&record.container_id);
            if is_current {
                sandboxes.remove(&key);
            }
            is_current
        };
        if !is_current {
            return; // a newer sandbox of the pod is served; adding it ended the old one
        }
        if let Err(error) = self.plane.remove_pod(&key, grace).await {
            tracing::warn!("pod {key}: {error}");
        }
        tracing::info!("pod {key}: {}", if gone { "gone" } else { "released" });
    }

    /// The pod's workload, with the addresses that its network plugin reported: the object's status may be behind.
    fn workload(&self, record: &PodRecord) -> Option<Workload> {
        let key = ObjectKey::new(record.namespace.as_str(), record.name.as_str());
        let (trust_domain, mode) = self.mesh.read().clone();
        let mut workload = self.enrolment.workload(&key, &record.uid, &trust_domain, mode)?;
        if !record.ips.is_empty() {
            workload.ips.clone_from(&record.ips);
        }
        Some(workload)
    }
}
