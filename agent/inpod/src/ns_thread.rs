//! A thread that does the work inside namespaces for async callers.

use crate::netns::{Netns, NetnsError};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
};
use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// Why work was not done.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The queue is full: try later.
    #[error("too much work is waiting for the namespace thread")]
    Busy,
    /// The work panicked, or the thread has ended.
    #[error("the namespace thread did not finish the work")]
    Lost,
    /// The namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
}

/// A small dedicated thread with a bounded queue. It ends when the last handle is dropped and the queue is
/// empty.
#[derive(Clone, Debug)]
pub struct NetnsThread {
    jobs: SyncSender<Job>,
    refused: Arc<AtomicU64>,
}

impl NetnsThread {
    /// Starts the thread. `depth` is how much work may wait.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn spawn(name: &str, depth: usize) -> std::io::Result<Self> {
        let (jobs, queue) = sync_channel::<Job>(depth);
        thread::Builder::new().name(name.to_owned()).spawn(move || work(&queue))?;
        Ok(Self { jobs, refused: Arc::default() })
    }

    /// Queues work that needs no answer (it enters a namespace by itself).
    ///
    /// # Errors
    /// When the queue is full.
    pub fn submit(&self, job: impl FnOnce() + Send + 'static) -> Result<(), Refused> {
        self.jobs.try_send(Box::new(job)).map_err(|e| match e {
            TrySendError::Full(_) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                Refused::Busy
            }
            TrySendError::Disconnected(_) => Refused::Lost,
        })
    }

    /// Runs `work` inside `netns` on the thread.
    ///
    /// # Errors
    /// When the queue is full, the namespace cannot be entered or the work panics.
    pub async fn run<R: Send + 'static>(
        &self,
        netns: Netns,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> Result<R, Refused> {
        let (done, result) = oneshot::channel();
        self.submit(move || {
            let _ = done.send(netns.run(work)); // a caller that gave up needs no answer
        })?;
        Ok(result.await.map_err(|_| Refused::Lost)??)
    }

    /// How often work was refused because the queue was full.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

fn work(queue: &Receiver<Job>) {
    while let Ok(job) = queue.recv() {
        // One pod's bad luck must not take the thread from the others. `Netns::run` has come back already.
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!("work in a network namespace panicked");
        }
    }
}
