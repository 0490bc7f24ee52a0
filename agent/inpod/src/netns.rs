//! The one door into a network namespace: a closure that runs inside and always comes back.

use nix::sched::{CloneFlags, setns};
use nix::sys::stat::fstat;
use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
};

/// Why a namespace could not be had or entered. The pod is gone, or the caller lacks CAP_SYS_ADMIN.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The path or descriptor cannot be opened or looked at.
    #[error("network namespace {what}: {source}")]
    Open {
        /// Path, or "descriptor".
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// It is a descriptor of something else.
    #[error("the descriptor is not a network namespace")]
    NotNetns,
    /// `setns` failed; the closure has not run.
    #[error("cannot enter network namespace {inode}: {source}")]
    Enter {
        /// Inode of the namespace.
        inode: u64,
        /// The cause.
        source: io::Error,
    },
}

/// A network namespace, kept alive by its descriptor. Clones share the descriptor.
#[derive(Clone, Debug)]
pub struct Netns {
    fd: Arc<OwnedFd>,
    inode: u64,
}

impl Netns {
    /// Opens a namespace by path, e.g. `/run/netns/x`.
    ///
    /// # Errors
    /// When the path cannot be opened or is no network namespace.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let file = File::open(path)
            .map_err(|source| NetnsError::Open { what: path.display().to_string(), source })?;
        Self::from_fd(file.into())
    }

    /// Takes a descriptor that came from somewhere else, and checks that it is what it should be.
    ///
    /// # Errors
    /// When it is no network namespace.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, NetnsError> {
        let open = |e: nix::Error| NetnsError::Open { what: "descriptor".into(), source: e.into() };
        let inode = fstat(&fd).map_err(open)?.st_ino;
        // A peer may pass any descriptor: the link of a namespace names its kind, `net:[4026531840]`.
        let link = format!("/proc/thread-self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
        let target = std::fs::read_link(&link)
            .map_err(|source| NetnsError::Open { what: "descriptor".into(), source })?;
        let is_net_link = target.to_string_lossy().starts_with("net:[");
        // Opened through a bind mount (/run/netns/x) the link is that path: ask the kernel by file system.
        if is_net_link || is_nsfs(&fd).map_err(open)? {
            Ok(Self { fd: Arc::new(fd), inode })
        } else {
            Err(NetnsError::NotNetns)
        }
    }

    /// The calling thread's own namespace.
    ///
    /// # Errors
    /// When /proc is not there.
    pub fn current() -> Result<Self, NetnsError> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Names the namespace: unique while any descriptor of it is open.
    #[must_use]
    pub const fn inode(&self) -> u64 {
        self.inode
    }

    /// Runs `work` inside the namespace, on this thread, and comes back: also when `work` panics. Do not
    /// await inside; a descriptor made inside stays there for life and is served from anywhere.
    ///
    /// # Errors
    /// When the namespace cannot be entered; `work` has not run then.
    ///
    /// # Aborts
    /// The process, when the way back fails: a worker thread left in a pod would serve every other pod from
    /// there. The holder keeps the sockets, so an agent that restarts loses no connection attempt.
    pub fn run<R>(&self, work: impl FnOnce() -> R) -> Result<R, NetnsError> {
        let home = Self::current()?;
        setns(&self.fd, CloneFlags::CLONE_NEWNET)
            .map_err(|e| NetnsError::Enter { inode: self.inode, source: e.into() })?;
        let _back = Back(home);
        Ok(work())
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Returns the thread to where it came from, however the closure ends.
struct Back(Netns);

impl Drop for Back {
    fn drop(&mut self) {
        if let Err(error) = setns(&self.0.fd, CloneFlags::CLONE_NEWNET) {
            tracing::error!(%error, "cannot leave a pod's network namespace: aborting");
            eprintln!("weft: cannot leave a pod's network namespace ({error}): aborting");
            std::process::abort();
        }
    }
}

fn is_nsfs(fd: &OwnedFd) -> nix::Result<bool> {
    use nix::sys::statfs::{NSFS_MAGIC, fstatfs};
    // Other kinds of namespaces live on nsfs too; `setns` with CLONE_NEWNET refuses those (EINVAL).
    Ok(fstatfs(fd)?.filesystem_type() == NSFS_MAGIC)
}
