//! From the workers to standard output or a file: each worker appends lines to a buffer of its own, and one thread
//! swaps the buffers for empty ones and writes them out. The lock of a buffer is held for a copy or a swap, never
//! while anything is written. A full buffer drops lines and counts them.

use super::config::AccessLogOutput;
use parking_lot::Mutex;
use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle, Thread},
    time::Duration,
};
use tokio::sync::oneshot;

/// How long lines gather before they are written together.
const GATHER: Duration = Duration::from_millis(20);
/// A buffer that grew beyond this is not kept.
const KEEP_MAX: usize = 128 * 1024;

/// A worker's end.
#[derive(Clone, Debug)]
pub(super) struct Sink {
    buffer: Arc<Mutex<Vec<u8>>>,
    state: Arc<State>,
    writer: Thread,
}

impl Sink {
    /// Hands over one line, newline included, unless `max` bytes wait already.
    pub(super) fn push(&self, line: &[u8], max: usize) {
        let mut buffer = self.buffer.lock();
        if buffer.len() + line.len() > max {
            drop(buffer);
            self.state.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let first = buffer.is_empty();
        buffer.extend_from_slice(line);
        drop(buffer);
        if first {
            self.writer.unpark();
        }
    }
}

#[derive(Debug, Default)]
struct State {
    buffers: Mutex<Vec<Arc<Mutex<Vec<u8>>>>>,
    dropped: AtomicU64,
    failed_writes: AtomicU64,
    reopen: AtomicBool,
    stop: AtomicBool,
}

/// The thread that writes.
#[derive(Debug)]
pub(super) struct Writer {
    state: Arc<State>,
    thread: Thread,
    done: Mutex<Option<oneshot::Receiver<()>>>,
}

impl Writer {
    /// Starts it; `None` when the log is off.
    ///
    /// # Errors
    /// When the file cannot be opened or no thread can be had.
    pub(super) fn start(output: &AccessLogOutput) -> io::Result<Option<Self>> {
        let (target, path): (Box<dyn Write + Send>, _) = match output {
            AccessLogOutput::Off => return Ok(None),
            AccessLogOutput::Stdout => (Box::new(io::stdout()), None),
            AccessLogOutput::File(path) => (Box::new(open(path)?), Some(path.clone())),
        };
        Self::spawn(target, path).map(Some)
    }

    fn spawn(target: Box<dyn Write + Send>, path: Option<PathBuf>) -> io::Result<Self> {
        let state = Arc::<State>::default();
        let (ended, done) = oneshot::channel();
        let shared = state.clone();
        let handle: JoinHandle<()> = thread::Builder::new().name("access-log".into()).spawn(move || {
            run(&shared, target, path);
            // Nobody waits unless we are shutting down.
            let _ = ended.send(());
        })?;
        Ok(Self { state, thread: handle.thread().clone(), done: Mutex::new(Some(done)) })
    }

    /// A new worker's end.
    pub(super) fn sink(&self) -> Sink {
        let buffer = Arc::new(Mutex::new(Vec::new()));
        self.state.buffers.lock().push(buffer.clone());
        Sink { buffer, state: self.state.clone(), writer: self.thread.clone() }
    }

    /// Lines dropped because the writer did not keep up, and writes that failed.
    pub(super) fn losses(&self) -> (u64, u64) {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        (get(&self.state.dropped), get(&self.state.failed_writes))
    }

    /// Opens the file anew before the next write.
    pub(super) fn reopen(&self) {
        self.state.reopen.store(true, Ordering::Release);
        self.thread.unpark();
    }

    /// Writes what is there and ends the thread. Resolves when that is done; the caller has the deadline.
    pub(super) async fn stop(&self) {
        self.state.stop.store(true, Ordering::Release);
        self.thread.unpark();
        let done = self.done.lock().take();
        if let Some(done) = done {
            // An error means that the thread is gone, which is all we want.
            let _ = done.await;
        }
    }
}

fn run(state: &State, mut target: Box<dyn Write + Send>, path: Option<PathBuf>) {
    let mut spare = Vec::new();
    loop {
        // Read before the drain: what is pushed before a stop is written.
        let stop = state.stop.load(Ordering::Acquire);
        if state.reopen.swap(false, Ordering::AcqRel)
            && let Some(path) = &path
        {
            match open(path) {
                Ok(file) => target = Box::new(file),
                // The old file goes on: better than no log.
                Err(error) => tracing::warn!(path = %path.display(), %error, "cannot reopen the access log"),
            }
        }
        let wrote = drain(state, &mut *target, &mut spare);
        match (stop, wrote) {
            (true, false) => return,
            (true, true) => {}
            (false, true) => thread::sleep(GATHER),
            // `Sink::push` unparks at the first line of a buffer; a line between drain and here has done so already.
            (false, false) => thread::park(),
        }
    }
}

/// Writes every buffer out. Whether there was anything.
fn drain(state: &State, target: &mut dyn Write, spare: &mut Vec<u8>) -> bool {
    let buffers = state.buffers.lock().clone();
    let mut wrote = false;
    for buffer in buffers {
        std::mem::swap(&mut *buffer.lock(), spare);
        if spare.is_empty() {
            continue;
        }
        wrote = true;
        if target.write_all(spare).and_then(|()| target.flush()).is_err() {
            state.failed_writes.fetch_add(1, Ordering::Relaxed);
        }
        spare.clear();
        spare.shrink_to(KEEP_MAX);
    }
    wrote
}

fn open(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

#[cfg(test)]
mod tests;
