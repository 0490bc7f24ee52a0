//! `enrolment.json`: what the CNI plugin knows while the agent is away, and a copy for the time after a reboot.

use parking_lot::Mutex;
use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio_util::task::TaskTracker;
use weft_cni::protocol::{Enrolled, enrolment_path};

/// Where the table goes.
#[derive(Debug)]
pub(super) struct EnrolmentFile {
    run_dir: PathBuf,
    state_dir: Option<PathBuf>,
    /// Number of the newest table.
    newest: u64,
    /// Number of the newest table that the copy was made of: disks are slow, and writers may overtake each other.
    copied: Arc<Mutex<u64>>,
}

impl EnrolmentFile {
    pub(super) fn new(run_dir: PathBuf, state_dir: Option<PathBuf>) -> Self {
        Self { run_dir, state_dir, newest: 0, copied: Arc::default() }
    }

    /// Writes the table if there is one and it differs from the files: at once in the run directory (a tmpfs), the copy on a
    /// thread for what blocks. To the plugin no table and an empty one are the same, so an empty one is removed: it is what
    /// Weft leaves behind when it is uninstalled. A failure is logged: the plugin then goes by the older table.
    pub(super) fn write(&mut self, table: Option<Enrolled>, tasks: &TaskTracker) {
        let Some(table) = table else { return };
        let json = match serde_json::to_vec_pretty(&table) {
            Ok(json) => (table != Enrolled::default()).then_some(json),
            Err(error) => return tracing::error!(%error, "the table of enrolled pods is not written"),
        };
        said(&self.run_dir, put(&self.run_dir, json.as_deref(), false));
        let Some(state_dir) = self.state_dir.clone() else { return };
        self.newest += 1;
        let (number, copied) = (self.newest, self.copied.clone());
        tasks.spawn_blocking(move || {
            let mut copied = copied.lock();
            if number > *copied {
                *copied = number;
                said(&state_dir, put(&state_dir, json.as_deref(), true));
            }
        });
    }
}

fn said(dir: &Path, result: io::Result<()>) {
    if let Err(error) = result {
        tracing::error!(%error, dir = %dir.display(), "cannot write or remove enrolment.json");
    }
}

/// Writes the file, or removes it.
fn put(dir: &Path, json: Option<&[u8]>, durable: bool) -> io::Result<()> {
    match json {
        Some(json) => fs::create_dir_all(dir).and_then(|()| write(dir, json, durable)),
        None => match fs::remove_file(enrolment_path(dir)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
    }
}

/// Whole or not at all; `durable`: also when the machine goes down at once.
fn write(dir: &Path, json: &[u8], durable: bool) -> io::Result<()> {
    let path = enrolment_path(dir);
    if fs::read(&path).is_ok_and(|old| old == json) {
        return Ok(());
    }
    let temporary = dir.join(format!("enrolment.json.{}", std::process::id()));
    let mut file = File::create(&temporary)?;
    file.write_all(json)?;
    if durable {
        file.sync_all()?;
    }
    fs::rename(&temporary, &path)?;
    if durable { File::open(dir)?.sync_all() } else { Ok(()) }
}
