//! A directory of YAML as the watched world.
//!
//! [`FileProvider::load`] reads the directory once, [`FileProvider::watch`] follows it. Files that have not changed are
//! not read again; objects that have not changed keep their `Arc`; what does not parse or is refused leaves the last
//! good version in effect, and says so.

mod merge;
mod parse;
mod scan;
mod watch;

#[cfg(test)]
mod tests;

use crate::{
    config::AgentConfig,
    problem::{NO_LINE, Problem, Severity},
    world::World,
};
use merge::Kept;
use parse::{Parsed, file_problem};
use scan::Stamp;
use std::{collections::BTreeMap, io, path::PathBuf, sync::Arc};
use weft_core::{
    model::{GatewayConfig, Node, ObjectRef, Objects, Str},
    sorted::Sorted,
};

/// Why a directory cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operator named something that is no readable directory. Not worth a retry.
    // Without the source: who prints an error prints its sources after it.
    #[error("{path} is no directory that can be read: name another, or create it")]
    Directory {
        /// As given.
        path: PathBuf,
        /// From the system.
        source: io::Error,
    },
}

/// Reads a directory of YAML and JSON, sub-directories included.
#[derive(Debug)]
pub struct FileProvider {
    dir: PathBuf,
    files: BTreeMap<PathBuf, File>,
    kept: BTreeMap<ObjectRef, Kept>,
    gateway_configs: Objects<GatewayConfig>,
    /// Nodes that files describe: for their zones.
    nodes: Sorted<Str, Arc<Node>>,
    agent: AgentConfig,
}

/// One file as last read.
#[derive(Debug)]
struct File {
    stamp: Stamp,
    parsed: Arc<Parsed>,
}

impl FileProvider {
    /// A provider for `dir`.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            files: BTreeMap::new(),
            kept: BTreeMap::new(),
            gateway_configs: Objects::default(),
            nodes: Sorted::default(),
            agent: AgentConfig::default(),
        }
    }

    /// Reads what has changed since the last call. Never fails: what cannot be read is a problem of the world.
    pub fn load(&mut self) -> World {
        let mut problems = Vec::new();
        match scan::scan(&self.dir) {
            Ok(found) => {
                self.read_changed(found);
                problems.extend(self.nothing_found());
            }
            Err(error) => {
                let remedy = if self.files.is_empty() {
                    "name a directory that can be read"
                } else {
                    "the last good state stays in effect"
                };
                problems.push(file_problem(&self.dir, NO_LINE, &error.to_string(), remedy));
            }
        }
        self.merge(problems)
    }

    /// Said of a directory in which nothing stands, good or bad: most often it is the wrong one.
    fn nothing_found(&self) -> Option<Problem> {
        if self.files.values().any(|f| f.parsed.says_something()) {
            return None;
        }
        let reason = format!(
            "no Kubernetes objects found in {} (files read: {}; only .yaml, .yml and .json are read)",
            self.dir.display(),
            self.files.len()
        );
        let problem = file_problem(&self.dir, NO_LINE, &reason, "");
        Some(Problem { severity: Severity::Warning, origin: None, ..problem })
    }

    /// Whether the directory looks different from what was loaded, by names, sizes and times only.
    fn looks_changed(&self) -> bool {
        scan::scan(&self.dir).is_ok_and(|found| {
            found.len() != self.files.len()
                || found.iter().any(|(path, stamp)| self.files.get(path).is_none_or(|f| f.stamp != *stamp))
        })
    }

    fn read_changed(&mut self, found: BTreeMap<PathBuf, Stamp>) {
        let mut before = std::mem::take(&mut self.files);
        for (path, stamp) in found {
            let old = before.remove(&path);
            let file = match old {
                Some(old) if old.stamp == stamp && stamp.is_settled() => old,
                old => File { stamp, parsed: Arc::new(parse::read(&path, old.as_ref().map(|o| &*o.parsed))) },
            };
            self.files.insert(path, file);
        }
    }
}
