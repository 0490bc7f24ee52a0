//! The plugin's installation on a node, kept up while the agent runs: the program in the runtime's plugin folder, and our
//! entry in the network configuration that the runtime uses.
//!
//! A configuration that names a program which is not there starts no pod, so the program comes first and goes last. Three
//! ways lead into the configuration ([`Way`]); the `Auto` choice is the drop-in folder where the runtime's own build
//! information proves a libcni that reads it (≥ 1.3), else an edit of the file. Whether ADDs really come is for the agent
//! to say ([`Witness`]): a drop-in that did not work gives way to the edit.
//!
//! The entry switches off STATUS (`statusFollowsAgent`): under `cniVersion` 1.1.0 a runtime would report the whole node as
//! not ready while the agent restarts. The `cniVersion` of the configuration is its author's and stays.

mod attachments;
mod conflist;
mod files;
mod folder;
mod libcni;
mod pace;

use crate::protocol::{DEFAULT_RUN_DIR, DEFAULT_STATE_DIR, enrolment_path};
use conflist::PLUGIN;
use folder::{NotYet, Step, Wish};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use pace::Pace;
use serde_json::{Value, json};
use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::watch;

/// Writers that write a file in several goes get this long to finish; also the most often that the folder is looked at.
const SETTLE: Duration = Duration::from_millis(50);
/// A runtime has loaded a changed configuration by then.
const LOADED_WITHIN: Duration = Duration::from_secs(2);
/// How often a write is tried again at once when somebody else was faster.
const TRIES: u32 = 5;

/// Where things are, as this process sees them.
#[derive(Clone, Debug)]
pub struct InstallConfig {
    /// The runtime's network configurations: `/etc/cni/net.d`.
    pub conf_dir: PathBuf,
    /// The runtime's plugins: `/opt/cni/bin`.
    pub bin_dir: PathBuf,
    /// The plugin to install: `/usr/local/bin/weft-cni`.
    pub plugin_source: PathBuf,
    /// `runDir` of the entry, as the *host* sees it: `/run/weft`.
    pub run_dir: PathBuf,
    /// `stateDir` of the entry, as the host sees it: `/var/lib/weft`.
    pub state_dir: PathBuf,
    /// What the runtime keeps of pods' attachments: `/var/lib/cni`.
    pub cache_dir: PathBuf,
    /// `/proc` of the host, to ask the container runtime for its age.
    pub proc_root: PathBuf,
    /// Which way into the configuration.
    pub chaining: Chaining,
    /// How often to look without being told.
    pub look: Duration,
    /// On removal: how long the runtime may take to load the configuration anew before the program goes.
    pub reload_pause: Duration,
}

impl Default for InstallConfig {
    /// The paths of kubeadm, kubelet and containerd.
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dir: "/opt/cni/bin".into(),
            plugin_source: "/usr/local/bin/weft-cni".into(),
            run_dir: DEFAULT_RUN_DIR.into(),
            state_dir: DEFAULT_STATE_DIR.into(),
            cache_dir: "/var/lib/cni".into(),
            proc_root: "/proc".into(),
            chaining: Chaining::Auto,
            look: Duration::from_secs(5),
            reload_pause: Duration::from_secs(1),
        }
    }
}

/// Which way into the configuration is taken where there is a choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Chaining {
    /// The drop-in folder if the runtime is known to read it, else the edit.
    #[default]
    Auto,
    /// The edit.
    Edit,
    /// The drop-in folder.
    DropIn,
}

/// How our entry is in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// In the list of the other CNI's file.
    Edited,
    /// In a list of our own that goes before the other's file: that one is a single plugin's, or a link.
    Derived,
    /// In the network's folder (`<conf dir>/<network>/90-weft.conf`), which survives any rewrite of the file.
    DropIn,
}

/// How it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Our entry is not in the configuration, and why not: there is none yet (the CNI is installed after us), or it is one
    /// that we cannot be in, or the program cannot be installed. Looked at again with every change.
    Waiting {
        /// For people.
        why: String,
    },
    /// Our entry is in the configuration that the runtime uses.
    Inserted,
    /// Something keeps undoing it, or pods start without an ADD reaching us.
    Overridden {
        /// For people.
        why: String,
    },
}

/// What is shown in status and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// How it stands.
    pub state: State,
    /// How our entry is in the configuration, when it is.
    pub way: Option<Way>,
    /// The file that names us.
    pub file: Option<PathBuf>,
    /// Since when it has been so without a break.
    pub since: Option<SystemTime>,
    /// When an ADD of the runtime last reached the agent.
    pub last_add: Option<SystemTime>,
    /// How often the entry had to be put back.
    pub reinserted: u64,
}

/// Something of ours is left on the node. What is named in a configuration still has its program.
#[derive(Debug, thiserror::Error)]
#[error("not removed: {}", .0.join("; "))]
pub struct UninstallError(Vec<String>);

/// Installs the plugin and removes it.
#[derive(Debug)]
pub struct Installer {
    config: InstallConfig,
    entry: Value,
}

impl Installer {
    /// Nothing happens yet.
    #[must_use]
    pub fn new(config: InstallConfig) -> Self {
        let entry = json!({
            "type": PLUGIN,
            "runDir": config.run_dir,
            "stateDir": config.state_dir,
            "statusFollowsAgent": false,
        });
        Self { config, entry }
    }

    /// Installs, and keeps it so on a thread of its own until [`InstallHandle::stop`].
    ///
    /// # Errors
    /// When the thread cannot be started. Everything else is told by [`InstallHandle::installed`] and tried again.
    pub fn start(self) -> io::Result<InstallHandle> {
        let (wake, woken) = sync_channel(1);
        let installed = Installed {
            state: State::Waiting { why: "not looked at yet".into() },
            way: None,
            file: None,
            since: None,
            last_add: None,
            reinserted: 0,
        };
        let shared = Arc::new(Shared {
            seen: watch::Sender::new(installed),
            wake,
            stop: AtomicBool::new(false),
            missed: Mutex::default(),
        });
        let eyes = Eyes::new(&self.config.conf_dir, shared.wake.clone());
        let keeper = Keeper {
            pace: Pace::new(Instant::now()),
            config: self.config.clone(),
            entry: self.entry.clone(),
            shared: shared.clone(),
            drop_in: self.config.chaining == Chaining::DropIn,
            is_first: true,
            was_inserted: false,
        };
        let thread =
            thread::Builder::new().name("weft-cni-install".into()).spawn(move || keeper.run(eyes, &woken))?;
        Ok(InstallHandle { installer: self, shared, thread: Some(thread) })
    }

    /// Takes everything of ours from the node: the entry from every file of the folder and from what the runtime keeps of pods
    /// that run, then the program and the tables. Other content of the files stays byte for byte. No [`InstallHandle`] may be
    /// at work on this node at the same time.
    ///
    /// # Errors
    /// Names what is left. The program stays as long as something may name it: who asks for it would fail without.
    pub fn uninstall(&self) -> Result<(), UninstallError> {
        let mut failures = folder::take_out(&self.config.conf_dir);
        if !failures.is_empty() {
            return Err(UninstallError(failures));
        }
        let program = self.config.bin_dir.join(PLUGIN);
        if program.exists() {
            // The runtime loads the folder anew when told by the kernel. What it does in between it tries again.
            thread::sleep(self.config.reload_pause);
        }
        failures.extend(attachments::take_out(&self.config.cache_dir));
        if !failures.is_empty() {
            return Err(UninstallError(failures));
        }
        let tables = [&self.config.run_dir, &self.config.state_dir].map(|dir| enrolment_path(dir));
        for path in [program].into_iter().chain(tables) {
            failures.extend(files::delete(&path).err().map(|e| format!("{}: {e}", path.display())));
        }
        // An ADD that was under way keeps what it began with.
        failures.extend(attachments::take_out(&self.config.cache_dir));
        if failures.is_empty() { Ok(()) } else { Err(UninstallError(failures)) }
    }
}

/// An installation that is being kept up. Dropping it ends that and leaves everything in place. The agent that is superseded
/// by another stops its own first: two would put each other's version back.
#[derive(Debug)]
pub struct InstallHandle {
    installer: Installer,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl InstallHandle {
    /// How it stands; changes can be waited for.
    #[must_use]
    pub fn installed(&self) -> watch::Receiver<Installed> {
        self.shared.seen.subscribe()
    }

    /// For those who know whether ADDs come. Ask for it when they begin to listen: pods that started before are not missed.
    #[must_use]
    pub fn witness(&self) -> Witness {
        Witness { shared: self.shared.clone(), listening_since: SystemTime::now() }
    }

    /// Leaves everything in place and ends. For an agent that is to be replaced: before its successor starts, or as soon as
    /// it knows of it.
    pub fn stop(mut self) {
        self.end();
    }

    /// Ends, and removes everything. Blocking.
    ///
    /// # Errors
    /// As [`Installer::uninstall`].
    pub fn uninstall(mut self) -> Result<(), UninstallError> {
        self.end();
        self.installer.uninstall()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("keeping the CNI plugin installed had panicked");
        }
    }
}

impl Drop for InstallHandle {
    fn drop(&mut self) {
        self.end();
    }
}

/// Tells the installation what became of it. Cheap to clone; of no effect once the installation has ended.
#[derive(Clone, Debug)]
pub struct Witness {
    shared: Arc<Shared>,
    listening_since: SystemTime,
}

impl Witness {
    /// An ADD of the runtime reached the agent at `at`.
    pub fn saw_add(&self, at: SystemTime) {
        self.shared.seen.send_modify(|installed| installed.last_add = Some(at));
        if self.shared.missed().take().is_some() {
            self.shared.wake();
        }
    }

    /// A pod's sandbox was made at `started` on this node, and no ADD for it reached the agent: `what` names it. Counts only if
    /// the entry stood and the agent listened by then. A drop-in gives way to an edit for the life of the handle.
    pub fn missed(&self, what: &str, started: SystemTime) {
        let stood = {
            let installed = self.shared.seen.borrow();
            let since = installed.since.filter(|_| installed.state == State::Inserted);
            since.is_some_and(|since| started > since.max(self.listening_since) + LOADED_WITHIN)
        };
        if stood {
            *self.shared.missed() = Some(format!("{what} was started without an ADD that reached the agent"));
            self.shared.wake();
        }
    }
}

#[derive(Debug)]
struct Shared {
    seen: watch::Sender<Installed>,
    /// One slot: "look again" needs to be said once until it is heard.
    wake: SyncSender<()>,
    stop: AtomicBool,
    /// Why it is believed that ADDs do not reach us.
    missed: Mutex<Option<String>>,
}

impl Shared {
    fn wake(&self) {
        let _ = self.wake.try_send(()); // full: it is awake already
    }

    fn missed(&self) -> MutexGuard<'_, Option<String>> {
        self.missed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread's state.
struct Keeper {
    config: InstallConfig,
    entry: Value,
    shared: Arc<Shared>,
    drop_in: bool,
    pace: Pace,
    is_first: bool,
    was_inserted: bool,
}

/// What a look came to, and when to look again.
struct Look {
    state: State,
    at: Option<(Way, PathBuf)>,
    next: Duration,
}

impl Keeper {
    fn run(mut self, mut eyes: Eyes, woken: &Receiver<()>) {
        if self.config.chaining == Chaining::Auto {
            let known = libcni::reads_drop_ins(&self.config.proc_root);
            tracing::debug!(drop_ins = ?known, "what the container runtime can do");
            self.drop_in = known.unwrap_or(false);
        }
        while !self.shared.stop.load(Ordering::Acquire) {
            eyes.arm(); // before looking, so that no change falls between
            let Look { state, at, next } = self.look();
            self.show(state, at);
            if woken.recv_timeout(next).is_ok() && !self.shared.stop.load(Ordering::Acquire) {
                thread::sleep(SETTLE);
                let _ = woken.try_recv();
            }
        }
    }

    /// Puts right what is not as it should be.
    fn look(&mut self) -> Look {
        if let Err(error) = self.program() {
            return self.without_program(&error);
        }
        let missed = self.shared.missed().clone();
        if missed.is_some() && std::mem::take(&mut self.drop_in) {
            tracing::warn!("the CNI drop-in did not take effect: editing the network configuration instead");
            *self.shared.missed() = None;
        }
        for _ in 0..TRIES {
            match self.configuration() {
                Ok(look) => {
                    self.is_first = false;
                    return match missed.as_ref().filter(|_| self.shared.missed().is_some()) {
                        Some(why) => Look { state: State::Overridden { why: why.clone() }, ..look },
                        None => look,
                    };
                }
                // Somebody else has written at the same time: look again.
                Err(NotYet::Io(_, e)) if e.kind() == io::ErrorKind::StaleNetworkFileHandle => {}
                Err(error) => {
                    if let NotYet::Nothing(leftover) = &error {
                        let cleared = folder::carry_out(&self.config.conf_dir, leftover);
                        cleared.unwrap_or_else(|error| tracing::warn!(%error, "a list of ours is left over"));
                    }
                    return self.waiting(error.to_string());
                }
            }
        }
        self.waiting(format!("{} never stands still", self.config.conf_dir.display()))
    }

    fn configuration(&mut self) -> Result<Look, NotYet> {
        let wish = Wish { entry: &self.entry, drop_in: self.drop_in, exact: self.is_first };
        let plan = folder::plan(&self.config.conf_dir, &wish)?;
        let at = Some((plan.way, plan.file));
        let is_undone = plan.steps.iter().any(|step| matches!(step, Step::Write { .. }));
        if is_undone && self.was_inserted {
            if let Err(wait) = self.pace.take(Instant::now()) {
                let why = "the network configuration is rewritten again and again without our entry".into();
                return Ok(Look { state: State::Overridden { why }, at, next: wait.min(self.config.look) });
            }
            self.shared.seen.send_modify(|installed| installed.reinserted += 1);
        }
        let failed = |e| NotYet::Io(self.config.conf_dir.display().to_string(), e);
        folder::carry_out(&self.config.conf_dir, &plan.steps).map_err(failed)?;
        self.was_inserted = true;
        Ok(Look { state: State::Inserted, at, next: self.config.look })
    }

    /// The program, before anything names it. Its content is compared at the start only: a successor with another version
    /// may be at work already.
    fn program(&self) -> io::Result<()> {
        let path = self.config.bin_dir.join(PLUGIN);
        let source = &self.config.plugin_source;
        let stands =
            if self.is_first { files::is_same_program(source, &path) } else { files::is_program(&path) };
        if stands {
            return Ok(());
        }
        fs::create_dir_all(&self.config.bin_dir)?;
        files::replace_program(source, &path)
    }

    fn without_program(&self, error: &io::Error) -> Look {
        let path = self.config.bin_dir.join(PLUGIN);
        let mut why = format!("{} cannot be installed: {error}", path.display());
        if !files::is_program(&path) {
            // No pod of this node would start: rather none of ours than none at all.
            let failures = folder::take_out(&self.config.conf_dir);
            if !failures.is_empty() {
                why = format!("{why}; and our entry cannot be taken out: {}", failures.join("; "));
            }
        }
        self.waiting(why)
    }

    fn waiting(&self, why: String) -> Look {
        Look { state: State::Waiting { why }, at: None, next: self.config.look }
    }

    fn show(&self, state: State, at: Option<(Way, PathBuf)>) {
        self.shared.seen.send_if_modified(|installed| {
            let (way, file) = at.unzip();
            if (&installed.state, &installed.way, &installed.file) == (&state, &way, &file) {
                return false;
            }
            match &state {
                State::Inserted => tracing::info!(?way, ?file, "the CNI plugin is installed"),
                State::Waiting { why } => tracing::warn!(why, "the CNI plugin is not in effect"),
                State::Overridden { why } => tracing::error!(why, "the CNI plugin may not be in effect"),
            }
            installed.since = Some(SystemTime::now());
            (installed.state, installed.way, installed.file) = (state, way, file);
            true
        });
    }
}

/// The kernel's watch on the folder. Without one (`fs.inotify.max_user_instances`) looking now and then has to do.
struct Eyes {
    dir: PathBuf,
    watcher: Option<RecommendedWatcher>,
    /// Device and inode under watch: the folder may be replaced.
    armed: Option<(u64, u64)>,
}

impl Eyes {
    fn new(dir: &Path, wake: SyncSender<()>) -> Self {
        let told = move |event: notify::Result<Event>| {
            if event.map_or(true, |e| !e.kind.is_access()) {
                let _ = wake.try_send(()); // full: it is awake already
            }
        };
        let watcher = notify::recommended_watcher(told)
            .inspect_err(
                |error| tracing::warn!(%error, "no watch on the CNI configuration: looking now and then"),
            )
            .ok();
        Self { dir: dir.to_owned(), watcher, armed: None }
    }

    fn arm(&mut self) {
        let now = fs::metadata(&self.dir).ok().map(|m| (m.dev(), m.ino()));
        let Some(watcher) = self.watcher.as_mut().filter(|_| now != self.armed) else { return };
        if self.armed.is_some() {
            let _ = watcher.unwatch(&self.dir); // it went with the folder
        }
        let watched = now.is_some() && watcher.watch(&self.dir, RecursiveMode::NonRecursive).is_ok();
        self.armed = now.filter(|_| watched);
    }
}

#[cfg(test)]
mod tests;
