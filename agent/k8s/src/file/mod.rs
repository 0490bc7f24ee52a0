//! A directory of YAML as the watched world.
//!
//! [`FileProvider::load`] reads the directory once, [`FileProvider::watch`] follows it. Files that have not changed are
//! not read again; objects that have not changed keep their `Arc`; what does not parse or is refused leaves the last
//! good version in effect, and says so.

mod merge;
mod scan;
mod watch;

#[cfg(test)]
mod tests;

use crate::{
    config::{self, AgentConfig},
    convert::{self, Converted, Source},
    problem::{Problem, Report, Severity},
    yaml,
};
use merge::Kept;
use scan::Stamp;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};
use weft_core::model::{ObjectRef, Origin, Snapshot, Str};

/// Everything that the directory says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct World {
    /// The objects in effect.
    pub snapshot: Snapshot,
    /// What is wrong, by file and line. The same list until something changes.
    pub problems: Vec<Problem>,
    /// Settings; the defaults without an `AgentConfig` document.
    pub agent: AgentConfig,
}

/// Why a directory cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operator named something that is no readable directory. Not worth a retry.
    #[error("{path}: {source}: name a directory that can be read")]
    Directory {
        /// As given.
        path: PathBuf,
        /// From the system.
        source: io::Error,
    },
    /// The kernel refuses watches (often `fs.inotify.max_user_instances`); worth a retry after raising the limit.
    #[error("cannot watch files: {0}; raise fs.inotify.max_user_instances and max_user_watches")]
    Watch(#[from] notify::Error),
}

/// Reads a directory of YAML and JSON, sub-directories included.
#[derive(Debug)]
pub struct FileProvider {
    dir: PathBuf,
    files: BTreeMap<PathBuf, File>,
    kept: BTreeMap<ObjectRef, Kept>,
    agent: AgentConfig,
}

/// One file as last read.
#[derive(Debug)]
struct File {
    stamp: Stamp,
    content: u64,
    parsed: Arc<Parsed>,
}

/// What stands in one file.
#[derive(Debug, Default)]
struct Parsed {
    entries: Vec<Entry>,
    /// The settings, with where they stand. The inner `None`: refused.
    agent: Vec<(Origin, Option<AgentConfig>)>,
    problems: Vec<Problem>,
    /// Some of it could not be read, so that objects may be missing.
    partial: bool,
}

/// One object of a file.
#[derive(Debug)]
struct Entry {
    converted: Converted,
    /// Where it starts.
    origin: Origin,
    /// Hash of all but metadata and status: what `metadata.generation` counts.
    spec: u64,
}

impl FileProvider {
    /// A provider for `dir`.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), files: BTreeMap::new(), kept: BTreeMap::new(), agent: AgentConfig::default() }
    }

    /// Reads what has changed since the last call. Never fails: what cannot be read is a problem of the world.
    pub fn load(&mut self) -> World {
        let mut problems = Vec::new();
        match scan::scan(&self.dir) {
            Ok(found) => self.read_changed(found, &mut problems),
            Err(error) => {
                let remedy = if self.files.is_empty() { "" } else { "the last good state stays in effect" };
                problems.push(file_problem(&self.dir, 1, &error.to_string(), remedy));
            }
        }
        self.merge(problems)
    }

    /// Whether the directory looks different from what was loaded, by names, sizes and times only.
    fn looks_changed(&self) -> bool {
        scan::scan(&self.dir).is_ok_and(|found| {
            found.len() != self.files.len()
                || found.iter().any(|(path, stamp)| self.files.get(path).is_none_or(|f| f.stamp != *stamp))
        })
    }

    fn read_changed(&mut self, found: BTreeMap<PathBuf, Stamp>, problems: &mut Vec<Problem>) {
        let mut before = std::mem::take(&mut self.files);
        for (path, stamp) in found {
            let old = before.remove(&path);
            let file = match old {
                Some(old) if old.stamp == stamp && stamp.is_settled() => old,
                old => read(&path, stamp, old, problems),
            };
            self.files.insert(path, file);
        }
    }
}

/// Reads a file, unless its content is the same as before.
fn read(path: &Path, stamp: Stamp, old: Option<File>, problems: &mut Vec<Problem>) -> File {
    let unreadable = |problems: &mut Vec<Problem>, reason: &str| {
        problems.push(file_problem(path, 1, reason, "what was read of it before stays in effect"));
        File { stamp, content: 0, parsed: Arc::new(Parsed { partial: true, ..Parsed::default() }) }
    };
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => return unreadable(problems, &error.to_string()),
    };
    let content = hash(&bytes);
    if let Some(old) = old.filter(|old| old.content == content) {
        return File { stamp, ..old };
    }
    let parsed = match std::str::from_utf8(&bytes) {
        Ok(text) => parse(path, text),
        Err(error) => {
            let line = bytes[..error.valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
            let line = u32::try_from(line).unwrap_or(u32::MAX);
            let problem = file_problem(path, line, "not UTF-8 text", "save it as UTF-8");
            Parsed { partial: true, problems: vec![problem], ..Parsed::default() }
        }
    };
    File { stamp, content, parsed: Arc::new(parsed) }
}

fn parse(path: &Path, text: &str) -> Parsed {
    let file: Str = path.to_string_lossy().into();
    let (documents, errors) = yaml::read(text);
    // An editor or shell truncates a file before it writes it: nothing at all is "not written yet".
    let mut parsed = Parsed { partial: !errors.is_empty() || text.is_empty(), ..Parsed::default() };
    parsed.problems.extend(errors.iter().map(|e| file_problem(path, e.line, &e.reason, &e.remedy)));
    for document in documents {
        for (value, marks) in convert::unroll(document.value, document.marks) {
            let origin = Origin { file: file.clone(), line: marks.line() };
            let source = Source { origin: Some(&origin), marks: Some(&marks), admitted: false };
            if config::is_agent_config(&value) {
                let mut report = Report::default();
                let agent = config::read(&value, &marks, &mut report);
                parsed.problems.extend(convert::problems(report, "AgentConfig", &source));
                parsed.agent.push((origin, agent));
                continue;
            }
            let spec = spec_hash(&value);
            let converted = convert::convert(value, &source);
            parsed.entries.push(Entry { converted, origin, spec });
        }
    }
    parsed
}

fn spec_hash(value: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (key, part) in value.as_object().into_iter().flatten() {
        if !matches!(key.as_str(), "metadata" | "status" | "apiVersion") {
            (key, part.to_string()).hash(&mut hasher);
        }
    }
    hasher.finish()
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// A problem of a file rather than of an object.
fn file_problem(path: &Path, line: u32, reason: &str, remedy: &str) -> Problem {
    Problem {
        severity: Severity::Error,
        origin: Some(Origin { file: path.to_string_lossy().into(), line }),
        object: "".into(),
        path: "".into(),
        reason: reason.into(),
        remedy: remedy.into(),
    }
}
