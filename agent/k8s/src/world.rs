//! The world as a provider hands it out.

use crate::{config::AgentConfig, problem::Problem};
use std::time::Duration;
use weft_core::model::Snapshot;

/// Everything that a source says: a directory of files, or a cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct World {
    /// The objects in effect.
    pub snapshot: Snapshot,
    /// What is wrong: by file and line, or by object when it came from a watch. The same list until something changes.
    pub problems: Vec<Problem>,
    /// Settings; the defaults without an `AgentConfig` document.
    pub agent: AgentConfig,
    /// `uninstall: "true"` beside the settings of a cluster: agents let every pod go and clean their node. Never of files.
    pub uninstall: bool,
    /// Beside `uninstall`: how long connections of pods that leave may go on, where that is less than an agent allows.
    pub drain: Option<Duration>,
}
