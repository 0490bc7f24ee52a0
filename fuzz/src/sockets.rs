//! What a peer on a Unix socket sends, out of bytes; and a place where it does no harm.

use crate::Bytes;
use nix::sched::{CloneFlags, unshare};
use std::cell::RefCell;
use tokio::runtime::{Builder, Runtime};
use weft_inpod::fuzzing::Sent;

/// More than any conversation needs; all of it lies in a socket's buffer at once.
const MESSAGES_MAX: usize = 48;

/// Moves the process into a network namespace of its own: what is fuzzed opens the ports that it is asked for.
///
/// # Panics
/// When it may not: as root, or where users may have namespaces, it may.
pub fn isolate() {
    let alone = unshare(CloneFlags::CLONE_NEWNET);
    alone
        .or_else(|_| unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET))
        .expect("a network namespace");
}

/// Messages: one byte says what comes with each, then its bytes follow.
#[must_use]
pub fn sent(data: &[u8]) -> Vec<Sent<'_>> {
    let mut input = Bytes(data);
    let mut all = Vec::new();
    while !input.is_empty() && all.len() < MESSAGES_MAX {
        let mode = input.byte();
        let descriptors = match mode & 7 {
            // More than any group may have.
            7 => 150,
            few => usize::from(few),
        };
        all.push(Sent { bytes: input.message(), framed: mode & 16 == 0, descriptors, netns: mode & 8 == 0 });
    }
    all
}

thread_local! {
    static RUNTIME: RefCell<Option<Runtime>> = const { RefCell::new(None) };
}

/// Runs `work` on a runtime with sockets, which is kept.
///
/// # Panics
/// When there is no runtime.
pub fn run<T>(work: impl Future<Output = T>) -> T {
    RUNTIME.with_borrow_mut(|runtime| {
        let make = || Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.get_or_insert_with(make).block_on(work)
    })
}
