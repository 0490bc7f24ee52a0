//! File descriptors of the process that Gateways may have.
//!
//! Every connection at a Gateway is a client's, and anybody may be a client. A process has so many file descriptors and no
//! more, and the pods of the node need theirs: Gateways get a part of them ([`GATEWAY_DESCRIPTORS`]), whatever comes.

use std::sync::atomic::{AtomicUsize, Ordering};
use weft_core::budget::GATEWAY_DESCRIPTORS;

/// A client's connection, and the one that is made for it.
const EACH: usize = 2;

/// Counts the connections at all Gateways of a process.
#[derive(Debug)]
pub struct Descriptors {
    open: AtomicUsize,
    most: usize,
}

impl Default for Descriptors {
    /// Of a process without a limit.
    fn default() -> Self {
        Self { open: AtomicUsize::new(0), most: usize::MAX }
    }
}

impl Descriptors {
    /// Of a process that may open `limit` files.
    #[must_use]
    pub const fn of(limit: usize) -> Self {
        let most = limit / 100 * GATEWAY_DESCRIPTORS.size() / EACH;
        Self { open: AtomicUsize::new(0), most }
    }

    /// Of this process, whose soft limit is raised to the hard one.
    #[must_use]
    pub fn of_process() -> Self {
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
        hard_limit(&limits).map_or_else(Self::default, Self::of)
    }

    /// Whether there may be another connection at a Gateway.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.open.load(Ordering::Relaxed) < self.most
    }

    pub(super) fn take(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn give(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The hard limit of open files in `/proc/PID/limits`; `None` for "unlimited".
fn hard_limit(limits: &str) -> Option<usize> {
    let line = limits.lines().find_map(|l| l.strip_prefix("Max open files"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        context::{Limits, ShareKey},
        drain::Drain,
        share::{Kind, Load, Share, ShareLimits, scheduler::Scheduler},
    };
    use std::sync::Arc;
    use weft_core::model::ObjectKey;

    #[test]
    fn the_limit_is_read_where_the_kernel_shows_it() {
        let text = "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024                 524288               files\n";
        assert_eq!(hard_limit(text), Some(524_288));
        assert_eq!(
            hard_limit("Max open files            1024                 unlimited            files\n"),
            None
        );
        assert!(hard_limit(&std::fs::read_to_string("/proc/self/limits").unwrap()).is_some());
    }

    #[test]
    fn gateways_leave_file_descriptors_to_pods() {
        crate::http::tests::support::run(async { flood() });
    }

    fn flood() {
        let descriptors = Arc::new(Descriptors::of(2_000));
        let start = |key| {
            let load = Load { descriptors: descriptors.clone(), ..Load::default() };
            let limits = ShareLimits::from(&Limits::default());
            Share::start(&Scheduler::start(Arc::default()), key, limits, Drain::new(), Arc::new(load))
        };
        // Two Gateways of two tenants ask for ten times what there is.
        let gateways = ["a", "b"].map(|n| start(ShareKey::Gateway(ObjectKey::new(n, "edge"))));
        let mut open = Vec::new();
        for i in 0..20_000 {
            if descriptors.has_room() {
                open.extend(gateways[i % 2].admit(Kind::Out));
            }
        }
        assert_eq!(open.len(), 750, "three quarters, two for each");
        // A pod is not asked, and takes nothing of theirs.
        let pod = start(ShareKey::Pod(ObjectKey::new("c", "pod")));
        let own: Vec<_> = (0..100).filter_map(|_| pod.admit(Kind::Out)).collect();
        assert_eq!(own.len(), 100);
        drop(own);
        assert!(!descriptors.has_room());
        open.pop();
        assert!(descriptors.has_room());
    }
}
