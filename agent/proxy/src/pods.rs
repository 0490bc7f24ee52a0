//! Pods of this node: their listeners, who they are, and the workers that serve them.

use crate::{
    context::{ShareKey, Sockets, Source},
    inbound, outbound,
    share::{ConnectionGuard, Share, pause},
    telemetry::Counter,
    transport::{
        accept,
        connect::{canonical, reset_on_close},
    },
    worker::{Worker, WorkerGone, Workers},
};
use std::{
    cell::Cell,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
};
use weft_certs::IdentityHandle;
use weft_core::model::{MtlsMode, ObjectKey, Workload};

/// After a failed accept (no file descriptor left) the loop waits this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections that are accepted at once: a step of the pod's share should not take longer than its slice.
const ACCEPTS_IN_A_ROW: u32 = 8;
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
        let name = key.clone();
        let register = move |worker: Rc<Worker>| async move {
            let share = worker.share(&source.share);
            let mode = Cell::new(inbound::mode(&worker.shared.config.load(), &source.workload));
            let pod = Pod { source: Rc::new(source), share, mode, policy: Notify::new() };
            worker.pods.borrow_mut().insert(name, Rc::new(pod));
        };
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
        let key = key.clone();
        let remove = move |worker: Rc<Worker>| async move {
            if worker.pods.borrow_mut().remove(&key).is_none() {
                return;
            }
            worker.retire(&ShareKey::Pod(key), grace).await;
        };
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
            for pod in worker.pods.borrow().values() {
                let mode = inbound::mode(&config, &pod.source.workload);
                if pod.mode.replace(mode) != mode {
                    pod.policy.notify_waiters();
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

/// A captured pod as one worker serves it.
#[derive(Debug)]
pub(crate) struct Pod {
    /// On whose behalf.
    pub(crate) source: Rc<Source>,
    /// Pays for its traffic, in and out.
    pub(crate) share: Rc<Share>,
    /// What it accepted when that was looked at last.
    mode: Cell<MtlsMode>,
    /// Told when that is another.
    pub(crate) policy: Notify,
}

/// Which of a pod's listeners a connection came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entrance {
    Outbound,
    Inbound,
    Hbone,
}

/// Starts accepting, on the pod's home worker.
fn adopt(worker: &Rc<Worker>, key: &ObjectKey, listeners: Listeners) -> io::Result<()> {
    let pod = worker.pods.borrow().get(key).cloned();
    let pod = pod.ok_or_else(|| io::Error::other("the pod was removed meanwhile"))?;
    let Listeners { outbound, inbound, hbone } = listeners;
    let entrances = [(Entrance::Outbound, outbound), (Entrance::Inbound, inbound), (Entrance::Hbone, hbone)];
    let mut ready = Vec::new();
    for (entrance, listener) in entrances {
        ready.push((entrance, prepare(listener)?));
    }
    for (entrance, listener) in ready {
        // In the pod's own share: a flood of connections takes its own pod's time.
        pod.share.spawn(accept_loop(worker.clone(), pod.clone(), listener, entrance));
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

async fn accept_loop(worker: Rc<Worker>, pod: Rc<Pod>, listener: TcpListener, entrance: Entrance) {
    let drain = pod.share.drain().clone();
    let mut in_a_row = 0_u32;
    loop {
        let accepted = tokio::select! {
            biased;
            // The listener stays open at its holder: who comes now waits for the next agent.
            () = drain.draining() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((io, peer)) => {
                place(&worker, &pod, io, entrance, canonical(peer));
                in_a_row = in_a_row.wrapping_add(1);
                if in_a_row.is_multiple_of(ACCEPTS_IN_A_ROW) {
                    // What was accepted is served before more is.
                    pause().await;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(pod = %pod.source.workload.pod, %error, "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves a connection here, or hands it to a worker that is less busy.
fn place(worker: &Rc<Worker>, pod: &Rc<Pod>, io: TcpStream, entrance: Entrance, peer: SocketAddr) {
    let target = worker.peers.place(worker.id);
    if target == worker.id {
        begin(worker, pod, io, entrance, peer);
        return;
    }
    let io = match io.into_std() {
        Ok(io) => io,
        Err(error) => return tracing::warn!(%error, "a connection could not be handed over"),
    };
    let key = pod.source.workload.pod.clone();
    let command = Box::new(move |worker: &Rc<Worker>| {
        let pod = worker.pods.borrow().get(&key).cloned();
        // A pod that was removed meanwhile: the connection is closed.
        let Some(pod) = pod else { return };
        match TcpStream::from_std(io) {
            Ok(io) => begin(worker, &pod, io, entrance, peer),
            Err(error) => tracing::warn!(%error, "a connection could not be taken over"),
        }
    });
    if let Err(command) = worker.peers.try_run(target, command) {
        command(worker);
    }
}

fn begin(worker: &Rc<Worker>, pod: &Rc<Pod>, io: TcpStream, entrance: Entrance, peer: SocketAddr) {
    let Some(guard) = pod.share.admit() else {
        worker.telemetry.count(Counter::LimitRefused);
        reset_on_close(&io);
        return;
    };
    let conn = Accepted { worker: worker.clone(), pod: pod.clone(), io, peer, _guard: guard };
    match entrance {
        Entrance::Outbound => pod.share.spawn(outbound::serve(conn)),
        Entrance::Inbound => pod.share.spawn(inbound::serve(conn)),
        Entrance::Hbone => pod.share.spawn(accept::serve(conn, None)),
    }
}

/// A connection to one of a pod's listeners.
pub(crate) struct Accepted {
    pub(crate) worker: Rc<Worker>,
    pub(crate) pod: Rc<Pod>,
    pub(crate) io: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) _guard: ConnectionGuard,
}
