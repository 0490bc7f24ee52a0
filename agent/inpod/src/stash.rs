//! Client sockets of a pod, ready when they are needed.
//!
//! A socket belongs for life to the namespace that it was made in. Entering one costs system calls and must
//! not happen between awaits, so a few sockets are made ahead on the namespace thread.

use crate::{
    kubelet::diag::Diag,
    netns::Netns,
    ns_thread::NetnsThread,
    socket::{Family, marked_client, plain_client},
};
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// A quiet pod keeps this many sockets of each family that it has used.
const START: usize = 4;
/// A busy one up to this many.
const LIMIT: usize = 64;

/// How long it is taken as known where a pod listens on a port: a dead application may be called very often.
const KNOWN_FOR: Duration = Duration::from_secs(2);
/// Ports of a pod that this is remembered of.
const PORTS_KNOWN_MAX: usize = 16;

/// Makes client sockets: in a pod's namespace, or on the host. Cheap to clone; clones share the stash.
#[derive(Clone, Debug)]
pub struct PodSockets(Arc<Source>);

#[derive(Debug)]
enum Source {
    Host,
    Pod(Arc<Stash>),
}

#[derive(Debug)]
struct Stash {
    netns: Netns,
    thread: NetnsThread,
    v4: Shelf,
    v6: Shelf,
    misses: AtomicU64,
    /// Where the pod listens, by port, and when that was seen.
    listening: Mutex<BTreeMap<u16, (Instant, Vec<IpAddr>)>>,
    /// Somebody looks just now.
    looking: AtomicBool,
}

#[derive(Debug)]
struct Shelf {
    ready: Mutex<Vec<OwnedFd>>,
    /// How many to keep: doubles with each miss, so that a pod that opens many connections finds them.
    target: AtomicUsize,
    refilling: AtomicBool,
}

impl PodSockets {
    /// Sockets of the host: no namespace, no mark. Needs no privilege.
    #[must_use]
    pub fn host() -> Self {
        Self(Arc::new(Source::Host))
    }

    /// Sockets of a pod, made ahead by `thread`. The first few IPv4 ones are asked for at once; IPv6 with the
    /// first use, since most pods have none.
    #[must_use]
    pub fn pod(netns: Netns, thread: NetnsThread) -> Self {
        let stash = Arc::new(Stash {
            netns,
            thread,
            v4: Shelf::new(),
            v6: Shelf::new(),
            misses: AtomicU64::new(0),
            listening: Mutex::default(),
            looking: AtomicBool::new(false),
        });
        stash.refill(Family::V4);
        Self(Arc::new(Source::Pod(stash)))
    }

    /// A TCP socket: non-blocking, TCP_NODELAY; in a pod also marked as the agent's and transparent, so that
    /// the caller may bind it to the client's address before it connects. Returns at once: from the stash, or
    /// by entering the namespace on this thread when the stash is empty.
    ///
    /// # Errors
    /// When the pod is gone, the process is out of descriptors, or lacks CAP_NET_ADMIN.
    pub fn tcp(&self, family: Family) -> io::Result<OwnedFd> {
        match &*self.0 {
            Source::Host => plain_client(family),
            Source::Pod(stash) => stash.take(family),
        }
    }

    /// On which addresses the pod listens on a port, as its namespace's socket table shows; at most some seconds old. `None`
    /// on the host, while the namespace thread has too much to do, and while somebody else looks: nobody waits for it long.
    pub async fn listening(&self, port: u16) -> Option<Vec<IpAddr>> {
        match &*self.0 {
            Source::Host => None,
            Source::Pod(stash) => stash.listening(port).await,
        }
    }

    /// How often the stash was empty.
    #[must_use]
    pub fn misses(&self) -> u64 {
        match &*self.0 {
            Source::Host => 0,
            Source::Pod(stash) => stash.misses.load(Ordering::Relaxed),
        }
    }
}

impl Stash {
    fn take(self: &Arc<Self>, family: Family) -> io::Result<OwnedFd> {
        let shelf = self.shelf(family);
        let (found, left) = {
            let mut ready = shelf.ready.lock();
            (ready.pop(), ready.len())
        };
        if found.is_none() {
            self.misses.fetch_add(1, Ordering::Relaxed);
            shelf.grow();
        }
        if left < shelf.target.load(Ordering::Relaxed) / 2 + 1 {
            self.refill(family);
        }
        match found {
            Some(socket) => Ok(socket),
            None => self.netns.run(|| marked_client(family)).map_err(io::Error::other)?,
        }
    }

    async fn listening(&self, port: u16) -> Option<Vec<IpAddr>> {
        if let Some((seen, known)) = self.listening.lock().get(&port)
            && seen.elapsed() < KNOWN_FOR
        {
            return Some(known.clone());
        }
        if self.looking.swap(true, Ordering::AcqRel) {
            return None;
        }
        let look = move || Diag::open()?.listeners(port);
        let found = self.thread.run(self.netns.clone(), look).await;
        self.looking.store(false, Ordering::Release);
        let found: Vec<IpAddr> = found.ok()?.ok()?.into_iter().map(|told| told.local.ip()).collect();
        let mut known = self.listening.lock();
        known.retain(|_, (seen, _)| seen.elapsed() < KNOWN_FOR);
        if known.len() < PORTS_KNOWN_MAX {
            known.insert(port, (Instant::now(), found.clone()));
        }
        Some(found)
    }

    /// Asks the thread for more, unless it is asked already. A full queue is no harm: the next take asks again.
    fn refill(self: &Arc<Self>, family: Family) {
        if self.shelf(family).refilling.swap(true, Ordering::AcqRel) {
            return;
        }
        // Weak: waiting work must not keep a pod's namespace alive.
        let stash = Arc::downgrade(self);
        let queued = self.thread.submit(move || {
            if let Some(stash) = stash.upgrade() {
                stash.fill(family);
            }
        });
        if queued.is_err() {
            self.shelf(family).refilling.store(false, Ordering::Release);
        }
    }

    fn fill(&self, family: Family) {
        let shelf = self.shelf(family);
        let missing = shelf.target.load(Ordering::Relaxed).saturating_sub(shelf.ready.lock().len());
        let made =
            self.netns.run(|| (0..missing).map_while(|_| marked_client(family).ok()).collect::<Vec<_>>());
        if let Ok(made) = made {
            shelf.ready.lock().extend(made);
        }
        shelf.refilling.store(false, Ordering::Release);
    }

    const fn shelf(&self, family: Family) -> &Shelf {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

impl Shelf {
    const fn new() -> Self {
        Self {
            ready: Mutex::new(Vec::new()),
            target: AtomicUsize::new(START),
            refilling: AtomicBool::new(false),
        }
    }

    fn grow(&self) {
        let target = self.target.load(Ordering::Relaxed);
        self.target.store((target * 2).min(LIMIT), Ordering::Relaxed);
    }
}
