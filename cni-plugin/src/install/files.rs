//! Files that others read while we write: each is there whole, the old or the new one.

use nix::unistd::{Gid, Uid, fchown};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// No network configuration is larger.
pub(super) const MAX_CONFIG_BYTES: u64 = crate::spec::MAX_CONFIG_BYTES;

/// A file's text, and what tells whether it is still the same file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) text: String,
    pub(super) stamp: Stamp,
}

/// Device, inode, size, and when it was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp(u64, u64, u64, i64, i64);

pub(super) fn stamp(path: &Path) -> io::Result<Stamp> {
    let meta = fs::metadata(path)?;
    Ok(Stamp(meta.dev(), meta.ino(), meta.size(), meta.ctime(), meta.ctime_nsec()))
}

pub(super) fn read(path: &Path) -> io::Result<Read> {
    let stamp = stamp(path)?;
    if stamp.2 > MAX_CONFIG_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 4 MiB"));
    }
    Ok(Read { text: fs::read_to_string(path)?, stamp })
}

/// Puts `text` at `path`, with the mode and owner of the file that it replaces. When that is no longer the one that was
/// read (`was`), nothing happens and the error is `StaleNetworkFileHandle`: somebody else has written in between.
pub(super) fn replace_text(path: &Path, text: &str, was: Option<Stamp>) -> io::Result<()> {
    let like = fs::metadata(path).ok();
    let mode = like.as_ref().map_or(0o644, |m| m.permissions().mode() & 0o7777);
    let temporary = Temporary::new(path, mode)?;
    temporary.file().write_all(text.as_bytes())?;
    if let Some(like) = like {
        let (uid, gid) = (Uid::from_raw(like.uid()), Gid::from_raw(like.gid()));
        fchown(temporary.file(), Some(uid), Some(gid))?;
    }
    // As late as can be: a runtime that sees a mixture of two writers' files would be our fault.
    if was.is_some() && stamp(path).ok() != was {
        return Err(io::ErrorKind::StaleNetworkFileHandle.into());
    }
    temporary.put(path)
}

/// Puts a copy of the program `source` at `path`, mode 755. One that runs at this moment is not disturbed.
pub(super) fn replace_program(source: &Path, path: &Path) -> io::Result<()> {
    let mut from = File::open(source)?;
    let temporary = Temporary::new(path, 0o755)?;
    io::copy(&mut from, &mut temporary.file())?;
    temporary.put(path)
}

/// Whether the program at `path` is the one at `source`, and may be executed.
pub(super) fn is_same_program(source: &Path, path: &Path) -> bool {
    let sizes = (fs::metadata(source).map(|m| m.len()), fs::metadata(path).map(|m| m.len()));
    let (Ok(ours), Ok(theirs)) = sizes else { return false };
    ours == theirs && is_program(path) && fs::read(source).ok() == fs::read(path).ok()
}

/// Whether there is a program at `path`.
pub(super) fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Deletes a file; one that is not there is as good. Says whether there was one.
pub(super) fn delete(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Makes a runtime that follows `dir` look again: containerd's watch does not see what happens in folders below it, and
/// ignores creation; it takes notice of a removal.
pub(super) fn nudge(dir: &Path) -> io::Result<()> {
    let path = dir.join(format!(".weft-look-again.{}", std::process::id()));
    File::create(&path)?;
    fs::remove_file(&path)
}

/// A file on its way. In the same directory as its destination: only then does the rename replace at once, and only
/// then does a runtime's watch hear of it. Its name ends in nothing that a runtime loads.
struct Temporary {
    path: PathBuf,
    file: Option<File>,
}

impl Temporary {
    fn new(destination: &Path, mode: u32) -> io::Result<Self> {
        let name = destination.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
        let path = destination.with_file_name(format!(".{name}.weft-{}", std::process::id()));
        delete(&path)?;
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path)?;
        let temporary = Self { path, file: Some(file) };
        // Again, since the process' umask has taken its share.
        temporary.file().set_permissions(fs::Permissions::from_mode(mode))?;
        Ok(temporary)
    }

    fn file(&self) -> &File {
        self.file.as_ref().expect("it is taken by `put` only, which consumes")
    }

    fn put(mut self, destination: &Path) -> io::Result<()> {
        let file = self.file.take().expect("taken here only");
        file.sync_all()?;
        drop(file); // a program that is open for writing cannot be executed
        fs::rename(&self.path, destination)?;
        self.path.clear();
        let parent = destination.parent().ok_or(io::ErrorKind::InvalidInput)?;
        File::open(parent)?.sync_all()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            let _ = fs::remove_file(&self.path); // the write failed; the error is on its way already
        }
    }
}
