//! Pods of this node: their listeners, who they are, and the workers that serve them.

use crate::{
    context::{ShareKey, Sockets, Source},
    entrance::{Entrance, accept_loop},
    inbound,
    worker::{Worker, WorkerGone, Workers},
};
use std::{
    io,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::net::TcpListener;
use weft_certs::IdentityHandle;
use weft_core::model::{ObjectKey, Workload};

/// A peer that vanished without a word is noticed by TCP keepalive: after this time of silence…
const KEEPALIVE_IDLE: Duration = Duration::from_secs(180);
/// …at this interval.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// A pod whose traffic is redirected to our listeners.
#[derive(Debug)]
pub struct CapturedPod {
    /// Who it is. Its mode is looked up in the Config for each connection, so that an edit counts at once.
    pub workload: Arc<Workload>,
    /// Keys.
    pub identity: Option<IdentityHandle>,
    /// Client sockets inside the pod.
    pub sockets: Arc<dyn Sockets>,
    /// Listening sockets inside the pod.
    pub listeners: Listeners,
}

/// The three listening sockets inside a pod (duplicates of the holder's).
#[derive(Debug)]
pub struct Listeners {
    /// 15001: what the pod sends.
    pub outbound: std::net::TcpListener,
    /// 15006: what it is sent on its own ports, plaintext and tunnels.
    pub inbound: std::net::TcpListener,
    /// 15008: what it is sent by HBONE.
    pub hbone: std::net::TcpListener,
}

/// Why a pod could not be added.
#[derive(Debug, thiserror::Error)]
pub enum AddPodError {
    /// Its listeners cannot be used.
    #[error("the pod's listeners cannot be served: {0}")]
    Listener(#[from] io::Error),
    /// The process is ending.
    #[error(transparent)]
    Gone(#[from] WorkerGone),
}

/// The workers, with the pods that they serve.
#[derive(Debug)]
pub struct DataPlane {
    workers: Workers,
    next_home: AtomicUsize,
}

impl DataPlane {
    /// Serves pods on these workers.
    #[must_use]
    pub const fn new(workers: Workers) -> Self {
        Self { workers, next_home: AtomicUsize::new(0) }
    }

    /// The workers, for Gateways.
    #[must_use]
    pub const fn workers(&self) -> &Workers {
        &self.workers
    }

    /// Serves a pod. Returns once its listeners are being accepted from. A pod of the same name that is still there
    /// (its sandbox was made anew) is ended first.
    ///
    /// # Errors
    /// When the listeners cannot be used, or the process is ending.
    pub async fn add_pod(&self, pod: CapturedPod) -> Result<(), AddPodError> {
        let key = pod.workload.pod.clone();
        self.remove_pod(&key, Duration::ZERO).await?;
        let CapturedPod { workload, identity, sockets, listeners } = pod;
        let source = Source { share: ShareKey::Pod(key.clone()), workload, identity, sockets };
        let register = move |worker: Rc<Worker>| async move { drop(worker.introduce(source)) };
        self.workers.run_all(register).await?;
        let home = self.next_home.fetch_add(1, Ordering::Relaxed) % self.workers.count();
        self.workers.run(home, move |worker| async move { adopt(&worker, &key, listeners) }).await??;
        Ok(())
    }

    /// Stops accepting for a pod at once, lets its connections end for at most `grace`, then ends the rest. Without
    /// effect for a pod that is not there.
    ///
    /// # Errors
    /// When the process is ending.
    pub async fn remove_pod(&self, key: &ObjectKey, grace: Duration) -> Result<(), WorkerGone> {
        let key = ShareKey::Pod(key.clone());
        let remove = move |worker: Rc<Worker>| async move { worker.retire(&key, grace).await };
        self.workers.run_all(remove).await.map(drop)
    }

    /// Looks at pods' policies again, after a new Config has taken effect: what a pod has let in under another one is
    /// decided about anew.
    ///
    /// # Errors
    /// When the process is ending.
    pub async fn recheck(&self) -> Result<(), WorkerGone> {
        let recheck = |worker: Rc<Worker>| async move {
            let config = worker.shared.config.load();
            for local in worker.workloads() {
                let mode = inbound::mode(&config, &local.source.workload);
                if local.mode.replace(mode) != mode {
                    local.policy.notify_waiters();
                }
            }
        };
        self.workers.run_all(recheck).await.map(drop)
    }

    /// Lets everything end by itself for at most `grace`, then ends the rest.
    pub async fn drain(&self, grace: Duration) {
        self.workers.drain(grace).await;
    }

    /// Ends the workers. Blocks until their threads have ended.
    pub fn stop(self) {
        self.workers.stop();
    }
}

/// Starts accepting, on the pod's home worker.
fn adopt(worker: &Rc<Worker>, key: &ObjectKey, listeners: Listeners) -> io::Result<()> {
    let local = worker.workload(&ShareKey::Pod(key.clone()));
    let local = local.ok_or_else(|| io::Error::other("the pod was removed meanwhile"))?;
    let Listeners { outbound, inbound, hbone } = listeners;
    let entrances = [(Entrance::Outbound, outbound), (Entrance::Inbound, inbound), (Entrance::Hbone, hbone)];
    let mut ready = Vec::new();
    for (entrance, listener) in entrances {
        ready.push((entrance, prepare(listener)?));
    }
    for (entrance, listener) in ready {
        local.share.spawn(accept_loop(worker.clone(), local.clone(), listener, entrance));
    }
    Ok(())
}

/// Options set here are inherited by every accepted connection: no system call for each.
fn prepare(listener: std::net::TcpListener) -> io::Result<TcpListener> {
    listener.set_nonblocking(true)?;
    let socket = socket2::SockRef::from(&listener);
    socket.set_tcp_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
    socket.set_tcp_keepalive(&keepalive)?;
    TcpListener::from_std(listener)
}
