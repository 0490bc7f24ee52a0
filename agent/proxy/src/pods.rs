//! Pods of this node: their listeners and who they are.

use crate::context::Source;
use std::rc::Rc;

/// A captured pod as one worker serves it.
#[derive(Debug)]
pub(crate) struct Pod {
    /// On whose behalf.
    pub(crate) source: Rc<Source>,
}
