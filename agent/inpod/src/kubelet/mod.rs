//! Recognises connections of the node's kubelet, by the kernel's word and not by an address, which anybody on the node has.
//!
//! ```text
//! the connection's addresses ─▶ sock_diag: the socket at the other end, in the node's network namespace
//!                               its inode  ─▶ is it among /proc/PID/fd of the kubelet?
//! the kubelet: the one process that holds every listener on the node's kubelet port, root's, and no pod's
//! ```
//!
//! SECURITY.md says what this keeps out, and what it cannot.

pub(crate) mod diag;
mod elect;
mod process;

use diag::{Diag, Told};
use elect::{Holder, Listener, NoKubelet, elect};
use process::{Process, in_own_cgroups};
use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU16, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// Questions that may wait. One look at the kubelet answers all of them.
const QUESTIONS_MAX: usize = 1024;
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long it is taken as known that there is no kubelet, while the same sockets listen: finding out reads all of /proc.
const NONE_FOR: Duration = Duration::from_millis(200);
/// How often at most a stranger is looked up by name.
const NAMED_EVERY: Duration = Duration::from_secs(1);
/// A program that starts another has a twin for an instant, with the same descriptors: look again.
const LOOKS: usize = 3;

/// Why a connection is not the kubelet's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stranger {
    /// No process of the node holds the other end: it is closed, or somewhere else.
    #[error("no process of the node holds the other end")]
    Elsewhere,
    /// There is no kubelet just now. Why not.
    #[error("there is no kubelet: {0}")]
    NoKubelet(String),
    /// Another process of the node. Who.
    #[error("not the kubelet: {0}")]
    Other(String),
    /// It could not be found out.
    #[error("the other end could not be looked up: {0}")]
    Failed(String),
}

/// The other end of a connection to a pod: a socket of a process in the node's network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeSocket(Told);

impl NodeSocket {
    /// Whether root made it, as a kubelet's is.
    #[must_use]
    pub const fn is_of_root(&self) -> bool {
        self.0.uid == 0
    }
}

/// Knows the node's kubelet. What asks it is answered by a thread of its own, which reads /proc.
#[derive(Debug)]
pub struct KubeletWatch {
    /// Of the node's network namespace. Netlink answers at once, so any thread may ask.
    diag: Diag,
    port: Arc<AtomicU16>,
    unknown: Unknown,
    /// `None` only while it is dropped.
    questions: Option<SyncSender<Question>>,
    thread: Option<JoinHandle<()>>,
}

/// Why there was no kubelet, when somebody last asked. Empty when there was one.
type Unknown = Arc<Mutex<String>>;

#[derive(Debug)]
struct Question {
    socket: NodeSocket,
    answer: oneshot::Sender<Result<(), Stranger>>,
}

impl KubeletWatch {
    /// For the network namespace of the calling thread, which must be the node's. `proc_root`: the node's /proc.
    ///
    /// # Errors
    /// When the kernel has no sock_diag, or gives no thread.
    pub fn start(proc_root: PathBuf) -> io::Result<Self> {
        let (questions, asked) = sync_channel(QUESTIONS_MAX);
        let port = Arc::new(AtomicU16::new(0));
        let unknown = Unknown::default();
        let look = Look {
            own_cgroups: in_own_cgroups(&proc_root),
            proc_root,
            port: port.clone(),
            unknown: unknown.clone(),
            diag: Diag::open()?,
            known: None,
            none: None,
            named: None,
        };
        let thread = thread::Builder::new().name("weft-kubelet".into()).spawn(move || look.run(&asked))?;
        Ok(Self { diag: Diag::open()?, port, unknown, questions: Some(questions), thread: Some(thread) })
    }

    /// Why there was no kubelet when a connection from the node was last looked up. Empty: there was one, or nobody has asked.
    #[must_use]
    pub fn unknown(&self) -> String {
        self.unknown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where the node's kubelet listens, as its Node says; without it there is no kubelet.
    pub fn set_port(&self, port: Option<u16>) {
        self.port.store(port.unwrap_or(0), Ordering::Relaxed);
    }

    /// The process's end of a connection from `client` to a pod. `None`: it is not of this node, or closed already.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn socket(&self, client: SocketAddr, pod: SocketAddr) -> io::Result<Option<NodeSocket>> {
        self.diag.connection(client, pod).map(|told| told.map(NodeSocket))
    }

    /// Whether the kubelet holds it. The caller must look afterwards whether its own end still stands: if not, the
    /// addresses may have been another connection's before this was asked.
    ///
    /// # Errors
    /// Why not.
    pub async fn recognise(&self, socket: NodeSocket) -> Result<(), Stranger> {
        // A kubelet is root. Whoever is not cannot make the thread busy.
        if !socket.is_of_root() {
            return Err(Stranger::Other(format!("a process of user {}", socket.0.uid)));
        }
        let failed = |why: &str| Stranger::Failed(why.to_owned());
        let (answer, answered) = oneshot::channel();
        let questions = self.questions.as_ref().ok_or_else(|| failed("the agent is ending"))?;
        questions.try_send(Question { socket, answer }).map_err(|error| match error {
            TrySendError::Full(_) => failed("too many connections are being looked up"),
            TrySendError::Disconnected(_) => failed("its thread has ended"),
        })?;
        match tokio::time::timeout(PATIENCE, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(failed("its thread has ended")),
            Err(_) => Err(failed("no answer in time")),
        }
    }
}

impl Drop for KubeletWatch {
    fn drop(&mut self) {
        self.questions.take();
        if let Some(thread) = self.thread.take() {
            // A panic of its own was logged by the panic hook.
            let _ = thread.join();
        }
    }
}

/// The thread's part.
struct Look {
    proc_root: PathBuf,
    own_cgroups: bool,
    port: Arc<AtomicU16>,
    unknown: Unknown,
    diag: Diag,
    known: Option<Known>,
    /// There was none when this was looked at.
    none: Option<(Instant, Vec<Told>, NoKubelet)>,
    named: Option<Instant>,
}

/// A kubelet that was found.
struct Known {
    process: Process,
    listeners: BTreeSet<u64>,
}

impl Look {
    fn run(mut self, asked: &Receiver<Question>) {
        while let Ok(first) = asked.recv() {
            let mut all = vec![first];
            // What has been asked by now is answered by a look that begins now.
            all.extend(asked.try_iter().take(QUESTIONS_MAX));
            let sockets = self.sockets();
            *self.unknown.lock().unwrap_or_else(PoisonError::into_inner) = match &sockets {
                Ok(_) => String::new(),
                Err(Stranger::NoKubelet(why)) => why.clone(),
                Err(why) => why.to_string(),
            };
            for Question { socket, answer } in all {
                let answered = match &sockets {
                    Ok(sockets) if sockets.contains(&socket.0.inode) => self.made_by_it(&socket, sockets),
                    Ok(_) => Err(Stranger::Other(self.name(socket.0.inode))),
                    Err(why) => Err(why.clone()),
                };
                // Who has asked may have gone.
                let _ = answer.send(answered);
            }
        }
    }

    /// Every socket that the kubelet holds just now.
    fn sockets(&mut self) -> Result<BTreeSet<u64>, Stranger> {
        let port = self.port.load(Ordering::Relaxed);
        if port == 0 {
            return Err(Stranger::NoKubelet("its port is not known".to_owned()));
        }
        let listeners = self.diag.listeners(port).map_err(|e| Stranger::Failed(e.to_string()))?;
        let inodes: BTreeSet<u64> = listeners.iter().map(|listener| listener.inode).collect();
        if let Some(known) = self.known.take()
            && known.listeners == inodes
            && let Some(sockets) = known.sockets(self.own_cgroups)
        {
            self.known = Some(known);
            return Ok(sockets);
        }
        if let Some((at, seen, why)) = &self.none
            && at.elapsed() < NONE_FOR
            && *seen == listeners
        {
            return Err(Stranger::NoKubelet(why.to_string()));
        }
        match self.find(&listeners) {
            Ok(process) => {
                let known = Known { process, listeners: inodes };
                let sockets = known.sockets(self.own_cgroups);
                tracing::debug!(pid = known.process.pid, port, "the kubelet was found");
                self.known = Some(known);
                self.none = None;
                sockets.ok_or_else(|| Stranger::NoKubelet("it has just ended".to_owned()))
            }
            Err(why) => {
                let said = why.to_string();
                self.none = Some((Instant::now(), listeners, why));
                Err(Stranger::NoKubelet(said))
            }
        }
    }

    /// Whether the kubelet has made this connection of its own, and not accepted it: whoever can answer for a pod's address
    /// could call the kubelet in that pod's name, and have a connection of the kubelet's to the pod.
    fn made_by_it(&self, socket: &NodeSocket, sockets: &BTreeSet<u64>) -> Result<(), Stranger> {
        let port = socket.0.local.port();
        let listeners = self.diag.listeners(port).map_err(|e| Stranger::Failed(e.to_string()))?;
        if listeners.iter().any(|listener| sockets.contains(&listener.inode)) {
            return Err(Stranger::Other(format!("a caller of the kubelet's port {port}")));
        }
        Ok(())
    }

    fn find(&self, told: &[Told]) -> Result<Process, NoKubelet> {
        let listeners: Vec<Listener> = told.iter().map(|t| Listener { inode: t.inode, uid: t.uid }).collect();
        let mut found = Err(NoKubelet::Unheld);
        for _ in 0..LOOKS {
            let mut held = self.holders(&listeners);
            let holders: Vec<Holder> = held.iter().map(|(_, holder)| holder.clone()).collect();
            found = elect(&listeners, &holders);
            if let Ok(pid) = found {
                let index = held.iter().position(|(process, _)| process.pid == pid);
                return index.map(|index| held.swap_remove(index).0).ok_or(NoKubelet::Unheld);
            }
            if !matches!(found, Err(NoKubelet::Several(..))) {
                break;
            }
            thread::yield_now();
        }
        Err(found.err().unwrap_or(NoKubelet::Unheld))
    }

    /// Every process that holds one of these. One whose control groups cannot be read is taken for a pod's.
    fn holders(&self, listeners: &[Listener]) -> Vec<(Process, Holder)> {
        let Ok(all) = Process::all(&self.proc_root) else { return Vec::new() };
        all.filter_map(|process| {
            let mut held = process.sockets().ok()?;
            held.retain(|inode| listeners.iter().any(|listener| listener.inode == *inode));
            if held.is_empty() {
                return None;
            }
            let pod = process.pod(self.own_cgroups).unwrap_or_else(|_| Some("unknown".to_owned()));
            let holder = Holder { pid: process.pid, name: process.name(), pod, listeners: held };
            Some((process, holder))
        })
        .collect()
    }

    /// Who holds a socket, for people. Reads all of /proc, so not for everybody.
    fn name(&mut self, inode: u64) -> String {
        if self.named.is_some_and(|at| at.elapsed() < NAMED_EVERY) {
            return "another process of the node".to_owned();
        }
        self.named = Some(Instant::now());
        let mut all = Process::all(&self.proc_root).into_iter().flatten();
        let holder = all.find(|process| process.sockets().is_ok_and(|sockets| sockets.contains(&inode)));
        let Some(process) = holder else { return "a process that has ended".to_owned() };
        let (pid, name) = (process.pid, process.name());
        match process.pod(self.own_cgroups) {
            Ok(Some(pod)) => format!("process {pid} ({name}) of pod {pod}"),
            _ => format!("process {pid} ({name})"),
        }
    }
}

impl Known {
    /// `None` once it is not what it was: it has ended, let go of a listener, or is in a pod's control groups.
    fn sockets(&self, own_cgroups: bool) -> Option<BTreeSet<u64>> {
        let sockets = self.process.sockets().ok()?;
        let outside = self.process.pod(own_cgroups).ok()?.is_none();
        (outside && sockets.is_superset(&self.listeners)).then_some(sockets)
    }
}
