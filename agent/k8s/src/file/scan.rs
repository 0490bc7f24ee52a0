//! Which files a directory holds.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Deeper sub-directories are not read: a symlink that points upwards must end somewhere.
const MAX_DEPTH: usize = 12;
/// More files are refused: the directory is the wrong one.
const MAX_FILES: usize = 50_000;

/// Tells one state of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    length: u64,
    /// Modification and change time, nanoseconds since 1970.
    times: (i128, i128),
}

impl Stamp {
    fn of(m: &fs::Metadata) -> Self {
        let nanos = |s: i64, n: i64| i128::from(s) * 1_000_000_000 + i128::from(n);
        Self {
            inode: m.ino(),
            length: m.len(),
            times: (nanos(m.mtime(), m.mtime_nsec()), nanos(m.ctime(), m.ctime_nsec())),
        }
    }

    /// Whether the last write is so long ago that another one must have changed the stamp: clocks of file systems tick
    /// in steps of milliseconds, up to 2 s on some.
    pub(super) fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let newest = self.times.0.max(self.times.1);
        i128::try_from(now.as_nanos()).is_ok_and(|now| newest + 2_000_000_000 < now)
    }
}

/// All `.yaml`, `.yml` and `.json` files below `dir`, in order of their paths. Symlinks are followed, as ConfigMap
/// volumes need; hidden names (also their `..data`) and editors' backups are not read.
pub(super) fn scan(dir: &Path) -> io::Result<BTreeMap<PathBuf, Stamp>> {
    let mut found = BTreeMap::new();
    let mut pending = vec![(dir.to_owned(), 0)];
    while let Some((dir, depth)) = pending.pop() {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            // A sub-directory that has just gone is an ordinary change.
            Err(_) if depth > 0 => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let path = entry?.path();
            let Some(name) = path.file_name().and_then(|n| n.to_str()).filter(|n| !ignored(n)) else {
                continue;
            };
            // Follows symlinks; a file that has just gone, or a dangling link, is no file.
            let Ok(meta) = fs::metadata(&path) else { continue };
            if meta.is_dir() && depth < MAX_DEPTH {
                pending.push((path, depth + 1));
            } else if meta.is_file() && [".yaml", ".yml", ".json"].iter().any(|e| name.ends_with(e)) {
                found.insert(path, Stamp::of(&meta));
            }
        }
        if found.len() > MAX_FILES {
            return Err(io::Error::other(format!(
                "more than {MAX_FILES} YAML files: is it the right directory?"
            )));
        }
    }
    Ok(found)
}

fn ignored(name: &str) -> bool {
    name.starts_with(['.', '#']) || name.ends_with('~')
}
