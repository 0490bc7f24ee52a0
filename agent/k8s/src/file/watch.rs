//! Following a directory: kernel events, settled into few loads, and a look at the clock for what events miss.

use super::{FileError, FileProvider, World};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher, event};
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout_at},
};

/// Quiet time after which a burst of events counts as over.
const SETTLE: Duration = Duration::from_millis(50);
/// A burst that does not end is cut here: change to effect has a bound.
const SETTLE_MAX: Duration = Duration::from_millis(400);
/// How often names, sizes and times are compared without an event: network file systems send none, an overflowing
/// inotify queue loses some, and a directory that was replaced has to be found.
const LOOK: Duration = Duration::from_secs(1);

impl FileProvider {
    /// Loads, then follows the directory. The receiver holds the newest world; intermediate ones may be skipped. The task
    /// behind it ends when the last receiver is dropped.
    ///
    /// # Errors
    /// When the directory cannot be read at the start. A kernel that grants no watch is no error: changes are found by
    /// looking each second then.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn watch(mut self) -> Result<watch::Receiver<Arc<World>>, FileError> {
        let unreadable = |source| FileError::Directory { path: self.dir.clone(), source };
        fs::read_dir(&self.dir).map_err(unreadable)?;
        // One slot: "something happened" needs to be said once until it is heard, so a full queue loses nothing.
        let (events_tx, events) = mpsc::channel(1);
        let mut eyes = Eyes::new(&self.dir, events_tx);
        eyes.arm();
        // Loaded after the watch stands, so that no change falls between.
        let (tx, rx) = watch::channel(Arc::new(self.load()));
        tokio::spawn(follow(self, eyes, events, tx));
        Ok(rx)
    }
}

async fn follow(
    mut provider: FileProvider,
    mut eyes: Eyes,
    mut events: mpsc::Receiver<()>,
    worlds: watch::Sender<Arc<World>>,
) {
    loop {
        let look = tokio::select! {
            () = worlds.closed() => return,
            event = events.recv() => {
                if event.is_none() {
                    return;
                }
                settle(&mut events).await;
                false
            }
            () = tokio::time::sleep(LOOK) => true,
        };
        // File systems may block: not on a runtime thread.
        let loaded = tokio::task::spawn_blocking(move || {
            let rearmed = eyes.arm();
            let world = (!look || rearmed || provider.looks_changed()).then(|| provider.load());
            (provider, eyes, world)
        });
        let world;
        (provider, eyes, world) = match loaded.await {
            Ok(back) => back,
            Err(error) => {
                tracing::error!(%error, "reading the configuration directory failed; it is no longer followed");
                return;
            }
        };
        if let Some(world) = world {
            worlds.send_if_modified(|current| {
                let changed = **current != world;
                if changed {
                    *current = Arc::new(world);
                }
                changed
            });
        }
    }
}

/// Waits until events stop coming, or long enough.
async fn settle(events: &mut mpsc::Receiver<()>) {
    let end = Instant::now() + SETTLE_MAX;
    loop {
        let quiet = (Instant::now() + SETTLE).min(end);
        match timeout_at(quiet, events.recv()).await {
            Ok(Some(())) if Instant::now() < end => {}
            _ => return,
        }
    }
}

/// The kernel watches: the directory with all below it, and its parent, where its replacement shows.
struct Eyes {
    dir: PathBuf,
    /// None when the kernel grants none (`fs.inotify.max_user_instances`): [`LOOK`] has to do.
    watcher: Option<RecommendedWatcher>,
    /// Keeps the queue open, also without a watcher.
    _events: mpsc::Sender<()>,
    /// Device and inode under watch.
    armed: Option<(u64, u64)>,
}

impl Eyes {
    fn new(dir: &Path, events: mpsc::Sender<()>) -> Self {
        let told = events.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if event.map_or(true, |e| tells(&e.kind)) {
                // Full: a load is due already.
                let _ = told.try_send(());
            }
        });
        let mut watcher = watcher.map_err(|error| without_watch(dir, &error)).ok();
        let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if let Some(Err(error)) = watcher.as_mut().map(|w| w.watch(parent, RecursiveMode::NonRecursive)) {
            // Not ours to read, perhaps: the clock finds a replaced directory too.
            tracing::debug!(%error, "parent of the configuration directory is not watched");
        }
        Self { dir: dir.to_owned(), watcher, _events: events, armed: None }
    }

    /// Watches the directory that now has the name. True when it is another one than before.
    fn arm(&mut self) -> bool {
        let now = fs::metadata(&self.dir).ok().map(|m| (m.dev(), m.ino()));
        if now == self.armed {
            return false;
        }
        self.armed = now;
        if let Some(watcher) = &mut self.watcher {
            // Fails for a directory that is gone: nothing to do then.
            let _ = watcher.unwatch(&self.dir);
            if now.is_some()
                && let Err(error) = watcher.watch(&self.dir, RecursiveMode::Recursive)
            {
                without_watch(&self.dir, &error);
            }
        }
        true
    }
}

fn without_watch(dir: &Path, error: &notify::Error) {
    tracing::warn!(
        %error,
        dir = %dir.display(),
        "the kernel grants no watch: changes are found by looking each second; \
         raise fs.inotify.max_user_instances and fs.inotify.max_user_watches",
    );
}

/// Reading files makes events too: those would go round forever.
const fn tells(kind: &EventKind) -> bool {
    match kind {
        EventKind::Access(access) => {
            matches!(access, event::AccessKind::Close(event::AccessMode::Write))
        }
        _ => true,
    }
}
